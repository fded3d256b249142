//! The command line: its words, taken apart by clap. Values stay as they were typed, since `settings` reads them, from wherever
//! they come; no I/O, no defaults.

use std::ffi::{OsStr, OsString};

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::help;
use super::options::{MESSAGES, Settings, help_and_default, variable};
pub use super::subcommands::Operation;
use super::values::Verbosity;

/// With the commit, if that is known; the build script, which has these parsers, too, does not know it.
const VERSION: &str = match option_env!("CLAUDE_RUN_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// The variable behind `-v` and `-q`.
pub const VERBOSITY_VARIABLE: &str = "CLAUDE_RUN_VERBOSITY";

/// Width of the help on a wide terminal.
const WIDTH: usize = 100;

#[derive(Parser)]
#[command(name = "claude-run", bin_name = "claude-run", version = VERSION, about = help::ABOUT, override_usage = help::USAGE)]
#[command(args_override_self = true, disable_help_subcommand = true, max_term_width = WIDTH)]
#[command(subcommand_help_heading = "Operations")]
struct Words {
    #[command(flatten)]
    _settings: Settings,

    /// Say more; twice: still more
    #[arg(short, action = ArgAction::Count, help_heading = MESSAGES)]
    #[arg(
        long_help = "Say more; twice: still more\n[env: CLAUDE_RUN_VERBOSITY=quiet|warnings|info|debug] [default: warnings]"
    )]
    verbose: u8,

    /// Say nothing but errors
    #[arg(short, help_heading = MESSAGES)]
    quiet: bool,

    #[command(subcommand)]
    _operation: Option<Operation>,

    /// The program and its arguments; default: claude
    #[arg(trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// A command line, taken apart but not yet understood.
#[derive(Clone, Debug, Default)]
pub struct Cli {
    /// Long names of options, and the value typed for each.
    typed: Vec<(String, OsString)>,
    /// By `-v` and `-q`.
    pub(super) verbosity: Option<Verbosity>,
    /// COMMAND and its arguments, byte for byte; empty: claude alone.
    pub command: Vec<OsString>,
}

/// A request, by the words of the command line.
#[derive(Debug)]
pub enum Request {
    /// Run something.
    Run(Cli),
    /// Do something for an operator.
    Operate(Cli, Operation),
    /// Print this text, which may have colours, and exit.
    Show(String),
    /// The words are wrong; this text explains it.
    Refuse(String),
}

impl Cli {
    /// Takes `words` apart; the first is the name we were called by.
    pub fn parse(mut words: Vec<OsString>) -> Request {
        if let Some(before) = words_before_command(&words) {
            return Request::Run(Self::without_options(words.split_off(before)));
        }
        // The help is made only for those who will see it.
        let parsed = untyped(Words::command()).try_get_matches_from(&words);
        let parsed = parsed.or_else(|_| untyped(described()).try_get_matches_from(&words));
        let understood = parsed.and_then(|matches| {
            let operation = matches.subcommand_name().map(|_| Operation::from_arg_matches(&matches)).transpose()?;
            Ok((Self::of(&matches), operation))
        });
        match understood {
            Ok((cli, None)) => Request::Run(cli),
            Ok((cli, Some(operation))) => Request::Operate(cli, operation),
            Err(error) => refuse(&error, operation_in(&words)),
        }
    }

    /// A command line with no option in it, as every one of the shim's.
    pub fn without_options(command: Vec<OsString>) -> Self {
        Self { command, ..Self::default() }
    }

    fn of(matches: &ArgMatches) -> Self {
        let behind = matches.subcommand().map(|(_, behind)| behind);
        let value = |option: &Arg| {
            // An operation has only some of the options.
            let mut places = [behind, Some(matches)].into_iter().flatten();
            let value = places.find_map(|place| place.try_get_one::<OsString>(option.get_id().as_str()).ok()?)?;
            Some((option.get_long()?.to_owned(), value.clone()))
        };
        let verbosity = match (matches.get_flag("quiet"), matches.get_count("verbose")) {
            (true, _) => Some(Verbosity::Quiet),
            (false, 0) => None,
            (false, 1) => Some(Verbosity::Info),
            (false, _) => Some(Verbosity::Debug),
        };
        Self {
            typed: options().get_arguments().filter_map(value).collect(),
            verbosity,
            command: matches.get_many("command").map(|words| words.cloned().collect()).unwrap_or_default(),
        }
    }

    /// The value typed for the option `--name`.
    pub fn value(&self, name: &str) -> Option<&OsStr> {
        self.typed.iter().find(|(typed, _)| typed == name).map(|(_, value)| value.as_os_str())
    }
}

/// Number of words before COMMAND, if there is clearly neither an option nor an operation, as in most command lines. To make the
/// parser takes 0.1 to 0.3 ms, which is a good part of the time before a child starts.
fn words_before_command(words: &[OsString]) -> Option<usize> {
    match words.get(1).map(|word| word.to_str().unwrap_or_default()) {
        None => Some(words.len()),
        Some("--") => Some(2),
        Some(first) if first.is_empty() || first.starts_with('-') || Operation::has_subcommand(first) => None,
        Some(_) => Some(1),
    }
}

/// Every option with a value, as it is declared.
pub fn options() -> Command {
    Settings::augment_args(Command::new("options").no_binary_name(true))
}

/// The whole command line with its help.
pub fn described() -> Command {
    Words::command()
        .long_about(format!("{}\n\n{}", help::ABOUT, help::MORE_ABOUT))
        .after_help(help::after_short())
        .after_long_help(help::after_long())
        .mut_args(|arg| {
            let Some(variable) = variable(&arg).map(str::to_owned) else { return arg };
            let (help, default) = help_and_default(&arg);
            let more = arg.get_long_help().map(ToString::to_string);
            let more = more.as_deref().and_then(|text| text.split_once("\n\n")).map(|(_, more)| format!(". {more}"));
            arg.help(format!("{help} [default: {default}]"))
                .long_help(format!("{help}{}\n[env: {variable}] [default: {default}]", more.unwrap_or_default()))
                .hide_env(true)
                .hide_default_value(true)
                .hide_possible_values(true)
        })
}

/// The operation that `word` may have been meant to be.
pub fn similar_operation(word: &str) -> Option<String> {
    let operations = Operation::augment_subcommands(Command::new("operations"));
    nearest(word, operations.get_subcommands().map(Command::get_name), 0.8).map(str::to_owned)
}

/// The name that is most like `word`, if it is more like it than `bound` of 1.
pub(super) fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>, bound: f64) -> Option<&'a str> {
    let likeness = |name: &str| strsim::jaro(name, word);
    names.max_by(|one, other| likeness(one).total_cmp(&likeness(other))).filter(|name| likeness(name) > bound)
}

/// A parser that leaves every option's value as it is.
fn untyped(command: Command) -> Command {
    command.mut_args(|arg| match arg.get_env() {
        // `--timeout -1` is a bad duration, not an unknown flag.
        Some(_) => arg
            .value_parser(ValueParser::os_string())
            .allow_negative_numbers(true)
            .env(None::<&str>)
            .default_value(None::<&str>),
        None => arg,
    })
}

/// The name of the operation in `words`, if the words before it are sound.
fn operation_in(words: &[OsString]) -> Option<&str> {
    let at = words.iter().position(|word| word.to_str().is_some_and(Operation::has_subcommand))?;
    untyped(Words::command()).try_get_matches_from(&words[..at]).ok()?;
    words[at].to_str()
}

/// The help or the version, if those were asked for; else the mistake in the words of the command line or of `operation`, and a
/// way out. One line, as all errors.
fn refuse(error: &clap::Error, operation: Option<&str>) -> Request {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Request::Show(error.render().ansi().to_string());
    }
    let unknown = context(error, ContextKind::InvalidArg).filter(|_| error.kind() == ErrorKind::UnknownArgument);
    let mistake = match unknown.filter(|word| word.starts_with('-')) {
        Some(word) => {
            let similar = context(error, ContextKind::SuggestedArg).map(|similar| format!("; did you mean {similar}?"));
            format!("there is no option {word}{}", similar.unwrap_or_default())
        }
        None => match (option_of(error), mistake_in_value(error)) {
            (Some(option), Some(mistake)) => format!("{option}: {mistake}"),
            _ => one_line(error),
        },
    };
    Request::Refuse(match (operation, unknown) {
        (Some(operation), _) => format!("{operation}: {mistake} (see `claude-run {operation} --help`)"),
        (None, Some(word)) => format!("{mistake} (put claude's arguments after `--`: `claude-run -- {word} …`)"),
        (None, None) => format!("{mistake} (see `claude-run --help`)"),
    })
}

/// clap's own words for `error`.
pub(super) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    }
}

/// The option whose value is wrong, without the name of its value.
pub(super) fn option_of(error: &clap::Error) -> Option<&str> {
    let option = context(error, ContextKind::InvalidArg)?;
    option.trim_start_matches(['<', '[']).split([' ', '=', '[', '>', ']']).next()
}

/// The mistake in the value of an option, in a line of ours.
pub(super) fn mistake_in_value(error: &clap::Error) -> Option<String> {
    match (error.kind(), error.get(ContextKind::ValidValue)) {
        (ErrorKind::ValueValidation, _) => std::error::Error::source(error).map(ToString::to_string),
        (ErrorKind::InvalidValue, Some(ContextValue::Strings(words))) if !words.is_empty() => {
            Some(format!("{:?} is none of: {}", context(error, ContextKind::InvalidValue)?, words.join(", ")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::duration::DurationSetting;
    use crate::config::values::LockMode;

    fn command_of(words: &[&str]) -> Vec<OsString> {
        let words = std::iter::once("claude-run").chain(words.iter().copied()).map(OsString::from).collect();
        match Cli::parse(words) {
            Request::Run(cli) => cli.command,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn command_keeps_all_words_after_its_first() {
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
    fn fast_path_agrees_with_the_parser() {
        let alphabet = ["--", "-p", "-v", "x", "", "claude", "status", "--wait", "-", "---", "--wait=1"];
        let mut plain = 0;
        for order in 0..alphabet.len().pow(3) {
            for length in 0..=3 {
                let word = |place: usize| alphabet[order / alphabet.len().pow(place as u32) % alphabet.len()];
                let words: Vec<OsString> =
                    std::iter::once("claude-run").chain((0..length).map(word)).map(OsString::from).collect();
                let Some(before) = words_before_command(&words) else { continue };
                let matches =
                    untyped(Words::command()).try_get_matches_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
                let command: Vec<OsString> =
                    matches.get_many("command").map(|words| words.cloned().collect()).unwrap_or_default();
                assert_eq!(matches.subcommand_name(), None, "{words:?}");
                assert_eq!(command, words[before..], "{words:?}");
                plain += 1;
            }
        }
        assert!(plain > 1000, "{plain}");
    }

    #[test]
    fn last_of_two_flags_counts() {
        let words = ["claude-run", "--wait", "1", "--wait=2", "x"].map(OsString::from).to_vec();
        let Request::Run(cli) = Cli::parse(words) else { panic!("refused") };
        assert_eq!(cli.value("wait"), Some(OsStr::new("2")));
    }

    #[test]
    fn help_names_every_option_and_variable() {
        untyped(described()).debug_assert();
        described().debug_assert();
        let help = described().render_long_help().to_string();
        for option in options().get_arguments() {
            let (flag, variable) = (option.get_long().unwrap_or_default(), variable(option).unwrap_or_default());
            assert!(!flag.is_empty() && help.contains(&format!("--{flag}")), "{flag}");
            assert!(!variable.is_empty() && help.contains(variable), "{variable}");
        }
        assert!(help.contains(VERBOSITY_VARIABLE));
    }

    #[test]
    fn words_of_an_operation_are_understood() {
        let parse = |words: &[&str]| {
            let words = std::iter::once("claude-run").chain(words.iter().copied()).map(OsString::from).collect();
            match Cli::parse(words) {
                Request::Operate(cli, operation) => Some((operation, cli)),
                _ => None,
            }
        };
        let drain = |text: &str| DurationSetting::read(OsStr::new(text)).ok();
        let mode = |set, drain| Some(Operation::Mode { json: false, set, drain });
        let operation = |words: &[&str]| parse(words).map(|(operation, _)| operation);
        assert_eq!(operation(&["status", "--json", "-w"]), Some(Operation::Status { json: true, watch: true }));
        assert_eq!(operation(&["mode"]), mode(None, None));
        assert_eq!(operation(&["mode", "--drain", "exclusive"]), mode(Some(LockMode::Exclusive), drain("125m")));
        assert_eq!(operation(&["mode", "--drain=5m"]), mode(None, drain("5m")));
        for words in [&["claude"][..], &[], &["status", "x"], &["--", "status"], &["x", "status"]] {
            assert_eq!(operation(words), None, "{words:?}");
        }
        for words in [&["--config-dir", "a", "setup"][..], &["setup", "--config-dir", "a"]] {
            let cli = parse(&[words, &["--wait", "5m"]].concat()).map(|(_, cli)| cli).unwrap_or_default();
            assert_eq!((cli.value("config-dir"), cli.value("wait")), (Some(OsStr::new("a")), Some(OsStr::new("5m"))));
        }
    }
}
