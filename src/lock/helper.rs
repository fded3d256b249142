//! The lock helper: a command that holds a lock of some other engine for as long as it runs, as `etcdctl lock NAME` does. The
//! session lock holds on one host, and this between hosts. Lease, keep-alive, fairness and fencing are the engine's own; all that
//! is known here is that the first line on stdout means "it is yours", TERM means "let go of it", and its end "it is gone".

use std::borrow::Cow;
use std::env;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use tracing::{info, warn};

use super::helper_monitor::{HelperMonitor, MonitorPipes, Report, read_what_is_there};
use super::queue;
use crate::claude::program::Program;
use crate::config::settings::{after, show};
use crate::events::{Event, EventQueue, EventSender};
use crate::sys::exec::{Exec, Stdin};
use crate::sys::signal::{self, DUPLICATE_WINDOW, InheritedDispositions};

/// The variable that tells the child what the helper calls its lock.
pub const KEY_VARIABLE: &str = "CLAUDE_RUN_LOCK_KEY";

/// What to run, and how long it may take to let go.
#[derive(Clone, Debug)]
pub struct HelperCommand {
    /// The program and its arguments; never empty.
    pub words: Vec<String>,
    /// From a TERM to the KILL.
    pub kill_grace: Option<Duration>,
    /// The dispositions it starts with.
    pub signals: InheritedDispositions,
}

/// A helper that runs. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Helper {
    program: Program,
    keeper: HelperMonitor,
    kill_grace: Option<Duration>,
    told: Arc<Told>,
    /// Since when it has been told to let go.
    parting: Option<Instant>,
}

/// What the thread that listens has to tell.
#[derive(Debug, Default)]
struct Told {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Its first line on stdout: it has the lock.
    key: Option<String>,
    /// Its last line on stderr.
    last_stderr_line: Option<String>,
    /// Why it could not even begin.
    failure: Option<Failure>,
    /// Why no first line may ever come.
    silence: Option<&'static str>,
    /// How it ended.
    ending: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Failure {
    /// It cannot be executed.
    Exec(Errno),
    /// There is no process for it.
    Fork(Errno),
}

/// Keys and complaints are short; what is longer is cut.
const LONGEST_LINE: usize = 4096;

/// How long a keeper may take longer than the kill grace. Only one that somebody has stopped does.
const A_KEEPER_S_DELAY: Duration = Duration::from_secs(5);

/// Longer than it takes to hear of what has happened.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(100);

impl Helper {
    /// Starts it. Whatever there is to tell comes through `sender` as [`Event::HelperTold`].
    ///
    /// # Errors
    /// There is no such program (`ProgramError`), or we are out of processes, threads or descriptors.
    pub(super) fn start(command: &HelperCommand, sender: EventSender) -> Result<Self> {
        let words: Vec<_> = command.words.iter().map(Into::into).collect();
        let program = Program::find(&words, None).context(FAILED)?;
        let environment: Vec<_> = env::vars_os().collect();
        let exec = Exec::new(&program.path, &program.argv, &environment, Stdin::Null).context(FAILED)?;
        let (keeper, ears) = HelperMonitor::start(&exec, &command.signals, command.kill_grace).context(FAILED)?;
        let told = Arc::<Told>::default();
        let listener = Listener { name: command.words[0].clone(), ears, told: Arc::clone(&told), sender };
        if let Err(error) = signal::spawn_with_signals_blocked("lock-helper", 64 * 1024, move || listener.listen()) {
            keeper.give_up();
            return Err(error).context(FAILED);
        }
        let helper = Self { program, keeper, kill_grace: command.kill_grace, told, parting: None };
        info!(name: "lock.helper", "started the lock helper {}", helper.name());
        Ok(helper)
    }

    /// What it is called.
    pub(super) fn name(&self) -> Cow<'_, str> {
        self.program.argv[0].to_string_lossy()
    }

    /// Its first line on stdout, if it has the lock.
    pub(super) fn key(&self) -> Option<String> {
        self.told.state().key.clone()
    }

    /// How it has ended, if it has, and what it said at last.
    pub(super) fn ending(&self) -> Option<String> {
        let state = self.told.state();
        let last_stderr_line = state.last_stderr_line.as_ref().map_or_else(String::new, |words| format!(": {words}"));
        state.ending.as_ref().map(|ending| format!("{ending}{last_stderr_line}"))
    }

    /// Why it could not be executed, if so.
    pub(super) fn failure(&self) -> Option<Error> {
        Some(match self.told.state().failure? {
            Failure::Exec(errno) => Error::new(self.program.unstartable(errno)),
            Failure::Fork(errno) => Error::new(errno),
        })
    }

    /// Why it may never say that it has its lock, however long one waits.
    pub(super) fn silence(&self) -> Option<&'static str> {
        self.told.state().silence
    }

    /// The process through which it is ended.
    pub(super) fn keeper(&self) -> Pid {
        self.keeper.pid()
    }

    /// Has it let go of its lock, without waiting for that: TERM, the kill grace, KILL.
    pub(super) fn release(&mut self) {
        if self.parting.is_none() {
            self.parting = Some(Instant::now());
            self.keeper.release();
        }
    }

    /// Has it let go of its lock, and waits for that. Gives the first signal that asks us for an end meanwhile: it ends the kill
    /// grace at once, unless it comes right after `asked`, when we had such a request before. What is no signal is left in the
    /// events.
    pub(super) fn part(mut self, events: &mut EventQueue, ignored: SigSet, asked: Option<Instant>) -> Option<Signal> {
        self.release();
        let began = Instant::now();
        let mut others = Vec::new();
        let mut request = None;
        while self.told.state().ending.is_none() && !self.is_overdue() {
            let Ok(events) = events.wait(self.overdue_at()) else { break };
            let report = || warn!("waiting for the lock helper {} to let go, {} so far", self.name(), show(began.elapsed()));
            let signal =
                queue::first_termination_signal(&events, ignored, report).and_then(|signal| Signal::try_from(signal).ok());
            if let Some(signal) = signal.filter(|_| asked.is_none_or(|asked| asked.elapsed() >= DUPLICATE_WINDOW)) {
                request = request.or(Some(signal));
                if signal != Signal::SIGUSR2 {
                    self.hurry(signal);
                }
            }
            others.extend(events.into_iter().filter(|event| !matches!(event, Event::Signal(..))));
        }
        events.unread(others);
        request
    }

    /// Ends the kill grace.
    fn hurry(&mut self, signal: Signal) {
        if self.kill_grace != Some(Duration::ZERO) {
            warn!(name: "lock.helper", "{signal}: sending KILL to the lock helper {}", self.name());
            (self.kill_grace, self.parting) = (Some(Duration::ZERO), Some(Instant::now()));
            self.keeper.release();
        }
    }

    /// When its keeper has taken too long.
    fn overdue_at(&self) -> Option<Instant> {
        after(self.parting?, self.kill_grace.map(|grace| grace.saturating_add(A_KEEPER_S_DELAY)))
    }

    fn is_overdue(&self) -> bool {
        self.overdue_at().is_some_and(|at| Instant::now() >= at)
    }
}

/// What every error of it begins with.
pub(super) const FAILED: &str = "cannot start the lock helper";

impl Drop for Helper {
    /// TERM, by which it lets go of its lock; the kill grace; KILL. Unless we have [parted](Self::part) before, nobody hears signals
    /// here, so it takes no longer than that even where the kill grace has no bound.
    fn drop(&mut self) {
        self.release();
        let now = Instant::now();
        let overdue_at = self.overdue_at().unwrap_or(now + A_KEEPER_S_DELAY);
        // If we were stopped for so long, its end may be there, and only not be heard of.
        if !self.told.ends_before(overdue_at.max(now + ANNOUNCE_AFTER)) {
            warn!(name: "lock.helper", "the lock helper {} does not end: sending KILL to its keeper", self.name());
            self.keeper.kill();
        }
        self.keeper.reap();
    }
}

impl Told {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ends_before(&self, deadline: Instant) -> bool {
        let mut state = self.state();
        while state.ending.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// The thread that hears of a helper.
struct Listener {
    name: String,
    ears: MonitorPipes,
    told: Arc<Told>,
    sender: EventSender,
}

impl Listener {
    fn listen(self) {
        let (mut stdout, mut stderr) = (Lines::default(), Lines::default());
        let reports = File::from(self.ears.reports);
        loop {
            // The report first: what the helper has said before its end is there by then.
            let report = wait(&reports, [(&self.ears.stdout, &stdout), (&self.ears.stderr, &stderr)])
                .then(|| Report::read(&reports).unwrap_or(Report::Lost));
            stderr.read(&self.ears.stderr, |line| {
                info!(name: "lock.helper", "{}: {line}", self.name);
                self.told.state().last_stderr_line = Some(line);
            });
            // What else it prints is of no interest, but must not fill the pipe.
            let mut first = None;
            stdout.read(&self.ears.stdout, |line| _ = first.get_or_insert(line));
            match report {
                Some(Report::OutOfReach(errno)) => {
                    warn!(name: "lock.helper", "cannot signal the lock helper {}: {errno}", self.name);
                }
                Some(Report::Killing) => {
                    warn!(name: "lock.helper", "the lock helper {} does not let go: sending KILL", self.name);
                }
                _ => {}
            }
            // All at once: one that has ended right after its first line never had the lock.
            let mut state = self.told.state();
            let is_key = state.key.is_none() && first.is_some();
            state.key = state.key.take().or(first);
            state.silence = stdout.silence();
            match report {
                None | Some(Report::OutOfReach(_) | Report::Killing) => {}
                Some(Report::ProgramError(errno)) => state.failure = Some(Failure::Exec(errno)),
                Some(Report::NoProcess(errno)) => state.failure = Some(Failure::Fork(errno)),
                Some(Report::Exited(status)) => state.ending = Some(format!("exit status {status}")),
                Some(Report::Killed(signal)) => state.ending = Some(format!("ended by {}", signal::name(signal))),
                Some(Report::Lost) => state.ending = Some("its keeper was killed".to_owned()),
            }
            let has_ended = state.ending.is_some();
            drop(state);
            if is_key || has_ended {
                self.told.changed.notify_all();
                self.sender.send(Event::HelperTold);
            }
            if has_ended {
                return;
            }
        }
    }
}

/// Sleeps until there is a report, or something on one of the helper's `outputs`. Whether there is a report.
fn wait(reports: &File, outputs: [(&OwnedFd, &Lines); 2]) -> bool {
    let open = outputs.iter().filter(|(_, lines)| !lines.at_end).map(|(output, _)| output.as_fd());
    let mut ready: Vec<_> = [reports.as_fd()].into_iter().chain(open).map(|end| PollFd::new(end, PollFlags::POLLIN)).collect();
    // An error is a signal that was not for us: then there is nothing to be read, and that does no harm.
    poll(&mut ready, PollTimeout::NONE).is_ok() && ready[0].any().unwrap_or(true)
}

/// One of the helper's outputs.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
    at_end: bool,
}

impl Lines {
    /// Gives `to` the lines that have come, without what controls a terminal.
    fn read(&mut self, from: &OwnedFd, to: impl FnMut(String)) {
        self.at_end = !read_what_is_there(from, &mut self.begun);
        let is_enough = self.at_end || self.begun.len() > LONGEST_LINE;
        let whole = if is_enough {
            self.begun.len()
        } else {
            self.begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
        };
        let lines = self.begun.drain(..whole).collect::<Vec<_>>();
        let text = |line: &[u8]| {
            let line = &line[..line.len().min(LONGEST_LINE)];
            String::from_utf8_lossy(line).chars().filter(|character| !character.is_control()).collect()
        };
        lines.split_inclusive(|byte| *byte == b'\n').map(text).for_each(to);
    }

    /// Why the next line may never come.
    fn silence(&self) -> Option<&'static str> {
        match self {
            Self { at_end: true, .. } => Some("it has closed its stdout without a line"),
            Self { begun, .. } if !begun.is_empty() => Some("it has printed something, but no whole line"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    use super::*;

    #[test]
    fn lines_come_whole_and_clean_however_they_are_written() -> Result<()> {
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
        assert!(read(&mut lines).is_empty() && lines.silence().is_some(), "not whole yet");
        to.write_all(b"4d\r\n\n\x1b[31mred\0\xff\nhalf")?;
        assert_eq!(read(&mut lines), ["factory/694d", "", "[31mred\u{fffd}"]);
        to.write_all(&[b'x'; 3 * LONGEST_LINE])?;
        assert_eq!(read(&mut lines).concat().len(), LONGEST_LINE, "cut");
        to.write_all(b"last")?;
        drop(to);
        assert_eq!(read(&mut lines), ["last"]);
        assert!(lines.at_end && read(&mut lines).is_empty());
        Ok(())
    }
}
