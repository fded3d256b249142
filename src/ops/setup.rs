//! `claude-run setup`: makes a shared config dir, or moves that of this home there, and leaves a link behind. At every moment
//! there is a valid `~/.claude`; nothing is removed before its copy is compared and on the disk; and when killed anywhere, the next
//! call goes on from there. It asks before it moves anything, and refuses while a run is live there.

mod environment;
mod plan;
mod step;
mod tree;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde::Serialize;

use self::plan::{SetupPaths, SetupPlan};
use super::{Context, Factory, text, write, write_json};
use crate::claude::refresh_locks::{RefreshLock, Standing};
use crate::config::settings::{LockMode, Wait, after};
use crate::events::EventQueue;
use crate::lock::{self, Acquisition, AncestorRuns, LockGuard, LockRequest};
use crate::logging;
use crate::outcome::Outcome;
use crate::records::{RecordStore, RunInfo, RunRecorder};
use crate::run_id::RunId;
use crate::sys::signal::FORWARDED;
use crate::sys::signal_pipe::SignalHandlers;

/// Options of `setup`.
pub(super) struct SetupOptions<'a> {
    pub(super) shared_dir: Option<&'a Path>,
    pub(super) env_file: Option<&'a Path>,
    pub(super) home: Option<&'a Path>,
    pub(super) dry_run: bool,
    pub(super) yes: bool,
    pub(super) json: bool,
}

const SHARED_DIR: &str = "CLAUDE_SHARED_DIR";
const DEFAULT_SHARED_DIR: &str = "/var/lib/disinto/claude-shared";

/// Steps that were taken, or would be, and remarks, in the form that JSON has them.
#[derive(Serialize)]
struct SetupReport {
    config_dir: String,
    /// True if nothing is left to do.
    done: bool,
    steps: Vec<String>,
    notes: Vec<String>,
}

/// Sets up the shared config dir, or says how.
pub(super) fn run(context: &Context, options: &SetupOptions, out: &mut impl Write) -> Result<Outcome> {
    let variable = |name: &str| (context.environment)(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = options.home.map(Path::to_owned).or_else(|| variable("HOME")).context("HOME is not set; name it with --home")?;
    let shared = options.shared_dir.map(Path::to_owned).or_else(|| variable(SHARED_DIR)).unwrap_or(DEFAULT_SHARED_DIR.into());
    let paths = SetupPaths::new(&home, &shared)?;
    let config_dir = paths.config_dir.to_string_lossy().into_owned();
    let mut report = SetupReport { config_dir, done: false, steps: Vec::new(), notes: Vec::new() };
    let outcome = carry_out(context, options, &paths, &mut report)?;
    if let Outcome::EndedWaiting(_) = outcome {
        return Ok(outcome);
    }
    report.done = outcome == Outcome::Shown && report.notes.is_empty();
    if let (true, Some(file)) = (report.done, options.env_file) {
        let changed = environment::write(file, &paths, options.dry_run)?;
        report.steps.extend(changed.then(|| {
            let verb = if options.dry_run { "would write" } else { "write" };
            format!("{verb} {SHARED_DIR} and CLAUDE_CONFIG_DIR into {}", file.display())
        }));
    }
    if options.json {
        write_json(out, &report)?
    } else {
        write(out, &report.to_text(&paths))?
    }
    Ok(outcome)
}

fn carry_out(context: &Context, options: &SetupOptions, paths: &SetupPaths, report: &mut SetupReport) -> Result<Outcome> {
    let plan = SetupPlan::of(paths);
    if !plan.refusals.is_empty() {
        report.notes.extend(plan.refusals);
        return Ok(Outcome::Trouble);
    }
    if options.dry_run {
        report.steps.extend(plan.steps.iter().map(|step| format!("would {step}")));
        return Ok(Outcome::Shown);
    }
    if !plan.moves_content {
        return report.take_steps(plan);
    }
    if !options.yes && !ask_consent(paths, options.json)? {
        report.notes.push(format!(
            "{} has content, and would be moved to {}; nothing was changed; --yes does it, --dry-run shows how",
            paths.link.display(),
            paths.config_dir.display()
        ));
        return Ok(Outcome::Shown);
    }
    match keep_others_out(context, paths)? {
        Admission::Refused(why) => {
            report.notes.push(format!("{why}; nothing was changed"));
            Ok(Outcome::Trouble)
        }
        Admission::Interrupted(signal) => Ok(Outcome::EndedWaiting(signal)),
        Admission::Granted(_guard) => report.take_steps(SetupPlan::of(paths)), // now that nobody changes it any more
    }
}

/// Asks for consent on a terminal. Elsewhere nobody can give it.
fn ask_consent(paths: &SetupPaths, json: bool) -> Result<bool> {
    if json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    logging::ask(&format!("move {} to {}, and leave a link? [Y/n] ", paths.link.display(), paths.config_dir.display()));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(!answer.is_empty() && matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes"))
}

/// Permission to move the config dir.
enum Admission {
    /// While the guard lives, no other run that uses the lock starts there.
    Granted(LockGuard),
    Refused(String),
    Interrupted(Signal),
}

/// Acquires the session lock of the dir that is to be moved, then waits until no run is live there and no refresh under way.
fn keep_others_out(context: &Context, paths: &SetupPaths) -> Result<Admission> {
    let settings = Factory::of(context)?.settings;
    let (began, run) = (Instant::now(), RunId::take());
    logging::init(settings.verbosity, settings.log_format, None, run);
    let lock = LockRequest {
        path: paths.link.join(lock::FILE_NAME),
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
    let holding = match lock::acquire(&lock, &mut journal, &mut events)? {
        Acquisition::Held(holding) => holding,
        Acquisition::Interrupted(signal) => return Ok(Admission::Interrupted(signal)),
        _ => return Ok(Admission::Refused(format!("{} is in use, and --wait waits longer", paths.link.display()))),
    };
    drop(handlers); // from here on a signal ends us as it would by default: the next call goes on
    let deadline = match settings.wait {
        Wait::No => Some(began),
        Wait::AtMost(bound) => after(began, Some(bound)),
        Wait::Forever => None,
    };
    if let Some(why) = wait_for_runs(&RecordStore::of(&paths.link), deadline)? {
        return Ok(Admission::Refused(why));
    }
    for dir in [&paths.link, &paths.config_dir] {
        if let Some(lock) = RefreshLock::of(dir).iter().find(|lock| lock.standing(SystemTime::now()) == Standing::Live) {
            return Ok(Admission::Refused(format!("{} is held: a refresh is under way", lock.path.display())));
        }
    }
    Ok(Admission::Granted(holding))
}

/// Waits until no run is live. Names those that are at the deadline.
fn wait_for_runs(records: &RecordStore, deadline: Option<Instant>) -> Result<Option<String>> {
    loop {
        let census = records.census().with_context(|| format!("cannot read {}", records.runs().display()))?;
        let live: Vec<_> = census.live.into_iter().chain(census.elsewhere).collect();
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        let Some(first) = live.first() else { return Ok(None) };
        if left.is_zero() {
            let names: Vec<_> = live.iter().map(text::run).collect();
            let verb = if live.len() == 1 { "is" } else { "are" };
            return Ok(Some(format!("{} {verb} live there: {}", text::count(live.len(), "run"), names.join("; "))));
        }
        records.wait_for_end(&first.run, left.min(Duration::from_secs(5)));
    }
}

impl SetupReport {
    fn take_steps(&mut self, plan: SetupPlan) -> Result<Outcome> {
        if !plan.refusals.is_empty() {
            self.notes.extend(plan.refusals);
            return Ok(Outcome::Trouble);
        }
        for step in &plan.steps {
            step.run()
                .with_context(|| format!("cannot {step}; what was done so far stands, and setup goes on when called again"))?;
            self.steps.push(step.to_string());
        }
        self.notes.extend(plan.troubles);
        Ok(if self.notes.is_empty() { Outcome::Shown } else { Outcome::Trouble })
    }

    fn to_text(&self, paths: &SetupPaths) -> String {
        let mut lines: Vec<String> = self.steps.iter().chain(&self.notes).cloned().collect();
        if lines.is_empty() {
            lines.push(format!("nothing to do: {} is {} already", paths.link.display(), self.config_dir));
        }
        if self.done {
            let shared = paths.shared.display();
            lines.push(format!("\nfor the shell:   export CLAUDE_CONFIG_DIR={}", environment::quoted(&self.config_dir)));
            lines.push(format!("for compose:     volumes: [\"{shared}:{shared}\"]"));
            lines.push(format!("for Nomad:       volumes = [\"{shared}:{shared}\"]"));
        }
        lines.join("\n") + "\n"
    }
}
