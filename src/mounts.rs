//! Which file system a path is on, and whether it is a mount point: from /proc/self/mountinfo, see proc(5).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A mount, as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is.
    pub point: PathBuf,
    /// The kind of file system: `ext4`, `nfs4`, `fuse.sshfs` …
    pub kind: String,
    /// Its options, of the mount and of the file system.
    pub options: Vec<String>,
}

impl Mount {
    /// The one that the path `real`, without symlinks, is on; none, if /proc does not tell.
    pub fn of(real: &Path) -> Option<Self> {
        // Of several at one place, the last covers the others.
        Self::all()
            .into_iter()
            .rev()
            .filter(|mount| real.starts_with(&mount.point))
            .reduce(|one, other| if other.point.as_os_str().len() > one.point.as_os_str().len() { other } else { one })
    }

    fn all() -> Vec<Self> {
        let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
        text.split(|&byte| byte == b'\n').filter_map(Self::parse).collect()
    }

    /// Reads a line of the form `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|&byte| byte == b' ');
        let point = unescape(words.nth(4)?);
        let own = words.next()?;
        let mut behind = words.skip_while(|word| *word != b"-").skip(1);
        let kind = String::from_utf8_lossy(behind.next()?).into_owned();
        let all = [own, b",", behind.nth(1).unwrap_or_default()].concat();
        let options = String::from_utf8_lossy(&all).split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
        Some(Self { point, kind, options })
    }
}

/// Space, tab, newline and backslash stand there as `\040` and their like.
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let Some((&first, behind)) = rest.split_first() {
        let code = (first == b'\\').then(|| behind.get(..3)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    OsString::from_vec(bytes).into()
}

/// Whether a mount begins at `path`.
pub fn is_mount_point(path: &Path) -> bool {
    let Ok(real) = fs::canonicalize(path) else { return false };
    Mount::of(&real).is_some_and(|mount| mount.point.as_os_str().as_bytes() == real.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_its_spaces_are() {
        let line = br"36 35 98:0 /a /mnt/with\040space\134 rw,noatime master:1 shared:2 - fuse.sshfs host:/ rw,user_id=0";
        let options = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let expected = Mount {
            point: "/mnt/with space\\".into(),
            kind: "fuse.sshfs".into(),
            options: options(&["rw", "noatime", "rw", "user_id=0"]),
        };
        assert_eq!(Mount::parse(line), Some(expected));
        let line = b"22 27 0:21 / /proc rw,relatime - proc proc rw";
        assert_eq!(
            Mount::parse(line),
            Some(Mount { point: "/proc".into(), kind: "proc".into(), options: options(&["rw", "relatime", "rw"]) })
        );
        for cut in 0..30 {
            assert_eq!(Mount::parse(&line[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn a_path_is_on_the_mount_that_is_nearest_above_it() {
        assert_eq!(Mount::of(Path::new("/proc/self/stat")).map(|mount| mount.kind), Some("proc".into()));
        assert!(is_mount_point(Path::new("/proc")) && is_mount_point(Path::new("/")));
        assert!(!is_mount_point(Path::new("/proc/self")) && !is_mount_point(Path::new("/etc")));
    }
}
