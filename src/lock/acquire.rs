//! When to take the session lock.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};
use tracing::{error, info, warn};

use super::claims::{self, AncestorRuns};
use super::file::LockFile;
use super::guard::LockGuard;
use super::helper::HelperCommand;
use super::helper_wait;
use super::queue::{self, WaitOutcome};
use super::refresh_due::{RefreshState, Refreshes, Settled};
use crate::claude::credentials::Login;
use crate::config::settings::{Wait, show};
use crate::events::EventQueue;
use crate::records::{Hold, RunRecorder};
use crate::sys::file_id::FileId;

/// The session lock of a run that needs it.
#[derive(Debug)]
pub struct LockRequest {
    /// The lock file.
    pub path: PathBuf,
    /// Whether it is only for a refresh that is due.
    pub refresh_only: bool,
    /// Claude's token; none, without a config dir that can be used.
    pub refreshes: Option<Refreshes>,
    /// What holds a lock of another engine as well.
    pub helper: Option<HelperCommand>,
    /// How long to wait for it.
    pub wait: Wait,
    /// The exit code when it is not free in time.
    pub conflict_exit_code: u8,
    /// What our environment says of the runs above us.
    pub above: AncestorRuns,
    /// Signals that ask nothing of us while we wait.
    pub ignored: SigSet,
}

impl LockRequest {
    /// Why the lock need not be taken, as things are.
    pub(super) fn reason_not_needed(&self) -> Option<String> {
        match self.refreshes.as_ref().filter(|_| self.refresh_only)?.need() {
            RefreshState::None(why) => Some(why),
            RefreshState::Due(_) | RefreshState::Unclear(_) => None,
        }
    }

    /// Why the run was refused when the lock was not free in time.
    fn refusal(&self) -> String {
        let path = self.path.display();
        match self.wait {
            Wait::AtMost(bound) => format!("the session lock {path} was not free within {}; --wait waits longer", show(bound)),
            // The latter is never refused.
            Wait::No | Wait::Forever => format!("the session lock {path} is held by another process, and --wait is 0"),
        }
    }
}

/// What came of taking it.
#[derive(Debug)]
pub enum Acquisition {
    /// We hold it.
    Held(LockGuard),
    /// No refresh is due, so nothing is held.
    NotNeeded,
    /// A run above us holds it for us, and lives.
    HeldByAncestor(FileId),
    /// A descriptor that our caller gave us holds it, as in `( flock 9; claude-run … ) 9>session.lock`.
    InheritedFromCaller(FileId),
    /// It was not free in time.
    TimedOut,
    /// This signal ended the wait.
    Interrupted(Signal),
}

/// Takes the lock: at once, or after a wait. Then nothing is in the way of a refresh, as far as that can be waited for.
///
/// # Errors
/// The lock file can be neither made nor opened, is no regular file, or its file system has no flock(2).
pub fn take(lock: &LockRequest, journal: &mut RunRecorder, events: &mut EventQueue) -> Result<Acquisition> {
    if let Some(reason) = lock.reason_not_needed() {
        info!(name: "lock.unneeded", "starting without the session lock: {reason}");
        return Ok(Acquisition::NotNeeded);
    }
    let started = Instant::now();
    let taken = match (take_session_lock(lock, journal, events)?, &lock.helper) {
        (Acquisition::Held(holding), Some(helper)) => helper_wait::ask(helper, holding, started, lock, journal, events)?,
        // Theirs is the lock of this host. That of the other engine they may have as well, or not.
        (Acquisition::HeldByAncestor(on), Some(helper)) if !lock.above.is_helped(on, journal.directory()) => {
            helper_wait::ask(helper, LockGuard::held_by_other(Hold::RunAbove, on), started, lock, journal, events)?
        }
        (Acquisition::InheritedFromCaller(on), Some(helper)) if !lock.above.is_helped(on, journal.directory()) => {
            helper_wait::ask(helper, LockGuard::held_by_other(Hold::Caller, on), started, lock, journal, events)?
        }
        (taken, _) => taken,
    };
    match &taken {
        Acquisition::Held(holding) => journal.on_acquired(holding.hold(), Some(holding.identity()), holding.key()),
        Acquisition::HeldByAncestor(_) => journal.on_acquired(Hold::RunAbove, None, None),
        Acquisition::InheritedFromCaller(on) => journal.on_acquired(Hold::Caller, Some(*on), None),
        Acquisition::NotNeeded | Acquisition::TimedOut | Acquisition::Interrupted(_) => {
            journal.on_waited();
            return Ok(taken);
        }
    }
    let Some(refreshes) = &lock.refreshes else { return Ok(taken) };
    let is_lost = || matches!(&taken, Acquisition::Held(holding) if holding.loss().is_some());
    let settled = refreshes.wait_for_refresh_locks(lock, events, || journal.waits(), is_lost)?;
    Ok(match (settled, taken) {
        (Settled::EndedBy(signal), mut taken) => {
            if let Acquisition::Held(holding) = &mut taken {
                holding.part(events, lock.ignored, Some(Instant::now()));
            }
            journal.on_released();
            Acquisition::Interrupted(signal)
        }
        (_, Acquisition::Held(mut holding)) => match holding.loss() {
            Some(loss) => {
                error!(name: "lock.lost", "{loss}: the lock is lost; nothing was started");
                holding.part(events, lock.ignored, None);
                journal.on_released();
                Acquisition::TimedOut
            }
            None if lock.refresh_only => while_due(refreshes, holding, lock, journal, events),
            None => Acquisition::Held(holding),
        },
        (_, taken) => taken,
    })
}

/// What becomes of the lock in `refresh` mode, now that it is had: the one before us may have refreshed the token.
fn while_due(
    refreshes: &Refreshes,
    mut holding: LockGuard,
    lock: &LockRequest,
    journal: &mut RunRecorder,
    events: &mut EventQueue,
) -> Acquisition {
    match refreshes.need_for_certain() {
        RefreshState::Due(expiry) => Acquisition::Held(holding.for_a_refresh(refreshes.config_dir.clone(), expiry)),
        RefreshState::Unclear(why) => {
            warn!(name: "refresh.unclear", "{why}; holding the session lock for the whole run, as in exclusive mode");
            Acquisition::Held(holding)
        }
        RefreshState::None(why) => {
            let began = Instant::now();
            let request = holding.part(events, lock.ignored, None);
            journal.on_released();
            drop(holding);
            info!(name: "lock.released", "released the session lock again: {why}");
            match request {
                // It comes before anything is started.
                Some(signal) => {
                    queue::log_interrupted(signal, "the lock helper", &show(began.elapsed()));
                    Acquisition::Interrupted(signal)
                }
                None => Acquisition::NotNeeded,
            }
        }
    }
}

fn take_session_lock(lock: &LockRequest, journal: &mut RunRecorder, events: &mut EventQueue) -> Result<Acquisition> {
    let path = lock.path.display();
    info!(name: "lock.acquiring", lock = %path, "taking the session lock");
    let taken = match LockFile::open(&lock.path)?.try_lock()? {
        Ok(held) => {
            info!(name: "lock.acquired", lock = %path, "holding the session lock");
            Acquisition::Held(LockGuard::of(held))
        }
        Err(busy) => when_busy(busy, lock, journal, events)?,
    };
    match &taken {
        Acquisition::HeldByAncestor(_) => {
            info!(name: "lock.acquired", lock = %path, "a process above this one holds the session lock for it")
        }
        Acquisition::InheritedFromCaller(_) => {
            info!(name: "lock.acquired", lock = %path, "the caller's own descriptor holds the session lock for this run");
        }
        Acquisition::TimedOut => error!(name: "lock.timeout", "{}", lock.refusal()),
        Acquisition::Held(..) | Acquisition::NotNeeded | Acquisition::Interrupted(_) => {}
    }
    Ok(taken)
}

fn when_busy(
    candidate: LockFile,
    lock: &LockRequest,
    journal: &mut RunRecorder,
    events: &mut EventQueue,
) -> Result<Acquisition> {
    let identity = candidate.identity();
    if lock.above.holds(identity, journal.directory()) {
        return Ok(Acquisition::HeldByAncestor(identity));
    }
    if claims::is_held_by_a_descriptor_of("self", identity) {
        return Ok(Acquisition::InheritedFromCaller(identity));
    }
    if claims::is_held_by_an_ancestor(identity) {
        return Ok(Acquisition::HeldByAncestor(identity));
    }
    if let Some(refreshes) = lock.refreshes.as_ref().filter(|_| lock.refresh_only) {
        events.watch_files(&[Login::path(&refreshes.config_dir)]);
        // It may have changed before it was followed.
        if let Some(reason) = lock.reason_not_needed() {
            events.watch_files(&[]);
            info!(name: "lock.unneeded", "starting without the session lock: {reason}");
            return Ok(Acquisition::NotNeeded);
        }
    }
    let waited = queue::wait(candidate, lock, journal, events)?;
    events.watch_files(&[]);
    Ok(match waited {
        WaitOutcome::Acquired(held) => Acquisition::Held(LockGuard::of(held)),
        WaitOutcome::HeldByAncestor(on) => Acquisition::HeldByAncestor(on),
        WaitOutcome::NotNeeded(_) => Acquisition::NotNeeded,
        WaitOutcome::TimedOut => Acquisition::TimedOut,
        WaitOutcome::Interrupted(signal) => Acquisition::Interrupted(signal),
    })
}
