//! The owner of the child: turns what comes out of the event events into happenings for the policy, and the policy's
//! actions into system calls. It decides nothing itself.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::{debug, error, info, warn};

use super::output::{Capture, Finished, Watch};
use super::policy::{Action, Ending, Group, Input, Limit, Notice, Policy, PolicyConfig, Reach, Tree};
use super::process_tree::{self, Change, ProcessTree};
use super::refresh;
use super::refresh_guard::{self, RefreshGuard};
use super::spawn::Launch;
use crate::claude::frames::{FrameEvent, LastResult};
use crate::claude::refresh_locks::RefreshLock;
use crate::config::settings::show;
use crate::events::{Event, EventQueue, SignalSource};
use crate::lock::LockGuard;
use crate::outcome::Outcome;
use crate::records::RunRecorder;
use crate::run_id::RunId;
use crate::sys::termios::TerminalModeGuard;
use crate::sys::wait;
use crate::sys::{signal, signal_pipe};

/// Starts `launch` and stays until its tree is dead; then the lock is free, and only then, whatever our reader does. Of its
/// output, what `watch` asks for is read on the way.
///
/// # Errors
/// The program cannot be executed (`ProgramError`), or the kernel refuses what supervision needs.
pub fn supervise(
    launch: &Launch,
    rules: PolicyConfig,
    watch: &Watch,
    mut holding: Option<LockGuard>,
    journal: &mut RunRecorder,
    events: &mut EventQueue,
) -> Result<Outcome> {
    if let Err(error) = set_child_subreaper(true) {
        warn!(%error, "cannot become a subreaper: descendants that leave their parents will not be found");
    }
    let id = journal.run();
    let descendants = ProcessTree::before_start(id, holding.as_ref().and_then(LockGuard::monitor_pid));
    let (group, ignored) = (rules.group, rules.ignored);
    let _modes = (group == Group::Shared).then(TerminalModeGuard::of_stdin);
    let start = || -> Result<_> {
        let output = watch.prepare().context("cannot make a pipe or a pseudo-terminal for the child's output")?;
        let lock = holding.as_ref().and_then(LockGuard::descriptor);
        Ok((launch.spawn(group, lock, output.stdout(), output.stderr())?, output))
    };
    let (child, output) = start().inspect_err(|_| {
        holding.as_mut().map(|holding| holding.shut_down_helper(journal, events, None));
        journal.retire();
    })?;
    let started = Instant::now();
    info!(name: "run.started", pid = child.as_raw(), program = %launch.program.path.display(), "started");
    let policy = RefreshGuard::new(Policy::new(rules, started));
    let config_dir = journal.config_dir().map(Path::to_owned);
    let mut run = Run {
        id,
        child,
        group,
        started,
        descendants,
        policy,
        holding,
        config_dir,
        ended: false,
        asked: None,
        output: None,
        output_done: false,
    };
    run.output = output.start(events.sender()).context("cannot start the relay")?;
    journal.on_started(child.as_raw());
    let (ending, limit) = run.watch(events, journal)?;
    journal.on_tree_exited();
    let was_held = run.holding.as_ref().is_some_and(LockGuard::is_held);
    let mut request = None;
    if let Some(holding) = run.holding.as_mut().filter(|holding| holding.has_helper()) {
        journal.flush_pending();
        request = holding.shut_down_helper(journal, events, run.asked).filter(|signal| *signal != Signal::SIGUSR2);
    }
    journal.retire();
    run.holding = None;
    if was_held {
        info!(name: "lock.released", "released the session lock");
    }
    let (output, output_done) = (run.output.take(), run.output_done);
    drop(run);
    let finished = match output {
        Some(output) => output.finish(output_done, request, events, ignored).context("cannot wait for events")?,
        None => Finished::default(),
    };
    let outcome = match (finished.interrupted_by, limit, ending) {
        (Some(signal), ..) => Outcome::EndedDraining(signal as i32),
        (_, Some(Limit::Hard), _) => Outcome::HardLimit,
        (_, Some(Limit::Idle), _) => Outcome::IdleLimit,
        (_, Some(Limit::Lock), _) => Outcome::LockLost,
        (_, Some(Limit::Result { is_error }), _) => Outcome::HungAfterResult { is_error },
        (_, None, Ending::Exited(status)) => Outcome::Exited(status),
        (_, None, Ending::Killed(signal)) => Outcome::Killed(signal),
    };
    let outcome = if watch.requires_result { require_result(outcome, finished.last_result.as_ref()) } else { outcome };
    journal.on_result(finished.last_result);
    Ok(outcome)
}

/// With `--require-result`, what would be a success is one only if claude's last result frame says so.
fn require_result(outcome: Outcome, last_result: Option<&LastResult>) -> Outcome {
    if outcome.exit_code() != 0 || last_result.is_some_and(LastResult::is_success) {
        return outcome;
    }
    match last_result {
        None => error!("the child exited with 0, but printed no result frame"),
        Some(LastResult { subtype, is_error, .. }) => {
            error!(subtype, is_error, "the child exited with 0, but its last result frame tells of no success");
        }
    }
    Outcome::NoResult
}

struct Run {
    id: RunId,
    child: Pid,
    group: Group,
    started: Instant,
    descendants: ProcessTree,
    policy: RefreshGuard,
    /// The session lock, while it is held for this run.
    holding: Option<LockGuard>,
    /// Where claude's refresh locks are.
    config_dir: Option<PathBuf>,
    /// Whether the child has ended. Its remains are kept until the run is over.
    ended: bool,
    /// When a signal has asked us for an end at last.
    asked: Option<Instant>,
    /// The child's output, where it is read.
    output: Option<Capture>,
    /// Whether all of it is where it belongs, or our reader is gone.
    output_done: bool,
}

impl Run {
    fn watch(&mut self, events: &mut EventQueue, journal: &mut RunRecorder) -> Result<(Ending, Option<Limit>)> {
        let mut followed = Vec::new();
        self.look_after_lock(); // it may have been lost before there was a child
        loop {
            let files = self.files_that_matter();
            if files != followed {
                events.watch_files(&files);
                followed = files;
                self.look_at_files(journal); // they may have changed before they were followed
                continue;
            }
            let deadline = [self.policy.next_deadline(), journal.next_deadline()].into_iter().flatten().min();
            let events = events.wait(deadline).context("cannot wait for events")?;
            journal.run_due();
            let may_have_missed_some = events.len() >= signal_pipe::CAPACITY;
            if events.contains(&Event::FilesChanged) {
                self.look_at_files(journal);
            }
            for event in events {
                self.handle_event(event);
            }
            if may_have_missed_some {
                self.handle_sigchld(); // a SIGCHLD among them would not come again
            }
            if let Some(output) = &self.output {
                self.dispatch(Input::LastOutput(output.last_output()));
            }
            // After the events: what has ended by itself at the last moment was not ended by a limit.
            self.dispatch(Input::Clock);
            if let Some(result) = self.policy.result() {
                return Ok(result);
            }
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Signal(Signal::SIGCHLD, _) => self.handle_sigchld(),
            Event::Signal(signal, sender) => {
                debug!(?signal, ?sender, "got a signal");
                if signal::is_termination_request(signal) || signal == Signal::SIGINT {
                    self.asked = Some(Instant::now());
                }
                // A child in our group that signals the group, as claude does for Ctrl-Z, has signalled itself.
                if self.group == Group::Shared && sender == SignalSource::Process(self.child.as_raw()) {
                    return;
                }
                // A key that stops would stop us for ever where no shell would notice: the kernel, too, spares orphaned
                // process groups, unless they have a handler, as we do.
                if signal == Signal::SIGTSTP && sender == SignalSource::Kernel && !signal::somebody_can_continue_us() {
                    return;
                }
                if signal == Signal::SIGCONT {
                    self.handle_sigchld(); // a shell's `fg` has continued the child as well
                }
                let was_resized = signal == Signal::SIGWINCH && self.output.as_ref().is_some_and(Capture::resize);
                self.dispatch(Input::Signal(signal, sender));
                // The terminal has told a child in our group before the pseudo-terminal had its new size.
                if was_resized && self.group == Group::Shared && !self.ended {
                    self.act(Action::SignalChild(signal));
                }
            }
            Event::Frame(sighting) => {
                if let FrameEvent::Result { is_error } = sighting {
                    info!(name: "run.result", is_error, "the child has printed a result");
                }
                self.dispatch(Input::Frame(sighting));
            }
            Event::OutputDone => self.output_done = true,
            Event::HelperTold => self.look_after_lock(),
            Event::FilesChanged => {} // dealt with before the others
            Event::LockAnswered => {} // an answer to a wait that is over
        }
    }

    /// The files whose changes matter just now.
    fn files_that_matter(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = self.holding.as_ref().and_then(LockGuard::file).into_iter().collect();
        if let Some(config_dir) = self.config_dir.as_ref().filter(|_| self.policy.holds_back()) {
            files.extend(RefreshLock::of(config_dir).map(|lock| lock.path));
        }
        files
    }

    fn look_at_files(&mut self, journal: &mut RunRecorder) {
        if let Some(holding) = self.holding.as_mut().filter(|holding| holding.refresh_done()) {
            journal.on_released();
            holding.release();
            info!(name: "lock.released", "released the session lock: the token is refreshed");
        }
        if self.policy.holds_back() {
            self.check_for_refresh();
        }
    }

    fn look_after_lock(&mut self) {
        if self.holding.as_ref().and_then(LockGuard::lost_reason).is_some() {
            self.handle_sigchld(); // a child that has ended by itself has lost nothing
            self.dispatch(Input::LockLost);
        }
    }

    fn check_for_refresh(&mut self) {
        let config_dir = self.config_dir.as_ref();
        let may_be_under_way = config_dir.is_some_and(|dir| refresh::may_be_under_way(dir, &self.descendants));
        self.dispatch(Input::Refresh { may_be_under_way });
    }

    fn handle_sigchld(&mut self) {
        if self.ended {
            self.descendants.reap_all_but(self.child);
            self.dispatch(Input::TreeChanged(self.descendants.state()));
            return;
        }
        match process_tree::look_after(self.child) {
            Change::Others => {}
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
                self.ended = true;
                self.dispatch(Input::Ended(ending, self.descendants.state()));
            }
        }
    }

    fn dispatch(&mut self, happening: Input) {
        for action in self.policy.on(happening, Instant::now()) {
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
                // It is not reaped yet, so the pid is its own, and a signal to its remains is no error.
                if let Err(error) = kill(self.child, signal) {
                    warn!(pid = self.child.as_raw(), ?signal, %error, "cannot signal the child");
                }
            }
            Action::SignalTree(signal) => {
                let reach = self.descendants.signal(signal, self.child, self.group);
                if signal == Signal::SIGKILL {
                    self.dispatch(Input::Killed(reach));
                }
            }
            Action::LookForRefresh => self.check_for_refresh(),
            Action::StopOurselves => signal::stop_ourselves(),
            Action::StopForShell => signal::stop_if_asked(SignalSource::Kernel),
            Action::Report => warn!("{}", self.report()),
            Action::Tell(notice) => self.tell(notice),
        }
    }

    fn report(&self) -> String {
        let ran = show(self.started.elapsed());
        let deadline = self.policy.next_deadline().map(|at| show(at.saturating_duration_since(Instant::now())));
        let state = if self.ended { "has ended, others it started have not" } else { "is running" };
        let next = deadline.map_or_else(|| "no limit".to_owned(), |left| format!("next limit in {left}"));
        format!("run {}: pid {} {state}, {ran} since its start, {next}", self.id, self.child)
    }

    fn tell(&self, notice: Notice) {
        let pid = self.child.as_raw();
        match notice {
            Notice::Limit(Limit::Hard) => {
                warn!(name: "run.limit", pid, "the hard limit ran out after {}: sending TERM", show(self.started.elapsed()));
            }
            Notice::Limit(Limit::Idle) => {
                warn!(name: "run.limit", pid, "the idle limit ran out after {}: sending TERM", show(self.started.elapsed()));
            }
            Notice::Limit(Limit::Lock) => {
                let loss = self.holding.as_ref().and_then(LockGuard::lost_reason).unwrap_or_default();
                warn!(name: "lock.lost", pid, "{loss}: the lock is lost, sending TERM");
            }
            Notice::Limit(Limit::Result { is_error }) => {
                let grace = if self.policy.policy().has_open_tasks() { "task grace" } else { "result grace" };
                warn!(name: "run.limit", pid, is_error, "the child has printed its result and stays: the {grace} ran out, sending TERM");
            }
            Notice::KillGrace => warn!(name: "run.stopping", pid, "the kill grace ran out: sending KILL to the whole tree"),
            Notice::SecondTerm => warn!(name: "run.stopping", pid, "a second TERM: sending KILL to the whole tree"),
            Notice::Leftovers => {
                info!(name: "run.stopping", pid, "the child has ended and left processes behind: sending them TERM")
            }
            Notice::OutOfReach => {
                warn!(pid, "a process that the child left behind can be neither seen nor signalled; it stays")
            }
            Notice::Refresh => {
                let patience = show(refresh_guard::PATIENCE);
                warn!(name: "refresh.spared", pid, "claude may be refreshing its token: holding signals back, at most {patience}");
            }
            Notice::RefreshTakesTooLong => {
                let patience = show(refresh_guard::PATIENCE);
                warn!(name: "refresh.spared", pid, "claude's refresh lock is still held after {patience}: going on");
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.policy.result().is_none() {
            // An error or a panic on the way: the tree must not outlive its watchdog, nor the lock that is freed next.
            // What cannot be signalled any more is gone.
            let _ = kill(self.child, Signal::SIGKILL);
            while self.descendants.state() == Tree::Alive
                && self.descendants.signal(Signal::SIGKILL, self.child, self.group) != Reach::Nobody
            {
                std::thread::yield_now();
            }
        }
        wait::reap(self.child);
        wait::reap_all();
    }
}
