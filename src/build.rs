//! The build script: finds the commit, for `--version`, and makes completions and man page of the parser. Made here, they cost
//! the binary no code.

#[expect(dead_code, unreachable_pub, reason = "the library's module; only its parser is used here")]
#[path = "config"]
mod config {
    pub mod cli;
    pub mod duration;
    pub mod help;
    pub mod options;
    pub mod subcommands;
    pub mod values;
}
#[path = "build/documents.rs"]
mod documents;

use std::path::Path;
use std::process::Command;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let date = set_version();
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    for shell in config::subcommands::SHELLS {
        fs::write(Path::new(&out).join(shell), documents::completions(shell)?)?;
    }
    fs::write(Path::new(&out).join("claude-run.1"), documents::man_page(&date)?)
}

/// Sets the text of `--version`, and returns the date of the commit. Without a git checkout, as in an unpacked source archive, the
/// version stands alone.
fn set_version() -> String {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=Cargo.toml");
    println!("cargo:rerun-if-changed=Cargo.lock");
    println!("cargo:rerun-if-changed=.cargo");
    // Its last line changes with every commit, checkout and reset.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo:rerun-if-changed={log}");
    }
    let version = env!("CARGO_PKG_VERSION");
    // Unpacked inside of another checkout, it would be that one's.
    let is_ours =
        git(&["rev-parse", "--show-toplevel"]).is_some_and(|top| Path::new(&top) == Path::new(env!("CARGO_MANIFEST_DIR")));
    let commit = git(&["log", "-1", "--format=%h %cs", "--abbrev=12"]).filter(|_| is_ours);
    let date = commit.as_deref().and_then(|commit| commit.split_once(' ')).map_or("", |(_, date)| date);
    let shown = match &commit {
        Some(commit) => {
            // Only what goes into the binary counts.
            let is_same = git(&["status", "--porcelain", "--", "src", "Cargo.toml", "Cargo.lock", ".cargo"])
                .is_some_and(|text| text.is_empty());
            format!("{version} ({commit}{})", if is_same { "" } else { ", modified" })
        }
        None => version.to_owned(),
    };
    println!("cargo:rustc-env=CLAUDE_RUN_VERSION={shown}");
    date.to_owned()
}

/// Output of git for `words`; `None` if it fails.
fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
