//! Refreshes of claude's token, as the supervisor sees them: it watches for the end of one that the lock was acquired for, and of
//! one that a signal is deferred for.

use std::cell::LazyCell;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use tracing::{error, info};

use super::super::policy::{Input, LiveRefresh};
use super::Supervisor;
use crate::claude::refresh_locks::{CutRefresh, Owner, RefreshLock, Standing};
use crate::lock::{AwaitedRefresh, LockGuard};

impl Supervisor<'_> {
    /// The refresh that the lock is held for.
    pub(super) fn awaited_refresh(&self) -> Option<&AwaitedRefresh> {
        self.lock.as_ref()?.refresh.as_ref()
    }

    pub(super) fn files_to_watch(&self) -> Vec<PathBuf> {
        let mut files = self.awaited_refresh().map_or(Vec::new(), AwaitedRefresh::files);
        if let Some(storage) = self.storage.as_ref().filter(|_| self.policy.is_deferring()) {
            files.extend(RefreshLock::all(storage).into_iter().map(|lock| lock.path));
        }
        files
    }

    pub(super) fn on_files_changed(&mut self) {
        self.check_awaited_refresh();
        // At the deadline, the clock lets the signals go, with a kill grace of their own.
        if self.policy.is_deferring() && !self.policy.has_deferred_enough(Instant::now()) {
            self.check_refresh();
        }
    }

    /// Reports a refresh in whose midst the child has ended. It was the child's by its pid, or by the lock, beside which there was no other.
    pub(super) fn report_cut_refresh(&mut self) {
        let cut = self.cut_watch.as_ref().zip(self.storage.as_ref()).and_then(|(watch, storage)| watch.end(storage));
        let is_ours = |pid| pid == self.child.as_raw() || self.lock.as_ref().is_some_and(LockGuard::is_held);
        if let Some(CutRefresh { pid, .. }) = cut.filter(|cut| is_ours(cut.pid)) {
            error!(name: "refresh.cut", pid, "claude has ended in the midst of a refresh: its login is probably lost; log in again if the next run fails");
            self.recorder.on_cut_refresh();
        }
    }

    pub(super) fn check_awaited_refresh(&mut self) {
        let Some(lock) = &mut self.lock else { return };
        if let Some(reason) = lock.refresh.as_mut().and_then(|refresh| refresh.end(Instant::now())) {
            self.recorder.on_released();
            lock.release();
            info!(name: "lock.released", "released the session lock: {reason}");
        }
    }

    /// A refresh may be in progress if a refresh lock is live, and its owner is not known to be outside of the tree.
    pub(super) fn check_refresh(&mut self) {
        // A look at the whole tree, for which there is no time beside a fork bomb.
        let names = LazyCell::new(|| self.tree.names());
        let may_be_ours = |owner: Owner| names.as_ref().is_none_or(|names| owner.may_be_among(names));
        let locks = self.storage.as_ref().map_or(Vec::new(), RefreshLock::all);
        let live = locks.into_iter().filter(|lock| lock.standing(SystemTime::now()) == Standing::Live);
        let ours: Vec<_> = live.filter(|lock| lock.owner.clone().is_none_or(may_be_ours)).collect();
        let made = ours.iter().filter_map(|lock| lock.made).min();
        self.dispatch(Input::Refresh((!ours.is_empty()).then_some(LiveRefresh { made })));
    }
}
