//! Operations: what an operator can ask for, and the options of each.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand, ValueHint};

use super::duration::DurationSetting;
use super::values::{LockMode, Shell, Slots, Value, parser};

const EXIT_CODES: &str = "Exit codes: 0 fine, 1 trouble found, 125 own failure";

/// Value of `--drain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Longest wait.
    AtMost(DurationSetting),
    /// None; the MODE that stands behind it.
    ByDefault(Option<LockMode>),
}

impl Drain {
    /// As long as a run may take by default, and a little.
    pub const DEFAULT: DurationSetting = DurationSetting::from_secs(125 * 60);
}

impl Value for Drain {
    fn read(value: &OsStr) -> Result<Self> {
        Ok(match LockMode::read(value) {
            Ok(mode) => Self::ByDefault(Some(mode)),
            Err(_) if value.is_empty() => Self::ByDefault(None),
            Err(_) => Self::AtMost(DurationSetting::read(value)?),
        })
    }
}

/// An operation and its options.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Operation {
    /// Shows who holds the session lock, who waits for it, and how things stand
    ///
    /// In full: the holders, the waiters in their order, the runs without the lock, the refresh locks, the token's expiry and the
    /// last runs.
    #[command(after_help = EXIT_CODES)]
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Again each second, until q or Ctrl-C
        #[arg(long, short)]
        watch: bool,
    },
    /// Shows the lock mode, or sets it for the whole factory
    ///
    /// Shows where it is set, and which live runs follow another one; or sets it in claude-run.toml in the config dir.
    #[command(after_help = EXIT_CODES)]
    Mode {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// exclusive, refresh or pass-through
        #[arg(value_name = "MODE", value_parser = parser::<LockMode>())]
        set: Option<LockMode>,
        /// Wait until all live runs follow the new mode, at most DUR; 0 or none: for ever [default: 125m]
        #[arg(long, value_name = "DUR", allow_negative_numbers = true, num_args = 0..=1, default_missing_value = "", value_parser = parser::<Drain>())]
        drain: Option<Drain>,
    },
    /// Shows how many runs may be at once, or sets that for the whole factory
    ///
    /// Shows where the bound is set, which slots are in use and who waits for one; or sets it in claude-run.toml in the config
    /// dir. That counts at once, for those who wait, too.
    #[command(after_help = EXIT_CODES)]
    Slots {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// 1 to 1000, or none
        #[arg(value_name = "N", value_parser = parser::<Slots>())]
        set: Option<Slots>,
    },
    /// Prints every setting, its value and its origin
    ///
    /// The origin is a flag, a variable, a line of the settings file, or the default.
    #[command(after_help = EXIT_CODES)]
    Settings {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Sums up finished runs: outcomes, waits, holds, the last day, the time lost to the lock, and the cost
    #[command(after_help = EXIT_CODES)]
    Report {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// As gauges for node_exporter's textfile collector
        #[arg(long, conflicts_with = "json")]
        prometheus: bool,
        /// Only runs begun within DUR (90m, 12h, 7d) [default: all there are]
        #[arg(long, value_name = "DUR", allow_negative_numbers = true, value_parser = parser::<DurationSetting>())]
        since: Option<DurationSetting>,
    },
    /// Checks everything that a shared config dir needs
    ///
    /// Each finding comes with its consequence and with what to do.
    #[command(after_help = "Exit codes: 0 no failure (there may be warnings), 1 a failure, 125 own failure")]
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Remove refresh locks of claude's whose owner is proven dead, or that are stale by their own protocol
        #[arg(long)]
        fix: bool,
    },
    /// Makes a shared config dir, or moves ~/.claude there
    ///
    /// A link stays behind. Nothing is lost, whenever it is killed: the next call goes on.
    #[command(
        after_help = "Exit codes: 0 done, or nothing to do, or nothing done without --yes; 1 refused, or something is left to do; 125 own failure"
    )]
    Setup(SetupOptions),
    /// Reads the token refreshes in Claude Code's own telemetry: is all well with its locks?
    #[command(after_help = EXIT_CODES)]
    Events {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Only events within DUR (90m, 12h, 7d) [default: all there are]
        #[arg(long, value_name = "DUR", allow_negative_numbers = true, value_parser = parser::<DurationSetting>())]
        since: Option<DurationSetting>,
        /// Each event as it comes, until Ctrl-C
        #[arg(long, short)]
        follow: bool,
    },
    /// Masks the secrets in what it reads on stdin, as in the log: claude-run redact <FILE
    ///
    /// Each line as it comes, to stdout; with the redact-names and redact-patterns of claude-run.toml.
    #[command(after_help = "Exit codes: 0 done, 125 own failure")]
    Redact,
    /// Prints the script by which a shell completes claude-run's command lines
    ///
    /// For bash: `source <(claude-run completions bash)`
    Completions {
        /// bash, fish or zsh
        #[arg(value_parser = parser::<Shell>())]
        shell: Shell,
    },
    /// Prints a chapter of the guide, or the help of an operation
    ///
    /// Without TOPIC: what --help prints, and the topics.
    Help {
        /// A topic of the guide, or an operation
        topic: Option<String>,
    },
    /// Prints the version, as --version does
    #[command(hide = true)]
    Version,
    /// Prints the man page, claude-run(1)
    ///
    /// To read it: `claude-run man-page | man -l -`
    ManPage,
}

/// Makes a shared config dir, or moves ~/.claude there
///
/// A link stays behind. Nothing is lost, whenever it is killed: the next call goes on.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct SetupOptions {
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Dir to share; the config dir is `config` in it [env: CLAUDE_SHARED_DIR] [default: /var/lib/disinto/claude-shared]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub shared_dir: Option<PathBuf>,
    /// Write CLAUDE_SHARED_DIR and CLAUDE_CONFIG_DIR into FILE; its other lines stay
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub env_file: Option<PathBuf>,
    /// Home whose .claude it is [default: HOME]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub home: Option<PathBuf>,
    /// Longest wait for the session lock and for live runs, before anything is moved [default: 10m]
    #[arg(long, value_name = "DUR", allow_negative_numbers = true)]
    pub wait: Option<OsString>,
    /// Only say what would be done
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Do not ask before anything is moved
    #[arg(long, short)]
    pub yes: bool,
}
