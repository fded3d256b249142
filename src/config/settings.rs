//! The merge: flag over environment over file over default -> [`Settings`]. The value that counts for each option goes through
//! one reader, wherever it stands; a refusal names the flag, the variable or the line, the value, and what would be right.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;

use super::cli::Cli;
use super::duration::DurationSetting;
use super::file::{LISTS, SettingsFile};
use super::help::SECTIONS;
use super::options::{OPTIONS, OptionSpec, SLOTS, VERBOSITY};
pub use super::options::{Origin, Settings, Written};
pub use super::values::{Leftovers, LockMode, Redact, RequireResult, Slots, Stdin, Verbosity, Wait};
use super::values::{Value, nearest};

/// Source of environment variables: a closure in tests, the process' own in `run`.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Variable that asks for an exclusive lock, if it is not empty, as it did of the shell scripts before.
pub const EXTERNAL_LOCK: &str = "CLAUDE_EXTERNAL_LOCK";
/// Variable in which the factory names its agent.
const LOG_AGENT: &str = "LOG_AGENT";

/// Hard limit of a run that is not attended.
pub const HARD_LIMIT: DurationSetting = DurationSetting::from_secs(2 * 60 * 60);

/// Every option, and every list of the file, with the value that counts.
pub fn explain(cli: &Cli, environment: Environment, file: Option<&SettingsFile>) -> Vec<Written> {
    let default = |option: &OptionSpec| Written { name: option.name, value: option.default.into(), origin: Origin::Default };
    let options = OPTIONS.iter().chain([&VERBOSITY]);
    let options = options.map(|option| given(option, cli, environment, file).unwrap_or_else(|| default(option)));
    options.chain(LISTS.map(|name| written_list(name, file))).collect()
}

/// A list of the settings file, in the form that it has there.
fn written_list(name: &'static str, file: Option<&SettingsFile>) -> Written {
    let found = file.and_then(|file| Some((file, file.line(name)?)));
    found.map_or(Written { name, value: "none".into(), origin: Origin::Default }, |(file, line)| {
        let value = format!("{:?}", file.list(name)).into();
        Written { name, value, origin: Origin::File(file.path.clone(), line) }
    })
}

/// The value that somebody has given `option`.
fn given(option: &OptionSpec, cli: &Cli, environment: Environment, file: Option<&SettingsFile>) -> Option<Written> {
    let name = option.name;
    // An empty variable counts as unset.
    let read = |variable| Some((environment(variable).filter(|value| !value.is_empty())?, Origin::Variable(variable)));
    // Variables that were there before claude-run.
    let older = || match name {
        "lock" => read(EXTERNAL_LOCK).map(|(_, origin)| (LockMode::Exclusive.name().into(), origin)),
        "label" => read(LOG_AGENT),
        _ => None,
    };
    let typed = cli.value(name).map(|value| (value.to_owned(), Origin::Flag));
    let given = typed.or_else(|| read(option.variable)).or_else(older);
    given.map(|(value, origin)| Written { name, value, origin }).or_else(|| in_file(option, file?))
}

/// The value of `option` in `file`.
fn in_file(option: &OptionSpec, file: &SettingsFile) -> Option<Written> {
    let (value, line) = file.value(option.name)?;
    Some(Written { name: option.name, value: value.clone(), origin: Origin::File(file.path.clone(), line) })
}

/// A warning for each variable of `environment` that looks like one of ours, and is none.
pub fn unknown_variables(environment: &[(OsString, OsString)]) -> impl Iterator<Item = String> {
    let options = || OPTIONS.iter().chain([&VERBOSITY]).map(|option| option.variable);
    let of_children = || SECTIONS.iter().flat_map(|section| section.terms).map(|(term, _)| *term);
    environment.iter().filter_map(move |(name, _)| {
        let name = name.to_str()?;
        let own = name.strip_prefix("CLAUDE_RUN_")?;
        // Those of the scripts are no concern of ours.
        let of_scripts = ["BIN", "SDK", "GROUP"].iter().any(|word| own.starts_with(word));
        if of_scripts || options().chain(of_children()).any(|known| known == name) {
            return None;
        }
        // That of the option, which need not begin alike; else one that is spelled nearly so, whatever they all begin with.
        let option = own.to_ascii_lowercase().replace('_', "-");
        let of_option = OPTIONS.iter().find(|row| row.name == option).map(|row| row.variable);
        let spelled = || nearest(own, options().filter_map(|variable| variable.strip_prefix("CLAUDE_RUN_")), 0.8);
        let similar = of_option.map(str::to_owned).or_else(|| Some(format!("CLAUDE_RUN_{}", spelled()?)));
        let similar = similar.map(|similar| format!("; did you mean {similar}?"));
        Some(format!("there is no variable {name}{}", similar.unwrap_or_default()))
    })
}

/// Bound on the runs at once, by the settings file `path`, which had one, as it is now.
///
/// # Errors
/// The file cannot be read, or its value means nothing.
pub fn slots_in(path: &Path) -> Result<Slots> {
    let file = SettingsFile::read_again(path)?;
    file.as_ref().and_then(|file| file.value(SLOTS)).map_or(Ok(Slots::Unlimited), |(value, _)| Slots::read(value))
}

impl Settings {
    /// Resolves what was typed against `environment` and `file`.
    ///
    /// # Errors
    /// A value means nothing, be it one in the file that does not count.
    pub fn resolve(cli: Cli, environment: Environment, file: Option<&SettingsFile>) -> Result<Self> {
        if let Some(file) = file {
            Self::read(Vec::new(), |option| in_file(option, file))?;
        }
        let mut settings = Self::read(cli.command.clone(), |option| given(option, &cli, environment, file))?;
        if settings.require_result == RequireResult::OfCommand && cli.value("require-result").is_none() {
            settings.require_result = RequireResult::OfClaude;
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::cli::Request;

    fn resolve(words: &[&str], variables: &[(&str, &str)]) -> Result<Settings> {
        let words: Vec<_> = std::iter::once("claude-run").chain(words.iter().copied()).map(OsString::from).collect();
        let Request::Run(cli) = Cli::parse(&words)? else { panic!("no run") };
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
    fn hard_limit_is_the_one_that_the_help_names() -> Result<()> {
        let row = OPTIONS.iter().find(|option| option.name == "timeout").expect("a row");
        let (limit, _) = row.default.split_once(';').expect("a default in words");
        assert_eq!(DurationSetting::parse(limit)?, HARD_LIMIT);
        Ok(())
    }

    #[test]
    fn empty_variable_counts_as_unset() -> Result<()> {
        let empty: Vec<_> = OPTIONS.iter().map(|option| (option.variable, "")).collect();
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

    #[test]
    fn bad_value_in_the_file_is_refused_under_a_flag_too() -> Result<()> {
        let file = SettingsFile::parse(Path::new("/c/claude-run.toml"), "wait = 5\nlock = \"bogus\"\n")?;
        let words = ["claude-run", "--lock", "refresh"].map(Into::into);
        let Request::Run(cli) = Cli::parse(&words)? else { panic!("an operation") };
        let message = format!("{:#}", Settings::resolve(cli, &|_| None, Some(&file)).expect_err("accepted"));
        assert!(message.contains("/c/claude-run.toml:2: lock") && message.contains("bogus"), "{message}");
        Ok(())
    }
}
