//! No polling: a quiet claude-run is never woken, whether it waits or watches.

use std::fs;
use std::time::Duration;

use nix::unistd::Pid;

use crate::env::{Env, Running, binary, fake_claude, wait_until};
use crate::oauth::EXPIRED;
use crate::refresh_locks::lock_of;

/// True if none of its threads runs, or waits for a processor.
fn is_asleep(pid: Pid) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process").flatten();
    threads.all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).expect("a thread");
        stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('S'))
    })
}

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

fn settled_switches(pid: Pid) -> u64 {
    let mut before = switches(pid);
    wait_until("it has settled", || {
        std::thread::sleep(Duration::from_millis(50));
        let now = switches(pid);
        std::mem::replace(&mut before, now) == now && is_asleep(pid)
    });
    before
}

/// The one child of `claude_run` that keeps its lock helper.
fn monitor_of(claude_run: Pid) -> Pid {
    let children = fs::read_to_string(format!("/proc/{claude_run}/task/{claude_run}/children")).expect("children");
    let named = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "lock-monitor\n");
    let monitor = children.split_whitespace().find(named).expect("a monitor");
    Pid::from_raw(monitor.parse().expect("a number"))
}

#[test]
fn no_process_wakes_up_once_in_five_seconds() {
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
    let bounded = Env::new();
    let has_slot = bounded.start(["--lock", "pass-through", "--slots", "1", "sh", "-c", "echo in; exec sleep 600"]);
    has_slot.expect_line("in");
    // The first of those who wait; one behind it looks each ten seconds whether it is passed over a free slot.
    let waits_for_slot = bounded.start(["--lock", "pass-through", "--slots", "1", "true"]);
    assert!(waits_for_slot.message().contains("waiting for a slot"));
    let helped = Env::new();
    let helped_run =
        helped.start(["--lock-helper", "sh -c 'echo key; exec sleep 600'", "sh", "-c", "echo $PPID; exec sleep 600"]);
    helped_run.line();
    let asking = Env::new();
    let asking_run = asking.start(["--lock-helper", "sleep 600", "true"]);
    assert!(asking_run.message().contains("waiting for the lock helper"));
    let runs = [
        &run,
        &waiter,
        &relayed,
        &refreshing,
        &waits_for_it,
        &waits_for_claude,
        &has_slot,
        &waits_for_slot,
        &helped_run,
        &asking_run,
    ];
    let monitors = [&helped_run, &asking_run].map(|run| monitor_of(run.pid()));
    let processes: Vec<_> = runs.map(Running::pid).into_iter().chain(monitors).collect();
    let before: Vec<_> = processes.iter().map(|pid| settled_switches(*pid)).collect();
    std::thread::sleep(Duration::from_secs(5)); // the very time in which nothing may happen
    assert_eq!(processes.iter().map(|pid| switches(*pid)).collect::<Vec<_>>(), before);
}

#[test]
fn busy_config_dir_seldom_wakes_a_waiter() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let _holder = env.hold_lock();
    let waiter = env.start(["--lock", "refresh", "true"]);
    assert!(waiter.message().contains("waiting"));
    let before = settled_switches(waiter.pid());
    let started = std::time::Instant::now();
    for number in 0..2000 {
        fs::write(env.config_dir().join(format!("other-{}", number % 10)), "").expect("a file");
        std::thread::sleep(Duration::from_millis(1)); // changes, not one change
    }
    let tenths = started.elapsed().as_millis() as u64 / 100;
    let woken = settled_switches(waiter.pid()) - before;
    // To wake and to sleep again is a switch each, and a rest begins and ends.
    assert!(woken <= 4 * (tenths + 10), "{woken} switches in {tenths} tenths of a second");
    env.log_in(crate::oauth::FRESH);
    assert!(waiter.message().contains("need not wait"));
}

#[test]
fn pause_in_a_line_wakes_claude_run_seldom() {
    let env = Env::new();
    // What only looks like a frame, and for the masker like a prompt.
    let script = "printf '{no frame}'; sleep 2; cat /proc/$PPID/task/*/status >switches";
    let ended = env.start(["--redact", "all", "--", "sh", "-c", script, "x", "--output-format", "json"]).end();
    assert_eq!((ended.code(), ended.stdout), (0, vec!["{no frame}".to_owned()]));
    let text = fs::read_to_string(env.path("switches")).expect("text");
    let count = |line: &str| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok();
    let switches: u64 = text.lines().filter_map(count).sum();
    assert!(switches < 300, "{switches}");
}
