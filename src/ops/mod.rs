//! What operators ask for. Each operation writes text for people, or JSON for programs where `--json` asks for it, and ends
//! with 0 when all is well, with 1 when it has found trouble. But for `mode` with a MODE, `doctor --fix` and
//! `setup`, none changes anything.

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

use anyhow::{Context as _, Result, anyhow};

use crate::claude::config_dir::ConfigDir;
use crate::config::cli::{Cli, Operation};
use crate::config::file::SettingsFile;
use crate::config::settings::{Environment, Origin, Settings, explain};
use crate::lock;
use crate::outcome::Outcome;
use crate::records::RecordStore;

/// What an operation is asked in: the same that a run would start from.
pub struct Context<'a> {
    /// What was typed.
    pub cli: Cli,
    /// The environment.
    pub environment: Environment<'a>,
    /// The settings file, if there is one.
    pub file: Option<SettingsFile>,
    /// Why there is none, though there is a file.
    pub file_error: Option<String>,
    /// The config dir, if there is one.
    pub config_dir: Result<ConfigDir>,
}

impl Context<'_> {
    fn config_dir(&self) -> Result<PathBuf> {
        self.config_dir.as_ref().map(|config_dir| config_dir.path.clone()).map_err(|error| anyhow!("{error:#}"))
    }
}

/// Does what the operator asks for.
///
/// # Errors
/// What was typed, the environment or the settings file is wrong; a file cannot be read or written; or `out` cannot.
pub fn run(operation: &Operation, context: Context, out: &mut impl Write) -> Result<Outcome> {
    let outcome = match operation {
        Operation::Status { json, watch } => status::show(&context, *json, *watch, out),
        Operation::Mode { json, set, drain } => mode::run(context, *set, *drain, *json, out),
        Operation::Doctor { json, fix } => doctor::examine(&context, *fix, *json, out),
        Operation::Setup { json, shared_dir, env_file, home, dry_run, yes, wait: _ } => {
            let wishes = setup::SetupOptions {
                shared_dir: shared_dir.as_deref().map(Path::new),
                env_file: env_file.as_deref().map(Path::new),
                home: home.as_deref().map(Path::new),
                dry_run: *dry_run,
                yes: *yes,
            };
            setup::run(&context, &wishes, *json, out)
        }
        Operation::Events { json, since, follow } => events::show_all(&context, *since, *follow, *json, out),
        Operation::Settings { json } => settings::show(&context, *json, out),
        Operation::Completions { shell } => write(out, documents::completions(shell)).map(|()| Outcome::Shown),
        Operation::ManPage => write(out, documents::MAN_PAGE).map(|()| Outcome::Shown),
        Operation::Report { json, since } => report::show(&context, *since, *json, out),
    };
    match outcome {
        // Whoever read it has seen enough, as `head` has.
        Err(error) if error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == ErrorKind::BrokenPipe) => {
            Ok(Outcome::Shown)
        }
        outcome => outcome,
    }
}

/// Where the factory is, for those operations that look at it.
struct Place {
    config_dir: PathBuf,
    records: RecordStore,
    lock_file: PathBuf,
    settings: Settings,
    /// The lock mode that a run would have here, as it is written, and where.
    mode: (String, Origin),
}

impl Place {
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

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}
