//! Whose settings file counts. The config dir belongs to the agents, and what runs in them may write there: a key that has a program
//! started, a file written or secrets shown is obeyed only if nobody but root and our user could have set it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use nix::unistd::{Uid, geteuid};

use crate::sys::acl::named_writers;
use crate::sys::steps::{Step, Steps};

/// Keys that have a program started, a file written, or secrets shown.
pub(super) const POWERFUL: [&str; 7] = ["claude", "lock-helper", "log", "record", "redact", "redact-names", "redact-patterns"];

/// Refuses the file `path` with its `key` if somebody else can write it, or put another in its place.
pub(super) fn ensure_only_ours(path: &Path, key: &str) -> Result<()> {
    if let Some((_, open)) = open_to_others(path, 0o022, geteuid())? {
        bail!(
            "{key} counts only in a file that nobody but root and uid {} can write, but {open}; change that, or take {key} out of {}{}",
            geteuid(),
            path.display(),
            if key.starts_with("redact-") { String::new() } else { format!(" and use --{key}") }
        );
    }
    Ok(())
}

/// Says what lets somebody but root and `user` write `path`, or put something else in its place, and where: the owner of a link on the
/// way to it, the owner and mode of itself or a directory on that way, or a user in its ACL. `writable`: the bits of the mode that do.
pub(crate) fn open_to_others(path: &Path, writable: u32, user: Uid) -> io::Result<Option<(PathBuf, String)>> {
    let is_foreign = |uid: u32| ![0, user.as_raw()].contains(&uid);
    let opening = |Step { path, found }: &Step| {
        let (shown, owner, mode) = (path.display(), found.uid(), found.mode() & 0o7777);
        if found.is_symlink() {
            return is_foreign(owner).then(|| format!("{shown} is a link of uid {owner}"));
        }
        // In a directory with the sticky bit, only owners rename and remove.
        let is_sticky = found.is_dir() && mode & 0o1000 != 0;
        if mode & writable != 0 && !is_sticky || is_foreign(owner) {
            return Some(format!("{shown} has owner {owner} and mode {mode:04o}"));
        }
        let named = named_writers(path).into_iter().find(|user| is_foreign(*user) && !is_sticky);
        named.map(|user| format!("{shown} has an ACL by which uid {user} can write it"))
    };
    for step in Steps::to(path)? {
        let step = step?;
        if let Some(open) = opening(&step) {
            return Ok(Some((step.path, open)));
        }
    }
    Ok(None)
}
