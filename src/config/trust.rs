//! Whose settings file counts. The config dir belongs to the agents, and what runs in them may write there: a key that has a program
//! started, a file written or secrets shown is obeyed only if nobody but root and our user could have set it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, absolute};

use anyhow::{Result, bail};
use nix::unistd::geteuid;

use crate::sys::acl::named_writers;
use crate::sys::fs::is_foreign;

/// Keys that have a program started, a file written, or secrets shown.
pub(super) const POWERFUL: [&str; 7] = ["claude", "lock-helper", "log", "record", "redact", "redact-names", "redact-patterns"];

/// Refuses the file `path` with its `key` if somebody else can write it, or put another in its place.
pub(super) fn ensure_only_ours(path: &Path, key: &str) -> Result<()> {
    if let Some(open) = open_to_others(path, 0o022)? {
        bail!(
            "{key} counts only in a file that nobody but root and uid {} can write, but {open}; change that, or take {key} out of {}{}",
            geteuid(),
            path.display(),
            if key.starts_with("redact-") { String::new() } else { format!(" and use --{key}") }
        );
    }
    Ok(())
}

/// Says what lets somebody but root and our user write `path`, or put something else in its place: the owner and mode of itself, or of a
/// directory above it or its real path, or a user in its ACL. `writable`: the bits of the mode that do.
pub(crate) fn open_to_others(path: &Path, writable: u32) -> Result<Option<String>> {
    let (named, real) = (absolute(path)?, fs::canonicalize(path)?);
    for at in [&named, &real].into_iter().flat_map(|file| file.ancestors()) {
        let found = fs::metadata(at)?;
        let (owner, mode) = (found.uid(), found.mode() & 0o7777);
        // In a directory with the sticky bit, only owners rename and remove.
        let is_sticky = found.is_dir() && mode & 0o1000 != 0;
        let is_open = mode & writable != 0 && !is_sticky;
        if is_open || is_foreign(owner) {
            return Ok(Some(format!("{} has owner {owner} and mode {mode:04o}", at.display())));
        }
        let named = named_writers(at).into_iter().find(|user| is_foreign(*user));
        if let Some(user) = named.filter(|_| !is_sticky) {
            return Ok(Some(format!("{} has an ACL by which uid {user} can write it", at.display())));
        }
    }
    Ok(None)
}
