//! The lock helper: a command that holds a lock of another engine for as long as it runs, as `etcdctl lock NAME` does. The session
//! lock holds on one host, this one between hosts. Lease, keep-alive, fairness and fencing are the engine's own; the contract here is
//! that the first line on stdout means "acquired", TERM means "release", and the end "lost".

use std::borrow::Cow;
use std::env;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use tracing::{info, warn};

use super::helper_monitor::HelperMonitor;
use super::helper_state::{HelperEnd, HelperState, read_helper};
use super::wait::{LockWait, Target, WaitEnd};
use crate::claude::program::{Program, ProgramError};
use crate::config::duration::after;
use crate::events::{Event, EventQueue, EventSender};
use crate::records::RunRecorder;
use crate::sys::exec::{Exec, NULL};
use crate::sys::signal::{self, DUPLICATE_WINDOW, InheritedDispositions};

/// Command of a lock helper.
#[derive(Clone, Debug)]
pub struct HelperCommand {
    /// The program and its arguments; never empty.
    pub words: Vec<String>,
    /// Time from TERM to KILL.
    pub kill_grace: Option<Duration>,
    /// Signal dispositions that it starts with.
    pub signals: InheritedDispositions,
}

/// A helper that runs. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Helper {
    program: Program,
    monitor: HelperMonitor,
    kill_grace: Option<Duration>,
    /// Signals that do not hurry its end.
    ignored: SigSet,
    state: Arc<Mutex<HelperState>>,
    /// Disconnected once the state is [`HelperState::Ended`].
    end: Receiver<()>,
    /// Time at which TERM was requested.
    terminating_since: Option<Instant>,
}

/// Context of every error of it.
pub(super) const FAILED: &str = "cannot start the lock helper";

/// Time that a monitor may take beyond the kill grace. Only one that somebody has stopped takes longer.
const MONITOR_GRACE: Duration = Duration::from_secs(5);

/// Time within which its thread learns of a helper that has ended.
const REPORT_DELAY: Duration = Duration::from_millis(100);

impl Helper {
    /// Starts `command`. [`Event::HelperChanged`] comes through `sender` when the state changes.
    ///
    /// # Errors
    /// There is no such program (`ProgramError`), or we are out of processes, threads or descriptors.
    pub(super) fn start(command: &HelperCommand, sender: EventSender) -> Result<Self> {
        let words: Vec<_> = command.words.iter().map(Into::into).collect();
        let program = Program::find(&words, None).context(FAILED)?;
        let environment: Vec<_> = env::vars_os().collect();
        let exec = Exec::new(&program.path, &program.argv, &environment, Some(NULL)).context(FAILED)?;
        let (monitor, pipes) = HelperMonitor::start(&exec, &command.signals, command.kill_grace).context(FAILED)?;
        let state = Arc::<Mutex<HelperState>>::default();
        let (name, shared, (alive, end)) = (command.words[0].clone(), Arc::clone(&state), mpsc::sync_channel::<()>(0));
        let work = move || {
            read_helper(&name, pipes, &shared, &sender);
            drop(alive);
        };
        if let Err(error) = signal::spawn_with_signals_blocked("lock-helper", 64 * 1024, work) {
            (0..2).for_each(|_| monitor.terminate_helper());
            monitor.reap();
            return Err(error).context(FAILED);
        }
        let (kill_grace, ignored) = (command.kill_grace, command.signals.ignored);
        let helper = Self { program, monitor, kill_grace, ignored, state, end, terminating_since: None };
        info!(name: "lock.helper", "started the lock helper {}", helper.name());
        Ok(helper)
    }

    pub(super) fn name(&self) -> Cow<'_, str> {
        self.program.argv[0].to_string_lossy()
    }

    pub(super) fn state(&self) -> HelperState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// First line on stdout, by which the helper holds its lock.
    pub(super) fn key(&self) -> Option<String> {
        match self.state() {
            HelperState::Starting { .. } => None,
            HelperState::Running { key } => Some(key),
            HelperState::Ended { key, .. } => key,
        }
    }

    /// How it has ended, if it has.
    pub(super) fn ended(&self) -> Option<String> {
        let HelperState::Ended { end, .. } = self.state() else { return None };
        Some(match end {
            HelperEnd::Ended(how) => how,
            HelperEnd::NotExecutable(errno) | HelperEnd::NoProcess(errno) => errno.to_string(),
        })
    }

    /// Error for an execve(2) that failed with `errno`.
    pub(super) fn exec_error(&self, errno: Errno) -> ProgramError {
        self.program.unstartable(errno)
    }

    pub(super) fn monitor_pid(&self) -> Pid {
        self.monitor.pid()
    }

    pub(super) fn is_terminating(&self) -> bool {
        self.terminating_since.is_some()
    }

    /// Requests its end without waiting for it: TERM, the kill grace, KILL.
    pub(super) fn terminate(&mut self) {
        if !self.is_terminating() {
            self.terminating_since = Some(Instant::now());
            self.monitor.terminate_helper();
        }
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
        let mut wait = LockWait::new(Target::HelperShutdown(self.name().into_owned()), recorder, events, self.ignored);
        wait.limit = self.kill_grace;
        loop {
            wait.deadline = self.overdue_at();
            let end = wait.until(|_, events| {
                others.extend(events.iter().filter(|event| !matches!(event, Event::Signal(..))).copied());
                Ok(matches!(self.state(), HelperState::Ended { .. }).then_some(()))
            });
            let Ok(WaitEnd::Interrupted(signal)) = end else { break };
            if requested_at.is_none_or(|at| at.elapsed() >= DUPLICATE_WINDOW) {
                if signal != Signal::SIGUSR2 {
                    self.escalate(signal);
                }
                // USR2 ends only a wait before the start, and gives way to what ends more.
                request = request.filter(|request| *request != Signal::SIGUSR2).or(Some(signal));
            }
        }
        wait.events.requeue(others);
        request
    }

    /// Ends the kill grace.
    fn escalate(&mut self, signal: Signal) {
        if self.kill_grace != Some(Duration::ZERO) {
            warn!(name: "lock.helper", "{signal}: sending KILL to the lock helper {}", self.name());
            (self.kill_grace, self.terminating_since) = (Some(Duration::ZERO), Some(Instant::now()));
            self.monitor.terminate_helper();
        }
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
            self.monitor.kill();
        }
        self.monitor.reap();
    }
}
