//! A pseudo-terminal of our own terminal's size for the child to write to, without output processing.

use std::fs::File;
use std::io::{self, stderr, stdin, stdout};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};

/// Master side.
#[derive(Debug)]
pub(crate) struct Pty {
    master: OwnedFd,
}

impl Pty {
    /// Opens a pair: the master, and the slave for the child.
    pub(crate) fn open() -> io::Result<(Self, OwnedFd)> {
        // Without a terminal: the size that programs assume.
        let size = our_size().unwrap_or(Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 });
        let pty = openpty(Some(&size), None)?;
        let mut modes = tcgetattr(&pty.slave)?;
        // Output processing would turn LF into CR LF.
        modes.output_flags.remove(OutputFlags::OPOST);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &modes)?;
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        Ok((Self { master: pty.master }, pty.slave))
    }

    /// Duplicates the master, to read what the child writes.
    pub(crate) fn reader(&self) -> io::Result<File> {
        Ok(self.master.try_clone()?.into())
    }

    /// Sets the size to that of our terminal.
    pub(crate) fn resize(&self) {
        if let Some(size) = our_size() {
            // SAFETY: TIOCSWINSZ reads one winsize, which this is. It cannot fail on a pseudo-terminal.
            let _ = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        }
    }
}

/// Size of the first of stdout, stderr and stdin that is a terminal.
fn our_size() -> Option<Winsize> {
    [stdout().as_fd(), stderr().as_fd(), stdin().as_fd()].into_iter().find_map(size_of)
}

fn size_of(terminal: BorrowedFd) -> Option<Winsize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which this is.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(size)
}
