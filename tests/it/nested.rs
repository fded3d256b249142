//! claude-run below claude-run: an agent whose claude calls claude cannot wait for itself, and nobody else gets through.

use crate::env::{Env, binary, until};

#[test]
fn a_run_below_a_holder_runs_at_once_at_any_depth() {
    let env = Env::new();
    let us = binary().display().to_string();
    env.claude_run()
        .args(["--", &us, "--wait", "0", "--", &us, "--wait", "0", "--", "sh", "-c", "echo in; exit 6"])
        .assert()
        .code(6)
        .stdout("in\n");
}

#[test]
fn a_daemon_of_the_holder_is_below_it_as_well() {
    let env = Env::new();
    let script = format!("(setsid '{}' --wait 0 -- echo in >out 2>&1 &); sleep 0.5; cat out", binary().display());
    let run = env.start(["--", "bash", "-c", &script]);
    run.expect_line("in");
}

#[test]
fn a_stale_claim_lets_nobody_through() {
    let env = Env::new();
    let run = env.start_fake(&[], "env CLAUDE_RUN_HELD; exit 0");
    let stale = run.line().split_once('=').expect("a claim").1.to_owned();
    run.end();
    let holder = env.start_fake(&[], "env CLAUDE_RUN_HELD; hang");
    let live = holder.line().split_once('=').expect("a claim").1.to_owned();
    // A dead run's claim; a live run's claim in a process that is not below it; things that are no claim.
    for claim in [&*stale, &*live, "", "x", "1:2:3-4"] {
        env.claude_run().env("CLAUDE_RUN_HELD", claim).args(["--wait", "0", "true"]).assert().code(75);
    }
}

#[test]
fn a_claim_on_another_lock_lets_nobody_through() {
    let env = Env::new();
    let _holder = env.hold_lock();
    let us = binary().display().to_string();
    let other = env.path("other.lock").display().to_string();
    env.claude_run().args(["--lock-file", &other, "--", &us, "--wait", "0", "true"]).assert().code(75);
}

#[test]
fn a_run_below_pass_through_takes_the_lock() {
    let env = Env::new();
    let us = binary().display().to_string();
    let run =
        env.start(["--lock", "pass-through", "--", &us, "--lock", "exclusive", "--", "sh", "-c", "echo in; exec sleep 600"]);
    run.expect_line("in");
    until("the lock is held", || env.is_locked());
}

#[test]
fn a_claude_on_path_that_calls_claude_run_again_is_found_out() {
    let env = Env::new();
    env.script("bin/claude", &format!("#!/bin/sh\nexec '{}' -- claude \"$@\"\n", binary().display()));
    let path = format!("{}:/usr/bin:/bin", env.path("bin").display());
    let assert = env.claude_run().env("PATH", path).args(["--", "-p", "hi"]).assert().code(125);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("CLAUDE_RUN_CLAUDE"), "{stderr}");
}
