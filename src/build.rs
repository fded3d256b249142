//! The build script: finds the commit, for `--version`, and makes completions and man page of the parser. Made here, they cost
//! the binary no code.

#[expect(dead_code, unreachable_pub, reason = "the library's module; only its parser is used here")]
#[path = "config"]
mod config {
    pub mod cli;
    pub mod duration;
    pub mod help;
    pub mod operations;
    pub mod options;
    pub mod values;
}
#[path = "build/documents.rs"]
mod documents;

use std::path::Path;
use std::process::Command;
use std::{env, fs, io};

use config::values::{Shell, Value};

fn main() -> io::Result<()> {
    let date = set_version();
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    for (shell, _) in Shell::WORDS {
        fs::write(Path::new(&out).join(shell), documents::completions(shell)?)?;
    }
    fs::write(Path::new(&out).join("claude-run.1"), documents::man_page(&date)?)
}

/// Parts of the crate that go into the binary.
const SOURCES: [&str; 4] = ["src", "Cargo.toml", "Cargo.lock", ".cargo"];

/// Sets the text of `--version`, and returns the date of the commit. Without a git checkout, as in an unpacked source archive, the
/// version stands alone.
fn set_version() -> String {
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    // Its last line changes with every commit, checkout and reset.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo:rerun-if-changed={log}");
    }
    let commit = git(&["log", "-1", "--format=%h %cs", "--abbrev=12"]).unwrap_or_default();
    let changes = git(&[&["status", "--porcelain", "--"][..], &SOURCES].concat()).unwrap_or_default();
    let commit_and_changes = match (commit.as_str(), changes.as_str()) {
        ("", _) => String::new(),
        (commit, "") => format!(" ({commit})"),
        (commit, _) => format!(" ({commit}, modified)"),
    };
    println!("cargo:rustc-env=CLAUDE_RUN_VERSION={}{commit_and_changes}", env!("CARGO_PKG_VERSION"));
    commit.split_once(' ').unwrap_or_default().1.to_owned()
}

/// Output of git for `words`; `None` if it fails.
fn git(words: &[&str]) -> Option<String> {
    // Unpacked inside of another checkout, it would tell of that one.
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let output = Command::new("git").env("GIT_CEILING_DIRECTORIES", above).args(words).output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|_| output.status.success())
}
