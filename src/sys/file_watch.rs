//! Watches files by inotify(7) on their directories, since the files are created, removed and replaced by a rename. Where inotify
//! does not see all changes (another host may change the files, or all instances are in use), the caller polls once a second.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::bounded;
use super::file_id::FileId;
use super::fs::parent_of;
use super::mount::{Mount, is_mount_point};

/// Watched files.
#[derive(Debug)]
pub(crate) struct FileWatch {
    inotify: Option<Inotify>,
    /// Those that matter in the watched directories; none for all.
    files: Vec<PathBuf>,
    /// The watched directories.
    dirs: Vec<(PathBuf, Option<FileId>)>,
    /// Time of the next [`take_changes`](Self::take_changes), if inotify does not see all changes.
    poll_at: Option<Instant>,
    /// Until then, notifications pile up: the last ones were about other files.
    resting_until: Option<Instant>,
}

/// Rest after notifications about other files, so that a directory in which much happens wakes us ten times a second at most.
const REST: Duration = Duration::from_millis(100);

const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// File systems that no other kernel changes.
const LOCAL: [&str; 8] = ["btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs"];

impl FileWatch {
    /// Watches `files`, which need not exist; their directories must. Where their file system does not answer, they are polled.
    pub(crate) fn of(files: &[PathBuf]) -> Self {
        let wanted = files.to_vec();
        bounded::within("watch", move || Self::seen(&wanted)).unwrap_or_else(|| Self::new(files.to_vec(), [], |_| false))
    }

    fn seen(files: &[PathBuf]) -> Self {
        let in_sight = |inotify: &Inotify, file: &&PathBuf| !is_elsewhere(file) && watch(inotify, parent_of(file));
        let dirs = files.iter().map(|file| parent_of(file).to_owned());
        let sees_all = |inotify: &Inotify| files.iter().filter(|file| in_sight(inotify, file)).count() == files.len();
        Self::new(files.to_vec(), dirs, sees_all)
    }

    /// Watches all files in `dir`. While `dir` does not exist, it is polled.
    pub(crate) fn in_directory(dir: &Path) -> Self {
        Self::new(Vec::new(), [dir.to_owned()], |inotify| watch(inotify, dir))
    }

    fn new(files: Vec<PathBuf>, dirs: impl IntoIterator<Item = PathBuf>, sees_all: impl FnOnce(&Inotify) -> bool) -> Self {
        let with_id = |dir: PathBuf| {
            let id = FileId::at(&dir);
            (dir, id)
        };
        let dirs = dirs.into_iter().map(with_id).collect();
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        let poll_at = (!inotify.as_ref().is_some_and(sees_all)).then(|| Instant::now() + POLL_INTERVAL);
        Self { inotify, files, dirs, poll_at, resting_until: None }
    }

    /// Becomes readable at a change; `None` during a rest.
    pub(crate) fn inotify(&self) -> Option<&Inotify> {
        let is_resting = self.resting_until.is_some_and(|until| Instant::now() < until);
        self.inotify.as_ref().filter(|_| !is_resting)
    }

    /// Time of the next [`take_changes`](Self::take_changes), even if nothing becomes readable.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        [self.poll_at, self.resting_until].into_iter().flatten().min()
    }

    /// True if inotify does not see all changes.
    pub(crate) fn is_polled(&self) -> bool {
        self.poll_at.is_some()
    }

    /// Consumes all notifications. True if a file may have changed since the last call.
    pub(crate) fn take_changes(&mut self) -> bool {
        let (mut changed, mut is_told) = (false, false);
        // EAGAIN: no more.
        while let Some(Ok(events)) = self.inotify.as_ref().map(Inotify::read_events) {
            for event in events {
                is_told = true;
                changed |= match event.name {
                    Some(name) => {
                        let named: Vec<_> = self.files.iter().filter(|file| file.file_name() == Some(&name)).collect();
                        if self.poll_at.is_none() && named.iter().any(|file| is_elsewhere(file)) {
                            self.poll_at = Some(Instant::now());
                        }
                        self.files.is_empty() || !named.is_empty()
                    }
                    None => {
                        // The queue has overflowed; or the directory itself is moved or gone, and its successor is not watched.
                        let is_another = |(dir, known): &(PathBuf, Option<FileId>)| FileId::at(dir) != *known;
                        if !event.mask.contains(AddWatchFlags::IN_ATTRIB) || self.dirs.iter().any(is_another) {
                            self.poll_at.get_or_insert_with(Instant::now);
                        }
                        true
                    }
                };
            }
        }
        self.resting_until = (is_told && !changed).then(|| Instant::now() + REST);
        if self.poll_at.is_some_and(|at| at <= Instant::now()) {
            self.poll_at = Some(Instant::now() + POLL_INTERVAL);
            changed = true;
        }
        changed
    }
}

/// True behind a symlink or a bind mount: the file changes in another directory.
fn is_elsewhere(file: &Path) -> bool {
    file.is_symlink() || is_mount_point(file)
}

/// Watches `dir`. True if that shows all changes in it.
fn watch(inotify: &Inotify, dir: &Path) -> bool {
    let flags = AddWatchFlags::IN_ATTRIB // it may become readable
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    Mount::of(dir).is_some_and(|mount| LOCAL.contains(&&*mount.kind)) && inotify.add_watch(dir, flags).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn changes_of_a_watched_file_are_seen_and_no_others() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("file");
        let mut changes = FileWatch::of(std::slice::from_ref(&file));
        assert_eq!(changes.poll_at, None, "inotify sees all");
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
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700))?;
        assert!(changes.take_changes() && changes.poll_at.is_none(), "its mode");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700))?;
        assert!(changes.take_changes() && changes.poll_at.is_none(), "that of its directory");
        fs::remove_dir(&file)?;
        std::os::unix::fs::symlink("/etc/passwd", &file)?;
        assert!(changes.take_changes() && changes.poll_at.is_some(), "a link in its place");
        Ok(())
    }

    #[test]
    fn changes_of_other_files_are_followed_by_a_rest() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("file");
        let mut changes = FileWatch::of(std::slice::from_ref(&file));
        assert!(changes.inotify().is_some() && changes.wake_at().is_none());
        fs::write(dir.path().join("other"), "x")?;
        assert!(!changes.take_changes());
        assert!(changes.inotify().is_none() && changes.wake_at().is_some_and(|at| at <= Instant::now() + REST));
        fs::write(&file, "x")?;
        assert!(changes.take_changes() && changes.inotify().is_some(), "a rest loses nothing");
        Ok(())
    }

    #[test]
    fn files_that_inotify_cannot_watch_are_polled() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link)?;
        for file in [link, dir.path().join("nonesuch/file"), "/proc/self/stat".into()] {
            let mut changes = FileWatch::of(&[dir.path().join("file"), file]);
            assert!(changes.poll_at.is_some_and(|at| at > Instant::now()));
            assert!(!changes.take_changes(), "not yet");
            changes.poll_at = Some(Instant::now());
            assert!(changes.take_changes());
            assert!(changes.poll_at.is_some_and(|at| at > Instant::now()), "and again later");
        }
        Ok(())
    }

    #[test]
    fn replaced_directory_is_polled() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let inner = dir.path().join("inner");
        fs::create_dir(&inner)?;
        let mut changes = FileWatch::of(&[inner.join("file")]);
        fs::rename(&inner, dir.path().join("old"))?;
        assert!(changes.take_changes() && changes.poll_at.is_some());
        Ok(())
    }
}
