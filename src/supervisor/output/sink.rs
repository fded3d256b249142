//! Our stdout or stderr, as the end of a stream. Delivery does not block: what our reader does not take at once is spooled, and
//! written by a thread of its own, which most runs never need.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::warn;

use super::spool::Spool;
use crate::events::{Event, EventSender};
use crate::sys::signal;

/// Bytes that are spooled in memory.
const IN_MEMORY: usize = 8 << 20;

/// Time after which a reader of bulk output that takes nothing counts as stuck.
const STUCK_AFTER: Duration = Duration::from_millis(50);

/// Sends [`Event::OutputDone`] when dropped. Shared by all threads that write.
#[derive(Debug)]
pub(super) struct OutputDoneGuard(pub(super) EventSender);

impl Drop for OutputDoneGuard {
    fn drop(&mut self) {
        self.0.send(Event::OutputDone);
    }
}

/// Writes a stream to a descriptor of ours.
#[derive(Debug)]
pub(super) struct Sink {
    name: &'static str,
    /// For non-blocking writes, where they are possible.
    direct: Option<File>,
    /// For the writing thread, until it is started.
    out: Option<File>,
    queue: Arc<Queue>,
    /// Pieces that our reader had taken when it was found stuck.
    stuck_at: Option<u64>,
    done: Arc<OutputDoneGuard>,
}

/// Shared by the thread that reads and the one that writes.
#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    spool: Spool,
    /// The writing thread writes a piece that is no longer in the spool.
    writing: bool,
    /// The stream has ended.
    complete: bool,
    /// Writes fail.
    reader_gone: bool,
}

impl Sink {
    /// Writes to `descriptor`, which messages call `name`.
    pub(super) fn new(descriptor: BorrowedFd, name: &'static str, done: Arc<OutputDoneGuard>) -> io::Result<Self> {
        let out = File::from(descriptor.try_clone_to_owned()?);
        let state = State { spool: Spool::new(IN_MEMORY), writing: false, complete: false, reader_gone: false };
        let queue = Arc::new(Queue { state: Mutex::new(state), changed: Condvar::new() });
        Ok(Self { name, direct: direct(&out), out: Some(out), queue, stuck_at: None, done })
    }

    /// Writes `bytes`, or spools them; `passed` bytes came before. False if nobody will ever read them.
    pub(super) fn deliver(&mut self, mut bytes: &[u8], passed: usize) -> bool {
        let state = self.queue.lock();
        if state.reader_gone {
            return false;
        }
        let is_behind = state.writing || !state.spool.is_empty();
        drop(state); // only this thread adds to the spool
        if let (false, Some(direct)) = (is_behind, &mut self.direct) {
            match write_some(direct, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) => return self.give_up(&error),
            }
        }
        if bytes.is_empty() {
            return true;
        }
        if let Some(out) = self.out.take()
            && let Err(error) = self.start_writing(out)
        {
            return self.give_up(&error);
        }
        self.spool(bytes, passed > super::BULK)
    }

    fn give_up(&self, error: &io::Error) -> bool {
        warn_unwritable(self.name, error);
        self.queue.lock().reader_gone = true;
        false
    }

    fn spool(&mut self, bytes: &[u8], in_bulk: bool) -> bool {
        let mut state = self.queue.lock();
        loop {
            if state.reader_gone {
                return false;
            }
            let popped = state.spool.popped();
            if in_bulk && !state.spool.has_room_in_memory(bytes.len()) && self.stuck_at != Some(popped) {
                state = self.queue.wait_until_stuck(state);
                if state.spool.popped() == popped {
                    self.stuck_at = Some(popped);
                }
                continue; // a disk would be slower than a reader that reads
            }
            match state.spool.push(bytes) {
                Ok(()) => break,
                // The disk is full: block the child rather than lose a byte.
                Err(_) if !state.spool.is_empty() => state = self.queue.wait(state),
                Err(error) => {
                    warn!(%error, "cannot keep the child's output in a temporary file");
                    return false;
                }
            }
        }
        drop(state);
        self.queue.changed.notify_all();
        true
    }

    fn start_writing(&self, out: File) -> io::Result<()> {
        let (name, queue, done) = (self.name, Arc::clone(&self.queue), Arc::clone(&self.done));
        let work = move || {
            if let Err(error) = queue.write_out(out) {
                warn_unwritable(name, &error);
            }
            drop(done);
        };
        signal::spawn_with_signals_blocked("relay-write", 128 * 1024, work).map(|_| ())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.queue.lock().complete = true;
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // If the other thread panicked, the state is consistent all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until_stuck<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, STUCK_AFTER).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The writing thread: writes until the stream has ended or a write fails.
    fn write_out(&self, mut out: File) -> io::Result<()> {
        loop {
            let mut state = self.lock();
            state.writing = false;
            while state.spool.is_empty() && !state.complete {
                state = self.wait(state);
            }
            let piece = state.spool.pop();
            state.writing = true;
            drop(state);
            self.changed.notify_all(); // the reading thread may wait for room
            let written = match piece {
                Ok(Some(piece)) => write_all(&mut out, &piece),
                Ok(None) => return Ok(()),
                Err(error) => Err(error),
            };
            if written.is_err() {
                self.lock().reader_gone = true;
                self.changed.notify_all();
                return written;
            }
        }
    }
}

fn warn_unwritable(name: &str, error: &io::Error) {
    if error.kind() != ErrorKind::BrokenPipe {
        warn!(%error, "cannot write the child's output to {name}");
    }
}

/// `out` for non-blocking writes, if possible: a file; or a pipe or terminal, opened again, since O_NONBLOCK on the inherited file
/// description would affect our caller.
fn direct(out: &File) -> Option<File> {
    let kind = out.metadata().ok()?.file_type();
    if kind.is_fifo() || out.is_terminal() {
        let path = format!("/proc/self/fd/{}", out.as_raw_fd());
        return File::options().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok();
    }
    (kind.is_file() || kind.is_char_device()).then(|| out.try_clone().ok()).flatten()
}

/// Writes as much as `out` takes now.
fn write_some(out: &mut File, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

/// `Write::write_all`, also for an `out` that our caller has made non-blocking.
fn write_all(out: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[write_some(out, bytes)?..];
        if !bytes.is_empty() {
            let mut ready = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
            // Signals are blocked here; after another error the next write shows it.
            let _ = poll(&mut ready, PollTimeout::NONE);
        }
    }
    Ok(())
}
