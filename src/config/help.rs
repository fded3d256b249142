//! Text of the help and the man page besides the options.

use clap::builder::Styles;

use super::options::OPTIONS;

/// A section of the help and the man page.
#[derive(Debug)]
pub struct Section {
    /// Heading.
    pub title: &'static str,
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
pub const USAGE: &str = "claude-run [OPTIONS] [--] [COMMAND] [ARGS]...\n       claude-run [OPTIONS] OPERATION [ARGS]...";

const fn prose(title: &'static str, text: &'static str) -> Section {
    Section { title, text, terms: &[] }
}

const fn terms(title: &'static str, terms: &'static [(&'static str, &'static str)]) -> Section {
    Section { title, text: "", terms }
}

/// Variables that are read, and stand for no option.
pub const OTHER_VARIABLES: [(&str, &str); 6] = [
    ("CLAUDE_EXTERNAL_LOCK", "If it is not empty and CLAUDE_RUN_LOCK is: exclusive"),
    ("LOG_AGENT", "The label, if CLAUDE_RUN_LABEL is empty"),
    ("CLAUDE_SHARED_DIR", "Of setup: as --shared-dir"),
    ("HOME", "Where .claude is, if CLAUDE_CONFIG_DIR is empty"),
    ("PATH", "Where COMMAND is looked for"),
    ("NO_COLOR", "If it is not empty, there are no colours; CLICOLOR_FORCE, not 0, has them everywhere"),
];

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
        &[
            ("0 to 255", "COMMAND's own, when it ended by itself"),
            ("0 or 1", "claude hung after its result frame and was ended: 1 if the frame says is_error"),
            ("65", "with --require-result: 0, but without a successful result frame"),
            ("69", "the lock helper ended while COMMAND ran: the lock was lost"),
            ("74", "0, but some of the output that claude-run passes on could not be written"),
            ("75", "the lock, or a slot, was not free within --wait (-E changes it)"),
            ("124", "hard limit or idle limit; the message says which"),
            ("125", "claude-run itself failed, usage errors included"),
            ("126", "COMMAND was found but cannot be run"),
            ("127", "COMMAND was not found"),
            ("128+N", "COMMAND was ended by signal N, or claude-run was, waiting for lock or reader"),
            ("0, 1 or 125", "of an OPERATION: all is well, trouble found, it failed itself"),
        ],
    ),
    terms(
        "Environment of COMMAND",
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

/// Text behind the options of `--help`.
pub(super) fn after() -> String {
    let mut text = String::new();
    for section in &SECTIONS {
        text += &heading(section.title);
        text.extend(section.text.lines().flat_map(|line| [line, "\n"]));
        let width = section.terms.iter().map(|(term, _)| term.len()).max().unwrap_or_default();
        text.extend(section.terms.iter().map(|(term, meaning)| format!("  {term:width$}  {meaning}\n")));
        text += "\n";
    }
    text + "`claude-run help` prints a chapter of the guide, `claude-run OPERATION --help` says more on an operation.\n"
}

/// Operations that most people need.
const SHORT_OPERATIONS: [(&str, &str); 5] = [
    ("status", "who holds the session lock, who waits for it, and how things stand"),
    ("mode", "show the lock mode, or set it: exclusive, refresh, pass-through"),
    ("report", "what finished runs made: outcomes, waits, the last day, cost"),
    ("doctor", "check all that a shared config dir needs, and say what to do"),
    ("setup", "make a shared config dir, or move ~/.claude there"),
];

/// Options that most people need.
const SHORT_OPTIONS: [(&str, &str); 9] = [
    ("lock", "hold it always, for a refresh, or never"),
    ("wait", "longest wait for the lock; 0: do not wait"),
    ("timeout", "hard limit; 0: none"),
    ("idle-timeout", "longest time without output"),
    ("kill-after", "from TERM to KILL"),
    ("require-result", "exit code 65 without a successful result"),
    ("log", "append what it prints, with secrets masked"),
    ("label", "its name in status and report"),
    ("config-dir", "Claude Code's config dir"),
];

/// Text of `-h`: what most people need, on one screen of 80 columns and 24 rows with a prompt below.
pub(super) fn short(command: &clap::Command) -> String {
    let term = |term: &str, meaning: &str| format!("  {term:<24}{meaning}\n");
    let about = "Runs COMMAND (default: claude) under the session lock and a watchdog.";
    let mut text = format!("{about}\n{}{USAGE}\n\n", heading("Usage").replace('\n', " "));
    text += &heading("Operations (claude-run OPERATION --help says more)");
    text.extend(SHORT_OPERATIONS.map(|(name, meaning)| format!("  {name:<9}{meaning}\n")));
    let is_listed = |name: &str| SHORT_OPERATIONS.iter().any(|(listed, _)| *listed == name);
    let others: Vec<_> = command.get_subcommands().map(clap::Command::get_name).filter(|name| !is_listed(name)).collect();
    text += &format!("  {}\n\n", others.join(", "));
    text += &heading("Options (all of them, exit codes and examples: claude-run --help)");
    for (name, meaning) in SHORT_OPTIONS {
        let Some(option) = OPTIONS.iter().find(|option| option.name == name) else { continue };
        let short = option.short.map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
        let value = if option.is_switch() { "" } else { option.value_name };
        text += &term(&format!("{short}--{name} {value}"), &format!("{meaning} [{}]", option.default));
    }
    text + &term("-v, -q", "say more, -vv still more; or nothing but errors")
}

/// As the headings of clap's own look.
fn heading(title: &str) -> String {
    let style = Styles::styled();
    let style = style.get_header();
    format!("{style}{title}:{style:#}\n")
}
