//! Decides which of the child's streams are captured, makes their pipes or pseudo-terminals, and starts the relay.

use std::io::{self, IsTerminal, Read, stderr, stdout};
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::line_logger::Lines;
use super::redact::{Masker, Secrets};
use super::relay::{ChildEnd, Relay, Stream};
use super::sink::Sink;
use crate::claude::frames::FrameReader;
use crate::config::settings::{Redact, Settings};
use crate::events::EventSender;
use crate::logging::LogFile;
use crate::sys::pipe::enlarge;
use crate::sys::terminal::Pty;

/// Purposes for which the child's output is captured.
#[derive(Clone, Debug, Default)]
pub struct OutputConfig {
    /// Exit code 0 needs a successful result frame.
    pub requires_result: bool,
    frames: bool,
    tracks_idle: bool,
    pty: bool,
    log: Option<Arc<LogFile>>,
    secrets: Option<Arc<Secrets>>,
    redacts_all: bool,
}

impl OutputConfig {
    /// Derives it from the settings.
    pub(crate) fn new(settings: &Settings, requires_result: bool, frames: bool, log: Option<Arc<LogFile>>) -> Result<Self> {
        let redacts_all = settings.redact == Redact::All;
        let masks = redacts_all || (settings.redact == Redact::Log && log.is_some());
        let secrets = masks.then(Secrets::of_environment).transpose();
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

    /// Starts the relay, for a child that is started next; `None` if nothing is captured. Streams that are not captured are
    /// inherited from us, and a pipe there is enlarged.
    pub(crate) fn start(&self, sender: EventSender) -> io::Result<Option<Relay>> {
        enlarge(stdout());
        if !self.captures() {
            return Ok(None);
        }
        let mut out = self.capture("stdout", stdout(), self.pty)?;
        out.0.frames = self.frames.then(FrameReader::default);
        let mut captured = vec![out];
        if self.captures_both() {
            captured.push(self.capture("stderr", stderr(), false)?);
        }
        Relay::start(captured, sender).map(Some)
    }

    fn capture(&self, name: &'static str, ours: impl AsFd + IsTerminal, pty: bool) -> io::Result<(Stream, ChildEnd)> {
        let (input, child_end) = if pty || ours.is_terminal() {
            let (terminal, slave) = Pty::open()?;
            (terminal.0.try_clone()?, ChildEnd { descriptor: slave, terminal: Some(terminal) })
        } else {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
            enlarge(&writer);
            // The child has another file description, which stays blocking.
            fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            (reader.into(), ChildEnd { descriptor: writer, terminal: None })
        };
        let is_pipe = child_end.terminal.is_none();
        // A log that is our stderr has the lines already.
        let is_logged_there = name == "stderr" && self.log.as_ref().is_some_and(|log| log.is_stderr);
        let masks = self.redacts_all || self.log.is_some();
        let stream = Stream {
            name,
            input: Some(input.take(u64::MAX)),
            pipe: is_pipe.then(|| child_end.descriptor.try_clone()).transpose()?,
            sink: (!is_logged_there).then(|| Sink::new(ours.as_fd())).transpose()?,
            masker: self.secrets.clone().filter(|_| masks).map(Masker::new),
            masks_all: self.redacts_all,
            frames: None,
            lines: self.log.clone().map(|log| Lines::new(log, name)),
        };
        Ok((stream, child_end))
    }
}
