//! What signals do to claude-run and what they are to do to the child. Every disposition that we change is remembered as
//! it was, because the child is to start as if its caller had started it.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::{getpgid, getpgrp, getppid, getsid};
use signal_hook::low_level;
use signal_hook_registry::{SigId, register_sigaction, unregister};

use super::signal_pipe::{SignalPipe, SignalSource};

/// The signals that go on to the child.
pub const FORWARDED: [Signal; 7] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGCONT];

/// Two requests to end so close to each other are one: timeout(1) sends one to its child, and one to the group it is in.
pub const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);

/// Those of them that ask for an end.
pub fn is_termination_request(signal: Signal) -> bool {
    matches!(signal, Signal::SIGHUP | Signal::SIGQUIT | Signal::SIGTERM)
}

/// The dispositions that the child is to start with, as our caller left them to us.
#[derive(Clone, Debug)]
pub struct InheritedDispositions {
    /// Signals that were ignored when we started: for the child they still are, and for us they ask for nothing.
    pub ignored: SigSet,
}

impl InheritedDispositions {
    /// Takes stock, and makes SIGCHLD and SIGPIPE and the mask what a supervisor needs.
    ///
    /// SIGCHLD goes to its default for us and the child: ignored, the kernel reaps behind our back and every wait fails.
    /// SIGPIPE is ignored here alone: a closed stderr must not end a supervisor.
    ///
    /// # Errors
    /// The kernel refuses sigaction(2).
    pub fn take() -> io::Result<Self> {
        let mut ignored = SigSet::empty();
        for signal in FORWARDED.into_iter().chain([Signal::SIGTSTP, Signal::SIGUSR1, Signal::SIGPIPE]) {
            if is_ignored(signal)? {
                ignored.add(signal);
            }
        }
        // Only where it is ignored: what else is there is the handler of an earlier run in this process, which counts on it.
        if is_ignored(Signal::SIGCHLD)? {
            set(Signal::SIGCHLD, SigHandler::SigDfl)?;
        }
        set(Signal::SIGPIPE, SigHandler::SigIgn)?;
        // A caller that had them blocked would make us, and then claude, deaf to TERM.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        Ok(Self { ignored })
    }

    /// Puts back, in this process, what the child is to start with. For an exec in our own place, or in the child.
    /// Async-signal-safe.
    ///
    /// # Errors
    /// The kernel refuses sigaction(2).
    pub fn restore(&self) -> nix::Result<()> {
        for signal in FORWARDED.into_iter().chain([Signal::SIGTSTP, Signal::SIGUSR1, Signal::SIGPIPE, Signal::SIGCHLD]) {
            set(signal, if self.ignored.contains(signal) { SigHandler::SigIgn } else { SigHandler::SigDfl })?;
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
    }
}

/// SignalHandlers that put each of `signals` into a channel, in the order of arrival; gone when dropped.
#[derive(Debug)]
pub struct SignalHandlers(Vec<SigId>);

impl SignalHandlers {
    /// Installs them.
    ///
    /// # Errors
    /// The kernel refuses sigaction(2).
    pub fn install(signals: impl IntoIterator<Item = Signal>, pipe: &SignalPipe) -> io::Result<Self> {
        let mut handlers = Self(Vec::new());
        for signal in signals {
            let pipe = pipe.clone();
            let action = move |info: &libc::siginfo_t| pipe.signal(signal, source(info));
            // SAFETY: the action only builds a record on the stack and write(2)s it: async-signal-safe.
            handlers.0.push(unsafe { register_sigaction(signal as i32, action) }?);
        }
        Ok(handlers)
    }
}

impl Drop for SignalHandlers {
    fn drop(&mut self) {
        for id in self.0.drain(..) {
            unregister(id);
        }
    }
}

/// Starts a thread that no signal interrupts: handlers run in the thread that waits for events.
///
/// # Errors
/// The process is out of threads.
pub(crate) fn spawn_with_signals_blocked(
    name: &str,
    stack: usize,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let mut deaf = SigSet::all();
    deaf.remove(CALL_BACK);
    // It inherits this mask: set in the thread itself, it would come too late.
    let mask = deaf.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = thread::Builder::new().name(name.into()).stack_size(stack).spawn(work);
    mask.thread_set_mask()?;
    started
}

/// By default it does nothing, here and in the child.
const CALL_BACK: Signal = Signal::SIGURG;

/// Calls a thread of [`spawn_with_signals_blocked`] back from a system call that it sleeps in, which then fails with EINTR, and waits for its end.
/// One that sleeps too deeply, as over a server that is gone, is left behind.
pub(crate) fn call_back(thread: JoinHandle<()>) {
    extern "C" fn nothing(_: libc::c_int) {}
    // Without SA_RESTART, so that the call does not begin again.
    let interrupting = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    let before = unsafe { sigaction(CALL_BACK, &interrupting) };
    for _ in 0..500 {
        // Before the call has begun, a signal is in vain: then it takes another one. An error is "already gone".
        let _ = pthread_kill(thread.as_pthread_t(), CALL_BACK);
        thread::sleep(Duration::from_micros(200));
        if thread.is_finished() {
            break;
        }
    }
    if let Ok(before) = before {
        // SAFETY: what was there before is there again.
        let _ = unsafe { sigaction(CALL_BACK, &before) };
    }
}

/// Stops this process, as the default action of SIGTSTP would. Returns when it is continued.
pub fn stop_ourselves() {
    // It can fail for signals without a default action alone, and this one has one.
    let _ = low_level::emulate_default_handler(libc::SIGTSTP);
}

/// Does what a SIGTSTP from `sender` asks of a process without a handler. The kernel, at a key, spares orphaned process
/// groups, since nobody would continue them; with a handler we have to look for ourselves.
pub fn stop_if_asked(sender: SignalSource) {
    if sender != SignalSource::Kernel || somebody_can_continue_us() {
        stop_ourselves();
    }
}

/// Whether there is a shell above us that would notice a stop, and could end it.
pub fn somebody_can_continue_us() -> bool {
    let parent = getppid();
    getsid(Some(parent)) == getsid(None) && getpgid(Some(parent)) != Ok(getpgrp())
}

/// A signal's name, SIG and all.
pub fn name(signal: i32) -> String {
    low_level::signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned)
}

fn source(info: &libc::siginfo_t) -> SignalSource {
    // SI_USER, SI_QUEUE and SI_TKILL, what a process can cause, are zero or less; all that the kernel causes is above.
    if info.si_code > 0 {
        return SignalSource::Kernel;
    }
    // SAFETY: with such a code the kernel has filled in si_pid.
    SignalSource::Process(unsafe { info.si_pid() })
}

fn set(signal: Signal, handler: SigHandler) -> nix::Result<()> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: SIG_IGN and SIG_DFL run no code of ours.
    unsafe { sigaction(signal, &action) }.map(|_| ())
}

fn is_ignored(signal: Signal) -> io::Result<bool> {
    let mut current = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; the kernel fills in the old one, and all-zero is a valid one besides.
    let current = unsafe {
        if libc::sigaction(signal as i32, ptr::null(), current.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        current.assume_init()
    };
    Ok(current.sa_sigaction == libc::SIG_IGN)
}
