//! Records and history beside others who write there too: nothing of theirs is changed, and they cannot make us point at anybody.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::env::{Env, Running, binary, fake_claude, needs_root, records, wait_for_records, wait_until};

fn dir(env: &Env) -> PathBuf {
    env.home().join(".claude/claude-run")
}

fn runs(env: &Env) -> PathBuf {
    dir(env).join("runs")
}

fn seen_by(env: &Env, operation: &str) -> Value {
    let output = env.claude_run().args([operation, "--json"]).output().expect("started");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Every operation that looks at records, and a run that waits.
fn look_from_all_sides(env: &Env) {
    for operation in ["status", "doctor", "mode", "report"] {
        env.claude_run().arg(operation).output().expect("started");
    }
    let _holder = env.hold_lock();
    env.claude_run().args(["--wait", "0.1", "true"]).output().expect("started");
}

fn make_old(path: &PathBuf) {
    let old = SystemTime::now() - Duration::from_secs(86_400);
    File::options().write(true).open(path).expect("a file").set_modified(old).expect("a time");
}

#[test]
fn line_after_a_cut_one_is_whole() {
    let env = Env::new();
    let (history, record, log) = (dir(&env).join("history.jsonl"), env.path("record"), env.path("log"));
    fs::create_dir_all(dir(&env)).expect("a directory");
    for path in [&history, &record, &log] {
        fs::write(path, "{\"run\":\"cut").expect("a file");
    }
    for _ in 0..2 {
        env.claude_run().args(["--record", "record", "--log", "log", "echo", "said"]).assert().code(0);
    }
    for path in [&history, &record] {
        let text = fs::read_to_string(path).expect("a file");
        let whole = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
        assert_eq!((whole, text.lines().count()), (2, 3), "{text}");
    }
    let text = fs::read_to_string(&log).expect("a log");
    assert!(text.starts_with("{\"run\":\"cut\n") && text.matches(" stdout: said\n").count() == 2, "{text}");
    assert_eq!(seen_by(&env, "report")["runs"], 2);
}

#[test]
fn linked_directories_lose_nothing() {
    for link in ["claude-run", "claude-run/runs"] {
        let env = Env::new();
        let elsewhere = env.path("elsewhere");
        fs::create_dir_all(elsewhere.join("runs")).expect("a directory");
        let names = ["2026-11.json", "7-7.json", "7-8.tmp", "runs/7-7.json", "history.jsonl"];
        for path in names.map(|name| elsewhere.join(name)) {
            fs::write(&path, "{\"run\":\"7-").expect("a file");
            make_old(&path);
        }
        let link = env.home().join(".claude").join(link);
        fs::create_dir_all(link.parent().expect("a parent")).expect("a directory");
        symlink(&elsewhere, &link).expect("a link");
        look_from_all_sides(&env);
        let kept = names.map(|name| fs::read(elsewhere.join(name)).ok());
        assert!(kept.iter().all(|text| text.as_deref() == Some(b"{\"run\":\"7-")), "{kept:?}");
        assert_eq!(fs::read_dir(elsewhere).expect("a directory").count(), 5, "and nothing is added");
    }
}

#[test]
fn linked_history_is_not_written() {
    for hard in [false, true] {
        let env = Env::new();
        fs::create_dir_all(dir(&env)).expect("a directory");
        let profile = env.path("profile");
        fs::write(&profile, "theirs\n".repeat(2 << 20)).expect("a file"); // large enough to be rotated
        let history = dir(&env).join("history.jsonl");
        if hard { fs::hard_link(&profile, &history) } else { symlink(&profile, &history) }.expect("a link");
        let ended = env.start(["--", "true"]).end();
        assert!(ended.code() == 0 && ended.stderr_text().contains("cannot keep records"), "{ended:?}");
        assert_eq!(fs::metadata(&profile).expect("a file").len(), 14 << 20);
        assert!(fs::symlink_metadata(&history).is_ok(), "nor renamed");
    }
}

#[test]
fn foreign_files_beside_records_are_kept() {
    let env = Env::new();
    fs::create_dir_all(runs(&env)).expect("a directory");
    let dead = r#"{"run":"7-7","state":"waiting"}"#;
    let files = [("2026-11.json", "{}"), ("2026-11.tmp", "x"), ("8-8.json", dead), ("07-7.json", dead), ("7-7.json.bak", dead)];
    for (name, text) in files {
        fs::write(runs(&env).join(name), text).expect("a file");
        make_old(&runs(&env).join(name));
    }
    fs::write(runs(&env).join("7-7.json"), dead).expect("a file");
    look_from_all_sides(&env);
    for (name, text) in files {
        assert_eq!(fs::read_to_string(runs(&env).join(name)).ok().as_deref(), Some(text), "{name}");
    }
    assert!(!runs(&env).join("7-7.json").exists(), "a record of ours");
}

#[test]
fn fifo_keeps_what_its_writer_writes() {
    for name in [
        "session.lock",
        "claude-run.toml",
        ".credentials.json",
        "settings.json",
        "claude-run/history.jsonl",
        "claude-run/runs/1-1.json",
    ] {
        let env = Env::new();
        let fifo = env.home().join(".claude").join(name);
        fs::create_dir_all(fifo.parent().expect("a parent")).expect("a directory");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        // Both ends are ours, so that a reader that comes and goes would take the bytes, and not end the writer.
        let mut ours = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&fifo).expect("a FIFO");
        ours.write_all(b"theirs").expect("room");
        look_from_all_sides(&env);
        let mut read = [0; 7];
        assert_eq!(ours.read(&mut read).ok(), Some(6), "{name}");
    }
}

#[test]
fn moved_config_dir_is_not_made_again() {
    let env = Env::new();
    let (at, moved) = (env.home().join(".claude"), env.path("moved"));
    let run = env.start_fake(&[], "on TERM exit 3; ready; hang");
    run.ready();
    let waiter = env.start(["--", "echo", "started"]);
    assert!(waiter.message().contains("waiting"));
    fs::rename(&at, &moved).expect("moved");
    run.signal(Signal::SIGTERM);
    let ended = run.end();
    assert!(ended.code() == 3 && ended.stderr_text().contains("cannot keep records"), "{ended:?}");
    let ended = waiter.end();
    assert_eq!((ended.code(), ended.stdout.len()), (125, 0), "a config dir without a login is none: {ended:?}");
    assert!(ended.stderr_text().contains("session.lock"), "{ended:?}");
    assert!(!at.exists() && moved.exists());
}

#[test]
fn starting_runs_are_seen_with_their_record() {
    let env = Env::new();
    let stop = env.path("stop");
    let script = r#"while [ ! -e "$1" ]; do "$0" true; done"#;
    let loops: Vec<_> = (0..2)
        .map(|_| {
            let mut command = env.command("bash");
            command.args(["-c", script]).arg(binary()).arg(&stop);
            Running::start(command)
        })
        .collect();
    for _ in 0..60 {
        let seen = seen_by(&env, "status");
        let without = seen["holders"].as_array().expect("holders").iter().any(|holder| holder["record"].is_null());
        assert!(!without && seen["waiting_without_record"] == json!([]), "{seen}");
    }
    fs::write(&stop, "").expect("a file");
    loops.into_iter().for_each(|run| assert_eq!(run.end().code(), 0));
}

#[test]
fn forged_record_names_no_process() {
    let env = Env::new();
    let run = env.start_fake(&["--label", "real"], "ready; hang");
    run.ready();
    wait_for_records(&env.config_dir(), 1);
    let text = fs::read(&records(&env.config_dir())[0]).expect("a record");
    let mut forged: Value = serde_json::from_slice(&text).expect("JSON");
    run.signal(Signal::SIGTERM);
    run.end();
    let victim = std::process::id();
    (forged["run"], forged["child"], forged["hold"]) = ("7-7".into(), victim.into(), "own".into());
    (forged["label"], forged["pid"]) = ("forged".into(), 7.into());
    let _holder = env.hold_lock();
    fs::write(runs(&env).join("7-7.json"), forged.to_string()).expect("a record");
    let seen = seen_by(&env, "status");
    assert!(!seen["trouble"].to_string().contains(&format!("(pid {victim})")), "{seen}");
    let doctor = env.claude_run().arg("doctor").env("CLAUDE_RUN_CLAUDE", fake_claude()).output().expect("started");
    assert!(!String::from_utf8_lossy(&doctor.stdout).contains(&format!("(pid {victim})")), "{doctor:?}");
}

#[test]
fn orphan_on_another_lock_file_is_not_this_ones() {
    let env = Env::new();
    let other = env.path("other.lock").display().to_string();
    let run = env.start_fake(&["--label", "orphan", "--lock-file", &other], "ignore TERM; ready; hang");
    let [child, ..] = run.ready();
    wait_for_records(&env.config_dir(), 1);
    run.signal(Signal::SIGKILL);
    run.end();
    let seen = seen_by(&env, "status");
    assert_eq!((&seen["orphaned"], &seen["holders"]), (&json!([]), &json!([])), "{seen}");
    let output = env.claude_run().args(["--lock-file", &other, "status", "--json"]).output().expect("started");
    let seen: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(seen["orphaned"][0]["child"], child, "{seen}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL).expect("alive");
}

#[test]
fn run_ended_by_a_limit_can_be_resumed() {
    let env = Env::new();
    let ended = |steps: &str| {
        let mut command = env.command(binary());
        command.args(["--timeout", "1", "--kill-after", "0.2", "--record", "record", "--claude"]).arg(fake_claude());
        command.args(["--", "-p", steps, "--output-format", "stream-json"]);
        assert_eq!(Running::start(command).end().code(), 124, "{steps}");
        let text = fs::read_to_string(env.path("record")).expect("a record");
        serde_json::from_str::<Value>(text.lines().last().expect("a line")).expect("JSON")
    };
    let record = ended("init; on TERM exit 143; hang");
    assert_eq!((&record["session_id"], &record["subtype"]), (&"fake".into(), &Value::Null), "{record}");
    assert_eq!((&record["child_exit_code"], &record["child_signal"]), (&143.into(), &Value::Null), "{record}");
    let record = ended("init; ignore TERM; hang");
    assert_eq!((&record["child_exit_code"], &record["child_signal"]), (&Value::Null, &9.into()), "{record}");
}

#[test]
fn absurd_numbers_are_clamped() {
    let env = Env::new();
    fs::create_dir_all(dir(&env)).expect("a directory");
    let long = "x".repeat(1 << 20);
    let line = |began: &str| {
        let most = u64::MAX;
        format!(
            r#"{{"run":"1-2","label":"{long}","outcome":"{long}","exit_code":0,"began":"{began}","total_ms":{most},"wait_ms":{most},"turns":{most},"cost_usd":1e308}}"#
        )
    };
    let lines = [line("9999-12-31T23:59:59Z"), line("1970-01-01T00:00:00Z"), line("2026-01-01T00:00:00Z")];
    fs::write(dir(&env).join("history.jsonl"), lines.join("\n") + "\n").expect("a history");
    let login = r#"{"claudeAiOauth":{"accessToken":"a","refreshToken":"b","expiresAt":18446744073709551615}}"#;
    fs::write(env.home().join(".claude/.credentials.json"), login).expect("a login");
    let seen = seen_by(&env, "report");
    assert_eq!(seen["runs"], 3);
    assert!(seen["cost_usd"].is_f64() && seen["turns"].as_u64() < Some(u64::MAX / 2), "{seen}");
    assert_eq!(seen_by(&env, "status")["token"]["expires"], "9999-12-31T23:59:59.000Z");
    for words in [&["status"][..], &["report"], &["report", "--since", "30000d"], &["events", "--since", "30000d"]] {
        let output = env.claude_run().args(words).output().expect("started");
        assert!(output.status.code() == Some(0) && output.stdout.len() < 32_000, "{words:?}: {output:?}");
    }
}

#[test]
fn texts_of_any_length_have_an_end() {
    let env = Env::new();
    let long = "x".repeat(300_000);
    let one = env.start_fake(&["--label", "one"], "ready; hang");
    one.ready();
    wait_until("it has a record", || seen_by(&env, "status")["holders"].as_array().is_some_and(|holders| holders.len() == 1));
    let record = records(&env.config_dir()).remove(0);
    let text = fs::read_to_string(&record).expect("a record");
    let forged = text.replace("\"label\":\"one\"", &format!("\"label\":\"{long}\""));
    assert!(forged.len() > 300_000);
    fs::write(record, forged).expect("a record");
    fs::write(env.home().join(".claude/claude-run.toml"), format!("lock = \"{long}\"\n")).expect("a settings file");
    let moved = format!("{{\"env\":{{\"CLAUDE_SECURESTORAGE_CONFIG_DIR\":\"/{long}\"}}}}");
    fs::write(env.home().join(".claude/settings.json"), moved).expect("settings");
    for name in ["status", "doctor", "mode", "settings", "report"] {
        for words in [&[name][..], &[name, "--json"]] {
            let output = env.claude_run().args(words).output().expect("started");
            let longest = output.stdout.split(|byte| *byte == b'\n').map(<[u8]>::len).max();
            assert!(longest < Some(120_000) && output.status.code() < Some(2), "{words:?}: {longest:?}, {:?}", output.status);
        }
    }
}

#[test]
fn lock_file_removed_under_a_run_is_trouble() {
    let env = Env::new();
    let one = env.start_fake(&["--label", "one"], "ready; hang");
    one.ready();
    let waiter = env.start(["--label", "waiter", "--", "true"]);
    assert!(waiter.message().contains("waiting for the session lock"));
    wait_for_records(&env.config_dir(), 2);
    fs::remove_file(env.lock_file()).expect("a lock file");
    let trouble = || {
        let status = env.claude_run().arg("status").assert().code(1);
        String::from_utf8_lossy(&status.get_output().stdout).into_owned()
    };
    let expected = "the session lock was removed or replaced under one (pid ";
    let seen = trouble();
    assert!(seen.contains(expected) && seen.contains(", waiting for a lock file that was removed or replaced"), "{seen}");
    waiter.signal(Signal::SIGTERM);
    waiter.end();
    let two = env.start_fake(&["--label", "two"], "ready; hang");
    two.ready(); // beside the first
    let seen = trouble();
    assert!(seen.contains(expected) && !seen.contains("replaced under two"), "{seen}");
}

/// Root may run an agent once in a user's config dir, as by `docker exec`.
#[test]
fn files_of_root_belong_to_the_owner_of_the_config_dir() {
    if !needs_root("a config dir of another user") {
        return;
    }
    let env = Env::new();
    fs::create_dir_all(env.config_dir()).expect("a config dir");
    for dir in [env.path(""), env.home(), env.config_dir()] {
        std::os::unix::fs::chown(dir, Some(1000), Some(1000)).expect("an owner");
    }
    env.claude_run().args(["true"]).assert().code(0);
    let records = env.config_dir().join("claude-run");
    for file in [records.clone(), records.join("runs"), records.join("history.jsonl"), env.lock_file()] {
        assert_eq!(fs::metadata(&file).expect("a file").uid(), 1000, "{}", file.display());
    }
    // Nor does that user have root make a file elsewhere.
    let link = env.config_dir().join("elsewhere");
    std::os::unix::fs::symlink(env.path("made"), &link).expect("a link");
    std::os::unix::fs::lchown(&link, Some(1000), Some(1000)).expect("an owner");
    let run = env.claude_run().env("CLAUDE_RUN_LOCK_FILE", &link).args(["true"]).assert().code(125);
    assert!(String::from_utf8_lossy(&run.get_output().stderr).contains("link of uid 1000") && !env.path("made").exists());
    let run = env.claude_run().arg("--log").arg(&link).arg("--record").arg(&link).args(["echo", "it ran"]).assert().code(0);
    let stderr = String::from_utf8_lossy(&run.get_output().stderr).into_owned();
    assert!(stderr.matches("link of uid 1000").count() == 2 && !env.path("made").exists(), "{stderr}");
    // A link on the way is as bad for what is written, unless it leads to what is that user's own.
    let (there, way) = (env.path("there"), env.path("way"));
    fs::create_dir(&there).expect("a directory");
    std::os::unix::fs::symlink(&there, &way).expect("a link");
    std::os::unix::fs::lchown(&way, Some(1000), Some(1000)).expect("an owner");
    for owner in [0, 1000] {
        std::os::unix::fs::chown(&there, Some(owner), Some(owner)).expect("an owner");
        env.claude_run().env("CLAUDE_RUN_LOCK_FILE", way.join("lock")).args(["true"]).assert().code(0).stderr("");
        assert_eq!(fs::metadata(there.join("lock")).expect("an empty file").uid(), owner);
        fs::remove_file(there.join("lock")).expect("removed");
        let file = way.join("file");
        let run = env.claude_run().arg("--log").arg(&file).arg("--record").arg(&file).args(["echo", "it ran"]).assert().code(0);
        let refused = String::from_utf8_lossy(&run.get_output().stderr).matches("link of uid 1000").count();
        assert_eq!((refused, file.exists()), if owner == 1000 { (0, true) } else { (2, false) });
    }
    // Of one that was made before, it is said, and neither the mode nor the lock hides behind it.
    std::os::unix::fs::chown(&records, Some(0), Some(0)).expect("an owner");
    let by_owner = |words: &[&str]| {
        let mut command = env.command("setpriv");
        command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]).arg(binary()).args(words);
        Running::start(command).end()
    };
    for (words, part) in [(&["status"][..], "held by        nobody"), (&["mode", "refresh"], "the lock mode is refresh now")] {
        let ended = by_owner(words);
        let text = ended.stdout.join("\n");
        assert!(ended.code() == 1 && text.contains(part) && text.contains("chown -R it"), "{words:?}: {ended:?}");
    }
    // Nor that it can make no lock file there.
    fs::remove_file(env.lock_file()).expect("removed");
    std::os::unix::fs::chown(env.config_dir(), Some(0), Some(0)).expect("an owner");
    let ended = by_owner(&["status"]);
    assert!(ended.code() == 1 && ended.stdout.join("\n").contains("session.lock cannot be made: "), "{ended:?}");
}

#[test]
fn record_that_cannot_be_rewritten_claims_nothing() {
    let env = Env::new();
    let holder = env.hold_lock();
    let run = env.start(["--", "sh", "-c", "echo in; exec sleep 600"]);
    let dir = env.home().join(".claude/claude-run");
    wait_until("it waits", || env.waiters() == 1 && records(&env.config_dir()).len() == 1);
    // What it would write it in is another's from here on.
    let moved = env.path("moved");
    fs::rename(&dir, &moved).expect("moved");
    fs::write(&dir, "").expect("a file");
    drop(holder);
    run.expect_line("in");
    wait_until("the record is gone", || fs::read_dir(moved.join("runs")).is_ok_and(|runs| runs.count() == 0));
}

#[test]
fn history_that_cannot_be_rotated_grows() {
    let env = Env::new();
    let dir = env.home().join(".claude/claude-run");
    fs::create_dir_all(dir.join("history.1.jsonl/x")).expect("a directory");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("ours");
    fs::write(dir.join("history.jsonl"), "x\n".repeat(5 << 20)).expect("a large file");
    env.claude_run().args(["--label", "last", "true"]).assert().code(0);
    let history = fs::read_to_string(dir.join("history.jsonl")).expect("text");
    assert!(history.lines().last().is_some_and(|line| line.contains("last")));
}
