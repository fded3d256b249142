//! waitid(2) on children of ours, never asleep. Not nix's, which fails for a child that a real-time signal has ended. Nothing in
//! here allocates. A child that tells of its end by no signal, as a lock's keeper, is nobody here.

use std::mem;

use nix::errno::Errno;
use nix::unistd::Pid;

/// Of whom something is to be heard.
pub(crate) enum Whose {
    Anybody,
    Child(Pid),
}

/// What waitid(2) has to tell of a child: a `CLD_` code with a status or the number of a signal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ChildStatus {
    pub(crate) pid: i32,
    pub(crate) code: i32,
    pub(crate) status: i32,
}

/// What there is to tell, by `flags` of waitid(2). An error is mostly ECHILD: there is no such child.
pub(crate) fn news(whose: Whose, flags: i32) -> nix::Result<Option<ChildStatus>> {
    let (kind, id) = match whose {
        Whose::Anybody => (libc::P_ALL, 0),
        Whose::Child(pid) => (libc::P_PID, pid.as_raw() as libc::id_t),
    };
    // SAFETY: all zero is a valid siginfo_t, and what the kernel leaves as it is when it has nothing to tell.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a siginfo_t of ours.
    Errno::result(unsafe { libc::waitid(kind, id, &raw mut info, flags | libc::WNOHANG) })?;
    // SAFETY: the kernel fills in these fields for a child, or they are zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then_some(ChildStatus { pid, code: info.si_code, status }))
}

/// Whether there is any child, dead or alive; or alive, if `kind` is not WEXITED but WSTOPPED.
pub(crate) fn are_there(kind: i32) -> bool {
    news(Whose::Anybody, kind | libc::WNOWAIT) != Err(Errno::ECHILD)
}

/// Takes away the remains of `pid`, a dead child of ours.
pub(crate) fn reap(pid: Pid) {
    // Nobody else reaps our children, so it is there; an error would mean that it is not, which is what we want.
    let _ = news(Whose::Child(pid), libc::WEXITED);
}

/// Takes away the remains of all children that have died.
pub(crate) fn reap_all() {
    while let Ok(Some(_)) = news(Whose::Anybody, libc::WEXITED) {}
}
