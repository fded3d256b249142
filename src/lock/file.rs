//! flock(2) on the lock file. Never truncates, writes or removes it: old callers open the same file with `9>`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fs4::{FileExt, TryLockError};

use crate::sys::file_id::FileId;

/// An open lock file that is not locked by us.
#[derive(Debug)]
pub(super) struct LockFile {
    path: PathBuf,
    file: File,
    identity: FileId,
}

/// The session lock, held. Dropping it frees it, even while a descriptor of it lives on in some daemon.
#[derive(Debug)]
pub(super) struct FlockGuard {
    file: File,
    identity: FileId,
}

impl LockFile {
    /// Opens the lock file, making it if it is missing.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file = open_or_make(path).map_err(|error| explain(path, error))?;
        let found = file.metadata().with_context(|| format!("cannot look at the lock file {shown}"))?;
        ensure_regular(path, &found)?;
        Ok(Self { path: path.to_owned(), file, identity: FileId::of(&found) })
    }

    pub(super) fn identity(&self) -> FileId {
        self.identity
    }

    /// One try, at once; busy, it gives the candidate back.
    pub(super) fn try_lock(mut self) -> Result<std::result::Result<FlockGuard, Self>> {
        loop {
            match FileExt::try_lock(&self.file) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Err(self)),
                Err(TryLockError::Error(error)) => return Err(refused(&self.path, error)),
            }
            match self.confirm() {
                Verified::FlockGuard(held) => return Ok(Ok(held)),
                Verified::Replaced(path) => self = Self::open(&path)?,
            }
        }
    }

    /// flock(2) that sleeps until the lock is ours. Only for a thread that may be called back from it.
    pub(super) fn lock_blocking(&self) -> io::Result<()> {
        FileExt::lock(&self.file)
    }

    /// After a lock: does the path still lead to the file that we have locked? If somebody has moved or removed it,
    /// the lock on it keeps nobody out.
    pub(super) fn confirm(self) -> Verified {
        match fs::metadata(&self.path) {
            Ok(found) if FileId::of(&found) == self.identity => {
                Verified::FlockGuard(FlockGuard { file: self.file, identity: self.identity })
            }
            _ => Verified::Replaced(self.path),
        }
    }
}

/// What a lock was worth.
#[derive(Debug)]
pub(super) enum Verified {
    FlockGuard(FlockGuard),
    /// The file was replaced; the lock on the old one is free again.
    Replaced(PathBuf),
}

impl FlockGuard {
    /// Which file is locked.
    pub(super) fn identity(&self) -> FileId {
        self.identity
    }

    /// A descriptor that keeps the lock where it is inherited.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for FlockGuard {
    fn drop(&mut self) {
        // LOCK_UN on one descriptor frees the lock for all its duplicates; without it a leaked one would keep it.
        // An error cannot be: the descriptor is ours and a lock is on it.
        let _ = FileExt::unlock(&self.file);
    }
}

fn open_or_make(path: &Path) -> io::Result<File> {
    // O_NONBLOCK and O_NOCTTY: a FIFO must not hang us, and a terminal must not become ours.
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

/// The error of a flock(2) that neither succeeds nor waits: ENOLCK, or a file system without it. NFS answers EBADF to who asks for
/// an exclusive one and may only read.
pub(super) fn refused(path: &Path, error: io::Error) -> anyhow::Error {
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
    fn a_refused_flock_names_the_way_out() {
        let refused = |errno| format!("{:#}", refused(Path::new("/srv/x"), io::Error::from_raw_os_error(errno)));
        assert!(refused(libc::EBADF).starts_with("cannot lock /srv/x: on this file system only a file that may be written"));
        assert!(refused(libc::ENOLCK).starts_with("cannot lock /srv/x: its file system may not support flock"));
    }
}
