//! What claude-run carries for other programs to read. The build script has made it of the parsers.

/// The script by which `shell` completes a command line. The parser lets none pass that there is none for.
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
