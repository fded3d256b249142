//! Never kill a refresh. A claude that is ended during its token request loses the rotated refresh token, and somebody has to log in
//! again. So signals that end processes are deferred while a refresh may be in progress; all other actions pass.

use std::mem;
use std::time::{Duration, Instant};

use super::{Action, Input, Notice, Phase, Policy};
use crate::config::duration::was_frozen;
use crate::sys::signal::{Signal, requests_end};

/// Longest deferral, not counting what claude was frozen for: a refresh takes about a second.
pub const MAX_DEFERRAL: Duration = SPAN.saturating_mul(SPANS as u32);

/// A part of it. One at whose end we were frozen, and claude with us, does not count; nor does one at whose end claude was paused, unless
/// it is to be continued: until then, it gets no signal anyway.
pub const SPAN: Duration = Duration::from_secs(5);

const SPANS: u8 = 3;

/// The span of a deferral that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Span {
    pub(super) end: Instant,
    /// Number of spans from this one on.
    left: u8,
}

impl Policy {
    /// True while signals are deferred, so that the end of a refresh matters.
    pub fn is_deferring(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Actions for `input` at `now`.
    pub fn on(&mut self, input: Input, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Refresh(is_in_progress) => return self.on_refresh(is_in_progress, now),
            // Limits and graces wait with the signals: they could only send more of them. Not those of a child that is paused for longer.
            Input::Clock if self.is_deferring() => {
                let is_paused = self.waits_for_paused();
                actions = self.on_deferral_clock(now);
                if !is_paused {
                    return actions;
                }
            }
            // The child is a zombie: drop the signals for it, keep those for its leftovers.
            Input::Ended(..) => self.deferred.retain(|action| is_for_tree(*action)),
            _ => {}
        }
        let mut decided = self.decide(input, now);
        decided.retain_mut(|action| !self.ends_processes(*action) || self.defer(action));
        actions.extend(decided);
        actions
    }

    /// True while a deferral waits for somebody to continue the child, which is not to end.
    fn waits_for_paused(&self) -> bool {
        self.is_paused() && !self.is_ending()
    }

    /// True for INT and USR2 as well: a claude without a terminal ends by them, in mid-refresh too.
    fn ends_processes(&self, action: Action) -> bool {
        match action {
            Action::SignalChild(Signal::SIGUSR2) => !self.handles_usr2,
            Action::SignalChild(signal) | Action::SignalTree(signal) => requests_end(signal) || signal == Signal::SIGKILL,
            action => action == Action::KillAfterTerm,
        }
    }

    /// Defers `action`. The first becomes a check, whose answer decides on those behind it, too; the others are left out.
    fn defer(&mut self, action: &mut Action) -> bool {
        let is_first = self.deferred.is_empty();
        // The same signal to the whole tree is sent once.
        if !(is_for_tree(*action) && self.deferred.contains(action)) {
            self.deferred.push(*action);
        }
        *action = Action::CheckRefreshLocks;
        is_first
    }

    fn on_refresh(&mut self, is_in_progress: bool, now: Instant) -> Vec<Action> {
        match self.span {
            // As if there were no guard: its kill grace has begun.
            None if !is_in_progress && !self.has_given_up => mem::take(&mut self.deferred),
            _ if !is_in_progress => self.end_deferral(now),
            None if self.is_deferring() => {
                self.span = Some(Span { end: now + SPAN, left: SPANS });
                vec![Action::Log(Notice::SignalDeferred)]
            }
            _ => Vec::new(),
        }
    }

    fn on_deferral_clock(&mut self, now: Instant) -> Vec<Action> {
        let Some(Span { end, left }) = self.span.filter(|span| now >= span.end) else { return Vec::new() };
        self.span = if was_frozen(end, now) || self.waits_for_paused() {
            Some(Span { end: now + SPAN, left })
        } else if left > 1 {
            Some(Span { end: end + SPAN, left: left - 1 })
        } else if mem::replace(&mut self.has_given_up, true) {
            return [vec![Action::GiveUpRefresh], self.end_deferral(now)].concat();
        } else {
            // Another may have begun meanwhile, and has its own time, once.
            self.span = None;
            return vec![Action::GiveUpRefresh, Action::CheckRefreshLocks];
        };
        vec![Action::CheckRefreshLocks] // nothing tells us of an owner that is killed, or stopped
    }

    fn end_deferral(&mut self, now: Instant) -> Vec<Action> {
        (self.span, self.has_given_up) = (None, false);
        self.restart_grace(now);
        mem::take(&mut self.deferred)
    }

    /// Counts the grace of what is deferred from `now`, at which it goes out.
    fn restart_grace(&mut self, now: Instant) {
        match self.phase {
            Phase::Terminating => self.restart_kill_grace(now),
            Phase::Killing | Phase::Killed => self.restart_give_up_deadline(now),
            _ => {}
        }
    }
}

fn is_for_tree(action: Action) -> bool {
    matches!(action, Action::SignalTree(_) | Action::KillAfterTerm)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{PROCESS, case};
    use super::super::{Leftovers, PolicyConfig, TreeState};
    use super::*;
    use crate::outcome::Outcome;

    struct Run {
        policy: Policy,
        start: Instant,
        /// Number of the refresh that is in progress.
        refresh: Option<u64>,
        /// Number of the one that signals are deferred for, and of the one that was given up.
        deferred_for: Option<u64>,
        given_up: Option<u64>,
    }

    impl Run {
        /// A run with a hard limit of 60 s and a kill grace of 5 s.
        fn new() -> Self {
            Self::of(|_| {})
        }

        fn of(change: impl FnOnce(&mut PolicyConfig)) -> Self {
            let case = case(change);
            Self { policy: case.policy, start: case.start, refresh: None, deferred_for: None, given_up: None }
        }

        fn during_refresh() -> Self {
            Self { refresh: Some(1), ..Self::new() }
        }

        /// Actions for `input`, with all that is due before it while signals are deferred.
        fn at(&mut self, seconds: u64, input: Input) -> Vec<Action> {
            while let Some(due) = self.deadline().filter(|due| self.policy.is_deferring() && *due < seconds) {
                assert_eq!(self.on_waking(due, Input::Clock), [], "{due}");
            }
            self.on_waking(seconds, input)
        }

        /// Actions for `input`, a check being answered at once, as by the supervisor.
        fn on_waking(&mut self, seconds: u64, input: Input) -> Vec<Action> {
            let now = self.start + Duration::from_secs(seconds);
            let mut all = Vec::new();
            let mut actions = self.policy.on(input, now);
            actions.reverse();
            while let Some(action) = actions.pop() {
                match action {
                    Action::CheckRefreshLocks => {
                        let found = self.refresh.filter(|refresh| Some(*refresh) != self.given_up);
                        self.deferred_for = self.deferred_for.filter(|_| found.is_some()).or(found);
                        actions.extend(self.policy.on(Input::Refresh(found.is_some()), now).into_iter().rev());
                    }
                    Action::GiveUpRefresh => {
                        self.given_up = self.deferred_for.take();
                        all.push(action);
                    }
                    _ => all.push(action),
                }
            }
            all
        }

        fn signal(&mut self, seconds: u64, signal: Signal) -> Vec<Action> {
            self.at(seconds, Input::Signal(signal, PROCESS))
        }

        fn refresh_ends(&mut self, seconds: u64) -> Vec<Action> {
            self.at(seconds, Input::Refresh(true));
            self.refresh = None;
            self.at(seconds, Input::Refresh(false))
        }

        fn deadline(&self) -> Option<u64> {
            self.policy.next_deadline().map(|at| (at - self.start).as_secs())
        }
    }

    const TERM: Action = Action::SignalChild(Signal::SIGTERM);
    const TERM_TREE: Action = Action::SignalTree(Signal::SIGTERM);
    const REST: [Action; 2] = [TERM_TREE, Action::Log(Notice::ChildStays)];
    const KILL_TREE: Action = Action::KillAfterTerm;
    const DEFERRED: Action = Action::Log(Notice::SignalDeferred);

    #[test]
    fn without_a_refresh_no_signal_is_deferred() {
        let mut run = Run::new();
        assert_eq!(run.signal(1, Signal::SIGTERM), [TERM]);
        assert_eq!(run.deadline(), Some(3));
        assert_eq!(run.at(4, Input::Clock), REST);
        assert_eq!(run.at(6, Input::Clock), [KILL_TREE, Action::Log(Notice::KillGraceExpired)]);
        let mut stopped = Run::new();
        stopped.at(1, Input::Stopped(Signal::SIGSTOP));
        assert_eq!(stopped.signal(2, Signal::SIGTERM), [TERM, Action::SignalChild(Signal::SIGCONT)]);
    }

    #[test]
    fn kill_is_not_postponed_by_more_requests() {
        let mut run = Run::new();
        run.at(1, Input::Ended(Outcome::Exited(0), TreeState::Alive));
        for second in 2..6 {
            assert_eq!(run.at(second, Input::TreeChanged(TreeState::Alive)), [Action::SignalTree(Signal::SIGTERM)]);
            assert_eq!(run.deadline(), Some(6), "{second}");
        }
        assert_eq!(run.at(6, Input::Clock), [KILL_TREE, Action::Log(Notice::KillGraceExpired)]);
        let mut asked = Run::new();
        for (second, signal) in [(1, Signal::SIGTERM), (3, Signal::SIGHUP), (5, Signal::SIGQUIT)] {
            assert_eq!(asked.signal(second, signal), [Action::SignalChild(signal)]);
            asked.at(4, Input::Clock);
            assert!(asked.deadline().is_some_and(|at| at <= 6), "{signal}");
        }
    }

    #[test]
    fn deferred_request_restarts_the_kill_grace() {
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            let mut run = Run::during_refresh();
            assert_eq!(run.signal(1, signal), [DEFERRED], "{signal}");
            assert_eq!(run.deadline(), Some(6), "a look at the clock");
            assert_eq!(run.at(8, Input::Clock), [], "no kill grace runs meanwhile");
            assert_eq!(run.at(9, Input::Refresh(true)), [], "logged once");
            assert_eq!(run.refresh_ends(10), [Action::SignalChild(signal)]);
            assert_eq!(run.deadline(), Some(12));
            run.at(13, Input::Clock);
            assert_eq!(run.deadline(), Some(15));
        }
        let mut without_grace = Run { refresh: Some(1), ..Run::of(|config| config.kill_grace = None) };
        without_grace.signal(1, Signal::SIGTERM);
        assert_eq!((without_grace.refresh_ends(10), without_grace.deadline()), (vec![TERM], Some(12)));
    }

    #[test]
    fn limits_and_the_kill_after_them_are_deferred() {
        let mut run = Run::during_refresh();
        assert_eq!(run.at(60, Input::Clock), [DEFERRED, Action::Log(Notice::LimitExpired(Outcome::HardLimit))]);
        assert_eq!(run.refresh_ends(61), [TERM]);
        run.at(64, Input::Clock);
        run.refresh = Some(1);
        assert_eq!(run.at(66, Input::Clock), [DEFERRED, Action::Log(Notice::KillGraceExpired)]);
        assert_eq!(run.refresh_ends(70), [KILL_TREE]);
        assert_eq!(run.deadline(), Some(71), "newcomers have their second from then on");
        let mut kept = Run::of(|config| config.leftovers = Leftovers::Keep);
        assert_eq!(kept.at(1, Input::Refresh(true)), [], "nothing is deferred");
        assert_eq!(kept.signal(2, Signal::SIGTERM), [TERM]);
        kept.refresh = Some(1);
        assert_eq!(kept.signal(3, Signal::SIGTERM), [DEFERRED, Action::Log(Notice::SecondTerm)]);
        assert_eq!(kept.refresh_ends(4), [TERM, Action::SignalChild(Signal::SIGKILL)]);
    }

    #[test]
    fn term_hurries_leftovers_that_are_spared() {
        let mut run = Run::during_refresh();
        run.at(1, Input::Ended(Outcome::Exited(0), TreeState::Alive));
        assert_eq!(run.signal(2, Signal::SIGTERM), []);
        assert_eq!(run.refresh_ends(4), [TERM_TREE]);
        assert_eq!(run.deadline(), Some(5));
    }

    #[test]
    fn one_refresh_defers_for_15_seconds_once() {
        let mut run = Run::during_refresh();
        run.signal(1, Signal::SIGTERM);
        assert_eq!(run.at(15, Input::Clock), []);
        assert_eq!(run.at(16, Input::Clock), [Action::GiveUpRefresh, TERM]);
        run.refresh = None;
        assert_eq!(run.signal(17, Signal::SIGHUP), [Action::SignalChild(Signal::SIGHUP)]);
        assert_eq!(run.deadline(), Some(18), "its end, seen late, restarts no grace");
        assert_eq!(run.at(20, Input::Clock), REST);
        assert_eq!(run.at(21, Input::Clock), [KILL_TREE, Action::Log(Notice::KillGraceExpired)]);
        let mut in_a_row = Run::during_refresh();
        in_a_row.signal(1, Signal::SIGTERM);
        in_a_row.refresh = Some(2);
        assert_eq!(in_a_row.at(10, Input::Refresh(true)), []);
        assert_eq!(in_a_row.at(16, Input::Clock), [Action::GiveUpRefresh, DEFERRED], "it may be ours");
        in_a_row.refresh = Some(3);
        assert_eq!(in_a_row.at(31, Input::Clock), [Action::GiveUpRefresh, TERM], "but not for ever");
        assert_eq!(in_a_row.deadline(), Some(33), "with a kill grace of its own");
        let mut done = Run::during_refresh();
        done.signal(1, Signal::SIGTERM);
        done.refresh = Some(2);
        done.at(16, Input::Clock);
        assert_eq!((done.refresh_ends(18), done.deadline()), (vec![TERM], Some(20)));
        let mut another = Run::during_refresh();
        another.signal(1, Signal::SIGINT);
        another.at(16, Input::Clock);
        let int = Action::SignalChild(Signal::SIGINT);
        assert_eq!(another.signal(17, Signal::SIGINT), [int], "the same one has had its time");
        another.refresh = Some(2);
        assert_eq!(
            another.signal(18, Signal::SIGINT),
            [DEFERRED],
            "a new one has 15 s of its own, though nobody saw the end of the first"
        );
        assert_eq!(another.refresh_ends(20), [int]);
        another.refresh = Some(3);
        assert_eq!(another.signal(32, Signal::SIGTERM), [DEFERRED]);
    }

    #[test]
    fn time_in_a_freeze_is_no_time_to_refresh() {
        let mut run = Run::during_refresh();
        run.signal(1, Signal::SIGTERM);
        // Whenever it ends, and however often.
        for thawed in [15, 60] {
            assert_eq!(run.on_waking(thawed, Input::Clock), []);
        }
        assert_eq!(run.at(74, Input::Clock), []);
        assert_eq!(run.at(75, Input::Clock), [Action::GiveUpRefresh, TERM]);
        let mut at_last = Run::during_refresh();
        at_last.signal(1, Signal::SIGTERM);
        assert_eq!(at_last.at(15, Input::Clock), []);
        assert_eq!((at_last.on_waking(17, Input::Clock), at_last.deadline()), (vec![], Some(22)));
        let mut paused = Run::during_refresh();
        paused.at(1, Input::Stopped(Signal::SIGSTOP));
        assert_eq!(paused.signal(2, Signal::SIGINT), [DEFERRED]);
        assert_eq!(paused.at(60, Input::Continued), [], "a request that it could not see");
        assert_eq!(paused.at(71, Input::Clock), []);
        assert_eq!(paused.at(72, Input::Clock), [Action::GiveUpRefresh, Action::SignalChild(Signal::SIGINT)]);
        let mut limited = Run::during_refresh();
        limited.at(50, Input::Stopped(Signal::SIGSTOP));
        assert_eq!(limited.signal(51, Signal::SIGINT), [DEFERRED]);
        let limit = [Action::SignalChild(Signal::SIGCONT), Action::Log(Notice::LimitExpired(Outcome::HardLimit))];
        assert_eq!(limited.at(61, Input::Clock), limit, "no request removes a limit");
        assert_eq!(limited.at(76, Input::Clock), [Action::GiveUpRefresh, Action::SignalChild(Signal::SIGINT), TERM]);
        let mut done = Run::during_refresh();
        done.signal(1, Signal::SIGTERM);
        done.refresh = None;
        assert_eq!(done.on_waking(40, Input::Refresh(false)), [TERM], "what was over in the meantime is not waited for");
    }

    #[test]
    fn second_term_is_deferred_behind_the_first() {
        let mut run = Run::during_refresh();
        assert_eq!(run.signal(1, Signal::SIGTERM), [DEFERRED]);
        assert_eq!(run.signal(2, Signal::SIGTERM), [Action::Log(Notice::SecondTerm)]);
        assert_eq!(run.refresh_ends(3), [TERM, TERM, TERM_TREE]);
    }

    #[test]
    fn signals_that_end_nobody_pass() {
        let mut run = Run::during_refresh();
        run.at(1, Input::Stopped(Signal::SIGSTOP));
        assert_eq!(
            run.signal(2, Signal::SIGTERM),
            [DEFERRED, Action::SignalChild(Signal::SIGCONT)],
            "it has to go on to finish"
        );
        run.policy.handles_usr2 = true;
        for signal in [Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGCONT] {
            assert_eq!(run.signal(3, signal), [Action::SignalChild(signal)]);
        }
        assert_eq!(run.signal(3, Signal::SIGUSR1), [Action::Report]);
    }

    #[test]
    fn usr2_is_deferred_for_a_child_that_would_end_by_it() {
        let mut run = Run::during_refresh();
        assert_eq!(run.signal(1, Signal::SIGUSR2), [DEFERRED]);
        assert_eq!(run.refresh_ends(2), [Action::SignalChild(Signal::SIGUSR2)]);
        assert_eq!(run.deadline(), Some(60), "that of the hard limit: it is no request to end");
    }

    #[test]
    fn end_of_child_drops_its_signals_alone() {
        let mut alone = Run::during_refresh();
        alone.signal(1, Signal::SIGTERM);
        assert_eq!(alone.at(2, Input::Ended(Outcome::Exited(0), TreeState::Empty)), []);
        assert_eq!(alone.policy.result(), Some(Outcome::Exited(0)));
        let mut leaving = Run::during_refresh();
        leaving.signal(1, Signal::SIGTERM);
        let ended = Input::Ended(Outcome::Exited(0), TreeState::Alive);
        assert_eq!(leaving.at(2, ended), [Action::Log(Notice::Leftovers(Leftovers::Kill))]);
        assert_eq!(leaving.at(3, Input::TreeChanged(TreeState::Alive)), []);
        assert_eq!(leaving.refresh_ends(4), [Action::SignalTree(Signal::SIGTERM)]);
        assert_eq!(leaving.deadline(), Some(9));
        assert_eq!(leaving.at(9, Input::TreeChanged(TreeState::Empty)), []);
    }
}
