//! `claude-run.toml` and `claude-run settings`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::Value;

use crate::env::{Env, Running, binary, fake_claude};

fn write_file(env: &Env, text: &str) -> std::path::PathBuf {
    let path = env.home().join(".claude/claude-run.toml");
    fs::create_dir_all(path.parent().expect("a parent")).expect("a config dir");
    fs::write(&path, text).expect("a settings file");
    path
}

#[test]
fn file_counts_below_flag_and_variable() {
    let env = Env::new();
    write_file(&env, "timeout = 0.2 # seconds\nlabel = \"from the file\"\nkill-after = \"1m\"\n");
    let sleep = ["--", "-p", "sleep 0.6; exit 3"];
    let run = |command: &mut std::process::Command| {
        command.arg("--claude").arg(fake_claude()).args(sleep).output().expect("started").status.code()
    };
    assert_eq!(run(&mut env.command(binary())), Some(124));
    assert_eq!(run(env.command(binary()).env("CLAUDE_TIMEOUT", "1h")), Some(3));
    assert_eq!(run(env.command(binary()).args(["--timeout", "0"])), Some(3));
    symlink(binary(), env.path("claude")).expect("a link");
    let mut shim = env.command(env.path("claude"));
    shim.env("CLAUDE_RUN_CLAUDE", fake_claude()).args(["-p", "sleep 60"]);
    assert_eq!(Running::start(shim).end().code(), 124);
}

#[test]
fn broken_file_is_125_and_starts_nothing() {
    let env = Env::new();
    for (text, parts) in [
        ("wait = 5\ntimeot = 5\n", [":2: unknown key \"timeot\"", "timeout"]),
        ("\n\nwait = \"42D\"\n", [":3: wait", "42D"]),
        ("lock = \"none\"", [":1: lock", "exclusive, refresh, pass-through"]),
        ("lock = ", ["claude-run.toml:1", ""]),
        ("wait = { x = 1 }", [":1: wait", "inline table"]),
    ] {
        let path = write_file(&env, text).display().to_string();
        for words in [&["touch", "started"][..], &["settings"]] {
            let assert = env.claude_run().args(words).assert().code(125).stdout("");
            let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
            assert!(stderr.starts_with("claude-run: ") && stderr.lines().count() == 1, "{stderr}");
            assert!(stderr.contains(&path) && parts.iter().all(|part| stderr.contains(part)), "{text:?}: {stderr}");
        }
    }
    assert!(!env.path("started").exists() && !env.lock_file().exists());
}

#[test]
fn unreadable_file_is_125() {
    let env = Env::new();
    let path = env.home().join(".claude/claude-run.toml");
    fs::create_dir_all(&path).expect("a directory in its place");
    let assert = env.claude_run().arg("true").assert().code(125);
    assert!(String::from_utf8_lossy(&assert.get_output().stderr).contains("claude-run.toml"));
    if nix::unistd::geteuid().is_root() {
        fs::remove_dir(&path).expect("removed");
        let path = write_file(&env, "wait = 5");
        fs::set_permissions(env.path(""), fs::Permissions::from_mode(0o755)).expect("permissions");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permissions");
        let mut command = env.command("setpriv");
        command.args(["--reuid", "65534", "--clear-groups"]).arg(binary()).arg("true");
        let ended = Running::start(command).end();
        assert!(ended.code() == 125 && ended.stderr_text().contains("claude-run.toml"), "{ended:?}");
    }
}

#[test]
fn settings_prints_values_and_origins() {
    let env = Env::new();
    let file = write_file(&env, "wait = \"20m\"\npty = false\n").display().to_string();
    let mut command = env.claude_run();
    command.args(["--lock", "pass-through"]).env("CLAUDE_TIMEOUT", "90").env("LOG_AGENT", "fixer");
    let output = command.arg("settings").assert().code(0).get_output().clone();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [
        &["lock", "pass-through", "flag"][..],
        &["timeout", "90", "CLAUDE_TIMEOUT"],
        &["label", "fixer", "LOG_AGENT"],
        &["wait", "20m", &format!("{file}:1")],
        &["pty", "off", &format!("{file}:2")],
        &["kill-after", "5s", "default"],
    ] {
        assert!(rows.iter().any(|found| found == row), "{row:?} is not in\n{text}");
    }
    let mut command = env.claude_run();
    let output = command.args(["settings", "--json"]).assert().code(0).get_output().clone();
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let wait = all.iter().find(|setting| setting["name"] == "wait").expect("wait");
    assert_eq!((&wait["value"], &wait["origin"], &wait["line"]), (&"20m".into(), &"file".into(), &1.into()));
    assert!(!env.lock_file().exists(), "it only looks");
}

#[test]
fn program_called_settings_goes_after_dashes() {
    let env = Env::new();
    env.script("bin/settings", "#!/bin/sh\necho mine $1\n");
    let path = format!("{}:/usr/bin:/bin", env.path("bin").display());
    env.claude_run().env("PATH", &path).args(["--", "settings", "--json"]).assert().code(0).stdout("mine --json\n");
    env.claude_run().env("PATH", &path).args(["settings", "--bad"]).assert().code(125).stdout("");
    let help = env.claude_run().args(["settings", "--help"]).assert().code(0).get_output().clone();
    assert!(String::from_utf8_lossy(&help.stdout).contains("--json"));
}
