//! The lock is busy, but for us: a live run above us holds it, or a descriptor that our caller left open to us does.
//! Waiting would then be waiting for ourselves.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::session::Identity;
use crate::procfs;
use crate::run_id::RunId;

/// What a run that holds the lock tells all below it, as `CLAUDE_RUN_HELD=<device>:<inode>:<run id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The lock file.
    pub identity: Identity,
    /// The run that holds it.
    pub run: RunId,
}

impl Claim {
    /// The variable that carries it.
    pub const VARIABLE: &'static str = "CLAUDE_RUN_HELD";

    /// Reads a claim; anything else in the variable is no claim.
    pub fn parse(value: &OsStr) -> Option<Self> {
        let mut parts = value.to_str()?.splitn(3, ':');
        let (device, inode, run) = (parts.next()?, parts.next()?, parts.next()?);
        let identity = Identity { device: device.parse().ok()?, inode: inode.parse().ok()? };
        Some(Self { identity, run: RunId::parse(run)? })
    }

    /// Whether this claim is on the file `identity`, and made by a run that lives above us. A claim of a dead run, on
    /// another file, or from elsewhere in the process tree lets nobody through.
    pub fn is_alive_above_us(&self, identity: Identity) -> bool {
        self.identity == identity && procfs::is_of_our_pid_namespace() && self.run.is_above_us()
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity: Identity { device, inode }, run } = self;
        write!(f, "{device}:{inode}:{run}")
    }
}

/// Whether one of our own descriptors, inherited from the caller, holds an exclusive flock on the file `identity`.
/// It only looks: a try on a descriptor with a shared lock could lose that lock.
pub(super) fn is_held_by_inherited_descriptor(identity: Identity) -> bool {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return false };
    descriptors.flatten().any(|entry| {
        fs::metadata(entry.path()).is_ok_and(|found| found.dev() == identity.device && found.ino() == identity.inode)
            && fs::read_to_string(format!("/proc/self/fdinfo/{}", entry.file_name().display()))
                .is_ok_and(|info| holds_flock(&info))
    })
}

/// A line as `lock: 1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF` stands in the fdinfo of the descriptor that holds it.
fn holds_flock(fdinfo: &str) -> bool {
    fdinfo.lines().filter_map(|line| line.strip_prefix("lock:")).any(|lock| {
        let words: Vec<_> = lock.split_whitespace().collect();
        matches!(words[..], [_, "FLOCK", _, "WRITE", ..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Identity = Identity { device: 2049, inode: 77 };

    #[test]
    fn a_claim_reads_as_it_was_written() {
        let claim = Claim { identity: FILE, run: RunId::take() };
        assert_eq!(Claim::parse(OsStr::new(&claim.to_string())), Some(claim));
        for text in ["", "1", "1:2", "1:2:3", "1:2:3-", "1:2:3-4-5", "a:b:c-d", "1:2:3-4 ", "1:2:3:4-5"] {
            assert_eq!(Claim::parse(OsStr::new(text)), None, "{text:?}");
        }
    }

    #[test]
    fn a_claim_on_another_file_is_not_believed() {
        let claim = Claim { identity: FILE, run: RunId::take() };
        assert!(claim.is_alive_above_us(FILE));
        assert!(!claim.is_alive_above_us(Identity { inode: 78, ..FILE }));
    }

    #[test]
    fn an_exclusive_flock_is_told_from_other_locks() {
        assert!(holds_flock("pos:\t0\nflags:\t02100002\nlock:\t1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF\n"));
        for other in [
            "",
            "pos:\t0\n",
            "lock:\t1: FLOCK  ADVISORY  READ 4711 08:01:1234 0 EOF",
            "lock:\t1: POSIX  ADVISORY  WRITE 4711 08:01:1234 0 EOF",
        ] {
            assert!(!holds_flock(other), "{other:?}");
        }
    }
}
