//! Operator commands. Each writes text for people, or JSON for programs with `--json`, and exits with 0 when all is well, with 1
//! when it has found trouble. Only `mode` with a MODE, `doctor --fix` and `setup` change anything.

mod doctor;
mod documents;
mod events;
mod mode;
mod report;
mod settings;
mod setup;
mod status;
mod text;

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow};
use serde::Serialize;

use crate::claude::config_dir::ConfigDir;
use crate::config::cli::{Cli, Operation};
use crate::config::duration::DurationSetting;
use crate::config::file::SettingsFile;
use crate::config::settings::{Environment, Origin, Settings, explain};
use crate::lock;
use crate::outcome::Outcome;
use crate::records::{RecordStore, RunRecord};

/// Input of an operation: the same that a run would start from.
pub struct Context<'a> {
    /// Parsed command line.
    pub cli: Cli,
    /// Environment.
    pub environment: Environment<'a>,
    /// Settings file, if there is one.
    pub file: Option<SettingsFile>,
    /// Error of a settings file that cannot be used.
    pub file_error: Option<String>,
    /// Config dir, if it can be resolved.
    pub config_dir: Result<ConfigDir>,
}

impl Context<'_> {
    fn config_dir(&self) -> Result<PathBuf> {
        self.config_dir.as_ref().map(|config_dir| config_dir.path.clone()).map_err(|error| anyhow!("{error:#}"))
    }
}

/// Runs an operation.
///
/// # Errors
/// Command line, environment or settings file are wrong; a file cannot be read or written, or `out` cannot be written.
pub fn run(operation: &Operation, context: Context, out: &mut impl Write) -> Result<Outcome> {
    let outcome = match operation {
        Operation::Status { json, watch } => status::show(&context, *json, *watch, out),
        Operation::Mode { json, set, drain } => mode::run(context, *set, *drain, *json, out),
        Operation::Doctor { json, fix } => doctor::examine(&context, *fix, *json, out),
        Operation::Setup(options) => setup::run(&context, options, out),
        Operation::Events { json, since, follow } => {
            let options = events::EventsOptions { since: *since, follow: *follow, json: *json };
            events::show(&context, options, out)
        }
        Operation::Settings { json } => settings::show(&context, *json, out),
        Operation::Completions { shell } => write(out, documents::completions(*shell)).map(|()| Outcome::Shown),
        Operation::ManPage => write(out, documents::MAN_PAGE).map(|()| Outcome::Shown),
        Operation::Report { json, since } => report::show(&context, *since, *json, out),
    };
    match outcome {
        // The reader has seen enough, as `head` has.
        Err(error) if error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == ErrorKind::BrokenPipe) => {
            Ok(Outcome::Shown)
        }
        outcome => outcome,
    }
}

/// The factory that an operation looks at: one config dir, and all that runs there.
struct Factory {
    config_dir: PathBuf,
    records: RecordStore,
    lock_file: PathBuf,
    settings: Settings,
    /// Lock mode of a run that is started here, as written, and its origin.
    mode: (String, Origin),
}

impl Factory {
    fn of(context: &Context) -> Result<Self> {
        let config_dir = context.config_dir()?;
        let all = explain(&context.cli, context.environment, context.file.as_ref());
        let mode = all.into_iter().find(|setting| setting.name == "lock");
        let mode = mode.map(|mode| (mode.value.to_string_lossy().into_owned(), mode.origin)).unwrap_or_default();
        let settings = Settings::resolve(context.cli.clone(), context.environment, context.file.as_ref())?;
        let lock_file = settings.lock_file.clone().unwrap_or_else(|| config_dir.join(lock::FILE_NAME));
        Ok(Self { records: RecordStore::of(&config_dir), config_dir, lock_file, settings, mode })
    }
}

fn write(out: &mut impl Write, text: &str) -> Result<()> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to stdout")
}

/// Writes one line of JSON.
fn write_json(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    write(out, &(serde_json::to_string(value).context("cannot make JSON")? + "\n"))
}

/// Time that `--since DUR` goes back to.
fn since_time(since: Option<DurationSetting>) -> Option<SystemTime> {
    SystemTime::now().checked_sub(since.and_then(DurationSetting::as_limit)?)
}

/// Waits until `find` finds no run, and gives those that are left at the deadline.
fn wait_until_none(
    records: &RecordStore,
    deadline: Option<Instant>,
    find: impl Fn() -> Result<Vec<RunRecord>>,
) -> Result<Vec<RunRecord>> {
    loop {
        let (runs, left) = (find()?, time_left(deadline));
        let (Some(first), false) = (runs.first(), left.is_zero()) else { return Ok(runs) };
        records.wait_for_end(&first.run, left);
    }
}

fn time_left(deadline: Option<Instant>) -> Duration {
    deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()))
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}
