//! Inputs and outputs of the policy.
#![expect(missing_docs, reason = "the names say it, where nothing else does")]

use std::time::{Duration, Instant};

use crate::claude::frames::FrameEvent;
use crate::config::settings::Leftovers;
use crate::outcome::Outcome;
use crate::sys::signal::{SigSet, Signal, SignalSource};

/// Limits of a run, each `None` for "no limit", and its circumstances. By default, a run that nobody attends, without limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyConfig {
    /// From the start of the child to a TERM.
    pub hard_limit: Option<Duration>,
    /// From the last byte on stdout or stderr to a TERM.
    pub idle_limit: Option<Duration>,
    /// From the last result frame, or any frame after it, to a TERM.
    pub result_grace: Option<Duration>,
    /// Replaces the result grace while a background task is open.
    pub task_grace: Option<Duration>,
    /// From a TERM to the KILL.
    pub kill_grace: Option<Duration>,
    pub leftovers: Leftovers,
    /// Messages come on stdin, so that the result grace begins only at its end.
    pub streams_input: bool,
    pub group: Group,
    /// Signals that our caller ignores: forwarded, but not acted upon.
    pub ignored: SigSet,
}

/// The child's process group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Group {
    /// A group of its own: the terminal signals only us.
    #[default]
    Own,
    /// Ours: the terminal signals the child as well.
    Shared,
}

/// State of the tree, without the child's own zombie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeState {
    Empty,
    Alive,
}

/// Event in a run. The child is the subject, where none is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    Signal(Signal, SignalSource),
    Frame(FrameEvent),
    LastOutput(Instant),
    Stopped(Signal),
    Continued,
    Ended(Outcome, TreeState),
    /// A SIGCHLD after the child's end.
    TreeChanged(TreeState),
    /// Answer to [`Action::CheckRefreshLocks`], or a change of the refresh locks: may a refresh be in progress in the tree that was not
    /// [given up](Action::GiveUpRefresh)?
    Refresh(bool),
    /// Nobody can write to our stdin any more.
    StdinEnded,
    /// The lock helper has ended, and with it the lock.
    LockLost,
    Clock,
}

/// Task for the supervisor. `Report` is one line on the state of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    SignalChild(Signal),
    /// Signal the whole tree. No process gets a second TERM.
    SignalTree(Signal),
    /// Send KILL to those of the tree that have had TERM, and TERM to the others.
    KillAfterTerm,
    /// Look at claude's refresh locks, and come back with [`Input::Refresh`].
    CheckRefreshLocks,
    /// The refresh that signals were deferred for has had its time: it defers no others.
    GiveUpRefresh,
    /// Stop this process, as a SIGTSTP from there would: for that of a key, only if a job-control shell can continue it.
    Stop(SignalSource),
    Report,
    Log(Notice),
}

/// Messages of the policy. `Supervisor::log` has the text of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// The limit is the outcome of the run.
    LimitExpired(Outcome),
    KillGraceExpired,
    SecondTerm,
    /// Processes that the child has left are ended, or kept.
    Leftovers(Leftovers),
    /// The rest of the tree has waited for the child for long enough.
    ChildStays,
    /// KILL has not ended all.
    GivenUp,
    SignalDeferred,
}
