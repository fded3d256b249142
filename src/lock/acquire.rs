//! Acquisition of the session lock, from first to last: at once or after a wait, then the lock helper's, then nothing in the way of
//! a refresh.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use tracing::{error, info, warn};

use super::file::{LockAttempt, LockFile};
use super::guard::LockGuard;
use super::helper_wait::{acquire_helper, give_up};
use super::queue::wait_for_flock;
use super::refresh_due::{AwaitedRefresh, RefreshState, Refreshes};
use super::request::{Acquisition, LockRequest};
use super::wait::{Awaited, LockWait, WaitEnd};
use crate::claude::refresh_locks::{Owner, RefreshLock, Standing};
use crate::config::duration::{show, show_seconds};
use crate::events::EventQueue;
use crate::records::{Hold, RunRecorder};
use crate::sys::signal::Signal;

/// Longest wait for claude's own refresh locks: longer than any of them outlives its owner.
const MAX_REFRESH_LOCK_WAIT: Duration = Duration::from_secs(70);

/// Acquires the lock, in a wait that is bounded from `started` on.
///
/// # Errors
/// The lock file cannot be opened or created, is no regular file, or its file system has no flock(2).
pub fn acquire(
    request: &LockRequest,
    started: Instant,
    recorder: &mut RunRecorder,
    events: &mut EventQueue,
) -> Result<Acquisition> {
    if let Some(reason) = request.reason_not_needed() {
        info!(name: "lock.unneeded", "starting without the session lock: {reason}");
        return Ok(Acquisition::NotNeeded(reason));
    }
    let file = LockFile::open(&request.path)?;
    let awaited = Awaited::SessionLock(request.path.clone(), file.file_id());
    let mut wait = LockWait::new(awaited, started, recorder, events);
    request.watch_token(wait.events);
    let guard = match acquire_both(file, request, &mut wait) {
        Ok(Acquisition::Held(guard)) => guard,
        failure => {
            wait.recorder.on_waited();
            return failure;
        }
    };
    wait.recorder.on_acquired(guard.hold, guard.claimed(), guard.key());
    match &request.refreshes {
        Some(refreshes) => prepare_for_refresh(refreshes, guard, request.refresh_only, &mut wait),
        None => Ok(Acquisition::Held(guard)),
    }
}

/// Acquires the session lock, then that of the lock helper, if there is one.
fn acquire_both(file: LockFile, request: &LockRequest, wait: &mut LockWait) -> Result<Acquisition> {
    match (acquire_session_lock(file, request, wait)?, &request.helper) {
        (Acquisition::Held(guard), Some(command)) if !is_helped(&guard, request, wait) => {
            acquire_helper(command, guard, request, wait)
        }
        (acquisition, _) => Ok(acquisition),
    }
}

/// True if an ancestor or caller that holds the session lock has the lock of a lock helper as well.
fn is_helped(guard: &LockGuard, request: &LockRequest, wait: &LockWait) -> bool {
    guard.hold != Hold::Own && request.above.is_helped(guard.file_id, wait.recorder.store())
}

/// Tries once, then looks for a holder that waiting would be a deadlock with, then waits.
fn acquire_session_lock(file: LockFile, request: &LockRequest, wait: &mut LockWait) -> Result<Acquisition> {
    info!(name: "lock.acquiring", lock = %request.path.display(), "acquiring the session lock");
    let acquisition = match file.try_lock()? {
        LockAttempt::Acquired(flock) => Acquisition::Held(LockGuard::own(flock)),
        LockAttempt::Busy(file) => match request.above.hold_for_us(file.file_id(), wait.recorder.store(), false) {
            Some(hold) => Acquisition::Held(LockGuard::of_another(hold, file.file_id(), &request.above)),
            None => wait_for_flock(file, request, wait)?,
        },
    };
    match &acquisition {
        Acquisition::Held(guard) => wait.log_held(&request.path, guard.hold),
        Acquisition::NotNeeded(reason) => wait.log_not_needed(reason),
        Acquisition::NotAcquired => wait.log_timeout(request.wait, None),
        Acquisition::Interrupted(_) => {}
    }
    Ok(acquisition)
}

/// Waits for claude's refresh locks, then decides how long the session lock is held.
fn prepare_for_refresh(
    refreshes: &Refreshes,
    mut guard: LockGuard,
    refresh_only: bool,
    wait: &mut LockWait,
) -> Result<Acquisition> {
    if guard.is_held() && refreshes.storage.lacks_room() && refreshes.may_be_due() {
        let dir = refreshes.storage.dir.display();
        warn!(name: "refresh.room", "{dir} has no room: a token that is refreshed now cannot be saved, and the login is lost with it");
    }
    if let Some(failure) = wait_until_refreshable(refreshes, &guard, wait)? {
        return Ok(give_up(guard, failure, wait));
    }
    if !refresh_only || !guard.is_held() {
        guard.above = guard.above.filter(|_| !refresh_only); // who holds it may release it when the token is fresh
        return Ok(Acquisition::Held(guard));
    }
    // By the token as it is now, since the previous holder may have refreshed it.
    match refreshes.settled_state() {
        RefreshState::Due(expiry) => guard.refresh = Some(AwaitedRefresh::new(refreshes, expiry)),
        RefreshState::Unclear(why) => {
            warn!(name: "refresh.unclear", "{why}; holding the session lock for the whole run, as in exclusive mode");
        }
        RefreshState::NotDue(why) => {
            let acquisition = give_up(guard, Acquisition::NotNeeded(why.clone()), wait);
            info!(name: "lock.released", "released the session lock again: {why}");
            return Ok(acquisition);
        }
    }
    Ok(Acquisition::Held(guard))
}

/// Waits once more, for refresh locks that a claude of this run has left: the next one that is started would fail over them. `guard` is held on.
/// Gives the reason why nothing is to be started, if so.
pub(crate) fn wait_again(
    request: &LockRequest,
    guard: &LockGuard,
    recorder: &mut RunRecorder,
    events: &mut EventQueue,
) -> Result<Option<Acquisition>> {
    let Some(refreshes) = &request.refreshes else { return Ok(None) };
    let mut wait = LockWait::new(Awaited::RefreshLocks, Instant::now(), recorder, events);
    wait_until_refreshable(refreshes, guard, &mut wait)
}

/// Waits for claude's refresh locks. Gives the failure if a signal has come, or the lock of `guard` is lost.
fn wait_until_refreshable(refreshes: &Refreshes, guard: &LockGuard, wait: &mut LockWait) -> Result<Option<Acquisition>> {
    let interrupted_by = wait_for_refresh_locks(refreshes, wait, || guard.lost_reason().is_some());
    if let Some(signal) = interrupted_by.inspect_err(|_| wait.recorder.retire())? {
        return Ok(Some(Acquisition::Interrupted(signal)));
    }
    Ok(guard.lost_reason().map(|reason| {
        error!(name: "lock.lost", "{reason}: the lock is lost; nothing was started");
        Acquisition::NotAcquired
    }))
}

/// Waits until none of claude's refresh locks, over which a claude that is started would fail, is in the way of a refresh that may be due,
/// or our own lock `is_lost`. Gives the signal that interrupted the wait, if one did.
fn wait_for_refresh_locks(refreshes: &Refreshes, wait: &mut LockWait, is_lost: impl Fn() -> bool) -> Result<Option<Signal>> {
    let held = refreshes.held_locks();
    if held.is_empty() || !refreshes.may_be_due() {
        return Ok(None);
    }
    if let Some(stuck) = held.iter().find(|lock| matches!(lock.standing(SystemTime::now()), Standing::Stuck(_))) {
        let stuck = describe_refresh_lock(stuck);
        warn!(name: "refresh.stuck", "claude's refresh lock {stuck}; claude-run doctor tells the command that removes it");
    }
    let Some((first, _)) = refreshes.obstacle(held) else { return Ok(None) };
    wait.recorder.publish(); // the wait begins
    wait.started = Instant::now();
    wait.begin(Awaited::RefreshLocks, Some(MAX_REFRESH_LOCK_WAIT));
    let locks = RefreshLock::of_candidates(&refreshes.storage).into_iter().map(|lock| lock.path);
    wait.events.watch_files(&locks.chain(refreshes.storage.logins()).collect::<Vec<_>>());
    let lock = describe_refresh_lock(&first);
    warn!(name: "refresh.waiting", "claude's refresh lock {lock}; waiting for it, at most {}", show(MAX_REFRESH_LOCK_WAIT));
    let end = wait.until(|wait, _| {
        let obstacle = refreshes.obstacle(refreshes.held_locks());
        wait.recheck_at = obstacle.as_ref().map(|(_, left)| Instant::now() + *left);
        let is_over = obstacle.is_none() || is_lost() || matches!(refreshes.state(), RefreshState::NotDue(_));
        Ok(is_over.then_some(()))
    })?;
    wait.recorder.on_refresh_waited(wait.started.elapsed());
    match end {
        WaitEnd::Interrupted(signal) => return Ok(Some(signal)),
        WaitEnd::TimedOut => {
            let lock = describe_refresh_lock(&refreshes.obstacle(refreshes.held_locks()).map_or(first, |(lock, _)| lock));
            warn!(name: "refresh.waited", "claude's refresh lock {lock}; going on after {}", show(MAX_REFRESH_LOCK_WAIT));
        }
        WaitEnd::Met(()) => {}
    }
    info!(name: "refresh.waited", "waited {} for claude's refresh lock", show(wait.started.elapsed()));
    Ok(None)
}

/// Describes a refresh lock: its state and its owner.
pub(crate) fn describe_refresh_lock(lock: &RefreshLock) -> String {
    let state = match lock.standing(SystemTime::now()) {
        Standing::NotKnown => "cannot be looked at".to_owned(),
        Standing::Free => "is free".to_owned(),
        Standing::Live => "is held: a refresh is under way".to_owned(),
        Standing::OwnerDead(left) => format!("is not stale for another {}", show_seconds(left)),
        Standing::Stuck(why) => format!("{why}, and no claude can refresh"),
        Standing::Stale(age) => format!("is stale: not touched for {}", show_seconds(age)),
    };
    let owner = match &lock.owner {
        None => String::new(),
        Some(Owner { pid, lives: Some(false), .. }) => format!(", of pid {pid}, which is dead"),
        Some(Owner { pid, .. }) => format!(", of pid {pid}"),
    };
    format!("{} {state}{owner}", lock.path.display())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::wait::tests::recorder;
    use super::*;
    use crate::claude::auth::Invocation;
    use crate::claude::storage::ClaudeStorage;
    use crate::sys::file_id::FileId;

    #[test]
    fn wait_for_refresh_locks_has_a_bound_of_its_own() -> Result<()> {
        let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
        let (storage, claude) = (ClaudeStorage::at(dir.path()), Invocation::new(&|_| None, dir.path()));
        fs::write(storage.credentials(), r#"{"claudeAiOauth":{"accessToken":"a","refreshToken":"r","expiresAt":1}}"#)?;
        fs::create_dir(dir.path().join(".oauth_refresh.lock"))?;
        let refreshes = Refreshes { claude, storage, margin: None };
        let mut recorder = recorder(dir.path());
        let long_ago = Instant::now() - 2 * MAX_REFRESH_LOCK_WAIT;
        let awaited = Awaited::SessionLock(dir.path().into(), FileId { device: 1, inode: 1 });
        let mut wait = LockWait::new(awaited, long_ago, &mut recorder, &mut events);
        assert_eq!(wait_for_refresh_locks(&refreshes, &mut wait, || true)?, None);
        assert!(matches!(wait.awaited, Awaited::RefreshLocks));
        assert_eq!((wait.limit, wait.deadline), (Some(MAX_REFRESH_LOCK_WAIT), Some(wait.started + MAX_REFRESH_LOCK_WAIT)));
        assert!(wait.started.elapsed() < MAX_REFRESH_LOCK_WAIT);
        Ok(())
    }
}
