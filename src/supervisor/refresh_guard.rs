//! Never kill a refresh. A claude that is ended while its token request is under way loses the new refresh token, and somebody
//! has to log in again. So what ends a process is held back here while a refresh may be under way below us, and everything else
//! passes. As pure as the policy that it stands around.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::policy::{Action, Ending, Input, Limit, Notice, Policy};

/// A policy whose signals spare refreshes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RefreshGuard {
    policy: Policy,
    /// What is held back, in its order.
    held_back: Vec<Action>,
    /// Since when a refresh is being spared. It stays after the patience with it has run out, until one is found over.
    since: Option<Instant>,
}

/// How long at most: a refresh takes a second or so.
pub const PATIENCE: Duration = Duration::from_secs(15);

impl RefreshGuard {
    /// Around `policy`.
    pub fn new(policy: Policy) -> Self {
        Self { policy, held_back: Vec::new(), since: None }
    }

    /// The policy itself.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether something is held back, so that the end of a refresh matters.
    pub fn holds_back(&self) -> bool {
        !self.held_back.is_empty()
    }

    /// See [`Policy::next_deadline`].
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.since {
            Some(since) if self.holds_back() => Some(since + PATIENCE),
            _ => self.policy.next_deadline(),
        }
    }

    /// See [`Policy::result`].
    pub fn result(&self) -> Option<(Ending, Option<Limit>)> {
        self.policy.result()
    }

    /// What to do about `happening` at `now`.
    pub fn on(&mut self, happening: Input, now: Instant) -> Vec<Action> {
        match happening {
            Input::Refresh { may_be_under_way } => self.on_look(may_be_under_way, now),
            // While a signal waits, all limits and graces do: none could do more than send one.
            Input::Clock if self.holds_back() => match self.since {
                Some(since) if now >= since + PATIENCE => self.release(now, Some(Notice::RefreshTakesTooLong)),
                _ => Vec::new(),
            },
            _ => {
                if matches!(happening, Input::Ended(..)) {
                    // Its remains feel nothing; those that it left behind may.
                    self.held_back.retain(|action| matches!(action, Action::SignalTree(_)));
                }
                let actions = self.policy.on(happening, now);
                self.hold_back(actions)
            }
        }
    }

    fn hold_back(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let mut others = Vec::new();
        for action in actions {
            if !ends_somebody(action) {
                others.push(action);
                continue;
            }
            // A look is asked for with the first; those behind it wait for the answer, too.
            if self.held_back.is_empty() {
                others.push(Action::LookForRefresh);
            }
            // A signal to everybody that is already due to everybody adds nothing.
            if !(matches!(action, Action::SignalTree(_)) && self.held_back.contains(&action)) {
                self.held_back.push(action);
            }
        }
        others
    }

    fn on_look(&mut self, may_be_under_way: bool, now: Instant) -> Vec<Action> {
        if !may_be_under_way {
            self.since = None;
            return self.release(now, None);
        }
        if !self.holds_back() {
            return Vec::new();
        }
        match self.since {
            None => {
                self.since = Some(now);
                vec![Action::Tell(Notice::Refresh)]
            }
            Some(since) if now >= since + PATIENCE => self.release(now, None), // said once
            Some(_) => Vec::new(),
        }
    }

    fn release(&mut self, now: Instant, notice: Option<Notice>) -> Vec<Action> {
        let actions: Vec<_> = notice.map(Action::Tell).into_iter().chain(self.held_back.drain(..)).collect();
        if actions.iter().any(|action| matches!(action, Action::SignalChild(_) | Action::SignalTree(Signal::SIGTERM))) {
            self.policy.restart_kill_grace(now); // it counts from the signal that goes out
        }
        actions
    }
}

/// INT as well: a claude without a terminal ends by it, in mid-refresh, too.
fn ends_somebody(action: Action) -> bool {
    let (Action::SignalChild(signal) | Action::SignalTree(signal)) = action else { return false };
    matches!(signal, Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM | Signal::SIGKILL)
}

#[cfg(test)]
mod tests {
    use super::super::policy::tests::{SOMEBODY, case};
    use super::super::policy::{Reach, Tree};
    use super::*;

    struct Run {
        sparing: RefreshGuard,
        start: Instant,
        refresh: bool,
    }

    impl Run {
        /// A run with a hard limit of 60 s and a kill grace of 5 s.
        fn new() -> Self {
            let case = case(|_| {});
            Self { sparing: RefreshGuard::new(case.policy), start: case.start, refresh: false }
        }

        fn during_refresh() -> Self {
            Self { refresh: true, ..Self::new() }
        }

        /// What comes of it, a look being answered at once, as by the supervisor.
        fn at(&mut self, seconds: u64, happening: Input) -> Vec<Action> {
            let now = self.start + Duration::from_secs(seconds);
            let mut all = Vec::new();
            let mut actions = self.sparing.on(happening, now);
            actions.reverse();
            while let Some(action) = actions.pop() {
                match action {
                    Action::LookForRefresh => {
                        let answer = Input::Refresh { may_be_under_way: self.refresh };
                        actions.extend(self.sparing.on(answer, now).into_iter().rev());
                    }
                    _ => all.push(action),
                }
            }
            all
        }

        fn signal(&mut self, seconds: u64, signal: Signal) -> Vec<Action> {
            self.at(seconds, Input::Signal(signal, SOMEBODY))
        }

        fn refresh_is_over(&mut self, seconds: u64) -> Vec<Action> {
            self.refresh = false;
            self.at(seconds, Input::Refresh { may_be_under_way: false })
        }

        fn deadline(&self) -> Option<u64> {
            self.sparing.next_deadline().map(|at| (at - self.start).as_secs())
        }
    }

    const TERM: Action = Action::SignalChild(Signal::SIGTERM);
    const KILL_TREE: Action = Action::SignalTree(Signal::SIGKILL);
    const TOLD: Action = Action::Tell(Notice::Refresh);

    #[test]
    fn without_a_refresh_nothing_is_held_back_or_out_of_order() {
        let mut run = Run::new();
        assert_eq!(run.signal(1, Signal::SIGTERM), [TERM]);
        assert_eq!(run.deadline(), Some(6));
        assert_eq!(run.at(6, Input::Clock), [KILL_TREE, Action::Tell(Notice::KillGrace)]);
        let mut stopped = Run::new();
        stopped.at(1, Input::Stopped(Signal::SIGSTOP));
        assert_eq!(stopped.signal(2, Signal::SIGTERM), [TERM, Action::SignalChild(Signal::SIGCONT)]);
    }

    #[test]
    fn during_a_refresh_a_request_to_end_waits_and_the_kill_grace_counts_from_its_going_out() {
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            let mut run = Run::during_refresh();
            assert_eq!(run.signal(1, signal), [TOLD], "{signal}");
            assert_eq!(run.deadline(), Some(16));
            assert_eq!(run.at(8, Input::Clock), [], "no kill grace runs meanwhile");
            assert_eq!(run.at(9, Input::Refresh { may_be_under_way: true }), [], "told once");
            assert_eq!(run.refresh_is_over(10), [Action::SignalChild(signal)]);
            assert_eq!(run.deadline(), Some(15));
        }
    }

    #[test]
    fn a_limit_waits_as_well_and_so_does_the_kill_behind_it() {
        let mut run = Run::during_refresh();
        assert_eq!(run.at(60, Input::Clock), [TOLD, Action::Tell(Notice::Limit(Limit::Hard))]);
        assert_eq!(run.refresh_is_over(61), [TERM]);
        run.refresh = true;
        assert_eq!(run.at(66, Input::Clock), [TOLD, Action::Tell(Notice::KillGrace)]);
        assert_eq!(run.refresh_is_over(70), [KILL_TREE]);
    }

    #[test]
    fn after_15_seconds_it_goes_on_and_does_not_begin_again_with_the_same_refresh() {
        let mut run = Run::during_refresh();
        run.signal(1, Signal::SIGTERM);
        assert_eq!(run.at(15, Input::Clock), []);
        assert_eq!(run.at(16, Input::Clock), [Action::Tell(Notice::RefreshTakesTooLong), TERM]);
        assert_eq!(run.at(21, Input::Clock), [KILL_TREE, Action::Tell(Notice::KillGrace)]);
        let mut another = Run::during_refresh();
        another.signal(1, Signal::SIGINT);
        another.at(16, Input::Clock);
        let int = Action::SignalChild(Signal::SIGINT);
        assert_eq!(another.signal(17, Signal::SIGINT), [int], "the same one has had its time");
        another.refresh = false;
        assert_eq!(another.signal(31, Signal::SIGINT), [int]);
        another.refresh = true;
        assert_eq!(another.signal(32, Signal::SIGTERM), [TOLD], "a new one has 15 s of its own");
    }

    #[test]
    fn a_second_term_waits_behind_the_first() {
        let mut run = Run::during_refresh();
        assert_eq!(run.signal(1, Signal::SIGTERM), [TOLD]);
        assert_eq!(run.signal(2, Signal::SIGTERM), [Action::Tell(Notice::SecondTerm)]);
        assert_eq!(run.refresh_is_over(3), [TERM, TERM, KILL_TREE]);
    }

    #[test]
    fn what_ends_nobody_passes() {
        let mut run = Run::during_refresh();
        run.at(1, Input::Stopped(Signal::SIGSTOP));
        assert_eq!(run.signal(2, Signal::SIGTERM), [TOLD, Action::SignalChild(Signal::SIGCONT)], "it has to go on to finish");
        for signal in [Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGCONT] {
            assert_eq!(run.signal(3, signal), [Action::SignalChild(signal)]);
        }
        assert_eq!(run.signal(3, Signal::SIGUSR1), [Action::Report]);
    }

    #[test]
    fn what_a_child_was_to_get_is_forgotten_with_its_end_and_those_it_leaves_are_spared_too() {
        let mut alone = Run::during_refresh();
        alone.signal(1, Signal::SIGTERM);
        assert_eq!(alone.at(2, Input::Ended(Ending::Exited(0), Tree::Empty)), []);
        assert_eq!(alone.sparing.result(), Some((Ending::Exited(0), None)));
        let mut leaving = Run::during_refresh();
        leaving.signal(1, Signal::SIGTERM);
        let ended = Input::Ended(Ending::Exited(0), Tree::Alive);
        assert_eq!(leaving.at(2, ended), [Action::Tell(Notice::Leftovers)]);
        assert_eq!(leaving.at(3, Input::TreeChanged(Tree::Alive)), []);
        assert_eq!(leaving.refresh_is_over(4), [Action::SignalTree(Signal::SIGTERM)]);
        assert_eq!(leaving.deadline(), Some(9));
        assert_eq!(leaving.at(9, Input::Killed(Reach::All)), []);
    }
}
