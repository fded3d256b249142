//! System calls of `claude-run PROGRAM` between its own exec and that of PROGRAM: each has its reason in the table here, and there
//! are no others.

use std::collections::BTreeMap;
use std::fs;

use crate::env::{Env, Running, binary};

/// Process (the child's from the clone on), most calls, name, reason.
const TABLE: &str = "
we     1 execve           by our caller
we     6 brk              the C library's start, from here
we     1 arch_prctl
we     1 set_tid_address
we     1 set_robust_list
we     1 rseq
we     1 prlimit64
we     1 readlink
we     1 mprotect         … to here
we     2 getrandom        the seeds of its allocator and of our hash tables
we     3 fcntl            are descriptors 0 to 2 open?
we    56 rt_sigaction     our handlers, for all signals that end a process, real-time ones too; what we ignore; is SIGCHLD ignored?
we     2 prlimit64        no core dump of us …
we     2 rt_sigprocmask   USR1 and USR2 wait for the handlers
we     2 getpid           the run's id; the parent that the child checks
we     1 statx            is there a settings file?
we     4 statx            the program, twice the config dir, and once whether the kernel knows the call at all
we     2 access           may it be run? may the config dir be written?
we     2 ioctl            is stdin our terminal? is stdout one?
we     1 openat           claude's settings: a directory of the administrator's …
we     2 statx            … a file of theirs, and one of the user's
we     1 pipe2            the signal pipe
we     1 statx            is the lock file one?
we     1 openat
we     2 statx            which file that is, and whether the path still names it after locking
we     1 flock
we     2 statx            are there refresh locks of claude's?
we     4 readlink         … one of them beside the real path of the config dir, a call for each part of that
we     2 statx            owner of the last refresh; the login, whose expiry stays as it was if a refresh is cut short
we     1 statfs           has its storage room for a token that is refreshed? …
we     1 geteuid          … some of the room is for root alone
we     1 prctl            subreaper
we     1 waitid           have we children from before?
we     3 fcntl            a pipe as stdout is enlarged, to what we may
we     2 brk              the child's first stack
we     1 rt_sigprocmask   no handler may run in the child while it shares our memory
we     1 clone
child  1 setpgid          a group of its own
child  1 prctl            TERM at our death …
child  1 getppid          … which may have come before
child  1 fcntl            the lock's descriptor without close-on-exec
child  4 rt_sigaction     what we ignore; handlers go with the exec
child  1 prlimit64        … but one of the child, as far as our caller allows
child  1 rt_sigprocmask
child  1 execve
";

/// Most calls by name, for the child or not.
fn allowed() -> BTreeMap<(bool, String), usize> {
    let mut allowed = BTreeMap::new();
    for line in TABLE.lines() {
        let mut words = line.split_whitespace();
        let (Some(who), Some(count), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
        *allowed.entry((who == "child", name.to_owned())).or_default() += count.parse::<usize>().expect("a number");
    }
    allowed
}

#[test]
#[cfg(target_arch = "x86_64")] // other machines have other names for some
fn every_system_call_before_the_child_s_exec_has_its_reason() {
    let env = Env::new();
    env.claude_run().arg("true").assert().success(); // what is made once is there
    let mut strace = env.command("strace");
    strace.args(["-f", "-o", "calls"]).arg(binary()).arg("/usr/bin/true");
    assert_eq!(Running::start(strace).end().code(), 0);
    let calls = fs::read_to_string(env.path("calls")).expect("calls");
    let us = calls.split(' ').next().expect("a pid").to_owned();
    let mut made: BTreeMap<(bool, String), usize> = BTreeMap::new();
    for line in calls.lines() {
        let (pid, call) = line.split_once(' ').expect("a pid");
        let call = call.trim_start();
        let Some((name, rest)) = call.split_once('(').filter(|(name, _)| !name.starts_with(['<', '+', '-'])) else { continue };
        *made.entry((pid != us, name.to_owned())).or_default() += 1;
        if pid != us && name == "execve" && !rest.contains("ENOENT") {
            break;
        }
    }
    let allowed = allowed();
    let wrong: Vec<_> = made.iter().filter(|(call, count)| **count > allowed.get(*call).copied().unwrap_or(0)).collect();
    assert!(wrong.is_empty(), "not in the table, or more often: {wrong:#?}");
    let sum = |of: &BTreeMap<_, usize>| of.values().sum::<usize>();
    assert!(sum(&made) * 10 >= sum(&allowed) * 8, "the table names many that are not made: {made:#?}");
}
