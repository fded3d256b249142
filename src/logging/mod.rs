//! The only writer to stderr and to the log: messages as text or JSON lines, the one error line at the end, the live
//! waiting line.
//! It never writes to stdout, which is claude's, never fails a run because stderr is gone, and never waits long for who
//! reads it: a watchdog that sleeps in a write watches nothing.

mod format;
mod log_file;

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write, stderr};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use terminal_size::{Width, terminal_size_of};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::config::values::{LogFormat, Verbosity};
use crate::run_id::RunId;
use format::Message;
pub use log_file::LogFile;
pub(crate) use log_file::open_to_append;

/// Sends the messages of the whole process to stderr, and to the file `log`, which it gives back. A second call in one
/// process changes nothing about the messages.
pub fn init(verbosity: Verbosity, format: LogFormat, log: Option<&Path>, run: RunId) -> Option<Arc<LogFile>> {
    let level = match verbosity {
        Verbosity::Quiet => LevelFilter::ERROR,
        Verbosity::Warnings => LevelFilter::WARN,
        Verbosity::Info => LevelFilter::INFO,
        Verbosity::Debug => LevelFilter::DEBUG,
    };
    let opened = log.map(|path| LogFile::open(path, run, format));
    let (log_file, error) = match opened.transpose() {
        Ok(log) => (log.map(Arc::new), None),
        Err(error) => (None, Some(error)),
    };
    IS_QUIET.store(verbosity == Verbosity::Quiet, Ordering::Relaxed);
    // An error here means that an earlier run in this process has set it up: as good.
    let _ = tracing::subscriber::set_global_default(Messages { level, format, run, log: log_file.clone() });
    if let (Some(path), Some(error)) = (log, error) {
        tracing::warn!("cannot open the log {}: {error}; going on without it", path.display());
    }
    log_file
}

static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// Where messages go. Not tracing-subscriber's: that has no place for a run in each line, and a tenth of all our code.
struct Messages {
    level: LevelFilter,
    format: LogFormat,
    run: RunId,
    log: Option<Arc<LogFile>>,
}

impl Subscriber for Messages {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.max_level_hint().is_some_and(|level| *metadata.level() <= level)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // A log is read afterwards, by somebody who wants to know what happened.
        Some(if self.log.is_some() { self.level.max(LevelFilter::INFO) } else { self.level })
    }

    fn event(&self, event: &Event<'_>) {
        let message = Message::of(event);
        if let Some(log) = &self.log {
            let line = match log.format() {
                LogFormat::Text => message.to_log_line(log.run()),
                LogFormat::Json => message.to_json(log.run()),
            };
            log.append(line.as_bytes());
            if log.is_stderr() {
                return;
            }
        }
        if *event.metadata().level() <= self.level {
            say(&match self.format {
                LogFormat::Text => message.to_text(),
                LogFormat::Json => message.to_json(self.run),
            });
        }
    }

    // There are no spans in this crate.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Reports the error that ends claude-run. Once, as one line.
pub fn report(error: &anyhow::Error) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{error:#}");
    } else {
        say(&format!("claude-run: {error:#}\n"));
    }
}

/// Says what is wrong with a command line.
pub fn usage(text: &str) {
    say(&format!("claude-run: {}\n", text.trim_end()));
}

/// Asks whoever sits at the terminal.
pub fn ask(question: &str) {
    say(&format!("claude-run: {question}"));
}

/// The line that a waiter shows on a terminal: rewritten in place, wiped when it is dropped.
pub struct LiveLine(());

impl LiveLine {
    /// A live line, if stderr is a terminal and `verbosity` lets it be seen.
    pub fn on_terminal() -> Option<Self> {
        // Made only then: dropped, it writes.
        (!IS_QUIET.load(Ordering::Relaxed) && stderr().is_terminal()).then(|| Self(()))
    }

    /// Shows `text` in place of what the line held.
    pub fn show(&self, text: &str) {
        // What does not fit would go on in a line of its own, which no carriage return reaches.
        let width = terminal_size_of(stderr()).map_or(usize::MAX, |(Width(columns), _)| usize::from(columns));
        let text: String = format!("claude-run: {text}").chars().take(width.saturating_sub(1)).collect();
        say(&format!("\r\x1b[K{text}"));
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        say("\r\x1b[K");
    }
}

fn say(text: &str) {
    // Nobody is left to be told that stderr cannot be written.
    let _ = Patient.write_all(text.as_bytes());
}

/// How long one message waits for a reader of stderr that has let the pipe run full; the next ones, until it reads on, do
/// not wait at all.
const PATIENCE: u16 = 500; // milliseconds

static READER_IS_STUCK: AtomicBool = AtomicBool::new(false);

/// Stderr, if somebody takes what is written to it; else what is written is lost.
struct Patient;

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let pipe = another_open_of_a_pipe();
        let stderr = stderr();
        let out = pipe.as_ref().map_or_else(|| stderr.as_fd(), AsFd::as_fd);
        let patience = if READER_IS_STUCK.load(Ordering::Relaxed) { PollTimeout::ZERO } else { PATIENCE.into() };
        // An error is a signal, which is to be looked at next.
        let may_write = poll(&mut [PollFd::new(out, PollFlags::POLLOUT)], patience).is_ok_and(|ready| ready > 0);
        READER_IS_STUCK.store(!may_write, Ordering::Relaxed);
        if !may_write {
            return Ok(bytes.len());
        }
        match nix::unistd::write(out, bytes) {
            Err(Errno::EAGAIN) => Ok(bytes.len()),
            other => Ok(other?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where stderr is a pipe, another open of it, for writes that never block, even if claude fills it after our look. The flag
/// on the one that we have inherited would be claude's as well, and our caller's.
fn another_open_of_a_pipe() -> Option<File> {
    let path = "/proc/self/fd/2";
    let is_pipe = fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    is_pipe.then(|| File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path).ok()).flatten()
}
