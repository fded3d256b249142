//! Text of the help and the man page besides the options.

use clap::builder::Styles;

/// A section of the help and the man page.
#[derive(Debug)]
pub struct Section {
    /// Heading.
    pub title: &'static str,
    /// True if it stands in `-h` as well.
    in_short: bool,
    /// Paragraph.
    pub text: &'static str,
    /// Terms, and what they mean.
    pub terms: &'static [(&'static str, &'static str)],
}

/// First line of the help.
pub(super) const ABOUT: &str =
    "Runs COMMAND (default: claude) under the session lock and a watchdog that leaves nothing behind.";

/// Second paragraph of `--help`.
pub(super) const MORE_ABOUT: &str = "The session lock is a flock(2) on session.lock in Claude Code's config dir: one for all agents that share a login, in whatever \
     container. The watchdog passes signals on, ends COMMAND at its limits, and then whatever it has left behind.";

/// Line for whatis(1).
pub const WHATIS: &str = "run claude under one session lock and a watchdog";

/// Forms of a command line.
pub(super) const USAGE: &str = "claude-run [OPTIONS] [--] [COMMAND] [ARGS]...\n       claude-run [OPTIONS] OPERATION [ARGS]...";

const fn prose(title: &'static str, text: &'static str) -> Section {
    Section { title, in_short: false, text, terms: &[] }
}

const fn terms(title: &'static str, in_short: bool, terms: &'static [(&'static str, &'static str)]) -> Section {
    Section { title, in_short, text: "", terms }
}

/// Sections behind the options of `--help`, and of the man page.
pub const SECTIONS: [Section; 7] = [
    prose(
        "Command line",
        "COMMAND gets every word after its first one, byte for byte; no shell sees them. Put claude's arguments after `--`: there, a \
         first word that starts with `-` is an argument for claude, and one with the name of an operation is a program. Called \
         under the name `claude`, every argument is claude's, and only variables and the settings file count.",
    ),
    prose(
        "Values",
        "DUR is 90, 90s, 1.5, 10m, 2h, 1d or 1h30m; a bare number is seconds. A flag goes before its variable, and that before the \
         file claude-run.toml in the config dir, whose keys are the flags without their dashes; an empty variable counts as unset. \
         `claude-run settings` prints what counts, and why.",
    ),
    prose(
        "Signals",
        "HUP, INT, QUIT, TERM, USR2, WINCH and CONT go on to COMMAND, TSTP stops both; TERM, HUP and QUIT start the kill grace, a \
         second TERM ends it at once (two within 0.1 s are one). USR1 prints one line on the state of the run. While claude may be \
         refreshing its token, a signal that would end it is deferred, at most 15 s.",
    ),
    terms(
        "Exit codes",
        true,
        &[
            ("0 to 255", "COMMAND's own, when it ended by itself"),
            ("0 or 1", "claude hung after its result frame and was ended: 1 if the frame says is_error"),
            ("128+N", "COMMAND was ended by signal N, or claude-run was, waiting for lock or reader"),
            ("124", "hard limit or idle limit; the message says which"),
            ("65", "with --require-result: 0, but without a successful result frame"),
            ("69", "the lock helper ended while COMMAND ran: the lock was lost"),
            ("74", "0, but some of COMMAND's output could not be written"),
            ("75", "the lock, or a slot, was not free within --wait (-E changes it)"),
            ("125", "claude-run itself failed, usage errors included"),
            ("126", "COMMAND was found but cannot be run"),
            ("127", "COMMAND was not found"),
        ],
    ),
    terms(
        "Environment of COMMAND",
        false,
        &[
            ("CLAUDE_RUN_ID", "names the run"),
            ("CLAUDE_RUN_LINEAGE", "the runs that it is below"),
            ("CLAUDE_RUN_HELD", "the locks that are held for it"),
            ("CLAUDE_RUN_SLOT", "the slots that are held for it"),
            ("CLAUDE_RUN_LOCK_KEY", "the name that the lock helper gives its lock"),
        ],
    ),
    terms(
        "Files",
        false,
        &[
            ("<config dir>/session.lock", "the session lock: only ever locked, never written, never removed"),
            ("<config dir>/claude-run.toml", "the settings file"),
            ("<config dir>/claude-run/runs/", "a record for each live run, locked by it"),
            (
                "<config dir>/claude-run/slots/",
                "the slots, each locked by the run that has it, and the tickets of those who wait",
            ),
            ("<config dir>/claude-run/history.jsonl", "a line for each finished run"),
        ],
    ),
    terms(
        "Examples",
        true,
        &[
            ("claude-run -- -p \"hi\"", "claude -p \"hi\", one at a time"),
            ("claude-run --wait 30s -- -p \"hi\"", "give up after 30 s, with exit code 75"),
            ("claude-run --timeout 20m -- -p \"hi\"", "at most 20 minutes, then exit code 124"),
            ("claude-run --lock refresh -- -p \"hi\"", "side by side, and one refresh"),
            ("claude-run --timeout 0 make test", "any other program, without a hard limit"),
            ("claude-run status", "who holds the lock, and who waits"),
        ],
    ),
];

/// Text behind the options of `--help`, or of `-h`.
pub(super) fn after(in_full: bool) -> String {
    let mut text = String::new();
    for section in SECTIONS.iter().filter(|section| in_full || section.in_short) {
        text += &heading(section.title);
        text.extend(section.text.lines().flat_map(|line| [line, "\n"]));
        let width = section.terms.iter().map(|(term, _)| term.len()).max().unwrap_or_default();
        text.extend(section.terms.iter().map(|(term, meaning)| format!("  {term:width$}  {meaning}\n")));
        text += "\n";
    }
    let more = if in_full { "" } else { "`claude-run --help` says more, and so does `claude-run OPERATION --help`.\n" };
    text + more
}

/// As the headings of clap's own look.
fn heading(title: &str) -> String {
    let style = Styles::styled();
    let style = style.get_header();
    format!("{style}{title}:{style:#}\n")
}
