//! Our stdout or stderr, as the end of a stream. It never blocks: what our reader does not take at once is spooled.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::spool::Spool;

/// A descriptor of ours that a stream is written to.
#[derive(Debug)]
pub(super) struct Sink {
    out: File,
    may_block: bool,
    spool: Spool,
}

impl Sink {
    pub(super) fn new(descriptor: BorrowedFd) -> io::Result<Self> {
        let out = File::from(descriptor.try_clone_to_owned()?);
        let kind = out.metadata()?.file_type();
        let mut sink = Self { out, may_block: !(kind.is_file() || kind.is_char_device()), spool: Spool::default() };
        if kind.is_fifo() || sink.out.is_terminal() {
            // Opened again, since O_NONBLOCK on the inherited file description would affect our caller.
            let path = format!("/proc/self/fd/{}", sink.out.as_raw_fd());
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
            let opened = File::options().write(true).custom_flags(flags).open(path);
            sink.may_block = opened.is_err();
            sink.out = opened.unwrap_or(sink.out);
        }
        Ok(sink)
    }

    /// True if spooled bytes wait for the descriptor.
    pub(super) fn is_behind(&self) -> bool {
        !self.spool.is_empty()
    }

    /// True if the disk is full of spooled bytes: more can be delivered, but should wait.
    pub(super) fn is_full(&self) -> bool {
        self.spool.is_full()
    }

    /// Writes what is spooled and then `bytes`, as far as our reader takes them now, and spools the rest.
    pub(super) fn deliver(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.is_behind() {
            match self.write(self.spool.front())? {
                0 => break,
                written => self.spool.consume(written)?,
            }
        }
        if !self.is_behind() && !bytes.is_empty() {
            bytes = &bytes[self.write(bytes)?..];
        }
        self.spool.push(bytes);
        Ok(())
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<usize> {
        if self.may_block {
            let mut ready = [PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut ready, PollTimeout::ZERO) == Ok(0) {
                return Ok(0);
            }
            bytes = &bytes[..bytes.len().min(libc::PIPE_BUF)]; // so much does not block, then
        }
        match (&self.out).write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }
}
