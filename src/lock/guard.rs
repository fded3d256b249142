//! The session lock in a run's hands: for the whole of it, or until a refresh of claude's token is on the disk.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use super::file::FlockGuard;
use super::helper::Helper;
use crate::claude::credentials::Login;
use crate::events::EventQueue;
use crate::records::Hold;
use crate::sys::file_id::FileId;

/// The lock, and until when. Dropping it frees the lock.
#[derive(Debug)]
pub struct LockGuard {
    /// What holds the lock of another engine. It ends before ours is free: who gets ours next asks for that one, too.
    helper: Option<Box<Helper>>,
    /// The same, once it was told to end.
    parting: Option<Box<Helper>>,
    /// None: others have it for us.
    held: Option<FlockGuard>,
    hold: Hold,
    identity: FileId,
    /// A config dir, and when the token in it expires: it is held until that is later.
    refresh: Option<(PathBuf, SystemTime)>,
}

impl LockGuard {
    /// For the whole run.
    pub(super) fn of(held: FlockGuard) -> Self {
        let identity = held.identity();
        Self { held: Some(held), ..Self::held_by_other(Hold::Own, identity) }
    }

    /// For the whole run, on a file that others have locked for us.
    pub(super) fn held_by_other(hold: Hold, identity: FileId) -> Self {
        Self { helper: None, parting: None, held: None, hold, identity, refresh: None }
    }

    /// The same, but only until the token in `config_dir` expires later than at `expiry`.
    pub(super) fn for_a_refresh(self, config_dir: PathBuf, expiry: SystemTime) -> Self {
        Self { refresh: Some((config_dir, expiry)), ..self }
    }

    /// The same, with the lock of another engine that `helper` has got.
    pub(super) fn and(self, helper: Helper) -> Self {
        Self { helper: Some(Box::new(helper)), ..self }
    }

    /// What the lock helper calls its lock.
    pub fn key(&self) -> Option<String> {
        self.helper.as_ref()?.key()
    }

    /// The process that ends the lock helper: a child of ours that is no part of the run.
    pub fn keeper(&self) -> Option<Pid> {
        self.helper.as_ref().map(|helper| helper.keeper())
    }

    /// Whether there is a lock helper, still or for as long as it takes to let go.
    pub fn has_helper(&self) -> bool {
        self.helper.is_some() || self.parting.is_some()
    }

    /// How the lock helper has ended, if it has: then its lock is lost.
    pub fn loss(&self) -> Option<String> {
        let helper = self.helper.as_ref()?;
        helper.ending().map(|ending| format!("the lock helper {} has ended ({ending})", helper.name()))
    }

    /// Frees it in mid-run, without waiting for the lock helper's end: what is started below us meanwhile must not rely on us. The
    /// keeper's remains stay until the end of the run, so that its pid means nobody else.
    pub fn release(&mut self) {
        self.refresh = None;
        self.parting = self.helper.take();
        self.parting.iter_mut().for_each(|helper| helper.release());
        self.held = None;
    }

    /// Waits until the lock helper has ended, before it is dropped. Gives the first signal that asks us for an end meanwhile: it ends
    /// the kill grace at once, unless it comes right after `asked`, when we had such a request before.
    pub fn part(&mut self, events: &mut EventQueue, ignored: SigSet, asked: Option<Instant>) -> Option<Signal> {
        self.helper.take().or(self.parting.take())?.part(events, ignored, asked)
    }

    /// Whether it is still held.
    pub fn is_held(&self) -> bool {
        self.held.is_some() || self.helper.is_some()
    }

    /// Who has the session lock, as records tell it.
    pub(super) fn hold(&self) -> Hold {
        self.hold
    }

    /// Which file is locked.
    pub(super) fn identity(&self) -> FileId {
        self.identity
    }

    /// Which file is locked, by a descriptor of ours or our lock helper. For what a run above us has, that run speaks.
    pub fn claimed(&self) -> Option<FileId> {
        (self.hold != Hold::RunAbove || self.helper.is_some()).then_some(self.identity)
    }

    /// The descriptor that the child inherits, so that the lock lives as long as it, even if we are killed.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.held.as_ref().map(FlockGuard::descriptor)
    }

    /// The file that says when it [is over](Self::refresh_done); none, if only the end of the run does.
    pub fn file(&self) -> Option<PathBuf> {
        self.refresh.as_ref().map(|(config_dir, _)| Login::path(config_dir))
    }

    /// Whether what it was for is done. A file that is gone, or half-written, says nothing of the kind.
    pub fn refresh_done(&self) -> bool {
        let Some((config_dir, expiry)) = &self.refresh else { return false };
        matches!(Login::read(config_dir), Login::Expires(at) if at > *expiry)
    }
}
