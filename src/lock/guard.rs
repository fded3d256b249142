//! The session lock, held: for the whole run, or until a refresh of claude's token is on the disk.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::ancestors::is_held_above;
use super::claims::{AncestorRuns, Claim};
use super::file::FlockGuard;
use super::helper::Helper;
use super::refresh_due::AwaitedRefresh;
use crate::config::settings::LockMode;
use crate::events::EventQueue;
use crate::records::{Hold, RecordStore, RunRecord, RunRecorder};
use crate::run_id::RunId;
use crate::sys::bounded;
use crate::sys::file_id::FileId;
use crate::sys::signal::Signal;

/// The lock. Dropping it releases the lock.
#[derive(Debug)]
pub struct LockGuard {
    /// Holder of another engine's lock; it ends before ours is free, since the next holder of ours asks for that one, too.
    pub(super) helper: Option<Box<Helper>>,
    /// The flock; `None` if another process holds it for us, or after the release.
    flock: Option<FlockGuard>,
    /// Holder of the flock.
    pub(super) hold: Hold,
    pub(super) file_id: FileId,
    /// The runs above us, if another process has to hold it as long as we run.
    pub(super) above: Option<AncestorRuns>,
    /// The refresh that it is held for. Without one, it is held for the whole run.
    pub(crate) refresh: Option<AwaitedRefresh>,
}

impl LockGuard {
    /// Our own lock.
    pub(super) fn own(flock: FlockGuard) -> Self {
        let file_id = flock.file_id();
        Self { helper: None, flock: Some(flock), hold: Hold::Own, file_id, above: None, refresh: None }
    }

    /// Lock on `file_id` that another process holds for us, as found with the runs `above` us.
    pub(super) fn of_another(hold: Hold, file_id: FileId, above: &AncestorRuns) -> Self {
        Self { helper: None, flock: None, hold, file_id, above: Some(above.clone()), refresh: None }
    }

    /// The lock helper's name for its lock.
    pub fn key(&self) -> Option<String> {
        self.running_helper()?.state().key
    }

    /// Pid and start of the lock helper's monitor: a child of ours that is no part of the run.
    pub fn monitor(&self) -> Option<(i32, u64)> {
        self.helper.as_ref().map(|helper| helper.monitor_process.process())
    }

    /// True while there is a lock helper, even one that is releasing its lock.
    pub fn has_helper(&self) -> bool {
        self.helper.is_some()
    }

    /// Reason why the lock is lost, if it is: the lock helper has ended.
    pub fn lost_reason(&self) -> Option<String> {
        let helper = self.running_helper()?;
        let how = helper.ended().unwrap_or_else(|error| Some(format!("{error:#}")))?;
        Some(format!("the lock helper {} has ended ({how})", helper.name()))
    }

    /// Notes that the child is on its way, and opens meanwhile what [`fault`](Self::fault) will read.
    pub fn on_child_started(&mut self, started: Instant) {
        self.refresh.iter_mut().for_each(|refresh| refresh.on_child_started(started));
        let _ = self.flock.as_ref().map(FlockGuard::info);
    }

    /// Reason why the flock keeps nobody out any more, if so: ours, or that of another process, which must hold it as long as we run.
    pub fn fault(&self, records: Option<&RecordStore>) -> Option<&'static str> {
        // By now any ancestor will do: the run that started the holder may be gone.
        let is_held =
            |above: &AncestorRuns| above.hold_for_us(self.file_id, records, false).is_some() || is_held_above(self.file_id);
        let is_over = || self.above.as_ref().is_some_and(|above| !is_held(above));
        match self.hold {
            Hold::Own => self.flock.as_ref().and_then(FlockGuard::fault),
            Hold::RunAbove => is_over().then_some("the process above it that held it has ended, or has released it"),
            Hold::Caller => is_over().then_some("the caller has released it"),
        }
    }

    /// True if a run below us does without a lock of its own for as long as it lasts.
    pub fn is_relied_upon(&self, records: Option<&RecordStore>) -> bool {
        let Some(records) = records.cloned() else { return false };
        let Some(census) = bounded::within("records", move || records.census().unwrap_or_default()) else { return true };
        let relies = |run: &RunRecord| run.hold == Some(Hold::RunAbove) && run.mode == LockMode::Exclusive.name();
        census.live.iter().any(|run| relies(run) && run.is_about(self.file_id))
    }

    /// Releases it in mid-run, without waiting for the lock helper's end: what is started below us meanwhile must not rely on us.
    pub fn release(&mut self) {
        self.refresh = None;
        self.helper.iter_mut().for_each(|helper| helper.terminate());
        self.flock = None;
    }

    /// Ends the lock helper, and waits for that. Gives the first termination signal that comes meanwhile: it ends the kill grace at
    /// once, unless it belongs to a request made at `requested_at`.
    pub fn shut_down_helper(
        &mut self,
        recorder: &mut RunRecorder,
        events: &mut EventQueue,
        requested_at: Option<Instant>,
    ) -> Option<Signal> {
        self.helper.take()?.shut_down(recorder, events, requested_at)
    }

    /// True if we or our lock helper hold it, and have not released it.
    pub fn is_held(&self) -> bool {
        self.flock.is_some() || self.running_helper().is_some()
    }

    /// Value of the variable by which the child of `run` knows of this lock and those of the runs `above`. A run above us that holds
    /// the lock makes its own claim.
    pub fn claims(&self, above: &AncestorRuns, run: RunId) -> Option<String> {
        // If a descriptor of ours holds the flock, no claim from above on this file is true any more.
        let is_outdated = self.hold != Hold::RunAbove;
        Some(above.claims_with(Claim { lock: self.claimed()?, run }, is_outdated))
    }

    /// The lock file, if a descriptor of ours or our lock helper holds the lock.
    pub(super) fn claimed(&self) -> Option<FileId> {
        (self.hold != Hold::RunAbove || self.helper.is_some()).then_some(self.file_id)
    }

    /// Descriptor for the child to inherit, so that the lock is held while the child lives, even if we are killed.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.flock.as_ref().map(FlockGuard::descriptor)
    }

    /// Descriptor for a child to inherit that outlives us: the lock helper is kept while anybody has it.
    pub fn helper_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.helper.as_ref().map(|helper| helper.control())
    }

    fn running_helper(&self) -> Option<&Helper> {
        self.helper.as_deref().filter(|helper| helper.terminating_since.is_none())
    }
}
