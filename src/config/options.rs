//! The table of options. From it come the parser, the help, the man page, the completions, the variables, the keys of the settings
//! file, and the struct of their values. Most runs need only that struct: the rest is made when it is asked for, or by the build script.
//!
//! The first paragraph of a row's comment is its line in `-h`, all of it stands in `--help`. An option that is an `Option` has a
//! default in words. A new row also needs a place where its value is used, and a row in `guide/options.md`, on which a test insists.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::duration::DurationSetting;
use super::values::{Leftovers, LockMode, LogFormat, Redact, RequireResult, Slots, Stdin, Value, Verbosity, Wait, Words};

/// Name of the option that bounds the runs at once.
pub const SLOTS: &str = "slots";

const LOCK: &str = "Session lock";
const WATCHDOG: &str = "Watchdog";
const OUTPUT: &str = "Output";
pub(super) const MESSAGES: &str = "Messages";

/// An option, as it is declared.
#[derive(Debug)]
pub struct OptionSpec {
    pub(super) heading: &'static str,
    /// Long name, and key in the settings file.
    pub name: &'static str,
    pub(super) short: Option<char>,
    pub(crate) value_name: &'static str,
    /// Environment variable.
    pub variable: &'static str,
    pub(super) default: &'static str,
    /// True if operations have it as well.
    pub(super) global: bool,
    /// Words that its value can be, if there are only some.
    pub words: Words,
    /// Lines of its comment.
    pub(super) help: &'static [&'static str],
}

/// Origin of a setting's value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// A flag on the command line.
    Flag,
    /// This variable.
    Variable(&'static str),
    /// This line of the settings file.
    File(PathBuf, usize),
    /// No other.
    #[default]
    Default,
}

/// An option's value as it was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Long name of the option, and its key in a settings file.
    pub name: &'static str,
    /// Value; a default in words.
    pub value: OsString,
    /// Origin of the value.
    pub origin: Origin,
}

const fn option(
    heading: &'static str,
    name: &'static str,
    value_name: &'static str,
    variable: &'static str,
    default: &'static str,
) -> OptionSpec {
    OptionSpec { heading, name, short: None, value_name, variable, default, global: false, words: &[], help: &[] }
}

impl Written {
    /// The settings file, if the value stands there.
    fn file(self) -> Option<PathBuf> {
        match self.origin {
            Origin::File(path, _) => Some(path),
            Origin::Flag | Origin::Variable(_) | Origin::Default => None,
        }
    }
}

impl OptionSpec {
    /// True if `word` is its long or short name, with the dashes.
    pub(super) fn is_flag(&self, word: &str) -> bool {
        match word.strip_prefix("--") {
            Some(name) => name == self.name,
            None => self.short.is_some_and(|short| word[1..].chars().eq([short])),
        }
    }

    /// True if it can stand without a value, which is `on` then.
    pub(super) fn is_switch(&self) -> bool {
        self.words == bool::WORDS
    }

    /// True if its value can be a number.
    pub(super) fn takes_number(&self) -> bool {
        matches!(self.value_name, "DUR" | "N")
    }

    /// Reads the value that counts. A refusal names the flag, the variable or the line. `none` is no file and no command, where that is
    /// the default.
    fn read<T: Value>(&self, written: Option<Written>) -> Result<T> {
        let is_none = |written: &Written| self.default == "none" && written.value == "none";
        let Some(Written { name, value, origin }) = written.filter(|written| !is_none(written)) else {
            return T::read_default(self.default);
        };
        T::read(&value).with_context(|| match origin {
            Origin::File(path, line) => format!("{}:{line}: {name}", path.display()),
            Origin::Variable(variable) => variable.to_owned(),
            Origin::Flag | Origin::Default => format!("--{name}"),
        })
    }
}

/// Verbosity by `-v` and `-q`, which no line of the settings file can.
pub const VERBOSITY: OptionSpec =
    option(MESSAGES, "verbosity", "quiet|warnings|info|debug", "CLAUDE_RUN_VERBOSITY", "warnings");

macro_rules! settings {
    ($($(#[doc = $help:literal])+ $field:ident: $type:ty = $option:expr $(, $key:ident: $value:expr)*;)+) => {
        /// Every setting, resolved.
        #[derive(Debug)]
        pub struct Settings {
            $($(#[doc = $help])+ pub $field: $type,)+
            /// `-v`, `-q`, or the variable.
            pub verbosity: Verbosity,
            /// The settings file, if that is where `slots` stands: a change there counts for those who wait.
            pub slots_file: Option<PathBuf>,
            /// COMMAND and its arguments; empty: claude alone.
            pub command: Vec<OsString>,
        }

        /// Every option with a value.
        pub static OPTIONS: &[OptionSpec] =
            &[$(OptionSpec { words: <$type as Value>::WORDS, help: &[$($help),+], $($key: $value,)* ..$option }),+];

        impl Settings {
            pub(super) fn read(command: Vec<OsString>, written: impl Fn(&OptionSpec) -> Option<Written>) -> Result<Self> {
                Ok(Self {
                    $($field: $option.read(written(&$option))?,)+
                    verbosity: VERBOSITY.read(written(&VERBOSITY))?,
                    slots_file: OPTIONS.iter().find(|option| option.name == SLOTS).and_then(written).and_then(Written::file),
                    command,
                })
            }
        }
    };
}

settings! {
    /// When to hold the session lock: exclusive, refresh or pass-through
    ///
    /// exclusive: for the whole run; refresh: only while a refresh of claude's token is due; pass-through: never. A
    /// CLAUDE_EXTERNAL_LOCK that is not empty means exclusive, too
    lock_mode: LockMode = option(LOCK, "lock", "MODE", "CLAUDE_RUN_LOCK", "exclusive");
    /// Longest wait for a slot and the lock; 0: do not wait, none: for ever
    wait: Wait = option(LOCK, "wait", "DUR", "CLAUDE_RUN_WAIT", "10m"), short: Some('w');
    /// Most runs at once in this config dir, 1 to 1000; none: no bound
    ///
    /// In every lock mode; who comes first is served first. --wait bounds the wait for a slot and that for the lock together
    slots: Slots = option(LOCK, SLOTS, "N", "CLAUDE_RUN_SLOTS", "none");
    /// With --lock refresh: how long before the token expires a refresh counts as due
    ///
    /// Claude Code refreshes it from 5m before; the default adds 10s for a slow start. From the hard limit and 5m
    /// on, refreshes in mid-run are covered, too. 0: once it has expired, none: always
    refresh_margin: DurationSetting = option(LOCK, "refresh-margin", "DUR", "CLAUDE_RUN_REFRESH_MARGIN", "5m10s");
    /// Exit code when the lock was not free in time, 0 to 255
    conflict_exit_code: u8 = option(LOCK, "conflict-exit-code", "N", "CLAUDE_RUN_CONFLICT_EXIT_CODE", "75"), short: Some('E');
    /// Claude Code's config dir, for the lock and for claude itself
    config_dir: Option<PathBuf> = option(LOCK, "config-dir", "DIR", "CLAUDE_CONFIG_DIR", "$HOME/.claude"), global: true;
    /// File whose flock(2) is the session lock
    ///
    /// Made if missing, never written, never removed
    lock_file: Option<PathBuf> =
        option(LOCK, "lock-file", "PATH", "CLAUDE_RUN_LOCK_FILE", "session.lock in the config dir"), global: true;
    /// For several hosts: a command that holds the lock of another engine, too, as long as it runs
    ///
    /// `etcdctl lock NAME` is one. It is started once the session lock is acquired; its first line on stdout says that it holds
    /// its lock, TERM makes it release that. If it ends while COMMAND runs, COMMAND is stopped, with exit code 69. Words are
    /// split at spaces, quotes keep them together, and no shell sees them
    lock_helper: Option<Vec<String>> = option(LOCK, "lock-helper", "COMMAND", "CLAUDE_RUN_LOCK_HELPER", "none");
    /// Program that COMMAND `claude` stands for
    claude: Option<PathBuf> = option(WATCHDOG, "claude", "PATH", "CLAUDE_RUN_CLAUDE", "claude on PATH");
    /// Hard limit, counted from the start of COMMAND; 0: none
    ///
    /// Then TERM, the kill grace, KILL to its whole tree, exit code 124. A run is attended if stdin is its terminal, in the
    /// foreground, and it is not claude with -p or --print
    hard_limit: Option<DurationSetting> = option(WATCHDOG, "timeout", "DUR", "CLAUDE_TIMEOUT", "2h; none when attended");
    /// Idle limit: longest time without a byte on stdout or stderr
    ///
    /// Then as at the hard limit. With --output-format text or json Claude Code prints nothing before its end, so it limits the
    /// whole run. With stream-json it can be silent for 6 minutes while it waits for its API, 2.1.84 also for as long as a tool
    /// runs: below 7m it kills healthy runs
    idle_limit: DurationSetting = option(WATCHDOG, "idle-timeout", "DUR", "CLAUDE_RUN_IDLE_TIMEOUT", "none");
    /// How long claude may stay after its last result frame; 0: for ever
    ///
    /// Where its output has frames (--output-format json or stream-json, stdout not a terminal). Then as at the hard limit, with
    /// exit code 0 or 1 by the frame's is_error
    result_grace: DurationSetting = option(WATCHDOG, "result-grace", "DUR", "CLAUDE_IDLE_GRACE", "30s");
    /// Result grace while a background task of claude is open; 0: for ever
    task_grace: DurationSetting = option(WATCHDOG, "task-grace", "DUR", "CLAUDE_RUN_TASK_GRACE", "10m");
    /// Kill grace: time from a TERM to the KILL; 0: no KILL follows
    kill_grace: DurationSetting = option(WATCHDOG, "kill-after", "DUR", "CLAUDE_RUN_KILL_AFTER", "5s"), short: Some('k');
    /// What to do with descendants that outlive COMMAND
    ///
    /// In whatever session or process group they are
    leftovers: Option<Leftovers> =
        option(WATCHDOG, "leftovers", "kill|keep", "CLAUDE_RUN_LEFTOVERS", "kill; keep when attended");
    /// Exit code 65 for a COMMAND that exits with 0 without a successful result frame
    ///
    /// The frame is missing, cut off, or reports no success. From the variable or the settings file, it counts for claude and
    /// for COMMANDs with --output-format json or stream-json, not for other programs
    require_result: RequireResult = option(WATCHDOG, "require-result", "on|off", "CLAUDE_RUN_REQUIRE_RESULT", "off");
    /// Standard input of COMMAND: ours, or /dev/null
    ///
    /// With null, `claude -p` does not wait 3 s for a pipe that nobody writes
    stdin: Stdin = option(WATCHDOG, "stdin", "inherit|null", "CLAUDE_RUN_STDIN", "inherit");
    /// Give COMMAND a pseudo-terminal as its stdout
    ///
    /// Of our terminal's size, and without a CR before each line end
    pty: bool = option(OUTPUT, "pty", "on|off", "CLAUDE_RUN_PTY", "off");
    /// Append each line of COMMAND's stdout and stderr to FILE as it comes
    ///
    /// With time and run, and our own messages; several runs may share it. A FILE that cannot be written costs the log, never
    /// the run
    log: Option<PathBuf> = option(OUTPUT, "log", "FILE", "CLAUDE_RUN_LOG", "none");
    /// Where to mask secrets: in the log, in what is passed on as well, or nowhere
    redact: Redact = option(OUTPUT, "redact", "log|all|off", "CLAUDE_RUN_REDACT", "log");
    /// Append one JSON line to FILE at the end of the run
    ///
    /// Outcome, exit code, times, and fields of the last result frame
    record: Option<PathBuf> = option(OUTPUT, "record", "FILE", "CLAUDE_RUN_RECORD", "none");
    /// Name of this run: in its record, to those who wait for it, in reports
    label: Option<String> = option(OUTPUT, "label", "TEXT", "CLAUDE_RUN_LABEL", "LOG_AGENT, if set");
    /// Format of claude-run's own messages, and of the lines of the log
    log_format: LogFormat = option(MESSAGES, "log-format", "text|json", "CLAUDE_RUN_LOG_FORMAT", "text");
}
