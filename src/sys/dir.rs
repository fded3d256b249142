//! A directory by its descriptor: what is done in it stays in it, wherever its path leads by then. No link in it is followed, and
//! only regular files of its owner, or our own, are opened: others can write there.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fs4::FileExt;
use nix::dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fstat, fstatat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, Gid, Uid, UnlinkatFlags, faccessat, fchown, fchownat, geteuid, unlinkat};
use rustix::fs::{RenameFlags, renameat_with};

/// An open directory.
#[derive(Clone, Debug)]
pub(crate) struct Dir(Arc<OwnedFd>);

/// Longest time that a call works on a temporary file or directory.
const LEFT_OVER: Duration = Duration::from_secs(60);

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Dir {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(open(path, DIRECTORY, Mode::empty())?)))
    }

    pub(crate) fn open_dir(&self, name: &str) -> io::Result<Self> {
        Ok(Self(Arc::new(openat(&self.0, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?)))
    }

    /// Opens the directory `name`; makes it, with mode 0700, if it is missing.
    pub(crate) fn make_dir(&self, name: &str) -> io::Result<Self> {
        match self.open_dir(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match mkdirat(&self.0, name, Mode::S_IRWXU) {
            Ok(()) => {
                let made = self.open_dir(name)?;
                self.give_to_owner(|owner, group| fchownat(&made.0, "", owner, group, AtFlags::AT_EMPTY_PATH))?;
                Ok(made)
            }
            Err(Errno::EEXIST) => self.open_dir(name),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the file `name`; with `O_CREAT`, one with mode 0600.
    pub(crate) fn open_file(&self, name: &str, flags: OFlag) -> io::Result<File> {
        // A look first: to open a FIFO, be it for a moment, takes from its writer what it writes.
        let is_there = match fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => ensure_regular(&found).map(|()| true)?,
            Err(Errno::ENOENT) => false,
            Err(error) => return Err(error.into()),
        };
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let open = |flags| openat(&self.0, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let made = if is_there { Err(Errno::EEXIST) } else { open(flags | OFlag::O_EXCL) };
        // Only what we have made ourselves is given away.
        let file = match made {
            Ok(made) if flags.contains(OFlag::O_CREAT) => {
                self.give_to_owner(|owner, group| fchown(&made, owner, group))?;
                made
            }
            Err(Errno::EEXIST) => open(flags)?,
            other => other?,
        };
        let found = fstat(&file)?;
        ensure_regular(&found)?;
        if found.st_nlink > 1 || ![geteuid().as_raw(), self.owner()?].contains(&found.st_uid) {
            let why = format!("{name} is another user's, or has another name elsewhere");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(file.into())
    }

    /// Makes the file `name` with `mode`, to read and write.
    pub(super) fn make_file(&self, name: &OsStr, mode: Mode) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let made = openat(&self.0, name, flags, mode)?;
        // Where root may not, as in some user namespaces, it stays ours.
        let _ = self.give_to_owner(|owner, group| fchown(&made, owner, group));
        Ok(made.into())
    }

    pub(super) fn owner(&self) -> io::Result<u32> {
        Ok(fstat(&self.0)?.st_uid)
    }

    /// Gives a file that root makes in the directory of another user to that user, who could not read it else.
    pub(super) fn give_to_owner(&self, chown: impl Fn(Option<Uid>, Option<Gid>) -> nix::Result<()>) -> io::Result<()> {
        let found = fstat(&self.0)?;
        if geteuid().is_root() && found.st_uid != 0 {
            chown(Some(found.st_uid.into()), Some(found.st_gid.into()))?;
        }
        Ok(())
    }

    /// Visits the names of the files in it, of which there may be tens of thousands: `at_most` so many.
    pub(crate) fn for_each_name(&self, at_most: usize, mut visit: impl FnMut(&str)) -> io::Result<()> {
        let mut dir = dir::Dir::openat(&self.0, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        for entry in dir.iter().take(at_most) {
            entry?.file_name().to_str().into_iter().for_each(&mut visit);
        }
        Ok(())
    }

    /// Checks that we may list it, and, if we `write`, make files in it. That its file system is read-only is no error.
    pub(super) fn check_access(&self, write: bool) -> io::Result<()> {
        let to_write = if write { AccessFlags::W_OK } else { AccessFlags::empty() };
        match faccessat(&self.0, ".", AccessFlags::R_OK | AccessFlags::X_OK | to_write, AtFlags::empty()) {
            Ok(()) | Err(Errno::EROFS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Names in it that tempfile has made of `prefix` and `suffix`, of what has been there for longer than any call takes.
    pub(crate) fn leftovers(&self, prefix: &str, suffix: &str) -> io::Result<Vec<String>> {
        let is_ours = |name: &str| name.strip_prefix(prefix)?.strip_suffix(suffix).filter(|random| random.len() == 6).map(drop);
        let is_old = |name: &str| self.modified(name).is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFT_OVER));
        let mut names = Vec::new();
        self.for_each_name(usize::MAX, |name| names.extend(is_ours(name).map(|()| name.to_owned())))?;
        names.retain(|name| is_old(name));
        Ok(names)
    }

    /// Opens the directory `name` of our user and locks it, for as long as it is open.
    pub(crate) fn lock_dir(&self, name: &str) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = File::from(openat(&self.0, name, flags, Mode::empty())?);
        if dir.metadata()?.uid() != geteuid().as_raw() {
            return Err(io::Error::other(format!("{name} is another user's")));
        }
        FileExt::try_lock(&dir)?;
        Ok(Self(Arc::new(dir.into())))
    }

    /// True if `name` leads to `file`.
    pub(crate) fn has(&self, name: &str, file: &Metadata) -> bool {
        let found = fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        found.is_ok_and(|found| (found.st_dev, found.st_ino) == (file.dev(), file.ino()))
    }

    /// Time of the last change of `name`, of whatever kind it is.
    pub(crate) fn modified(&self, name: &str) -> io::Result<SystemTime> {
        let found = fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let since = Duration::from_secs(found.st_mtime.try_into().unwrap_or(0));
        SystemTime::UNIX_EPOCH.checked_add(since).ok_or_else(|| io::Error::other("its time is beyond all times"))
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.0, from, &self.0, to)?)
    }

    /// Moves the file `name` into `dir`, as `to`, if nothing is there.
    pub(crate) fn move_to(&self, name: &str, dir: &Self, to: &str) -> io::Result<()> {
        Ok(renameat_with(&self.0, name, &dir.0, to, RenameFlags::NOREPLACE)?)
    }

    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes the directory `name`, if it is empty.
    pub(crate) fn remove_dir(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, UnlinkatFlags::RemoveDir)?)
    }

    /// Sets the times of `name` to now.
    pub(crate) fn touch(&self, name: &str) -> io::Result<()> {
        Ok(utimensat(&self.0, name, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW, UtimensatFlags::NoFollowSymlink)?)
    }
}

fn ensure_regular(found: &FileStat) -> io::Result<()> {
    match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Ok(()),
        _ => Err(io::Error::other("it is no regular file")),
    }
}
