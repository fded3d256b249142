//! Mounts, from /proc/self/mountinfo (proc(5)), and the scope of an flock on each kind of file system.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A mount in our mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Mount point.
    pub point: PathBuf,
    /// Type of the file system: `ext4`, `nfs4`, `fuse.sshfs` …
    pub kind: String,
    /// Options of the mount and of the file system.
    pub options: Vec<String>,
}

/// Scope of an flock(2) on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockScope {
    /// All hosts that mount the file system.
    Cluster,
    /// This host, and no other mounts the file system.
    LocalFs,
    /// This host, though others share the files.
    PerHost,
    /// Not known.
    Unknown,
}

/// File systems that one host mounts at a time.
const LOCAL: [&str; 17] = [
    "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "jfs", "ntfs3", "overlay", "ramfs", "reiserfs",
    "tmpfs", "vfat", "xfs", "zfs",
];

impl LockScope {
    /// Scope of a lock on `path`, if `path` exists and /proc is readable.
    pub fn at(path: &Path) -> Option<Self> {
        Some(Mount::of(&fs::canonicalize(path).ok()?)?.lock_scope().0)
    }

    /// True if hosts may share the files, but not the locks. Such hosts may also see the writes of another late.
    pub fn may_be_per_host(self) -> bool {
        matches!(self, Self::PerHost | Self::Unknown)
    }
}

impl Mount {
    /// Mount that `real`, a path without symlinks, is on, if /proc is readable.
    pub fn of(real: &Path) -> Option<Self> {
        // Of several mounts on one point, the last hides the others.
        Self::all()
            .into_iter()
            .rev()
            .filter(|mount| real.starts_with(&mount.point))
            .reduce(|one, other| if other.point.as_os_str().len() > one.point.as_os_str().len() { other } else { one })
    }

    /// Scope of an flock on it, and why, by nfs(5), flock(2), mount.lustre(8) and the documentation of the others.
    pub fn lock_scope(&self) -> (LockScope, &'static str) {
        let has = |option: &str| self.options.iter().any(|other| other == option);
        match self.kind.as_str() {
            kind if LOCAL.contains(&kind) => (LockScope::LocalFs, "a file system of this host"),
            "nfs" | "nfs4" if has("local_lock=all") || has("local_lock=flock") || has("nolock") => {
                (LockScope::PerHost, "mounted so that each host locks by itself (nolock or local_lock)")
            }
            "nfs" | "nfs4" => (LockScope::Cluster, "the server holds the lock, by NFSv4 or lockd"),
            "ceph" => (LockScope::Cluster, "the metadata server holds the lock"),
            "gfs2" | "ocfs2" if has("localflocks") || has("lockproto=lock_nolock") => {
                (LockScope::PerHost, "mounted so that each host locks by itself")
            }
            "gfs2" | "ocfs2" => (LockScope::Cluster, "the cluster's lock manager holds the lock"),
            "lustre" if has("flock") => (LockScope::Cluster, "the server holds the lock"),
            "lustre" => (LockScope::PerHost, "mounted without `flock`"),
            "cifs" | "smb3" if has("nobrl") => (LockScope::PerHost, "mounted with `nobrl`"),
            "cifs" | "smb3" => (
                LockScope::PerHost,
                "up to Linux 5.4 each host locks by itself; since then a run record that is locked cannot be read",
            ),
            "9p" | "virtiofs" => (LockScope::Unknown, "between guests a flock holds only if the server has it switched on"),
            kind if kind.starts_with("fuse") => (LockScope::Unknown, "it keeps a flock to this host, or passes it on"),
            _ => (LockScope::Unknown, "nothing is known of its flock"),
        }
    }

    fn all() -> Vec<Self> {
        let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
        text.split(|&byte| byte == b'\n').filter_map(Self::parse).collect()
    }

    /// Parses a line of the form `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`.
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

/// Decodes octal escapes: space, tab, newline and backslash are written as `\040` and the like.
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

/// True if `path` is a mount point.
pub fn is_mount_point(path: &Path) -> bool {
    let Ok(real) = fs::canonicalize(path) else { return false };
    Mount::of(&real).is_some_and(|mount| mount.point.as_os_str().as_bytes() == real.as_os_str().as_bytes())
}

/// Mount points at `real`, a path without symlinks, and below it.
pub(crate) fn points_below(real: &Path) -> Vec<PathBuf> {
    Mount::all().into_iter().map(|mount| mount.point).filter(|point| point.starts_with(real)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_and_unescaped() {
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
    fn a_path_is_on_the_nearest_mount_above_it() {
        assert_eq!(Mount::of(Path::new("/proc/self/stat")).map(|mount| mount.kind), Some("proc".into()));
        assert!(is_mount_point(Path::new("/proc")) && is_mount_point(Path::new("/")));
        assert!(!is_mount_point(Path::new("/proc/self")) && !is_mount_point(Path::new("/etc")));
    }

    #[test]
    fn kind_and_options_decide_the_scope_of_a_flock() {
        for (line, expected) in [
            ("/srv rw - nfs4 server:/srv rw,vers=4.2,local_lock=none", LockScope::Cluster),
            ("/srv rw - nfs server:/srv rw,vers=3,local_lock=none", LockScope::Cluster),
            ("/srv rw - nfs server:/srv rw,vers=3,nolock,local_lock=all", LockScope::PerHost),
            ("/srv rw - nfs4 server:/srv rw,vers=4.0,local_lock=flock", LockScope::PerHost),
            ("/srv rw - nfs4 server:/srv rw,local_lock=posix", LockScope::Cluster),
            ("/srv rw - ceph 10.0.0.1:/ rw,acl", LockScope::Cluster),
            ("/srv rw - lustre mgs:/fs rw,flock,lazystatfs", LockScope::Cluster),
            ("/srv rw - lustre mgs:/fs rw,localflock", LockScope::PerHost),
            ("/srv rw - cifs //server/share rw,nobrl", LockScope::PerHost),
            ("/srv rw - smb3 //server/share rw,vers=3.1.1", LockScope::PerHost),
            ("/srv rw - gfs2 /dev/vg/lv rw", LockScope::Cluster),
            ("/srv rw,relatime - ocfs2 /dev/sdb rw,localflocks", LockScope::PerHost),
            ("/srv rw - virtiofs share rw", LockScope::Unknown),
            ("/srv rw - fuse.sshfs host:/ rw", LockScope::Unknown),
            ("/srv rw - fuse.glusterfs host:/ rw", LockScope::Unknown),
            ("/srv rw - ext4 /dev/sda1 rw", LockScope::LocalFs),
            ("/srv rw - newfs x rw", LockScope::Unknown),
        ] {
            let mount = Mount::parse(format!("36 35 98:0 / {line}").as_bytes()).expect(line);
            assert_eq!(mount.lock_scope().0, expected, "{line}");
        }
    }
}
