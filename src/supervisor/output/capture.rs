//! Which of the child's streams are read, and all that this takes, from before its start to after its end.

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal, PipeReader, PipeWriter, pipe, stderr, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};

use super::line_logger::Lines;
use super::redact::{Masker, Secrets};
use super::relay::{Finished, Relay, Stream};
use super::sink::{Done, Sink};
use crate::claude::frames::FrameReader;
use crate::config::settings::{Redact, Settings};
use crate::events::{EventQueue, EventSender};
use crate::logging::LogFile;
use crate::sys::pipe::enlarge;
use crate::sys::pty::Pty;

/// What the child's output is read for.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Frames, on stdout.
    pub frames: bool,
    /// Without a successful result frame, exit code 0 is none.
    pub requires_result: bool,
    /// How long it has been silent.
    pub silence: bool,
    /// stdout is to be a pseudo-terminal.
    pub pty: bool,
    /// Lines go there.
    pub log: Option<Arc<LogFile>>,
    /// Masked in the log.
    pub secrets: Option<Arc<Secrets>>,
    /// Masked on their way to our own stdout and stderr as well.
    pub redacts_all: bool,
}

/// The child's ends and ours, before it is started.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    watch: &'a Watch,
    stdout: Option<Ends>,
    stderr: Option<Ends>,
}

/// What the child writes to, and what we read.
#[derive(Debug)]
enum Ends {
    Pipe(PipeReader, PipeWriter),
    Pty(Pty, OwnedFd),
}

/// A child's output, being read.
#[derive(Debug)]
pub(crate) struct Capture {
    relay: Relay,
    terminals: Vec<Pty>,
}

impl Watch {
    /// Finds out what to read output for: a result that is required, other frames, a log, secrets.
    pub(crate) fn new(settings: &Settings, requires_result: bool, frames: bool, log: Option<Arc<LogFile>>) -> Result<Self> {
        let redacts_all = settings.redact == Redact::All;
        let masks = redacts_all || (settings.redact == Redact::Log && log.is_some());
        let secrets = masks.then(|| Secrets::new(env::vars_os()).map(Arc::new)).transpose();
        let secrets = secrets.context("cannot look for the secrets in the environment; --redact off runs without")?;
        let (silence, pty) = (settings.idle_limit.as_limit().is_some(), settings.pty);
        Ok(Self { frames: frames || requires_result, requires_result, silence, pty, log, secrets, redacts_all })
    }

    fn reads_both(&self) -> bool {
        self.silence || self.log.is_some() || self.redacts_all
    }

    /// Whether anything has to be read.
    pub(crate) fn reads(&self) -> bool {
        self.frames || self.pty || self.reads_both()
    }

    /// Makes what is needed for the streams that have to be read. Others go straight to where ours go, and a pipe there is
    /// enlarged.
    ///
    /// # Errors
    /// The process is out of descriptors, or the system of pseudo-terminals.
    pub(crate) fn prepare(&self) -> io::Result<Prepared<'_>> {
        enlarge(stdout());
        let out = self.reads().then(|| Ends::new(self.pty || stdout().is_terminal()));
        let err = self.reads_both().then(|| Ends::new(stderr().is_terminal()));
        Ok(Prepared { watch: self, stdout: out.transpose()?, stderr: err.transpose()? })
    }
}

impl Ends {
    fn new(pty: bool) -> io::Result<Self> {
        if pty {
            return Pty::open().map(|(ours, childs)| Self::Pty(ours, childs));
        }
        let (reader, writer) = pipe()?;
        enlarge(&writer);
        // The description is ours alone: the child has the other end.
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self::Pipe(reader, writer))
    }

    fn for_child(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pipe(_, writer) => writer.as_fd(),
            Self::Pty(_, slave) => slave.as_fd(),
        }
    }
}

impl Prepared<'_> {
    /// What the child gets as its stdout, if not ours.
    pub(crate) fn stdout(&self) -> Option<BorrowedFd<'_>> {
        self.stdout.as_ref().map(Ends::for_child)
    }

    /// What the child gets as its stderr, if not ours.
    pub(crate) fn stderr(&self) -> Option<BorrowedFd<'_>> {
        self.stderr.as_ref().map(Ends::for_child)
    }

    /// Starts reading, once the child is started. Nothing, if nothing has to be read.
    ///
    /// # Errors
    /// The process is out of descriptors or threads.
    pub(crate) fn start(self, sender: EventSender) -> io::Result<Option<Capture>> {
        if !self.watch.reads() {
            return Ok(None);
        }
        let done = Arc::new(Done(sender.clone()));
        let mut streams = Vec::new();
        let mut terminals = Vec::new();
        if let Some(ends) = self.stdout {
            let sink = Sink::new(stdout().as_fd(), "stdout", Arc::clone(&done))?;
            let frames = self.watch.frames.then(FrameReader::default);
            streams.push(stream(self.watch, "stdout", ends, Some(sink), frames, &mut terminals)?);
        }
        if let Some(ends) = self.stderr {
            // Where the log is our stderr, it has the lines already.
            let is_logged = self.watch.log.as_ref().is_some_and(|log| log.is_stderr());
            let sink = if is_logged { None } else { Some(Sink::new(stderr().as_fd(), "stderr", Arc::clone(&done))?) };
            streams.push(stream(self.watch, "stderr", ends, sink, None, &mut terminals)?);
        }
        Ok(Some(Capture { relay: Relay::start(streams, sender, done)?, terminals }))
    }
}

fn stream(
    watch: &Watch,
    name: &'static str,
    ends: Ends,
    sink: Option<Sink>,
    frames: Option<FrameReader>,
    terminals: &mut Vec<Pty>,
) -> io::Result<Stream> {
    let (input, pipe) = match ends {
        Ends::Pipe(reader, writer) => (File::from(OwnedFd::from(reader)), Some(File::from(OwnedFd::from(writer)))),
        Ends::Pty(pty, _childs) => {
            let input = pty.reader()?;
            terminals.push(pty);
            (input, None)
        }
    };
    let masker = || watch.secrets.clone().map(Masker::new);
    let lines = watch.log.clone().map(|log| Lines::new(log, name, masker()));
    let masker = if watch.redacts_all { masker() } else { None };
    Ok(Stream { input: Some(input), pipe, sink, masker, passed: 0, frames, lines })
}

impl Capture {
    /// When the child has last written something.
    pub(crate) fn last_output(&self) -> Instant {
        self.relay.last_output()
    }

    /// Gives the child's pseudo-terminals the size of ours. Whether there are any.
    pub(crate) fn resize(&self) -> bool {
        self.terminals.iter().for_each(Pty::resize);
        !self.terminals.is_empty()
    }

    /// After the child's death: see [`Relay::finish`].
    ///
    /// # Errors
    /// poll(2) fails.
    pub(crate) fn finish(
        self,
        is_done: bool,
        request: Option<Signal>,
        events: &mut EventQueue,
        ignored: SigSet,
    ) -> io::Result<Finished> {
        self.relay.finish(is_done, request, events, ignored)
    }
}
