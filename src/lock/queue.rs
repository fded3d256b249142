//! The wait for a busy session lock, in the kernel's own queue, so that it is fair and costs nothing. A [thread](FlockThread)
//! sleeps in flock(2) while we sleep on the event queue.

use std::time::Instant;

use anyhow::Result;

use super::ancestor_checks::{AncestorChecks, RECORD_GRACE};
use super::file::{LockAttempt, LockFile};
use super::flock_thread::FlockThread;
use super::guard::LockGuard;
use super::request::{Acquisition, LockRequest};
use super::wait::{Awaited, LockWait, WaitEnd};
use crate::config::settings::Wait;
use crate::events::Event;
use crate::records::WaitsFor;

/// Waits for the lock on `file`, which is busy.
pub(super) fn wait_for_flock(file: LockFile, request: &LockRequest, wait: &mut LockWait) -> Result<Acquisition> {
    let mut wanted = file.file_id();
    if request.wait == Wait::No && !request.above.may_hold(wanted) {
        return Ok(Acquisition::NotAcquired);
    }
    wait.begin(Awaited::SessionLock(request.path.clone(), wanted), request.limit(RECORD_GRACE));
    wait.recorder.on_wait(WaitsFor::Lock);
    // Before we look for the holder: no later waiter is to be served first because of that.
    let mut thread = FlockThread::start(file, wait.events.sender())?;
    wait.next_progress_at = (request.wait != Wait::No).then_some(wait.started);
    let checks = |wanted, since| request.above.may_hold(wanted).then(|| AncestorChecks::since(since));
    wait.ancestor_checks = checks(wanted, wait.started);
    let end = wait.until(|wait, events| {
        if let Some(answer) = events.contains(&Event::FlockReturned).then(|| thread.answer()).flatten() {
            match answer? {
                LockAttempt::Acquired(flock) => return Ok(Some(Acquisition::Held(LockGuard::own(flock)))),
                LockAttempt::Busy(replacement) => {
                    wanted = replacement.file_id();
                    if let Some(hold) = request.above.hold_for_us(wanted, wait.recorder.store(), false) {
                        return Ok(Some(Acquisition::Held(LockGuard::of_another(hold, wanted, &request.above))));
                    }
                    wait.awaited = Awaited::SessionLock(request.path.clone(), wanted);
                    thread = FlockThread::start(replacement, wait.events.sender())?;
                    wait.next_progress_at = Some(Instant::now());
                    wait.ancestor_checks = checks(wanted, Instant::now());
                }
            }
        }
        if let Some(reason) = request.reason_not_needed() {
            return Ok(Some(Acquisition::NotNeeded(reason)));
        }
        if wait.is_ancestor_check_due()
            && let Some(hold) = request.above.hold_for_us(wanted, wait.recorder.store(), true)
        {
            return Ok(Some(Acquisition::Held(LockGuard::of_another(hold, wanted, &request.above))));
        }
        Ok(None)
    })?;
    Ok(match end {
        WaitEnd::Met(acquisition) => acquisition,
        WaitEnd::TimedOut => Acquisition::NotAcquired,
        WaitEnd::Interrupted(signal) => Acquisition::Interrupted(signal),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::claims::{AncestorRuns, Claim};
    use super::super::wait::tests::recorder;
    use super::*;
    use crate::events::EventQueue;
    use crate::run_id::RunId;
    use crate::sys::signal::{Signal, SignalSource};

    fn request(path: &Path, above: AncestorRuns) -> LockRequest {
        LockRequest {
            path: path.to_owned(),
            refresh_only: false,
            refreshes: None,
            helper: None,
            wait: Wait::No,
            conflict_exit_code: 75,
            above,
        }
    }

    #[test]
    fn run_that_cannot_wait_sleeps_only_if_a_run_above_claims_the_lock() -> Result<()> {
        let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
        let (path, mut recorder) = (dir.path().join("session.lock"), recorder(dir.path()));
        let held = LockFile::open(&path)?.try_lock()?;
        let lock = LockFile::open(&path)?.file_id();
        let awaited = || Awaited::SessionLock(path.clone(), lock);
        events.signal_pipe().write(Signal::SIGTERM.number(), SignalSource::Kernel);
        let mut wait = LockWait::new(awaited(), Instant::now(), &mut recorder, &mut events);
        let without = request(&path, AncestorRuns::default());
        assert!(matches!(wait_for_flock(LockFile::open(&path)?, &without, &mut wait)?, Acquisition::NotAcquired));
        assert_eq!(wait.deadline, None, "it has not slept");
        let claim = Claim { lock, run: RunId { pid: i32::MAX, taken_at: 1 } }.to_string();
        let above = AncestorRuns::of(&move |name| (name == Claim::VARIABLE).then(|| claim.clone().into()));
        let acquisition = wait_for_flock(LockFile::open(&path)?, &request(&path, above), &mut wait)?;
        assert!(matches!(acquisition, Acquisition::Interrupted(Signal::SIGTERM)), "it has slept");
        assert_eq!(wait.limit, Some(RECORD_GRACE), "the record that proves it may come");
        assert_eq!((wait.next_progress_at, wait.is_announced), (None, false), "and that is no wait to speak of");
        drop(held);
        Ok(())
    }
}
