//! One run's own books: its record while it lives, and its line in the history when it has ended. Where they cannot be kept,
//! that is said once, and the run goes on.

use std::env;
use std::fs::File;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::{AccessFlags, access};
use tracing::{info, warn};

use super::history;
use super::run_record::{Hold, PathView, RunRecord, State, time};
use super::store::{OwnRecord, RecordStore, SILENCE};
use crate::claude::frames::LastResult;
use crate::config::settings::{LockMode, after};
use crate::logging::open_to_append;
use crate::object::Object;
use crate::outcome::Outcome;
use crate::run_id::RunId;
use crate::sys::file_id::FileId;
use crate::sys::mount::LockScope;
use crate::sys::proc::{boot_id, host, pid_namespace};
use crate::sys::signal;

/// One run, as far as it has come.
#[derive(Debug)]
pub struct RunRecorder {
    run: RunId,
    label: Option<String>,
    program: PathBuf,
    lock_mode: LockMode,
    /// The config dir, and what we keep in it; none, where there is none.
    kept_in: Option<(PathBuf, RecordStore)>,
    /// The lock file, if this run has to do with it.
    lock_file: Option<PathBuf>,
    /// `--record`
    record_file: Option<PathBuf>,
    own: Option<OwnRecord>,
    /// What it says.
    published: Option<RunRecord>,
    /// The lock file that the lock was had on.
    locked: Option<FileId>,
    hold: Option<Hold>,
    /// What a lock helper calls its lock.
    key: Option<String>,
    began_at: SystemTime,
    began: Instant,
    waited: Option<Duration>,
    acquired: Option<Instant>,
    released: Option<Instant>,
    child: Option<i32>,
    started: Option<Instant>,
    /// When the record is to say that the child runs.
    due: Option<Instant>,
    /// When it begins to look old to other hosts, where they see its age and not its lock.
    aging: Option<Instant>,
    cleared: Option<Instant>,
    last_result: Option<LastResult>,
    has_failed: bool,
}

/// What a run is, before anything has happened in it.
#[derive(Debug)]
pub struct RunInfo {
    /// Its name.
    pub run: RunId,
    /// What its caller calls it.
    pub label: Option<String>,
    /// What it runs.
    pub program: PathBuf,
    /// When it holds the session lock.
    pub lock_mode: LockMode,
    /// Where its record is kept; without one, there is none.
    pub config_dir: Option<PathBuf>,
    /// The lock file, if it has to do with it.
    pub lock_file: Option<PathBuf>,
    /// Where its last line goes, besides the history.
    pub record_file: Option<PathBuf>,
}

/// How often a record is touched where that matters.
const FRESH: Duration = Duration::from_secs(SILENCE.as_secs() / 12);

/// How soon a record follows what it tells.
const SOON: Duration = Duration::from_millis(20);

impl RunRecorder {
    /// The books of a run that begins now. Nothing is written yet.
    pub fn open(run: RunInfo) -> Self {
        let RunInfo { run, label, program, lock_mode, config_dir, lock_file, record_file } = run;
        Self {
            run,
            label,
            program,
            lock_mode,
            kept_in: config_dir.map(|config_dir| (config_dir.clone(), RecordStore::of(&config_dir))),
            lock_file,
            record_file,
            own: None,
            published: None,
            locked: None,
            hold: None,
            key: None,
            began_at: SystemTime::now(),
            began: Instant::now(),
            waited: None,
            acquired: None,
            released: None,
            child: None,
            started: None,
            due: None,
            aging: None,
            cleared: None,
            last_result: None,
            has_failed: false,
        }
    }

    /// The run's name.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// The config dir, if it can be used.
    pub fn config_dir(&self) -> Option<&Path> {
        self.kept_in.as_ref().map(|(config_dir, _)| config_dir.as_path())
    }

    /// Where the records of all runs are.
    pub fn directory(&self) -> Option<&RecordStore> {
        self.kept_in.as_ref().map(|(_, directory)| directory)
    }

    /// The run is about to wait for the lock.
    pub fn waits(&mut self) {
        self.publish();
    }

    /// The run has the session lock, but still waits for what its lock helper is to get.
    pub fn on_session_lock(&mut self, hold: Hold, on: FileId) {
        (self.hold, self.locked) = (Some(hold), Some(on));
        self.publish();
    }

    /// The run has the lock: before its child is started, and before anybody else can have it.
    pub fn on_acquired(&mut self, hold: Hold, on: Option<FileId>, key: Option<String>) {
        (self.hold, self.locked, self.key) = (Some(hold), on, key);
        self.on_waited();
        self.acquired = (hold == Hold::Own).then(Instant::now);
        if self.key.is_some() {
            self.publish(); // the child may look for it
        }
    }

    /// The wait for the lock is over, or given up.
    pub fn on_waited(&mut self) {
        self.waited = Some(self.began.elapsed());
    }

    /// The child is started. The record is written now, while the child is on its way, and costs nobody any time. One that is
    /// there already, of a run that has waited, says so a little later: in a queue of short runs it never has to.
    pub fn on_started(&mut self, child: i32) {
        let now = Instant::now();
        (self.started, self.child) = (Some(now), Some(child));
        match self.own {
            None => self.publish(),
            Some(_) => self.due = Some(now + SOON),
        }
    }

    /// The run no longer has the lock. To be called before it is freed.
    pub fn on_released(&mut self) {
        (self.hold, self.key, self.released) = (None, None, Some(Instant::now()));
        if self.own.is_some() {
            self.publish();
        }
    }

    /// When [`run_due`](Self::run_due) has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        [self.due, self.aging].into_iter().flatten().min()
    }

    /// Writes what is due.
    pub fn run_due(&mut self) {
        let now = Instant::now();
        if self.due.is_some_and(|at| now >= at) {
            self.publish();
        }
        if self.aging.take_if(|at| now >= *at).is_some()
            && let Some(record) = self.own.as_ref().and_then(OwnRecord::path)
        {
            keep_fresh(record.to_owned());
        }
    }

    /// All that the run has started has ended.
    pub fn on_tree_exited(&mut self) {
        self.cleared = Some(Instant::now());
    }

    /// The record is needed for a while yet, and is to tell how things are.
    pub fn stays(&mut self) {
        if self.due.is_some() {
            self.publish();
        }
    }

    /// The run is over. To be called before the lock is freed, so that at no time two records claim it.
    pub fn retire(&mut self) {
        if let Some(own) = &mut self.own {
            own.remove();
        }
        self.aging = None;
        self.released = self.released.or(self.acquired.map(|_| Instant::now()));
    }

    /// What claude's last result frame said.
    pub fn on_result(&mut self, last_result: Option<LastResult>) {
        self.last_result = last_result;
    }

    /// The run has ended with `outcome`: says so, and writes its line into the history, and where `--record` says.
    pub fn close(mut self, outcome: Outcome) {
        self.own = None;
        let span = |span: Option<Duration>| span.map_or(0, |span| span.as_millis() as u64);
        let ran = self.started.map(|started| self.cleared.unwrap_or_else(Instant::now) - started);
        info!(
            name: "run.ended", outcome = outcome.name(), exit_code = outcome.exit_code(), run_ms = span(ran), wait_ms = span(self.waited),
            "ended"
        );
        let line = format!("{}\n", self.to_json(outcome));
        if let Some(file) = &self.record_file
            && let Err(error) = open_to_append(file).and_then(|mut file| io::Write::write_all(&mut file, line.as_bytes()))
        {
            warn!("cannot write the record {}: {error}", file.display());
        }
        if let Some((_, directory)) = &self.kept_in
            && let Err(error) = history::append(directory, &line)
        {
            self.failed(&error);
        }
    }

    /// Writes the record as things are.
    fn publish(&mut self) {
        self.due = None;
        let Some((config_dir, directory)) = self.kept_in.as_ref().filter(|_| !self.has_failed) else { return };
        // What was true at the first time is still: it is not looked for again.
        let mut record = self.published.take().unwrap_or_else(|| self.record(config_dir));
        let since = self.started.map_or_else(SystemTime::now, |started| SystemTime::now() - started.elapsed());
        record.state = if self.started.is_some() { State::Running } else { State::Waiting };
        (record.since, record.hold, record.child) = (since, self.hold, self.child);
        record.key.clone_from(&self.key);
        if let (Some(seen), Some(_)) = (&mut record.lock, self.locked) {
            seen.identity = self.locked; // the file may have been replaced while we waited
        }
        if self.own.is_none() {
            self.aging = after(Instant::now(), Some(FRESH));
        }
        match directory.publish(&record, self.own.is_some()) {
            Ok(own) => self.own.replace(own).iter_mut().for_each(OwnRecord::forget),
            Err(error) => self.failed(&error),
        }
        self.published = Some(record);
    }

    /// Says once that the books are not kept; a config dir that cannot be written was told of already.
    fn failed(&mut self, error: &io::Error) {
        let Some((config_dir, directory)) = &self.kept_in else { return };
        let was_told = access(config_dir, AccessFlags::W_OK | AccessFlags::X_OK).is_err();
        if !mem::replace(&mut self.has_failed, true) && !was_told {
            warn!("cannot keep records in {}: {error}; going on without", directory.path().display());
        }
    }

    fn record(&self, config_dir: &Path) -> RunRecord {
        let config_dir = std::path::absolute(config_dir).unwrap_or_else(|_| config_dir.to_owned());
        RunRecord {
            run: self.run.to_string(),
            state: State::Waiting,
            key: self.key.clone(),
            hold: None,
            mode: self.lock_mode.name().to_owned(),
            label: self.label.clone(),
            host: host(),
            boot: boot_id(),
            pid: self.run.pid,
            pid_namespace: pid_namespace(),
            child: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: self.program.to_string_lossy().into_owned(),
            cwd: env::current_dir().ok().map(|cwd| cwd.to_string_lossy().into_owned()),
            began: self.began_at,
            since: self.began_at,
            lock: self.lock_file.as_deref().map(PathView::of),
            parent: PathView::of(config_dir.parent().unwrap_or(&config_dir)),
            config_dir: PathView::of(&config_dir),
        }
    }

    fn to_json(&self, outcome: Outcome) -> String {
        let milliseconds = |span: Option<Duration>| span.map(|span| span.as_millis() as u64);
        let until_cleared = |since: Option<Instant>| milliseconds(Some(self.cleared? - since?));
        let held = || Some(self.released? - self.acquired?);
        let result = self.last_result.as_ref();
        let mut object = Object::default();
        object
            .add("run", self.run.to_string())
            .add("label", &self.label)
            .add("outcome", outcome.name())
            .add("exit_code", outcome.exit_code())
            .add("began", time(self.began_at))
            .add("total_ms", milliseconds(Some(self.began.elapsed())))
            .add("wait_ms", milliseconds(self.waited))
            .add("hold_ms", milliseconds(held()))
            .add("run_ms", until_cleared(self.started))
            .add("lock", self.lock_mode.name())
            .add("host", host())
            .add("pid", self.run.pid)
            .add("version", env!("CARGO_PKG_VERSION"))
            .add("program", self.program.to_string_lossy())
            .add("session_id", result.and_then(|result| result.session_id.as_deref()))
            .add("subtype", result.map(|result| result.subtype.as_str()))
            .add("is_error", result.map(|result| result.is_error))
            .add("turns", result.and_then(|result| result.turns))
            .add("claude_ms", result.and_then(|result| result.duration_ms))
            .add("cost_usd", result.and_then(|result| result.cost_usd));
        object.into_text()
    }
}

/// Touches `record` from now on, if hosts may see it and not the lock on it, until it is gone. Such a file system may hang, so a
/// thread does it, which ends with us.
fn keep_fresh(record: PathBuf) {
    let work = move || {
        let touch = || File::options().write(true).open(&record)?.set_modified(SystemTime::now());
        if LockScope::at(&record).is_some_and(LockScope::may_be_per_host) {
            // What fails for a while, as on a network, may go well the next time.
            while !touch().is_err_and(|error: io::Error| error.kind() == io::ErrorKind::NotFound) {
                thread::sleep(FRESH);
            }
        }
    };
    let _ = signal::spawn_with_signals_blocked("records", 64 * 1024, work); // without one, the record looks old
}
