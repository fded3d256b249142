//! `claude-run setup`: makes a shared config dir, or moves the one of this home there, and leaves a link behind. At every moment
//! there is a valid `~/.claude`; nothing is removed before it is elsewhere, on the disk and compared; and killed anywhere, the
//! next call goes on where it was. It asks before it moves anything, and refuses while anybody works there.

mod environment;
mod step;
mod survey;
mod tree;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use self::survey::{Places, SetupPlan};
use super::{Context, Place, text, write};
use crate::claude::refresh_locks::{RefreshLock, Standing};
use crate::config::settings::{LockMode, Wait, after};
use crate::events::EventQueue;
use crate::lock::{self, Acquisition, AncestorRuns, LockGuard, LockRequest};
use crate::logging;
use crate::object::Object;
use crate::outcome::Outcome;
use crate::records::{RecordStore, RunInfo, RunRecorder};
use crate::run_id::RunId;
use crate::sys::signal::FORWARDED;
use crate::sys::signal_pipe::SignalHandlers;

/// What was typed.
pub(super) struct SetupOptions<'a> {
    /// `--shared-dir`
    pub(super) shared_dir: Option<&'a Path>,
    /// `--env-file`
    pub(super) env_file: Option<&'a Path>,
    /// `--home`
    pub(super) home: Option<&'a Path>,
    /// `--dry-run`
    pub(super) dry_run: bool,
    /// `--yes`
    pub(super) yes: bool,
}

const SHARED_DIR: &str = "CLAUDE_SHARED_DIR";
const DEFAULT_SHARED_DIR: &str = "/var/lib/disinto/claude-shared";

/// Does what is needed, or says what would be.
pub(super) fn run(context: &Context, wishes: &SetupOptions, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let variable = |name: &str| (context.environment)(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = wishes.home.map(Path::to_owned).or_else(|| variable("HOME")).context("HOME is not set; name it with --home")?;
    let shared = wishes.shared_dir.map(Path::to_owned).or_else(|| variable(SHARED_DIR)).unwrap_or(DEFAULT_SHARED_DIR.into());
    let places = Places::new(&home, &shared)?;
    let mut told = Told { json, steps: Vec::new(), notes: Vec::new() };

    let survey = SetupPlan::of(&places);
    let outcome = if !survey.refusals.is_empty() {
        told.notes.extend(survey.refusals);
        Outcome::Trouble
    } else if wishes.dry_run {
        told.steps.extend(survey.steps.iter().map(|step| format!("would {step}")));
        Outcome::Shown
    } else if survey.moves_content && !wishes.yes && !agreed(&places, json)? {
        told.notes.push(format!(
            "{} has content, and would be moved to {}; nothing was changed; --yes does it, --dry-run shows how",
            places.link.display(),
            places.config_dir.display()
        ));
        return told.show(&places, Outcome::Shown, out);
    } else {
        let guard = match survey.moves_content.then(|| keep_others_out(context, &places)).transpose()? {
            Some(Admission::Refused(why)) => {
                told.notes.push(format!("{why}; nothing was changed"));
                return told.show(&places, Outcome::Trouble, out);
            }
            Some(Admission::EndedBy(signal)) => return Ok(Outcome::EndedWaiting(signal)),
            Some(Admission::Granted(holding)) => Some(holding),
            None => None,
        };
        let survey = SetupPlan::of(&places); // nobody changes it any more
        if !survey.refusals.is_empty() {
            told.notes.extend(survey.refusals);
            return told.show(&places, Outcome::Trouble, out);
        }
        for step in &survey.steps {
            step.take()
                .with_context(|| format!("cannot {step}; what was done so far stands, and setup goes on when called again"))?;
            told.steps.push(step.to_string());
        }
        drop(guard);
        told.notes.extend(survey.troubles.iter().cloned());
        if survey.troubles.is_empty() { Outcome::Shown } else { Outcome::Trouble }
    };
    if let (Outcome::Shown, Some(file)) = (outcome, wishes.env_file) {
        let changed = environment::write(file, &places, wishes.dry_run)?;
        told.steps.extend(changed.then(|| {
            let verb = if wishes.dry_run { "would write" } else { "write" };
            format!("{verb} {SHARED_DIR} and CLAUDE_CONFIG_DIR into {}", file.display())
        }));
    }
    told.show(&places, outcome, out)
}

/// Asks on a terminal; elsewhere nobody can say yes.
fn agreed(places: &Places, json: bool) -> Result<bool> {
    if json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    logging::ask(&format!("move {} to {}, and leave a link? [Y/n] ", places.link.display(), places.config_dir.display()));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(!answer.is_empty() && matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes"))
}

/// Whether something may be moved.
enum Admission {
    /// As long as this is held, nobody else works there who keeps to the lock.
    Granted(LockGuard),
    Refused(String),
    EndedBy(Signal),
}

/// Takes the session lock of the dir that is to be moved, once no run is live there and no refresh under way.
fn keep_others_out(context: &Context, places: &Places) -> Result<Admission> {
    let settings = Place::of(context)?.settings;
    let (began, run) = (Instant::now(), RunId::take());
    logging::init(settings.verbosity, settings.log_format, None, run);
    let lock = LockRequest {
        path: places.link.join(lock::FILE_NAME),
        refresh_only: false,
        refreshes: None,
        helper: None, // a home is this host's own, or on a file system whose lock this is
        wait: settings.wait,
        conflict_exit_code: settings.conflict_exit_code,
        above: AncestorRuns::default(),
        ignored: nix::sys::signal::SigSet::empty(),
    };
    let mut journal = RunRecorder::open(RunInfo {
        run,
        label: None,
        program: "claude-run setup".into(),
        lock_mode: LockMode::Exclusive,
        config_dir: None,
        lock_file: None,
        record_file: None,
    });
    let mut events = EventQueue::open().context("cannot make a pipe")?;
    let handlers = SignalHandlers::install(FORWARDED, &events.signal_pipe()).context("cannot install signal handlers")?;
    let holding = match lock::take(&lock, &mut journal, &mut events)? {
        Acquisition::Held(holding) => holding,
        Acquisition::Interrupted(signal) => return Ok(Admission::EndedBy(signal)),
        _ => return Ok(Admission::Refused(format!("{} is in use, and --wait waits longer", places.link.display()))),
    };
    drop(handlers); // from here on a signal ends us as it would by default: the next call goes on
    let deadline = match settings.wait {
        Wait::No => Some(began),
        Wait::AtMost(bound) => after(began, Some(bound)),
        Wait::Forever => None,
    };
    let records = RecordStore::of(&places.link);
    loop {
        let census = records.census().with_context(|| super::cannot_read(&records.runs()))?;
        let live: Vec<_> = census.live.into_iter().chain(census.elsewhere).collect();
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        let Some(first) = live.first() else { break };
        if left.is_zero() {
            let now = SystemTime::now();
            let names: Vec<_> = live.iter().map(|record| text::run(record, now)).collect();
            let verb = if live.len() == 1 { "is" } else { "are" };
            return Ok(Admission::Refused(format!(
                "{} {verb} live there: {}",
                text::count(live.len(), "run"),
                names.join("; ")
            )));
        }
        records.wait_for_end(&first.run, left.min(Duration::from_secs(5)));
    }
    for dir in [&places.link, &places.config_dir] {
        if let Some(lock) = RefreshLock::of(dir).iter().find(|lock| lock.standing(SystemTime::now()) == Standing::Live) {
            return Ok(Admission::Refused(format!("{} is held: a refresh is under way", lock.path.display())));
        }
    }
    Ok(Admission::Granted(holding))
}

/// What was done, or would be.
struct Told {
    json: bool,
    steps: Vec<String>,
    notes: Vec<String>,
}

impl Told {
    fn show(self, places: &Places, outcome: Outcome, out: &mut impl Write) -> Result<Outcome> {
        let config_dir = places.config_dir.display();
        if self.json {
            let mut object = Object::default();
            object
                .add("config_dir", config_dir.to_string())
                .add("done", outcome == Outcome::Shown && self.notes.is_empty())
                .add("steps", &self.steps)
                .add("notes", &self.notes);
            write(out, &format!("{}\n", object.into_text()))?;
            return Ok(outcome);
        }
        let mut lines: Vec<String> = self.steps;
        lines.extend(self.notes.iter().cloned());
        if lines.is_empty() {
            lines.push(format!("nothing to do: {} is {config_dir} already", places.link.display()));
        }
        if outcome == Outcome::Shown && self.notes.is_empty() {
            let shared = places.shared.display();
            lines.push(format!(
                "\nfor the shell:   export CLAUDE_CONFIG_DIR={}",
                environment::quoted(&places.config_dir.to_string_lossy())
            ));
            lines.push(format!("for compose:     volumes: [\"{shared}:{shared}\"]"));
            lines.push(format!("for Nomad:       volumes = [\"{shared}:{shared}\"]"));
        }
        write(out, &(lines.join("\n") + "\n"))?;
        Ok(outcome)
    }
}
