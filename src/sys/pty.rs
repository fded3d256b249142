//! A pseudo-terminal for the child to write to: it sees a terminal of our size, and what it writes comes out as it went in.

use std::fs::File;
use std::io::{self, stderr, stdin, stdout};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};

/// Our side.
#[derive(Debug)]
pub(crate) struct Pty {
    master: OwnedFd,
}

impl Pty {
    /// A new one, and the child's side of it.
    ///
    /// # Errors
    /// There are no more of them, or /dev/pts is not there.
    pub(crate) fn open() -> io::Result<(Self, OwnedFd)> {
        // Where there is none to follow, the size that everybody expects.
        let size = our_size().unwrap_or(Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 });
        let pty = openpty(Some(&size), None)?;
        let mut modes = tcgetattr(&pty.slave)?;
        // With output processing, each line end would get a CR before it.
        modes.output_flags.remove(OutputFlags::OPOST);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &modes)?;
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        Ok((Self { master: pty.master }, pty.slave))
    }

    /// What the child writes comes out here.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub(crate) fn reader(&self) -> io::Result<File> {
        Ok(self.master.try_clone()?.into())
    }

    /// Takes over the size of our terminal.
    pub(crate) fn resize(&self) {
        if let Some(size) = our_size() {
            // SAFETY: TIOCSWINSZ reads one winsize, which this is. It cannot fail on a pseudo-terminal.
            let _ = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        }
    }
}

/// The size of the terminal that we are in, by whichever of our descriptors is one.
fn our_size() -> Option<Winsize> {
    [stdout().as_fd(), stderr().as_fd(), stdin().as_fd()].into_iter().find_map(size_of)
}

fn size_of(terminal: BorrowedFd) -> Option<Winsize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which this is.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(size)
}
