//! Nothing is left behind: whatever the child started, in whatever session, is gone when claude-run returns; and nothing
//! that is not its own is touched.

use std::os::unix::process::CommandExt;

use nix::sys::signal::Signal;

use crate::env::{
    Env, Running, binary, can_unshare, fake_claude, is_alive, needs, needs_root, state, wait_until, wait_until_exec,
};

/// Shell that prints the pid of each background process it starts.
pub(crate) fn shell(env: &Env, options: &[&str], script: &str) -> Running {
    env.start(options.iter().copied().chain(["--", "bash", "-c", script]))
}

/// Shell words that wait for [`go`].
pub(crate) const UNTIL_GO: &str = "until [ -e go ]; do sleep 0.01; done";

pub(crate) fn go(env: &Env) {
    std::fs::write(env.path("go"), "").expect("a file");
}

pub(crate) fn pid(running: &Running) -> i32 {
    running.line().parse().expect("a pid")
}

#[test]
fn daemon_in_its_own_session_is_gone_at_return() {
    let env = Env::new();
    let run = shell(&env, &[], "setsid sleep 600 & echo $!; (setsid sleep 600 & echo $!; exit 0); exit 7");
    let daemons = [pid(&run), pid(&run)];
    assert_eq!(run.end().code(), 7);
    assert!(!daemons.into_iter().any(is_alive));
}

#[test]
fn leftover_that_ignores_term_or_is_stopped_ends() {
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
fn leftover_may_clean_up_within_the_kill_grace() {
    let env = Env::new();
    let script = format!(
        "setsid bash -c 'trap \"sleep 0.3; echo cleaned; exit\" TERM; echo ready; while :; do sleep 0.05; done' & {UNTIL_GO}; exit 0"
    );
    let run = shell(&env, &["--kill-after", "1m"], &script);
    run.expect_line("ready");
    go(&env);
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout), (0, vec!["cleaned".to_owned()]));
}

#[test]
fn leftover_with_a_zombie_main_thread_is_ended() {
    let env = Env::new();
    let script = format!("setsid '{}' -p 'ready; ignore TERM; headless' & {UNTIL_GO}; exit 0", fake_claude().display());
    let run = shell(&env, &["--kill-after", "0.3"], &script);
    let [left, ..] = run.ready();
    let tasks = format!("/proc/{left}/task");
    wait_until("its first thread has ended", || state(left) == Some('Z'));
    assert_eq!(std::fs::read_dir(&tasks).expect("it lives").count(), 2);
    go(&env);
    assert_eq!(run.end().code(), 0);
    assert!(!std::path::Path::new(&tasks).exists());
}

#[test]
fn kept_leftovers_live_and_hold_no_lock() {
    let env = Env::new();
    let run = shell(&env, &["--leftovers", "keep"], "sleep 600 >&- 2>&- & echo $!; exit 0");
    let kept = pid(&run);
    assert_eq!(run.end().code(), 0);
    assert!(is_alive(kept));
    assert!(!env.is_locked(), "a daemon that has inherited the descriptor holds the lock");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(kept), Signal::SIGKILL).expect("it lives");
}

#[test]
fn fork_bomb_of_leftovers_is_ended() {
    let env = Env::new();
    // Each one starts its successor and dies, faster than one look at /proc: only a second look finds the last.
    let script = "hop() { local n=$1; echo >>hops; [ $n -gt 0 ] && (trap '' TERM; hop $((n-1)) &) ; }; for i in 1 2 3 4; do hop 200 & done; setsid sleep 600 & echo $!; until [ -s hops ]; do sleep 0.01; done; exit 0";
    let run = shell(&env, &["--kill-after", "0.3"], script);
    let left = pid(&run);
    let ended = run.end();
    assert_eq!(ended.code(), 0);
    let hops = || std::fs::metadata(env.path("hops")).expect("hops").len();
    let at_return = hops();
    assert!(!is_alive(left) && !env.is_locked());
    for _ in 0..50 {
        assert_eq!((env.processes(), hops()), (Vec::new(), at_return), "nobody is left, and nobody has gone on: {ended:?}");
    }
}

#[test]
fn tools_die_with_claude_however_it_ends() {
    let env = Env::new();
    let fifo = env.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    for (steps, code) in [("exit 3", 3), ("die KILL", 137), ("die TERM", 143)] {
        let run = env.start_fake(
            &[],
            &format!("tool& echo $$ && exec sleep 600; tool& setsid sleep 600 & echo $! && wait; open fifo; {steps}"),
        );
        let tools = [pid(&run), pid(&run)];
        std::fs::write(&fifo, "").expect("a FIFO"); // the child goes on
        assert_eq!(run.end().code(), code, "{steps}");
        assert!(!tools.into_iter().any(is_alive), "{steps}");
    }
}

#[test]
fn orphans_are_reaped_during_the_run() {
    let env = Env::new();
    let run = env.start_fake(&[], "orphans 1000; ready; hang");
    let [_, supervisor, ..] = run.ready();
    wait_until("no zombies below claude-run", || {
        let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).expect("children");
        children.split_whitespace().count() == 1
    });
}

#[test]
fn preexisting_child_is_left_alone() {
    let env = Env::new();
    let mut bash = env.command("bash");
    let script = r#"sleep 600 & echo $!; (until [ -e end ]; do sleep 0.01; done; exit 5) & echo $!; exec "$0" -- bash -c "$1""#;
    bash.args(["-c", script]).arg(binary()).arg(format!("setsid sleep 600 & echo $!; {UNTIL_GO}; exit 3"));
    let mut run = Running::start(bash);
    let (stranger, brief, own) = (pid(&run), pid(&run), pid(&run));
    std::fs::write(env.path("end"), "").expect("a file");
    wait_until("one of them has ended", || !is_alive(brief));
    run.signal(Signal::SIGUSR1);
    assert!(run.message().contains("is running"), "and that has been seen");
    assert!(run.is_running());
    go(&env);
    assert_eq!(run.end().code(), 3);
    assert!(is_alive(stranger) && !is_alive(own));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(stranger), Signal::SIGKILL).expect("it lives");
}

#[test]
fn leftover_in_a_job_of_the_caller_takes_nobody_with_it() {
    let env = Env::new();
    let job = "trap 'echo >>continued' CONT; while :; do echo >>beats; sleep 0.01; done";
    // At its TERM, it starts another one, which gets its KILL later.
    let leftover = "import os, signal, sys, time
job, gone = int(sys.argv[1]), os.pipe()
if os.fork():
  os.close(gone[1])
  os.read(gone[0], 1)
  os._exit(4)
def again(*_):
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  os.fork()
signal.signal(signal.SIGTERM, again)
os.setpgid(0, job)
print(os.getpid(), flush=True)
os.close(gone[0])
os.close(gone[1])
while True: time.sleep(600)
";
    let mut bash = env.command("bash");
    // With `set -m`, the job has a process group of its own, in our session.
    let script = r#"set -m; bash -c "$1" & echo $!; until [ -e beats ]; do sleep 0.01; done
        "$0" --kill-after 0.2 -- python3 -c "$2" $!; echo code $?"#;
    bash.args(["-c", script]).arg(binary()).arg(job).arg(leftover);
    let run = Running::start(bash);
    let (job, leftover) = (pid(&run), pid(&run));
    run.expect_line("code 4");
    let beats = || std::fs::metadata(env.path("beats")).expect("beats").len();
    let before = beats();
    wait_until("the job goes on", || beats() > before + 1);
    assert!(!is_alive(leftover) && !env.path("continued").exists(), "it was not stopped meanwhile either");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(job), Signal::SIGKILL).expect("it lives");
}

#[test]
fn leftovers_are_found_among_preexisting_children() {
    for script in [
        "env -i /bin/setsid sleep 600 & echo $!",
        // A run below this one that dies before its leftovers.
        "\"$0\" --lock pass-through -- sh -c 'setsid sleep 600 & echo $!; kill -KILL $PPID'",
    ] {
        let env = Env::new();
        let script = &format!("{script}; {UNTIL_GO}; exit 3");
        let mut bash = env.command("bash");
        bash.args(["-c", r#"sleep 600 & echo $!; exec "$0" -- bash -c "$1" "$0""#]).arg(binary()).arg(script);
        let run = Running::start(bash);
        let (stranger, own) = (pid(&run), pid(&run));
        wait_until_exec(own, "sleep");
        go(&env);
        assert_eq!(run.end().code(), 3);
        assert!(is_alive(stranger) && !is_alive(own), "{script}");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(stranger), Signal::SIGKILL).expect("it lives");
    }
}

#[test]
fn unreachable_leftover_frees_lock_and_descendants() {
    if !needs_root("only root can make a program that another user may not signal") {
        return;
    }
    let env = Env::new();
    let dir = env.path("");
    let set = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("permissions");
    };
    set(&dir, 0o777);
    env.script("as-root", ""); // and then a copy of bash that keeps root's rights
    env.copy_of("/bin/bash", "as-root");
    set(&env.path("as-root"), 0o4755);
    let mut command = env.command("setpriv");
    // It becomes root altogether, and what it starts gives that up again: claude-run's user may signal that one alone.
    env.script(
        "unreachable",
        "#!/bin/bash\ntrap '' TERM\nsetpriv --reuid 65534 --clear-groups sleep 600 & echo $$; echo $!\nwhile :; do wait; sleep 0.1; done\n",
    );
    let script = format!("./as-root -pc 'exec setpriv --reuid 0 --clear-groups ./unreachable' & {UNTIL_GO}; exit 4");
    command.args(["--reuid", "65534", "--clear-groups"]).arg(binary());
    command.args(["--lock-file", "their.lock", "--kill-after", "0.2", "--", "bash", "-c", &script]);
    let run = Running::start(command);
    let (unreachable, below) = (pid(&run), pid(&run));
    wait_until_exec(below, "sleep");
    go(&env);
    let ended = run.end();
    assert_eq!(ended.code(), 4, "{ended:?}");
    assert!(is_alive(unreachable) && !is_alive(below), "{ended:?}");
    assert!(ended.stderr_text().contains(&format!("{unreachable} (state ")), "{ended:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(unreachable), Signal::SIGKILL).expect("it lives");
}

#[test]
fn orphans_are_reaped_during_the_kill_grace() {
    let env = Env::new();
    let leaves = "(trap '' TERM; echo $BASHPID; until [ -e stop ]; do (setsid true &); echo >>orphans; sleep 0.01; done; exec sleep 600) &";
    let run = shell(&env, &["--kill-after", "1h"], &format!("{leaves} echo $$; {UNTIL_GO}; exit 0"));
    let pids = [pid(&run), pid(&run)];
    let us = run.pid().as_raw();
    let is_of_us = |pid: i32| crate::env::stat(pid).is_some_and(|fields| fields[1] == us.to_string());
    let (child, left) = if is_of_us(pids[0]) { (pids[0], pids[1]) } else { (pids[1], pids[0]) };
    go(&env);
    wait_until("the child has ended", || !is_alive(child));
    let orphans = || std::fs::metadata(env.path("orphans")).map_or(0, |found| found.len());
    let before = orphans();
    wait_until("twenty orphans more have been made", || orphans() >= before + 20);
    std::fs::write(env.path("stop"), "").expect("a file");
    wait_until_exec(left, "sleep");
    let children = || std::fs::read_to_string(format!("/proc/{us}/task/{us}/children")).expect("children");
    wait_until("no zombie is left but the child itself", || {
        let mut pids = children().split_whitespace().map(|pid| pid.parse::<i32>().expect("a pid")).collect::<Vec<_>>();
        pids.retain(|&pid| pid != child);
        pids == [left]
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), Signal::SIGKILL).expect("it lives");
    assert_eq!(run.end().code(), 0);
}

#[test]
fn works_as_pid_1_of_a_container() {
    for flags in [&["-rpf"][..], &["-rpf", "--mount-proc"]] {
        if !can_unshare("-rpf") {
            return;
        }
        let env = Env::new();
        let mut unshare = env.command("unshare");
        // Leftovers that were not found at once would be waited for.
        unshare.args(flags).arg(binary()).args(["-v", "--kill-after", "1h", "--", "bash", "-c"]);
        unshare.arg("setsid sleep 600 & ({ sleep 0.1; echo >gone; } &); until [ -e gone ]; do sleep 0.01; done; exit 9");
        let ended = Running::start(unshare).end();
        assert_eq!(ended.code(), 9, "{ended:?}");
        assert!(!env.is_locked());
    }
}

#[test]
fn term_ends_child_then_tree_then_frees_lock() {
    let env = Env::new();
    let run = env.start_fake(&[], "tool& trap '' TERM && echo $$ >tool.pid && exec sleep 600; on TERM exit 143; ready; hang");
    let [child, ..] = run.ready();
    wait_until("the tool is up", || std::fs::read_to_string(env.path("tool.pid")).is_ok_and(|text| text.ends_with('\n')));
    let tool = std::fs::read_to_string(env.path("tool.pid")).expect("a pid").trim().parse().expect("a pid");
    run.signal(Signal::SIGTERM);
    run.expect_line("signal TERM");
    wait_until("the child is gone", || !is_alive(child));
    assert!(is_alive(tool) && env.is_locked(), "within the kill grace of the tool the lock is held");
    run.term_again();
    assert_eq!(run.end().code(), 143);
    assert!(!is_alive(tool) && !env.is_locked());
}

#[test]
fn child_of_a_killed_claude_run_holds_the_lock() {
    let env = Env::new();
    let run = env.start_fake(&[], "signals; ready; hang");
    let [child, ..] = run.ready();
    run.signal(Signal::SIGKILL);
    run.expect_line("signal TERM"); // the kernel's, at our death
    assert!(is_alive(child) && env.is_locked(), "the lock is free while the child lives");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL).expect("it lives");
    wait_until("the lock is free", || !env.is_locked());
    drop(run);
}

#[test]
fn caller_that_ignores_sigchld_does_no_harm() {
    let env = Env::new();
    let mut command = env.command(binary());
    // SAFETY: signal(2) is async-signal-safe, and SIG_IGN runs no code.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::signal::signal(Signal::SIGCHLD, nix::sys::signal::SigHandler::SigIgn).map(|_| ())?))
    };
    command.args(["--", "bash", "-c", "setsid sleep 600 & exit 4"]);
    assert_eq!(Running::start(command).end().code(), 4);
}

#[test]
fn endless_fork_chain_is_ended() {
    let env = Env::new();
    let chain = "import os\nos.write(1, b'%d\\n' % os.getpid())\nif os.fork() == 0:\n  while True:\n    if os.fork(): os._exit(0)\nos._exit(4)\n";
    env.script("chain.py", chain);
    let run = env.start(["--kill-after", "0.2", "--", "python3", "chain.py"]);
    let child = pid(&run);
    let ended = run.end();
    assert_eq!(ended.code(), 4, "{ended:?}");
    assert!(!env.is_locked() && env.processes().is_empty(), "{child}: {ended:?}");
}

/// Waits until claude-run says that it has sent TERM to the leftovers.
pub(crate) fn expect_leftovers(run: &Running) -> String {
    loop {
        let message = run.message();
        if message.contains("sending them TERM") {
            return message;
        }
    }
}

#[test]
fn fork_bomb_in_many_sessions_is_ended() {
    let env = Env::new();
    let ended = env.start_fake(&["--kill-after", "0.3"], "bomb 150; exit 4").end();
    assert_eq!(ended.code(), 4, "{ended:?}");
    assert!(!env.is_locked() && env.processes().is_empty(), "{ended:?}");
}

#[test]
fn crowd_gets_term_and_time_to_clean_up() {
    let env = Env::new();
    // Some share the child's process group, some have one of their own. Without a CONT, none would clean up.
    let tool = "trap 'echo >>cleaned; exit' TERM; sleep 600 & echo >>ready; wait";
    let script = format!(
        r#"for i in {{1..50}}; do ({tool}) & setsid bash -c "{tool}" & done; until [ "$(wc -l <ready)" = 100 ]; do sleep 0.1; done; exit 4"#
    );
    let ended = shell(&env, &["--kill-after", "1h"], &script).end();
    assert_eq!(ended.code(), 4, "{ended:?}");
    assert_eq!(std::fs::metadata(env.path("cleaned")).expect("cleaned").len(), 100, "once each: {ended:?}");
}

#[test]
fn leftover_with_another_environment_is_ended() {
    let env = Env::new();
    let mut bash = env.command("bash");
    bash.args(["-c", r#"sleep 600 & echo $!; exec "$0" -- bash -c "$1""#]).arg(binary());
    bash.arg(format!("setsid env -i PATH=/usr/bin:/bin sleep 600 & echo $!; {UNTIL_GO}; exit 3"));
    let run = Running::start(bash);
    let (stranger, own) = (pid(&run), pid(&run));
    wait_until_exec(own, "sleep");
    go(&env);
    assert_eq!(run.end().code(), 3);
    assert!(is_alive(stranger) && !is_alive(own));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(stranger), Signal::SIGKILL).expect("it lives");
}

#[test]
fn leftovers_are_named_when_they_are_ended() {
    let env = Env::new();
    let run = shell(&env, &[], &format!("sleep 600 & echo $!; sleep 600 & echo $!; {UNTIL_GO}; exit 4"));
    (0..2).for_each(|_| wait_until_exec(pid(&run), "sleep"));
    go(&env);
    let message = expect_leftovers(&run);
    assert!(message.contains(": 2 sleep;") && !message.contains("claude's session"), "{message}");
    assert_eq!(run.end().code(), 4);
}

#[test]
fn claude_in_the_background_is_named_ended_or_kept() {
    for (leftovers, expected) in
        [("kill", "behind: claude; sending them TERM; --leftovers keep"), ("keep", "without the session lock")]
    {
        let env = Env::new();
        std::os::unix::fs::symlink(fake_claude(), env.path("claude")).expect("a link");
        let script = format!("setsid ./claude -p 'ready; hang' & {UNTIL_GO}; exit 4");
        let run = shell(&env, &["--leftovers", leftovers], &script);
        let [claude, ..] = run.ready();
        go(&env);
        let message = run.message();
        assert!(message.contains(expected), "{message}");
        assert_eq!(run.end().code(), 4);
        assert_eq!(is_alive(claude), leftovers == "keep");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(claude), Signal::SIGKILL);
    }
}

#[test]
fn leftover_in_an_uninterruptible_sleep_frees_the_lock() {
    if !needs("bindfs") || !can_unshare("-rmupf") {
        return;
    }
    let env = Env::new();
    let mut unshare = env.command("unshare");
    // One file system on another, whose server is stopped: the first waits for the second, and whoever waits for the first cannot be
    // killed. All of them end with the PID namespace.
    let script = r#"mount -t proc proc /proc && mkdir base below above && echo text >base/file && bindfs base below &&
        server=$(pidof bindfs) && bindfs below above && kill -STOP $server && "$0" --kill-after 0.1 -- bash -c "$1"; echo code $?
        flock -n "$HOME/.claude/session.lock" echo free"#;
    // A cat can be killed until the file system above has taken its request, so another one takes its place until one outlives KILL.
    let child = r#"until [ "$state" = D ]; do
            cat above/file & until grep -q ^cat /proc/$!/comm; do sleep 0.01; done
            kill -KILL $! && sleep 0.1; read -r _ _ state _ 2>/dev/null </proc/$!/stat
        done; exit 4"#;
    unshare.args(["-rmupf", "--kill-child", "bash", "-c", script]).arg(binary()).arg(child);
    let ended = Running::start(unshare).end();
    assert_eq!(ended.stdout, ["code 4", "free"], "{ended:?}");
    let message = ended.stderr_text();
    assert!(message.contains("KILL does not end") && message.contains("cat ") && message.contains("(state D)"), "{ended:?}");
}
