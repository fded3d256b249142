//! Values of settings: their types, and the readers that turn what was written into them. A refusal quotes the value and says
//! what would be right.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use clap::builder::{EnumValueParser, OsStringValueParser, TypedValueParser, ValueParser, ValueParserFactory};

use super::duration::DurationSetting;

/// When the session lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LockMode {
    /// For the whole run.
    Exclusive,
    /// Only while a refresh of claude's token is due.
    Refresh,
    /// Never.
    PassThrough,
}

impl LockMode {
    /// Name in settings and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Refresh => "refresh",
            Self::PassThrough => "pass-through",
        }
    }
}

/// Longest wait for the session lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Do not wait.
    No,
    /// Give up after this time.
    AtMost(Duration),
    /// Never give up.
    Forever,
}

impl Wait {
    pub(super) fn read(value: &OsStr) -> Result<Self> {
        Ok(match DurationSetting::read(value)? {
            DurationSetting::Finite(Duration::ZERO) => Self::No,
            DurationSetting::Finite(bound) => Self::AtMost(bound),
            DurationSetting::Endless => Self::Forever,
        })
    }
}

impl ValueParserFactory for DurationSetting {
    type Parser = ValueParser;

    fn value_parser() -> ValueParser {
        read_by(Self::read)
    }
}

/// Treatment of descendants that outlive the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Leftovers {
    /// TERM, kill grace, KILL.
    Kill,
    /// They stay.
    Keep,
}

/// Source of the child's standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stdin {
    /// Our own stdin.
    Inherit,
    /// /dev/null.
    Null,
}

/// Programs that have to print a successful result frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequireResult {
    /// No program.
    Off,
    /// claude, and programs with an argument that asks for its frames: set once for all runs, it does not concern others.
    OfClaude,
    /// Any COMMAND: the flag was typed for this one.
    OfCommand,
}

impl RequireResult {
    pub(super) fn parser() -> impl TypedValueParser<Value = Self> {
        switch().map(|on| if on { Self::OfCommand } else { Self::Off })
    }
}

/// Places where secrets are masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Redact {
    /// The log.
    Log,
    /// The log, and the output that is passed on to our own stdout and stderr.
    All,
    /// Nowhere.
    Off,
}

/// Amount of claude-run's own messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verbosity {
    /// Errors alone.
    Quiet,
    /// News for an operator: waiting, limits, leftovers, odd surroundings. The default.
    Warnings,
    /// Each step of a run.
    Info,
    /// Each signal and process, too.
    Debug,
}

/// Format of claude-run's own messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `claude-run: message key=value`
    Text,
    /// One JSON object a line, with a time.
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    #[value(aliases = ["1", "true", "yes"])]
    On,
    #[value(aliases = ["0", "false", "no"])]
    Off,
}

/// Reader of `on` or `off`.
pub(super) fn switch() -> impl TypedValueParser<Value = bool> {
    EnumValueParser::<Switch>::new().map(|switch| switch == Switch::On)
}

/// Makes a parser of `read`. It gets the bytes as they were written, even if they are not UTF-8.
pub(super) fn read_by<T: Clone + Send + Sync + 'static>(read: fn(&OsStr) -> Result<T>) -> ValueParser {
    ValueParser::new(OsStringValueParser::new().try_map(move |value: OsString| read(&value)))
}

pub(super) fn exit_code(value: &OsStr) -> Result<u8> {
    let code = value.to_str().and_then(|text| text.parse().ok());
    code.ok_or_else(|| anyhow!("{value:?} is no exit code; write a number from 0 to 255"))
}

pub(super) fn path(value: &OsStr) -> Result<PathBuf> {
    if value.is_empty() {
        bail!("the path is empty; name one, or leave the option out");
    }
    Ok(PathBuf::from(value))
}

pub(super) fn text(value: &OsStr) -> Result<String> {
    Ok(value.to_string_lossy().into_owned())
}

pub(super) fn words(value: &OsStr) -> Result<Vec<String>> {
    let words = value.to_str().and_then(|text| shell_words::split(text).ok()).filter(|words| {
        // In the place of COMMAND, a word that starts with `-` would be an argument of claude's.
        words.first().is_some_and(|program| !program.is_empty() && !program.starts_with('-'))
    });
    words.ok_or_else(|| anyhow!("{value:?} is no command; write a program and its arguments, and close every quote"))
}
