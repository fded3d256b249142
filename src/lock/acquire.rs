//! Acquisition of the session lock, from first to last: at once or after a wait, then the lock helper's, then nothing in the way of
//! a refresh.

use std::time::Instant;

use anyhow::Result;
use tracing::{error, info, warn};

use super::claims;
use super::file::{LockAttempt, LockFile};
use super::guard::LockGuard;
use super::helper_wait::acquire_helper;
use super::queue::wait_for_flock;
use super::refresh_due::{RefreshState, Refreshes};
use super::refresh_wait::wait_for_refresh_locks;
use super::request::{Acquisition, LockRequest};
use super::wait::{LockWait, Target};
use crate::events::EventQueue;
use crate::records::{Hold, RunRecorder};

/// Acquires the lock.
///
/// # Errors
/// The lock file cannot be opened or created, is no regular file, or its file system has no flock(2).
pub fn acquire(request: &LockRequest, recorder: &mut RunRecorder, events: &mut EventQueue) -> Result<Acquisition> {
    if let Some(reason) = request.reason_not_needed() {
        return Ok(not_needed(reason));
    }
    let file = LockFile::open(&request.path)?;
    let target = Target::SessionLock(request.path.clone(), file.identity());
    let mut wait = LockWait::new(target, recorder, events, request.ignored);
    let mut acquisition = acquire_session_lock(file, request, &mut wait)?;
    if let Some(command) = &request.helper {
        // An ancestor or caller that holds the session lock may have its own lock helper, or none.
        let is_helped = |on| request.above.is_helped(on, wait.recorder.store());
        let guard = match &acquisition {
            Acquisition::HeldByAncestor(on) if !is_helped(*on) => Some(LockGuard::held_by_other(Hold::RunAbove, *on)),
            Acquisition::InheritedFromCaller(on) if !is_helped(*on) => Some(LockGuard::held_by_other(Hold::Caller, *on)),
            _ => None,
        };
        acquisition = match (acquisition, guard) {
            (Acquisition::Held(guard), _) | (_, Some(guard)) => acquire_helper(command, guard, request, &mut wait)?,
            (other, None) => other,
        };
    }
    match &acquisition {
        Acquisition::Held(guard) => wait.recorder.on_acquired(guard.hold(), Some(guard.identity()), guard.key()),
        Acquisition::HeldByAncestor(_) => wait.recorder.on_acquired(Hold::RunAbove, None, None),
        Acquisition::InheritedFromCaller(on) => wait.recorder.on_acquired(Hold::Caller, Some(*on), None),
        Acquisition::NotNeeded(_) | Acquisition::TimedOut | Acquisition::Interrupted(_) => {
            wait.recorder.on_waited();
            return Ok(acquisition);
        }
    }
    match &request.refreshes {
        Some(refreshes) => prepare_for_refresh(refreshes, acquisition, request.refresh_only, &mut wait),
        None => Ok(acquisition),
    }
}

/// Tries once, then looks for a holder that waiting would be a deadlock with, then waits.
fn acquire_session_lock(file: LockFile, request: &LockRequest, wait: &mut LockWait) -> Result<Acquisition> {
    let path = request.path.display();
    info!(name: "lock.acquiring", lock = %path, "acquiring the session lock");
    let acquisition = match file.try_lock()? {
        LockAttempt::Acquired(flock) => {
            info!(name: "lock.acquired", lock = %path, "holding the session lock");
            Acquisition::Held(LockGuard::new(flock))
        }
        LockAttempt::Busy(file) => match held_for_us(&file, request, wait) {
            Some(acquisition) => acquisition,
            None => wait_while_needed(file, request, wait)?,
        },
    };
    match &acquisition {
        Acquisition::HeldByAncestor(_) => {
            info!(name: "lock.acquired", lock = %path, "a process above this one holds the session lock for it");
        }
        Acquisition::InheritedFromCaller(_) => {
            info!(name: "lock.acquired", lock = %path, "the caller's own descriptor holds the session lock for this run");
        }
        Acquisition::TimedOut => error!(name: "lock.timeout", "{}", request.timeout_message()),
        Acquisition::Held(_) | Acquisition::NotNeeded(_) | Acquisition::Interrupted(_) => {}
    }
    Ok(acquisition)
}

fn held_for_us(file: &LockFile, request: &LockRequest, wait: &LockWait) -> Option<Acquisition> {
    let identity = file.identity();
    if request.above.holds(identity, wait.recorder.store()) {
        return Some(Acquisition::HeldByAncestor(identity));
    }
    if claims::is_held_by_a_descriptor_of("self", identity) {
        return Some(Acquisition::InheritedFromCaller(identity));
    }
    claims::is_held_by_an_ancestor(identity).then_some(Acquisition::HeldByAncestor(identity))
}

fn wait_while_needed(file: LockFile, request: &LockRequest, wait: &mut LockWait) -> Result<Acquisition> {
    request.watch_token(wait.events);
    // The token may have changed before it was watched.
    let acquisition = match request.reason_not_needed() {
        Some(reason) => Ok(not_needed(reason)),
        None => wait_for_flock(file, request, wait),
    };
    wait.events.watch_files(&[]);
    acquisition
}

fn not_needed(reason: String) -> Acquisition {
    info!(name: "lock.unneeded", "starting without the session lock: {reason}");
    Acquisition::NotNeeded(reason)
}

/// Waits for claude's refresh locks, then decides how long the session lock is held.
fn prepare_for_refresh(
    refreshes: &Refreshes,
    mut acquisition: Acquisition,
    refresh_only: bool,
    wait: &mut LockWait,
) -> Result<Acquisition> {
    let is_lost = || matches!(&acquisition, Acquisition::Held(guard) if guard.lost_reason().is_some());
    let signal = wait_for_refresh_locks(refreshes, wait, is_lost)?;
    if let Some(signal) = signal {
        if let Acquisition::Held(guard) = &mut acquisition {
            guard.shut_down_helper(wait.recorder, wait.events, Some(Instant::now()));
        }
        wait.recorder.on_released();
        return Ok(Acquisition::Interrupted(signal));
    }
    let Acquisition::Held(mut guard) = acquisition else { return Ok(acquisition) };
    if let Some(reason) = guard.lost_reason() {
        error!(name: "lock.lost", "{reason}: the lock is lost; nothing was started");
        guard.shut_down_helper(wait.recorder, wait.events, None);
        wait.recorder.on_released();
        return Ok(Acquisition::TimedOut);
    }
    Ok(if refresh_only { hold_while_due(refreshes, guard, wait) } else { Acquisition::Held(guard) })
}

/// Decides by the token as it is now, since the previous holder may have refreshed it.
fn hold_while_due(refreshes: &Refreshes, mut guard: LockGuard, wait: &mut LockWait) -> Acquisition {
    match refreshes.settled_state() {
        RefreshState::Due(expiry) => Acquisition::Held(guard.for_refresh(refreshes.config_dir.clone(), expiry)),
        RefreshState::Unclear(why) => {
            warn!(name: "refresh.unclear", "{why}; holding the session lock for the whole run, as in exclusive mode");
            Acquisition::Held(guard)
        }
        RefreshState::NotDue(why) => {
            wait.started = Instant::now();
            let signal = guard.shut_down_helper(wait.recorder, wait.events, None);
            wait.recorder.on_released();
            drop(guard);
            info!(name: "lock.released", "released the session lock again: {why}");
            // It comes before anything is started.
            signal.map_or(Acquisition::NotNeeded(why), |signal| {
                wait.log_interrupted(signal);
                Acquisition::Interrupted(signal)
            })
        }
    }
}
