//! Refreshes of claude's token, as the supervisor sees them: it watches for the end of one that the lock was acquired for, and of
//! one that a signal is deferred for.

use std::cell::LazyCell;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info, warn};

use super::super::policy::{Action, Input, MAX_DEFERRAL};
use super::Supervisor;
use crate::claude::refresh_locks::{CutRefresh, Owner, RefreshLock};
use crate::config::duration::show;
use crate::config::settings::Leftovers;
use crate::lock::{AwaitedRefresh, LockGuard};
use crate::sys::bounded;
use crate::sys::proc::Stat;
use crate::sys::signal::Signal;

impl Supervisor<'_> {
    /// The refresh that the lock is held for.
    pub(super) fn awaited_refresh(&self) -> Option<&AwaitedRefresh> {
        self.lock.as_ref()?.refresh.as_ref()
    }

    pub(super) fn files_to_watch(&self) -> Vec<PathBuf> {
        let mut files = self.awaited_refresh().map_or(Vec::new(), AwaitedRefresh::files);
        if self.policy.is_deferring() {
            files.extend(self.guarded.seen.iter().cloned());
        }
        files
    }

    pub(super) fn on_files_changed(&mut self) {
        self.check_awaited_refresh();
        if self.policy.is_deferring() {
            self.check_refresh_locks();
        }
    }

    /// Reports a refresh in whose midst the child has ended. It was the child's by its pid, or by the lock, beside which there was no other.
    pub(super) fn report_cut_refresh(&mut self) {
        let cut = match (&self.cut_watch, &self.storage) {
            // The session lock is not there, and is free however long that takes to answer.
            (Some(watch), Some(storage)) if storage.moved_by.is_some() => {
                let (watch, storage) = (watch.clone(), storage.clone());
                bounded::within("cut refresh", move || watch.end(&storage)).flatten()
            }
            (Some(watch), Some(storage)) => watch.end(storage),
            _ => None,
        };
        let is_ours = |pid| pid == self.child.as_raw() || self.lock.as_ref().is_some_and(LockGuard::is_held);
        if let Some(CutRefresh { pid, .. }) = cut.filter(|cut| is_ours(cut.pid)) {
            error!(name: "refresh.cut", pid, "claude has ended in the midst of a refresh: its login is probably lost; log in again if the next run fails");
            self.recorder.on_cut_refresh();
        }
    }

    pub(super) fn check_awaited_refresh(&mut self) {
        let (now, Some(mut refresh)) = (Instant::now(), self.awaited_refresh().cloned()) else { return };
        let look = move || {
            let end = refresh.end(now);
            (refresh, end)
        };
        let looked = bounded::within("awaited refresh", look);
        let Some(lock) = &mut self.lock else { return };
        let Some((refresh, end)) = looked else {
            return lock.refresh.iter_mut().for_each(|refresh| refresh.postpone(Instant::now()));
        };
        lock.refresh = Some(refresh);
        if let Some(reason) = end {
            if lock.is_relied_upon(self.recorder.store()) {
                if lock.refresh.as_mut().is_some_and(AwaitedRefresh::is_needed_longer) {
                    info!("a run below this one relies on the session lock, which is kept as long");
                }
                return;
            }
            self.recorder.on_released();
            lock.release();
            info!(name: "lock.released", "released the session lock: {reason}");
        }
    }

    /// A look at the refresh locks, whose answer goes to the policy.
    pub(super) fn check_refresh_locks(&mut self) {
        let (locks, unanswered) = self.guarded_refreshes();
        let is_in_progress = !locks.is_empty();
        self.guarded.on_look(locks, unanswered);
        // A signal that starts no kill grace, as INT, or one that our caller ignores, wakes nobody.
        if is_in_progress && self.policy.is_ending() {
            let is_reached = |stat: &Stat| stat.pid == self.child.as_raw() || self.policy.config.leftovers == Leftovers::Kill;
            self.tree.continue_stopped(is_reached); // who is stopped would have its TERM, but no time
        }
        self.dispatch(Input::Refresh(is_in_progress));
    }

    pub(super) fn give_up_refresh(&mut self) {
        let pid = self.child.as_raw();
        let what =
            if is_any_out_of_reach(&self.guarded.deferred_for) { "locks are still out of reach" } else { "lock is still held" };
        warn!(name: "refresh.spared", pid, "claude's refresh {what} after {}: going on", show(MAX_DEFERRAL));
        self.guarded.give_up();
    }

    /// Waits until no refresh is in progress that is to be spared, before a KILL without a policy.
    pub(super) fn wait_for_refreshes(&mut self) {
        const PAUSE: Duration = Duration::from_millis(20);
        self.act(Action::SignalChild(Signal::SIGCONT)); // even without descriptors, and so without /proc
        self.tree.continue_stopped(|_| true);
        // Not by the clock, which goes on if we are frozen.
        for _ in 0..MAX_DEFERRAL.as_millis() / PAUSE.as_millis() {
            if self.guarded_refreshes().0.is_empty() {
                return;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Locks of refreshes that are to be spared. One may be in progress if somebody of the tree may hold a lock: its owner, if that is known,
    /// is not outside of the tree. With them, what stands for all, if the file system does not answer.
    fn guarded_refreshes(&self) -> (Vec<RefreshLock>, Option<RefreshLock>) {
        let Some(storage) = self.storage.clone() else { return Default::default() };
        // A look at the whole tree, for which there is no time beside a fork bomb.
        let names = LazyCell::new(|| self.tree.names());
        let may_be_ours = |owner: &Owner| names.as_ref().is_none_or(|names| owner.may_be_among(names));
        let unseen = RefreshLock::out_of_reach(&storage);
        let (locks, unanswered) = match bounded::within("refresh locks", move || RefreshLock::all(&storage)) {
            Some(locks) => (locks, None),
            None => (vec![unseen.clone()], Some(unseen)),
        };
        let held = locks.into_iter().filter(|lock| self.guarded.concerns(lock));
        (held.filter(|lock| lock.owner.as_ref().is_none_or(may_be_ours)).collect(), unanswered)
    }
}

fn is_any_out_of_reach(locks: &[RefreshLock]) -> bool {
    locks.iter().any(RefreshLock::is_out_of_reach)
}

/// The refresh locks that signals are deferred for. Each is known by itself: another agent's, which hangs, says nothing about ours.
#[derive(Debug)]
pub(super) struct GuardedRefreshes {
    /// Time from which on the child may have taken locks, by the clock that may be set, and by the one that may not.
    start: (SystemTime, Instant),
    /// Those that the deferral has begun for.
    deferred_for: Vec<RefreshLock>,
    /// Those that have had their time.
    given_up: Vec<RefreshLock>,
    /// Paths of those that the last look has found.
    seen: Vec<PathBuf>,
    /// The last look was not answered.
    unanswered: Option<RefreshLock>,
}

impl GuardedRefreshes {
    /// For a child that is about to be started.
    pub(super) fn begin() -> Self {
        Self {
            start: (SystemTime::now(), Instant::now()),
            deferred_for: Vec::new(),
            given_up: Vec::new(),
            seen: Vec::new(),
            unanswered: None,
        }
    }

    fn concerns(&self, lock: &RefreshLock) -> bool {
        let start = self.start.0.min(SystemTime::now() - self.start.1.elapsed());
        let may_be_held = lock.is_out_of_reach() || lock.may_be_held_by_one_of(start);
        may_be_held && !self.given_up.iter().any(|known| known.is_same_hold(lock))
    }

    fn on_look(&mut self, found: Vec<RefreshLock>, unanswered: Option<RefreshLock>) {
        if unanswered.is_none() {
            self.given_up.retain(|lock| !lock.is_out_of_reach());
        }
        self.unanswered = unanswered;
        self.seen = found.iter().filter(|lock| !lock.is_out_of_reach()).map(|lock| lock.path.clone()).collect();
        if self.deferred_for.is_empty() || found.is_empty() {
            self.deferred_for = found;
        }
    }

    fn give_up(&mut self) {
        self.given_up.append(&mut self.deferred_for);
        self.given_up.extend(self.unanswered.take());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::claude::storage::ClaudeStorage;

    #[test]
    fn lock_that_was_given_up_says_nothing_about_another() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (storage, mut guarded) = (ClaudeStorage::at(&dir.path().join("config")), GuardedRefreshes::begin());
        fs::create_dir_all(&storage.dir)?;
        let [hung, ours] = ["mcp-refresh-a.lock.lock", ".oauth_refresh.lock"].map(|name| storage.dir.join(name));
        let concerning = |guarded: &GuardedRefreshes| -> Vec<_> {
            RefreshLock::all(&storage).into_iter().filter(|lock| guarded.concerns(lock)).collect()
        };
        fs::create_dir(&hung)?;
        guarded.on_look(concerning(&guarded), None);
        fs::create_dir(&ours)?;
        guarded.on_look(concerning(&guarded), None);
        guarded.give_up();
        assert_eq!(concerning(&guarded).into_iter().map(|lock| lock.path).collect::<Vec<_>>(), [&*ours]);
        std::thread::sleep(Duration::from_millis(20)); // the grain of a file system's clock
        fs::remove_dir(&hung)?;
        fs::create_dir(&hung)?;
        assert_eq!(concerning(&guarded).len(), 2, "somebody else's");
        guarded.on_look(Vec::new(), None);
        guarded.give_up();
        assert_eq!(concerning(&guarded).len(), 2, "nobody was deferred for");
        Ok(())
    }
}
