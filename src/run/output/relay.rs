//! Copies the child's stdout to ours: never adds, drops or holds back a byte. One thread reads, and keeps reading whatever
//! our reader does, since claude drops what it cannot write; another writes, and may wait for our reader as long as it likes.

use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use tracing::warn;

use super::pipe::{PIPE_SIZE, enlarge};
use super::spool::Spool;

use crate::claude::frames::FrameReader;
use crate::event::{Channel, Event, Mouth};
use crate::signals;

/// How much of what our reader has not taken is kept in memory.
const IN_MEMORY: usize = 8 << 20;

/// How much is read before it is looked at, when the child writes without a pause.
const MOST_UNSEEN: usize = 1 << 20;

/// A relay whose child is not started yet.
#[derive(Debug)]
pub(crate) struct Relay {
    reader: PipeReader,
    writer: PipeWriter,
}

/// A relay at work.
#[derive(Debug)]
pub(crate) struct Working {
    /// Closing it tells the reading thread that the child is dead.
    child_is_alive: PipeWriter,
}

/// What the two threads share.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    spool: Spool,
    /// Nothing more will be read.
    complete: bool,
    /// Nothing more can be written.
    reader_gone: bool,
}

impl Relay {
    /// A relay, with a pipe for the child to write to.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe()?;
        enlarge(&writer);
        // The description is ours alone: the child has the other end.
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { reader, writer })
    }

    /// What the child gets as its stdout.
    pub(crate) fn for_child(&self) -> &PipeWriter {
        &self.writer
    }

    /// Starts copying, once the child is started. What is seen goes to `mouth`, and at last [`Event::OutputDone`].
    ///
    /// # Errors
    /// The process is out of descriptors or threads.
    pub(crate) fn start(self, mouth: Mouth) -> io::Result<Working> {
        drop(self.writer); // the child's copy alone keeps the pipe open
        let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let (stop, child_is_alive) = pipe()?;
        let state = State { spool: Spool::new(IN_MEMORY), complete: false, reader_gone: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let for_writer = Arc::clone(&shared);
        let for_reader = mouth.clone();
        let pipe = self.reader;
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let threads = thread::Builder::new()
            .name("relay-read".into())
            .stack_size(256 * 1024)
            .spawn(move || read(pipe, &stop, &shared, &for_reader))
            .and_then(|_| {
                let write = move || {
                    write(stdout, &for_writer);
                    mouth.put(Event::OutputDone);
                };
                thread::Builder::new().name("relay-write".into()).stack_size(256 * 1024).spawn(write)
            });
        mask.thread_set_mask()?;
        threads?;
        Ok(Working { child_is_alive })
    }
}

impl Working {
    /// After the child's death: stays until our reader has taken all that the child has written. A request to end cuts that
    /// short, as it would end a child that waits for its reader; then this is the signal. `ignored` ones ask for nothing.
    ///
    /// # Errors
    /// poll(2) fails.
    pub(crate) fn finish(self, channel: &mut Channel, ignored: SigSet) -> io::Result<Option<Signal>> {
        drop(self.child_is_alive);
        loop {
            let events = channel.wait(None)?;
            if events.contains(&Event::OutputDone) {
                return Ok(None);
            }
            for event in events {
                match event {
                    Event::Signal(signal, _) if ignored.contains(signal) => {}
                    Event::Signal(signal @ (Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM), _) => {
                        warn!("{signal} ended the wait for the reader of the child's output; some of it is lost");
                        return Ok(Some(signal));
                    }
                    Event::Signal(Signal::SIGTSTP, sender) => signals::stop_if_asked(sender),
                    Event::Signal(Signal::SIGUSR1, _) => warn!("the child has ended; its output waits for our reader"),
                    _ => {}
                }
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The other thread has panicked between two consistent states; this one goes on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reading thread: until the end of the child's output, or until nobody wants it.
fn read(mut pipe: PipeReader, stop: &PipeReader, shared: &Shared, mouth: &Mouth) {
    let mut frames = FrameReader::default();
    // Read and handed over, but not yet looked at: parsing waits until the pipe is empty, since claude may exit and drop
    // what does not fit into it while we look.
    let mut unseen = Vec::new();
    // As large as the pipe: claude goes on when the first byte is taken, and gets as much out as is free by then.
    let mut buffer = vec![0; PIPE_SIZE as usize];
    // After the child's death all it has written is in the pipe: what comes beyond that is not the child's.
    let mut left = None;
    while left.is_none_or(|left| left > 0) {
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                let bytes = &buffer[..length];
                left = left.map(|left: usize| left.saturating_sub(length));
                if !hand_over(bytes, shared) {
                    break; // our reader is gone: dropping the pipe, the child meets EPIPE, as it would without us
                }
                unseen.extend_from_slice(bytes);
                if unseen.len() >= MOST_UNSEEN {
                    look_at(&mut unseen, &mut frames, mouth);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && left.is_none() => {
                look_at(&mut unseen, &mut frames, mouth);
                if is_stopped(&pipe, stop) {
                    left = Some(PIPE_SIZE as usize);
                }
            }
            Err(_) => break, // empty after the child's death
        }
    }
    shared.lock().complete = true;
    shared.changed.notify_all();
    look_at(&mut unseen, &mut frames, mouth);
    frames.end(|sighting| mouth.put(Event::Frame(sighting)));
}

fn look_at(unseen: &mut Vec<u8>, frames: &mut FrameReader, mouth: &Mouth) {
    frames.feed(unseen, |sighting| mouth.put(Event::Frame(sighting)));
    unseen.clear();
}

/// Queues `bytes` for the writing thread. False when nobody will write them.
fn hand_over(bytes: &[u8], shared: &Shared) -> bool {
    let mut state = shared.lock();
    loop {
        if state.reader_gone {
            return false;
        }
        match state.spool.push(bytes) {
            Ok(()) => break,
            // No room on the disk: better to let the child wait than to lose a byte.
            Err(_) if !state.spool.is_empty() => state = shared.wait(state),
            Err(error) => {
                warn!(%error, "cannot keep the child's output in a temporary file");
                return false;
            }
        }
    }
    drop(state);
    shared.changed.notify_all();
    true
}

/// Sleeps until there is something to read, or the child is dead: then it says so.
fn is_stopped(pipe: &PipeReader, stop: &PipeReader) -> bool {
    let mut ready = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    // An error is a signal, and those are blocked here; the next read tells anyway.
    let _ = poll(&mut ready, PollTimeout::NONE);
    ready[1].any().unwrap_or(false)
}

/// The writing thread: until all is written, or cannot be.
fn write(mut stdout: File, shared: &Shared) {
    loop {
        let mut state = shared.lock();
        while state.spool.is_empty() && !state.complete {
            state = shared.wait(state);
        }
        let piece = state.spool.pop();
        drop(state);
        shared.changed.notify_all(); // a reading thread may wait for room
        let written = match piece {
            Ok(Some(piece)) => write_all(&mut stdout, &piece),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            if error.kind() != ErrorKind::BrokenPipe {
                warn!(%error, "cannot write the child's output to stdout");
            }
            shared.lock().reader_gone = true;
            shared.changed.notify_all();
            return;
        }
    }
}

/// Like `Write::write_all`, also where our caller has made stdout non-blocking.
fn write_all(stdout: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stdout.write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut ready = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
                // As above: the next write tells.
                let _ = poll(&mut ready, PollTimeout::NONE);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
