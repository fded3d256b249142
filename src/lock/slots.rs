//! Slots: N places to run at once in one config dir. A run has a slot while it, or a process that has inherited the descriptor, holds
//! the flock on that slot's file; so a slot is as proof against KILL and leaks as the session lock is.
//!
//! First come, first served, without polling. A run that finds others waiting, or no slot free, makes a ticket, a file with the next number
//! that it keeps locked, and sleeps in flock(2) on the last ticket before its own whose run lives. So each waiter has one other to wait
//! for, and a waiter that is killed wakes one other. (flock's own queue loses its order when waiters in it are killed: measured.) Tickets
//! are made under the lock on the file `queue`, for a moment. One that is stopped would keep a free slot from all behind it, and nothing
//! wakes those: they look each ten seconds, and take what has stayed free.
//!
//! The first looks for a slot. It starts if less than N slots are held, counting those beyond N, from before N was lowered; else it sleeps
//! in flock(2) on each slot that is held, with a thread for each, as the kernel has no wait for one of several locks. (inotify has one, but
//! tells of a close before the lock is free.) Whatever ends that sleep, it counts again. What a thread acquires it lets go at once.
//!
//! A slot comes before the session lock, in every mode, so that there is no circle: who holds the lock has a slot, or never asks for one.
//! The latter are those who run below a run with a slot, and those whose caller holds the lock for them, as an old shell block does.

use std::mem;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::slice;
use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::{debug, info, warn};

use super::ancestor_checks::AncestorChecks;
use super::claims::{AncestorRuns, Claim};
use super::file::{FlockGuard, LockAttempt, LockFile};
use super::flock_thread::FlockThread;
use super::request::Acquisition;
use super::slot_files::{QUEUE, SlotsDir, slot_files, ticket_name};
use super::wait::{Awaited, LockWait, WaitEnd};
use crate::config::settings::{Slots, Wait, slots_in};
use crate::events::{Event, EventQueue, EventSender};
use crate::records::{RecordStore, RunRecorder};
use crate::run_id::RunId;
use crate::sys::file_id::FileId;

/// A run's wish for a slot.
#[derive(Debug)]
pub struct SlotRequest {
    pub(crate) store: RecordStore,
    /// Number of slots.
    pub(crate) of: u16,
    /// Settings file in which that number may change.
    pub(crate) file: Option<PathBuf>,
    /// The session lock: for whom it is held already, a slot would come too late.
    pub(crate) session_lock: PathBuf,
    pub(crate) wait: Wait,
    pub(crate) conflict_exit_code: u8,
    pub(crate) above: AncestorRuns,
}

/// A slot. Dropping it releases it.
#[derive(Debug)]
pub struct SlotGuard {
    flock: FlockGuard,
    number: u16,
}

/// Time for which a slot may be free while others wait: then whoever is before us is stopped, or frozen, and loses its turn.
const MAX_TURN: Duration = Duration::from_secs(10);

/// Time to get to a free slot where nobody wants to wait: others may be at the queue, on their way to theirs, on a machine that has much to
/// do. A record that proves that none is needed may come meanwhile, too.
const PASSING: Duration = Duration::from_secs(1);

/// Time for which a wait is not worth a message.
const UNNOTICED: Duration = Duration::from_millis(100);

/// Acquires a slot, in a wait that is bounded from `started` on.
///
/// # Errors
/// A file of the slots cannot be opened or created, or its file system has no flock(2).
pub fn acquire_slot(
    request: &SlotRequest,
    started: Instant,
    recorder: &mut RunRecorder,
    events: &mut EventQueue,
) -> Result<Acquisition<SlotGuard>> {
    if request.above.claim_slots() && request.is_nested(false) {
        return Ok(without(NESTED));
    }
    let mut search = Search { request, of: request.of, stage: Stage::Arriving(None), was_free: false };
    let first = match LockFile::open_among_slots(&request.store, QUEUE)?.try_lock()? {
        LockAttempt::Acquired(queue) => search.enter(queue, &events.sender())?,
        LockAttempt::Busy(queue) => {
            search.stage = Stage::Arriving(Some(queue));
            None
        }
    };
    let mut wait = LockWait::new(search.awaited(), started, recorder, events);
    let acquisition = match first {
        Some(slot) => Ok(Acquisition::Held(slot)),
        None => request.reason_not_needed(wait.recorder).map_or_else(|| search.wait(&mut wait), |reason| Ok(without(reason))),
    };
    match &acquisition {
        Ok(Acquisition::Held(slot)) => {
            wait.log_slot(slot.number, search.of);
            let path = request.store.slots().join(slot.number.to_string());
            wait.recorder.on_slot(Some((path, slot.flock.file_id())));
        }
        Ok(Acquisition::NotAcquired) => {
            wait.recorder.on_slot(None);
            wait.log_timeout(request.wait, None);
        }
        Ok(Acquisition::NotNeeded(_) | Acquisition::Interrupted(_)) | Err(_) => wait.recorder.on_slot(None),
    }
    acquisition
}

fn without(reason: &str) -> Acquisition<SlotGuard> {
    info!(name: "slot.unneeded", "starting without a slot: {reason}");
    Acquisition::NotNeeded(reason.to_owned())
}

/// Reason to start without a slot.
const NESTED: &str = "a run above this one has one";

impl SlotRequest {
    /// True if a run above us has a slot. Those who find one free need not ask, unless their environment says so.
    fn is_nested(&self, we_wait: bool) -> bool {
        let slots: Vec<_> = slot_files(&self.store).iter().filter(|slot| slot.is_held).map(|slot| slot.file_id).collect();
        self.above.have_slot(&slots, Some(&self.store), we_wait)
    }

    /// Reason why to wait for a slot would be a deadlock: an ancestor, or our caller, holds it or the session lock for us.
    fn reason_not_needed(&self, recorder: &RunRecorder) -> Option<&'static str> {
        let is_held_for_us = |lock| self.above.hold_for_us(lock, recorder.store(), false).is_some();
        match FileId::at(&self.session_lock) {
            _ if self.is_nested(true) => Some(NESTED),
            Some(lock) if is_held_for_us(lock) => Some("the session lock is held for this run already"),
            _ => None,
        }
    }
}

/// The search for a free slot.
struct Search<'a> {
    request: &'a SlotRequest,
    /// Number of slots, which may change meanwhile.
    of: u16,
    stage: Stage,
    /// True if a slot was free at our last look, though others are before us.
    was_free: bool,
}

enum Stage {
    /// About to make a ticket, while the lock on the queue is busy.
    Arriving(Option<LockFile>),
    /// Sleeps until that lock is ours.
    Waiting(FlockThread),
    /// Has a ticket, unless none could be made, as on a full disk; asleep on the one before.
    Behind(Option<Ticket>, FlockThread),
    /// The first, or without a ticket that others could wait for; a thread for each slot that was found busy.
    First(Option<Ticket>, Vec<FlockThread>),
}

/// Our place among those who wait. Dropping it wakes the next.
struct Ticket {
    number: u64,
    store: RecordStore,
    flock: FlockGuard,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let (name, file) = (ticket_name(self.number), self.flock.file_id());
        // In a directory that was replaced meanwhile, it is another run's. If it stays, the next removes it.
        if FileId::at(&self.store.slots().join(&name)) == Some(file) {
            let _ = self.store.open_slots().and_then(|dir| dir.remove(&name));
        }
    }
}

impl Search<'_> {
    fn wait(&mut self, wait: &mut LockWait) -> Result<Acquisition<SlotGuard>> {
        let SlotRequest { above, session_lock, .. } = self.request;
        let may_be_needless = above.claim_slots() || FileId::at(session_lock).is_some_and(|lock| above.may_hold(lock));
        if self.request.wait == Wait::No && !may_be_needless && (matches!(self.stage, Stage::First(..)) || self.is_full()) {
            return Ok(Acquisition::NotAcquired);
        }
        wait.begin(self.awaited(), self.request.wait.limit(PASSING));
        wait.next_progress_at = (self.request.wait != Wait::No).then(|| Instant::now() + UNNOTICED);
        wait.ancestor_checks = may_be_needless.then(|| AncestorChecks::since(Instant::now()));
        if let Stage::Arriving(queue) = &mut self.stage
            && let Some(queue) = queue.take()
        {
            self.stage = Stage::Waiting(FlockThread::start(queue, wait.events.sender())?);
        }
        self.on_moved(wait);
        let end = wait.until(|wait, events| self.advance(wait, events))?;
        Ok(match end {
            WaitEnd::Met(acquisition) => acquisition,
            WaitEnd::TimedOut => Acquisition::NotAcquired,
            WaitEnd::Interrupted(signal) => Acquisition::Interrupted(signal),
        })
    }

    fn advance(&mut self, wait: &mut LockWait, events: &[Event]) -> Result<Option<Acquisition<SlotGuard>>> {
        if wait.is_ancestor_check_due()
            && let Some(reason) = self.request.reason_not_needed(wait.recorder)
        {
            return Ok(Some(without(reason)));
        }
        let is_answered = match &mut self.stage {
            Stage::Arriving(_) => false,
            Stage::Waiting(thread) => match thread.answer().transpose()? {
                Some(LockAttempt::Acquired(queue)) => {
                    let slot = self.enter(queue, &wait.events.sender())?;
                    self.on_moved(wait);
                    return Ok(slot.map(Acquisition::Held));
                }
                Some(LockAttempt::Busy(replacement)) => {
                    self.stage = Stage::Waiting(FlockThread::start(replacement, wait.events.sender())?);
                    false
                }
                None => false,
            },
            Stage::Behind(_, thread) => thread.answer().transpose()?.is_some(),
            Stage::First(_, threads) => {
                let mut is_answered = events.contains(&Event::FilesChanged);
                for thread in threads {
                    is_answered |= thread.answer().transpose()?.is_some();
                }
                is_answered
            }
        };
        if !is_answered {
            return Ok(if wait.recheck_at.is_some_and(|at| Instant::now() >= at) { self.take_lost_turn(wait)? } else { None });
        }
        let was_first = matches!(self.stage, Stage::First(..));
        if let Some(unneeded) = self.follow_bound() {
            return Ok(Some(unneeded));
        }
        let slot = self.move_up(&wait.events.sender())?;
        if !was_first {
            self.on_moved(wait);
        }
        let is_hopeless =
            self.request.wait == Wait::No && wait.ancestor_checks.is_none() && matches!(self.stage, Stage::First(..));
        Ok(match slot {
            None if is_hopeless => Some(Acquisition::NotAcquired),
            slot => slot.map(Acquisition::Held),
        })
    }

    /// Takes a slot that stays free though others are before us.
    fn take_lost_turn(&mut self, wait: &mut LockWait) -> Result<Option<Acquisition<SlotGuard>>> {
        wait.recheck_at = Some(Instant::now() + MAX_TURN);
        if let Some(unneeded) = self.follow_bound() {
            return Ok(Some(unneeded));
        }
        let is_free = !self.is_full();
        if !mem::replace(&mut self.was_free, is_free) || !is_free {
            return Ok(None);
        }
        let store = &self.request.store;
        Ok(find_free(store, &SlotsDir::read(store), self.of)?.ok().map(Acquisition::Held))
    }

    /// True if no slot is free.
    fn is_full(&self) -> bool {
        slot_files(&self.request.store).iter().filter(|slot| slot.is_held).count() >= usize::from(self.of)
    }

    /// The awaited slot, for messages.
    fn awaited(&self) -> Awaited {
        Awaited::Slot { of: self.of, ticket: self.ticket() }
    }

    fn ticket(&self) -> Option<u64> {
        match &self.stage {
            Stage::Behind(ticket, _) | Stage::First(ticket, _) => Some(ticket.as_ref()?.number),
            Stage::Arriving(_) | Stage::Waiting(_) => None,
        }
    }

    /// Publishes a new ticket. Makes a change of the settings file an event, for the first: the others look when they are it.
    fn on_moved(&mut self, wait: &mut LockWait) {
        wait.awaited = self.awaited();
        wait.recorder.on_wait_for_slot(self.ticket());
        (wait.recheck_at, self.was_free) = (matches!(self.stage, Stage::Behind(..)).then(|| Instant::now() + MAX_TURN), false);
        if let (Stage::First(..), Some(file)) = (&self.stage, &self.request.file) {
            wait.events.watch_files(slice::from_ref(file));
            wait.events.requeue(vec![Event::FilesChanged]); // it may have changed before it was watched
        }
    }

    /// Takes a slot, if nobody waits for one; else makes a ticket.
    fn enter(&mut self, queue: FlockGuard, events: &EventSender) -> Result<Option<SlotGuard>> {
        let store = &self.request.store;
        let slots = SlotsDir::read(store);
        let before = slots.ticket_before(store, u64::MAX);
        if before.is_none()
            && let Ok(slot) = find_free(store, &slots, self.of)?
        {
            return Ok(Some(slot));
        }
        let number = slots.tickets.last().map_or(1, |last| last.saturating_add(1));
        let flock = LockFile::new_ticket(store, &ticket_name(number));
        let flock = flock.inspect_err(|error| warn!("{error:#}; waiting without a place in the queue")).ok();
        let ticket = flock.map(|flock| Ticket { number, store: store.clone(), flock });
        drop(queue);
        self.stage = match before {
            Some(before) => Stage::Behind(ticket, FlockThread::start(before, events.clone())?),
            None => Stage::First(ticket, Vec::new()),
        };
        if matches!(self.stage, Stage::First(..)) { self.move_up(events) } else { Ok(None) }
    }

    /// Waits for the ticket before ours; as the first, takes a slot, or has a thread wait for each that is held.
    fn move_up(&mut self, events: &EventSender) -> Result<Option<SlotGuard>> {
        let (Stage::Behind(..) | Stage::First(..)) = &self.stage else { return Ok(None) };
        let (ticket, threads) = match mem::replace(&mut self.stage, Stage::Arriving(None)) {
            Stage::Behind(ticket, thread) => (ticket, vec![thread]),
            Stage::First(ticket, threads) => (ticket, threads),
            Stage::Arriving(_) | Stage::Waiting(_) => return Ok(None),
        };
        // They have a descriptor for each slot, and a look takes as many. One that has just acquired its slot lets it go.
        FlockThread::interrupt(threads);
        let slots = SlotsDir::read(&self.request.store);
        let number = ticket.as_ref().map_or(0, |ticket| ticket.number);
        if let Some(before) = slots.ticket_before(&self.request.store, number) {
            self.stage = Stage::Behind(ticket, FlockThread::start(before, events.clone())?);
            return Ok(None);
        }
        Ok(match find_free(&self.request.store, &slots, self.of)? {
            Ok(slot) => Some(slot), // and our ticket is dropped
            Err(held) => {
                let threads = held.into_iter().map(|file| FlockThread::start(file, events.clone())).collect::<Result<_>>()?;
                self.stage = Stage::First(ticket, threads);
                None
            }
        })
    }

    /// Takes over the bound as it is now; one that cannot be read is as it was. Without one, no slot is needed.
    fn follow_bound(&mut self) -> Option<Acquisition<SlotGuard>> {
        match slots_in(self.request.file.as_ref()?) {
            Ok(Slots::AtMost(of)) => self.of = of,
            Ok(Slots::Unlimited) => return Some(without("there is no bound any more")),
            Err(error) => debug!("the bound stays as it was: {error:#}"),
        }
        None
    }
}

/// Finds a free slot if less than `of` are held; else gives `of` that are: before one of these is free, none can be taken.
fn find_free(store: &RecordStore, slots: &SlotsDir, of: u16) -> Result<Result<SlotGuard, Vec<LockFile>>> {
    let beyond: Vec<_> = slots.numbers.iter().copied().filter(|&number| number > of).collect();
    let (mut free, mut held) = (None, Vec::new());
    for number in (1..=of).chain(beyond.iter().copied()) {
        let file = LockFile::open_slot(store, slots.dir.as_ref(), number)?;
        if free.is_some() {
            // A look alone: whoever comes with no time to wait is not to take it for a holder.
            if file.is_held() {
                held.push(file);
            }
        } else {
            match file.try_lock()? {
                LockAttempt::Busy(file) => held.push(file),
                LockAttempt::Acquired(flock) => free = Some(SlotGuard { flock, number }),
            }
        }
        if held.len() == usize::from(of) {
            return Ok(Err(held));
        }
        if free.is_some() && beyond.is_empty() {
            break; // the rest are not enough
        }
    }
    Ok(free.ok_or(held))
}

impl SlotGuard {
    /// Reason why it bounds nobody any more, if so.
    pub fn fault(&self) -> Option<&'static str> {
        self.flock.fault()
    }

    /// Descriptor for the child to inherit, so that the slot is held while the child lives, even if we are killed.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.flock.descriptor()
    }

    /// Value of the variable by which the child of `run` knows of this slot and those of the runs `above`.
    pub fn claims(&self, above: &AncestorRuns, run: RunId) -> String {
        above.slots_with(Claim { lock: self.flock.file_id(), run })
    }
}

#[cfg(test)]
mod tests;
