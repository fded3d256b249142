//! The one wait of this room: for a slot, for the session lock, for the lock helper, for claude's refresh locks, and for the helper's end. It
//! sleeps on the event queue and handles all that may come meanwhile: signals, the recorder's deadlines, the deadline of the wait. And
//! it has the sentences for what is waited for.

use std::cell::Cell;
use std::fmt;
use std::mem;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracing::{info, warn};

use super::ancestor_checks::AncestorChecks;
use super::holder::{Holder, Process, Queue};
use super::slot_files::{SlotsDir, queue_holder, slot_files};
use crate::config::duration::{CATCH_UP, after, is_late, show, show_seconds};
use crate::config::settings::Wait;
use crate::events::{Event, EventQueue};
use crate::logging::LiveLine;
use crate::records::{Hold, RecordStore, RunRecorder};
use crate::sys::file_id::FileId;
use crate::sys::signal::{self, Signal};

/// A wait, or several in a row.
pub(super) struct LockWait<'a> {
    pub(super) recorder: &'a mut RunRecorder,
    pub(super) events: &'a mut EventQueue,
    pub(super) awaited: Awaited,
    pub(super) started: Instant,
    /// Longest wait, for messages.
    pub(super) limit: Option<Duration>,
    pub(super) deadline: Option<Instant>,
    /// Time at which the condition is to be checked again, even without an event.
    pub(super) recheck_at: Option<Instant>,
    /// Where an ancestor may hold what is waited for.
    pub(super) ancestor_checks: Option<AncestorChecks>,
    /// Time of the first progress message; on a terminal, then the next update of the live line.
    pub(super) next_progress_at: Option<Instant>,
    live_line: Option<LiveLine>,
    /// The processes without a record that were last found to hold the lock.
    last_holder: Cell<Vec<Process>>,
    /// True once the waiter was shown that it waits.
    pub(super) is_announced: bool,
}

/// The awaited thing, as messages name it.
pub(super) enum Awaited {
    /// One of so many slots; the ticket for it, once there is one.
    Slot {
        of: u16,
        ticket: Option<u64>,
    },
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

/// With more live runs than this, a waiter without a terminal looks for the holder in the records, and at the process that had it
/// before: while 64 asked the kernel, 256 waiters had a third of flock(1)'s hand-offs.
const CROWD: usize = 8;

impl<'a> LockWait<'a> {
    /// A wait of a run whose first wait `started` then: the limit is one for all.
    pub(super) fn new(awaited: Awaited, started: Instant, recorder: &'a mut RunRecorder, events: &'a mut EventQueue) -> Self {
        Self {
            recorder,
            events,
            awaited,
            started,
            limit: None,
            deadline: None,
            recheck_at: None,
            ancestor_checks: None,
            next_progress_at: None,
            live_line: None,
            last_holder: Cell::default(),
            is_announced: false,
        }
    }

    /// Begins a wait for `awaited` that ends `limit` after `started`.
    pub(super) fn begin(&mut self, awaited: Awaited, limit: Option<Duration>) {
        (self.awaited, self.limit, self.deadline) = (awaited, limit, after(self.started, limit));
        (self.recheck_at, self.ancestor_checks, self.next_progress_at, self.is_announced) = (None, None, None, false);
    }

    /// True if it is time to look for an ancestor that holds what is waited for.
    pub(super) fn is_ancestor_check_due(&mut self) -> bool {
        self.ancestor_checks.as_mut().is_some_and(AncestorChecks::is_due)
    }

    /// Sleeps until `condition`, given the events that have come, has a value; or until the deadline or a termination signal. Events
    /// that came together with the signal stay in the queue.
    pub(super) fn until<T>(&mut self, condition: impl FnMut(&mut Self, &[Event]) -> Result<Option<T>>) -> Result<WaitEnd<T>> {
        let end = self.handle_events(condition);
        self.live_line = None; // wiped before anything else is written
        if let Ok(WaitEnd::Interrupted(signal)) = end
            && !matches!(self.awaited, Awaited::HelperShutdown(_))
        {
            let waited = show(self.started.elapsed());
            warn!(name: "lock.interrupted", "{signal} ended the wait for {} after {waited}; nothing was started", self.awaited);
        }
        end
    }

    fn handle_events<T>(&mut self, mut condition: impl FnMut(&mut Self, &[Event]) -> Result<Option<T>>) -> Result<WaitEnd<T>> {
        // The first look does not sleep, but takes the signals that are there: a TERM means that nothing is to be started.
        let mut wake_at = Some(Instant::now());
        let mut caught_up_at = None;
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
            if self.next_progress_at.is_some_and(|at| now >= at) {
                self.show_progress();
            }
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                let is_late = self.limit != Some(Duration::ZERO) && is_late(wake_at, now);
                match caught_up_at {
                    None if is_late => caught_up_at = Some(now + CATCH_UP),
                    Some(at) if now < at => {}
                    _ => return Ok(WaitEnd::TimedOut),
                }
            }
            let check_at = self.ancestor_checks.as_ref().and_then(AncestorChecks::next_at);
            let deadlines = [
                caught_up_at.or(self.deadline),
                self.recheck_at,
                check_at,
                self.next_progress_at,
                self.recorder.next_deadline(),
            ];
            wake_at = deadlines.into_iter().flatten().min();
        }
    }

    /// The first signal among `events` that ends the wait, and its place. Handles the signals before it.
    fn first_termination_signal(&self, events: &[Event]) -> Option<(usize, Signal)> {
        for (at, event) in events.iter().enumerate() {
            let Event::Signal(signal, source) = *event else { continue };
            match signal {
                _ if self.events.inherited.ignored.contains(signal) => {}
                _ if signal::requests_end(signal) || signal == Signal::SIGUSR2 => return Some((at, signal)),
                Signal::SIGTSTP => signal::stop_for_job_control(source),
                Signal::SIGUSR1 => warn!(name: "run.state", "{}", self.progress()),
                _ => {}
            }
        }
        None
    }

    /// Logs that the session lock `lock` is held, in the way `hold`.
    pub(super) fn log_held(&self, lock: &Path, hold: Hold) {
        let how = match hold {
            Hold::Own if self.is_announced => {
                let waited = show(self.started.elapsed());
                return warn!(name: "lock.acquired", "got the session lock after {waited}");
            }
            Hold::Own => "holding the session lock",
            Hold::RunAbove => "a process above this one holds the session lock for it",
            Hold::Caller => "the caller's own descriptor holds the session lock for this run",
        };
        info!(name: "lock.acquired", lock = %lock.display(), "{how}");
    }

    /// Logs that the lock helper holds its lock, by `key`.
    pub(super) fn log_key(&self, key: Option<String>) {
        if self.is_announced {
            warn!(name: "lock.acquired", key, "{} has its lock after {}", self.awaited, show(self.started.elapsed()));
        } else {
            info!(name: "lock.acquired", key, "{} has the lock", self.awaited);
        }
    }

    pub(super) fn log_not_needed(&self, reason: &str) {
        if self.is_announced {
            let waited = show(self.started.elapsed());
            warn!(name: "lock.unneeded", "need not wait for {} any more, after {waited}: {reason}", self.awaited);
        } else {
            info!(name: "lock.unneeded", "starting without {}: {reason}", self.awaited);
        }
    }

    /// Logs that a lock was not free within `wait`, as a warning: with `-q`, the exit code alone tells, and nobody looks for the holder.
    pub(super) fn log_timeout(&self, wait: Wait, reason: Option<String>) {
        if matches!(self.awaited, Awaited::Slot { .. }) {
            warn!(name: "slot.timeout", "{}", self.timeout(wait, reason));
        } else {
            warn!(name: "lock.timeout", "{}", self.timeout(wait, reason));
        }
    }

    fn timeout(&self, wait: Wait, reason: Option<String>) -> String {
        let limit = show(self.limit.unwrap_or_default());
        let gave_up = if wait == Wait::No { "--wait is 0".to_owned() } else { format!("gave up after {limit}") };
        let way_out = "see claude-run status, or raise --wait";
        match &self.awaited {
            Awaited::SessionLock(..) => {
                let holder = self.holder_at_a_glance().unwrap_or_else(|| "another process".to_owned());
                format!("{gave_up}: {} is held by {holder}; {way_out}", self.with_path())
            }
            Awaited::Slot { of, ticket } => {
                let records = self.recorder.store().filter(|_| ticket.is_none());
                let queue =
                    records.and_then(queue_holder).map(|holder| format!(", and the queue for them is held by {holder}"));
                format!("{gave_up}: {}{}; {way_out}", self.slots_in_use(*of), queue.unwrap_or_default())
            }
            awaited => {
                let reason = reason.as_deref().unwrap_or("see whether its engine answers, or raise --wait");
                format!("{gave_up}: {awaited} did not get its lock; {reason}; nothing was started")
            }
        }
    }

    /// Logs that the slot `number` of `of` is ours.
    pub(super) fn log_slot(&self, number: u16, of: u16) {
        if self.is_announced {
            warn!(name: "slot.acquired", slot = number, "got one of {of} slots after {}", show(self.started.elapsed()));
        } else {
            info!(name: "slot.acquired", slot = number, "got one of {of} slots");
        }
    }

    fn slots_in_use(&self, of: u16) -> String {
        let in_use = self.recorder.store().map_or(0, |store| slot_files(store).iter().filter(|slot| slot.is_held).count());
        format!("{in_use} of {of} slots in use")
    }

    /// Shows one live line on a terminal, rewritten each second. Elsewhere, and in the background, it logs one message; elsewhere nothing
    /// needs to wake us again.
    fn show_progress(&mut self) {
        let is_first = !mem::replace(&mut self.is_announced, true);
        self.live_line = self.live_line.take().or_else(LiveLine::on_terminal);
        let needs_message = self.live_line.as_ref().is_none_or(|line| is_first && !line.is_shown());
        if needs_message {
            match self.awaited {
                Awaited::Slot { .. } => warn!(name: "slot.waiting", "{}", self.progress()),
                _ => warn!(name: "lock.waiting", "{}", self.progress()),
            }
        }
        let next = self.waited() + Duration::from_secs(1);
        self.next_progress_at = self.live_line.as_ref().and_then(|line| {
            line.show(&self.live_text());
            after(self.started, Some(next))
        });
    }

    fn progress(&self) -> String {
        let limit = self.limit.map_or_else(|| "no limit".to_owned(), |limit| format!("at most {}", show(limit)));
        let waited = self.waited();
        let waited = if waited.is_zero() { String::new() } else { format!("{} of ", show(waited)) };
        let holder = self.holder_at_a_glance().map_or_else(String::new, |holder| format!(", held by {holder}"));
        match self.awaited {
            Awaited::Slot { of, .. } => format!("waiting for a slot ({waited}{limit}), {}", self.slots_in_use(of)),
            _ => format!("waiting for {} ({waited}{limit}){holder}", self.with_path()),
        }
    }

    /// What is waited for; the session lock with its path.
    fn with_path(&self) -> String {
        match &self.awaited {
            Awaited::SessionLock(path, _) => format!("{} {}", self.awaited, path.display()),
            awaited => awaited.to_string(),
        }
    }

    /// Text of the live line. What changes and matters most comes first: a narrow terminal shows only that.
    fn live_text(&self) -> String {
        let waited = self.waited();
        let of = self.limit.map_or_else(String::new, |limit| format!(" of {}", show_seconds(limit)));
        let what = match &self.awaited {
            Awaited::SessionLock(..) | Awaited::Slot { .. } => {
                self.place().map_or_else(String::new, |(place, of)| format!(", {} of {of}", ordinal(place)))
            }
            awaited => format!(" for {awaited}"),
        };
        let held = match self.awaited {
            Awaited::Slot { of, .. } => format!("; {}", self.slots_in_use(of)),
            _ => self.holder_in(usize::MAX, Holder::short).map_or_else(String::new, |holder| format!("; held by {holder}")),
        };
        format!("waited {}{of}{what}{held}; Ctrl-C ends it", show(waited))
    }

    /// In a crowd, only if that takes no look at /proc/locks: all together would keep the machine from the work that they wait for.
    fn holder_at_a_glance(&self) -> Option<String> {
        self.holder_in(CROWD, Holder::to_string)
    }

    fn holder_in(&self, crowd: usize, name: impl Fn(&Holder) -> String) -> Option<String> {
        let records = self.recorder.store();
        match self.awaited {
            Awaited::SessionLock(_, file) => {
                let found = Holder::find(records, file, crowd, &self.last_holder.take());
                self.last_holder.set(found.as_ref().map_or(Vec::new(), |holder| holder.processes().to_vec()));
                found.as_ref().map(name)
            }
            // Where hosts share their records, but not their locks, that run may be gone by now.
            Awaited::Helper(_) => records
                .and_then(RecordStore::helped)
                .map(|record| format!("{} for {}, by its record", record.who(), show_seconds(record.age()))),
            Awaited::Slot { .. } | Awaited::HelperShutdown(_) | Awaited::RefreshLocks => None,
        }
    }

    /// Our place among those who wait for the same lock, old callers of flock(1) included, or for a slot, and their number.
    fn place(&self) -> Option<(usize, usize)> {
        let records = self.recorder.store()?;
        match &self.awaited {
            Awaited::SessionLock(_, lock) => {
                let run = self.recorder.run().to_string();
                let live = records.census().ok()?.live;
                let waiting = live.iter().filter(|record| record.waits() && record.is_about(*lock)).cloned().collect();
                let queue = Queue::look(*lock).in_order(&live, waiting, |_| false);
                let place = queue.iter().position(|waiter| waiter.as_ref().is_ok_and(|record| record.run == run))?;
                Some((place + 1, queue.len()))
            }
            Awaited::Slot { ticket: Some(ticket), .. } => {
                let all = SlotsDir::read(records).tickets;
                Some((all.iter().filter(|other| *other <= ticket).count(), all.len()))
            }
            _ => None,
        }
    }

    /// Time since the start, in full seconds.
    fn waited(&self) -> Duration {
        Duration::from_secs(self.started.elapsed().as_secs())
    }
}

/// `1st`, `2nd`, `11th`
fn ordinal(number: usize) -> String {
    let end = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{end}")
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot { .. } => f.write_str("a slot"),
            Self::SessionLock(..) => f.write_str("the session lock"),
            Self::Helper(name) => write!(f, "the lock helper {name}"),
            Self::HelperShutdown(name) => write!(f, "the lock helper {name} to release its lock"),
            Self::RefreshLocks => f.write_str("claude's refresh lock"),
        }
    }
}

impl Drop for LockWait<'_> {
    fn drop(&mut self) {
        self.events.watch_files(&[]);
    }
}

#[cfg(test)]
pub(super) mod tests;
