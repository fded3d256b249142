//! The monitor's process. It sleeps until the helper ends, or we ask it to end the helper, or we are dead, killed perhaps; and it ends
//! only after the helper and all that the helper has started. Nobody else reaps the helper, so its pid never means another process.
//!
//! A copy of claude-run without an exec: it has none of our descriptors, blocks all signals, and allocates nothing. Its end raises no
//! SIGCHLD, so that it is none of the children that a run waits for; and it is a subreaper, so that no process that the helper has
//! left becomes a child of ours, where it would pass for one of the run's.

use std::io::Read;
use std::mem;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::{set_child_subreaper, set_name, set_pdeathsig};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, killpg, sigaction};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use nix::unistd::{Pid, getpid, getppid, read, setpgid};

use crate::config::duration::after;
use crate::sys::exec::{Exec, clone, dup_onto};
use crate::sys::signal::InheritedDispositions;
use crate::sys::wait::{self, ChildStatus, Target};

/// All that the process needs, made before it begins.
pub(super) struct MonitorSetup<'a> {
    /// The helper.
    pub(super) exec: &'a Exec,
    /// Signal dispositions of the helper.
    pub(super) signals: &'a InheritedDispositions,
    /// Stdout and stderr of the helper.
    pub(super) outputs: [BorrowedFd<'a>; 2],
    /// Read end of control bytes. Its EOF is our death.
    pub(super) control: BorrowedFd<'a>,
    /// Write end of [`Report`]s.
    pub(super) reports: BorrowedFd<'a>,
    /// Time from TERM to KILL.
    pub(super) kill_grace: Option<Duration>,
    /// True if /proc lists the children of this process by the pids that kill(2) takes.
    pub(super) sees_children: bool,
}

/// Message of the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// The helper cannot be executed. Its end follows.
    ProgramError(Errno),
    /// fork failed for it. The monitor's end follows.
    NoProcess(Errno),
    /// The helper cannot be signalled.
    OutOfReach(Errno),
    /// The kill grace has expired: KILL is sent.
    Killing,
    /// The helper has exited with this status.
    Exited(i32),
    /// The helper was ended by this signal.
    Killed(i32),
}

impl Report {
    const LENGTH: usize = 8;

    fn encode(self) -> [u8; Self::LENGTH] {
        let (kind, number) = match self {
            Self::ProgramError(errno) => (0, errno as i32),
            Self::Killing => (1, 0),
            Self::Exited(status) => (2, status),
            Self::Killed(signal) => (3, signal),
            Self::NoProcess(errno) => (4, errno as i32),
            Self::OutOfReach(errno) => (5, errno as i32),
        };
        let mut record = [kind; Self::LENGTH];
        record[4..].copy_from_slice(&number.to_ne_bytes());
        record
    }

    /// Reads the next one; none if the monitor is gone.
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
            4 => Self::NoProcess(Errno::from_raw(number)),
            5 => Self::OutOfReach(Errno::from_raw(number)),
            _ => return None,
        })
    }

    /// Writes it at once and whole. An error means that nobody reads.
    fn write(self, to: BorrowedFd) {
        let _ = nix::unistd::write(to, &self.encode());
    }
}

/// Runs the monitor until the helper and all that it has started have ended. `stack` is for the helper until its exec.
///
/// Async-signal-safe.
pub(super) fn run(setup: &MonitorSetup, stack: &mut [u8]) {
    let helper = start_helper(setup, stack);
    // Of all our descriptors, the two that it needs; above all, the lock's must not stay open here.
    let moved = dup_onto(setup.control, 0).and_then(|()| dup_onto(setup.reports, 1));
    if moved.is_ok() {
        close_from(2);
    }
    if let (Ok(helper), Ok(())) = (helper, moved) {
        supervise(helper, setup.kill_grace, setup.sees_children);
    }
}

fn start_helper(setup: &MonitorSetup, stack: &mut [u8]) -> nix::Result<Pid> {
    let monitor = getpid();
    // In groups of their own: a terminal's keys are for neither, and the helper can be ended with all that it has started.
    let _ = setpgid(monitor, monitor);
    let _ = set_name(c"lock-monitor");
    let _ = set_child_subreaper(true); // where that is refused, none of the helper's processes becomes a child of ours either
    let mut failure = None;
    // SAFETY: it calls nothing but async-signal-safe functions, and we sleep until it has executed or ended.
    let helper = unsafe {
        clone(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, stack, || {
            failure = Some(exec_helper(setup, monitor));
        })
    };
    if let Some(errno) = failure {
        Report::ProgramError(errno).write(setup.reports);
    }
    helper.inspect_err(|errno| Report::NoProcess(*errno).write(setup.reports))
}

/// Becomes the helper. Returns only if that fails.
fn exec_helper(setup: &MonitorSetup, monitor: Pid) -> Errno {
    let us = getpid();
    let _ = setpgid(us, us);
    // Where that is refused, only a KILL of the monitor itself can leave the helper behind.
    let _ = set_pdeathsig(Signal::SIGKILL);
    if getppid() != monitor {
        return Errno::ECHILD;
    }
    let [stdout, stderr] = setup.outputs;
    let prepared = dup_onto(stdout, libc::STDOUT_FILENO).and_then(|()| dup_onto(stderr, libc::STDERR_FILENO));
    prepared.and_then(|()| setup.signals.restore()).err().unwrap_or_else(|| setup.exec.run())
}

fn supervise(helper: Pid, kill_grace: Option<Duration>, sees_children: bool) {
    extern "C" fn nothing(_: libc::c_int) {}
    // SIGCHLD needs a handler to interrupt a sleep, and is unblocked only while we sleep.
    // SAFETY: the handler does nothing.
    let _ =
        unsafe { sigaction(Signal::SIGCHLD, &SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty())) };
    let mut asleep = SigSet::all();
    asleep.remove(Signal::SIGCHLD);
    // SAFETY: they are open until the end of the process.
    let (control, reports) = unsafe { (BorrowedFd::borrow_raw(0), BorrowedFd::borrow_raw(1)) };
    let mut stage = Stage::Running;
    let ending = loop {
        if let Some(ending) = ending_of(helper) {
            break ending;
        }
        if matches!(stage, Stage::Terminating(Some(at)) if Instant::now() >= at) {
            Report::Killing.write(reports);
            stage = Stage::kill(helper);
        }
        let timeout = match stage {
            Stage::Terminating(Some(at)) => Some(TimeSpec::from_duration(at.saturating_duration_since(Instant::now()))),
            _ => None,
        };
        let mut ready = [PollFd::new(control, PollFlags::POLLIN)];
        let listened = if matches!(stage, Stage::Killed) { &mut [] } else { ready.as_mut_slice() };
        if ppoll(listened, timeout, Some(asleep)).is_ok_and(|ready| ready > 0) {
            let is_requested = read(control, &mut [0]) == Ok(1);
            stage = match stage {
                Stage::Running if is_requested => {
                    if let Err(errno) = killpg(helper, Signal::SIGTERM) {
                        Report::OutOfReach(errno).write(reports);
                    }
                    let _ = killpg(helper, Signal::SIGCONT); // a stopped process does not handle TERM
                    Stage::Terminating(after(Instant::now(), kill_grace))
                }
                // Asked again; or claude-run is dead, and the kernel sends claude a TERM at this moment. A helper that KILL ends cannot
                // release its lock, which so, where the engine has leases, lasts for the time that claude needs to end.
                _ => Stage::kill(helper),
            };
        }
    };
    let _ = killpg(helper, Signal::SIGKILL); // the rest of its group
    wait::reap(helper);
    // What has left its group or its session is an orphan, and so a child of ours.
    wait::reap_all();
    while sees_children && wait::has_children(libc::WSTOPPED) && kill_children() {
        let _ = ppoll(&mut [], None, Some(asleep));
        wait::reap_all();
    }
    ending.write(reports);
}

/// State of the helper.
enum Stage {
    Running,
    /// TERM was sent; KILL follows at this time.
    Terminating(Option<Instant>),
    Killed,
}

impl Stage {
    fn kill(helper: Pid) -> Self {
        let _ = killpg(helper, Signal::SIGKILL);
        Self::Killed
    }
}

/// Report of `helper`'s end, if it has ended. It stays a zombie, so that its process group means no other. Others are reaped.
fn ending_of(helper: Pid) -> Option<Report> {
    while let Ok(Some(ChildStatus { pid, code, status })) = wait::next_status(Target::AnyChild, libc::WEXITED | libc::WNOWAIT) {
        if pid == helper.as_raw() {
            return Some(if code == libc::CLD_EXITED { Report::Exited(status) } else { Report::Killed(status) });
        }
        wait::reap(Pid::from_raw(pid));
    }
    None
}

/// Sends KILL to each of our children, as the kernel lists them. True if there was one that could be signalled.
fn kill_children() -> bool {
    // Some at a time: when they have ended, the next are read.
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
    // SAFETY: none of the owners of these descriptors runs in this process any more.
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
