//! `CLAUDE_PGID_FILE`: the process group by which a factory ends a run from outside.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{is_alive, stat, wait_until};
use crate::factory::{Machine, call, is_there, machines};

/// Waits for the process group that the file in CLAUDE_PGID_FILE names.
fn group(machine: &Machine) -> Pid {
    let read = || fs::read_to_string(machine.env.path("pgid")).ok()?.trim().parse::<i32>().ok();
    wait_until("there is a process group", || read().is_some());
    Pid::from_raw(-read().expect("a group"))
}

fn is_gone(group: Pid) -> bool {
    kill(group, None).is_err()
}

#[test]
fn group_file_stands_while_claude_runs() {
    for machine in machines() {
        // claude itself reads it, and shows that TERM and KILL have somebody to reach.
        let steps = "tool kill -0 -- -$(cat pgid) && echo alive; exit 4";
        let ended = machine.run(&format!("CLAUDE_PGID_FILE=$PWD/pgid; {}", call(&steps.replace('$', "\\$"))));
        assert_eq!(ended.stdout, ["rc 4", "alive"], "{ended:?}\n{}", machine.log());
        assert!(!machine.env.path("pgid").exists());
        for file in ["/nonesuch/pgid", "/dev/full", "fifo"] {
            let script = format!("[ -e fifo ] || mkfifo fifo; CLAUDE_PGID_FILE={file}; {}", call("exit 4"));
            let ended = machine.run(&script);
            assert_eq!(ended.stdout[0], "rc 4", "{ended:?}");
            assert!(machine.log().contains(&format!("cannot write CLAUDE_PGID_FILE {file};")), "{}", machine.log());
        }
    }
}

/// TERM, KILL, or one after the other, to the group alone: claude and its tools end, and claude-run was asked to end them.
#[test]
fn signals_to_the_group_end_claude_and_all_its_tools() {
    for machine in machines() {
        for (before, signals, code) in [
            (":", &[Signal::SIGTERM][..], 143),
            (":", &[Signal::SIGKILL], 143),
            (":", &[Signal::SIGTERM, Signal::SIGKILL], 143),
            ("trap '' TERM", &[Signal::SIGTERM], 143),
            ("IFS=0123456789", &[Signal::SIGTERM], 143),
        ] {
            let mark = format!("{}.{}", 7000 + signals.len() * 100 + before.len(), signals[0] as i32);
            let steps = format!("tool& sleep {mark}; tool& trap '' TERM && echo deaf && sleep {mark}; hang");
            let script = format!("{before}; CLAUDE_PGID_FILE=$PWD/pgid; export CLAUDE_RUN_KILL_AFTER=1; {}", call(&steps));
            let run = machine.start(&script);
            let group = group(&machine);
            wait_until("the tools run", || machine.log().contains("stdout: deaf"));
            for &signal in signals {
                assert!(kill(group, signal).is_ok() || signal == Signal::SIGKILL);
                thread::sleep(Duration::from_millis(200));
            }
            assert_eq!(run.line(), format!("rc {code}"));
            run.end();
            assert!(is_gone(group) && !machine.env.path("pgid").exists());
            assert!(!is_there(&mark), "{signals:?}: {}", machine.log());
            assert!(machine.log().contains("signalling the child signal=SIGTERM"), "{}", machine.log());
            fs::remove_file(machine.env.path("log")).expect("a log");
        }
    }
}

/// The file of a run that ends first, by itself or by KILL to its group, is not taken from the other.
#[test]
fn two_runs_with_one_group_file_leave_the_last() {
    for machine in machines() {
        let run =
            |steps: &str| machine.start(&format!("CLAUDE_PGID_FILE=$PWD/pgid; claude_run_with_watchdog claude -p '{steps}'"));
        assert!(machine.shell("mkfifo end").status().expect("mkfifo").success());
        let first = run("ready; open end");
        first.ready();
        let before = group(&machine);
        let killed = run("ready; hang");
        killed.ready();
        wait_until("the file is the next run's", || group(&machine) != before);
        let killed_group = group(&machine);
        let second = run("ready; hang");
        second.ready();
        wait_until("the file is the last run's", || group(&machine) != killed_group);
        kill(killed_group, Signal::SIGKILL).expect("a group");
        assert_eq!(killed.end().code(), 143);
        fs::write(machine.env.path("end"), "").expect("a reader");
        assert_eq!(first.end().code(), 0);
        assert!(is_gone(before) && is_gone(killed_group));
        kill(group(&machine), Signal::SIGTERM).expect("a group");
        assert_eq!(second.end().code(), 143);
        assert!(!machine.env.path("pgid").exists());
    }
}

/// As the factory's clean-up does it: TERM, a second, KILL. A refresh that is under way takes longer.
#[test]
fn signals_to_the_group_spare_a_refresh() {
    for machine in machines() {
        let lock = machine.env.home().join(".claude.lock");
        let claude = machine.env.script(
            "bin/refreshing",
            &format!("#!/bin/bash\nmkdir '{0}'\necho begun\nsleep 2\necho saved\nrmdir '{0}'\nsleep 77\n", lock.display()),
        );
        fs::create_dir_all(machine.env.home().join(".claude")).expect("a config dir");
        let call = r#"output=$(claude_run_with_watchdog claude -p x) && rc=0 || rc=$?; echo "$rc $output""#;
        let run =
            machine.start(&format!("export CLAUDE_RUN_CLAUDE='{}'; CLAUDE_PGID_FILE=$PWD/pgid; {call}", claude.display()));
        let group = group(&machine);
        wait_until("the refresh has begun", || machine.log().contains("stdout: begun"));
        kill(group, Signal::SIGTERM).expect("a group");
        thread::sleep(Duration::from_secs(1));
        kill(group, Signal::SIGKILL).expect("a group");
        let lines = run.end().stdout;
        assert!(lines.last().is_some_and(|line| line == "saved"), "{lines:?}\n{}", machine.log());
    }
}

/// The shell that runs the function is killed: what it has started is ended.
#[test]
fn nothing_outlives_a_killed_shell_that_has_a_group_file() {
    for machine in machines() {
        let script = "CLAUDE_PGID_FILE=$PWD/pgid; claude_run_with_watchdog claude -p 'ready; hang'";
        let run = machine.start(script);
        let [claude, claude_run, ..] = run.ready();
        let shell = stat(claude_run).expect("it lives")[1].parse().expect("a pid");
        kill(Pid::from_raw(shell), Signal::SIGKILL).expect("it lives");
        wait_until("claude has ended", || !is_alive(claude) && !is_alive(claude_run));
    }
}
