//! Documents for other programs, which the build script has made of the parser.

/// Script by which `shell` completes a command line. The parser refuses other shells.
pub(super) fn completions(shell: &str) -> &'static str {
    match shell {
        "bash" => include_str!(concat!(env!("OUT_DIR"), "/bash")),
        "fish" => include_str!(concat!(env!("OUT_DIR"), "/fish")),
        "zsh" => include_str!(concat!(env!("OUT_DIR"), "/zsh")),
        _ => "",
    }
}

/// claude-run(1).
pub(super) const MAN_PAGE: &str = include_str!(concat!(env!("OUT_DIR"), "/claude-run.1"));
