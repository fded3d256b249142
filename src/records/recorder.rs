//! Bookkeeping of one run: its record while it lives, and its line in the history when it has ended. Where they cannot be
//! kept, that is said once, and the run goes on.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::{AccessFlags, access};
use tracing::{info, warn};

use super::history::{self, FinishedRun};
use super::run_record::{Hold, PathView, RunRecord, State};
use super::store::{OwnRecord, RecordStore, SILENT_RECORD_TTL};
use crate::claude::frames::LastResult;
use crate::config::settings::{LockMode, after};
use crate::logging::open_to_append;
use crate::outcome::Outcome;
use crate::run_id::RunId;
use crate::sys::file_id::FileId;
use crate::sys::mount::may_lock_per_host;
use crate::sys::proc::{boot_id, host, pid_namespace};
use crate::sys::signal;

/// Recorder of one run.
#[derive(Debug)]
pub struct RunRecorder {
    info: RunInfo,
    /// Store of the records; `None` without a config dir.
    store: Option<RecordStore>,
    began_at: SystemTime,
    began: Instant,
    waited: Option<Duration>,
    lock: LockPhase,
    phase: RunPhase,
    published: Option<Published>,
    /// Time at which the record has to say that the child runs.
    publish_at: Option<Instant>,
    /// Time at which the record begins to look old to other hosts, where they see its age and not its lock.
    touch_at: Option<Instant>,
    last_result: Option<LastResult>,
    has_failed: bool,
}

/// Description of a run that begins.
#[derive(Debug)]
pub struct RunInfo {
    pub(crate) run: RunId,
    /// `--label`
    pub(crate) label: Option<String>,
    pub(crate) program: PathBuf,
    pub(crate) lock_mode: LockMode,
    /// Config dir, which keeps the record; without one, there is none.
    pub(crate) config_dir: Option<PathBuf>,
    /// Lock file, if the run uses the session lock.
    pub(crate) lock_file: Option<PathBuf>,
    /// `--record`
    pub(crate) record_file: Option<PathBuf>,
}

/// The child, from before its start to the end of its tree.
#[derive(Clone, Copy, Debug)]
enum RunPhase {
    Waiting,
    Running { child: i32, since: Instant },
    Exited { child: i32, since: Instant, ended: Instant },
}

/// The lock, as far as this run has it.
#[derive(Debug)]
enum LockPhase {
    NotHeld,
    /// The session lock, but not yet the lock of the lock helper.
    Partly {
        hold: Hold,
        file: FileId,
    },
    Held {
        hold: Hold,
        file: Option<FileId>,
        key: Option<String>,
        since: Instant,
    },
    /// `None` for a lock that the run has not acquired itself.
    Released {
        held: Option<Duration>,
    },
}

#[derive(Debug)]
struct Published {
    own: OwnRecord,
    record: RunRecord,
}

/// Period after which a record is touched, on file systems where its age matters.
const TOUCH_AFTER: Duration = Duration::from_secs(SILENT_RECORD_TTL.as_secs() / 12);

/// Delay before a record that is there already says that the child runs.
const PUBLISH_AFTER: Duration = Duration::from_millis(20);

impl RunRecorder {
    /// Recorder of a run that begins now. Nothing is written yet.
    pub fn open(info: RunInfo) -> Self {
        Self {
            store: info.config_dir.as_deref().map(RecordStore::of),
            info,
            began_at: SystemTime::now(),
            began: Instant::now(),
            waited: None,
            lock: LockPhase::NotHeld,
            phase: RunPhase::Waiting,
            published: None,
            publish_at: None,
            touch_at: None,
            last_result: None,
            has_failed: false,
        }
    }

    /// Run id.
    pub fn run(&self) -> RunId {
        self.info.run
    }

    /// Config dir, if it can be used.
    pub fn config_dir(&self) -> Option<&Path> {
        self.info.config_dir.as_deref()
    }

    /// Store of all run records.
    pub fn store(&self) -> Option<&RecordStore> {
        self.store.as_ref()
    }

    /// Publishes that the run is about to wait for the lock.
    pub fn on_wait_started(&mut self) {
        self.publish();
    }

    /// Publishes that the run holds the session lock, but still waits for its lock helper.
    pub fn on_session_lock(&mut self, hold: Hold, file: FileId) {
        self.lock = LockPhase::Partly { hold, file };
        self.publish();
    }

    /// Notes that the run holds the lock: before its child is started, and before anybody else can acquire it.
    pub fn on_acquired(&mut self, hold: Hold, file: Option<FileId>, key: Option<String>) {
        let has_key = key.is_some();
        self.lock = LockPhase::Held { hold, file, key, since: Instant::now() };
        self.on_waited();
        if has_key {
            self.publish(); // the child may look for it
        }
    }

    /// Notes that the wait for the lock is over, or given up.
    pub fn on_waited(&mut self) {
        self.waited = Some(self.began.elapsed());
    }

    /// Notes that the child is started. The first record is written now, while the child is on its way, and costs nobody any
    /// time. A record that is there already, of a run that has waited, is rewritten a little later: for a short run, never.
    pub fn on_started(&mut self, child: i32) {
        let now = Instant::now();
        self.phase = RunPhase::Running { child, since: now };
        match self.published {
            None => self.publish(),
            Some(_) => self.publish_at = Some(now + PUBLISH_AFTER),
        }
    }

    /// Publishes that the run no longer holds the lock. Call before releasing it.
    pub fn on_released(&mut self) {
        self.release();
        if self.published.is_some() {
            self.publish();
        }
    }

    /// Time at which [`run_due`](Self::run_due) has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        [self.publish_at, self.touch_at].into_iter().flatten().min()
    }

    /// Writes what is due.
    pub fn run_due(&mut self) {
        let now = Instant::now();
        if self.publish_at.is_some_and(|at| now >= at) {
            self.publish();
        }
        if self.touch_at.take_if(|at| now >= *at).is_some()
            && let Some(record) = self.published.as_ref().and_then(|published| published.own.path())
        {
            keep_fresh(record.to_owned());
        }
    }

    /// Notes that the child and all its descendants have exited.
    pub fn on_tree_exited(&mut self) {
        if let RunPhase::Running { child, since } = self.phase {
            self.phase = RunPhase::Exited { child, since, ended: Instant::now() };
        }
    }

    /// Writes a pending record now: others need it for a while yet.
    pub fn flush_pending(&mut self) {
        if self.publish_at.is_some() {
            self.publish();
        }
    }

    /// Removes the record. Call before releasing the lock, or two records could claim it.
    pub fn retire(&mut self) {
        if let Some(published) = &mut self.published {
            published.own.remove();
        }
        self.touch_at = None;
        self.release();
    }

    /// Notes claude's last result frame.
    pub fn on_result(&mut self, last_result: Option<LastResult>) {
        self.last_result = last_result;
    }

    /// Logs the end of the run, and writes its line into the history and into the file of `--record`.
    pub fn close(mut self, outcome: Outcome) {
        self.published = None;
        let finished = self.finished(outcome);
        info!(
            name: "run.ended", outcome = outcome.name(), exit_code = outcome.exit_code(), run_ms = self.ran().map_or(0, milliseconds),
            wait_ms = finished.wait_ms.unwrap_or_default(), "ended"
        );
        let Ok(mut line) = serde_json::to_string(&finished) else { return };
        line.push('\n');
        if let Some(file) = &self.info.record_file
            && let Err(error) = open_to_append(file).and_then(|mut file| file.write_all(line.as_bytes()))
        {
            warn!("cannot write the record {}: {error}", file.display());
        }
        if let Some(store) = &self.store
            && let Err(error) = history::append(store, &line)
        {
            self.warn_once(&error);
        }
    }

    fn release(&mut self) {
        self.lock = match mem::replace(&mut self.lock, LockPhase::NotHeld) {
            LockPhase::Held { hold: Hold::Own, since, .. } => LockPhase::Released { held: Some(since.elapsed()) },
            LockPhase::Released { held } => LockPhase::Released { held },
            LockPhase::NotHeld | LockPhase::Partly { .. } | LockPhase::Held { .. } => LockPhase::Released { held: None },
        };
    }

    fn ran(&self) -> Option<Duration> {
        match self.phase {
            RunPhase::Waiting => None,
            RunPhase::Running { since, .. } => Some(since.elapsed()),
            RunPhase::Exited { since, ended, .. } => Some(ended - since),
        }
    }

    /// Writes the record as things are.
    fn publish(&mut self) {
        self.publish_at = None;
        let (Some(config_dir), Some(store), false) = (&self.info.config_dir, &self.store, self.has_failed) else { return };
        let (old, mut record) = match self.published.take() {
            // The rest was looked up for the first record, and holds still.
            Some(Published { own, record }) => (Some(own), record),
            None => {
                self.touch_at = after(Instant::now(), Some(TOUCH_AFTER));
                (None, self.first_record(config_dir))
            }
        };
        (record.state, record.child, record.since) = match self.phase {
            RunPhase::Waiting => (State::Waiting, None, SystemTime::now()),
            RunPhase::Running { child, since } | RunPhase::Exited { child, since, .. } => {
                (State::Running, Some(child), SystemTime::now() - since.elapsed())
            }
        };
        let (hold, file, key) = match &self.lock {
            LockPhase::NotHeld | LockPhase::Released { .. } => (None, None, None),
            LockPhase::Partly { hold, file } => (Some(*hold), Some(*file), None),
            LockPhase::Held { hold, file, key, .. } => (Some(*hold), *file, key.clone()),
        };
        (record.hold, record.key) = (hold, key);
        if let (Some(view), Some(_)) = (&mut record.lock, file) {
            view.set_file_id(file); // the file may have been replaced during the wait
        }
        match store.publish(&record, old.is_some()) {
            Ok(own) => {
                old.into_iter().for_each(OwnRecord::forget);
                self.published = Some(Published { own, record });
            }
            Err(error) => {
                self.published = old.map(|own| Published { own, record });
                self.warn_once(&error);
            }
        }
    }

    /// Warns that nothing can be recorded, unless it was said already, as of a config dir that cannot be written.
    fn warn_once(&mut self, error: &io::Error) {
        let (Some(config_dir), Some(store)) = (&self.info.config_dir, &self.store) else { return };
        let was_said = access(config_dir, AccessFlags::W_OK | AccessFlags::X_OK).is_err();
        if !mem::replace(&mut self.has_failed, true) && !was_said {
            warn!("cannot keep records in {}: {error}; going on without", store.path().display());
        }
    }

    fn first_record(&self, config_dir: &Path) -> RunRecord {
        let config_dir = std::path::absolute(config_dir).unwrap_or_else(|_| config_dir.to_owned());
        RunRecord {
            run: self.info.run.to_string(),
            label: self.info.label.clone(),
            state: State::Waiting,
            since: self.began_at,
            began: self.began_at,
            mode: self.info.lock_mode.name().to_owned(),
            hold: None,
            key: None,
            host: host(),
            pid: self.info.run.pid,
            child: None,
            pid_namespace: pid_namespace(),
            boot: boot_id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: self.info.program.to_string_lossy().into_owned(),
            cwd: env::current_dir().ok().map(|cwd| cwd.to_string_lossy().into_owned()),
            lock: self.info.lock_file.as_deref().map(PathView::of),
            parent: PathView::of(config_dir.parent().unwrap_or(&config_dir)),
            config_dir: PathView::of(&config_dir),
        }
    }

    fn finished(&mut self, outcome: Outcome) -> FinishedRun {
        let result = self.last_result.take();
        let of_result = result.as_ref();
        let held = if let LockPhase::Released { held } = self.lock { held } else { None };
        let ran = self.ran().filter(|_| matches!(self.phase, RunPhase::Exited { .. }));
        FinishedRun {
            run: self.info.run.to_string(),
            label: self.info.label.take(),
            outcome: outcome.name().to_owned(),
            exit_code: outcome.exit_code(),
            began: self.began_at,
            total_ms: milliseconds(self.began.elapsed()),
            wait_ms: self.waited.map(milliseconds),
            hold_ms: held.map(milliseconds),
            run_ms: ran.map(milliseconds),
            lock: self.info.lock_mode.name().to_owned(),
            host: host(),
            pid: self.info.run.pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: self.info.program.to_string_lossy().into_owned(),
            is_error: of_result.map(|result| result.is_error),
            turns: of_result.and_then(|result| result.turns),
            claude_ms: of_result.and_then(|result| result.duration_ms),
            cost_usd: of_result.and_then(|result| result.cost_usd),
            session_id: of_result.and_then(|result| result.session_id.clone()),
            subtype: result.map(|result| result.subtype),
        }
    }
}

fn milliseconds(span: Duration) -> u64 {
    span.as_millis() as u64
}

/// Touches `record` from now on, until it is gone, if hosts may see it and not the lock on it. Such a file system may hang, so a
/// thread does it, which ends with the process.
fn keep_fresh(record: PathBuf) {
    let work = move || {
        let touch = || File::options().write(true).open(&record)?.set_modified(SystemTime::now());
        if may_lock_per_host(&record) {
            // An error can be of a moment, as on a network.
            while !touch().is_err_and(|error: io::Error| error.kind() == io::ErrorKind::NotFound) {
                thread::sleep(TOUCH_AFTER);
            }
        }
    };
    let _ = signal::spawn_with_signals_blocked("records", 64 * 1024, work); // without one, the record looks old
}
