//! The wait for a lock helper, once the session lock is held: for what is left of `--wait`, until a signal ends it or, in `refresh`
//! mode, no refresh is due any more.

use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::{error, warn};

use super::guard::LockGuard;
use super::helper::{Helper, HelperCommand};
use super::refresh_due::Refreshes;
use super::request::{Acquisition, LockRequest};
use super::wait::{Awaited, LockWait, WaitEnd};
use crate::config::duration::after;
use crate::config::settings::Wait;

/// Time that a helper has where nobody wants to wait: it asks another machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Delay before the first progress message.
const ANNOUNCE_AFTER: Duration = Duration::from_secs(1);

/// Time for which file systems with locks per host, such as FUSE and virtiofs, cache what they know of a name, by default.
const ATTR_CACHE_TTL: Duration = Duration::from_millis(1_100);

/// Acquires the lock of `command`, in addition to `guard`. Without it, the session lock is released.
pub(super) fn acquire_helper(
    command: &HelperCommand,
    mut guard: LockGuard,
    request: &LockRequest,
    wait: &mut LockWait,
) -> Result<Acquisition> {
    wait.begin(Awaited::Helper(command.words[0].clone()), request.limit(ANSWER_TIMEOUT));
    // The previous holder of the session lock may have refreshed the token.
    let refusal = match request.reason_not_needed() {
        Some(reason) => Some(Acquisition::NotNeeded(reason)),
        None => {
            wait.recorder.on_session_lock(guard.hold, guard.file_id);
            let helper = Helper::start(command, wait.events).inspect_err(|_| wait.recorder.retire())?;
            let refusal = wait_for_key(&helper, request, wait).inspect_err(|_| wait.recorder.retire())?;
            guard.helper = Some(Box::new(helper));
            refusal
        }
    };
    if let Some(Acquisition::NotNeeded(reason)) = &refusal {
        wait.log_not_needed(reason);
    }
    Ok(match refusal {
        Some(refusal) => give_up(guard, refusal, wait),
        None => Acquisition::Held(guard),
    })
}

/// Ends the lock helper and releases the lock, for `refusal`. A signal that comes meanwhile comes before anything is started.
pub(super) fn give_up(mut guard: LockGuard, refusal: Acquisition, wait: &mut LockWait) -> Acquisition {
    let requested_at = matches!(refusal, Acquisition::Interrupted(_)).then(Instant::now);
    let signal = guard.shut_down_helper(wait.recorder, wait.events, requested_at);
    // Before the lock: two records could claim it else.
    match refusal {
        Acquisition::NotNeeded(_) if signal.is_none() => wait.recorder.on_released(),
        _ => wait.recorder.retire(),
    }
    match (signal, refusal) {
        (Some(signal), Acquisition::NotNeeded(_)) => {
            warn!(name: "lock.interrupted", "{signal} came while the lock was released again; nothing was started");
            Acquisition::Interrupted(signal)
        }
        (_, refusal) => refusal,
    }
}

/// Waits until `helper` holds its lock, and the previous holder's writes are visible. Gives the reason if it does not.
fn wait_for_key(helper: &Helper, request: &LockRequest, wait: &mut LockWait) -> Result<Option<Acquisition>> {
    if request.wait == Wait::No {
        wait.deadline = after(Instant::now(), wait.limit);
    }
    wait.next_progress_at = after(Instant::now(), Some(ANNOUNCE_AFTER));
    let end = wait.until(|_, _| {
        let has_key = helper.state().key.is_some(); // before the look for its end
        let refusal = refusal(helper, request)?;
        Ok((has_key || refusal.is_some()).then_some(refusal))
    })?;
    match end {
        WaitEnd::Met(None) => {}
        WaitEnd::Met(refusal) => return Ok(refusal),
        WaitEnd::Interrupted(signal) => return Ok(Some(Acquisition::Interrupted(signal))),
        WaitEnd::TimedOut => {
            wait.log_timeout(request.wait, helper.state().no_key_reason);
            return Ok(Some(Acquisition::NotAcquired));
        }
    }
    if request.refreshes.as_ref().is_some_and(Refreshes::may_be_out_of_date) {
        wait.deadline = after(Instant::now(), Some(ATTR_CACHE_TTL));
        wait.next_progress_at = wait.next_progress_at.filter(|_| wait.is_announced);
        match wait.until(|_, _| refusal(helper, request))? {
            WaitEnd::Met(refusal) => return Ok(Some(refusal)),
            WaitEnd::Interrupted(signal) => return Ok(Some(Acquisition::Interrupted(signal))),
            WaitEnd::TimedOut => {}
        }
    }
    wait.log_key(helper.state().key);
    Ok(None)
}

/// Reason why `helper` will not hold its lock, or need not.
fn refusal(helper: &Helper, request: &LockRequest) -> Result<Option<Acquisition>> {
    let state = helper.state();
    let Some(how) = helper.ended()? else {
        if let Some(reason) = state.no_key_reason.filter(|_| state.is_hopeless) {
            error!(name: "lock.timeout", "the lock helper {} does not say that it has its lock: {reason}; nothing was started", helper.name());
            return Ok(Some(Acquisition::NotAcquired));
        }
        return Ok(request.reason_not_needed().map(Acquisition::NotNeeded));
    };
    let how = match helper.state().key {
        Some(_) => format!("after its first line ({how}), but has to stay while the lock is held"),
        None => format!("without a lock ({how})"),
    };
    error!(name: "lock.timeout", "the lock helper {} has ended {how}; nothing was started", helper.name());
    Ok(Some(Acquisition::NotAcquired))
}
