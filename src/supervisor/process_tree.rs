//! All descendants, in whatever session or process group: found in /proc by the links from child to parent, which lead to us, the
//! subreaper. Signals to a process group would miss claude's tools, which run in sessions of their own.

use std::collections::HashSet;
use std::fs;

use nix::unistd::{Pid, getpgrp, getpid};
use tracing::debug;

use super::policy::{Group, Input, TreeState};
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
    monitor: Option<(i32, u64)>,
    /// Our children from before the run, as after `sleep 60 & exec claude-run …`.
    preexisting: Vec<Stat>,
    child: Option<Stat>,
    /// Processes that have got TERM.
    terminated: HashSet<(i32, u64)>,
    has_walked: bool,
    kills: u32,
}

/// KILLs after which those that we start as PID 1 are faster than we look: all get one at once.
const MAX_KILLS: u32 = 50;

impl ProcessTree {
    pub(super) fn before_start(run: RunId, monitor: Option<(i32, u64)>) -> Self {
        let (preexisting, terminated) = (Vec::new(), HashSet::new());
        let mut tree = Self { run, monitor, preexisting, child: None, terminated, has_walked: false, kills: 0 };
        if wait::has_children(libc::WEXITED) && proc::is_of_our_pid_namespace() {
            tree.preexisting = tree.members();
        }
        tree
    }

    pub(super) fn on_started(&mut self, child: Pid) {
        if !self.preexisting.is_empty() {
            self.child = Stat::read(child.as_raw());
        }
    }

    /// Notes that the child has got TERM, and needs no second one.
    pub(super) fn on_terminated(&mut self, child: Pid) {
        self.terminated.extend(Stat::read(child.as_raw()).map(|stat| stat.process()));
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
    pub(super) fn signal(&mut self, signal: Signal, child: Pid, group: Group) {
        if !proc::is_of_our_pid_namespace() {
            return signal_without_proc(signal, child, group);
        }
        let us = getpid().as_raw();
        let members = self.members();
        for member in &members {
            if signal == Signal::SIGTERM {
                let is_due = !self.has_walked || member.parent == us;
                if !is_due || !self.terminated.insert(member.process()) {
                    continue;
                }
            }
            let error = member.signal(signal).err().map(tracing::field::display);
            debug!(pid = member.pid, %signal, error, "signalled a descendant");
        }
        self.has_walked = true;
        if signal == Signal::SIGKILL {
            self.kill_groups(&members, (group == Group::Own).then_some(child.as_raw()));
        }
    }

    /// Sends KILL to the process groups of `members`, and to that of the child, whose number its zombie reserves: whoever forks and exits
    /// is not faster than that.
    fn kill_groups(&mut self, members: &[Stat], child: Option<i32>) {
        let is_foreign = |group: &i32| *group == getpgrp().as_raw() || self.preexisting.iter().any(|stat| stat.group == *group);
        let groups: HashSet<_> = members.iter().map(|member| member.group).chain(child).collect();
        for group in groups.into_iter().filter(|group| !is_foreign(group)) {
            // ESRCH and EPERM show in the next state of the tree.
            let _ = kill(Pid::from_raw(-group), Signal::SIGKILL);
        }
        self.kills += 1;
        if self.kills > MAX_KILLS && getpid().as_raw() == 1 && self.monitor.is_none() && self.preexisting.is_empty() {
            let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        }
    }

    /// Pid and PID namespace of each member, as it sees them itself; `None` without a /proc of our own.
    pub(super) fn names(&self) -> Option<Vec<(i32, String)>> {
        let names = || self.members().iter().filter_map(|stat| proc::innermost_pid(stat.pid)).collect();
        proc::is_of_our_pid_namespace().then(names)
    }

    /// Living members.
    pub(super) fn members(&self) -> Vec<Stat> {
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
    /// environment names the run or cannot be read; or else if it is younger than the child, and in no process group of theirs.
    fn includes(&self, stat: &Stat) -> bool {
        if self.monitor == Some(stat.process()) {
            return false;
        }
        if self.preexisting.is_empty() {
            return true;
        }
        let is_preexisting = self.preexisting.iter().any(|other| other.process() == stat.process());
        let names_the_run = || {
            fs::read(format!("/proc/{}/environ", stat.pid))
                .map_or(true, |environment| environment.is_empty() || self.run.is_above(&environment))
        };
        let is_younger = self.child.is_some_and(|child| stat.start >= child.start);
        let shares_a_group = self.preexisting.iter().any(|other| other.group == stat.group);
        !is_preexisting && (names_the_run() || (is_younger && !shares_a_group))
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
fn signal_without_proc(signal: Signal, child: Pid, group: Group) {
    let target = match group {
        _ if getpid().as_raw() == 1 => -1,
        Group::Own => -child.as_raw(),
        Group::Shared => child.as_raw(),
    };
    // ESRCH shows in the next state of the tree.
    let _ = kill(Pid::from_raw(target), signal);
}
