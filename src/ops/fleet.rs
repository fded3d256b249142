//! The fleet: all live runs around one session lock, and whoever else holds it or waits for it.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::broken::Held;
use super::slots::SlotsInUse;
use super::{Factory, NOT_KNOWN};
use crate::lock::{Holder, Queue};
use crate::records::{Census, Hold, RunRecord, is_locked_at};
use crate::sys::file_id::FileId;
use crate::sys::fs::if_there;
use crate::sys::proc::Stat;

/// Who has, wants or does without the session lock.
pub(super) struct Fleet {
    /// More than one only if the lock file was replaced under the first. None if the lock file [cannot be looked at](Self::not_known).
    pub(super) holders: Vec<Holder>,
    /// In the order of the queue; in it, a process without a record has its pid alone.
    pub(super) waiting: Vec<Result<RunRecord, i32>>,
    /// Runs that want this lock not, or no more, those of another lock file included.
    pub(super) running: Vec<RunRecord>,
    pub(super) slots: SlotsInUse,
    /// What has become of the session lock under runs that it keeps apart from nobody any more.
    pub(super) broken: Vec<String>,
    pub(super) orphaned: Vec<RunRecord>,
    /// Runs of other hosts, whose locks cannot be seen here.
    pub(super) elsewhere: Vec<RunRecord>,
    /// The lock file may be there, but cannot be looked at.
    pub(super) is_lock_hidden: bool,
    /// Reason why there are no records.
    pub(super) unreadable: Option<String>,
}

/// Looks for the record of a claude-run without one, 20 ms apart: so many, and at most so many while it wants to run.
const LEAST_LOOKS: usize = 10;
const MOST_LOOKS: usize = 150;

impl Fleet {
    /// Leaves out a claude-run that is just starting, whose record comes a moment after its flock. One that stays without a record
    /// cannot keep any.
    pub(super) fn look(factory: &Factory) -> Self {
        let lock = FileId::at(&factory.lock_file);
        // The kernel takes some 10 ms for its answer: time to read the records. It is asked only once, since it halts all locking.
        let (queue, (mut census, unreadable)) = thread::scope(|scope| {
            let queue = lock.map(|lock| scope.spawn(move || Queue::look(lock)));
            let census = factory.census_if_readable();
            (queue.and_then(|queue| queue.join().ok()), census)
        });
        let strangers = |census: &Census| -> Vec<i32> {
            let found = queue.iter().flat_map(|queue| queue.without_record(&census.live));
            found.filter(|&pid| is_claude_run(pid)).collect()
        };
        let mut without_record = strangers(&census);
        for look in 0..MOST_LOOKS {
            // On a busy machine, it may have had no time to write its record.
            if without_record.is_empty() || look >= LEAST_LOOKS && !without_record.iter().any(|pid| is_runnable(*pid)) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            census = factory.census_if_readable().0;
            without_record = strangers(&census);
        }
        // One that has ended by now, or has begun since.
        let is_no_stranger = |pid: i32| !without_record.contains(&pid) && (is_claude_run(pid) || is_gone(pid));
        let slots = SlotsInUse::look(&factory.records, &census, unreadable.is_none());
        let Census { live, mut orphaned, elsewhere, .. } = census;
        let broken = broken(factory, &live, queue.as_ref().is_some_and(Queue::is_empty));
        let waits = |record: &RunRecord| record.waits() && lock.is_some_and(|lock| record.is_about(lock));
        let waiting = live.iter().filter(|record| waits(record)).cloned().collect();
        let mut waiting = queue.as_ref().map_or(Vec::new(), |queue| queue.in_order(&live, waiting, is_no_stranger));
        let holds = |record: &RunRecord| lock.is_some_and(|lock| record.holds(lock));
        orphaned.retain(holds); // not those of another lock file
        let (holding, mut running): (Vec<_>, Vec<_>) = live.into_iter().filter(|record| !waits(record)).partition(holds);
        let mut holders: Vec<_> = holding.into_iter().map(|record| Holder::Run(Box::new(record))).collect();
        if let (true, Some(lock), Some(queue)) = (holders.is_empty(), lock, &queue) {
            let found = Holder::find_without_record(queue, Some(&factory.records));
            let found = Holder::or_orphan(found, lock, || orphaned.clone());
            match &found {
                Some(Holder::Orphan(left, _)) => orphaned = vec![(**left).clone()],
                Some(Holder::Processes(_)) => orphaned.clear(), // they are none of theirs
                Some(Holder::Run(_)) | None => {}
            }
            holders.extend(found.filter(|holder| match holder {
                Holder::Processes(processes) => !processes.first().is_some_and(|process| is_no_stranger(process.pid)),
                Holder::Run(_) | Holder::Orphan(..) => true,
            }));
        }
        if let [Holder::Run(holder)] = holders.as_slice() {
            running.retain(|record| record.run != holder.run);
            waiting.retain(|waiter| waiter.as_ref().map_or(true, |record| record.run != holder.run));
        }
        let is_lock_hidden = if_there(fs::metadata(&factory.lock_file)).is_err();
        Self { holders, waiting, running, slots, broken, orphaned, elsewhere, is_lock_hidden, unreadable }
    }

    /// Those of its lists that may be empty only because they could not be looked at.
    pub(super) fn not_known(&self) -> Vec<&'static str> {
        let lists = [("holders", self.is_lock_hidden), ("waiting", self.is_lock_hidden), ("slots", !self.slots.is_known)];
        lists.into_iter().filter_map(|(name, is_hidden)| is_hidden.then_some(name)).collect()
    }

    /// What stands for its list `name` if that is empty.
    pub(super) fn nobody(&self, name: &str) -> &'static str {
        if self.not_known().contains(&name) { NOT_KNOWN } else { "nobody" }
    }

    /// Holders of the session lock, and those of slots that are none of them, with what they hold.
    pub(super) fn held(&self) -> impl Iterator<Item = (String, &Holder)> + Clone {
        let of_lock = self.holders.iter().map(|holder| ("the session lock".to_owned(), holder));
        let has_lock = |holder: &Holder| self.holders.iter().any(|other| holder.run().is_some() && other.run() == holder.run());
        of_lock.chain(self.slots.holders().filter(move |(_, holder)| !has_lock(holder)))
    }
}

/// What has become of the session lock under those of the `live` runs that it keeps apart from nobody any more. `seems_free`: the kernel
/// shows nobody who has it here.
fn broken(factory: &Factory, live: &[RunRecord], seems_free: bool) -> Vec<String> {
    let path = &factory.lock_file;
    let session_lock = Held { name: "the session lock", path, has: RunRecord::holds };
    let is_of_path = |run: &RunRecord| run.lock.as_ref().is_some_and(|view| Path::new(&view.path) == path);
    let is_free = |run: &RunRecord| seems_free && run.is_of_this_boot() && !is_locked_at(path);
    let holders = live.iter().filter(|run| run.hold == Some(Hold::Own) && is_of_path(run));
    holders.filter_map(|run| session_lock.broken(&factory.records, run, |_| is_free(run))).collect()
}

/// True for a process of claude-run, under whatever name; where an emulator is the program, by the name of the process. Any script
/// may have such a name.
pub(super) fn is_claude_run(pid: i32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_ours = |name: &str| name.starts_with("claude-run");
    is_ours(&program) || program.starts_with("qemu-") && Stat::read(pid).is_some_and(|stat| is_ours(&stat.name()))
}

fn is_runnable(pid: i32) -> bool {
    Stat::read(pid).is_some_and(|stat| stat.state == b'R')
}

/// True also for a process on its way out, which has no program any more.
fn is_gone(pid: i32) -> bool {
    let has_no_program =
        || fs::read_link(format!("/proc/{pid}/exe")).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    Stat::read(pid).is_none_or(|stat| stat.is_dead()) || has_no_program()
}
