//! Request for the session lock, and what comes of it.

use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};

use super::claims::AncestorRuns;
use super::guard::LockGuard;
use super::helper::HelperCommand;
use super::refresh_due::{RefreshState, Refreshes};
use crate::claude::credentials::Login;
use crate::config::duration::show;
use crate::config::settings::Wait;
use crate::events::EventQueue;
use crate::sys::file_id::FileId;

/// The session lock of a run that needs it.
#[derive(Debug)]
pub struct LockRequest {
    /// The lock file.
    pub path: PathBuf,
    /// True if the lock is needed only while a refresh is due.
    pub refresh_only: bool,
    /// Claude's token, if there is a config dir that can be used.
    pub refreshes: Option<Refreshes>,
    /// Command that holds a lock of another engine as well.
    pub helper: Option<HelperCommand>,
    /// Bound of the wait.
    pub wait: Wait,
    /// Exit code if the lock is not free in time.
    pub conflict_exit_code: u8,
    /// Runs above us.
    pub above: AncestorRuns,
    /// Signals that were ignored when we started; they do not end the wait.
    pub ignored: SigSet,
}

/// Outcome of a request.
#[derive(Debug)]
pub enum Acquisition {
    /// We hold the lock.
    Held(LockGuard),
    /// No refresh is due, so nothing is held; the reason.
    NotNeeded(String),
    /// A run above us holds the lock on this file, and lives.
    HeldByAncestor(FileId),
    /// A descriptor inherited from our caller holds it, as in `( flock 9; claude-run … ) 9>session.lock`.
    InheritedFromCaller(FileId),
    /// The lock was not free in time.
    TimedOut,
    /// This signal ended the wait.
    Interrupted(Signal),
}

impl LockRequest {
    /// Reason why the lock is not needed at this moment, if it is not.
    pub(super) fn reason_not_needed(&self) -> Option<String> {
        match self.refreshes.as_ref().filter(|_| self.refresh_only)?.state() {
            RefreshState::NotDue(why) => Some(why),
            RefreshState::Due(_) | RefreshState::Unclear(_) => None,
        }
    }

    /// Makes a change of the token an event, if that can make the lock unnecessary.
    pub(super) fn watch_token(&self, events: &mut EventQueue) {
        if let Some(refreshes) = self.refreshes.as_ref().filter(|_| self.refresh_only) {
            events.watch_files(&[Login::path(&refreshes.config_dir)]);
        }
    }

    /// Message for a lock that was not free in time.
    pub(super) fn timeout_message(&self) -> String {
        let path = self.path.display();
        match self.wait {
            Wait::AtMost(bound) => format!("the session lock {path} was not free within {}; --wait waits longer", show(bound)),
            // The latter never times out.
            Wait::No | Wait::Forever => format!("the session lock {path} is held by another process, and --wait is 0"),
        }
    }
}
