//! Starts the child, or executes it in our place. clone(2) shares our memory until the exec, as in posix_spawn(3), which costs half
//! of a fork(2); posix_spawn itself cannot set the parent-death signal.
//!
//! `tests/it/system_calls.rs` lists all system calls between our own exec and the child's.

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, RawFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, getppid, setpgid};
use tracing::warn;

use super::policy::Group;
use crate::claude::program::Program;
use crate::config::settings::Stdin;
use crate::sys::exec::{Exec, NULL, child_stack, clone, dup_onto};
use crate::sys::signal::InheritedDispositions;

/// A program with its environment.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Program and arguments.
    pub program: &'a Program,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Source of its stdin.
    pub stdin: Stdin,
    /// Signal dispositions of the program.
    pub signals: &'a InheritedDispositions,
}

/// Process group and descriptors of the child.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChildSetup<'a> {
    pub(super) group: Group,
    /// Descriptor of the session lock, which the child inherits.
    pub(super) lock: Option<BorrowedFd<'a>>,
    /// Ours, if `None`.
    pub(super) stdout: Option<BorrowedFd<'a>>,
    /// Ours, if `None`.
    pub(super) stderr: Option<BorrowedFd<'a>>,
}

/// Written by the child into the memory that it shares with us until its exec.
#[derive(Default)]
struct ChildReport {
    /// Only the exec is left.
    is_prepared: bool,
    error: Option<Errno>,
    /// The kernel has refused the parent-death signal, as in some containers. The child runs without it.
    pdeathsig_error: Option<Errno>,
}

impl Launch<'_> {
    /// Sets a variable of its environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.environment.push((name.into(), value.into()));
    }

    /// Removes a variable from its environment.
    pub fn unset(&mut self, name: &str) {
        self.environment.retain(|(key, _)| key != name);
    }

    /// Starts the child.
    ///
    /// # Errors
    /// `ProgramError` if the program cannot be executed; anything else is our own failure.
    pub(super) fn spawn(&self, setup: ChildSetup) -> Result<Pid> {
        let exec = self.prepare()?;
        let us = getpid();
        let mut report = ChildReport::default();
        let mut stack = child_stack();
        let child = || report.error = self.in_child(&exec, setup, us, &mut report).err();
        // A handler that runs in the child would write into our pipe.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).context("cannot set the signal mask")?;
        // SAFETY: with CLONE_VFORK we sleep until the child has executed or exited, so the stack, `exec` and `report` outlive its use
        // of them, and nobody else touches them; the child calls only async-signal-safe functions.
        let pid = unsafe { clone(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, &mut stack, child) };
        mask.thread_set_mask().context("cannot set the signal mask")?;
        let pid = pid.context("cannot start a process")?;
        if let Some(error) = report.pdeathsig_error {
            warn!(%error, "cannot set the child's parent-death signal: if claude-run is killed, the child runs on");
        }
        let Some(error) = report.error else { return Ok(pid) };
        // It has exited; to reap our own child cannot fail.
        let _ = waitpid(pid, None);
        if report.is_prepared {
            return Err(self.program.unstartable(error).into());
        }
        Err(error).context("cannot prepare the child's process: its group, signals or descriptors are refused here")
    }

    /// Executes the program in our place; returns only if that fails.
    pub fn exec(&self) -> anyhow::Error {
        let errno = self.prepare().map(|exec| self.signals.restore().err().unwrap_or_else(|| exec.run()));
        errno.map_or_else(|error| error, |errno| self.program.unstartable(errno).into())
    }

    fn prepare(&self) -> Result<Exec> {
        let stdin = (self.stdin == Stdin::Null).then_some(NULL);
        Exec::new(&self.program.path, &self.program.argv, &self.environment, stdin)
    }

    /// Runs in the child, up to the exec: only async-signal-safe calls. Returns only errors.
    fn in_child(&self, exec: &Exec, setup: ChildSetup, parent: Pid, report: &mut ChildReport) -> nix::Result<()> {
        if setup.group == Group::Own {
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        }
        report.pdeathsig_error = set_pdeathsig(Signal::SIGTERM).err();
        if getppid() != parent {
            return Err(Errno::ECHILD); // we were killed before the prctl
        }
        if let Some(lock) = setup.lock {
            fcntl(lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        let outputs: [(_, RawFd); 2] = [(setup.stdout, libc::STDOUT_FILENO), (setup.stderr, libc::STDERR_FILENO)];
        for (output, number) in outputs {
            if let Some(output) = output {
                dup_onto(output, number)?;
            }
        }
        self.signals.restore()?;
        report.is_prepared = true;
        Err(exec.run())
    }
}
