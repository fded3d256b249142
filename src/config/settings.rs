//! What it means: flag, environment, file, default -> `Settings`. Every refusal names the flag, the variable or the line, the
//! value, and what would be right.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

pub(crate) use super::duration::after;
pub use super::duration::{DurationSetting, show, show_seconds};
use super::file::SettingsFile;
use crate::config::cli::{self, Cli, Opt};
use crate::logging::{LogFormat, Verbosity};
use crate::outcome;
pub use crate::sys::exec::Stdin;

/// When the session lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// For the whole run.
    Exclusive,
    /// Only while a refresh of claude's token is due.
    Refresh,
    /// Never.
    PassThrough,
}

impl LockMode {
    const ALL: [Self; 3] = [Self::Exclusive, Self::Refresh, Self::PassThrough];

    /// Its name in settings and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Refresh => "refresh",
            Self::PassThrough => "pass-through",
        }
    }
}

/// How long to wait for the session lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// This long at most.
    AtMost(Duration),
    /// For ever.
    Forever,
}

/// What becomes of descendants that outlive the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leftovers {
    /// TERM, kill grace, KILL.
    Kill,
    /// They stay.
    Keep,
}

/// Who has to print a successful result frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequireResult {
    /// Nobody.
    Off,
    /// claude, and what is asked for its frames: said once for all runs, it is not meant for other programs.
    OfClaude,
    /// COMMAND, whatever it is: it was typed for this one.
    OfCommand,
}

/// Where secrets are masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redact {
    /// In the log.
    Log,
    /// In the log, and in what is passed on to our own stdout and stderr.
    All,
    /// Nowhere.
    Off,
}

/// Where a setting that the environment decides comes from. A closure in tests, the process' own in `run`.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Every setting, resolved. `None` in a field that says so means "the default depends on the terminal".
#[derive(Debug)]
pub struct Settings {
    /// `--lock`
    pub lock_mode: LockMode,
    /// `--wait`
    pub wait: Wait,
    /// `--refresh-margin`
    pub refresh_margin: DurationSetting,
    /// `--conflict-exit-code`
    pub conflict_exit_code: u8,
    /// `--config-dir` as typed; the variable of the same meaning is Claude Code's own and is read with it.
    pub config_dir: Option<PathBuf>,
    /// `--lock-file`
    pub lock_file: Option<PathBuf>,
    /// `--lock-helper`: the program and its arguments
    pub lock_helper: Option<Vec<String>>,
    /// `--claude`
    pub claude: Option<PathBuf>,
    /// `--timeout`; `None`: not set.
    pub hard_limit: Option<DurationSetting>,
    /// `--idle-timeout`
    pub idle_limit: DurationSetting,
    /// `--result-grace`
    pub result_grace: DurationSetting,
    /// `--task-grace`
    pub task_grace: DurationSetting,
    /// `--kill-after`
    pub kill_grace: DurationSetting,
    /// `--leftovers`; `None`: not set.
    pub leftovers: Option<Leftovers>,
    /// `--stdin`
    pub stdin: Stdin,
    /// `--require-result`
    pub require_result: RequireResult,
    /// `--pty`
    pub pty: bool,
    /// `--log`
    pub log: Option<PathBuf>,
    /// `--redact`
    pub redact: Redact,
    /// `--record`
    pub record: Option<PathBuf>,
    /// `--label`, or `LOG_AGENT`
    pub label: Option<String>,
    /// `-v`, `-q`
    pub verbosity: Verbosity,
    /// `--log-format`
    pub log_format: LogFormat,
    /// COMMAND and its arguments; empty: claude alone.
    pub command: Vec<OsString>,
}

/// Not empty, it asks for an exclusive lock, as it did of the shell scripts before.
pub const EXTERNAL_LOCK: &str = "CLAUDE_EXTERNAL_LOCK";
/// What the factory calls its agent.
const LOG_AGENT: &str = "LOG_AGENT";

/// The hard limit of a run that nobody watches.
pub const HARD_LIMIT: DurationSetting = DurationSetting::from_secs(2 * 60 * 60);

/// Claude Code refreshes its token from 5 minutes before it expires: a minute more, for clocks and slow starts.
pub const REFRESH_MARGIN: DurationSetting = DurationSetting::from_secs(6 * 60);

impl Settings {
    /// Resolves what was typed against `environment`.
    ///
    /// # Errors
    /// A value that means nothing: named with its flag or variable and with what would be right.
    pub fn resolve(cli: Cli, environment: Environment, file: Option<&SettingsFile>) -> Result<Self> {
        let typed = Resolver { cli: &cli, environment, file };
        Ok(Self {
            lock_mode: typed.read(&cli::LOCK, lock_mode)?.unwrap_or(LockMode::Exclusive),
            wait: typed.read(&cli::WAIT, wait)?.unwrap_or(Wait::AtMost(Duration::from_secs(600))),
            refresh_margin: typed.read(&cli::REFRESH_MARGIN, DurationSetting::parse_os)?.unwrap_or(REFRESH_MARGIN),
            conflict_exit_code: typed.read(&cli::CONFLICT_EXIT_CODE, exit_code)?.unwrap_or(outcome::CONFLICT),
            config_dir: cli.value(&cli::CONFIG_DIR).map(|value| path(value).context("--config-dir")).transpose()?,
            lock_file: typed.read(&cli::LOCK_FILE, path)?,
            lock_helper: typed.read(&cli::LOCK_HELPER, words)?,
            claude: typed.read(&cli::CLAUDE, path)?,
            hard_limit: typed.read(&cli::TIMEOUT, DurationSetting::parse_os)?,
            idle_limit: typed.read(&cli::IDLE_TIMEOUT, DurationSetting::parse_os)?.unwrap_or(DurationSetting::Endless),
            result_grace: typed.read(&cli::RESULT_GRACE, DurationSetting::parse_os)?.unwrap_or(DurationSetting::from_secs(30)),
            task_grace: typed.read(&cli::TASK_GRACE, DurationSetting::parse_os)?.unwrap_or(DurationSetting::from_secs(600)),
            kill_grace: typed.read(&cli::KILL_AFTER, DurationSetting::parse_os)?.unwrap_or(DurationSetting::from_secs(5)),
            leftovers: typed.read(&cli::LEFTOVERS, leftovers)?,
            stdin: typed.read(&cli::STDIN, stdin)?.unwrap_or(Stdin::Inherit),
            require_result: match typed.read(&cli::REQUIRE_RESULT, switch)? {
                Some(true) if cli.value(&cli::REQUIRE_RESULT).is_some() => RequireResult::OfCommand,
                Some(true) => RequireResult::OfClaude,
                Some(false) | None => RequireResult::Off,
            },
            pty: typed.read(&cli::PTY, switch)?.unwrap_or(false),
            log: typed.read(&cli::LOG, path)?,
            redact: typed.read(&cli::REDACT, redact)?.unwrap_or(Redact::Log),
            record: typed.read(&cli::RECORD, path)?,
            label: typed.read(&cli::LABEL, text)?,
            verbosity: verbosity(&typed)?,
            log_format: typed.read(&cli::LOG_FORMAT, log_format)?.unwrap_or(LogFormat::Text),
            command: cli.command,
        })
    }
}

/// Where a setting's value comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// It was typed.
    Flag,
    /// This variable.
    Variable(&'static str),
    /// This line of the settings file.
    File(PathBuf, usize),
    /// Nobody has said anything.
    #[default]
    Default,
}

/// Every option that has a value, with that as it was written, and where that was.
pub fn explain(cli: &Cli, environment: Environment, file: Option<&SettingsFile>) -> Vec<(&'static Opt, OsString, Origin)> {
    let typed = Resolver { cli, environment, file };
    let of = |option: &'static Opt| {
        let (value, origin) = typed.raw(option).unwrap_or_else(|| (option.default.into(), Origin::Default));
        (option, value, origin)
    };
    cli::OPTIONS.into_iter().map(of).collect()
}

struct Resolver<'a> {
    cli: &'a Cli,
    environment: Environment<'a>,
    file: Option<&'a SettingsFile>,
}

impl Resolver<'_> {
    /// The value that counts, read by `parse`.
    fn read<T>(&self, option: &Opt, parse: impl Fn(&OsStr) -> Result<T>) -> Result<Option<T>> {
        let Some((value, origin)) = self.raw(option) else { return Ok(None) };
        let read = parse(&value).with_context(|| match origin {
            Origin::File(path, line) => format!("{}:{line}: {}", path.display(), option.flag),
            Origin::Variable(name) => name.to_owned(),
            Origin::Flag | Origin::Default => format!("--{}", option.flag),
        });
        read.map(Some)
    }

    /// The flag's value, else the variable's, else the file's; an empty variable counts as unset.
    fn raw(&self, option: &Opt) -> Option<(OsString, Origin)> {
        if let Some(value) = self.cli.value(option) {
            return Some((value.to_owned(), Origin::Flag));
        }
        if let Some(value) = self.variable(option.variable) {
            return Some((value, Origin::Variable(option.variable)));
        }
        // Variables that were there before claude-run.
        let older = match option.flag {
            flag if flag == cli::LOCK.flag => {
                self.variable(EXTERNAL_LOCK).map(|_| (LockMode::Exclusive.name().into(), EXTERNAL_LOCK))
            }
            flag if flag == cli::LABEL.flag => self.variable(LOG_AGENT).map(|agent| (agent, LOG_AGENT)),
            _ => None,
        };
        if let Some((value, name)) = older {
            return Some((value, Origin::Variable(name)));
        }
        let file = self.file?;
        file.value(option).map(|(value, line)| (value.clone(), Origin::File(file.path.clone(), line)))
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        (self.environment)(name).filter(|value| !value.is_empty())
    }
}

/// Reads a lock mode.
///
/// # Errors
/// It is none.
pub fn lock_mode(value: &OsStr) -> Result<LockMode> {
    one_of(value, &LockMode::ALL.map(|mode| (mode.name(), mode)))
}

fn leftovers(value: &OsStr) -> Result<Leftovers> {
    one_of(value, &[("kill", Leftovers::Kill), ("keep", Leftovers::Keep)])
}

fn stdin(value: &OsStr) -> Result<Stdin> {
    one_of(value, &[("inherit", Stdin::Inherit), ("null", Stdin::Null)])
}

fn redact(value: &OsStr) -> Result<Redact> {
    one_of(value, &[("log", Redact::Log), ("all", Redact::All), ("off", Redact::Off)])
}

fn switch(value: &OsStr) -> Result<bool> {
    let names = [
        ("on", true),
        ("off", false),
        ("1", true),
        ("0", false),
        ("true", true),
        ("false", false),
        ("yes", true),
        ("no", false),
    ];
    one_of(value, &names)
}

fn text(value: &OsStr) -> Result<String> {
    Ok(value.to_string_lossy().into_owned())
}

fn log_format(value: &OsStr) -> Result<LogFormat> {
    one_of(value, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
}

fn verbosity(typed: &Resolver) -> Result<Verbosity> {
    match (typed.cli.quiet(), typed.cli.verbose()) {
        (true, _) => return Ok(Verbosity::Quiet),
        (false, 0) => {}
        (false, 1) => return Ok(Verbosity::Info),
        (false, _) => return Ok(Verbosity::Debug),
    }
    let Some(value) = typed.variable(cli::VERBOSITY_VARIABLE) else { return Ok(Verbosity::Warnings) };
    let names = [
        ("quiet", Verbosity::Quiet),
        ("warnings", Verbosity::Warnings),
        ("info", Verbosity::Info),
        ("debug", Verbosity::Debug),
    ];
    one_of(&value, &names).context(cli::VERBOSITY_VARIABLE)
}

fn wait(value: &OsStr) -> Result<Wait> {
    Ok(match DurationSetting::parse_os(value)? {
        DurationSetting::Finite(Duration::ZERO) => Wait::No,
        DurationSetting::Finite(bound) => Wait::AtMost(bound),
        DurationSetting::Endless => Wait::Forever,
    })
}

fn exit_code(value: &OsStr) -> Result<u8> {
    value
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| anyhow!("{value:?} is no exit code; write a number from 0 to 255"))
}

fn path(value: &OsStr) -> Result<PathBuf> {
    if value.is_empty() {
        bail!("the path is empty; name one, or leave the option out");
    }
    Ok(PathBuf::from(value))
}

fn words(value: &OsStr) -> Result<Vec<String>> {
    let words = value.to_str().and_then(|text| shell_words::split(text).ok()).filter(|words| {
        // A word that starts with `-` would be claude's, as it is in the place of COMMAND.
        words.first().is_some_and(|program| !program.is_empty() && !program.starts_with('-'))
    });
    words.ok_or_else(|| anyhow!("{value:?} is no command; write a program and its arguments, and close every quote"))
}

fn one_of<T: Copy>(value: &OsStr, names: &[(&str, T)]) -> Result<T> {
    names.iter().find(|(name, _)| value == *name).map(|&(_, meaning)| meaning).ok_or_else(|| {
        let names: Vec<_> = names.iter().map(|&(name, _)| name).collect();
        anyhow!("{value:?} is none of: {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cli::Request;

    fn resolve(words: &[&str], variables: &[(&str, &str)]) -> Result<Settings> {
        let words = std::iter::once("claude-run").chain(words.iter().copied()).map(OsString::from).collect();
        let Request::Run(cli) = Cli::parse(words) else { panic!("refused") };
        let environment = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Settings::resolve(cli, &environment, None)
    }

    #[test]
    fn a_flag_goes_before_its_variable_and_that_before_the_default() -> Result<()> {
        let variables = [("CLAUDE_RUN_WAIT", "7"), ("CLAUDE_TIMEOUT", "1h")];
        let settings = resolve(&["--wait", "none"], &variables)?;
        assert_eq!(settings.wait, Wait::Forever);
        assert_eq!(settings.hard_limit, Some(DurationSetting::from_secs(3600)));
        assert_eq!(resolve(&[], &variables)?.wait, Wait::AtMost(Duration::from_secs(7)));
        assert_eq!(resolve(&[], &[])?.wait, Wait::AtMost(Duration::from_secs(600)));
        Ok(())
    }

    #[test]
    fn an_empty_variable_counts_as_unset() -> Result<()> {
        let empty: Vec<_> = cli::OPTIONS.iter().map(|option| (option.variable, "")).collect();
        let settings = resolve(&[], &empty)?;
        assert_eq!((settings.lock_mode, settings.hard_limit, settings.lock_file), (LockMode::Exclusive, None, None));
        Ok(())
    }

    #[test]
    fn an_old_external_lock_means_exclusive_but_does_not_overrule() -> Result<()> {
        assert_eq!(resolve(&[], &[("CLAUDE_EXTERNAL_LOCK", "1")])?.lock_mode, LockMode::Exclusive);
        let both = [("CLAUDE_EXTERNAL_LOCK", "1"), ("CLAUDE_RUN_LOCK", "pass-through")];
        assert_eq!(resolve(&[], &both)?.lock_mode, LockMode::PassThrough);
        Ok(())
    }

    #[test]
    fn a_refusal_names_the_flag_or_variable_and_the_value() {
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
