//! The way to a file as the kernel goes it: each directory, each symbolic link, and the file at last. Whoever can replace one of them can
//! put something else in the place of that file.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf, absolute};

use nix::errno::Errno;
use nix::unistd::geteuid;

/// Most links that the kernel follows on the way to a file.
pub(crate) const MAX_LINKS: usize = 40;

/// The steps to a path, from `/` on. The first error is the last of them.
#[derive(Debug)]
pub(crate) struct Steps {
    at: PathBuf,
    /// Names, the next one last.
    ahead: Vec<OsString>,
    links: usize,
}

/// What is passed on the way, by a path without a link before its last name.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) path: PathBuf,
    pub(crate) found: Metadata,
}

impl Steps {
    pub(crate) fn to(path: &Path) -> io::Result<Self> {
        let mut steps = Self { at: PathBuf::new(), ahead: Vec::new(), links: 0 };
        steps.go_by(&absolute(path)?);
        Ok(steps)
    }

    fn go_by(&mut self, path: &Path) {
        self.ahead.extend(path.components().rev().map(|part| part.as_os_str().to_owned()));
    }

    fn step(&mut self, name: OsString) -> io::Result<Step> {
        let path = self.at.join(name);
        let found = fs::symlink_metadata(&path)?;
        if found.is_symlink() {
            self.links += 1;
            if self.links > MAX_LINKS {
                return Err(Errno::ELOOP.into());
            }
            self.go_by(&fs::read_link(&path)?);
        } else {
            self.at.clone_from(&path);
        }
        Ok(Step { path, found })
    }
}

impl Iterator for Steps {
    type Item = io::Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut name = self.ahead.pop()?;
        while name == "." || name == ".." {
            // All that is above has been passed.
            if name == ".." {
                self.at.pop();
            }
            name = self.ahead.pop()?;
        }
        Some(self.step(name).inspect_err(|_| self.ahead.clear()))
    }
}

/// Links on the way to `path`, or in its place, each with the user who made it, by whose wish something would be made or written
/// elsewhere: not those of root, nor ours.
pub(crate) fn foreign_links(path: &Path) -> impl Iterator<Item = (PathBuf, u32)> {
    let links = Steps::to(path).into_iter().flatten().map_while(Result::ok).filter(|step| step.found.is_symlink());
    links.map(|link| (link.path, link.found.uid())).filter(|(_, uid)| is_foreign(*uid) && !is_unmapped(*uid))
}

/// Fails if such a link is on the way or in the place of the file. On the way, one may lead into a directory of the user who made it; and
/// into one of ours, unless we are root.
pub(crate) fn ensure_no_foreign_link(path: &Path) -> io::Result<()> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    let owner = path.parent().and_then(|dir| fs::metadata(dir).ok()).map(|dir| dir.uid()).filter(|_| !is_link);
    let is_own = owner.is_some_and(|owner| owner != 0 && owner == geteuid().as_raw());
    let mut astray = foreign_links(path).filter(|(_, uid)| !is_own && owner != Some(*uid));
    astray
        .next()
        .map_or(Ok(()), |(link, uid)| Err(io::Error::other(format!("it lies behind {}, a link of uid {uid}", link.display()))))
}

/// True of a user who is neither root nor ours.
pub(crate) fn is_foreign(uid: u32) -> bool {
    ![0, geteuid().as_raw()].contains(&uid)
}

/// True of the id that all have whom our user namespace does not know, root among them.
fn is_unmapped(uid: u32) -> bool {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let knows_all = || read("/proc/self/uid_map").split_ascii_whitespace().eq(["0", "0", "4294967295"]);
    read("/proc/sys/kernel/overflowuid").trim() == uid.to_string() && !knows_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, lchown, symlink};

    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let paths = Steps::to(path).into_iter().flatten().map(|step| step.map(|step| step.path));
        let name = |path: PathBuf| path.file_name().map_or_else(|| "/".into(), |name| name.to_string_lossy().into_owned());
        paths.map(|path| path.map_or_else(|error| error.kind().to_string(), name)).collect()
    }

    #[test]
    fn way_has_every_directory_and_link_once_it_is_passed() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let root = fs::canonicalize(dir.path())?;
        let before = names(&root);
        fs::create_dir_all(root.join("a/b"))?;
        fs::create_dir(root.join("c"))?;
        fs::write(root.join("c/file"), "")?;
        symlink(root.join("c"), root.join("absolute"))?;
        symlink("../../absolute/./file", root.join("a/b/relative"))?;
        symlink("loop", root.join("loop"))?;
        let behind = |path: &str| names(&root.join(path)).split_off(before.len());
        assert_eq!(behind("c/file"), ["c", "file"]);
        let over_links =
            [&["a", "b", "relative", "absolute"].map(str::to_owned)[..], &before, &["c", "file"].map(str::to_owned)];
        assert_eq!(behind("a/b/relative"), over_links.concat());
        assert_eq!(behind("a/../c/none/x"), ["a", "c", "entity not found"]);
        assert_eq!(behind("c/file/x"), ["c", "file", "not a directory"]);
        assert_eq!(behind("loop").len(), MAX_LINKS + 1, "and the error");
        assert_eq!(fs::canonicalize(root.join("a/b/relative"))?, root.join("c/file"));
        Ok(())
    }

    #[test]
    fn link_of_another_is_seen_wherever_it_is_on_the_way() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let link = dir.path().join("link");
        fs::create_dir(dir.path().join("real"))?;
        symlink("real", &link)?;
        for path in ["/dev/stdout", "/proc/self/fd/0", "/dev/fd/2"].map(Path::new).into_iter().chain([&*link.join("log")]) {
            assert!(ensure_no_foreign_link(path).is_ok(), "{}: root's and ours are none", path.display());
        }
        if lchown(&link, Some(1), None).is_ok() {
            for path in [link.clone(), link.join("log"), link.join("none/log"), link.join("../real")] {
                let error = ensure_no_foreign_link(&path).expect_err("a link").to_string();
                assert!(error.ends_with("link, a link of uid 1"), "{error}");
            }
            assert!(ensure_no_foreign_link(&dir.path().join("real/log")).is_ok());
            chown(dir.path().join("real"), Some(1), None)?;
            assert!(ensure_no_foreign_link(&link.join("log")).is_ok(), "theirs");
            assert!(ensure_no_foreign_link(&link).is_err());
        }
        Ok(())
    }
}
