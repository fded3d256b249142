//! Our ancestors, and what they hold by their descriptors.

use std::fmt::Display;
use std::fs;
use std::iter;

use nix::unistd::getppid;

use crate::sys::file_id::FileId;
use crate::sys::proc::{self, Flock, Stat};

/// Programs that hold a lock for what they start, and for nothing else.
const LOCKERS: [&str; 3] = ["flock", "claude", "claude-run"];

/// Programs that have a lock by flock(1), and can keep it from what they start.
const SHELLS: [&str; 9] = ["ash", "bash", "busybox", "dash", "fish", "ksh", "mksh", "sh", "zsh"];

/// Pids of our ancestors, the nearest first, as far as they are visible.
pub(super) fn ancestors() -> impl Iterator<Item = i32> {
    let parent = Stat::read(getppid().as_raw()).filter(|_| proc::is_of_our_pid_namespace());
    iter::successors(parent, |stat| Stat::read(stat.parent)).map(|stat| stat.pid)
}

/// True if any of our ancestors holds an exclusive flock on `lock`.
pub(super) fn is_held_above(lock: FileId) -> bool {
    ancestors().any(|pid| exclusive_flock(pid, lock).is_some())
}

/// The exclusive flock on `lock` that a descriptor of `process` holds: an attempt to lock through an inherited descriptor that holds a
/// shared one could lose that.
pub(super) fn exclusive_flock(process: impl Display, lock: FileId) -> Option<Flock> {
    proc::flock_of(process, lock).filter(|flock| flock.is_exclusive)
}

/// True if the process `pid` has its `flock` for all that it starts: as one of [`LOCKERS`], or because it is in the place of the shell of an
/// old block, as the block's last command is. Whoever has called flock(2) itself may have done so for something else.
pub(super) fn holds_for_all_below(pid: i32, flock: Flock) -> bool {
    let words = proc::command_line(pid).unwrap_or_default();
    // Of a script, the second is its name.
    let mut names = words.iter().take(2).filter_map(|word| word.rsplit('/').next());
    let is_shell = || {
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok();
        program.is_none_or(|path| path.file_name().is_none_or(|name| SHELLS.iter().any(|shell| name == *shell)))
    };
    names.any(|name| LOCKERS.contains(&name)) || (flock.pid != pid && !is_shell())
}
