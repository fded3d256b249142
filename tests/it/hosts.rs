//! Several hosts on one shared file system, whose flock reaches all of them: for each a PID, mount and host name namespace of its own,
//! and another boot of the kernel by what /proc tells there.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::env::{Env, Running, binary, can_unshare, fake_claude, until};

const NAMESPACES: &str = "-rmupf";

/// Whether this machine lets us make hosts.
pub(crate) fn are_possible() -> bool {
    can_unshare(NAMESPACES)
}

/// What starts its arguments as on the host `name`, once `prepare`, a shell command, was run there.
pub(crate) fn host(env: &Env, name: &str, prepare: &str) -> Command {
    let boot = env.path(&format!("boot-{name}"));
    fs::write(&boot, format!("00000000-{name}\n")).expect("a file");
    let mut command = env.command("unshare");
    let script = r#"mount -t proc proc /proc && mount --bind "$1" /proc/sys/kernel/random/boot_id && hostname "$2" && eval "$3" &&
        shift 3 && exec "$@""#;
    command.args([NAMESPACES, "--kill-child", "sh", "-c", script, "sh"]).arg(boot).args([name, prepare]);
    command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    command
}

fn start(env: &Env, name: &str, words: &[&str]) -> Running {
    let mut command = host(env, name, "true");
    command.arg(binary()).args(words);
    Running::start(command)
}

fn json(env: &Env, name: &str, words: &[&str]) -> Value {
    serde_json::from_str(&start(env, name, words).end().stdout.join("\n")).expect("JSON")
}

#[test]
fn on_a_shared_file_system_hosts_exclude_each_other_and_see_each_other_s_runs() {
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
    until("both have a record", || fs::read_dir(env.config_dir().join("claude-run/runs")).expect("records").count() == 2);
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
    until("no record is left", || fs::read_dir(env.config_dir().join("claude-run/runs")).expect("records").count() == 0);
}
