//! The one event queue. Signal handlers write small records into a pipe, and whoever owns the moment (the wait for the
//! lock, then the run) sleeps on its other end. A pipe, since it keeps the order of arrival, may be written from a signal
//! handler, and lets the kernel do all the waking. Threads queue their events in memory, where none is ever lost, and
//! write a record that only wakes. Files that are followed wake it, too.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;

use crate::claude::frames::FrameEvent;
use crate::sys::file_watch::FileWatch;
pub use crate::sys::signal_pipe::{SignalPipe, SignalSource};
use crate::sys::signal_pipe::{SignalReader, signal_pipe};

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A signal came in.
    Signal(Signal, SignalSource),
    /// The helper thread has come back from its flock(2), with or without the lock.
    LockAnswered,
    /// The relay has seen a frame in the child's output.
    Frame(FrameEvent),
    /// The relay has written all of the child's output, or cannot any more.
    OutputDone,
    /// The lock helper has got its lock, or has ended.
    HelperTold,
    /// One of the files that are followed may have changed, come or gone.
    FilesChanged,
}

/// The reading end.
#[derive(Debug)]
pub struct EventQueue {
    signals: SignalReader,
    from_threads: mpsc::Receiver<Event>,
    sender: EventSender,
    files: Option<FileWatch>,
    /// What was taken out, and is for somebody else.
    unread: Vec<Event>,
}

/// The writing end for threads.
#[derive(Clone, Debug)]
pub struct EventSender {
    queue: mpsc::Sender<Event>,
    pipe: SignalPipe,
}

impl EventQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn open() -> io::Result<Self> {
        let (signals, pipe) = signal_pipe()?;
        let (queue, from_threads) = mpsc::channel();
        Ok(Self { signals, sender: EventSender { queue, pipe }, from_threads, files: None, unread: Vec::new() })
    }

    /// From now on, a change of one of `files` is an event. Those that were followed before no longer are.
    pub fn watch_files(&mut self, files: &[PathBuf]) {
        self.files = (!files.is_empty()).then(|| FileWatch::of(files));
    }

    /// The same for all files in `dir`, which need not be there yet.
    pub fn watch_directory(&mut self, dir: &Path) {
        self.files = Some(FileWatch::in_directory(dir));
    }

    /// A writing end for a signal handler.
    pub fn signal_pipe(&self) -> SignalPipe {
        self.sender.pipe.clone()
    }

    /// A writing end for a thread.
    pub fn sender(&self) -> EventSender {
        self.sender.clone()
    }

    /// Gives `events`, which somebody has waited for in vain, to whoever waits next.
    pub fn unread(&mut self, events: Vec<Event>) {
        self.unread.extend(events);
    }

    /// Sleeps until something is there or `deadline` has come, then gives what is there: signals first, each kind oldest
    /// first. Nothing when it was the deadline.
    ///
    /// # Errors
    /// poll(2) failed for another reason than a signal.
    pub fn wait(&mut self, deadline: Option<Instant>) -> io::Result<Vec<Event>> {
        if !self.unread.is_empty() {
            let mut events = mem::take(&mut self.unread);
            events.extend(self.drain());
            return Ok(events);
        }
        loop {
            let look_at = self.files.as_ref().and_then(FileWatch::next_look);
            let wake_at = [deadline, look_at].into_iter().flatten().min();
            let timeout = wake_at.map(|at| TimeSpec::from_duration(at.saturating_duration_since(Instant::now())));
            let mut ready = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let changes = self.files.as_ref().and_then(FileWatch::descriptor);
            ready.extend(changes.map(|changes| PollFd::new(changes, PollFlags::POLLIN)));
            match ppoll(&mut ready, timeout, None) {
                // A record is in the pipe before its handler returns, so the next round finds it.
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
            let mut events = self.drain();
            if self.files.as_mut().is_some_and(FileWatch::have_come) {
                events.push(Event::FilesChanged);
            }
            // What changes beside the files that are followed wakes nobody but us.
            if !events.is_empty() || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(events);
            }
        }
    }

    fn drain(&mut self) -> Vec<Event> {
        let mut events: Vec<_> =
            self.signals.drain().into_iter().map(|(signal, source)| Event::Signal(signal, source)).collect();
        // After the records: a thread queues first and wakes then.
        events.extend(self.from_threads.try_iter());
        events
    }
}

impl EventSender {
    /// Puts `event` into the queue.
    pub fn send(&self, event: Event) {
        // Without a receiver nobody wants to know any more.
        if self.queue.send(event).is_ok() {
            self.pipe.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_their_order_and_a_deadline_gives_none() -> io::Result<()> {
        let mut queue = EventQueue::open()?;
        let sent: Vec<_> = Signal::iterator().cycle().take(500).collect();
        sent.iter().for_each(|&signal| queue.signal_pipe().signal(signal, SignalSource::Kernel));
        assert_eq!(
            queue.wait(None)?,
            sent.iter().map(|&signal| Event::Signal(signal, SignalSource::Kernel)).collect::<Vec<_>>()
        );
        let frames: Vec<_> = (0..500).map(|count| Event::Frame(FrameEvent::OpenTasks(count))).collect();
        frames.iter().for_each(|&frame| queue.sender().send(frame));
        assert_eq!(queue.wait(None)?, frames);
        assert_eq!(queue.wait(Some(Instant::now()))?, []);
        queue.unread(frames.clone());
        queue.sender().send(Event::OutputDone);
        assert_eq!(queue.wait(None)?, [frames, vec![Event::OutputDone]].concat(), "what was put back comes first");
        Ok(())
    }

    #[test]
    fn a_full_channel_never_blocks_drops_the_newest_signals_and_nothing_of_a_thread() -> io::Result<()> {
        let mut queue = EventQueue::open()?;
        let (pipe, sender) = (queue.signal_pipe(), queue.sender());
        (0..100_000).for_each(|_| pipe.signal(Signal::SIGUSR2, SignalSource::Kernel));
        sender.send(Event::OutputDone);
        let events = queue.wait(None)?;
        assert!(events.len() > 4096 && events.last() == Some(&Event::OutputDone));
        Ok(())
    }
}
