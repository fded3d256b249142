//! A claude that was stopped in the midst of a refresh, or frozen together with claude-run, shows no life meanwhile. It still has the
//! refresh, and the login is lost if it is ended before it has gone on.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{Env, Running, binary, fake_claude, wait_until};
use crate::oauth::{EXPIRED, StandIn};
use crate::refresh_locks::expect_deferral;

/// So long that the older versions' lock, and that of an MCP server, is stale: 10 s.
const LONG: Duration = Duration::from_secs(11);

/// One that waits for claude, and does not become it.
const SCRIPT: [&str; 3] = ["sh", "-c", r#""$0" "$@"; exit"#];

struct Refresh {
    env: Env,
    _stand_in: StandIn,
    run: Running,
    child: Pid,
}

impl Refresh {
    /// A run in the midst of a refresh whose request takes so many seconds.
    fn begin(takes: &str, options: &[&str]) -> Self {
        Self::begin_below(&[], takes, options)
    }

    /// One whose claude is below a `wrapper`.
    fn begin_below(wrapper: &[&str], takes: &str, options: &[&str]) -> Self {
        let env = Env::new();
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &["--refresh-takes", takes]);
        let mut command = env.command(binary());
        command.env("FAKE_API", &stand_in.address).args(["--lock", "exclusive"]).args(options).args(wrapper);
        command.arg(fake_claude()).args(["-p", "ready; refresh legacy; hang"]);
        let run = Running::start(command);
        let [child, ..] = run.ready();
        while run.line() != "posting" {}
        Self { env, _stand_in: stand_in, run, child: Pid::from_raw(child) }
    }

    /// Stops claude-run and then its child, or lets them go on in that order: the child later.
    fn signal_both(&self, signal: Signal) {
        self.run.signal(signal);
        thread::sleep(Duration::from_millis(500));
        let _ = kill(self.child, signal); // claude-run may have let it go on, and it may have ended
    }

    fn expect_saved(self, code: i32) {
        let credentials = self.env.credentials();
        let ended = self.run.end();
        let is_saved = fs::read_to_string(credentials).is_ok_and(|text| text.contains("at-1"));
        assert!(is_saved && ended.code() == code, "{ended:?}");
    }
}

fn expect_spared_while_stopped(wrapper: &[&str]) {
    let refresh = Refresh::begin_below(wrapper, "14", &[]);
    kill(refresh.child, Signal::SIGSTOP).expect("it lives");
    thread::sleep(LONG);
    refresh.run.signal(Signal::SIGTERM);
    expect_deferral(&refresh.run);
    refresh.expect_saved(143);
}

#[test]
fn refresh_of_a_stopped_claude_is_spared() {
    expect_spared_while_stopped(&[]);
}

#[test]
fn refresh_of_a_stopped_claude_below_a_script_is_spared() {
    expect_spared_while_stopped(&SCRIPT);
}

#[test]
fn refresh_of_a_claude_that_is_stopped_while_its_signal_is_deferred_is_spared() {
    let refresh = Refresh::begin_below(&SCRIPT, "3", &[]);
    refresh.run.signal(Signal::SIGTERM);
    expect_deferral(&refresh.run);
    kill(refresh.child, Signal::SIGSTOP).expect("it lives");
    refresh.expect_saved(143);
}

#[test]
fn refresh_of_a_run_that_job_control_stopped_is_spared() {
    let refresh = Refresh::begin("14", &[]);
    refresh.run.signal(Signal::SIGTSTP);
    thread::sleep(LONG);
    refresh.run.signal(Signal::SIGTERM);
    refresh.run.signal(Signal::SIGCONT);
    expect_deferral(&refresh.run);
    refresh.expect_saved(143);
}

#[test]
fn refresh_of_a_frozen_run_outlives_the_limit_that_has_passed() {
    let refresh = Refresh::begin("3", &["--timeout", "5"]);
    refresh.signal_both(Signal::SIGSTOP);
    thread::sleep(LONG);
    refresh.signal_both(Signal::SIGCONT);
    refresh.expect_saved(124);
}

#[test]
fn deferral_that_was_frozen_leaves_time_to_go_on() {
    let refresh = Refresh::begin("19", &[]);
    refresh.run.signal(Signal::SIGTERM);
    expect_deferral(&refresh.run);
    let deferred = Instant::now();
    refresh.signal_both(Signal::SIGSTOP);
    wait_until("the deferral would be over", || deferred.elapsed() > Duration::from_secs(17));
    refresh.signal_both(Signal::SIGCONT);
    refresh.expect_saved(143);
}

/// What it cannot wait for events with, it cannot decide with: but it looks before its KILL.
#[test]
fn error_of_claude_run_s_own_ends_no_refresh() {
    let refresh = Refresh::begin("2", &[]);
    kill(refresh.child, Signal::SIGSTOP).expect("it lives");
    let mut limit = refresh.env.command("prlimit");
    limit.args(["--nofile=0:0", "--pid", &refresh.run.pid().to_string()]);
    assert!(limit.status().expect("prlimit").success());
    refresh.run.signal(Signal::SIGUSR1);
    refresh.expect_saved(125);
}
