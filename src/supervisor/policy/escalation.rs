//! The way from TERM to KILL: TERM to the child, then to the rest of its tree, then KILL. Nobody gets KILL who has not had TERM, and
//! time to follow it; but whoever forks on and on has that time only once.

use super::*;

/// Longest time from the TERM of the child to that of the rest of its tree, however long the kill grace is. A child that is a shell
/// does not follow its TERM before its own child has ended.
const MAX_REST_DELAY: Duration = Duration::from_millis(2500);

/// Longest kill grace where somebody cannot wait any longer.
const SHORT_GRACE: Duration = Duration::from_secs(1);

/// How long those that have got KILL may take to end, at least: state D, a frozen cgroup or another user can keep them.
const MIN_GIVE_UP: Duration = Duration::from_secs(5);

/// Period of the KILL: a process may be forked while the tree is walked.
const KILL_AGAIN: Duration = Duration::from_secs(1);

impl Policy {
    pub(super) fn on_termination_request(&mut self, signal: Signal, now: Instant) -> Vec<Action> {
        let is_term = signal == Signal::SIGTERM;
        let is_second_term = is_term && mem::replace(&mut self.has_term, true);
        match self.phase {
            Phase::Terminating if is_second_term => return self.escalate(Notice::SecondTerm, now),
            // All have had their TERM.
            Phase::Terminating if !self.has_child() => {
                let kill_at = now + self.short_grace();
                self.is_hurried = true;
                self.kill_at = Some(self.kill_at.map_or(kill_at, |at| at.min(kill_at)));
            }
            Phase::Running | Phase::Terminating => return self.terminate(signal, now),
            Phase::Killing | Phase::Killed if is_term || !self.has_child() => {
                self.give_up_at = self.give_up_at.min(after(now, Some(SHORT_GRACE)));
            }
            _ => {}
        }
        Vec::new()
    }

    /// Starts the kill grace, or lets the one that runs run on. The actions follow `signal` to the child.
    pub(super) fn terminate(&mut self, signal: Signal, now: Instant) -> Vec<Action> {
        if self.phase == Phase::Running {
            self.phase = Phase::Terminating;
            self.restart_kill_grace(now);
        }
        if signal == Signal::SIGTERM && !self.rest_has_term {
            match self.config.leftovers {
                Leftovers::Kill => self.rest_term_at = self.rest_term_at.or(Some(now + self.rest_delay())),
                Leftovers::Keep => (self.rest_has_term, self.rest_term_at) = (true, None),
            }
        }
        self.continue_if_stopped()
    }

    pub(super) fn restart_kill_grace(&mut self, now: Instant) {
        self.kill_at = after(now, if self.is_hurried { Some(self.short_grace()) } else { self.config.kill_grace });
        // Without a KILL to come, the rest follows the child's TERM, but no other request.
        let is_due = !self.rest_has_term && (self.config.kill_grace.is_some() || self.rest_term_at.is_some());
        self.rest_term_at = is_due.then(|| now + self.rest_delay());
    }

    fn rest_delay(&self) -> Duration {
        self.config.kill_grace.map_or(MAX_REST_DELAY, |grace| MAX_REST_DELAY.min(grace / 2))
    }

    fn short_grace(&self) -> Duration {
        self.config.kill_grace.map_or(SHORT_GRACE, |grace| SHORT_GRACE.min(grace))
    }

    pub(super) fn on_escalation_due(&mut self, now: Instant) -> Vec<Action> {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        match self.phase {
            // If we were frozen, so were they, with their TERM. Once: a fork bomb may keep us as busy again and again.
            Phase::Terminating | Phase::Killing
                if self.rest_has_term && !self.was_grace_extended && self.kill_at.is_some_and(|at| was_frozen(at, now)) =>
            {
                self.was_grace_extended = true;
                self.kill_at = Some(now + self.short_grace());
                self.give_up_at = self.give_up_at.max(self.kill_at.filter(|_| self.phase == Phase::Killing));
                Vec::new()
            }
            Phase::Terminating if is_due(self.kill_at) => {
                let notice = if self.rest_has_term { Notice::KillGraceExpired } else { Notice::ChildStays };
                self.escalate(notice, now)
            }
            Phase::Terminating if is_due(self.rest_term_at) => {
                [self.terminate_rest(), vec![Action::Log(Notice::ChildStays)]].concat()
            }
            Phase::Killed if is_due(self.give_up_at) => {
                // Even a child: with a pending KILL, it never runs again.
                self.ending.get_or_insert(Outcome::Killed(Signal::SIGKILL.number()));
                self.phase = Phase::Finished;
                vec![Action::Log(Notice::GivenUp)]
            }
            Phase::Killing | Phase::Killed if is_due(self.kill_at) => self.kill_all(now),
            _ => Vec::new(),
        }
    }

    /// Sends TERM to all whom a KILL would reach and who have had none.
    fn terminate_rest(&mut self) -> Vec<Action> {
        (self.rest_has_term, self.rest_term_at) = (true, None);
        match self.config.leftovers {
            Leftovers::Kill => vec![Action::SignalTree(Signal::SIGTERM)],
            Leftovers::Keep => [vec![Action::SignalChild(Signal::SIGTERM)], self.continue_if_stopped()].concat(),
        }
    }

    /// Goes from TERM to KILL.
    fn escalate(&mut self, reason: Notice, now: Instant) -> Vec<Action> {
        let mut actions = if self.rest_has_term {
            self.phase = Phase::Killing;
            self.restart_give_up_deadline(now);
            vec![self.kill_action()]
        } else {
            self.is_hurried = true;
            let actions = self.terminate_rest();
            self.restart_kill_grace(now);
            actions
        };
        actions.push(Action::Log(reason));
        actions
    }

    /// Sends KILL to all, those who have come since the last TERM included.
    fn kill_all(&mut self, now: Instant) -> Vec<Action> {
        if mem::replace(&mut self.phase, Phase::Killed) == Phase::Killing {
            self.give_up_at = self.give_up_at.max(after(now, Some(SHORT_GRACE))); // a TERM may have cut it short
        }
        self.kill_at = after(now, Some(KILL_AGAIN));
        vec![self.kill_action()]
    }

    pub(super) fn restart_give_up_deadline(&mut self, now: Instant) {
        let again = if self.phase == Phase::Killing { self.short_grace() } else { KILL_AGAIN };
        self.kill_at = after(now, Some(again));
        self.give_up_at = after(now, self.config.kill_grace.max(Some(MIN_GIVE_UP)));
    }

    fn kill_action(&self) -> Action {
        match self.config.leftovers {
            Leftovers::Keep => Action::SignalChild(Signal::SIGKILL),
            Leftovers::Kill if self.phase == Phase::Killing => Action::KillAfterTerm,
            Leftovers::Kill => Action::SignalTree(Signal::SIGKILL),
        }
    }

    pub(super) fn continue_if_stopped(&self) -> Vec<Action> {
        let is_stopped = self.stopped_by.is_some() && self.has_child();
        if is_stopped { vec![Action::SignalChild(Signal::SIGCONT)] } else { Vec::new() }
    }

    pub(super) fn on_ended(&mut self, ending: Outcome, tree: TreeState, now: Instant) -> Vec<Action> {
        self.ending = Some(ending);
        let notice = Action::Log(Notice::Leftovers(self.config.leftovers));
        if tree == TreeState::Empty || self.config.leftovers == Leftovers::Keep {
            self.phase = Phase::Finished;
            return if tree == TreeState::Empty { Vec::new() } else { vec![notice] };
        }
        if matches!(self.phase, Phase::Killing | Phase::Killed) {
            return vec![self.kill_action()];
        }
        (self.phase, self.rest_has_term, self.rest_term_at) = (Phase::Terminating, true, None);
        if !self.is_hurried {
            self.restart_kill_grace(now);
        }
        vec![Action::SignalTree(Signal::SIGTERM), notice] // which names those whom it has found
    }

    pub(super) fn on_tree_changed(&mut self, tree: TreeState) -> Vec<Action> {
        match self.phase {
            _ if self.has_child() => {}
            _ if tree == TreeState::Empty => self.phase = Phase::Finished,
            // A process that was forked during the last walk is an orphan by now, and gets its signal by this one.
            Phase::Terminating => return vec![Action::SignalTree(Signal::SIGTERM)],
            Phase::Killing | Phase::Killed => return vec![self.kill_action()],
            Phase::Running | Phase::Finished => {}
        }
        Vec::new()
    }
}
