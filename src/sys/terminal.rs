//! Terminals: their sizes, their modes, which claude changes and may not live to restore, a pseudo-terminal for it to write to, and the
//! alternate screen for ourselves.

use std::cell::LazyCell;
use std::fs::File;
use std::io::{self, Write, stderr, stdout};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::termios::{LocalFlags, OutputFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpgrp, getpid, tcgetpgrp, tcsetpgrp};
use rustix::stdio::stdin;
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

use super::locked;
use super::proc::{Links, Stat, is_of_our_pid_namespace};
use super::signal::{end_by, has_job_control_shell, stop_ourselves};
use super::stdio::StandardOutput;

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

/// The foreground group, if it is another than ours, and has nobody any more but those whom a child with job control has put there.
fn foreground_of_our_tree() -> Option<Pid> {
    // 0: one outside of our PID namespace. EPERM: one of another user's, whom /proc may hide.
    let group = tcgetpgrp(stdin()).ok().filter(|group| *group != getpgrp() && group.as_raw() > 0)?;
    if killpg(group, None) == Err(Errno::EPERM) {
        return None;
    }
    let ours = LazyCell::new(|| Links::descendants(getpid().as_raw()));
    let is_ours = |stat: &Stat| ours.iter().any(|other| other.process() == stat.process());
    let is_foreign = |stat: &Stat| stat.group == group.as_raw() && !stat.is_dead() && !is_ours(stat);
    let is_empty = killpg(group, None) == Err(Errno::ESRCH);
    let is_ours_alone = is_empty || (is_of_our_pid_namespace() && !Stat::all().iter().any(is_foreign));
    // A shell may have taken it meanwhile.
    Some(group).filter(|group| is_ours_alone && tcgetpgrp(stdin()) == Ok(*group))
}

/// Restores the modes of stdin when dropped, and our place in the foreground: if a shell has put us there, and not in the background,
/// where the terminal is that of others at all times.
#[derive(Debug, Default)]
pub(crate) struct TerminalModeGuard {
    modes_before: Option<Termios>,
    is_foreground_job: bool,
}

impl TerminalModeGuard {
    pub(crate) fn of_stdin() -> Self {
        let mut guard = Self::default();
        guard.on_continued();
        guard
    }

    /// Looks where the shell has put us, which is why we go on.
    pub(crate) fn on_continued(&mut self) {
        let was_so = self.is_foreground_job;
        self.is_foreground_job = is_in_foreground() || (was_so && foreground_of_our_tree().is_some());
        if self.is_foreground_job && self.modes_before.is_none() {
            self.modes_before = tcgetattr(stdin()).ok();
        }
    }
}

impl Drop for TerminalModeGuard {
    fn drop(&mut self) {
        let Some(before) = self.modes_before.as_ref().filter(|_| self.is_foreground_job) else { return };
        if foreground_of_our_tree().is_some() {
            let _ = tcsetpgrp(stdin(), getpgrp()); // it fails if that is another session's; TTOU has to be ignored
        }
        // Else the kernel would stop us with SIGTTOU.
        if is_in_foreground() {
            // An error means that the terminal is gone.
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// True if `terminal` is ours, and another process group has it: what we did to it would be done to that one, or would stop us.
pub(crate) fn is_in_background(terminal: impl AsFd) -> bool {
    tcgetpgrp(terminal).is_ok_and(|group| group != getpgrp())
}

/// Alternate screen of the terminal that is stdout, with its keys as they come. It is left when dropped, and before a signal ends or
/// stops this process; in the background the terminal is left alone.
#[derive(Debug)]
pub(crate) struct FullScreen(Arc<Mutex<Screen>>);

#[derive(Debug)]
struct Screen {
    modes_before: Option<Termios>,
    is_shown: bool,
}

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

impl FullScreen {
    pub(crate) fn enter() -> io::Result<Self> {
        let ends = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
        let handled = SigSet::from_iter(ends.into_iter().chain([Signal::SIGTSTP, Signal::SIGCONT]));
        // Those two: after a look at the foreground another group may get it, and a stopped thread hears no signal.
        handled.iter().chain([Signal::SIGTTIN, Signal::SIGTTOU]).collect::<SigSet>().thread_block()?;
        let screen = Arc::new(Mutex::new(Screen { modes_before: tcgetattr(stdin()).ok(), is_shown: false }));
        let seen = Arc::clone(&screen);
        thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            while let Ok(signal) = handled.wait() {
                let mut screen = locked(&seen);
                match signal {
                    Signal::SIGCONT => screen.enter(),                // a shell may have used the terminal
                    Signal::SIGTSTP if !has_job_control_shell() => {} // nobody would continue us
                    Signal::SIGTSTP => {
                        screen.leave();
                        stop_ourselves();
                    }
                    _ => {
                        screen.leave();
                        let _ = handled.thread_unblock(); // it fails for invalid arguments only
                        end_by((signal as i32).into());
                        // SAFETY: it ends this process, as PID 1, too, for which a signal has no default action.
                        unsafe { libc::_exit(128 + signal as i32) }
                    }
                }
            }
        })?;
        locked(&screen).enter();
        Ok(Self(screen))
    }

    /// Shows `text`, unless another process group has the terminal.
    pub(crate) fn write(&self, text: &str) -> io::Result<()> {
        let mut screen = locked(&self.0);
        // A shell that brings a job that runs to the foreground sends it no signal.
        if !screen.is_shown {
            screen.enter();
        }
        if is_in_background(stdout()) { Ok(()) } else { StandardOutput.write_all(text.as_bytes()) }
    }
}

impl Screen {
    fn enter(&mut self) {
        self.is_shown = !is_in_background(stdout());
        if self.is_shown {
            show(ENTER, &self.modes_before, true);
        }
    }

    fn leave(&mut self) {
        if mem::take(&mut self.is_shown) && !is_in_background(stdout()) {
            show(LEAVE, &self.modes_before, false);
        }
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        locked(&self.0).leave();
    }
}

/// Writes `sequence`, and has the terminal pass keys at once and without echo, or as `before`. An error means that it is gone.
fn show(sequence: &str, before: &Option<Termios>, key_by_key: bool) {
    if let Some(mut modes) = before.clone() {
        if key_by_key {
            modes.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        }
        let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, &modes);
    }
    let _ = StandardOutput.write_all(sequence.as_bytes());
}
