//! The lock helper: a command that holds a lock of some other engine for as long as it runs, as `etcdctl lock NAME` does. The
//! session lock holds on one host, and this between hosts. Lease, keep-alive, fairness and fencing are the engine's own; all that
//! is known here is that the first line on stdout means "it is yours", TERM means "let go of it", and its end "it is gone".

use std::borrow::Cow;
use std::env;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use tracing::{info, warn};

use super::keeper::{Ears, Keeper, Report, read_what_is_there};
use crate::claude::program::{Program, Unstartable};
use crate::event::{Event, Mouth};
use crate::exec::Exec;
use crate::settings::{Stdin, after};
use crate::signals::{self, Inherited};

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
    pub signals: Inherited,
}

/// A helper that runs. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Helper {
    program: Program,
    keeper: Keeper,
    kill_grace: Option<Duration>,
    told: Arc<Told>,
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
    last_words: Option<String>,
    /// Why it could not even begin.
    failure: Option<Errno>,
    /// How it ended.
    ending: Option<String>,
}

/// Keys and complaints are short; what is longer is cut.
const LONGEST_LINE: usize = 4096;

/// How long a keeper may take longer than the kill grace. Only one that somebody has stopped does.
const A_KEEPER_S_DELAY: Duration = Duration::from_secs(5);

impl Helper {
    /// Starts it. Whatever there is to tell comes through `mouth` as [`Event::HelperTold`].
    ///
    /// # Errors
    /// There is no such program (`Unstartable`), or we are out of processes, threads or descriptors.
    pub(super) fn start(command: &HelperCommand, mouth: Mouth) -> Result<Self> {
        let words: Vec<_> = command.words.iter().map(Into::into).collect();
        let program = Program::find(&words, None).context(FAILED)?;
        let environment: Vec<_> = env::vars_os().collect();
        let exec = Exec::of(&program, &environment, Stdin::Null).context(FAILED)?;
        let (keeper, ears) = Keeper::start(&exec, &command.signals, command.kill_grace).context(FAILED)?;
        let told = Arc::<Told>::default();
        let listener = Listener { name: command.words[0].clone(), ears, told: Arc::clone(&told), mouth };
        let helper = Self { program, keeper, kill_grace: command.kill_grace, told };
        signals::spawn_deaf("lock-helper", 64 * 1024, move || listener.listen()).context(FAILED)?;
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
        let last_words = state.last_words.as_ref().map_or_else(String::new, |words| format!(": {words}"));
        state.ending.as_ref().map(|ending| format!("{ending}{last_words}"))
    }

    /// Why it could not be executed, if so.
    pub(super) fn failure(&self) -> Option<Unstartable> {
        self.told.state().failure.map(|errno| self.program.unstartable(errno))
    }

    /// The process through which it is ended.
    pub(super) fn keeper(&self) -> Pid {
        self.keeper.pid()
    }

    /// Has it let go of its lock, without waiting for that.
    pub(super) fn let_go(&self) {
        self.keeper.let_go();
    }
}

/// What every error of it begins with.
pub(super) const FAILED: &str = "cannot start the lock helper";

impl Drop for Helper {
    /// TERM, by which it lets go of its lock; the kill grace; KILL.
    fn drop(&mut self) {
        self.let_go();
        let patience = self.kill_grace.map(|grace| grace.saturating_add(A_KEEPER_S_DELAY));
        if !self.told.ended_within(patience) {
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

    fn ended_within(&self, bound: Option<Duration>) -> bool {
        let deadline = after(Instant::now(), bound);
        let mut state = self.state();
        while state.ending.is_none() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => return false,
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        true
    }
}

/// The thread that hears of a helper.
struct Listener {
    name: String,
    ears: Ears,
    told: Arc<Told>,
    mouth: Mouth,
}

impl Listener {
    fn listen(self) {
        let (mut stdout, mut stderr) = (Lines::default(), Lines::default());
        let reports = File::from(self.ears.reports);
        let tell = |change: &dyn Fn(&mut State)| {
            change(&mut self.told.state());
            self.told.changed.notify_all();
            self.mouth.put(Event::HelperTold);
        };
        loop {
            // The report first: what the helper has said before its end is there by then.
            let report = wait(&reports, [(&self.ears.stdout, &stdout), (&self.ears.stderr, &stderr)])
                .then(|| Report::read(&reports).unwrap_or(Report::Lost));
            for line in stderr.read(&self.ears.stderr) {
                info!(name: "lock.helper", "{}: {line}", self.name);
                self.told.state().last_words = Some(line);
            }
            // What else it prints is of no interest, but must not fill the pipe.
            if let Some(line) = stdout.read(&self.ears.stdout).into_iter().next()
                && self.told.state().key.is_none()
            {
                tell(&|state| state.key = Some(line.clone()));
            }
            let ending = match report {
                None => continue,
                Some(Report::Unstartable(errno)) => {
                    self.told.state().failure = Some(errno);
                    continue;
                }
                Some(Report::Killing) => {
                    warn!(name: "lock.helper", "the lock helper {} does not let go: sending KILL", self.name);
                    continue;
                }
                Some(Report::Exited(status)) => format!("exit status {status}"),
                Some(Report::Killed(signal)) => format!("ended by {}", signals::name(signal)),
                Some(Report::Lost) => "its keeper was killed".to_owned(),
            };
            return tell(&|state| state.ending = Some(ending.clone()));
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
    /// The lines that have come, without what controls a terminal.
    fn read(&mut self, from: &OwnedFd) -> Vec<String> {
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
        lines.split_inclusive(|byte| *byte == b'\n').map(text).collect()
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
        assert!(lines.read(&from).is_empty() && !lines.at_end);
        to.write_all(b"factory/69")?;
        assert!(lines.read(&from).is_empty(), "not whole yet");
        to.write_all(b"4d\r\n\n\x1b[31mred\0\xff\nhalf")?;
        assert_eq!(lines.read(&from), ["factory/694d", "", "[31mred\u{fffd}"]);
        to.write_all(&[b'x'; 3 * LONGEST_LINE])?;
        assert_eq!(lines.read(&from).concat().len(), LONGEST_LINE, "cut");
        to.write_all(b"last")?;
        drop(to);
        assert_eq!(lines.read(&from), ["last"]);
        assert!(lines.at_end && lines.read(&from).is_empty());
        Ok(())
    }
}
