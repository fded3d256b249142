//! Any text as settings file: never a panic; an error names the file and the line.
#![no_main]

use std::path::Path;

use claude_run::config::file::SettingsFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = SettingsFile::parse(Path::new("/factory/claude-run.toml"), text) {
        let message = format!("{error:#}");
        let place = message.strip_prefix("/factory/claude-run.toml:").expect("the file");
        let digits = place.split(':').next().unwrap_or_default();
        let line: usize = digits.parse().expect("a line");
        assert!((1..=text.lines().count().max(1) + 1).contains(&line), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
});
