//! Our stdout or stderr, as the end of a stream. It never blocks: what our reader does not take at once is spooled.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use memchr::{memchr, memrchr};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::ioctl_fionread;

use super::spool::Spool;

/// A descriptor of ours that a stream is written to.
#[derive(Debug)]
pub(super) struct Sink {
    out: File,
    kind: Kind,
    spool: Spool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A pipe of this size.
    Pipe(usize),
    Terminal,
    /// A write may block, unless poll(2) says that it does not.
    Blocking,
    Other,
}

impl Sink {
    pub(super) fn new(descriptor: BorrowedFd) -> io::Result<Self> {
        let out = File::from(descriptor.try_clone_to_owned()?);
        let file_type = out.metadata()?.file_type();
        let kind = match fcntl(&out, FcntlArg::F_GETPIPE_SZ) {
            Ok(size) => Kind::Pipe(size as usize),
            Err(_) if out.is_terminal() => Kind::Terminal,
            Err(_) if file_type.is_file() || file_type.is_char_device() => Kind::Other,
            Err(_) => Kind::Blocking,
        };
        let mut sink = Self { out, kind, spool: Spool::default() };
        if matches!(kind, Kind::Pipe(_) | Kind::Terminal) {
            // Opened again, since O_NONBLOCK on the inherited file description would affect our caller.
            let path = format!("/proc/self/fd/{}", sink.out.as_raw_fd());
            match File::options().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path) {
                Ok(opened) => sink.out = opened,
                Err(_) => sink.kind = Kind::Blocking,
            }
        }
        Ok(sink)
    }

    /// True if spooled bytes wait for the descriptor.
    pub(super) fn is_behind(&self) -> bool {
        !self.spool.is_empty()
    }

    /// Bytes that are spooled, if they are too many: more can be delivered, but should wait.
    pub(super) fn excess(&self) -> Option<usize> {
        self.spool.is_full().then(|| self.spool.len())
    }

    /// Writes what is spooled and then `bytes`, as far as our reader takes them now, and spools the rest. True if it took any.
    ///
    /// # Errors
    /// `BrokenPipe` if our reader is gone.
    pub(super) fn deliver(&mut self, mut bytes: &[u8]) -> io::Result<bool> {
        let mut has_taken = false;
        loop {
            while self.is_behind() {
                match write(&self.out, self.kind, self.spool.front())? {
                    0 => break,
                    written => self.spool.consume(written)?,
                }
                has_taken = true;
            }
            while !self.is_behind() && !bytes.is_empty() {
                match write(&self.out, self.kind, bytes)? {
                    0 => break,
                    written => bytes = &bytes[written..],
                }
                has_taken = true;
            }
            if bytes.is_empty() || self.spool.push(bytes) {
                return Ok(has_taken);
            }
            // Out of memory: the child waits, too.
            let _ = poll(&mut [PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE); // the next write shows an error
        }
    }
}

fn write(mut out: &File, kind: Kind, bytes: &[u8]) -> io::Result<usize> {
    if kind == Kind::Blocking {
        let mut ready = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut ready, PollTimeout::ZERO) == Ok(0) {
            return Ok(0);
        }
    }
    match out.write(&bytes[..share(out, kind, bytes)]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(ErrorKind::BrokenPipe.into()),
        // Hung up.
        Err(error) if kind == Kind::Terminal && error.raw_os_error() == Some(libc::EIO) => Err(ErrorKind::BrokenPipe.into()),
        result => result,
    }
}

/// Length of the part of `bytes` to write at once. Where not all may fit, it ends at the end of a line: a pipe takes up to PIPE_BUF bytes
/// as a whole or not at all, so that no other writer's line comes between.
fn share(out: &File, kind: Kind, bytes: &[u8]) -> usize {
    let room = match kind {
        // Others may write to it as well: what fits now may not fit a moment later, but for an empty pipe.
        Kind::Pipe(size) if ioctl_fionread(out) == Ok(0) => size,
        Kind::Pipe(_) => libc::PIPE_BUF,
        Kind::Blocking => libc::PIPE_BUF,
        Kind::Terminal | Kind::Other => usize::MAX,
    };
    if bytes.len() <= room {
        return bytes.len();
    }
    let most = bytes.len().min(libc::PIPE_BUF);
    match memrchr(b'\n', &bytes[..most]) {
        Some(end) => end + 1,
        None if kind == Kind::Blocking => most,
        None => memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1),
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};

    use super::*;

    #[test]
    fn share_that_may_not_fit_is_of_whole_lines() -> io::Result<()> {
        let (mut reader, writer) = pipe()?;
        let out = File::from(std::os::fd::OwnedFd::from(writer));
        let lines = [b'x'; 999].into_iter().chain([b'\n']).collect::<Vec<_>>().repeat(10);
        let long = [&[b'x'; 5000], &b"\n"[..], &lines].concat();
        let endless = [b'x'; 6000];
        let size = 65_536;
        for (is_empty, kind, bytes, expected) in [
            (true, Kind::Pipe(size), &long[..], long.len()),
            (true, Kind::Pipe(8192), &lines, 4000),
            (false, Kind::Pipe(size), &lines, 4000),
            (false, Kind::Pipe(size), &lines[..4000], 4000),
            (false, Kind::Pipe(size), &long, 5001),
            (false, Kind::Pipe(size), &endless, 6000),
            (false, Kind::Blocking, &lines, 4000),
            (false, Kind::Blocking, &long, 4096),
            (false, Kind::Terminal, &long, long.len()),
            (false, Kind::Other, &long, long.len()),
        ] {
            if !is_empty {
                (&out).write_all(b".")?;
            }
            assert_eq!(share(&out, kind, bytes), expected, "{is_empty} {kind:?} {}", bytes.len());
            if !is_empty {
                reader.read_exact(&mut [0])?;
            }
        }
        Ok(())
    }

    #[test]
    fn reader_that_takes_spooled_bytes_makes_progress() -> io::Result<()> {
        let (mut reader, writer) = pipe()?;
        let mut sink = Sink::new(writer.as_fd())?;
        assert!(sink.deliver(&[b'x'; 1 << 20])? && sink.is_behind());
        assert!(!sink.deliver(&[])?, "the pipe is full");
        reader.read_exact(&mut [0; 64 << 10])?;
        assert!(sink.deliver(&[])? && sink.is_behind());
        Ok(())
    }
}
