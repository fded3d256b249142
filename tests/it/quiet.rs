//! No polling: a quiet claude-run is never woken, whether it waits or watches.

use std::fs;
use std::time::Duration;

use nix::unistd::Pid;

use crate::env::{Env, Running, binary, fake_claude, until};
use crate::oauth::EXPIRED;
use crate::refresh_locks::lock_of;

/// Context switches of all threads: a thread that sleeps through has none.
fn switches(pid: Pid) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    threads
        .flatten()
        .map(|thread| fs::read_to_string(thread.path().join("status")).expect("a thread"))
        .flat_map(|status| {
            status
                .lines()
                .filter_map(|line| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok())
                .collect::<Vec<_>>()
        })
        .sum()
}

fn settles(pid: Pid) -> u64 {
    let mut before = switches(pid);
    until("it has settled", || {
        std::thread::sleep(Duration::from_millis(50));
        let now = switches(pid);
        std::mem::replace(&mut before, now) == now
    });
    before
}

#[test]
fn a_run_a_waiter_and_a_relay_are_not_woken_once_in_five_seconds_in_any_mode() {
    let env = Env::new();
    let run = env.start_fake(&[], "ready; hang");
    run.ready();
    let waiter = env.start(["--wait", "1h", "true"]);
    assert!(waiter.message().contains("waiting"));
    let mut command = env.command(binary());
    command.args(["--lock", "pass-through", "--claude"]).arg(fake_claude());
    command.args(["--", "-p", "init; result new ok; ready; hang", "--output-format", "json"]);
    let relayed = Running::start(command);
    assert!(relayed.line().contains("init") && relayed.line().contains("result"));
    relayed.ready();
    let due = Env::new();
    due.log_in(EXPIRED);
    let refreshing = due.start_fake(&["--lock", "refresh"], "ready; hang");
    refreshing.ready();
    let waits_for_it = due.start(["--lock", "refresh", "true"]);
    assert!(waits_for_it.message().contains("waiting"));
    let elsewhere = Env::new();
    elsewhere.log_in(EXPIRED);
    let _refresh_lock = lock_of(&elsewhere, std::process::id());
    let waits_for_claude = elsewhere.start(["--lock", "refresh", "true"]);
    assert!(waits_for_claude.message().contains("a refresh is under way"));
    let processes = [&run, &waiter, &relayed, &refreshing, &waits_for_it, &waits_for_claude];
    let before = processes.map(|process| settles(process.pid()));
    std::thread::sleep(Duration::from_secs(5)); // the very time in which nothing may happen
    assert_eq!(processes.map(|process| switches(process.pid())), before);
}
