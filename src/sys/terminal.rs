//! Terminals: their sizes, their modes, which claude changes and may not live to restore, and a pseudo-terminal for it to write to.

use std::fs::File;
use std::io::{self, stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{OutputFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

/// Master side of a pseudo-terminal of our own terminal's size, without output processing.
#[derive(Debug)]
pub(crate) struct Pty(pub(crate) File);

impl Pty {
    /// Opens a pair: the master, and the slave for the child.
    pub(crate) fn open() -> io::Result<(Self, OwnedFd)> {
        let pty = openpty(None, None)?;
        let mut modes = tcgetattr(&pty.slave)?;
        // Output processing would turn LF into CR LF.
        modes.output_flags.remove(OutputFlags::OPOST);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &modes)?;
        // Without a terminal: the size that programs assume.
        let size = our_size().unwrap_or(Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 });
        tcsetwinsize(&pty.master, size)?;
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        Ok((Self(pty.master.into()), pty.slave))
    }

    /// Sets the size to that of our terminal.
    pub(crate) fn resize(&self) {
        // It cannot fail on a pseudo-terminal.
        let _ = our_size().map(|size| tcsetwinsize(&self.0, size));
    }
}

/// Size of the first of stdout, stderr and stdin that is a terminal.
fn our_size() -> Option<Winsize> {
    size_of(stdout()).or_else(|| size_of(stderr())).or_else(|| size_of(stdin()))
}

/// Size of `terminal`, if it is one and knows its size.
pub(crate) fn size_of(terminal: impl AsFd) -> Option<Winsize> {
    tcgetwinsize(terminal).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0)
}

/// True if our process group may use the terminal that is stdin.
pub(crate) fn is_in_foreground() -> bool {
    tcgetpgrp(stdin()) == Ok(getpgrp())
}

/// Restores the modes of stdin when dropped.
#[derive(Debug)]
pub(crate) struct TerminalModeGuard(Option<Termios>);

impl TerminalModeGuard {
    pub(crate) fn of_stdin() -> Self {
        Self(tcgetattr(stdin()).ok())
    }
}

impl Drop for TerminalModeGuard {
    fn drop(&mut self) {
        let Some(before) = &self.0 else { return };
        // In the background the terminal belongs to another group, and the kernel would stop us with SIGTTOU.
        if is_in_foreground() {
            // An error means that the terminal is gone.
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, before);
        }
    }
}
