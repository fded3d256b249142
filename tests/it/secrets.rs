//! What is secret in claude-run's own memory stays there.

use std::fs;

use crate::env::{Env, Running, binary};

/// Soft limit of core files, in bytes, of each process in `tree`, by name.
fn core_limits(env: &Env) -> Vec<(String, String)> {
    let limit = |pid: i32| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max core file size"))?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some((name.trim().to_owned(), limit.split_whitespace().next()?.to_owned()))
    };
    env.processes().into_iter().filter_map(limit).collect()
}

#[test]
fn core_dumps_are_the_child_s_alone() {
    let env = Env::new();
    let helper = env.script("helper", "#!/bin/sh\necho key; exec sleep 600\n");
    let words = format!("'{}' --lock-helper '{}' sh -c 'echo ready; exec sleep 600'", binary().display(), helper.display());
    let mut command = env.command("bash");
    command.args(["-c", &format!("ulimit -Sc 4; exec {words}")]);
    let running = Running::start(command);
    running.expect_line("ready");
    let limits = core_limits(&env);
    let (ours, others): (Vec<_>, Vec<_>) =
        limits.iter().partition(|(name, _)| ["claude-run", "lock-monitor"].contains(&&name[..]));
    assert!(ours.len() == 2 && ours.iter().all(|(_, limit)| limit == "1"), "{limits:?}");
    assert!(others.len() == 2 && others.iter().all(|(_, limit)| limit == "4096"), "of the child and the helper: {limits:?}");
    drop(running);
    let exec = format!(
        "ulimit -Sc 4; exec '{}' --lock pass-through --timeout 0 --leftovers keep bash -c 'ulimit -c'",
        binary().display()
    );
    let mut command = env.command("bash");
    command.args(["-c", &exec]);
    assert_eq!(Running::start(command).end().stdout, ["4"]);
}
