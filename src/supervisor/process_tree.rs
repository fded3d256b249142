//! The child and every descendant, in whatever session or process group: found over /proc by the links from child to
//! parent, which all lead to us, since we are the subreaper. Claude's tools run in sessions of their own, so that a signal
//! to a process group misses them. Signals go to processes that were looked at, never to a number that may mean another.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getpid};
use tracing::debug;

use super::policy::{Ending, Group, Reach, Tree};
use crate::run_id::RunId;
use crate::sys::proc::{self, Stat};
use crate::sys::wait::{self, ChildStatus, Whose};

/// All that is below us.
#[derive(Debug)]
pub(super) struct ProcessTree {
    run: RunId,
    /// Who keeps the lock for us. With all below it, it is no part of the run, and takes in whatever its helper orphans.
    keeper: Option<Pid>,
    /// Those that were below us before we started a child, as after `sleep 60 & exec claude-run …`. Not ours to end.
    preexisting: HashSet<Process>,
    /// Who has had a TERM.
    told: HashSet<Process>,
}

/// A pid and a start: one process, whoever has the pid later.
type Process = (i32, u64);

impl ProcessTree {
    /// Looks at what is below us before the child is started.
    pub(super) fn before_start(run: RunId, keeper: Option<Pid>) -> Self {
        let mut descendants = Self { run, keeper, preexisting: HashSet::new(), told: HashSet::new() };
        if wait::are_there(libc::WEXITED) && proc::is_of_our_pid_namespace() {
            descendants.preexisting = descendants.members().iter().map(Stat::process).collect();
        }
        descendants
    }

    /// Who is alive below us.
    pub(super) fn state(&self) -> Tree {
        // Asked without WEXITED, waitid(2) answers ECHILD when all that is left is dead: one call, exact, and no /proc.
        let alive = wait::are_there(libc::WSTOPPED);
        let are_strangers = || !self.preexisting.is_empty() && self.members().is_empty();
        if !alive || are_strangers() { Tree::Empty } else { Tree::Alive }
    }

    /// Sends `signal` to everybody below us. A TERM goes to each but once, and only the first time to those whose parent
    /// lives: what a leftover starts to clean up after itself may finish within the kill grace.
    pub(super) fn signal(&mut self, signal: Signal, child: Pid, group: Group) -> Reach {
        if !proc::is_of_our_pid_namespace() {
            return signal_blindly(signal, child, group);
        }
        let us = getpid().as_raw();
        let first = self.told.is_empty();
        let members = self.members();
        let mut refused = 0;
        for member in &members {
            if signal == Signal::SIGTERM {
                let orphan = member.parent == us;
                if !(first || orphan) || !self.told.insert(member.process()) {
                    continue;
                }
            }
            match pidfd_signal(member, signal) {
                Ok(()) => debug!(pid = member.pid, %signal, "signalled a descendant"),
                Err(Errno::ESRCH) => {}
                Err(error) => {
                    refused += 1;
                    debug!(pid = member.pid, %signal, %error, "cannot signal a descendant");
                }
            }
        }
        match refused {
            _ if self.state() == Tree::Empty => Reach::All,
            _ if refused == members.len() => Reach::Nobody,
            0 => Reach::All,
            _ => Reach::Some,
        }
    }

    /// What each of the living below us calls itself, and the PID namespace in which it does; none, if that cannot be seen.
    pub(super) fn names(&self) -> Option<Vec<(i32, String)>> {
        let names = || self.members().iter().filter_map(|stat| proc::innermost_pid(stat.pid)).collect();
        proc::is_of_our_pid_namespace().then(names)
    }

    /// The living below us, less those that were there before the child and what is below them.
    fn members(&self) -> Vec<Stat> {
        let mut rest = Stat::all();
        let mut members = Vec::new();
        let mut parents = vec![getpid().as_raw()];
        let us = parents[0];
        while let Some(parent) = parents.pop() {
            rest.retain(|stat| {
                let is_member = stat.parent == parent && (parent != us || self.is_ours(stat));
                if is_member {
                    parents.push(stat.pid);
                    members.push(*stat);
                }
                stat.parent != parent
            });
        }
        members.retain(|stat| !stat.is_dead());
        members
    }

    /// Whether a child of this process belongs to the run. Usually every one does. Among strangers, whose orphans come to
    /// us as well, it does if its environment says so, or nothing at all.
    fn is_ours(&self, stat: &Stat) -> bool {
        if self.keeper.is_some_and(|keeper| keeper.as_raw() == stat.pid) {
            return false;
        }
        if self.preexisting.is_empty() {
            return true;
        }
        !self.preexisting.contains(&stat.process())
            && fs::read(format!("/proc/{}/environ", stat.pid))
                .map_or(true, |environment| environment.is_empty() || self.run.is_above(&environment))
    }

    /// Takes away the remains of all that have died below us, but not those of `child`.
    pub(super) fn reap_all_but(&self, child: Pid) {
        let us = getpid().as_raw();
        let dead = Stat::all().into_iter().filter(|stat| stat.parent == us && stat.is_dead() && stat.pid != child.as_raw());
        dead.for_each(|stat| wait::reap(Pid::from_raw(stat.pid)));
    }
}

/// What a SIGCHLD can mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Somebody below us, or nothing that matters.
    Others,
    /// The child was stopped by this signal.
    Stopped(Signal),
    /// The child was continued.
    Continued,
    /// The child has ended. It is not yet reaped.
    Ended(Ending),
}

/// Finds out what a SIGCHLD means for `child`, and takes away the remains of everybody else.
pub(super) fn look_after(child: Pid) -> Change {
    // WNOWAIT: while the child is not reaped, its pid and its process group's number mean nobody else.
    while let Ok(Some(news)) = wait::news(Whose::Anybody, libc::WEXITED | libc::WNOWAIT) {
        if news.pid == child.as_raw() {
            return Change::Ended(match news.code {
                libc::CLD_EXITED => Ending::Exited(news.status as u8),
                _ => Ending::Killed(news.status),
            });
        }
        wait::reap(Pid::from_raw(news.pid));
    }
    match wait::news(Whose::Child(child), libc::WSTOPPED | libc::WCONTINUED) {
        Ok(Some(ChildStatus { code: libc::CLD_STOPPED, status, .. })) => {
            Change::Stopped(Signal::try_from(status).unwrap_or(Signal::SIGSTOP))
        }
        Ok(Some(_)) => Change::Continued,
        _ => Change::Others,
    }
}

/// Signals the very process that `member` was read from: the directory in /proc stays bound to it even if the pid is
/// used again.
fn pidfd_signal(member: &Stat, signal: Signal) -> nix::Result<()> {
    let dir = File::open(format!("/proc/{}", member.pid)).map_err(|_| Errno::ESRCH)?;
    let mut line = Vec::new();
    let stat = openat(&dir, "stat", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    File::from(stat).read_to_end(&mut line).map_err(|_| Errno::ESRCH)?;
    let now = Stat::parse(&line).filter(|now| now.start == member.start).ok_or(Errno::ESRCH)?;
    send(dir.as_fd(), now.pid, signal)?;
    if signal == Signal::SIGTERM && now.state == b'T' {
        send(dir.as_fd(), now.pid, Signal::SIGCONT)?;
    }
    Ok(())
}

fn send(process: BorrowedFd, pid: i32, signal: Signal) -> nix::Result<()> {
    // SAFETY: a descriptor, a number, no siginfo and no flags: nothing in memory is touched.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal as i32, 0, 0) };
    match Errno::result(sent) {
        Ok(_) => Ok(()),
        // Before Linux 5.1, or behind a filter that does not know the call: the pid was right a moment ago.
        Err(Errno::ENOSYS | Errno::EPERM) => kill(Pid::from_raw(pid), signal),
        Err(error) => Err(error),
    }
}

/// Without a /proc of our own there are only groups to signal: everybody in the container if we are its init, else the
/// child's group, whose number its remains keep ours.
fn signal_blindly(signal: Signal, child: Pid, group: Group) -> Reach {
    let everybody = Pid::from_raw(-1);
    let target = match group {
        _ if getpid().as_raw() == 1 => everybody,
        Group::Own => Pid::from_raw(-child.as_raw()),
        Group::Shared => child,
    };
    // Whether anybody was reached shows in whether anybody is left.
    let _ = kill(target, signal);
    if target == everybody { Reach::All } else { Reach::Nobody }
}
