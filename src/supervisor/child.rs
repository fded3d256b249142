//! Changes of the child's state. The child itself stays a zombie until the run is over, so that its pid and its process group's
//! number are not used again.

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::policy::Ending;
use crate::sys::wait::{self, ChildStatus};

/// Change of the child's state, as a SIGCHLD announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing: it is about another process.
    Unchanged,
    Stopped(Signal),
    Continued,
    Ended(Ending),
}

/// Reaps all zombies but `child`, and reads a change of its state.
pub(super) fn next_change(child: Pid) -> Change {
    while let Ok(Some(status)) = wait::next_status(None, libc::WEXITED | libc::WNOWAIT) {
        if status.pid == child.as_raw() {
            return Change::Ended(match status.code {
                libc::CLD_EXITED => Ending::Exited(status.status as u8),
                _ => Ending::Killed(status.status),
            });
        }
        wait::reap(Pid::from_raw(status.pid));
    }
    match wait::next_status(Some(child), libc::WSTOPPED | libc::WCONTINUED) {
        Ok(Some(ChildStatus { code: libc::CLD_STOPPED, status, .. })) => {
            Change::Stopped(Signal::try_from(status).unwrap_or(Signal::SIGSTOP))
        }
        Ok(Some(_)) => Change::Continued,
        _ => Change::Unchanged,
    }
}
