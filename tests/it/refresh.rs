//! `refresh` mode: the session lock while a refresh of the token is due, and not a moment longer.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::env::{Env, Running, binary, fake_claude, is_alive, wait_until};
use crate::oauth::{EXPIRED, FRESH, StandIn, age, credentials, mount_namespace};

const KINDS: [&str; 3] = ["none", "legacy", "modern"];

fn expect_one_refresh(agents: Vec<Running>, stand_in: StandIn, about: &str) -> Value {
    for agent in agents {
        let ended = agent.end();
        assert_eq!(ended.code(), 0, "{about}: {ended:?}");
    }
    let counts = stand_in.counts();
    assert_eq!((&counts["posts"], &counts["invalid_grant"]), (&1.into(), &0.into()), "{about}: {counts}");
    counts
}

#[test]
fn agents_refresh_once_and_then_overlap() {
    for kind in KINDS {
        let env = Env::new();
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &["--refresh-takes", "0.3", "--together", "4"]);
        let steps = format!("refresh {kind}; ask");
        let agents = (0..4).map(|_| env.agent(&stand_in, "refresh", &[], &steps)).collect();
        let counts = expect_one_refresh(agents, stand_in, kind);
        assert_eq!((&counts["answered"], &counts["most_at_once"]), (&4.into(), &4.into()), "{kind}: {counts}");
    }
}

#[test]
fn agents_with_bind_mounted_dirs_refresh_once() {
    for kind in KINDS {
        let env = Env::new();
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &["--refresh-takes", "0.3", "--together", "4"]);
        let steps = format!("refresh {kind}; ask");
        let agents: Option<Vec<_>> =
            (0..4).map(|number| env.agent_in_container(&stand_in, "refresh", &steps, number)).collect();
        let Some(agents) = agents else { return };
        let counts = expect_one_refresh(agents, stand_in, kind);
        assert_eq!(counts["most_at_once"], 4, "{kind}: {counts}");
    }
}

/// Without a lock in common, they would refresh at once in mid-run, or when a token is refused.
#[test]
fn old_claude_in_a_mounted_dir_holds_the_lock_throughout() {
    for (version, is_held) in [("2.1.126", true), ("2.1.128", false)] {
        let env = Env::new();
        env.log_in(FRESH);
        let Some(flags) = mount_namespace() else { return };
        let claude =
            env.script(&format!("versions/{version}"), &format!("#!/bin/sh\nexec {} \"$@\"\n", fake_claude().display()));
        let mut container = env.command("unshare");
        container.args([flags, "sh", "-ec", r#"mount --bind "$0" "$0"; exec "$@""#]).arg(env.config_dir()).arg(binary());
        container.args(["--lock", "refresh", "--claude"]).arg(claude).args(["--", "-p", "ready; on TERM exit 0; hang"]);
        let run = Running::start(container);
        run.ready();
        assert_eq!(env.is_locked(), is_held, "{version}");
        if is_held {
            let message = run.message();
            assert!(message.contains("is a mount point") && message.contains("as in exclusive mode"), "{message}");
        }
    }
}

#[test]
fn exclusive_agents_refresh_once_and_never_overlap() {
    for kind in KINDS {
        let env = Env::new();
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &["--refresh-takes", "0.2"]);
        let steps = format!("refresh {kind}; ask");
        let mut agents: Vec<_> = (0..3).map(|_| env.agent(&stand_in, "exclusive", &[], &steps)).collect();
        agents.extend((0..3).filter_map(|number| env.agent_in_container(&stand_in, "exclusive", &steps, number)));
        let counts = expect_one_refresh(agents, stand_in, kind);
        assert_eq!(counts["most_at_once"], 1, "{kind}: {counts}");
    }
}

#[test]
fn fresh_token_needs_no_lock_and_no_wait() {
    let env = Env::new();
    env.log_in(FRESH);
    env.claude_run().args(["--lock", "refresh", "true"]).assert().code(0).stderr("");
    assert!(!env.lock_file().exists(), "not even made");
    let _holder = env.hold_lock();
    env.claude_run().args(["--lock", "refresh", "--wait", "0", "true"]).assert().code(0).stderr("");
    // The margin is what makes it due, or not.
    env.log_in(420);
    env.claude_run().args(["--lock", "refresh", "--wait", "0", "true"]).assert().code(0);
    env.claude_run().args(["--lock", "refresh", "--wait", "0", "--refresh-margin", "10m", "true"]).assert().code(75);
    env.log_in(300);
    env.claude_run().args(["--lock", "refresh", "--wait", "0", "true"]).assert().code(75);
    env.claude_run().args(["--lock", "refresh", "--wait", "0", "--refresh-margin", "0", "true"]).assert().code(0);
    env.log_in(FRESH);
    let mut always = env.claude_run();
    always.env("CLAUDE_RUN_REFRESH_MARGIN", "none").args(["--lock", "refresh", "--wait", "0", "true"]).assert().code(75);
}

#[test]
fn lock_is_released_once_the_new_expiry_is_on_disk() {
    for kind in KINDS {
        for is_symlink in [false, true] {
            let env = Env::new();
            env.log_in(EXPIRED);
            if is_symlink {
                // Older versions write through it, where nothing in the config dir changes.
                fs::rename(env.credentials(), env.path("elsewhere")).expect("a file");
                symlink(env.path("elsewhere"), env.credentials()).expect("a link");
            }
            let stand_in = StandIn::start(&env, &["--refresh-takes", "0.2"]);
            let fifo = env.path("fifo");
            nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
            let steps = format!("ready; open fifo; refresh {kind}; ready; signals; hang");
            let agent = env.agent(&stand_in, "refresh", &["-v"], &steps);
            agent.ready();
            assert!(env.is_locked(), "{kind}");
            fs::write(fifo, "").expect("a FIFO"); // it goes on
            while agent.line() != "refreshed" {}
            wait_until("the lock is free", || !env.is_locked());
            let [child, ..] = agent.ready();
            assert!(is_alive(child));
            while !agent.message().contains("released the session lock: the token is refreshed") {}
            let status = env.claude_run().args(["status", "--json"]).assert().code(0);
            let status: Value = serde_json::from_slice(&status.get_output().stdout).expect("JSON");
            assert_eq!(status["holders"].as_array().map(Vec::len), Some(0), "{status}");
            assert_eq!((&status["running"][0]["mode"], &status["running"][0]["hold"]), (&"refresh".into(), &Value::Null));
            // Once and for all.
            env.log_in(FRESH);
            agent.signal(Signal::SIGUSR1);
            let mut said = vec![agent.message()];
            while !said.iter().any(|message| message.contains(", next limit in ")) {
                said.push(agent.message());
            }
            agent.signal(Signal::SIGTERM);
            said.extend(agent.end().stderr);
            assert!(!said.iter().any(|message| message.contains("released the session lock")), "{said:?}");
        }
    }
}

#[test]
fn credentials_mounted_by_themselves_are_watched() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let outside = env.path("outside.json");
    fs::write(&outside, credentials(EXPIRED)).expect("a file");
    let Some(flags) = mount_namespace() else { return };
    let mut container = env.command("unshare");
    container.args([flags, "sh", "-ec", r#"mount --bind "$0" "$1"; shift; exec "$@""#]).args([&outside, &env.credentials()]);
    container.arg(binary()).args(["--lock", "refresh", "--claude"]).arg(fake_claude()).args(["--", "-p", "ready; hang"]);
    let run = Running::start(container);
    run.ready();
    assert!(env.is_locked());
    fs::write(&outside, credentials(FRESH)).expect("a file");
    wait_until("the lock is free", || !env.is_locked());
}

#[test]
fn unchanged_expiry_or_missing_file_keeps_the_lock() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let mut run = env.start_fake(&["--lock", "refresh"], "ready; hang");
    run.ready();
    for text in [&credentials(-200), "{", "", "{}", "null"] {
        fs::write(env.credentials(), text).expect("credentials");
        assert!(env.is_locked(), "{text}");
    }
    fs::remove_file(env.credentials()).expect("credentials");
    assert!(env.is_locked() && run.is_running());
    env.log_in(EXPIRED + 10);
    wait_until("a later one is one, however old", || !env.is_locked());
}

#[test]
fn waiter_goes_on_once_the_token_is_fresh() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let _holder = env.hold_lock(); // and never lets go
    let run = env.start_fake(&["--lock", "refresh"], "ready; hang");
    assert!(run.message().contains("waiting for the session lock"));
    env.log_in(FRESH);
    run.ready();
    assert!(run.message().contains("need not wait for the session lock any more"));
    let threads = fs::read_dir(format!("/proc/{}/task", run.pid())).expect("a process").count();
    assert_eq!(threads, 1, "nobody stays behind in the queue");
}

#[test]
fn holder_releases_if_the_token_is_already_fresh() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let stand_in = StandIn::start(&env, &[]);
    let first = env.agent(&stand_in, "refresh", &[], "ready; refresh none; ready; hang");
    first.ready();
    while first.line() != "refreshed" {}
    let second = env.agent(&stand_in, "refresh", &["--wait", "0"], "ready; hang");
    second.ready();
    wait_until("the first has seen it, too", || !env.is_locked());
}

#[test]
fn due_refresh_waits_and_times_out_as_exclusive() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let _holder = env.hold_lock();
    env.claude_run().args(["--lock", "refresh", "--wait", "0", "-E", "9", "true"]).assert().code(9);
    let waiter = env.start(["--lock", "refresh", "true"]);
    waiter.message();
    waiter.signal(Signal::SIGTERM);
    assert_eq!(waiter.end().code(), 143);
}

#[test]
fn unreadable_credentials_hold_the_lock_throughout() {
    let cut = credentials(FRESH);
    type Case<'a> = (&'a str, &'a dyn Fn(&Env));
    let cases: [Case; 6] = [
        ("missing", &|env| fs::remove_file(env.credentials()).expect("a file")),
        ("no login", &|env| fs::write(env.credentials(), "{}").expect("a file")),
        ("empty", &|env| fs::write(env.credentials(), "").expect("a file")),
        ("cut in half", &|env| fs::write(env.credentials(), &cut[..cut.len() / 2]).expect("a file")),
        ("not JSON", &|env| fs::write(env.credentials(), "\0\u{e9}{{{").expect("a file")),
        ("a directory", &|env| {
            fs::remove_file(env.credentials()).expect("a file");
            fs::create_dir(env.credentials()).expect("a directory");
        }),
    ];
    for (about, make) in cases {
        let env = Env::new();
        env.log_in(FRESH);
        make(&env);
        let run = env.start_fake(&["--lock", "refresh"], "ready; on TERM exit 7; ready; hang");
        run.ready();
        run.ready();
        let warning = run.message();
        assert!(warning.contains(".credentials.json") && warning.contains("for the whole run"), "{about}: {warning}");
        assert!(env.is_locked(), "{about}");
        if about != "a directory" {
            env.log_in(FRESH);
        }
        let second = env.claude_run().args(["--lock", "exclusive", "--wait", "0", "true"]).assert().code(75);
        assert!(!second.get_output().stderr.is_empty());
        run.signal(Signal::SIGTERM);
        let ended = run.end();
        assert_eq!((ended.code(), ended.stderr.len()), (7, 0), "{about}: {ended:?}");
    }
}

#[test]
fn login_without_refreshes_needs_no_lock() {
    let env = Env::new();
    let _holder = env.hold_lock();
    let run = |variable: &str, value: &str| {
        let mut run = env.claude_run();
        run.env(variable, value).args(["--lock", "refresh", "--wait", "0", "true"]).assert()
    };
    let others = [
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_USE_VERTEX",
        "CLAUDE_CODE_USE_FOUNDRY",
    ];
    for variable in others {
        run(variable, "1").code(0).stderr("");
        run(variable, "").code(75);
    }
    run("CLAUDE_CODE_OAUTH_TOKEN", "1").code(0).stderr("");
    // A login that is there is refreshed, whatever else claude goes by; but for one.
    env.log_in(EXPIRED);
    for variable in others {
        run(variable, "1").code(75);
    }
    run("CLAUDE_CODE_OAUTH_TOKEN", "1").code(0).stderr("");
    // Blank, or emptied by claude's settings, it is none.
    run("CLAUDE_CODE_OAUTH_TOKEN", " ").code(75);
    let settings = env.config_dir().join("settings.json");
    fs::write(&settings, r#"{"env":{"CLAUDE_CODE_OAUTH_TOKEN":""}}"#).expect("settings");
    run("CLAUDE_CODE_OAUTH_TOKEN", "1").code(75);
    fs::write(&settings, r#"{"env":{"CLAUDE_CODE_OAUTH_TOKEN":1}}"#).expect("settings");
    run("X", "1").code(0).stderr("");
    fs::remove_file(settings).expect("settings");
    fs::remove_file(env.credentials()).expect("a file");
    fs::write(env.config_dir().join("settings.json"), r#"{"apiKeyHelper":"/bin/key"}"#).expect("settings");
    run("X", "1").code(0).stderr("");
}

#[test]
fn claude_that_refreshes_nothing_needs_no_lock() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let _holder = env.hold_lock();
    let claude = |version: &str| env.script(&format!("versions/{version}"), "#!/bin/sh\n");
    for (version, variable, words, code) in [
        ("2.1.84", "X", &["--bare"][..], 0),
        ("2.1.330", "X", &["--bare"], 0),
        ("2.1.330", "X", &["--", "--bare"], 75),
        ("2.1.330", "CLAUDE_CODE_SIMPLE", &[], 0),
        ("2.1.330", "CLAUDE_CODE_USE_BEDROCK", &[], 0),
        ("2.1.330", "X", &[r#"--settings={"env":{"CLAUDE_CODE_USE_VERTEX":true}}"#], 0),
        ("2.1.177", "CLAUDE_CODE_USE_BEDROCK", &[], 75),
        ("unknown", "CLAUDE_CODE_USE_BEDROCK", &[], 75),
        ("2.1.330", "ANTHROPIC_API_KEY", &[], 75),
    ] {
        let mut run = env.claude_run();
        run.env(variable, "1")
            .args(["--lock", "refresh", "--wait", "0", "--claude"])
            .arg(claude(version))
            .args(["--", "-p", "x"]);
        run.args(words).assert().code(code);
    }
}

#[test]
fn nested_run_acquires_the_lock_after_the_refresh() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let (binary, fake) = (binary().display(), fake_claude().display());
    let nested = format!("{binary} --lock refresh --wait 0 --claude {fake} -- -p 'say inside' || echo code $?");
    let steps = format!("tool {nested}; ready; open {}; tool {nested}; hang", env.path("fifo").display());
    nix::unistd::mkfifo(&env.path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let outer = env.start_fake(&["--lock", "refresh"], &steps);
    outer.expect_line("inside");
    outer.ready();
    env.log_in(FRESH);
    wait_until("the outer one has let go", || !env.is_locked());
    env.log_in(EXPIRED);
    let _other = env.hold_lock();
    fs::write(env.path("fifo"), "").expect("a FIFO");
    outer.expect_line("code 75");
}

#[test]
fn refresh_does_not_release_what_an_exclusive_run_below_relies_on() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let [inner, outer] = ["inner", "outer"].map(|name| env.path(name));
    for fifo in [&inner, &outer] {
        nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    }
    let (binary, fake) = (binary().display(), fake_claude().display());
    let steps = format!("say inside; open {}; say done", inner.display());
    let script = format!("{binary} --lock exclusive --claude {fake} -- -p '{steps}'; cat {}", outer.display());
    let run = env.start(["-v", "--lock", "refresh", "--", "sh", "-c", &script]);
    run.expect_line("inside");
    crate::env::wait_for_records(&env.config_dir(), 2); // that of the inner one comes behind its claude
    env.log_in(FRESH);
    while !run.message().contains("a run below this one relies on the session lock") {}
    env.claude_run().args(["--wait", "0", "true"]).assert().code(75);
    fs::write(inner, "").expect("a FIFO");
    run.expect_line("done");
    wait_until("nobody needs it", || !env.is_locked());
    fs::write(outer, "").expect("a FIFO");
    assert_eq!(run.end().code(), 0);
    env.claude_run().args(["--wait", "0", "true"]).assert().code(0);
}

/// After a crash at any step the next run neither hangs nor fails through us, and uses what was saved.
#[test]
fn crash_at_any_refresh_step_frees_the_lock() {
    for kind in KINDS {
        for (step, posts, refused) in [("locked", 1, 0), ("posted", 2, 1), ("half", 2, 1), ("saved", 1, 0)] {
            for of_claude in [true, false] {
                let about = format!("{kind} {step} {of_claude}");
                let env = Env::new();
                env.log_in(EXPIRED);
                let stand_in = StandIn::start(&env, &[]);
                let agent = env.agent(&stand_in, "refresh", &[], &format!("ready; refresh {kind} {step}"));
                let [child, ..] = agent.ready();
                while agent.line() != step {}
                // KILL to claude-run makes the kernel send claude a TERM.
                let victim = if of_claude { Pid::from_raw(child) } else { agent.pid() };
                kill(victim, Signal::SIGKILL).expect("a process");
                let ended = agent.end();
                assert_eq!(ended.code(), 137, "{about}: {ended:?}");
                // A zombie's other threads may have its files still.
                wait_until(&format!("child and lock are gone: {about}"), || !is_alive(child) && !env.is_locked());
                // Time passes, as far as claude's own locks are concerned.
                for lock in [env.config_dir().join(".oauth_refresh.lock"), env.home().join(".claude.lock")] {
                    if lock.exists() {
                        age(&lock, 100);
                    }
                }
                let half_in_place = step == "half" && kind != "modern";
                let next = env.agent(&stand_in, "refresh", &["--wait", "0"], &format!("refresh {kind}; say went on"));
                let ended = next.end();
                let lost = refused == 1;
                assert_eq!(ended.stdout.contains(&"went on".to_owned()), !lost, "{about}: {ended:?}");
                assert_eq!(ended.stderr_text().contains("for the whole run"), half_in_place, "{about}: {ended:?}");
                let counts = stand_in.counts();
                let expected = if half_in_place { (1, 0) } else { (posts, refused) };
                assert_eq!((&counts["posts"], &counts["invalid_grant"]), (&expected.0.into(), &expected.1.into()), "{about}");
            }
        }
    }
}

#[test]
fn mode_refresh_applies_to_later_runs() {
    let env = Env::new();
    env.log_in(100);
    env.claude_run().args(["mode", "refresh"]).assert().code(0);
    let shown = env.claude_run().arg("status").assert().code(0);
    let shown = String::from_utf8_lossy(&shown.get_output().stdout).into_owned();
    assert!(shown.contains("refresh (") && shown.contains("OAuth login"), "{shown}");
    assert!(shown.contains("a refresh is due"), "{shown}");
    let _holder = env.hold_lock();
    env.claude_run().args(["--wait", "0", "true"]).assert().code(75);
    env.log_in(FRESH);
    env.claude_run().args(["--wait", "0", "true"]).assert().code(0);
    let mut keyed = env.claude_run();
    let status = keyed.args(["status", "--json"]).env("ANTHROPIC_API_KEY", "k").assert().code(0);
    let status: Value = serde_json::from_slice(&status.get_output().stdout).expect("JSON");
    assert_eq!((&status["auth"], &status["mode"]["value"]), (&"api-key".into(), &"refresh".into()));
}
