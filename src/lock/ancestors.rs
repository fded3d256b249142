//! Our ancestors, and what they hold by their descriptors.

use std::fmt::Display;
use std::iter;

use nix::unistd::getppid;

use crate::sys::file_id::FileId;
use crate::sys::proc::{self, Stat};

/// Programs that hold a lock for all that they start, and for nothing else. As the last command of an old block, claude is in the place of
/// its shell; whatever else is there may have the lock for itself.
const LOCKERS: [&str; 3] = ["flock", "claude", "claude-run"];

/// Pids of our ancestors, the nearest first, as far as they are visible.
pub(super) fn ancestors() -> impl Iterator<Item = i32> {
    let parent = Stat::read(getppid().as_raw()).filter(|_| proc::is_of_our_pid_namespace());
    iter::successors(parent, |stat| Stat::read(stat.parent)).map(|stat| stat.pid)
}

/// True if any of our ancestors holds an exclusive flock on `lock`.
pub(super) fn is_held_above(lock: FileId) -> bool {
    ancestors().any(|pid| has_exclusive_flock(pid, &[lock]))
}

/// True if a descriptor of `process` holds an exclusive flock on one of `files`: an attempt to lock through an inherited descriptor that
/// holds a shared one could lose that.
pub(super) fn has_exclusive_flock(process: impl Display, files: &[FileId]) -> bool {
    proc::flock_among(process, files).is_some_and(|flock| flock.is_exclusive)
}

/// True if the process `pid` is one of [`LOCKERS`].
pub(super) fn holds_for_all_below(pid: i32) -> bool {
    let words = proc::command_line(pid).unwrap_or_default();
    // Of a script, the second is its path.
    let script = words.get(1).filter(|word| word.contains('/'));
    let mut names = words.first().into_iter().chain(script).filter_map(|word| word.rsplit('/').next());
    names.any(|name| LOCKERS.contains(&name))
}
