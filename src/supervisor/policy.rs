//! Decides what a run does about each input. Pure: from state, input and time to actions and the next deadline. It knows no process,
//! no descriptor and no clock, so that tests can try every order of inputs.

mod types;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::claude::frames::FrameEvent;
use crate::config::duration::after;
use crate::config::settings::Leftovers;
use crate::events::SignalSource;
use crate::sys::signal::{DUPLICATE_WINDOW, FORWARDED, is_termination_request};
pub use types::{Action, Delivery, Ending, Group, Input, Limit, Notice, PolicyConfig, TreeState};

/// State of a run. Tests compare and copy it, to try all that can happen: see `tests/model`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    config: PolicyConfig,
    phase: Phase,
    is_stopped: bool,
    hard_deadline: Option<Instant>,
    idle_deadline: Option<Instant>,
    result_deadline: Option<Instant>,
    /// `is_error` of the last result frame.
    last_result: Option<bool>,
    open_tasks: u32,
    expired_limit: Option<Limit>,
    /// Time of the first TERM that was sent to us.
    first_term: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Running,
    /// The child has got TERM; KILL follows at `kill_at`.
    Terminating {
        kill_at: Option<Instant>,
    },
    /// The child has got KILL.
    Killed,
    /// The child has ended, and its leftovers have got TERM; KILL follows at `kill_at`.
    TerminatingTree {
        ending: Ending,
        kill_at: Option<Instant>,
    },
    /// The leftovers have got KILL. If it did not reach all, it is repeated at `retry_at`, until it reaches none for a while.
    KillingTree {
        ending: Ending,
        retry_at: Option<Instant>,
        give_up_at: Option<Instant>,
    },
    /// The tree is empty, or what is left of it is kept.
    Finished(Ending),
}

/// How long leftovers that we can neither see nor signal may take to end.
const UNREACHABLE_GRACE: Duration = Duration::from_secs(1);

impl Policy {
    /// A run whose child was started at `now`.
    pub fn new(config: PolicyConfig, now: Instant) -> Self {
        Self {
            hard_deadline: after(now, config.hard_limit),
            idle_deadline: after(now, config.idle_limit),
            result_deadline: None,
            config,
            phase: Phase::Running,
            is_stopped: false,
            last_result: None,
            open_tasks: 0,
            expired_limit: None,
            first_term: None,
        }
    }

    /// Time of the next [`Input::Clock`].
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running => [self.hard_deadline, self.idle_deadline, self.result_deadline].into_iter().flatten().min(),
            Phase::Terminating { kill_at } | Phase::TerminatingTree { kill_at, .. } => kill_at,
            Phase::KillingTree { retry_at, .. } => retry_at,
            Phase::Killed | Phase::Finished(_) => None,
        }
    }

    /// True while the task grace replaces the result grace.
    pub fn has_open_tasks(&self) -> bool {
        self.open_tasks > 0
    }

    /// How the child ended, and the limit at which it was ended, once the run is over.
    pub fn result(&self) -> Option<(Ending, Option<Limit>)> {
        match self.phase {
            Phase::Finished(ending) => Some((ending, self.expired_limit)),
            _ => None,
        }
    }

    /// Actions for `input` at `now`.
    pub fn on(&mut self, input: Input, now: Instant) -> Vec<Action> {
        match input {
            Input::Signal(signal, source) => return self.on_signal(signal, source, now),
            Input::Stopped(signal) => return self.on_stopped(signal),
            Input::Ended(ending, tree) => return self.on_ended(ending, tree, now),
            Input::TreeChanged(tree) => return self.on_tree_changed(tree),
            Input::TreeKilled(delivery) => return self.on_tree_killed(delivery, now),
            Input::LockLost if self.phase == Phase::Running => return self.expire(Limit::Lock, now),
            Input::Clock if self.next_deadline().is_some_and(|deadline| now >= deadline) => return self.on_deadline(now),
            Input::Frame(frame) => self.on_frame(frame, now),
            Input::LastOutput(at) => self.idle_deadline = after(at, self.config.idle_limit).max(self.idle_deadline),
            Input::Continued => self.is_stopped = false,
            Input::LockLost | Input::Clock => {}
            Input::Refresh { .. } => {} // handled by `RefreshGuard`
        }
        Vec::new()
    }

    fn on_deadline(&mut self, now: Instant) -> Vec<Action> {
        match self.phase {
            Phase::Running => {
                let has_come = |deadline: Option<Instant>| deadline.is_some_and(|deadline| now >= deadline);
                let limit = match self.last_result {
                    _ if has_come(self.hard_deadline) => Limit::Hard,
                    Some(is_error) if has_come(self.result_deadline) => Limit::Result { is_error },
                    _ => Limit::Idle,
                };
                self.expire(limit, now)
            }
            Phase::Terminating { .. } | Phase::TerminatingTree { .. } => self.escalate(Notice::KillGraceExpired),
            Phase::KillingTree { ref mut retry_at, .. } => {
                *retry_at = None;
                vec![Action::SignalTree(Signal::SIGKILL)]
            }
            Phase::Killed | Phase::Finished(_) => Vec::new(),
        }
    }

    // Signals that we get.

    fn on_signal(&mut self, signal: Signal, source: SignalSource, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match signal {
            Signal::SIGUSR1 => actions.push(Action::Report),
            Signal::SIGTSTP => {
                if self.has_child() {
                    actions.push(Action::SignalChild(Signal::SIGTSTP));
                }
                if !self.config.ignored.contains(Signal::SIGTSTP) {
                    actions.push(Action::StopOurselves);
                }
            }
            Signal::SIGTERM if self.first_term.is_some_and(|first| now < first + DUPLICATE_WINDOW) => {}
            _ if FORWARDED.contains(&signal) => {
                if self.has_child() && self.needs_forwarding(signal, source) {
                    actions.push(Action::SignalChild(signal));
                }
                if is_termination_request(signal) && self.is_for_us(signal, source) {
                    actions.extend(self.on_termination_request(signal, now));
                }
            }
            _ => {}
        }
        actions
    }

    /// A child in our group gets the terminal's signals without us; a process may have signalled us alone. It needs a CONT only if it
    /// is stopped: a shell's `fg` sends CONT to the group.
    fn needs_forwarding(&self, signal: Signal, source: SignalSource) -> bool {
        match self.config.group {
            Group::Own => true,
            Group::Shared => matches!(source, SignalSource::Process(_)) && (signal != Signal::SIGCONT || self.is_stopped),
        }
    }

    /// False for a signal that our caller ignores, as with nohup(1), and for the QUIT key of a terminal that signals the child as well.
    fn is_for_us(&self, signal: Signal, source: SignalSource) -> bool {
        let is_key_for_child =
            self.config.group == Group::Shared && signal == Signal::SIGQUIT && source == SignalSource::Kernel;
        !self.config.ignored.contains(signal) && !is_key_for_child
    }

    fn on_termination_request(&mut self, signal: Signal, now: Instant) -> Vec<Action> {
        let is_second_term = signal == Signal::SIGTERM && self.first_term.is_some();
        if signal == Signal::SIGTERM {
            self.first_term.get_or_insert(now);
        }
        match self.phase {
            Phase::Running => {
                self.phase = Phase::Terminating { kill_at: after(now, self.config.kill_grace) };
                self.continue_if_stopped() // after the signal, which is forwarded by now
            }
            Phase::Terminating { .. } | Phase::TerminatingTree { .. } if is_second_term => self.escalate(Notice::SecondTerm),
            _ => Vec::new(),
        }
    }

    // While the child lives.

    fn on_frame(&mut self, frame: FrameEvent, now: Instant) {
        match frame {
            FrameEvent::Result { is_error } => self.last_result = Some(is_error),
            FrameEvent::OpenTasks(count) => self.open_tasks = count,
            FrameEvent::Other => {}
        }
        if self.last_result.is_some() {
            let grace = if self.has_open_tasks() { self.config.task_grace } else { self.config.result_grace };
            self.result_deadline = after(now, grace);
        }
    }

    fn on_stopped(&mut self, signal: Signal) -> Vec<Action> {
        self.is_stopped = true;
        match self.phase {
            // It was stopped just before its TERM.
            Phase::Terminating { .. } => self.continue_if_stopped(),
            // It has stopped itself alone, though it is in our group, whose shell waits for us to be stopped.
            Phase::Running if self.config.group == Group::Shared && signal == Signal::SIGTSTP => vec![Action::StopForShell],
            _ => Vec::new(),
        }
    }

    fn expire(&mut self, limit: Limit, now: Instant) -> Vec<Action> {
        self.expired_limit = Some(limit);
        self.phase = Phase::Terminating { kill_at: after(now, self.config.kill_grace) };
        let mut actions = vec![Action::SignalChild(Signal::SIGTERM)];
        actions.extend(self.continue_if_stopped());
        actions.push(Action::Log(Notice::LimitExpired(limit)));
        actions
    }

    /// Restarts the kill grace: a deferred TERM goes out at `now`.
    pub(super) fn restart_kill_grace(&mut self, now: Instant) {
        if let Phase::Terminating { kill_at } | Phase::TerminatingTree { kill_at, .. } = &mut self.phase {
            *kill_at = after(now, self.config.kill_grace);
        }
    }

    /// Goes from TERM to KILL.
    fn escalate(&mut self, reason: Notice) -> Vec<Action> {
        let kill = match (self.phase, self.config.leftovers) {
            (Phase::TerminatingTree { ending, .. }, _) => self.kill_tree(ending),
            (_, leftovers) => {
                self.phase = Phase::Killed;
                match leftovers {
                    Leftovers::Kill => Action::SignalTree(Signal::SIGKILL),
                    Leftovers::Keep => Action::SignalChild(Signal::SIGKILL),
                }
            }
        };
        vec![kill, Action::Log(reason)]
    }

    fn continue_if_stopped(&self) -> Vec<Action> {
        if self.is_stopped { vec![Action::SignalChild(Signal::SIGCONT)] } else { Vec::new() }
    }

    fn has_child(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Terminating { .. } | Phase::Killed)
    }

    // After the child's end.

    fn on_ended(&mut self, ending: Ending, tree: TreeState, now: Instant) -> Vec<Action> {
        if tree == TreeState::Empty || self.config.leftovers == Leftovers::Keep {
            self.phase = Phase::Finished(ending);
            return Vec::new();
        }
        if self.phase == Phase::Killed {
            return vec![self.kill_tree(ending)];
        }
        self.phase = Phase::TerminatingTree { ending, kill_at: after(now, self.config.kill_grace) };
        vec![Action::SignalTree(Signal::SIGTERM), Action::Log(Notice::Leftovers)]
    }

    fn on_tree_changed(&mut self, tree: TreeState) -> Vec<Action> {
        // A process that was forked during the last walk is an orphan by now, and gets its signal by this one.
        let (ending, signal) = match self.phase {
            Phase::TerminatingTree { ending, .. } => (ending, Signal::SIGTERM),
            Phase::KillingTree { ending, .. } => (ending, Signal::SIGKILL),
            _ => return Vec::new(),
        };
        match tree {
            TreeState::Alive => vec![Action::SignalTree(signal)],
            TreeState::Empty => {
                self.phase = Phase::Finished(ending);
                Vec::new()
            }
        }
    }

    fn on_tree_killed(&mut self, delivery: Delivery, now: Instant) -> Vec<Action> {
        let Phase::KillingTree { ending, retry_at, give_up_at } = &mut self.phase else { return Vec::new() };
        let later = after(now, Some(UNREACHABLE_GRACE));
        // The end of a process whose parent we cannot signal causes no SIGCHLD here: we have to look again.
        *retry_at = if delivery == Delivery::Complete { None } else { later };
        *give_up_at = if delivery == Delivery::Failed { give_up_at.or(later) } else { None };
        if give_up_at.is_some_and(|give_up_at| now >= give_up_at) {
            self.phase = Phase::Finished(*ending);
            return vec![Action::Log(Notice::Unreachable)];
        }
        Vec::new()
    }

    fn kill_tree(&mut self, ending: Ending) -> Action {
        self.phase = Phase::KillingTree { ending, retry_at: None, give_up_at: None };
        Action::SignalTree(Signal::SIGKILL)
    }
}

#[cfg(test)]
pub(super) mod tests;
