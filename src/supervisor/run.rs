//! The owner of the child: turns events into inputs of the policy, and the policy's actions into system calls. It decides nothing
//! itself.

mod messages;

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use tracing::{debug, error, info, warn};

use super::child::{self, Change};
use super::output::{OutputConfig, Relay, drain};
use super::policy::{Action, Delivery, Ending, Group, Input, Limit, Policy, PolicyConfig, TreeState};
use super::process_tree::ProcessTree;
use super::refresh_guard::RefreshGuard;
use super::spawn::{ChildSetup, Launch};
use crate::claude::frames::{FrameEvent, LastResult};
use crate::claude::refresh_locks::{RefreshLock, Standing};
use crate::events::{Event, EventQueue, SignalSource};
use crate::lock::LockGuard;
use crate::outcome::Outcome;
use crate::records::RunRecorder;
use crate::run_id::RunId;
use crate::sys::termios::TerminalModeGuard;
use crate::sys::{signal, signal_pipe, wait};

/// Parts of a supervised run.
#[derive(Debug)]
pub struct Supervision<'a> {
    /// Program to start.
    pub launch: Launch<'a>,
    /// Limits of the run.
    pub policy: PolicyConfig,
    /// Purposes for which its output is captured.
    pub output: &'a OutputConfig,
    /// The session lock, if the run holds it.
    pub lock: Option<LockGuard>,
}

/// Starts the child and waits until its tree is dead. Then it releases the lock, and waits for the reader of the output.
///
/// # Errors
/// The program cannot be executed (`ProgramError`), or the kernel refuses what supervision needs.
pub fn supervise(run: Supervision, recorder: &mut RunRecorder, events: &mut EventQueue) -> Result<Outcome> {
    if let Err(error) = set_child_subreaper(true) {
        warn!(%error, "cannot become a subreaper: descendants that leave their parents will not be found");
    }
    let _modes = (run.policy.group == Group::Shared).then(TerminalModeGuard::of_stdin);
    let requires_result = run.output.requires_result;
    let mut supervisor = Supervisor::start(run, recorder, events)?;
    let (ending, limit) = supervisor.run(recorder, events)?;
    let request = supervisor.release_lock(recorder, events);
    let (relay, output_done, ignored) = (supervisor.relay.take(), supervisor.output_done, supervisor.ignored);
    drop(supervisor);
    let (mut interrupted_by, mut last_result) = (None, None);
    if let Some(mut relay) = relay {
        relay.on_child_ended();
        if !output_done {
            interrupted_by = drain(request, events, ignored).context("cannot wait for events")?;
        }
        last_result = relay.take_last_result();
    }
    let mut outcome = match (interrupted_by, limit, ending) {
        (Some(signal), ..) => Outcome::EndedDraining(signal),
        (_, Some(Limit::Hard), _) => Outcome::HardLimit,
        (_, Some(Limit::Idle), _) => Outcome::IdleLimit,
        (_, Some(Limit::Lock), _) => Outcome::LockLost,
        (_, Some(Limit::Result { is_error }), _) => Outcome::HungAfterResult { is_error },
        (_, None, Ending::Exited(status)) => Outcome::Exited(status),
        (_, None, Ending::Killed(signal)) => Outcome::Killed(signal),
    };
    if requires_result && outcome.exit_code() == 0 && !has_success(last_result.as_ref()) {
        outcome = Outcome::NoResult;
    }
    recorder.on_result(last_result);
    Ok(outcome)
}

/// True if claude's last result frame says so; else it logs why not.
fn has_success(last_result: Option<&LastResult>) -> bool {
    match last_result {
        Some(result) if result.is_success() => return true,
        None => error!("the child exited with 0, but printed no result frame"),
        Some(LastResult { subtype, is_error, .. }) => {
            error!(subtype, is_error, "the child exited with 0, but its last result frame is no success");
        }
    }
    false
}

/// A started run.
struct Supervisor {
    id: RunId,
    /// Reaped when the run is over: until then its pid is not used again.
    child: Pid,
    child_ended: bool,
    group: Group,
    ignored: SigSet,
    started: Instant,
    tree: ProcessTree,
    policy: RefreshGuard,
    lock: Option<LockGuard>,
    config_dir: Option<PathBuf>,
    watched_files: Vec<PathBuf>,
    /// Time of the last termination request to us.
    requested_at: Option<Instant>,
    relay: Option<Relay>,
    /// All output is written, or our reader is gone.
    output_done: bool,
}

impl Supervisor {
    fn start(run: Supervision, recorder: &mut RunRecorder, events: &mut EventQueue) -> Result<Self> {
        let Supervision { launch, policy: config, output, mut lock } = run;
        let (group, ignored) = (config.group, config.ignored);
        let tree = ProcessTree::before_start(recorder.run(), lock.as_ref().and_then(LockGuard::monitor));
        let spawn = || -> Result<_> {
            let output = output.prepare().context("cannot make a pipe or a pseudo-terminal for the child's output")?;
            let lock = lock.as_ref().and_then(LockGuard::descriptor);
            let child = launch.spawn(ChildSetup { group, lock, stdout: output.stdout(), stderr: output.stderr() })?;
            Ok((child, output))
        };
        let (child, output) = spawn().inspect_err(|_| {
            lock.as_mut().map(|lock| lock.shut_down_helper(recorder, events, None));
            recorder.retire();
        })?;
        let started = Instant::now();
        info!(name: "run.started", pid = child.as_raw(), program = %launch.program.path.display(), "started");
        let mut supervisor = Self {
            id: recorder.run(),
            child,
            child_ended: false,
            group,
            ignored,
            started,
            tree,
            policy: RefreshGuard::new(Policy::new(config, started)),
            lock,
            config_dir: recorder.config_dir().map(Path::to_owned),
            watched_files: Vec::new(),
            requested_at: None,
            relay: None,
            output_done: false,
        };
        supervisor.relay = output.start(events.sender()).context("cannot start the relay")?;
        recorder.on_started(child.as_raw());
        Ok(supervisor)
    }

    /// Handles events until the policy says that the run is over.
    fn run(&mut self, recorder: &mut RunRecorder, events: &mut EventQueue) -> Result<(Ending, Option<Limit>)> {
        self.check_lock(); // it may have been lost before there was a child
        loop {
            let files = self.files_to_watch();
            if files != self.watched_files {
                events.watch_files(&files);
                self.watched_files = files;
                self.on_files_changed(recorder); // they may have changed before they were watched
                continue;
            }
            let deadline = [self.policy.next_deadline(), recorder.next_deadline()].into_iter().flatten().min();
            let events = events.wait(deadline).context("cannot wait for events")?;
            recorder.run_due();
            let may_have_lost_signals = events.len() >= signal_pipe::CAPACITY;
            if events.contains(&Event::FilesChanged) {
                self.on_files_changed(recorder);
            }
            events.into_iter().for_each(|event| self.handle_event(event));
            if may_have_lost_signals {
                self.handle_sigchld();
            }
            if let Some(relay) = &self.relay {
                self.dispatch(Input::LastOutput(relay.last_output()));
            }
            // A child that has ended by itself at the last moment is not ended by a limit.
            if self.policy.next_deadline().is_some_and(|at| Instant::now() >= at) {
                self.handle_sigchld();
            }
            self.dispatch(Input::Clock);
            if let Some(result) = self.policy.result() {
                return Ok(result);
            }
        }
    }

    /// Releases the lock of a dead tree. Returns a termination request that came while the lock helper ended.
    fn release_lock(&mut self, recorder: &mut RunRecorder, events: &mut EventQueue) -> Option<Signal> {
        recorder.on_tree_exited();
        let was_held = self.lock.as_ref().is_some_and(LockGuard::is_held);
        let mut request = None;
        if let Some(lock) = self.lock.as_mut().filter(|lock| lock.has_helper()) {
            recorder.flush_pending();
            request = lock.shut_down_helper(recorder, events, self.requested_at).filter(|signal| *signal != Signal::SIGUSR2);
        }
        recorder.retire(); // before another run can acquire the lock
        self.lock = None;
        if was_held {
            info!(name: "lock.released", "released the session lock");
        }
        request
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Signal(Signal::SIGCHLD, _) => self.handle_sigchld(),
            Event::Signal(signal, source) => self.handle_signal(signal, source),
            Event::Frame(frame) => {
                if let FrameEvent::Result { is_error } = frame {
                    info!(name: "run.result", is_error, "the child has printed a result");
                }
                self.dispatch(Input::Frame(frame));
            }
            Event::OutputDone => self.output_done = true,
            Event::HelperChanged => self.check_lock(),
            Event::FilesChanged => {}  // handled before the others
            Event::FlockReturned => {} // of a wait that is over
        }
    }

    fn handle_signal(&mut self, signal: Signal, source: SignalSource) {
        debug!(?signal, ?source, "got a signal");
        // A child that signals its group, which is ours, as claude does for Ctrl-Z, has signalled itself.
        if self.group == Group::Shared && source == SignalSource::Process(self.child.as_raw()) {
            return;
        }
        // The kernel does not let a key stop an orphaned process group, but our handler gets it.
        if signal == Signal::SIGTSTP && source == SignalSource::Kernel && !signal::has_job_control_shell() {
            return;
        }
        if !self.ignored.contains(signal) && (signal::is_termination_request(signal) || signal == Signal::SIGINT) {
            self.requested_at = Some(Instant::now());
        }
        if signal == Signal::SIGCONT {
            self.handle_sigchld(); // a shell's `fg` has continued the child as well
        }
        let was_resized = signal == Signal::SIGWINCH && self.relay.as_ref().is_some_and(Relay::resize);
        self.dispatch(Input::Signal(signal, source));
        // A child in our group got its WINCH before its pseudo-terminal had the new size.
        if was_resized && self.group == Group::Shared && !self.child_ended {
            self.act(Action::SignalChild(signal));
        }
    }

    fn handle_sigchld(&mut self) {
        if self.child_ended {
            self.tree.reap_all_but(self.child);
            self.dispatch(Input::TreeChanged(self.tree.state()));
            return;
        }
        match child::next_change(self.child) {
            Change::Unchanged => {}
            Change::Stopped(signal) => {
                debug!(?signal, "the child is stopped");
                if self.group == Group::Own && matches!(signal, Signal::SIGTTIN | Signal::SIGTTOU) {
                    warn!(
                        "the child is stopped because it wants the terminal, which its process group has not; give it stdin from there, or from /dev/null"
                    );
                }
                self.dispatch(Input::Stopped(signal));
            }
            Change::Continued => self.dispatch(Input::Continued),
            Change::Ended(ending) => {
                self.child_ended = true;
                self.dispatch(Input::Ended(ending, self.tree.state()));
            }
        }
    }

    fn files_to_watch(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = self.lock.as_ref().and_then(LockGuard::token_file).into_iter().collect();
        if let Some(config_dir) = self.config_dir.as_ref().filter(|_| self.policy.is_deferring()) {
            files.extend(RefreshLock::of(config_dir).map(|lock| lock.path));
        }
        files
    }

    fn on_files_changed(&mut self, recorder: &mut RunRecorder) {
        if let Some(lock) = self.lock.as_mut().filter(|lock| lock.refresh_done()) {
            recorder.on_released();
            lock.release();
            info!(name: "lock.released", "released the session lock: the token is refreshed");
        }
        if self.policy.is_deferring() {
            self.check_refresh();
        }
    }

    fn check_lock(&mut self) {
        if self.lock.as_ref().and_then(LockGuard::lost_reason).is_some() {
            self.handle_sigchld(); // a child that has ended by itself has lost nothing
            self.dispatch(Input::LockLost);
        }
    }

    /// A refresh may be in progress if a refresh lock is live, and its owner is not known to be outside of the tree.
    fn check_refresh(&mut self) {
        let now = SystemTime::now();
        let may_be_ours = |lock: &RefreshLock| match (&lock.owner, self.tree.names()) {
            (Some(owner), Some(names)) => owner.may_be_among(&names),
            _ => true,
        };
        let in_progress = self.config_dir.as_ref().is_some_and(|config_dir| {
            let locks = RefreshLock::of(config_dir);
            locks.iter().any(|lock| lock.standing(now) == Standing::Live && may_be_ours(lock))
        });
        self.dispatch(Input::Refresh { in_progress });
    }

    fn dispatch(&mut self, input: Input) {
        for action in self.policy.on(input, Instant::now()) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::SignalChild(signal) => {
                let pid = self.child.as_raw();
                if signal::is_termination_request(signal) || signal == Signal::SIGKILL {
                    info!(name: "run.stopping", ?signal, pid, "signalling the child");
                } else {
                    debug!(?signal, pid, "signalling the child");
                }
                // It is not reaped yet, so the pid is its own, and to signal a zombie is no error.
                if let Err(error) = kill(self.child, signal) {
                    warn!(pid, ?signal, %error, "cannot signal the child");
                }
            }
            Action::SignalTree(signal) => {
                let delivery = self.tree.signal(signal, self.child, self.group);
                if signal == Signal::SIGKILL {
                    self.dispatch(Input::TreeKilled(delivery));
                }
            }
            Action::CheckRefresh => self.check_refresh(),
            Action::StopOurselves => signal::stop_ourselves(),
            Action::StopForShell => signal::stop_for_job_control(SignalSource::Kernel),
            Action::Report => warn!("{}", self.report()),
            Action::Log(notice) => self.log(notice),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if self.policy.result().is_none() {
            // An error or a panic: the tree must not outlive its supervisor, nor the lock, which is released next.
            let _ = kill(self.child, Signal::SIGKILL);
            while self.tree.state() == TreeState::Alive
                && self.tree.signal(Signal::SIGKILL, self.child, self.group) != Delivery::Failed
            {
                std::thread::yield_now();
            }
        }
        wait::reap(self.child);
        wait::reap_all();
    }
}
