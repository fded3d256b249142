//! Signals to one certain process: a pid may be used again for another.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::proc::Stat;

/// Signals the process that `process` was read from. A directory in /proc stays bound to its process, and serves as a pidfd. A
/// stopped process gets CONT with its TERM. The error is ESRCH if the process has ended, EPERM if we may not signal it.
pub(crate) fn pidfd_signal(process: &Stat, signal: Signal) -> nix::Result<()> {
    let dir = File::open(format!("/proc/{}", process.pid)).map_err(|_| Errno::ESRCH)?;
    // If the pid is that process' now, it was when the directory was opened.
    let now = Stat::read(process.pid).filter(|now| now.start == process.start).ok_or(Errno::ESRCH)?;
    send(&dir, now.pid, signal)?;
    if signal == Signal::SIGTERM && now.state == b'T' {
        send(&dir, now.pid, Signal::SIGCONT)?;
    }
    Ok(())
}

fn send(dir: &File, pid: i32, signal: Signal) -> nix::Result<()> {
    // SAFETY: a descriptor, a number, no siginfo and no flags: no memory is touched.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, dir.as_raw_fd(), signal as i32, 0, 0) };
    match Errno::result(sent) {
        Ok(_) => Ok(()),
        // Before Linux 5.1, or behind a seccomp filter that does not know the call: the pid was right a moment ago.
        Err(Errno::ENOSYS | Errno::EPERM) => kill(Pid::from_raw(pid), signal),
        Err(error) => Err(error),
    }
}
