//! Starting the child, or becoming it. A clone(2) that shares our memory until the exec, as posix_spawn(3) does it, since
//! that costs half of a fork(2); posix_spawn itself cannot set the signal that the child gets at our death.
//!
//! What `claude-run PROGRAM` asks of the kernel between its own exec and that of PROGRAM, and why (`tests/it/system_calls.rs`
//! holds us to it; the words of the second column are at most so many calls):
//!
//! ```text
//! we     1 execve           by our caller
//! we     6 brk              the C library's start, from here
//! we     1 arch_prctl
//! we     1 set_tid_address
//! we     1 set_robust_list
//! we     1 rseq
//! we     1 prlimit64
//! we     1 readlink
//! we     1 mprotect         … to here
//! we     2 getrandom        the seeds of its allocator and of our hash tables
//! we     3 fcntl            are descriptors 0 to 2 open?
//! we    33 rt_sigaction     what our caller ignores, then our handlers, which the registry looks up first
//! we     1 rt_sigprocmask   our caller's mask does not count for us
//! we     2 getpid           the run's id; whose child it is that looks whether we live
//! we     1 openat           the settings file
//! we     4 statx            the program, twice the config dir, and once whether the kernel knows the call at all
//! we     2 access           may it be run? may the config dir be written?
//! we     2 ioctl            is stdin our terminal? is stdout one?
//! we     1 pipe2            the bell that signals ring
//! we     1 openat           the lock file
//! we     2 statx            which file that is, and whether the path still names it once it is locked
//! we     1 flock
//! we     1 openat           claude's refresh locks: whose
//! we     2 statx            … and whether there are any
//! we     8 readlink         … one of them beside the real path of the config dir, a call for each part of that
//! we     1 prctl            subreaper
//! we     1 waitid           whoever is our child already is none of ours
//! we     2 fcntl            a pipe as stdout is enlarged
//! we     3 mmap             the child's first stack
//! we     1 rt_sigprocmask   nothing may be handled in the child while it shares our memory
//! we     1 clone
//! child  1 setpgid          a group of its own
//! child  1 prctl            it hears of our death …
//! child  1 getppid          … unless we were dead before
//! child  1 fcntl            the lock's descriptor stays open
//! child 11 rt_sigaction     as our caller had them
//! child  1 rt_sigprocmask
//! child  1 execve
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, IntoRawFd, RawFd};

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
use crate::sys::exec::{Exec, Stdin, clone, put, stack};
use crate::sys::signal::InheritedDispositions;

/// A program with all that it starts with.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What to run.
    pub program: &'a Program,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// What it reads from.
    pub stdin: Stdin,
    /// The dispositions it starts with.
    pub signals: &'a InheritedDispositions,
}

/// What the child tells us, up to its exec, in the memory that it shares with us.
#[derive(Default)]
struct Told {
    /// All is done but the exec.
    is_prepared: bool,
    failure: Option<Errno>,
    /// It will not hear of our death. What runs in a container that refuses that is better off with a child than without.
    unheard: Option<Errno>,
}

impl Launch<'_> {
    /// Sets a variable of its environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.environment.push((name.into(), value.into()));
    }

    /// Takes a variable from the child's environment.
    pub fn unset(&mut self, name: &str) {
        self.environment.retain(|(key, _)| key != name);
    }

    /// Starts the child. It is a session-mate in `group`, gets TERM when we die, keeps `lock` open,
    /// and writes to `stdout` and `stderr`, or where we do.
    ///
    /// # Errors
    /// `ProgramError` when the program cannot be executed; anything else is our own failure.
    pub fn spawn(
        &self,
        group: Group,
        lock: Option<BorrowedFd>,
        stdout: Option<BorrowedFd>,
        stderr: Option<BorrowedFd>,
    ) -> Result<Pid> {
        let exec = self.prepare()?;
        let us = getpid();
        let mut told = Told::default();
        let mut stack = stack();
        let child = || {
            let outputs = [(stdout, libc::STDOUT_FILENO), (stderr, libc::STDERR_FILENO)];
            told.failure = in_child(&exec, self.signals, group, lock, outputs, us, &mut told).err();
        };
        // No signal may be handled in the child while it shares our memory: it would be taken for ours.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).context("cannot set the signal mask")?;
        // SAFETY: with CLONE_VFORK we sleep until the child has executed or exited, so the stack, `exec` and `told`
        // outlive its use of them and nobody else touches them; the child calls nothing but async-signal-safe functions.
        let pid = unsafe { clone(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, &mut stack, child) };
        mask.thread_set_mask().context("cannot set the signal mask")?;
        let pid = pid.context("cannot start a process")?;
        if let Some(error) = told.unheard {
            warn!(%error, "cannot have the child told if claude-run is killed: it would run on");
        }
        let Some(failure) = told.failure else { return Ok(pid) };
        // It has exited already: this only takes its remains away, and cannot fail while it is our child.
        let _ = waitpid(pid, None);
        if told.is_prepared {
            return Err(self.program.unstartable(failure).into());
        }
        Err(failure).context("cannot prepare the child's process: its group, signals or descriptors are refused here")
    }

    /// Becomes the program. Returns only if that fails.
    pub fn exec(&self) -> anyhow::Error {
        let failure = self.prepare().map(|exec| self.signals.restore().err().unwrap_or_else(|| exec.run()));
        match failure {
            Ok(errno) => self.program.unstartable(errno).into(),
            Err(error) => error,
        }
    }

    fn prepare(&self) -> Result<Exec> {
        Exec::new(&self.program.path, &self.program.argv, &self.environment, self.stdin)
    }
}

/// The child's side of the clone, up to the exec. Only async-signal-safe calls; every way out of here is an error.
fn in_child(
    exec: &Exec,
    signals: &InheritedDispositions,
    group: Group,
    lock: Option<BorrowedFd>,
    outputs: [(Option<BorrowedFd>, RawFd); 2],
    parent: Pid,
    told: &mut Told,
) -> nix::Result<()> {
    if group == Group::Own {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    }
    told.unheard = set_pdeathsig(Signal::SIGTERM).err();
    if getppid() != parent {
        // We were killed before the kernel knew that it should tell: there is nobody left to run for.
        return Err(Errno::ECHILD);
    }
    if let Some(lock) = lock {
        fcntl(lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    for (output, number) in outputs {
        if let Some(output) = output {
            put(output, number)?;
        }
    }
    signals.restore()?;
    told.is_prepared = true;
    Err(exec.run())
}

/// Puts /dev/null where our caller has closed stdin, stdout or stderr, so that no file of ours gets such a number and
/// passes for one of them. It closes at the exec: the child finds them as our caller left them.
///
/// # Errors
/// One is closed, and /dev/null cannot be opened.
pub fn fill_standard_descriptors() -> io::Result<()> {
    for number in 0..=2 {
        // SAFETY: it only asks for flags, of a number that need not be open.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            // The lowest free number is this one; it stays for the life of the process.
            let _ = File::options().read(true).write(true).open("/dev/null")?.into_raw_fd();
        }
    }
    Ok(())
}
