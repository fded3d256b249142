//! Copies the child's output to ours, byte for byte unless secrets are masked. One thread reads, however slow our reader is, since
//! claude drops what it cannot write, and looks for frames and lines in what it has copied.

use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Take, pipe};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use memchr::memrchr;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{error, warn};

use super::line_logger::Lines;
use super::shared::Shared;
use super::sink::Sink;
use crate::claude::frames::{FrameEvent, FrameReader, LastResult};
use crate::events::{Event, EventSender};
use crate::redact::Masker;
use crate::sys::pipe::LARGEST;
use crate::sys::signal;
use crate::sys::terminal::Pty;

/// Most bytes that are copied at once. They are still in the cache when they are written and examined: with 256 KiB, a byte costs
/// half as much again.
const BATCH: usize = 64 << 10;

/// Silence after which a frame without its newline counts as complete.
const PAUSE: Duration = Duration::from_millis(200);

/// Silence after which a line that is masked is shown without its end, as a prompt is.
const PROMPT: Duration = Duration::from_millis(50);

/// Longest line that is written at once.
const LONGEST_LINE: usize = 1 << 20;

/// Size of a stream's buffer.
pub(super) const BUFFER: usize = BATCH + LONGEST_LINE;

/// A captured stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) name: &'static str,
    /// Our end of the pipe or pseudo-terminal; `None` at its end, or when nobody reads its output.
    pub(super) input: Option<Take<File>>,
    /// The child's end of a pipe: see `keep_blocking`.
    pub(super) pipe: Option<OwnedFd>,
    /// Side of the terminal that is hung up when this is dropped together with `input`.
    pub(super) terminal: Option<Arc<Pty>>,
    /// Our stdout or stderr; `None` for output that is only logged, or lost.
    pub(super) sink: Option<Sink>,
    pub(super) masker: Option<Masker>,
    /// Secrets are masked for the sink as well as for the log.
    pub(super) masks_all: bool,
    pub(super) frames: Option<FrameReader>,
    pub(super) lines: Option<Lines>,
    /// The log is our stdout or stderr, and stands in for the sink.
    pub(super) log_is_sink: bool,
    pub(super) buffer: Vec<u8>,
    /// Bytes in the buffer: the beginning of a line whose rest is about to be read.
    pub(super) held: usize,
    pub(super) last_read: Option<Instant>,
    /// True if a pause in the output has been dealt with.
    pub(super) is_paused: bool,
    /// True if it was reported that the child waits for our reader.
    pub(super) has_stalled: bool,
}

/// The child's stdout or stderr.
#[derive(Debug)]
pub(super) struct ChildEnd {
    pub(super) descriptor: OwnedFd,
    pub(super) terminal: Weak<Pty>,
}

/// Handle of the thread that copies.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Says that the child is started.
    start: Sender<()>,
    /// Closed when the child has ended.
    child_is_alive: Option<PipeWriter>,
    shared: Arc<Shared>,
    /// Stdout first.
    child_ends: Vec<ChildEnd>,
    /// The child's stderr is its stdout.
    is_one: bool,
}

impl Relay {
    /// Prepares to copy once the child is started. Frames go to `sender`, and in the end [`Event::OutputDone`]. `is_one`: the only stream is stderr as well.
    pub(super) fn start(captured: Vec<(Stream, ChildEnd)>, is_one: bool, sender: EventSender) -> io::Result<Self> {
        let (child_ended, child_is_alive) = pipe()?;
        let (streams, child_ends) = captured.into_iter().unzip();
        let shared = Arc::new(Shared::new(sender));
        let mut copier = Copier { streams, child_ended, shared: Arc::clone(&shared) };
        let (start, started) = mpsc::channel();
        // Without a child the sender is dropped.
        signal::spawn_with_signals_blocked("relay", 256 * 1024, move || {
            started.recv().into_iter().for_each(|()| copier.run())
        })?;
        Ok(Self { start, child_is_alive: Some(child_is_alive), shared, child_ends, is_one })
    }

    /// The child's stdout and stderr, as far as they are captured.
    pub(crate) fn child_ends(&self) -> [Option<BorrowedFd<'_>>; 2] {
        let end = |at| self.child_ends.get(at).map(|end: &ChildEnd| end.descriptor.as_fd());
        [end(0), end(if self.is_one { 0 } else { 1 })]
    }

    /// Time at which our reader has last taken something.
    pub(super) fn last_delivery(&self) -> Instant {
        self.shared.last_delivery()
    }

    /// Time of the child's last output.
    pub(crate) fn last_output(&self) -> Instant {
        self.shared.last_output()
    }

    /// Gives the child's pseudo-terminals the size of ours. False if there are none.
    pub(crate) fn resize(&self) -> bool {
        self.child_ends.iter().filter_map(|end| end.terminal.upgrade()).map(|terminal| terminal.resize()).count() > 0
    }

    /// Begins to copy.
    pub(crate) fn on_child_started(&self) {
        let _ = self.start.send(()); // the thread waits for it
    }

    /// Makes the thread end once it has read what the child, which has ended, has written.
    pub(crate) fn on_child_ended(&mut self) {
        self.child_is_alive = None;
    }

    /// Claude's last result frame, after [`Event::OutputDone`].
    pub(crate) fn last_result(&self) -> Option<LastResult> {
        self.shared.last_result.get().cloned()
    }

    /// Claude's session, after [`Event::OutputDone`].
    pub(crate) fn session_id(&self) -> Option<String> {
        self.shared.session_id.get().cloned()
    }

    /// True if output could not be written, although our reader was there.
    pub(crate) fn lost_output(&self) -> bool {
        self.shared.lost_output.load(Ordering::Relaxed)
    }
}

/// State of the thread that copies.
struct Copier {
    streams: Vec<Stream>,
    /// At EOF when the child has ended.
    child_ended: PipeReader,
    shared: Arc<Shared>,
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.shared.sender.send(Event::OutputDone);
    }
}

impl Copier {
    /// Copies until all streams have ended, or the child has and they are empty; then waits for our reader.
    fn run(&mut self) {
        while self.streams.iter().any(|stream| stream.input.is_some()) {
            let child_ended = self.wait();
            for stream in &mut self.streams {
                stream.deliver(&[], &self.shared); // what is spooled
                stream.pump(child_ended, &self.shared);
            }
        }
        for stream in &mut self.streams {
            if let Some(result) = stream.end(&self.shared) {
                let _ = self.shared.last_result.set(result); // only stdout has frames
            }
            if let Some(id) = stream.frames.as_ref().and_then(FrameReader::session_id) {
                let _ = self.shared.session_id.set(id.to_owned());
            }
        }
        while self.streams.iter().any(Stream::is_behind) {
            self.wait();
            self.streams.iter_mut().for_each(|stream| stream.deliver(&[], &self.shared));
        }
    }

    /// Sleeps until there is something to do. True if the child has ended, and what it has left may still be read.
    fn wait(&mut self) -> bool {
        self.shared.note_stall(self.streams.iter().any(|stream| stream.input.is_some() && !stream.is_reading()));
        let reading = || self.streams.iter().filter(|stream| stream.is_reading());
        let inputs = reading().filter_map(|stream| stream.input.as_ref());
        let mut ready: Vec<_> = inputs.map(|input| PollFd::new(input.get_ref().as_fd(), PollFlags::POLLIN)).collect();
        let reads = !ready.is_empty();
        if reads {
            ready.insert(0, PollFd::new(self.child_ended.as_fd(), PollFlags::POLLIN));
        }
        let sinks = self.streams.iter().filter_map(|stream| stream.sink.as_ref()).filter(|sink| sink.is_behind());
        ready.extend(sinks.map(|sink| PollFd::new(sink.as_fd(), PollFlags::POLLOUT)));
        let timeout = match reading().filter_map(Stream::pause_at).min() {
            _ if reading().any(|stream| stream.held > 0) => PollTimeout::ZERO,
            // Rounded up, or it would wake a little too early.
            Some(at) => (at.saturating_duration_since(Instant::now()).as_millis() as u16 + 1).into(),
            None => PollTimeout::NONE,
        };
        // Signals are blocked here, so EINTR does not come; after another error the next read shows it.
        let _ = poll(&mut ready, timeout);
        let child_ended = reads && ready.first().and_then(PollFd::any).unwrap_or(false);
        let now = Instant::now();
        for stream in self.streams.iter_mut().filter(|stream| stream.pause_at().is_some_and(|at| now >= at)) {
            stream.pause(now, &self.shared);
        }
        child_ended
    }
}

impl Stream {
    fn is_behind(&self) -> bool {
        self.sink.as_ref().is_some_and(Sink::is_behind)
    }

    fn is_reading(&self) -> bool {
        self.input.is_some() && self.sink.as_ref().and_then(Sink::excess).is_none()
    }

    /// Time at which a last line without its newline is taken for whole.
    fn frame_pause_at(&self) -> Option<Instant> {
        let awaits_newline = !self.is_paused && self.frames.as_ref().is_some_and(FrameReader::may_be_complete);
        self.last_read.filter(|_| awaits_newline).map(|at| at + PAUSE)
    }

    /// Time at which such a line is shown, masked.
    fn prompt_at(&self) -> Option<Instant> {
        let is_waiting = self.masks_all && self.masker.as_ref().is_some_and(Masker::is_waiting);
        self.last_read.filter(|_| is_waiting).map(|at| at + PROMPT)
    }

    fn pause_at(&self) -> Option<Instant> {
        [self.frame_pause_at(), self.prompt_at()].into_iter().flatten().min()
    }

    /// Copies what is there, at most a batch. If there is more, it ends with a whole line.
    fn pump(&mut self, child_ended: bool, shared: &Shared) {
        if !self.is_reading() {
            return;
        }
        let Some(input) = &mut self.input else { return };
        if child_ended {
            // All that the child has written is in the pipe by now; more would be a descendant's.
            input.set_limit(input.limit().min(LARGEST as u64));
        }
        keep_blocking(self.pipe.as_ref());
        let read = match input.read(&mut self.buffer[self.held..self.held + BATCH]) {
            Ok(length) if length > 0 => {
                (self.is_paused, self.last_read) = (false, Some(Instant::now()));
                shared.note_output();
                length
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && !child_ended => 0,
            // EIO: the last descriptor of a pseudo-terminal is closed.
            _ => {
                self.input = None;
                0
            }
        };
        let mut buffer = mem::take(&mut self.buffer);
        let length = self.held + read;
        let has_more = read == BATCH && length <= LONGEST_LINE;
        let line_end = || memrchr(b'\n', &buffer[self.held..length]).map_or(0, |end| self.held + end + 1);
        let whole = if has_more { line_end() } else { length };
        if whole > 0 {
            self.copy(&buffer[..whole], shared);
            buffer.copy_within(whole..length, 0);
        }
        (self.buffer, self.held) = (buffer, length - whole);
    }

    fn copy(&mut self, bytes: &[u8], shared: &Shared) {
        if !self.masks_all {
            self.deliver(bytes, shared);
        }
        if let Some(frames) = &mut self.frames {
            // Of each kind the last: there can be a thousand in a batch.
            let mut seen: Vec<FrameEvent> = Vec::new();
            frames.feed(bytes, |frame| {
                seen.retain(|other| mem::discriminant(other) != mem::discriminant(&frame));
                seen.push(frame);
            });
            seen.into_iter().for_each(|frame| shared.sender.send(Event::Frame(frame)));
        }
        let feed = |masker: &mut Masker, masked: &mut Vec<u8>| {
            masked.reserve(bytes.len());
            masker.feed(bytes, masked);
        };
        if self.masker.is_none() { self.pass_on_masked(bytes, shared) } else { self.mask(feed, shared) }
    }

    /// Passes on what `step` of the masker, if there is one, gives.
    fn mask(&mut self, step: impl FnOnce(&mut Masker, &mut Vec<u8>), shared: &Shared) {
        let Some(masker) = &mut self.masker else { return };
        let mut masked = Vec::new();
        step(masker, &mut masked);
        self.pass_on_masked(&masked, shared);
    }

    fn pause(&mut self, now: Instant, shared: &Shared) {
        if self.prompt_at().is_some_and(|at| now >= at) {
            self.mask(Masker::pause, shared);
        }
        if self.frame_pause_at().is_some_and(|at| now >= at)
            && let Some(frames) = &mut self.frames
        {
            self.is_paused = true;
            frames.pause(|frame| shared.sender.send(Event::Frame(frame)));
        }
    }

    fn pass_on_masked(&mut self, bytes: &[u8], shared: &Shared) {
        if self.masks_all {
            self.deliver(bytes, shared);
        }
        if let Some(lines) = &mut self.lines {
            lines.feed(bytes);
        }
    }

    /// Writes or spools `bytes`, after those that are spooled already.
    fn deliver(&mut self, bytes: &[u8], shared: &Shared) {
        let Some(sink) = &mut self.sink else { return };
        let error = match sink.deliver(bytes) {
            Ok(has_taken) => {
                if has_taken {
                    shared.note_delivery();
                }
                if let Some(length) = sink.excess().filter(|_| !mem::replace(&mut self.has_stalled, true)) {
                    let behind = length >> 20;
                    warn!(
                        "the reader of {} is {behind} MiB behind, and no more is kept for it: the child has to wait",
                        self.name
                    );
                }
                return;
            }
            Err(error) => error,
        };
        self.sink = None;
        if error.kind() != ErrorKind::BrokenPipe {
            // The child goes on, as if all were read: it may have more to do than to print.
            error!(%error, "cannot write the child's output to {}: from here on it is lost", self.name);
            shared.lost_output.store(true, Ordering::Relaxed);
            return;
        }
        // Our reader is gone: with the pipe closed, the child gets EPIPE, as it would without us.
        self.input = None;
        if self.terminal.take().is_some() {
            shared.sender.send(Event::HungUp); // it would get EIO
        }
    }

    /// Ends the stream, and returns the last result frame in it.
    fn end(&mut self, shared: &Shared) -> Option<LastResult> {
        let buffer = mem::take(&mut self.buffer);
        self.copy(&buffer[..self.held], shared);
        self.mask(Masker::end, shared);
        self.input = None;
        if let Some(lines) = &mut self.lines {
            lines.end();
            shared.lost_output.fetch_or(self.log_is_sink && lines.has_lost, Ordering::Relaxed);
        }
        let frames = self.frames.as_mut()?;
        let is_complete = frames.end(|frame| shared.sender.send(Event::Frame(frame)));
        if !is_complete && self.sink.is_some() {
            warn!("the child's {} ends in the middle of a frame: the rest is missing", self.name);
        }
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
