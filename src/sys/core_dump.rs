//! No core dump of this process: it reads tokens, and its environment has secrets. Not by PR_SET_DUMPABLE, which would give our entries
//! in /proc to root, so that no other process of our user could tell who holds the lock.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// Limit below any core file. Of 0 the kernel takes no notice where a program collects the dumps; at 1 it starts none.
const NONE: rlim_t = 1;

/// The limits that our caller gave us, soft and hard.
static INHERITED: OnceLock<(rlim_t, rlim_t)> = OnceLock::new();

/// Forbids core dumps of this process.
pub(super) fn forbid() {
    if let Ok(limits) = getrlimit(Resource::RLIMIT_CORE) {
        let &(_, hard) = INHERITED.get_or_init(|| limits);
        let _ = setrlimit(Resource::RLIMIT_CORE, NONE.min(hard), hard); // to lower a limit is always allowed
    }
}

/// Gives a child the limits of our caller, before an exec. Async-signal-safe.
pub(super) fn restore() -> nix::Result<()> {
    INHERITED.get().map_or(Ok(()), |&(soft, hard)| setrlimit(Resource::RLIMIT_CORE, soft, hard))
}
