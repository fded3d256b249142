//! Files that change, told by the kernel: inotify(7) on the directories that they are in, since they are replaced by a rename,
//! or come and go. Where the kernel cannot tell (another host may change them, or all inotify instances are in use), they are
//! to be looked at once a second.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::statfs::{self, FsType, statfs};

use crate::sys::mount;

/// Files that are followed.
#[derive(Debug)]
pub(crate) struct FileWatch {
    inotify: Option<Inotify>,
    /// Directories, and in which file of each a change matters; none: in all.
    watched: Vec<(WatchDescriptor, Option<OsString>)>,
    /// When to look at them without having been told, if the kernel does not tell of all.
    look_at: Option<Instant>,
}

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// File systems on which nobody changes a file unseen by this kernel.
const LOCAL: [FsType; 6] = [
    statfs::EXT4_SUPER_MAGIC, // ext2 and ext3 have the same
    statfs::XFS_SUPER_MAGIC,
    statfs::BTRFS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
    statfs::F2FS_SUPER_MAGIC,
];

impl FileWatch {
    /// Follows `files`, which need not be there; their directories have to.
    pub(crate) fn of(files: &[PathBuf]) -> Self {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        let mut watched = Vec::new();
        for file in files {
            let watch =
                inotify.as_ref().and_then(|inotify| Some((watch_for(inotify, file)?, Some(file.file_name()?.to_owned()))));
            watched.extend(watch);
        }
        let all_is_told = watched.len() == files.len();
        Self { inotify, watched, look_at: (!all_is_told).then(|| Instant::now() + LOOK_EVERY) }
    }

    /// Follows all files in `dir`. If it is not there, it is looked for each second.
    pub(crate) fn in_directory(dir: &Path) -> Self {
        let mut changes = Self::of(&[]);
        let watch = changes.inotify.as_ref().and_then(|inotify| watch(inotify, dir));
        changes.look_at = watch.is_none().then(|| Instant::now() + LOOK_EVERY);
        changes.watched.extend(watch.map(|watch| (watch, None)));
        changes
    }

    /// What becomes readable when something has changed.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// When to ask whether they [have come](Self::have_come), though nothing has become readable.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether one of the files may have changed since the last time.
    pub(crate) fn have_come(&mut self) -> bool {
        let mut changed = self.are_told();
        if let Some(at) = self.look_at
            && Instant::now() >= at
        {
            self.look_at = Some(Instant::now() + LOOK_EVERY);
            changed = true;
        }
        changed
    }

    fn are_told(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let mut changed = false;
        // An error is "nothing more".
        while let Ok(events) = inotify.read_events() {
            for event in events {
                let is_followed = |name: &OsStr| {
                    let matters = |file: &Option<OsString>| file.as_deref().is_none_or(|file| file == name);
                    self.watched.iter().any(|(watch, file)| *watch == event.wd && matters(file))
                };
                match event.name {
                    Some(name) => changed |= is_followed(&name),
                    // Too many to be told of one by one; or the directory itself is moved or gone, and what takes its place is
                    // not watched.
                    None => {
                        changed = true;
                        self.look_at.get_or_insert_with(Instant::now);
                    }
                }
            }
        }
        changed
    }
}

/// Watches the directory of `file`, if that tells of all that can happen to it.
fn watch_for(inotify: &Inotify, file: &Path) -> Option<WatchDescriptor> {
    let dir = match file.parent()? {
        dir if dir.as_os_str().is_empty() => Path::new("."),
        dir => dir,
    };
    // Behind a symlink, or mounted by itself, the file changes in another directory.
    if file.is_symlink() || mount::is_mount_point(file) { None } else { watch(inotify, dir) }
}

fn watch(inotify: &Inotify, dir: &Path) -> Option<WatchDescriptor> {
    if !LOCAL.contains(&statfs(dir).ok()?.filesystem_type()) {
        return None;
    }
    let flags = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(dir, flags).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_happens_to_a_file_is_told_and_what_happens_beside_it_is_not() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("file");
        let mut changes = FileWatch::of(std::slice::from_ref(&file));
        assert_eq!(changes.next_look(), None, "the kernel tells");
        assert!(!changes.have_come());
        fs::write(dir.path().join("other"), "x")?;
        assert!(!changes.have_come(), "beside it");
        fs::write(&file, "x")?;
        assert!(changes.have_come() && !changes.have_come(), "made");
        fs::write(&file, "y")?;
        assert!(changes.have_come(), "rewritten in place");
        fs::rename(dir.path().join("other"), &file)?;
        assert!(changes.have_come(), "replaced");
        fs::remove_file(&file)?;
        assert!(changes.have_come(), "gone");
        fs::create_dir(&file)?;
        assert!(changes.have_come(), "a directory in its place");
        Ok(())
    }

    #[test]
    fn where_the_kernel_does_not_tell_they_are_looked_at_each_second() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link)?;
        for file in [link, dir.path().join("nonesuch/file"), "/proc/self/stat".into()] {
            let mut changes = FileWatch::of(&[dir.path().join("file"), file]);
            assert!(changes.next_look().is_some_and(|at| at > Instant::now()));
            assert!(!changes.have_come(), "not yet");
            changes.look_at = Some(Instant::now());
            assert!(changes.have_come());
            assert!(changes.next_look().is_some_and(|at| at > Instant::now()), "and again later");
        }
        Ok(())
    }

    #[test]
    fn a_directory_that_is_replaced_is_no_longer_told_of_but_looked_at() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let inner = dir.path().join("inner");
        fs::create_dir(&inner)?;
        let mut changes = FileWatch::of(&[inner.join("file")]);
        fs::rename(&inner, dir.path().join("old"))?;
        assert!(changes.have_come() && changes.next_look().is_some());
        Ok(())
    }
}
