//! Starts the child, or executes it in our place. clone(2) shares our memory until the exec, as in posix_spawn(3), which costs half
//! of a fork(2); posix_spawn itself cannot set the parent-death signal.
//!
//! `tests/it/system_calls.rs` lists all system calls between our own exec and the child's.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid, setpgid, setsid};
use tracing::warn;

use super::policy::Group;
use crate::claude::program::Program;
use crate::claude::version::Version;
use crate::config::settings::Stdin;
use crate::sys::exec::{Exec, SpawnError, dup_onto, spawn};
use crate::sys::signal::InheritedDispositions;

/// A program with its environment.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: Program,
    /// The whole environment.
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) stdin: Stdin,
    pub(crate) role: Role,
}

/// Purpose of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is what the caller wants to run.
    Command,
    /// It refreshes claude's token before that: it reads and prints nothing, and outlives us, since its end in mid-refresh costs the login.
    Refresher,
}

impl Launch {
    /// Sets a variable of its environment, or removes it.
    pub(crate) fn set(&mut self, name: &str, value: Option<OsString>) {
        self.environment.retain(|(key, _)| key != name);
        self.environment.extend(value.map(|value| (name.into(), value)));
    }

    /// Launch of the same claude's command that [refreshes](Program::refresher) its token.
    pub(super) fn refresher(&self, version: Version) -> Option<Self> {
        let program = self.program.refresher(version)?;
        Some(Self { program, environment: self.environment.clone(), stdin: Stdin::Null, role: Role::Refresher })
    }

    /// Starts the child with the dispositions `signals`, the descriptors that hold its slot and its locks, and `outputs` in place of our
    /// stdout and stderr. An error is a `ProgramError` if the program cannot be executed.
    pub(super) fn spawn(
        &self,
        group: Group,
        signals: &InheritedDispositions,
        locks: [Option<BorrowedFd>; 3],
        outputs: [Option<BorrowedFd>; 2],
    ) -> Result<Pid> {
        let exec = self.prepare()?;
        let us = getpid();
        let mut pdeathsig = Ok(());
        let prepare = || {
            match (self.role, group) {
                // In a group of our session, one that is stopped would get HUP from the kernel if we are killed.
                (Role::Refresher, _) => drop(setsid()?),
                (Role::Command, Group::Own) => setpgid(Pid::from_raw(0), Pid::from_raw(0))?,
                (Role::Command, Group::Shared) => {}
            }
            pdeathsig = set_pdeathsig(match self.role {
                Role::Command => Signal::SIGTERM,
                Role::Refresher => Signal::SIGCONT, // one that is stopped would keep the locks
            });
            if getppid() != us {
                return Err(Errno::ECHILD); // we were killed before the prctl
            }
            for lock in locks.into_iter().flatten() {
                fcntl(lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            for (output, number) in outputs.into_iter().zip([libc::STDOUT_FILENO, libc::STDERR_FILENO]) {
                output.map_or(Ok(()), |output| dup_onto(output, number))?;
            }
            Ok(())
        };
        // SAFETY: those are async-signal-safe.
        let pid = unsafe { spawn(&exec, signals, prepare) };
        if let (Role::Command, Err(error)) = (self.role, pdeathsig) {
            // As in some containers.
            warn!(%error, "cannot set the child's parent-death signal: if claude-run is killed, the child runs on");
        }
        pid.or_else(|error| match error {
            SpawnError::NoProcess(errno @ Errno::EAGAIN) => {
                Err(errno).context("cannot start a process; raise the limit of processes (ulimit -u, or that of the container)")
            }
            SpawnError::NoProcess(errno) => Err(errno).context("cannot start a process"),
            SpawnError::Prepare(errno) => {
                Err(errno).context("cannot prepare the child's process: its group, signals or descriptors are refused here")
            }
            SpawnError::Exec(errno) => Err(self.program.unstartable(errno).into()),
        })
    }

    /// Executes the program in our place, with the dispositions `signals`; returns only if that fails.
    pub(crate) fn exec(&self, signals: &InheritedDispositions) -> anyhow::Error {
        let errno = self.prepare().map(|exec| signals.restore().err().unwrap_or_else(|| exec.run()));
        errno.map_or_else(|error| error, |errno| self.program.unstartable(errno).into())
    }

    fn prepare(&self) -> Result<Exec> {
        let nulls: &[_] = match (self.role, self.stdin) {
            (Role::Refresher, _) => &[libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO],
            (Role::Command, Stdin::Null) => &[libc::STDIN_FILENO],
            (Role::Command, Stdin::Inherit) => &[],
        };
        Exec::new(&self.program.path, &self.program.argv, &self.environment, nulls)
    }
}
