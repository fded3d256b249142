//! The one wait of this room: for the session lock, for the lock helper, for claude's refresh locks, and for the helper's end. It
//! sleeps on the event queue and handles all that may come meanwhile: signals, the recorder's deadlines, the deadline of the wait,
//! and what the waiter is shown.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use tracing::warn;

use super::holder::Holder;
use crate::config::duration::{after, show, show_seconds};
use crate::events::{Event, EventQueue};
use crate::logging::LiveLine;
use crate::records::{RecordStore, RunRecorder, State};
use crate::sys::file_id::FileId;
use crate::sys::signal;

/// A wait, or several in a row.
pub(super) struct LockWait<'a> {
    pub(super) recorder: &'a mut RunRecorder,
    pub(super) events: &'a mut EventQueue,
    /// Signals that do not end the wait.
    ignored: SigSet,
    pub(super) target: Target,
    pub(super) started: Instant,
    /// Longest wait, for messages.
    pub(super) limit: Option<Duration>,
    pub(super) deadline: Option<Instant>,
    /// Time at which the condition is to be checked again, even without an event.
    pub(super) recheck_at: Option<Instant>,
    /// Time of the first progress message; on a terminal, then the next update of the live line.
    pub(super) next_progress_at: Option<Instant>,
    live_line: Option<LiveLine>,
    /// True once the waiter was shown that it waits.
    pub(super) is_announced: bool,
}

/// The awaited thing, as messages name it.
pub(super) enum Target {
    /// The lock file's path, and the file that has it now.
    SessionLock(PathBuf, FileId),
    /// The command's name.
    Helper(String),
    /// The command's name.
    HelperShutdown(String),
    RefreshLocks,
}

/// Reason for the end of a wait.
pub(super) enum WaitEnd<T> {
    /// The condition has given a value.
    Met(T),
    TimedOut,
    Interrupted(Signal),
}

/// With more live runs than this, a waiter without a terminal takes only one look for the holder: all of them together would keep
/// the machine from the work that they wait for.
const CROWD: usize = 64;

impl<'a> LockWait<'a> {
    pub(super) fn new(target: Target, recorder: &'a mut RunRecorder, events: &'a mut EventQueue, ignored: SigSet) -> Self {
        Self {
            recorder,
            events,
            ignored,
            target,
            started: Instant::now(),
            limit: None,
            deadline: None,
            recheck_at: None,
            next_progress_at: None,
            live_line: None,
            is_announced: false,
        }
    }

    /// Begins a wait for `target` that ends `limit` after `started`.
    pub(super) fn begin(&mut self, target: Target, limit: Option<Duration>) {
        (self.target, self.limit, self.deadline) = (target, limit, after(self.started, limit));
        (self.recheck_at, self.next_progress_at, self.is_announced) = (None, None, false);
    }

    /// Sleeps until `condition`, given the events that have come, has a value; or until the deadline or a termination signal. Events
    /// that came together with the signal stay in the queue.
    pub(super) fn until<T>(&mut self, condition: impl FnMut(&mut Self, &[Event]) -> Result<Option<T>>) -> Result<WaitEnd<T>> {
        let end = self.handle_events(condition);
        self.live_line = None; // wiped before anything else is written
        if let Ok(WaitEnd::Interrupted(signal)) = end
            && !matches!(self.target, Target::HelperShutdown(_))
        {
            self.log_interrupted(signal);
        }
        end
    }

    fn handle_events<T>(&mut self, mut condition: impl FnMut(&mut Self, &[Event]) -> Result<Option<T>>) -> Result<WaitEnd<T>> {
        // The first look does not sleep, but takes the signals that are there: a TERM means that nothing is to be started.
        let mut wake_at = Some(Instant::now());
        loop {
            let events = self.events.wait(wake_at).context("cannot wait for events")?;
            self.recorder.run_due();
            if let Some((at, signal)) = self.first_termination_signal(&events) {
                let is_unread = |(index, event): &(usize, Event)| *index > at || !matches!(event, Event::Signal(..));
                self.events.requeue(events.into_iter().enumerate().filter(is_unread).map(|(_, event)| event).collect());
                return Ok(WaitEnd::Interrupted(signal));
            }
            if let Some(value) = condition(self, &events)? {
                return Ok(WaitEnd::Met(value));
            }
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(WaitEnd::TimedOut);
            }
            if self.next_progress_at.is_some_and(|at| now >= at) {
                self.show_progress();
            }
            let deadlines = [self.deadline, self.recheck_at, self.next_progress_at, self.recorder.next_deadline()];
            wake_at = deadlines.into_iter().flatten().min();
        }
    }

    /// The first signal among `events` that ends the wait, and its place. Handles the signals before it.
    fn first_termination_signal(&self, events: &[Event]) -> Option<(usize, Signal)> {
        for (at, event) in events.iter().enumerate() {
            let Event::Signal(signal, source) = *event else { continue };
            match signal {
                _ if self.ignored.contains(signal) => {}
                Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM | Signal::SIGUSR2 => {
                    return Some((at, signal));
                }
                Signal::SIGTSTP => signal::stop_for_job_control(source),
                Signal::SIGUSR1 => self.log_progress(),
                _ => {}
            }
        }
        None
    }

    pub(super) fn log_interrupted(&self, signal: Signal) {
        let waited = show(self.started.elapsed());
        warn!(name: "lock.interrupted", "{signal} ended the wait for {} after {waited}; nothing was started", self.target);
    }

    /// Shows one live line on a terminal, rewritten each second; elsewhere logs one message, and nothing needs to wake us again.
    fn show_progress(&mut self) {
        self.is_announced = true;
        self.live_line = self.live_line.take().or_else(LiveLine::on_terminal);
        if let Some(line) = &self.live_line {
            line.show(&self.live_text());
            self.next_progress_at = after(self.started, Some(self.waited() + Duration::from_secs(1)));
        } else {
            self.log_progress();
            self.next_progress_at = None;
        }
    }

    fn log_progress(&self) {
        let limit = self.limit.map_or_else(|| "no limit".to_owned(), |limit| format!("at most {}", show(limit)));
        let waited = self.waited();
        let waited = if waited.is_zero() { String::new() } else { format!("{} of ", show(waited)) };
        let path = match &self.target {
            Target::SessionLock(path, _) => format!(" {}", path.display()),
            _ => String::new(),
        };
        let records = self.recorder.store();
        let holder = match self.target {
            Target::SessionLock(_, file) if records.is_some_and(|records| records.count() > CROWD) => {
                Holder::find_at_a_glance(records, file, 1).map(|holder| holder.to_string())
            }
            _ => self.holder(),
        };
        let holder = holder.map_or_else(String::new, |holder| format!(", held by {holder}"));
        warn!(name: "lock.waiting", "waiting for {}{path} ({waited}{limit}){holder}", self.target);
    }

    fn live_text(&self) -> String {
        let waited = self.waited();
        let left = self.limit.map(|limit| format!(", {} left", show_seconds(limit.saturating_sub(waited))));
        let mut holder = self.holder().map(|holder| format!("; held by {holder}"));
        let mut place = None;
        if let Target::SessionLock(path, _) = &self.target {
            let (records, run) = (self.recorder.store(), self.recorder.run().to_string());
            place = records.and_then(|records| place_of(&run, records)).map(|(place, of)| format!("; place {place} of {of}"));
            holder = holder.or_else(|| Some(format!("; {}", path.display())));
        }
        // What changes and matters most comes first: a narrow terminal shows only that.
        let [left, place, holder] = [left, place, holder].map(Option::unwrap_or_default);
        format!("waited {}{left} for {}{place}{holder}; Ctrl-C ends it", show(waited), self.target)
    }

    fn holder(&self) -> Option<String> {
        let records = self.recorder.store();
        match self.target {
            Target::SessionLock(_, file) => Holder::find(records, file).map(|holder| holder.to_string()),
            // Where hosts share their records, but not their locks, that run may be gone by now.
            Target::Helper(_) => records.and_then(RecordStore::helped).map(|record| {
                let since = SystemTime::now().duration_since(record.since).unwrap_or_default();
                format!("{} for {}, by its record", record.who(), show_seconds(since))
            }),
            Target::HelperShutdown(_) | Target::RefreshLocks => None,
        }
    }

    /// Time since the start, in full seconds.
    fn waited(&self) -> Duration {
        Duration::from_secs(self.started.elapsed().as_secs())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SessionLock(..) => f.write_str("the session lock"),
            Self::Helper(name) => write!(f, "the lock helper {name}"),
            Self::HelperShutdown(name) => write!(f, "the lock helper {name} to release its lock"),
            Self::RefreshLocks => f.write_str("claude's refresh lock"),
        }
    }
}

/// Place of `run` among the waiters, and their number.
fn place_of(run: &str, records: &RecordStore) -> Option<(usize, usize)> {
    let live = records.census().ok()?.live;
    let mut waiting: Vec<_> = live.iter().filter(|record| record.state == State::Waiting).collect();
    waiting.sort_by_key(|record| record.since);
    Some((waiting.iter().position(|record| record.run == run)? + 1, waiting.len()))
}
