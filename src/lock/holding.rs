//! The session lock in a run's hands: for the whole of it, or until a refresh of claude's token is on the disk.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::SystemTime;

use super::session::Held;
use crate::claude::credentials::Login;
use crate::identity::Identity;

/// The lock, and until when. Dropping it frees the lock.
#[derive(Debug)]
pub struct Holding {
    held: Held,
    /// A config dir, and when the token in it expires: it is held until that is later.
    refresh: Option<(PathBuf, SystemTime)>,
}

impl Holding {
    /// For the whole run.
    pub(super) fn of(held: Held) -> Self {
        Self { held, refresh: None }
    }

    /// The same, but only until the token in `config_dir` expires later than at `expiry`.
    pub(super) fn for_a_refresh(self, config_dir: PathBuf, expiry: SystemTime) -> Self {
        Self { refresh: Some((config_dir, expiry)), ..self }
    }

    /// Which file is locked.
    pub fn identity(&self) -> Identity {
        self.held.identity()
    }

    /// The descriptor that the child inherits, so that the lock lives as long as it, even if we are killed.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.held.descriptor()
    }

    /// The file that says when it [is over](Self::is_over); none, if only the end of the run does.
    pub fn file(&self) -> Option<PathBuf> {
        self.refresh.as_ref().map(|(config_dir, _)| Login::path(config_dir))
    }

    /// Whether what it was for is done. A file that is gone, or half-written, says nothing of the kind.
    pub fn is_over(&self) -> bool {
        let Some((config_dir, expiry)) = &self.refresh else { return false };
        matches!(Login::read(config_dir), Login::Expires(at) if at > *expiry)
    }
}
