//! The real proper-lockfile, from npm, and claude-run agree on its lock: who holds it, and when it is stale. scripts/test.sh
//! installs it; a test fetches nothing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::env::{Env, Running};
use crate::oauth::{EXPIRED, StandIn};

/// `node lock.js VERB DIR`, if it is installed here.
fn lockfile(env: &Env, verb: &str) -> Option<Command> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = top.join("target/npm/node_modules");
    if !modules.join("proper-lockfile").exists() {
        assert!(std::env::var_os("CI").is_none(), "proper-lockfile is not installed here, where every test has to run");
        eprintln!("SKIPPED: proper-lockfile is not installed; scripts/test.sh does that");
        return None;
    }
    let mut node = env.command("node");
    if let Some(path) = std::env::var_os("PATH") {
        node.env("PATH", path);
    }
    node.env("NODE_PATH", modules).arg(top.join("tests/proper_lockfile/lock.js")).arg(verb).arg(env.config_dir());
    node.stdin(Stdio::piped());
    Some(node)
}

fn lock(env: &Env) -> PathBuf {
    env.home().join(".claude.lock")
}

/// State of the lock for claude-run: `free`, `live`, `stale` or `stuck`.
fn state(env: &Env) -> String {
    let output = env.claude_run().args(["status", "--json"]).output().expect("a status");
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["refresh_locks"][0]["path"], lock(env).to_string_lossy().as_ref());
    status["refresh_locks"][0]["state"].as_str().expect("a state").to_owned()
}

#[test]
fn both_agree_on_a_lock_of_every_age() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let Some(mut check) = lockfile(&env, "check") else { return };
    let mut is_locked = || String::from_utf8_lossy(&check.output().expect("node").stdout).trim() == "true";
    assert_eq!((is_locked(), state(&env).as_str()), (false, "free"));
    fs::create_dir(lock(&env)).expect("a lock");
    let ages = [0i64, 3, 6].map(|age| (age, "live"));
    let old = [11, 30, 70, 86_400].map(|age| (age, "stale"));
    let ahead = [(-3600, "stuck")]; // a clock was set back: it does not go stale by itself
    for (age, expected) in ages.into_iter().chain(old).chain(ahead) {
        // While both are asked, a live lock must not grow old: on a busy machine, they are asked again.
        let (theirs, ours) = loop {
            let at = SystemTime::now() - Duration::from_secs(age.max(0).unsigned_abs())
                + Duration::from_secs((-age).max(0).unsigned_abs());
            File::open(lock(&env)).and_then(|lock| lock.set_modified(at)).expect("a time");
            let answers = (is_locked(), state(&env));
            if expected != "live" || at.elapsed().is_ok_and(|age| age < Duration::from_secs(10)) {
                break answers;
            }
        };
        assert_eq!((theirs, ours.as_str()), (expected != "stale", expected), "{age} s old");
    }
}

#[test]
fn lock_of_npm_is_waited_for() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let Some(hold) = lockfile(&env, "hold") else { return };
    let mut holder = Running::start(hold);
    holder.expect_line("held");
    assert_eq!(state(&env), "live");
    let mut run = env.start(["--lock", "refresh", "echo", "started"]);
    assert!(run.message().contains("a refresh is under way"));
    assert!(run.is_running());
    holder.close_stdin();
    holder.expect_line("released");
    run.expect_line("started");
    assert_eq!((run.end().code(), state(&env).as_str()), (0, "free"));
}

#[test]
fn lock_of_a_killed_holder_goes_stale() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let (Some(hold), Some(again)) = (lockfile(&env, "hold"), lockfile(&env, "hold")) else { return };
    let holder = Running::start(hold);
    holder.expect_line("held");
    holder.signal(Signal::SIGKILL);
    holder.end();
    assert_eq!(state(&env), "live");
    crate::oauth::age(&lock(&env), 11);
    assert_eq!(state(&env), "stale");
    let mut next = Running::start(again);
    next.expect_line("held");
    assert_eq!(state(&env), "live");
    next.close_stdin();
    next.expect_line("released");
}

#[test]
fn fake_claude_keeps_to_the_same_protocol() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let (Some(mut check), Some(mut hold)) = (lockfile(&env, "check"), lockfile(&env, "hold")) else { return };
    let stand_in = StandIn::start(&env, &[]);
    let agent = env.agent(&stand_in, "exclusive", &[], "refresh legacy locked");
    agent.expect_line("locked");
    assert_eq!(String::from_utf8_lossy(&check.output().expect("node").stdout).trim(), "true");
    assert_eq!(String::from_utf8_lossy(&hold.output().expect("node").stdout).trim(), "ELOCKED");
}
