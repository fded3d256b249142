//! All descendants, in whatever session or process group: found in /proc by the links from child to parent, which lead to us, the
//! subreaper. Signals to a process group would miss claude's tools, which run in sessions of their own.

use std::collections::HashSet;
use std::fs;

use nix::errno::Errno;
use nix::unistd::{Pid, getpid};
use tracing::debug;

use super::policy::{Delivery, Group, Input, TreeState};
use crate::outcome::Outcome;
use crate::run_id::RunId;
use crate::sys::proc::{self, Stat};
use crate::sys::signal::{Signal, kill};
use crate::sys::wait::{self, ChildStatus};

/// Descendants of this process that belong to a run.
#[derive(Debug)]
pub(super) struct ProcessTree {
    run: RunId,
    /// Monitor of the lock helper: a child of ours, but neither it nor its descendants are part of the run.
    monitor: Option<Process>,
    /// Our children from before the run, as after `sleep 60 & exec claude-run …`.
    preexisting: HashSet<Process>,
    /// Processes that have got TERM.
    terminated: HashSet<Process>,
}

/// Pid and start.
type Process = (i32, u64);

impl ProcessTree {
    pub(super) fn before_start(run: RunId, monitor: Option<Process>) -> Self {
        let mut tree = Self { run, monitor, preexisting: HashSet::new(), terminated: HashSet::new() };
        if wait::has_children(libc::WEXITED) && proc::is_of_our_pid_namespace() {
            tree.preexisting = tree.members().iter().map(Stat::process).collect();
        }
        tree
    }

    pub(super) fn state(&self) -> TreeState {
        // Without WEXITED, waitid(2) fails with ECHILD if only zombies are left: exact, and without /proc.
        let has_children = wait::has_children(libc::WSTOPPED);
        let has_others = self.monitor.is_some() || !self.preexisting.is_empty();
        // A walk can miss a process whose parent ends meanwhile; a second one finds it among our own children.
        let is_member_free = || has_others && self.members().is_empty() && self.members().is_empty();
        if !has_children || is_member_free() { TreeState::Empty } else { TreeState::Alive }
    }

    /// Signals all members. Each gets TERM once, and after the first walk only orphans do: what a leftover starts to clean up may
    /// finish within the kill grace.
    pub(super) fn signal(&mut self, signal: Signal, child: Pid, group: Group) -> Delivery {
        if !proc::is_of_our_pid_namespace() {
            return signal_without_proc(signal, child, group);
        }
        let us = getpid().as_raw();
        let is_first_walk = self.terminated.is_empty();
        let members = self.members();
        let mut refused = 0;
        for member in &members {
            if signal == Signal::SIGTERM {
                let is_due = is_first_walk || member.parent == us;
                if !is_due || !self.terminated.insert(member.process()) {
                    continue;
                }
            }
            let result = member.signal(signal);
            debug!(pid = member.pid, %signal, ?result, "signalled a descendant");
            refused += usize::from(!matches!(result, Ok(()) | Err(Errno::ESRCH)));
        }
        match refused {
            _ if self.state() == TreeState::Empty => Delivery::Complete,
            _ if refused == members.len() => Delivery::Failed,
            0 => Delivery::Complete,
            _ => Delivery::Partial,
        }
    }

    /// Pid and PID namespace of each member, as it sees them itself; `None` without a /proc of our own.
    pub(super) fn names(&self) -> Option<Vec<(i32, String)>> {
        let names = || self.members().iter().filter_map(|stat| proc::innermost_pid(stat.pid)).collect();
        proc::is_of_our_pid_namespace().then(names)
    }

    /// Living members.
    fn members(&self) -> Vec<Stat> {
        let us = getpid().as_raw();
        let mut rest = Stat::all();
        let mut members = Vec::new();
        let mut parents = vec![us];
        while let Some(parent) = parents.pop() {
            rest.retain(|stat| {
                if stat.parent == parent && (parent != us || self.includes(stat)) {
                    parents.push(stat.pid);
                    members.push(*stat);
                }
                stat.parent != parent
            });
        }
        members.retain(|stat| !stat.is_dead());
        members
    }

    /// True if a child of ours belongs to the run. Beside preexisting children, whose orphans come to us as well, it does if its
    /// environment names the run, or cannot be read.
    fn includes(&self, stat: &Stat) -> bool {
        if self.monitor == Some(stat.process()) {
            return false;
        }
        if self.preexisting.is_empty() {
            return true;
        }
        !self.preexisting.contains(&stat.process())
            && fs::read(format!("/proc/{}/environ", stat.pid))
                .map_or(true, |environment| environment.is_empty() || self.run.is_above(&environment))
    }

    /// Reaps all zombies but `child`, and reads a change of its state. It stays a zombie until the run is over, so that its pid and
    /// its process group's number are not used again.
    pub(super) fn next_change(&self, child: Pid) -> Option<Input> {
        while let Ok(Some(status)) = wait::next_status(None, libc::WEXITED | libc::WNOWAIT) {
            if status.pid == child.as_raw() {
                let ending = match status.code {
                    libc::CLD_EXITED => Outcome::Exited(status.status as u8),
                    _ => Outcome::Killed(status.status),
                };
                return Some(Input::Ended(ending, self.state()));
            }
            wait::reap(Pid::from_raw(status.pid));
        }
        Some(match wait::next_status(Some(child), libc::WSTOPPED | libc::WCONTINUED).ok()?? {
            ChildStatus { code: libc::CLD_STOPPED, status, .. } => Input::Stopped(status.into()),
            _ => Input::Continued,
        })
    }

    /// Reaps all zombies but `child`, which is one.
    pub(super) fn next_state(&self, child: Pid) -> TreeState {
        let us = getpid().as_raw();
        let dead = Stat::all().into_iter().filter(|stat| stat.parent == us && stat.is_dead() && stat.pid != child.as_raw());
        dead.for_each(|stat| wait::reap(Pid::from_raw(stat.pid)));
        self.state()
    }
}

/// Signals every process of the container if we are its init, else the child's group, whose number its zombie reserves.
fn signal_without_proc(signal: Signal, child: Pid, group: Group) -> Delivery {
    let target = match group {
        _ if getpid().as_raw() == 1 => -1,
        Group::Own => -child.as_raw(),
        Group::Shared => child.as_raw(),
    };
    // ESRCH shows in the next state of the tree.
    let _ = kill(Pid::from_raw(target), signal);
    if target == -1 { Delivery::Complete } else { Delivery::Failed }
}
