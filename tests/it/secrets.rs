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

#[test]
fn words_of_others_are_kept_masked() {
    let env = Env::new();
    let frame = r#"{"type":"result","subtype":"ghp_0123456789abcdef","is_error":false,"session_id":"sk-ant-api03-x"}"#;
    let words = [
        "--label",
        "agent GH_TOKEN=abcdef",
        "--record",
        "record",
        "sh",
        "-c",
        "cat $PWD/home/.claude/claude-run/runs/*; echo \"$0\"",
        frame,
    ];
    let output =
        env.claude_run().args(words).args(["--output-format", "stream-json"]).assert().code(0).get_output().stdout.clone();
    let history = fs::read_to_string(env.home().join(".claude/claude-run/history.jsonl")).expect("a history");
    let record = fs::read_to_string(env.path("record")).expect("a record");
    for text in [history, record] {
        let line: serde_json::Value = serde_json::from_str(&text).expect("a line");
        assert_eq!([&line["label"], &line["subtype"], &line["session_id"]], ["agent GH_TOKEN=***", "ghp_***", "sk-ant-***"]);
    }
    assert!(!String::from_utf8_lossy(&output).contains("TOKEN=abcdef"));
}
