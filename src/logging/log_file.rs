//! The file of `--log`: lines of the child's and our own, each appended in one write(2), so that several runs can share it
//! without mixing their lines. It never fails a run: a line that cannot be written is lost, which is reported once.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use memchr::memrchr;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

use super::json::escaped_json;
use super::stderr::say;
use super::words::escaped;
use crate::config::values::LogFormat;
use crate::run_id::RunId;
use crate::sys::steps::ensure_no_foreign_link;

/// How long the reader of a log that is a pipe may take for what is written at once. Once it has taken longer, it is not waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// How long a write of another run's may take.
const MID_WRITE: Duration = Duration::from_millis(10);

/// An open log.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    path: PathBuf,
    run: String,
    format: LogFormat,
    /// True if our stdout is this very file, so that what the child prints stands there in clear.
    pub is_stdout: bool,
    /// True if our stderr is this very file, and a logged line need not go to stderr as well.
    pub is_stderr: bool,
    has_failed: AtomicBool,
}

/// Beginning of lines of the child's.
#[derive(Debug, Default)]
pub struct Stamp {
    time: String,
    stream: &'static str,
    /// As a line of text begins with it.
    text: Vec<u8>,
}

impl LogFile {
    /// Opens `path` to append the lines of `run`; a new file has mode 0600.
    ///
    /// # Errors
    /// open(2) fails.
    pub fn open(path: &Path, run: RunId, format: LogFormat) -> io::Result<Self> {
        let file = open_to_append(path)?;
        let found = file.metadata()?;
        let is_same = |descriptor: &str| {
            let other = fs::metadata(descriptor);
            other.is_ok_and(|other| (other.dev(), other.ino()) == (found.dev(), found.ino()) && other.is_file())
        };
        let (is_stdout, is_stderr) = (is_same("/proc/self/fd/1"), is_same("/proc/self/fd/2"));
        Ok(Self {
            file,
            path: path.to_owned(),
            run: run.to_string(),
            format,
            is_stdout,
            is_stderr,
            has_failed: AtomicBool::new(false),
        })
    }

    /// Appends complete lines. False if some are lost.
    pub fn append(&self, lines: &[u8]) -> bool {
        let patience = if self.has_failed.load(Ordering::Relaxed) { Duration::ZERO } else { PATIENCE };
        let Err(error) = append_lines(&self.file, lines, patience) else { return true };
        if !self.has_failed.swap(true, Ordering::Relaxed) {
            let path = self.path.to_string_lossy();
            say(&format!("claude-run: cannot write the log {}: {error}; lines of it are lost\n", escaped(&path)));
        }
        false
    }

    /// Stamp of the lines of the child's `stream` that come now: for all of one read, since the clock and the formatting cost more than a
    /// short line does.
    pub fn stamp(&self, stream: &'static str) -> Stamp {
        let time = now().to_string();
        Stamp { text: format!("{time} {} {stream}: ", self.run).into_bytes(), time, stream }
    }

    /// Formats a line of the child's for this log into `out`. `continued`: a later part of a long line.
    pub fn format_line(&self, stamp: &Stamp, line: &[u8], continued: bool, out: &mut Vec<u8>) {
        match self.format {
            LogFormat::Text => {
                out.reserve(stamp.text.len() + line.len() + 1);
                out.extend_from_slice(&stamp.text);
                if continued {
                    let mark = out.len() - 2;
                    out[mark] = b'+';
                }
                out.extend_from_slice(line);
            }
            LogFormat::Json => {
                let text = String::from_utf8_lossy(line);
                let Stamp { time, stream, .. } = stamp;
                let mut entry = json!({ "run": self.run, "timestamp": time, "stream": stream, "line": text });
                if continued {
                    entry["continued"] = true.into();
                }
                out.extend_from_slice(escaped_json(entry.to_string()).as_bytes());
            }
        }
        out.push(b'\n');
    }
}

/// Opens a file that several runs append lines to; a new one has mode 0600.
pub(crate) fn open_to_append(path: &Path) -> io::Result<File> {
    ensure_no_foreign_link(path).map_err(|error| io::Error::other(format!("{error}; name the file that it leads to")))?;
    // O_NONBLOCK: open(2) of a FIFO without a reader would block.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let open = |reads| File::options().read(reads).append(true).create(true).mode(0o600).custom_flags(flags).open(path);
    // Its end is read only if it is a regular file. Ours would be a reader of a FIFO.
    let reads = fs::metadata(path).map_or(true, |found| found.is_file());
    open(reads).or_else(|error| if reads { open(false) } else { Err(error) })
}

/// Appends complete lines to `file`, in one write(2) that begins on a line of its own: a full disk may have cut the one before.
/// `patience`: how long the reader of a pipe may take.
pub(crate) fn append_lines(mut file: &File, lines: &[u8], patience: Duration) -> io::Result<()> {
    if !file.metadata()?.is_file() {
        return write_to_reader(file, lines, Instant::now() + patience);
    }
    let written = match ends_in_mid_line(file) {
        false => file.write(lines)? == lines.len(),
        true => file.write(&[b"\n", lines].concat())? > lines.len(),
    };
    // The rest of it would be a line of its own by now, behind that of another run.
    if written { Ok(()) } else { Err(io::Error::new(io::ErrorKind::StorageFull, "only a part could be written")) }
}

/// Writes lines to what may be a pipe, as much at once as it takes as a whole or not at all.
fn write_to_reader(mut file: &File, mut lines: &[u8], deadline: Instant) -> io::Result<()> {
    while !lines.is_empty() {
        let most = lines.len().min(libc::PIPE_BUF);
        let length = memrchr(b'\n', &lines[..most]).map_or(most, |end| end + 1);
        match file.write(&lines[..length]) {
            Ok(written) => lines = &lines[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = deadline.saturating_duration_since(Instant::now()).as_millis() as u16;
                if poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(left)) == Ok(0) {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "its reader does not read"));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// True if `file` ends in the middle of a line that nobody is about to end: another run's write shows piece by piece.
fn ends_in_mid_line(file: &File) -> bool {
    let end = || {
        let length = file.metadata().map_or(0, |found| found.len());
        let mut last = *b"\n";
        let _ = length.checked_sub(1).map(|at| file.read_exact_at(&mut last, at)); // of a file that we may only write, it is not known
        (length, last)
    };
    let seen = end();
    seen.1 != *b"\n" && {
        thread::sleep(MID_WRITE);
        end() == seen
    }
}

/// Current time by RFC 3339, in UTC.
pub(super) fn now() -> impl std::fmt::Display {
    humantime::format_rfc3339_millis(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    use super::*;

    #[test]
    fn reader_gets_whole_lines_at_once() -> io::Result<()> {
        // Of such a pipe, a read gets what one write has put there.
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT)?;
        let (mut reader, writer) = (File::from(reader), File::from(writer));
        let lines = ["x".repeat(999), "y".repeat(3000), "z".repeat(4095), "end".to_owned()].map(|line| line + "\n");
        write_to_reader(&writer, lines.concat().as_bytes(), Instant::now())?;
        drop(writer);
        let (mut writes, mut bytes) = (Vec::new(), [0; libc::PIPE_BUF]);
        while let length @ 1.. = reader.read(&mut bytes)? {
            writes.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
        }
        assert_eq!(writes, [lines[..2].concat(), lines[2].clone(), lines[3].clone()]);
        Ok(())
    }
}
