//! Who holds the lock: by its run record, and where there is none, as with an old shell script, by what the kernel tells.

use std::fmt;
use std::fs;
use std::time::SystemTime;

use super::ours;
use crate::identity::Identity;
use crate::procfs::{self, Stat};
use crate::records::{Directory, RunRecord, pid_namespace};
use crate::settings::show_seconds;

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A live run.
    Run(Box<RunRecord>),
    /// A process that is no run.
    Process {
        /// Its pid.
        pid: i32,
        /// What the kernel calls it.
        name: String,
    },
}

impl Holder {
    /// The holder of `lock`, among the live runs in `records` and the processes that can be seen here. None, if nobody holds
    /// it, or somebody out of sight.
    pub fn find(records: Option<&Directory>, lock: Identity) -> Option<Self> {
        if let Some(record) = records.and_then(|records| records.holder(lock)) {
            return Some(Self::Run(Box::new(record)));
        }
        let owners: Vec<i32> = procfs::flocks(lock).into_iter().filter(|flock| !flock.waits).map(|flock| flock.pid).collect();
        // It has the lock and is about to say so in its record.
        if let Some(run) = records.and_then(|records| of_pid(records, &owners)) {
            return Some(Self::Run(Box::new(run)));
        }
        let has_lock = |pid: &i32| ours::has_a_descriptor_with_flock(&pid.to_string(), lock);
        let pid = owners.iter().copied().find(has_lock).or_else(|| {
            // Who has locked it is gone or out of sight; the lock lives on in those that inherited the descriptor.
            let mut heirs: Vec<_> = Stat::all().into_iter().filter(|stat| has_lock(&stat.pid)).collect();
            heirs.sort_by_key(|stat| stat.start);
            heirs.first().map(|stat| stat.pid)
        })?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some(Self::Process { pid, name: name.trim_end().to_owned() })
    }
}

/// The pids of those that wait for `lock` and are none of the `live` runs: as far as they can be seen here.
pub fn waiting_without_record(lock: Identity, live: &[RunRecord]) -> Vec<i32> {
    let ours = pid_namespace();
    let is_known = |pid: i32| live.iter().any(|record| record.pid == pid && record.pid_namespace == ours);
    let waiters = procfs::flocks(lock).into_iter().filter(|flock| flock.waits).map(|flock| flock.pid);
    waiters.filter(|&pid| !is_known(pid)).collect()
}

fn of_pid(records: &Directory, pids: &[i32]) -> Option<RunRecord> {
    if pids.is_empty() {
        return None;
    }
    let ours = pid_namespace();
    let live = records.census().ok()?.live;
    live.into_iter().find(|record| record.pid_namespace == ours && pids.contains(&record.pid))
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(record) => {
                let held = SystemTime::now().duration_since(record.since).unwrap_or_default();
                write!(f, "{} for {}", record.who(), show_seconds(held))
            }
            Self::Process { pid, name } => write!(f, "a process without a run record: pid {pid} ({})", name.escape_debug()),
        }
    }
}
