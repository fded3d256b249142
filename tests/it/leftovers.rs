//! Nothing is left behind: whatever the child started, in whatever session, is gone when claude-run returns; and nothing
//! that is not its own is touched.

use std::os::unix::process::CommandExt;

use nix::sys::signal::Signal;

use crate::env::{Env, Running, binary, can_unshare, fake_claude, is_alive, until};

/// A shell that prints the pid of each background process it starts.
fn shell(env: &Env, options: &[&str], script: &str) -> Running {
    env.start(options.iter().copied().chain(["--", "bash", "-c", script]))
}

fn pid(running: &Running) -> i32 {
    running.line().parse().expect("a pid")
}

#[test]
fn a_daemon_in_its_own_session_is_gone_at_return_and_the_code_is_the_child_s() {
    let env = Env::new();
    let run = shell(&env, &[], "setsid sleep 600 & echo $!; (setsid sleep 600 & echo $!; exit 0); exit 7");
    let daemons = [pid(&run), pid(&run)];
    assert_eq!(run.end().code(), 7);
    assert!(!daemons.into_iter().any(is_alive));
}

#[test]
fn a_leftover_that_ignores_term_or_is_stopped_is_ended_too() {
    let env = Env::new();
    let run = shell(
        &env,
        &["--kill-after", "0.3"],
        "(trap '' TERM; exec setsid sleep 600) & echo $!; sleep 600 & echo $!; kill -STOP $!; exit 0",
    );
    let left = [pid(&run), pid(&run)];
    assert_eq!(run.end().code(), 0);
    assert!(!left.into_iter().any(is_alive));
}

#[test]
fn a_leftover_may_finish_cleaning_up_within_the_kill_grace() {
    let env = Env::new();
    let script = "setsid bash -c 'trap \"sleep 0.3; echo cleaned; exit\" TERM; echo ready; while :; do sleep 0.05; done' & read -t 10 < <(sleep 0.5); exit 0";
    let run = shell(&env, &[], script);
    run.expect_line("ready");
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout), (0, vec!["cleaned".to_owned()]));
}

#[test]
fn a_leftover_that_proc_calls_a_zombie_but_lives_is_ended_too() {
    let env = Env::new();
    let script = format!("setsid '{}' -p 'ready; ignore TERM; headless' & sleep 0.3; exit 0", fake_claude().display());
    let run = shell(&env, &["--kill-after", "0.3"], &script);
    let [left, ..] = run.ready();
    let tasks = format!("/proc/{left}/task");
    until("its first thread has ended", || crate::env::state(left) == Some('Z'));
    assert_eq!(std::fs::read_dir(&tasks).expect("it lives").count(), 2);
    assert_eq!(run.end().code(), 0);
    assert!(!std::path::Path::new(&tasks).exists());
}

#[test]
fn kept_leftovers_live_and_the_lock_is_free_all_the_same() {
    let env = Env::new();
    let run = shell(&env, &["--leftovers", "keep"], "sleep 600 >&- 2>&- & echo $!; exit 0");
    let kept = pid(&run);
    assert_eq!(run.end().code(), 0);
    assert!(is_alive(kept));
    assert!(!env.is_locked(), "a daemon that has inherited the descriptor holds the lock");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(kept), Signal::SIGKILL).expect("it lives");
}

#[test]
fn a_fork_bomb_of_leftovers_comes_to_its_end() {
    let env = Env::new();
    // Each one starts its successor and dies, faster than one look at /proc: only a second look finds the last.
    let script = "hop() { local n=$1; [ $n -gt 0 ] && (trap '' TERM; hop $((n-1)) &) ; }; for i in 1 2 3 4; do hop 200 & done; setsid sleep 600 & echo $!; exit 0";
    let run = shell(&env, &["--kill-after", "0.3"], script);
    let left = pid(&run);
    assert_eq!(run.end().code(), 0);
    assert!(!is_alive(left));
}

#[test]
fn tools_of_claude_die_with_it_however_it_ends() {
    let env = Env::new();
    for (steps, code) in [("exit 3", 3), ("die KILL", 137), ("die TERM", 143)] {
        let run = env.start_fake(
            &[],
            &format!("tool& echo $$ && exec sleep 600; tool& setsid sleep 600 & echo $! && wait; sleep 0.3; {steps}"),
        );
        let tools = [pid(&run), pid(&run)];
        assert_eq!(run.end().code(), code, "{steps}");
        assert!(!tools.into_iter().any(is_alive), "{steps}");
    }
}

#[test]
fn orphans_are_reaped_while_the_run_goes_on() {
    let env = Env::new();
    let run = env.start_fake(&[], "orphans 1000; ready; hang");
    let [_, supervisor, ..] = run.ready();
    until("no zombies below claude-run", || {
        let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).expect("children");
        children.split_whitespace().count() == 1
    });
}

#[test]
fn a_child_that_was_there_before_is_left_alone_and_does_not_end_the_run() {
    let env = Env::new();
    let mut bash = env.command("bash");
    let script =
        r#"sleep 600 & echo $!; (sleep 0.2; exit 5) & exec "$0" -- bash -c 'setsid sleep 600 & echo $!; sleep 1; exit 3'"#;
    bash.args(["-c", script]).arg(binary());
    let run = Running::start(bash);
    let (stranger, own) = (pid(&run), pid(&run));
    assert_eq!(run.end().code(), 3);
    assert!(is_alive(stranger) && !is_alive(own));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(stranger), Signal::SIGKILL).expect("it lives");
}

#[test]
fn among_children_of_before_a_leftover_without_an_environment_or_of_a_run_below_is_found() {
    let env = Env::new();
    for script in [
        "env -i /bin/setsid /bin/sleep 600 & echo $!; sleep 0.3; exit 3",
        // A run below this one that dies before its leftovers.
        "\"$0\" --lock pass-through -- sh -c 'setsid sleep 600 & echo $!; kill -KILL $PPID'; sleep 0.3; exit 3",
    ] {
        let mut bash = env.command("bash");
        bash.args(["-c", r#"sleep 600 & echo $!; exec "$0" -- bash -c "$1" "$0""#]).arg(binary()).arg(script);
        let run = Running::start(bash);
        let (stranger, own) = (pid(&run), pid(&run));
        assert_eq!(run.end().code(), 3);
        assert!(is_alive(stranger) && !is_alive(own), "{script}");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(stranger), Signal::SIGKILL).expect("it lives");
    }
}

#[test]
fn a_tool_below_one_that_may_not_be_signalled_is_ended_and_the_lock_freed() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test has to be root");
        eprintln!("SKIPPED: only root can make a program that another user may not signal");
        return;
    }
    let env = Env::new();
    let dir = env.path("");
    let set = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("permissions");
    };
    set(&dir, 0o777);
    env.script("as-root", ""); // and then a copy of bash that keeps root's rights
    std::fs::copy("/bin/bash", env.path("as-root")).expect("a copy");
    set(&env.path("as-root"), 0o4755);
    let mut command = env.command("setpriv");
    // It becomes root altogether, and what it starts gives that up again: claude-run's user may signal that one alone.
    env.script(
        "unreachable",
        "#!/bin/bash\ntrap '' TERM\nsetpriv --reuid 65534 --clear-groups sleep 600 & echo $$; echo $!\nwhile :; do wait; sleep 0.1; done\n",
    );
    let script = "./as-root -pc 'exec setpriv --reuid 0 --clear-groups ./unreachable' & sleep 0.5; exit 4";
    command.args(["--reuid", "65534", "--clear-groups"]).arg(binary());
    command.args(["--lock-file", "their.lock", "--kill-after", "0.2", "--", "bash", "-c", script]);
    let run = Running::start(command);
    let (unreachable, below) = (pid(&run), pid(&run));
    let ended = run.end();
    assert_eq!(ended.code(), 4, "{ended:?}");
    assert!(is_alive(unreachable) && !is_alive(below), "{ended:?}");
    assert!(ended.stderr_text().contains("neither seen nor signalled"), "{ended:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(unreachable), Signal::SIGKILL).expect("it lives");
}

#[test]
fn orphans_are_reaped_while_a_leftover_has_its_grace() {
    let env = Env::new();
    let run = shell(
        &env,
        &["--kill-after", "1h"],
        "(trap '' TERM; echo $BASHPID; while sleep 0.01; do (setsid true &); done) & sleep 0.3; exit 0",
    );
    let left = pid(&run);
    let us = run.pid().as_raw();
    let children = || std::fs::read_to_string(format!("/proc/{us}/task/{us}/children")).expect("children");
    until("the child has ended", || {
        children().split_whitespace().any(|child| crate::env::state(child.parse().expect("a pid")) == Some('Z'))
    });
    std::thread::sleep(std::time::Duration::from_millis(500)); // some twenty orphans later
    let zombies =
        children().split_whitespace().filter(|child| crate::env::state(child.parse().expect("a pid")) == Some('Z')).count();
    assert!(zombies < 5, "{zombies} zombies");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), Signal::SIGKILL).expect("it lives");
    assert_eq!(run.end().code(), 0);
}

#[test]
fn works_as_pid_1_of_a_container_and_leaves_its_proc_alone() {
    for flags in [&["-rpf"][..], &["-rpf", "--mount-proc"]] {
        if !can_unshare("-rpf") {
            return;
        }
        let env = Env::new();
        let mut unshare = env.command("unshare");
        unshare.args(flags).arg(binary()).args([
            "-v",
            "--",
            "bash",
            "-c",
            "setsid sleep 600 & (sleep 0.1 &) ; sleep 0.3; exit 9",
        ]);
        let started = std::time::Instant::now();
        let ended = Running::start(unshare).end();
        assert_eq!(ended.code(), 9, "{ended:?}");
        assert!(started.elapsed().as_secs() < 5, "the leftovers were found at once: {ended:?}");
        assert!(!env.is_locked());
    }
}

#[test]
fn term_to_a_holder_ends_child_then_tree_then_lock() {
    let env = Env::new();
    let run = env.start_fake(&[], "tool& trap '' TERM && echo $$ >tool.pid && exec sleep 600; on TERM exit 143; ready; hang");
    let [child, ..] = run.ready();
    until("the tool is up", || std::fs::read_to_string(env.path("tool.pid")).is_ok_and(|text| text.ends_with('\n')));
    let tool = std::fs::read_to_string(env.path("tool.pid")).expect("a pid").trim().parse().expect("a pid");
    run.signal(Signal::SIGTERM);
    run.expect_line("signal TERM");
    until("the child is gone", || !is_alive(child));
    assert!(is_alive(tool) && env.is_locked(), "within the kill grace of the tool the lock is held");
    run.term_again();
    assert_eq!(run.end().code(), 143);
    assert!(!is_alive(tool) && !env.is_locked());
}

#[test]
fn the_child_ends_with_a_killed_claude_run_and_holds_the_lock_until_then() {
    let env = Env::new();
    let run = env.start_fake(&[], "signals; ready; hang");
    let [child, ..] = run.ready();
    run.signal(Signal::SIGKILL);
    run.expect_line("signal TERM"); // the kernel's, at our death
    assert!(is_alive(child) && env.is_locked(), "the lock is free while the child lives");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL).expect("it lives");
    until("the lock is free", || !env.is_locked());
    drop(run);
}

#[test]
fn a_caller_that_ignores_sigchld_does_no_harm() {
    let env = Env::new();
    let mut command = env.command(binary());
    // SAFETY: signal(2) is async-signal-safe, and SIG_IGN runs no code.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::signal::signal(Signal::SIGCHLD, nix::sys::signal::SigHandler::SigIgn).map(|_| ())?))
    };
    command.args(["--", "bash", "-c", "setsid sleep 600 & exit 4"]);
    assert_eq!(Running::start(command).end().code(), 4);
}
