//! `scripts/agent-sdk.sh`, as the factory's bash sources it.

use std::fs;
use std::os::unix::fs::symlink;

use crate::env::{Ended, Env, Running, binary, fake_claude};

/// Runs `script` in bash under `set -euo pipefail`, with the function sourced, and claude and claude-run on PATH.
fn bash(env: &Env, script: &str) -> Ended {
    fs::create_dir_all(env.path("bin")).expect("a directory");
    for (name, program) in [("claude", fake_claude()), ("claude-run", binary())] {
        let _ = symlink(program, env.path("bin").join(name)); // there since an earlier call
    }
    let mut bash = env.command("bash");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/agent-sdk.sh");
    bash.args(["-c", &format!("set -euo pipefail\n. '{source}'\nLOGFILE=$PWD/log\n{script}")]);
    bash.env("PATH", format!("{}:/usr/bin:/bin", env.path("bin").display()));
    Running::start(bash).end()
}

const CALL: &str = r#"run_dir=$PWD; output=$(cd "$run_dir" && claude_run_with_watchdog claude "${args[@]}") && rc=0 || rc=$?; echo "rc $rc"; echo "$output""#;

#[test]
fn output_is_claude_s_and_the_exit_code_too() {
    let env = Env::new();
    for code in [0, 1, 3, 124] {
        let ended = bash(&env, &format!("args=(-p 'init; result new ok; exit {code}' --output-format stream-json); {CALL}"));
        assert_eq!(ended.stdout[0], format!("rc {code}"));
        assert!(ended.stdout[1].contains("init") && ended.stdout[2].contains("result"), "{ended:?}");
        assert_eq!((ended.stdout.len(), ended.code()), (3, 0), "{ended:?}");
    }
}

#[test]
fn messages_and_claude_s_stderr_go_to_the_logfile() {
    let env = Env::new();
    let ended = bash(&env, &format!("CLAUDE_TIMEOUT=0.2; args=(-p 'tool echo from claude >&2; hang'); {CALL}; echo here >&2"));
    assert_eq!((&*ended.stdout[0], &ended.stderr[..]), ("rc 124", &["here".to_owned()][..]), "{ended:?}");
    let log = fs::read_to_string(env.path("log")).expect("a log");
    for once in ["stderr: from claude\n", "hard limit"] {
        assert_eq!(log.matches(once).count(), 1, "{log}");
    }
}

#[test]
fn the_logfile_fills_as_claude_runs_and_a_record_is_kept() {
    let env = Env::new();
    // claude itself looks at the log, so nothing has to be awaited.
    let look = "say one; tool grep -q 'stdout: one' < <(tail -n +1 -F log 2>/dev/null); result old ok; say GH_TOKEN=abc";
    let ended = bash(&env, &format!("args=(-p \"{look}\" --output-format stream-json); {CALL}"));
    assert_eq!((&*ended.stdout[0], &*ended.stdout[1], &*ended.stdout[3]), ("rc 0", "one", "GH_TOKEN=abc"), "{ended:?}");
    let log = fs::read_to_string(env.path("log")).expect("a log");
    assert!(log.contains("stdout: GH_TOKEN=***\n") && !log.contains("GH_TOKEN=abc"), "{log}");
    let record = fs::read_to_string(env.path("log.runs.jsonl")).expect("a record");
    assert!(record.contains(r#""outcome":"exited""#) && record.contains(r#""turns":1"#), "{record}");
    bash(&env, &format!("CLAUDE_RUN_RECORD=; args=(-p 'exit 0'); {CALL}"));
    assert_eq!(fs::read_to_string(env.path("log.runs.jsonl")).expect("a record"), record);
}

#[test]
fn a_claude_that_hangs_after_its_result_is_ended_after_claude_idle_grace() {
    let env = Env::new();
    let ended =
        bash(&env, &format!("CLAUDE_IDLE_GRACE=0.2; args=(-p 'result new ok; hang' --output-format stream-json); {CALL}"));
    assert!(ended.stdout[0] == "rc 0" && ended.stdout[1].contains("result"), "{ended:?}");
    assert!(fs::read_to_string(env.path("log")).expect("a log").contains("result grace"));
}

#[test]
fn an_unwritable_logfile_costs_the_log_and_not_the_run() {
    let env = Env::new();
    let ended = bash(&env, &format!("LOGFILE=/nonesuch/log; args=(-p 'say hi; exit 4'); {CALL}"));
    assert_eq!(ended.stdout, ["rc 4", "hi"], "{ended:?}");
    assert!(ended.stderr_text().contains("/nonesuch/log"), "{ended:?}");
    let ended = bash(&env, &format!("unset LOGFILE; args=(-p 'exit 4'); {CALL}"));
    assert_eq!(ended.stdout[0], "rc 4", "{ended:?}");
}

#[test]
fn it_takes_the_lock_and_says_when_it_is_not_free() {
    let env = Env::new();
    let _holder = env.hold_lock();
    let ended = bash(&env, &format!("export CLAUDE_RUN_WAIT=0; CLAUDE_EXTERNAL_LOCK=1; args=(-p 'exit 4'); {CALL}"));
    assert_eq!(ended.stdout[0], "rc 75", "{ended:?}");
    assert!(fs::read_to_string(env.path("log")).expect("a log").contains("session.lock"));
}

#[test]
fn an_old_call_site_with_its_flock_still_works() {
    let env = Env::new();
    env.make_lock_file();
    let call = r#"output=$(cd "$PWD" && ( flock -w 600 9 || exit 1;
        claude_run_with_watchdog claude "${args[@]}" ) 9>"$HOME/.claude/session.lock" 2>>"$LOGFILE") && rc=0 || rc=$?; echo "rc $rc"; echo "$output""#;
    let ended = bash(&env, &format!("export CLAUDE_RUN_WAIT=5; args=(-p 'say hi; exit 4'); {call}"));
    assert_eq!(ended.stdout, ["rc 4", "hi"], "{ended:?}");
}

#[test]
fn arguments_of_any_kind_and_the_caller_s_shell_survive() {
    let env = Env::new();
    let ended = bash(&env, &format!(r#"args=(-p 'say a  b * $HOME "q"'); {CALL}; echo "$- ${{name-none}}""#));
    assert_eq!(ended.stdout[..2], ["rc 0", r#"a  b * $HOME "q""#], "{ended:?}");
    assert!(ended.stdout[2].contains('e') && ended.stdout[2].contains('u') && ended.stdout[2].ends_with("none"), "{ended:?}");
}

#[test]
fn without_claude_run_it_is_127() {
    let env = Env::new();
    let ended = bash(&env, &format!("CLAUDE_RUN=/nonesuch/claude-run; args=(-p hi); {CALL}"));
    assert_eq!(ended.stdout[0], "rc 127", "{ended:?}");
}
