//! `status --watch` on a terminal: on the alternate screen, so that the scrollback stays, and cut to its height.

use std::io::{self, IsTerminal, stdin, stdout};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use super::super::layout::{self, fitted};
use super::super::{Context, Factory};
use super::Status;
use crate::logging::{escaped_lines, in_locale};
use crate::outcome::Outcome;
use crate::records::time;
use crate::sys::terminal::{self, FullScreen};

/// Time from one look to the next: ages change with the clock.
const PERIOD: Duration = Duration::from_secs(1);

/// Shows one status after another until `q`, or a signal that ends us.
pub(super) fn on_terminal(factory: &Factory, context: &Context) -> Result<Outcome> {
    let screen = FullScreen::enter().context("cannot use the terminal")?;
    loop {
        let text = screen_text(&Status::look(factory, context));
        screen.write(&escaped_screen(&text)).context("cannot write to the terminal")?;
        if is_ended_by_a_key()? {
            return Ok(Outcome::Shown);
        }
    }
}

/// Line above each status.
pub(super) fn head() -> String {
    let now = time(SystemTime::now());
    format!("claude-run status  {} UTC", now[..19].replace('T', " "))
}

/// As much of the status as the screen has room for; of unknown size, it has what programs assume.
fn screen_text(status: &Status) -> String {
    let (height, width) = terminal::size_of(stdout()).map_or((24, 79), |size| (usize::from(size.ws_row), layout::width()));
    let room = height.saturating_sub(2).max(1);
    let text = status.to_text(width, room);
    let lines: Vec<_> = text.lines().take(room).collect();
    let key = if stdin().is_terminal() { "q" } else { "Ctrl-C" };
    format!("{}\n\n{}", fitted(&format!("{}  ({key} ends it)", head()), width), lines.join("\n"))
}

/// Overwrites the screen: clears the rest of each line, and all below.
fn escaped_screen(text: &str) -> String {
    let mut text = in_locale(&escaped_lines(text)).into_owned();
    if anstream::AutoStream::choice(&stdout()) == anstream::ColorChoice::Never {
        text = anstream::adapter::strip_str(&text).to_string();
    }
    format!("\x1b[H{}\x1b[K\x1b[J", text.replace('\n', "\x1b[K\r\n"))
}

/// Waits for a key, and for the next look at most.
fn is_ended_by_a_key() -> Result<bool> {
    let input = stdin();
    if !input.is_terminal() || terminal::is_in_background(&input) {
        thread::sleep(PERIOD);
        return Ok(false);
    }
    let keys = &mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    // An error is EINTR: time for another look.
    if poll(keys, PERIOD.as_millis() as u16).unwrap_or(0) == 0 {
        return Ok(false);
    }
    let mut typed = [0; 64];
    match nix::unistd::read(input.as_fd(), &mut typed) {
        // The terminal is gone.
        Ok(0) => Ok(true),
        Ok(length) => Ok(typed[..length].iter().any(|key| matches!(key, b'q' | b'Q'))),
        // EIO: another process group has the terminal by now, and the key is for that.
        Err(Errno::EINTR | Errno::EAGAIN | Errno::EIO) => Ok(false),
        Err(error) => Err(io::Error::from(error)).context("cannot read the keys"),
    }
}
