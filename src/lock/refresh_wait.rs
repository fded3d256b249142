//! The wait for claude's own refresh locks: no claude is started that would fail over one, while somebody else holds it, or a dead
//! process does and it is not stale yet.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use nix::sys::signal::Signal;
use tracing::{info, warn};

use super::refresh_due::{RefreshState, Refreshes};
use super::wait::{LockWait, Target, WaitEnd};
use crate::claude::credentials::Login;
use crate::claude::refresh_locks::{Owner, RefreshLock, Standing};
use crate::config::settings::{show, show_seconds};

/// Longest wait for claude's refresh locks: longer than any of them outlives its owner.
const MAX_WAIT: Duration = Duration::from_secs(70);

/// Waits until no refresh lock is in the way of a refresh that is due, or our own lock `is_lost`. Gives the signal that interrupted
/// the wait, if one did.
pub(super) fn wait_for_refresh_locks(
    refreshes: &Refreshes,
    wait: &mut LockWait,
    is_lost: impl Fn() -> bool,
) -> Result<Option<Signal>> {
    let Some((first, _)) = refreshes.obstacle() else { return Ok(None) };
    if !matches!(refreshes.settled_state(), RefreshState::Due(_)) {
        return Ok(None);
    }
    wait.recorder.on_wait_started();
    wait.started = Instant::now();
    wait.begin(Target::RefreshLocks, Some(MAX_WAIT));
    let locks = RefreshLock::of(&refreshes.config_dir).map(|lock| lock.path);
    wait.events.watch_files(&[&locks[..], &[Login::path(&refreshes.config_dir)]].concat());
    let lock = describe_refresh_lock(&first);
    warn!(name: "refresh.waiting", "claude's refresh lock {lock}; waiting for it, at most {}", show(MAX_WAIT));
    let end = wait.until(|wait, _| {
        let obstacle = refreshes.obstacle();
        wait.recheck_at = obstacle.as_ref().map(|(_, left)| Instant::now() + *left);
        let is_over = obstacle.is_none() || is_lost() || matches!(refreshes.state(), RefreshState::NotDue(_));
        Ok(is_over.then_some(()))
    });
    wait.events.watch_files(&[]);
    match end? {
        WaitEnd::Interrupted(signal) => return Ok(Some(signal)),
        WaitEnd::TimedOut => {
            let lock = describe_refresh_lock(&refreshes.obstacle().map_or(first, |(lock, _)| lock));
            warn!(name: "refresh.waited", "claude's refresh lock {lock}; going on after {}", show(MAX_WAIT));
        }
        WaitEnd::Met(()) => {}
    }
    info!(name: "refresh.waited", "waited {} for claude's refresh lock", show(wait.started.elapsed()));
    Ok(None)
}

/// Describes a refresh lock: its owner and its state.
pub(crate) fn describe_refresh_lock(lock: &RefreshLock) -> String {
    let state = match lock.standing(SystemTime::now()) {
        Standing::Free => "is free".to_owned(),
        Standing::Live => "is held: a refresh is under way".to_owned(),
        Standing::OwnerDead(left) => format!("is not stale for another {}", show_seconds(left)),
        Standing::Stale(age) => format!("is stale: not touched for {}", show_seconds(age)),
    };
    let owner = match &lock.owner {
        None => String::new(),
        Some(Owner { pid, lives: Some(false), .. }) => format!(", of pid {pid}, which is dead"),
        Some(Owner { pid, .. }) => format!(", of pid {pid}"),
    };
    format!("{} {state}{owner}", lock.path.display())
}
