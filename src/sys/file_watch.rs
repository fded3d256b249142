//! Watches files by inotify(7) on their directories, since the files are created, removed and replaced by a rename. Where inotify
//! does not see all changes (another host may change the files, or all instances are in use), the caller polls once a second.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::statfs::{self, FsType, statfs};

use super::mount;

/// Watched files.
#[derive(Debug)]
pub(crate) struct FileWatch {
    inotify: Option<Inotify>,
    /// Watched directories, each with the name of the file in it that matters; `None` for all.
    watched: Vec<(WatchDescriptor, Option<OsString>)>,
    /// Next poll, if inotify does not see all changes.
    poll_at: Option<Instant>,
}

const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// File systems that no other kernel changes.
const LOCAL: [FsType; 6] = [
    statfs::EXT4_SUPER_MAGIC, // ext2 and ext3 have the same
    statfs::XFS_SUPER_MAGIC,
    statfs::BTRFS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
    statfs::F2FS_SUPER_MAGIC,
];

impl FileWatch {
    /// Watches `files`, which need not exist; their directories must.
    pub(crate) fn of(files: &[PathBuf]) -> Self {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        let mut watched = Vec::new();
        for file in files {
            let watch =
                inotify.as_ref().and_then(|inotify| Some((watch_for(inotify, file)?, Some(file.file_name()?.to_owned()))));
            watched.extend(watch);
        }
        let all_watched = watched.len() == files.len();
        Self { inotify, watched, poll_at: (!all_watched).then(|| Instant::now() + POLL_INTERVAL) }
    }

    /// Watches all files in `dir`. While `dir` does not exist, it is polled.
    pub(crate) fn in_directory(dir: &Path) -> Self {
        let mut changes = Self::of(&[]);
        let watch = changes.inotify.as_ref().and_then(|inotify| watch(inotify, dir));
        changes.poll_at = watch.is_none().then(|| Instant::now() + POLL_INTERVAL);
        changes.watched.extend(watch.map(|watch| (watch, None)));
        changes
    }

    /// Becomes readable at a change.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Time of the next [`take_changes`](Self::take_changes), though nothing has become readable.
    pub(crate) fn next_poll(&self) -> Option<Instant> {
        self.poll_at
    }

    /// Consumes all notifications. True if a file may have changed since the last call.
    pub(crate) fn take_changes(&mut self) -> bool {
        let mut changed = self.read_notifications();
        if let Some(at) = self.poll_at
            && Instant::now() >= at
        {
            self.poll_at = Some(Instant::now() + POLL_INTERVAL);
            changed = true;
        }
        changed
    }

    fn read_notifications(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let mut changed = false;
        // EAGAIN: no more.
        while let Ok(events) = inotify.read_events() {
            for event in events {
                let is_watched = |name: &OsStr| {
                    let matters = |file: &Option<OsString>| file.as_deref().is_none_or(|file| file == name);
                    self.watched.iter().any(|(watch, file)| *watch == event.wd && matters(file))
                };
                match event.name {
                    Some(name) => changed |= is_watched(&name),
                    // The queue has overflowed; or the directory itself is moved or gone, and its successor is not watched.
                    None => {
                        changed = true;
                        self.poll_at.get_or_insert_with(Instant::now);
                    }
                }
            }
        }
        changed
    }
}

/// Watches the directory of `file`, if that shows all changes of it.
fn watch_for(inotify: &Inotify, file: &Path) -> Option<WatchDescriptor> {
    let dir = match file.parent()? {
        dir if dir.as_os_str().is_empty() => Path::new("."),
        dir => dir,
    };
    // Behind a symlink or a bind mount, the file changes in another directory.
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
    fn changes_of_a_watched_file_are_seen_and_no_others() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("file");
        let mut changes = FileWatch::of(std::slice::from_ref(&file));
        assert_eq!(changes.next_poll(), None, "inotify sees all");
        assert!(!changes.take_changes());
        fs::write(dir.path().join("other"), "x")?;
        assert!(!changes.take_changes(), "beside it");
        fs::write(&file, "x")?;
        assert!(changes.take_changes() && !changes.take_changes(), "made");
        fs::write(&file, "y")?;
        assert!(changes.take_changes(), "rewritten in place");
        fs::rename(dir.path().join("other"), &file)?;
        assert!(changes.take_changes(), "replaced");
        fs::remove_file(&file)?;
        assert!(changes.take_changes(), "gone");
        fs::create_dir(&file)?;
        assert!(changes.take_changes(), "a directory in its place");
        Ok(())
    }

    #[test]
    fn files_that_inotify_cannot_watch_are_polled() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link)?;
        for file in [link, dir.path().join("nonesuch/file"), "/proc/self/stat".into()] {
            let mut changes = FileWatch::of(&[dir.path().join("file"), file]);
            assert!(changes.next_poll().is_some_and(|at| at > Instant::now()));
            assert!(!changes.take_changes(), "not yet");
            changes.poll_at = Some(Instant::now());
            assert!(changes.take_changes());
            assert!(changes.next_poll().is_some_and(|at| at > Instant::now()), "and again later");
        }
        Ok(())
    }

    #[test]
    fn a_replaced_directory_is_polled() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let inner = dir.path().join("inner");
        fs::create_dir(&inner)?;
        let mut changes = FileWatch::of(&[inner.join("file")]);
        fs::rename(&inner, dir.path().join("old"))?;
        assert!(changes.take_changes() && changes.next_poll().is_some());
        Ok(())
    }
}
