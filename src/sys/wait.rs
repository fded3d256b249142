//! waitid(2) on our children, without blocking. Unlike nix's, it works for a child that a real-time signal has ended.

use std::mem;

use nix::errno::Errno;
use nix::unistd::Pid;

/// Result of waitid(2): a `CLD_` code, and an exit status or the number of a signal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ChildStatus {
    pub(crate) pid: i32,
    pub(crate) code: i32,
    pub(crate) status: i32,
}

/// Next change of state of `child`, or of any, by `flags` of waitid(2). The error is ECHILD if there is no such child.
pub(crate) fn next_status(child: Option<Pid>, flags: i32) -> nix::Result<Option<ChildStatus>> {
    let (kind, id) = child.map_or((libc::P_ALL, 0), |pid| (libc::P_PID, pid.as_raw() as libc::id_t));
    // SAFETY: all zero is a valid siginfo_t, and what the kernel leaves in place when nothing has changed.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a siginfo_t of ours.
    Errno::result(unsafe { libc::waitid(kind, id, &raw mut info, flags | libc::WNOHANG) })?;
    // SAFETY: the kernel fills in these fields for a child, or they are zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then_some(ChildStatus { pid, code: info.si_code, status }))
}

/// True if any child exists: dead or alive for WEXITED, alive for WSTOPPED.
pub(crate) fn has_children(flag: i32) -> bool {
    next_status(None, flag | libc::WNOWAIT) != Err(Errno::ECHILD)
}

/// Reaps `pid`, if it is a child of ours and a zombie. True if it was.
pub(crate) fn reap(pid: Pid) -> bool {
    // An error means that it is reaped already.
    matches!(next_status(Some(pid), libc::WEXITED), Ok(Some(_)))
}

/// Reaps all zombies.
pub(crate) fn reap_all() {
    while let Ok(Some(_)) = next_status(None, libc::WEXITED) {}
}
