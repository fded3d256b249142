//! Signals: what claude-run gets, the child gets, once each and in order.

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use std::os::unix::process::{CommandExt, ExitStatusExt};

use crate::env::{Env, Running, binary, can_unshare, fake_claude, needs, state, wait_until};

const ALL: [Signal; 7] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGCONT];

#[test]
fn signals_are_forwarded_once_and_in_order() {
    let env = Env::new();
    let mut run = env.start_fake(&["--kill-after", "0"], "signals; ready; hang");
    run.ready();
    for round in [ALL.to_vec(), ALL.iter().rev().copied().filter(|&signal| signal != Signal::SIGTERM).collect()] {
        for signal in round {
            run.signal(signal);
            run.expect_line(&format!("signal {}", &signal.as_str()[3..]));
        }
    }
    assert!(run.is_running());
    run.term_again(); // the second: KILL
    let ended = run.end();
    assert_eq!(ended.code(), 137);
    assert!(ended.stdout.is_empty() || ended.stdout == ["signal TERM"], "nothing came twice: {ended:?}");
}

/// Signals that end a process by default, beside the common ones; the last three are real-time ones, and the very last is the one that
/// musl keeps for itself.
const DEADLY: [i32; 13] = [
    libc::SIGALRM,
    libc::SIGPWR,
    libc::SIGXCPU,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGSTKFLT,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
    40,
    64,
    34,
];

fn send(pid: i32, signal: i32) {
    // SAFETY: kill(2) touches no memory.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{signal} to {pid}");
}

#[test]
fn deadly_signals_end_the_whole_run() {
    let env = Env::new();
    for signal in DEADLY {
        let run = env.start(["sh", "-c", "setsid sleep 600 & echo ready; exec sleep 600"]);
        run.expect_line("ready");
        send(run.pid().as_raw(), signal);
        let ended = run.end();
        assert_eq!((ended.status.signal(), ended.status.core_dumped()), (Some(signal), false), "{ended:?}");
        wait_until("nothing is left", || env.processes().is_empty());
    }
    let ignoring = env.start_fake(&["--kill-after", "0.2"], "ignore ALRM; ignore TERM; ready; hang");
    ignoring.ready();
    send(ignoring.pid().as_raw(), libc::SIGALRM);
    assert_eq!(ignoring.end().code(), 137, "it is a request to end");
}

#[test]
fn deadly_signals_end_the_wait_for_the_lock() {
    let env = Env::new();
    let _holder = env.hold_lock();
    for signal in DEADLY {
        let waiter = env.start(["touch", "started"]);
        assert!(waiter.message().contains("waiting for the session lock"));
        send(waiter.pid().as_raw(), signal);
        let ended = waiter.end();
        assert_eq!(ended.status.signal(), Some(signal), "{ended:?}");
    }
    assert!(!env.path("started").exists());
}

#[test]
fn deadly_signals_end_pid_1_by_its_exit_code() {
    let flags = "-rpf";
    if !can_unshare(flags) {
        return;
    }
    let env = Env::new();
    for signal in [libc::SIGALRM, libc::SIGPWR, 37] {
        let mut command = env.command("unshare");
        command.args([flags, "--mount-proc"]).arg(binary()).args(["sh", "-c", "echo ready; exec sleep 600"]);
        let unshare = Running::start(command);
        unshare.expect_line("ready");
        let pid = unshare.pid().as_raw();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("a process");
        send(children.trim().parse().expect("a pid"), signal);
        let ended = unshare.end();
        assert_eq!(ended.status.code(), Some(128 + signal), "{ended:?}");
    }
}

#[test]
fn alarm_of_the_caller_ends_the_run() {
    if !needs("perl") {
        return;
    }
    let env = Env::new();
    let mut command = env.command("perl");
    command.args(["-e", "alarm 1; exec @ARGV"]).arg(binary()).args(["sh", "-c", "setsid sleep 600 & exec sleep 600"]);
    assert_eq!(Running::start(command).end().status.signal(), Some(libc::SIGALRM));
    wait_until("nothing is left", || env.processes().is_empty());
}

#[test]
fn file_size_limit_does_not_end_claude_run() {
    let env = Env::new();
    let mut command = env.command("sh");
    command.args(["-c", r#"ulimit -f 0; exec "$0" sh -c 'exit 3'"#]).arg(binary());
    let ended = Running::start(command).end();
    assert_eq!(ended.status.code(), Some(3), "{:?}", ended.status);
}

#[test]
fn harmless_signals_at_the_very_start_do_no_harm() {
    let env = Env::new();
    let harmless = [Signal::SIGUSR1, Signal::SIGPIPE, Signal::SIGTTIN, Signal::SIGTTOU];
    for signal in harmless.into_iter().chain([Signal::SIGUSR2]) {
        let mut command = env.command(binary());
        // Pending from before the exec: earlier than anybody can send it.
        // SAFETY: both calls are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::from(signal)), None)?;
                Ok(nix::sys::signal::raise(signal)?)
            })
        };
        let _holder = env.hold_lock();
        let run = Running::start({
            command.arg("true");
            command
        });
        if harmless.contains(&signal) {
            assert!(run.message().contains("waiting for the session lock"), "{signal}");
        } else {
            let ended = run.end();
            assert!(ended.code() == 140 && ended.stderr_text().contains("nothing was started"), "{ended:?}");
        }
    }
}

#[test]
fn harmless_signals_in_the_last_moment_do_no_harm() {
    let env = Env::new();
    for _ in 0..50 {
        let mut run = env.start(["-q", "--", "sh", "-c", "echo in; exit 3"]);
        run.expect_line("in");
        while run.is_running() {
            run.signal(Signal::SIGUSR1);
        }
        let ended = run.end();
        assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    }
}

#[test]
fn two_terms_of_timeout_are_one_request() {
    let env = Env::new();
    // timeout(1) that hardly gets to run between its two calls of kill(2).
    std::os::unix::fs::symlink("/bin/sh", env.path("timeout")).expect("a link");
    let run = env.start_fake(&["--kill-after", "0"], "signals; ready; hang");
    run.ready();
    let twice = |shell: &str| {
        // Like timeout(1), it is still there when its signal is looked at.
        let script = format!("kill -TERM {0}; sleep 0.4; kill -TERM {0}; sleep 1", run.pid());
        assert!(env.command(shell).args(["-c", &script]).status().expect("a shell").success());
    };
    twice(&env.path("timeout").to_string_lossy());
    run.expect_line("signal TERM");
    run.signal(Signal::SIGWINCH);
    run.expect_line("signal WINCH");
    twice("sh");
    assert_eq!(run.end().code(), 137);
}

#[test]
fn usr1_logs_the_state() {
    let env = Env::new();
    let run = env.start_fake(&["--timeout", "1h"], "signals; ready; hang");
    let [child, ..] = run.ready();
    run.signal(Signal::SIGUSR1);
    let message = run.message();
    assert!(message.contains(&format!("pid {child} is running")) && message.contains("next limit in"), "{message}");
}

#[test]
fn usr1_is_answered_by_a_quiet_run() {
    let env = Env::new();
    let run = env.start_fake(&["-q"], "ready; hang");
    run.ready();
    run.signal(Signal::SIGUSR1);
    assert!(run.message().starts_with("claude-run: run "));
    let waiter = env.start(["-q", "--", "true"]);
    wait_until("it waits", || env.waiters() == 1);
    waiter.signal(Signal::SIGUSR1);
    assert!(waiter.message().starts_with("claude-run: waiting for the session lock"));
}

#[test]
fn waiter_answers_usr1_and_stops_and_continues() {
    let env = Env::new();
    let mut holder = env.hold_lock();
    let waiter = env.start(["--wait", "1h", "--", "sh", "-c", "exit 4"]);
    assert!(waiter.message().contains("waiting for the session lock"));
    waiter.signal(Signal::SIGUSR1);
    assert!(waiter.message().contains("waiting for the session lock"));
    waiter.signal(Signal::SIGTSTP);
    wait_until("it is stopped", || state(waiter.pid().as_raw()) == Some('T'));
    waiter.signal(Signal::SIGCONT);
    wait_until("it goes on", || state(waiter.pid().as_raw()) == Some('S'));
    holder.close_stdin();
    assert_eq!(waiter.end().code(), 4);
}

#[test]
fn waiter_keeps_signals_ignored_by_its_caller() {
    let env = Env::new();
    let mut holder = env.hold_lock();
    let mut command = env.command("bash");
    command.args(["-c", r#"trap '' HUP; exec "$0" --wait 1h -- sh -c 'exit 4'"#]).arg(binary());
    let waiter = Running::start(command);
    assert!(waiter.message().contains("waiting for the session lock"));
    waiter.signal(Signal::SIGHUP);
    waiter.signal(Signal::SIGUSR1); // told of behind it
    assert!(waiter.message().contains("waiting for the session lock"));
    holder.close_stdin();
    assert_eq!(waiter.end().code(), 4);
}

#[test]
fn tstp_stops_both_and_cont_resumes_both() {
    let env = Env::new();
    let run = env.start_fake(&[], "ready; signals; say go; hang");
    let [child, ..] = run.ready();
    run.expect_line("go");
    let stopped = |pid| state(pid) == Some('T');
    run.signal(Signal::SIGTSTP);
    wait_until("both are stopped", || stopped(child) && stopped(run.pid().as_raw()));
    run.signal(Signal::SIGCONT);
    wait_until("both run", || !stopped(child) && !stopped(run.pid().as_raw()));
    run.expect_line("signal CONT");
}

#[test]
fn tstp_and_cont_reach_the_process_group_of_the_child() {
    let env = Env::new();
    let run = env.start(["--", "bash", "-c", "(echo $BASHPID; exec sleep 600); echo after"]);
    let grandchild = run.line().parse().expect("a pid");
    run.signal(Signal::SIGTSTP);
    wait_until("it is stopped", || state(grandchild) == Some('T'));
    wait_until("claude-run is stopped, too", || state(run.pid().as_raw()) == Some('T'));
    run.signal(Signal::SIGCONT);
    wait_until("it goes on", || state(grandchild) == Some('S'));
}

#[test]
fn term_ends_a_stopped_child() {
    let env = Env::new();
    let run = env.start_fake(&[], "ready; stop; hang");
    let [child, ..] = run.ready();
    wait_until("the child is stopped", || state(child) == Some('T'));
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end().code(), 143);
}

#[test]
fn child_has_mask_and_dispositions_as_from_a_shell() {
    let env = Env::new();
    let mut command = env.command(binary());
    // SAFETY: sigprocmask(2) is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?)) };
    let list = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"];
    command.arg("--").args(list);
    let mut bare = env.command(list[0]);
    bare.args(&list[1..]);
    let seen = Running::start(command).end().stdout;
    assert_eq!(seen[0], "SigBlk:\t0000000000000000");
    assert_eq!(seen[1], Running::start(bare).end().stdout[1]);
}

#[test]
fn child_ignores_what_the_caller_ignores() {
    let env = Env::new();
    for (options, name) in [("", "watched"), ("--lock pass-through --timeout 0 --leftovers keep", "executed")] {
        let mut command = env.command("sh");
        command.args(["-c", &format!(r#"trap '' HUP PIPE INT; exec "$0" {options} -- grep SigIgn /proc/self/status"#)]);
        let ended = Running::start({
            command.arg(binary());
            command
        })
        .end();
        let mask = ended.stdout[0].rsplit('\t').next().expect("a mask");
        let mask = u64::from_str_radix(mask, 16).expect("a mask");
        assert_eq!(mask & 0x7fff, 0x1003, "{name}: {ended:?}"); // bits 0, 1 and 12: HUP, INT, PIPE
    }
}

#[test]
fn lock_helper_ignores_what_the_caller_ignores() {
    let env = Env::new();
    let mut command = env.command("sh");
    let helper = env.script("helper", "#!/bin/sh\nawk '/SigIgn/ { print $2 }' /proc/self/status\nexec sleep 60\n");
    let script = r#"trap '' HUP PIPE TTIN; exec "$0" --lock-helper "$1" -- sh -c 'echo "$CLAUDE_RUN_LOCK_KEY"'"#;
    command.args(["-c", script]).arg(binary()).arg(helper);
    let ended = Running::start(command).end();
    let mask = u64::from_str_radix(&ended.stdout[0], 16).expect("a mask");
    assert_eq!(mask & 0x30_7fff, 0x10_1001, "{ended:?}"); // bits 0, 12 and 20: HUP, PIPE, TTIN
}

#[test]
fn ignored_signal_does_not_end_a_run() {
    let env = Env::new();
    let mut command = env.command("sh");
    let script = r#"trap '' HUP PIPE; exec "$0" --kill-after 0.05 --claude "$1" -- -p "$2""#;
    command.args(["-c", script]).arg(binary()).arg(fake_claude());
    command.arg("ready; signals; say go; open fifo; exit 5");
    nix::unistd::mkfifo(&env.path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let run = Running::start(command);
    run.ready();
    run.expect_line("go");
    run.signal(Signal::SIGHUP); // as from a terminal that nohup(1) is to outlive
    run.expect_line("signal HUP"); // this child chose to listen
    std::thread::sleep(std::time::Duration::from_millis(300)); // a kill grace would be over
    std::fs::write(env.path("fifo"), "").expect("a FIFO");
    assert_eq!(run.end().code(), 5);
}

#[test]
fn closed_stderr_ends_nothing() {
    let env = Env::new();
    let mut command = env.command("bash");
    // USR1 makes claude-run write to a pipe that nobody reads any more.
    command
        .args(["-c", r#""$0" -vv --claude "$1" -- -p 'ready; open fifo; exit 5' 2> >(exec true) & kill -0 $!; wait $!"#])
        .arg(binary())
        .arg(fake_claude());
    nix::unistd::mkfifo(&env.path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let run = Running::start(command);
    let [_, supervisor, ..] = run.ready();
    for _ in 0..3 {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), Signal::SIGUSR1).expect("it lives");
    }
    drop(std::fs::File::options().write(true).open(env.path("fifo")).expect("a FIFO"));
    assert_eq!(run.end().code(), 5);
}

#[test]
fn ignored_tstp_does_not_stop_a_run() {
    let env = Env::new();
    let mut command = env.command("sh");
    command
        .args(["-c", r#"trap '' TSTP; exec "$0" --claude "$1" -- -p 'signals; ready; hang'"#])
        .arg(binary())
        .arg(fake_claude());
    let run = Running::start(command);
    run.ready();
    run.signal(Signal::SIGTSTP);
    run.signal(Signal::SIGUSR2);
    run.expect_line("signal USR2");
    assert_ne!(state(run.pid().as_raw()), Some('T'));
}

#[test]
fn stuck_stderr_delays_no_limit_and_no_signal() {
    let env = Env::new();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let size = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ).expect("a pipe") as usize;
    std::io::Write::write_all(&mut &writer, &vec![b'x'; size]).expect("room");
    let start = |options: &[&str]| {
        let mut command = env.command(binary());
        command.arg("-vv").args(options).arg("--claude").arg(fake_claude()).args(["--", "-p", "signals; ready; hang"]);
        Running::start_with_stderr(command, writer.try_clone().expect("a descriptor").into())
    };
    let limited = start(&["--timeout", "2", "--kill-after", "0.2"]);
    limited.ready();
    assert_eq!(limited.end().code(), 124);
    let reporting = start(&["--kill-after", "2"]);
    reporting.ready();
    reporting.signal(Signal::SIGUSR1);
    reporting.signal(Signal::SIGTERM);
    reporting.expect_line("signal TERM");
    assert_eq!(reporting.end().code(), 137);
    let _holder = env.hold_lock();
    let waiting = start(&["--wait", "0.1"]);
    assert_eq!(waiting.end().code(), 75);
    let flags = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETFL).expect("flags");
    assert_eq!(flags & libc::O_NONBLOCK, 0, "the caller's own descriptor blocks as before");
    drop(reader);
}

#[test]
fn int_reaches_the_process_group_of_the_child() {
    let env = Env::new();
    // bash ends by INT only if the child that it waits for did.
    let run = env.start(["--", "bash", "-c", "(echo ready; exec sleep 600); echo after"]);
    run.expect_line("ready");
    run.signal(Signal::SIGINT);
    let ended = run.end();
    assert_eq!((ended.code(), &ended.stdout[..]), (130, &[][..]), "{ended:?}");
}
