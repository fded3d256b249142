//! Job control: Ctrl-Z, `fg`, jobs in the background, and who is signalled when a process signals claude-run alone.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{Env, binary, fake_claude, is_alive, stat, state, wait_until};
use crate::terminal::{OnTerminal, line};

fn interactive_shell(env: &Env) -> OnTerminal {
    let mut command = env.command("bash");
    command.args(["--norc", "--noprofile", "-i"]).env("PS1", "$ ").env("TERM", "dumb");
    OnTerminal::start(command)
}

#[test]
fn ctrl_c_ctrl_z_and_fg_work_in_a_shell() {
    let env = Env::new();
    let mut terminal = interactive_shell(&env);
    terminal.types(&format!("{}; echo code $?\n", line("signals; ready; hang")));
    let [child, supervisor, group, _] = terminal.ready();
    assert_eq!(group, supervisor, "the child stays in the group that the shell has made for us");
    terminal.types("\x03");
    terminal.shows("signal INT");
    terminal.types("\x1a");
    terminal.shows("Stopped");
    wait_until("both are stopped", || [child, supervisor].into_iter().all(|pid| state(pid) == Some('T')));
    terminal.types("fg\n");
    terminal.shows("signal CONT");
    wait_until("both run", || [child, supervisor].into_iter().all(|pid| state(pid) != Some('T')));
    assert_eq!((terminal.count("signal INT"), terminal.count("signal CONT")), (1, 1));
    terminal.types("\x1c");
    terminal.shows("signal QUIT");
    assert_eq!(terminal.count("signal QUIT"), 1);
    assert!(is_alive(child), "what the QUIT key means is the child's affair");
    terminal.types("\x1a");
    terminal.shows("Stopped");
    terminal.types("kill %1; fg\n");
    wait_until("it has ended", || !is_alive(child) && !is_alive(supervisor));
    terminal.leaves();
}

#[test]
fn background_job_can_be_brought_to_the_foreground() {
    let env = Env::new();
    let mut terminal = interactive_shell(&env);
    terminal.types(&format!("{} &\n", line("ready; read; exit 0")));
    let [child, supervisor, ..] = terminal.ready();
    wait_until("it is stopped, since it reads", || state(child) == Some('T'));
    assert_ne!(state(supervisor), Some('T'), "a watchdog is not stopped");
    terminal.types("fg\n");
    wait_until("it runs", || state(child) != Some('T'));
    terminal.types("word\n\x04");
    terminal.shows("read 5");
    wait_until("it has ended", || !is_alive(supervisor));
    terminal.leaves();
}

#[test]
fn background_job_that_wants_the_terminal_has_limits() {
    let env = Env::new();
    for (prepare, steps) in [(":", "ready; read; hang"), ("stty tostop", "hang")] {
        let mut terminal = interactive_shell(&env);
        let run = line(steps).replacen(" -- ", " --timeout 1 -v -- ", 1);
        terminal.types(&format!("{prepare}; {run} & wait $!; echo code $?\n"));
        terminal.shows("code 124");
        terminal.leaves();
    }
}

#[test]
fn child_that_wants_the_terminal_is_not_woken_in_a_loop() {
    let env = Env::new();
    let mut terminal = interactive_shell(&env);
    let run = line("signals; ready; read; hang").replacen(" -- ", " --kill-after 2 -- ", 1);
    terminal.types(&format!("{run} &\n"));
    let [child, supervisor, ..] = terminal.ready();
    wait_until("it is stopped, since it reads", || state(child) == Some('T'));
    kill(Pid::from_raw(supervisor), Signal::SIGTERM).expect("it lives");
    terminal.shows("signal TERM");
    wait_until("it has ended", || !is_alive(supervisor));
    assert_eq!(terminal.count("wants the terminal"), 1);
    assert!(terminal.count("signal CONT") <= 4, "{:#?}", terminal.seen);
    terminal.leaves();
}

#[test]
fn ctrl_z_on_a_script_stops_its_claude_run() {
    let env = Env::new();
    let mut terminal = interactive_shell(&env);
    env.script("script", &format!("#!/bin/bash\n{} </dev/null\n", line("signals; ready; hang")));
    terminal.types("./script\n");
    let [child, supervisor, group, _] = terminal.ready();
    assert_ne!(group, supervisor);
    terminal.types("\x1a");
    terminal.shows("Stopped");
    wait_until("both are stopped", || [child, supervisor].into_iter().all(|pid| state(pid) == Some('T')));
    terminal.types("fg\n");
    terminal.shows("signal CONT");
    wait_until("both run", || [child, supervisor].into_iter().all(|pid| state(pid) != Some('T')));
    kill(Pid::from_raw(child), Signal::SIGKILL).expect("it lives");
    wait_until("it has ended", || !is_alive(supervisor));
    terminal.leaves();
}

#[test]
fn ctrl_z_without_job_control_stops_nothing() {
    let env = Env::new();
    let mut command = env.command("sh");
    // Its stdin is elsewhere, so that the child has a group of its own; and there is no shell above.
    let script = r#"exec "$0" --claude "$1" -- -p 'signals; ready; hang' </dev/null"#;
    command.args(["-c", script]).arg(binary()).arg(fake_claude());
    let mut terminal = OnTerminal::start(command);
    let [child, supervisor, group, _] = terminal.ready();
    assert_ne!(group, supervisor);
    terminal.types("\x1a");
    terminal.types("\x03");
    terminal.shows("signal INT");
    assert!([child, supervisor].into_iter().all(|pid| state(pid) != Some('T')));
    kill(Pid::from_raw(child), Signal::SIGKILL).expect("it lives");
    assert_eq!(terminal.ends(), 137);
}

#[test]
fn self_stopped_child_returns_the_terminal() {
    let env = Env::new();
    let mut terminal = interactive_shell(&env);
    // By itself, as claude in most versions; by STOP in others, attended as they are then.
    let attended = line("ready; stop; say back; exit 0").replace(" -- -p", " --timeout 0 -- -p");
    for command in [line("ready; die TSTP; say back; exit 0"), attended] {
        terminal.types(&format!("{command}\n"));
        let [_, supervisor, ..] = terminal.ready();
        terminal.shows("Stopped");
        terminal.types("fg\n");
        terminal.shows("back");
        wait_until("it has ended", || !is_alive(supervisor));
    }
    terminal.leaves();
}

#[test]
fn terminal_is_taken_back_from_a_killed_shell() {
    // A shell has a foreground group of its own; with `keep`, one of its jobs outlives it there.
    let job = r"(trap '' TTIN HUP; echo u\p $PPID; exec sleep 600)";
    for (leftovers, job, left) in [("kill", r"echo u\p $PPID", 0), ("keep", job, 1)] {
        let env = Env::new();
        let mut command = env.command("bash");
        let script = format!(
            r#"stty -g; "$0" --kill-after 0.2 --leftovers {leftovers} bash --norc -i
                echo code $?; stty -g; read -r word; echo "read $word""#
        );
        command.args(["-c", &script]).env("PS1", "$ ").arg(binary());
        let mut terminal = OnTerminal::start(command);
        let before = terminal.shows(":");
        terminal.types(&format!("trap '' TERM; kill -CONT $PPID; stty raw -echo; {job}\n"));
        let supervisor = terminal.shows("up ").rsplit(' ').next().expect("a pid").parse().expect("a pid");
        kill(Pid::from_raw(supervisor), Signal::SIGTERM).expect("it lives");
        terminal.shows("code 137");
        terminal.shows(&before);
        terminal.types("words\n");
        terminal.shows("read words");
        assert_eq!(terminal.ends(), 0);
        let kept = env.processes();
        assert_eq!(kept.len(), left, "{leftovers}");
        kept.into_iter().for_each(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives"));
    }
}

#[test]
fn background_run_takes_the_terminal_from_no_shell() {
    let env = Env::new();
    let mut command = env.command("bash");
    // The job in the foreground stops the shell, which must not reap it, and is a dead process group there when the run in the
    // background ends.
    let script = r#"set -m
        "$0" sh -c 'until read -r job <job && grep -q ") Z" "/proc/$job/stat"; do sleep 0.02; done 2>/dev/null' &
        echo "shell $$ run $!:"
        sh -c 'kill -STOP "$PPID"; until grep -q ") T" "/proc/$PPID/stat"; do sleep 0.02; done; echo $$ >new; mv new job'
        read -r word; echo "read $word""#;
    command.args(["--norc", "-c", script]).arg(binary()).current_dir(env.home());
    let mut terminal = OnTerminal::start(command);
    let line = terminal.shows(":");
    let pids: Vec<i32> = line.split([' ', ':']).filter_map(|word| word.parse().ok()).collect();
    let [shell, run] = pids[..] else { panic!("{line}") };
    wait_until("the run has ended", || state(run) == Some('Z'));
    let foreground = &stat(shell).expect("it lives")[5];
    assert_ne!(*foreground, run.to_string());
    kill(Pid::from_raw(shell), Signal::SIGCONT).expect("it lives");
    terminal.types("words\n");
    terminal.shows("read words");
    assert_eq!(terminal.ends(), 0);
}

#[test]
fn int_to_claude_run_alone_reaches_the_whole_job() {
    let env = Env::new();
    let mut terminal = interactive_shell(&env);
    // The backslashes tell what is printed from what is typed.
    terminal
        .types(&format!("'{}' -- bash -c '(echo r\\eady $PPID $$ 0 0; exec sleep 600); echo af\\ter'\n", binary().display()));
    let [supervisor, ..] = terminal.ready();
    kill(Pid::from_raw(supervisor), Signal::SIGINT).expect("it lives");
    wait_until("it has ended", || !is_alive(supervisor));
    terminal.types("echo co\\de $?\n");
    terminal.shows("code 130");
    assert_eq!(terminal.count("after"), 0);
    terminal.leaves();
}
