//! flock(2) on the session lock's file, and on those of the slots. Never truncates, writes or removes one: old callers open the session
//! lock's file with `9>`.

use std::cell::OnceCell;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use fs4::{FileExt, TryLockError};
use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::records::{RecordStore, is_locked};
use crate::sys::dir::Dir;
use crate::sys::file_id::FileId;
use crate::sys::fs::{is_for_lack_of_room, open_or_make_regular, open_regular};

/// An open lock file.
#[derive(Debug)]
pub(crate) struct LockFile {
    place: Place,
    file: File,
    file_id: FileId,
}

/// Where a lock file is, to be opened again when it was replaced.
#[derive(Clone, Debug)]
enum Place {
    /// That of the session lock, where the operator wants it: links are followed.
    Path(PathBuf),
    /// This file among the slots of a config dir, in which others can write: no link is followed.
    Slots(RecordStore, String),
    /// This ticket among the slots: it is made once, and never again.
    Ticket(RecordStore, String),
}

/// A lock, held. Dropping it releases the lock, even while some daemon has inherited the descriptor.
#[derive(Debug)]
pub(crate) struct FlockGuard {
    lock_file: LockFile,
    /// What the kernel tells of the descriptor, its lock included.
    info: OnceCell<File>,
}

/// Result of trying to lock.
#[derive(Debug)]
pub(crate) enum LockAttempt {
    Acquired(FlockGuard),
    Busy(LockFile),
}

impl LockFile {
    /// Opens the session lock's file; creates it if it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_at(Place::Path(path.to_owned()))
    }

    /// Opens the file `name` among the slots of a config dir; creates it if it is missing.
    pub(super) fn open_among_slots(store: &RecordStore, name: &str) -> Result<Self> {
        Self::open_at(Place::Slots(store.clone(), name.to_owned()))
    }

    /// Opens the file of the slot `number`, in `dir` if it is there: whoever looks at many need not find the directory for each.
    pub(super) fn open_slot(store: &RecordStore, dir: Option<&Dir>, number: u16) -> Result<Self> {
        let place = Place::Slots(store.clone(), number.to_string());
        match dir.and_then(|dir| dir.open_file(&number.to_string(), OFlag::O_RDWR).ok()) {
            Some(file) => Ok(Self { place, file_id: FileId::of(&file.metadata()?), file }),
            None => Self::open_at(place),
        }
    }

    /// Makes the ticket `name` among the slots, and locks it. Nobody else has it in sight yet.
    pub(super) fn new_ticket(store: &RecordStore, name: &str) -> Result<FlockGuard> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        match Self::ticket(store, name, flags).with_context(|| cannot_make_ticket(store))?.try_lock()? {
            LockAttempt::Acquired(flock) => Ok(flock),
            LockAttempt::Busy(_) => bail!("the ticket {name} in {} is locked by another process", store.slots().display()),
        }
    }

    /// Opens the ticket `name` among the slots, of whomever.
    pub(super) fn open_ticket(store: &RecordStore, name: &str) -> io::Result<Self> {
        Self::ticket(store, name, OFlag::O_RDWR)
    }

    fn ticket(store: &RecordStore, name: &str, flags: OFlag) -> io::Result<Self> {
        let file = store.open_slots()?.open_file(name, flags)?;
        let file_id = FileId::of(&file.metadata()?);
        Ok(Self { place: Place::Ticket(store.clone(), name.to_owned()), file, file_id })
    }

    fn open_at(place: Place) -> Result<Self> {
        let (file, found) = place.open().map_err(|error| {
            let (kind, path, way_out) = (place.kind(), place.path(), place.way_out());
            let shown = path.display();
            match error.raw_os_error() {
                Some(errno) => {
                    let todo = match (Errno::from_raw(errno), fs::symlink_metadata(&path)) {
                        _ if is_for_lack_of_room(&error) => "free some space, or inodes, there".to_owned(),
                        (Errno::EMFILE | Errno::ENFILE, _) => "raise the limit of open files (ulimit -n)".to_owned(),
                        (Errno::ELOOP | Errno::ENOTDIR | Errno::ENAMETOOLONG, _) => format!("mend its path, or {way_out}"),
                        (Errno::ENOENT, _) => format!("make its directory, or {way_out}"),
                        (Errno::EACCES, Ok(found)) => {
                            let (owner, mode) = (found.uid(), found.mode() & 0o7777);
                            format!(
                                "it belongs to user {owner}, mode {mode:04o}: let that be the user of all agents, or {way_out}"
                            )
                        }
                        _ => format!("make its directory writable, or {way_out}"),
                    };
                    Error::new(error).context(format!("cannot make or open the {kind} {shown}; {todo}"))
                }
                None => {
                    let what = error.to_string();
                    anyhow!("the {kind} {shown} {}; move it away, or {way_out}", what.trim_start_matches("it "))
                }
            }
        })?;
        Ok(Self { place, file, file_id: FileId::of(&found) })
    }

    pub(super) fn file_id(&self) -> FileId {
        self.file_id
    }

    /// True if another has locked it. Takes a shared lock for a moment, which [`try_lock`](Self::try_lock) knows from a holder's.
    pub(super) fn is_held(&self) -> bool {
        let is_held = is_locked(&self.file);
        if !is_held {
            let _ = FileExt::unlock(&self.file); // it cannot fail: the shared lock is ours
        }
        is_held
    }

    /// Tries to lock the file that has its path now, without waiting.
    pub(crate) fn try_lock(mut self) -> Result<LockAttempt> {
        loop {
            match try_lock_beside_looks(&self.file, TRIES) {
                Ok(()) if self.is_current() => return Ok(LockAttempt::Acquired(self.into())),
                Ok(()) => self = Self::open_at(self.place)?,
                Err(TryLockError::WouldBlock) => return Ok(LockAttempt::Busy(self)),
                Err(TryLockError::Error(error)) => return Err(flock_error(&self.place, error)),
            }
        }
    }

    /// Sleeps in flock(2) until the lock is acquired, or the file that has its path by then is busy, or a signal handler has run: each
    /// wait that is given up ends so, and makes no error with its backtrace. Only for a thread that may be interrupted.
    pub(crate) fn lock_blocking(self) -> Result<LockAttempt> {
        match FileExt::lock(&self.file) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(LockAttempt::Busy(self)),
            locked => locked.map_err(|error| flock_error(&self.place, error))?,
        }
        if self.is_current() { Ok(LockAttempt::Acquired(self.into())) } else { Self::open_at(self.place)?.try_lock() }
    }

    /// True if the path still leads to this file. If somebody has moved or removed it, a lock on it keeps nobody out.
    fn is_current(&self) -> bool {
        matches!(self.place, Place::Ticket(..)) || FileId::at(&self.place.path()) == Some(self.file_id)
    }
}

impl Place {
    fn open(&self) -> io::Result<(File, Metadata)> {
        match self {
            Self::Path(path) => open_or_create(path),
            Self::Slots(store, name) | Self::Ticket(store, name) => {
                let open = |flags| -> io::Result<_> {
                    let file = store.open_slots()?.open_file(name, flags)?;
                    let found = file.metadata()?;
                    Ok((file, found))
                };
                match open(OFlag::O_RDWR) {
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        store.make_slots()?;
                        open(OFlag::O_RDWR | OFlag::O_CREAT)
                    }
                    Err(error) if is_for_readers_alone(&error) => open(OFlag::O_RDONLY).map_err(|_| error),
                    opened => opened,
                }
            }
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Slots(store, name) | Self::Ticket(store, name) => store.slots().join(name),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Path(_) => "lock file",
            Self::Slots(..) | Self::Ticket(..) => "slot file",
        }
    }

    fn way_out(&self) -> &'static str {
        match self {
            Self::Path(_) => "name another with --lock-file",
            Self::Slots(..) | Self::Ticket(..) => "go without slots (--slots none)",
        }
    }
}

impl From<LockFile> for FlockGuard {
    /// Guard of a file that is locked.
    fn from(lock_file: LockFile) -> Self {
        Self { lock_file, info: OnceCell::new() }
    }
}

impl FlockGuard {
    pub(crate) fn file_id(&self) -> FileId {
        self.lock_file.file_id
    }

    /// Reason why it keeps nobody out any more, if so: whoever has inherited the descriptor can release the lock, and whoever may write in
    /// the directory can put another file in its place.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let is_locked = || {
            let mut text = [0; 1024];
            let read = self.info().and_then(|info| info.read_at(&mut text, 0).ok());
            read.is_none_or(|length| text[..length].windows(6).any(|part| part == b"\nlock:"))
        };
        // What we have released is ours again, unless another has it. If the kernel never tells of locks, it was ours all the time.
        let was_released = || !is_locked() && (FileExt::try_lock(&self.lock_file.file).is_err() || is_locked());
        match () {
            () if was_released() => Some("a process of this run has released it"),
            () if !self.lock_file.is_current() => Some("its file was removed or replaced"),
            () => None,
        }
    }

    /// Opened once, and read at each look.
    pub(super) fn info(&self) -> Option<&File> {
        if self.info.get().is_none() {
            let opened = File::open(format!("/proc/self/fdinfo/{}", self.lock_file.file.as_raw_fd())).ok()?;
            let _ = self.info.set(opened); // nobody else does
        }
        self.info.get()
    }

    /// Descriptor whose inheritors keep the lock as well.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.lock_file.file.as_fd()
    }
}

impl Drop for FlockGuard {
    fn drop(&mut self) {
        // LOCK_UN on one descriptor releases the lock for all its duplicates; without it a leaked one would keep it.
        // It cannot fail: the descriptor is ours and a lock is on it.
        let _ = FileExt::unlock(&self.lock_file.file);
    }
}

/// Tries to lock a file that somebody just looks at: a look takes microseconds, or a time slice where it is interrupted. The pauses between
/// them, from 50 us on, double each time.
const TRIES: u32 = 10;

/// Tries so many times to lock `file`. A look, which takes a shared lock for a moment, is not in the way; a holder is.
fn try_lock_beside_looks(file: &File, tries: u32) -> Result<(), TryLockError> {
    let mut pauses = (0..tries).map(|tried| Duration::from_micros(50 << tried));
    loop {
        let result = FileExt::try_lock(file);
        if !matches!(result, Err(TryLockError::WouldBlock)) || is_locked(file) {
            return result;
        }
        let _ = FileExt::unlock(file); // ours is not to be in the way of another's
        match pauses.next() {
            Some(pause) => thread::sleep(pause),
            None => return result,
        }
    }
}

fn open_or_create(path: &Path) -> io::Result<(File, Metadata)> {
    match open_or_make_regular(path, 0o666) {
        // Another owner's file, or a read-only file system: flock(2) is content with a descriptor for reading.
        Err(error) if is_for_readers_alone(&error) => open_regular(path, OpenOptions::new().read(true)).map_err(|_| error),
        other => other,
    }
}

fn cannot_make_ticket(store: &RecordStore) -> String {
    let slots = store.slots();
    format!("cannot make a ticket in {}; make it writable, or go without slots (--slots none)", slots.display())
}

fn is_for_readers_alone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Error of a flock(2) that neither succeeds nor waits: ENOLCK, or a file system without it. NFS gives EBADF for an exclusive lock
/// on a descriptor that may only read.
fn flock_error(place: &Place, error: io::Error) -> Error {
    let why = match error.raw_os_error() {
        Some(libc::EBADF) => "on this file system only a file that may be written can be locked; make it writable".to_owned(),
        _ => format!("its file system may not support flock; {}", place.way_out()),
    };
    Error::new(error).context(format!("cannot lock {}: {why}", place.path().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_is_not_taken_for_a_holder() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("lock");
        let (look, _) = open_or_create(&path)?;
        FileExt::try_lock_shared(&look)?;
        let file = LockFile::open(&path)?;
        let attempt = thread::scope(|scope| {
            let attempt = scope.spawn(|| try_lock_beside_looks(&file.file, 20)); // the last pauses are half a minute
            thread::sleep(Duration::from_millis(2));
            let _ = FileExt::unlock(&look);
            attempt.join().expect("it does not panic")
        });
        assert!(attempt.is_ok(), "{attempt:?}");
        assert!(matches!(LockFile::open(&path)?.try_lock()?, LockAttempt::Busy(_)), "held");
        assert!(try_lock_beside_looks(&look, 20).is_err(), "a holder is not waited for");
        drop(file);
        FileExt::try_lock_shared(&look)?;
        let busy = LockFile::open(&path)?.try_lock()?;
        assert!(matches!(busy, LockAttempt::Busy(_)), "a shared lock that stays");
        assert!(FileExt::try_lock(&look).is_ok(), "no attempt leaves a lock");
        let idle = LockFile::open(&path)?;
        assert!(idle.is_held());
        FileExt::unlock(&look)?;
        assert!(!idle.is_held() && FileExt::try_lock(&look).is_ok(), "nor does a look");
        Ok(())
    }

    #[test]
    fn ticket_that_was_removed_is_not_made_again() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let store = RecordStore::of(dir.path());
        store.make_slots()?;
        drop(LockFile::new_ticket(&store, "ticket")?);
        let ticket = LockFile::open_ticket(&store, "ticket")?;
        fs::remove_file(store.slots().join("ticket"))?;
        assert!(matches!(ticket.try_lock()?, LockAttempt::Acquired(_)));
        assert!(!store.slots().join("ticket").exists());
        Ok(())
    }

    #[test]
    fn path_that_leads_nowhere_is_told_from_a_directory_without_rights() -> Result<()> {
        let dir = tempfile::tempdir()?;
        std::os::unix::fs::symlink("itself", dir.path().join("itself"))?;
        fs::write(dir.path().join("file"), "")?;
        let long = "x".repeat(300);
        let ways_out = [
            ("itself", "mend its path"),
            ("file/lock", "mend its path"),
            (&long, "mend its path"),
            ("no/lock", "make its directory,"),
        ];
        for (path, way_out) in ways_out {
            let error = format!("{:#}", LockFile::open(&dir.path().join(path)).expect_err("it cannot be opened"));
            assert!(error.contains(&format!("; {way_out}")) && error.contains("--lock-file"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn flock_error_names_the_way_out() {
        let message = |errno| format!("{:#}", flock_error(&Place::Path("/srv/x".into()), io::Error::from_raw_os_error(errno)));
        assert!(message(libc::EBADF).starts_with("cannot lock /srv/x: on this file system only a file that may be written"));
        assert!(message(libc::ENOLCK).starts_with("cannot lock /srv/x: its file system may not support flock"));
    }
}
