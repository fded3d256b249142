//! The one event channel: signal handlers and the lock's helper thread write small records into a pipe, and whoever owns
//! the moment (the wait for the lock, then the run) sleeps on its other end. A pipe, since it keeps the order of arrival,
//! may be written from a signal handler, and lets the kernel do all the waking.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use nix::unistd::pipe2;

use crate::claude::frames::Sighting;

/// Who caused a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The kernel: a key on the terminal, a hang-up, a window that changed its size.
    Kernel,
    /// A process, by kill(2) or its kin.
    Process(i32),
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A signal came in.
    Signal(Signal, Sender),
    /// The helper thread has come back from its flock(2), with or without the lock.
    LockAnswered,
    /// The relay has seen a frame in the child's output.
    Frame(Sighting),
    /// The relay has written all of the child's output, or cannot any more.
    OutputDone,
}

/// The reading end.
#[derive(Debug)]
pub struct Channel {
    reader: std::fs::File,
    writer: Mouth,
}

/// A writing end; clones write into the same channel.
#[derive(Clone, Debug)]
pub struct Mouth(Arc<std::fs::File>);

/// One record: a signal's number or a kind above all signals; a byte of detail; two unused; a number of detail. Small
/// enough to be written in one piece.
type Record = [u8; 8];

/// As many events as a pipe takes at the least: one page of them. When so many are there at once, the pipe may have been
/// full, and some may be lost.
pub const MOST_THAT_ALWAYS_FIT: usize = 4096 / size_of::<Record>();

const LOCK_ANSWERED: u8 = 200;
const OUTPUT_DONE: u8 = 201;
const RESULT: u8 = 202;
const OPEN_TASKS: u8 = 203;
const OTHER_FRAME: u8 = 204;
const FROM_KERNEL: u8 = 0;
const FROM_PROCESS: u8 = 1;

impl Channel {
    /// An empty channel.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn open() -> io::Result<Self> {
        let (reader, writer): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Self { reader: reader.into(), writer: Mouth(Arc::new(writer.into())) })
    }

    /// A writing end for a handler or a thread.
    pub fn mouth(&self) -> Mouth {
        self.writer.clone()
    }

    /// Sleeps until something is there or `deadline` has come, then gives what is there, oldest first.
    /// Nothing when it was the deadline.
    ///
    /// # Errors
    /// poll(2) failed for another reason than a signal.
    pub fn wait(&mut self, deadline: Option<Instant>) -> io::Result<Vec<Event>> {
        loop {
            let timeout = deadline.map(|at| TimeSpec::from_duration(at.saturating_duration_since(Instant::now())));
            let mut ready = [PollFd::new(self.reader.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut ready, timeout, None) {
                Ok(0) => return Ok(Vec::new()),
                // A record is in the pipe before its handler returns, so the next round finds it.
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(self.drain()),
            }
        }
    }

    fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut buffer = [0; 64 * size_of::<Record>()];
        // Records are written whole, so they are read whole; an error is "empty by now".
        while let Ok(length) = self.reader.read(&mut buffer) {
            let (records, _) = buffer[..length].as_chunks();
            events.extend(records.iter().filter_map(decode));
            if length < buffer.len() {
                break;
            }
        }
        events
    }
}

impl Mouth {
    /// Puts `event` into the channel. Async-signal-safe: one write(2) of a record on the stack.
    pub fn put(&self, event: Event) {
        // Into a full pipe nothing goes: see MOST_THAT_ALWAYS_FIT.
        let _ = (&*self.0).write(&encode(event));
    }
}

fn encode(event: Event) -> Record {
    let mut record = [0; 8];
    match event {
        Event::LockAnswered => record[0] = LOCK_ANSWERED,
        Event::OutputDone => record[0] = OUTPUT_DONE,
        Event::Frame(Sighting::Result { is_error }) => record[..2].copy_from_slice(&[RESULT, u8::from(is_error)]),
        Event::Frame(Sighting::OpenTasks(count)) => {
            record[0] = OPEN_TASKS;
            record[4..].copy_from_slice(&count.to_ne_bytes());
        }
        Event::Frame(Sighting::Other) => record[0] = OTHER_FRAME,
        Event::Signal(signal, sender) => {
            record[0] = signal as u8;
            if let Sender::Process(pid) = sender {
                record[1] = FROM_PROCESS;
                record[4..].copy_from_slice(&pid.to_ne_bytes());
            }
        }
    }
    record
}

fn decode(record: &Record) -> Option<Event> {
    let [kind, detail, _, _, number @ ..] = *record;
    let sender = if detail == FROM_KERNEL { Sender::Kernel } else { Sender::Process(i32::from_ne_bytes(number)) };
    match kind {
        LOCK_ANSWERED => Some(Event::LockAnswered),
        OUTPUT_DONE => Some(Event::OutputDone),
        RESULT => Some(Event::Frame(Sighting::Result { is_error: detail != 0 })),
        OPEN_TASKS => Some(Event::Frame(Sighting::OpenTasks(u32::from_ne_bytes(number)))),
        OTHER_FRAME => Some(Event::Frame(Sighting::Other)),
        signal => Signal::try_from(i32::from(signal)).ok().map(|signal| Event::Signal(signal, sender)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_comes_out_as_it_went_in() {
        for signal in Signal::iterator() {
            for sender in [Sender::Kernel, Sender::Process(1), Sender::Process(i32::MAX)] {
                let event = Event::Signal(signal, sender);
                assert_eq!(decode(&encode(event)), Some(event));
            }
        }
        let frames = [
            Sighting::Result { is_error: false },
            Sighting::Result { is_error: true },
            Sighting::OpenTasks(0),
            Sighting::OpenTasks(u32::MAX),
            Sighting::Other,
        ];
        for event in frames.map(Event::Frame).into_iter().chain([Event::LockAnswered, Event::OutputDone]) {
            assert_eq!(decode(&encode(event)), Some(event));
        }
    }

    #[test]
    fn events_keep_their_order_and_a_deadline_gives_none() -> io::Result<()> {
        let mut channel = Channel::open()?;
        let sent: Vec<_> = Signal::iterator().map(|signal| Event::Signal(signal, Sender::Kernel)).cycle().take(500).collect();
        let mouth = channel.mouth();
        sent.iter().for_each(|&event| mouth.put(event));
        assert_eq!(channel.wait(None)?, sent);
        assert_eq!(channel.wait(Some(Instant::now()))?, []);
        Ok(())
    }

    #[test]
    fn a_full_channel_drops_the_newest_and_never_blocks() -> io::Result<()> {
        let mut channel = Channel::open()?;
        let mouth = channel.mouth();
        (0..100_000).for_each(|_| mouth.put(Event::LockAnswered));
        assert!(channel.wait(None)?.len() >= 4096);
        Ok(())
    }
}
