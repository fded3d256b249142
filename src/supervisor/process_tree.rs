//! All descendants, in whatever session or process group: found in /proc by the links between parent and child, which lead from us,
//! the subreaper. Signals to a process group would miss claude's tools, which run in sessions of their own.

use std::collections::HashSet;
use std::fs;
use std::mem;

use nix::unistd::{Pid, getpgid, getpid, getsid};
use tracing::debug;

use super::policy::{Group, Input, TreeState};
use crate::outcome::Outcome;
use crate::run_id::RunId;
use crate::sys::proc::{self, Links, Process, Stat};
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
    /// Number of its own process group as well, if it has one.
    child_pid: i32,
    /// Processes that have got TERM.
    with_term: HashSet<(i32, u64)>,
    /// Pids of our own children among them, each until we reap it: then another process may get the pid.
    children_with_term: HashSet<i32>,
    /// Those that have got it when the others got KILL.
    newcomers: HashSet<(i32, u64)>,
    /// Those that the last TERM went to, if it went to all members.
    last_with_term: Vec<Stat>,
    has_walked: bool,
    kills: u32,
}

/// Members from which on a tree may leave us no time to run.
const CROWD: usize = 64;

/// Looks for somebody new before a KILL, at most: a chain that forks and exits has always a new one.
const MAX_LOOKS: u32 = 50;

/// KILLs after which those that we start as PID 1 are faster than we look: all get one at once.
const MAX_KILLS: u32 = 50;

impl ProcessTree {
    pub(super) fn before_start(run: RunId, monitor: Option<(i32, u64)>) -> Self {
        let mut tree = Self {
            run,
            monitor,
            preexisting: Vec::new(),
            child: None,
            child_pid: 0,
            with_term: HashSet::new(),
            children_with_term: HashSet::new(),
            newcomers: HashSet::new(),
            last_with_term: Vec::new(),
            has_walked: false,
            kills: 0,
        };
        if wait::has_children(libc::WEXITED) {
            tree.preexisting = tree.members();
        }
        tree
    }

    pub(super) fn on_started(&mut self, child: Pid) {
        self.child_pid = child.as_raw();
        if !self.preexisting.is_empty() {
            self.child = Stat::read(child.as_raw());
        }
    }

    /// Notes that the child has got TERM, and needs no second one.
    pub(super) fn on_term_sent(&mut self, child: Pid) {
        self.with_term.extend(Stat::read(child.as_raw()).map(|stat| stat.process()));
    }

    /// True if so many have got TERM that they may leave us no time to run.
    pub(super) fn is_crowd(&self) -> bool {
        self.with_term.len() >= CROWD
    }

    pub(super) fn state(&mut self) -> TreeState {
        // Without WEXITED, waitid(2) fails with ECHILD if only zombies are left: exact, and without /proc.
        let is_empty = || !wait::has_children(libc::WSTOPPED);
        let has_others = self.monitor.is_some() || !self.preexisting.is_empty();
        if is_empty() || (has_others && self.reap_until_no_member()) { TreeState::Empty } else { TreeState::Alive }
    }

    /// Reaps zombies until no child of ours is a member; false if one lives. Above each member is one of them, which stays until we reap
    /// it; so one that has become a zombie by now may have left another behind, and its SIGCHLD is on the way.
    fn reap_until_no_member(&mut self) -> bool {
        for _ in 0..MAX_LOOKS {
            let children = Links::read().our_children().into_iter().filter_map(Stat::read);
            let is_member = |stat: &Stat| !(stat.pid == self.child_pid && stat.is_dead()) && self.includes(stat);
            let members: Vec<_> = children.filter(is_member).collect();
            if members.is_empty() || !members.iter().all(Stat::is_dead) {
                return members.is_empty() && proc::is_of_our_pid_namespace();
            }
            self.reap_others();
        }
        false
    }

    /// Sends TERM to all members, once to each. After the first walk only orphans get it: what a leftover starts to clean up may finish
    /// within the kill grace.
    pub(super) fn terminate(&mut self, child: Pid, group: Group) {
        if !proc::is_of_our_pid_namespace() {
            return signal_without_proc(Signal::SIGTERM, child, group);
        }
        if !mem::replace(&mut self.has_walked, true) {
            return self.terminate_all(child);
        }
        self.last_with_term.clear();
        for member in self.new_children().iter().filter(|member| !member.is_dead()) {
            if self.with_term.insert(member.process()) {
                signal_one(member, Signal::SIGTERM);
            }
            self.children_with_term.insert(member.pid);
        }
    }

    /// Sends TERM to all members. A crowd is stopped meanwhile: it would leave us no time to run, and fork others behind our back.
    fn terminate_all(&mut self, child: Pid) {
        // Whoever kills us meanwhile must not leave a stopped child behind, with the lock.
        let may_stop = Stat::read(child.as_raw()).is_none_or(|child| child.is_dead());
        let (mut with_term, mut groups, mut alone) = (mem::take(&mut self.with_term), HashSet::new(), Vec::new());
        let members = self.walk(|member| {
            let is_new = with_term.insert(member.stat.process());
            let is_crowd = may_stop && with_term.len() > CROWD;
            if is_crowd {
                self.stop(member, &mut groups);
            }
            if (is_crowd || member.stat.state == b'T') && !groups.contains(&member.stat.group) {
                alone.push(member.stat);
            }
            if is_new {
                log_signal(&member.stat, Signal::SIGTERM, member.signal(Signal::SIGTERM));
            }
        });
        continue_groups(groups);
        alone.iter().for_each(|member| signal_one(member, Signal::SIGCONT));
        self.children_with_term = members.iter().filter(|member| member.parent == us()).map(|member| member.pid).collect();
        (self.with_term, self.last_with_term) = (with_term, members);
    }

    /// Living members as the TERM has found them that went to them just now; or else as they are.
    pub(super) fn leftovers(&self) -> Vec<Stat> {
        if self.last_with_term.is_empty() { self.members() } else { self.last_with_term.clone() }
    }

    /// Members among our own children, less those that have got TERM: each end of a process asks for them.
    fn new_children(&self) -> Vec<Stat> {
        let known = &self.children_with_term;
        let pids = Links::read().our_children().into_iter().filter(|pid| !known.contains(pid));
        pids.filter_map(Stat::read).filter(|stat| stat.parent == us() && self.includes(stat)).collect()
    }

    /// Sends KILL to the members that have had TERM, and TERM to the others.
    pub(super) fn kill_after_term(&mut self, child: Pid, group: Group) {
        if !proc::is_of_our_pid_namespace() {
            return signal_without_proc(Signal::SIGKILL, child, group);
        }
        let has_had_term = |member: &&Stat| self.with_term.contains(&member.process());
        let is_child = |member: &(i32, u64)| member.0 == child.as_raw();
        let (members, groups) = self.stop_all(self.with_term.iter().any(is_child).then_some(child));
        let (with_term, others): (Vec<_>, Vec<_>) = members.iter().partition(has_had_term);
        with_term.into_iter().for_each(|member| signal_one(member, Signal::SIGKILL));
        for member in &others {
            if self.newcomers.insert(member.process()) {
                signal_one(member, Signal::SIGTERM);
            }
        }
        let alone = others.into_iter().filter(|member| !groups.contains(&member.group));
        alone.for_each(|member| signal_one(member, Signal::SIGCONT));
        continue_groups(groups);
    }

    /// Sends KILL to all members.
    pub(super) fn kill(&mut self, child: Pid, group: Group) {
        if !proc::is_of_our_pid_namespace() {
            return signal_without_proc(Signal::SIGKILL, child, group);
        }
        let (members, mut groups) = self.stop_all(Some(child));
        // The child's zombie reserves the number of its group.
        groups.extend((group == Group::Own).then_some(child.as_raw()));
        for group in groups {
            // ESRCH and EPERM show in the next state of the tree.
            let _ = kill(Pid::from_raw(-group), Signal::SIGKILL);
        }
        members.iter().for_each(|member| signal_one(member, Signal::SIGKILL));
        self.kills += 1;
        if self.kills > MAX_KILLS && us() == 1 && self.monitor.is_none() && self.preexisting.is_empty() {
            let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        }
    }

    /// Stops all members, until a look finds nobody new: whoever forks on and on is not faster. Returns them, with process groups of
    /// theirs that were stopped as a whole. `child` gets KILL: whoever kills us meanwhile must not leave it stopped behind, with the lock.
    /// Its zombie keeps its pid and group.
    fn stop_all(&self, child: Option<Pid>) -> (Vec<Stat>, HashSet<i32>) {
        child.map(|child| kill(child, Signal::SIGKILL));
        let (mut members, mut known, mut groups) = (Vec::new(), HashSet::new(), HashSet::new());
        for _ in 0..MAX_LOOKS {
            let count = known.len();
            members = self.walk(|member| {
                if known.insert(member.stat.process()) {
                    self.stop(member, &mut groups);
                } else if matches!(member.stat.state, b'R' | b'S') {
                    let _ = member.signal(Signal::SIGSTOP); // it has left its group in time
                }
            });
            if known.len() == count {
                break;
            }
        }
        (members, groups)
    }

    /// Stops `member`: by one call with all of its process group, in which nobody can fork meanwhile, or alone where others are in that.
    fn stop(&self, member: &Process, groups: &mut HashSet<i32>) {
        let group = member.stat.group;
        // In our own session, a member may have joined a group of our caller's; no process joins one of another session.
        let is_of_our_session = || getsid(None).is_ok_and(|ours| ours.as_raw() == member.stat.session);
        // Group 0 is one outside of our PID namespace, and would be ours to kill(2); -1 is everybody.
        let is_foreign = || {
            group <= 1
                || (group != self.child_pid && is_of_our_session())
                || self.preexisting.iter().any(|stat| stat.group == group)
        };
        if groups.contains(&group) {
            return;
        }
        let sent = if is_foreign() {
            member.signal(Signal::SIGSTOP)
        } else {
            groups.insert(group);
            kill(Pid::from_raw(-group), Signal::SIGSTOP)
        };
        log_signal(&member.stat, Signal::SIGSTOP, sent);
    }

    /// Sends what a key sends to the members of the child's process group, as a terminal does: a shell heeds INT only if its own child died
    /// of it, and waits for one that runs on.
    pub(super) fn signal_group(&self, child: Pid, signal: Signal) -> nix::Result<()> {
        let group = getpgid(Some(child))?;
        if group == child {
            return kill(Pid::from_raw(-child.as_raw()), signal);
        }
        // It is our own group, in which our caller may be as well.
        kill(child, signal)?;
        let is_due = |member: &&Stat| member.group == group.as_raw() && member.pid != child.as_raw();
        self.members().iter().filter(is_due).for_each(|member| signal_one(member, signal));
        Ok(())
    }

    /// Lets members that are stopped, and `is_reached`, go on.
    pub(super) fn continue_stopped(&self, is_reached: impl Fn(&Stat) -> bool) {
        let stopped = self.members().into_iter().filter(|member| member.state == b'T' && is_reached(member));
        stopped.for_each(|member| signal_one(&member, Signal::SIGCONT));
    }

    /// Pid and PID namespace of each member, as it sees them itself; `None` if those of one that lives are hidden from us, or without a /proc
    /// of our own.
    pub(super) fn names(&self) -> Option<Vec<(i32, String)>> {
        if !proc::is_of_our_pid_namespace() {
            return None;
        }
        let names = self.members().into_iter().map(|stat| (proc::innermost_pid(stat.pid), stat));
        let lives = |stat: &Stat| proc::lives(stat.pid, |now| now.process() == stat.process()) == Some(true);
        names.filter(|(name, stat)| name.is_some() || lives(stat)).map(|(name, _)| name).collect()
    }

    /// Living members; none without a /proc of our own.
    pub(super) fn members(&self) -> Vec<Stat> {
        if proc::is_of_our_pid_namespace() { self.walk(|_| ()) } else { Vec::new() }
    }

    /// Finds the living members, parents before their children, and visits each before its children are looked for.
    fn walk(&self, mut visit: impl FnMut(&Process)) -> Vec<Stat> {
        let (links, us) = (Links::read(), us());
        let mut found: Vec<_> = links.our_children().into_iter().map(|pid| (pid, us)).collect();
        let (mut members, mut next) = (Vec::new(), 0);
        while let Some(&(pid, parent)) = found.get(next) {
            next += 1;
            // One that has become an orphan meanwhile is a child of ours.
            let is_member = |stat: &Stat| if stat.parent == us { self.includes(stat) } else { stat.parent == parent };
            let Some(process) = Process::open(pid).filter(|process| is_member(&process.stat)) else { continue };
            if !process.stat.is_dead() {
                visit(&process);
                members.push(process.stat);
            }
            found.extend(links.children(&process).into_iter().map(|child| (child, pid)));
        }
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
    pub(super) fn next_change(&mut self, child: Pid) -> Option<Input> {
        while let Ok(Some(status)) = wait::next_status(None, libc::WEXITED | libc::WNOWAIT) {
            if status.pid == child.as_raw() {
                let ending = match status.code {
                    libc::CLD_EXITED => Outcome::Exited(status.status as u8),
                    _ => Outcome::Killed(status.status),
                };
                return Some(Input::Ended(ending, self.state()));
            }
            self.reap(status.pid);
        }
        Some(match wait::next_status(Some(child), libc::WSTOPPED | libc::WCONTINUED).ok()?? {
            ChildStatus { code: libc::CLD_STOPPED, status, .. } => Input::Stopped(status.into()),
            _ => Input::Continued,
        })
    }

    /// Reaps all zombies but the child, which is one.
    pub(super) fn next_state(&mut self) -> TreeState {
        self.reap_others();
        self.state()
    }

    fn reap_others(&mut self) {
        let child = self.child_pid;
        let others = Links::read().our_children().into_iter().filter(|pid| *pid != child);
        others.for_each(|pid| self.reap(pid));
    }

    fn reap(&mut self, pid: i32) {
        if wait::reap(Pid::from_raw(pid)) {
            self.children_with_term.remove(&pid);
        }
    }
}

fn us() -> i32 {
    getpid().as_raw()
}

fn signal_one(member: &Stat, signal: Signal) {
    log_signal(member, signal, member.signal(signal));
}

fn log_signal(member: &Stat, signal: Signal, sent: nix::Result<()>) {
    let error = sent.err().map(tracing::field::display);
    debug!(pid = member.pid, %signal, error, "signalled a descendant");
}

fn continue_groups(groups: HashSet<i32>) {
    for group in groups {
        let _ = kill(Pid::from_raw(-group), Signal::SIGCONT);
    }
}

/// Signals every process of the container if we are its init, else the child's group, whose number its zombie reserves.
fn signal_without_proc(signal: Signal, child: Pid, group: Group) {
    let target = match group {
        _ if us() == 1 => -1,
        Group::Own => -child.as_raw(),
        Group::Shared => child.as_raw(),
    };
    // ESRCH shows in the next state of the tree.
    let _ = kill(Pid::from_raw(target), signal);
}
