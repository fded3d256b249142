//! Stdin and stdout as operations need them. std's own fail where somebody who shares the open file has made it non-blocking, and
//! hide that a descriptor is closed.

use std::io::{self, Read, Write, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Stdin without a buffer; a read waits until there is something.
pub(crate) struct StandardInput;

impl Read for StandardInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let input = stdin();
        when_ready(input.as_fd(), PollFlags::POLLIN, || nix::unistd::read(&input, buffer))
    }
}

/// Stdout without a buffer; a write waits until there is room.
pub(crate) struct StandardOutput;

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let output = stdout();
        when_ready(output.as_fd(), PollFlags::POLLOUT, || nix::unistd::write(&output, bytes))
    }

    /// Fails for a closed stdout, even if there was nothing to write.
    fn flush(&mut self) -> io::Result<()> {
        let mode = OFlag::from_bits_retain(fcntl(stdout(), FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE;
        if mode == OFlag::O_RDONLY { Err(Errno::EBADF.into()) } else { Ok(()) }
    }
}

/// Result of `call`, made again whenever `descriptor` is ready.
fn when_ready(descriptor: BorrowedFd, event: PollFlags, mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EAGAIN) => poll(&mut [PollFd::new(descriptor, event)], PollTimeout::NONE)?,
            result => return Ok(result?),
        };
    }
}
