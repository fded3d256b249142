//! The file of `--log`: lines of the child's and our own, each appended in one write(2), so that several runs can share it
//! without mixing their lines. It never fails a run: a line that cannot be written is lost, which is reported once.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use serde_json::json;

use super::stderr::say;
use crate::config::values::LogFormat;
use crate::run_id::RunId;

/// An open log.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    path: PathBuf,
    run: RunId,
    format: LogFormat,
    /// True if our stderr is this very file, and a logged line need not go to stderr as well.
    pub is_stderr: bool,
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
        Ok(Self { file, path: path.to_owned(), run, format, is_stderr, has_failed: AtomicBool::new(false) })
    }

    /// Appends complete lines.
    pub fn append(&self, lines: &[u8]) {
        if let Err(error) = append_lines(&self.file, lines)
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

/// Opens a file that several runs append lines to; a new one has mode 0600.
pub(crate) fn open_to_append(path: &Path) -> io::Result<File> {
    // O_NONBLOCK: open(2) of a FIFO without a reader would block.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let open = |reads| File::options().read(reads).append(true).create(true).mode(0o600).custom_flags(flags).open(path);
    // Its end is read only if it is a regular file. Ours would be a reader of a FIFO.
    let reads = fs::metadata(path).map_or(true, |found| found.is_file());
    open(reads).or_else(|error| if reads { open(false) } else { Err(error) })
}

/// Appends complete lines to `file`, in one write(2) that begins on a line of its own: a full disk may have cut the one before.
pub(crate) fn append_lines(mut file: &File, lines: &[u8]) -> io::Result<()> {
    let found = file.metadata()?;
    if !found.is_file() {
        return file.write_all(lines);
    }
    let mut last = *b"\n";
    let _ = found.len().checked_sub(1).map(|at| file.read_exact_at(&mut last, at)); // of a file that we may only write, it is not known
    let written = match last {
        [b'\n'] => file.write(lines)? == lines.len(),
        _ => file.write(&[b"\n", lines].concat())? > lines.len(),
    };
    // The rest of it would be a line of its own by now, behind that of another run.
    if written { Ok(()) } else { Err(io::Error::new(io::ErrorKind::StorageFull, "only a part could be written")) }
}

/// Current time by RFC 3339, in UTC.
pub(super) fn now() -> impl std::fmt::Display {
    humantime::format_rfc3339_millis(SystemTime::now())
}
