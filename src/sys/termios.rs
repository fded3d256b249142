//! The modes of the terminal that a person sits at: claude changes them, and may die before it has put them back.

use std::io::stdin;

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// The modes before the run; they are put back when it is dropped.
#[derive(Debug)]
pub(crate) struct TerminalModeGuard(Option<Termios>);

impl TerminalModeGuard {
    /// Those of stdin.
    pub(crate) fn of_stdin() -> Self {
        Self(tcgetattr(stdin()).ok())
    }
}

impl Drop for TerminalModeGuard {
    fn drop(&mut self) {
        let Some(before) = self.0.take() else { return };
        // In the background it is somebody else's, and the kernel would stop us for it.
        let is_ours = tcgetpgrp(stdin()) == Ok(getpgrp());
        if is_ours && tcgetattr(stdin()).is_ok_and(|now| now != before) {
            // An error means that the terminal is gone.
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, &before);
        }
    }
}
