//! The wait for a lock helper, once the session lock is held: for what is left of `--wait`, until a signal ends it or, in `refresh`
//! mode, no refresh is due any more.

use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::{error, info, warn};

use super::guard::LockGuard;
use super::helper::{Helper, HelperCommand};
use super::refresh_due::Refreshes;
use super::request::{Acquisition, LockRequest};
use super::wait::{LockWait, Target, WaitEnd};
use crate::config::settings::{Wait, after, show};
use crate::events::Event;

/// Time that a helper has where nobody wants to wait: it asks another machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Delay before the first progress message.
const ANNOUNCE_AFTER: Duration = Duration::from_secs(1);

/// Time for which file systems with locks per host, such as FUSE and virtiofs, cache what they know of a name, by default.
const ATTR_CACHE_TTL: Duration = Duration::from_millis(1_100);

/// Acquires the lock of `command`, in addition to `guard`. Without it, the session lock is released.
pub(super) fn acquire_helper(
    command: &HelperCommand,
    guard: LockGuard,
    request: &LockRequest,
    wait: &mut LockWait,
) -> Result<Acquisition> {
    request.watch_token(wait.events);
    let refusal = match request.reason_not_needed() {
        // The previous holder of the session lock has refreshed the token.
        Some(reason) => Acquisition::NotNeeded(reason),
        None => {
            wait.recorder.on_session_lock(guard.hold(), guard.identity());
            let helper = Helper::start(command, wait.events.sender())?;
            let Some(refusal) = wait_for_key(&helper, request, wait)? else {
                wait.events.watch_files(&[]);
                info!(name: "lock.acquired", key = helper.state().key, "the lock helper {} has the lock", helper.name());
                return Ok(Acquisition::Held(guard.with_helper(helper)));
            };
            let requested_at = matches!(refusal, Acquisition::Interrupted(_)).then(Instant::now);
            match (helper.shut_down(wait.recorder, wait.events, requested_at), refusal) {
                // It comes before anything is started.
                (Some(signal), Acquisition::NotNeeded(_)) => {
                    wait.log_interrupted(signal);
                    Acquisition::Interrupted(signal)
                }
                (_, refusal) => refusal,
            }
        }
    };
    wait.events.watch_files(&[]);
    wait.recorder.on_released();
    if let Acquisition::NotNeeded(reason) = &refusal {
        info!(name: "lock.unneeded", "starting without the lock helper: {reason}");
    }
    Ok(refusal)
}

/// Waits until `helper` holds its lock, and the previous holder's writes are visible. Gives the reason if it does not.
fn wait_for_key(helper: &Helper, request: &LockRequest, wait: &mut LockWait) -> Result<Option<Acquisition>> {
    let limit = match request.wait {
        Wait::Forever => None,
        Wait::AtMost(limit) => Some(limit),
        Wait::No => Some(ANSWER_TIMEOUT),
    };
    wait.begin(Target::Helper(helper.name().into_owned()), limit);
    if request.wait == Wait::No {
        wait.deadline = after(Instant::now(), limit);
    }
    wait.next_progress_at = after(Instant::now(), Some(ANNOUNCE_AFTER));
    let end = wait.until(|_, events| {
        let has_key = helper.state().key.is_some(); // before the look for its end
        let refusal = refusal(helper, request, events)?;
        Ok((has_key || refusal.is_some()).then_some(refusal))
    })?;
    match end {
        WaitEnd::Met(None) => {}
        WaitEnd::Met(refusal) => return Ok(refusal),
        WaitEnd::Interrupted(signal) => return Ok(Some(Acquisition::Interrupted(signal))),
        WaitEnd::TimedOut => {
            let reason = helper.state().no_key_reason.unwrap_or_else(|| "--wait waits longer".to_owned());
            let (name, limit) = (helper.name(), show(limit.unwrap_or_default()));
            error!(name: "lock.timeout", "the lock helper {name} did not get its lock within {limit}; {reason}; nothing was started");
            return Ok(Some(Acquisition::TimedOut));
        }
    }
    if request.refreshes.as_ref().is_some_and(Refreshes::may_be_out_of_date) {
        wait.deadline = after(Instant::now(), Some(ATTR_CACHE_TTL));
        wait.next_progress_at = wait.next_progress_at.filter(|_| wait.is_announced);
        match wait.until(|_, events| refusal(helper, request, events))? {
            WaitEnd::Met(refusal) => return Ok(Some(refusal)),
            WaitEnd::Interrupted(signal) => return Ok(Some(Acquisition::Interrupted(signal))),
            WaitEnd::TimedOut => {}
        }
    }
    if wait.is_announced {
        let waited = show(wait.started.elapsed());
        warn!(name: "lock.acquired", "the lock helper {} has its lock after {waited}", helper.name());
    }
    Ok(None)
}

/// Reason why `helper` will not hold its lock, or need not.
fn refusal(helper: &Helper, request: &LockRequest, events: &[Event]) -> Result<Option<Acquisition>> {
    if let Some(how) = helper.ended()? {
        let how = match helper.state().key {
            Some(_) => format!("after its first line ({how}), but has to stay while the lock is held"),
            None => format!("without a lock ({how})"),
        };
        error!(name: "lock.timeout", "the lock helper {} has ended {how}; nothing was started", helper.name());
        return Ok(Some(Acquisition::TimedOut));
    }
    let is_changed = events.contains(&Event::FilesChanged);
    Ok(is_changed.then(|| request.reason_not_needed()).flatten().map(Acquisition::NotNeeded))
}
