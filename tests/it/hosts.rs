//! Several hosts on one shared file system, whose flock reaches all of them: for each a PID, mount and host name namespace of its own,
//! and another boot of the kernel by what /proc tells there.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::env::{Env, Running, binary, can_unshare, fake_claude, needs, records, wait_for_records, wait_until};
use crate::oauth::EXPIRED;

const NAMESPACES: &str = "-rmupf";

/// True if this machine lets us make hosts.
pub(crate) fn are_possible() -> bool {
    can_unshare(NAMESPACES)
}

/// Command that runs its arguments as on the host `name`, after the shell command `prepare`.
pub(crate) fn host(env: &Env, name: &str, prepare: &str) -> Command {
    let boot = env.path(&format!("boot-{name}"));
    fs::write(&boot, format!("00000000-{name}\n")).expect("a file");
    let mut command = env.command("unshare");
    let script = r#"mount -t proc proc /proc && mount --bind "$1" /proc/sys/kernel/random/boot_id && hostname "$2" && eval "$3" &&
        shift 3 && exec "$@""#;
    command.args([NAMESPACES, "--kill-child", "sh", "-c", script, "sh"]).arg(boot).args([name, prepare]);
    command.env("CLAUDE_RUN_CLAUDE", fake_claude());
    command
}

fn start(env: &Env, name: &str, words: &[&str]) -> Running {
    let mut command = host(env, name, "true");
    command.arg(binary()).args(words);
    Running::start(command)
}

/// Shell command that mounts the shared home on a host through a file system with locks of its own: bindfs, on FUSE.
pub(crate) fn files_without_locks(env: &Env) -> Option<String> {
    (needs("bindfs") && are_possible()).then(|| format!("bindfs '{0}' '{0}'", env.home().display()))
}

fn json(env: &Env, name: &str, words: &[&str]) -> Value {
    serde_json::from_str(&start(env, name, words).end().stdout.join("\n")).expect("JSON")
}

#[test]
fn hosts_on_one_file_system_exclude_each_other() {
    if !are_possible() {
        return;
    }
    let env = Env::new();
    let fake = fake_claude().display().to_string();
    let holder = start(&env, "one", &["--label", "first", "--claude", &fake, "--", "-p", "ready; hang"]);
    holder.ready();
    let busy = start(&env, "two", &["--wait", "0", "true"]).end();
    assert_eq!(busy.code(), 75, "{busy:?}");
    let waiter = start(&env, "two", &["--label", "second", "echo", "started"]);
    let message = waiter.message();
    assert!(message.contains("held by first") && message.contains("one"), "which host: {message}");
    wait_for_records(&env.config_dir(), 2);
    for from in ["one", "two", "three"] {
        let status = json(&env, from, &["status", "--json"]);
        let holder = &status["holders"][0]["record"];
        assert_eq!((&holder["label"], &holder["host"]), (&"first".into(), &"one".into()), "{from}: {status:#}");
        assert_eq!(holder["boot"], "00000000-one");
        let waiting = &status["waiting"][0];
        assert_eq!((&waiting["label"], &waiting["host"]), (&"second".into(), &"two".into()), "{from}: {status:#}");
        assert_eq!(status["trouble"], Value::Array(Vec::new()), "{from}: {status:#}");
    }
    let fleet = json(&env, "three", &["doctor", "--json"]);
    let checks = fleet["checks"].as_array().expect("a list").iter();
    let fleet: Vec<_> = checks.filter(|found| found["check"] == "fleet").collect();
    assert!(fleet.iter().all(|found| found["verdict"] == "pass"), "{fleet:#?}");
    // The host loses its power: its pids mean nothing elsewhere, and its locks are free.
    holder.signal(Signal::SIGKILL);
    holder.end();
    waiter.expect_line("started");
    assert_eq!(waiter.end().code(), 0);
    let status = json(&env, "three", &["status", "--json"]);
    assert_eq!((status["holders"].as_array().map(Vec::len), status["orphaned"].as_array().map(Vec::len)), (Some(0), Some(0)));
    wait_until("no record is left", || fs::read_dir(env.config_dir().join("claude-run/runs")).expect("records").count() == 0);
}

#[test]
fn hosts_without_shared_locks_keep_foreign_records() {
    let env = Env::new();
    let Some(mount) = files_without_locks(&env) else { return };
    let kept = || fs::read_dir(env.config_dir().join("claude-run/runs")).expect("records").count();
    // The engine: a lock that all of them do see.
    let helper = format!("flock '{}' sh -c 'echo the/key; exec sleep 600'", env.path("engine").display());
    let on = |name: &str, words: &[&str]| {
        let mut command = host(&env, name, &mount);
        command.arg(binary()).args(words);
        Running::start(command)
    };
    let status =
        |name: &str| -> Value { serde_json::from_str(&on(name, &["status", "--json"]).end().stdout.join("\n")).expect("JSON") };
    let fake = fake_claude().display().to_string();
    let holder = on("one", &["--label", "first", "--lock-helper", &helper, "--claude", &fake, "--", "-p", "ready; hang"]);
    holder.ready();
    let waiter = on("two", &["--label", "second", "--lock-helper", &helper, "echo", "started"]);
    let message = waiter.message();
    let waited = |seconds: u32| {
        let what = format!("waiting for the lock helper flock ({seconds}s of at most 10m), held by first (pid 1 on one) for");
        message.contains(&what)
    };
    assert!((1..60).any(waited), "{message}");
    for from in ["two", "three"] {
        let status = status(from);
        assert_eq!(status["holders"], Value::Array(Vec::new()), "{status:#}");
        let elsewhere: Vec<_> = status["elsewhere"].as_array().expect("a list").iter().map(|run| &run["label"]).collect();
        assert_eq!(elsewhere, ["first", "second"], "{status:#}");
        assert_eq!(status["elsewhere"][0]["lock_key"], "the/key");
    }
    let text = on("three", &["status"]).end().stdout.join("\n");
    assert!(text.contains("elsewhere      2 runs, on hosts whose locks cannot be seen from here, by their records"), "{text}");
    assert!(
        text.contains("first (pid 1 on one), exclusive, ") && text.contains("with the lock helper's lock the/key"),
        "{text}"
    );
    let shared = env.home().join("shared").to_string_lossy().into_owned();
    let setup = on("three", &["setup", "--yes", "--wait", "0", "--shared-dir", &shared]).end();
    let live = setup.stdout.join("\n");
    assert!(setup.code() == 1 && live.contains("2 runs are live there: first (pid 1 on one)"), "{setup:?}");
    let drained = on("three", &["mode", "refresh", "--drain=0.1"]).end();
    assert_eq!(drained.code(), 1);
    let drained = drained.stdout.join("\n");
    assert!(drained.contains("2 live runs still follow another mode: exclusive"), "{drained}");
    fs::remove_file(env.config_dir().join("claude-run.toml")).expect("the mode as it was");
    let doctor = on("three", &["doctor"]).end().stdout.join("\n");
    assert!(doctor.contains("is on fuse: whether its flock reaches other hosts is not known"), "{doctor}");
    let mut apart = host(&env, "three", &mount);
    apart.env("CLAUDE_RUN_LOCK_FILE", env.path("of-this-host.lock")).arg(binary()).arg("doctor");
    let doctor = Running::start(apart).end().stdout.join("\n");
    assert!(doctor.contains("is on fuse, which other hosts may share, but"), "{doctor}");
    // The host loses its power: the engine has its lock back, and nobody can tell that the record is nobody's.
    holder.signal(Signal::SIGKILL);
    holder.end();
    waiter.expect_line("started");
    assert_eq!(waiter.end().code(), 0);
    assert_eq!(status("three")["elsewhere"].as_array().map(Vec::len), Some(1));
    assert_eq!(kept(), 1);
    let record = records(&env.config_dir()).remove(0);
    let long_ago = SystemTime::now() - Duration::from_secs(3 * 60 * 60); // a run that lives touches its record
    fs::File::open(record).and_then(|record| record.set_modified(long_ago)).expect("a time");
    assert_eq!(status("three")["elsewhere"].as_array().map(Vec::len), Some(0));
    assert_eq!(kept(), 0);
    // What runs on one host is in sight there through whatever mount, by its pid.
    let through_two_mounts = format!(
        "'{0}' --label one sh -c 'echo; exec sleep 600' >out & until [ -s out ]; do sleep 0.01; done; exec 3<&1 1>/dev/null
        mkdir other; bindfs '{1}' other && CLAUDE_CONFIG_DIR=other/.claude '{0}' status >&3; kill -KILL $! && wait $!
        CLAUDE_CONFIG_DIR=other/.claude '{0}' status >&3",
        binary().display(),
        env.home().display()
    );
    let mut command = host(&env, "one", &mount);
    command.args(["sh", "-c", &through_two_mounts]);
    let seen = Running::start(command).end().stdout.join("\n");
    assert_eq!(seen.matches("elsewhere      1 run, ").count(), 1, "while it lives: {seen}");
    assert_eq!((seen.matches("held by        nobody").count(), kept()), (2, 0), "{seen}");
}

/// What another host has written a moment ago may not be seen yet, where each host caches.
#[test]
fn token_on_a_shared_file_system_is_read_when_caches_have_aged() {
    let env = Env::new();
    let Some(prepare) = files_without_locks(&env) else { return };
    env.log_in(EXPIRED);
    let helper = env.script("helper", "#!/bin/sh\ndate +%s%N >\"$0.at\"; echo key; exec sleep 600\n");
    let mut command = host(&env, "one", &prepare);
    command.arg(binary()).arg("--lock-helper").arg(&helper).args(["date", "+%s%N"]);
    let ended = Running::start(command).end();
    let started: u128 = ended.stdout.join("").parse().unwrap_or_else(|_| panic!("{ended:?}"));
    let acquired = fs::read_to_string(helper.with_extension("at")).expect("a time");
    let acquired: u128 = acquired.trim().parse().expect("a time");
    assert!(started - acquired >= 1_100_000_000, "{} ns", started - acquired);
}
