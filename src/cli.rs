//! What was typed. One table of options makes the parser, the help and the names in every error; no I/O, no defaults
//! applied: what a value means is settled in `settings`.

use std::ffi::{OsStr, OsString};

use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// An option that has a value, a variable of its own and a default.
#[derive(Debug)]
pub struct Opt {
    /// The long flag without its dashes; also the key in a settings file.
    pub flag: &'static str,
    short: Option<char>,
    value: &'static str,
    /// The environment variable with the same meaning.
    pub variable: &'static str,
    /// What counts when nothing else is said, in words.
    pub default: &'static str,
    /// Whether it may stand in the settings file.
    pub is_shared: bool,
    heading: &'static str,
    help: &'static str,
}

const LOCK_HEADING: &str = "Session lock";
const WATCHDOG_HEADING: &str = "Watchdog";
const OUTPUT_HEADING: &str = "Output";
const MESSAGES_HEADING: &str = "Messages";

/// The value of an option that can be given without one: then it is on.
const SWITCH: &str = "on|off";

/// `--lock`
pub const LOCK: Opt = Opt {
    flag: "lock",
    short: None,
    value: "MODE",
    variable: "CLAUDE_RUN_LOCK",
    default: "exclusive",
    is_shared: true,
    heading: LOCK_HEADING,
    help: "When to hold the session lock:\n\
           exclusive: for the whole run\n\
           pass-through: never\n\
           (a CLAUDE_EXTERNAL_LOCK that is not empty means exclusive, too)",
};

/// `--wait`
pub const WAIT: Opt = Opt {
    flag: "wait",
    short: Some('w'),
    value: "DUR",
    variable: "CLAUDE_RUN_WAIT",
    default: "10m",
    is_shared: true,
    heading: LOCK_HEADING,
    help: "How long to wait for the lock; 0: not at all, none: for ever",
};

/// `--conflict-exit-code`
pub const CONFLICT_EXIT_CODE: Opt = Opt {
    flag: "conflict-exit-code",
    short: Some('E'),
    value: "N",
    variable: "CLAUDE_RUN_CONFLICT_EXIT_CODE",
    default: "75",
    is_shared: true,
    heading: LOCK_HEADING,
    help: "Exit code when the lock was not free in time, 0 to 255",
};

/// `--config-dir`
pub const CONFIG_DIR: Opt = Opt {
    flag: "config-dir",
    short: None,
    value: "DIR",
    variable: "CLAUDE_CONFIG_DIR",
    default: "$HOME/.claude",
    is_shared: false,
    heading: LOCK_HEADING,
    help: "Claude Code's config dir, for the lock and for claude itself",
};

/// `--lock-file`
pub const LOCK_FILE: Opt = Opt {
    flag: "lock-file",
    short: None,
    value: "PATH",
    variable: "CLAUDE_RUN_LOCK_FILE",
    default: "session.lock in the config dir",
    is_shared: false,
    heading: LOCK_HEADING,
    help: "The file whose flock(2) is the session lock; made if missing, never written, never removed",
};

/// `--claude`
pub const CLAUDE: Opt = Opt {
    flag: "claude",
    short: None,
    value: "PATH",
    variable: "CLAUDE_RUN_CLAUDE",
    default: "claude on PATH",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "The program that COMMAND `claude` stands for",
};

/// `--timeout`
pub const TIMEOUT: Opt = Opt {
    flag: "timeout",
    short: None,
    value: "DUR",
    variable: "CLAUDE_TIMEOUT",
    default: "2h; none when interactive",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "Hard limit, counted from the start of COMMAND: then TERM, the kill grace, KILL to its whole tree, exit code 124; 0: none",
};

/// `--idle-timeout`
pub const IDLE_TIMEOUT: Opt = Opt {
    flag: "idle-timeout",
    short: None,
    value: "DUR",
    variable: "CLAUDE_RUN_IDLE_TIMEOUT",
    default: "none",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "Idle limit: no byte on stdout or stderr for so long; then as at the hard limit. Claude Code can be silent for 6 \
           minutes while it waits for its API: below 7m it kills healthy runs",
};

/// `--result-grace`
pub const RESULT_GRACE: Opt = Opt {
    flag: "result-grace",
    short: None,
    value: "DUR",
    variable: "CLAUDE_IDLE_GRACE",
    default: "30s",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "How long claude may stay after its last result frame, where its output has frames (--output-format json or \
           stream-json, stdout not a terminal); then as at the hard limit, with exit code 0 or 1 by the frame's is_error; 0: for ever",
};

/// `--task-grace`
pub const TASK_GRACE: Opt = Opt {
    flag: "task-grace",
    short: None,
    value: "DUR",
    variable: "CLAUDE_RUN_TASK_GRACE",
    default: "10m",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "What counts instead of the result grace while a background task of claude is open; 0: for ever",
};

/// `--kill-after`
pub const KILL_AFTER: Opt = Opt {
    flag: "kill-after",
    short: Some('k'),
    value: "DUR",
    variable: "CLAUDE_RUN_KILL_AFTER",
    default: "5s",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "Kill grace: how long after a TERM the KILL follows; 0: it never does",
};

/// `--leftovers`
pub const LEFTOVERS: Opt = Opt {
    flag: "leftovers",
    short: None,
    value: "kill|keep",
    variable: "CLAUDE_RUN_LEFTOVERS",
    default: "kill; keep when interactive",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "What to do with descendants that outlive COMMAND, in whatever session or process group they are",
};

/// `--require-result`
pub const REQUIRE_RESULT: Opt = Opt {
    flag: "require-result",
    short: None,
    value: SWITCH,
    variable: "CLAUDE_RUN_REQUIRE_RESULT",
    default: "off",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "Exit code 65 for a COMMAND that exits with 0 without having printed a complete, successful result frame",
};

/// `--stdin`
pub const STDIN: Opt = Opt {
    flag: "stdin",
    short: None,
    value: "inherit|null",
    variable: "CLAUDE_RUN_STDIN",
    default: "inherit",
    is_shared: true,
    heading: WATCHDOG_HEADING,
    help: "What COMMAND reads from; null spares `claude -p` its 3 s wait on a pipe that nobody writes",
};

/// `--pty`
pub const PTY: Opt = Opt {
    flag: "pty",
    short: None,
    value: SWITCH,
    variable: "CLAUDE_RUN_PTY",
    default: "off",
    is_shared: true,
    heading: OUTPUT_HEADING,
    help: "Give COMMAND a pseudo-terminal as its stdout: of our terminal's size, and without a CR before each line end",
};

/// `--log`
pub const LOG: Opt = Opt {
    flag: "log",
    short: None,
    value: "FILE",
    variable: "CLAUDE_RUN_LOG",
    default: "none",
    is_shared: true,
    heading: OUTPUT_HEADING,
    help: "Append each line of COMMAND's stdout and stderr to FILE as it comes, with time and run, and our own messages; \
           several runs may share it. A FILE that cannot be written costs the log, never the run",
};

/// `--redact`
pub const REDACT: Opt = Opt {
    flag: "redact",
    short: None,
    value: "log|all|off",
    variable: "CLAUDE_RUN_REDACT",
    default: "log",
    is_shared: true,
    heading: OUTPUT_HEADING,
    help: "Where to mask secrets: in the log, in what is passed on as well, or nowhere",
};

/// `--record`
pub const RECORD: Opt = Opt {
    flag: "record",
    short: None,
    value: "FILE",
    variable: "CLAUDE_RUN_RECORD",
    default: "none",
    is_shared: true,
    heading: OUTPUT_HEADING,
    help: "Append one JSON line to FILE at the end of the run: outcome, exit code, times, and what the last result frame says",
};

/// `--label`
pub const LABEL: Opt = Opt {
    flag: "label",
    short: None,
    value: "TEXT",
    variable: "CLAUDE_RUN_LABEL",
    default: "LOG_AGENT, if set",
    is_shared: true,
    heading: OUTPUT_HEADING,
    help: "What to call this run in its record",
};

/// `--log-format`
pub const LOG_FORMAT: Opt = Opt {
    flag: "log-format",
    short: None,
    value: "text|json",
    variable: "CLAUDE_RUN_LOG_FORMAT",
    default: "text",
    is_shared: false,
    heading: MESSAGES_HEADING,
    help: "How claude-run's own messages look, and the lines of the log",
};

/// Every option with a value, in the order of the help.
pub const OPTIONS: [&Opt; 20] = [
    &LOCK,
    &WAIT,
    &CONFLICT_EXIT_CODE,
    &CONFIG_DIR,
    &LOCK_FILE,
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

/// The variable behind `-v` and `-q`.
pub const VERBOSITY_VARIABLE: &str = "CLAUDE_RUN_VERBOSITY";

/// A command line, taken apart but not yet understood.
#[derive(Debug)]
pub struct Cli {
    matches: Option<ArgMatches>,
    /// COMMAND and its arguments, byte for byte; empty: claude alone.
    pub command: Vec<OsString>,
}

/// What an operator can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `settings`
    Settings {
        /// As JSON, not as text.
        json: bool,
    },
}

/// What the words on the command line ask for.
#[derive(Debug)]
pub enum Request {
    /// Run something.
    Run(Cli),
    /// Tell the operator something.
    Operate(Cli, Operation),
    /// Print this text and be done.
    Show(String),
    /// The words are wrong: this text says how.
    Refuse(String),
}

impl Cli {
    /// Takes `words` apart; the first is the name we were called by.
    pub fn parse(words: Vec<OsString>) -> Request {
        // The help texts are made only for those who will see one: every run passes here, and few of them are refused.
        let parsed =
            parser(Texts::None).try_get_matches_from(&words).or_else(|_| parser(Texts::All).try_get_matches_from(&words));
        match parsed {
            Ok(matches) => {
                let command: Vec<OsString> =
                    matches.get_many(COMMAND).map(|words| words.cloned().collect()).unwrap_or_default();
                // Behind `--`, whatever its name, it is a program.
                let is_behind_dashes = words[..words.len() - command.len()].last().is_some_and(|word| word == "--");
                let operation = if is_behind_dashes { None } else { operation(&command) };
                let cli = Self { command, matches: Some(matches) };
                match operation {
                    None => Request::Run(cli),
                    Some(Ok(operation)) => Request::Operate(cli, operation),
                    Some(Err(error)) if error.kind() == ErrorKind::DisplayHelp => Request::Show(error.to_string()),
                    Some(Err(error)) => Request::Refuse(error.to_string()),
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                Request::Show(error.to_string())
            }
            Err(error) => Request::Refuse(error.to_string()),
        }
    }

    /// A command line of the shim: every word belongs to claude, and no option was typed.
    pub fn shim(command: Vec<OsString>) -> Self {
        Self { matches: None, command }
    }

    /// The value typed for `option`.
    pub fn value(&self, option: &Opt) -> Option<&OsStr> {
        self.matches.as_ref()?.get_one::<OsString>(option.flag).map(OsString::as_os_str)
    }

    /// How often `-v` was typed.
    pub fn verbose(&self) -> u8 {
        self.matches.as_ref().map_or(0, |matches| matches.get_count(VERBOSE))
    }

    /// Whether `-q` was typed.
    pub fn quiet(&self) -> bool {
        self.matches.as_ref().is_some_and(|matches| matches.get_flag(QUIET))
    }
}

/// What the words of a command line ask for, if the first is the name of an operation.
fn operation(command: &[OsString]) -> Option<Result<Operation, clap::Error>> {
    if command.first()? != "settings" {
        return None;
    }
    let parser = Command::new("settings")
        .bin_name("claude-run settings")
        .about("Prints every setting, its value and where that comes from: flag, environment, file or default.")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("As JSON"));
    let matches = parser.try_get_matches_from(command);
    Some(matches.map(|matches| Operation::Settings { json: matches.get_flag("json") }))
}

const COMMAND: &str = "command";
const VERBOSE: &str = "verbose";
const QUIET: &str = "quiet";

/// Whether a parser can explain itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Texts {
    None,
    All,
}

fn parser(texts: Texts) -> Command {
    let options = OPTIONS.map(|option| {
        let help = match texts {
            Texts::None => String::new(),
            Texts::All => format!("{}\n[env: {}] [default: {}]", option.help, option.variable, option.default),
        };
        let arg = Arg::new(option.flag)
            .long(option.flag)
            .value_name(option.value)
            .value_parser(ValueParser::os_string())
            // `--timeout -1` is a bad duration, and should be told so rather than be an unknown flag.
            .allow_negative_numbers(true)
            .help_heading(option.heading)
            .help(help);
        let arg =
            if option.value == SWITCH { arg.num_args(0..=1).require_equals(true).default_missing_value("on") } else { arg };
        match option.short {
            Some(short) => arg.short(short),
            None => arg,
        }
    });
    Command::new("claude-run")
        .bin_name("claude-run")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs COMMAND (default: claude) under the session lock and a watchdog that leaves nothing behind.")
        .override_usage("claude-run [OPTIONS] [--] [COMMAND] [ARGS]...\n       claude-run [OPTIONS] settings [--json]")
        .after_help(AFTER_HELP)
        .args_override_self(true)
        .next_line_help(true)
        .max_term_width(100)
        .args(options)
        .arg(
            Arg::new(VERBOSE)
                .short('v')
                .action(ArgAction::Count)
                .help_heading(MESSAGES_HEADING)
                .help("Say more; twice: still more\n[env: CLAUDE_RUN_VERBOSITY=quiet|warnings|info|debug] [default: warnings]"),
        )
        .arg(
            Arg::new(QUIET).short('q').action(ArgAction::SetTrue).help_heading(MESSAGES_HEADING).help("Say nothing but errors"),
        )
        .arg(
            Arg::new(COMMAND)
                .value_name("COMMAND")
                .help(
                    "The program and its arguments, byte for byte; everything behind the first word is its own. \
                     Behind `--`, a first word that starts with `-` is an argument for claude",
                )
                .num_args(0..)
                .trailing_var_arg(true)
                .value_parser(ValueParser::os_string()),
        )
}

const AFTER_HELP: &str = "\
DUR is 90, 90s, 1.5, 10m, 2h, 1d or 1h30m; a bare number is seconds. A flag goes before its variable, and that before the
file claude-run.toml in the config dir, whose keys are the flags without their dashes; an empty variable counts as unset.
`claude-run settings` prints what counts, and why; a program of that name goes behind `--`. Called under the name `claude`,
every argument is claude's, and only the variables and the file count.

Signals: HUP INT QUIT TERM USR2 WINCH CONT go on to COMMAND, TSTP stops both; TERM, HUP and QUIT start the kill grace,
a second TERM ends it at once (two within 0.1 s are one). USR1 prints one line on the state of the run.

Exit codes:
  COMMAND's own, 0 to 255, when it ended by itself
  0 or 1 claude hung after its result frame and was ended: 1 if the frame says is_error
  128+N  COMMAND was ended by signal N, or claude-run was while it waited for the lock or for its reader
  124    hard limit or idle limit; the message says which
  65     with --require-result: COMMAND exited with 0 and printed no successful result frame
  75     the lock was not free within --wait (-E changes it)
  125    claude-run itself failed, usage errors included
  126    COMMAND was found but cannot be run
  127    COMMAND was not found

Examples:
  claude-run -- -p \"hi\"                     claude -p \"hi\", one at a time
  claude-run --wait 30s -- -p \"hi\"          give up after 30 s, with exit code 75
  claude-run --timeout 20m -- -p \"hi\"       at most 20 minutes, then exit code 124
  claude-run --lock pass-through -- mcp list
  claude-run --timeout 0 make test          any other program, without a hard limit
";

#[cfg(test)]
mod tests {
    use super::*;

    fn command_of(words: &[&str]) -> Vec<OsString> {
        let words = std::iter::once("claude-run").chain(words.iter().copied()).map(OsString::from).collect();
        match Cli::parse(words) {
            Request::Run(cli) => cli.command,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everything_behind_the_first_word_is_its_own() {
        let cases: [(&[&str], &[&str]); 8] = [
            (&[], &[]),
            (&["--"], &[]),
            (&["--", "-p", "hi"], &["-p", "hi"]),
            (&["claude", "-p", "hi"], &["claude", "-p", "hi"]),
            (&["claude", "--", "x"], &["claude", "--", "x"]),
            (&["--", "claude", "--", "x"], &["claude", "--", "x"]),
            (&["--wait", "5", "claude", "--wait", "x", "-q", "--help"], &["claude", "--wait", "x", "-q", "--help"]),
            (&["-v", "claude", ""], &["claude", ""]),
        ];
        for (words, command) in cases {
            assert_eq!(command_of(words), command, "{words:?}");
        }
    }

    #[test]
    fn the_last_of_two_flags_counts() {
        let words = ["claude-run", "--wait", "1", "--wait=2", "x"].map(OsString::from).to_vec();
        let Request::Run(cli) = Cli::parse(words) else { panic!("refused") };
        assert_eq!(cli.value(&WAIT), Some(OsStr::new("2")));
    }

    #[test]
    fn the_parser_is_sound_and_the_help_names_every_option_and_variable() {
        parser(Texts::All).debug_assert();
        let help = parser(Texts::All).render_long_help().to_string();
        for option in OPTIONS {
            assert!(help.contains(&format!("--{}", option.flag)), "{}", option.flag);
            assert!(help.contains(option.variable), "{}", option.variable);
        }
        assert!(help.contains(VERBOSITY_VARIABLE));
    }
}
