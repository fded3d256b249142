//! The hard limit and the kill grace.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::env::{Env, Running, binary, is_alive, state, wait_until};

#[test]
fn hard_limit_is_124_whatever_the_child_exits_with() {
    let env = Env::new();
    for steps in ["ready; hang", "on TERM exit 0; ready; hang", "on TERM exit 9; ready; hang"] {
        let started = Instant::now();
        let run = env.start_fake(&["--timeout", "2"], steps);
        let [child, ..] = run.ready();
        let ended = run.end();
        assert_eq!(ended.code(), 124, "{steps}");
        assert!(started.elapsed() >= Duration::from_secs(2));
        assert!(ended.stderr_text().contains("--timeout 2s reached: "), "{ended:?}");
        assert!(!is_alive(child));
    }
}

#[test]
fn tree_that_ignores_term_is_killed_after_the_grace() {
    let env = Env::new();
    let started = Instant::now();
    let run = env.start_fake(
        &["--timeout", "2", "--kill-after", "0.4"],
        "ignore TERM; tool& trap '' TERM && echo $$ && exec sleep 600; hang",
    );
    let tool = run.line().parse().expect("a pid");
    let ended = run.end();
    assert_eq!(ended.code(), 124);
    assert!(started.elapsed() >= Duration::from_millis(2_400));
    assert!(ended.stderr_text().contains("kill grace"), "{ended:?}");
    assert!(!is_alive(tool));
}

#[test]
fn stopped_child_is_ended_by_the_limit() {
    let env = Env::new();
    let run = env.start_fake(&["--timeout", "0.3"], "stop; hang");
    assert_eq!(run.end().code(), 124);
}

#[test]
fn signals_without_end_delay_no_limit() {
    let env = Env::new();
    let flood = "while :; do kill -USR1 $PPID; done";
    for _ in 0..4 {
        let started = Instant::now();
        env.claude_run().args(["-q", "--timeout", "0.5", "--kill-after", "1", "--", "sh", "-c", flood]).assert().code(124);
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn durations_without_a_limit_never_fire() {
    let env = Env::new();
    for duration in ["0", "none", "infinity", "1d", "1h 30m", "1e300", "9999999999999999999d", "18446744073709551616"] {
        env.claude_run().args(["--timeout", duration, "sh", "-c", "sleep 0.05; exit 3"]).assert().code(3).stderr("");
    }
}

#[test]
fn tiny_limit_is_a_limit() {
    let env = Env::new();
    for duration in ["1e-3", "1ms", "1e-30"] {
        env.claude_run().args(["--timeout", duration, "sleep", "600"]).assert().code(124);
    }
}

#[test]
fn invalid_duration_is_refused() {
    let env = Env::new();
    for option in ["--timeout", "--wait", "--kill-after"] {
        for duration in ["-1", "42D", "x", "", "1,5"] {
            let assert = env.claude_run().arg(format!("{option}={duration}")).args(["touch", "started"]).assert().code(125);
            let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
            assert!(stderr.contains(option), "{stderr}");
        }
    }
    assert!(!env.path("started").exists());
}

#[test]
fn hard_limit_excludes_the_wait_for_the_lock() {
    let env = Env::new();
    let mut holder = env.hold_lock();
    let run = env.start_fake(&["--timeout", "3"], "exit 3");
    assert!(run.message().contains("waiting for the session lock"));
    std::thread::sleep(Duration::from_millis(3_200)); // longer than the limit: it is this time that must not count
    holder.close_stdin();
    assert_eq!(run.end().code(), 3);
}

#[test]
fn second_term_ends_the_kill_grace() {
    let env = Env::new();
    let run = env.start_fake(&["--kill-after", "1h"], "signals; ready; hang");
    run.ready();
    run.signal(Signal::SIGTERM);
    run.expect_line("signal TERM");
    run.term_again();
    let ended = run.end();
    assert_eq!(ended.code(), 137);
    assert!(ended.stderr_text().contains("second TERM"), "{ended:?}");
}

#[test]
fn hup_and_quit_start_the_kill_grace_but_not_int() {
    let env = Env::new();
    for signal in [Signal::SIGHUP, Signal::SIGQUIT] {
        let run = env.start_fake(&["--kill-after", "0.2"], "signals; ready; hang");
        run.ready();
        run.signal(signal);
        assert_eq!(run.end().code(), 137, "{signal}");
    }
    let mut run = env.start_fake(&["--kill-after", "0.01"], "signals; ready; hang");
    run.ready();
    run.signal(Signal::SIGINT);
    run.expect_line("signal INT");
    run.signal(Signal::SIGUSR2);
    run.expect_line("signal USR2");
    assert!(run.is_running());
}

#[test]
fn two_terms_of_timeout_leave_the_child_its_grace() {
    let env = Env::new();
    let script = r#"trap "sleep 0.2; echo graceful; exit 0" TERM; echo ready; sleep 600 & wait"#;
    let runs: Vec<_> = (0..20)
        .map(|number| {
            let mut timeout = env.command("timeout");
            timeout.args(["600"]).arg(binary()).args(["--lock-file", &format!("{number}.lock"), "--", "sh", "-c", script]);
            Running::start(timeout)
        })
        .collect();
    for run in runs {
        run.expect_line("ready");
        run.signal(Signal::SIGALRM); // as its own timer sends it
        let ended = run.end();
        assert_eq!((ended.code(), ended.stdout), (124, vec!["graceful".to_owned()]), "{:?}", ended.stderr);
    }
}

#[test]
fn request_to_end_removes_no_limit() {
    let env = Env::new();
    for kill_after in ["0", "1h"] {
        let run = env.start_fake(&["--kill-after", kill_after, "--timeout", "2"], "ignore HUP; ready; hang");
        run.ready();
        run.signal(Signal::SIGHUP);
        assert_eq!(run.end().code(), 124, "{kill_after}");
    }
}

#[test]
fn idle_limit_excludes_time_in_which_we_are_stopped() {
    let env = Env::new();
    for by in [Signal::SIGSTOP, Signal::SIGTSTP] {
        nix::unistd::mkfifo(&env.path("go"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let run = env.start_fake(&["--idle-timeout", "5"], "ready; open go; exit 3");
        let [child, ..] = run.ready();
        run.signal(by);
        wait_until("claude-run is stopped", || state(run.pid().as_raw()) == Some('T'));
        std::thread::sleep(Duration::from_secs(6)); // longer than the limit: it is this time that must not count
        run.signal(Signal::SIGCONT);
        wait_until("the child runs", || state(child) != Some('T'));
        std::fs::write(env.path("go"), "").expect("a FIFO");
        assert_eq!(run.end().code(), 3, "{by}");
        std::fs::remove_file(env.path("go")).expect("a FIFO");
    }
}

#[test]
fn child_that_waits_for_our_reader_is_not_idle() {
    let env = Env::new();
    let script = r#"TMPDIR=/nonexistent "$0" --idle-timeout 1 head -c 30000000 /dev/zero | { until [ -e go ]; do sleep 0.1; done; wc -c; }
        echo "${PIPESTATUS[0]}""#;
    let mut bash = env.command("bash");
    bash.args(["-c", script]).arg(binary());
    let run = Running::start(bash);
    while !run.message().contains("the child has to wait") {}
    std::thread::sleep(Duration::from_millis(2500));
    std::fs::write(env.path("go"), "").expect("a file");
    let ended = run.end();
    assert_eq!(ended.stdout, ["30000000", "0"], "{ended:?}");
}
