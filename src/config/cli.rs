//! The command line: its words, taken apart, by clap where they are not plain. Values stay as they were typed, since `settings`
//! reads them, from wherever they come; no I/O, no defaults.

use std::ffi::{OsStr, OsString};
use std::iter;

use anyhow::{Result, bail};
use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, Subcommand};

use super::help;
pub use super::operations::Operation;
use super::options::{MESSAGES, OPTIONS, OptionSpec, VERBOSITY};
use super::values::nearest;

/// With the commit, if that is known; the build script, which has these parsers, too, does not know it.
const VERSION: &str = match option_env!("CLAUDE_RUN_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// Id of `-h`.
const SHORT_HELP: &str = "short-help";

/// A command line, taken apart but not yet understood.
#[derive(Clone, Debug, Default)]
pub struct Cli {
    /// Long names of options, and the value typed for each; the last counts.
    typed: Vec<(&'static str, OsString)>,
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
}

impl Cli {
    /// Takes `words` apart; the first is the name we were called by.
    ///
    /// # Errors
    /// The words are wrong.
    pub fn parse(words: &[OsString]) -> Result<Request> {
        if let Some(cli) = Self::of_plain_run(words) {
            return Ok(Request::Run(cli));
        }
        let understood = command().try_get_matches_from(words).and_then(|matches| {
            let operation = matches.subcommand_name().map(|_| Operation::from_arg_matches(&matches)).transpose()?;
            Ok((matches.get_flag(SHORT_HELP), Self::of(&matches), operation))
        });
        match understood {
            Ok((true, ..)) => Ok(Request::Show(help::short(&command()))),
            Ok((_, cli, None)) => Ok(Request::Run(cli)),
            Ok((_, cli, Some(operation))) => Ok(Request::Operate(cli, operation)),
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                Ok(Request::Show(error.render().ansi().to_string()))
            }
            Err(error) => bail!(refusal(&error, operation_in(words))),
        }
    }

    /// A command line with no option in it, as every one of the shim's.
    pub fn without_options(command: Vec<OsString>) -> Self {
        Self { typed: Vec::new(), command }
    }

    /// The command line of a run, if its options are written out and sound, as in most. To make clap's parser, which takes all the
    /// others, is most of the time before a child starts.
    fn of_plain_run(words: &[OsString]) -> Option<Self> {
        let (mut typed, mut is_quiet, mut verbose) = (Vec::new(), false, 0_u8);
        let mut words = words.iter().skip(1).peekable();
        while let Some(word) = words.peek() {
            let text = word.to_str().filter(|text| !text.is_empty() && !Operation::has_subcommand(text))?;
            if !text.starts_with('-') {
                break;
            }
            words.next();
            let (flag, value) = text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value)));
            match (flag, value) {
                ("--", None) => break,
                ("-q" | "--quiet", None) => is_quiet = true,
                ("-v" | "--verbose", None) => verbose = verbose.saturating_add(1),
                _ => {
                    let option = OPTIONS.iter().find(|option| option.is_flag(flag))?;
                    let value = match value {
                        Some(value) => value.into(),
                        None if option.is_switch() => "on".into(),
                        None => words.next().filter(|value| !value.as_encoded_bytes().starts_with(b"-"))?.clone(),
                    };
                    typed.push((option.name, value));
                }
            }
        }
        typed.extend(verbosity(is_quiet, verbose));
        Some(Self { typed, command: words.cloned().collect() })
    }

    fn of(matches: &ArgMatches) -> Self {
        let behind = matches.subcommand().map(|(_, behind)| behind);
        let value = |option: &OptionSpec| {
            // An operation has only some of the options.
            let mut places = [behind, Some(matches)].into_iter().flatten();
            let value = places.find_map(|place| place.try_get_one::<OsString>(option.name).ok()?)?;
            Some((option.name, value.clone()))
        };
        let verbosity = verbosity(matches.get_flag("quiet"), matches.get_count("verbose"));
        Self {
            typed: OPTIONS.iter().filter_map(value).chain(verbosity).collect(),
            command: matches.get_many("command").map(|words| words.cloned().collect()).unwrap_or_default(),
        }
    }

    /// The value typed for the option `--name`.
    pub fn value(&self, name: &str) -> Option<&OsStr> {
        self.typed.iter().rfind(|(typed, _)| *typed == name).map(|(_, value)| value.as_os_str())
    }
}

/// The value of [`VERBOSITY`] that so many flags make.
fn verbosity(is_quiet: bool, verbose: u8) -> Option<(&'static str, OsString)> {
    let value = match (is_quiet, verbose) {
        (true, _) => "quiet",
        (false, 0) => return None,
        (false, 1) => "info",
        (false, _) => "debug",
    };
    Some((VERBOSITY.name, value.into()))
}

/// clap's parser of the whole command line, with its help. It leaves every option's value as it is.
pub fn command() -> Command {
    let verbosity_help =
        format!("Say more; twice: still more\n[env: {}={}] [default: warnings]", VERBOSITY.variable, VERBOSITY.value_name);
    Operation::augment_subcommands(Command::new("claude-run"))
        .bin_name("claude-run")
        .version(VERSION)
        .about(help::ABOUT)
        .long_about(format!("{}\n\n{}", help::ABOUT, help::MORE_ABOUT))
        .override_usage(help::USAGE)
        .after_help(help::after())
        .args_override_self(true)
        .disable_help_subcommand(true)
        .disable_help_flag(true)
        .max_term_width(100)
        .subcommand_help_heading("Operations")
        .args(OPTIONS.iter().map(argument))
        .next_help_heading(MESSAGES)
        .arg(
            Arg::new("verbose")
                .short('v')
                .long("verbose")
                .action(ArgAction::Count)
                .help("Say more; twice: still more")
                .long_help(verbosity_help),
        )
        .arg(Arg::new("quiet").short('q').long("quiet").action(ArgAction::SetTrue).help("Say nothing but errors"))
        .next_help_heading("Help")
        .arg(Arg::new(SHORT_HELP).short('h').action(ArgAction::SetTrue).help("What most people need, on one screen"))
        .arg(Arg::new("help").long("help").action(ArgAction::HelpLong).help("All of this"))
        .arg(Arg::new("version").short('V').long("version").action(ArgAction::Version).help("Version, commit and its date"))
        .disable_version_flag(true)
        .mut_subcommands(|operation| {
            operation.arg(Arg::new("help").short('h').long("help").action(ArgAction::Help).help("Print this help"))
        })
        .next_help_heading(None)
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .help("The program and its arguments; default: claude")
                .num_args(0..)
                .trailing_var_arg(true)
                .value_parser(ValueParser::os_string()),
        )
}

/// clap's form of `option`. `--timeout -1` is a bad duration to it, not an unknown flag.
fn argument(option: &OptionSpec) -> Arg {
    let comment = option.help.iter().map(|line| line.trim()).collect::<Vec<_>>();
    let mut paragraphs = comment.split(|line| line.is_empty()).map(|lines| lines.join(" "));
    let help = paragraphs.next().unwrap_or_default();
    let more = paragraphs.map(|paragraph| format!(". {paragraph}")).collect::<String>();
    let default = option.default;
    let arg = Arg::new(option.name)
        .long(option.name)
        .short(option.short)
        .value_name(option.value_name)
        .help_heading(option.heading)
        .global(option.global)
        .value_parser(ValueParser::os_string())
        .allow_negative_numbers(true)
        .long_help(format!("{help}{more}\n[env: {}] [default: {default}]", option.variable))
        .help(format!("{help} [default: {default}]"));
    if option.is_switch() { arg.num_args(0..=1).require_equals(true).default_missing_value("on") } else { arg }
}

/// The operation that `word` may have been meant to be.
pub fn similar_operation(word: &str) -> Option<String> {
    nearest(word, operations().get_subcommands().map(Command::get_name), 0.8).map(str::to_owned)
}

/// The name of the operation in `words`, if the words before it are sound.
fn operation_in(words: &[OsString]) -> Option<&str> {
    let at = words.iter().position(|word| word.to_str().is_some_and(Operation::has_subcommand))?;
    command().try_get_matches_from(&words[..at]).ok()?;
    words[at].to_str()
}

fn operations() -> Command {
    Operation::augment_subcommands(Command::new("operations"))
}

/// The first operation that has the option `word`.
fn operation_with(word: &str) -> Option<String> {
    let name = word.strip_prefix("--")?;
    let has = |operation: &&Command| operation.get_arguments().any(|option| option.get_long() == Some(name));
    operations().get_subcommands().find(has).map(|operation| operation.get_name().to_owned())
}

/// Options of flock(1), timeout(1) and tini(1) that are none of ours.
const PEERS: &str = "-n -x -e -s -u -o -F -f -g -c -l -r --nb --nonblock --exclusive --shared --unlock --close --no-fork --command --fcntl --foreground --preserve-status --signal --rewrite --single-child";

/// What options are called elsewhere, where our most similar name means something else.
const OTHER_NAMES: [(&str, &str); 3] = [("--log-file", "--log"), ("--logfile", "--log"), ("--lock-timeout", "--wait")];

/// The mistake in the words of the command line or of `operation`, and a way out. One line, as all errors.
fn refusal(error: &clap::Error, operation: Option<&str>) -> String {
    let invalid = context(error, ContextKind::InvalidArg);
    let unknown = invalid.filter(|_| error.kind() == ErrorKind::UnknownArgument);
    let mistake = match unknown.filter(|word| word.starts_with('-')) {
        Some(word) => {
            let other = OTHER_NAMES.iter().find(|(name, _)| *name == word).map(|(_, ours)| *ours);
            let similar = || context(error, ContextKind::SuggestedArg).and_then(|name| nearest(word, iter::once(name), 0.8));
            let meant = other.or_else(similar).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            format!("there is no option {word}{meant}")
        }
        None => match (invalid.map(name_of), std::error::Error::source(error)) {
            (Some(name), Some(mistake)) => format!("{name}: {mistake}"),
            (Some(name), None) => mistake_about(name, error),
            _ => one_line(error),
        },
    };
    match (operation, unknown) {
        (Some("redact"), Some(file)) if !file.starts_with('-') => {
            format!("redact: {mistake}; it reads stdin: `claude-run redact <{file}`")
        }
        (Some(operation), _) => format!("{operation}: {mistake} (see `claude-run {operation} --help`)"),
        (None, Some(word)) => {
            if let Some(operation) = operation_with(word) {
                return format!("{mistake}; it is one of {operation} and its like: `claude-run {operation} {word}`");
            }
            let is_of_peers = PEERS.split(' ').any(|name| name == word);
            let hint = if is_of_peers { "; for flock's, timeout's, tini's: `claude-run help coming-from`" } else { "" };
            format!("{mistake} (put claude's arguments after `--`: `claude-run -- {word} ...`{hint})")
        }
        (None, None) => format!("{mistake} (see `claude-run --help`)"),
    }
}

/// The name of an option or argument, as clap writes it, without the name of its value.
fn name_of(argument: &str) -> &str {
    argument.trim_start_matches(['<', '[']).split([' ', '=', '[', '>', ']']).next().unwrap_or_default()
}

/// A mistake that is in no value.
fn mistake_about(name: &str, error: &clap::Error) -> String {
    match error.kind() {
        ErrorKind::UnknownArgument => format!("{name:?} is one word too many"),
        ErrorKind::InvalidValue => format!("{name} needs a value"),
        ErrorKind::TooManyValues => format!("{name} takes no value"),
        ErrorKind::ArgumentConflict => {
            let other = context(error, ContextKind::PriorArg).map_or("another option", name_of);
            format!("{name} and {other} exclude each other; leave one out")
        }
        ErrorKind::MissingRequiredArgument => format!("{name} is missing"),
        _ => one_line(error),
    }
}

/// clap's own words for `error`.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        ContextValue::Strings(texts) => texts.first().map(String::as_str),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::operations::Drain;
    use crate::config::values::{LockMode, Value};

    fn command_of(words: &[&str]) -> Vec<OsString> {
        let words: Vec<_> = std::iter::once("claude-run").chain(words.iter().copied()).map(OsString::from).collect();
        match Cli::parse(&words) {
            Ok(Request::Run(cli)) => cli.command,
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
    fn plain_runs_are_read_as_clap_reads_them() {
        let alphabet: Vec<_> =
            " -- -p -v x claude status --wait - --- --wait=1 -w -w= --pty -1 -q --verbose".split(' ').collect();
        let mut plain = 0;
        for order in 0..alphabet.len().pow(3) {
            let word = |place: usize| alphabet[order / alphabet.len().pow(place as u32) % alphabet.len()];
            let words: Vec<_> = std::iter::once("claude-run").chain((0..3).map(word)).map(OsString::from).collect();
            let Some(cli) = Cli::of_plain_run(&words) else { continue };
            let matches = command().try_get_matches_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
            let same = Cli::of(&matches);
            assert_eq!(matches.subcommand_name(), None, "{words:?}");
            assert_eq!(cli.command, same.command, "{words:?}");
            for option in OPTIONS {
                assert_eq!(cli.value(option.name), same.value(option.name), "{words:?}");
            }
            assert_eq!(cli.value(VERBOSITY.name), same.value(VERBOSITY.name), "{words:?}");
            plain += 1;
        }
        assert!(plain > 500, "{plain}");
    }

    #[test]
    fn last_of_two_flags_counts() {
        let words = ["claude-run", "--wait", "1", "--wait=2", "x"].map(OsString::from);
        let Ok(Request::Run(cli)) = Cli::parse(&words) else { panic!("refused") };
        assert_eq!(cli.value("wait"), Some(OsStr::new("2")));
    }

    #[test]
    fn help_names_every_option_and_variable() {
        command().debug_assert();
        let help = command().render_long_help().to_string();
        for OptionSpec { name, variable, .. } in OPTIONS {
            assert!(help.contains(&format!("--{name}")), "{name}");
            assert!(help.contains(variable), "{variable}");
        }
        assert!(help.contains(VERBOSITY.variable));
    }

    #[test]
    fn words_of_an_operation_are_understood() {
        let parse = |words: &[&str]| {
            let words: Vec<_> = std::iter::once("claude-run").chain(words.iter().copied()).map(OsString::from).collect();
            match Cli::parse(&words) {
                Ok(Request::Operate(cli, operation)) => Some((operation, cli)),
                _ => None,
            }
        };
        let drain = |text: &str| Drain::read(text.as_ref()).ok();
        let mode = |set, drain| Some(Operation::Mode { json: false, set, drain });
        let operation = |words: &[&str]| parse(words).map(|(operation, _)| operation);
        assert_eq!(operation(&["status", "--json", "-w"]), Some(Operation::Status { json: true, watch: true }));
        assert_eq!(operation(&["mode"]), mode(None, None));
        assert_eq!(operation(&["mode", "--drain", "exclusive"]), mode(None, Some(Drain::ByDefault(Some(LockMode::Exclusive)))));
        assert_eq!(operation(&["mode", "exclusive", "--drain"]), mode(Some(LockMode::Exclusive), drain("")));
        for words in [["mode", "--drain=5m", "refresh"].as_slice(), &["mode", "--drain", "5m", "refresh"]] {
            assert_eq!(operation(words), mode(Some(LockMode::Refresh), drain("5m")));
        }
        for words in [&["claude"][..], &[], &["status", "x"], &["--", "status"], &["x", "status"]] {
            assert_eq!(operation(words), None, "{words:?}");
        }
        for words in [&["--config-dir", "a", "setup"][..], &["setup", "--config-dir", "a"]] {
            let cli = parse(&[words, &["--wait", "5m"]].concat()).map(|(_, cli)| cli).unwrap_or_default();
            assert_eq!((cli.value("config-dir"), cli.value("wait")), (Some(OsStr::new("a")), Some(OsStr::new("5m"))));
        }
    }
}
