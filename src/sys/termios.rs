//! Modes of the terminal: claude changes them, and may die before it has restored them.

use std::io::stdin;

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

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
        let Some(before) = self.0.take() else { return };
        // In the background the terminal belongs to another group, and the kernel would stop us with SIGTTOU.
        let is_foreground = tcgetpgrp(stdin()) == Ok(getpgrp());
        if is_foreground && tcgetattr(stdin()).is_ok_and(|now| now != before) {
            // An error means that the terminal is gone.
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, &before);
        }
    }
}
