//! The directory `<config dir>/claude-run`, with the records of live runs in `runs/`, each kept locked by its run. A record
//! whose lock is free is dead, whatever its pid says, in any container, and on any host that shares the file system with its
//! locks. Where hosts share files without locks, each judges its own records.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use fs4::{FileExt, TryLockError};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

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

/// All runs that have a record.
#[derive(Debug, Default)]
pub struct Census {
    /// Live runs, the oldest first.
    pub live: Vec<RunRecord>,
    /// Runs whose claude-run was killed, while what they started still holds the session lock.
    pub orphaned: Vec<RunRecord>,
    /// Runs on other hosts, whose locks cannot be seen from here: alive, or dead for not too long.
    pub elsewhere: Vec<RunRecord>,
}

/// Record of this process' own run. Dropping removes it.
#[derive(Debug)]
pub(super) struct OwnRecord {
    /// Locked: the flock proves that the run is alive. Closing it after the removal frees an inode, which can take a millisecond.
    _locked: File,
    /// `None` once the record is removed or replaced.
    path: Option<PathBuf>,
}

/// Files in `runs/` that are ours by their names.
#[derive(Debug, Default)]
struct Paths {
    records: Vec<(RunId, PathBuf)>,
    /// Records that are being written, and not locked yet.
    temporary: Vec<PathBuf>,
}

/// State of the record at a path.
enum Liveness {
    Live(Box<RunRecord>),
    /// With the record, if it can be read.
    Dead(Option<Box<RunRecord>>),
    /// There, but not readable.
    Unclear,
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

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Directory of the records of live runs.
    pub fn runs(&self) -> PathBuf {
        self.path.join("runs")
    }

    /// Makes the directory, with mode 0700.
    pub(super) fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.runs())
    }

    /// Writes the record of our run, which `replaces` an older one or not: complete and locked, or not at all.
    pub(super) fn publish(&self, record: &RunRecord, replaces: bool) -> io::Result<OwnRecord> {
        let text = serde_json::to_string(record)? + "\n";
        let path = self.path_of(&record.run);
        let temporary = path.with_extension(TEMPORARY);
        let make = || File::options().write(true).create_new(true).mode(0o600).open(&temporary);
        let mut file = match make() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.make()?;
                make()?
            }
            other => other?,
        };
        let published = file
            .write_all(text.as_bytes())
            .and_then(|()| FileExt::try_lock(&file).map_err(io::Error::from))
            .and_then(|()| put_in_place(&temporary, &path, replaces));
        if let Err(error) = published {
            let _ = fs::remove_file(&temporary); // else a later census removes it
            return Err(error);
        }
        Ok(OwnRecord { _locked: file, path: Some(path) })
    }

    fn path_of(&self, run: &str) -> PathBuf {
        self.runs().join(run).with_extension(RECORD)
    }

    /// Record of the live run `run`.
    pub fn live(&self, run: &str) -> Option<RunRecord> {
        match look(&self.path_of(run)) {
            Some(Liveness::Live(record)) => Some(*record),
            _ => None,
        }
    }

    /// Approximate number of records.
    pub fn count(&self) -> usize {
        fs::read_dir(self.runs()).map_or(0, Iterator::count)
    }

    /// Live runs whose claude-run has the pid `pid` in its own PID namespace.
    pub fn live_with_pid(&self, pid: i32) -> Vec<RunRecord> {
        let records = self.paths().unwrap_or_default().records.into_iter().filter(|(run, _)| run.pid == pid);
        records.filter_map(|(run, _)| self.live(&run.to_string())).collect()
    }

    /// Live run that has acquired `lock`. Reads records, the oldest first and `at_most` so many, until one says so: mostly the
    /// first does. Removes records of dead runs that it meets, unless they may still be needed.
    pub fn holder(&self, lock: FileId, at_most: usize) -> Option<RunRecord> {
        let mut dead = Vec::new();
        let mut holder = None;
        for (_, path) in self.paths().ok()?.records.into_iter().take(at_most) {
            match look(&path) {
                Some(Liveness::Live(record)) if record.holds(lock) => {
                    holder = Some(*record);
                    break;
                }
                Some(Liveness::Dead(record)) => dead.push((path, record)),
                _ => {}
            }
        }
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

    /// Sleeps until the run `run` has ended or changed its record, or for `bound`. Where the kernel cannot report that, as of a
    /// run that was killed or is on another host, sleeps for a second at most.
    pub fn wait_for_end(&self, run: &str, bound: Duration) {
        let Ok(file) = open_to_read(&self.path_of(run)) else { return };
        let sleep = || thread::sleep(bound.min(Duration::from_secs(1)));
        if !is_locked(&file) {
            drop(file); // and with it the shared lock of the look
            return sleep();
        }
        let (sender, ended) = mpsc::sync_channel(1);
        let wait = move || drop(sender.send(FileExt::lock_shared(&file)));
        // At a timeout the thread is left behind: it holds nothing, and ends with the process.
        match thread::Builder::new().stack_size(64 * 1024).spawn(wait) {
            Ok(_) => drop(ended.recv_timeout(bound)),
            Err(_) => sleep(),
        }
    }

    /// Reads all records, and removes those of dead runs.
    ///
    /// # Errors
    /// The directory is there but cannot be read.
    pub fn census(&self) -> io::Result<Census> {
        let mut census = Census::default();
        let mut dead = Vec::new();
        let Paths { records, temporary } = self.paths()?;
        // A writer that was killed leaves one.
        temporary.iter().filter(|path| is_older(path, STILL_WRITING)).for_each(|path| drop(fs::remove_file(path)));
        for (_, path) in records {
            match look(&path) {
                Some(Liveness::Live(record)) => census.live.push(*record),
                Some(Liveness::Dead(record)) => dead.push((path, record)),
                Some(Liveness::Unclear) | None => {}
            }
        }
        census.leave_one_holder(|record| self.live(&record.run).is_some());
        let session_lock = self.path.with_file_name("session.lock");
        for (path, record) in dead {
            match record {
                Some(record) if !self.is_visible(&record) && !is_older(&path, SILENT_RECORD_TTL) => {
                    census.elsewhere.push(*record)
                }
                Some(record) if census.is_still_held(&record, &session_lock) => census.orphaned.push(*record),
                // In a directory that is read-only, it stays.
                _ => drop(fs::remove_file(path)),
            }
        }
        for runs in [&mut census.live, &mut census.elsewhere] {
            runs.sort_by(|one, other| one.began.cmp(&other.began).then_with(|| one.run.cmp(&other.run)));
        }
        Ok(census)
    }

    /// Run whose lock helper holds its lock, by its last record.
    pub fn helped(&self) -> Option<RunRecord> {
        let census = self.census().ok()?;
        census.live.into_iter().chain(census.elsewhere).find(|record| record.key.is_some())
    }

    /// True if the flock of a live run of `record` would be visible here. On another host, or through another mount, it may not
    /// be, unless the file system passes locks on. In our own PID namespace the process itself is visible.
    fn is_visible(&self, record: &RunRecord) -> bool {
        let device = |file: Option<FileId>| file.map(|file| file.device);
        let here = self.path.parent().and_then(FileId::at);
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

    /// Lists the records, the oldest first, and temporary files.
    fn paths(&self) -> io::Result<Paths> {
        let mut paths = Paths::default();
        let entries = match fs::read_dir(self.runs()) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(paths),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            let Some(run) = path.file_stem().and_then(|stem| RunId::parse(stem.to_str()?)) else { continue };
            match path.extension().and_then(OsStr::to_str) {
                Some(RECORD) => paths.records.push((run, path)),
                Some(TEMPORARY) => paths.temporary.push(path),
                _ => {}
            }
        }
        // While records come and go, an entry may be read twice.
        paths.records.sort_unstable_by(|(one, path), (other, path_of_other)| {
            (one.taken_at, one.pid, path.as_os_str()).cmp(&(other.taken_at, other.pid, path_of_other.as_os_str()))
        });
        paths.records.dedup();
        Ok(paths)
    }
}

impl Census {
    /// Leaves one holder. A census is no snapshot: one run may release the lock and the next acquire it while we read. A run
    /// removes its record before it releases the lock, so a second look tells.
    fn leave_one_holder(&mut self, is_live: impl Fn(&RunRecord) -> bool) {
        let holds = |record: &RunRecord| record.hold == Some(Hold::Own);
        if self.live.iter().filter(|record| holds(record)).count() > 1 {
            self.live.retain(|record| !holds(record) || is_live(record));
        }
    }

    /// True if the lock that the dead run `record` held is still held, by no live run. Its path may be another file here; then
    /// `session_lock` may be the lock.
    fn is_still_held(&self, record: &RunRecord, session_lock: &Path) -> bool {
        let recorded = record.lock.as_ref().map(|view| Path::new(&view.path));
        let there = [recorded, Some(session_lock)].into_iter().flatten().filter_map(|path| Some((path, FileId::at(path)?)));
        let Some((path, lock)) = there.into_iter().find(|&(_, lock)| record.holds(lock)) else { return false };
        if self.live.iter().any(|other| other.holds(lock)) {
            return false;
        }
        // From inside a container only a try can tell. It is rare and short, so it disturbs nobody.
        let open = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        open.is_ok_and(|file| is_locked(&file))
    }
}

impl OwnRecord {
    /// Removes the record.
    pub(super) fn remove(&mut self) {
        if let Some(path) = self.path.take() {
            let _ = fs::remove_file(path); // else it is dead with the process, and a later census removes it
        }
    }

    /// Path of the record, while it is there.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Leaves the path to the record that has replaced this one.
    pub(super) fn forget(mut self) {
        self.path = None;
    }
}

impl Drop for OwnRecord {
    fn drop(&mut self) {
        self.remove();
    }
}

/// rename(2), or an exchange where the record `replaces` another: ext4 flushes a file that is renamed over another to the disk
/// first (`auto_da_alloc`), and a record need not outlive the machine.
fn put_in_place(temporary: &Path, path: &Path, replaces: bool) -> io::Result<()> {
    if replaces && renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE).is_ok() {
        return fs::remove_file(temporary);
    }
    fs::rename(temporary, path)
}

/// Reads the record at `path`, if it is there.
fn look(path: &Path) -> Option<Liveness> {
    loop {
        let mut file = match File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(_) => return Some(Liveness::Unclear),
        };
        let is_live = is_locked(&file);
        // Free, but replaced since: the lock is on the new file.
        if !is_live && file.metadata().ok().map(|found| FileId::of(&found)) != FileId::at(path) {
            continue;
        }
        let mut text = Vec::with_capacity(4096); // more than most: one read(2), and one that finds the end
        let read = Read::by_ref(&mut file).take(1 << 20).read_to_end(&mut text);
        let record = read.ok().and_then(|_| RunRecord::from_json(&text)).map(Box::new);
        return Some(match (is_live, record) {
            (true, Some(record)) => Liveness::Live(record),
            (true, None) => Liveness::Unclear,
            (false, record) => Liveness::Dead(record),
        });
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
