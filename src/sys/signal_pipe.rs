//! The self-pipe: signal handlers write one small record for each signal, and the event loop reads them. A pipe keeps the order of
//! arrival, may be written to from a handler, and wakes its reader.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::pipe2;

/// Cause of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignalSource {
    /// The kernel: a key on the terminal, a hang-up, a new window size.
    Kernel,
    /// A process with this pid, by kill(2) or a similar call.
    Process(i32),
}

/// Both ends of the pipe. Neither ever blocks.
#[derive(Debug)]
pub struct SignalPipe {
    pub(crate) reader: File,
    writer: File,
}

/// Records that any pipe takes: one page. A reader that finds as many may have lost some.
pub(crate) const CAPACITY: usize = 4096 / size_of::<[i32; 2]>();

/// In place of a signal, it only wakes the reader.
pub(crate) const WAKE: i32 = 0;

/// In place of the pid of a process.
const KERNEL: i32 = -1;

impl SignalPipe {
    pub(crate) fn open() -> io::Result<Arc<Self>> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Arc::new(Self { reader: reader.into(), writer: writer.into() }))
    }

    /// Writes a record. Async-signal-safe.
    pub(crate) fn write(&self, signal: i32, source: SignalSource) {
        let pid = if let SignalSource::Process(pid) = source { pid } else { KERNEL };
        // A full pipe takes nothing, see CAPACITY, but wakes its reader.
        let _ = (&self.writer).write([signal, pid].map(i32::to_ne_bytes).as_flattened());
    }

    /// Reads all signals in the pipe, the oldest first.
    pub(crate) fn drain(&self) -> Vec<(Signal, SignalSource)> {
        let mut signals = Vec::new();
        let mut buffer = [[0; 4]; 128];
        // Records are written whole, so they are read whole; an error means "empty".
        while let Ok(length) = (&self.reader).read(buffer.as_flattened_mut()) {
            for record in buffer[..length / 4].as_chunks().0 {
                let [signal, pid] = record.map(i32::from_ne_bytes);
                let source = if pid == KERNEL { SignalSource::Kernel } else { SignalSource::Process(pid) };
                signals.extend(Signal::try_from(signal).map(|signal| (signal, source)));
            }
        }
        signals
    }
}

/// Pipe that the handlers write to; null while none are installed.
static PIPE: AtomicPtr<SignalPipe> = AtomicPtr::new(ptr::null_mut());

/// Handlers that run at this moment, in all threads.
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// Handlers that write each signal into a pipe. Dropped, they restore the dispositions from before.
#[derive(Debug)]
pub struct SignalHandlers {
    before: Vec<(Signal, SigAction)>,
    /// Kept for the handlers.
    _pipe: Arc<SignalPipe>,
}

impl SignalHandlers {
    /// Installs handlers for `signals`, unless this process has such handlers already.
    pub fn install(signals: impl IntoIterator<Item = Signal>, pipe: Arc<SignalPipe>) -> io::Result<Self> {
        let shared = Arc::as_ptr(&pipe).cast_mut();
        if PIPE.compare_exchange(ptr::null_mut(), shared, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return Err(io::Error::other("another run in this process handles them"));
        }
        let mut handlers = Self { before: Vec::new(), _pipe: pipe };
        let action = SigAction::new(SigHandler::SigAction(handle), SaFlags::SA_RESTART, SigSet::empty());
        for signal in signals {
            // SAFETY: the handler is async-signal-safe.
            handlers.before.push((signal, unsafe { sigaction(signal, &action) }?));
        }
        Ok(handlers)
    }
}

impl Drop for SignalHandlers {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: this disposition was valid before. The call fails for invalid signals only.
            let _ = unsafe { sigaction(*signal, before) };
        }
        PIPE.store(ptr::null_mut(), Ordering::SeqCst);
        while RUNNING.load(Ordering::SeqCst) > 0 {
            thread::yield_now(); // another thread may have got a signal just before
        }
    }
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let errno = Errno::last_raw();
    RUNNING.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the kernel passes a siginfo_t. Codes up to 0 (SI_USER, SI_QUEUE, SI_TKILL) are those of processes, with a si_pid.
    let source = unsafe { if (*info).si_code > 0 { SignalSource::Kernel } else { SignalSource::Process((*info).si_pid()) } };
    // SAFETY: null, or kept until `RUNNING` is zero.
    if let Some(pipe) = unsafe { PIPE.load(Ordering::SeqCst).as_ref() } {
        pipe.write(signal, source);
    }
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    Errno::set_raw(errno);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_comes_out_as_it_went_in() -> io::Result<()> {
        let pipe = SignalPipe::open()?;
        for signal in Signal::iterator() {
            for source in [SignalSource::Kernel, SignalSource::Process(1), SignalSource::Process(i32::MAX)] {
                pipe.write(WAKE, SignalSource::Kernel);
                pipe.write(signal as i32, source);
                assert_eq!(pipe.drain(), [(signal, source)]);
            }
        }
        Ok(())
    }

    #[test]
    fn dropped_handlers_restore_the_dispositions() -> io::Result<()> {
        let pipe = SignalPipe::open()?;
        let ignored = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: to ignore them runs no code; nobody else uses these signals in this test program.
        unsafe { sigaction(Signal::SIGUSR2, &ignored) }?;
        let handlers = SignalHandlers::install([Signal::SIGUSR2, Signal::SIGPWR], Arc::clone(&pipe))?;
        assert!(SignalHandlers::install([Signal::SIGUSR2], Arc::clone(&pipe)).is_err(), "one at a time");
        nix::sys::signal::raise(Signal::SIGUSR2)?;
        nix::sys::signal::raise(Signal::SIGPWR)?;
        let us = SignalSource::Process(std::process::id() as i32);
        assert_eq!(pipe.drain(), [(Signal::SIGUSR2, us), (Signal::SIGPWR, us)]);
        drop(handlers);
        // SAFETY: as above.
        let handler = |signal| unsafe { sigaction(signal, &ignored) }.map(|before| before.handler());
        assert!(matches!(handler(Signal::SIGUSR2)?, SigHandler::SigIgn));
        assert!(matches!(handler(Signal::SIGPWR)?, SigHandler::SigDfl));
        Ok(())
    }
}
