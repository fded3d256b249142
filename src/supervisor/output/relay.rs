//! Copies the child's output to ours: never adds, drops or holds back a byte, unless it is asked to mask secrets. One thread
//! reads, and keeps reading whatever our reader does, since claude drops what it cannot write; and it looks on the side at
//! what passes, for frames, for the log, and for how long it has been silent.

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
use super::sink::{Done, Sink};
use crate::claude::frames::{FrameReader, LastResult};
use crate::events::{Event, EventQueue, EventSender};
use crate::sys::pipe::PIPE_SIZE;
use crate::sys::signal;

/// How much is read before it is looked at, when the child writes without a pause.
const MOST_UNSEEN: usize = PIPE_SIZE as usize;

/// The same once much more has come than claude says in a run: as much as is still in the processor's cache when it is
/// written and looked at.
const MOST_UNSEEN_IN_BULK: usize = 128 << 10;

/// One stream, and what is done with it.
#[derive(Debug)]
pub(super) struct Stream {
    /// Our end of the child's pipe or pseudo-terminal; `None` when it is at its end, or nobody wants it any more.
    pub(super) input: Option<File>,
    /// The child's end of a pipe: see `keep_blocking`.
    pub(super) pipe: Option<File>,
    /// Where it goes; nowhere if it is only logged.
    pub(super) sink: Option<Sink>,
    /// What it passes through on its way there.
    pub(super) masker: Option<Masker>,
    /// How many bytes have come.
    pub(super) passed: usize,
    pub(super) frames: Option<FrameReader>,
    pub(super) lines: Option<Lines>,
}

/// What the thread that reads tells the one that supervises.
#[derive(Debug)]
struct Seen {
    started: Instant,
    /// Nanoseconds from `started` to the last byte.
    last_output: AtomicU64,
    last_result: Mutex<Option<LastResult>>,
}

/// A relay at work.
#[derive(Debug)]
pub(super) struct Relay {
    /// Closing it tells the reading thread that the child is dead.
    child_is_alive: PipeWriter,
    seen: Arc<Seen>,
}

/// What a reader that reads needs for the rest, and more.
const IN_GOOD_TIME: Duration = Duration::from_secs(1);

/// How a relay came to its end.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    /// The signal that ended the wait for our reader, if one did.
    pub(crate) interrupted_by: Option<Signal>,
    /// What claude's last result frame says.
    pub(crate) last_result: Option<LastResult>,
}

impl Relay {
    /// Starts copying. Frames go to `sender`, and [`Event::OutputDone`] does when the last clone of `done` is gone.
    ///
    /// # Errors
    /// The process is out of descriptors or threads.
    pub(super) fn start(streams: Vec<Stream>, sender: EventSender, done: Arc<Done>) -> io::Result<Self> {
        let (stop, child_is_alive) = pipe()?;
        let seen = Seen { started: Instant::now(), last_output: AtomicU64::new(0), last_result: Mutex::new(None) };
        let seen = Arc::new(seen);
        let for_thread = Arc::clone(&seen);
        let work = move || {
            copy(streams, &stop, &sender, &for_thread);
            drop(done);
        };
        signal::spawn_with_signals_blocked("relay", 256 * 1024, work)?;
        Ok(Self { child_is_alive, seen })
    }

    /// When the child has last written something.
    pub(super) fn last_output(&self) -> Instant {
        self.seen.started + Duration::from_nanos(self.seen.last_output.load(Ordering::Relaxed))
    }

    /// After the child's death: stays until our reader has taken all that the child has written, if that is not so already.
    /// A request to end cuts that short, as it would end a child that waits for its reader; one that came before, as `request`, when
    /// a reader that reads has had the time for it. `ignored` signals ask for nothing.
    ///
    /// # Errors
    /// poll(2) fails.
    pub(super) fn finish(
        self,
        is_done: bool,
        request: Option<Signal>,
        events: &mut EventQueue,
        ignored: SigSet,
    ) -> io::Result<Finished> {
        drop(self.child_is_alive);
        let interrupted_by = if is_done { None } else { until_done(request, events, ignored)? };
        let last_result = self.seen.last_result.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Finished { interrupted_by, last_result })
    }
}

fn until_done(request: Option<Signal>, events: &mut EventQueue, ignored: SigSet) -> io::Result<Option<Signal>> {
    let cut_at = request.map(|_| Instant::now() + IN_GOOD_TIME);
    let interrupted_by = |signal| {
        warn!("{signal} ended the wait for the reader of the child's output; some of it is lost");
        Ok(Some(signal))
    };
    loop {
        let events = events.wait(cut_at)?;
        if events.contains(&Event::OutputDone) {
            return Ok(None);
        }
        if let (Some(signal), Some(at)) = (request, cut_at)
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
                Event::Signal(Signal::SIGTSTP, sender) => signal::stop_if_asked(sender),
                Event::Signal(Signal::SIGUSR1, _) => warn!("the child has ended; its output waits for our reader"),
                _ => {}
            }
        }
    }
}

/// The thread: until the end of all streams, or until the child is dead and they are empty.
fn copy(mut streams: Vec<Stream>, stop: &PipeReader, sender: &EventSender, seen: &Seen) {
    // Twice as large as the pipe, so that a read can always take all that is in it: claude goes on when the first byte is
    // taken, and gets as much out as is free by then.
    let mut buffer = vec![0; 2 * PIPE_SIZE as usize];
    while streams.iter().any(|stream| stream.input.is_some()) {
        let child_is_alive = wait(&streams, stop);
        for stream in &mut streams {
            if child_is_alive {
                stream.pump(&mut buffer, sender, seen);
                continue;
            }
            // All that the child has written is in the pipe by now: what comes beyond that is not the child's.
            let mut left = PIPE_SIZE as usize;
            while left > 0 && stream.input.is_some() {
                match stream.pump(&mut buffer, sender, seen) {
                    0 => break,
                    length => left = left.saturating_sub(length),
                }
            }
        }
        if !child_is_alive {
            break;
        }
    }
    for stream in &mut streams {
        stream.end(sender, seen);
    }
}

/// Sleeps until there is something to read, or the child is dead: then it says so.
fn wait(streams: &[Stream], stop: &PipeReader) -> bool {
    let inputs = streams.iter().filter_map(|stream| stream.input.as_ref());
    let mut ready: Vec<_> = inputs.map(|input| PollFd::new(input.as_fd(), PollFlags::POLLIN)).collect();
    ready.push(PollFd::new(stop.as_fd(), PollFlags::POLLIN));
    // An error is a signal, and those are blocked here; the next read tells anyway.
    let _ = poll(&mut ready, PollTimeout::NONE);
    !ready.last().and_then(PollFd::any).unwrap_or(false)
}

impl Stream {
    /// Passes on what is there, or the first of it, and says how much it was. What the child has written is looked at only
    /// when its pipe is empty, or much has come: claude may exit and drop what does not fit into the pipe while we look.
    fn pump(&mut self, buffer: &mut [u8], sender: &EventSender, seen: &Seen) -> usize {
        let most = if self.passed < super::BULK { MOST_UNSEEN } else { MOST_UNSEEN_IN_BULK };
        let buffer = &mut buffer[..2 * most];
        let mut unseen = 0;
        while let Some(input) = &mut self.input {
            match input.read(&mut buffer[unseen..]) {
                Ok(0) => self.input = None,
                Ok(length) => {
                    self.keep_blocking();
                    seen.last_output.store(seen.started.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    if !self.deliver(&buffer[unseen..unseen + length]) {
                        // Our reader is gone: dropping the pipe, the child meets EPIPE, as it would without us.
                        self.input = None;
                    }
                    unseen += length;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.input = None, // EIO: the last descriptor of a pseudo-terminal is closed
            }
            if unseen >= most {
                break;
            }
        }
        self.passed += unseen;
        self.look_at(&buffer[..unseen], sender);
        unseen
    }

    /// False when nobody will ever take what is delivered.
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

    fn look_at(&mut self, bytes: &[u8], sender: &EventSender) {
        if let Some(frames) = &mut self.frames {
            frames.feed(bytes, |sighting| sender.send(Event::Frame(sighting)));
        }
        if let Some(lines) = &mut self.lines {
            lines.feed(bytes);
        }
    }

    /// Claude Code 2.1.84 exits without waiting for what its stdout has not taken at once, and node makes a pipe refuse what
    /// it has no room for. It is the same open file for us and for the child: made to block again, claude's next write
    /// returns when all of it is in the pipe, which we keep emptying.
    fn keep_blocking(&self) {
        let Some(pipe) = &self.pipe else { return };
        if let Ok(flags) = fcntl(pipe, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
            && flags.contains(OFlag::O_NONBLOCK)
        {
            // Refused, claude can lose what it could lose without us.
            let _ = fcntl(pipe, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK));
        }
    }

    fn end(&mut self, sender: &EventSender, seen: &Seen) {
        self.input = None;
        if let (Some(masker), Some(sink)) = (&mut self.masker, &mut self.sink) {
            let mut masked = Vec::new();
            masker.end(&mut masked);
            sink.deliver(&masked, self.passed);
        }
        self.sink = None;
        if let Some(frames) = &mut self.frames {
            frames.end(|sighting| sender.send(Event::Frame(sighting)));
            *seen.last_result.lock().unwrap_or_else(PoisonError::into_inner) = frames.last_result().cloned();
        }
        if let Some(lines) = &mut self.lines {
            lines.end();
        }
    }
}
