//! Run id, by which a process can prove that it is the run.

use std::fmt;
use std::process;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::sys::proc::{Stat, is_invisible, is_of_our_pid_namespace, lives};

/// `<pid>-<nanoseconds since boot>`, taken while the process `pid` was alive. A process of that pid which is older than
/// the id is the one that took it: the kernel hands out a pid again only after its owner is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunId {
    pub(crate) taken_at: u64,
    pub(crate) pid: i32,
}

impl RunId {
    /// Variable with the id of the run that a process belongs to.
    pub(crate) const VARIABLE: &'static str = "CLAUDE_RUN_ID";

    /// Variable with the ids of all runs above a process, the outermost first.
    pub(crate) const LINEAGE: &'static str = "CLAUDE_RUN_LINEAGE";

    pub(crate) fn take() -> Self {
        // The clock that /proc counts a process' start in. Without it, no id of ours would be believed: the safe side.
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| Duration::from(now).as_nanos() as u64);
        Self { pid: process::id() as i32, taken_at: now }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (pid, taken_at) = text.split_once('-')?;
        Some(Self { pid: pid.parse().ok()?, taken_at: taken_at.parse().ok()? })
    }

    /// True if a process with this environment, in the form of /proc, was started below this run.
    pub(crate) fn is_above(self, environment: &[u8]) -> bool {
        let lineage = environment
            .split(|&byte| byte == 0)
            .find_map(|entry| entry.strip_prefix(Self::LINEAGE.as_bytes())?.strip_prefix(b"="));
        let us = self.to_string().into_bytes();
        lineage.is_some_and(|lineage| lineage.split(|&byte| byte == b',').any(|id| id == us))
    }

    /// Liveness of the process that took this id, in our PID namespace; `None` if it cannot be seen.
    pub(crate) fn lives(self) -> Option<bool> {
        lives(self.pid, |stat| nanoseconds(stat.start) <= self.taken_at)
    }

    /// True unless it is seen to be dead.
    pub(crate) fn is_alive(self) -> bool {
        self.lives().unwrap_or(true)
    }

    /// True if the process that took this id is an ancestor of ours, and so alive. A run is the subreaper of its descendants, so
    /// while it lives their parent links lead up to it; to one that we cannot see, it may be below or above that.
    pub(crate) fn is_above_us(self) -> bool {
        if !is_of_our_pid_namespace() {
            return false;
        }
        let mut pid = process::id() as i32;
        while let Some(stat) = Stat::read(pid) {
            if stat.pid == self.pid {
                return nanoseconds(stat.start) <= self.taken_at;
            }
            pid = stat.parent;
        }
        is_invisible(pid) && self.is_alive()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.taken_at)
    }
}

/// Nanoseconds from the clock ticks of /proc: 100 a second on every architecture that Rust's std has.
fn nanoseconds(ticks: u64) -> u64 {
    ticks.saturating_mul(10_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_reads_back() {
        let id = RunId::take();
        assert_eq!(RunId::parse(&id.to_string()), Some(id));
        for text in ["", "1", "1-", "-1", "1-2-3", "a-b", "1-2 "] {
            assert_eq!(RunId::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn descendant_is_known_by_its_environment() {
        let ours = RunId { pid: 7, taken_at: 11 };
        for below in ["CLAUDE_RUN_LINEAGE=7-11", "A=b\0CLAUDE_RUN_LINEAGE=1-2,7-11,9-12\0C=d\0"] {
            assert!(ours.is_above(below.as_bytes()), "{below:?}");
        }
        for elsewhere in ["", "A=7-11", "CLAUDE_RUN_LINEAGE=17-11", "CLAUDE_RUN_LINEAGE=7-112", "XCLAUDE_RUN_LINEAGE=7-11"] {
            assert!(!ours.is_above(elsewhere.as_bytes()), "{elsewhere:?}");
        }
    }

    #[test]
    fn only_a_live_older_ancestor_counts() {
        let ours = RunId::take();
        assert!(ours.is_above_us());
        assert!(!RunId { taken_at: 0, ..ours }.is_above_us(), "a pid used again");
        assert!(!RunId { pid: 4_194_304, ..ours }.is_above_us(), "a pid that is not there");
    }
}
