//! The self-pipe: signal handlers write small records into it, and whoever waits for events reads them. A pipe keeps the order of
//! arrival, may be written from a handler, and is woken by the kernel.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::pipe2;

/// Who caused a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalSource {
    /// The kernel: a key on the terminal, a hang-up, a window that changed its size.
    Kernel,
    /// A process, by kill(2) or its kin.
    Process(i32),
}

/// Write end, for signal handlers and for threads that want to wake the reader; clones write into the same pipe.
#[derive(Clone, Debug)]
pub struct SignalPipe(Arc<File>);

/// Read end.
#[derive(Debug)]
pub(crate) struct SignalReader(File);

/// One record: a signal's number; who caused it; two unused; the pid of the process that did.
type Record = [u8; 8];

/// Number of signals that a pipe takes at the least: one page of them. When so many are there at once, the pipe may have been full,
/// and some may be lost.
pub(crate) const CAPACITY: usize = 4096 / size_of::<Record>();

/// No signal: it only wakes.
const WAKE: Record = [0; 8];
const FROM_KERNEL: u8 = 0;
const FROM_PROCESS: u8 = 1;

/// Makes a pipe. Neither end ever blocks.
///
/// # Errors
/// The process is out of descriptors.
pub(crate) fn signal_pipe() -> io::Result<(SignalReader, SignalPipe)> {
    let (reader, writer): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    Ok((SignalReader(reader.into()), SignalPipe(Arc::new(writer.into()))))
}

impl SignalPipe {
    /// Writes a signal. Async-signal-safe: one write(2) of a record on the stack.
    pub fn signal(&self, signal: Signal, source: SignalSource) {
        self.write(&encode(signal, source));
    }

    /// Wakes the reader.
    pub(crate) fn wake(&self) {
        self.write(&WAKE);
    }

    fn write(&self, record: &Record) {
        // Into a full pipe nothing goes: see CAPACITY. As a wake-up it is not missed, since a full pipe wakes.
        let _ = (&*self.0).write(record);
    }
}

impl SignalReader {
    /// Reads all signals that are there, the oldest first.
    pub(crate) fn drain(&mut self) -> Vec<(Signal, SignalSource)> {
        let mut signals = Vec::new();
        let mut buffer = [0; 64 * size_of::<Record>()];
        // Records are written whole, so they are read whole; an error is "empty by now".
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

fn encode(signal: Signal, source: SignalSource) -> Record {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_comes_out_as_it_went_in() {
        for signal in Signal::iterator() {
            for source in [SignalSource::Kernel, SignalSource::Process(1), SignalSource::Process(i32::MAX)] {
                assert_eq!(decode(&encode(signal, source)), Some((signal, source)));
            }
        }
        assert_eq!(decode(&WAKE), None);
    }
}
