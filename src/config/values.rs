//! Values of settings: their types, and the readers that turn what was written into them. A refusal quotes the value and says
//! what would be right.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser};

use super::duration::DurationSetting;

/// Words, and what they mean.
pub type Words = &'static [(&'static str, &'static str)];

/// A value of a setting, read alike from a flag, a variable and the settings file.
pub trait Value: Sized {
    /// Words that it can be, if there are only some.
    const WORDS: Words = &[];

    /// Reads the bytes as they were written, even if they are not UTF-8.
    fn read(value: &OsStr) -> Result<Self>;

    /// The value of an option that nobody has given one.
    fn read_default(default: &str) -> Result<Self> {
        Self::read(default.as_ref())
    }
}

/// Of an option whose default depends on something, and is told in words.
impl<T: Value> Value for Option<T> {
    const WORDS: Words = T::WORDS;

    fn read(value: &OsStr) -> Result<Self> {
        T::read(value).map(Some)
    }

    fn read_default(_: &str) -> Result<Self> {
        Ok(None)
    }
}

macro_rules! words {
    ($($(#[doc = $about:literal])+ $name:ident { $($variant:ident = $word:literal: $meaning:literal,)+ })+) => {
        $($(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $(#[doc = $meaning] $variant,)+
        }

        impl $name {
            /// Name in settings and records.
            pub fn name(self) -> &'static str {
                Self::WORDS[self as usize].0
            }
        }

        impl Value for $name {
            const WORDS: Words = &[$(($word, $meaning)),+];

            fn read(value: &OsStr) -> Result<Self> {
                match value.to_str() {
                    $(Some($word) => Ok(Self::$variant),)+
                    _ => Err(unknown_word::<Self>(value)),
                }
            }
        })+
    };
}

words! {
    /// When the session lock is held.
    LockMode {
        Exclusive = "exclusive": "For the whole run",
        Refresh = "refresh": "Only while a refresh of claude's token is due",
        PassThrough = "pass-through": "Never",
    }
    /// A shell that there are completions for.
    Shell {
        Bash = "bash": "Bourne-again shell",
        Fish = "fish": "Friendly interactive shell",
        Zsh = "zsh": "Z shell",
    }
    /// Treatment of descendants that outlive the child.
    Leftovers {
        Kill = "kill": "TERM, kill grace, KILL",
        Keep = "keep": "They stay",
    }
    /// Source of the child's standard input.
    Stdin {
        Inherit = "inherit": "Our own stdin",
        Null = "null": "/dev/null",
    }
    /// Places where secrets are masked.
    Redact {
        Log = "log": "The log",
        All = "all": "The log, and the output that is passed on to our own stdout and stderr",
        Off = "off": "Nowhere",
    }
    /// Amount of claude-run's own messages.
    Verbosity {
        Quiet = "quiet": "Errors alone",
        Warnings = "warnings": "News for an operator: waiting, limits, leftovers, odd surroundings; the default",
        Info = "info": "Each step of a run",
        Debug = "debug": "Each signal and process, too",
    }
    /// Format of claude-run's own messages.
    LogFormat {
        Text = "text": "`claude-run: message key=value`",
        Json = "json": "One JSON object a line, with a time",
    }
}

/// Of a run that nobody attends.
impl Default for Leftovers {
    fn default() -> Self {
        Self::Kill
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
    /// Bound of the wait; where nobody wants to wait, `at_once`.
    pub fn limit(self, at_once: Duration) -> Option<Duration> {
        match self {
            Self::No => Some(at_once),
            Self::AtMost(limit) => Some(limit),
            Self::Forever => None,
        }
    }
}

/// Bound on the runs at once in one config dir.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// No bound beyond that of the lock mode.
    Unlimited,
    /// So many.
    AtMost(u16),
}

/// Largest bound: the first of those who wait has a thread for each slot.
pub const MOST_SLOTS: u16 = 1_000;

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

impl Value for DurationSetting {
    fn read(value: &OsStr) -> Result<Self> {
        Self::parse(&value.to_string_lossy())
    }
}

impl Value for Wait {
    fn read(value: &OsStr) -> Result<Self> {
        Ok(match DurationSetting::read(value)? {
            DurationSetting::Finite(Duration::ZERO) => Self::No,
            DurationSetting::Finite(bound) => Self::AtMost(bound),
            DurationSetting::Endless => Self::Forever,
        })
    }
}

impl Value for Slots {
    fn read(value: &OsStr) -> Result<Self> {
        let number = value.to_str().and_then(|text| text.parse().ok()).filter(|number| (1..=MOST_SLOTS).contains(number));
        match number {
            Some(number) => Ok(Self::AtMost(number)),
            None if value == "none" => Ok(Self::Unlimited),
            None => bail!("{value:?} is no number of slots; write 1 to {MOST_SLOTS}, or none"),
        }
    }
}

impl Value for bool {
    const WORDS: Words = &[("on", ""), ("off", "")];

    fn read(value: &OsStr) -> Result<Self> {
        match value.to_str() {
            Some("on" | "1" | "true" | "yes") => Ok(true),
            Some("off" | "0" | "false" | "no") => Ok(false),
            _ => Err(unknown_word::<Self>(value)),
        }
    }
}

impl Value for RequireResult {
    const WORDS: Words = bool::WORDS;

    fn read(value: &OsStr) -> Result<Self> {
        bool::read(value).map(|on| if on { Self::OfCommand } else { Self::Off })
    }
}

/// An exit code.
impl Value for u8 {
    fn read(value: &OsStr) -> Result<Self> {
        let code = value.to_str().and_then(|text| text.parse().ok());
        code.ok_or_else(|| anyhow!("{value:?} is no exit code; write a number from 0 to 255"))
    }
}

impl Value for PathBuf {
    fn read(value: &OsStr) -> Result<Self> {
        if value.is_empty() {
            bail!("the path is empty; name one, or leave the option out");
        }
        Ok(Self::from(value))
    }
}

impl Value for String {
    fn read(value: &OsStr) -> Result<Self> {
        Ok(value.to_string_lossy().into_owned())
    }
}

/// The words of a command.
impl Value for Vec<String> {
    fn read(value: &OsStr) -> Result<Self> {
        let words = value.to_str().and_then(|text| shell_words::split(text).ok()).filter(|words| {
            // In the place of COMMAND, a word that starts with `-` would be an argument of claude's.
            words.first().is_some_and(|program| !program.is_empty() && !program.starts_with('-'))
        });
        words.ok_or_else(|| anyhow!("it is no command; write a program and its arguments, and close every quote"))
    }
}

fn unknown_word<T: Value>(value: &OsStr) -> anyhow::Error {
    let words: Vec<_> = T::WORDS.iter().map(|(word, _)| *word).collect();
    let similar = nearest(&value.to_string_lossy(), words.iter().copied(), 0.8);
    let similar = similar.map(|similar| format!("; did you mean {similar}?")).unwrap_or_default();
    anyhow!("{value:?} is none of: {}{similar}", words.join(", "))
}

/// The name that is most like `word`, if it is more like it than `bound` of 1.
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>, bound: f64) -> Option<&'a str> {
    let likeness = |name: &str| strsim::jaro(name, word);
    names.max_by(|one, other| likeness(one).total_cmp(&likeness(other))).filter(|name| likeness(name) > bound)
}

/// clap's parser of the values of an operation's option.
pub(super) fn parser<T: Value + Clone + Send + Sync + 'static>() -> ValueParser {
    ValueParser::new(OsStringValueParser::new().try_map(|value: OsString| T::read(&value)))
}
