//! The one event queue. The wait for the lock, then the run, sleeps in `EventQueue::wait`. Signal handlers write into a
//! [`SignalPipe`]; threads queue their events in memory, where none is lost, and wake the queue by the same pipe. Changes of watched
//! files wake it, too.

use std::io::{self, IsTerminal, stdin};
use std::mem;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::time::TimeSpec;

use crate::claude::frames::FrameEvent;
use crate::sys::file_watch::FileWatch;
use crate::sys::proc::Stat;
use crate::sys::signal::{DUPLICATE_WINDOW, InheritedDispositions, Signal, SignalSource};
pub use crate::sys::signal_pipe::SignalPipe;
use crate::sys::signal_pipe::{Arrival, WAKE};

/// An event of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Signal(Signal, SignalSource),
    /// flock(2) has returned in its thread, with or without the lock.
    FlockReturned,
    /// The relay has seen a frame in the child's output.
    Frame(FrameEvent),
    /// Nobody reads the child's pseudo-terminal any more.
    HungUp,
    /// All of the child's output is written, or cannot be.
    OutputDone,
    /// The lock helper has acquired its lock, or has ended.
    HelperChanged,
    /// Nobody can write to our stdin any more.
    StdinEnded,
    /// A watched file may have changed, or been created or removed.
    FilesChanged,
}

/// Receives events.
#[derive(Debug)]
pub struct EventQueue {
    /// Dispositions that a child gets. Signals that our caller ignores end no wait.
    pub(crate) inherited: InheritedDispositions,
    from_threads: mpsc::Receiver<Event>,
    sender: EventSender,
    files: Option<FileWatch>,
    watches_stdin: bool,
    requeued: Vec<Event>,
    /// Last TERM that was no duplicate.
    last_term: Option<Arrival>,
}

/// Sends events of a thread.
#[derive(Clone, Debug)]
pub(crate) struct EventSender {
    queue: mpsc::Sender<Event>,
    pipe: Arc<SignalPipe>,
}

impl EventQueue {
    pub(crate) fn open() -> io::Result<Self> {
        let pipe = SignalPipe::open()?;
        let (queue, from_threads) = mpsc::channel();
        let (inherited, files, last_term, requeued) = (InheritedDispositions::default(), None, None, Vec::new());
        let sender = EventSender { queue, pipe };
        Ok(Self { inherited, sender, from_threads, files, watches_stdin: false, requeued, last_term })
    }

    /// Watches `files` instead of those watched before.
    pub(crate) fn watch_files(&mut self, files: &[PathBuf]) {
        self.files = (!files.is_empty()).then(|| FileWatch::of(files));
    }

    /// Watches all files in `dir`, which need not exist yet.
    pub(crate) fn watch_directory(&mut self, dir: &Path) {
        self.files = Some(FileWatch::in_directory(dir));
    }

    /// Makes the end of stdin an event. False if it is at its end already, or will never be seen there: a file or a device.
    pub(crate) fn watch_stdin(&mut self) -> bool {
        let kind = fstat(stdin()).map_or(SFlag::empty(), |stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
        self.watches_stdin = matches!(kind, SFlag::S_IFIFO | SFlag::S_IFSOCK) || stdin().is_terminal();
        self.watches_stdin
    }

    pub(crate) fn signal_pipe(&self) -> Arc<SignalPipe> {
        Arc::clone(&self.sender.pipe)
    }

    pub(crate) fn sender(&self) -> EventSender {
        self.sender.clone()
    }

    /// Puts events back for the next [`wait`](Self::wait).
    pub(crate) fn requeue(&mut self, events: Vec<Event>) {
        self.requeued.extend(events);
    }

    /// Sleeps until there are events or `deadline` has come. Returns all events: those that were put back, then signals, then those of
    /// threads, each kind oldest first; none at the deadline.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> io::Result<Vec<Event>> {
        let deadline = if self.requeued.is_empty() { deadline } else { Some(Instant::now()) };
        loop {
            let poll_at = self.files.as_ref().and_then(FileWatch::wake_at);
            let wake_at = [deadline, poll_at].into_iter().flatten().min();
            let timeout = wake_at.map(|at| TimeSpec::from_duration(at.saturating_duration_since(Instant::now())));
            let mut ready = vec![PollFd::new(self.sender.pipe.reader.as_fd(), PollFlags::POLLIN)];
            let watch = self.files.as_ref().and_then(FileWatch::inotify);
            ready.extend(watch.map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLIN)));
            let stdin = stdin();
            if self.watches_stdin {
                ready.push(PollFd::new(stdin.as_fd(), PollFlags::from_bits_retain(libc::POLLRDHUP))); // not for what there is to read
            }
            match ppoll(&mut ready, timeout, None) {
                // The handler has written its record before it returns.
                Err(nix::Error::EINTR) => continue,
                other => other?,
            };
            let stdin_ended = self.watches_stdin && ready.last().and_then(PollFd::any).unwrap_or(true);
            let mut events = mem::take(&mut self.requeued);
            for arrival in self.sender.pipe.drain() {
                if !self.is_duplicate(arrival) {
                    events.push(Event::Signal(arrival.0, arrival.1));
                }
            }
            // After the signals: a thread queues its event first, then wakes.
            events.extend(self.from_threads.try_iter());
            if stdin_ended {
                self.watches_stdin = false;
                events.push(Event::StdinEnded);
            }
            if self.files.as_mut().is_some_and(FileWatch::take_changes) {
                events.push(Event::FilesChanged);
            }
            // Changes of other files in a watched directory are no events.
            if !events.is_empty() || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(events);
            }
        }
    }
}

/// Time within which timeout(1) signals its child and then the child's group, even if it hardly gets to run.
const TIMEOUT_WINDOW: Duration = Duration::from_secs(1);

impl EventQueue {
    /// True for a TERM that belongs to the one before it. Counted from their arrival, not from when we get to read them.
    fn is_duplicate(&mut self, arrival @ (signal, source, at): Arrival) -> bool {
        if signal != Signal::SIGTERM {
            return false;
        }
        let since = self.last_term.map(|(_, first, first_at)| (first == source, at.saturating_sub(first_at)));
        let is_duplicate = match (since, source) {
            (Some((_, since)), _) if since < DUPLICATE_WINDOW => true,
            (Some((true, since)), SignalSource::Process(pid)) => {
                since < TIMEOUT_WINDOW && Stat::read(pid).is_some_and(|stat| stat.name() == "timeout")
            }
            _ => false,
        };
        if !is_duplicate {
            self.last_term = Some(arrival);
        }
        is_duplicate
    }
}

impl EventSender {
    pub(crate) fn send(&self, event: Event) {
        // Without a receiver the run is over.
        if self.queue.send(event).is_ok() {
            self.pipe.write(WAKE, SignalSource::Kernel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_their_order() -> io::Result<()> {
        let mut queue = EventQueue::open()?;
        let all: Vec<_> = Signal::iterator().filter(|&signal| signal != Signal::SIGTERM).collect();
        let sent: Vec<_> = all.into_iter().cycle().take(500).collect();
        sent.iter().for_each(|&signal| queue.signal_pipe().write(signal.number(), SignalSource::Kernel));
        assert_eq!(
            queue.wait(None)?,
            sent.iter().map(|&signal| Event::Signal(signal, SignalSource::Kernel)).collect::<Vec<_>>()
        );
        let frames: Vec<_> = (0..500).map(|count| Event::Frame(FrameEvent::OpenTasks(count))).collect();
        frames.iter().for_each(|&frame| queue.sender().send(frame));
        assert_eq!(queue.wait(None)?, frames);
        assert_eq!(queue.wait(Some(Instant::now()))?, []);
        queue.requeue(frames.clone());
        queue.sender().send(Event::OutputDone);
        assert_eq!(queue.wait(None)?, [frames, vec![Event::OutputDone]].concat(), "what was put back comes first");
        Ok(())
    }

    #[test]
    fn full_pipe_drops_the_newest_signals_only() -> io::Result<()> {
        let mut queue = EventQueue::open()?;
        let (pipe, sender) = (queue.signal_pipe(), queue.sender());
        (0..100_000).for_each(|_| pipe.write(Signal::SIGUSR2.number(), SignalSource::Kernel));
        sender.send(Event::OutputDone);
        let events = queue.wait(None)?;
        assert!(events.len() > 4096 && events.last() == Some(&Event::OutputDone));
        Ok(())
    }
}
