//! The directory `<config dir>/claude-run`: the records of live runs, in `runs/`, each kept locked by the run that it is of.
//! A record whose lock is free is dead, whatever its pid says, in any container, and on any host that shares the file system with
//! its locks. Where it is shared without them, each host judges its own.

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
use crate::sys::mount::LockScope;
use crate::sys::proc::{boot_id, is_of_our_pid_namespace, pid_namespace};

/// What claude-run keeps in a config dir.
#[derive(Clone, Debug)]
pub struct RecordStore {
    path: PathBuf,
}

/// Who is there.
#[derive(Debug, Default)]
pub struct Census {
    /// The live runs, the oldest first.
    pub live: Vec<RunRecord>,
    /// Runs whose claude-run is gone, killed, while what they started still holds the session lock.
    pub orphaned: Vec<RunRecord>,
    /// Runs on other hosts, whose locks cannot be seen from here: alive, or dead for not too long.
    pub elsewhere: Vec<RunRecord>,
}

/// The record of this process' run. Removed when it is dropped, if not before; dead when we are.
#[derive(Debug)]
pub(super) struct OwnRecord {
    /// Its lock is what says that we live. Closing it after the removal frees an inode, which can take a millisecond.
    _locked: File,
    /// None, once it is removed, or another has taken its place.
    path: Option<PathBuf>,
}

/// What is there to look at. Other files are not ours to judge.
#[derive(Debug, Default)]
struct Paths {
    records: Vec<(RunId, PathBuf)>,
    /// Not locked yet, so it looks dead while it is written.
    temporary: Vec<PathBuf>,
}

/// A record that was found.
enum Found {
    /// Its run lives.
    Live(Box<RunRecord>),
    /// Its run does not. What it said, if that can be read.
    Dead(Option<Box<RunRecord>>),
    /// It is there, but cannot be read or understood.
    Unclear,
}

const RECORD: &str = "json";
const TEMPORARY: &str = "tmp";

/// How long the record of a run that may be alive elsewhere is kept after it was last touched. A live run does that more often.
pub(super) const SILENCE: Duration = Duration::from_secs(2 * 60 * 60);

/// How many records are worth more than one thread.
const MANY: usize = 128;

/// Longer than it takes to write a record, lock it and put it in place.
const STILL_WRITING: Duration = Duration::from_secs(60);

impl RecordStore {
    /// That of `config_dir`.
    pub fn of(config_dir: &Path) -> Self {
        Self { path: config_dir.join("claude-run") }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the records of live runs are.
    pub fn runs(&self) -> PathBuf {
        self.path.join("runs")
    }

    /// Makes the directory, for its owner alone.
    pub(super) fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.runs())
    }

    /// Puts the record of our run in place, or in that of an older one that it `replaces`: complete and locked, or not at all.
    pub(super) fn publish(&self, record: &RunRecord, replaces: bool) -> io::Result<OwnRecord> {
        let path = self.runs().join(&record.run).with_extension(RECORD);
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
            .write_all(format!("{}\n", record.to_json().into_text()).as_bytes())
            .and_then(|()| FileExt::try_lock(&file).map_err(io::Error::from))
            .and_then(|()| put_in_place(&temporary, &path, replaces));
        if let Err(error) = published {
            let _ = fs::remove_file(&temporary); // whoever meets it later removes it, too
            return Err(error);
        }
        Ok(OwnRecord { _locked: file, path: Some(path) })
    }

    /// The record of the live run `run`.
    pub fn live(&self, run: &str) -> Option<RunRecord> {
        match look(&self.runs().join(run).with_extension(RECORD)) {
            Some(Found::Live(record)) => Some(*record),
            _ => None,
        }
    }

    /// How many records there are, roughly.
    pub fn count(&self) -> usize {
        fs::read_dir(self.runs()).map_or(0, Iterator::count)
    }

    /// The live runs whose claude-run is called `pid`, each in its own PID namespace.
    pub fn live_with_pid(&self, pid: i32) -> Vec<RunRecord> {
        let records = self.paths().unwrap_or_default().records.into_iter().filter(|(run, _)| run.pid == pid);
        records.filter_map(|(run, _)| self.live(&run.to_string())).collect()
    }

    /// The live run that has taken `lock`. Not a census: it reads on until one has, which is mostly the one who came first, but
    /// `at_most` so many. Records of the dead that it meets it removes, as far as they are of no use any more.
    pub fn holder(&self, lock: FileId, at_most: usize) -> Option<RunRecord> {
        let mut dead = Vec::new();
        let mut holder = None;
        for (_, path) in self.paths().ok()?.records.into_iter().take(at_most) {
            match look(&path) {
                Some(Found::Live(record)) if record.holds(lock) => {
                    holder = Some(*record);
                    break;
                }
                Some(Found::Dead(record)) => dead.push((path, record)),
                _ => {}
            }
        }
        for (path, record) in dead {
            // What a dead run has started may still hold the lock that it had; this one, if nobody else does.
            let is_of_use = record.is_some_and(|record| {
                (record.hold == Some(Hold::Own) && (holder.is_none() || !record.holds(lock))) || !self.is_in_sight(&record)
            });
            if !is_of_use {
                let _ = fs::remove_file(path);
            }
        }
        holder
    }

    /// Sleeps until the run `run` has ended or changed its record, or for `bound`. Where the kernel does not tell of that, as of a
    /// run that was killed or is on another host, for a second at most.
    pub fn wait_for_end(&self, run: &str, bound: Duration) {
        let Ok(file) = open_to_read(&self.runs().join(run).with_extension(RECORD)) else { return };
        let without_being_told = || thread::sleep(bound.min(Duration::from_secs(1)));
        if !is_locked(&file) {
            drop(file); // and with it the lock that we have looked by
            return without_being_told();
        }
        let (sender, ended) = mpsc::sync_channel(1);
        let wait = move || drop(sender.send(FileExt::lock_shared(&file)));
        // Left behind when it takes too long: it holds nothing, and ends with us.
        match thread::Builder::new().stack_size(64 * 1024).spawn(wait) {
            Ok(_) => drop(ended.recv_timeout(bound)),
            Err(_) => without_being_told(),
        }
    }

    /// Looks at all records, and removes those of dead runs on the way.
    ///
    /// # Errors
    /// The directory is there but cannot be read.
    pub fn census(&self) -> io::Result<Census> {
        let mut census = Census::default();
        let mut dead = Vec::new();
        let Paths { records, temporary } = self.paths()?;
        temporary.iter().for_each(|path| remove_if_forgotten(path));
        let records: Vec<_> = records.into_iter().map(|(_, path)| path).collect();
        let found = look_at_all(&records);
        for (path, found) in records.into_iter().zip(found) {
            match found {
                Some(Found::Live(record)) => census.live.push(*record),
                Some(Found::Dead(record)) => dead.push((path, record)),
                Some(Found::Unclear) | None => {}
            }
        }
        census.leave_one_holder(|record| self.live(&record.run).is_some());
        let session_lock = self.path.with_file_name("session.lock");
        for (path, record) in dead {
            match record {
                Some(record) if !self.is_in_sight(&record) && !is_older(&path, SILENCE) => census.elsewhere.push(*record),
                Some(record) if census.is_still_held(&record, &session_lock) => census.orphaned.push(*record),
                // In a directory that we may only read, it stays.
                _ => drop(fs::remove_file(path)),
            }
        }
        for runs in [&mut census.live, &mut census.elsewhere] {
            runs.sort_by(|one, other| one.began.cmp(&other.began).then_with(|| one.run.cmp(&other.run)));
        }
        Ok(census)
    }

    /// A run that has the lock of its lock helper, or had it when it was last heard of.
    pub fn helped(&self) -> Option<RunRecord> {
        let census = self.census().ok()?;
        census.live.into_iter().chain(census.elsewhere).find(|record| record.key.is_some())
    }

    /// Whether it would be seen here if the run of `record` were alive. On another host its lock may not be, and as little through
    /// another mount on this one, unless the file system passes locks on; but here its process is, if it has its pid from where we
    /// have ours.
    fn is_in_sight(&self, record: &RunRecord) -> bool {
        let device = |identity: Option<FileId>| identity.map(|identity| identity.device);
        let here = self.path.parent().and_then(FileId::at);
        let is_of_this_boot = record.boot == boot_id();
        let is_gone = || {
            record.pid_namespace.is_some()
                && record.pid_namespace == pid_namespace()
                && is_of_our_pid_namespace()
                && RunId::parse(&record.run).is_some_and(|run| !run.is_alive())
        };
        (is_of_this_boot && (device(record.config_dir.identity) == device(here) || is_gone()))
            || !LockScope::at(&self.path).is_some_and(LockScope::may_be_per_host)
    }

    /// Where the records are, the oldest first, and what is to become one.
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
    /// A census is no snapshot: one run may let go and the next take the lock while we read. Whoever held is asked again
    /// until only one does; a run removes its record before it lets go.
    fn leave_one_holder(&mut self, is_live: impl Fn(&RunRecord) -> bool) {
        let holds = |record: &RunRecord| record.hold == Some(Hold::Own);
        if self.live.iter().filter(|record| holds(record)).count() > 1 {
            self.live.retain(|record| !holds(record) || is_live(record));
        }
    }

    /// Whether the lock that the dead run `record` held is held still, by nobody that is known to live. Its path may mean
    /// another file here; then `session_lock` may be the one.
    fn is_still_held(&self, record: &RunRecord, session_lock: &Path) -> bool {
        let seen = record.lock.as_ref().map(|seen| Path::new(&seen.path));
        let there = [seen, Some(session_lock)].into_iter().flatten().filter_map(|path| Some((path, FileId::at(path)?)));
        let Some((path, lock)) = there.into_iter().find(|&(_, lock)| record.holds(lock)) else { return false };
        if self.live.iter().any(|other| other.holds(lock)) {
            return false;
        }
        // Nothing but a try tells it from any container: so rarely, and so shortly, that it disturbs nobody.
        let open = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        open.is_ok_and(|file| is_locked(&file))
    }
}

impl OwnRecord {
    /// Removes it.
    pub(super) fn remove(&mut self) {
        if let Some(path) = self.path.take() {
            // What stays is dead once the lock is gone, and removed by whoever meets it.
            let _ = fs::remove_file(path);
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Another has taken its place.
    pub(super) fn forget(&mut self) {
        self.path = None;
    }
}

impl Drop for OwnRecord {
    fn drop(&mut self) {
        self.remove();
    }
}

/// rename(2), but for what it `replaces` an exchange of the two: ext4 takes a rename onto a file for a careless editor's, and
/// writes it to the disk before it goes on. A record need not outlive the machine.
fn put_in_place(temporary: &Path, path: &Path, replaces: bool) -> io::Result<()> {
    if replaces && renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE).is_ok() {
        return fs::remove_file(temporary);
    }
    fs::rename(temporary, path)
}

/// What was found at each of `paths`. Many are shared out among threads.
fn look_at_all(paths: &[PathBuf]) -> Vec<Option<Found>> {
    let look_at = |share: &[PathBuf]| share.iter().map(|path| look(path)).collect::<Vec<_>>();
    let threads = if paths.len() < MANY { 1 } else { thread::available_parallelism().map_or(1, usize::from).min(4) };
    let share = paths.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let mut shares = paths.chunks(share);
        let ours = shares.next().unwrap_or_default();
        let others: Vec<_> =
            shares.map(|share| (share, thread::Builder::new().spawn_scoped(scope, move || look_at(share)))).collect();
        let mut found = look_at(ours);
        for (share, thread) in others {
            // One that could not be started, or has panicked, is made up for.
            let theirs = thread.ok().and_then(|thread| thread.join().ok());
            found.extend(theirs.unwrap_or_else(|| look_at(share)));
        }
        found
    })
}

/// Nothing, if there is no such record (any more).
fn look(path: &Path) -> Option<Found> {
    loop {
        let mut file = match File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(_) => return Some(Found::Unclear),
        };
        let is_live = is_locked(&file);
        // Free, but replaced since: the lock is on the new one.
        if !is_live && file.metadata().ok().map(|found| FileId::of(&found)) != FileId::at(path) {
            continue;
        }
        let mut text = Vec::with_capacity(4096); // more than most: one read(2), and one that finds the end
        let read = Read::by_ref(&mut file).take(1 << 20).read_to_end(&mut text);
        let record = read.ok().and_then(|_| RunRecord::from_json(&text)).map(Box::new);
        return Some(match (is_live, record) {
            (true, Some(record)) => Found::Live(record),
            (true, None) => Found::Unclear,
            (false, record) => Found::Dead(record),
        });
    }
}

/// Whether somebody has locked `file`. It looks by a shared lock, so that two who look do not take each other for the owner.
fn is_locked(file: &File) -> bool {
    matches!(FileExt::try_lock_shared(file), Err(TryLockError::WouldBlock))
}

/// A temporary file whose writer was killed before it could put it in place.
fn remove_if_forgotten(path: &Path) {
    if is_older(path, STILL_WRITING) {
        let _ = fs::remove_file(path);
    }
}

fn is_older(path: &Path, age: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|found| found.modified());
    modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|passed| passed > age))
}
