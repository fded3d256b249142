//! Request for the session lock, and what comes of it.

use std::path::PathBuf;
use std::time::Duration;

use super::claims::AncestorRuns;
use super::guard::LockGuard;
use super::helper::HelperCommand;
use super::refresh_due::{RefreshState, Refreshes};
use crate::config::settings::Wait;
use crate::events::EventQueue;
use crate::sys::signal::Signal;

/// The session lock of a run that needs it.
#[derive(Debug)]
pub struct LockRequest {
    pub(crate) path: PathBuf,
    /// True if the lock is needed only while a refresh is due.
    pub(crate) refresh_only: bool,
    /// Claude's token, if there is a config dir that can be used.
    pub(crate) refreshes: Option<Refreshes>,
    pub(crate) helper: Option<HelperCommand>,
    pub(crate) wait: Wait,
    pub(crate) conflict_exit_code: u8,
    pub(crate) above: AncestorRuns,
}

/// Outcome of a request for the lock, or for a slot.
#[derive(Debug)]
pub enum Acquisition<G = LockGuard> {
    /// The lock is held, by us or for us.
    Held(G),
    /// Not needed, as the lock is not while no refresh is due, so nothing is held; the reason.
    NotNeeded(String),
    /// The lock was not free in time, or the lock helper has ended.
    NotAcquired,
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
            events.watch_files(&refreshes.storage.logins().collect::<Vec<_>>());
        }
    }

    /// Bound of the wait; where nobody wants to wait, `at_once`.
    pub(super) fn limit(&self, at_once: Duration) -> Option<Duration> {
        self.wait.limit(at_once)
    }
}
