//! What is secret in claude-run's own memory stays there.

use std::fs;

use serde_json::Value;

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

const TOKEN: &str = "ghp_0123456789abcdef";

/// Names of the fields in which a string has the token, at any depth.
fn fields_with_token(value: &Value) -> Vec<&str> {
    let has_token = |value: &Value| value.to_string().contains(TOKEN);
    let members = value.as_object().into_iter().flatten();
    members.filter(|(_, value)| has_token(value)).map(|(name, _)| name.as_str()).collect()
}

/// A secret is masked before its text is cut: its beginning alone would not be known.
#[test]
fn secret_at_the_end_of_what_is_kept_is_masked() {
    let env = Env::new();
    let cut = |length: usize| format!("{:x<width$} postgres://me:Sw0rdf1shHunter22@db/x", "", width = length - 30);
    let label = cut(1024);
    let frame = format!(r#"{{"type":"result","subtype":"{label}","is_error":false,"session_id":"{label}"}}"#);
    let runs = env.config_dir().join("claude-run/runs");
    let child = format!("until cat {}/*.json 2>/dev/null; do sleep 0.1; done; echo '{frame}'", runs.display());
    let output = env.claude_run().args(["--label", &label, "-v", "--log", "log", "sh", "-c", &child]).assert().code(0);
    let [record, _, ..] =
        &String::from_utf8_lossy(&output.get_output().stdout).lines().map(str::to_owned).collect::<Vec<_>>()[..]
    else {
        panic!("{output:?}")
    };
    let history = fs::read_to_string(env.config_dir().join("claude-run/history.jsonl")).expect("a history");
    for kept in [record, &history] {
        assert!(kept.contains("xxx postgres://") && !kept.contains("Sw0rd"), "{kept}");
    }
    for format in ["text", "json"] {
        let output = env.claude_run().args(["--log-format", format, "--timeout", &cut(4096), "true"]).assert().code(125);
        let message = String::from_utf8_lossy(&output.get_output().stderr);
        assert!(message.contains("xxx postgres://") && !message.contains("Sw0rd"), "{message}");
        let output = env.claude_run().args(["--log-format", format, "--log", &cut(4076), "true"]).assert().code(0);
        let message = String::from_utf8_lossy(&output.get_output().stderr);
        assert!(message.contains("xxx postgres://") && !message.contains("Sw0rd"), "{message}");
    }
}

/// Each input of a run has a token: program, arguments, directories, label, key, frames. Where a record has one, it has to be exact.
#[test]
fn words_of_others_are_kept_masked() {
    let env = Env::new();
    let runs = env.config_dir().join("claude-run/runs");
    let frame = format!(r#"{{"type":"result","subtype":"{TOKEN}","is_error":false,"session_id":"{TOKEN}"}}"#);
    let program = env.script(TOKEN, &format!("#!/bin/sh\ncat {}/*.json; echo '{frame}'\n", runs.display()));
    let helper = env.script("helper", &format!("#!/bin/sh\necho key/{TOKEN}; exec sleep 600\n"));
    let cwd = env.path(&format!("cwd {TOKEN}"));
    fs::create_dir(&cwd).expect("a directory");
    let mut command = env.claude_run();
    command.current_dir(&cwd).args(["--label", TOKEN, "--record", "record", "--lock-helper"]).arg(helper);
    command.arg("--lock-file").arg(env.path(&format!("lock {TOKEN}"))).arg(program);
    command.args([TOKEN, "--output-format", "stream-json"]);
    let output = command.assert().code(0).get_output().stdout.clone();
    let record: Value = serde_json::from_slice(output.split(|&byte| byte == b'\n').next().expect("a line")).expect("a record");
    assert_eq!(fields_with_token(&record), ["lock"], "{record:#}");
    for name in ["label", "lock_key", "program", "cwd"] {
        assert!(record[name].as_str().is_some_and(|text| text.ends_with("ghp_***")), "{name}: {record:#}");
    }
    let history = env.config_dir().join("claude-run/history.jsonl");
    for file in [&history, &cwd.join("record")] {
        let line: Value = serde_json::from_slice(&fs::read(file).expect("a file")).expect("a line");
        assert_eq!(fields_with_token(&line), [""; 0], "{line:#}");
        assert_eq!([&line["label"], &line["subtype"], &line["session_id"]], ["ghp_***"; 3]);
    }
    // Whoever sweeps a dead record writes its line.
    let mut forged = record;
    let exact = ["run", "state", "since", "began", "lock", "config_dir", "parent", "boot", "pid_namespace"];
    for (name, value) in forged.as_object_mut().expect("an object") {
        if value.is_string() && !exact.contains(&name.as_str()) {
            *value = TOKEN.into();
        }
    }
    (forged["run"], forged["pid"], forged["hold"]) = ("4194001-1".into(), 4_194_001.into(), Value::Null);
    fs::write(runs.join("4194001-1.json"), forged.to_string()).expect("a record");
    env.claude_run().arg("status").output().expect("started");
    let text = fs::read_to_string(history).expect("a history");
    assert!(text.lines().count() == 2 && text.contains("vanished") && !text.contains(TOKEN), "{text}");
}

#[test]
fn words_of_others_are_shown_masked() {
    let env = Env::new();
    env.make_lock_file();
    let (token, password) = ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "s3cr3tPassw0rdX");
    fs::write(
        env.home().join(".claude/claude-run.toml"),
        format!("lock-helper = \"etcdctl --user root:{password} lock x\"\nlabel = \"at {token}\"\n"),
    )
    .expect("a file");
    for operation in ["settings", "status", "doctor", "mode"] {
        for form in [&[operation][..], &[operation, "--json"]] {
            let ended = env.start(form).end();
            let shown = [ended.stdout.join("\n"), ended.stderr_text()].concat();
            assert!(!shown.contains(token) && !shown.contains(password), "{form:?}: {shown}");
            assert!(operation != "settings" || shown.contains("root:***") && shown.contains("at ghp_***"), "{form:?}: {shown}");
        }
    }
}
