//! The file of `--log`: lines of the child's and our own, each appended in one write(2), so that several runs can share it
//! without mixing their lines. It never fails a run: a line that cannot be written is lost, which is reported once.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::stderr::say;
use crate::config::values::LogFormat;
use crate::run_id::RunId;

/// How long a write of another run's may take.
const MID_WRITE: Duration = Duration::from_millis(10);

/// An open log.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    path: PathBuf,
    run: RunId,
    format: LogFormat,
    /// True if our stderr is this very file, and a logged line need not go to stderr as well.
    pub is_stderr: bool,
    /// For a look at its last byte, if it is a regular file.
    tail: Option<File>,
    /// It may end in the middle of a line that a full disk has cut: from before, or by our last write.
    may_be_cut: AtomicBool,
    has_failed: AtomicBool,
}

impl LogFile {
    /// Opens `path` to append the lines of `run`; a new file has mode 0600.
    ///
    /// # Errors
    /// open(2) fails.
    pub fn open(path: &Path, run: RunId, format: LogFormat) -> io::Result<Self> {
        let file = open_to_append(path)?;
        let found = file.metadata()?;
        let is_stderr = fs::metadata("/proc/self/fd/2")
            .is_ok_and(|stderr| (stderr.dev(), stderr.ino()) == (found.dev(), found.ino()) && stderr.is_file());
        let tail = if found.is_file() { File::open(path).ok() } else { None };
        Ok(Self {
            file,
            path: path.to_owned(),
            run,
            format,
            is_stderr,
            tail,
            may_be_cut: AtomicBool::new(true),
            has_failed: AtomicBool::new(false),
        })
    }

    /// Appends complete lines. They begin on a line of their own, also behind one that a full disk has cut.
    pub fn append(&self, lines: &[u8]) {
        let is_cut = self.may_be_cut.load(Ordering::Relaxed) && self.tail.as_ref().is_some_and(ends_in_mid_line);
        let fresh: &[u8] = if is_cut { b"\n" } else { b"" };
        let written = (&self.file).write_all(&[fresh, lines].concat());
        self.may_be_cut.store(written.is_err(), Ordering::Relaxed);
        if let Err(error) = written
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            say(&format!("claude-run: cannot write the log {}: {error}; lines of it are lost\n", self.path.display()));
        }
    }

    /// Formats a line of the child's for this log into `out`. `continued`: a later part of a long line.
    pub fn format_line(&self, stream: &str, line: &[u8], continued: bool, out: &mut Vec<u8>) {
        match self.format {
            LogFormat::Text => {
                let mark = if continued { '+' } else { ':' };
                out.extend_from_slice(format!("{} {} {stream}{mark} ", now(), self.run).as_bytes());
                out.extend_from_slice(line);
            }
            LogFormat::Json => {
                let (run, time, text) = (self.run.to_string(), now().to_string(), String::from_utf8_lossy(line));
                let mut entry = json!({ "run": run, "timestamp": time, "stream": stream, "line": text });
                if continued {
                    entry["continued"] = true.into();
                }
                out.extend_from_slice(entry.to_string().as_bytes());
            }
        }
        out.push(b'\n');
    }
}

/// True if `file` ends in the middle of a line that nobody is about to end.
fn ends_in_mid_line(file: &File) -> bool {
    let end = || {
        let length = file.metadata().map_or(0, |found| found.len());
        let mut last = [b'\n'];
        // An empty file, or one that was truncated since, does not.
        let _ = file.read_exact_at(&mut last, length.saturating_sub(1));
        (length, last)
    };
    let seen = end();
    if seen.1 == [b'\n'] {
        return false;
    }
    thread::sleep(MID_WRITE);
    end() == seen
}

/// Opens a file that several runs append lines to; a new one has mode 0600.
pub(crate) fn open_to_append(path: &Path) -> io::Result<File> {
    // O_NONBLOCK: open(2) of a FIFO without a reader would block.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    File::options().append(true).create(true).mode(0o600).custom_flags(flags).open(path)
}

/// Current time by RFC 3339, in UTC.
pub(super) fn now() -> impl std::fmt::Display {
    humantime::format_rfc3339_millis(SystemTime::now())
}
