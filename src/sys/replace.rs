//! Replaces a file by a changed copy, which keeps all that is said of it: owner and group, mode, ACL and the other extended attributes.
//! Readers see the old file or the new one.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::{CWD, StatxAttributes, StatxFlags, XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr, statx};

use super::acl::ACL;
use super::dir::Dir;
use super::fs::{read_bounded_text, real};
use super::mount::is_mount_point;
use super::steps::is_foreign;

/// Larger than any such file.
const LARGEST: u64 = 8 << 20;

/// End of the name of a copy.
const COPY: &str = ".claude-run-copy";

/// Directory in which the copy is made.
pub(crate) fn directory_of(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(real(path))?;
    path.parent().map(Path::to_owned).ok_or_else(|| io::Error::other("it is in no directory"))
}

/// Reads the text of the file `path`, empty if it is missing, after a look at whether it could be replaced.
///
/// # Errors
/// It cannot be read or replaced; then the error says why.
pub(crate) fn read_to_replace(path: &Path) -> io::Result<String> {
    let no = |why: String| Err(io::Error::other(why));
    // A look first: opening a device can have effects of its own.
    let text = match (fs::symlink_metadata(path), fs::metadata(path)) {
        (Ok(link), _) if link.is_symlink() && is_foreign(link.uid()) => {
            return no(format!("it is a link of uid {}", link.uid()));
        }
        (Ok(_), Err(_)) => return no("it is a link that leads nowhere".into()),
        (_, Ok(found)) if !found.is_file() => return no("it is no regular file".into()),
        (_, Ok(_)) if is_mount_point(&real(path)) => {
            return no("it is a mount point; change the file that is mounted there".into());
        }
        (_, Ok(_)) => read_bounded_text(path, LARGEST)?,
        (_, Err(error)) if error.kind() == ErrorKind::NotFound => String::new(),
        (_, Err(error)) => return Err(error),
    };
    let directory = directory_of(path)?;
    if [&*real(path), &directory].into_iter().any(is_unchangeable) {
        return no("it, or its directory, is immutable, or append-only; call chattr -ia on it".into());
    }
    faccessat(AT_FDCWD, &directory, AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)?;
    Ok(text)
}

/// True if nobody can replace `path` itself, not even root.
pub(crate) fn is_unchangeable(path: &Path) -> bool {
    let found = statx(CWD, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND))
}

/// Replaces the file `path`, or the target of that link. A new file gets the owner of its directory.
///
/// # Errors
/// The file cannot be read, written or replaced, or `change` fails, or those who may read it now could not read the copy.
pub(crate) fn replace(path: &Path, change: impl Fn(&str) -> io::Result<String>) -> io::Result<()> {
    let text = read_to_replace(path)?;
    let (path, directory) = (&real(path), &directory_of(path)?);
    let old = File::open(path).ok();
    // A new file, less the umask: whoever shares the directory reads it.
    let mode = if old.is_some() { 0o600 } else { 0o666 };
    let _ = remove_leftovers(path); // where they cannot be removed, they stay
    let (mut builder, prefix) = (tempfile::Builder::new(), prefix_of_copy(path));
    builder.prefix(&prefix).suffix(COPY).permissions(Permissions::from_mode(mode));
    // By the file, and by the kind of an error: tempfile puts the name of the copy into each.
    let mut copy = builder.tempfile_in(directory).map_err(|error| error.kind())?;
    copy.as_file_mut().write_all(change(&text)?.as_bytes())?;
    match &old {
        Some(old) => keep_attributes(old, copy.as_file())?,
        // It fails unless we are root, or of that group; then the file is ours.
        None => drop(give(copy.as_file(), &fs::metadata(directory)?)),
    }
    copy.as_file().sync_all()?;
    copy.persist(path)?;
    Ok(())
}

fn keep_attributes(old: &File, copy: &File) -> io::Result<()> {
    let found = old.metadata()?;
    let mode = found.permissions().mode();
    let is_for_the_group_alone = mode & 0o040 != 0 && mode & 0o004 == 0;
    if give(copy, &found).is_err() && is_for_the_group_alone {
        let group = found.gid();
        return Err(io::Error::other(format!("it is for group {group}, in which we are not; let root change it, or chgrp it")));
    }
    let _ = fremovexattr(copy, ACL); // which it can have from its directory
    let mut names = vec![0; 64 << 10];
    let length = flistxattr(old, &mut names[..]).unwrap_or(0); // some file systems have none
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let kept = fgetxattr(old, name, &mut value[..])
            .and_then(|length| fsetxattr(copy, name, &value[..length], XattrFlags::empty()));
        // Others may be the system's own, or of the old text.
        if let (Err(error), true) = (kept, name == ACL.as_bytes()) {
            return Err(io::Error::other(format!("its ACL cannot be kept: {}", io::Error::from(error))));
        }
    }
    copy.set_permissions(found.permissions())
}

/// Gives `file` the owner and group of `other`, or at least the group.
fn give(file: &File, other: &Metadata) -> io::Result<()> {
    let (ours, group) = (file.metadata()?, Some(other.gid()));
    if (ours.uid(), ours.gid()) == (other.uid(), other.gid()) {
        return Ok(());
    }
    fchown(file, Some(other.uid()), group).or_else(|_| fchown(file, None, group))
}

/// Removes the copies of the file `path` that calls which were killed have left.
pub(crate) fn remove_leftovers(path: &Path) -> io::Result<()> {
    let directory = Dir::open(&directory_of(path)?)?;
    for name in directory.leftovers(&prefix_of_copy(&real(path)), COPY)? {
        if directory.open_file(&name, OFlag::O_RDONLY).is_ok() {
            directory.remove(&name)?;
        }
    }
    Ok(())
}

fn prefix_of_copy(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn append(path: &Path) -> io::Result<()> {
        replace(path, |text| Ok(format!("{text}b")))
    }

    #[test]
    fn copy_keeps_mode_attributes_and_link() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (path, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&path, "a")?;
        fs::set_permissions(&path, Permissions::from_mode(0o640))?;
        symlink(&path, &link)?;
        let has_attributes = rustix::fs::setxattr(&path, "user.claude-run", b"kept", XattrFlags::empty()).is_ok();
        // u::rw-, u:1:r--, g::---, m::r--, o::---
        let entries = [(1, 6, u32::MAX), (2, 4, 1), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
        let mut acl = vec![2, 0, 0, 0];
        for (tag, bits, id) in entries {
            acl.extend([u16::to_le_bytes(tag), u16::to_le_bytes(bits)].concat());
            acl.extend(u32::to_le_bytes(id));
        }
        let has_acl = rustix::fs::setxattr(&path, ACL, &acl, XattrFlags::empty()).is_ok();
        append(&link)?;
        assert!(link.is_symlink() && fs::read_to_string(&path)? == "ab");
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o640);
        for (name, value, is_there) in [("user.claude-run", &b"kept"[..], has_attributes), (ACL, &acl, has_acl)] {
            let mut kept = vec![0; 256];
            let length = rustix::fs::getxattr(&path, name, &mut kept[..]).unwrap_or(0);
            assert!(!is_there || kept[..length] == *value, "{name}: {:?}", &kept[..length]);
        }
        assert_eq!(fs::read_dir(dir.path())?.count(), 2, "nothing is left behind");
        fs::remove_file(&path)?;
        fs::write(&path, "a")?;
        let is_given_to_new_files =
            rustix::fs::setxattr(dir.path(), "system.posix_acl_default", &acl, XattrFlags::empty()).is_ok();
        append(&path)?;
        assert!(!is_given_to_new_files || rustix::fs::getxattr(&path, ACL, &mut vec![0; 256][..]).is_err(), "it has none");
        Ok(())
    }

    #[test]
    fn what_cannot_be_replaced_is_refused_at_the_look() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "a")?;
        symlink("nowhere", path("dangling"))?;
        symlink("file", path("link"))?;
        let mut refusals = vec![("dangling", "leads nowhere"), (".", "no regular file"), ("file/below", "Not a directory")];
        if std::os::unix::fs::lchown(path("link"), Some(1), None).is_ok() {
            refusals.push(("link", "it is a link of uid 1"));
            std::os::unix::fs::lchown(path("file"), Some(1), None)?;
            assert_eq!(read_to_replace(&path("file"))?, "a", "a file of another is none");
        }
        for (name, expected) in refusals {
            let error = read_to_replace(&path(name)).expect_err(name).to_string();
            assert!(error.contains(expected) && append(&path(name)).is_err(), "{name}: {error}");
        }
        assert_eq!(read_to_replace(&path("new"))?, "");
        let mounted = read_to_replace(Path::new("/proc/self/mounts"));
        assert!(mounted.is_ok() || mounted.is_err_and(|error| !error.to_string().contains("mount point")));
        Ok(())
    }

    #[test]
    fn leftovers_are_removed_once_they_are_old() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name);
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(120);
        let [left, new, directory] = ["abc123", "new123", "dir123"].map(|random| format!(".file.{random}{COPY}"));
        let kept =
            [".file.claude-run.backup", ".other.abc123.claude-run-copy", ".file.abc12.claude-run-copy", &new, &directory];
        fs::create_dir(path(&directory))?;
        for name in kept.into_iter().chain([&*left]).filter(|name| *name != directory) {
            File::create(path(name))?;
        }
        for name in kept.into_iter().chain([&*left]).filter(|name| *name != new) {
            File::open(path(name))?.set_modified(old)?;
        }
        fs::write(path("file"), "a")?;
        append(&path("file"))?;
        assert!(!path(&left).exists() && kept.iter().all(|name| path(name).exists()), "{:?}", fs::read_dir(dir.path()));
        Ok(())
    }
}
