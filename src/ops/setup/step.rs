//! One step of setup: what it is called, and how it is taken. Each is a single change that is there whole or not at all, or makes
//! something that nobody looks at yet.

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
    /// For its owner alone; those above it, where they are missing, as usual.
    MakeDir(PathBuf),
    /// Makes a directory one for its owner alone.
    MakePrivate(PathBuf),
    /// A symlink `at` that leads `to`.
    Link {
        at: PathBuf,
        to: PathBuf,
    },
    /// Puts a symlink in the place of a file that is there `to` as well, by way of `by`.
    ReplaceByLink {
        at: PathBuf,
        to: PathBuf,
        by: PathBuf,
    },
    /// An empty one.
    RemoveDir(PathBuf),
    RemoveLink(PathBuf),
    /// A directory and all that is in it.
    RemoveTree(PathBuf),
    /// Two names change what they are for, at once.
    Exchange(PathBuf, PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    /// With modes, owners, times, links and holes; compared afterwards, and on the disk.
    Copy {
        from: PathBuf,
        to: PathBuf,
    },
    /// What is in the first is in the second, too.
    Compare {
        old: PathBuf,
        new: PathBuf,
    },
}

impl Step {
    pub(super) fn take(&self) -> io::Result<()> {
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
            Self::Compare { old, new } => same(old, new),
        }?;
        self.places().into_iter().filter_map(Path::parent).try_for_each(|dir| File::open(dir)?.sync_all())
    }

    /// Where something has changed.
    fn places(&self) -> Vec<&Path> {
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

/// cp(1), which keeps what there is to keep; then both are compared.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut cp = Command::new("cp");
    let copied = cp.args(["-a", "-T", "--"]).args([from, to]).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if !copied.success() {
        return Err(io::Error::other(format!("cp: {copied}")));
    }
    same(from, to)?;
    let dir = to.parent().unwrap_or(to);
    Ok(syncfs(File::open(dir)?)?)
}

fn same(old: &Path, new: &Path) -> io::Result<()> {
    match tree::difference(old, new)? {
        None => Ok(()),
        Some(difference) => Err(io::Error::other(format!("{difference}; both are left as they are"))),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeDir(dir) => write!(f, "make {}, for its owner alone", dir.display()),
            Self::MakePrivate(dir) => write!(f, "make {} one for its owner alone", dir.display()),
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
