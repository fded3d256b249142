//! The self-pipe: signal handlers write one small record for each signal, and the event loop reads them. A pipe keeps the order of
//! arrival, may be written to from a handler, and wakes its reader.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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

/// Write end; clones write into the same pipe.
#[derive(Clone, Debug)]
pub struct SignalPipe(Arc<File>);

/// Read end.
#[derive(Debug)]
pub(crate) struct SignalReader(File);

/// The signal's number, the kind of its source, two unused bytes, the source's pid.
type Record = [u8; 8];

/// Records that any pipe takes: one page. A reader that finds as many may have lost some.
pub(crate) const CAPACITY: usize = 4096 / size_of::<Record>();

/// Record without a signal, which wakes the reader.
const WAKE: Record = [0; 8];
const FROM_KERNEL: u8 = 0;
const FROM_PROCESS: u8 = 1;

/// Makes a pipe. Neither end ever blocks.
pub(crate) fn signal_pipe() -> io::Result<(SignalReader, SignalPipe)> {
    let (reader, writer): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    Ok((SignalReader(reader.into()), SignalPipe(Arc::new(writer.into()))))
}

impl SignalPipe {
    pub(crate) fn wake(&self) {
        write(&self.0, &WAKE);
    }

    #[cfg(test)]
    pub(crate) fn signal(&self, signal: Signal, source: SignalSource) {
        write(&self.0, &encode(signal as i32, source));
    }
}

/// Async-signal-safe.
fn write(mut pipe: &File, record: &Record) {
    // A full pipe takes nothing, see CAPACITY, but wakes its reader.
    let _ = pipe.write(record);
}

impl SignalReader {
    /// Reads all signals in the pipe, the oldest first.
    pub(crate) fn drain(&mut self) -> Vec<(Signal, SignalSource)> {
        let mut signals = Vec::new();
        let mut buffer = [0; 64 * size_of::<Record>()];
        // Records are written whole, so they are read whole; an error means "empty".
        while let Ok(length) = self.0.read(&mut buffer) {
            let (records, _) = buffer[..length].as_chunks();
            signals.extend(records.iter().filter_map(decode));
            if length < buffer.len() {
                break;
            }
        }
        signals
    }
}

impl AsFd for SignalReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn encode(signal: i32, source: SignalSource) -> Record {
    let mut record = WAKE;
    record[0] = signal as u8;
    if let SignalSource::Process(pid) = source {
        record[1] = FROM_PROCESS;
        record[4..].copy_from_slice(&pid.to_ne_bytes());
    }
    record
}

fn decode(record: &Record) -> Option<(Signal, SignalSource)> {
    let [signal, from, _, _, pid @ ..] = *record;
    let source = if from == FROM_KERNEL { SignalSource::Kernel } else { SignalSource::Process(i32::from_ne_bytes(pid)) };
    Signal::try_from(i32::from(signal)).ok().map(|signal| (signal, source))
}

/// Pipe that the handlers write to; null while none are installed.
static PIPE: AtomicPtr<File> = AtomicPtr::new(ptr::null_mut());

/// Handlers that run at this moment, in all threads.
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// Handlers that write each signal into a pipe. Dropped, they restore the dispositions from before.
#[derive(Debug)]
pub struct SignalHandlers(Vec<(Signal, SigAction)>);

impl SignalHandlers {
    /// Installs handlers for `signals`.
    ///
    /// # Errors
    /// The process has such handlers already, or the kernel refuses sigaction(2).
    pub fn install(signals: impl IntoIterator<Item = Signal>, pipe: &SignalPipe) -> io::Result<Self> {
        let file = Arc::into_raw(Arc::clone(&pipe.0)).cast_mut();
        if PIPE.compare_exchange(ptr::null_mut(), file, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            // SAFETY: from `into_raw`, and nobody else got it.
            drop(unsafe { Arc::from_raw(file) });
            return Err(io::Error::other("another run in this process handles them"));
        }
        let mut handlers = Self(Vec::new());
        let action = SigAction::new(SigHandler::SigAction(handle), SaFlags::SA_RESTART, SigSet::empty());
        for signal in signals {
            // SAFETY: the handler is async-signal-safe.
            handlers.0.push((signal, unsafe { sigaction(signal, &action) }?));
        }
        Ok(handlers)
    }
}

impl Drop for SignalHandlers {
    fn drop(&mut self) {
        for (signal, before) in &self.0 {
            // SAFETY: this disposition was valid before. The call fails for invalid signals only.
            let _ = unsafe { sigaction(*signal, before) };
        }
        let file = PIPE.swap(ptr::null_mut(), Ordering::SeqCst);
        while RUNNING.load(Ordering::SeqCst) > 0 {
            thread::yield_now(); // another thread may have got a signal just before
        }
        // SAFETY: from `into_raw` in `install`, and no handler uses it any more.
        drop(unsafe { Arc::from_raw(file) });
    }
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let errno = Errno::last_raw();
    RUNNING.fetch_add(1, Ordering::SeqCst);
    // SAFETY: null, or kept until `RUNNING` is zero; the kernel passes a siginfo_t.
    if let (Some(pipe), Some(info)) = unsafe { (PIPE.load(Ordering::SeqCst).as_ref(), info.as_ref()) } {
        write(pipe, &encode(signal, source(info)));
    }
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    Errno::set_raw(errno);
}

fn source(info: &libc::siginfo_t) -> SignalSource {
    // SI_USER, SI_QUEUE and SI_TKILL, which processes cause, are zero or less; codes of the kernel are above.
    if info.si_code > 0 {
        return SignalSource::Kernel;
    }
    // SAFETY: with such a code the kernel has filled in si_pid.
    SignalSource::Process(unsafe { info.si_pid() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_comes_out_as_it_went_in() {
        for signal in Signal::iterator() {
            for source in [SignalSource::Kernel, SignalSource::Process(1), SignalSource::Process(i32::MAX)] {
                assert_eq!(decode(&encode(signal as i32, source)), Some((signal, source)));
            }
        }
        assert_eq!(decode(&WAKE), None);
    }

    #[test]
    fn dropped_handlers_restore_the_dispositions() -> io::Result<()> {
        let (mut reader, pipe) = signal_pipe()?;
        let ignored = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: to ignore them runs no code; nobody else uses these signals in this test program.
        unsafe { sigaction(Signal::SIGUSR2, &ignored) }?;
        let handlers = SignalHandlers::install([Signal::SIGUSR2, Signal::SIGPWR], &pipe)?;
        assert!(SignalHandlers::install([Signal::SIGUSR2], &pipe).is_err(), "one at a time");
        nix::sys::signal::raise(Signal::SIGUSR2)?;
        nix::sys::signal::raise(Signal::SIGPWR)?;
        let us = SignalSource::Process(std::process::id() as i32);
        assert_eq!(reader.drain(), [(Signal::SIGUSR2, us), (Signal::SIGPWR, us)]);
        drop(handlers);
        // SAFETY: as above.
        let handler = |signal| unsafe { sigaction(signal, &ignored) }.map(|before| before.handler());
        assert!(matches!(handler(Signal::SIGUSR2)?, SigHandler::SigIgn));
        assert!(matches!(handler(Signal::SIGPWR)?, SigHandler::SigDfl));
        Ok(())
    }
}
