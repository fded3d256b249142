//! Signal dispositions of claude-run and of the child, threads without signals, and job control. The child starts with the
//! dispositions that our caller gave us.

use std::fs;
use std::io;
use std::mem;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_dumpable;
use nix::sys::pthread::{Pthread, pthread_kill};
use nix::sys::signal::{SigSet as Mask, SigmaskHow, Signal as Named, raise, sigprocmask};
use nix::unistd::{Pid, getpgid, getpgrp, getppid, getsid};

use super::core_dump;
use super::proc::{self, Stat};
pub(crate) use super::signal_table::kill;
use super::signal_table::{FAILED_WRITES, TERMINAL_STOPS};
pub use super::signal_table::{FORWARDED, REQUESTS, SigSet, Signal, SignalSource, is_termination_request, requests_end};

/// Time within which a second TERM is taken for the first: whoever signals a process and then its group means one.
pub const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);

/// Dispositions at our own start, which the child gets, of those signals whose disposition we change.
#[derive(Clone, Copy, Debug, Default)]
pub struct InheritedDispositions {
    /// Signals that our caller ignores. The child ignores them as well, and we do not act upon them.
    pub(crate) ignored: SigSet,
    /// Signals that this process ignores, whatever it has inherited.
    ignored_by_us: SigSet,
}

impl InheritedDispositions {
    /// Sets the dispositions of SIGCHLD, SIGPIPE and SIGXFSZ, and the limit of core files.
    ///
    /// SIGCHLD gets its default, for the child too: if it is ignored, the kernel reaps our children and every wait fails.
    /// The others are ignored in this process only: a closed stderr, or a log at its limit, must not end a supervisor.
    pub fn take() -> io::Result<Self> {
        // A handler of the program that we are a library of stays.
        if exchange(Signal::SIGCHLD, None)?.sa_sigaction == libc::SIG_IGN {
            set(Signal::SIGCHLD, libc::SIG_DFL)?;
        }
        let mut inherited = Self::default();
        inherited.ignore(FAILED_WRITES)?;
        core_dump::forbid();
        Ok(inherited)
    }

    /// Ignores the signals by which a terminal stops a process in the background.
    pub(crate) fn ignore_terminal_stops(&mut self) -> nix::Result<()> {
        self.ignore(TERMINAL_STOPS)
    }

    fn ignore(&mut self, signals: SigSet) -> nix::Result<()> {
        signals.iter().try_for_each(|signal| {
            self.ignored_by_us.add(signal);
            exchange(signal, Some(&disposition(libc::SIG_IGN, 0))).map(|before| self.note(signal, &before))
        })
    }

    /// Notes the disposition of `signal` from `before` a change of ours.
    pub(super) fn note(&mut self, signal: Signal, before: &libc::sigaction) {
        if before.sa_sigaction == libc::SIG_IGN {
            self.ignored.add(signal);
        }
    }

    /// Restores the inherited dispositions and the limit of core files, and empties the mask, before an exec, which gives each signal that
    /// has a handler its default. Async-signal-safe.
    pub fn restore(&self) -> nix::Result<()> {
        for signal in self.ignored.and(self.ignored_by_us).iter() {
            let disposition = if self.ignored.contains(signal) { libc::SIG_IGN } else { libc::SIG_DFL };
            let _ = set(signal, disposition); // musl keeps one more real-time signal for itself
        }
        core_dump::restore()?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&Mask::empty()), None)
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
    signals.into_iter().filter(|_| is_first).try_for_each(|signal| set(signal, end as *const () as libc::sighandler_t))
}

/// Blocks USR1, USR2, PIPE, TTIN and TTOU, which nobody means to end or stop us with, until it is dropped: by then each has what is to
/// become of it. Others are not blocked, whatever our caller has blocked: before there is a child, they may end us.
pub(crate) struct HarmlessBlocked(());

impl HarmlessBlocked {
    pub(crate) fn new() -> io::Result<Self> {
        Self::set_mask()?;
        Ok(Self(()))
    }

    /// Blocks them again, and no others.
    pub(super) fn set_mask() -> nix::Result<()> {
        let blocked = Mask::from_iter([Named::SIGUSR1, Named::SIGUSR2, Named::SIGPIPE, Named::SIGTTIN, Named::SIGTTOU]);
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None)
    }
}

impl Drop for HarmlessBlocked {
    fn drop(&mut self) {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&Mask::empty()), None); // it fails for invalid arguments only
    }
}

/// True if the process `pid` has a handler for `signal`, or ignores it.
pub(crate) fn is_handled(pid: Pid, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let masks = status.lines().filter_map(|line| line.strip_prefix("SigIgn:").or(line.strip_prefix("SigCgt:")));
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask >> (signal.number() - 1) & 1 == 1)
}

/// Ends this process by `signal`, without a core dump. Returns if the kernel does not do so, as for PID 1.
pub(crate) fn end_by(signal: Signal) {
    let _ = set_dumpable(false);
    let _ = set(signal, libc::SIG_DFL);
    let _ = Named::try_from(signal.number()).and_then(|named| sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&named.into()), None));
    // SAFETY: it touches no memory.
    unsafe { libc::raise(signal.number()) };
}

/// Starts a thread with all signals blocked: handlers run in the thread that waits for events.
pub(crate) fn spawn_with_signals_blocked<T: Send + 'static>(
    name: &str,
    stack: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let mut blocked = Mask::all();
    blocked.remove(INTERRUPT);
    // The thread inherits this mask; setting it in the thread itself would be too late.
    let mask = blocked.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = thread::Builder::new().name(name.into()).stack_size(stack).spawn(work);
    mask.thread_set_mask()?;
    started
}

/// Signal that interrupts a thread; its default is to do nothing.
const INTERRUPT: Named = Named::SIGURG;

/// Makes the system call in which threads of [`spawn_with_signals_blocked`] sleep fail with EINTR, and waits until they have ended.
/// A thread in an uninterruptible sleep, as on a dead NFS server, is left running.
pub(crate) fn interrupt_threads<T>(mut threads: Vec<JoinHandle<T>>) {
    extern "C" fn nothing(_: libc::c_int) {}
    if threads.is_empty() {
        return;
    }
    let before = exchange(Signal::SIGURG, Some(&disposition(nothing as *const () as usize, 0)));
    for _ in 0..500 {
        // A signal that comes before the system call is lost, so it is repeated. An error means that the thread has ended.
        for thread in &threads {
            let _ = pthread_kill(thread.as_pthread_t() as Pthread, INTERRUPT); // std and libc differ about it with musl
        }
        thread::sleep(Duration::from_micros(200));
        threads.retain(|thread| !thread.is_finished());
        if threads.is_empty() {
            break;
        }
    }
    let _ = before.and_then(|before| exchange(Signal::SIGURG, Some(&before)));
}

/// Stops this process, as the default action of SIGTSTP does. Returns when the process is continued.
pub fn stop_ourselves() {
    let _ = raise(Named::SIGSTOP); // it fails for invalid signals only
}

/// Stops as a SIGTSTP from `source` would stop a process without a handler: for a key, the kernel does not stop an orphaned
/// process group, which nobody would continue. A process with a handler has to check that itself.
pub fn stop_for_job_control(source: SignalSource) {
    if source != SignalSource::Kernel || has_job_control_shell() {
        stop_ourselves();
    }
}

/// True if our process group is not orphaned: the parent of a process in it is in our session and in another group, as a shell is that
/// can continue us. It need not be our own parent, where a script has started us.
pub fn has_job_control_shell() -> bool {
    let (group, session) = (getpgrp(), getsid(None));
    let is_shell = |parent| getsid(Some(parent)) == session && getpgid(Some(parent)) != Ok(group);
    let is_below_shell = |stat: &Stat| stat.group == group.as_raw() && !stat.is_dead() && is_shell(Pid::from_raw(stat.parent));
    is_shell(getppid()) || (proc::is_of_our_pid_namespace() && Stat::all().iter().any(is_below_shell))
}

/// Name of a signal, as `SIGTERM`.
pub fn name(signal: i32) -> String {
    Signal::from(signal).to_string()
}

fn set(signal: Signal, handler: libc::sighandler_t) -> nix::Result<()> {
    exchange(signal, Some(&disposition(handler, 0))).map(|_| ())
}

/// A disposition: SIG_IGN, SIG_DFL, or a function that is async-signal-safe.
pub(super) fn disposition(handler: libc::sighandler_t, flags: libc::c_int) -> libc::sigaction {
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    (action.sa_sigaction, action.sa_flags) = (handler, flags);
    action
}

/// Sets a disposition, if there is one, and gives the one from before. nix's function does not know real-time signals.
pub(super) fn exchange(signal: Signal, action: Option<&libc::sigaction>) -> nix::Result<libc::sigaction> {
    let mut before = disposition(libc::SIG_DFL, 0);
    let action = action.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: both pointers are valid or null; every handler of ours is async-signal-safe, and others were set before.
    Errno::result(unsafe { libc::sigaction(signal.number(), action, &raw mut before) }).map(|_| before)
}
