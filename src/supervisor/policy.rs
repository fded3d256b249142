//! Decides what a run does about each input. Pure: from state, input and time to actions and the next deadline. It knows no process,
//! no descriptor and no clock, so that tests can try every order of inputs.

mod escalation;
mod refresh_guard;
mod types;

use std::mem;
use std::time::{Duration, Instant};

use crate::claude::frames::FrameEvent;
use crate::config::duration::{CATCH_UP, after, is_late, was_frozen};
use crate::config::settings::Leftovers;
use crate::outcome::Outcome;
use crate::sys::signal::{FORWARDED, SigSet, Signal, SignalSource, is_termination_request, requests_end};
use refresh_guard::Span;
pub use refresh_guard::{MAX_DEFERRAL, SPAN};
pub use types::{Action, Group, Input, Notice, PolicyConfig, TreeState};

/// State of a run. Tests compare and copy it, to try all that can happen: see `tests/model`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Policy {
    pub(super) config: PolicyConfig,
    phase: Phase,
    /// How the child ended. From then on the phase is about its leftovers.
    ending: Option<Outcome>,
    expired_limit: Option<Outcome>,
    stopped_by: Option<Signal>,
    hard_deadline: Option<Instant>,
    idle_deadline: Option<Instant>,
    result_deadline: Option<Instant>,
    /// True once the relay was given [`CATCH_UP`] before a limit that we had found too late.
    has_caught_up: bool,
    /// Time at which those get TERM who have had none.
    rest_term_at: Option<Instant>,
    /// Everybody whom a KILL would reach has had TERM, but those who have come since.
    rest_has_term: bool,
    /// The kill grace was cut short.
    is_hurried: bool,
    /// The kill grace was made longer once, after a freeze.
    was_grace_extended: bool,
    /// End of the kill grace, then time of the next KILL.
    kill_at: Option<Instant>,
    give_up_at: Option<Instant>,
    /// `is_error` of the last result frame, while no new turn has started.
    last_result: Option<bool>,
    open_tasks: u32,
    /// More messages may come, so that claude waits for them after a result.
    expects_input: bool,
    /// A TERM was sent to us.
    has_term: bool,
    /// The child has a handler for USR2, or ignores it: it does not end by that.
    pub(super) handles_usr2: bool,
    /// Signals that have stopped the child since its TERM, each answered by one CONT.
    continued: SigSet,
    /// Signals that are deferred for the sake of a refresh, in order.
    deferred: Vec<Action>,
    /// Part of their deferral that runs.
    span: Option<Span>,
    /// A refresh that they were deferred for has had its time; if they still are, it is for another.
    has_given_up: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Phase {
    #[default]
    Running,
    /// The child was asked to end, or its leftovers have got TERM.
    Terminating,
    /// Those who have had TERM have got KILL, and those who have come since have got TERM.
    Killing,
    /// All have got KILL.
    Killed,
    /// The tree is empty, or what is left of it is kept, or given up.
    Finished,
}

impl Policy {
    /// A run whose child was started at `now`.
    pub fn new(config: PolicyConfig, now: Instant) -> Self {
        Self {
            hard_deadline: after(now, config.hard_limit),
            idle_deadline: after(now, config.idle_limit),
            expects_input: config.streams_input,
            config,
            ..Self::default()
        }
    }

    /// Time of the next [`Input::Clock`].
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            _ if self.is_deferring() => self.span.map(|span| span.end),
            Phase::Finished => None,
            _ => {
                let limits = self.limits().into_iter().map(|(at, _)| at);
                limits.chain([self.rest_term_at, self.kill_at, self.give_up_at]).flatten().min()
            }
        }
    }

    /// Limits that count, each with its outcome. A request to end removes none of them.
    fn limits(&self) -> [(Option<Instant>, Outcome); 3] {
        let counts = self.can_expire();
        let hung = Outcome::HungAfterResult { is_error: self.last_result.unwrap_or_default() };
        [
            (self.hard_deadline.filter(|_| counts), Outcome::HardLimit),
            (self.result_deadline.filter(|_| counts), hung),
            (self.idle_deadline.filter(|_| counts && !self.is_paused()), Outcome::IdleLimit),
        ]
    }

    /// True if somebody is to continue the child: the key of a terminal, or a STOP, means that; a TTIN does not.
    pub(super) fn is_paused(&self) -> bool {
        matches!(self.stopped_by, Some(Signal::SIGSTOP | Signal::SIGTSTP))
    }

    fn can_expire(&self) -> bool {
        self.has_child() && self.expired_limit.is_none() && matches!(self.phase, Phase::Running | Phase::Terminating)
    }

    /// True once the run is to end.
    pub(super) fn is_ending(&self) -> bool {
        self.phase != Phase::Running
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
            Input::LockLost if self.can_expire() => return self.expire(Outcome::LockLost, now),
            Input::Clock => return self.on_deadline(now),
            Input::Frame(frame) => self.on_frame(frame, now),
            Input::StdinEnded => {
                self.expects_input = false;
                self.restart_result_grace(now);
            }
            Input::LastOutput(at) => self.postpone_idle_limit(at),
            Input::Continued => {
                self.stopped_by = None;
                self.postpone_idle_limit(now);
            }
            Input::LockLost | Input::Refresh(_) => {}
        }
        Vec::new()
    }

    fn on_deadline(&mut self, now: Instant) -> Vec<Action> {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        let mut actions = match self.limits().into_iter().find(|&(at, _)| is_due(at)) {
            Some((at, Outcome::IdleLimit | Outcome::HungAfterResult { .. })) if !self.has_caught_up && is_late(at, now) => {
                self.has_caught_up = true;
                let later = |at: Instant| at.max(now + CATCH_UP);
                self.idle_deadline = self.idle_deadline.map(later);
                self.result_deadline = self.result_deadline.map(later);
                Vec::new()
            }
            Some((_, limit)) => self.expire(limit, now),
            None => Vec::new(),
        };
        actions.extend(self.on_escalation_due(now));
        actions
    }

    fn on_signal(&mut self, signal: Signal, source: SignalSource, now: Instant) -> Vec<Action> {
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
            _ if FORWARDED.contains(signal) => {
                if signal == Signal::SIGCONT {
                    self.postpone_idle_limit(now); // we were stopped
                }
                // A shell's `fg` sends CONT to the group.
                let is_needed = self.config.group == Group::Own || signal != Signal::SIGCONT || self.stopped_by.is_some();
                if self.has_child() && !self.is_childs_too(source) && is_needed {
                    actions.push(Action::SignalChild(signal));
                }
                // Ctrl-C is not to wait for a terminal that the child does not get.
                if signal == Signal::SIGINT && matches!(self.stopped_by, Some(Signal::SIGTTIN | Signal::SIGTTOU)) {
                    actions.extend(self.continue_if_stopped());
                }
                if self.heeds(signal, source) {
                    actions.extend(self.on_termination_request(signal, now));
                }
            }
            _ => {}
        }
        actions
    }

    /// True if `signal` asks the run to end: it starts the kill grace, or cuts that of leftovers short. One that our caller ignores, as with
    /// nohup(1), does not; nor, while there is a child, do INT and the QUIT key, which are for the child.
    pub(super) fn heeds(&self, signal: Signal, source: SignalSource) -> bool {
        let is_key = signal == Signal::SIGQUIT && self.is_childs_too(source);
        let is_request = if self.has_child() { is_termination_request(signal) && !is_key } else { requests_end(signal) };
        is_request && !self.config.ignored.contains(signal)
    }

    /// True if the terminal has signalled a child in our group as well; a process may have signalled us alone.
    fn is_childs_too(&self, source: SignalSource) -> bool {
        self.config.group == Group::Shared && source == SignalSource::Kernel
    }

    fn on_frame(&mut self, frame: FrameEvent, now: Instant) {
        match frame {
            FrameEvent::Result { is_error } => self.last_result = Some(is_error),
            FrameEvent::TurnStarted => self.last_result = None,
            FrameEvent::OpenTasks(count) => self.open_tasks = count,
            FrameEvent::Other => {}
        }
        self.restart_result_grace(now);
    }

    /// The grace counts between a result and the next turn.
    fn restart_result_grace(&mut self, now: Instant) {
        let grace = if self.has_open_tasks() { self.config.task_grace } else { self.config.result_grace };
        let is_over = self.last_result.is_some() && !self.expects_input;
        self.result_deadline = after(now, grace.filter(|_| is_over));
        self.has_caught_up = false;
    }

    fn postpone_idle_limit(&mut self, last_sign: Instant) {
        let deadline = after(last_sign, self.config.idle_limit);
        if deadline > self.idle_deadline {
            (self.idle_deadline, self.has_caught_up) = (deadline, false);
        }
    }

    fn on_stopped(&mut self, signal: Signal) -> Vec<Action> {
        self.stopped_by = Some(signal);
        match self.phase {
            // It was stopped just before its TERM; or it wants a terminal that it will not get, again and again.
            Phase::Terminating if !self.continued.contains(signal) => {
                self.continued.add(signal);
                self.continue_if_stopped()
            }
            // It has stopped itself alone, though it is in our group, whose shell waits for us to be stopped.
            Phase::Running if self.config.group == Group::Shared && self.stops_for_its_shell(signal) => {
                vec![Action::Stop(SignalSource::Kernel)]
            }
            _ => Vec::new(),
        }
    }

    /// True for TSTP, and, where somebody attends, for STOP, by which claude up to 2.1.84 at least stops itself at Ctrl-Z. Elsewhere, a limit
    /// goes on while a debugger has stopped the child.
    fn stops_for_its_shell(&self, signal: Signal) -> bool {
        let is_attended = self.config.hard_limit.is_none() || self.config.leftovers == Leftovers::Keep;
        signal == Signal::SIGTSTP || signal == Signal::SIGSTOP && is_attended
    }

    fn expire(&mut self, limit: Outcome, now: Instant) -> Vec<Action> {
        self.expired_limit = Some(limit);
        let term = vec![Action::SignalChild(Signal::SIGTERM)];
        [term, self.terminate(Signal::SIGTERM, now), vec![Action::Log(Notice::LimitExpired(limit))]].concat()
    }

    pub(super) fn has_child(&self) -> bool {
        self.ending.is_none()
    }
}

#[cfg(test)]
mod tests;
