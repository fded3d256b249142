//! `--record`: one line a finished run.

use std::fs;

use serde_json::Value;

use crate::env::{Env, Running, binary, fake_claude};

fn records(env: &Env) -> Vec<Value> {
    let text = fs::read_to_string(env.path("record")).expect("a record");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn record_has_every_outcome_and_never_the_prompt() {
    let env = Env::new();
    let fake = fake_claude().display().to_string();
    let framed = |steps: &str| vec!["-p".to_owned(), steps.to_owned(), "--output-format".to_owned(), "stream-json".to_owned()];
    let cases: [(&[&str], &str, &str, u64); 8] = [
        (&[], "result new ok; exit 0", "exited", 0),
        (&[], "exit 7", "exited", 7),
        (&[], "die KILL", "killed", 137),
        (&["--timeout", "0.1"], "hang", "hard-limit", 124),
        (&["--idle-timeout", "0.1"], "hang", "idle-limit", 124),
        (&["--result-grace", "0.1"], "result old error; hang", "hung-after-result", 1),
        (&["--require-result"], "exit 0", "no-result", 65),
        (&["--claude", "/nonesuch"], "secret", "", 127),
    ];
    for (options, steps, _, code) in cases {
        let mut command = env.command(binary());
        command
            .args(["--record", "record", "--claude", &fake])
            .args(options)
            .arg("--")
            .args(framed(steps))
            .env("LOG_AGENT", "fixer");
        let ended = Running::start(command).end();
        assert_eq!(ended.code(), code as i32, "{steps}: {ended:?}");
    }
    let records = records(&env);
    let outcomes: Vec<_> = records.iter().map(|record| (record["outcome"].as_str(), record["exit_code"].as_u64())).collect();
    let expected: Vec<_> = cases.iter().filter(|case| !case.2.is_empty()).map(|case| (Some(case.2), Some(case.3))).collect();
    assert_eq!(outcomes, expected, "a program that was not found has no run");
    assert!(records.iter().all(|record| record["label"] == "fixer" && record["lock"] == "exclusive"));
    assert!(!fs::read_to_string(env.path("record")).expect("a record").contains("hang"), "no prompt");
}

#[test]
fn record_has_the_last_result_and_the_times() {
    let env = Env::new();
    let mut holder = env.hold_lock();
    let mut command = env.command(binary());
    command.args(["--record", "record", "--label", "me", "--claude"]).arg(fake_claude());
    command.args(["--", "-p", "result new error; result new ok; sleep 0.2; exit 3", "--output-format=json"]);
    let run = Running::start(command);
    assert!(run.message().contains("waiting"));
    std::thread::sleep(std::time::Duration::from_millis(300)); // the wait that the record is to tell of
    holder.close_stdin();
    assert_eq!(run.end().code(), 3);
    let record = &records(&env)[0];
    let number = |key: &str| record[key].as_f64().unwrap_or_else(|| panic!("{key}: {record}"));
    assert!(number("wait_ms") >= 300.0 && number("run_ms") >= 100.0 && number("hold_ms") >= number("run_ms"), "{record}");
    assert!(number("total_ms") >= number("wait_ms") + number("hold_ms"), "{record}");
    assert_eq!((number("turns"), number("cost_usd")), (1.0, 0.01));
    assert_eq!((&record["session_id"], &record["subtype"]), (&"fake".into(), &"success".into()));
    assert_eq!((&record["is_error"], &record["label"]), (&false.into(), &"me".into()));
}

#[test]
fn record_of_a_timed_out_wait_and_unwritable_record() {
    let env = Env::new();
    let _holder = env.hold_lock();
    env.claude_run().args(["--record", "record", "--wait", "0.1", "true"]).assert().code(75);
    assert_eq!((&records(&env)[0]["outcome"], &records(&env)[0]["run_ms"]), (&"lock-busy".into(), &Value::Null));
    let options = ["--lock", "pass-through", "--record", "/nonesuch/record", "--", "sh", "-c", "exit 3"];
    let ended = env.start(options).end();
    assert!(ended.code() == 3 && ended.stderr_text().contains("/nonesuch/record"), "{ended:?}");
}

#[test]
fn empty_label_is_none() {
    let env = Env::new();
    env.claude_run().args(["--record", "record", "--label", "", "true"]).assert().code(0);
    assert_eq!(records(&env)[0]["label"], Value::Null);
}
