//! flock(2) on the lock file. Never truncates, writes or removes it: old callers open the same file with `9>`.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Error, Result, anyhow};
use fs4::{FileExt, TryLockError};

use crate::sys::file_id::FileId;
use crate::sys::fs::{open_or_make_regular, open_regular};

/// An open lock file.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    file: File,
    file_id: FileId,
}

/// The session lock, held. Dropping it releases the lock, even while some daemon has inherited the descriptor.
#[derive(Debug)]
pub(crate) struct FlockGuard(LockFile);

/// Result of trying to lock.
#[derive(Debug)]
pub(crate) enum LockAttempt {
    Acquired(FlockGuard),
    Busy(LockFile),
}

impl LockFile {
    /// Opens the lock file; creates it if it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let (file, found) = open_or_create(path).map_err(|error| match error.raw_os_error() {
            Some(_) => Error::new(error).context(format!(
                "cannot make or open the lock file {shown}; make its directory writable, or name another with --lock-file"
            )),
            None => {
                let what = error.to_string();
                let what = what.trim_start_matches("it ");
                anyhow!("the lock file {shown} {what}; move it away, or name another with --lock-file")
            }
        })?;
        Ok(Self { path: path.to_owned(), file, file_id: FileId::of(&found) })
    }

    pub(super) fn file_id(&self) -> FileId {
        self.file_id
    }

    /// Tries to lock the file that has its path now, without waiting.
    pub(crate) fn try_lock(mut self) -> Result<LockAttempt> {
        loop {
            match FileExt::try_lock(&self.file) {
                Ok(()) if self.is_current() => return Ok(LockAttempt::Acquired(FlockGuard(self))),
                Ok(()) => self = Self::open(&self.path)?,
                Err(TryLockError::WouldBlock) => return Ok(LockAttempt::Busy(self)),
                Err(TryLockError::Error(error)) => return Err(flock_error(&self.path, error)),
            }
        }
    }

    /// Sleeps in flock(2) until the lock is acquired, or the file that has its path by then is busy. Only for a thread that may be
    /// interrupted.
    pub(crate) fn lock_blocking(self) -> Result<LockAttempt> {
        FileExt::lock(&self.file).map_err(|error| flock_error(&self.path, error))?;
        if self.is_current() { Ok(LockAttempt::Acquired(FlockGuard(self))) } else { Self::open(&self.path)?.try_lock() }
    }

    /// True if the path still leads to this file. If somebody has moved or removed it, a lock on it keeps nobody out.
    fn is_current(&self) -> bool {
        FileId::at(&self.path) == Some(self.file_id)
    }
}

impl FlockGuard {
    pub(super) fn file_id(&self) -> FileId {
        self.0.file_id
    }

    /// Descriptor whose inheritors keep the lock as well.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

impl Drop for FlockGuard {
    fn drop(&mut self) {
        // LOCK_UN on one descriptor releases the lock for all its duplicates; without it a leaked one would keep it.
        // It cannot fail: the descriptor is ours and a lock is on it.
        let _ = FileExt::unlock(&self.0.file);
    }
}

fn open_or_create(path: &Path) -> io::Result<(File, Metadata)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o666);
    match open_or_make_regular(path, &options) {
        // Another owner's file, or a read-only file system: flock(2) is content with a descriptor for reading.
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            open_regular(path, OpenOptions::new().read(true), 0).map_err(|_| error)
        }
        other => other,
    }
}

/// Error of a flock(2) that neither succeeds nor waits: ENOLCK, or a file system without it. NFS gives EBADF for an exclusive lock
/// on a descriptor that may only read.
fn flock_error(path: &Path, error: io::Error) -> Error {
    let way_out = match error.raw_os_error() {
        Some(libc::EBADF) => "on this file system only a file that may be written can be locked; make it writable",
        _ => "its file system may not support flock; name a file on another with --lock-file",
    };
    Error::new(error).context(format!("cannot lock {}: {way_out}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flock_error_names_the_way_out() {
        let message = |errno| format!("{:#}", flock_error(Path::new("/srv/x"), io::Error::from_raw_os_error(errno)));
        assert!(message(libc::EBADF).starts_with("cannot lock /srv/x: on this file system only a file that may be written"));
        assert!(message(libc::ENOLCK).starts_with("cannot lock /srv/x: its file system may not support flock"));
    }
}
