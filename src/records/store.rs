//! The directory `<config dir>/claude-run`, with the records of live runs in `runs/`, each kept locked by its run. A record
//! whose lock is free is dead, whatever its pid says, in any container, and on any host that shares the file system with its
//! locks. Where hosts share files without locks, each judges its own records.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use fs4::{FileExt, TryLockError};
use nix::fcntl::OFlag;

use super::kept::{EXACT, Line};
use super::run_record::RunRecord;
use super::spare::{Spare, blank};
use crate::run_id::RunId;
use crate::sys::dir::Dir;
use crate::sys::fs::open_regular;
use crate::sys::mount::may_lock_per_host;
use crate::sys::signal;

/// Directory of claude-run in a config dir.
#[derive(Clone, Debug)]
pub struct RecordStore {
    path: PathBuf,
}

/// Record of this process' own run. Dropping it removes it.
#[derive(Debug)]
pub(super) struct OwnRecord {
    runs: Dir,
    /// `None` once it is removed.
    name: Option<String>,
    /// Place for its file, then; `None` if it is not there.
    spare: Option<Spare>,
    /// Locked: the flock proves that the run is alive. Closing it after the removal can free an inode, which can take a millisecond.
    locked: File,
}

/// A file in `runs/` that a run has written.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) is_live: bool,
    /// `None` if it is cut.
    pub(super) record: Option<RunRecord>,
    pub(super) modified: SystemTime,
}

/// Name of the session lock in a config dir. The shell scripts before us lock the same file.
pub const LOCK_FILE: &str = "session.lock";

const NAME: &str = "claude-run";
const RUNS: &str = "runs";
const SLOTS: &str = "slots";

/// Most looks at a record that is replaced meanwhile each time.
const LOOKS: usize = 64;

const SECOND: Duration = Duration::from_secs(1);

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

    pub(super) fn open_runs(&self) -> io::Result<Dir> {
        self.open()?.open_dir(RUNS)
    }

    /// Writes `record`, that of our run, in the place of `own` if there is one: complete and locked, or not at all.
    pub(super) fn publish(&self, record: &RunRecord, own: &mut Option<OwnRecord>) -> io::Result<()> {
        let text = Line::of(record, &EXACT)?;
        let store = self.make()?;
        let runs = store.make_dir(RUNS)?;
        let spare = Spare::of(record.pid, &store).ok();
        let (name, temporary) = (record_name(&record.run), temporary_name(&record.run));
        let publish = |file: File| -> io::Result<File> {
            write(&file, text.as_bytes())?;
            // To lock it brings the text to an NFS server, before others see the name. On cifs, nobody locks twice.
            FileExt::unlock(&file)?;
            FileExt::try_lock(&file)?;
            runs.rename(&temporary, &name)?;
            Ok(file)
        };
        let forget = || drop(runs.remove(&temporary)); // else a later census removes it
        let used = spare.as_ref().and_then(|spare| spare.take(&runs, &temporary).and_then(publish).ok());
        let file = match used {
            Some(file) => file,
            None => {
                forget();
                let made = runs.open_file(&temporary, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL);
                made.and_then(publish).inspect_err(|_| forget())?
            }
        };
        match own {
            Some(own) => (own.name, own.spare, own.locked) = (Some(name), spare, file),
            None => *own = Some(OwnRecord { runs, name: Some(name), spare, locked: file }),
        }
        Ok(())
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

    /// Sleeps until the run `run` has ended or changed its record, or for `bound`. Where the kernel cannot report that, as of a
    /// run that was killed or is on another host, sleeps for a second at most.
    pub(crate) fn wait_for_end(&self, run: &str, bound: Duration) {
        let name = record_name(run);
        let open = || -> io::Result<_> {
            let runs = self.open_runs()?;
            let file = runs.open_file(&name, OFlag::O_RDONLY)?;
            Ok((runs, file.metadata()?, file))
        };
        let Ok((runs, found, file)) = open() else { return };
        if is_locked(&file) {
            let (sender, ended) = mpsc::sync_channel(1);
            // At a timeout the thread is left behind: it holds nothing, and ends with the process.
            if thread::Builder::new().spawn(move || drop(sender.send(FileExt::lock_shared(&file)))).is_ok() {
                let is_waiting = |turn| matches!(ended.recv_timeout(turn), Err(RecvTimeoutError::Timeout));
                let mut left = bound;
                // The next run may have the file, and its lock, before the thread gets it.
                while is_waiting(left.min(SECOND)) && left > SECOND && runs.has(&name, &found) {
                    left -= SECOND;
                }
                return;
            }
        } else {
            drop(file); // and with it the shared lock of the look
        }
        thread::sleep(bound.min(SECOND));
    }
}

impl OwnRecord {
    /// Touches it each `interval` from now on, until it is gone, if hosts may see it and not the lock on it. Such a file system may hang, so
    /// a thread does it, which ends with the process. `path` is that of its directory.
    pub(super) fn keep_fresh(&self, path: PathBuf, interval: Duration) {
        let (runs, Some(name)) = (self.runs.clone(), self.name.clone()) else { return };
        let work = move || {
            if may_lock_per_host(&path) {
                // An error can be of a moment, as on a network.
                while !runs.touch(&name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                    thread::sleep(interval);
                }
            }
        };
        let _ = signal::spawn_with_signals_blocked("records", 64 * 1024, work); // without one, the record looks old
    }

    /// Removes it; its file is kept for another run's.
    pub(super) fn remove(&mut self) {
        let Some(name) = self.name.take() else { return };
        self.spare = self.spare.take().filter(|spare| spare.put(&self.runs, &name, &self.locked).is_ok());
        if self.spare.is_none() {
            let _ = self.runs.remove(&name); // else it is dead with the process, and a later census removes it
        }
    }
}

impl Drop for OwnRecord {
    fn drop(&mut self) {
        self.remove();
        // Not before: those who wait for the session lock need not wait for it.
        if self.spare.is_some() {
            let _ = blank(&self.locked); // it has room on the disk
        }
    }
}

/// Writes `text` into `file`, at its beginning, and nothing else.
fn write(mut file: &File, text: &[u8]) -> io::Result<()> {
    file.write_all(text)?;
    if file.metadata()?.len() > text.len() as u64 {
        file.set_len(text.len() as u64)?;
    }
    Ok(())
}

pub(super) fn record_name(run: &str) -> String {
    format!("{run}.json")
}

pub(super) fn temporary_name(run: &str) -> String {
    format!("{run}.tmp")
}

/// Reads the file `name`, if it is locked, or begins as a record does. Others can put files there, which are left alone.
pub(super) fn look(runs: &Dir, run: &str, name: &str) -> Option<Seen> {
    for _ in 0..LOOKS {
        let file = runs.open_file(name, OFlag::O_RDONLY).ok()?;
        let Some((is_live, text, modified)) = read(runs, name, &file).ok()? else { continue };
        let begin = format!(r#"{{"run":"{run}""#).into_bytes();
        let record = RunRecord::from_json(&text);
        // It may have the text of an earlier run yet, or none.
        let is_ours = is_live || record.is_some() || text.starts_with(&begin) || begin.starts_with(text.trim_ascii());
        let record = record.filter(|record| is_live || record.run == run);
        return is_ours.then_some(Seen { is_live, record, modified });
    }
    None
}

/// Whether `file` is locked, its text, and the time of its last change. `None` if `name`, as which it was opened, does not lead to it by
/// now: the lock is on another file, or this one is another run's. While `file` is open, no other gets its inode.
pub(super) fn read(runs: &Dir, name: &str, file: &File) -> io::Result<Option<(bool, Vec<u8>, SystemTime)>> {
    let (is_live, found) = (is_locked(file), file.metadata()?);
    let mut text = Vec::with_capacity(4096); // more than most: one read(2), and one that finds the end
    file.take(1 << 20).read_to_end(&mut text)?;
    let modified = found.modified()?;
    Ok(runs.has(name, &found).then_some((is_live, text, modified)))
}

/// True if another process has locked `file`. Tries a shared lock, so that two who look do not take each other for the owner.
pub(crate) fn is_locked(file: &File) -> bool {
    matches!(FileExt::try_lock_shared(file), Err(TryLockError::WouldBlock))
}

/// The same of the file at `path`. Rare and short, it disturbs nobody.
pub(crate) fn is_locked_at(path: &Path) -> bool {
    open_regular(path, File::options().read(true)).is_ok_and(|(file, _)| is_locked(&file))
}
