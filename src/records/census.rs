//! Looks at all records: who holds the lock, who waits, who has died and what is left of that. Whoever looks removes what nobody needs,
//! and writes the line of history for which a dead run did not live long enough.

use std::collections::BinaryHeap;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::history;
use super::kept::Line;
use super::run_record::{Hold, RunRecord};
use super::store::{LOCK_FILE, RecordStore, Seen, is_locked_at, look, record_name, temporary_name};
use crate::run_id::RunId;
use crate::sys::bounded;
use crate::sys::dir::Dir;
use crate::sys::file_id::FileId;
use crate::sys::fs::if_there;
use crate::sys::mount::may_lock_per_host;
use crate::sys::proc::{boot_id, flock_of, pid_namespace};

/// All runs that have a record, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Census {
    pub(crate) live: Vec<RunRecord>,
    /// Runs whose claude-run was killed, while what they started still holds the session lock or a slot; see [`RunRecord::holds`] and
    /// [`RunRecord::has_slot`].
    pub(crate) orphaned: Vec<RunRecord>,
    /// Runs on other hosts, whose locks cannot be seen from here: alive, or dead for not too long.
    pub(crate) elsewhere: Vec<RunRecord>,
    dead: Vec<(RunId, Seen)>,
    /// Number of records there were.
    listed: usize,
}

/// What a dead run has left.
enum Remains {
    Nothing,
    /// Its lock is on a file system that hangs.
    Unknown,
    /// What is locked yet.
    Locked(Box<RunRecord>),
}

/// Time for which the record of a run that may be alive elsewhere is kept after its last touch. A live run touches it more often.
pub(super) const SILENT_RECORD_TTL: Duration = Duration::from_secs(2 * 60 * 60);

/// Upper bound on the time to write a record, lock it and rename it.
const STILL_WRITING: Duration = Duration::from_secs(60);

impl RecordStore {
    /// Live run that has acquired `lock`, as [`glance`](Self::glance) finds it.
    pub(crate) fn holder(&self, lock: FileId, at_most: usize) -> Option<RunRecord> {
        self.glance(lock, at_most).0
    }

    /// Live run that has acquired `lock`, and the approximate number of records. Reads records, the oldest first and `at_most` so many, as
    /// `survey` does, until one says so: mostly the first does. With a bound, of a directory with very many only the [`LISTED`] first names
    /// count: what a waiter does is not to grow with what others have left. Removes records of dead runs that it meets, unless they may
    /// still be needed.
    pub(crate) fn glance(&self, lock: FileId, at_most: usize) -> (Option<RunRecord>, usize) {
        let Ok(runs) = self.open_runs() else { return (None, 0) };
        let Ok(Census { mut live, dead, listed, .. }) = survey(&runs, at_most, |record| record.holds(lock)) else {
            return (None, 0);
        };
        let holder = live.pop_if(|record| record.holds(lock));
        self.sweep_unneeded(&runs, lock, holder.is_some(), dead);
        (holder, listed)
    }

    /// Removes the records of those `dead` runs that have left nothing. `is_held`: a live run holds `lock`.
    fn sweep_unneeded(&self, runs: &Dir, lock: FileId, is_held: bool, dead: Vec<(RunId, Seen)>) {
        let had_lock = |(_, seen): &&(RunId, Seen)| {
            seen.record.as_ref().is_some_and(|record| record.holds(lock) && self.is_visible(record))
        };
        // What a dead run has started may still hold `lock`, if nobody has acquired it since: by the clock of the file system, which hosts
        // may share.
        let last = dead.iter().filter(had_lock).map(|(run, seen)| (seen.modified, *run)).max().filter(|_| !is_held);
        let is_needed = |run: RunId, record: &RunRecord| {
            let may_hold_another = record.hold == Some(Hold::Own) && !record.holds(lock);
            let may_hold = last.is_some_and(|(_, last)| last == run) || may_hold_another;
            may_hold || self.slot_left_by(record, &[]).is_some() || !self.is_visible(record)
        };
        let unneeded =
            dead.into_iter().filter(|(run, seen)| !seen.record.as_ref().is_some_and(|record| is_needed(*run, record)));
        unneeded.for_each(|(run, seen)| self.sweep(runs, run, seen.record.as_ref()));
    }

    /// Reads all records, and removes those of dead runs.
    pub(crate) fn census(&self) -> io::Result<Census> {
        let Some(runs) = if_there(self.open_runs())? else { return Ok(Census::default()) };
        let mut census = survey(&runs, usize::MAX, |_| false)?;
        // One run may release the lock and the next acquire it while we read. A run removes its record before it releases the lock,
        // so a second look tells.
        let holds = |record: &RunRecord| record.hold == Some(Hold::Own);
        if census.live.iter().filter(|record| holds(record)).count() > 1 {
            census.live.retain(|record| !holds(record) || self.live(&record.run).is_some());
        }
        for (run, Seen { record, modified, .. }) in mem::take(&mut census.dead) {
            match record {
                Some(record) if !self.is_visible(&record) && !is_older(modified, SILENT_RECORD_TTL) => {
                    census.elsewhere.push(record)
                }
                Some(record) => match self.remains(&record, &census.live) {
                    Remains::Locked(orphaned) => census.orphaned.push(*orphaned),
                    Remains::Unknown => {}
                    Remains::Nothing => self.sweep(&runs, run, Some(&record)),
                },
                None => self.sweep(&runs, run, None),
            }
        }
        for runs in [&mut census.live, &mut census.elsewhere] {
            runs.sort_by_key(|record| record.began);
        }
        Ok(census)
    }

    /// Removes the record of a dead run, unless its directory is read-only. Whoever has done so writes the line of history for which the
    /// run did not live long enough.
    fn sweep(&self, runs: &Dir, run: RunId, record: Option<&RunRecord>) {
        if runs.remove(&record_name(&run.to_string())).is_ok()
            && let Some(record) = record
        {
            let _ = Line::of(&history::vanished(record), &[]).and_then(|line| history::append(self, &line)); // the run had no better luck
        }
    }

    /// Run whose lock helper holds its lock, by its last record.
    pub(crate) fn helped(&self) -> Option<RunRecord> {
        let census = self.census().ok()?;
        census.live.into_iter().chain(census.elsewhere).find(|record| record.key.is_some())
    }

    /// What the dead run `record` has left: the session lock or the slot that it held may be held yet, by none of the `live` runs. Its lock
    /// is that of this config dir, or another file, at a path that may be another's here. The child is named only if it is seen to hold
    /// one of them: anybody can write a record.
    fn remains(&self, record: &RunRecord, live: &[RunRecord]) -> Remains {
        let ours = self.config_dir().join(LOCK_FILE);
        let slot = self.slot_left_by(record, live);
        let lock = left_by(record, &ours, live, RunRecord::holds);
        let elsewhere =
            record.lock.as_ref().map(|view| PathBuf::from(&view.path)).filter(|path| lock.is_none() && *path != ours);
        let lock = match elsewhere.map(|path| left_elsewhere(record, path, live)) {
            Some(None) if slot.is_none() => return Remains::Unknown,
            Some(found) => found.unwrap_or_default(),
            None => lock,
        };
        let locks: Vec<_> = lock.into_iter().chain(slot).collect();
        if locks.is_empty() {
            return Remains::Nothing;
        }
        let mut orphaned = Box::new(record.clone());
        orphaned.hold = record.hold.filter(|_| lock.is_some());
        orphaned.slot = orphaned.slot.filter(|_| slot.is_some());
        let has_lock = |child: i32| locks.iter().any(|lock| flock_of(child, *lock).is_some());
        orphaned.child = record.child.filter(|child| record.is_of_our_pid_namespace() && has_lock(*child));
        Remains::Locked(orphaned)
    }

    /// The slot of the dead run `record`, if it is still held, by none of the `live` runs.
    fn slot_left_by(&self, record: &RunRecord, live: &[RunRecord]) -> Option<FileId> {
        let name = Path::new(&record.slot.as_ref()?.path).file_name()?;
        left_by(record, &self.slots().join(name), live, RunRecord::has_slot)
    }

    /// True if the flock of a live run of `record` would be visible here. On another host, or through another mount, it may not
    /// be, unless the file system passes locks on. In our own PID namespace the process itself is visible.
    fn is_visible(&self, record: &RunRecord) -> bool {
        let device = |file: Option<FileId>| file.map(|file| file.device);
        let here = FileId::at(self.config_dir());
        let is_of_this_boot = record.boot == boot_id();
        let is_gone = || {
            record.pid_namespace.is_some()
                && record.pid_namespace == pid_namespace()
                && RunId::parse(&record.run).is_some_and(|run| !run.is_alive())
        };
        (is_of_this_boot && (device(record.config_dir.file_id()) == device(here) || is_gone()))
            || !may_lock_per_host(self.path())
    }
}

/// The file at `path`, if the dead run `record` was one that `holds` its lock, which is still held, by none of the `live` runs.
fn left_by(record: &RunRecord, path: &Path, live: &[RunRecord], holds: fn(&RunRecord, FileId) -> bool) -> Option<FileId> {
    let lock = FileId::at(path).filter(|lock| holds(record, *lock))?;
    // From inside a container only a try can tell.
    (!live.iter().any(|other| holds(other, lock)) && is_locked_at(path)).then_some(lock)
}

/// The same where only the dead run says where its lock is. `None` if that place does not answer.
fn left_elsewhere(record: &RunRecord, path: PathBuf, live: &[RunRecord]) -> Option<Option<FileId>> {
    let (record, live) = (record.clone(), live.to_vec());
    bounded::within("lock elsewhere", move || left_by(&record, &path, &live, RunRecord::holds))
}

/// Runs that have a record.
#[derive(Default)]
struct Listing {
    /// The oldest of them, in order.
    oldest: Vec<RunId>,
    /// Number of all.
    total: usize,
}

/// Names that are read at most for a bounded look.
const LISTED: usize = 1024;

/// Most temporary files that one look removes.
const SWEPT: usize = 16;

/// Lists the runs that have a record, `at_most` so many of the oldest. Removes temporary files that a killed writer has left.
fn list(runs: &Dir, at_most: usize) -> io::Result<Listing> {
    let (mut oldest, mut total, mut temporary) = (BinaryHeap::new(), 0, Vec::new());
    let names = if at_most == usize::MAX { usize::MAX } else { LISTED };
    runs.for_each_name(names, |name| {
        let Some((stem, ending)) = name.split_once('.') else { return };
        let Some(run) = RunId::parse(stem) else { return };
        total += usize::from(ending == "json");
        let is_wanted = match ending {
            "json" => oldest.len() < at_most || oldest.peek() > Some(&run),
            "tmp" => temporary.len() < SWEPT,
            _ => false,
        };
        // Others can put files there: only those are ours that are named as we name them.
        if is_wanted && stem == run.to_string() {
            if ending == "tmp" {
                return temporary.push(stem.to_owned());
            }
            oldest.push(run);
            if oldest.len() > at_most {
                oldest.pop();
            }
        }
    })?;
    for run in temporary {
        let name = temporary_name(&run);
        if runs.modified(&name).is_ok_and(|modified| is_older(modified, STILL_WRITING)) // a look may be in the writer's way
            && look(runs, &run, &name).is_some_and(|seen| !seen.is_live)
        {
            let _ = runs.remove(&name);
        }
    }
    let mut oldest = oldest.into_sorted_vec();
    oldest.dedup(); // while records come and go, an entry may be read twice
    Ok(Listing { oldest, total })
}

/// Reads records, the oldest first, up to that of a live run that `is_wanted`: `at_most` so many, or, behind killed runs, twice as many.
fn survey(runs: &Dir, at_most: usize, is_wanted: impl Fn(&RunRecord) -> bool) -> io::Result<Census> {
    let Listing { oldest, total } = list(runs, at_most.saturating_mul(2))?;
    let mut census = Census { listed: total, ..Census::default() };
    for run in oldest {
        let name = run.to_string();
        match look(runs, &name, &record_name(&name)) {
            Some(Seen { is_live: true, record, .. }) => census.live.extend(record),
            Some(seen) => census.dead.push((run, seen)),
            None => {}
        }
        // Dead runs that had a lock may hide the one that has it.
        let had_lock = |(_, seen): &(RunId, Seen)| seen.record.as_ref().is_some_and(|record| record.hold == Some(Hold::Own));
        let is_enough = census.live.len() + census.dead.len() >= at_most && !census.dead.iter().any(had_lock);
        if is_enough || census.live.last().is_some_and(&is_wanted) {
            break;
        }
    }
    Ok(census)
}

/// True also for a time a day ahead: the clock was set back since, by more than any server's differs.
fn is_older(modified: SystemTime, age: Duration) -> bool {
    const DAY: Duration = Duration::from_secs(86_400);
    SystemTime::now().duration_since(modified).map_or_else(|error| error.duration() > DAY, |passed| passed > age)
}
