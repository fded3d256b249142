//! What an operator can ask for: the words behind the name of an operation.

use std::ffi::{OsStr, OsString};

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::options::{CONFIG_DIR, LOCK_FILE, Opt};

/// What an operator can ask for. Values are as they were typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `status`
    Status {
        /// As JSON, not as text.
        json: bool,
        /// Again and again.
        watch: bool,
    },
    /// `mode`
    Mode {
        /// As JSON, not as text.
        json: bool,
        /// The mode to set for the whole factory.
        set: Option<OsString>,
        /// How long to wait until no live run follows another mode.
        drain: Option<OsString>,
    },
    /// `settings`
    Settings {
        /// As JSON, not as text.
        json: bool,
    },
    /// `doctor`
    Doctor {
        /// As JSON, not as text.
        json: bool,
        /// Remove the refresh locks that nobody can hold any more.
        fix: bool,
    },
    /// `setup`
    Setup {
        /// As JSON, not as text.
        json: bool,
        /// The dir that all agents share.
        shared_dir: Option<OsString>,
        /// The file of variables to write.
        env_file: Option<OsString>,
        /// Whose `~/.claude` it is.
        home: Option<OsString>,
        /// Only say what would be done.
        dry_run: bool,
        /// Do not ask.
        yes: bool,
    },
    /// `events`
    Events {
        /// As JSON, not as text.
        json: bool,
        /// How far to look back.
        since: Option<OsString>,
        /// Go on with what comes.
        follow: bool,
    },
    /// `report`
    Report {
        /// As JSON, not as text.
        json: bool,
        /// How far to look back.
        since: Option<OsString>,
    },
    /// `completions`
    Completions {
        /// The shell that is to complete.
        shell: String,
    },
    /// `man-page`
    ManPage,
}

impl Operation {
    /// Whether it can do its work though the settings file is wrong: to find that is what `doctor` is for.
    pub fn bears_a_wrong_file(&self) -> bool {
        matches!(self, Self::Doctor { .. } | Self::Completions { .. } | Self::ManPage)
    }
}

/// What they are called, in the order of the help.
const NAMES: [&str; 9] = ["status", "mode", "settings", "report", "doctor", "setup", "events", COMPLETIONS, MAN_PAGE];

const COMPLETIONS: &str = "completions";
const MAN_PAGE: &str = "man-page";

/// How long `mode --drain` waits when it is not told: as long as a run may take by default, and a little.
const DRAIN: &str = "125m";

/// Whether this is the name of an operation.
pub(super) fn is_one(word: &OsStr) -> bool {
    NAMES.iter().any(|name| word == *name)
}

/// The operation that `word` may have been meant to be.
pub(super) fn similar(word: &str) -> Option<&'static str> {
    let likeness = |name: &str| strsim::jaro(name, word);
    NAMES.into_iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other))).filter(|name| likeness(name) > 0.8)
}

/// Understands the words of a command line whose first is the name of an operation, `None` if it is none.
pub(super) fn parse(words: &[OsString]) -> Option<Result<(Operation, ArgMatches), clap::Error>> {
    // The parsers are made only for who needs one: every run passes here.
    let name = words.first().filter(|word| is_one(word))?.to_str()?;
    let parser = parsers().into_iter().find(|parser| parser.get_name() == name)?;
    Some(parser.try_get_matches_from(words).map(|matches| understand(name, matches)))
}

fn understand(name: &str, matches: ArgMatches) -> (Operation, ArgMatches) {
    let value = |name: &str| matches.get_one::<OsString>(name).cloned();
    let json = !matches!(name, COMPLETIONS | MAN_PAGE) && matches.get_flag(JSON);
    let operation = match name {
        "status" => Operation::Status { json, watch: matches.get_flag("watch") },
        "mode" => Operation::Mode { json, set: value(LOCK_MODE), drain: value("drain") },
        "settings" => Operation::Settings { json },
        "doctor" => Operation::Doctor { json, fix: matches.get_flag("fix") },
        "setup" => Operation::Setup {
            json,
            shared_dir: value("shared-dir"),
            env_file: value("env-file"),
            home: value("home"),
            dry_run: matches.get_flag("dry-run"),
            yes: matches.get_flag("yes"),
        },
        "events" => Operation::Events { json, since: value("since"), follow: matches.get_flag("follow") },
        COMPLETIONS => Operation::Completions { shell: matches.get_one::<String>(SHELL).cloned().unwrap_or_default() },
        MAN_PAGE => Operation::ManPage,
        _ => Operation::Report { json, since: value("since") },
    };
    (operation, matches)
}

const JSON: &str = "json";
const SHELL: &str = "shell";
/// The value of `mode`.
pub const LOCK_MODE: &str = "mode";

/// The shells that there are completions for.
pub const SHELLS: &[&str] = &["bash", "fish", "zsh"];

pub(super) fn parsers() -> [Command; 9] {
    [
        operation("status", "Shows who holds the session lock, who waits for it, and how things stand")
            .long_about("Shows who holds the session lock, who waits for it in what order, what runs without it, the refresh locks, the token's expiry and the last runs.")
            .arg(Arg::new("watch").long("watch").short('w').action(ArgAction::SetTrue).help("Again each second, until Ctrl-C"))
            .after_help(EXIT_CODES),
        operation("mode", "Shows the lock mode, or sets it for the whole factory")
            .long_about("Shows the lock mode, where it is set, and which live runs follow another one; or sets it for the whole factory, in claude-run.toml in the config dir.")
            .arg(
                Arg::new(LOCK_MODE)
                    .value_name("MODE")
                    .value_parser(ValueParser::os_string())
                    .help("exclusive, refresh or pass-through"),
            )
            .arg(
                Arg::new("drain")
                    .long("drain")
                    .value_name("DUR")
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value(DRAIN)
                    .value_parser(ValueParser::os_string())
                    .help("Wait until no live run follows another mode, at most so long [default: 125m]"),
            )
            .after_help(EXIT_CODES),
        operation("settings", "Prints every setting, its value and where that comes from")
            .long_about("Prints every setting, its value and where that comes from: flag, environment, file or default."),
        operation("report", "Sums up finished runs: outcomes, waits, holds, cost")
            .long_about("Sums up finished runs: outcomes, waits, holds, the time lost to the lock, and the cost.")
            .arg(since("Only runs that began so long ago at most: 90m, 12h, 7d [default: all there are]")),
        operation("doctor", "Checks everything that a shared config dir needs")
        .long_about("Checks everything that a shared config dir needs, and tells what each finding means and what to do.")
        .arg(
            Arg::new("fix")
                .long("fix")
                .action(ArgAction::SetTrue)
                .help("Remove refresh locks of claude's whose owner is proven dead, or that are stale by their own protocol"),
        )
        .after_help("Exit codes: 0 no failure (there may be warnings), 1 a failure, 125 own failure"),
        operation("setup", "Makes a shared config dir, or moves ~/.claude there")
            .long_about("Makes a shared config dir, or moves ~/.claude there, and leaves a link behind. Nothing is lost, whenever it is killed: the next call goes on.")
            .arg(path("shared-dir", "DIR", "The dir to share; the config dir is `config` in it [env: CLAUDE_SHARED_DIR] [default: /var/lib/disinto/claude-shared]"))
            .arg(path("env-file", "FILE", "Write CLAUDE_SHARED_DIR and CLAUDE_CONFIG_DIR into FILE; its other lines stay"))
            .arg(path("home", "DIR", "Whose ~/.claude it is [default: HOME]"))
            .arg(path("wait", "DUR", "How long to wait for the session lock and for live runs, before anything is moved [default: 10m]"))
            .arg(Arg::new("dry-run").long("dry-run").short('n').action(ArgAction::SetTrue).help("Only say what would be done"))
            .arg(Arg::new("yes").long("yes").short('y').action(ArgAction::SetTrue).help("Do not ask before anything is moved"))
            .after_help("Exit codes: 0 done, or nothing to do, or nothing done without --yes; 1 refused, or something is left to do; 125 own failure"),
        operation("events", "Reads what claude's own telemetry tells of its token refreshes")
        .long_about("Reads what Claude Code's own telemetry files tell of its token refreshes: is all well with its locks?")
        .arg(since("Only events of so long ago at most: 90m, 12h, 7d [default: all there are]"))
        .arg(
            Arg::new("follow")
                .long("follow")
                .short('f')
                .action(ArgAction::SetTrue)
                .help("Each event as it comes, until Ctrl-C"),
        )
        .after_help(EXIT_CODES),
        named(COMPLETIONS, "Prints the script by which a shell completes claude-run's command lines")
            .long_about("Prints the script by which a shell completes claude-run's command lines. For bash: source <(claude-run completions bash)")
            .arg(
                Arg::new(SHELL)
                    .value_name("SHELL")
                    .required(true)
                    .value_parser(PossibleValuesParser::new(SHELLS))
                    .hide_possible_values(true)
                    .help("bash, fish or zsh"),
            ),
        named(MAN_PAGE, "Prints the man page, claude-run(1)")
            .long_about("Prints the man page, claude-run(1). To read it: claude-run man-page | man -l -"),
    ]
}

fn named(name: &'static str, about: &'static str) -> Command {
    Command::new(name).bin_name(format!("claude-run {name}")).about(about).max_term_width(super::cli::WIDTH)
}

fn path(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).value_parser(ValueParser::os_string()).help(help)
}

fn since(help: &'static str) -> Arg {
    Arg::new("since").long("since").value_name("DUR").value_parser(ValueParser::os_string()).help(help)
}

const EXIT_CODES: &str = "Exit codes: 0 fine, 1 trouble found, 125 own failure";

fn operation(name: &'static str, about: &'static str) -> Command {
    let json = Arg::new(JSON).long(JSON).action(ArgAction::SetTrue).help("As JSON");
    let shared = |option: &Opt| {
        Arg::new(option.flag)
            .long(option.flag)
            .value_name(option.value)
            .value_parser(ValueParser::os_string())
            .help(option.help)
    };
    named(name, about).arg(json).args([shared(&CONFIG_DIR), shared(&LOCK_FILE)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parsers_are_sound_and_named() {
        for (parser, name) in parsers().into_iter().zip(NAMES) {
            assert_eq!(parser.get_name(), name);
            parser.debug_assert();
        }
    }

    #[test]
    fn the_words_of_an_operation_are_understood() {
        let parse = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            parse(&words).map(|parsed| parsed.map(|(operation, _)| operation).map_err(|error| error.to_string()))
        };
        let drain = |text: &str| Some(OsString::from(text));
        let mode = |set: Option<&str>, drain| Operation::Mode { json: false, set: set.map(OsString::from), drain };
        assert_eq!(parse(&["status", "--json", "-w"]), Some(Ok(Operation::Status { json: true, watch: true })));
        assert_eq!(parse(&["mode"]), Some(Ok(mode(None, None))));
        assert_eq!(parse(&["mode", "--drain", "exclusive"]), Some(Ok(mode(Some("exclusive"), drain(DRAIN)))));
        assert_eq!(parse(&["mode", "--drain=5m"]), Some(Ok(mode(None, drain("5m")))));
        assert_eq!(parse(&["claude"]), None);
        assert_eq!(parse(&[]), None);
        assert!(parse(&["status", "x"]).is_some_and(|parsed| parsed.is_err()));
    }
}
