//! When `scripts/agent-sdk.sh` takes a lock, at call sites as they were and as they become; the README's diff on a factory's file.

use std::fs;

use crate::env::{Running, wait_until};
use crate::factory::{SDK, call, machines};

/// Whether a call takes the session lock, by who says what: the switch, the variable, the file, nobody.
#[test]
fn lock_is_taken_where_somebody_says_so() {
    for machine in machines() {
        let _holder = machine.env.hold_lock();
        for (variables, file, is_locked) in [
            ("", "", false),
            ("CLAUDE_EXTERNAL_LOCK=", "", false),
            ("CLAUDE_EXTERNAL_LOCK=1", "", true),
            ("CLAUDE_EXTERNAL_LOCK=1", "lock = 'pass-through'\n", true),
            ("CLAUDE_EXTERNAL_LOCK=1 CLAUDE_RUN_LOCK=pass-through", "", true),
            ("CLAUDE_RUN_LOCK=exclusive", "", true),
            ("CLAUDE_RUN_LOCK=pass-through", "lock = 'exclusive'\n", false),
            ("", "lock = 'exclusive'\n", true),
            ("", "lock = 'pass-through'\n", false),
            ("", "wait = 1\n", false),
            ("CLAUDE_RUN_LOCK_FILE=$HOME/.claude/session.lock", "", true),
            ("B=1; CLAUDE_RUN_LOCK_FILE=$HOME/.claude/session.lock; export", "", true),
            ("B=1; CLAUDE_RUN_LOCK=exclusive; export", "", true),
        ] {
            machine.settings(file);
            let ended = machine.run(&format!("export A=1 {variables} CLAUDE_RUN_WAIT=0; {}", call("exit 4")));
            assert_eq!(ended.stdout[0], if is_locked { "rc 75" } else { "rc 4" }, "{variables:?} {file:?}: {ended:?}");
        }
        machine.settings("lock = 'sometimes'\n");
        assert_eq!(machine.call("exit 4").stdout[0], "rc 125");
        assert!(machine.log().contains("claude-run.toml:1: "), "{}", machine.log());
    }
}

/// The call sites before they are changed: of a factory that locks every call, and of one with a switch, on and off.
#[test]
fn call_sites_that_still_have_their_flock_work() {
    for machine in machines() {
        let lock_file = machine.env.make_lock_file();
        let seed = r#"output=$(cd "$PWD" && ( flock -w 600 9 || exit 1;
            claude_run_with_watchdog claude "${args[@]}" ) 9>"$HOME/.claude/session.lock" 2>>"$LOGFILE") && rc=0 || rc=$?"#;
        let gated = r#"lock_file=$HOME/.claude/session.lock
            if [ -n "${CLAUDE_EXTERNAL_LOCK:-}" ]; then
              mkdir -p "$(dirname "$lock_file")"
              output=$(cd "$PWD" && ( flock -w 600 9 || exit 1; claude_run_with_watchdog claude "${args[@]}" ) 9>"$lock_file" 2>>"$LOGFILE") && rc=0 || rc=$?
            else
              output=$(cd "$PWD" && claude_run_with_watchdog claude "${args[@]}" 2>>"$LOGFILE") && rc=0 || rc=$?
            fi"#;
        for (site, switch, is_locked) in [(seed, "", true), (seed, "1", true), (gated, "1", true), (gated, "", false)] {
            let look = format!("tool flock -n '{}' true && echo free || echo held; exit 4", lock_file.display());
            let script = format!(
                "export CLAUDE_RUN_WAIT=5; CLAUDE_EXTERNAL_LOCK={switch}; args=(-p \"{look}\"); {site}; echo \"$rc $output\""
            );
            let ended = machine.run(&script);
            assert_eq!(ended.stdout, [if is_locked { "4 held" } else { "4 free" }], "{site}: {ended:?}");
        }
    }
}

/// What the new sites say is what happens: the switch in the line, or nothing.
#[test]
fn call_sites_without_flock_exclude_the_old_ones() {
    for machine in machines() {
        let mut holder = machine.env.hold_lock();
        let site = r#"output=$(cd "$PWD" && CLAUDE_EXTERNAL_LOCK=1 claude_run_with_watchdog claude -p 'exit 4' 2>>"$LOGFILE") && rc=0 || rc=$?; echo "rc $rc""#;
        let run = machine.start(site);
        wait_until("it waits", || machine.log().contains("event=lock.waiting"));
        holder.close_stdin();
        run.expect_line("rc 4");
    }
}

#[test]
fn backends_have_a_lock_each() {
    for machine in machines() {
        machine.env.script("bin/dsh", "#!/bin/sh\necho begun\ncat fifo\n");
        assert!(machine.shell("mkfifo fifo").status().expect("mkfifo").success());
        let on = |backend: &str, command: &str| {
            format!(
                "CLAUDE_RUN_LOCK=exclusive CLAUDE_RUN_LOCK_FILE=$PWD/{backend}.lock CLAUDE_RUN_WAIT=0 claude_run_with_watchdog {command}"
            )
        };
        let export = |call: String| {
            call.replace("CLAUDE_RUN_LOCK=", "export CLAUDE_RUN_LOCK=").replace(" claude_run_with", "; claude_run_with")
        };
        let first = machine.start(&export(on("llama-1", "dsh --profile headless x")));
        first.expect_line("begun");
        let ended = machine.run(&format!("{} || echo $?", on("llama-1", "dsh")));
        assert_eq!(ended.stdout, ["75"], "{ended:?}");
        let ended = machine.run(&on("llama-2", "claude -p 'say other'"));
        assert_eq!(ended.stdout, ["other"], "{ended:?}");
        fs::write(machine.env.path("fifo"), "").expect("a reader");
        assert_eq!(first.end().code(), 0);
    }
}

/// The diff in the README, on a factory's file: patch takes it, and both calls go through claude-run, with the switch on and off.
#[test]
fn readme_diff_patches_a_factorys_file() {
    let readme = include_str!("../../README.md");
    let diff = readme.split("\n```diff\n").find(|rest| rest.starts_with("--- ")).expect("a diff");
    let diff = diff.split("\n```").next().expect("its end");
    for machine in machines() {
        let before = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/factory/agent-sdk.sh");
        fs::create_dir(machine.env.path("lib")).expect("a directory");
        fs::copy(before, machine.env.path("lib/agent-sdk.sh")).expect("a copy");
        fs::write(machine.env.path("diff"), format!("{diff}\n")).expect("a file");
        // GNU's: busybox's patch takes no hunk without context.
        let patched = machine.shell("/usr/bin/patch lib/agent-sdk.sh <diff").output().expect("patch");
        assert!(patched.status.success(), "{patched:?}");
        for (switch, events) in [("", 0), ("1", 2)] {
            let script = format!(
                "set -euo pipefail; LOGFILE=$PWD/log; log() {{ echo \"log: $*\" >>\"$LOGFILE\"; }}; CLAUDE_RUN_SDK='{SDK}'\n\
                 . lib/agent-sdk.sh; export CLAUDE_RUN_WAIT=5; CLAUDE_EXTERNAL_LOCK={switch}\n\
                 agent_run 'say {{}}; result new ok; exit 3' || rc=$?; echo \"$rc $_AGENT_SESSION_ID\""
            );
            let ended = Running::start(machine.shell(&script)).end();
            assert_eq!(ended.stdout, ["3 fake"], "{ended:?}\n{}", machine.log());
            let log = machine.log();
            assert!(log.contains(" UTC] watchdog: timeout_exit=0 ") && !log.contains("the old function ran"), "{log}");
            assert_eq!(log.matches("event=run.ended").count(), 2, "{log}");
            // Of the two with the switch on, the nudge has its caller's.
            assert_eq!(log.matches("event=lock.acquired").count(), events, "{log}");
            fs::remove_file(machine.env.path("log")).expect("a log");
        }
    }
}
