//! State of a lock helper, kept up to date by a thread that reads its outputs and its monitor's reports.

use std::fs::File;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};

use super::helper_monitor::MonitorPipes;
use super::monitor_process::Report;
use crate::events::{Event, EventSender};
use crate::sys::signal;

/// State of a lock helper.
#[derive(Clone, Debug)]
pub(super) enum HelperState {
    /// No line printed yet; the reason why there may never be one, if known.
    Starting { no_key_reason: Option<&'static str> },
    /// First line printed on stdout, the key: the helper holds its lock.
    Running { key: String },
    /// Ended, with or without having held its lock.
    Ended { key: Option<String>, end: HelperEnd },
}

/// End of a lock helper.
#[derive(Clone, Debug)]
pub(super) enum HelperEnd {
    /// End of a helper that ran: its status or signal, and its last line on stderr.
    Ended(String),
    /// execve(2) failed.
    NotExecutable(Errno),
    /// There was no process for it.
    NoProcess(Errno),
}

impl Default for HelperState {
    fn default() -> Self {
        Self::Starting { no_key_reason: None }
    }
}

impl HelperState {
    /// Takes in what was read at once: a helper that has ended right after its first line never was running. True if the state is
    /// another one.
    fn update(&mut self, line: Option<String>, no_key_reason: Option<&'static str>, end: Option<HelperEnd>) -> bool {
        let (was_starting, key) = match mem::take(self) {
            Self::Starting { .. } => (true, line),
            Self::Running { key } => (false, Some(key)),
            Self::Ended { key, .. } => (false, key),
        };
        let is_changed = end.is_some() || (was_starting && key.is_some());
        *self = match (key, end) {
            (key, Some(end)) => Self::Ended { key, end },
            (Some(key), None) => Self::Running { key },
            (None, None) => Self::Starting { no_key_reason },
        };
        is_changed
    }
}

/// Reads what comes from the helper called `name` until it has ended, for a thread of its own. Sends [`Event::HelperChanged`] when the
/// helper holds its lock, and when it has ended.
pub(super) fn read_helper(name: &str, pipes: MonitorPipes, state: &Mutex<HelperState>, sender: &EventSender) {
    let (mut stdout, mut stderr) = (Lines::default(), Lines::default());
    let (mut last_stderr_line, mut start_failure) = (None, None);
    let reports = File::from(pipes.reports);
    loop {
        // Polled first: what the helper has printed before its end is there by then.
        let is_reported = wait(&reports, [(&pipes.stdout, &stdout), (&pipes.stderr, &stderr)]);
        stderr.read(&pipes.stderr, |line| {
            info!(name: "lock.helper", "{name}: {line}");
            last_stderr_line = Some(line);
        });
        // Later lines are of no interest, but must not fill the pipe.
        let mut line = None;
        stdout.read(&pipes.stdout, |text| _ = line.get_or_insert(text));
        let mut end = None;
        if is_reported {
            match Report::read(&reports) {
                Some(Report::OutOfReach(errno)) => {
                    warn!(name: "lock.helper", "cannot signal the lock helper {name}: {errno}");
                }
                Some(Report::Killing) => {
                    warn!(name: "lock.helper", "the lock helper {name} does not release its lock: sending KILL");
                }
                Some(Report::ProgramError(errno)) => start_failure = Some(HelperEnd::NotExecutable(errno)),
                Some(Report::NoProcess(errno)) => start_failure = Some(HelperEnd::NoProcess(errno)),
                Some(Report::Exited(status)) => end = Some(format!("exit status {status}")),
                Some(Report::Killed(signal)) => end = Some(format!("ended by {}", signal::name(signal))),
                None => end = Some("its monitor was killed".to_owned()),
            }
        }
        let end = end.map(|how| {
            let message = last_stderr_line.take().map_or_else(String::new, |line| format!(": {line}"));
            start_failure.take().unwrap_or_else(|| HelperEnd::Ended(how + &message))
        });
        let has_ended = end.is_some();
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_changed = state.update(line, stdout.no_line_reason(), end);
        drop(state);
        if is_changed {
            sender.send(Event::HelperChanged);
        }
        if has_ended {
            return;
        }
    }
}

/// Sleeps until there is a report, or something on one of the helper's `outputs`. True if there is a report.
fn wait(reports: &File, outputs: [(&OwnedFd, &Lines); 2]) -> bool {
    let open = outputs.iter().filter(|(_, lines)| !lines.at_end).map(|(output, _)| output.as_fd());
    let mut ready: Vec<_> = [reports.as_fd()].into_iter().chain(open).map(|end| PollFd::new(end, PollFlags::POLLIN)).collect();
    // EINTR: then there is nothing to be read, and that does no harm.
    poll(&mut ready, PollTimeout::NONE).is_ok() && ready[0].any().unwrap_or(true)
}

/// Lines of one of the helper's outputs.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    at_end: bool,
}

impl Lines {
    /// Longest key or message; the rest of a longer one is cut.
    const LONGEST: usize = 4096;

    /// Most that is read at once: as much as a pipe holds, of an output that never stops.
    const PIPE: usize = 64 * 1024;

    /// Gives `to` the lines that have come, without control characters.
    fn read(&mut self, from: &OwnedFd, to: impl FnMut(String)) {
        self.fill(from);
        let is_enough = self.at_end || self.partial.len() > Self::LONGEST;
        let whole = if is_enough {
            self.partial.len()
        } else {
            self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
        };
        let lines = self.partial.drain(..whole).collect::<Vec<_>>();
        let text = |line: &[u8]| {
            let line = &line[..line.len().min(Self::LONGEST)];
            String::from_utf8_lossy(line).chars().filter(|character| !character.is_control()).collect()
        };
        lines.split_inclusive(|byte| *byte == b'\n').map(text).for_each(to);
    }

    fn fill(&mut self, from: &OwnedFd) {
        let mut piece = [0; 4096];
        let mut left = Self::PIPE;
        while left > 0 {
            match nix::unistd::read(from, &mut piece) {
                Ok(length @ 1..) => {
                    self.partial.extend_from_slice(&piece[..length]);
                    left = left.saturating_sub(length);
                }
                Err(Errno::EINTR) => {}
                end => {
                    self.at_end = end != Err(Errno::EAGAIN);
                    return;
                }
            }
        }
    }

    /// Reason why the next line may never come.
    fn no_line_reason(&self) -> Option<&'static str> {
        match self {
            Self { at_end: true, .. } => Some("it has closed its stdout without a line"),
            Self { partial, .. } if !partial.is_empty() => Some("it has printed something, but no whole line"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use anyhow::Result;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    use super::*;

    #[test]
    fn lines_are_whole_and_clean() -> Result<()> {
        let (from, to) = pipe2(OFlag::O_NONBLOCK)?;
        let mut to = File::from(to);
        let mut lines = Lines::default();
        let read = |lines: &mut Lines| {
            let mut all = Vec::new();
            lines.read(&from, |line| all.push(line));
            all
        };
        assert!(read(&mut lines).is_empty() && !lines.at_end);
        to.write_all(b"factory/69")?;
        assert!(read(&mut lines).is_empty() && lines.no_line_reason().is_some(), "not whole yet");
        to.write_all(b"4d\r\n\n\x1b[31mred\0\xff\nhalf")?;
        assert_eq!(read(&mut lines), ["factory/694d", "", "[31mred\u{fffd}"]);
        to.write_all(&[b'x'; 3 * Lines::LONGEST])?;
        assert_eq!(read(&mut lines).concat().len(), Lines::LONGEST, "cut");
        to.write_all(b"last")?;
        drop(to);
        assert_eq!(read(&mut lines), ["last"]);
        assert!(lines.at_end && read(&mut lines).is_empty());
        Ok(())
    }
}
