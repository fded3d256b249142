//! Messages: every event of tracing goes to stderr and to the log, if its level is wanted there.

use std::path::Path;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::format::{to_json, to_log_line, to_text};
use super::live_line;
use super::log_file::LogFile;
use super::stderr::say;
use super::words::{clamped, escaped};
use crate::config::values::{LogFormat, Verbosity};
use crate::run_id::RunId;

/// Sends the messages of the whole process to stderr, and to the file `log`, which it returns. A second call in one process
/// changes nothing about the messages.
pub fn init(verbosity: Verbosity, format: LogFormat, log: Option<&Path>, run: RunId) -> Option<Arc<LogFile>> {
    let level = match verbosity {
        Verbosity::Quiet => LevelFilter::ERROR,
        Verbosity::Warnings => LevelFilter::WARN,
        Verbosity::Info => LevelFilter::INFO,
        Verbosity::Debug => LevelFilter::DEBUG,
    };
    let opened = log.map(|path| LogFile::open(path, run, format).map(Arc::new)).transpose();
    let log_file = opened.as_ref().ok().cloned().flatten();
    live_line::allow(verbosity != Verbosity::Quiet);
    // It fails if an earlier run in this process has set it up, which is as good.
    let _ = tracing::subscriber::set_global_default(Messages { level, format, run, log: log_file.clone() });
    if let (Some(path), Err(error)) = (log, opened) {
        tracing::warn!("cannot open the log {}: {error}; going on without it", path.display());
    }
    log_file
}

/// Destinations of messages. Not tracing-subscriber's: it has no place for a run in each line, and is a tenth of all our code.
struct Messages {
    level: LevelFilter,
    format: LogFormat,
    run: RunId,
    log: Option<Arc<LogFile>>,
}

impl Subscriber for Messages {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = if self.log.is_some() { self.level.max(LevelFilter::INFO) } else { self.level };
        *metadata.level() <= level || is_answer(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if self.log.is_some() { self.level.max(LevelFilter::INFO) } else { self.level.max(LevelFilter::WARN) })
    }

    fn event(&self, event: &Event<'_>) {
        if let Some(log) = &self.log {
            let line = match self.format {
                LogFormat::Text => to_log_line(event, self.run),
                LogFormat::Json => to_json(event, self.run),
            };
            log.append(line.as_bytes());
        }
        let is_wanted = *event.metadata().level() <= self.level || is_answer(event.metadata());
        if is_wanted && !self.log.as_ref().is_some_and(|log| log.is_stderr) {
            say(&match self.format {
                LogFormat::Text => to_text(event),
                LogFormat::Json => to_json(event, self.run),
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

/// True for the answer to USR1: somebody has asked, however quiet the run is to be.
fn is_answer(metadata: &Metadata<'_>) -> bool {
    metadata.name() == "run.state"
}

/// Reports the error that ends claude-run, as one line.
pub fn report(error: &anyhow::Error) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{error:#}");
    } else {
        tell(&format!("{error:#}"));
    }
}

/// Prints one line that is no message of a run.
pub fn tell(line: &str) {
    say(&format!("claude-run: {}\n", shown(line)));
}

/// Prints a question, for the person at the terminal.
pub fn ask(question: &str) {
    say(&format!("claude-run: {}", shown(question)));
}

fn shown(text: &str) -> String {
    escaped(&clamped(text)).into_owned()
}
