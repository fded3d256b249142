//! One step of setup. Each is a single atomic change, or makes something that nobody uses yet.

use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::syncfs;

use super::tree;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Makes a directory with mode 0700; missing ones above it get the usual mode.
    MakeDir(PathBuf),
    /// Sets a directory to mode 0700.
    MakePrivate(PathBuf),
    /// Makes a symlink `at` that leads `to`.
    Link {
        at: PathBuf,
        to: PathBuf,
    },
    /// Replaces the file `at`, of which `to` is a copy, by a symlink; `by` is the temporary name.
    ReplaceByLink {
        at: PathBuf,
        to: PathBuf,
        by: PathBuf,
    },
    /// Removes an empty directory.
    RemoveDir(PathBuf),
    RemoveLink(PathBuf),
    RemoveTree(PathBuf),
    /// Swaps two names atomically.
    Exchange(PathBuf, PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    /// Copies with modes, owners, times, links and holes; compares afterwards, and flushes to the disk.
    Copy {
        from: PathBuf,
        to: PathBuf,
    },
    /// Fails unless `new` has all that is in `old`.
    Compare {
        old: PathBuf,
        new: PathBuf,
    },
}

impl Step {
    pub(super) fn run(&self) -> io::Result<()> {
        match self {
            Self::MakeDir(dir) => {
                dir.parent().map_or(Ok(()), fs::create_dir_all)?;
                DirBuilder::new().recursive(true).mode(0o700).create(dir)
            }
            Self::MakePrivate(dir) => fs::set_permissions(dir, Permissions::from_mode(0o700)),
            Self::Link { at, to } => symlink(to, at),
            Self::ReplaceByLink { at, to, by } => {
                if by.is_symlink() {
                    fs::remove_file(by)?;
                }
                symlink(to, by)?;
                exchange(at, by)?;
                if fs::read(by)? != fs::read(to)? {
                    exchange(at, by)?;
                    return Err(io::Error::other("it was changed just now, and stays as it is"));
                }
                fs::remove_file(by)
            }
            Self::RemoveDir(dir) => fs::remove_dir(dir),
            Self::RemoveLink(link) => fs::remove_file(link),
            Self::RemoveTree(tree) => fs::remove_dir_all(tree),
            Self::Exchange(one, other) => exchange(one, other),
            Self::Rename { from, to } => fs::rename(from, to),
            Self::Copy { from, to } => copy(from, to),
            Self::Compare { old, new } => ensure_same(old, new),
        }?;
        self.changed_paths().into_iter().filter_map(Path::parent).try_for_each(|dir| File::open(dir)?.sync_all())
    }

    /// Paths whose directory entries have changed, to be flushed to the disk.
    fn changed_paths(&self) -> Vec<&Path> {
        match self {
            Self::Compare { .. } | Self::MakePrivate(_) => vec![],
            Self::MakeDir(at) | Self::RemoveDir(at) | Self::RemoveLink(at) | Self::RemoveTree(at) => vec![at],
            Self::Link { at, .. } | Self::ReplaceByLink { at, .. } => vec![at],
            Self::Exchange(one, other) => vec![one, other],
            Self::Rename { from, to } => vec![from, to],
            Self::Copy { to, .. } => vec![to],
        }
    }
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).map(|_| ())?)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    // cp(1) keeps what std does not: owners, times, links and holes.
    let mut cp = Command::new("cp");
    let copied = cp.args(["-a", "-T", "--"]).args([from, to]).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if !copied.success() {
        return Err(io::Error::other(format!("cp: {copied}")));
    }
    ensure_same(from, to)?;
    let dir = to.parent().unwrap_or(to);
    Ok(syncfs(File::open(dir)?)?)
}

fn ensure_same(old: &Path, new: &Path) -> io::Result<()> {
    match tree::difference(old, new)? {
        None => Ok(()),
        Some(difference) => Err(io::Error::other(format!("{difference}; both are left as they are"))),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeDir(dir) => write!(f, "make {}, with mode 0700", dir.display()),
            Self::MakePrivate(dir) => write!(f, "set {} to mode 0700", dir.display()),
            Self::Link { at, to } => write!(f, "link {} to {}", at.display(), to.display()),
            Self::ReplaceByLink { at, to, .. } => write!(f, "replace {} by a link to {}", at.display(), to.display()),
            Self::RemoveDir(dir) => write!(f, "remove the empty {}", dir.display()),
            Self::RemoveLink(link) => write!(f, "remove the link {}", link.display()),
            Self::RemoveTree(tree) => write!(f, "remove {} and all in it", tree.display()),
            Self::Exchange(one, other) => write!(f, "exchange {} and {}", one.display(), other.display()),
            Self::Rename { from, to } => write!(f, "rename {} to {}", from.display(), to.display()),
            Self::Copy { from, to } => write!(f, "copy {} to {}, and compare them", from.display(), to.display()),
            Self::Compare { old, new } => write!(f, "see that all of {} is in {}", old.display(), new.display()),
        }
    }
}
