//! Holder and waiters of a lock: by run records, and for those without one, such as old shell scripts, by what the kernel lists.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::iter;

use super::claims::is_below;
use crate::config::duration::show_seconds;
use crate::records::{RecordStore, RunRecord, State};
use crate::run_id::RunId;
use crate::sys::file_id::FileId;
use crate::sys::proc::{self, Flock, Links, Stat};

/// Holder of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A live run.
    Run(Box<RunRecord>),
    /// A run whose claude-run was killed, and the processes that it has left with the lock, as far as they are visible.
    Orphan(Box<RunRecord>, Vec<Process>),
    /// Processes that are no run.
    Processes(Vec<Process>),
}

/// Process that has the lock's open file description, as all have that inherited it: the lock is free with the last of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub(crate) pid: i32,
    /// Command name.
    pub(crate) name: String,
}

/// Flocks on a lock file, held and waited for, as far as they are visible here.
#[derive(Debug)]
pub struct Queue {
    lock: FileId,
    flocks: Vec<Flock>,
}

/// Number of records that are read before the kernel is asked.
const GLANCE: usize = 8;

/// Number of processes that are named; of the others, only the number is said.
pub(crate) const NAMED: usize = 4;

impl Holder {
    /// Finds the holder of `lock` among the oldest runs in `records`, as `RecordStore::glance` does; else it is those of the processes
    /// found `last` that hold it still; else, unless there are more than `crowd` runs, looks among the visible processes.
    pub fn find(records: Option<&RecordStore>, lock: FileId, crowd: usize, last: &[Process]) -> Option<Self> {
        let (run, count) = records.map_or((None, 0), |records| records.glance(lock, GLANCE));
        if let Some(run) = run {
            return Some(Self::Run(Box::new(run)));
        }
        let still: Vec<_> = last.iter().filter(|process| proc::flock_of(process.pid, lock).is_some()).cloned().collect();
        let holder = match still.first().map(|process| process.pid) {
            Some(pid) => Some(run_of(records, pid).map_or_else(|| Self::Processes(still), Self::Run)),
            None if count <= crowd => Self::find_near(&Queue::look(lock), records, Links::descendants),
            None => return None,
        };
        let orphaned = || records.and_then(|records| records.census().ok()).map_or(Vec::new(), |census| census.orphaned);
        Self::or_orphan(holder, lock, orphaned)
    }

    /// Finds a holder whose record does not say so, or that has no record, with all visible processes that have the lock with it.
    pub fn find_without_record(queue: &Queue, records: Option<&RecordStore>) -> Option<Self> {
        // Who waits for a lock does not share it, and there may be a thousand of them, each with the lock file open.
        let waiting: HashSet<_> = queue.waiting().into_iter().collect();
        Self::find_near(queue, records, |_| Stat::all().into_iter().filter(|stat| !waiting.contains(&stat.pid)).collect())
    }

    /// The same, with those that `near` gives for a holder: a waiter looks at those below it alone, since each look at all costs the more,
    /// the more processes and waiters there are.
    fn find_near(queue: &Queue, records: Option<&RecordStore>, near: impl Fn(i32) -> Vec<Stat>) -> Option<Self> {
        let lock = queue.lock;
        let of_pid = |pid| Self::of_pid(records, pid, lock, &near);
        let mut locked_by = None;
        match queue.owner() {
            Some(pid) if proc::flock_of(pid, lock).is_some() || proc::is_hidden(pid) => {
                return Some(of_pid(pid));
            }
            Some(pid) => {
                locked_by = Queue::look(lock).owner();
                // The lock changes hands at this moment: its last holder has released it by now.
                if locked_by.is_some_and(|now| now != pid) {
                    return None;
                }
            }
            None if proc::is_outermost_pid_namespace() => return None,
            None => {}
        }
        // The process that locked it is gone or not visible; those that inherited the descriptor hold the lock now. That process was
        // flock(1) in an old shell block, most likely: the shell has a pid just before its own, and what it runs one just behind.
        if let Some(near) = queue.owner().and_then(|pid| nearest_inheritor(pid, lock)) {
            return Some(of_pid(near));
        }
        let inheritors = Stat::all().into_iter().filter(|stat| proc::flock_of(stat.pid, lock).is_some());
        let inheritor = inheritors.min_by_key(|stat| stat.start).map(|inheritor| of_pid(inheritor.pid));
        let gone = |pid| Self::Processes(vec![Process { pid, name: "gone; who inherited it cannot be seen".to_owned() }]);
        inheritor.or_else(|| locked_by.map(gone))
    }

    /// The `holder` that was found, if any, as what one of the `orphaned` runs has left, if one has held `lock`, or that slot. Since then,
    /// an old caller may have acquired it: what a run has started is told by its environment.
    pub(crate) fn or_orphan(holder: Option<Self>, lock: FileId, orphaned: impl FnOnce() -> Vec<RunRecord>) -> Option<Self> {
        let processes = match holder {
            Some(Self::Processes(processes)) => processes,
            Some(run) => return Some(run),
            None => Vec::new(),
        };
        let is_left_by = |id: RunId| processes.iter().any(|process| is_below(process.pid, id) != Some(false));
        let has_left = |run: &RunRecord| run.child.is_some() || RunId::parse(&run.run).is_some_and(is_left_by);
        let orphaned = orphaned()
            .into_iter()
            .filter(|run| (run.holds(lock) || run.has_slot(lock)) && (processes.is_empty() || has_left(run)));
        match orphaned.max_by_key(|run| (run.child.is_some(), run.began)) {
            Some(mut run) => {
                // Where the child is gone, a tool of its may have the lock.
                run.child = run.child.or(processes.first().map(|process| process.pid));
                Some(Self::Orphan(Box::new(run), processes))
            }
            None => (!processes.is_empty()).then_some(Self::Processes(processes)),
        }
    }

    /// The run that holds it, or has left it.
    pub(crate) fn run(&self) -> Option<&RunRecord> {
        match self {
            Self::Run(run) | Self::Orphan(run, _) => Some(run),
            Self::Processes(_) => None,
        }
    }

    /// Its processes, of which none is a run.
    pub(crate) fn processes(&self) -> &[Process] {
        match self {
            Self::Run(_) => &[],
            Self::Orphan(_, processes) | Self::Processes(processes) => processes,
        }
    }

    /// Name and time, for a line that has little room.
    pub(crate) fn short(&self) -> String {
        match self {
            Self::Run(record) => format!("{}, {}", record.who(), show_seconds(record.age())),
            Self::Orphan(..) | Self::Processes(_) => self.to_string(),
        }
    }

    /// The holder `pid`: a run, or another process and those `near` it that have `lock` as well.
    fn of_pid(records: Option<&RecordStore>, pid: i32, lock: FileId, near: impl Fn(i32) -> Vec<Stat>) -> Self {
        let processes = || iter::once(Process::of(pid)).chain(sharers(pid, lock, near(pid))).collect();
        run_of(records, pid).map_or_else(|| Self::Processes(processes()), Self::Run)
    }
}

/// The run whose claude-run is `pid`, though its record may not say yet that it holds the lock.
fn run_of(records: Option<&RecordStore>, pid: i32) -> Option<Box<RunRecord>> {
    // A run in a container below ours records another pid.
    let (inner, namespace) = proc::innermost_pid(pid)?;
    let mut live = records?.live_with_pid(inner).into_iter();
    live.find(|run| run.pid_namespace.as_ref() == Some(&namespace)).map(Box::new)
}

impl Process {
    fn of(pid: i32) -> Self {
        Self { pid, name: Stat::read(pid).map(|stat| stat.name()).unwrap_or_default() }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name.escape_debug(), self.pid)
    }
}

/// Those of `all` that hold `lock` beside `pid`, the oldest first.
fn sharers(pid: i32, lock: FileId, mut all: Vec<Stat>) -> impl Iterator<Item = Process> {
    all.retain(|stat| stat.pid != pid && proc::flock_of(stat.pid, lock).is_some());
    all.sort_by_key(|stat| (stat.start, stat.pid));
    all.into_iter().map(|stat| Process { pid: stat.pid, name: stat.name() })
}

/// Pids that are looked at before and behind that of a process that is gone.
const NEAR: i32 = 128;

/// The first process of those with a pid near `owner` that holds `lock`, or the topmost of its ancestors that does, too.
fn nearest_inheritor(owner: i32, lock: FileId) -> Option<i32> {
    let holds = |pid: &i32| proc::flock_of(pid, lock).is_some();
    let mut near = (1..=NEAR).flat_map(|distance| [owner - distance, owner + distance]).filter(|&pid| pid > 1);
    let parents = |pid: &i32| Stat::read(*pid).map(|stat| stat.parent);
    iter::successors(near.find(holds), parents).take_while(holds).last()
}

impl Queue {
    /// Reads /proc/locks, for which the kernel halts all locking on the machine for a moment: some 10 ms, mostly asleep.
    pub fn look(lock: FileId) -> Self {
        Self { lock, flocks: proc::flocks(lock) }
    }

    /// True if nobody has it or waits for it, as far as can be seen here.
    pub(crate) fn is_empty(&self) -> bool {
        self.flocks.is_empty()
    }

    /// Pid that called flock(2); a process that inherited the descriptor may hold the lock now.
    pub(super) fn owner(&self) -> Option<i32> {
        self.flocks.iter().find(|flock| !flock.waits).map(|flock| flock.pid)
    }

    /// Processes that hold it or wait for it, and are none of the `live` runs.
    pub(crate) fn without_record(&self, live: &[RunRecord]) -> Vec<i32> {
        Self::known(self.flocks.iter().map(|flock| flock.pid).collect(), live).into_iter().filter_map(Result::err).collect()
    }

    /// Waiters in the order of the queue: the id of one of the `live` runs, or the pid of another process.
    pub(crate) fn waiters<'a>(&self, live: &'a [RunRecord]) -> Vec<Result<&'a str, i32>> {
        Self::known(self.waiting(), live)
    }

    /// All who wait: those of the `live` runs that are `waiting`, and the pids of processes without a record, less those that `is_left_out`.
    /// A run that the kernel does not show here, as one of another container, has its place by the time since which it waits.
    pub(crate) fn in_order(
        &self,
        live: &[RunRecord],
        mut waiting: Vec<RunRecord>,
        is_left_out: impl Fn(i32) -> bool,
    ) -> Vec<Result<RunRecord, i32>> {
        let places = self.waiters(live);
        waiting.sort_by_key(|record| record.since);
        let shown: HashSet<_> = places.iter().flatten().copied().collect();
        let (in_queue, elsewhere): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|record| shown.contains(&*record.run));
        let mut in_queue: HashMap<_, _> = in_queue.into_iter().map(|record| (record.run.clone(), record)).collect();
        let mut elsewhere = elsewhere.into_iter().peekable();
        let mut queue = Vec::new();
        for place in places {
            match place.map(|run| in_queue.remove(run)) {
                Ok(Some(record)) => {
                    queue.extend(iter::from_fn(|| elsewhere.next_if(|other| other.since < record.since)).map(Ok));
                    queue.push(Ok(record));
                }
                Ok(None) => {} // it has the lock by now
                Err(pid) => queue.extend((!is_left_out(pid)).then_some(Err(pid))),
            }
        }
        queue.extend(elsewhere.map(Ok));
        queue
    }

    fn known(pids: Vec<i32>, live: &[RunRecord]) -> Vec<Result<&str, i32>> {
        let key = |record: &RunRecord| (record.pid, record.pid_namespace.clone());
        let runs: HashMap<_, _> = live.iter().map(|record| (key(record), record.run.as_str())).collect();
        let ours = proc::pid_namespace();
        // A run in a container below ours records another pid.
        let inner = |pid| proc::innermost_pid(pid).map(|(inner, namespace)| (inner, Some(namespace)));
        let run = |pid| runs.get(&(pid, ours.clone())).or_else(|| runs.get(&inner(pid)?)).copied();
        pids.into_iter().map(|pid| run(pid).ok_or(pid)).collect()
    }

    /// Pids of the waiters, in the order of the queue.
    pub(super) fn waiting(&self) -> Vec<i32> {
        // /proc/locks is read in pieces: a waiter that moves up in the queue meanwhile can be in two of them.
        let mut seen = HashSet::new();
        let waiting = self.flocks.iter().filter(|flock| flock.waits).map(|flock| flock.pid);
        waiting.filter(|pid| seen.insert(*pid)).collect()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |processes: &[Process]| {
            let names = processes.iter().take(NAMED).map(Process::to_string).collect::<Vec<_>>().join(", ");
            let more = processes.len().saturating_sub(NAMED);
            if more > 0 { format!("{names} and {more} more") } else { names }
        };
        match self {
            Self::Run(record) => {
                // It waits for its lock helper, or for claude's own refresh lock.
                let but = if record.state == State::Waiting { ", not started yet" } else { "" };
                write!(f, "{} for {}{but}", record.who(), show_seconds(record.age()))
            }
            Self::Orphan(record, processes) => {
                write!(f, "what {} left when it was killed", record.who())?;
                if processes.is_empty() { Ok(()) } else { write!(f, ": {}", named(processes)) }
            }
            Self::Processes(processes) => write!(f, "{}, without a run record", named(processes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn process_has_a_name_that_is_no_utf_8() -> std::io::Result<()> {
        // That of a thread alone, which /proc has by its id as well.
        std::thread::spawn(|| {
            std::fs::write("/proc/thread-self/comm", b"\xffold")?;
            assert_eq!(Process::of(nix::unistd::gettid().as_raw()).name, "\u{fffd}old");
            Ok(())
        })
        .join()
        .expect("no panic")
    }

    #[test]
    fn waiter_is_counted_once() {
        let waits = |pid| Flock { pid, waits: true, is_exclusive: true };
        let lock = FileId { device: 1, inode: 2 };
        let queue = Queue { lock, flocks: vec![Flock { waits: false, ..waits(4711) }, waits(7), waits(8), waits(7)] };
        assert_eq!(queue.waiters(&[]), [Err(7), Err(8)]);
    }

    #[test]
    fn run_of_another_container_has_its_place_by_time() {
        let record = |pid: i32, namespace: Option<String>, second: u32| {
            let view = json!({"path": "/"});
            let text = json!({
                "run": format!("{pid}-1"), "state": "waiting", "since": format!("2026-01-01T00:00:{second:02}Z"),
                "began": "2026-01-01T00:00:00Z", "mode": "exclusive", "pid": pid, "pid_namespace": namespace, "program": "x",
                "config_dir": view, "parent": view
            });
            RunRecord::from_json(text.to_string().as_bytes()).expect("a record")
        };
        let ours = proc::pid_namespace();
        let live = [record(7, ours.clone(), 1), record(3, None, 5), record(8, ours, 9), record(4, None, 20)];
        let waits = |pid| Flock { pid, waits: true, is_exclusive: true };
        // Beyond every pid, so that nobody has it.
        let (old, starting) = (5_000_000, 5_000_001);
        let queue = Queue { lock: FileId { device: 1, inode: 2 }, flocks: [7, old, starting, 8].map(waits).to_vec() };
        let queue = queue.in_order(&live, live.to_vec(), |pid| pid == starting);
        let pids: Vec<_> = queue.iter().map(|waiter| waiter.as_ref().map_or_else(|pid| *pid, |run| run.pid)).collect();
        assert_eq!(pids, [7, old, 3, 8, 4]);
    }
}
