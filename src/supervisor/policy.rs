//! What to do when something happens to a run: pure, from (state, event, now) to actions and the next deadline. It knows
//! no process, no descriptor and no clock, so every order of events can be tried in no time.

use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::claude::frames::FrameEvent;
use crate::config::settings::{Leftovers, after};
use crate::events::SignalSource;
use crate::sys::signal::{DUPLICATE_WINDOW, FORWARDED, is_termination_request};

/// What a run has to keep to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PolicyConfig {
    /// From the start of the child.
    pub hard_limit: Option<Duration>,
    /// From the last byte on stdout or stderr to a TERM.
    pub idle_limit: Option<Duration>,
    /// From the last result frame, and every frame behind it, to a TERM.
    pub result_grace: Option<Duration>,
    /// The same while a background task is open.
    pub task_grace: Option<Duration>,
    /// From a TERM to the KILL.
    pub kill_grace: Option<Duration>,
    /// What becomes of those that outlive the child.
    pub leftovers: Leftovers,
    /// Which process group the child is in, and so what the terminal tells it without us.
    pub group: Group,
    /// Signals that were ignored when we started: passed on, but not ours to act upon.
    pub ignored: SigSet,
}

/// The child's process group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Its own: what comes from the terminal reaches us alone.
    Own,
    /// Ours: what comes from the terminal has reached the child before us.
    Shared,
}

/// How the child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Killed(i32),
}

/// Who is alive below us, the child's own remains not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Nobody.
    Empty,
    /// Somebody.
    Alive,
}

/// Whom a signal to the tree has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All that were there.
    All,
    /// Some; others may not be signalled by us.
    Some,
    /// There is somebody, but none that can be seen or that we may signal.
    Nobody,
}

/// What can happen to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A signal came in.
    Signal(Signal, SignalSource),
    /// The child has printed a frame.
    Frame(FrameEvent),
    /// This is when the child has last printed anything.
    LastOutput(Instant),
    /// The child was stopped by this signal.
    Stopped(Signal),
    /// The child was continued.
    Continued,
    /// The child has ended, and this is who is left.
    Ended(Ending, Tree),
    /// After the child's end, something has changed among those who are left.
    TreeChanged(Tree),
    /// A KILL was sent to the tree, and this is whom it found.
    Killed(Reach),
    /// It was looked whether a token refresh is under way below us.
    Refresh {
        /// One may be.
        may_be_under_way: bool,
    },
    /// The lock that the run depends on is gone.
    LockLost,
    /// Time has passed: a deadline may have.
    Clock,
}

/// What a run has to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send a signal to the child.
    SignalChild(Signal),
    /// Send a signal to everybody below us. TERM goes to nobody twice.
    SignalTree(Signal),
    /// Look whether a token refresh is under way, and come back with [`Input::Refresh`].
    LookForRefresh,
    /// Stop this process until it is continued.
    StopOurselves,
    /// The same, if there is a shell that would notice and could continue us.
    StopForShell,
    /// Print one line on the state of the run.
    Report,
    /// Tell the log.
    Tell(Notice),
}

/// What the log is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A limit has run out.
    Limit(Limit),
    /// The kill grace has run out.
    KillGrace,
    /// A second request to end cut the kill grace short.
    SecondTerm,
    /// The child has ended; others have not.
    Leftovers,
    /// Somebody below us cannot be ended by us.
    OutOfReach,
    /// A signal is held back, since a refresh may be under way.
    Refresh,
    /// That takes too long.
    RefreshTakesTooLong,
}

/// The state of a run. It can be compared and copied, so that all that can happen can be tried: `tests/model`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    rules: PolicyConfig,
    phase: Phase,
    stopped: bool,
    hard_deadline: Option<Instant>,
    idle_deadline: Option<Instant>,
    /// `is_error` of the last result frame.
    result: Option<bool>,
    open_tasks: u32,
    result_deadline: Option<Instant>,
    hit: Option<Limit>,
    /// When somebody has first sent us a TERM.
    first_term: Option<Instant>,
}

/// The limits at which a run is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// The hard limit.
    Hard,
    /// The idle limit.
    Idle,
    /// The result grace, or the task grace in its place.
    Result {
        /// The last result frame's `is_error`.
        is_error: bool,
    },
    /// The lock was lost.
    Lock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Running,
    /// It was told to end; at this time it is made to.
    Terminating {
        kill_at: Option<Instant>,
    },
    /// KILL was sent.
    Killed,
    /// It has ended; those that it left were told to, and at this time they are made to.
    TerminatingTree {
        ending: Ending,
        kill_at: Option<Instant>,
    },
    /// It has ended; those that it left were sent KILL. Some were out of reach: at this time the others are looked for
    /// again. If there is nobody else by `give_up_at`, they are given up.
    KillingTree {
        ending: Ending,
        look_at: Option<Instant>,
        give_up_at: Option<Instant>,
    },
    /// Nothing of it is left, or nothing that is ours to end.
    Finished(Ending),
}

/// How long somebody whom we cannot see or signal may still take to disappear.
const OUT_OF_REACH_GRACE: Duration = Duration::from_secs(1);

impl Policy {
    /// A run whose child was started at `now`.
    pub fn new(rules: PolicyConfig, now: Instant) -> Self {
        let (hard_deadline, idle_deadline) = (after(now, rules.hard_limit), after(now, rules.idle_limit));
        Self {
            rules,
            phase: Phase::Running,
            stopped: false,
            hard_deadline,
            idle_deadline,
            result: None,
            open_tasks: 0,
            result_deadline: None,
            hit: None,
            first_term: None,
        }
    }

    /// When to come back with [`Input::Clock`] if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running => [self.hard_deadline, self.idle_deadline, self.result_deadline].into_iter().flatten().min(),
            Phase::Terminating { kill_at, .. } | Phase::TerminatingTree { kill_at, .. } => kill_at,
            Phase::KillingTree { look_at, .. } => look_at,
            Phase::Killed | Phase::Finished(_) => None,
        }
    }

    /// Whether background tasks of the child are open, so that the task grace counts.
    pub fn has_open_tasks(&self) -> bool {
        self.open_tasks > 0
    }

    /// Once the run is over: how the child ended, and the limit at which it was ended.
    pub fn result(&self) -> Option<(Ending, Option<Limit>)> {
        match self.phase {
            Phase::Finished(ending) => Some((ending, self.hit)),
            _ => None,
        }
    }

    /// What to do about `happening` at `now`.
    pub fn on(&mut self, happening: Input, now: Instant) -> Vec<Action> {
        match happening {
            Input::Signal(signal, sender) => self.on_signal(signal, sender, now),
            Input::Frame(sighting) => {
                self.on_frame(sighting, now);
                Vec::new()
            }
            Input::LastOutput(at) => {
                self.idle_deadline = after(at, self.rules.idle_limit).max(self.idle_deadline);
                Vec::new()
            }
            Input::Stopped(signal) => self.on_stopped(signal),
            Input::Continued => {
                self.stopped = false;
                Vec::new()
            }
            Input::Ended(ending, tree) => self.on_ended(ending, tree, now),
            Input::TreeChanged(tree) => self.on_tree_changed(tree),
            Input::Killed(reach) => self.on_killed(reach, now),
            Input::Refresh { .. } => Vec::new(), // for `RefreshGuard`, which stands before us
            Input::LockLost => self.on_lock_lost(now),
            Input::Clock => self.on_clock(now),
        }
    }

    fn on_signal(&mut self, signal: Signal, sender: SignalSource, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match signal {
            Signal::SIGUSR1 => actions.push(Action::Report),
            Signal::SIGTSTP => {
                if self.is_running_child() {
                    actions.push(Action::SignalChild(Signal::SIGTSTP));
                }
                if !self.rules.ignored.contains(Signal::SIGTSTP) {
                    actions.push(Action::StopOurselves);
                }
            }
            Signal::SIGTERM if self.first_term.is_some_and(|first| now < first + DUPLICATE_WINDOW) => {}
            _ if FORWARDED.contains(&signal) => {
                if self.is_running_child() && self.reaches_only_us(signal, sender) {
                    actions.push(Action::SignalChild(signal));
                }
                if is_termination_request(signal) && self.is_for_us(signal, sender) {
                    actions.extend(self.on_request_to_end(signal, now));
                }
            }
            _ => {}
        }
        actions
    }

    /// In a group of its own, the child hears only what we pass on. In ours, the terminal has told it already, and what a
    /// process has sent may have gone to us alone; a CONT, though, is needed only by a child that is stopped, and a
    /// shell's `fg` has sent it to both.
    fn reaches_only_us(&self, signal: Signal, sender: SignalSource) -> bool {
        match self.rules.group {
            Group::Own => true,
            Group::Shared => matches!(sender, SignalSource::Process(_)) && (signal != Signal::SIGCONT || self.stopped),
        }
    }

    /// A signal that our caller had ignored asks nothing of us, as with nohup(1). Nor does the QUIT key where the child
    /// hears it, too: what it means there is the child's affair.
    fn is_for_us(&self, signal: Signal, sender: SignalSource) -> bool {
        let a_key_for_the_child =
            self.rules.group == Group::Shared && signal == Signal::SIGQUIT && sender == SignalSource::Kernel;
        !self.rules.ignored.contains(signal) && !a_key_for_the_child
    }

    fn on_request_to_end(&mut self, signal: Signal, now: Instant) -> Vec<Action> {
        let again = signal == Signal::SIGTERM && self.first_term.is_some();
        if signal == Signal::SIGTERM {
            self.first_term.get_or_insert(now);
        }
        match self.phase {
            Phase::Running => {
                self.phase = Phase::Terminating { kill_at: after(now, self.rules.kill_grace) };
                // Forwarded by now; a stopped child hears it only once it is continued.
                self.continue_if_stopped()
            }
            Phase::Terminating { .. } if again => vec![self.kill_child(), Action::Tell(Notice::SecondTerm)],
            Phase::TerminatingTree { ending, .. } if again => vec![self.clear(ending), Action::Tell(Notice::SecondTerm)],
            _ => Vec::new(),
        }
    }

    fn on_frame(&mut self, sighting: FrameEvent, now: Instant) {
        match sighting {
            FrameEvent::Result { is_error } => self.result = Some(is_error),
            FrameEvent::OpenTasks(count) => self.open_tasks = count,
            FrameEvent::Other => {}
        }
        if self.result.is_some() {
            let grace = if self.open_tasks > 0 { self.rules.task_grace } else { self.rules.result_grace };
            self.result_deadline = after(now, grace);
        }
    }

    fn on_stopped(&mut self, signal: Signal) -> Vec<Action> {
        self.stopped = true;
        match self.phase {
            // It was stopped just before it was told to end.
            Phase::Terminating { .. } => self.continue_if_stopped(),
            // It has sent that to itself alone, though it is in our group: a shell above waits for us to be stopped.
            Phase::Running if self.rules.group == Group::Shared && signal == Signal::SIGTSTP => vec![Action::StopForShell],
            _ => Vec::new(),
        }
    }

    fn on_ended(&mut self, ending: Ending, tree: Tree, now: Instant) -> Vec<Action> {
        let was_killed = self.phase == Phase::Killed;
        if tree == Tree::Empty || self.rules.leftovers == Leftovers::Keep {
            self.phase = Phase::Finished(ending);
            return Vec::new();
        }
        if was_killed {
            return vec![self.clear(ending)];
        }
        self.phase = Phase::TerminatingTree { ending, kill_at: after(now, self.rules.kill_grace) };
        vec![Action::SignalTree(Signal::SIGTERM), Action::Tell(Notice::Leftovers)]
    }

    fn on_tree_changed(&mut self, tree: Tree) -> Vec<Action> {
        let (Phase::TerminatingTree { ending, .. } | Phase::KillingTree { ending, .. }) = self.phase else { return Vec::new() };
        match (tree, self.phase) {
            (Tree::Empty, _) => {
                self.phase = Phase::Finished(ending);
                Vec::new()
            }
            // Whoever was forked while we looked is an orphan by now, and is found on this second look.
            (Tree::Alive, Phase::TerminatingTree { .. }) => vec![Action::SignalTree(Signal::SIGTERM)],
            (Tree::Alive, _) => vec![Action::SignalTree(Signal::SIGKILL)],
        }
    }

    fn on_killed(&mut self, reach: Reach, now: Instant) -> Vec<Action> {
        let Phase::KillingTree { ending, look_at, give_up_at } = &mut self.phase else { return Vec::new() };
        let in_a_moment = after(now, Some(OUT_OF_REACH_GRACE));
        // The end of a process whose parent is out of reach is told to that parent, not to us: we have to look.
        *look_at = if reach == Reach::All { None } else { in_a_moment };
        *give_up_at = if reach == Reach::Nobody { give_up_at.or(in_a_moment) } else { None };
        if give_up_at.is_some_and(|give_up_at| now >= give_up_at) {
            self.phase = Phase::Finished(*ending);
            return vec![Action::Tell(Notice::OutOfReach)];
        }
        Vec::new()
    }

    fn on_clock(&mut self, now: Instant) -> Vec<Action> {
        if self.next_deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        match self.phase {
            Phase::Running => {
                let has_come = |deadline: Option<Instant>| deadline.is_some_and(|deadline| now >= deadline);
                let limit = match self.result {
                    _ if has_come(self.hard_deadline) => Limit::Hard,
                    Some(is_error) if has_come(self.result_deadline) => Limit::Result { is_error },
                    _ => Limit::Idle,
                };
                self.end_at(limit, now)
            }
            Phase::Terminating { .. } => vec![self.kill_child(), Action::Tell(Notice::KillGrace)],
            Phase::TerminatingTree { ending, .. } => vec![self.clear(ending), Action::Tell(Notice::KillGrace)],
            Phase::KillingTree { ref mut look_at, .. } => {
                *look_at = None;
                vec![Action::SignalTree(Signal::SIGKILL)]
            }
            Phase::Killed | Phase::Finished(_) => Vec::new(),
        }
    }

    /// A child that is ending anyway goes on to.
    fn on_lock_lost(&mut self, now: Instant) -> Vec<Action> {
        if self.phase == Phase::Running { self.end_at(Limit::Lock, now) } else { Vec::new() }
    }

    fn end_at(&mut self, limit: Limit, now: Instant) -> Vec<Action> {
        self.hit = Some(limit);
        self.phase = Phase::Terminating { kill_at: after(now, self.rules.kill_grace) };
        let mut actions = vec![Action::SignalChild(Signal::SIGTERM)];
        actions.extend(self.continue_if_stopped());
        actions.push(Action::Tell(Notice::Limit(limit)));
        actions
    }

    /// The signal that asks for an end goes out only now.
    pub(super) fn restart_kill_grace(&mut self, now: Instant) {
        if let Phase::Terminating { kill_at } | Phase::TerminatingTree { kill_at, .. } = &mut self.phase {
            *kill_at = after(now, self.rules.kill_grace);
        }
    }

    fn kill_child(&mut self) -> Action {
        self.phase = Phase::Killed;
        match self.rules.leftovers {
            Leftovers::Kill => Action::SignalTree(Signal::SIGKILL),
            Leftovers::Keep => Action::SignalChild(Signal::SIGKILL),
        }
    }

    /// Makes those end that the child has left.
    fn clear(&mut self, ending: Ending) -> Action {
        self.phase = Phase::KillingTree { ending, look_at: None, give_up_at: None };
        Action::SignalTree(Signal::SIGKILL)
    }

    fn continue_if_stopped(&self) -> Vec<Action> {
        if self.stopped { vec![Action::SignalChild(Signal::SIGCONT)] } else { Vec::new() }
    }

    fn is_running_child(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Terminating { .. } | Phase::Killed)
    }
}

#[cfg(test)]
pub(super) mod tests;
