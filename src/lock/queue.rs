//! The wait for a busy session lock, in the kernel's own queue, so that it is fair and costs nothing. A thread sleeps in flock(2)
//! while we sleep on the event queue. When we give up, the thread is called back, and releases what it may have acquired meanwhile.

use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracing::warn;

use super::file::{LockAttempt, LockFile};
use super::guard::LockGuard;
use super::request::{Acquisition, LockRequest};
use super::wait::{LockWait, Target, WaitEnd};
use crate::config::duration::{after, show};
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
    let mut wanted = file.identity();
    let limit = match request.wait {
        Wait::No if request.above.may_hold(wanted) => Some(RECORD_GRACE),
        Wait::No => return Ok(Acquisition::TimedOut),
        Wait::AtMost(limit) => Some(limit),
        Wait::Forever => None,
    };
    wait.begin(Target::SessionLock(request.path.clone(), wanted), limit);
    wait.recorder.publish(); // the wait begins
    // Before we look for the holder: no later waiter is to be served first because of that.
    let mut thread = FlockThread::start(file, wait.events.sender())?;
    wait.next_progress_at = Some(wait.started);
    let mut checks = 0;
    let end = wait.until(|wait, events| {
        if events.contains(&Event::FlockReturned) {
            match thread.answer()?.verify()? {
                LockAttempt::Acquired(flock) => return Ok(Some(Acquisition::Held(LockGuard::new(flock)))),
                LockAttempt::Busy(replacement) => {
                    wanted = replacement.identity();
                    wait.target = Target::SessionLock(request.path.clone(), wanted);
                    thread = FlockThread::start(replacement, wait.events.sender())?;
                    wait.next_progress_at = Some(Instant::now());
                }
            }
        }
        if events.contains(&Event::FilesChanged)
            && let Some(reason) = request.reason_not_needed()
        {
            return Ok(Some(Acquisition::NotNeeded(reason)));
        }
        if wait.recheck_at.is_some_and(|at| Instant::now() >= at) {
            checks += 1;
            if request.above.holds(wanted, wait.recorder.store()) {
                return Ok(Some(Acquisition::HeldByAncestor(wanted)));
            }
        }
        let may_be_held = checks < ANCESTOR_CHECKS && request.above.may_hold(wanted);
        wait.recheck_at = may_be_held.then(|| after(wait.started, Some(Duration::from_millis(10 << checks)))).flatten();
        Ok(None)
    })?;
    drop(thread);
    let waited = show(wait.started.elapsed());
    Ok(match end {
        WaitEnd::Met(acquisition) => {
            match &acquisition {
                Acquisition::Held(_) => warn!(name: "lock.acquired", "got the session lock after {waited}"),
                Acquisition::NotNeeded(reason) => {
                    warn!(name: "lock.unneeded", "need not wait for the session lock any more, after {waited}: {reason}");
                }
                _ => {}
            }
            acquisition
        }
        WaitEnd::TimedOut => Acquisition::TimedOut,
        WaitEnd::Interrupted(signal) => Acquisition::Interrupted(signal),
    })
}

/// A thread that sleeps in flock(2), and the way back for its answer. Dropping it calls the thread back.
struct FlockThread(Option<(Receiver<Result<LockFile>>, JoinHandle<()>)>);

impl FlockThread {
    fn start(file: LockFile, events: EventSender) -> Result<Self> {
        let (sender, answer) = mpsc::sync_channel(1);
        let work = move || {
            // Without a receiver the wait was given up: this drops the file, and with it the lock.
            let _ = sender.send(file.lock_blocking());
            events.send(Event::FlockReturned);
        };
        let thread = signal::spawn_with_signals_blocked("flock", 64 * 1024, work)
            .context("cannot start the thread that waits for the lock")?;
        Ok(Self(Some((answer, thread))))
    }

    /// Takes the answer of a thread that has sent [`Event::FlockReturned`], and so is about to end.
    fn answer(&mut self) -> Result<LockFile> {
        const GONE: &str = "the thread that waits for the lock is gone";
        self.0.take().context(GONE)?.0.recv().context(GONE)?
    }
}

impl Drop for FlockThread {
    fn drop(&mut self) {
        if let Some((answer, thread)) = self.0.take() {
            drop(answer);
            signal::interrupt_thread(thread);
        }
    }
}
