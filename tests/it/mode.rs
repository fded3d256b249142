//! `claude-run mode`: the lock mode of the whole factory.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::env::{Env, Running, binary, wait_until};

fn file(env: &Env) -> std::path::PathBuf {
    env.home().join(".claude/claude-run.toml")
}

fn stdout(mut command: assert_cmd::Command, code: i32) -> String {
    let assert = command.assert().code(code);
    String::from_utf8_lossy(&assert.get_output().stdout).into_owned()
}

fn mode(env: &Env, words: &[&str]) -> assert_cmd::Command {
    let mut command = env.claude_run();
    command.arg("mode").args(words);
    command
}

#[test]
fn mode_is_shown_with_origin_and_set_for_later_runs() {
    let env = Env::new();
    assert_eq!(
        stdout(mode(&env, &[]), 0),
        "exclusive (default, not set: agent-sdk.sh takes no lock)\nno live run follows another mode\n"
    );
    let path = file(&env).display().to_string();
    let set = stdout(mode(&env, &["pass-through"]), 0);
    assert!(set.starts_with(&format!("the lock mode is pass-through now, set in {path}\n")), "{set}");
    assert!(stdout(mode(&env, &[]), 0).starts_with(&format!("pass-through ({path}:1)\n")));
    let _holder = env.hold_lock();
    env.claude_run().args(["--wait", "0", "true"]).assert().code(0);
    mode(&env, &["exclusive"]).assert().code(0);
    env.claude_run().args(["--wait", "0", "true"]).assert().code(75);
}

#[test]
fn other_keys_and_comments_are_kept() {
    let env = Env::new();
    env.make_lock_file();
    let text = "# of this factory\nwait = \"20m\"   # long\nlock = \"exclusive\" # old\n";
    fs::write(file(&env), text).expect("a file");
    mode(&env, &["pass-through"]).assert().code(0);
    assert_eq!(fs::read_to_string(file(&env)).expect("a file"), text.replace("exclusive", "pass-through"));
    let left: Vec<_> = fs::read_dir(env.home().join(".claude"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn overriding_flag_or_variable_is_reported() {
    let env = Env::new();
    let mut command = mode(&env, &["pass-through"]);
    command.env("CLAUDE_EXTERNAL_LOCK", "1");
    let text = stdout(command, 0);
    assert!(text.contains("but here CLAUDE_EXTERNAL_LOCK says exclusive, and goes before the file\n"), "{text}");
}

#[test]
fn invalid_mode_or_file_is_125_and_changes_nothing() {
    let env = Env::new();
    for words in [&["none"][..], &["exclusive", "--drain=x"], &["--nonesuch"]] {
        let assert = mode(&env, words).assert().code(125).stdout("");
        assert!(String::from_utf8_lossy(&assert.get_output().stderr).starts_with("claude-run: "), "{words:?}");
    }
    assert!(!file(&env).exists());
    env.make_lock_file();
    mode(&env, &["exclusive", "--drain", "refresh"]).assert().code(125);
    for text in ["# old\n[lock]\nx = 1\n", "\nlock = { x = 1 }\n", "\nlock.x = 1\n", "\n[[lock]]\n", "\nlock = [1]\n"] {
        fs::write(file(&env), text).expect("a file");
        let assert = mode(&env, &["refresh"]).assert().code(125);
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.contains("claude-run.toml:2: lock has more than one value; remove it first"), "{text:?}: {stderr}");
        assert_eq!(fs::read_to_string(file(&env)).expect("a file"), text);
    }
    fs::write(file(&env), "lock = [").expect("a file");
    mode(&env, &["pass-through"]).assert().code(125);
    assert!(stdout(mode(&env, &[]), 1).starts_with("not known\nno run starts: "));
    assert_eq!(fs::read_to_string(file(&env)).expect("a file"), "lock = [");
}

#[test]
fn drain_waits_only_for_runs_of_the_old_mode() {
    let env = Env::new();
    assert!(std::process::Command::new("mkfifo").arg(env.path("go")).status().expect("mkfifo").success());
    let old = env.start_fake(&["--label", "old"], "ready; open go; exit 0");
    old.ready();
    wait_until("its record is there", || stdout(mode(&env, &["pass-through", "--json"]), 0).contains("\"old\""));
    mode(&env, &["exclusive"]).assert().code(0);
    let waiter = env.start(["--label", "waiter", "--", "true"]);
    assert!(waiter.message().contains("waiting"));
    let shown = stdout(mode(&env, &["pass-through"]), 0);
    assert!(shown.contains("2 live runs still follow another mode: exclusive\n") && shown.contains("  old (pid "), "{shown}");
    let free = env.start_fake(&["--label", "free"], "ready; hang");
    free.ready();
    let short = stdout(mode(&env, &["--drain=0.1"]), 1);
    assert!(short.contains("waiter (pid ") && !short.contains("free (pid "), "{short}");
    let mut drain = env.command(binary());
    drain.args(["mode", "--drain", "--json"]);
    let mut drain = Running::start(drain);
    assert!(drain.is_running());
    fs::write(env.path("go"), "").expect("a FIFO");
    let ended = drain.end();
    assert_eq!(ended.code(), 0, "{ended:?}");
    let shown: Value = serde_json::from_str(&ended.stdout[0]).expect("JSON");
    assert_eq!((&shown["value"], &shown["others"]), (&"pass-through".into(), &Value::Array(Vec::new())));
    assert_eq!((old.end().code(), waiter.end().code()), (0, 0));
}

#[test]
fn drain_takes_its_bound_as_every_option_does() {
    let env = Env::new();
    let _holder = env.start_fake(&["--label", "old"], "ready; hang");
    wait_until("it holds", || env.is_locked());
    for words in [
        &["pass-through", "--drain", "0.1"][..],
        &["pass-through", "--drain=0.1"],
        &["--drain", "100ms", "pass-through"],
        &["--drain", "0.1"],
    ] {
        let assert = mode(&env, words).assert().code(1);
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(
            stderr.starts_with("claude-run: waiting for 1 live run of another mode, at most 100ms: "),
            "{words:?}: {stderr}"
        );
    }
    let assert = mode(&env, &["exclusive", "--drain"]).assert().code(0).stderr("");
    drop(assert);
    mode(&env, &["--drain", "exclusive"]).assert().code(0).stderr("");
}

#[test]
fn holder_without_a_record_follows_no_new_mode() {
    let env = Env::new();
    let holder = env.hold_lock();
    let mut waiter = env.command("flock");
    let waiter = Running::start({
        waiter.arg(env.lock_file()).arg("true");
        waiter
    });
    wait_until("it waits", || env.waiters() == 1);
    let shown = stdout(mode(&env, &["pass-through", "--drain", "0.1"]), 1);
    for part in ["2 live runs still follow another mode: 2 without a run record\n", ", holds the session lock\n", ", waits for"]
    {
        assert!(shown.contains(part), "{part:?}: {shown}");
    }
    let seen: Value = serde_json::from_str(&stdout(mode(&env, &["--json"]), 0)).expect("JSON");
    assert_eq!(seen["without_record"].as_array().map(Vec::len), Some(2), "{seen}");
    assert!(stdout(mode(&env, &["exclusive"]), 0).contains("no live run follows another mode\n"));
    let drain = env.start(["mode", "refresh", "--drain"]);
    assert!(drain.message().contains("waiting for 2 live runs of another mode, at most 2h 5m: "));
    drop((holder, waiter));
    assert_eq!(drain.end().code(), 0);
}

#[test]
fn mode_without_the_lock_warns_of_the_sibling_lock() {
    if !crate::env::can_unshare("-rm") {
        return;
    }
    let env = Env::new();
    env.make_lock_file();
    let script = r#"mount --bind "$HOME/.claude" "$HOME/.claude" && "$0" mode pass-through && "$0" mode exclusive"#;
    let mut unshare = env.command("unshare");
    unshare.args(["-rm", "bash", "-c", script]).arg(binary());
    let ended = Running::start(unshare).end();
    let warned: Vec<_> = ended.stdout.iter().filter(|line| line.contains("is a mount point")).collect();
    assert!(ended.code() == 0 && warned.len() == 1 && warned[0].starts_with("but "), "{ended:?}");
}

#[test]
fn pass_through_with_an_older_claude_is_warned_of() {
    let env = Env::new();
    env.make_lock_file();
    for (version, words, is_warned) in
        [("2.1.84", "pass-through", true), ("2.1.84", "refresh", false), ("2.1.128", "pass-through", false)]
    {
        let claude = env.script(&format!("versions/{version}"), "#!/bin/sh\n");
        let assert = mode(&env, &[words]).env("CLAUDE_RUN_CLAUDE", claude).assert().code(0);
        let stdout = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
        assert_eq!(stdout.contains("but the claude here is older than 2.1.128"), is_warned, "{version}: {stdout}");
    }
}

#[test]
fn lock_on_the_config_dir_is_not_waited_for_without_end() {
    let env = Env::new();
    let dir = file(&env).parent().expect("a parent").to_owned();
    fs::create_dir_all(&dir).expect("a config dir");
    let holder = fs::File::open(&dir).expect("a directory");
    holder.lock().expect("locked");
    let assert = mode(&env, &["refresh"]).assert().code(125);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("is locked by another process (pid ") && !file(&env).exists(), "{stderr}");
    drop(holder);
    mode(&env, &["refresh"]).assert().code(0);
    // Where nobody can have one, it is not waited for.
    if !crate::setup_interrupted::can_trace(&env) {
        return;
    }
    let mut strace = env.command("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=flock:error=ENOLCK", "-e", "trace=flock"]);
    strace.arg(binary()).args(["mode", "pass-through"]);
    let ended = Running::start(strace).end();
    assert!(ended.code() == 0 && ended.stdout[0].contains("is pass-through now"), "{ended:?}");
}

#[test]
fn new_file_is_for_all_who_share_the_dir() {
    let env = Env::new();
    for (umask, bits) in [("022", 0o644), ("002", 0o664), ("077", 0o600)] {
        let mut command = env.command("sh");
        command.args(["-c", &format!("umask {umask}; exec '{}' mode refresh", binary().display())]);
        assert_eq!(Running::start(command).end().code(), 0);
        assert_eq!(fs::metadata(file(&env)).expect("a file").permissions().mode() & 0o777, bits, "{umask}");
        fs::remove_file(file(&env)).expect("removed");
    }
}
