//! Called under the name `claude`: every word is claude's, and the real one is the next on PATH.

use std::os::unix::fs::symlink;
use std::process::Command;

use crate::env::{Env, Running, binary, fake_claude};

const DIRECTORIES: [&str; 4] = ["shim", "again", "copy", "real"];

/// Call of the shim, with a PATH that has the shim first, then another name of it, a copy of it, and a real claude last.
fn with_shim(env: &Env) -> Command {
    for dir in DIRECTORIES {
        std::fs::create_dir(env.path(dir)).expect("a directory");
    }
    let shim = env.path("shim/claude");
    symlink(binary(), &shim).expect("a symlink");
    symlink("../shim/claude", env.path("again/claude")).expect("a symlink");
    std::fs::copy(binary(), env.path("copy/claude")).expect("a copy");
    symlink(fake_claude(), env.path("real/claude")).expect("a symlink");
    let mut command = env.command(&shim);
    let path = DIRECTORIES.map(|dir| env.path(dir).display().to_string()).join(":");
    command.env("PATH", format!("{path}:/usr/bin:/bin"));
    command
}

#[test]
fn every_argument_goes_to_claude() {
    let env = Env::new();
    let mut command = with_shim(&env);
    command.args(["--timeout", "x", "--wait", "-p", "env CLAUDE_RUN_HELD; exit 7", "--", "--help"]);
    let ended = Running::start(command).end();
    assert_eq!(ended.code(), 7, "{ended:?}");
    assert!(ended.stdout[0].starts_with("CLAUDE_RUN_HELD="), "under the lock: {ended:?}");
}

#[test]
fn options_come_from_the_environment() {
    let env = Env::new();
    let _holder = env.hold_lock();
    let mut command = with_shim(&env);
    command.env("CLAUDE_RUN_WAIT", "0").env("CLAUDE_RUN_CONFLICT_EXIT_CODE", "99").args(["-p", "exit 7"]);
    assert_eq!(Running::start(command).end().code(), 99);
}

#[test]
fn version_and_help_never_wait_for_the_lock() {
    let env = Env::new();
    let _holder = env.hold_lock();
    for word in ["--version", "-v", "--help", "-h"] {
        let mut command = with_shim(&env);
        command.env("CLAUDE_RUN_WAIT", "0").arg(word);
        assert_eq!(Running::start(command).end().code(), 0, "{word}");
        for dir in DIRECTORIES {
            std::fs::remove_dir_all(env.path(dir)).expect("removed");
        }
        env.claude_run().args(["--wait", "0", "--claude"]).arg(fake_claude()).args(["--", word]).assert().code(0);
    }
    env.claude_run()
        .args(["--wait", "0", "--claude"])
        .arg(fake_claude())
        .args(["--", "-p", "exit 0", "--version"])
        .assert()
        .code(75);
}

#[test]
fn missing_real_claude_is_127_and_no_loop() {
    let env = Env::new();
    let mut command = with_shim(&env);
    std::fs::remove_file(env.path("real/claude")).expect("removed");
    command.env("PATH", ["shim", "again", "real"].map(|dir| env.path(dir).display().to_string()).join(":")).args(["-p", "hi"]);
    assert_eq!(Running::start(command).end().code(), 127);
    env.claude_run().arg("--claude").arg(env.path("shim/claude")).args(["--", "-p", "hi"]).assert().code(126);
}

#[test]
fn claude_run_skips_the_shim_too() {
    let env = Env::new();
    let shim = with_shim(&env);
    let path = shim.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, path)| path).expect("PATH").to_owned();
    for words in [&["--", "-p", "env CLAUDE_RUN_LINEAGE"][..], &["claude", "-p", "env CLAUDE_RUN_LINEAGE"]] {
        let assert = env.claude_run().env("PATH", &path).args(words).assert().code(0);
        let lineage = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
        assert!(lineage.starts_with("CLAUDE_RUN_LINEAGE=") && !lineage.contains(','), "one run: {lineage}");
    }
}
