//! The self-pipe: signal handlers write one small record for each signal, and the event loop reads them. A pipe keeps the order of
//! arrival, may be written to from a handler, and wakes its reader.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::pthread::pthread_self;
use nix::sys::signal::SigSet as Mask;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{getpid, getsid, pipe2};

use super::exec;
use super::signal::{HarmlessBlocked, InheritedDispositions, disposition, exchange};
use super::signal_table::{OF_HANG_UP, OF_TERMINAL, SigSet, Signal, SignalSource, kill};

/// Both ends of the pipe. Neither ever blocks.
#[derive(Debug)]
pub struct SignalPipe {
    pub(crate) reader: File,
    writer: File,
    /// The thread that reads it.
    thread: usize,
    /// Signals that have come to that thread since it has read the last ones.
    unread: AtomicU32,
}

/// Records that any pipe takes: one page. A reader that finds as many may have lost some.
pub(crate) const CAPACITY: usize = 4096 / size_of::<[i64; 2]>();

/// Signals that may come before they are read, or a few more. Behind the last, all others wait: whoever sends them without end does not keep us from our
/// work.
const MOST_UNREAD: u32 = 64;

/// A mask, as the kernel has it, of all signals but two of the C library's own.
const ALL: u64 = !(3 << 31);

/// In place of a signal, it only wakes the reader.
pub(crate) const WAKE: i32 = 0;

/// A signal that has come, from where, and when, since the boot.
pub(crate) type Arrival = (Signal, SignalSource, Duration);

/// In place of the pid of a process.
const KERNEL: i32 = -1;

impl SignalPipe {
    pub(crate) fn open() -> io::Result<Arc<Self>> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Arc::new(Self { reader: reader.into(), writer: writer.into(), thread: this_thread(), unread: AtomicU32::new(0) }))
    }

    /// Writes a record. Async-signal-safe.
    pub(crate) fn write(&self, signal: i32, source: SignalSource) {
        let pid = if let SignalSource::Process(pid) = source { pid } else { KERNEL };
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        // A full pipe takes nothing, see CAPACITY, but wakes its reader.
        let _ = (&self.writer)
            .write([i64::from(pid) << 32 | i64::from(signal), now.as_nanos() as i64].map(i64::to_ne_bytes).as_flattened());
    }

    /// Reads all signals in the pipe, the oldest first.
    pub(crate) fn drain(&self) -> Vec<Arrival> {
        let mut signals = Vec::new();
        let mut buffer = [[0; 8]; 128];
        // Records are written whole, so they are read whole; an error means "empty".
        while let Ok(length) = (&self.reader).read(buffer.as_flattened_mut()) {
            for record in buffer[..length / 8].as_chunks().0 {
                let [signal, at] = record.map(i64::from_ne_bytes);
                let (signal, pid) = (signal as i32, (signal >> 32) as i32);
                let source = if pid == KERNEL { SignalSource::Kernel } else { SignalSource::Process(pid) };
                if signal != WAKE {
                    signals.push((signal.into(), source, Duration::from_nanos(at.unsigned_abs())));
                }
            }
        }
        if self.unread.swap(0, Ordering::SeqCst) >= MOST_UNREAD {
            let _ = Mask::empty().thread_set_mask(); // it fails for invalid arguments only
        }
        signals
    }
}

/// Pipe that the handlers write to; null while none are installed.
static PIPE: AtomicPtr<SignalPipe> = AtomicPtr::new(ptr::null_mut());

/// In a process that was forked off, has its handlers do what the kernel does by default. Async-signal-safe.
pub(crate) fn forget() {
    PIPE.store(ptr::null_mut(), Ordering::SeqCst);
}

/// Handlers that run at this moment, in all threads.
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// Handlers that write each signal into a pipe. Dropped, they act as the dispositions from before: a handler without a pipe does what
/// the kernel does by default, in a child that has not executed its program yet as well.
pub struct SignalHandlers {
    /// Dispositions from before, but for defaults.
    before: Vec<(Signal, libc::sigaction)>,
    /// Kept for the handlers.
    pipe: Arc<SignalPipe>,
}

impl SignalHandlers {
    /// Installs handlers for `signals`, unless this process has such handlers already, and notes what was `inherited`.
    pub fn install(signals: SigSet, pipe: Arc<SignalPipe>, inherited: &mut InheritedDispositions) -> io::Result<Self> {
        let shared = Arc::as_ptr(&pipe).cast_mut();
        if PIPE.compare_exchange(ptr::null_mut(), shared, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return Err(io::Error::other("another run in this process handles them"));
        }
        let mut handlers = Self { before: Vec::new(), pipe };
        let ours = handle as *const () as usize;
        let action = disposition(ours, libc::SA_RESTART | libc::SA_SIGINFO);
        // It fails for a signal that the C library keeps for itself.
        let before = signals.iter().filter_map(|signal| Some((signal, exchange(signal, Some(&action)).ok()?)));
        handlers.before.extend(before.filter(|(_, before)| ![libc::SIG_DFL, ours].contains(&before.sa_sigaction)));
        handlers.before.iter().for_each(|(signal, before)| inherited.note(*signal, before));
        Ok(handlers)
    }
}

impl Drop for SignalHandlers {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            let _ = exchange(*signal, Some(before)); // it was valid before
        }
        PIPE.store(ptr::null_mut(), Ordering::SeqCst);
        // Nobody reads any more, so that all might wait for ever.
        if self.pipe.unread.load(Ordering::SeqCst) >= MOST_UNREAD {
            let _ = HarmlessBlocked::set_mask(); // it fails for invalid arguments only
        }
        while RUNNING.load(Ordering::SeqCst) > 0 {
            thread::yield_now(); // another thread may have got a signal just before
        }
    }
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if exec::is_child_of_ours() {
        return act_by_default(signal.into());
    }
    let errno = Errno::last_raw();
    RUNNING.fetch_add(1, Ordering::SeqCst);
    // SAFETY: null, or kept until `RUNNING` is zero.
    match unsafe { PIPE.load(Ordering::SeqCst).as_ref() } {
        Some(pipe) => {
            pipe.write(signal, source_of(signal, info));
            if this_thread() == pipe.thread && pipe.unread.fetch_add(1, Ordering::SeqCst) + 1 == MOST_UNREAD {
                // SAFETY: the kernel passes a ucontext_t, whose mask it sets when we return; it has one bit for each signal there.
                unsafe { (&raw mut (*context.cast::<libc::ucontext_t>()).uc_sigmask).cast::<u64>().write(ALL) };
            }
        }
        None => act_by_default(signal.into()),
    }
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    Errno::set_raw(errno);
}

/// A number for this thread: C libraries differ about its type. Async-signal-safe.
fn this_thread() -> usize {
    pthread_self() as usize
}

/// What the kernel does with a signal that has no handler, as soon as that of this one has returned. Async-signal-safe.
fn act_by_default(signal: Signal) {
    let _ = exchange(signal, Some(&disposition(libc::SIG_DFL, 0))); // it was valid before
    let _ = kill(getpid(), signal); // it is a signal, and to ourselves
}

fn source_of(signal: libc::c_int, info: *mut libc::siginfo_t) -> SignalSource {
    let is_ours_alone = || OF_HANG_UP.contains(signal.into()) && getsid(None) == Ok(getpid());
    // SAFETY: the kernel passes a siginfo_t. Codes up to 0 (SI_USER, SI_QUEUE, SI_TKILL) are those of processes, with a si_pid.
    match unsafe { ((*info).si_code, (*info).si_pid()) } {
        (..=0, pid) => SignalSource::Process(pid),
        _ if OF_TERMINAL.contains(signal.into()) && !is_ours_alone() => SignalSource::Kernel,
        _ => SignalSource::Process(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(pipe: &SignalPipe) -> Vec<(Signal, SignalSource)> {
        pipe.drain().into_iter().map(|(signal, source, _)| (signal, source)).collect()
    }

    #[test]
    fn every_signal_comes_out_as_it_went_in() -> io::Result<()> {
        let pipe = SignalPipe::open()?;
        for signal in Signal::iterator() {
            for source in [SignalSource::Kernel, SignalSource::Process(0), SignalSource::Process(i32::MAX)] {
                pipe.write(WAKE, SignalSource::Kernel);
                pipe.write(signal.number(), source);
                assert_eq!(drained(&pipe), [(signal, source)]);
            }
        }
        Ok(())
    }

    #[test]
    fn dropped_handlers_restore_the_dispositions() -> io::Result<()> {
        let pipe = SignalPipe::open()?;
        let real_time = Signal::from(60);
        let ignored = disposition(libc::SIG_IGN, 0);
        exchange(Signal::SIGUSR2, Some(&ignored))?; // nobody else uses these signals in this test program
        let signals = [Signal::SIGUSR2, Signal::SIGWINCH, real_time];
        let mut all = SigSet::empty();
        signals.into_iter().for_each(|signal| all.add(signal));
        let mut inherited = InheritedDispositions::default();
        let handlers = SignalHandlers::install(all, Arc::clone(&pipe), &mut inherited)?;
        assert_eq!(inherited.ignored.iter().collect::<Vec<_>>(), [Signal::SIGUSR2]);
        assert!(SignalHandlers::install(all, Arc::clone(&pipe), &mut inherited).is_err(), "one at a time");
        let us = SignalSource::Process(std::process::id() as i32);
        let raise = |signal: Signal| {
            // SAFETY: it touches no memory.
            unsafe { libc::raise(signal.number()) };
        };
        for signal in signals {
            raise(signal);
            assert_eq!(drained(&pipe), [(signal, us)]);
        }
        for round in 0..2 {
            (0..2 * MOST_UNREAD).for_each(|_| raise(Signal::SIGWINCH));
            assert_eq!(drained(&pipe).len(), MOST_UNREAD as usize, "{round}: the rest is one signal that waits, and comes now");
            assert_eq!(drained(&pipe).len(), 1);
        }
        drop(handlers);
        raise(Signal::SIGWINCH); // ignored by default
        assert_eq!(exchange(Signal::SIGUSR2, None)?.sa_sigaction, libc::SIG_IGN);
        assert_eq!(exchange(Signal::SIGWINCH, None)?.sa_sigaction, libc::SIG_DFL);
        Ok(())
    }
}
