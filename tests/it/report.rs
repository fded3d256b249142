//! `claude-run report`, and the history that it reads.

use std::fs;
use std::io::Write;

use serde_json::{Value, json};

use crate::env::{Env, Running, binary, fake_claude, is_alive, wait_for_records, wait_until};
use crate::oauth::FRESH;

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
    let endings = [("exited", 0), ("exited", 3), ("lock-busy", 75)];
    let endings = endings.map(|(outcome, code)| json!({"outcome": outcome, "exit_code": code, "runs": 1}));
    assert_eq!(seen["endings"], Value::Array(endings.to_vec()));
    let hour = &seen["last_day"][23];
    assert_eq!((&hour["runs"], &hour["failed"], &hour["refreshes"]), (&json!(3), &json!(2), &json!(0)));
    assert_eq!((&seen["labels"][1]["label"], &seen["labels"][1]["runs"]), (&json!("review"), &json!(2)));
    assert!(seen["cost_usd"].as_f64() > Some(0.0) && seen["turns"].as_u64() > Some(0), "{seen}");
    assert_eq!((&seen["wait_ms"]["count"], &seen["hold_ms"]["count"]), (&json!(3), &json!(2)));
    assert!(seen["wait_ms"]["max"].as_u64() >= Some(1100), "{seen}");
    let text = report(&env, &[]);
    for part in ["3 finished runs\n", "lock busy (75)            1\n", "exited (3) ", "\n< 10s ", "lost to the lock: 1"] {
        assert!(text.contains(part), "{part:?}: {text}");
    }
    let review = text.lines().find(|line| line.starts_with("review")).expect("a line");
    assert_eq!(review.split_whitespace().take(3).collect::<Vec<_>>(), ["review", "2", "1"]);
    assert_eq!(as_json(&env, &["--since", "1h"])["runs"], json!(3));
    assert_eq!(as_json(&env, &["--since=1ms"])["runs"], json!(0));
    env.claude_run().args(["report", "--since", "x"]).assert().code(125);
}

#[test]
fn refused_login_is_counted_in_a_row() {
    let env = Env::new();
    let after = |steps: &str| {
        let mut command = env.command(binary());
        command.arg("--claude").arg(fake_claude()).args(["--", "-p", steps, "--output-format", "stream-json"]);
        Running::start(command).end();
        (as_json(&env, &[])["refused_in_a_row"].clone(), report(&env, &[]).contains("log in again"))
    };
    assert_eq!(after("result old ok"), (json!(0), false));
    assert_eq!(after("result old refused; exit 1"), (json!(1), false));
    assert_eq!(after("exit 3"), (json!(1), false), "no result says nothing");
    assert_eq!(after("result new refused; exit 1"), (json!(2), true));
    let refusals = "the last 2 runs in a row ended with \"authentication refused (401)\"";
    assert!(report(&env, &[]).contains(&format!("{refusals}: log in again\n")));
    let shown = |operation: &str| {
        let output = env.command(binary()).arg(operation).output().expect("started");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for operation in ["status", "doctor"] {
        assert!(shown(operation).contains(refusals), "{}", shown(operation));
    }
    let older = history(&env).with_file_name("history.1.jsonl");
    fs::rename(history(&env), &older).expect("rotated");
    for operation in ["status", "doctor"] {
        assert!(shown(operation).contains(refusals), "behind a rotation: {}", shown(operation));
    }
    fs::rename(&older, history(&env)).expect("back");
    env.log_in(FRESH);
    for operation in ["status", "doctor"] {
        assert!(!shown(operation).contains(refusals), "somebody has logged in since: {}", shown(operation));
    }
    assert_eq!(after("result new error; exit 1"), (json!(0), false), "for another reason");
}

/// History of before a variable became secret, or of another writer.
#[test]
fn secrets_in_a_history_are_in_no_report() {
    let env = Env::new();
    env.claude_run().args(["--label", "verysecretvalue123", "true"]).assert().code(0);
    let line = fs::read_to_string(history(&env)).expect("a history");
    let (tokens, outcomes) = (["ghp_0123456789abcdef", "ghp_fedcba9876543210"], ["exited", "ghp_00112233445566"]);
    let foreign = tokens.iter().zip(outcomes).map(|(token, outcome)| {
        line.replace("verysecretvalue123", token).replace("\"outcome\":\"exited\"", &format!("\"outcome\":\"{outcome}\""))
    });
    fs::write(history(&env), foreign.fold(line.clone(), |all, line| all + &line)).expect("written");
    for form in [&[][..], &["--json"], &["--prometheus"]] {
        let output =
            env.claude_run().env("FORGE_TOKEN", "verysecretvalue123").arg("report").args(form).output().expect("started");
        let shown = String::from_utf8_lossy(&output.stdout);
        let secrets = ["verysecret", "0123456789", "fedcba", "001122"];
        assert!(!secrets.iter().any(|secret| shown.contains(secret)) && shown.contains("ghp_***"), "{form:?}: {shown}");
        if let Some(json) = form.first().filter(|form| **form == "--json").map(|_| as_json(&env, &[])) {
            assert_eq!(
                (&json["outcomes"], &json["labels"][0]["runs"]),
                (&json!({"exited": 2, "ghp_***": 1}), &json!(2)),
                "{json}"
            );
        }
        let series = shown.lines().filter(|line| line.starts_with("claude_run_label_runs{label=\"ghp_***\"}"));
        assert_eq!(series.count(), usize::from(form == ["--prometheus"]), "{shown}");
    }
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
fn report_reads_a_history_of_any_size() {
    let env = Env::new();
    env.claude_run().arg("true").assert().code(0);
    let line = fs::read_to_string(history(&env)).expect("a history");
    // Long lines, which are read faster.
    let line = line.replace(r#""label":null"#, &format!(r#""label":"{}""#, "l".repeat(256 << 10)));
    let count = (66 << 20) / line.len() + 1;
    fs::write(history(&env), line.repeat(count) + &"x".repeat(3 << 20) + "\n").expect("written");
    let seen = as_json(&env, &[]);
    assert_eq!((&seen["runs"], &seen["skipped_lines"]), (&json!(count), &json!(1)));
    let status = env.claude_run().args(["status", "--json"]).assert().code(0).get_output().stdout.clone();
    let status: Value = serde_json::from_slice(&status).expect("JSON");
    assert!(status["last"].as_array().is_some_and(|last| !last.is_empty()), "behind a line that is none");
}

#[test]
fn prometheus_gets_gauges() {
    let env = Env::new();
    env.claude_run().args(["--label", "a\"b", "sh", "-c", "exit 3"]).assert().code(3);
    let text = report(&env, &["--prometheus"]);
    for part in [
        "# TYPE claude_run_runs gauge\n",
        "claude_run_runs{outcome=\"exited\",exit_code=\"3\"} 1\n",
        "claude_run_failed_runs{label=\"a\\\"b\"} 1\n",
        "claude_run_wait_seconds{quantile=\"0.5\"} ",
    ] {
        assert!(text.contains(part), "{part:?}: {text}");
    }
    let is_metric = |line: &str| {
        let value = line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
        line.starts_with("# ") || (line.starts_with("claude_run_") && value.is_some())
    };
    assert_eq!(text.lines().find(|line| !is_metric(line)), None);
    env.claude_run().args(["report", "--json", "--prometheus"]).assert().code(125);
}

#[test]
fn killed_run_has_a_line_of_history() {
    let env = Env::new();
    let run = env.start_fake(&["--label", "lost"], "ready; hang");
    let [child, ..] = run.ready();
    wait_for_records(&env.config_dir(), 1);
    run.signal(nix::sys::signal::Signal::SIGKILL);
    run.end();
    wait_until("its child has ended", || !is_alive(child));
    // Many look at once, and one of them sweeps.
    let looks: Vec<_> = (0..8).map(|_| env.start(["status", "--json"])).collect();
    looks.into_iter().for_each(|look| drop(look.end()));
    let seen = as_json(&env, &[]);
    assert_eq!(seen["endings"], json!([{"outcome": "vanished", "exit_code": null, "runs": 1}]));
    let line = fs::read_to_string(history(&env)).expect("a history");
    let line: Value = serde_json::from_str(&line).expect("one line");
    assert_eq!((&line["label"], &line["lock"], &line["exit_code"]), (&json!("lost"), &json!("exclusive"), &Value::Null));
    let shown = env.claude_run().arg("status").assert().code(0).get_output().stdout.clone();
    assert!(String::from_utf8_lossy(&shown).contains("last runs      lost: vanished "));
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
