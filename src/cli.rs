//! What was typed: taken apart by the table of `options` and the list of `operations`; no I/O, no defaults applied: what a
//! value means is settled in `settings`.

mod operations;
mod options;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};

pub use operations::Operation;
use operations::USAGE;
pub use options::*;

/// The variable behind `-v` and `-q`.
pub const VERBOSITY_VARIABLE: &str = "CLAUDE_RUN_VERBOSITY";

/// A command line, taken apart but not yet understood.
#[derive(Clone, Debug)]
pub struct Cli {
    /// What stood before COMMAND, or before the name of an operation.
    matches: Option<ArgMatches>,
    /// What stood behind the name of an operation.
    behind: Option<ArgMatches>,
    /// COMMAND and its arguments, byte for byte; empty: claude alone.
    pub command: Vec<OsString>,
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
    pub fn parse(mut words: Vec<OsString>) -> Request {
        if let Some(before) = words_before_command(&words) {
            return Request::Run(Self::without_options(words.split_off(before)));
        }
        // The help texts are made only for those who will see one: every run passes here, and few of them are refused.
        let parsed =
            parser(Texts::None).try_get_matches_from(&words).or_else(|_| parser(Texts::All).try_get_matches_from(&words));
        match parsed {
            Ok(matches) => {
                let command: Vec<OsString> =
                    matches.get_many(COMMAND).map(|words| words.cloned().collect()).unwrap_or_default();
                // Behind `--`, whatever its name, it is a program.
                let is_behind_dashes = words[..words.len() - command.len()].last().is_some_and(|word| word == "--");
                let operation = if is_behind_dashes { None } else { operations::parse(&command) };
                let cli = Self { command, matches: Some(matches), behind: None };
                match operation {
                    None => Request::Run(cli),
                    Some(Ok((operation, behind))) => Request::Operate(Self { behind: Some(behind), ..cli }, operation),
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

    /// A command line with no option in it, as every one of the shim's.
    pub fn without_options(command: Vec<OsString>) -> Self {
        Self { matches: None, behind: None, command }
    }

    /// The value typed for `option`.
    pub fn value(&self, option: &Opt) -> Option<&OsStr> {
        // An operation knows only some of the options.
        let mut places = [&self.behind, &self.matches].into_iter().flatten();
        places.find_map(|matches| matches.try_get_one::<OsString>(option.flag).ok()?).map(OsString::as_os_str)
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

/// How many words stand before COMMAND, if it is plain that there is no option and no operation: as in most command lines. Making
/// the parser would be a third of all that a run does before its child starts.
fn words_before_command(words: &[OsString]) -> Option<usize> {
    match words.get(1) {
        None => Some(words.len()),
        Some(first) if first == "--" => Some(2),
        Some(first) if first.as_bytes().starts_with(b"-") || operations::is_one(first) => None,
        Some(_) => Some(1),
    }
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
    let command = match texts {
        Texts::None => Command::new("claude-run"),
        Texts::All => Command::new("claude-run").override_usage(usage()),
    };
    command
        .bin_name("claude-run")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs COMMAND (default: claude) under the session lock and a watchdog that leaves nothing behind.")
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

fn usage() -> String {
    let operations = USAGE.map(|words| format!("\n       claude-run {words}"));
    format!("claude-run [OPTIONS] [--] [COMMAND] [ARGS]...{}", operations.concat())
}

const AFTER_HELP: &str = "\
DUR is 90, 90s, 1.5, 10m, 2h, 1d or 1h30m; a bare number is seconds. A flag goes before its
variable, and that before the file claude-run.toml in the config dir, whose keys are the flags
without their dashes; an empty variable counts as unset. `claude-run settings` prints what counts,
and why; a program with the name of an operation goes behind `--`. Called under the name `claude`,
every argument is claude's, and only the variables and the file count.

Each run keeps a record of itself in claude-run/ in the config dir while it lives, and leaves a
line of history there. `claude-run status` shows who holds the lock and who waits, `mode` sets the
lock mode for all, `report` sums up the history, `doctor` checks what a shared config dir needs,
`setup` makes one, `events` reads claude's own telemetry; they end with 0 if all is well and with 1
if they find trouble, and tell more with --help.

Signals: HUP INT QUIT TERM USR2 WINCH CONT go on to COMMAND, TSTP stops both; TERM, HUP and QUIT
start the kill grace, a second TERM ends it at once (two within 0.1 s are one). USR1 prints one
line on the state of the run. While claude may be refreshing its token, what would end it waits,
at most 15 s.

Exit codes:
  COMMAND's own, 0 to 255, when it ended by itself
  0 or 1 claude hung after its result frame and was ended: 1 if the frame says is_error
  128+N  COMMAND was ended by signal N, or claude-run was, waiting for the lock or for its reader
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
    fn without_an_option_the_parser_would_say_the_same() {
        let alphabet = ["--", "-p", "-v", "x", "", "claude", "status", "--wait", "-", "---", "--wait=1"];
        let mut plain = 0;
        for order in 0..alphabet.len().pow(3) {
            for length in 0..=3 {
                let word = |place: usize| alphabet[order / alphabet.len().pow(place as u32) % alphabet.len()];
                let words: Vec<OsString> =
                    std::iter::once("claude-run").chain((0..length).map(word)).map(OsString::from).collect();
                let Some(before) = words_before_command(&words) else { continue };
                let matches =
                    parser(Texts::None).try_get_matches_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
                let command: Vec<OsString> =
                    matches.get_many(COMMAND).map(|words| words.cloned().collect()).unwrap_or_default();
                assert_eq!(command, words[before..], "{words:?}");
                plain += 1;
            }
        }
        assert!(plain > 1000, "{plain}");
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
