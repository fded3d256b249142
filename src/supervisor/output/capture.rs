//! Decides which of the child's streams are captured, makes their pipes or pseudo-terminals, and starts the relay.

use std::io::{self, IsTerminal, Read, stderr, stdout};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Whence, lseek, pipe2};

use super::line_logger::Lines;
use super::relay::{BUFFER, ChildEnd, Relay, Stream};
use super::sink::Sink;
use crate::claude::frames::FrameReader;
use crate::config::settings::{Redact, Settings};
use crate::events::EventSender;
use crate::logging::LogFile;
use crate::redact::{Masker, Secrets, secrets};
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
        let secrets = masks.then(secrets).transpose();
        let secrets = secrets.context("cannot look for the secrets in the environment; --redact off runs without")?;
        let (tracks_idle, pty) = (settings.idle_limit.as_limit().is_some(), settings.pty);
        Ok(Self { frames: frames || requires_result, requires_result, tracks_idle, pty, log, secrets, redacts_all })
    }

    fn captures_both(&self) -> bool {
        self.tracks_idle || self.log.is_some() || self.redacts_all
    }

    /// True if nobody sees an order of stdout and stderr, which go to /dev/null or the like. In a log, each line has its time; frames are not
    /// to be mixed with messages.
    fn is_lost(&self) -> bool {
        let kind = fstat(stdout()).map_or(SFlag::empty(), |file| SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT);
        (self.log.is_none() || self.frames) && kind == SFlag::S_IFCHR && !stdout().is_terminal()
    }

    /// True if any stream is captured.
    pub(crate) fn captures(&self) -> bool {
        self.frames || self.pty || self.captures_both()
    }

    /// Starts the relay, for a child that is started next; `None` if nothing is captured. Streams that are not captured are
    /// inherited from us, and a pipe there is enlarged. Where our stdout and stderr are one, the child's are, so that their order holds.
    pub(crate) fn start(&self, sender: EventSender) -> io::Result<Option<Relay>> {
        enlarge(stdout());
        if !self.captures() {
            return Ok(None);
        }
        let (log_is_stdout, log_is_stderr) = self.log.as_ref().map_or((false, false), |log| (log.is_stdout, log.is_stderr));
        let mut out = self.capture("stdout", stdout(), self.pty, log_is_stdout)?;
        out.0.frames = self.frames.then(FrameReader::default);
        let mut captured = vec![out];
        let is_one = !log_is_stderr && !self.is_lost() && position(stdout()).is_some_and(|at| Some(at) == position(stderr()));
        if self.captures_both() && !is_one {
            captured.push(self.capture("stderr", stderr(), false, log_is_stderr)?);
        }
        Relay::start(captured, is_one, sender).map(Some)
    }

    /// `log_is_sink`: a log that is our stdout or stderr gets the lines, masked, and only there.
    fn capture(
        &self,
        name: &'static str,
        ours: impl AsFd + IsTerminal,
        pty: bool,
        log_is_sink: bool,
    ) -> io::Result<(Stream, ChildEnd)> {
        let (input, descriptor, terminal) = if pty || ours.is_terminal() {
            let (terminal, slave) = Pty::open()?;
            (terminal.0.try_clone()?, slave, Some(Arc::new(terminal)))
        } else {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
            enlarge(&writer);
            // The child has another file description, which stays blocking.
            fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            (reader.into(), writer, None)
        };
        let masks = self.redacts_all || self.log.is_some();
        let weak = terminal.as_ref().map_or_else(Weak::new, Arc::downgrade);
        let stream = Stream {
            name,
            input: Some(input.take(u64::MAX)),
            lines: self.log.clone().map(|log| Lines::new(log, name, terminal.is_some())),
            pipe: if terminal.is_none() { Some(descriptor.try_clone()?) } else { None },
            terminal,
            sink: if log_is_sink { None } else { Some(Sink::new(ours.as_fd())?) },
            masker: self.secrets.clone().filter(|_| masks).map(Masker::new),
            masks_all: self.redacts_all,
            frames: None,
            log_is_sink,
            buffer: vec![0; BUFFER],
            held: 0,
            last_read: None,
            is_paused: false,
            has_stalled: false,
        };
        Ok((stream, ChildEnd { descriptor, terminal: weak }))
    }
}

/// Where a write to `descriptor` goes, if it can be written. Two of one file are one place if they append, or are at one offset: then they
/// are one open file, or would overwrite each other.
fn position(descriptor: impl AsFd) -> Option<(u64, u64, bool, Option<i64>)> {
    let file = fstat(&descriptor).ok()?;
    let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL).ok()?);
    let appends = flags.contains(OFlag::O_APPEND);
    let offset = if appends { None } else { lseek(&descriptor, 0, Whence::SeekCur).ok() };
    (flags & OFlag::O_ACCMODE != OFlag::O_RDONLY).then_some((file.st_dev, file.st_ino, appends, offset))
}
