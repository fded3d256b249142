//! `claude-run report`, and the history that it reads.

use std::fs;
use std::io::Write;

use serde_json::{Value, json};

use crate::env::{Env, Running, binary, fake_claude};

fn history(env: &Env) -> std::path::PathBuf {
    env.home().join(".claude/claude-run/history.jsonl")
}

fn report(env: &Env, words: &[&str]) -> String {
    let assert = env.claude_run().arg("report").args(words).assert().code(0);
    String::from_utf8_lossy(&assert.get_output().stdout).into_owned()
}

fn as_json(env: &Env, words: &[&str]) -> Value {
    serde_json::from_str(&report(env, &[&["--json"], words].concat())).expect("JSON")
}

#[test]
fn report_sums_runs_waits_holds_and_cost() {
    let env = Env::new();
    assert_eq!(report(&env, &[]), "0 finished runs\n");
    let claude = |label: &str, steps: &str| {
        let mut command = env.command(binary());
        command.args(["--label", label, "--claude"]).arg(fake_claude()).args([
            "--",
            "-p",
            steps,
            "--output-format",
            "stream-json",
        ]);
        Running::start(command).end().code()
    };
    assert_eq!(claude("review", "result new ok; exit 0"), 0);
    assert_eq!(claude("review", "exit 3"), 3);
    let holder = env.hold_lock();
    env.claude_run().args(["--label", "late", "--wait", "1.1", "true"]).assert().code(75);
    drop(holder);
    let seen = as_json(&env, &[]);
    assert_eq!((&seen["runs"], &seen["failed"], &seen["skipped_lines"]), (&json!(3), &json!(2), &json!(0)));
    assert_eq!(seen["outcomes"], json!({"exited": 2, "lock-busy": 1}));
    assert_eq!((&seen["labels"][1]["label"], &seen["labels"][1]["runs"]), (&json!("review"), &json!(2)));
    assert!(seen["cost_usd"].as_f64() > Some(0.0) && seen["turns"].as_u64() > Some(0), "{seen}");
    assert_eq!((&seen["wait_ms"]["count"], &seen["hold_ms"]["count"]), (&json!(3), &json!(2)));
    assert!(seen["wait_ms"]["max"].as_u64() >= Some(1100), "{seen}");
    let text = report(&env, &[]);
    for part in ["3 finished runs\n", "lock-busy                 1\n", "  < 10s        1  ###", "lost to the lock: "] {
        assert!(text.contains(part), "{part:?}: {text}");
    }
    let review = text.lines().find(|line| line.starts_with("review")).expect("a line");
    assert_eq!(review.split_whitespace().take(3).collect::<Vec<_>>(), ["review", "2", "1"]);
    assert_eq!(as_json(&env, &["--since", "1h"])["runs"], json!(3));
    assert_eq!(as_json(&env, &["--since=1ms"])["runs"], json!(0));
    env.claude_run().args(["report", "--since", "x"]).assert().code(125);
}

#[test]
fn truncated_or_foreign_line_is_skipped_and_counted() {
    let env = Env::new();
    env.claude_run().arg("true").assert().code(0);
    let mut file = fs::File::options().append(true).open(history(&env)).expect("a history");
    let line = fs::read_to_string(history(&env)).expect("a history");
    write!(file, "{}\n{{\"run\":{line}\n\u{0}\nnot JSON\n", &line[..40]).expect("written");
    env.claude_run().arg("true").assert().code(0);
    let seen = as_json(&env, &[]);
    assert_eq!((&seen["runs"], &seen["skipped_lines"]), (&json!(2), &json!(4)));
    assert!(report(&env, &[]).contains("4 lines of the history skipped"));
}

#[test]
fn large_history_is_rotated_and_still_read() {
    let env = Env::new();
    env.claude_run().arg("true").assert().code(0);
    let line = fs::read_to_string(history(&env)).expect("a history");
    let count = (8 << 20) / line.len() + 1;
    fs::write(history(&env), line.repeat(count)).expect("written");
    let runs: Vec<_> = (0..8).map(|_| env.start(["--lock", "pass-through", "--", "true"])).collect();
    runs.into_iter().for_each(|run| assert_eq!(run.end().code(), 0));
    assert_eq!(as_json(&env, &[])["runs"], json!(count + 8));
    assert!(fs::metadata(history(&env)).expect("a history").len() < 1 << 20);
    let older = history(&env).with_file_name("history.1.jsonl");
    assert!(fs::metadata(older).expect("the older history").len() >= 8 << 20);
}
