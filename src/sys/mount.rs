//! Mounts, from /proc/self/mounts (fstab(5)), and the scope of an flock on each kind of file system.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount in our mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Mount point.
    pub point: PathBuf,
    /// Type of the file system: `ext4`, `nfs4`, `fuse.sshfs` …
    pub kind: String,
    /// Options of the mount and of the file system, as in mount(8).
    options: String,
}

/// Scope of an flock(2) on a file system.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LockScope {
    /// All hosts that mount the file system.
    Cluster,
    /// This host, and no other mounts the file system.
    LocalFs,
    /// This host, though others share the files.
    PerHost,
    Unknown,
}

/// File systems that one host mounts at a time.
const LOCAL: [&str; 17] = [
    "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "jfs", "ntfs3", "overlay", "ramfs", "reiserfs",
    "tmpfs", "vfat", "xfs", "zfs",
];

impl Mount {
    /// Mount that `path` is on, if it exists and /proc is readable.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let real = fs::canonicalize(path).ok()?;
        // Of several mounts on one point, the last hides the others.
        Self::all().into_iter().filter(|mount| real.starts_with(&mount.point)).max_by_key(|mount| mount.point.as_os_str().len())
    }

    /// Scope of an flock on it, and why, by nfs(5), flock(2), mount.lustre(8) and the documentation of the others.
    pub(crate) fn lock_scope(&self) -> (LockScope, &'static str) {
        let has = |option: &str| self.options.split(',').any(|other| other == option);
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
        let text = fs::read("/proc/self/mounts").unwrap_or_default();
        text.split(|&byte| byte == b'\n').filter_map(Self::parse).collect()
    }

    /// Parses a line of the form `server:/srv /mnt/with\040space nfs4 rw,noatime,vers=4.2 0 0`.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|&byte| byte == b' ').skip(1);
        let point = unescape(words.next()?)?;
        let mut text = || words.next().map(|word| String::from_utf8_lossy(word).into_owned());
        Some(Self { point, kind: text()?, options: text()? })
    }
}

/// Decodes octal escapes: space, tab, newline and backslash are written as `\040` and the like.
fn unescape(word: &[u8]) -> Option<PathBuf> {
    let mut parts = word.split(|&byte| byte == b'\\');
    let mut bytes = parts.next()?.to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(3)?;
        bytes.push(u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok()?);
        bytes.extend(rest);
    }
    Some(OsString::from_vec(bytes).into())
}

/// True if `path` is a mount point.
pub(crate) fn is_mount_point(path: &Path) -> bool {
    Mount::of(path).is_some_and(|mount| fs::canonicalize(path).is_ok_and(|real| mount.point == real))
}

/// True if the kernel's `device` is a file system on which stat(2) gives files other device numbers: each subvolume or layer its own.
pub(crate) fn has_own_device_numbers(device: u64) -> bool {
    let id = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter(|line| line.split(' ').nth(2) == Some(&id)).any(|line| {
        let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next());
        kind.is_some_and(|kind| matches!(kind, "btrfs" | "overlay" | "bcachefs"))
    })
}

/// True if hosts may share what is at `path`, but not locks on it. They may also see each other's writes late.
pub(crate) fn may_lock_per_host(path: &Path) -> bool {
    Mount::of(path).is_some_and(|mount| matches!(mount.lock_scope().0, LockScope::PerHost | LockScope::Unknown))
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
        let line = br"host:/ /mnt/with\040space\134 fuse.sshfs rw,noatime,user_id=0 0 0";
        let expected =
            Mount { point: "/mnt/with space\\".into(), kind: "fuse.sshfs".into(), options: "rw,noatime,user_id=0".into() };
        assert_eq!(Mount::parse(line), Some(expected));
        for cut in 0..41 {
            assert_eq!(Mount::parse(&line[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn path_is_on_the_nearest_mount_above_it() {
        assert_eq!(Mount::of(Path::new("/proc/self/stat")).map(|mount| mount.kind), Some("proc".into()));
        assert!(is_mount_point(Path::new("/proc")) && is_mount_point(Path::new("/")));
        assert!(!is_mount_point(Path::new("/proc/self")) && !is_mount_point(Path::new("/etc")));
    }

    #[test]
    fn kind_and_options_decide_the_scope_of_a_flock() {
        for (line, expected) in [
            ("server:/srv /srv nfs4 rw,vers=4.2,local_lock=none", LockScope::Cluster),
            ("server:/srv /srv nfs rw,vers=3,local_lock=none", LockScope::Cluster),
            ("server:/srv /srv nfs rw,vers=3,nolock,local_lock=all", LockScope::PerHost),
            ("server:/srv /srv nfs4 rw,vers=4.0,local_lock=flock", LockScope::PerHost),
            ("server:/srv /srv nfs4 rw,local_lock=posix", LockScope::Cluster),
            ("10.0.0.1:/ /srv ceph rw,acl", LockScope::Cluster),
            ("mgs:/fs /srv lustre rw,flock,lazystatfs", LockScope::Cluster),
            ("mgs:/fs /srv lustre rw,localflock", LockScope::PerHost),
            ("//server/share /srv cifs rw,nobrl", LockScope::PerHost),
            ("//server/share /srv smb3 rw,vers=3.1.1", LockScope::PerHost),
            ("/dev/vg/lv /srv gfs2 rw", LockScope::Cluster),
            ("/dev/sdb /srv ocfs2 rw,localflocks", LockScope::PerHost),
            ("share /srv virtiofs rw", LockScope::Unknown),
            ("host:/ /srv fuse.sshfs rw", LockScope::Unknown),
            ("host:/ /srv fuse.glusterfs rw", LockScope::Unknown),
            ("/dev/sda1 /srv ext4 rw", LockScope::LocalFs),
            ("x /srv newfs rw", LockScope::Unknown),
        ] {
            let mount = Mount::parse(line.as_bytes()).expect(line);
            assert_eq!(mount.lock_scope().0, expected, "{line}");
        }
    }
}
