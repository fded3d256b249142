//! Monitor of a lock helper: a process between us and the helper, which ends the helper when we ask for it, or die. A signal at our
//! death, as the child gets it, would reach the helper alone, and not what a helper that is a script has started; EOF on a pipe whose
//! write end only we have reaches the monitor in any case. `monitor_process` is what runs in it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, pipe2};

use super::monitor_process::{self, MonitorSetup};
use crate::sys::exec::{Exec, child_stack, clone};
use crate::sys::proc;
use crate::sys::signal::InheritedDispositions;

/// A monitor at work. If this is dropped, or we die, it ends its helper by KILL.
#[derive(Debug)]
pub(super) struct HelperMonitor {
    pid: Pid,
    control: File,
}

/// Read ends of a monitor's pipes.
#[derive(Debug)]
pub(super) struct MonitorPipes {
    /// [`Report`](super::monitor_process::Report)s. EOF is the monitor's end.
    pub(super) reports: OwnedFd,
    /// The helper's stdout; never blocks.
    pub(super) stdout: OwnedFd,
    /// The helper's stderr; never blocks.
    pub(super) stderr: OwnedFd,
}

/// Control byte. The first requests TERM; the second, or EOF when we die, an immediate KILL.
const STOP_BYTE: u8 = 1;

impl HelperMonitor {
    /// Starts a monitor, which starts `exec` in a process group of its own.
    pub(super) fn start(
        exec: &Exec,
        signals: &InheritedDispositions,
        kill_grace: Option<Duration>,
    ) -> nix::Result<(Self, MonitorPipes)> {
        let (its_control, control) = pipe2(OFlag::O_CLOEXEC)?;
        let (reports, its_reports) = pipe2(OFlag::O_CLOEXEC)?;
        let (stdout, helper_stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, helper_stderr) = pipe2(OFlag::O_CLOEXEC)?;
        for read_end in [&stdout, &stderr] {
            fcntl(read_end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let setup = MonitorSetup {
            exec,
            signals,
            outputs: [helper_stdout.as_fd(), helper_stderr.as_fd()],
            control: its_control.as_fd(),
            reports: its_reports.as_fd(),
            kill_grace,
            sees_children: proc::is_of_our_pid_namespace(),
        };
        let (mut its_stack, mut helper_stack) = (child_stack(), child_stack());
        // It keeps this mask, so that none of our handlers ever runs in it, and no key ends or stops it.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        // SAFETY: it calls nothing but async-signal-safe functions, in memory of its own.
        let pid = unsafe { clone(0, &mut its_stack, || monitor_process::run(&setup, &mut helper_stack)) };
        mask.thread_set_mask()?;
        Ok((Self { pid: pid?, control: control.into() }, MonitorPipes { reports, stdout, stderr }))
    }

    /// Pid, which means no other process until [`reap`](Self::reap).
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Requests the helper's end: TERM, the kill grace, KILL. A second call requests KILL at once.
    pub(super) fn terminate_helper(&self) {
        let _ = (&self.control).write(&[STOP_BYTE]); // without a reader, all is done already
    }

    /// Kills the monitor, and by that its helper.
    pub(super) fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL); // it is not reaped, so it is there
    }

    /// Waits for the monitor's end, and reaps it.
    pub(super) fn reap(&self) {
        let _ = waitpid(self.pid, Some(WaitPidFlag::__WALL)); // nobody else reaps it
    }
}
