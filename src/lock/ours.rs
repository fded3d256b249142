//! The lock is busy, but for us: a live run above us holds it, or a descriptor that our caller left open to us does.
//! Waiting would then be waiting for ourselves.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::session::Identity;
use crate::procfs;
use crate::run_id::RunId;

/// What a run that holds a lock tells all below it, as `CLAUDE_RUN_HELD=<device>:<inode>:<run id>`; a run below it that
/// holds another lock adds its own claim behind a comma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The lock file.
    pub identity: Identity,
    /// The run that holds it.
    pub run: RunId,
}

impl Claim {
    /// The variable that carries claims.
    pub const VARIABLE: &'static str = "CLAUDE_RUN_HELD";

    /// Reads a list of claims; anything else in the variable is no claim.
    pub fn parse_list(value: &OsStr) -> Vec<Self> {
        value.to_str().unwrap_or_default().split(',').filter_map(Self::parse).collect()
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let (device, inode, run) = (parts.next()?, parts.next()?, parts.next()?);
        let identity = Identity { device: device.parse().ok()?, inode: inode.parse().ok()? };
        Some(Self { identity, run: RunId::parse(run)? })
    }

    /// Whether this claim is on the file `identity`, made by a run that lives above us, and still true: the kernel says
    /// that a descriptor of that run holds the lock. Words alone, and a lock that was let go, let nobody through.
    pub fn holds_above_us(&self, identity: Identity) -> bool {
        self.identity == identity
            && procfs::is_of_our_pid_namespace()
            && self.run.is_above_us()
            && is_held_by_a_descriptor_of(&self.run.pid.to_string(), identity)
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity: Identity { device, inode }, run } = self;
        write!(f, "{device}:{inode}:{run}")
    }
}

/// Whether a descriptor of `process` (its name in /proc) holds an exclusive flock on the file `identity`. It only looks:
/// a try on an inherited descriptor with a shared lock could lose that lock.
pub(super) fn is_held_by_a_descriptor_of(process: &str, identity: Identity) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    descriptors.flatten().any(|entry| {
        fs::metadata(entry.path()).is_ok_and(|found| found.dev() == identity.device && found.ino() == identity.inode)
            && fs::read_to_string(format!("/proc/{process}/fdinfo/{}", entry.file_name().display()))
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
    fn claims_read_as_they_were_written_and_nothing_else_is_one() {
        let claims = [FILE, Identity { inode: 78, ..FILE }].map(|identity| Claim { identity, run: RunId::take() });
        let list = claims.map(|claim| claim.to_string()).join(",");
        assert_eq!(Claim::parse_list(OsStr::new(&list)), claims);
        assert_eq!(Claim::parse_list(OsStr::new(&format!("x,{},1:2", claims[0]))), claims[..1]);
        for text in ["", "1", "1:2", "1:2:3", "1:2:3-", "1:2:3-4-5", "a:b:c-d", "1:2:3-4 ", "1:2:3:4-5", ",", "\u{e9}"] {
            assert_eq!(Claim::parse_list(OsStr::new(text)), [], "{text:?}");
        }
    }

    #[test]
    fn a_claim_is_believed_only_on_its_file_and_only_while_the_lock_is_held() -> std::io::Result<()> {
        let file = tempfile::tempfile()?;
        let found = file.metadata()?;
        let identity = Identity { device: found.dev(), inode: found.ino() };
        let claim = Claim { identity, run: RunId::take() };
        assert!(!claim.holds_above_us(identity), "not locked");
        fs4::FileExt::lock(&file)?;
        assert!(claim.holds_above_us(identity));
        assert!(!claim.holds_above_us(Identity { inode: found.ino() + 1, ..identity }));
        fs4::FileExt::unlock(&file)?;
        assert!(!claim.holds_above_us(identity), "let go");
        Ok(())
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
