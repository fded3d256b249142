//! `claude-run status`, and the run records that it reads.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::env::{Env, Running, binary, can_unshare, fake_claude, records, wait_for_records, wait_until};

fn status(env: &Env) -> Value {
    let assert = env.claude_run().args(["status", "--json"]).assert();
    serde_json::from_slice(&assert.get_output().stdout).expect("JSON")
}

fn text(env: &Env) -> String {
    String::from_utf8(env.claude_run().arg("status").output().expect("started").stdout).expect("text")
}

fn runs(env: &Env) -> PathBuf {
    env.config_dir().join("claude-run/runs")
}

fn length(value: &Value) -> usize {
    value.as_array().expect("an array").len()
}

fn labels(value: &Value) -> Vec<&str> {
    value.as_array().expect("an array").iter().filter_map(|record| record["label"].as_str()).collect()
}

#[test]
fn status_lists_waiters_after_truncation() {
    let env = Env::new();
    let holder = env.start_fake(&["--label", "holder"], "ready; hang");
    holder.ready();
    let first = env.start(["--label", "first", "--", "true"]);
    assert!(first.message().contains("held by holder (pid "));
    let second = env.start(["--label", "second", "--", "true"]);
    let message = second.message();
    assert!(
        message.starts_with("claude-run: waiting for the session lock"),
        "no control sequence where no terminal is: {message:?}"
    );
    let mut old = env.command("bash");
    old.args(["-c", "( flock 9; true ) 9>\"$HOME/.claude/session.lock\""]);
    let old = Running::start(old);
    wait_until("all wait", || {
        let status = status(&env);
        length(&status["waiting"]) == 2 && length(&status["waiting_without_record"]) == 1
    });
    let seen = status(&env);
    assert_eq!(labels(&seen["waiting"]), ["first", "second"]);
    let holders = seen["holders"].as_array().expect("an array");
    assert_eq!((holders.len(), &holders[0]["pid"]), (1, &holder.pid().as_raw().into()));
    let record = &holders[0]["record"];
    assert_eq!((&record["label"], &record["state"], &record["hold"]), (&"holder".into(), &"running".into(), &"own".into()));
    let since = humantime::parse_rfc3339(record["since"].as_str().expect("a time")).expect("a time");
    assert!(SystemTime::now().duration_since(since).is_ok_and(|age| age < Duration::from_secs(600)));
    let seen = text(&env);
    for part in [
        "held by        holder (pid ",
        &format!("; if it hangs, kill {} (not -KILL) ends it", holder.pid()),
        "waiting        3\n",
        " 1. first (pid ",
        " 2. second (pid ",
        ", without a run record",
    ] {
        assert!(seen.contains(part), "{part:?}: {seen}");
    }
    holder.signal(Signal::SIGTERM);
    for run in [holder, first, second, old] {
        run.end();
    }
    assert_eq!(records(&env.config_dir()), Vec::<PathBuf>::new());
}

#[test]
fn status_sees_runs_of_another_pid_namespace() {
    if !can_unshare("-rpf") {
        return;
    }
    let env = Env::new();
    let holder = env.start_fake(&["--label", "holder"], "ready; hang");
    holder.ready();
    let waiting = env.start(["--label", "waiting", "--", "true"]);
    waiting.message();
    let mut elsewhere = env.command("unshare");
    elsewhere.args(["-rpf", "--mount-proc"]).arg(binary()).args(["status", "--json"]);
    wait_until("both are seen from there", || {
        let seen = elsewhere.output().expect("started").stdout;
        let seen: Value = serde_json::from_slice(&seen).expect("JSON");
        let holder = &seen["holders"][0]["record"]["label"];
        holder == "holder" && labels(&seen["waiting"]) == ["waiting"]
    });
}

#[test]
fn status_creates_nothing() {
    let env = Env::new();
    for made in [false, true] {
        let assert = env.claude_run().arg("status").assert().code(0);
        let text = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
        for part in ["held by        nobody\n", "waiting        nobody\n", "refresh locks  free\n", "no OAuth login here"] {
            assert!(text.contains(part), "{part:?}: {text}");
        }
        let config_dir = env.home().join(".claude");
        if made {
            assert_eq!(fs::read_dir(config_dir).expect("a directory").count(), 0);
        } else {
            assert!(!config_dir.exists());
            fs::create_dir(config_dir).expect("a config dir");
        }
    }
}

#[test]
fn full_file_system_is_trouble_in_status() {
    if !can_unshare("-rm") {
        return;
    }
    let env = Env::new();
    fs::create_dir(env.home().join(".claude")).expect("a config dir");
    for (options, code) in [("size=64k", 1), ("nr_inodes=1", 1), ("size=4m", 0)] {
        let script = format!(r#"mount -t tmpfs -o mode=700,{options} tmpfs "$HOME/.claude" && exec "$0" status"#);
        let mut unshare = env.command("unshare");
        unshare.args(["-rm", "bash", "-c", &script]).arg(binary());
        let ended = Running::start(unshare).end();
        let is_said = ended.stdout[0].starts_with("trouble        ") && ended.stdout[0].contains(" has no room for a MiB: ");
        assert_eq!((ended.code(), is_said), (code, code == 1), "{options}: {ended:?}");
    }
}

#[test]
fn status_shows_what_doctor_finds_of_the_login() {
    let env = Env::new();
    let file = env.make_lock_file().with_file_name(".credentials.json");
    let shown = |key: &str| {
        let output = env.claude_run().arg("status").env("ANTHROPIC_API_KEY", key).output().expect("started");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    for text in [None, Some("{}")] {
        if let Some(text) = text {
            fs::write(&file, text).expect("a file");
        }
        let (code, found) = shown("");
        // The agents may have a key.
        assert!(code == Some(0) && found.contains("doctor finds   there is no login in "), "{text:?}: {found}");
        let (code, found) = shown("k");
        assert!(code == Some(0) && !found.contains("doctor finds"), "{text:?}: {found}");
    }
    for text in ["", "{\"claudeAiOauth\":{\"acc"] {
        fs::write(&file, text).expect("a file");
        let (code, found) = shown("");
        assert!(code == Some(1) && found.contains("trouble        ") && !found.contains("doctor finds"), "{text:?}: {found}");
    }
    fs::write(&file, r#"{"claudeAiOauth":{"accessToken":"x","expiresAt":4102444800000}}"#).expect("a file");
    let (code, found) = shown("");
    assert!(code == Some(0) && found.contains("there is no refresh token in "), "{found}");
}

#[test]
fn read_only_config_dir_costs_records_and_a_warning() {
    if !can_unshare("-rm") {
        return;
    }
    let env = Env::new();
    env.make_lock_file();
    fs::create_dir_all(runs(&env)).expect("a directory");
    let script = r#"mount --bind "$HOME/.claude" "$HOME/.claude" && mount -o remount,bind,ro "$HOME/.claude" &&
        "$0" status; "$0" sh -c 'exit 7'; echo "code $?""#;
    let mut unshare = env.command("unshare");
    unshare.args(["-rm", "bash", "-c", script]).arg(binary());
    let ended = Running::start(unshare).end();
    assert_eq!(ended.stdout.last().map(String::as_str), Some("code 7"), "{ended:?}");
    assert!(ended.stdout.iter().any(|line| line == "held by        nobody"), "{ended:?}");
    assert!(ended.stdout[0].starts_with("trouble") && ended.stdout[0].contains("mounted read-only"), "{ended:?}");
    assert!(ended.stderr.len() == 1 && ended.stderr[0].contains("is not writable"), "{ended:?}");
}

#[test]
fn unwritable_records_cost_one_warning() {
    let env = Env::new();
    env.make_lock_file();
    let place = env.home().join(".claude/claude-run");
    fs::write(&place, "in the way").expect("a file");
    let _holder = env.start_fake(&["--lock-file", "held"], "hang");
    let assert = env.claude_run().args(["sh", "-c", "exit 7"]).assert().code(7);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.lines().count() == 1 && stderr.contains(&*place.to_string_lossy()), "{stderr}");
    let what = |words: &[&str], code| {
        let assert = env.claude_run().args(words).assert().code(code);
        String::from_utf8_lossy(&[&*assert.get_output().stdout, &*assert.get_output().stderr].concat()).into_owned()
    };
    let expect_told = |obstacles: &[&str]| {
        let (status, doctor) = (what(&["status"], 1), what(&["doctor"], 1));
        let told = |text: &str| text.lines().filter(|line| line.contains(" cannot be used: ")).count();
        for of in obstacles {
            let part = format!("{of} cannot be used: ");
            assert!(status.lines().any(|line| line.starts_with("trouble ") && line.contains(&part)), "{status}");
            assert!(doctor.lines().any(|line| line.starts_with("failure  records ") && line.contains(&part)), "{doctor}");
        }
        assert_eq!((told(&status), told(&doctor)), (obstacles.len(), obstacles.len()), "{status}{doctor}");
        assert!(what(&["report"], 125).contains("history"));
    };
    expect_told(&["claude-run"]);
    fs::remove_file(&place).expect("removed");
    fs::create_dir_all(place.join("history.jsonl")).expect("a directory");
    symlink("elsewhere", place.join("runs")).expect("a link");
    expect_told(&["claude-run/history.jsonl", "claude-run/runs"]);
    fs::remove_file(place.join("runs")).expect("removed");
    assert!(what(&["true"], 0).contains("claude-run/history.jsonl: it is no regular file; going on without\n"));
}

#[test]
fn record_has_program_and_dir_but_never_the_prompt() {
    let env = Env::new();
    let run = env.start_fake(&["--label", "a \"b\"\n\u{1b}[31mc"], "ready; say secret-prompt; hang");
    let [child, ..] = run.ready();
    wait_for_records(&env.config_dir(), 1);
    let path = records(&env.config_dir()).remove(0);
    let mode = |path: &std::path::Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&runs(&env)), mode(runs(&env).parent().expect("a parent"))), (0o600, 0o700, 0o700));
    let text = fs::read_to_string(&path).expect("a record");
    assert!(!text.contains("secret-prompt"), "{text}");
    let record: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(record["program"], fake_claude().to_string_lossy().as_ref());
    assert_eq!((&record["child"], &record["pid"]), (&child.into(), &run.pid().as_raw().into()));
    assert_eq!(
        (&record["mode"], &record["cwd"]),
        (&"exclusive".into(), &env.path("").to_string_lossy().trim_end_matches('/').into())
    );
    for seen in ["lock", "config_dir", "parent"] {
        assert!(record[seen]["device"].is_u64() && record[seen]["inode"].is_u64() && record[seen]["real_path"].is_string());
    }
    let shown = String::from_utf8(env.claude_run().arg("status").output().expect("started").stdout).expect("text");
    assert!(
        shown.contains(r#"a "b"\n\u{1b}[31mc (pid "#) && !shown.contains('\u{1b}'),
        "what could steer a terminal: {shown:?}"
    );
}

#[test]
fn orphaned_claude_is_listed_until_it_ends() {
    let env = Env::new();
    let run = env.start_fake(&["--label", "orphan"], "ignore TERM; ready; hang");
    let [child, ..] = run.ready();
    wait_until("it holds the lock", || length(&status(&env)["holders"]) == 1);
    run.signal(Signal::SIGKILL);
    run.end();
    for _ in 0..2 {
        let assert = env.claude_run().args(["status", "--json"]).assert().code(1);
        let seen: Value = serde_json::from_slice(&assert.get_output().stdout).expect("JSON");
        assert_eq!((labels(&seen["orphaned"]), length(&seen["holders"])), (vec!["orphan"], 1));
        assert!(seen["trouble"][0].as_str().is_some_and(|trouble| trouble.contains(&child.to_string())), "{seen}");
    }
    assert!(text(&env).contains("claude-run gone, claude still running"));
    let drain = env.claude_run().args(["mode", "refresh", "--drain", "0.1"]).assert().code(1);
    let output = drain.get_output();
    for said in [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said)) {
        assert!(said.contains("what orphan (pid ") && said.contains(&format!("(pid {child})")), "{said}");
    }
    env.claude_run().args(["mode", "exclusive"]).assert().code(0);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL).expect("alive");
    wait_until("nothing is wrong any more", || {
        env.claude_run().arg("status").output().expect("started").status.code() == Some(0)
    });
    assert_eq!(records(&env.config_dir()), Vec::<PathBuf>::new());
}

#[test]
fn tool_of_a_killed_run_is_named_by_its_pid() {
    let env = Env::new();
    let run = env.start(["--label", "one", "--", "sh", "-c", "setsid sleep 1000 >&- 2>&- & echo $!; exec sleep 1000"]);
    let tool: i32 = run.line().parse().expect("a pid");
    wait_until("it holds the lock", || length(&status(&env)["holders"]) == 1);
    run.signal(Signal::SIGKILL);
    run.end();
    let named = format!(") left when it was killed: sleep (pid {tool})");
    // First its child ends, by the signal for the death of its parent.
    wait_until("status names the tool", || text(&env).contains(&named));
    let doctor = env.claude_run().arg("doctor").output().expect("started");
    assert!(String::from_utf8_lossy(&doctor.stdout).contains(&named), "{doctor:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(tool), Signal::SIGKILL).expect("alive");
    wait_until("the lock is free", || {
        env.claude_run().args(["--wait", "0", "true"]).output().expect("started").status.success()
    });
}

#[test]
fn holder_without_a_record_is_listed() {
    let env = Env::new();
    let script = "( flock 9; echo held; exec cat ) 9>\"$HOME/.claude/session.lock\"";
    env.make_lock_file();
    let mut old = env.command("bash");
    old.args(["-c", script]).stdin(std::process::Stdio::piped());
    let mut old = Running::start(old);
    old.expect_line("held");
    // Whoever took the lock, flock(1), has ended: /proc/locks names a dead pid, and cat has inherited the lock.
    let seen = status(&env);
    assert_eq!((&seen["holders"][0]["record"], &seen["holders"][0]["name"]), (&Value::Null, &"cat".into()), "{seen}");
    let shown = text(&env);
    assert!(shown.contains("held by        cat (pid ") && shown.contains("), without a run record, started "), "{shown}");
    let waiter = env.start(["--wait", "2", "--", "true"]);
    assert!(waiter.message().contains("held by cat (pid "));
    assert_eq!(waiter.end().code(), 75);
    old.close_stdin();
    old.end();
    assert_eq!(length(&status(&env)["holders"]), 0);
}

#[test]
fn waiters_are_listed_in_the_kernel_order() {
    let env = Env::new();
    let holder = env.start_fake(&["--label", "holder"], "ready; hang");
    holder.ready();
    let first = env.start(["--label", "first", "--", "true"]);
    wait_until("one waits", || env.waiters() == 1);
    let mut old = env.command("flock");
    old.arg(env.lock_file()).arg("true");
    let old = Running::start(old);
    wait_until("two wait", || env.waiters() == 2);
    let third = env.start(["--label", "third", "--", "true"]);
    wait_until("three wait", || env.waiters() == 3);
    let (shown, seen) = (text(&env), status(&env));
    let old_caller = format!(" 2. flock (pid {}), without a run record", old.pid());
    for part in [" 1. first (pid ", old_caller.as_str(), " 3. third (pid "] {
        assert!(shown.contains(part), "{part:?}: {shown}");
    }
    assert_eq!(labels(&seen["waiting"]), ["first", "third"]);
    let pids: Vec<_> = seen["queue"].as_array().expect("an array").iter().map(|place| place["pid"].as_i64()).collect();
    assert_eq!(pids, [&first, &old, &third].map(|run| Some(run.pid().as_raw().into())));
    holder.signal(Signal::SIGTERM);
    for run in [holder, first, old, third] {
        run.end();
    }
}

#[test]
fn script_named_like_claude_run_is_a_holder() {
    let env = Env::new();
    let script = env.script("claude-run-nightly", "#!/bin/sh\nexec 9>\"$1\"; flock 9; echo held; read -r end\n");
    let mut command = env.command(&script);
    command.arg(env.make_lock_file()).stdin(std::process::Stdio::piped());
    let holder = Running::start(command);
    holder.expect_line("held");
    assert_eq!(status(&env)["holders"][0]["pid"], holder.pid().as_raw());
}

#[test]
fn stopped_holder_is_trouble() {
    let env = Env::new();
    let holder = env.start_fake(&["--label", "holder"], "ready; hang");
    holder.ready();
    wait_until("its record is there", || status(&env)["holders"][0]["record"]["state"] == "running");
    holder.signal(Signal::SIGSTOP);
    let hint = format!("kill -CONT {}", holder.pid());
    wait_until("it is stopped, and status says so", || text(&env).contains(&hint));
    env.claude_run().arg("status").assert().code(1);
    holder.signal(Signal::SIGCONT);
    wait_until("it goes on", || !text(&env).contains("kill -CONT"));
}

#[test]
fn broken_settings_file_is_shown_by_status() {
    let env = Env::new();
    env.make_lock_file();
    fs::write(env.home().join(".claude/claude-run.toml"), "wait = 5\nlokc = \"refresh\"\n").expect("a file");
    let assert = env.claude_run().arg("status").assert().code(1);
    let shown = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
    assert!(shown.contains("trouble        no run starts: ") && shown.contains("claude-run.toml:2"), "{shown}");
    assert!(shown.contains("lock mode      not known\n") && shown.contains("held by        nobody\n"), "{shown}");
    assert_eq!(status(&env)["mode"], Value::Null);
    env.claude_run().arg("report").assert().code(0);
    env.claude_run().arg("events").assert().code(0);
}

#[test]
fn bad_value_in_the_settings_file_hides_nothing() {
    let env = Env::new();
    env.make_lock_file();
    let file = env.home().join(".claude/claude-run.toml");
    fs::write(&file, "wait = \"42D\"\nlock = \"refresh\"\n").expect("a file");
    for (operation, code) in [("status", 1), ("mode", 1), ("settings", 1), ("report", 0), ("doctor", 1)] {
        let assert = env.claude_run().arg(operation).assert().code(code);
        let output = assert.get_output();
        let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
        assert!(!output.stdout.is_empty() && (code == 0 || text.contains("claude-run.toml:1: wait: ")), "{operation}: {text}");
    }
    // The way back is open.
    let assert = env.claude_run().args(["mode", "exclusive"]).assert().code(1);
    let text = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
    assert!(text.starts_with("the lock mode is exclusive now, set in ") && text.contains("no run starts: "), "{text}");
    assert!(fs::read_to_string(&file).expect("a file").contains("lock = \"exclusive\""));
    env.claude_run().env("CLAUDE_TIMEOUT", "soon").arg("status").assert().code(1);
    let refused = env.claude_run().env("CLAUDE_TIMEOUT", "soon").args(["mode", "refresh"]).assert().code(125);
    let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(said.starts_with("claude-run: nothing was set: CLAUDE_TIMEOUT: "), "{said}");
}

#[test]
fn records_of_another_user_cost_the_records_alone() {
    if !crate::env::needs_root("to be two users") {
        return;
    }
    let env = Env::new();
    env.claude_run().args(["--slots", "1", "true"]).assert().code(0);
    for dir in ["", "home", "home/.claude"] {
        fs::set_permissions(env.path(dir), fs::Permissions::from_mode(0o755)).expect("permissions");
    }
    let _holder = env.hold_lock();
    let hidden = env.home().join(".claude");
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o700)).expect("permissions");
    let mut blind = env.command("setpriv");
    blind.args(["--reuid", "65534", "--clear-groups"]).arg(binary()).arg("status");
    let ended = Running::start(blind).end();
    for row in ["held by        not known", "waiting        not known", "refresh locks  /"] {
        assert!(ended.code() == 1 && ended.stdout.iter().any(|line| line.starts_with(row)), "{row}: {ended:?}");
    }
    assert!(ended.stdout.iter().any(|line| line.ends_with(".oauth_refresh.lock cannot be looked at")), "{ended:?}");
    let mut blind = env.command("setpriv");
    blind.args(["--reuid", "65534", "--clear-groups"]).arg(binary()).args(["status", "--json"]);
    let seen: Value = serde_json::from_str(&Running::start(blind).end().stdout.join("\n")).expect("JSON");
    assert_eq!(seen["not_known"], json!(["holders", "waiting", "slots"]), "{seen}");
    assert!(seen["refresh_locks"].to_string().contains("\"unknown\""), "{seen}");
    fs::set_permissions(hidden, fs::Permissions::from_mode(0o755)).expect("permissions");
    for (operation, code, part) in [
        ("status", 1, "claude-run cannot be used: "),
        ("slots", 1, "who has a slot is not known"),
        ("report", 1, "cannot be read"),
        ("mode", 1, "cannot read"),
        ("settings", 0, "exclusive"),
    ] {
        let mut command = env.command("setpriv");
        command.args(["--reuid", "65534", "--clear-groups"]).arg(binary()).arg(operation).env("CLAUDE_RUN_SLOTS", "2");
        let ended = Running::start(command).end();
        let text = ended.stdout.join("\n");
        assert!(ended.code() == code && text.contains(part), "{operation}: {ended:?}");
        assert!(operation != "status" || text.contains("held by        flock (pid "), "{text}");
        assert!(!["0 in use", "no live run"].iter().any(|none| text.contains(none)), "{text}");
    }
    // What can be read and not written.
    for (place, mode) in
        [("", 0o755), ("runs", 0o755), ("slots", 0o755), ("slots/1", 0o644), ("slots/queue", 0o644), ("history.jsonl", 0o644)]
    {
        let path = env.home().join(".claude/claude-run").join(place);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
    }
    let mut command = env.command("setpriv");
    command.args(["--reuid", "65534", "--clear-groups"]).arg(binary()).args(["--slots", "1", "status"]);
    assert_eq!(Running::start(command).end().code(), 0, "to look is enough for who looks");
    let mut command = env.command("setpriv");
    command.args(["--reuid", "65534", "--clear-groups"]).arg(binary()).args(["--slots", "1", "doctor"]);
    let told = Running::start(command).end().stdout.join("\n");
    for of in ["records         ", "slots           "] {
        assert!(told.lines().any(|line| line.starts_with("failure  ") && line.contains(of)), "{told}");
    }
    assert!(told.contains("do: chown -R it to the user who runs the agents"), "{told}");
}

#[test]
fn run_on_another_lock_file_is_not_in_this_queue() {
    let env = Env::new();
    env.make_lock_file();
    let other = env.path("other.lock");
    let other = other.to_str().expect("text");
    let holder = env.start_fake(&["--lock-file", other, "--label", "far"], "ready; hang");
    holder.ready();
    let waiter = env.start(["--lock-file", other, "--label", "far-waiter", "--", "true"]);
    waiter.message();
    wait_until("both are listed", || labels(&status(&env)["running"]).len() == 2);
    let seen = status(&env);
    assert_eq!((length(&seen["holders"]), length(&seen["waiting"]), length(&seen["queue"])), (0, 0, 0), "{seen}");
    let shown = text(&env);
    for part in ["held by        nobody\n", ", with the lock file ", ", waiting for the lock file "] {
        assert!(shown.contains(part), "{part:?}: {shown}");
    }
    holder.signal(Signal::SIGKILL);
    wait_until("its claude is no orphan of this lock", || labels(&status(&env)["running"]) != ["far", "far-waiter"]);
    assert_eq!(length(&status(&env)["orphaned"]), 0);
}

#[test]
fn starting_run_is_never_without_a_record() {
    let env = Env::new();
    env.make_lock_file();
    let mut runs = env.command("sh");
    runs.args(["-c", r#"while [ ! -e "$HOME/over" ]; do "$0" true; done"#]).arg(binary());
    let runs = Running::start(runs);
    for _ in 0..20 {
        let shown = text(&env);
        assert!(!shown.contains("without a run record"), "{shown}");
    }
    fs::write(env.home().join("over"), "").expect("a file");
    runs.end();
}

#[test]
fn runs_without_the_lock_are_listed() {
    let env = Env::new();
    let run = env.start_fake(&["--lock", "pass-through", "--label", "free"], "ready; hang");
    run.ready();
    wait_until("it is there", || labels(&status(&env)["running"]) == ["free"]);
    assert!(text(&env).contains("not holding    1 run\n"));
}

#[test]
fn refresh_locks_and_token_are_shown() {
    let env = Env::new();
    env.make_lock_file();
    let config_dir = env.home().join(".claude");
    let in_an_hour = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970") + Duration::from_secs(3660);
    let credentials = format!(r#"{{"claudeAiOauth":{{"accessToken":"sk-ant-x","expiresAt":{}}}}}"#, in_an_hour.as_millis());
    fs::write(config_dir.join(".credentials.json"), credentials).expect("a file");
    fs::create_dir(env.home().join(".claude.lock")).expect("a lock");
    let newer = config_dir.join(".oauth_refresh.lock");
    fs::create_dir(&newer).expect("a lock");
    fs::write(config_dir.join(".oauth_refresh.lock.owner"), r#"{"pid":4711,"procStart":"1","pidDomain":"elsewhere"}"#)
        .expect("a file");
    let old = SystemTime::now() - Duration::from_secs(90);
    fs::File::open(&newer).expect("a lock").set_modified(old).expect("a time");
    let assert = env.claude_run().args(["status", "--json"]).assert().code(1);
    let seen: Value = serde_json::from_slice(&assert.get_output().stdout).expect("JSON");
    let locks = &seen["refresh_locks"];
    assert_eq!((&locks[0]["state"], &locks[1]["state"]), (&"live".into(), &"stale".into()), "{seen}");
    assert_eq!((&locks[1]["owner"]["pid"], &locks[1]["owner"]["alive"]), (&4711.into(), &Value::Null));
    assert_eq!(seen["token"]["state"], "valid");
    let shown = text(&env);
    let is_stale = |seconds: u32| shown.contains(&format!("stale: not touched for 1m {seconds}s, of pid 4711"));
    assert!(shown.contains("token          expires in 1h") && (30..60).any(is_stale), "{shown}");
    assert!(!shown.contains("sk-ant") && !seen.to_string().contains("sk-ant"));
}

#[test]
fn last_runs_are_listed() {
    let env = Env::new();
    env.claude_run().args(["--label", "one", "sh", "-c", "exit 7"]).assert().code(7);
    env.claude_run().args(["--label", "two", "--timeout", "0.1", "sleep", "60"]).assert().code(124);
    let seen = status(&env);
    assert_eq!(labels(&seen["last"]), ["two", "one"]);
    assert_eq!((&seen["last"][0]["outcome"], &seen["last"][1]["exit_code"]), (&"hard-limit".into(), &7.into()));
    let shown = text(&env);
    let line = shown.lines().find_map(|line| line.trim().strip_prefix("one: exited (7) ")).unwrap_or_default();
    assert!(line.contains(" ago, took "), "{shown}");
}

#[test]
fn status_watch_repeats() {
    let env = Env::new();
    let watch = env.start(["status", "--watch", "--json"]);
    let shown: Vec<Value> = (0..2).map(|_| serde_json::from_str(&watch.line()).expect("JSON")).collect();
    assert!(shown.iter().all(|shown| length(&shown["holders"]) == 0));
    watch.signal(Signal::SIGINT);
    assert_eq!(watch.end().code(), 130);
}

/// 64 runs, in PID namespaces of their own if `wrapped`, half of them killed; all the while, status is asked 20 times a
/// second.
fn with_64_runs(wrap: &[&str]) {
    let env = Env::new();
    let start = |index: usize| {
        let mut command = match wrap.split_first() {
            Some((program, words)) => {
                let mut command = env.command(program);
                command.args(words).arg(binary());
                command
            }
            None => env.command(binary()),
        };
        // What runs inside must be alone, and takes long enough to be killed in it.
        let script = "mkdir inside || exit 9; sleep 0.02; rmdir inside";
        command.args(["--label", &index.to_string(), "--", "sh", "-c", script]);
        Running::start(command)
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let poll = scope.spawn(|| {
            let (mut most, mut answers) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let seen = status(&env);
                most = most.max(length(&seen["holders"]));
                answers += 1;
                thread::sleep(Duration::from_millis(50));
            }
            (most, answers)
        });
        let running: Vec<_> = (0..64).map(start).collect();
        for run in running.iter().skip(1).step_by(2) {
            // One that has ended by now needs no kill; its pid is not reaped, and so still its own.
            run.signal(Signal::SIGKILL);
        }
        let codes: Vec<_> = running.into_iter().map(|run| run.end().code()).collect();
        done.store(true, Ordering::Relaxed);
        let (most, answers) = poll.join().expect("every answer is JSON");
        assert!(codes.iter().step_by(2).all(|code| [0, 9].contains(code)), "{codes:?}");
        assert!(most <= 1 && answers > 1, "{most} holders in {answers} answers");
    });
    wait_until("no record is left", || {
        status(&env);
        records(&env.config_dir()).is_empty()
    });
}

#[test]
fn killed_runs_leave_no_record_and_one_holder() {
    with_64_runs(&[]);
}

#[test]
fn runs_in_pid_namespaces_leave_no_record() {
    if can_unshare("-rpf") {
        with_64_runs(&["unshare", "-rpf", "--kill-child", "--mount-proc"]);
    }
}

#[test]
fn stale_records_are_swept_and_other_files_kept() {
    let env = Env::new();
    fs::create_dir_all(runs(&env)).expect("a directory");
    let (foreign, cut, forgotten) = (runs(&env).join("notes.json"), runs(&env).join("7-7.json"), runs(&env).join("8-8.tmp"));
    for path in [&foreign, &cut, &forgotten] {
        fs::write(path, "{\"run\":").expect("a file");
    }
    assert!(Command::new("mkfifo").arg(runs(&env).join("9-9.json")).status().expect("mkfifo").success());
    fs::File::options()
        .write(true)
        .open(&forgotten)
        .expect("a file")
        .set_modified(SystemTime::now() - Duration::from_secs(3600))
        .expect("a time");
    status(&env);
    assert!(foreign.exists() && !cut.exists() && !forgotten.exists());
}

#[test]
fn waiter_sweeps_stale_records() {
    let env = Env::new();
    let holder = env.start_fake(&["--label", "holder"], "ready; hang");
    holder.ready();
    wait_for_records(&env.config_dir(), 1);
    let record = fs::read_to_string(&records(&env.config_dir())[0]).expect("a record");
    // Older than any run on this machine: what was killed while it held the same lock, and while it waited for it.
    let held = records(&env.config_dir())[0].file_stem().expect("a name").to_string_lossy().into_owned();
    for (run, text) in [("7-1", record.clone()), ("7-2", record.replace("\"own\"", "null")), ("7-3", record[..30].to_owned())] {
        let text = text.replace(&held, run);
        fs::write(runs(&env).join(run).with_extension("json"), text).expect("a file");
    }
    let becoming = runs(&env).join("7-4.tmp"); // written, and about to be locked and put in place
    fs::write(&becoming, &record).expect("a file");
    let waiter = env.start(["--", "true"]);
    assert!(waiter.message().contains("held by holder (pid "));
    assert_eq!(records(&env.config_dir()).len(), 2, "the holder's, and the waiter's");
    assert!(becoming.exists());
}
