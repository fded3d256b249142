//! Bookkeeping of one run: its record while it lives, and its line in the history when it has ended. Where they cannot be
//! kept, that is said once, and the run goes on.

use std::cell::OnceCell;
use std::env;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::{AccessFlags, access};
use tracing::{info, warn};

use super::census::SILENT_RECORD_TTL;
use super::fields::time;
use super::history::{self, HistoryLine};
use super::kept::Line;
use super::run_record::{Hold, PathView, RunRecord, State, WaitsFor};
use super::store::{OwnRecord, RecordStore};
use crate::claude::frames::LastResult;
use crate::claude::version::Version;
use crate::config::duration::after;
use crate::config::settings::LockMode;
use crate::logging::{PATIENCE, append_lines, open_to_append};
use crate::outcome::Outcome;
use crate::run_id::RunId;
use crate::sys::bounded;
use crate::sys::file_id::FileId;
use crate::sys::proc::{boot_id, host, pid_namespace};

/// Recorder of one run.
#[derive(Debug)]
pub struct RunRecorder {
    info: RunInfo,
    claude_version: OnceCell<Option<Version>>,
    began_at: SystemTime,
    began: Instant,
    /// Begin of the wait for the lock, of that for its lock helper, or of the child.
    since: SystemTime,
    waits_for: WaitsFor,
    ticket: Option<u64>,
    /// Time that the wait for a slot took.
    slot_waited: Option<Duration>,
    /// Path of its slot, and the file.
    slot: Option<(PathBuf, FileId)>,
    waited: Option<Duration>,
    /// Time that the wait for claude's own refresh locks took.
    refresh_waited: Option<Duration>,
    hold: Option<Hold>,
    /// File of the lock, which may have been replaced since.
    locked: Option<FileId>,
    key: Option<String>,
    /// Begin of a hold of our own.
    acquired: Option<Instant>,
    held: Option<Duration>,
    child: Option<(i32, Instant)>,
    ran: Option<Duration>,
    published: Option<OwnRecord>,
    /// Time at which the record has to say that the child runs.
    publish_at: Option<Instant>,
    /// Time at which the record begins to look old to other hosts, where they see its age and not its lock.
    touch_at: Option<Instant>,
    /// How the child itself has ended.
    ending: Option<Outcome>,
    last_result: Option<LastResult>,
    session_id: Option<String>,
    cut_refresh: bool,
    has_failed: bool,
}

/// Description of a run that begins.
#[derive(Debug)]
pub struct RunInfo {
    pub(crate) run: RunId,
    pub(crate) label: Option<String>,
    pub(crate) program: PathBuf,
    pub(crate) lock_mode: LockMode,
    /// Store of the config dir; without one, nothing is kept.
    pub(crate) records: Option<RecordStore>,
    /// Lock file, if the run uses the session lock.
    pub(crate) lock_file: Option<PathBuf>,
    pub(crate) record_file: Option<PathBuf>,
}

/// Period after which a record is touched, on file systems where its age matters.
const TOUCH_AFTER: Duration = Duration::from_secs(SILENT_RECORD_TTL.as_secs() / 12);

/// Delay before a record that is there already says that the child runs.
const PUBLISH_AFTER: Duration = Duration::from_millis(20);

impl RunRecorder {
    /// Recorder of a run that begins now. Nothing is written yet.
    pub fn open(info: RunInfo) -> Self {
        let began_at = SystemTime::now();
        Self {
            info,
            claude_version: OnceCell::new(),
            began_at,
            began: Instant::now(),
            since: began_at,
            waits_for: WaitsFor::Lock,
            ticket: None,
            slot_waited: None,
            slot: None,
            waited: None,
            refresh_waited: None,
            hold: None,
            locked: None,
            key: None,
            acquired: None,
            held: None,
            child: None,
            ran: None,
            published: None,
            publish_at: None,
            touch_at: None,
            ending: None,
            last_result: None,
            session_id: None,
            cut_refresh: false,
            has_failed: false,
        }
    }

    pub(crate) fn run(&self) -> RunId {
        self.info.run
    }

    /// Store of all run records, if there is a config dir.
    pub(crate) fn store(&self) -> Option<&RecordStore> {
        self.info.records.as_ref()
    }

    /// Publishes that the run waits from now on.
    pub(crate) fn on_wait(&mut self, waits_for: WaitsFor) {
        self.waits_for = waits_for;
        if self.slot.is_some() {
            self.since = SystemTime::now(); // a second wait
        }
        self.publish();
    }

    /// Publishes that the run waits for a slot, with this ticket, once there is one.
    pub(crate) fn on_wait_for_slot(&mut self, ticket: Option<u64>) {
        if ticket.is_some() && self.ticket != ticket {
            self.ticket = ticket;
            self.on_wait(WaitsFor::Slot);
        }
    }

    /// Notes that the wait for a slot is over: the run has this one now, or gives up.
    pub(crate) fn on_slot(&mut self, slot: Option<(PathBuf, FileId)>) {
        (self.slot, self.ticket, self.slot_waited) = (slot, None, Some(self.began.elapsed()));
    }

    /// Publishes that the run holds the session lock, but still waits for its lock helper.
    pub(crate) fn on_session_lock(&mut self, hold: Hold, file: FileId) {
        (self.hold, self.locked, self.since) = (Some(hold), Some(file), SystemTime::now());
        self.publish();
    }

    /// Notes that the run holds the lock: before its child is started, and before anybody else can acquire it.
    pub(crate) fn on_acquired(&mut self, hold: Hold, file: Option<FileId>, key: Option<String>) {
        (self.hold, self.locked, self.key) = (Some(hold), file, key);
        self.acquired = (hold == Hold::Own).then(Instant::now);
        self.on_waited();
        if self.key.is_some() {
            self.publish(); // the child may look for it
        }
    }

    /// Notes that the wait for the lock is over, or given up.
    pub(crate) fn on_waited(&mut self) {
        self.waited = Some(self.began.elapsed().saturating_sub(self.slot_waited.unwrap_or_default()));
    }

    /// Notes how long claude's own refresh locks were waited for.
    pub(crate) fn on_refresh_waited(&mut self, waited: Duration) {
        self.refresh_waited = Some(self.refresh_waited.unwrap_or_default() + waited);
    }

    /// Notes that the child is started. The first record is written now, while the child is on its way, and costs nobody any
    /// time. A record that is there already, of a run that has waited, is rewritten a little later: for a short run, never.
    pub(crate) fn on_started(&mut self, child: i32) {
        let now = Instant::now();
        (self.child, self.since) = (Some((child, now)), SystemTime::now());
        match self.published {
            // A run below in another PID namespace looks for our slot at once.
            Some(_) if self.slot.is_some() => self.publish(),
            None => self.publish(),
            Some(_) => self.publish_at = Some(now + PUBLISH_AFTER),
        }
    }

    /// Notes that the child that was started only refreshed the token: that of the run is yet to be started.
    pub(crate) fn on_refreshed(&mut self) {
        (self.child, self.ending, self.publish_at) = (None, None, None);
    }

    /// Publishes that the run no longer holds the lock. Call before releasing it.
    pub(crate) fn on_released(&mut self) {
        self.note_released();
        if self.published.is_some() {
            self.publish();
        }
    }

    /// Time at which [`run_due`](Self::run_due) has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        [self.publish_at, self.touch_at].into_iter().flatten().min()
    }

    /// Writes what is due.
    pub(crate) fn run_due(&mut self) {
        let now = Instant::now();
        if self.publish_at.is_some_and(|at| now >= at) {
            self.publish();
        }
        if self.touch_at.take_if(|at| now >= *at).is_some()
            && let (Some(own), Some(store)) = (&self.published, &self.info.records)
        {
            own.keep_fresh(store.runs(), TOUCH_AFTER);
        }
    }

    /// Notes that the child and all its descendants have exited.
    pub(crate) fn on_tree_exited(&mut self) {
        self.ran = self.child.map(|(_, started)| started.elapsed());
    }

    /// Writes a pending record now: others need it for a while yet.
    pub(crate) fn flush_pending(&mut self) {
        if self.publish_at.is_some() {
            self.publish();
        }
    }

    /// Removes the record. Call before releasing the lock, or two records could claim it.
    pub(crate) fn retire(&mut self) {
        if let Some(own) = &mut self.published {
            own.remove();
        }
        self.touch_at = None;
        self.note_released();
    }

    pub(crate) fn on_child_ended(&mut self, ending: Outcome) {
        self.ending = Some(ending);
    }

    /// Notes claude's last result frame, and its session, which is known without one.
    pub(crate) fn on_result(&mut self, last_result: Option<LastResult>, session_id: Option<String>) {
        self.session_id = last_result.as_ref().and_then(|result| result.session_id.clone()).or(session_id);
        self.last_result = last_result;
    }

    /// Notes that claude has ended in the midst of a refresh of its token.
    pub(crate) fn on_cut_refresh(&mut self) {
        self.cut_refresh = true;
    }

    /// Logs the end of the run, and writes its line into the history and into the file of `--record`.
    pub fn close(mut self, outcome: Outcome) {
        self.published = None;
        let [wait_ms, run_ms] = [self.waited, self.ran].map(|span| span.map_or(0, milliseconds));
        info!(name: "run.ended", outcome = outcome.name(), exit_code = outcome.exit_code(), run_ms, wait_ms, "ended");
        let Ok(line) = Line::of(&self.finished(outcome), &[]) else { return };
        if let Some(file) = self.info.record_file.clone() {
            let (path, line) = (file.clone(), line.as_bytes().to_vec());
            let write = move || open_to_append(&path).and_then(|file| append_lines(&file, &line, PATIENCE));
            let late = || Err(io::Error::new(io::ErrorKind::TimedOut, "its file system does not answer"));
            if let Err(error) = bounded::within("record file", write).unwrap_or_else(late) {
                warn!("cannot write the record {}: {error}", file.display());
            }
        }
        if let Some(store) = &self.info.records
            && let Err(error) = history::append(store, &line)
        {
            let place = store.history();
            self.warn_once(&place, &error);
        }
    }

    fn note_released(&mut self) {
        (self.hold, self.locked, self.key) = (None, None, None);
        if let Some(acquired) = self.acquired.take() {
            self.held = Some(acquired.elapsed());
        }
    }

    /// Writes the record as things are.
    pub(crate) fn publish(&mut self) {
        self.publish_at = None;
        let (Some(store), false) = (&self.info.records, self.has_failed) else { return };
        let is_first = self.published.is_none();
        if let Err(error) = store.publish(&self.record(store.config_dir()), &mut self.published) {
            let place = store.runs();
            self.warn_once(&place, &error);
            self.published = None; // removed: one that cannot be rewritten would go on claiming what it says
        } else if is_first {
            self.touch_at = after(Instant::now(), Some(TOUCH_AFTER));
        }
    }

    /// Warns that nothing can be recorded, unless it was said already, as of a config dir that cannot be written.
    fn warn_once(&mut self, place: &Path, error: &io::Error) {
        let Some(store) = &self.info.records else { return };
        let was_said = error.kind() != io::ErrorKind::NotFound
            && access(store.config_dir(), AccessFlags::W_OK | AccessFlags::X_OK).is_err();
        if !mem::replace(&mut self.has_failed, true) && !was_said {
            warn!("cannot keep records in {}: {error}; going on without", place.display());
        }
    }

    /// Read when the first record is written, which is behind the start of the child if nothing is waited for.
    fn claude_version(&self) -> Option<Version> {
        *self.claude_version.get_or_init(|| Version::of_program(&self.info.program))
    }

    fn record(&self, config_dir: &Path) -> RunRecord {
        let config_dir = std::path::absolute(config_dir).unwrap_or_else(|_| config_dir.to_owned());
        let RunInfo { run, label, program, lock_mode, lock_file, .. } = &self.info;
        RunRecord {
            run: run.to_string(),
            label: label.clone(),
            state: if self.child.is_some() { State::Running } else { State::Waiting },
            waits_for: self.child.is_none().then_some(self.waits_for),
            ticket: self.ticket,
            since: self.since,
            began: self.began_at,
            mode: lock_mode.name().to_owned(),
            hold: self.hold,
            key: self.key.clone(),
            host: host(),
            pid: run.pid,
            child: self.child.map(|(pid, _)| pid),
            pid_namespace: pid_namespace(),
            boot: boot_id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: program.to_string_lossy().into_owned(),
            claude_version: self.claude_version().map(|version| version.to_string()),
            cwd: env::current_dir().ok().map(|cwd| cwd.to_string_lossy().into_owned()),
            lock: lock_file.as_deref().map(|path| PathView::of(path, self.locked)),
            slot: self.slot.as_ref().map(|(path, file)| PathView::plain(path, *file)),
            parent: PathView::of(config_dir.parent().unwrap_or(&config_dir), None),
            config_dir: PathView::of(&config_dir, None),
        }
    }

    /// Line of the run in the history.
    fn finished(&self, outcome: Outcome) -> HistoryLine<'_> {
        let RunInfo { run, label, program, lock_mode, .. } = &self.info;
        let result = self.last_result.as_ref();
        let (child_exit_code, child_signal) = match self.ending {
            Some(Outcome::Exited(status)) => (Some(status), None),
            Some(Outcome::Killed(signal)) => (None, Some(signal)),
            _ => (None, None),
        };
        HistoryLine {
            run: run.to_string(),
            label: label.as_deref(),
            outcome: outcome.name(),
            exit_code: Some(outcome.exit_code()),
            child_exit_code,
            child_signal,
            began: time(self.began_at),
            total_ms: milliseconds(self.began.elapsed()),
            slot_wait_ms: self.slot_waited.map(milliseconds),
            wait_ms: self.waited.map(milliseconds),
            refresh_wait_ms: self.refresh_waited.map(milliseconds),
            hold_ms: self.held.map(milliseconds),
            run_ms: self.ran.map(milliseconds),
            lock: lock_mode.name(),
            host: host(),
            pid: run.pid,
            version: env!("CARGO_PKG_VERSION"),
            program: program.to_string_lossy(),
            cut_refresh: self.cut_refresh,
            session_id: self.session_id.as_deref(),
            subtype: result.map(|result| &*result.subtype),
            is_error: result.map(|result| result.is_error),
            auth_refused: result.map(|result| result.auth_refused),
            turns: result.and_then(|result| result.turns),
            claude_ms: result.and_then(|result| result.duration_ms),
            cost_usd: result.and_then(|result| result.cost_usd),
        }
    }
}

fn milliseconds(span: Duration) -> u64 {
    span.as_millis() as u64
}
