//! Copies the child's output to ours, byte for byte unless secrets are masked. One thread reads, however slow our reader is, since
//! claude drops what it cannot write, and looks for frames and lines in what it has copied.

use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, pipe};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use tracing::warn;

use super::line_logger::Lines;
use super::redact::Masker;
use super::sink::{OutputDoneGuard, Sink};
use crate::claude::frames::{FrameReader, LastResult};
use crate::events::{Event, EventQueue, EventSender};
use crate::sys::pipe::PIPE_SIZE;
use crate::sys::signal;
use crate::sys::terminal::Pty;

/// Most bytes that are copied before they are examined, while the child writes without a pause.
const BATCH: usize = PIPE_SIZE as usize;

/// [`BATCH`] for bulk output: what is still in the processor's cache when it is examined.
const BULK_BATCH: usize = 128 << 10;

/// A captured stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// Our end of the pipe or pseudo-terminal; `None` at its end, or when nobody reads its output.
    pub(super) input: Option<File>,
    /// The child's end of a pipe: see `keep_blocking`.
    pub(super) pipe: Option<File>,
    /// Our stdout or stderr; `None` for output that is only logged.
    pub(super) sink: Option<Sink>,
    pub(super) masker: Option<Masker>,
    /// Bytes read so far.
    pub(super) passed: usize,
    pub(super) frames: Option<FrameReader>,
    pub(super) lines: Option<Lines>,
}

/// Shared between the relay's thread and the supervisor.
#[derive(Debug)]
struct Observed {
    started: Instant,
    /// Nanoseconds from `started` to the last byte.
    last_output: AtomicU64,
    last_result: Mutex<Option<LastResult>>,
}

/// Handle of the thread that copies.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Closed when the child has ended.
    child_is_alive: Option<PipeWriter>,
    observed: Arc<Observed>,
    terminals: Vec<Pty>,
}

/// How long a reader may take for the rest of the output after a termination request.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

impl Relay {
    /// Starts copying. Frames go to `sender`; [`Event::OutputDone`] follows when the last clone of `done` is dropped.
    pub(super) fn start(
        streams: Vec<Stream>,
        terminals: Vec<Pty>,
        sender: EventSender,
        done: Arc<OutputDoneGuard>,
    ) -> io::Result<Self> {
        let (child_ended, child_is_alive) = pipe()?;
        let last_output = AtomicU64::new(0);
        let observed = Arc::new(Observed { started: Instant::now(), last_output, last_result: Mutex::new(None) });
        let mut copier = Copier { streams, child_ended, sender, observed: Arc::clone(&observed) };
        let work = move || {
            copier.run();
            drop(copier);
            drop(done);
        };
        signal::spawn_with_signals_blocked("relay", 256 * 1024, work)?;
        Ok(Self { child_is_alive: Some(child_is_alive), observed, terminals })
    }

    /// Time of the child's last output.
    pub(crate) fn last_output(&self) -> Instant {
        self.observed.started + Duration::from_nanos(self.observed.last_output.load(Ordering::Relaxed))
    }

    /// Gives the child's pseudo-terminals the size of ours. False if there are none.
    pub(crate) fn resize(&self) -> bool {
        self.terminals.iter().for_each(Pty::resize);
        !self.terminals.is_empty()
    }

    /// Makes the thread end once it has read what the child, which has ended, has written.
    pub(crate) fn on_child_ended(&mut self) {
        self.child_is_alive = None;
    }

    /// Claude's last result frame, after [`Event::OutputDone`].
    pub(crate) fn take_last_result(&self) -> Option<LastResult> {
        self.observed.last_result.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Waits, after the child's end, until our reader has taken all output. A termination request ends the wait, as it would end a child
/// that waits for its reader; an earlier one, `request`, ends it after [`DRAIN_GRACE`]. Returns the signal that ended it.
pub(crate) fn drain(request: Option<Signal>, events: &mut EventQueue, ignored: SigSet) -> io::Result<Option<Signal>> {
    let deadline = request.map(|_| Instant::now() + DRAIN_GRACE);
    let interrupted_by = |signal| {
        warn!("{signal} ended the wait for the reader of the child's output; some of it is lost");
        Ok(Some(signal))
    };
    loop {
        let events = events.wait(deadline)?;
        if events.contains(&Event::OutputDone) {
            return Ok(None);
        }
        if let (Some(signal), Some(at)) = (request, deadline)
            && Instant::now() >= at
        {
            return interrupted_by(signal);
        }
        for event in events {
            match event {
                Event::Signal(signal, _) if ignored.contains(signal) => {}
                Event::Signal(signal @ (Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM), _) => {
                    return interrupted_by(signal);
                }
                Event::Signal(Signal::SIGTSTP, source) => signal::stop_for_job_control(source),
                Event::Signal(Signal::SIGUSR1, _) => warn!("the child has ended; its output waits for our reader"),
                _ => {}
            }
        }
    }
}

/// State of the thread that copies.
struct Copier {
    streams: Vec<Stream>,
    /// At EOF when the child has ended.
    child_ended: PipeReader,
    sender: EventSender,
    observed: Arc<Observed>,
}

impl Copier {
    /// Copies until all streams have ended, or the child has and they are empty.
    fn run(&mut self) {
        // Twice the pipe, so that a read always takes all that is in it: claude goes on when the first byte is taken, and writes as
        // much as is free by then.
        let mut buffer = vec![0; 2 * PIPE_SIZE as usize];
        while self.streams.iter().any(|stream| stream.input.is_some()) {
            let child_is_alive = self.wait();
            for stream in &mut self.streams {
                if child_is_alive {
                    stream.pump(&mut buffer, &self.sender, &self.observed);
                    continue;
                }
                // All that the child has written is in the pipe by now; more would be a descendant's.
                let mut left = PIPE_SIZE as usize;
                while left > 0 && stream.input.is_some() {
                    match stream.pump(&mut buffer, &self.sender, &self.observed) {
                        0 => break,
                        length => left = left.saturating_sub(length),
                    }
                }
            }
            if !child_is_alive {
                break;
            }
        }
        for stream in &mut self.streams {
            stream.end(&self.sender, &self.observed);
        }
    }

    /// Sleeps until there is something to read, or the child has ended: then false.
    fn wait(&self) -> bool {
        let inputs = self.streams.iter().filter_map(|stream| stream.input.as_ref());
        let mut ready: Vec<_> = inputs.map(|input| PollFd::new(input.as_fd(), PollFlags::POLLIN)).collect();
        ready.push(PollFd::new(self.child_ended.as_fd(), PollFlags::POLLIN));
        // Signals are blocked here, so EINTR does not come; after another error the next read shows it.
        let _ = poll(&mut ready, PollTimeout::NONE);
        !ready.last().and_then(PollFd::any).unwrap_or(false)
    }
}

impl Stream {
    /// Copies what is there, at most a batch, and returns its length. It is examined only when the pipe is empty or the batch is
    /// full: meanwhile claude might exit and drop what does not fit into the pipe.
    fn pump(&mut self, buffer: &mut [u8], sender: &EventSender, observed: &Observed) -> usize {
        let batch = if self.passed < super::BULK { BATCH } else { BULK_BATCH };
        let buffer = &mut buffer[..2 * batch];
        let mut read = 0;
        while let Some(input) = &mut self.input
            && read < batch
        {
            match input.read(&mut buffer[read..]) {
                Ok(0) => self.input = None,
                Ok(length) => {
                    self.keep_blocking();
                    observed.last_output.store(observed.started.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    if !self.deliver(&buffer[read..read + length]) {
                        // Our reader is gone: with the pipe closed, the child gets EPIPE, as it would without us.
                        self.input = None;
                    }
                    read += length;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.input = None, // EIO: the last descriptor of a pseudo-terminal is closed
            }
        }
        self.passed += read;
        if let Some(frames) = &mut self.frames {
            frames.feed(&buffer[..read], |frame| sender.send(Event::Frame(frame)));
        }
        if let Some(lines) = &mut self.lines {
            lines.feed(&buffer[..read]);
        }
        read
    }

    /// False if nobody will ever read it.
    fn deliver(&mut self, bytes: &[u8]) -> bool {
        let Some(sink) = &mut self.sink else { return true };
        match &mut self.masker {
            None => sink.deliver(bytes, self.passed),
            Some(masker) => {
                let mut masked = Vec::with_capacity(bytes.len());
                masker.feed(bytes, &mut masked);
                sink.deliver(&masked, self.passed)
            }
        }
    }

    /// Claude Code 2.1.84 exits without waiting for what its stdout has not taken at once, and node makes a pipe non-blocking. The
    /// open file is the child's and ours: made blocking again, claude's next write returns when all of it is in the pipe.
    fn keep_blocking(&self) {
        let Some(pipe) = &self.pipe else { return };
        if let Ok(flags) = fcntl(pipe, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
            && flags.contains(OFlag::O_NONBLOCK)
        {
            // If refused, claude can lose what it could lose without us.
            let _ = fcntl(pipe, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK));
        }
    }

    fn end(&mut self, sender: &EventSender, observed: &Observed) {
        self.input = None;
        if let (Some(masker), Some(sink)) = (&mut self.masker, &mut self.sink) {
            let mut masked = Vec::new();
            masker.end(&mut masked);
            sink.deliver(&masked, self.passed);
        }
        self.sink = None;
        if let Some(frames) = &mut self.frames {
            frames.end(|frame| sender.send(Event::Frame(frame)));
            *observed.last_result.lock().unwrap_or_else(PoisonError::into_inner) = frames.last_result().cloned();
        }
        if let Some(lines) = &mut self.lines {
            lines.end();
        }
    }
}
