//! The lock helper: a command that holds a lock of another engine for as long as it runs, as `etcdctl lock NAME` does. The session
//! lock holds on one host, this one between hosts. Lease, keep-alive, fairness and fencing are the engine's own; the contract here is
//! that the first line on stdout means "acquired", TERM means "release", and the end "lost".

use std::borrow::Cow;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use tracing::{info, warn};

use super::monitor::{self, HelperEnd, Report};
use super::wait::{Awaited, LockWait, WaitEnd};
use crate::claude::program::Program;
use crate::config::duration::after;
use crate::events::{Event, EventQueue, EventSender};
use crate::records::RunRecorder;
use crate::sys::locked;
use crate::sys::proc::{self, Stat};
use crate::sys::signal::{self, DUPLICATE_WINDOW, Signal};

/// Command of a lock helper.
#[derive(Clone, Debug)]
pub struct HelperCommand {
    /// The program and its arguments; never empty.
    pub(crate) words: Vec<String>,
    pub(crate) kill_grace: Option<Duration>,
}

/// A helper that runs. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Helper {
    program: Program,
    monitor: Child,
    /// The monitor's process, which somebody else may reap.
    pub(super) monitor_process: Stat,
    control: UnixStream,
    kill_grace: Option<Duration>,
    state: Arc<Mutex<HelperState>>,
    /// Disconnected once the state has an end.
    end: Receiver<()>,
    /// Time at which TERM was requested.
    pub(super) terminating_since: Option<Instant>,
}

/// State of a lock helper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HelperState {
    /// First line on stdout, by which the helper holds its lock.
    pub(super) key: Option<String>,
    /// Reason why there may never be one, if known.
    pub(super) no_key_reason: Option<String>,
    /// True if there will never be one.
    pub(super) is_hopeless: bool,
    pub(super) end: Option<HelperEnd>,
}

/// Context of every error of it.
const FAILED: &str = "cannot start the lock helper";

/// Time that a monitor may take beyond the kill grace. Only one that somebody has stopped takes longer.
const MONITOR_GRACE: Duration = Duration::from_secs(5);

/// Time within which its thread learns of a helper that has ended.
const REPORT_DELAY: Duration = Duration::from_millis(100);

impl Helper {
    /// Starts `command`. [`Event::HelperChanged`] comes when the state changes.
    ///
    /// # Errors
    /// There is no such program (`ProgramError`), or we are out of processes, threads or descriptors.
    pub(super) fn start(command: &HelperCommand, events: &EventQueue) -> Result<Self> {
        let HelperCommand { words, kill_grace } = command;
        // The monitor is found in /proc, and told from what the run starts.
        if !proc::is_of_our_pid_namespace() {
            bail!("{FAILED}: /proc is not mounted here, or is that of another PID namespace; mount one");
        }
        let argv: Vec<_> = words.iter().map(Into::into).collect();
        let program = Program::find(&argv, None).context(FAILED)?;
        let (control, its_end) = UnixStream::pair().context(FAILED)?;
        let reports = control.try_clone().context(FAILED)?;
        let state = Arc::<Mutex<HelperState>>::default();
        let (name, shared, sender) = (words[0].clone(), Arc::clone(&state), events.sender());
        let (alive, end) = mpsc::sync_channel::<()>(0);
        let work = move || {
            follow(&name, reports, &shared, &sender);
            drop(alive);
        };
        signal::spawn_with_signals_blocked("lock-helper", 512 * 1024, work).context(FAILED)?;
        let monitor = monitor::start(&program, *kill_grace, &events.inherited, its_end);
        let monitor = monitor.with_context(|| format!("{FAILED}: cannot start its monitor, which is /proc/self/exe"))?;
        let monitor_process = Stat::read(monitor.id().cast_signed()).context("the lock helper's monitor is not in /proc")?;
        let kill_grace = *kill_grace;
        let helper = Self { program, monitor, monitor_process, control, kill_grace, state, end, terminating_since: None };
        info!(name: "lock.helper", "started the lock helper {}", helper.name());
        Ok(helper)
    }

    pub(super) fn name(&self) -> Cow<'_, str> {
        self.program.argv[0].to_string_lossy()
    }

    /// Its monitor's KILL comes when nobody has this end any more.
    pub(super) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    pub(super) fn state(&self) -> HelperState {
        locked(&self.state).clone()
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// The helper could not be started.
    pub(super) fn ended(&self) -> Result<Option<String>> {
        match self.state().end {
            None => Ok(None),
            Some(HelperEnd::Ended(how)) => Ok(Some(how)),
            Some(HelperEnd::NotExecutable(errno)) => Err(self.program.unstartable(Errno::from_raw(errno))).context(FAILED),
            Some(HelperEnd::NotStarted(why)) => bail!("{FAILED}: {why}"),
        }
    }

    /// Requests its end without waiting for it: TERM, the kill grace, KILL.
    pub(super) fn terminate(&mut self) {
        if self.terminating_since.is_none() {
            self.send_request();
        }
    }

    fn send_request(&mut self) {
        self.terminating_since = Some(Instant::now());
        let _ = self.control.write(&[1]); // without a reader, all is done already
    }

    /// Ends it, and waits for that. Gives the first termination signal that comes meanwhile: it ends the kill grace at once, unless
    /// it belongs to a request made at `requested_at`. Events that are no signals stay in the queue.
    pub(super) fn shut_down(
        mut self,
        recorder: &mut RunRecorder,
        events: &mut EventQueue,
        requested_at: Option<Instant>,
    ) -> Option<Signal> {
        self.terminate();
        let mut others = Vec::new();
        let mut request = None;
        let awaited = Awaited::HelperShutdown(self.name().into_owned());
        let mut wait = LockWait::new(awaited, Instant::now(), recorder, events);
        wait.limit = self.kill_grace;
        loop {
            wait.deadline = self.overdue_at();
            let end = wait.until(|_, events| {
                others.extend(events.iter().filter(|event| !matches!(event, Event::Signal(..))).copied());
                Ok(self.state().end)
            });
            let Ok(WaitEnd::Interrupted(signal)) = end else { break };
            if requested_at.is_some_and(|at| at.elapsed() < DUPLICATE_WINDOW) {
                continue;
            }
            if signal != Signal::SIGUSR2 && self.kill_grace != Some(Duration::ZERO) {
                warn!(name: "lock.helper", "{signal}: sending KILL to the lock helper {}", self.name());
                self.kill_grace = Some(Duration::ZERO);
                self.send_request();
            }
            // USR2 ends only a wait before the start, and gives way to what ends more.
            request = request.filter(|request| *request != Signal::SIGUSR2).or(Some(signal));
        }
        wait.events.requeue(others);
        request
    }

    /// Time from which on its monitor has taken too long.
    fn overdue_at(&self) -> Option<Instant> {
        after(self.terminating_since?, self.kill_grace.map(|grace| grace.saturating_add(MONITOR_GRACE)))
    }
}

impl Drop for Helper {
    /// TERM, by which it releases its lock; the kill grace; KILL. Unless it was [shut down](Self::shut_down) before, no signal is
    /// handled here, so this takes no longer than that even where the kill grace has no bound.
    fn drop(&mut self) {
        self.terminate();
        let now = Instant::now();
        let overdue_at = self.overdue_at().unwrap_or(now + MONITOR_GRACE);
        // If we were stopped for so long, it may have ended, and its thread only not learned of it.
        let patience = overdue_at.max(now + REPORT_DELAY) - now;
        if self.end.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            warn!(name: "lock.helper", "the lock helper {} does not end: sending KILL to its monitor", self.name());
            let _ = self.monitor_process.signal(Signal::SIGKILL); // or it has ended at this moment
        }
        let _ = self.monitor.wait(); // an error means that it is reaped already
    }
}

/// Keeps `state` of the helper called `name` up to date until it has ended, for a thread of its own.
fn follow(name: &str, monitor: UnixStream, state: &Mutex<HelperState>, sender: &EventSender) {
    let mut reports = BufReader::new(monitor);
    let mut now = HelperState::default();
    while now.end.is_none() {
        let mut line = String::new();
        let _ = reports.read_line(&mut line); // an error is the monitor's end, as EOF is
        match serde_json::from_str(&line) {
            Ok(Report::Key(key)) => now.key = Some(key),
            Ok(Report::NoKey(reason)) => now.no_key_reason = Some(reason),
            Ok(Report::NeverKey(reason)) => (now.no_key_reason, now.is_hopeless) = (Some(reason), true),
            Ok(Report::Message(line)) => info!(name: "lock.helper", "{name}: {line}"),
            Ok(Report::OutOfReach(errno)) => {
                warn!(name: "lock.helper", "cannot signal the lock helper {name}: {}", Errno::from_raw(errno));
            }
            Ok(Report::Killing) => {
                warn!(name: "lock.helper", "the lock helper {name} does not release its lock: sending KILL");
            }
            Ok(Report::End(end)) => now.end = Some(end),
            Err(_) => now.end = Some(HelperEnd::Ended("its monitor was killed".to_owned())),
        }
        // What came at once counts at once: a helper that has ended right after its first line never was running.
        if !reports.buffer().is_empty() && now.end.is_none() {
            continue;
        }
        let mut state = locked(state);
        if *state != now {
            state.clone_from(&now);
            drop(state);
            sender.send(Event::HelperChanged);
        }
    }
}
