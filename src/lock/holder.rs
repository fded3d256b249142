//! Who holds the lock: by its run record, and where there is none, as with an old shell script, by what the kernel tells.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::time::SystemTime;

use super::claims;
use crate::config::settings::show_seconds;
use crate::records::{RecordStore, RunRecord, State};
use crate::sys::file_id::FileId;
use crate::sys::proc::{self, Flock, Stat};

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

/// The flocks on a lock file, held and waited for, as far as they can be seen here.
#[derive(Debug)]
pub struct Queue {
    lock: FileId,
    flocks: Vec<Flock>,
}

/// How many records are read before the kernel is asked.
const GLANCE: usize = 16;

impl Holder {
    /// The holder of `lock`, among the live runs in `records` and the processes that can be seen here. None, if nobody holds
    /// it, or somebody out of sight.
    pub fn find(records: Option<&RecordStore>, lock: FileId) -> Option<Self> {
        Self::find_at_a_glance(records, lock, GLANCE).or_else(|| Self::find_without_record(&Queue::look(lock), records))
    }

    /// The holder of `lock`, if it is one of the oldest live runs: `at_most` so many records are read.
    pub fn find_at_a_glance(records: Option<&RecordStore>, lock: FileId, at_most: usize) -> Option<Self> {
        records?.holder(lock, at_most).map(|run| Self::Run(Box::new(run)))
    }

    /// A holder whose record does not say that it is one, or that has none.
    pub fn find_without_record(queue: &Queue, records: Option<&RecordStore>) -> Option<Self> {
        let lock = queue.lock;
        match queue.owner() {
            Some(pid) if on_acquired(pid, lock) => return Some(Self::of_pid(records, pid)),
            // It changes hands right now: whoever is looked for has let go of it when found.
            Some(_) if Queue::look(lock).owner() != queue.owner() => return None,
            None if proc::is_outermost_pid_namespace() => return None,
            _ => {}
        }
        // Who has locked it is gone or out of sight; the lock lives on in those that inherited the descriptor.
        let inheritors = Stat::all().into_iter().filter(|stat| on_acquired(stat.pid, lock));
        inheritors.min_by_key(|stat| stat.start).map(|heir| Self::of_pid(records, heir.pid))
    }

    /// The process `pid`, which holds it: a run, though its record may not say so yet, or some other.
    fn of_pid(records: Option<&RecordStore>, pid: i32) -> Self {
        let run = records.and_then(|records| {
            // A run in a container below ours calls itself by another pid.
            let (inner, namespace) = proc::innermost_pid(pid)?;
            records.live_with_pid(inner).into_iter().find(|run| run.pid_namespace.as_ref() == Some(&namespace))
        });
        match run {
            Some(run) => Self::Run(Box::new(run)),
            None => {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                Self::Process { pid, name: name.trim_end().to_owned() }
            }
        }
    }
}

fn on_acquired(pid: i32, lock: FileId) -> bool {
    claims::has_a_descriptor_with_flock(&pid.to_string(), lock)
}

impl Queue {
    /// Asks the kernel, which for an answer brings all locking on the machine to a short halt: some 10 ms, mostly asleep.
    pub fn look(lock: FileId) -> Self {
        Self { lock, flocks: proc::flocks(lock) }
    }

    /// Who has asked for the lock that is held.
    fn owner(&self) -> Option<i32> {
        self.flocks.iter().find(|flock| !flock.waits).map(|flock| flock.pid)
    }

    /// The pids of those that wait and are none of the `live` runs.
    pub fn waiting_without_record(&self, live: &[RunRecord]) -> Vec<i32> {
        let ours = proc::pid_namespace();
        let (here, elsewhere): (Vec<_>, Vec<_>) = live.iter().partition(|record| record.pid_namespace == ours);
        let here: HashSet<i32> = here.into_iter().map(|record| record.pid).collect();
        let elsewhere: HashSet<_> =
            elsewhere.into_iter().filter_map(|record| Some((record.pid, record.pid_namespace.clone()?))).collect();
        // A run in a container below ours calls itself by another pid.
        let is_known = |pid: &i32| {
            here.contains(pid)
                || (!elsewhere.is_empty() && proc::innermost_pid(*pid).is_some_and(|name| elsewhere.contains(&name)))
        };
        // /proc/locks is read in pieces: who moves up in the queue meanwhile can stand in two of them.
        let mut seen = HashSet::new();
        let waiting = self.flocks.iter().filter(|flock| flock.waits).map(|flock| flock.pid);
        waiting.filter(|pid| seen.insert(*pid) && !is_known(pid)).collect()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(record) => {
                let held = SystemTime::now().duration_since(record.since).unwrap_or_default();
                // Its lock helper, or claude's own refresh lock, keeps it waiting.
                let but = if record.state == State::Waiting { ", not started yet" } else { "" };
                write!(f, "{} for {}{but}", record.who(), show_seconds(held))
            }
            Self::Process { pid, name } => write!(f, "a process without a run record: pid {pid} ({})", name.escape_debug()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_counted_once() {
        let waits = |pid| Flock { pid, waits: true };
        let lock = FileId { device: 1, inode: 2 };
        let queue = Queue { lock, flocks: vec![Flock { pid: 4711, waits: false }, waits(7), waits(8), waits(7)] };
        assert_eq!(queue.waiting_without_record(&[]), [7, 8]);
    }
}
