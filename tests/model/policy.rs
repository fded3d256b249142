//! The product's own policy, with a world around it that does whatever a child, its leftovers, a refresh, a caller and the
//! clock can do, in every order. A step is one thing that happens, and all that the policy wants done about it; the actions do
//! what `supervisor::run` does with them.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use claude_run::claude::frames::FrameEvent;
use claude_run::config::settings::Leftovers;
use claude_run::outcome::Outcome;
use claude_run::supervisor::policy::{Action, Group, Input, MAX_DEFERRAL, Notice, Policy, PolicyConfig, SPAN, TreeState};
use claude_run::sys::signal::{SigSet, Signal, SignalSource};
use stateright::{Checker, Model, Property};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

const IDLE_LIMIT: Duration = Duration::from_secs(15);
const HARD_LIMIT: Duration = Duration::from_secs(20);
const RESULT_GRACE: Duration = Duration::from_secs(5);
const TASK_GRACE: Duration = Duration::from_secs(10);
const KILL_GRACE: Duration = Duration::from_secs(4);

/// Longest time from the child's TERM to that of the rest of its tree.
const REST_DELAY: Duration = Duration::from_millis(2500);

/// Between the TERM and the KILL of whoever has come after the others had their TERM.
const SHORT_GRACE: Duration = Duration::from_secs(1);

/// Where time ends. By then everything has been over for long.
const END: Duration = Duration::from_secs(90);

const PASS: Duration = Duration::from_secs(3);

/// Longer than any signal is deferred.
const FREEZE: Duration = Duration::from_secs(17);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Running,
    Stopped,
    /// Killed; its SIGCHLD has not come yet.
    Dying,
    Dead,
}

/// What is below the child, once it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Below {
    Nobody,
    /// It ends by TERM, by itself or never, and by KILL.
    Somebody,
    /// It cannot be signalled.
    OutOfReach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Newcomer {
    None,
    WithoutTerm,
    TermAt(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    policy: Policy,
    leftovers: Leftovers,
    now: Duration,
    child: Life,
    below: Below,
    /// Whether the child has been sent a TERM, and when the first went out.
    term_at: Option<Duration>,
    /// Those below it have been sent one.
    rest_has_term: bool,
    /// One of them has been started since.
    newcomer: Newcomer,
    hung_up: bool,
    was_stopped: bool,
    /// Since when the child is silent, and not stopped.
    quiet_since: Duration,
    is_in_turn: bool,
    /// TERMs that were sent to us.
    terms: u8,
    /// When the child or its tree was sent KILL.
    kill_at: Option<Duration>,
    /// Since when a refresh is under way.
    refresh_since: Option<Duration>,
    refreshes: u8,
    /// It has had its time, and nothing is deferred for it any more.
    is_given_up: bool,
    /// When all were let go on that had been frozen in its midst.
    thawed_at: Option<Duration>,
    /// Since when signals are deferred for it: once for each refresh.
    deferred_since: Option<Duration>,
    has_deferred: bool,
    passed: u8,
    frames: u8,
    interrupted: bool,
    lost_lock: bool,
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Until the next deadline of the policy, or the end of a deferral.
    Wait,
    /// For three seconds before it.
    Pass,
    Term,
    /// A HUP, which the child ignores.
    HangUp,
    Interrupt,
    ChildEnds(Outcome),
    ChildStops,
    ChildContinues,
    LeftoverEnds,
    LeftoverForks,
    RefreshBegins,
    RefreshEnds,
    /// All are frozen for a while.
    Freeze,
    LoseLock,
    Print(FrameEvent),
}

/// One shape of a run.
#[derive(Clone, Copy, Debug)]
struct Shape {
    leftovers: Leftovers,
    group: Group,
    below: Below,
    kill_grace: bool,
}

impl World {
    fn new(shape: Shape) -> Self {
        let config = PolicyConfig {
            hard_limit: Some(HARD_LIMIT),
            idle_limit: (shape.group == Group::Shared).then_some(IDLE_LIMIT),
            result_grace: Some(RESULT_GRACE),
            task_grace: Some(TASK_GRACE),
            kill_grace: shape.kill_grace.then_some(KILL_GRACE),
            leftovers: shape.leftovers,
            streams_input: false,
            group: shape.group,
            ignored: SigSet::empty(),
        };
        Self {
            policy: Policy::new(config, *START),
            leftovers: shape.leftovers,
            now: Duration::ZERO,
            child: Life::Running,
            below: shape.below,
            term_at: None,
            rest_has_term: false,
            newcomer: Newcomer::None,
            hung_up: false,
            was_stopped: false,
            quiet_since: Duration::ZERO,
            is_in_turn: true,
            terms: 0,
            kill_at: None,
            refresh_since: None,
            refreshes: 0,
            is_given_up: false,
            thawed_at: None,
            deferred_since: None,
            has_deferred: false,
            passed: 0,
            frames: 0,
            interrupted: false,
            lost_lock: false,
            broken: None,
        }
    }

    fn lives(&self) -> bool {
        matches!(self.child, Life::Running | Life::Stopped)
    }

    fn tree(&self) -> TreeState {
        if self.below == Below::Nobody { TreeState::Empty } else { TreeState::Alive }
    }

    fn ensure(&mut self, holds: bool, promise: &'static str) {
        if !holds {
            self.broken.get_or_insert(promise);
        }
    }

    fn happens(&mut self, input: Input) {
        for action in self.policy.on(input, *START + self.now) {
            self.act(action);
        }
        if self.policy.is_deferring() && self.refresh_since.is_some() {
            self.deferred_since = self.deferred_since.or(Some(self.now));
            self.has_deferred = true;
        }
    }

    fn act(&mut self, action: Action) {
        let over = self.policy.result().is_some();
        self.ensure(!over || matches!(action, Action::Log(_) | Action::Stop(_)), "nothing is done after the end");
        let ends_processes = match action {
            Action::SignalChild(signal) | Action::SignalTree(signal) => {
                matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGKILL)
            }
            action => action == Action::KillAfterTerm,
        };
        let patient = self.deferred_since.is_some_and(|since| self.now >= since + MAX_DEFERRAL)
            && self.thawed_at.is_none_or(|at| self.now >= at + SPAN);
        let is_safe = !ends_processes || self.refresh_since.is_none() || patient;
        self.ensure(is_safe, "a refresh is spared for 15 s, and goes on after a freeze");
        match action {
            Action::SignalChild(signal) => {
                self.ensure(self.child != Life::Dead, "a child that has ended is not signalled");
                match signal {
                    Signal::SIGKILL => self.kill_child(),
                    Signal::SIGCONT if self.child == Life::Stopped => self.child = Life::Running,
                    Signal::SIGTERM => self.term_at = self.term_at.or(Some(self.now)),
                    _ => {}
                }
            }
            Action::SignalTree(Signal::SIGKILL) => {
                let is_over = match self.newcomer {
                    Newcomer::None => true,
                    Newcomer::WithoutTerm => self.below != Below::Somebody,
                    Newcomer::TermAt(at) => self.now >= at + SHORT_GRACE,
                };
                self.ensure(is_over, "a newcomer gets TERM, and a second to follow it");
                self.kill_tree(true);
            }
            Action::KillAfterTerm => {
                if self.newcomer == Newcomer::WithoutTerm {
                    self.newcomer = Newcomer::TermAt(self.now);
                }
                self.kill_tree(self.newcomer == Newcomer::None);
            }
            Action::SignalTree(_) => {
                self.rest_has_term = true;
                if self.lives() {
                    (self.term_at, self.child) = (self.term_at.or(Some(self.now)), Life::Running);
                }
            }
            Action::Log(Notice::LimitExpired(Outcome::IdleLimit)) => {
                let quiet = self.child != Life::Stopped && self.now >= self.quiet_since + IDLE_LIMIT;
                self.ensure(quiet, "the idle limit counts from the last sign of life");
            }
            Action::Log(Notice::LimitExpired(Outcome::HungAfterResult { .. })) => {
                self.ensure(!self.is_in_turn, "a turn that works is no claude that hangs");
            }
            Action::CheckRefreshLocks => {
                self.happens(Input::Refresh(self.refresh()));
            }
            Action::GiveUpRefresh => self.is_given_up = true,
            Action::Stop(_) | Action::Report | Action::Log(_) => {}
        }
    }

    fn kill_tree(&mut self, is_whole: bool) {
        let is_first = self.kill_at.is_none();
        self.kill_at = self.kill_at.or(Some(self.now));
        if self.lives() {
            self.kill_child();
        }
        self.ensure(self.below == Below::Nobody || self.rest_has_term, "nobody gets KILL without a TERM before it");
        // Whom it reaches is gone at once, and the kernel tells.
        let had_somebody = self.below == Below::Somebody;
        if had_somebody && is_whole {
            self.below = Below::Nobody;
        }
        if had_somebody && (is_whole || is_first) && self.child == Life::Dead {
            self.happens(Input::TreeChanged(self.tree()));
        }
    }

    fn kill_child(&mut self) {
        if self.lives() {
            self.child = Life::Dying;
        }
        self.kill_at = self.kill_at.or(Some(self.now));
        // A killed one refreshes nothing any more.
        self.refresh_since = None;
        // Never without a TERM before it. One that ignored a HUP gets its TERM half the grace later; a second TERM ends the grace.
        let grace = match (self.thawed_at, self.hung_up) {
            (Some(_), _) => SHORT_GRACE, // the grace of the HUP went by in the freeze
            (None, true) => KILL_GRACE / 2,
            (None, false) => KILL_GRACE,
        };
        let is_over = self.term_at.is_some_and(|at| self.now >= at + grace || self.terms > 1);
        self.ensure(is_over, "KILL comes the kill grace after the TERM");
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Wait => {
                // Through all spans of a deferral: there is too much to explore between them.
                let was_deferring = self.policy.is_deferring();
                loop {
                    let next = self.policy.next_deadline().map(|at| at - *START);
                    self.now = next.unwrap_or(END).clamp(self.now, END);
                    self.happens(Input::Clock);
                    if !was_deferring || !self.policy.is_deferring() {
                        break;
                    }
                }
                // Deferred signals have deferred the limits: then the loop comes back at once, and once only.
                if self.policy.next_deadline().is_some_and(|next| next <= *START + self.now) {
                    self.happens(Input::Clock);
                }
                let next = self.policy.next_deadline();
                self.ensure(next.is_none_or(|next| next > *START + self.now), "a deadline that has passed is no deadline");
            }
            Step::Pass => {
                self.passed += 1;
                self.now += PASS;
            }
            Step::Term => {
                self.terms += 1;
                self.now += Duration::from_millis(200); // not the pair that timeout(1) sends
                self.happens(Input::Signal(Signal::SIGTERM, SignalSource::Process(4711)));
            }
            Step::HangUp => {
                self.hung_up = true;
                self.happens(Input::Signal(Signal::SIGHUP, SignalSource::Process(4711)));
            }
            Step::Interrupt => {
                self.interrupted = true;
                self.happens(Input::Signal(Signal::SIGINT, SignalSource::Process(4711)));
            }
            Step::ChildEnds(ending) => {
                self.child = Life::Dead;
                self.refresh_since = None;
                self.happens(Input::Ended(ending, self.tree()));
            }
            Step::ChildStops => {
                (self.child, self.was_stopped) = (Life::Stopped, true);
                self.happens(Input::Stopped(Signal::SIGSTOP));
                let got_term = self.term_at.is_some() && !self.policy.is_deferring();
                self.ensure(!got_term || self.child != Life::Stopped, "a child that got TERM is not left stopped");
            }
            Step::ChildContinues => {
                (self.child, self.quiet_since) = (Life::Running, self.now);
                self.happens(Input::Continued);
            }
            Step::LeftoverEnds => {
                self.below = Below::Nobody;
                if self.child == Life::Dead {
                    self.happens(Input::TreeChanged(TreeState::Empty));
                }
            }
            Step::LeftoverForks => self.newcomer = Newcomer::WithoutTerm,
            Step::RefreshBegins => {
                (self.refresh_since, self.deferred_since) = (Some(self.now), None);
                self.is_given_up = false;
                self.refreshes += 1;
                self.look();
            }
            Step::RefreshEnds => {
                self.refresh_since = None;
                self.look();
            }
            Step::Freeze => {
                self.now += FREEZE;
                self.thawed_at = Some(self.now);
                self.happens(Input::Clock);
            }
            Step::LoseLock => {
                self.lost_lock = true;
                self.happens(Input::LockLost);
            }
            Step::Print(frame) => {
                self.frames += 1;
                match frame {
                    FrameEvent::Result { .. } => self.is_in_turn = false,
                    FrameEvent::TurnStarted => self.is_in_turn = true,
                    _ => {}
                }
                self.happens(Input::Frame(frame));
            }
        }
        let stopped = self.child == Life::Stopped && !self.policy.is_deferring();
        self.ensure(!stopped || self.term_at.is_none(), "a stopped child gets CONT with its TERM");
        let waits = self.below != Below::Nobody && self.lives() && !self.rest_has_term && !self.has_deferred;
        let is_overdue = waits && self.term_at.is_some_and(|at| self.now > at + REST_DELAY);
        self.ensure(!is_overdue || self.leftovers == Leftovers::Keep, "the rest of the tree gets TERM soon after the child");
    }

    fn refresh(&self) -> bool {
        self.refresh_since.is_some() && !self.is_given_up
    }

    /// The files are watched, but only while signals are deferred.
    fn look(&mut self) {
        if self.policy.is_deferring() {
            self.happens(Input::Refresh(self.refresh()));
        }
    }
}

impl Model for Shape {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(*self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.policy.result().is_some() || world.broken.is_some() {
            return;
        }
        if world.now < END && world.child != Life::Dying {
            steps.push(Step::Wait);
        }
        if world.passed < 1 && world.policy.next_deadline().is_none_or(|next| next > *START + world.now + PASS) {
            steps.push(Step::Pass);
        }
        if world.terms < 2 {
            steps.push(Step::Term);
        }
        if !world.interrupted && !world.hung_up {
            steps.push(if self.group == Group::Own { Step::HangUp } else { Step::Interrupt });
        }
        // In half of the shapes with a kill grace: it doubles what there is to explore.
        if !world.lost_lock && self.kill_grace && self.group == Group::Own {
            steps.push(Step::LoseLock);
        }
        match world.child {
            Life::Running => {
                steps.push(Step::ChildEnds(Outcome::Exited(3)));
                if !world.was_stopped {
                    steps.push(Step::ChildStops);
                }
                if world.frames < 2 {
                    let turn = if world.is_in_turn { FrameEvent::Other } else { FrameEvent::TurnStarted };
                    steps.extend([FrameEvent::Result { is_error: true }, turn].map(Step::Print));
                    // What a task changes, the length of a grace, has nothing to do with who is below.
                    if world.below == Below::Nobody {
                        steps.extend([FrameEvent::OpenTasks(1), FrameEvent::OpenTasks(0)].map(Step::Print));
                    }
                }
                // A second one only behind one that has had its time, and who is below has nothing to do with it.
                let has_had_time = world.deferred_since.is_some_and(|since| world.now >= since + MAX_DEFERRAL);
                let may_be_second = world.refreshes == 1 && world.below == Below::Nobody && has_had_time;
                match world.refresh_since {
                    None if world.refreshes == 0 || may_be_second => steps.push(Step::RefreshBegins),
                    None => {}
                    Some(_) => steps.push(Step::RefreshEnds),
                }
                // Who is below has nothing to do with it.
                if self.below == Below::Nobody && world.refresh() && world.refreshes == 1 && world.thawed_at.is_none() {
                    steps.push(Step::Freeze);
                }
            }
            Life::Stopped => steps.push(Step::ChildContinues),
            Life::Dying => steps.push(Step::ChildEnds(Outcome::Killed(9))),
            Life::Dead => {}
        }
        if world.below == Below::Somebody {
            steps.push(Step::LeftoverEnds);
            // In half of the shapes, as above.
            let can_come = world.rest_has_term && world.kill_at.is_none() && self.group == Group::Shared;
            if can_come && world.newcomer == Newcomer::None {
                steps.push(Step::LeftoverForks);
            }
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.take(step);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("every promise about a single step", |_, world| world.broken.is_none()),
            Property::<Self>::always("it is over only when the child is, and who is in reach", |shape, world| {
                let nobody = world.below != Below::Somebody || shape.leftovers == Leftovers::Keep;
                world.policy.result().is_none() || (world.child == Life::Dead && nobody)
            }),
            Property::<Self>::always("a limit is blamed only after its time", |_, world| match world.policy.result() {
                Some(Outcome::HardLimit) => world.now >= HARD_LIMIT,
                Some(Outcome::HungAfterResult { .. }) => world.now >= RESULT_GRACE && world.frames > 0,
                Some(Outcome::IdleLimit) => world.now >= IDLE_LIMIT,
                Some(Outcome::LockLost) => world.lost_lock,
                _ => true,
            }),
            Property::<Self>::always("nobody outlives the limit, the graces and the patience", |shape, world| {
                // Two patiences: one for the TERM, one for a refresh that begins before the KILL. A request behind the second refresh has a
                // grace of its own.
                let frozen = world.thawed_at.map_or(Duration::ZERO, |_| FREEZE + SPAN);
                let graces = KILL_GRACE * u32::from(world.refreshes.max(1));
                let last = HARD_LIMIT + 2 * MAX_DEFERRAL + graces + Duration::from_secs(1) + frozen;
                !shape.kill_grace || world.now <= last || world.kill_at.is_some() || !world.lives()
            }),
            Property::<Self>::always("every run is over in time, whatever KILL does not end", |shape, world| {
                !shape.kill_grace || world.now < END || world.policy.result().is_some() || world.child == Life::Dying
            }),
            Property::<Self>::sometimes("a limit ends a run", |_, world| {
                matches!(world.policy.result(), Some(Outcome::HardLimit))
            }),
            Property::<Self>::sometimes("a refresh is given up", |_, world| world.is_given_up),
            Property::<Self>::sometimes("a refresh is waited for", |_, world| {
                world.deferred_since.is_some_and(|since| world.now >= since + MAX_DEFERRAL)
            }),
        ]
    }
}

/// With `MODEL=all` in the environment, each shape; else each of its first three parts with one kill grace, which takes a third of
/// the time.
#[test]
fn no_order_of_events_breaks_a_promise_of_the_policy() {
    let all = std::env::var_os("MODEL").is_some_and(|which| which == "all");
    let mut shapes = Vec::new();
    for (first, leftovers) in [Leftovers::Kill, Leftovers::Keep].into_iter().enumerate() {
        for (second, group) in [Group::Own, Group::Shared].into_iter().enumerate() {
            for (third, below) in [Below::Nobody, Below::Somebody, Below::OutOfReach].into_iter().enumerate() {
                let chosen = (first + second + third) % 2 == 1;
                let graces = [true, false].into_iter().filter(|kill_grace| all || *kill_grace == chosen);
                shapes.extend(graces.map(|kill_grace| Shape { leftovers, group, below, kill_grace }));
            }
        }
    }
    let mut states = 0;
    for shape in shapes {
        let checker = shape.checker().threads(2).spawn_bfs().join();
        println!("{shape:?}: {} states", checker.unique_state_count());
        states += checker.unique_state_count();
        checker.assert_properties();
    }
    println!("{states} states in all");
    assert!(states > 100_000, "{states}");
}
