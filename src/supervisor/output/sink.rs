//! Where a stream of the child's goes: our own stdout or stderr. Writing never makes the reading wait: what our reader does
//! not take at once is kept, and a thread of its own, which most runs never need, brings it after.

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

/// How much of what our reader has not taken is kept in memory.
const IN_MEMORY: usize = 8 << 20;

/// How long a reader of bulk output may take for the next piece before it counts as stuck.
const PATIENCE: Duration = Duration::from_millis(50);

/// Tells the event events, when it is dropped, that all output is where it belongs. Shared by all who write.
#[derive(Debug)]
pub(super) struct Done(pub(super) EventSender);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.send(Event::OutputDone);
    }
}

/// One way out.
#[derive(Debug)]
pub(super) struct Sink {
    name: &'static str,
    /// For writes that do not wait; not everything can be written to in that way.
    direct: Option<File>,
    /// What the writing thread writes to, until it is started.
    out: Option<File>,
    queue: Arc<Queue>,
    /// So many pieces our reader had taken when it was found stuck.
    stuck_at: Option<u64>,
    done: Arc<Done>,
}

/// What the thread that reads and the one that writes share.
#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    spool: Spool,
    /// The writing thread is at work on something that is not in the spool any more.
    writing: bool,
    /// Nothing more will come.
    complete: bool,
    /// Nothing more can be written.
    reader_gone: bool,
}

impl Sink {
    /// A way to `descriptor`, which is called `name`.
    pub(super) fn new(descriptor: BorrowedFd, name: &'static str, done: Arc<Done>) -> io::Result<Self> {
        let out = File::from(descriptor.try_clone_to_owned()?);
        let state = State { spool: Spool::new(IN_MEMORY), writing: false, complete: false, reader_gone: false };
        let queue = Arc::new(Queue { state: Mutex::new(state), changed: Condvar::new() });
        Ok(Self { name, direct: direct(&out), out: Some(out), queue, stuck_at: None, done })
    }

    /// Writes `bytes`, or keeps them; `passed` came before them. False when nobody will ever take them.
    pub(super) fn deliver(&mut self, mut bytes: &[u8], passed: usize) -> bool {
        let state = self.queue.lock();
        if state.reader_gone {
            return false;
        }
        let is_behind = state.writing || !state.spool.is_empty();
        drop(state); // it can only get less behind: nobody else puts anything in
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
        self.keep(bytes, passed > super::BULK)
    }

    fn give_up(&self, error: &io::Error) -> bool {
        tell(self.name, error);
        self.queue.lock().reader_gone = true;
        false
    }

    fn keep(&mut self, bytes: &[u8], in_bulk: bool) -> bool {
        let mut state = self.queue.lock();
        loop {
            if state.reader_gone {
                return false;
            }
            let popped = state.spool.popped();
            if in_bulk && !state.spool.has_room_in_memory(bytes.len()) && self.stuck_at != Some(popped) {
                state = self.queue.wait_a_moment(state);
                if state.spool.popped() == popped {
                    self.stuck_at = Some(popped);
                }
                continue; // while it reads, the detour over the disk would take longer than waiting
            }
            match state.spool.push(bytes) {
                Ok(()) => break,
                // No room on the disk: better to let the child wait than to lose a byte.
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
                tell(name, &error);
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
        // The other thread has panicked between two consistent states; this one goes on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_a_moment<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The writing thread: until all is written, or cannot be.
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
            self.changed.notify_all(); // a reading thread may wait for room
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

fn tell(name: &str, error: &io::Error) {
    if error.kind() != ErrorKind::BrokenPipe {
        warn!(%error, "cannot write the child's output to {name}");
    }
}

/// `out` in a form whose writes never wait for a reader, if there is one: a file; or a pipe or a terminal, opened once more,
/// since the flag on the description that we have inherited would be our caller's as well.
fn direct(out: &File) -> Option<File> {
    let kind = out.metadata().ok()?.file_type();
    if kind.is_fifo() || out.is_terminal() {
        let path = format!("/proc/self/fd/{}", out.as_raw_fd());
        return File::options().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok();
    }
    (kind.is_file() || kind.is_char_device()).then(|| out.try_clone().ok()).flatten()
}

/// As much as `out` takes now.
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

/// Like `Write::write_all`, also where our caller has made `out` non-blocking.
fn write_all(out: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[write_some(out, bytes)?..];
        if !bytes.is_empty() {
            let mut ready = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
            // An error is a signal, and those are blocked here; the next write tells anyway.
            let _ = poll(&mut ready, PollTimeout::NONE);
        }
    }
    Ok(())
}
