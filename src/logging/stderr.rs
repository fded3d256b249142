//! Writes to stderr that neither fail nor block.

use std::fs::{self, File};
use std::io::{self, Write, stderr};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::words::in_locale;

/// Writes `text` to stderr, if that can be written.
pub(super) fn say(text: &str) {
    // There is no place left to report a failure of stderr.
    let _ = Patient.write_all(in_locale(text).as_bytes());
}

/// Longest wait of one message for the reader of a full pipe; until it reads on, the next messages do not wait at all.
const PATIENCE: u16 = 500; // milliseconds

static READER_IS_STUCK: AtomicBool = AtomicBool::new(false);

/// Stderr; what its reader does not take is lost.
struct Patient;

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let pipe = reopen_pipe();
        let stderr = stderr();
        let out = pipe.as_ref().map_or_else(|| stderr.as_fd(), AsFd::as_fd);
        let patience = if READER_IS_STUCK.load(Ordering::Relaxed) { PollTimeout::ZERO } else { PATIENCE.into() };
        // An error is EINTR: the signal comes first.
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

/// Opens a stderr that is a pipe again, for writes that never block, even if claude fills it after our poll(2). O_NONBLOCK on the
/// inherited descriptor would be claude's as well, and our caller's.
fn reopen_pipe() -> Option<File> {
    let path = "/proc/self/fd/2";
    let is_pipe = fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    is_pipe.then(|| File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path).ok()).flatten()
}
