//! Inputs and outputs of the policy.

use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::claude::frames::FrameEvent;
use crate::config::settings::Leftovers;
use crate::events::SignalSource;

/// Limits of a run, each `None` for "no limit", and its circumstances.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// Fate of descendants that outlive the child.
    pub leftovers: Leftovers,
    /// Process group of the child.
    pub group: Group,
    /// Signals that our caller ignores: forwarded, but not acted upon.
    pub ignored: SigSet,
}

/// The child's process group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// A group of its own: the terminal signals only us.
    Own,
    /// Ours: the terminal signals the child as well.
    Shared,
}

/// How the child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// By itself, with this status.
    Exited(u8),
    /// By a signal of this number, which may be a real-time one.
    Killed(i32),
}

/// State of the tree, without the child's own zombie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum TreeState {
    Empty,
    Alive,
}

/// Result of a KILL to the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// All processes got it.
    Complete,
    /// Some processes may not be signalled by us.
    Partial,
    /// There are processes, but none that we can see or may signal.
    Failed,
}

/// Event in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// We got a signal.
    Signal(Signal, SignalSource),
    /// The child printed a frame.
    Frame(FrameEvent),
    /// Time of the child's last output.
    LastOutput(Instant),
    /// The child was stopped by this signal.
    Stopped(Signal),
    /// The child was continued.
    Continued,
    /// The child has ended, and has left this tree.
    Ended(Ending, TreeState),
    /// A SIGCHLD after the child's end.
    TreeChanged(TreeState),
    /// KILL was sent to the tree.
    TreeKilled(Delivery),
    /// Answer to [`Action::CheckRefresh`], or a change of the refresh locks.
    Refresh {
        /// A token refresh may be in progress in the tree.
        in_progress: bool,
    },
    /// The lock helper has ended, and with it the lock.
    LockLost,
    /// Time has passed.
    Clock,
}

/// Task for the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Signal the child.
    SignalChild(Signal),
    /// Signal the whole tree. No process gets a second TERM.
    SignalTree(Signal),
    /// Look at claude's refresh locks, and come back with [`Input::Refresh`].
    CheckRefresh,
    /// Stop this process until it is continued.
    StopOurselves,
    /// Stop this process if a job-control shell can continue it.
    StopForShell,
    /// Log one line on the state of the run.
    Report,
    /// Log a message.
    Log(Notice),
}

/// Messages of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "`Supervisor::log` has the text of each")]
pub enum Notice {
    LimitExpired(Limit),
    KillGraceExpired,
    SecondTerm,
    Leftovers,
    Unreachable,
    SignalDeferred,
    RefreshTooLong,
}

/// Limits at which a run is ended.
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
