//! What was typed: taken apart by the table of `options` and the list of `operations`; no I/O, no defaults applied: what a
//! value means is settled in `settings`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::help;
pub use super::options::*;
use super::subcommands;
pub use super::subcommands::{LOCK_MODE, Operation, SHELLS};

/// With the commit, if that is known; it is not to the build script, which has these parsers, too.
const VERSION: &str = match option_env!("CLAUDE_RUN_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

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
    /// Print this text, which may have colours, and be done.
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
                let operation = if is_behind_dashes { None } else { subcommands::parse(&command) };
                let cli = Self { command, matches: Some(matches), behind: None };
                match operation {
                    None => Request::Run(cli),
                    Some(Ok((operation, behind))) => Request::Operate(Self { behind: Some(behind), ..cli }, operation),
                    Some(Err(error)) => refuse(&error, cli.command[0].to_str()),
                }
            }
            Err(error) => refuse(&error, None),
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
        Some(first) if first.as_bytes().starts_with(b"-") || subcommands::is_one(first) => None,
        Some(_) => Some(1),
    }
}

/// The help or the version, where that was asked for; else what is wrong with the words behind `operation`, if they are, and a
/// way out. One line, as all errors.
fn refuse(error: &clap::Error, operation: Option<&str>) -> Request {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Request::Show(error.render().ansi().to_string());
    }
    let context = |kind| match error.get(kind)? {
        ContextValue::String(text) => Some(text.as_str()),
        _ => None,
    };
    let unknown = context(ContextKind::InvalidArg).filter(|_| error.kind() == ErrorKind::UnknownArgument);
    let what = match unknown.filter(|word| word.starts_with('-')) {
        Some(word) => {
            let similar = context(ContextKind::SuggestedArg).map(|similar| format!("; did you mean {similar}?"));
            format!("there is no option {word}{}", similar.unwrap_or_default())
        }
        None => {
            let text = error.to_string();
            let text = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        }
    };
    Request::Refuse(match (operation, unknown) {
        (Some(operation), _) => format!("{operation}: {what} (see `claude-run {operation} --help`)"),
        (None, Some(word)) => format!("{what} (what is meant for claude goes behind --: `claude-run -- {word} …`)"),
        (None, None) => format!("{what} (see `claude-run --help`)"),
    })
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

/// The operation that `word` may have been meant to be.
pub fn similar_operation(word: &str) -> Option<&'static str> {
    subcommands::similar(word)
}

/// The parser, and those of the operations: for who describes them.
pub fn parsers() -> (Command, [Command; 9]) {
    (parser(Texts::All), subcommands::parsers())
}

fn parser(texts: Texts) -> Command {
    options(texts).arg(
        Arg::new(COMMAND)
            .value_name("COMMAND")
            .help("The program and its arguments; default: claude")
            .num_args(0..)
            .trailing_var_arg(true)
            .value_parser(ValueParser::os_string()),
    )
}

/// All but COMMAND.
fn options(texts: Texts) -> Command {
    let command = Command::new("claude-run").bin_name("claude-run").args_override_self(true).args(OPTIONS.map(|option| {
        let arg = Arg::new(option.flag)
            .long(option.flag)
            .short(option.short)
            .value_name(option.value)
            .value_parser(ValueParser::os_string())
            // `--timeout -1` is a bad duration, and should be told so rather than be an unknown flag.
            .allow_negative_numbers(true);
        let arg = match option.takes {
            Takes::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("on"),
            _ => arg,
        };
        match texts {
            Texts::None => arg,
            Texts::All => explained(arg, option),
        }
    }));
    let command = command
        .version(VERSION)
        .arg(
            Arg::new(VERBOSE)
                .short('v')
                .action(ArgAction::Count)
                .help_heading(MESSAGES_HEADING)
                .help("Say more; twice: still more"),
        )
        .arg(
            Arg::new(QUIET).short('q').action(ArgAction::SetTrue).help_heading(MESSAGES_HEADING).help("Say nothing but errors"),
        );
    if texts == Texts::None {
        return command;
    }
    let operations = subcommands::parsers();
    command
        .about(help::ABOUT)
        .long_about(format!("{}\n\n{}", help::ABOUT, help::MORE_ABOUT))
        .override_usage(help::USAGE)
        .after_help(help::after_short(&operations))
        .after_long_help(help::after_long(&operations))
        .max_term_width(WIDTH)
        .mut_arg(VERBOSE, |arg| {
            arg.long_help(
                "Say more; twice: still more\n[env: CLAUDE_RUN_VERBOSITY=quiet|warnings|info|debug] [default: warnings]",
            )
        })
}

/// No line of help is longer, however wide the terminal.
pub(super) const WIDTH: usize = 100;

fn explained(arg: Arg, option: &Opt) -> Arg {
    let Opt { help, more, variable, default, .. } = option;
    let more = if more.is_empty() { String::new() } else { format!(". {more}") };
    arg.help_heading(option.heading)
        .help(format!("{help} [default: {default}]"))
        .long_help(format!("{help}{more}\n[env: {variable}] [default: {default}]"))
}

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
