//! The bounds that have to be waited for in full. Tests start in the order of their names, so these begin first, and all others
//! run beside them.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{Env, fake_claude, state, wait_until};
use crate::oauth::{EXPIRED, FRESH, StandIn, age};
use crate::refresh_locks::{expect_deferral, lock_of, sibling};

#[test]
fn refresh_defers_signals_for_15_seconds_at_most() {
    let env = Env::new();
    env.log_in(FRESH);
    let run = env.start_fake(&[], "signals; ready; hang");
    run.ready();
    fs::create_dir(sibling(&env)).expect("a lock");
    age(&sibling(&env), 0);
    let touching = sibling(&env);
    let started = Instant::now();
    run.signal(Signal::SIGTERM);
    expect_deferral(&run);
    // As its holder would.
    wait_until("it was long enough", || {
        age(&touching, 0);
        started.elapsed() > Duration::from_secs(14)
    });
    assert!(run.message().contains("still held after 15s: going on"));
    run.expect_line("signal TERM");
    assert!(started.elapsed() >= Duration::from_secs(15));
}

/// One that hangs elsewhere has its 15 s, and ours has its own.
#[test]
fn refresh_beside_one_that_was_given_up_is_spared() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let stand_in = StandIn::start(&env, &[]);
    let fifo = hung_refresh(&env);
    let steps = format!("signals; ready; open {}; refresh legacy posted", fifo.display());
    let agent = env.agent(&stand_in, "pass-through", &["--kill-after", "60"], &steps);
    agent.ready();
    agent.signal(Signal::SIGTERM);
    expect_deferral(&agent);
    agent.expect_line("signal TERM");
    assert!(agent.message().contains("still held after 15s: going on"));
    fs::write(fifo, "").expect("a FIFO");
    while agent.line() != "posted" {}
    agent.term_again();
    expect_deferral(&agent);
    fs::remove_dir(sibling(&env)).expect("a lock");
    assert_eq!(agent.end().code(), 137);
}

#[test]
fn refresh_that_begins_while_signals_are_deferred_for_another_is_spared() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let stand_in = StandIn::start(&env, &[]);
    let fifo = hung_refresh(&env);
    let steps = format!("ready; open {}; refresh legacy posted", fifo.display());
    let agent = env.agent(&stand_in, "pass-through", &[], &steps);
    let [child, ..] = agent.ready();
    kill(Pid::from_raw(child), Signal::SIGSTOP).expect("it lives");
    wait_until("it is stopped", || state(child) == Some('T'));
    agent.signal(Signal::SIGINT);
    expect_deferral(&agent);
    assert_eq!(state(child), Some('T'), "nobody has asked it to end");
    agent.signal(Signal::SIGTERM);
    fs::write(fifo, "").expect("a FIFO");
    while agent.line() != "posted" {}
    assert!(agent.message().contains("still held after 15s: going on"));
    expect_deferral(&agent);
    fs::remove_dir(sibling(&env)).expect("a lock");
    assert_eq!(agent.end().code(), 130, "the INT came first");
}

/// A refresh of somebody else's that hangs, and a FIFO for what comes after it.
fn hung_refresh(env: &Env) -> PathBuf {
    let lock = env.config_dir().join("mcp-refresh-other.lock.lock");
    fs::create_dir(&lock).expect("a lock");
    let in_a_minute = SystemTime::now() + Duration::from_secs(60);
    fs::File::open(&lock).and_then(|dir| dir.set_modified(in_a_minute)).expect("a time");
    let fifo = env.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    fifo
}

#[test]
fn lock_for_a_refresh_that_never_comes_is_released() {
    let env = Env::new();
    env.log_in(EXPIRED);
    // One that has begun to refresh keeps it, and so do a margin that was raised on purpose, and a child that may come to its claude
    // later: of a claude, the version is known.
    let others = [Env::new(), Env::new(), Env::new()];
    let claude = env.script("versions/2.1.330", &format!("#!/bin/sh\nexec '{}' \"$@\"\n", fake_claude().display()));
    let claude = claude.to_str().expect("UTF-8");
    others.iter().for_each(|env| env.log_in(EXPIRED));
    let begun = others[0].start_fake(&["--claude", claude, "--lock", "refresh"], "ready; hang");
    begun.ready();
    let raised = others[1].start_fake(&["--claude", claude, "--lock", "refresh", "--refresh-margin", "2h"], "ready; hang");
    raised.ready();
    let unknown = others[2].start_fake(&["--lock", "refresh"], "ready; hang");
    unknown.ready();
    let started = Instant::now();
    let run = env.start_fake(&["--claude", claude, "--lock", "refresh", "-v"], "ready; hang");
    run.ready();
    fs::create_dir(sibling(&others[0])).expect("a lock");
    wait_until("the start is over", || started.elapsed() > Duration::from_secs(3));
    fs::remove_dir(sibling(&others[0])).expect("a lock");
    for seconds in [30, 58] {
        wait_until("most of the minute is over", || started.elapsed() > Duration::from_secs(seconds));
    }
    while !run.message().contains("claude has not begun to refresh its token") {}
    assert!(started.elapsed() >= Duration::from_secs(60) && !env.is_locked());
    assert!(others.iter().all(Env::is_locked));
}

#[test]
fn refresh_lock_is_waited_for_70_seconds_at_most() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let lock = lock_of(&env, std::process::id());
    let started = Instant::now();
    let mut waiter = env.start(["-v", "--", "sh", "-c", "exit 4"]);
    while waiter.is_running() && started.elapsed() < Duration::from_secs(200) {
        age(&lock, 0); // as its holder does
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(started.elapsed() >= Duration::from_secs(70), "{:?}", started.elapsed());
    let ended = waiter.end();
    assert_eq!(ended.code(), 4, "{ended:?}");
    assert!(ended.stderr_text().contains("going on after 1m 10s"), "{ended:?}");
}
