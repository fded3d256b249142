//! Any bytes in any one file of a config dir, as one of the operations reads it: never a panic, no control character in what they show,
//! and JSON where JSON is asked for.
#![no_main]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use claude_run::app::operate;
use claude_run::config::cli::{Cli, Request};
use libfuzzer_sys::fuzz_target;

/// The files that an operator's command reads, ours and claude's; those that are locked have nothing in them that counts.
const FILES: [&str; 13] = [
    "claude-run/runs/4194001-1.json",
    "claude-run/history.jsonl",
    "claude-run/history.1.jsonl",
    "claude-run/slots/1",
    "claude-run/slots/t1",
    "claude-run.toml",
    "session.lock",
    ".credentials.json",
    ".claude.json",
    "settings.json",
    ".oauth_refresh.lock.owner",
    "telemetry/1p_failed_events.a.b.json",
    "telemetry/1p_failed_events.c.d.json",
];

/// A look at /proc/locks costs some of them 10 ms and more, so an input gets one of them.
const COMMANDS: [&str; 14] = [
    "status",
    "status --json",
    "mode",
    "mode --json",
    "slots --json",
    "settings",
    "settings --json",
    "report",
    "report --json",
    "report --prometheus",
    "events",
    "events --json",
    "doctor",
    "doctor --json",
];

/// File of which `doctor` executes the program that it names, if its owner may write it alone, as here.
const NAMES_PROGRAMS: &str = "claude-run.toml";

/// The config dir, whose other files are as they should be.
static HOME: LazyLock<PathBuf> = LazyLock::new(|| {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz/home");
    let _ = fs::remove_dir_all(&home);
    for dir in ["claude-run/runs", "claude-run/slots", "telemetry", ".oauth_refresh.lock"] {
        fs::create_dir_all(home.join(dir)).expect("a directory");
    }
    // SAFETY: there is no other thread yet.
    unsafe {
        std::env::set_var("CLAUDE_CONFIG_DIR", &home);
        std::env::set_var("PATH", home.join("telemetry")); // no claude for doctor to execute
    }
    home
});

/// What `command` shows, if it can show anything.
fn shown(command: &str) -> Option<String> {
    let words: Vec<OsString> = ["claude-run"].into_iter().chain(command.split(' ')).map(OsString::from).collect();
    let Ok(Request::Operate(cli, operation)) = Cli::parse(&words) else { panic!("{command}") };
    let mut out = Vec::new();
    operate(cli, &operation, &mut out).ok()?;
    Some(String::from_utf8(out).expect("text"))
}

/// `text` without `ESC [ 1 m` and its like, which are ours.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    let is_digit = |c: char| c.is_ascii_digit() || c == ';';
    parts.fold(first, |text, part| text + part.trim_start_matches(is_digit).strip_prefix('m').unwrap_or("\x1b"))
}

fn is_unfit(shown: char) -> bool {
    shown.is_control() && shown != '\n'
        || ('\u{202a}'..='\u{202e}').contains(&shown)
        || ('\u{2066}'..='\u{2069}').contains(&shown)
}

fuzz_target!(|input: (u8, &[u8])| {
    let name = FILES[usize::from(input.0) % FILES.len()];
    let command = COMMANDS[usize::from(input.0) / FILES.len() % COMMANDS.len()];
    if name == NAMES_PROGRAMS && command.starts_with("doctor") {
        return;
    }
    let file = HOME.join(name);
    fs::write(&file, input.1).expect("a file");
    if let Some(text) = shown(command) {
        assert!(!without_colours(&text).chars().any(is_unfit), "{command}: {text:?}");
        if command.ends_with("--json") {
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{command}: {text}");
        }
    }
    let _ = fs::remove_file(&file);
});
