//! Decides what a run does about each input. Pure: from state, input and time to actions and the next deadline. It knows no process,
//! no descriptor and no clock, so that tests can try every order of inputs.

mod refresh_guard;
mod types;

use std::time::{Duration, Instant};

use crate::claude::frames::FrameEvent;
use crate::config::duration::after;
use crate::config::settings::Leftovers;
use crate::events::SignalSource;
use crate::outcome::Outcome;
use crate::sys::signal::{DUPLICATE_WINDOW, FORWARDED, Signal, is_termination_request};
pub use refresh_guard::MAX_DEFERRAL;
pub use types::{Action, Delivery, Group, Input, Notice, PolicyConfig, TreeState};

/// State of a run. Tests compare and copy it, to try all that can happen: see `tests/model`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    pub(super) config: PolicyConfig,
    phase: Phase,
    /// How the child ended. From then on the phase is about its leftovers.
    ending: Option<Outcome>,
    expired_limit: Option<Outcome>,
    is_stopped: bool,
    hard_deadline: Option<Instant>,
    idle_deadline: Option<Instant>,
    result_deadline: Option<Instant>,
    /// End of the kill grace, then time of another KILL to leftovers that the last one did not reach.
    kill_at: Option<Instant>,
    give_up_at: Option<Instant>,
    /// `is_error` of the last result frame.
    last_result: Option<bool>,
    open_tasks: u32,
    /// Time of the first TERM that was sent to us.
    first_term: Option<Instant>,
    /// Signals that are deferred for the sake of a refresh, in order.
    deferred: Vec<Action>,
    /// Start of the current refresh, as far as signals are concerned. It stays after [`MAX_DEFERRAL`], until the refresh is over.
    refresh_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Running,
    /// The child, or its leftovers, have got TERM.
    Terminating,
    /// They have got KILL.
    Killed,
    /// The tree is empty, or what is left of it is kept.
    Finished,
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
            kill_at: None,
            give_up_at: None,
            config,
            phase: Phase::Running,
            ending: None,
            expired_limit: None,
            is_stopped: false,
            last_result: None,
            open_tasks: 0,
            first_term: None,
            deferred: Vec::new(),
            refresh_since: None,
        }
    }

    /// Time of the next [`Input::Clock`].
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            _ if self.is_deferring() => self.refresh_since.map(|since| since + MAX_DEFERRAL),
            Phase::Running => [self.hard_deadline, self.idle_deadline, self.result_deadline].into_iter().flatten().min(),
            Phase::Terminating | Phase::Killed => self.kill_at,
            Phase::Finished => None,
        }
    }

    /// True while the task grace replaces the result grace.
    pub fn has_open_tasks(&self) -> bool {
        self.open_tasks > 0
    }

    /// Outcome of a run that is over: the limit at which the child was ended, or else how it ended.
    pub fn result(&self) -> Option<Outcome> {
        self.expired_limit.or(self.ending).filter(|_| self.phase == Phase::Finished)
    }

    fn decide(&mut self, input: Input, now: Instant) -> Vec<Action> {
        match input {
            Input::Signal(signal, source) => return self.on_signal(signal, source, now),
            Input::Stopped(signal) => return self.on_stopped(signal),
            Input::Ended(ending, tree) => return self.on_ended(ending, tree, now),
            Input::TreeChanged(tree) => return self.on_tree_changed(tree),
            Input::TreeKilled(delivery) => return self.on_tree_killed(delivery, now),
            Input::LockLost if self.phase == Phase::Running => return self.expire(Outcome::LockLost, now),
            Input::Clock if self.next_deadline().is_some_and(|deadline| now >= deadline) => return self.on_deadline(now),
            Input::Frame(frame) => self.on_frame(frame, now),
            Input::LastOutput(at) => self.idle_deadline = after(at, self.config.idle_limit).max(self.idle_deadline),
            Input::Continued => self.is_stopped = false,
            Input::LockLost | Input::Clock | Input::Refresh { .. } => {}
        }
        Vec::new()
    }

    fn on_deadline(&mut self, now: Instant) -> Vec<Action> {
        let has_come = |deadline: Option<Instant>| deadline.is_some_and(|deadline| now >= deadline);
        match (self.phase, self.last_result) {
            (Phase::Running, _) if has_come(self.hard_deadline) => self.expire(Outcome::HardLimit, now),
            (Phase::Running, Some(is_error)) if has_come(self.result_deadline) => {
                self.expire(Outcome::HungAfterResult { is_error }, now)
            }
            (Phase::Running, _) => self.expire(Outcome::IdleLimit, now),
            (Phase::Terminating, _) => self.escalate(Notice::KillGraceExpired),
            _ => vec![self.kill_tree()],
        }
    }

    fn on_signal(&mut self, signal: Signal, source: SignalSource, now: Instant) -> Vec<Action> {
        // The terminal has signalled a child in our group as well; a process may have signalled us alone.
        let is_childs_too = self.config.group == Group::Shared && source == SignalSource::Kernel;
        let is_ignored = self.config.ignored.contains(signal);
        let mut actions = Vec::new();
        match signal {
            Signal::SIGUSR1 => actions.push(Action::Report),
            Signal::SIGTSTP => {
                if self.has_child() {
                    actions.push(Action::SignalChild(Signal::SIGTSTP));
                }
                if !is_ignored {
                    actions.push(Action::Stop(source));
                }
            }
            Signal::SIGTERM if self.first_term.is_some_and(|first| now < first + DUPLICATE_WINDOW) => {}
            _ if FORWARDED.contains(signal) => {
                // A shell's `fg` sends CONT to the group.
                let is_needed = self.config.group == Group::Own || signal != Signal::SIGCONT || self.is_stopped;
                if self.has_child() && !is_childs_too && is_needed {
                    actions.push(Action::SignalChild(signal));
                }
                // Neither one that our caller ignores, as with nohup(1), nor the QUIT key, which is for the child.
                if is_termination_request(signal) && !is_ignored && !(is_childs_too && signal == Signal::SIGQUIT) {
                    actions.extend(self.on_termination_request(signal, now));
                }
            }
            _ => {}
        }
        actions
    }

    fn on_termination_request(&mut self, signal: Signal, now: Instant) -> Vec<Action> {
        let is_second_term = signal == Signal::SIGTERM && *self.first_term.get_or_insert(now) != now;
        match self.phase {
            Phase::Running => self.terminate(now),
            Phase::Terminating if is_second_term => self.escalate(Notice::SecondTerm),
            _ => Vec::new(),
        }
    }

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
            Phase::Terminating => self.continue_if_stopped(),
            // It has stopped itself alone, though it is in our group, whose shell waits for us to be stopped.
            Phase::Running if self.config.group == Group::Shared && signal == Signal::SIGTSTP => {
                vec![Action::Stop(SignalSource::Kernel)]
            }
            _ => Vec::new(),
        }
    }

    fn expire(&mut self, limit: Outcome, now: Instant) -> Vec<Action> {
        self.expired_limit = Some(limit);
        [vec![Action::SignalChild(Signal::SIGTERM)], self.terminate(now), vec![Action::Log(Notice::LimitExpired(limit))]]
            .concat()
    }

    /// Starts the kill grace. The actions follow the signal.
    fn terminate(&mut self, now: Instant) -> Vec<Action> {
        self.phase = Phase::Terminating;
        self.kill_at = after(now, self.config.kill_grace);
        self.continue_if_stopped()
    }

    /// Goes from TERM to KILL.
    fn escalate(&mut self, reason: Notice) -> Vec<Action> {
        let kill_tree = self.kill_tree();
        let keeps = self.config.leftovers == Leftovers::Keep;
        vec![if keeps { Action::SignalChild(Signal::SIGKILL) } else { kill_tree }, Action::Log(reason)]
    }

    fn kill_tree(&mut self) -> Action {
        (self.phase, self.kill_at) = (Phase::Killed, None);
        Action::SignalTree(Signal::SIGKILL)
    }

    fn continue_if_stopped(&self) -> Vec<Action> {
        let is_stopped = self.is_stopped && self.has_child();
        if is_stopped { vec![Action::SignalChild(Signal::SIGCONT)] } else { Vec::new() }
    }

    pub(super) fn has_child(&self) -> bool {
        self.ending.is_none()
    }

    fn on_ended(&mut self, ending: Outcome, tree: TreeState, now: Instant) -> Vec<Action> {
        self.ending = Some(ending);
        if tree == TreeState::Empty || self.config.leftovers == Leftovers::Keep {
            self.phase = Phase::Finished;
            return Vec::new();
        }
        if self.phase == Phase::Killed {
            return vec![self.kill_tree()];
        }
        self.terminate(now);
        vec![Action::SignalTree(Signal::SIGTERM), Action::Log(Notice::Leftovers)]
    }

    fn on_tree_changed(&mut self, tree: TreeState) -> Vec<Action> {
        match self.phase {
            _ if self.has_child() => {}
            _ if tree == TreeState::Empty => self.phase = Phase::Finished,
            // A process that was forked during the last walk is an orphan by now, and gets its signal by this one.
            Phase::Terminating => return vec![Action::SignalTree(Signal::SIGTERM)],
            Phase::Killed => return vec![Action::SignalTree(Signal::SIGKILL)],
            Phase::Running | Phase::Finished => {}
        }
        Vec::new()
    }

    fn on_tree_killed(&mut self, delivery: Delivery, now: Instant) -> Vec<Action> {
        if self.has_child() || self.phase != Phase::Killed {
            return Vec::new();
        }
        let later = after(now, Some(UNREACHABLE_GRACE));
        // The end of a process whose parent we cannot signal causes no SIGCHLD here: we have to look again.
        self.kill_at = if delivery == Delivery::Complete { None } else { later };
        self.give_up_at = if delivery == Delivery::Failed { self.give_up_at.or(later) } else { None };
        if self.give_up_at.is_some_and(|give_up_at| now >= give_up_at) {
            self.phase = Phase::Finished;
            return vec![Action::Log(Notice::Unreachable)];
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests;
