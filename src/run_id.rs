//! The name of one run, which also proves who bears it.

use std::fmt;
use std::process;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use crate::procfs::Stat;

/// `<pid>-<nanoseconds since boot>`, taken while the process `pid` was alive. A process of that pid which is older than
/// the id is the one that took it: the kernel hands out a pid again only after its owner is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunId {
    pub(crate) pid: i32,
    pub(crate) taken_at: u64,
}

impl RunId {
    /// The variable that tells the child and all below it which run they belong to.
    pub const VARIABLE: &'static str = "CLAUDE_RUN_ID";

    /// A new id for this process.
    pub fn take() -> Self {
        // The clock that /proc counts a process' start in. It is there since Linux 2.6.39; without it no id of ours
        // would be believed, which is the safe side.
        let now =
            clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64);
        Self { pid: process::id() as i32, taken_at: now }
    }

    /// Reads an id; anything else is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (pid, taken_at) = text.split_once('-')?;
        Some(Self { pid: pid.parse().ok()?, taken_at: taken_at.parse().ok()? })
    }

    /// Whether the process that took this id is an ancestor of ours, and so alive. It is not asked for by its pid alone:
    /// a run is the subreaper of all below it, so while it lives the links from child to parent lead up to it.
    pub fn is_above_us(self) -> bool {
        let mut pid = process::id() as i32;
        while let Some(stat) = Stat::read(pid) {
            if stat.pid == self.pid {
                return nanoseconds(stat.start) <= self.taken_at;
            }
            pid = stat.parent;
        }
        false
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.taken_at)
    }
}

fn nanoseconds(ticks: u64) -> u64 {
    let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().map_or(100, |ticks| ticks as u64).max(1);
    ticks.saturating_mul(1_000_000_000 / a_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_as_it_was_written() {
        let id = RunId::take();
        assert_eq!(RunId::parse(&id.to_string()), Some(id));
        for text in ["", "1", "1-", "-1", "1-2-3", "a-b", "1-2 "] {
            assert_eq!(RunId::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_a_live_ancestor_older_than_its_id_is_believed() {
        let ours = RunId::take();
        assert!(ours.is_above_us());
        assert!(!RunId { taken_at: 0, ..ours }.is_above_us(), "a pid used again");
        assert!(!RunId { pid: 4_194_304, ..ours }.is_above_us(), "a pid that is not there");
    }
}
