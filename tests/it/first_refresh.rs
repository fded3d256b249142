//! `refresh` mode lets a command of claude's that waits for its refresh make that before the start, so that a claude that ends by itself
//! at once ends in the midst of none.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{Env, Running, binary, can_unshare, fake_claude, is_alive, wait_until};
use crate::oauth::{EXPIRED, FRESH, StandIn};

/// A claude of this version, as its own installer names it.
fn claude(env: &Env, version: &str) -> PathBuf {
    env.script(&format!("versions/{version}"), &format!("#!/bin/sh\nexec {} \"$@\"\n", fake_claude().display()))
}

/// An agent of a `claude` whose `mcp get` does `first`.
fn agent(env: &Env, claude: &Path, stand_in: &StandIn, first: &str, steps: &str) -> Running {
    agent_with(env, claude, stand_in, first, steps, &[])
}

fn agent_with(env: &Env, claude: &Path, stand_in: &StandIn, first: &str, steps: &str, options: &[&str]) -> Running {
    let mut command = env.command(binary());
    command.env("FAKE_API", &stand_in.address).env("FAKE_MCP_GET", first);
    command.args(options).args(["--lock", "refresh", "--claude"]).arg(claude).args(["--", "-p", steps]);
    Running::start(command)
}

fn is_fresh(env: &Env) -> bool {
    fs::read_to_string(env.credentials()).is_ok_and(|text| text.contains("at-1"))
}

#[test]
fn run_begins_on_a_fresh_token_without_the_lock() {
    for kind in ["legacy", "modern"] {
        let env = Env::new();
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &["--refresh-takes", "0.3", "--together", "3"]);
        // Each would lose the login in a refresh of its own.
        let steps = format!("refresh {kind} leave posted; ask");
        let (claude, first) = (claude(&env, "2.1.330"), format!("refresh {kind}"));
        let agents: Vec<_> = (0..3).map(|_| agent(&env, &claude, &stand_in, &first, &steps)).collect();
        for agent in agents {
            let ended = agent.end();
            assert_eq!((ended.code(), &ended.stdout[..]), (0, &["fresh".to_owned(), "answered".to_owned()][..]), "{ended:?}");
        }
        let counts = stand_in.counts();
        assert_eq!((&counts["posts"], &counts["invalid_grant"]), (&1.into(), &0.into()), "{kind}: {counts}");
        assert_eq!(counts["most_at_once"], 3, "{kind}: {counts}");
        assert!(!env.is_locked(), "{kind}");
    }
}

#[test]
fn refresher_runs_only_where_claude_would_refresh() {
    for (about, expires_in, version, options, runs) in [
        ("due", EXPIRED, "2.1.330", &[][..], true),
        ("due, the oldest that waits", EXPIRED, "2.1.126", &[], true),
        ("fresh", FRESH, "2.1.330", &[], false),
        ("due by the margin alone", 420, "2.1.330", &["--refresh-margin", "10m"], false),
        ("too old", EXPIRED, "2.1.84", &[], false),
        ("of unknown version", EXPIRED, "unknown", &[], false),
        ("exclusive", EXPIRED, "2.1.330", &["--lock", "exclusive"], false),
        ("pass-through", EXPIRED, "2.1.330", &["--lock", "pass-through"], false),
        ("another program", EXPIRED, "2.1.330", &["--"], false),
        ("bare", EXPIRED, "2.1.330", &["--", "--bare"], false),
        ("with settings that may move the login", EXPIRED, "2.1.330", &["--", "--settings={}"], false),
        ("without settings that may", EXPIRED, "2.1.330", &["--", "--setting-sources=project"], false),
    ] {
        let env = Env::new();
        env.log_in(expires_in);
        let program = claude(&env, version);
        let mut run = env.claude_run();
        run.env("FAKE_MCP_GET", "tool touch ran").args(["--lock", "refresh"]);
        match options {
            ["--", typed] => run.arg("--claude").arg(&program).args(["--", typed]),
            ["--"] => run.arg("--").arg(&program),
            _ => run.arg("--claude").arg(&program).args(options),
        };
        run.args(if options.len() == 2 && options[0] == "--" { &["-p", "exit 3"][..] } else { &["--", "-p", "exit 3"] });
        run.assert().code(3);
        assert_eq!(env.path("ran").exists(), runs, "{about}");
    }
}

#[test]
fn nothing_is_refreshed_before_the_start_on_a_full_disk() {
    if !can_unshare("-rm") {
        return;
    }
    let env = Env::new();
    env.log_in(EXPIRED);
    let script = r#"cp "$HOME/.claude/.credentials.json" login; mount -t tmpfs -o mode=700,size=64k tmpfs "$HOME/.claude"
        cp login "$HOME/.claude/.credentials.json"; exec "$0" --lock "$2" --claude "$1" -- -p 'exit 3'"#;
    for (mode, is_told) in [("refresh", true), ("exclusive", true), ("pass-through", false)] {
        let mut unshare = env.command("unshare");
        unshare.env("FAKE_MCP_GET", "tool touch ran").args(["-rm", "bash", "-c", script]).arg(binary());
        let ended = Running::start({
            unshare.arg(claude(&env, "2.1.330")).arg(mode);
            unshare
        })
        .end();
        let says = |text| ended.stderr_text().contains(text);
        assert_eq!((ended.code(), says(" has no room: a token that is refreshed now ")), (3, is_told), "{mode}: {ended:?}");
        assert_eq!(says("not refreshing the token before the start"), mode == "refresh", "{mode}: {ended:?}");
        assert!(!env.path("ran").exists());
    }
}

#[test]
fn run_starts_with_the_lock_if_the_refresher_fails() {
    for first in ["exit 1", "die KILL", "refresh modern leave posted", "hang"] {
        let env = Env::new();
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &[]);
        let run = agent(&env, &claude(&env, "2.1.330"), &stand_in, first, "ready; on TERM exit 7; ready; hang");
        run.ready();
        assert!(env.is_locked(), "{first}");
        let mut message = run.message();
        if let Some((_, before)) =
            [("hang", "longer than 30s"), ("refresh modern leave posted", "in the midst")].iter().find(|(of, _)| *of == first)
        {
            assert!(message.contains(before), "{message}");
            message = run.message();
        }
        assert!(message.contains("has not refreshed its token") && message.contains("starting all the same"), "{message}");
        run.ready();
        env.log_in(FRESH);
        wait_until("the lock is free", || !env.is_locked());
        run.signal(Signal::SIGTERM);
        let ended = run.end();
        assert_eq!((ended.code(), ended.stderr.len()), (7, 0), "{first}: {ended:?}");
    }
}

#[test]
fn term_in_mid_refresh_costs_neither_login_nor_lock() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let stand_in = StandIn::start(&env, &["--refresh-takes", "2"]);
    let run = agent(&env, &claude(&env, "2.1.330"), &stand_in, "refresh modern", "ready");
    wait_until("a refresh is under way", || env.config_dir().join(".oauth_refresh.lock.owner").exists());
    run.signal(Signal::SIGTERM);
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout.len()), (143, 0), "{ended:?}");
    assert!(ended.stderr_text().contains("nothing was started"), "{ended:?}");
    assert!(is_fresh(&env) && !env.is_locked());
    env.claude_run().arg("status").assert().code(0);
}

/// It ends the wait for the lock, and claude without a handler dies of it.
#[test]
fn usr2_in_mid_refresh_costs_no_login() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let stand_in = StandIn::start(&env, &["--refresh-takes", "2"]);
    let run = agent(&env, &claude(&env, "2.1.330"), &stand_in, "refresh modern", "ready");
    wait_until("a refresh is under way", || env.config_dir().join(".oauth_refresh.lock.owner").exists());
    run.signal(Signal::SIGUSR2);
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout.len()), (128 + Signal::SIGUSR2 as i32, 0), "{ended:?}");
    assert!(is_fresh(&env) && !env.is_locked(), "{ended:?}");
}

#[test]
fn signals_that_the_caller_ignores_do_not_end_the_refresh_before_the_start() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let stand_in = StandIn::start(&env, &["--refresh-takes", "2"]);
    let mut command = env.command("bash");
    command.env("FAKE_API", &stand_in.address).env("FAKE_MCP_GET", "refresh modern");
    command.args(["-c", r#"trap '' USR2 TERM HUP; exec "$@""#, "-"]).arg(binary());
    command.args(["--lock", "refresh", "--claude"]).arg(claude(&env, "2.1.330")).args(["--", "-p", "say begun"]);
    let run = Running::start(command);
    wait_until("a refresh is under way", || env.config_dir().join(".oauth_refresh.lock.owner").exists());
    for signal in [Signal::SIGUSR2, Signal::SIGTERM, Signal::SIGHUP] {
        run.signal(signal);
    }
    let ended = run.end();
    assert_eq!((ended.code(), &ended.stdout[..]), (0, &["begun".to_owned()][..]), "{ended:?}");
    assert!(is_fresh(&env), "{ended:?}");
}

#[test]
fn refused_refresh_says_to_log_in_again() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let stand_in = StandIn::start(&env, &[]);
    let dead = r#"{"claudeAiOauth":{"accessToken":"","refreshToken":"","expiresAt":0}}"#;
    fs::write(env.path("dead"), dead).expect("a file");
    let first = "tool cp dead home/.claude/.credentials.json; exit 1";
    let ended = agent(&env, &claude(&env, "2.1.330"), &stand_in, first, "exit 3").end();
    assert!(ended.code() == 3 && ended.stderr_text().contains("log in again); starting all the same"), "{ended:?}");
}

/// Pid of the claude that refreshes the token, once there is one.
fn refresher(env: &Env) -> i32 {
    let owner = || -> Option<i32> {
        let owner = fs::read(env.config_dir().join(".oauth_refresh.lock.owner")).ok()?;
        i32::try_from(serde_json::from_slice::<serde_json::Value>(&owner).ok()?["pid"].as_i64()?).ok()
    };
    wait_until("a refresh is under way", || owner().is_some());
    owner().expect("an owner")
}

#[test]
fn nothing_is_started_into_the_locks_of_a_killed_refresher() {
    for signal in [None, Some(Signal::SIGTERM)] {
        let env = Env::new();
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &[]);
        let run = agent(&env, &claude(&env, "2.1.330"), &stand_in, "refresh modern posted", "ready");
        kill(Pid::from_raw(refresher(&env)), Signal::SIGKILL).expect("a process");
        while !run.message().contains("starting all the same") {}
        assert!(run.message().contains("waiting for it, at most 1m 10s") && env.is_locked(), "the next claude would fail");
        match signal {
            Some(signal) => run.signal(signal),
            None => {
                fs::remove_dir(env.config_dir().join(".oauth_refresh.lock")).expect("a lock");
                fs::remove_dir(env.home().join(".claude.lock")).expect("a lock");
            }
        }
        let ended = run.end();
        assert_eq!((ended.code(), ended.stdout.len()), signal.map_or((0, 1), |_| (143, 0)), "{ended:?}");
        assert!(!env.is_locked(), "{ended:?}");
    }
}

#[test]
fn refresher_outlives_a_killed_claude_run_with_the_lock() {
    for is_stopped in [false, true] {
        let env = Env::new();
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &["--refresh-takes", "2"]);
        env.script("helper", "#!/bin/sh\necho $$ >helper.pid\necho key\nexec sleep 600\n");
        let options = ["--lock-helper", "./helper"];
        let run = agent_with(&env, &claude(&env, "2.1.330"), &stand_in, "refresh modern", "ready", &options);
        let refresher = refresher(&env);
        let pid = Pid::from_raw(refresher);
        let helper = fs::read_to_string(env.path("helper.pid")).expect("a helper").trim().parse().expect("a pid");
        if is_stopped {
            kill(pid, Signal::SIGSTOP).expect("a process"); // the kernel lets it go on, and sends it no HUP
        }
        kill(run.pid(), Signal::SIGKILL).expect("a process");
        run.end();
        assert!(is_alive(refresher) && env.is_locked());
        wait_until("the refresh is done", || {
            let has_helper = is_alive(helper); // before the look at the refresh
            let is_done = !is_alive(refresher);
            assert!(is_done || has_helper, "the lock between hosts is kept as well");
            is_done
        });
        wait_until("the lock helper is gone", || !is_alive(helper));
        wait_until("the lock is free", || !env.is_locked());
        assert!(is_fresh(&env));
    }
}
