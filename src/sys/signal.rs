//! Signal dispositions of claude-run and of the child, threads without signals, and job control. The child starts with the
//! dispositions that our caller gave us.

use std::io;
use std::mem;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, raise, sigaction, sigprocmask};
use nix::unistd::{getpgid, getpgrp, getppid, getsid};

use super::signal_pipe::SignalSource;

/// Signals that are forwarded to the child.
pub const FORWARDED: [Signal; 7] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGCONT];

/// Time within which a second termination request is taken for the first: timeout(1) signals its child, and then the child's group.
pub const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);

/// True for the forwarded signals that start the kill grace.
pub fn is_termination_request(signal: Signal) -> bool {
    matches!(signal, Signal::SIGHUP | Signal::SIGQUIT | Signal::SIGTERM)
}

/// Dispositions at our own start, which the child gets.
#[derive(Clone, Debug)]
pub struct InheritedDispositions {
    /// Signals that our caller ignores. The child ignores them as well, and we do not act upon them.
    pub ignored: SigSet,
}

/// Signals whose disposition we change, SIGCHLD apart.
fn changed() -> impl Iterator<Item = Signal> {
    FORWARDED.into_iter().chain([Signal::SIGTSTP, Signal::SIGUSR1, Signal::SIGPIPE])
}

impl InheritedDispositions {
    /// Records the dispositions, then sets SIGCHLD, SIGPIPE and the mask for a supervisor.
    ///
    /// SIGCHLD gets its default, for the child too: if it is ignored, the kernel reaps our children and every wait fails.
    /// SIGPIPE is ignored in this process only: a closed stderr must not end a supervisor.
    pub fn take() -> io::Result<Self> {
        let ignored = changed().filter(|&signal| is_ignored(signal)).collect();
        // A handler of the program that we are a library of stays.
        if is_ignored(Signal::SIGCHLD) {
            set(Signal::SIGCHLD, SigHandler::SigDfl)?;
        }
        set(Signal::SIGPIPE, SigHandler::SigIgn)?;
        // A mask inherited from our caller would block TERM for us and for claude.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        Ok(Self { ignored })
    }

    /// Restores the inherited dispositions, before an exec. Async-signal-safe.
    pub fn restore(&self) -> nix::Result<()> {
        for signal in changed().chain([Signal::SIGCHLD]) {
            set(signal, if self.ignored.contains(signal) { SigHandler::SigIgn } else { SigHandler::SigDfl })?;
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
    }
}

/// Ends this process at a termination signal, as PID 1 too, for which the kernel has no default action.
pub(crate) fn end_as_by_default() -> nix::Result<()> {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: it is async-signal-safe.
        unsafe { libc::_exit(128 + signal) }
    }
    let signals = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
    let is_first = std::process::id() == 1;
    signals.into_iter().filter(|_| is_first).try_for_each(|signal| set(signal, SigHandler::Handler(end)).map(drop))
}

/// Starts a thread with all signals blocked: handlers run in the thread that waits for events.
pub(crate) fn spawn_with_signals_blocked<T: Send + 'static>(
    name: &str,
    stack: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let mut blocked = SigSet::all();
    blocked.remove(INTERRUPT);
    // The thread inherits this mask; setting it in the thread itself would be too late.
    let mask = blocked.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = thread::Builder::new().name(name.into()).stack_size(stack).spawn(work);
    mask.thread_set_mask()?;
    started
}

/// Signal that interrupts a thread; its default is to do nothing.
const INTERRUPT: Signal = Signal::SIGURG;

/// Makes the system call in which a thread of [`spawn_with_signals_blocked`] sleeps fail with EINTR, and waits until the thread has
/// ended. A thread in an uninterruptible sleep, as on a dead NFS server, is left running.
pub(crate) fn interrupt_thread<T>(thread: JoinHandle<T>) {
    extern "C" fn nothing(_: libc::c_int) {}
    let before = set(INTERRUPT, SigHandler::Handler(nothing));
    for _ in 0..500 {
        // A signal that comes before the system call is lost, so it is repeated. An error means that the thread has ended.
        let _ = pthread_kill(thread.as_pthread_t(), INTERRUPT);
        thread::sleep(Duration::from_micros(200));
        if thread.is_finished() {
            break;
        }
    }
    // SAFETY: it restores the handler from before.
    let _ = before.and_then(|before| unsafe { sigaction(INTERRUPT, &before) });
}

/// Stops this process, as the default action of SIGTSTP does. Returns when the process is continued.
pub fn stop_ourselves() {
    let _ = raise(Signal::SIGSTOP); // it fails for invalid signals only
}

/// Stops as a SIGTSTP from `source` would stop a process without a handler: for a key, the kernel does not stop an orphaned
/// process group, which nobody would continue. A process with a handler has to check that itself.
pub fn stop_for_job_control(source: SignalSource) {
    if source != SignalSource::Kernel || has_job_control_shell() {
        stop_ourselves();
    }
}

/// True if our parent is in our session and in another process group, as a shell that can continue us is.
pub fn has_job_control_shell() -> bool {
    let parent = getppid();
    getsid(Some(parent)) == getsid(None) && getpgid(Some(parent)) != Ok(getpgrp())
}

/// Name of a signal, as `SIGTERM`.
pub fn name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.to_string())
}

/// Sets a disposition, without SA_RESTART, and returns the one from before.
fn set(signal: Signal, handler: SigHandler) -> nix::Result<SigAction> {
    // SAFETY: SIG_IGN and SIG_DFL run no code of ours, and the two handlers are async-signal-safe.
    unsafe { sigaction(signal, &SigAction::new(handler, SaFlags::empty(), SigSet::empty())) }
}

fn is_ignored(signal: Signal) -> bool {
    // SAFETY: all-zero is a valid sigaction. A null new action only queries, which cannot fail; the kernel fills in the old one.
    unsafe {
        let mut current: libc::sigaction = mem::zeroed();
        libc::sigaction(signal as i32, ptr::null(), &raw mut current);
        current.sa_sigaction == libc::SIG_IGN
    }
}
