//! What the help and the man page say besides the options.

use std::fmt::Write;

use clap::Command;
use clap::builder::Styles;

/// A section of the help or the man page.
#[derive(Debug)]
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// What it says.
    pub body: Body,
}

/// What stands in a section.
#[derive(Debug)]
pub enum Body {
    /// A paragraph.
    Prose(&'static str),
    /// Terms, and what they mean.
    Terms(&'static [(&'static str, &'static str)]),
}

/// What claude-run does.
pub(super) const ABOUT: &str =
    "Runs COMMAND (default: claude) under the session lock and a watchdog that leaves nothing behind.";

/// What that means, in a few words more.
pub(super) const MORE_ABOUT: &str = "The session lock is a flock(2) on session.lock in Claude Code's config dir: one for all agents that share a login, in whatever \
     container. The watchdog passes signals on, ends COMMAND at its limits, and then whatever it has left behind.";

/// The same for whatis(1).
pub const WHATIS: &str = "run claude under one session lock and a watchdog";

/// How it is called. What operations there are is listed below.
pub(super) const USAGE: &str = "claude-run [OPTIONS] [--] [COMMAND] [ARGS]...\n       claude-run [OPTIONS] OPERATION [ARGS]...";

const COMMAND_LINE: Section = Section {
    title: "Command line",
    body: Body::Prose(
        "Everything behind the first word of COMMAND is its own, byte for byte; no shell sees it. Behind `--`, a first word that \
         starts with `-` is an argument for claude, and one with the name of an operation is a program. Called under the name \
         `claude`, every argument is claude's, and only variables and the settings file count.",
    ),
};

const VALUES: Section = Section {
    title: "Values",
    body: Body::Prose(
        "DUR is 90, 90s, 1.5, 10m, 2h, 1d or 1h30m; a bare number is seconds. A flag goes before its variable, and that before the \
         file claude-run.toml in the config dir, whose keys are the flags without their dashes; an empty variable counts as unset. \
         `claude-run settings` prints what counts, and why.",
    ),
};

const SIGNALS: Section = Section {
    title: "Signals",
    body: Body::Prose(
        "HUP, INT, QUIT, TERM, USR2, WINCH and CONT go on to COMMAND, TSTP stops both; TERM, HUP and QUIT start the kill grace, a \
         second TERM ends it at once (two within 0.1 s are one). USR1 prints one line on the state of the run. While claude may be \
         refreshing its token, what would end it waits, at most 15 s.",
    ),
};

const EXIT_CODES: Section = Section {
    title: "Exit codes",
    body: Body::Terms(&[
        ("0 to 255", "COMMAND's own, when it ended by itself"),
        ("0 or 1", "claude hung after its result frame and was ended: 1 if the frame says is_error"),
        ("128+N", "COMMAND was ended by signal N, or claude-run was, waiting for lock or reader"),
        ("124", "hard limit or idle limit; the message says which"),
        ("65", "with --require-result: 0, but without a successful result frame"),
        ("69", "the lock helper ended while COMMAND ran: the lock was lost"),
        ("75", "the lock was not free within --wait (-E changes it)"),
        ("125", "claude-run itself failed, usage errors included"),
        ("126", "COMMAND was found but cannot be run"),
        ("127", "COMMAND was not found"),
    ]),
};

const FILES: Section = Section {
    title: "Files",
    body: Body::Terms(&[
        ("<config dir>/session.lock", "the session lock: only ever locked, never written, never removed"),
        ("<config dir>/claude-run.toml", "the settings file"),
        ("<config dir>/claude-run/runs/", "a record for each live run, locked by it"),
        ("<config dir>/claude-run/history.jsonl", "a line for each finished run"),
    ]),
};

const CHILD: Section = Section {
    title: "Environment of COMMAND",
    body: Body::Terms(&[
        ("CLAUDE_RUN_ID", "names the run"),
        ("CLAUDE_RUN_LINEAGE", "all runs that it is below of"),
        ("CLAUDE_RUN_HELD", "the locks that are held for it"),
        ("CLAUDE_RUN_LOCK_KEY", "what the lock helper calls its lock"),
    ]),
};

const EXAMPLES: Section = Section {
    title: "Examples",
    body: Body::Terms(&[
        ("claude-run -- -p \"hi\"", "claude -p \"hi\", one at a time"),
        ("claude-run --wait 30s -- -p \"hi\"", "give up after 30 s, with exit code 75"),
        ("claude-run --timeout 20m -- -p \"hi\"", "at most 20 minutes, then exit code 124"),
        ("claude-run --lock refresh -- -p \"hi\"", "side by side, and one refresh"),
        ("claude-run --timeout 0 make test", "any other program, without a hard limit"),
        ("claude-run status", "who holds the lock, and who waits"),
    ]),
};

/// What `--help` has behind the options.
const LONG: [&Section; 7] = [&COMMAND_LINE, &VALUES, &SIGNALS, &EXIT_CODES, &CHILD, &FILES, &EXAMPLES];

/// What `-h` has.
const SHORT: [&Section; 2] = [&EXIT_CODES, &EXAMPLES];

/// What the man page has; by the names that are usual there.
pub const MAN: [(&str, &Section); 7] = [
    ("COMMAND LINE", &COMMAND_LINE),
    ("VALUES", &VALUES),
    ("SIGNALS", &SIGNALS),
    ("EXIT STATUS", &EXIT_CODES),
    ("ENVIRONMENT", &CHILD),
    ("FILES", &FILES),
    ("EXAMPLES", &EXAMPLES),
];

/// Behind the options of `-h`.
pub(super) fn after_short(operations: &[Command]) -> String {
    format!("{}`claude-run --help` says more, and so does `claude-run OPERATION --help`.\n", after(operations, &SHORT))
}

/// Behind the options of `--help`.
pub(super) fn after_long(operations: &[Command]) -> String {
    after(operations, &LONG)
}

fn after(operations: &[Command], sections: &[&Section]) -> String {
    let abouts: Vec<_> = operations.iter().map(|operation| (operation.get_name(), about(operation))).collect();
    let mut text = heading("Operations");
    terms(&mut text, abouts.iter().map(|(name, about)| (*name, about.as_str())));
    for Section { title, body } in sections {
        text += "\n";
        text += &heading(title);
        match body {
            Body::Prose(prose) => text.extend([prose, "\n"]),
            Body::Terms(list) => terms(&mut text, list.iter().copied()),
        }
    }
    text + "\n"
}

/// What an operation does, in a line.
pub(super) fn about(operation: &Command) -> String {
    operation.get_about().map(ToString::to_string).unwrap_or_default()
}

/// As the headings of clap's own look.
fn heading(title: &str) -> String {
    let style = Styles::styled();
    let style = style.get_header();
    format!("{style}{title}:{style:#}\n")
}

fn terms<'a>(text: &mut String, list: impl Iterator<Item = (&'a str, &'a str)> + Clone) {
    let width = list.clone().map(|(term, _)| term.len()).max().unwrap_or_default();
    for (term, meaning) in list {
        let _ = writeln!(text, "  {term:width$}  {meaning}"); // a String takes everything
    }
}
