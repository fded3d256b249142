//! Copies the child's output to ours, byte for byte unless secrets are masked. One thread reads, however slow our reader is, since
//! claude drops what it cannot write, and looks for frames and lines in what it has copied.

use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Take, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::warn;

use super::line_logger::Lines;
use super::redact::Masker;
use super::sink::Sink;
use crate::claude::frames::{FrameReader, LastResult};
use crate::events::{Event, EventQueue, EventSender};
use crate::sys::pipe::PIPE_SIZE;
use crate::sys::signal::{self, SigSet, Signal};
use crate::sys::terminal::Pty;

/// Most bytes that are copied at once. They are still in the cache when they are written and examined: with 256 KiB, a byte costs
/// half as much again.
const BATCH: usize = 64 << 10;

/// How long a reader may take for the rest of the output after a termination request.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// A captured stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) name: &'static str,
    /// Our end of the pipe or pseudo-terminal; `None` at its end, or when nobody reads its output.
    pub(super) input: Option<Take<File>>,
    /// The child's end of a pipe: see `keep_blocking`.
    pub(super) pipe: Option<OwnedFd>,
    /// Our stdout or stderr; `None` for output that is only logged.
    pub(super) sink: Option<Sink>,
    pub(super) masker: Option<Masker>,
    /// Secrets are masked for the sink as well as for the log.
    pub(super) masks_all: bool,
    pub(super) frames: Option<FrameReader>,
    pub(super) lines: Option<Lines>,
}

/// Shared between the relay's thread and the supervisor.
#[derive(Debug)]
struct Observed {
    started: Instant,
    /// Nanoseconds from `started` to the last byte.
    last_output: AtomicU64,
    last_result: OnceLock<LastResult>,
    session_id: OnceLock<String>,
}

/// The child's stdout or stderr.
#[derive(Debug)]
pub(super) struct ChildEnd {
    pub(super) descriptor: OwnedFd,
    pub(super) terminal: Option<Pty>,
}

/// Handle of the thread that copies.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Closed when the child has ended.
    child_is_alive: Option<PipeWriter>,
    observed: Arc<Observed>,
    /// Stdout first.
    child_ends: Vec<ChildEnd>,
}

impl Relay {
    /// Starts copying. Frames go to `sender`, and in the end [`Event::OutputDone`].
    pub(super) fn start(captured: Vec<(Stream, ChildEnd)>, sender: EventSender) -> io::Result<Self> {
        let (child_ended, child_is_alive) = pipe()?;
        let (streams, child_ends) = captured.into_iter().unzip();
        let last_output = AtomicU64::new(0);
        let (last_result, session_id) = (OnceLock::new(), OnceLock::new());
        let observed = Arc::new(Observed { started: Instant::now(), last_output, last_result, session_id });
        let mut copier = Copier { streams, child_ended, sender, observed: Arc::clone(&observed) };
        signal::spawn_with_signals_blocked("relay", 256 * 1024, move || copier.run())?;
        Ok(Self { child_is_alive: Some(child_is_alive), observed, child_ends })
    }

    /// The child's stdout and stderr, as far as they are captured.
    pub(crate) fn child_ends(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [0, 1].map(|at| self.child_ends.get(at).map(|end| end.descriptor.as_fd()))
    }

    /// Time of the child's last output.
    pub(crate) fn last_output(&self) -> Instant {
        self.observed.started + Duration::from_nanos(self.observed.last_output.load(Ordering::Relaxed))
    }

    /// Gives the child's pseudo-terminals the size of ours. False if there are none.
    pub(crate) fn resize(&self) -> bool {
        self.child_ends.iter().filter_map(|end| end.terminal.as_ref()).map(Pty::resize).count() > 0
    }

    /// Makes the thread end once it has read what the child, which has ended, has written.
    pub(crate) fn on_child_ended(&mut self) {
        self.child_is_alive = None;
    }

    /// Claude's last result frame, after [`Event::OutputDone`].
    pub(crate) fn last_result(&self) -> Option<LastResult> {
        self.observed.last_result.get().cloned()
    }

    /// Claude's session, after [`Event::OutputDone`].
    pub(crate) fn session_id(&self) -> Option<String> {
        self.observed.session_id.get().cloned()
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
                Event::Signal(signal, _) if signal::requests_end(signal) => return interrupted_by(signal),
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

impl Drop for Copier {
    fn drop(&mut self) {
        self.sender.send(Event::OutputDone);
    }
}

impl Copier {
    /// Copies until all streams have ended, or the child has and they are empty; then waits for our reader.
    fn run(&mut self) {
        let mut buffer = vec![0; BATCH];
        while self.streams.iter().any(|stream| stream.input.is_some()) {
            let child_ended = self.wait();
            for stream in &mut self.streams {
                stream.deliver(&[]); // what is spooled
                let read = stream.read(&mut buffer, child_ended);
                if read > 0 {
                    self.observed.last_output.store(self.observed.started.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    stream.copy(&buffer[..read], &self.sender);
                }
            }
        }
        for stream in &mut self.streams {
            if let Some(result) = stream.end(&self.sender) {
                let _ = self.observed.last_result.set(result); // only stdout has frames
            }
            if let Some(id) = stream.frames.as_ref().and_then(FrameReader::session_id) {
                let _ = self.observed.session_id.set(id.to_owned());
            }
        }
        while self.streams.iter().any(Stream::is_behind) {
            self.wait();
            self.streams.iter_mut().for_each(|stream| stream.deliver(&[]));
        }
    }

    /// Sleeps until there is something to do. True if the child has ended, and what it has left may still be read.
    fn wait(&self) -> bool {
        let readable = self.streams.iter().filter(|stream| !stream.is_stalled()).filter_map(|stream| stream.input.as_ref());
        let mut ready: Vec<_> = readable.map(|input| PollFd::new(input.get_ref().as_fd(), PollFlags::POLLIN)).collect();
        let reads = !ready.is_empty();
        if reads {
            ready.insert(0, PollFd::new(self.child_ended.as_fd(), PollFlags::POLLIN));
        }
        let sinks = self.streams.iter().filter_map(|stream| stream.sink.as_ref()).filter(|sink| sink.is_behind());
        ready.extend(sinks.map(|sink| PollFd::new(sink.as_fd(), PollFlags::POLLOUT)));
        // Signals are blocked here, so EINTR does not come; after another error the next read shows it.
        let _ = poll(&mut ready, PollTimeout::NONE);
        reads && ready.first().and_then(PollFd::any).unwrap_or(false)
    }
}

impl Stream {
    fn is_behind(&self) -> bool {
        self.sink.as_ref().is_some_and(Sink::is_behind)
    }

    fn is_stalled(&self) -> bool {
        self.sink.as_ref().is_some_and(Sink::is_full)
    }

    /// Reads what is there, and returns its length.
    fn read(&mut self, buffer: &mut [u8], child_ended: bool) -> usize {
        if self.is_stalled() {
            return 0;
        }
        let Some(input) = &mut self.input else { return 0 };
        if child_ended {
            // All that the child has written is in the pipe by now; more would be a descendant's.
            input.set_limit(input.limit().min(PIPE_SIZE as u64));
        }
        keep_blocking(self.pipe.as_ref());
        match input.read(buffer) {
            Ok(length) if length > 0 => return length,
            Err(error) if error.kind() == ErrorKind::WouldBlock && !child_ended => {}
            // EIO: the last descriptor of a pseudo-terminal is closed.
            _ => self.input = None,
        }
        0
    }

    fn copy(&mut self, bytes: &[u8], sender: &EventSender) {
        if !self.masks_all {
            self.deliver(bytes);
        }
        if let Some(frames) = &mut self.frames {
            frames.feed(bytes, |frame| sender.send(Event::Frame(frame)));
        }
        match &mut self.masker {
            None => self.pass_on_masked(bytes),
            Some(masker) => {
                let mut masked = Vec::with_capacity(bytes.len());
                masker.feed(bytes, &mut masked);
                self.pass_on_masked(&masked);
            }
        }
    }

    fn pass_on_masked(&mut self, bytes: &[u8]) {
        if self.masks_all {
            self.deliver(bytes);
        }
        if let Some(lines) = &mut self.lines {
            lines.feed(bytes);
        }
    }

    /// Writes or spools `bytes`, after those that are spooled already.
    fn deliver(&mut self, bytes: &[u8]) {
        let delivered = self.sink.as_mut().map_or(Ok(()), |sink| sink.deliver(bytes));
        let Err(error) = delivered else { return };
        if error.kind() != ErrorKind::BrokenPipe {
            warn!(%error, "cannot write the child's output to {}", self.name);
        }
        // Nobody will read more: with the pipe closed, the child gets EPIPE, as it would without us.
        (self.input, self.sink) = (None, None);
    }

    /// Ends the stream, and returns the last result frame in it.
    fn end(&mut self, sender: &EventSender) -> Option<LastResult> {
        self.input = None;
        if let Some(masker) = &mut self.masker {
            let mut masked = Vec::new();
            masker.end(&mut masked);
            self.pass_on_masked(&masked);
        }
        if let Some(lines) = &mut self.lines {
            lines.end();
        }
        let frames = self.frames.as_mut()?;
        frames.end(|frame| sender.send(Event::Frame(frame)));
        frames.last_result().cloned()
    }
}

/// Claude Code 2.1.84 exits without waiting for what its stdout has not taken at once, and node makes a pipe non-blocking. The open
/// file is the child's and ours: made blocking again before anything is read, claude's next write returns when all of it is in the
/// pipe.
fn keep_blocking(pipe: Option<&OwnedFd>) {
    if let Some(pipe) = pipe
        && let Ok(flags) = fcntl(pipe, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
        && flags.contains(OFlag::O_NONBLOCK)
    {
        // If refused, claude can lose what it could lose without us.
        let _ = fcntl(pipe, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK));
    }
}
