//! The merge: flag over environment over file over default -> [`Settings`]. The value that counts for each option goes through
//! one parser, wherever it stands; a refusal names the flag, the variable or the line, the value, and what would be right.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::builder::{EnumValueParser, TypedValueParser};
use clap::{Arg, Command, FromArgMatches};

use super::cli::{self, Cli};
pub(crate) use super::duration::after;
pub use super::duration::{DurationSetting, show, show_seconds};
use super::file::SettingsFile;
pub use super::options::Settings;
use super::options::{help_and_default, variable};
pub use super::values::{Leftovers, LockMode, Redact, RequireResult, Stdin, Verbosity, Wait};

/// Source of environment variables: a closure in tests, the process' own in `run`.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Variable that asks for an exclusive lock, if it is not empty, as it did of the shell scripts before.
pub const EXTERNAL_LOCK: &str = "CLAUDE_EXTERNAL_LOCK";
/// Variable in which the factory names its agent.
const LOG_AGENT: &str = "LOG_AGENT";

/// Hard limit of a run that is not interactive.
pub const HARD_LIMIT: DurationSetting = DurationSetting::from_secs(2 * 60 * 60);

/// Origin of a setting's value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// A flag on the command line.
    Flag,
    /// This variable.
    Variable(String),
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
    pub name: String,
    /// Value; a default in words.
    pub value: OsString,
    /// Origin of the value.
    pub origin: Origin,
}

/// Every option, with the value that counts.
pub fn explain(cli: &Cli, environment: Environment, file: Option<&SettingsFile>) -> Vec<Written> {
    let options = cli::options();
    let mut written = given(&options, cli, environment, file);
    let explain = |option: &Arg| {
        let name = option.get_long().unwrap_or_default();
        let given = written.iter().position(|written| written.name == name).map(|at| written.swap_remove(at));
        let default = || Written { name: name.to_owned(), value: help_and_default(option).1.into(), origin: Origin::Default };
        given.unwrap_or_else(default)
    };
    options.get_arguments().map(explain).collect()
}

/// The options that somebody has given a value.
fn given(options: &Command, cli: &Cli, environment: Environment, file: Option<&SettingsFile>) -> Vec<Written> {
    // An empty variable counts as unset.
    let read = |name: &str| environment(name).filter(|value| !value.is_empty());
    let given = |option: &Arg| {
        let name = option.get_long().unwrap_or_default();
        let flag = || Some((cli.value(name)?.to_owned(), Origin::Flag));
        let variable = || variable(option).and_then(|name| Some((read(name)?, Origin::Variable(name.to_owned()))));
        // Variables that were there before claude-run.
        let older = || match name {
            "lock" => {
                read(EXTERNAL_LOCK).map(|_| (LockMode::Exclusive.name().into(), Origin::Variable(EXTERNAL_LOCK.to_owned())))
            }
            "label" => read(LOG_AGENT).map(|agent| (agent, Origin::Variable(LOG_AGENT.to_owned()))),
            _ => None,
        };
        let in_file = || {
            let (value, line) = file?.value(name)?;
            Some((value.clone(), Origin::File(file?.path.clone(), line)))
        };
        let (value, origin) = flag().or_else(variable).or_else(older).or_else(in_file)?;
        Some(Written { name: name.to_owned(), value, origin })
    };
    options.get_arguments().filter_map(given).collect()
}

impl Settings {
    /// Resolves what was typed against `environment` and `file`.
    ///
    /// # Errors
    /// A value means nothing.
    pub fn resolve(cli: Cli, environment: Environment, file: Option<&SettingsFile>) -> Result<Self> {
        let options = cli::options();
        let given = given(&options, &cli, environment, file);
        let origin = |name: &str| given.iter().find(|given| given.name == name).map(|given| &given.origin);
        let words = given.iter().map(|Written { name, value, .. }| {
            let mut word = OsString::from(format!("--{name}="));
            word.push(value);
            word
        });
        // The variables are among the words.
        let parser = options.mut_args(|option| option.env(None::<&str>));
        let parsed = parser.try_get_matches_from(words).and_then(|matches| Self::from_arg_matches(&matches));
        let mistake = |error: &clap::Error| cli::mistake_in_value(error).unwrap_or_else(|| cli::one_line(error));
        let mut settings = parsed.map_err(|error| {
            let option = cli::option_of(&error).unwrap_or_default();
            let name = option.trim_start_matches("--");
            let place = match origin(name) {
                Some(Origin::File(path, line)) => format!("{}:{line}: {name}", path.display()),
                Some(Origin::Variable(variable)) => variable.clone(),
                _ => option.to_owned(),
            };
            anyhow!("{place}: {}", mistake(&error))
        })?;
        if settings.require_result == RequireResult::OfCommand && origin("require-result") != Some(&Origin::Flag) {
            settings.require_result = RequireResult::OfClaude;
        }
        let verbosity = environment(cli::VERBOSITY_VARIABLE).filter(|value| !value.is_empty());
        settings.verbosity = match (cli.verbosity, verbosity) {
            (Some(typed), _) => typed,
            (None, Some(value)) => EnumValueParser::new()
                .parse_ref(&Command::new(""), None, &value)
                .map_err(|error| anyhow!("{}: {}", cli::VERBOSITY_VARIABLE, mistake(&error)))?,
            (None, None) => settings.verbosity,
        };
        settings.command = cli.command;
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::cli::Request;

    fn resolve(words: &[&str], variables: &[(&str, &str)]) -> Result<Settings> {
        let words = std::iter::once("claude-run").chain(words.iter().copied()).map(OsString::from).collect();
        let Request::Run(cli) = Cli::parse(words) else { panic!("refused") };
        let environment = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Settings::resolve(cli, &environment, None)
    }

    #[test]
    fn flag_precedes_variable_precedes_default() -> Result<()> {
        let variables = [("CLAUDE_RUN_WAIT", "7"), ("CLAUDE_TIMEOUT", "1h")];
        let settings = resolve(&["--wait", "none"], &variables)?;
        assert_eq!(settings.wait, Wait::Forever);
        assert_eq!(settings.hard_limit, Some(DurationSetting::from_secs(3600)));
        assert_eq!(resolve(&[], &variables)?.wait, Wait::AtMost(Duration::from_secs(7)));
        assert_eq!(resolve(&[], &[])?.wait, Wait::AtMost(Duration::from_secs(600)));
        Ok(())
    }

    #[test]
    fn empty_variable_counts_as_unset() -> Result<()> {
        let options = cli::options();
        let variables: Vec<_> = options.get_arguments().filter_map(variable).map(str::to_owned).collect();
        let empty: Vec<_> = variables.iter().map(|name| (name.as_str(), "")).collect();
        let settings = resolve(&[], &empty)?;
        assert_eq!((settings.lock_mode, settings.hard_limit, settings.lock_file), (LockMode::Exclusive, None, None));
        Ok(())
    }

    #[test]
    fn external_lock_means_exclusive() -> Result<()> {
        assert_eq!(resolve(&[], &[("CLAUDE_EXTERNAL_LOCK", "1")])?.lock_mode, LockMode::Exclusive);
        let both = [("CLAUDE_EXTERNAL_LOCK", "1"), ("CLAUDE_RUN_LOCK", "pass-through")];
        assert_eq!(resolve(&[], &both)?.lock_mode, LockMode::PassThrough);
        Ok(())
    }

    #[test]
    fn refusal_names_place_and_value() {
        for (words, variables, parts) in [
            (&["--lock", "no"][..], &[][..], ["--lock", "\"no\"", "exclusive"]),
            (&[], &[("CLAUDE_TIMEOUT", "42D")], ["CLAUDE_TIMEOUT", "42D", "10m"]),
            (&["-E", "256"], &[], ["--conflict-exit-code", "256", "255"]),
            (&[], &[("CLAUDE_RUN_VERBOSITY", "loud")], ["CLAUDE_RUN_VERBOSITY", "loud", "quiet"]),
            (&["--lock-file", ""], &[], ["--lock-file", "empty", "leave"]),
            (&["--timeout", "-1"], &[], ["--timeout", "-1", "negative"]),
        ] {
            let message = format!("{:#}", resolve(words, variables).expect_err("accepted"));
            for part in parts {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        }
    }
}
