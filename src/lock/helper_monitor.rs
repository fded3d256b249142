//! The keeper: a process between us and a lock helper. It sleeps until the helper ends, or we ask it to let go, or we are dead,
//! killed perhaps; and it ends only after the helper and all that the helper has started. A signal at our death, as the child gets it,
//! would reach the helper alone, and not what a helper that is a script has started. A pipe whose other end only we have reaches
//! the keeper in any case; and nobody but the keeper takes the helper's remains away, so that its pid never means another.
//!
//! It is a copy of ours without an exec: it has none of our descriptors, hears no signal, and allocates nothing. Its end raises no
//! SIGCHLD, so that it is none of the children that a run waits for; and it is a subreaper, so that no process that the helper has left
//! comes to us, where it would pass for one of the run's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::{set_child_subreaper, set_name, set_pdeathsig};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, killpg, sigaction};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid, getppid, pipe2, read, setpgid};

use crate::config::settings::after;
use crate::sys::exec::{Exec, child_stack, clone, dup_onto};
use crate::sys::proc;
use crate::sys::signal::InheritedDispositions;
use crate::sys::wait::{self, ChildStatus, Target};

/// A keeper at work. If this is dropped, or we die, it ends its helper by KILL.
#[derive(Debug)]
pub(super) struct HelperMonitor {
    pid: Pid,
    control: File,
}

/// What is to be heard of a keeper and its helper.
#[derive(Debug)]
pub(super) struct MonitorPipes {
    /// [`Report`]s. Its end is the keeper's.
    pub reports: OwnedFd,
    /// The helper's stdout, never waited for.
    pub stdout: OwnedFd,
    /// The helper's stderr, never waited for.
    pub stderr: OwnedFd,
}

/// What a keeper has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// The helper cannot be executed. An end follows.
    ProgramError(Errno),
    /// There is no process to be had for it. The keeper's end follows.
    NoProcess(Errno),
    /// The helper may not be signalled.
    OutOfReach(Errno),
    /// The kill grace has run out.
    Killing,
    /// The helper has ended by itself.
    Exited(i32),
    /// The helper was ended by this signal.
    Killed(i32),
    /// The keeper itself is gone, without a word.
    Lost,
}

/// What we say to a keeper. The first word asks it to let go, a second one not to wait any longer; and so does our death.
const WORD: u8 = 1;

impl HelperMonitor {
    /// Makes a keeper, which starts `exec` in a process group of its own.
    pub(super) fn start(
        exec: &Exec,
        signals: &InheritedDispositions,
        kill_grace: Option<Duration>,
    ) -> nix::Result<(Self, MonitorPipes)> {
        let (orders, control) = pipe2(OFlag::O_CLOEXEC)?;
        let (reports, reporter) = pipe2(OFlag::O_CLOEXEC)?;
        let (stdout, helper_stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, helper_stderr) = pipe2(OFlag::O_CLOEXEC)?;
        for read in [&stdout, &stderr] {
            nix::fcntl::fcntl(read, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let can_see = proc::is_of_our_pid_namespace();
        let (mut its_stack, mut stack_of_helper) = (child_stack(), child_stack());
        let keeper = || {
            let outputs = [helper_stdout.as_fd(), helper_stderr.as_fd()];
            let helper = start_helper(exec, signals, outputs, reporter.as_fd(), &mut stack_of_helper);
            // Of all our descriptors, the two that it needs; the lock's above all must not live on here.
            let moved = dup_onto(orders.as_fd(), 0).and_then(|()| dup_onto(reporter.as_fd(), 1));
            if moved.is_ok() {
                close_from(2);
            }
            if let (Ok(helper), Ok(())) = (helper, moved) {
                keep(helper, kill_grace, can_see);
            }
        };
        // The keeper keeps this mask, so that none of our handlers ever runs in it, and no key ends or stops it.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        // SAFETY: it calls nothing but async-signal-safe functions, in memory of its own.
        let pid = unsafe { clone(0, &mut its_stack, keeper) };
        mask.thread_set_mask()?;
        Ok((Self { pid: pid?, control: control.into() }, MonitorPipes { reports, stdout, stderr }))
    }

    /// Its pid, which means nobody else until it is reaped.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Asks it to end the helper: TERM, the kill grace, KILL; asked again, KILL at once.
    pub(super) fn release(&self) {
        let _ = (&self.control).write(&[WORD]); // without a reader, all is done already
    }

    /// Ends it, and by that its helper, if nothing else does.
    pub(super) fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL); // it is not reaped, so it is there
    }

    /// Takes its remains away, once its end was heard of.
    pub(super) fn reap(&self) {
        let _ = waitpid(self.pid, Some(WaitPidFlag::__WALL)); // only we do so
    }

    /// Ends it and its helper, which nobody has heard of yet.
    pub(super) fn give_up(self) {
        let Self { pid, control } = self;
        drop(control); // it takes us for dead
        let _ = waitpid(pid, Some(WaitPidFlag::__WALL));
    }
}

impl Report {
    const LENGTH: usize = 8;

    fn encode(self) -> [u8; Self::LENGTH] {
        let (kind, number) = match self {
            Self::ProgramError(errno) => (0, errno as i32),
            Self::Killing => (1, 0),
            Self::Exited(status) => (2, status),
            Self::Killed(signal) => (3, signal),
            Self::Lost => (4, 0),
            Self::NoProcess(errno) => (5, errno as i32),
            Self::OutOfReach(errno) => (6, errno as i32),
        };
        let mut record = [kind; Self::LENGTH];
        record[4..].copy_from_slice(&number.to_ne_bytes());
        record
    }

    /// The next one; none, if the keeper is gone.
    pub(super) fn read(mut from: impl Read) -> Option<Self> {
        let mut record = [0; Self::LENGTH];
        from.read_exact(&mut record).ok()?;
        let [kind, _, _, _, number @ ..] = record;
        let number = i32::from_ne_bytes(number);
        Some(match kind {
            0 => Self::ProgramError(Errno::from_raw(number)),
            1 => Self::Killing,
            2 => Self::Exited(number),
            3 => Self::Killed(number),
            5 => Self::NoProcess(Errno::from_raw(number)),
            6 => Self::OutOfReach(Errno::from_raw(number)),
            _ => Self::Lost,
        })
    }

    /// A record is written whole. If nobody reads, nobody wants to know.
    fn write(self, to: BorrowedFd) {
        let _ = nix::unistd::write(to, &self.encode());
    }
}

/// The keeper's first act.
fn start_helper(
    exec: &Exec,
    signals: &InheritedDispositions,
    outputs: [BorrowedFd; 2],
    reporter: BorrowedFd,
    stack: &mut [u8],
) -> nix::Result<Pid> {
    let keeper = getpid();
    // In groups of their own: a terminal's keys are for neither, and the helper can be ended with all that it has started.
    let _ = setpgid(keeper, keeper);
    let _ = set_name(c"lock-keeper");
    let _ = set_child_subreaper(true); // where that is refused, there are none for us either
    let mut failure = None;
    // SAFETY: it calls nothing but async-signal-safe functions, and we sleep until it has executed or ended.
    let helper = unsafe {
        clone(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, stack, || {
            failure = Some(in_helper(exec, signals, keeper, outputs));
        })
    };
    if let Some(errno) = failure {
        Report::ProgramError(errno).write(reporter);
    }
    helper.inspect_err(|errno| Report::NoProcess(*errno).write(reporter))
}

/// Up to the exec, if that succeeds.
fn in_helper(exec: &Exec, signals: &InheritedDispositions, keeper: Pid, outputs: [BorrowedFd; 2]) -> Errno {
    let us = getpid();
    let _ = setpgid(us, us);
    // Where that is refused, only a KILL of the keeper itself can leave the helper behind.
    let _ = set_pdeathsig(Signal::SIGKILL);
    if getppid() != keeper {
        return Errno::ECHILD;
    }
    let [stdout, stderr] = outputs;
    let prepared = dup_onto(stdout, libc::STDOUT_FILENO).and_then(|()| dup_onto(stderr, libc::STDERR_FILENO));
    prepared.and_then(|()| signals.restore()).err().unwrap_or_else(|| exec.run())
}

/// Stays until `helper` and all that it has started have ended.
fn keep(helper: Pid, kill_grace: Option<Duration>, can_see: bool) {
    extern "C" fn nothing(_: libc::c_int) {}
    // SIGCHLD needs a handler to interrupt a sleep, and is let in while we sleep alone.
    // SAFETY: the handler does nothing.
    let _ =
        unsafe { sigaction(Signal::SIGCHLD, &SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty())) };
    let mut asleep = SigSet::all();
    asleep.remove(Signal::SIGCHLD);
    // SAFETY: they are open until the end of the process.
    let (orders, reporter) = unsafe { (BorrowedFd::borrow_raw(0), BorrowedFd::borrow_raw(1)) };
    let mut stage = Stage::LockGuard;
    let ending = loop {
        if let Some(ending) = ending_of(helper) {
            break ending;
        }
        if matches!(stage, Stage::LettingGo(Some(at)) if Instant::now() >= at) {
            Report::Killing.write(reporter);
            stage = Stage::end(helper);
        }
        let timeout = match stage {
            Stage::LettingGo(Some(at)) => Some(TimeSpec::from_duration(at.saturating_duration_since(Instant::now()))),
            _ => None,
        };
        let mut ready = [PollFd::new(orders, PollFlags::POLLIN)];
        let listened = if matches!(stage, Stage::Ending) { &mut [] } else { ready.as_mut_slice() };
        if ppoll(listened, timeout, Some(asleep)).is_ok_and(|ready| ready > 0) {
            let is_asked = read(orders, &mut [0]) == Ok(1);
            stage = match stage {
                Stage::LockGuard if is_asked => {
                    if let Err(errno) = killpg(helper, Signal::SIGTERM) {
                        Report::OutOfReach(errno).write(reporter);
                    }
                    let _ = killpg(helper, Signal::SIGCONT); // who is stopped cannot end
                    Stage::LettingGo(after(Instant::now(), kill_grace))
                }
                // Asked again; or claude-run is dead, and claude is told so at this moment. What KILL ends cannot let go of its lock
                // in good order, and so leaves it, where the engine has leases, for the time that claude needs to end.
                _ => Stage::end(helper),
            };
        }
    };
    let _ = killpg(helper, Signal::SIGKILL); // whom it has left
    wait::reap(helper);
    // What has left its group or its session is an orphan, and so a child of ours.
    wait::reap_all();
    while can_see && wait::has_children(libc::WSTOPPED) && kill_children() {
        let _ = ppoll(&mut [], None, Some(asleep));
        wait::reap_all();
    }
    ending.write(reporter);
}

/// What a helper is at.
enum Stage {
    LockGuard,
    /// It has its TERM, and gets KILL then.
    LettingGo(Option<Instant>),
    /// It has its KILL.
    Ending,
}

impl Stage {
    fn end(helper: Pid) -> Self {
        let _ = killpg(helper, Signal::SIGKILL);
        Self::Ending
    }
}

/// How `helper` has ended, if it has. It is not reaped: while its remains are there, its process group means nobody else. Those
/// of others are taken away.
fn ending_of(helper: Pid) -> Option<Report> {
    while let Ok(Some(ChildStatus { pid, code, status })) = wait::next_status(Target::AnyChild, libc::WEXITED | libc::WNOWAIT) {
        if pid == helper.as_raw() {
            return Some(if code == libc::CLD_EXITED { Report::Exited(status) } else { Report::Killed(status) });
        }
        wait::reap(Pid::from_raw(pid));
    }
    None
}

/// KILL to each of our children, as the kernel lists them. Whether there was any that it reached.
fn kill_children() -> bool {
    // A few at a time will do: when they have ended, the next are read.
    let mut list = [0; 4096];
    let Ok(file) = open(c"/proc/thread-self/children", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) else { return false };
    let length = read(&file, &mut list).unwrap_or(0);
    // The last number may have been cut.
    let whole = list[..length].iter().rposition(|byte| *byte == b' ').unwrap_or(0);
    let pids = list[..whole].split(|byte| *byte == b' ');
    let pids = pids.filter_map(|pid| str::from_utf8(pid).ok()?.parse().ok());
    pids.filter(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok()).count() > 0
}

/// Closes all descriptors from `first` on.
fn close_from(first: libc::c_uint) {
    // SAFETY: numbers alone; of the owners of these descriptors none runs in this process any more.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) == 0 {
            return;
        }
        let mut limit: libc::rlimit = mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            for descriptor in first..libc::c_uint::try_from(limit.rlim_cur).unwrap_or(65536) {
                libc::close(descriptor.cast_signed());
            }
        }
    }
}

/// What is there to be read now, put behind `buffer`; of one that never stops, as much as a pipe takes. Whether more may come.
pub(super) fn read_what_is_there(from: &OwnedFd, buffer: &mut Vec<u8>) -> bool {
    const PIPE: usize = 64 * 1024;
    let mut piece = [0; 4096];
    let already = buffer.len();
    loop {
        if buffer.len() - already >= PIPE {
            return true;
        }
        match nix::unistd::read(from, &mut piece) {
            Ok(0) => return false,
            Ok(length) => buffer.extend_from_slice(&piece[..length]),
            Err(Errno::EINTR) => {}
            Err(error) => return io::Error::from(error).kind() == io::ErrorKind::WouldBlock,
        }
    }
}
