//! Claude's own refresh locks: nothing is started into one, and nobody who holds one is ended.

use std::fs;
use std::path::PathBuf;
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::env::{Env, Running, binary, can_unshare, fake_claude, stat};
use crate::oauth::{EXPIRED, FRESH, StandIn, age};

const NEWER: &str = ".oauth_refresh.lock";

/// Makes the newer versions' lock, of the process `pid` of this PID namespace.
pub(crate) fn lock_of(env: &Env, pid: u32) -> PathBuf {
    let dir = env.config_dir().join(NEWER);
    fs::create_dir(&dir).expect("a lock");
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").expect("a namespace");
    let domain = format!("linux:{}:{}", machine.trim(), namespace.display());
    let start = stat(pid as i32).map(|fields| fields[19].clone()).unwrap_or_default();
    let owner = format!(r#"{{"pid":{pid},"procStart":"{start}","pidDomain":"{domain}"}}"#);
    fs::write(env.config_dir().join(".oauth_refresh.lock.owner"), owner).expect("an owner");
    dir
}

/// No process has it: it is beyond what pids go up to.
const NOBODY: u32 = 4_194_304;

/// The older versions' lock.
pub(crate) fn sibling(env: &Env) -> PathBuf {
    env.home().join(".claude.lock")
}

#[test]
fn lock_of_a_dead_owner_is_waited_for_until_stale() {
    for mode in ["refresh", "exclusive"] {
        let env = Env::new();
        env.log_in(EXPIRED);
        let lock = lock_of(&env, NOBODY);
        age(&lock, 20);
        let mut waiter = env.start(["--lock", mode, "echo", "started"]);
        let message = waiter.message();
        assert!(message.contains("which is dead") && message.contains("at most 1m 10s"), "{message}");
        assert!(waiter.is_running() && env.is_locked(), "it waits with the session lock: nobody else could start either");
        let status = env.claude_run().arg("status").assert().code(1);
        let status = String::from_utf8_lossy(&status.get_output().stdout).into_owned();
        assert!(status.contains("the owner of the refresh lock") && status.contains("held by        echo (pid"), "{status}");
        fs::remove_dir(lock).expect("a lock");
        waiter.expect_line("started");
        let ended = waiter.end();
        assert_eq!((ended.code(), ended.stderr.len()), (0, 0), "{ended:?}");
    }
    let env = Env::new();
    env.log_in(EXPIRED);
    let lock = lock_of(&env, NOBODY);
    let started = Instant::now();
    age(&lock, 56);
    env.claude_run().args(["--lock", "refresh", "true"]).assert().code(0);
    assert!(started.elapsed() >= Duration::from_millis(3_500), "not before it is stale");
    let report = |words: &[&str]| env.claude_run().arg("report").args(words).output().expect("started").stdout;
    let seen: serde_json::Value = serde_json::from_slice(&report(&["--json"])).expect("JSON");
    assert!(seen["refresh_waited_ms"].as_u64() > Some(3_000) && seen["refresh_wait_ms"]["count"] == 1, "{seen}");
    let text = String::from_utf8(report(&[])).expect("text");
    assert!(text.contains("\nwait for refresh ") && text.contains("\nlost to claude's refresh lock: "), "{text}");
}

/// The older versions take theirs over after 10 s, the newer ones after 60 s.
#[test]
fn older_lock_is_waited_for_by_the_claude_version() {
    for (version, age_at_start) in [("2.1.84", 6), ("2.1.330", 56), ("unknown", 56)] {
        let env = Env::new();
        env.log_in(EXPIRED);
        let claude = env.script(&format!("versions/{version}"), "#!/bin/sh\n");
        fs::create_dir(sibling(&env)).expect("a lock");
        let started = Instant::now();
        age(&sibling(&env), age_at_start);
        let ended = env.start(["--lock", "refresh", "--claude", &claude.to_string_lossy()]).end();
        assert!(ended.code() == 0 && ended.stderr_text().contains("a refresh is under way"), "{version}: {ended:?}");
        assert!(started.elapsed() >= Duration::from_millis(3_500), "{version}: not before it is stale");
    }
}

#[test]
fn waiter_starts_unlocked_once_the_token_is_fresh() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let _lock = lock_of(&env, process::id());
    let run = env.start_fake(&["--lock", "refresh"], "ready; hang");
    assert!(run.message().contains("a refresh is under way"));
    env.log_in(FRESH);
    run.ready();
    assert!(!env.is_locked());
}

#[test]
fn signal_ends_the_wait_and_starts_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let env = Env::new();
        env.log_in(EXPIRED);
        let _lock = lock_of(&env, NOBODY);
        let run = env.start(["--lock", "refresh", "echo", "started"]);
        run.message();
        run.signal(signal);
        let ended = run.end();
        assert_eq!(ended.code(), 128 + signal as i32);
        let said = ended.stderr_text();
        assert!(ended.stdout.is_empty() && said.contains("ended the wait for claude's refresh lock after "), "{ended:?}");
        assert!(said.contains("nothing was started") && !env.is_locked(), "{ended:?}");
    }
}

#[test]
fn stuck_lock_is_told_and_not_waited_for() {
    let env = Env::new();
    env.log_in(EXPIRED);
    fs::create_dir_all(sibling(&env).join("something")).expect("a lock");
    for mode in ["refresh", "exclusive"] {
        let ended = env.start(["--lock", mode, "true"]).end();
        let said = ended.stderr_text();
        assert!(ended.code() == 0 && said.contains("no claude can refresh; claude-run doctor tells"), "{mode}: {ended:?}");
    }
    env.log_in(FRESH);
    env.claude_run().args(["--lock", "exclusive", "true"]).assert().code(0).stderr("");
}

#[test]
fn lock_is_ignored_if_no_refresh_is_due() {
    let env = Env::new();
    env.log_in(FRESH);
    let _lock = lock_of(&env, NOBODY);
    for mode in ["refresh", "exclusive", "pass-through"] {
        env.claude_run().args(["--lock", mode, "true"]).assert().code(0).stderr("");
    }
    env.log_in(EXPIRED);
    env.claude_run().args(["--lock", "pass-through", "true"]).assert().code(0).stderr("");
    let mut token = env.claude_run();
    token.env("CLAUDE_CODE_OAUTH_TOKEN", "t").args(["--lock", "exclusive", "true"]).assert().code(0).stderr("");
}

const DEFERRAL: &str = "claude may be refreshing its token: deferring signals, at most 15s";

/// Waits for that message.
pub(crate) fn expect_deferral(run: &Running) {
    loop {
        if run.message().contains(DEFERRAL) {
            return;
        }
    }
}

#[test]
fn termination_is_deferred_until_a_refresh_ends() {
    for mode in ["exclusive", "refresh", "pass-through"] {
        for kind in ["legacy", "modern"] {
            for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGINT] {
                let env = Env::new();
                env.log_in(EXPIRED);
                let stand_in = StandIn::start(&env, &[]);
                let agent = env.agent(&stand_in, mode, &[], &format!("signals; ready; refresh {kind} posted"));
                agent.ready();
                while agent.line() != "posted" {}
                agent.signal(signal);
                expect_deferral(&agent);
                agent.signal(Signal::SIGUSR2); // what ends nobody goes ahead
                agent.expect_line("signal USR2");
                for lock in [sibling(&env), env.config_dir().join(NEWER)] {
                    let _ = fs::remove_dir(lock); // one of them is there: the refresh is over
                }
                agent.expect_line(&format!("signal {}", &signal.as_str()[3..]));
            }
        }
    }
}

#[test]
fn usr2_is_deferred_if_claude_would_end_by_it() {
    for kind in ["legacy", "modern"] {
        let env = Env::new();
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &[]);
        let agent = env.agent(&stand_in, "exclusive", &[], &format!("refresh {kind} posted"));
        while agent.line() != "posted" {}
        agent.signal(Signal::SIGUSR2);
        expect_deferral(&agent);
        for lock in [sibling(&env), env.config_dir().join(NEWER)] {
            let _ = fs::remove_dir(lock); // one of them is there: the refresh is over
        }
        assert_eq!(agent.end().code(), 128 + Signal::SIGUSR2 as i32);
    }
}

#[test]
fn limit_and_kill_are_deferred_too() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let stand_in = StandIn::start(&env, &[]);
    let options = ["--timeout", "2", "--kill-after", "3"];
    let agent = env.agent(&stand_in, "exclusive", &options, "signals; refresh legacy locked");
    while agent.line() != "locked" {}
    expect_deferral(&agent);
    fs::remove_dir(sibling(&env)).expect("a lock");
    agent.expect_line("signal TERM");
    fs::create_dir(sibling(&env)).expect("a lock"); // before the kill grace has run out: it takes its time to end
    expect_deferral(&agent);
    fs::remove_dir(sibling(&env)).expect("a lock");
    assert_eq!(agent.end().code(), 124);
}

#[test]
fn leftovers_that_refresh_are_spared() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let fifo = env.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let tool = format!("mkdir {} && echo made && sleep 600", sibling(&env).display());
    let run = env.start_fake(&["--lock", "pass-through"], &format!("tool& {tool}; open {}", fifo.display()));
    run.expect_line("made");
    fs::write(fifo, "").expect("a FIFO"); // the child ends
    expect_deferral(&run);
    fs::remove_dir(sibling(&env)).expect("a lock");
    assert_eq!(run.end().code(), 0);
}

#[test]
fn foreign_or_dead_refresh_defers_nothing() {
    for pid in [process::id(), NOBODY] {
        let env = Env::new();
        env.log_in(FRESH);
        let run = env.start_fake(&[], "signals; ready; hang");
        run.ready();
        let _lock = lock_of(&env, pid);
        run.signal(Signal::SIGTERM);
        run.expect_line("signal TERM");
        run.term_again();
        let ended = run.end();
        assert!(ended.code() == 137 && !ended.stderr_text().contains("refreshing"), "{ended:?}");
    }
}

/// The older versions' lock is that of the newer one's owner only if that says so: it may be ours, however near the two are in time.
#[test]
fn refresh_beside_a_foreign_or_dead_one_is_spared() {
    for pid in [process::id(), NOBODY] {
        let env = Env::new();
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &[]);
        let foreign = lock_of(&env, pid);
        let agent = env.agent(&stand_in, "pass-through", &[], "refresh legacy posted");
        while agent.line() != "posted" {}
        age(&foreign, 0);
        agent.signal(Signal::SIGTERM);
        expect_deferral(&agent);
        fs::remove_dir(sibling(&env)).expect("a lock");
        assert_eq!(agent.end().code(), 143);
    }
}

#[test]
fn both_locks_of_a_foreign_refresh_defer_nothing() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let stand_in = StandIn::start(&env, &[]);
    let other = env.agent(&stand_in, "pass-through", &[], "refresh modern posted");
    while other.line() != "posted" {}
    let run = env.start_fake(&["--lock", "pass-through"], "signals; ready; hang");
    run.ready();
    run.signal(Signal::SIGTERM);
    run.expect_line("signal TERM");
    run.term_again();
    let ended = run.end();
    assert!(ended.code() == 137 && !ended.stderr_text().contains("refreshing"), "{ended:?}");
}

#[test]
fn refresh_in_a_nested_pid_namespace_is_spared() {
    if !can_unshare("-rpf") {
        return;
    }
    let env = Env::new();
    env.log_in(EXPIRED);
    let stand_in = StandIn::start(&env, &[]);
    let mut command = env.command(binary());
    command.env("FAKE_API", &stand_in.address).args(["unshare", "-rpf", "--kill-child", "--mount-proc"]);
    command.arg(fake_claude()).args(["-p", "refresh modern posted"]);
    let run = Running::start(command);
    while run.line() != "posted" {}
    run.signal(Signal::SIGTERM);
    expect_deferral(&run);
    fs::remove_dir(env.config_dir().join(NEWER)).expect("a lock");
    fs::remove_dir(sibling(&env)).expect("a lock");
    assert!(matches!(run.end().code(), 137 | 143));
}

#[test]
fn refresh_that_is_hidden_from_us_is_spared() {
    if !can_unshare("-rpf") {
        return;
    }
    // In the same PID namespace, in one below, and with the /proc of another. In containers, root lacks the right to look as well.
    for (flags, below) in [("-r", &[][..]), ("-r", &["unshare", "-pf", "--kill-child", "--mount-proc"]), ("-rpf", &[])] {
        let env = Env::new();
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &[]);
        let mut command = env.command("unshare");
        command.env("FAKE_API", &stand_in.address).stdin(Stdio::piped());
        command.args([flags, "setpriv", "--bounding-set=-sys_ptrace", "sh", "-c"]);
        command.arg(r#""$0" -- "$@" & read line; kill -TERM $!; wait $!"#).arg(binary());
        command.args(below).arg(fake_claude()).args(["-p", "hide; refresh modern posted"]);
        let mut run = Running::start(command);
        while run.line() != "posted" {}
        run.close_stdin();
        expect_deferral(&run);
        fs::remove_dir(env.config_dir().join(NEWER)).expect("a lock");
        fs::remove_dir(sibling(&env)).expect("a lock");
        assert!(matches!(run.end().code(), 137 | 143), "{flags} {below:?}");
    }
}
