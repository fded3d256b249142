//! Decides which of the child's streams are captured, makes their pipes or pseudo-terminals, and starts the relay.

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal, PipeReader, PipeWriter, pipe, stderr, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::line_logger::Lines;
use super::redact::{Masker, Secrets};
use super::relay::{Relay, Stream};
use super::sink::{OutputDoneGuard, Sink};
use crate::claude::frames::FrameReader;
use crate::config::settings::{Redact, Settings};
use crate::events::EventSender;
use crate::logging::LogFile;
use crate::sys::pipe::enlarge;
use crate::sys::terminal::Pty;

/// Purposes for which the child's output is captured.
#[derive(Clone, Debug, Default)]
pub struct OutputConfig {
    /// Frames on stdout.
    pub frames: bool,
    /// Exit code 0 needs a successful result frame.
    pub requires_result: bool,
    /// Time of the last output, for the idle limit.
    pub tracks_idle: bool,
    /// A pseudo-terminal as stdout.
    pub pty: bool,
    /// Log of all lines.
    pub log: Option<Arc<LogFile>>,
    /// Secrets to mask in the log.
    pub secrets: Option<Arc<Secrets>>,
    /// Secrets are masked on our stdout and stderr as well.
    pub redacts_all: bool,
}

/// Pipes or pseudo-terminals of the captured streams.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    config: &'a OutputConfig,
    stdout: Option<Ends>,
    stderr: Option<Ends>,
}

/// Our end, and the child's.
#[derive(Debug)]
enum Ends {
    Pipe(PipeReader, PipeWriter),
    Pty(Pty, OwnedFd),
}

impl OutputConfig {
    /// Derives it from the settings.
    pub(crate) fn new(settings: &Settings, requires_result: bool, frames: bool, log: Option<Arc<LogFile>>) -> Result<Self> {
        let redacts_all = settings.redact == Redact::All;
        let masks = redacts_all || (settings.redact == Redact::Log && log.is_some());
        let secrets = masks.then(|| Secrets::new(env::vars_os()).map(Arc::new)).transpose();
        let secrets = secrets.context("cannot look for the secrets in the environment; --redact off runs without")?;
        let (tracks_idle, pty) = (settings.idle_limit.as_limit().is_some(), settings.pty);
        Ok(Self { frames: frames || requires_result, requires_result, tracks_idle, pty, log, secrets, redacts_all })
    }

    fn captures_both(&self) -> bool {
        self.tracks_idle || self.log.is_some() || self.redacts_all
    }

    /// True if any stream is captured.
    pub(crate) fn captures(&self) -> bool {
        self.frames || self.pty || self.captures_both()
    }

    /// Makes the pipes of the captured streams. Other streams are inherited from us, and a pipe there is enlarged.
    pub(crate) fn prepare(&self) -> io::Result<Prepared<'_>> {
        enlarge(stdout());
        let out = self.captures().then(|| Ends::new(self.pty || stdout().is_terminal()));
        let err = self.captures_both().then(|| Ends::new(stderr().is_terminal()));
        Ok(Prepared { config: self, stdout: out.transpose()?, stderr: err.transpose()? })
    }
}

impl Ends {
    fn new(pty: bool) -> io::Result<Self> {
        if pty {
            return Pty::open().map(|(master, slave)| Self::Pty(master, slave));
        }
        let (reader, writer) = pipe()?;
        enlarge(&writer);
        // The child has another file description, which stays blocking.
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
    /// The child's stdout, if captured.
    pub(crate) fn stdout(&self) -> Option<BorrowedFd<'_>> {
        self.stdout.as_ref().map(Ends::for_child)
    }

    /// The child's stderr, if captured.
    pub(crate) fn stderr(&self) -> Option<BorrowedFd<'_>> {
        self.stderr.as_ref().map(Ends::for_child)
    }

    /// Starts the relay, once the child is started; `None` if nothing is captured.
    pub(crate) fn start(mut self, sender: EventSender) -> io::Result<Option<Relay>> {
        if !self.config.captures() {
            return Ok(None);
        }
        let done = Arc::new(OutputDoneGuard(sender.clone()));
        let (mut streams, mut terminals) = (Vec::new(), Vec::new());
        if let Some(ends) = self.stdout.take() {
            let mut stream = self.stream("stdout", ends, &mut terminals)?;
            stream.sink = Some(Sink::new(stdout().as_fd(), "stdout", Arc::clone(&done))?);
            stream.frames = self.config.frames.then(FrameReader::default);
            streams.push(stream);
        }
        if let Some(ends) = self.stderr.take() {
            let mut stream = self.stream("stderr", ends, &mut terminals)?;
            // A log that is our stderr has the lines already.
            if !self.config.log.as_ref().is_some_and(|log| log.is_stderr()) {
                stream.sink = Some(Sink::new(stderr().as_fd(), "stderr", Arc::clone(&done))?);
            }
            streams.push(stream);
        }
        Relay::start(streams, terminals, sender, done).map(Some)
    }

    fn stream(&self, name: &'static str, ends: Ends, terminals: &mut Vec<Pty>) -> io::Result<Stream> {
        let (input, pipe) = match ends {
            Ends::Pipe(reader, writer) => (File::from(OwnedFd::from(reader)), Some(File::from(OwnedFd::from(writer)))),
            Ends::Pty(pty, _slave) => {
                let input = pty.0.try_clone()?;
                terminals.push(pty);
                (input, None)
            }
        };
        let masker = || self.config.secrets.clone().map(Masker::new);
        let lines = self.config.log.clone().map(|log| Lines::new(log, name, masker()));
        let masker = if self.config.redacts_all { masker() } else { None };
        Ok(Stream { input: Some(input), pipe, sink: None, masker, passed: 0, frames: None, lines })
    }
}
