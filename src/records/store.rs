//! The directory `<config dir>/claude-run`, with the records of live runs in `runs/`, each kept locked by its run. A record
//! whose lock is free is dead, whatever its pid says, in any container, and on any host that shares the file system with its
//! locks. Where hosts share files without locks, each judges its own records.

use std::collections::{BTreeSet, BinaryHeap};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use fs4::{FileExt, TryLockError};
use nix::fcntl::OFlag;

use super::history;
use super::kept::{EXACT, Line};
use super::run_record::{Hold, RunRecord};
use crate::run_id::RunId;
use crate::sys::dir::Dir;
use crate::sys::file_id::FileId;
use crate::sys::fs::open_regular;
use crate::sys::mount::may_lock_per_host;
use crate::sys::proc::{boot_id, flock_of, is_of_our_pid_namespace, pid_namespace};

/// Directory of claude-run in a config dir.
#[derive(Clone, Debug)]
pub struct RecordStore {
    path: PathBuf,
}

/// All runs that have a record, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Census {
    pub(crate) live: Vec<RunRecord>,
    /// Runs whose claude-run was killed, while what they started still holds the session lock.
    pub(crate) orphaned: Vec<RunRecord>,
    /// Runs on other hosts, whose locks cannot be seen from here: alive, or dead for not too long.
    pub(crate) elsewhere: Vec<RunRecord>,
    dead: Vec<(RunId, Seen)>,
    /// Number of records there were.
    listed: usize,
}

/// Record of this process' own run. Dropping it removes it.
#[derive(Debug)]
pub(super) struct OwnRecord {
    pub(super) runs: Dir,
    pub(super) name: String,
    /// Locked: the flock proves that the run is alive. Closing it after the removal frees an inode, which can take a millisecond.
    _locked: File,
}

/// A file in `runs/` that a run has written.
#[derive(Debug)]
struct Seen {
    is_live: bool,
    /// `None` if it is cut.
    record: Option<RunRecord>,
    modified: SystemTime,
}

const NAME: &str = "claude-run";
const RUNS: &str = "runs";
const SLOTS: &str = "slots";

/// Time for which the record of a run that may be alive elsewhere is kept after its last touch. A live run touches it more often.
pub(super) const SILENT_RECORD_TTL: Duration = Duration::from_secs(2 * 60 * 60);

/// Upper bound on the time to write a record, lock it and rename it.
const STILL_WRITING: Duration = Duration::from_secs(60);

impl RecordStore {
    /// Store of `config_dir`.
    pub fn of(config_dir: &Path) -> Self {
        Self { path: config_dir.join(NAME) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn config_dir(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    pub(crate) fn runs(&self) -> PathBuf {
        self.path.join(RUNS)
    }

    pub(super) fn open(&self) -> io::Result<Dir> {
        Dir::open(self.config_dir())?.open_dir(NAME)
    }

    /// Opens the directory; makes it first if it is missing. The config dir itself is not made: it may have been moved.
    pub(super) fn make(&self) -> io::Result<Dir> {
        Dir::open(self.config_dir())?.make_dir(NAME)
    }

    /// Path of the slots.
    pub(crate) fn slots(&self) -> PathBuf {
        self.path.join(SLOTS)
    }

    /// Opens the directory of the slots; makes it first if it is missing.
    pub(crate) fn make_slots(&self) -> io::Result<Dir> {
        self.make()?.make_dir(SLOTS)
    }

    /// Opens the directory of the slots, if it is there.
    pub(crate) fn open_slots(&self) -> io::Result<Dir> {
        self.open()?.open_dir(SLOTS)
    }

    fn open_runs(&self) -> io::Result<Dir> {
        self.open()?.open_dir(RUNS)
    }

    /// Writes `record`, that of our run, in the place of `own` if there is one: complete and locked, or not at all.
    pub(super) fn publish(&self, record: &RunRecord, own: &mut Option<OwnRecord>) -> io::Result<()> {
        let text = Line::of(record, &EXACT)?;
        let runs = self.make()?.make_dir(RUNS)?;
        let (name, temporary) = (record_name(&record.run), temporary_name(&record.run));
        let mut file = runs.open_file(&temporary, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)?;
        let published = file
            .write_all(text.as_bytes())
            .and_then(|()| FileExt::try_lock(&file).map_err(io::Error::from))
            .and_then(|()| runs.rename(&temporary, &name));
        if published.is_err() {
            let _ = runs.remove(&temporary); // else a later census removes it
        } else if let Some(own) = own {
            own._locked = file;
        } else {
            *own = Some(OwnRecord { runs, name, _locked: file });
        }
        published
    }

    /// Record of the live run `run`.
    pub(crate) fn live(&self, run: &str) -> Option<RunRecord> {
        let run = RunId::parse(run)?.to_string();
        look(&self.open_runs().ok()?, &run, &record_name(&run))
            .filter(|seen| seen.is_live)?
            .record
            .filter(|record| record.run == run)
    }

    /// Live runs whose claude-run has the pid `pid` in its own PID namespace.
    pub(crate) fn live_with_pid(&self, pid: i32) -> Vec<RunRecord> {
        let (mut theirs, prefix) = (BTreeSet::new(), format!("{pid}-"));
        let stem = |name: &str| name.strip_suffix(".json").filter(|run| run.starts_with(&prefix)).and_then(RunId::parse);
        let listed = self.open_runs().and_then(|runs| runs.for_each_name(usize::MAX, |name| theirs.extend(stem(name))));
        let live = |run: RunId| self.live(&run.to_string());
        listed.map_or_else(|_| Vec::new(), |()| theirs.into_iter().filter_map(live).collect())
    }

    /// Live run that has acquired `lock`, as [`glance`](Self::glance) finds it.
    pub(crate) fn holder(&self, lock: FileId, at_most: usize) -> Option<RunRecord> {
        self.glance(lock, at_most).0
    }

    /// Live run that has acquired `lock`, and the approximate number of records. Reads records, the oldest first and `at_most` so many,
    /// until one says so: mostly the first does. With a bound, of a directory with very many only the [`LISTED`] first names count: what a
    /// waiter does is not to grow with what others have left. Removes records of dead runs that it meets, unless they may still be needed.
    pub(crate) fn glance(&self, lock: FileId, at_most: usize) -> (Option<RunRecord>, usize) {
        let Ok(runs) = self.open_runs() else { return (None, 0) };
        let Ok(Census { mut live, dead, listed, .. }) = survey(&runs, at_most, |record| record.holds(lock)) else {
            return (None, 0);
        };
        let holder = live.pop_if(|record| record.holds(lock));
        for (run, seen) in dead {
            // What a dead run has started may still hold its lock: `lock`, if nobody else holds that.
            let is_needed = seen.record.as_ref().is_some_and(|record| {
                (record.hold == Some(Hold::Own) && (holder.is_none() || !record.holds(lock))) || !self.is_visible(record)
            });
            if !is_needed {
                self.sweep(&runs, run, seen.record.as_ref());
            }
        }
        (holder, listed)
    }

    /// Sleeps until the run `run` has ended or changed its record, or for `bound`. Where the kernel cannot report that, as of a
    /// run that was killed or is on another host, sleeps for a second at most.
    pub(crate) fn wait_for_end(&self, run: &str, bound: Duration) {
        let open = || self.open_runs()?.open_file(&record_name(run), OFlag::O_RDONLY);
        let Ok(file) = open() else { return };
        if is_locked(&file) {
            let (sender, ended) = mpsc::sync_channel(1);
            // At a timeout the thread is left behind: it holds nothing, and ends with the process.
            if thread::Builder::new().spawn(move || drop(sender.send(FileExt::lock_shared(&file)))).is_ok() {
                return drop(ended.recv_timeout(bound));
            }
        } else {
            drop(file); // and with it the shared lock of the look
        }
        thread::sleep(bound.min(Duration::from_secs(1)));
    }

    /// Reads all records, and removes those of dead runs.
    pub(crate) fn census(&self) -> io::Result<Census> {
        let runs = match self.open_runs() {
            Ok(runs) => runs,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Census::default());
            }
            Err(error) => return Err(error),
        };
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
                record => match record.clone().and_then(|record| self.orphaned(record, &census.live)) {
                    Some(record) => census.orphaned.push(record),
                    None => self.sweep(&runs, run, record.as_ref()),
                },
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

    /// The dead run `record`, if the lock that it held is still held, by none of the `live` runs. Its path may be another file here;
    /// then the session lock of this config dir may be the lock. The child is named only if it is seen to hold the lock: anybody can
    /// write a record.
    fn orphaned(&self, mut record: RunRecord, live: &[RunRecord]) -> Option<RunRecord> {
        let recorded = record.lock.as_ref().map(|view| PathBuf::from(&view.path));
        let paths = recorded.into_iter().chain([self.path.with_file_name("session.lock")]);
        let mut there = paths.filter_map(|path| Some((FileId::at(&path)?, path)));
        let (lock, path) = there.find(|&(lock, _)| record.holds(lock))?;
        // From inside a container only a try can tell. It is rare and short, so it disturbs nobody.
        let is_held = || open_regular(&path, File::options().read(true), 0).is_ok_and(|(file, _)| is_locked(&file));
        let is_orphaned = !live.iter().any(|other| other.holds(lock)) && is_held();
        let is_visible = record.pid_namespace == pid_namespace();
        record.child = record.child.filter(|child| is_visible && flock_of(child, lock).is_some());
        is_orphaned.then_some(record)
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
                && is_of_our_pid_namespace()
                && RunId::parse(&record.run).is_some_and(|run| !run.is_alive())
        };
        (is_of_this_boot && (device(record.config_dir.file_id()) == device(here) || is_gone()))
            || !may_lock_per_host(&self.path)
    }
}

impl OwnRecord {
    pub(super) fn remove(&self) {
        let _ = self.runs.remove(&self.name); // else it is dead with the process, and a later census removes it
    }
}

impl Drop for OwnRecord {
    fn drop(&mut self) {
        self.remove();
    }
}

fn record_name(run: &str) -> String {
    format!("{run}.json")
}

fn temporary_name(run: &str) -> String {
    format!("{run}.tmp")
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

/// Reads `at_most` so many records, the oldest first, up to that of a live run that `is_wanted`.
fn survey(runs: &Dir, at_most: usize, is_wanted: impl Fn(&RunRecord) -> bool) -> io::Result<Census> {
    let Listing { oldest, total } = list(runs, at_most)?;
    let mut census = Census { listed: total, ..Census::default() };
    for run in oldest {
        let name = run.to_string();
        match look(runs, &name, &record_name(&name)) {
            Some(Seen { is_live: true, record, .. }) => census.live.extend(record),
            Some(seen) => census.dead.push((run, seen)),
            None => {}
        }
        if census.live.last().is_some_and(&is_wanted) {
            break;
        }
    }
    Ok(census)
}

/// Reads the file `name`, if it is locked, or is what `run` has written or the beginning of that. Others can put files there, which are
/// left alone.
fn look(runs: &Dir, run: &str, name: &str) -> Option<Seen> {
    loop {
        let file = runs.open_file(name, OFlag::O_RDONLY).ok()?;
        let is_live = is_locked(&file);
        let found = file.metadata().ok()?;
        // Free, but replaced since: the lock is on the new file.
        if !is_live && !runs.has(name, &found) {
            continue;
        }
        let mut text = Vec::with_capacity(4096); // more than most: one read(2), and one that finds the end
        file.take(1 << 20).read_to_end(&mut text).ok()?;
        let begin = format!(r#"{{"run":"{run}""#).into_bytes();
        let record = RunRecord::from_json(&text).filter(|record| is_live || record.run == run);
        let is_ours = is_live || record.is_some() || text.starts_with(&begin) || begin.starts_with(&text);
        return is_ours.then_some(Seen { is_live, record, modified: found.modified().ok()? });
    }
}

/// True if another process has locked `file`. Tries a shared lock, so that two who look do not take each other for the owner.
pub(crate) fn is_locked(file: &File) -> bool {
    matches!(FileExt::try_lock_shared(file), Err(TryLockError::WouldBlock))
}

fn is_older(modified: SystemTime, age: Duration) -> bool {
    SystemTime::now().duration_since(modified).is_ok_and(|passed| passed > age)
}
