//! The wait for a busy lock: the kernel's own queue, so that it is fair and costs nothing, bounded by `--wait` and by
//! signals. A helper thread sleeps in flock(2); we sleep on the event events. When the wait is given up, the thread is called
//! back; what it may have got meanwhile, it lets go of at once.

use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use tracing::warn;

use super::acquire::LockRequest;
use super::file::{FlockGuard, LockFile, Verified, refused};
use super::holder::Holder;
use crate::config::settings::{Wait, after, show, show_seconds};
use crate::events::{Event, EventQueue, EventSender};
use crate::logging::LiveLine;
use crate::records::{RecordStore, RunRecorder, State};
use crate::sys::file_id::FileId;
use crate::sys::signal;

/// How a wait ended.
#[derive(Debug)]
pub(super) enum WaitOutcome {
    Acquired(FlockGuard),
    /// It has turned out that a run above us holds the lock for us.
    HeldByAncestor(FileId),
    /// Meanwhile nothing is due that the lock would be for.
    NotNeeded(String),
    TimedOut,
    Interrupted(Signal),
}

/// Waits for `candidate`.
pub(super) fn wait(
    mut candidate: LockFile,
    lock: &LockRequest,
    journal: &mut RunRecorder,
    events: &mut EventQueue,
) -> Result<WaitOutcome> {
    let bound = match lock.wait {
        // A run above us may be about to write what proves that it holds the lock for us.
        Wait::No if lock.above.may_hold(candidate.identity()) => Some(RECORD_GRACE),
        Wait::No => return Ok(WaitOutcome::TimedOut),
        Wait::AtMost(bound) => Some(bound),
        Wait::Forever => None,
    };
    let started = Instant::now();
    journal.waits();
    let mut waiting = Waiting { lock, journal, bound, started, wanted: candidate.identity(), line: None, asked: 0 };
    loop {
        waiting.wanted = candidate.identity();
        let (answer, thread) = lock_in_thread(candidate, events.sender())?;
        // Only now: nobody who comes later is to be served before us because we look around first.
        waiting.tell();
        if let Some(ending) = waiting.until_answered(events)? {
            drop(answer);
            signal::interrupt_thread(thread);
            waiting.end(&ending);
            return Ok(ending);
        }
        let (locked, result) = answer.recv().context("the thread that waits for the lock is gone")?;
        result.map_err(|error| refused(&lock.path, error))?;
        let held = match locked.confirm() {
            Verified::FlockGuard(held) => Ok(held),
            Verified::Replaced(path) => LockFile::open(&path)?.try_lock()?,
        };
        candidate = match held {
            Ok(held) => {
                let got = WaitOutcome::Acquired(held);
                waiting.end(&got);
                return Ok(got);
            }
            Err(busy) => busy,
        };
    }
}

/// The first signal among `events` that ends a wait. The others are dealt with; USR1 by `report`.
pub(super) fn first_termination_signal(events: &[Event], ignored: SigSet, report: impl Fn()) -> Option<Signal> {
    for event in events {
        let Event::Signal(signal, sender) = *event else { continue };
        match signal {
            _ if ignored.contains(signal) => {}
            Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM | Signal::SIGUSR2 => {
                return Some(signal);
            }
            Signal::SIGTSTP => signal::stop_for_job_control(sender),
            Signal::SIGUSR1 => report(),
            _ => {}
        }
    }
    None
}

/// Says that `signal` has ended the wait for `what`.
pub(super) fn log_interrupted(signal: Signal, what: &str, waited: &str) {
    warn!(name: "lock.interrupted", "{signal} ended the wait for {what} after {waited}; nothing was started");
}

type Answer = mpsc::Receiver<(LockFile, io::Result<()>)>;

/// Starts the thread that sleeps in flock(2). When nobody wants its answer any more, the answer and its lock are dropped.
fn lock_in_thread(candidate: LockFile, events: EventSender) -> Result<(Answer, JoinHandle<()>)> {
    let (sender, answer) = mpsc::sync_channel(1);
    let work = move || {
        let result = candidate.lock_blocking();
        // The receiver is gone when the wait was given up: then this drops the candidate, and with it the lock.
        let _ = sender.send((candidate, result));
        events.send(Event::FlockReturned);
    };
    let thread = signal::spawn_with_signals_blocked("flock", 64 * 1024, work)
        .context("cannot start the thread that waits for the lock")?;
    Ok((answer, thread))
}

/// A wait that goes on, and what is shown of it: one live line on a terminal, else one message at the start and one at the end.
struct Waiting<'a> {
    lock: &'a LockRequest,
    journal: &'a mut RunRecorder,
    bound: Option<Duration>,
    started: Instant,
    wanted: FileId,
    line: Option<LiveLine>,
    /// How often the records were asked whether a run above us holds the lock.
    asked: u32,
}

/// A run above us, in another PID namespace, may be about to write the record that proves it: so often it is asked for again,
/// after 10 ms, 20 ms, 40 ms … up to a minute and a half.
const ASK_AGAIN: u32 = 14;

/// How long a wait is that is none, for that alone.
const RECORD_GRACE: Duration = Duration::from_millis(100);

/// Among more runs than this, a waiter that no person watches has only one look for the holder: all of them together would
/// keep the machine from the work that they wait for. `claude-run status` tells.
const CROWD: usize = 64;

impl Waiting<'_> {
    /// Sleeps until the thread has an answer (`None`), or the wait is over without one.
    fn until_answered(&mut self, events: &mut EventQueue) -> Result<Option<WaitOutcome>> {
        let deadline = after(self.started, self.bound);
        loop {
            let deadlines = [deadline, self.next_refresh(), self.next_question(), self.journal.next_deadline()];
            let events = events.wait(deadlines.into_iter().flatten().min()).context("cannot wait for events")?;
            self.journal.run_due();
            // Signals first: a TERM that came with the lock still means that nothing is to be started.
            if let Some(signal) = first_termination_signal(&events, self.lock.ignored, || self.say()) {
                return Ok(Some(WaitOutcome::Interrupted(signal)));
            }
            if events.contains(&Event::FlockReturned) {
                return Ok(None);
            }
            if events.contains(&Event::FilesChanged)
                && let Some(reason) = self.lock.reason_not_needed()
            {
                return Ok(Some(WaitOutcome::NotNeeded(reason)));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Some(WaitOutcome::TimedOut));
            }
            if self.next_question().is_some_and(|at| Instant::now() >= at) {
                self.asked += 1;
                if self.lock.above.holds(self.wanted, self.journal.directory()) {
                    return Ok(Some(WaitOutcome::HeldByAncestor(self.wanted)));
                }
            }
            self.refresh();
        }
    }

    fn next_question(&self) -> Option<Instant> {
        let may_hold = self.asked < ASK_AGAIN && self.lock.above.may_hold(self.wanted);
        may_hold.then(|| after(self.started, Some(Duration::from_millis(10 << self.asked)))).flatten()
    }

    /// At the start of the wait.
    fn tell(&mut self) {
        if self.line.is_none() {
            self.line = LiveLine::on_terminal();
            if self.line.is_none() {
                self.say();
            }
        }
        self.refresh();
    }

    fn say(&self) {
        let path = self.lock.path.display();
        let bound = self.bound.map_or_else(|| "no limit".to_owned(), |bound| format!("at most {}", show(bound)));
        let waited = self.waited();
        let waited = if waited.is_zero() { String::new() } else { format!("{} of ", show(waited)) };
        let records = self.journal.directory();
        let is_crowded = records.is_some_and(|records| records.count() > CROWD);
        let holder =
            if is_crowded { Holder::find_at_a_glance(records, self.wanted, 1) } else { Holder::find(records, self.wanted) };
        let holder = holder.map_or_else(String::new, |holder| format!(", held by {holder}"));
        warn!(name: "lock.waiting", "waiting for the session lock {path} ({waited}{bound}){holder}");
    }

    fn refresh(&self) {
        let Some(line) = &self.line else { return };
        let records = self.journal.directory();
        let holder = Holder::find(records, self.wanted);
        let holder = holder.map_or_else(|| self.lock.path.display().to_string(), |holder| format!("held by {holder}"));
        let place = records.and_then(|records| place(records, &self.journal.run().to_string()));
        let place = place.map_or_else(String::new, |(place, of)| format!("; place {place} of {of}"));
        // What changes and matters most stands first: a narrow terminal shows only that.
        let waited = self.waited();
        let left =
            self.bound.map_or_else(String::new, |bound| format!(", {} left", show_seconds(bound.saturating_sub(waited))));
        line.show(&format!("waited {}{left} for the session lock{place}; {holder}; Ctrl-C ends it", show(waited)));
    }

    /// In full seconds.
    fn waited(&self) -> Duration {
        Duration::from_secs(self.started.elapsed().as_secs())
    }

    /// The next full second of the wait, on a terminal. Elsewhere nothing needs to be woken.
    fn next_refresh(&self) -> Option<Instant> {
        self.line.as_ref().and_then(|_| after(self.started, Some(self.waited() + Duration::from_secs(1))))
    }

    fn end(mut self, ending: &WaitOutcome) {
        self.line = None; // wiped before anything else is written
        let waited = show(self.started.elapsed());
        match ending {
            WaitOutcome::Acquired(_) => warn!(name: "lock.acquired", "got the session lock after {waited}"),
            WaitOutcome::Interrupted(signal) => log_interrupted(*signal, "the session lock", &waited),
            WaitOutcome::NotNeeded(reason) => {
                warn!(name: "lock.unneeded", "need not wait for the session lock any more, after {waited}: {reason}");
            }
            WaitOutcome::TimedOut | WaitOutcome::HeldByAncestor(_) => {} // told by the caller, which also knows of waits that never began
        }
    }
}

/// The place of `run` among those that wait, and how many those are.
fn place(records: &RecordStore, run: &str) -> Option<(usize, usize)> {
    let live = records.census().ok()?.live;
    let mut waiting: Vec<_> = live.iter().filter(|record| record.state == State::Waiting).collect();
    waiting.sort_by_key(|record| record.since);
    Some((waiting.iter().position(|record| record.run == run)? + 1, waiting.len()))
}
