//! The directory `<config dir>/claude-run`, with the records of live runs in `runs/`, each kept locked by its run. A record
//! whose lock is free is dead, whatever its pid says, in any container, and on any host that shares the file system with its
//! locks. Where hosts share files without locks, each judges its own records.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use fs4::{FileExt, TryLockError};
use tempfile::TempPath;

use super::run_record::{Hold, RunRecord};
use crate::run_id::RunId;
use crate::sys::file_id::FileId;
use crate::sys::fs::open_to_read;
use crate::sys::mount::may_lock_per_host;
use crate::sys::proc::{boot_id, is_of_our_pid_namespace, pid_namespace};

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
    /// Records of other dead runs, as far as they can be read.
    dead: Vec<(PathBuf, Option<RunRecord>)>,
}

/// Record of this process' own run.
#[derive(Debug)]
pub(super) struct OwnRecord {
    /// Dropping it removes the record. If that fails, it is dead with the process, and a later census removes it.
    pub(super) path: Option<TempPath>,
    /// Locked: the flock proves that the run is alive. Closing it after the removal frees an inode, which can take a millisecond.
    _locked: File,
}

const RECORD: &str = "json";
const TEMPORARY: &str = "tmp";

/// Time for which the record of a run that may be alive elsewhere is kept after its last touch. A live run touches it more often.
pub(super) const SILENT_RECORD_TTL: Duration = Duration::from_secs(2 * 60 * 60);

/// Upper bound on the time to write a record, lock it and rename it.
const STILL_WRITING: Duration = Duration::from_secs(60);

impl RecordStore {
    /// Store of `config_dir`.
    pub fn of(config_dir: &Path) -> Self {
        Self { path: config_dir.join("claude-run") }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn config_dir(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    pub(crate) fn runs(&self) -> PathBuf {
        self.path.join("runs")
    }

    /// Opens a file by `open`; makes the directory first if it is missing.
    pub(super) fn open(&self, open: impl Fn() -> io::Result<File>) -> io::Result<File> {
        match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(self.runs())?;
                open()
            }
            opened => opened,
        }
    }

    /// Writes `record`, that of our run, in the place of `own` if there is one: complete and locked, or not at all.
    pub(super) fn publish(&self, record: &RunRecord, own: &mut Option<OwnRecord>) -> io::Result<()> {
        let text = serde_json::to_string(record)? + "\n";
        let path = self.path_of(&record.run);
        let temporary = TempPath::try_from_path(path.with_extension(TEMPORARY))?;
        let mut file = self.open(|| File::options().write(true).create_new(true).mode(0o600).open(&temporary))?;
        file.write_all(text.as_bytes())?;
        FileExt::try_lock(&file)?;
        temporary.persist(&path)?;
        match own {
            Some(own) => own._locked = file,
            None => *own = Some(OwnRecord { path: Some(TempPath::try_from_path(path)?), _locked: file }),
        }
        Ok(())
    }

    fn path_of(&self, run: &str) -> PathBuf {
        self.runs().join(run).with_extension(RECORD)
    }

    /// Record of the live run `run`.
    pub(crate) fn live(&self, run: &str) -> Option<RunRecord> {
        look(&self.path_of(run)).and_then(|(is_live, record)| record.filter(|_| is_live))
    }

    /// Approximate number of records.
    pub(crate) fn count(&self) -> usize {
        fs::read_dir(self.runs()).map_or(0, Iterator::count)
    }

    /// Live runs whose claude-run has the pid `pid` in its own PID namespace.
    pub(crate) fn live_with_pid(&self, pid: i32) -> Vec<RunRecord> {
        let records = self.records().unwrap_or_default().into_iter().filter(|(run, _)| run.pid == pid);
        records.filter_map(|(run, _)| self.live(&run.to_string())).collect()
    }

    /// Live run that has acquired `lock`. Reads records, the oldest first and `at_most` so many, until one says so: mostly the
    /// first does. Removes records of dead runs that it meets, unless they may still be needed.
    pub(crate) fn holder(&self, lock: FileId, at_most: usize) -> Option<RunRecord> {
        let Census { mut live, dead, .. } = self.survey(at_most, |record| record.holds(lock)).ok()?;
        let holder = live.pop_if(|record| record.holds(lock));
        for (path, record) in dead {
            // What a dead run has started may still hold its lock: `lock`, if nobody else holds that.
            let is_needed = record.is_some_and(|record| {
                (record.hold == Some(Hold::Own) && (holder.is_none() || !record.holds(lock))) || !self.is_visible(&record)
            });
            if !is_needed {
                let _ = fs::remove_file(path);
            }
        }
        holder
    }

    /// Reads `at_most` so many records, the oldest first, up to that of a live run that `is_wanted`.
    fn survey(&self, at_most: usize, is_wanted: impl Fn(&RunRecord) -> bool) -> io::Result<Census> {
        let mut census = Census::default();
        for (_, path) in self.records()?.into_iter().take(at_most) {
            match look(&path) {
                Some((true, Some(record))) => census.live.push(record),
                Some((false, record)) => census.dead.push((path, record)),
                Some((true, None)) | None => {}
            }
            if census.live.last().is_some_and(&is_wanted) {
                break;
            }
        }
        Ok(census)
    }

    /// Sleeps until the run `run` has ended or changed its record, or for `bound`. Where the kernel cannot report that, as of a
    /// run that was killed or is on another host, sleeps for a second at most.
    pub(crate) fn wait_for_end(&self, run: &str, bound: Duration) {
        let Ok(file) = open_to_read(&self.path_of(run)) else { return };
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
        let mut census = self.survey(usize::MAX, |_| false)?;
        // One run may release the lock and the next acquire it while we read. A run removes its record before it releases the lock,
        // so a second look tells.
        let holds = |record: &RunRecord| record.hold == Some(Hold::Own);
        if census.live.iter().filter(|record| holds(record)).count() > 1 {
            census.live.retain(|record| !holds(record) || self.live(&record.run).is_some());
        }
        for (path, record) in mem::take(&mut census.dead) {
            match record {
                Some(record) if !self.is_visible(&record) && !is_older(&path, SILENT_RECORD_TTL) => {
                    census.elsewhere.push(record)
                }
                Some(record) if self.is_still_held(&record, &census.live) => census.orphaned.push(record),
                // In a directory that is read-only, it stays.
                _ => drop(fs::remove_file(path)),
            }
        }
        for runs in [&mut census.live, &mut census.elsewhere] {
            runs.sort_by_key(|record| record.began);
        }
        Ok(census)
    }

    /// Run whose lock helper holds its lock, by its last record.
    pub(crate) fn helped(&self) -> Option<RunRecord> {
        let census = self.census().ok()?;
        census.live.into_iter().chain(census.elsewhere).find(|record| record.key.is_some())
    }

    /// True if the lock that the dead run `record` held is still held, by none of the `live` runs. Its path may be another file here;
    /// then the session lock of this config dir may be the lock.
    fn is_still_held(&self, record: &RunRecord, live: &[RunRecord]) -> bool {
        let recorded = record.lock.as_ref().map(|view| PathBuf::from(&view.path));
        let paths = recorded.into_iter().chain([self.path.with_file_name("session.lock")]);
        let mut there = paths.filter_map(|path| Some((FileId::at(&path)?, path)));
        let Some((lock, path)) = there.find(|&(lock, _)| record.holds(lock)) else { return false };
        // From inside a container only a try can tell. It is rare and short, so it disturbs nobody.
        let open = || File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        !live.iter().any(|other| other.holds(lock)) && open().is_ok_and(|file| is_locked(&file))
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

    /// Lists the records, the oldest first. Removes temporary files that a killed writer has left.
    fn records(&self) -> io::Result<Vec<(RunId, PathBuf)>> {
        let mut records = Vec::new();
        let entries = match fs::read_dir(self.runs()) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(records),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            let Some(run) = path.file_stem().and_then(|stem| RunId::parse(stem.to_str()?)) else { continue };
            match path.extension().and_then(OsStr::to_str) {
                Some(RECORD) => records.push((run, path)),
                Some(TEMPORARY) if is_older(&path, STILL_WRITING) => drop(fs::remove_file(path)),
                _ => {}
            }
        }
        records.sort_unstable();
        records.dedup(); // while records come and go, an entry may be read twice
        Ok(records)
    }
}

/// Reads the record at `path`, as far as it is there and readable; true with that of a live run.
fn look(path: &Path) -> Option<(bool, Option<RunRecord>)> {
    loop {
        let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path).ok()?;
        let is_live = is_locked(&file);
        // Free, but replaced since: the lock is on the new file.
        if !is_live && file.metadata().ok().map(|found| FileId::of(&found)) != FileId::at(path) {
            continue;
        }
        let mut text = Vec::with_capacity(4096); // more than most: one read(2), and one that finds the end
        let read = Read::by_ref(&mut file).take(1 << 20).read_to_end(&mut text);
        return Some((is_live, read.ok().and_then(|_| RunRecord::from_json(&text))));
    }
}

/// True if another process has locked `file`. Tries a shared lock, so that two who look do not take each other for the owner.
fn is_locked(file: &File) -> bool {
    matches!(FileExt::try_lock_shared(file), Err(TryLockError::WouldBlock))
}

fn is_older(path: &Path, age: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|found| found.modified());
    modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|passed| passed > age))
}
