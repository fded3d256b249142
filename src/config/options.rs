//! The table of options: it makes the parser, the help, the keys of the settings file and the names in every error.

/// An option that has a value, a variable of its own and a default.
#[derive(Debug)]
pub struct Opt {
    /// The long flag without its dashes; also the key in a settings file.
    pub flag: &'static str,
    pub(super) short: Option<char>,
    /// What its value is called in the help.
    pub(super) value: &'static str,
    /// What that can be.
    pub takes: Takes,
    /// The environment variable with the same meaning.
    pub variable: &'static str,
    /// What counts when nothing else is said, in words.
    pub default: &'static str,
    /// Whether it may stand in the settings file.
    pub is_shared: bool,
    pub(super) heading: &'static str,
    /// What it is, in a line.
    pub(super) help: &'static str,
    /// What else there is to know.
    pub(super) more: &'static str,
}

/// What can be a value, for who completes a command line. What it means is settled in `settings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// One of these words.
    Words(&'static [&'static str]),
    /// `on` or `off`; given without a value, it is on.
    Switch,
    /// A directory's path.
    Directory,
    /// A file's path.
    File,
    /// A program's path.
    Program,
    /// What nobody can complete.
    Text,
}

const LOCK_HEADING: &str = "Session lock";
const WATCHDOG_HEADING: &str = "Watchdog";
const OUTPUT_HEADING: &str = "Output";
pub(super) const MESSAGES_HEADING: &str = "Messages";

/// The lock modes.
pub const MODES: &[&str] = &["exclusive", "refresh", "pass-through"];

/// `--lock`
pub const LOCK: Opt = Opt {
    flag: "lock",
    short: None,
    value: "MODE",
    takes: Takes::Words(MODES),
    variable: "CLAUDE_RUN_LOCK",
    default: "exclusive",
    is_shared: true,
    heading: LOCK_HEADING,
    help: "When to hold the session lock: exclusive, refresh or pass-through",
    more: "exclusive: for the whole run; refresh: only while a refresh of claude's token is due; pass-through: never. A \
           CLAUDE_EXTERNAL_LOCK that is not empty means exclusive, too",
};

/// `--wait`
pub const WAIT: Opt = Opt {
    flag: "wait",
    short: Some('w'),
    value: "DUR",
    takes: Takes::Text,
    variable: "CLAUDE_RUN_WAIT",
    default: "10m",
    is_shared: true,
    heading: LOCK_HEADING,
    help: "How long to wait for the lock; 0: not at all, none: for ever",
    more: "",
};

/// `--refresh-margin`
pub const REFRESH_MARGIN: Opt = Opt {
    flag: "refresh-margin",
    short: None,
    value: "DUR",
    takes: Takes::Text,
    variable: "CLAUDE_RUN_REFRESH_MARGIN",
    default: "6m",
    is_shared: true,
    heading: LOCK_HEADING,
    help: "With --lock refresh: how long before the token expires a refresh counts as due",
    more: "Claude makes it from 5m before. At or above the hard limit, refreshes in mid-run are covered, too. 0: once it has \
           expired, none: always",
};

/// `--conflict-exit-code`
pub const CONFLICT_EXIT_CODE: Opt = Opt {
    flag: "conflict-exit-code",
    short: Some('E'),
    value: "N",
    takes: Takes::Text,
    variable: "CLAUDE_RUN_CONFLICT_EXIT_CODE",
    default: "75",
    is_shared: true,
    heading: LOCK_HEADING,
    help: "Exit code when the lock was not free in time, 0 to 255",
    more: "",
};

/// `--config-dir`
pub const CONFIG_DIR: Opt = Opt {
    flag: "config-dir",
    short: None,
    value: "DIR",
    takes: Takes::Directory,
    variable: "CLAUDE_CONFIG_DIR",
    default: "$HOME/.claude",
    is_shared: false,
    heading: LOCK_HEADING,
    help: "Claude Code's config dir, for the lock and for claude itself",
    more: "",
};

/// `--lock-file`
pub const LOCK_FILE: Opt = Opt {
    flag: "lock-file",
    short: None,
    value: "PATH",
    takes: Takes::File,
    variable: "CLAUDE_RUN_LOCK_FILE",
    default: "session.lock in the config dir",
    is_shared: false,
    heading: LOCK_HEADING,
    help: "The file whose flock(2) is the session lock",
    more: "Made if missing, never written, never removed",
};

/// `--lock-helper`
pub const LOCK_HELPER: Opt = Opt {
    flag: "lock-helper",
    short: None,
    value: "COMMAND",
    takes: Takes::Text,
    variable: "CLAUDE_RUN_LOCK_HELPER",
    default: "none",
    is_shared: true,
    heading: LOCK_HEADING,
    help: "For several hosts: a command that holds the lock of another engine, too, as long as it runs",
    more: "`etcdctl lock NAME` is one. It is started once the session lock is had; its first line on stdout says that it has \
           the lock, TERM lets go of it. If it ends while COMMAND runs, COMMAND is stopped, with exit code 69. Words are split at \
           spaces, quotes keep them together, and no shell sees them",
};

/// `--claude`
pub const CLAUDE: Opt = Opt {
    flag: "claude",
    short: None,
    value: "PATH",
    takes: Takes::Program,
    variable: "CLAUDE_RUN_CLAUDE",
    default: "claude on PATH",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "The program that COMMAND `claude` stands for",
    more: "",
};

/// `--timeout`
pub const TIMEOUT: Opt = Opt {
    flag: "timeout",
    short: None,
    value: "DUR",
    takes: Takes::Text,
    variable: "CLAUDE_TIMEOUT",
    default: "2h; none when interactive",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "Hard limit, counted from the start of COMMAND; 0: none",
    more: "Then TERM, the kill grace, KILL to its whole tree, exit code 124",
};

/// `--idle-timeout`
pub const IDLE_TIMEOUT: Opt = Opt {
    flag: "idle-timeout",
    short: None,
    value: "DUR",
    takes: Takes::Text,
    variable: "CLAUDE_RUN_IDLE_TIMEOUT",
    default: "none",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "Idle limit: no byte on stdout or stderr for so long",
    more: "Then as at the hard limit. Claude Code can be silent for 6 minutes while it waits for its API: below 7m it kills \
           healthy runs",
};

/// `--result-grace`
pub const RESULT_GRACE: Opt = Opt {
    flag: "result-grace",
    short: None,
    value: "DUR",
    takes: Takes::Text,
    variable: "CLAUDE_IDLE_GRACE",
    default: "30s",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "How long claude may stay after its last result frame; 0: for ever",
    more: "Where its output has frames (--output-format json or stream-json, stdout not a terminal). Then as at the hard \
           limit, with exit code 0 or 1 by the frame's is_error",
};

/// `--task-grace`
pub const TASK_GRACE: Opt = Opt {
    flag: "task-grace",
    short: None,
    value: "DUR",
    takes: Takes::Text,
    variable: "CLAUDE_RUN_TASK_GRACE",
    default: "10m",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "The result grace while a background task of claude is open; 0: for ever",
    more: "",
};

/// `--kill-after`
pub const KILL_AFTER: Opt = Opt {
    flag: "kill-after",
    short: Some('k'),
    value: "DUR",
    takes: Takes::Text,
    variable: "CLAUDE_RUN_KILL_AFTER",
    default: "5s",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "Kill grace: how long after a TERM the KILL follows; 0: it never does",
    more: "",
};

/// `--leftovers`
pub const LEFTOVERS: Opt = Opt {
    flag: "leftovers",
    short: None,
    value: "kill|keep",
    takes: Takes::Words(&["kill", "keep"]),
    variable: "CLAUDE_RUN_LEFTOVERS",
    default: "kill; keep when interactive",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "What to do with descendants that outlive COMMAND",
    more: "In whatever session or process group they are",
};

/// `--require-result`
pub const REQUIRE_RESULT: Opt = Opt {
    flag: "require-result",
    short: None,
    value: "on|off",
    takes: Takes::Switch,
    variable: "CLAUDE_RUN_REQUIRE_RESULT",
    default: "off",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "Exit code 65 for a COMMAND that exits with 0 without a successful result frame",
    more: "One that is missing, cut off, or tells of no success. From the variable or the settings file, it counts for claude and \
           for what is asked for --output-format json or stream-json, not for other programs",
};

/// `--stdin`
pub const STDIN: Opt = Opt {
    flag: "stdin",
    short: None,
    value: "inherit|null",
    takes: Takes::Words(&["inherit", "null"]),
    variable: "CLAUDE_RUN_STDIN",
    default: "inherit",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "What COMMAND reads from",
    more: "With null, `claude -p` does not wait 3 s for a pipe that nobody writes",
};

/// `--pty`
pub const PTY: Opt = Opt {
    flag: "pty",
    short: None,
    value: "on|off",
    takes: Takes::Switch,
    variable: "CLAUDE_RUN_PTY",
    default: "off",
    is_shared: true,
    heading: OUTPUT_HEADING,
    help: "Give COMMAND a pseudo-terminal as its stdout",
    more: "Of our terminal's size, and without a CR before each line end",
};

/// `--log`
pub const LOG: Opt = Opt {
    flag: "log",
    short: None,
    value: "FILE",
    takes: Takes::File,
    variable: "CLAUDE_RUN_LOG",
    default: "none",
    is_shared: true,
    heading: OUTPUT_HEADING,
    help: "Append each line of COMMAND's stdout and stderr to FILE as it comes",
    more: "With time and run, and our own messages; several runs may share it. A FILE that cannot be written costs the log, \
           never the run",
};

/// `--redact`
pub const REDACT: Opt = Opt {
    flag: "redact",
    short: None,
    value: "log|all|off",
    takes: Takes::Words(&["log", "all", "off"]),
    variable: "CLAUDE_RUN_REDACT",
    default: "log",
    is_shared: true,
    heading: OUTPUT_HEADING,
    help: "Where to mask secrets: in the log, in what is passed on as well, or nowhere",
    more: "",
};

/// `--record`
pub const RECORD: Opt = Opt {
    flag: "record",
    short: None,
    value: "FILE",
    takes: Takes::File,
    variable: "CLAUDE_RUN_RECORD",
    default: "none",
    is_shared: true,
    heading: OUTPUT_HEADING,
    help: "Append one JSON line to FILE at the end of the run",
    more: "Outcome, exit code, times, and what the last result frame says",
};

/// `--label`
pub const LABEL: Opt = Opt {
    flag: "label",
    short: None,
    value: "TEXT",
    takes: Takes::Text,
    variable: "CLAUDE_RUN_LABEL",
    default: "LOG_AGENT, if set",
    is_shared: true,
    heading: OUTPUT_HEADING,
    help: "What to call this run: in its record, to those who wait for it, in reports",
    more: "",
};

/// `--log-format`
pub const LOG_FORMAT: Opt = Opt {
    flag: "log-format",
    short: None,
    value: "text|json",
    takes: Takes::Words(&["text", "json"]),
    variable: "CLAUDE_RUN_LOG_FORMAT",
    default: "text",
    is_shared: false,
    heading: MESSAGES_HEADING,
    help: "How claude-run's own messages look, and the lines of the log",
    more: "",
};

/// Every option with a value, in the order of the help.
pub const OPTIONS: [&Opt; 22] = [
    &LOCK,
    &WAIT,
    &REFRESH_MARGIN,
    &CONFLICT_EXIT_CODE,
    &CONFIG_DIR,
    &LOCK_FILE,
    &LOCK_HELPER,
    &CLAUDE,
    &TIMEOUT,
    &IDLE_TIMEOUT,
    &RESULT_GRACE,
    &TASK_GRACE,
    &KILL_AFTER,
    &LEFTOVERS,
    &REQUIRE_RESULT,
    &STDIN,
    &PTY,
    &LOG,
    &REDACT,
    &RECORD,
    &LABEL,
    &LOG_FORMAT,
];
