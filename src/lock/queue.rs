//! The wait for a busy session lock, in the kernel's own queue, so that it is fair and costs nothing. A thread sleeps in flock(2)
//! while we sleep on the event queue. When we give up, the thread is interrupted, and releases what it may have acquired meanwhile.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::file::{LockAttempt, LockFile};
use super::guard::LockGuard;
use super::request::{Acquisition, LockRequest};
use super::wait::{Awaited, LockWait, WaitEnd};
use crate::config::duration::after;
use crate::config::settings::Wait;
use crate::events::{Event, EventSender};
use crate::sys::signal;

/// Number of times that the records are searched for an ancestor that holds the lock: one in another PID namespace may be about to
/// write the record that proves it. The searches are 10 ms, 20 ms, 40 ms … after the start, up to a minute and a half.
const ANCESTOR_CHECKS: u32 = 14;

/// Time for such a record to appear where nobody wants to wait.
const RECORD_GRACE: Duration = Duration::from_millis(100);

/// Waits for the lock on `file`, which is busy.
pub(super) fn wait_for_flock(file: LockFile, request: &LockRequest, wait: &mut LockWait) -> Result<Acquisition> {
    let mut wanted = file.file_id();
    if request.wait == Wait::No && !request.above.may_hold(wanted) {
        return Ok(Acquisition::NotAcquired);
    }
    wait.begin(Awaited::SessionLock(request.path.clone(), wanted), request.limit(RECORD_GRACE));
    wait.recorder.publish(); // the wait begins
    // Before we look for the holder: no later waiter is to be served first because of that.
    let mut thread = FlockThread::start(file, wait.events.sender())?;
    wait.next_progress_at = Some(wait.started);
    let (mut wanted_since, mut checks) = (wait.started, 0);
    let end = wait.until(|wait, events| {
        let mut is_check_due = wait.recheck_at.is_some_and(|at| Instant::now() >= at);
        if events.contains(&Event::FlockReturned) {
            match thread.answer()? {
                LockAttempt::Acquired(flock) => return Ok(Some(Acquisition::Held(LockGuard::own(flock)))),
                LockAttempt::Busy(replacement) => {
                    wanted = replacement.file_id();
                    if let Some(hold) = request.above.hold_for_us(wanted, wait.recorder.store(), false) {
                        return Ok(Some(Acquisition::Held(LockGuard::of_another(hold, wanted))));
                    }
                    wait.awaited = Awaited::SessionLock(request.path.clone(), wanted);
                    thread = FlockThread::start(replacement, wait.events.sender())?;
                    wait.next_progress_at = Some(Instant::now());
                    (wanted_since, checks, is_check_due) = (Instant::now(), 0, false);
                }
            }
        }
        if let Some(reason) = request.reason_not_needed() {
            return Ok(Some(Acquisition::NotNeeded(reason)));
        }
        if is_check_due {
            checks += 1;
            if let Some(hold) = request.above.hold_for_us(wanted, wait.recorder.store(), true) {
                return Ok(Some(Acquisition::Held(LockGuard::of_another(hold, wanted))));
            }
        }
        let may_be_held = checks < ANCESTOR_CHECKS && request.above.may_hold(wanted);
        wait.recheck_at = may_be_held.then(|| after(wanted_since, Some(Duration::from_millis(10 << checks)))).flatten();
        Ok(None)
    })?;
    Ok(match end {
        WaitEnd::Met(acquisition) => acquisition,
        WaitEnd::TimedOut => Acquisition::NotAcquired,
        WaitEnd::Interrupted(signal) => Acquisition::Interrupted(signal),
    })
}

/// A thread that sleeps in flock(2). Dropping it interrupts the thread.
struct FlockThread(Option<JoinHandle<Result<LockAttempt>>>);

impl FlockThread {
    fn start(file: LockFile, events: EventSender) -> Result<Self> {
        let work = move || {
            let answer = file.lock_blocking();
            events.send(Event::FlockReturned);
            answer // if the wait was given up, nobody takes it: then the file is closed, and the lock free
        };
        let thread = signal::spawn_with_signals_blocked("flock", 64 * 1024, work)
            .context("cannot start the thread that waits for the lock")?;
        Ok(Self(Some(thread)))
    }

    /// Takes the answer of a thread that has sent [`Event::FlockReturned`], and so is about to end.
    fn answer(&mut self) -> Result<LockAttempt> {
        let answer = self.0.take().and_then(|thread| thread.join().ok());
        answer.context("the thread that waits for the lock is gone")?
    }
}

impl Drop for FlockThread {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(signal::interrupt_thread);
    }
}
