//! Documents for other programs, which the build script has made of the parser.

use crate::config::values::Shell;

/// Script by which `shell` completes a command line.
pub(super) fn completions(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => include_str!(concat!(env!("OUT_DIR"), "/bash")),
        Shell::Fish => include_str!(concat!(env!("OUT_DIR"), "/fish")),
        Shell::Zsh => include_str!(concat!(env!("OUT_DIR"), "/zsh")),
    }
}

/// claude-run(1).
pub(super) const MAN_PAGE: &str = include_str!(concat!(env!("OUT_DIR"), "/claude-run.1"));
