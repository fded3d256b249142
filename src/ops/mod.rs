//! Operations. Each writes text for people, or JSON for programs with `--json`, and exits with 0 when all is well, with 1
//! when it has found trouble. Only `mode` with a MODE, `slots` with an N, `doctor --fix` and `setup` change anything.

mod broken;
mod checks;
mod doctor;
mod events;
mod fleet;
mod help;
mod layout;
mod mode;
mod redact;
mod report;
mod settings;
mod setup;
mod slots;
mod status;
mod text;

use std::io::{BufWriter, ErrorKind, Write, stdout};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anstream::AutoStream;
use anyhow::{Context as _, Result, anyhow, bail};
use serde::Serialize;
use serde_json::Value;
use toml_edit::Value as TomlValue;

use crate::claude::auth::Invocation;
use crate::claude::config_dir::{self, ConfigDir, ForChild};
use crate::claude::program::{NAME, Program};
use crate::claude::storage::ClaudeStorage;
use crate::config::cli::{Cli, Operation, command};
use crate::config::duration::DurationSetting;
use crate::config::file::{self, SettingsFile};
use crate::config::options::SLOTS;
use crate::config::settings::{Environment, Origin, Settings, Written, explain};
use crate::config::values::Shell;
use crate::lock;
use crate::logging::{self, escaped_lines, in_locale, json_line};
use crate::outcome::Outcome;
use crate::records::{Census, RecordStore, RunRecord};
use crate::sys::stdio::StandardOutput;

/// Input of an operation: the same that a run would start from.
pub(crate) struct Context<'a> {
    pub(crate) cli: Cli,
    pub(crate) environment: Environment<'a>,
    pub(crate) file: Option<SettingsFile>,
    /// Error of a settings file that cannot be used.
    pub(crate) file_error: Option<String>,
    pub(crate) config_dir: Result<ConfigDir>,
}

impl Context<'_> {
    fn config_dir(&self) -> Result<PathBuf> {
        self.config_dir.as_ref().map(|config_dir| config_dir.path.clone()).map_err(|error| anyhow!("{error:#}"))
    }

    /// Sets `key` in the settings file, and reads that again.
    ///
    /// # Errors
    /// A variable means nothing, there can be no config dir, or the file cannot be changed: it is as it was.
    fn set(&mut self, key: &str, value: impl Into<TomlValue>) -> Result<()> {
        self.settings_without_file().context("nothing was set")?;
        let config_dir = self.config_dir()?;
        if let Some(obstacle) = config_dir::obstacle(&config_dir) {
            bail!("the config dir {} {obstacle}", config_dir.display());
        }
        let path = config_dir.join(file::NAME);
        SettingsFile::set(&path, key, value)?;
        (self.file, self.file_error) = match SettingsFile::read(&path) {
            Ok(file) => (file, None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Ok(())
    }

    /// A claude that is started in `config_dir`, one of any version.
    fn invocation(&self, config_dir: &Path) -> Invocation<'_> {
        let for_child = self.config_dir.as_ref().map_or(ForChild::Unchanged, |config_dir| config_dir.for_child);
        Invocation::new(self.environment, ConfigDir { path: config_dir.to_owned(), for_child })
    }

    /// The claude that a run would start.
    fn claude(&self) -> Result<Program> {
        Ok(Program::find(&[NAME.into()], self.given("claude").as_deref())?)
    }

    fn settings(&self) -> Result<Settings> {
        Settings::resolve(self.cli.clone(), self.environment, self.file.as_ref())
    }

    fn settings_without_file(&self) -> Result<Settings> {
        Settings::resolve(self.cli.clone(), self.environment, None)
    }

    fn written(&self) -> Vec<Written> {
        explain(&self.cli, self.environment, self.file.as_ref())
    }

    fn setting(&self, name: &str) -> Option<Written> {
        self.written().into_iter().find(|setting| setting.name == name)
    }

    /// The path that somebody has given as the setting `name`.
    fn given(&self, name: &str) -> Option<PathBuf> {
        self.setting(name).filter(|setting| setting.origin != Origin::Default).map(|setting| setting.value.into())
    }
}

/// Stdout, for text whose escape sequences only a terminal is to get.
pub(crate) fn output() -> AutoStream<Box<dyn Write>> {
    AutoStream::new(Box::new(BufWriter::new(StandardOutput)), AutoStream::choice(&stdout()))
}

/// Shows what the parser has to say.
pub(crate) fn show(text: &str) -> Result<Outcome> {
    write_own(&mut output(), &in_locale(text)).map(|_| Outcome::Shown)
}

pub(crate) fn run(operation: &Operation, context: Context, out: &mut impl Write) -> Result<Outcome> {
    if is_about_config_dir(operation)
        && let Ok(config_dir) = &context.config_dir
    {
        config_dir.missing(context.environment).iter().for_each(|warning| logging::tell(warning));
    }
    match operation {
        Operation::Status { json, watch } => status::show(&context, *json, *watch, out),
        Operation::Mode { json, set, drain } => mode::run(context, *set, *drain, *json, out),
        Operation::Slots { json, set } => slots::slots(context, *set, *json, out),
        Operation::Doctor { json, fix } => doctor::examine(&context, *fix, *json, out),
        Operation::Setup(options) => setup::run(&context, options, out),
        Operation::Events { json, since, follow } => events::show(&context, since_time(*since), *follow, *json, out),
        Operation::Redact => redact::filter(&context),
        Operation::Settings { json } => settings::show(&context, *json, out),
        // Made of the parser by the build script.
        Operation::Version => write_own(out, &command().render_version()).map(|_| Outcome::Shown),
        Operation::Help { topic } => help::show(&context, topic.as_deref(), out),
        Operation::ManPage => write_own(out, include_str!(concat!(env!("OUT_DIR"), "/claude-run.1"))).map(|_| Outcome::Shown),
        Operation::Completions { shell } => {
            let script = match shell {
                Shell::Bash => include_str!(concat!(env!("OUT_DIR"), "/bash")),
                Shell::Fish => include_str!(concat!(env!("OUT_DIR"), "/fish")),
                Shell::Zsh => include_str!(concat!(env!("OUT_DIR"), "/zsh")),
            };
            write_own(out, script).map(|_| Outcome::Shown)
        }
        Operation::Report { json, prometheus, since } => {
            let form = match (json, prometheus) {
                (true, _) => report::Form::Json,
                (_, true) => report::Form::Prometheus,
                _ => report::Form::Text,
            };
            report::show(&context, since_time(*since), form, out)
        }
    }
}

/// True for an operation that depends on what is in the config dir. `doctor` finds by itself that it is missing, `setup` has others.
fn is_about_config_dir(operation: &Operation) -> bool {
    use Operation::{Events, Mode, Redact, Report, Settings, Slots, Status};
    matches!(operation, Status { .. } | Mode { .. } | Slots { .. } | Events { .. } | Redact | Settings { .. } | Report { .. })
}

/// What stands for what could not be looked at, which is neither "none" nor "free".
const NOT_KNOWN: &str = "not known";

/// The factory that an operation looks at: one config dir, and all that runs there.
struct Factory {
    config_dir: PathBuf,
    storage: ClaudeStorage,
    records: RecordStore,
    lock_file: PathBuf,
    /// Those that count; without those of a settings file that cannot be used, or of variables.
    settings: Settings,
    /// Lock mode of a run that is started here.
    mode: Written,
    /// Mistake in the settings file or a variable: no run starts.
    mistake: Option<String>,
    /// Bound on the runs at once, likewise.
    slots: Written,
}

impl Factory {
    fn of(context: &Context) -> Result<Self> {
        let config_dir = context.config_dir()?;
        let (settings, mistake) = match context.settings() {
            Ok(settings) => (settings, context.file_error.clone()),
            Err(error) => {
                // If it is a flag that is wrong, both fail.
                let without_variables = |_| Settings::resolve(context.cli.clone(), &|_| None, None);
                (context.settings_without_file().or_else(without_variables)?, Some(format!("{error:#}")))
            }
        };
        let lock_file = context.given("lock-file").unwrap_or_else(|| config_dir.join(lock::FILE_NAME));
        let mode = context.setting("lock").context("no lock mode")?;
        let slots = context.setting(SLOTS).context("no bound")?;
        let storage = context.invocation(&config_dir).storage();
        Ok(Self { records: RecordStore::of(&config_dir), config_dir, storage, lock_file, settings, mode, slots, mistake })
    }

    /// The census, and the reason why it is empty, with the way out where the records are another user's.
    fn census_if_readable(&self) -> (Census, Option<String>) {
        let path = self.records.path();
        match self.records.census() {
            Ok(census) => (census, None),
            Err(error) => {
                let way_out = match error.kind() {
                    ErrorKind::PermissionDenied if path.exists() => {
                        let path = path.display();
                        format!(": a run of another user, as root, has made {path}; chown -R it to the config dir's owner")
                    }
                    _ => String::new(),
                };
                (Census::default(), Some(format!("cannot read {}: {error}{way_out}", self.records.runs().display())))
            }
        }
    }

    fn settings_file(&self) -> PathBuf {
        self.config_dir.join(file::NAME)
    }

    /// The value of `setting` and its origin; not known where no run starts.
    fn setting_text(&self, setting: &Written) -> String {
        if self.mistake.is_some() { NOT_KNOWN.to_owned() } else { text::setting(setting) }
    }

    fn setting_json(&self, setting: &Written) -> Value {
        let mut json = text::setting_json(setting);
        if self.mistake.is_some() {
            json["value"] = Value::Null;
        }
        json
    }

    fn mode_text(&self) -> String {
        if self.mistake.is_none() && self.mode.origin == Origin::Default {
            // scripts/agent-sdk.sh does not take a default for an answer.
            return format!("{} (default, not set: agent-sdk.sh takes no lock)", self.mode.value.to_string_lossy());
        }
        self.setting_text(&self.mode)
    }
}

/// Writes lines for people: what others have written into them does not act on the terminal.
fn write(out: &mut impl Write, text: &str) -> Result<bool> {
    write_own(out, &in_locale(&escaped_lines(text)))
}

/// Writes text in which all is ours, or was masked and escaped before. False if its reader has seen enough, as `head` has: what was found is
/// the same.
fn write_own(out: &mut impl Write, text: &str) -> Result<bool> {
    write_bytes(out, text.as_bytes())
}

fn write_bytes(out: &mut impl Write, bytes: &[u8]) -> Result<bool> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("cannot write to stdout"),
    }
}

/// Writes text for people, or a line of JSON; only what is written is made. False without a reader.
fn present<Json: Serialize>(
    out: &mut impl Write,
    json: bool,
    text: impl FnOnce() -> String,
    value: impl FnOnce() -> Json,
) -> Result<bool> {
    if json { write_own(out, &json_line(&value())) } else { write(out, &text()) }
}

/// Presents all that was found.
fn answer(
    out: &mut impl Write,
    json: bool,
    is_well: bool,
    text: impl FnOnce() -> String,
    value: impl FnOnce() -> Value,
) -> Result<Outcome> {
    present(out, json, text, value)?;
    Ok(if is_well { Outcome::Shown } else { Outcome::Trouble })
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
