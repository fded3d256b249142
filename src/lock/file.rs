//! flock(2) on the lock file. Never truncates, writes or removes it: old callers open the same file with `9>`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fs4::{FileExt, TryLockError};

use crate::sys::file_id::FileId;

/// An open lock file.
#[derive(Debug)]
pub(super) struct LockFile {
    path: PathBuf,
    file: File,
    file_id: FileId,
}

/// The session lock, held. Dropping it releases the lock, even while some daemon has inherited the descriptor.
#[derive(Debug)]
pub(super) struct FlockGuard(LockFile);

/// Result of trying to lock.
#[derive(Debug)]
pub(super) enum LockAttempt {
    Acquired(FlockGuard),
    Busy(LockFile),
}

impl LockFile {
    /// Opens the lock file; creates it if it is missing.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        // A look first: to open a FIFO, be it for a moment, takes from its writer what it writes.
        if let Ok(found) = fs::metadata(path) {
            ensure_regular(path, &found)?;
        }
        let file = open_or_create(path).map_err(|error| explain(path, error))?;
        let found = file.metadata().with_context(|| format!("cannot look at the lock file {shown}"))?;
        ensure_regular(path, &found)?;
        Ok(Self { path: path.to_owned(), file, file_id: FileId::of(&found) })
    }

    pub(super) fn file_id(&self) -> FileId {
        self.file_id
    }

    /// Tries to lock the file that has its path now, without waiting.
    pub(super) fn try_lock(mut self) -> Result<LockAttempt> {
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
    pub(super) fn lock_blocking(self) -> Result<LockAttempt> {
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

fn open_or_create(path: &Path) -> io::Result<File> {
    // O_NONBLOCK: a FIFO must not hang us. O_NOCTTY: a terminal must not become ours.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let open =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o666).custom_flags(flags).open(path);
    match open {
        // Another owner's file, or a read-only file system: flock(2) is content with a descriptor for reading.
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|_| error)
        }
        other => other,
    }
}

fn ensure_regular(path: &Path, found: &fs::Metadata) -> Result<()> {
    let kind = found.file_type();
    let kind = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () if kind.is_dir() => "a directory",
        () => "no regular file",
    };
    bail!("the lock file {} is {kind}; move it away, or name another with --lock-file", path.display())
}

fn explain(path: &Path, error: io::Error) -> anyhow::Error {
    // open(2) itself refuses sockets (ENXIO) and directories (EISDIR): say what they are, as for a FIFO.
    if let Ok(found) = fs::metadata(path)
        && let Err(refusal) = ensure_regular(path, &found)
    {
        return refusal;
    }
    anyhow::Error::new(error).context(format!(
        "cannot make or open the lock file {}; make its directory writable, or name another with --lock-file",
        path.display()
    ))
}

/// Error of a flock(2) that neither succeeds nor waits: ENOLCK, or a file system without it. NFS gives EBADF for an exclusive lock
/// on a descriptor that may only read.
fn flock_error(path: &Path, error: io::Error) -> anyhow::Error {
    let way_out = match error.raw_os_error() {
        Some(libc::EBADF) => "on this file system only a file that may be written can be locked; make it writable",
        _ => "its file system may not support flock; name a file on another with --lock-file",
    };
    anyhow::Error::new(error).context(format!("cannot lock {}: {way_out}", path.display()))
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
