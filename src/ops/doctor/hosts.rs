//! Check 11: whether the session lock holds between hosts: by the file system that the lock file is on, or by a lock helper.

use std::fs;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::claude::program::Program;
use crate::mounts::Mount;
use crate::ops::{Context, Place};

const CHECK: &str = "several hosts";

/// How far a flock(2) on a file system reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// To every host that mounts it.
    Hosts,
    /// Others do not even have this file system.
    OwnFiles,
    /// Others have its files, but their locks are their own.
    OwnLocks,
    Unknown,
}

/// Those that no two hosts have mounted at once.
const LOCAL: [&str; 17] = [
    "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "jfs", "ntfs3", "overlay", "ramfs", "reiserfs",
    "tmpfs", "vfat", "xfs", "zfs",
];

/// By what nfs(5), flock(2), mount.lustre(8) and the documentation of the others tell.
fn reach(mount: &Mount) -> (Reach, &'static str) {
    let has = |option: &str| mount.options.iter().any(|other| other == option);
    match mount.kind.as_str() {
        kind if LOCAL.contains(&kind) => (Reach::OwnFiles, "a file system of this host"),
        "nfs" | "nfs4" if has("local_lock=all") || has("local_lock=flock") || has("nolock") => {
            (Reach::OwnLocks, "mounted so that each host locks by itself (nolock or local_lock)")
        }
        "nfs" | "nfs4" => (Reach::Hosts, "the server holds the lock, by NFSv4 or lockd"),
        "ceph" => (Reach::Hosts, "the metadata server holds the lock"),
        "gfs2" | "ocfs2" if has("localflocks") || has("lockproto=lock_nolock") => {
            (Reach::OwnLocks, "mounted so that each host locks by itself")
        }
        "gfs2" | "ocfs2" => (Reach::Hosts, "the cluster's lock manager holds the lock"),
        "lustre" if has("flock") => (Reach::Hosts, "the server holds the lock"),
        "lustre" => (Reach::OwnLocks, "mounted without `flock`"),
        "cifs" | "smb3" if has("nobrl") => (Reach::OwnLocks, "mounted with `nobrl`"),
        "cifs" | "smb3" => (
            Reach::OwnLocks,
            "up to Linux 5.4 each host locks by itself; since then a run record that is locked cannot be read",
        ),
        "9p" | "virtiofs" => (Reach::Unknown, "between guests a flock holds only if the server has it switched on"),
        kind if kind.starts_with("fuse") => (Reach::Unknown, "it keeps a flock to this host, or passes it on"),
        _ => (Reach::Unknown, "nothing is known of its flock"),
    }
}

pub(super) fn check(context: &Context) -> Vec<Finding> {
    let Ok(place) = Place::of(context) else { return Vec::new() }; // the settings' own check tells
    let words = place.settings.lock_helper.unwrap_or_default();
    let found = |name: &String| match Program::find(&[name.into()], None) {
        Ok(program) => {
            let what = format!("the lock helper {} holds a lock between hosts", program.path.display());
            Finding::pass(CHECK, what)
        }
        Err(error) => {
            let todo = "install it for every agent, or correct lock-helper";
            Finding::failure(CHECK, format!("lock helper: {error}"), "a run that needs the session lock does not start", todo)
        }
    };
    let helper = words.first().map(found);
    let has_helper = helper.is_some();
    helper.into_iter().chain([of_file_system(&place.lock_file, has_helper)]).collect()
}

/// What the file system of the lock file does by itself.
fn of_file_system(lock_file: &Path, has_helper: bool) -> Finding {
    let dir = lock_file.parent().map(Path::to_owned).unwrap_or_default();
    let real = fs::canonicalize(lock_file).or_else(|_| fs::canonicalize(dir)).unwrap_or_else(|_| PathBuf::from("/"));
    let Some(mount) = Mount::of(&real) else {
        return Finding::pass(CHECK, "/proc does not tell which file system the lock file is on");
    };
    let (reach, why) = reach(&mount);
    let on = format!("{} is on {}", lock_file.display(), mount.kind);
    let means = "if agents of other hosts have the same login, two can refresh its token at once: the login is lost";
    match reach {
        Reach::Hosts => Finding::pass(CHECK, format!("{on}: its flock reaches all hosts that mount it ({why})")),
        Reach::OwnFiles => {
            Finding::pass(CHECK, format!("{on}, {why}: its flock keeps apart what runs here, and nothing elsewhere"))
        }
        Reach::OwnLocks | Reach::Unknown if has_helper => {
            Finding::pass(CHECK, format!("{on}: its flock may not reach other hosts ({why}), and need not"))
        }
        Reach::OwnLocks => {
            let todo = "mount it with locks, use NFSv4 or CephFS, or set lock-helper (README, \"Several hosts\")";
            Finding::warning(CHECK, format!("{on}: its flock does not reach other hosts: {why}"), means, todo)
        }
        Reach::Unknown => {
            let todo = "try it: `flock FILE sleep 60` there on one host, `flock -n FILE true` on another; or set lock-helper";
            Finding::warning(CHECK, format!("{on}: whether its flock reaches other hosts is not known: {why}"), means, todo)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_flock_reaches_is_told_by_kind_and_options() {
        for (line, expected) in [
            ("/srv rw - nfs4 server:/srv rw,vers=4.2,local_lock=none", Reach::Hosts),
            ("/srv rw - nfs server:/srv rw,vers=3,local_lock=none", Reach::Hosts),
            ("/srv rw - nfs server:/srv rw,vers=3,nolock,local_lock=all", Reach::OwnLocks),
            ("/srv rw - nfs4 server:/srv rw,vers=4.0,local_lock=flock", Reach::OwnLocks),
            ("/srv rw - nfs4 server:/srv rw,local_lock=posix", Reach::Hosts),
            ("/srv rw - ceph 10.0.0.1:/ rw,acl", Reach::Hosts),
            ("/srv rw - lustre mgs:/fs rw,flock,lazystatfs", Reach::Hosts),
            ("/srv rw - lustre mgs:/fs rw,localflock", Reach::OwnLocks),
            ("/srv rw - cifs //server/share rw,nobrl", Reach::OwnLocks),
            ("/srv rw - smb3 //server/share rw,vers=3.1.1", Reach::OwnLocks),
            ("/srv rw - gfs2 /dev/vg/lv rw", Reach::Hosts),
            ("/srv rw,relatime - ocfs2 /dev/sdb rw,localflocks", Reach::OwnLocks),
            ("/srv rw - virtiofs share rw", Reach::Unknown),
            ("/srv rw - fuse.sshfs host:/ rw", Reach::Unknown),
            ("/srv rw - fuse.glusterfs host:/ rw", Reach::Unknown),
            ("/srv rw - ext4 /dev/sda1 rw", Reach::OwnFiles),
            ("/srv rw - newfs x rw", Reach::Unknown),
        ] {
            let mount = Mount::parse(format!("36 35 98:0 / {line}").as_bytes()).expect(line);
            assert_eq!(reach(&mount).0, expected, "{line}");
        }
    }

    #[test]
    fn what_it_tells_follows_from_that_and_from_the_helper() {
        for has_helper in [false, true] {
            let finding = of_file_system(Path::new("/proc/session.lock"), has_helper);
            let (verdict, part) = if has_helper { ("pass", "need not") } else { ("warning", "not known") };
            assert!(finding.verdict.name() == verdict && finding.what.contains(part), "{finding:?}");
        }
    }
}
