//! The owner of the child: turns events into inputs of the policy, and the policy's actions into system calls. It decides nothing
//! itself.

mod first_refresh;
mod messages;
mod refresh;
mod requests;

pub(crate) use first_refresh::refresh_first;

use std::mem;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::prctl::set_child_subreaper;
use nix::unistd::{Pid, getpid};
use tracing::{debug, info, warn};

use super::output::{DrainLimit, OutputConfig, Relay, drain};
use super::policy::{Action, Group, Input, Policy, PolicyConfig, TreeState};
use super::process_tree::ProcessTree;
use super::spawn::{Launch, Role};
use crate::claude::frames::FrameEvent;
use crate::claude::refresh_locks::CutWatch;
use crate::claude::storage::ClaudeStorage;
use crate::events::{Event, EventQueue};
use crate::lock::{AwaitedRefresh, LockGuard, SlotGuard};
use crate::outcome::Outcome;
use crate::records::RunRecorder;
use crate::sys::priority::Urgency;
use crate::sys::signal::{Signal, SignalSource, kill};
use crate::sys::terminal::TerminalModeGuard;
use crate::sys::{signal, signal_pipe, terminal, wait};
use refresh::GuardedRefreshes;
use requests::Requests;

/// Parts of a supervised run.
#[derive(Debug)]
pub(crate) struct Supervision {
    pub(crate) launch: Launch,
    pub(crate) policy: PolicyConfig,
    pub(crate) output: OutputConfig,
    /// Its slot, if it has one.
    pub(crate) slot: Option<SlotGuard>,
    /// The session lock, if the run holds it.
    pub(crate) lock: Option<LockGuard>,
    /// Where claude's refresh locks are, if it has a config dir that can be used.
    pub(crate) storage: Option<ClaudeStorage>,
}

/// Starts the child and waits until its tree is dead. Then it releases the lock, and waits for the reader of the output.
pub(crate) fn supervise(run: Supervision, recorder: &mut RunRecorder, events: &mut EventQueue) -> Result<Outcome> {
    let (hard_limit, requires_result) = (run.policy.hard_limit, run.output.requires_result);
    let mut supervisor = Supervisor::start(run, recorder, events)?;
    let mut outcome = supervisor.run()?;
    let request = supervisor.release_lock().or_else(|| supervisor.requests.drain_bound(outcome));
    let limit = DrainLimit { ended: outcome, request, hard_limit, started: supervisor.started };
    let (relay, output_done, _modes) = (supervisor.relay.take(), supervisor.output_done, supervisor.modes.take());
    drop(supervisor);
    let (mut last_result, mut session_id, mut lost_output) = (None, None, false);
    if let Some(mut relay) = relay {
        relay.on_child_ended();
        if !output_done {
            outcome = drain(limit, &relay, events).context("cannot wait for events")?.unwrap_or(outcome);
        }
        (last_result, session_id, lost_output) = (relay.last_result(), relay.session_id(), relay.lost_output());
    }
    if let (Outcome::HungAfterResult { .. }, Some(result)) = (outcome, &mut last_result) {
        result.is_outdated = false; // what came behind it was cut off by us
    }
    if requires_result && outcome.exit_code() == 0 && !messages::check_success(last_result.as_ref()) {
        outcome = Outcome::NoResult;
    }
    if lost_output && outcome.exit_code() == 0 {
        outcome = Outcome::OutputLost;
    }
    recorder.on_result(last_result, session_id);
    Ok(outcome)
}

struct Supervisor<'a> {
    recorder: &'a mut RunRecorder,
    events: &'a mut EventQueue,
    /// Reaped when the run is over: until then its pid is not used again.
    child: Pid,
    role: Role,
    started: Instant,
    tree: ProcessTree,
    policy: Policy,
    slot: Option<SlotGuard>,
    lock: Option<LockGuard>,
    storage: Option<ClaudeStorage>,
    /// Since before the start.
    cut_watch: Option<CutWatch>,
    guarded: GuardedRefreshes,
    has_warned_of_locks: bool,
    watched_files: Vec<PathBuf>,
    requests: Requests,
    relay: Option<Relay>,
    /// If the child is in our group.
    modes: Option<TerminalModeGuard>,
    /// The child, in our group, is stopped until that is in the foreground. Nobody tells us when it is.
    waits_for_terminal: bool,
    /// True if it was reported that the child wants the terminal, as it may again and again.
    has_warned_of_terminal: bool,
    /// All output is written, or our reader is gone.
    output_done: bool,
    /// While there are many descendants to be ended, or any to be killed.
    urgency: Option<Urgency>,
}

impl<'a> Supervisor<'a> {
    fn start(run: Supervision, recorder: &'a mut RunRecorder, events: &'a mut EventQueue) -> Result<Self> {
        let Supervision { launch, policy: mut config, output, slot, mut lock, storage } = run;
        config.ignored = events.inherited.ignored;
        if let Err(error) = set_child_subreaper(true) {
            warn!(%error, "cannot become a subreaper: descendants that leave their parents will not be found");
        }
        let modes = (config.group == Group::Shared).then(TerminalModeGuard::of_stdin);
        let (cut_watch, guarded) = (storage.as_ref().map(CutWatch::begin), GuardedRefreshes::begin());
        let mut tree = ProcessTree::before_start(recorder.run(), lock.as_ref().and_then(LockGuard::monitor));
        let spawn = || -> Result<_> {
            let relay = output.start(events.sender()).context("cannot capture the child's output")?;
            // The lock helper's monitor ends it when nobody has this any more.
            let control = lock.as_ref().filter(|_| launch.role == Role::Refresher).and_then(LockGuard::helper_descriptor);
            let locks = [slot.as_ref().map(SlotGuard::descriptor), lock.as_ref().and_then(LockGuard::descriptor), control];
            let outputs = relay.as_ref().map_or([None; 2], Relay::child_ends);
            let child = launch.spawn(config.group, &events.inherited, locks, outputs)?;
            Ok((child, relay))
        };
        let (child, relay) = spawn().inspect_err(|_| {
            lock.as_mut().map(|lock| lock.shut_down_helper(recorder, events, None));
            recorder.retire();
        })?;
        let started = Instant::now();
        if launch.role == Role::Command {
            info!(name: "run.started", pid = child.as_raw(), program = %launch.program.path.display(), "started");
        }
        tree.on_started(child);
        lock.iter_mut().for_each(|lock| lock.on_child_started(started));
        let stdin_ended = !(config.streams_input && events.watch_stdin());
        let mut supervisor = Self {
            recorder,
            events,
            child,
            role: launch.role,
            started,
            tree,
            policy: Policy::new(config, started),
            slot,
            lock,
            storage,
            cut_watch,
            guarded,
            has_warned_of_locks: false,
            watched_files: Vec::new(),
            requests: Requests::default(),
            relay,
            modes,
            waits_for_terminal: false,
            has_warned_of_terminal: false,
            output_done: false,
            urgency: None,
        };
        supervisor.recorder.on_started(child.as_raw());
        if let Some(relay) = &supervisor.relay {
            relay.on_child_started();
        }
        if stdin_ended {
            supervisor.dispatch(Input::StdinEnded);
        }
        Ok(supervisor)
    }

    /// Handles events until the policy says that the run is over.
    fn run(&mut self) -> Result<Outcome> {
        self.check_lock(); // it may have been lost before there was a child
        loop {
            let files = self.files_to_watch();
            if files != self.watched_files {
                self.events.watch_files(&files);
                self.watched_files = files;
                self.on_files_changed(); // they may have changed before they were watched
                continue;
            }
            let look_at = self.waits_for_terminal.then(|| Instant::now() + Duration::from_secs(1));
            let lock_at = self.awaited_refresh().and_then(AwaitedRefresh::next_deadline);
            let deadlines = [self.policy.next_deadline(), self.recorder.next_deadline(), lock_at, look_at];
            let deadline = deadlines.into_iter().flatten().min();
            let mut events = self.events.wait(deadline).context("cannot wait for events")?;
            self.recorder.run_due();
            let may_have_lost_signals = events.len() >= signal_pipe::CAPACITY;
            if events.contains(&Event::FilesChanged) {
                self.on_files_changed();
            } else if lock_at.is_some_and(|at| Instant::now() >= at) {
                self.check_awaited_refresh();
            }
            // One look shows what many a SIGCHLD is about, as those of a chain that forks and exits.
            let is_sigchld = |event: &Event| matches!(event, Event::Signal(Signal::SIGCHLD, _));
            events.dedup_by(|next, event| is_sigchld(next) && is_sigchld(event));
            events.into_iter().for_each(|event| self.handle_event(event));
            self.continue_in_foreground();
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
                self.report_cut_refresh();
                return Ok(result);
            }
        }
    }

    /// Releases the lock of a dead tree. Returns a termination request that came meanwhile.
    fn release_lock(&mut self) -> Option<Signal> {
        self.recorder.on_tree_exited();
        let was_held = self.lock.as_ref().is_some_and(LockGuard::is_held);
        let mut request = None;
        if let Some(lock) = self.lock.as_mut().filter(|lock| lock.has_helper()) {
            self.recorder.flush_pending();
            let later = lock.shut_down_helper(self.recorder, self.events, self.requests.last_at());
            request = later.filter(|signal| *signal != Signal::SIGUSR2);
        }
        self.warn_of_lost_locks();
        self.recorder.retire(); // before another run can acquire the lock
        self.lock = None;
        if was_held {
            info!(name: "lock.released", "released the session lock");
        }
        if self.slot.take().is_some() {
            info!(name: "slot.released", "released the slot");
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
            // As the kernel does for a terminal of the child's session.
            Event::HungUp => self.handle_signal(Signal::SIGHUP, SignalSource::Process(0)),
            Event::OutputDone => self.output_done = true,
            Event::StdinEnded => self.dispatch(Input::StdinEnded),
            Event::HelperChanged => self.check_lock(),
            Event::FilesChanged => {}  // handled before the others
            Event::FlockReturned => {} // of a wait that is over
        }
    }

    fn handle_signal(&mut self, signal: Signal, source: SignalSource) {
        messages::log_signal(signal, source);
        let is_shared = self.policy.config.group == Group::Shared;
        // A child that signals its group, which is ours, as claude does for Ctrl-Z, has signalled itself.
        // Our own CONT is for the others.
        if is_shared && [self.child, getpid()].into_iter().any(|pid| source == SignalSource::Process(pid.as_raw())) {
            return;
        }
        // The kernel does not let a key stop an orphaned process group, but our handler gets it.
        if signal == Signal::SIGTSTP && source == SignalSource::Kernel && !signal::has_job_control_shell() {
            return;
        }
        let is_ignored = self.policy.config.ignored.contains(signal);
        if signal::requests_end(signal) && !is_ignored {
            self.requests.note(signal, self.policy.heeds(signal, source));
        }
        if signal == Signal::SIGCONT {
            self.handle_sigchld(); // a shell's `fg` has continued the child as well
            self.modes.iter_mut().for_each(TerminalModeGuard::on_continued);
        }
        // Before the start it means to give up, as in the wait for the lock; and claude would die of it, in mid-refresh too.
        let gives_up = signal == Signal::SIGUSR2 && self.role == Role::Refresher && !is_ignored;
        if gives_up {
            self.requests.note(signal, true);
        }
        let signal = if gives_up { Signal::SIGTERM } else { signal };
        self.policy.handles_usr2 = signal == Signal::SIGUSR2 && signal::is_handled(self.child, signal);
        let was_resized = signal == Signal::SIGWINCH && self.relay.as_ref().is_some_and(Relay::resize);
        self.dispatch(Input::Signal(signal, source));
        // A child in our group got its WINCH before its pseudo-terminal had the new size.
        if was_resized && is_shared && self.policy.has_child() {
            self.act(Action::SignalChild(signal));
        }
    }

    fn handle_sigchld(&mut self) {
        if !self.policy.has_child() {
            let state = self.tree.next_state();
            return self.dispatch(Input::TreeChanged(state));
        }
        let Some(change) = self.tree.next_change(self.child) else { return };
        messages::log_change(&change);
        let wants_terminal = matches!(change, Input::Stopped(Signal::SIGTTIN | Signal::SIGTTOU));
        self.waits_for_terminal = wants_terminal && self.policy.config.group == Group::Shared;
        if wants_terminal && !mem::replace(&mut self.has_warned_of_terminal, true) {
            let in_group = self.waits_for_terminal;
            let todo =
                if in_group { "bring it to the foreground, or use --stdin null" } else { "its stdin has to be that terminal" };
            warn!("the child is stopped because it wants the terminal, which its process group has not; {todo}");
        }
        if let Input::Ended(ending, tree) = change {
            self.urgency = (tree == TreeState::Alive).then(Urgency::new);
            self.recorder.on_child_ended(ending);
        }
        self.dispatch(change);
    }

    /// A shell does not continue a job that it has not seen stopped; and we were not, since a stopped watchdog keeps no limit.
    fn continue_in_foreground(&mut self) {
        if self.waits_for_terminal && terminal::is_in_foreground() {
            self.waits_for_terminal = false;
            let _ = kill(Pid::from_raw(0), Signal::SIGCONT); // our group, in which we are at least
        }
    }

    fn check_lock(&mut self) {
        if self.lock.as_ref().and_then(LockGuard::lost_reason).is_some() {
            self.handle_sigchld(); // a child that has ended by itself has lost nothing
            self.dispatch(Input::LockLost);
        }
    }

    fn dispatch(&mut self, input: Input) {
        for action in self.policy.on(input, Instant::now()) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        if matches!(action, Action::SignalTree(_) | Action::KillAfterTerm) {
            self.urgency.get_or_insert_with(Urgency::new);
        }
        match action {
            Action::SignalChild(signal) => {
                let pid = self.child.as_raw();
                if signal::is_termination_request(signal) || signal == Signal::SIGKILL {
                    info!(name: "run.stopping", %signal, pid, "signalling the child");
                } else {
                    debug!(%signal, pid, "signalling the child");
                }
                // It is not reaped yet, so the pid is its own, and to signal a zombie is no error.
                let sent = match signal {
                    Signal::SIGINT | Signal::SIGTSTP | Signal::SIGCONT => self.tree.signal_group(self.child, signal),
                    _ => kill(self.child, signal),
                };
                match sent {
                    Ok(()) if signal == Signal::SIGTERM => self.tree.on_term_sent(self.child),
                    Ok(()) => {}
                    Err(error) => warn!(pid, %signal, %error, "cannot signal the child"),
                }
            }
            Action::SignalTree(Signal::SIGKILL) => self.tree.kill(self.child, self.policy.config.group),
            Action::SignalTree(_) => {
                self.tree.terminate(self.child, self.policy.config.group);
                // What cleans up within its kill grace may go first.
                self.urgency.take_if(|_| !self.tree.is_crowd());
            }
            Action::KillAfterTerm => self.tree.kill_after_term(self.child, self.policy.config.group),
            Action::CheckRefreshLocks => self.check_refresh_locks(),
            Action::GiveUpRefresh => self.give_up_refresh(),
            Action::Stop(source) => signal::stop_for_job_control(source),
            Action::Report => {
                warn!(name: "run.state", "{}", self.report());
                self.warn_of_lost_locks();
            }
            Action::Log(notice) => self.log(notice),
        }
    }
}

impl Drop for Supervisor<'_> {
    fn drop(&mut self) {
        if self.policy.result().is_none() {
            // An error or a panic: the tree must not outlive its supervisor, nor the lock, which is released next.
            self.wait_for_refreshes();
            let _ = kill(self.child, Signal::SIGKILL);
            let give_up_at = Instant::now() + Duration::from_secs(5);
            while self.tree.state() == TreeState::Alive && Instant::now() < give_up_at {
                self.tree.kill(self.child, self.policy.config.group);
                std::thread::yield_now();
            }
            self.recorder.retire();
        }
        wait::reap(self.child);
        wait::reap_all();
    }
}
