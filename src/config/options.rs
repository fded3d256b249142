//! The table of options: one struct, from which come the parser, the help, the man page, the completions, the names of the
//! variables and the keys of the settings file. A new option is a new field here, and nothing else; if its values are new,
//! their type stands in `values`.
//!
//! The first paragraph of a field's comment is its line in `-h`, all of it stands in `--help`. A default that is no value but
//! depends on something stands at the end of that first paragraph.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Args, ValueHint};

use super::duration::DurationSetting;
use super::values::{
    Leftovers, LockMode, LogFormat, Redact, RequireResult, Stdin, Verbosity, Wait, exit_code, path, read_by, switch, text,
    words,
};

const LOCK: &str = "Session lock";
const WATCHDOG: &str = "Watchdog";
const OUTPUT: &str = "Output";
pub(super) const MESSAGES: &str = "Messages";

/// Every setting, resolved.
#[derive(Args, Debug)]
pub struct Settings {
    /// When to hold the session lock: exclusive, refresh or pass-through
    ///
    /// exclusive: for the whole run; refresh: only while a refresh of claude's token is due; pass-through: never. A
    /// CLAUDE_EXTERNAL_LOCK that is not empty means exclusive, too
    #[arg(long = "lock", value_name = "MODE", env = "CLAUDE_RUN_LOCK", default_value = "exclusive", help_heading = LOCK)]
    pub lock_mode: LockMode,

    /// Longest wait for the lock; 0: do not wait, none: for ever
    #[arg(long, short, value_name = "DUR", env = "CLAUDE_RUN_WAIT", default_value = "10m", help_heading = LOCK)]
    #[arg(value_parser = read_by(Wait::read))]
    pub wait: Wait,

    /// With --lock refresh: how long before the token expires a refresh counts as due
    ///
    /// Claude Code refreshes it from 5m before; the default adds a minute for clocks and slow starts. At or above the hard
    /// limit, refreshes in mid-run are covered, too. 0: once it has expired, none: always
    #[arg(long, value_name = "DUR", env = "CLAUDE_RUN_REFRESH_MARGIN", default_value = "6m", help_heading = LOCK)]
    pub refresh_margin: DurationSetting,

    /// Exit code when the lock was not free in time, 0 to 255
    #[arg(long, short = 'E', value_name = "N", env = "CLAUDE_RUN_CONFLICT_EXIT_CODE", default_value = "75", help_heading = LOCK)]
    #[arg(value_parser = read_by(exit_code))]
    pub conflict_exit_code: u8,

    /// Claude Code's config dir, for the lock and for claude itself [default: $HOME/.claude]
    #[arg(long, value_name = "DIR", env = "CLAUDE_CONFIG_DIR", help_heading = LOCK, global = true)]
    #[arg(value_parser = read_by(path), value_hint = ValueHint::DirPath)]
    pub config_dir: Option<PathBuf>,

    /// File whose flock(2) is the session lock [default: session.lock in the config dir]
    ///
    /// Made if missing, never written, never removed
    #[arg(long, value_name = "PATH", env = "CLAUDE_RUN_LOCK_FILE", help_heading = LOCK, global = true)]
    #[arg(value_parser = read_by(path), value_hint = ValueHint::FilePath)]
    pub lock_file: Option<PathBuf>,

    /// For several hosts: a command that holds the lock of another engine, too, as long as it runs [default: none]
    ///
    /// `etcdctl lock NAME` is one. It is started once the session lock is acquired; its first line on stdout says that it holds
    /// its lock, TERM makes it release that. If it ends while COMMAND runs, COMMAND is stopped, with exit code 69. Words are
    /// split at spaces, quotes keep them together, and no shell sees them
    #[arg(long, value_name = "COMMAND", env = "CLAUDE_RUN_LOCK_HELPER", help_heading = LOCK, value_parser = read_by(words))]
    pub lock_helper: Option<std::vec::Vec<String>>, // by its full name, it is one value to clap

    /// Program that COMMAND `claude` stands for [default: claude on PATH]
    #[arg(long, value_name = "PATH", env = "CLAUDE_RUN_CLAUDE", help_heading = WATCHDOG)]
    #[arg(value_parser = read_by(path), value_hint = ValueHint::ExecutablePath)]
    pub claude: Option<PathBuf>,

    /// Hard limit, counted from the start of COMMAND; 0: none [default: 2h; none when interactive]
    ///
    /// Then TERM, the kill grace, KILL to its whole tree, exit code 124
    #[arg(long = "timeout", value_name = "DUR", env = "CLAUDE_TIMEOUT", help_heading = WATCHDOG)]
    pub hard_limit: Option<DurationSetting>,

    /// Idle limit: longest time without a byte on stdout or stderr
    ///
    /// Then as at the hard limit. Claude Code can be silent for 6 minutes while it waits for its API: below 7m it kills healthy
    /// runs
    #[arg(long = "idle-timeout", value_name = "DUR", env = "CLAUDE_RUN_IDLE_TIMEOUT", default_value = "none", help_heading = WATCHDOG)]
    pub idle_limit: DurationSetting,

    /// How long claude may stay after its last result frame; 0: for ever
    ///
    /// Where its output has frames (--output-format json or stream-json, stdout not a terminal). Then as at the hard limit, with
    /// exit code 0 or 1 by the frame's is_error
    #[arg(long, value_name = "DUR", env = "CLAUDE_IDLE_GRACE", default_value = "30s", help_heading = WATCHDOG)]
    pub result_grace: DurationSetting,

    /// Result grace while a background task of claude is open; 0: for ever
    #[arg(long, value_name = "DUR", env = "CLAUDE_RUN_TASK_GRACE", default_value = "10m", help_heading = WATCHDOG)]
    pub task_grace: DurationSetting,

    /// Kill grace: time from a TERM to the KILL; 0: no KILL follows
    #[arg(long = "kill-after", short = 'k', value_name = "DUR", env = "CLAUDE_RUN_KILL_AFTER", default_value = "5s", help_heading = WATCHDOG)]
    pub kill_grace: DurationSetting,

    /// What to do with descendants that outlive COMMAND [default: kill; keep when interactive]
    ///
    /// In whatever session or process group they are
    #[arg(long, value_name = "kill|keep", env = "CLAUDE_RUN_LEFTOVERS", help_heading = WATCHDOG)]
    pub leftovers: Option<Leftovers>,

    /// Exit code 65 for a COMMAND that exits with 0 without a successful result frame
    ///
    /// The frame is missing, cut off, or reports no success. From the variable or the settings file, it counts for claude and
    /// for COMMANDs with --output-format json or stream-json, not for other programs
    #[arg(long, value_name = "on|off", env = "CLAUDE_RUN_REQUIRE_RESULT", default_value = "off", help_heading = WATCHDOG)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "on", value_parser = RequireResult::parser())]
    pub require_result: RequireResult,

    /// Standard input of COMMAND: ours, or /dev/null
    ///
    /// With null, `claude -p` does not wait 3 s for a pipe that nobody writes
    #[arg(long, value_name = "inherit|null", env = "CLAUDE_RUN_STDIN", default_value = "inherit", help_heading = WATCHDOG)]
    pub stdin: Stdin,

    /// Give COMMAND a pseudo-terminal as its stdout
    ///
    /// Of our terminal's size, and without a CR before each line end
    #[arg(long, value_name = "on|off", env = "CLAUDE_RUN_PTY", default_value = "off", help_heading = OUTPUT)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "on", value_parser = switch(), action = ArgAction::Set)]
    pub pty: bool,

    /// Append each line of COMMAND's stdout and stderr to FILE as it comes [default: none]
    ///
    /// With time and run, and our own messages; several runs may share it. A FILE that cannot be written costs the log, never
    /// the run
    #[arg(long, value_name = "FILE", env = "CLAUDE_RUN_LOG", help_heading = OUTPUT)]
    #[arg(value_parser = read_by(path), value_hint = ValueHint::FilePath)]
    pub log: Option<PathBuf>,

    /// Where to mask secrets: in the log, in what is passed on as well, or nowhere
    #[arg(long, value_name = "log|all|off", env = "CLAUDE_RUN_REDACT", default_value = "log", help_heading = OUTPUT)]
    pub redact: Redact,

    /// Append one JSON line to FILE at the end of the run [default: none]
    ///
    /// Outcome, exit code, times, and fields of the last result frame
    #[arg(long, value_name = "FILE", env = "CLAUDE_RUN_RECORD", help_heading = OUTPUT)]
    #[arg(value_parser = read_by(path), value_hint = ValueHint::FilePath)]
    pub record: Option<PathBuf>,

    /// Name of this run: in its record, to those who wait for it, in reports [default: LOG_AGENT, if set]
    #[arg(long, value_name = "TEXT", env = "CLAUDE_RUN_LABEL", help_heading = OUTPUT, value_parser = read_by(text))]
    pub label: Option<String>,

    /// Format of claude-run's own messages, and of the lines of the log
    #[arg(long, value_name = "text|json", env = "CLAUDE_RUN_LOG_FORMAT", default_value = "text", help_heading = MESSAGES)]
    pub log_format: LogFormat,

    /// `-v`, `-q`, or the variable
    #[arg(skip = Verbosity::Warnings)]
    pub verbosity: Verbosity,

    /// COMMAND and its arguments; empty: claude alone
    #[arg(skip)]
    pub command: Vec<OsString>,
}

/// Environment variable with the meaning of `option`.
pub fn variable(option: &Arg) -> Option<&str> {
    option.get_env()?.to_str()
}

/// Help text of `option`, and its default in words.
pub(super) fn help_and_default(option: &Arg) -> (String, String) {
    let help = option.get_help().map(ToString::to_string).unwrap_or_default();
    match (option.get_default_values().first(), help.split_once(" [default: ")) {
        (Some(value), _) => (help, value.to_string_lossy().into_owned()),
        (None, Some((help, default))) => (help.to_owned(), default.trim_end_matches(']').to_owned()),
        (None, None) => (help, String::new()),
    }
}
