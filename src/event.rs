//! The one event channel. Signal handlers write small records into a pipe, and whoever owns the moment (the wait for the
//! lock, then the run) sleeps on its other end. A pipe, since it keeps the order of arrival, may be written from a signal
//! handler, and lets the kernel do all the waking. Threads queue their events in memory, where none is ever lost, and
//! write a record that only wakes. Files that are followed wake it, too.

use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use nix::unistd::pipe2;

use crate::changes::Changes;
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
    /// The lock helper has got its lock, or has ended.
    HelperTold,
    /// One of the files that are followed may have changed, come or gone.
    FilesChanged,
}

/// The reading end.
#[derive(Debug)]
pub struct Channel {
    reader: std::fs::File,
    from_threads: mpsc::Receiver<Event>,
    mouth: Mouth,
    files: Option<Changes>,
    /// What was taken out, and is for somebody else.
    put_back: Vec<Event>,
}

/// The writing end for signal handlers; clones write into the same channel.
#[derive(Clone, Debug)]
pub struct Bell(Arc<std::fs::File>);

/// The writing end for threads.
#[derive(Clone, Debug)]
pub struct Mouth {
    queue: mpsc::Sender<Event>,
    bell: Bell,
}

/// One record: a signal's number; who caused it; two unused; the pid of the process that did.
type Record = [u8; 8];

/// As many signals as a pipe takes at the least: one page of them. When so many are there at once, the pipe may have been
/// full, and some may be lost.
pub const MOST_THAT_ALWAYS_FIT: usize = 4096 / size_of::<Record>();

/// No signal: something is in the queue.
const WAKE: Record = [0; 8];
const FROM_KERNEL: u8 = 0;
const FROM_PROCESS: u8 = 1;

impl Channel {
    /// An empty channel.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn open() -> io::Result<Self> {
        let (reader, writer): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let bell = Bell(Arc::new(writer.into()));
        let (queue, from_threads) = mpsc::channel();
        Ok(Self { reader: reader.into(), mouth: Mouth { queue, bell }, from_threads, files: None, put_back: Vec::new() })
    }

    /// From now on, a change of one of `files` is an event. Those that were followed before no longer are.
    pub fn follow(&mut self, files: &[PathBuf]) {
        self.files = (!files.is_empty()).then(|| Changes::of(files));
    }

    /// The same for all files in `dir`, which need not be there yet.
    pub fn follow_directory(&mut self, dir: &Path) {
        self.files = Some(Changes::in_directory(dir));
    }

    /// A writing end for a signal handler.
    pub fn bell(&self) -> Bell {
        self.mouth.bell.clone()
    }

    /// A writing end for a thread.
    pub fn mouth(&self) -> Mouth {
        self.mouth.clone()
    }

    /// Gives `events`, which somebody has waited for in vain, to whoever waits next.
    pub fn put_back(&mut self, events: Vec<Event>) {
        self.put_back.extend(events);
    }

    /// Sleeps until something is there or `deadline` has come, then gives what is there: signals first, each kind oldest
    /// first. Nothing when it was the deadline.
    ///
    /// # Errors
    /// poll(2) failed for another reason than a signal.
    pub fn wait(&mut self, deadline: Option<Instant>) -> io::Result<Vec<Event>> {
        if !self.put_back.is_empty() {
            let mut events = mem::take(&mut self.put_back);
            events.extend(self.drain());
            return Ok(events);
        }
        loop {
            let look_at = self.files.as_ref().and_then(Changes::next_look);
            let wake_at = [deadline, look_at].into_iter().flatten().min();
            let timeout = wake_at.map(|at| TimeSpec::from_duration(at.saturating_duration_since(Instant::now())));
            let mut ready = vec![PollFd::new(self.reader.as_fd(), PollFlags::POLLIN)];
            let changes = self.files.as_ref().and_then(Changes::descriptor);
            ready.extend(changes.map(|changes| PollFd::new(changes, PollFlags::POLLIN)));
            match ppoll(&mut ready, timeout, None) {
                // A record is in the pipe before its handler returns, so the next round finds it.
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
            let mut events = self.drain();
            if self.files.as_mut().is_some_and(Changes::have_come) {
                events.push(Event::FilesChanged);
            }
            // What changes beside the files that are followed wakes nobody but us.
            if !events.is_empty() || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(events);
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
        // After the records: a thread queues first and wakes then.
        events.extend(self.from_threads.try_iter());
        events
    }
}

impl Bell {
    /// Puts a signal into the channel. Async-signal-safe: one write(2) of a record on the stack.
    pub fn signal(&self, signal: Signal, sender: Sender) {
        self.write(&encode(signal, sender));
    }

    fn write(&self, record: &Record) {
        // Into a full pipe nothing goes: see MOST_THAT_ALWAYS_FIT. As a wake-up it is not missed, since a full pipe wakes.
        let _ = (&*self.0).write(record);
    }
}

impl Mouth {
    /// Puts `event` into the channel.
    pub fn put(&self, event: Event) {
        // Without a receiver nobody wants to know any more.
        if self.queue.send(event).is_ok() {
            self.bell.write(&WAKE);
        }
    }
}

fn encode(signal: Signal, sender: Sender) -> Record {
    let mut record = WAKE;
    record[0] = signal as u8;
    if let Sender::Process(pid) = sender {
        record[1] = FROM_PROCESS;
        record[4..].copy_from_slice(&pid.to_ne_bytes());
    }
    record
}

fn decode(record: &Record) -> Option<Event> {
    let [signal, from, _, _, pid @ ..] = *record;
    let sender = if from == FROM_KERNEL { Sender::Kernel } else { Sender::Process(i32::from_ne_bytes(pid)) };
    Signal::try_from(i32::from(signal)).ok().map(|signal| Event::Signal(signal, sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_comes_out_as_it_went_in() {
        for signal in Signal::iterator() {
            for sender in [Sender::Kernel, Sender::Process(1), Sender::Process(i32::MAX)] {
                assert_eq!(decode(&encode(signal, sender)), Some(Event::Signal(signal, sender)));
            }
        }
        assert_eq!(decode(&WAKE), None);
    }

    #[test]
    fn events_keep_their_order_and_a_deadline_gives_none() -> io::Result<()> {
        let mut channel = Channel::open()?;
        let sent: Vec<_> = Signal::iterator().cycle().take(500).collect();
        sent.iter().for_each(|&signal| channel.bell().signal(signal, Sender::Kernel));
        assert_eq!(channel.wait(None)?, sent.iter().map(|&signal| Event::Signal(signal, Sender::Kernel)).collect::<Vec<_>>());
        let frames: Vec<_> = (0..500).map(|count| Event::Frame(Sighting::OpenTasks(count))).collect();
        frames.iter().for_each(|&frame| channel.mouth().put(frame));
        assert_eq!(channel.wait(None)?, frames);
        assert_eq!(channel.wait(Some(Instant::now()))?, []);
        channel.put_back(frames.clone());
        channel.mouth().put(Event::OutputDone);
        assert_eq!(channel.wait(None)?, [frames, vec![Event::OutputDone]].concat(), "what was put back comes first");
        Ok(())
    }

    #[test]
    fn a_full_channel_never_blocks_drops_the_newest_signals_and_nothing_of_a_thread() -> io::Result<()> {
        let mut channel = Channel::open()?;
        let (bell, mouth) = (channel.bell(), channel.mouth());
        (0..100_000).for_each(|_| bell.signal(Signal::SIGUSR2, Sender::Kernel));
        mouth.put(Event::OutputDone);
        let events = channel.wait(None)?;
        assert!(events.len() > 4096 && events.last() == Some(&Event::OutputDone));
        Ok(())
    }
}
