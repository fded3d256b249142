//! `--lock-helper`: a command that holds the lock of another engine, too, for as long as it runs. The engine here is a flock(1) on
//! one more file, or nothing at all; `etcd` has a real one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::Value;

use crate::env::{Env, Running, binary, can_unshare, fake_claude, is_alive, stat, wait_until};
use crate::oauth::{EXPIRED, FRESH, StandIn, credentials};
use crate::refresh_locks::lock_of;

/// Helper that reports start and TERM in the file `events`, and holds the lock until TERM.
const REPORTING: &str = r#"#!/bin/bash
trap 'echo term >>events; exit 0' TERM
echo "$$" >helper.pid
echo start >>events
echo a warning >&2
echo the/key
while :; do sleep 0.01; done
"#;

/// Helper that ignores TERM.
const IGNORING_TERM: &str = "#!/bin/bash\ntrap '' TERM\necho $$ >helper.pid\necho key\nwhile :; do sleep 0.01; done\n";

/// Writes a helper script into the test's directory, where everything is started.
fn helper(env: &Env, text: &str) -> &'static str {
    env.script("helper", text);
    "./helper"
}

fn events(env: &Env) -> String {
    fs::read_to_string(env.path("events")).unwrap_or_default()
}

fn helper_pid(env: &Env) -> i32 {
    let read = || fs::read_to_string(env.path("helper.pid")).ok()?.trim().parse().ok();
    wait_until("the helper has begun", || read().is_some());
    read().expect("a pid")
}

fn parent(pid: i32) -> i32 {
    stat(pid).expect("it lives")[1].parse().expect("a number")
}

/// Members of the process group `group`, zombies left out.
fn members(group: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_member = |pid: &i32| stat(*pid).is_some_and(|fields| fields[2] == group.to_string() && fields[0] != "Z");
    pids.filter(is_member).collect()
}

#[test]
fn helper_runs_within_the_hold_of_the_session_lock() {
    let env = Env::new();
    let helper = helper(&env, REPORTING);
    let holder = env.hold_lock();
    let child = "echo child >>events; echo $CLAUDE_RUN_LOCK_KEY; cat ~/.claude/claude-run/runs/*.json; exec sleep 600";
    let run = env.start(["--lock-helper", helper, "sh", "-c", child]);
    run.message(); // it waits for the session lock
    assert_eq!(events(&env), "", "each host sends one contender");
    drop(holder);
    run.expect_line("the/key");
    let record: Value = serde_json::from_str(&run.line()).expect("a record");
    assert_eq!((&record["lock_key"], &record["hold"]), (&"the/key".into(), &"own".into()), "{record}");
    let pid = helper_pid(&env);
    assert!(env.is_locked() && is_alive(pid));
    let status = env.claude_run().args(["status", "--json"]).assert().code(0);
    let status: Value = serde_json::from_slice(&status.get_output().stdout).expect("JSON");
    assert_eq!(status["holders"][0]["record"]["lock_key"], "the/key", "{status:#}");
    let status = env.claude_run().arg("status").assert().code(0);
    let status = String::from_utf8_lossy(&status.get_output().stdout).into_owned();
    assert!(status.contains(", with the lock helper's lock the/key\n"), "{status}");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end().code(), 143);
    assert!(!is_alive(pid) && !env.is_locked());
    assert_eq!(events(&env), "start\nchild\nterm\n");
}

#[test]
fn hosts_that_share_only_the_engine_take_turns() {
    let engine = Env::new();
    let shared = engine.path("engine");
    let hosts: Vec<_> = (0..3).map(|_| Env::new()).collect();
    let helper = format!("flock '{}' sh -c 'echo key; exec sleep 600'", shared.display());
    let alone = format!("mkdir '{0}' && sleep 0.02 && rmdir '{0}'", engine.path("inside").display());
    let runs: Vec<_> = (0..18).map(|number| hosts[number % 3].start(["--lock-helper", &helper, "sh", "-c", &alone])).collect();
    for run in runs {
        let ended = run.end();
        assert_eq!(ended.code(), 0, "{ended:?}");
    }
}

/// Hosts that share the config dir, but not its locks, as some file systems have it: two lock files here.
#[test]
fn waiter_of_a_helper_names_the_holder_by_its_record() {
    let env = Env::new();
    let engine = "flock engine sh -c 'echo key; exec sleep 600'";
    let [here, there] = ["here", "there"].map(|name| env.path(name).display().to_string());
    let holder =
        ["--label", "dev-agent", "--lock-file", &there, "--lock-helper", engine, "sh", "-c", "echo in; exec sleep 600"];
    let holder = env.start(holder);
    holder.expect_line("in");
    let waiter = env.start(["--lock-file", &here, "--lock-helper", engine, "true"]);
    let said = waiter.message();
    let held = format!(", held by dev-agent (pid {}) for ", holder.pid());
    assert!(said.contains("waiting for the lock helper flock (") && said.contains(&held), "{said}");
    assert!(said.ends_with(", by its record"), "{said}");
}

#[test]
fn helper_that_takes_its_time_is_said_to_have_its_lock() {
    let env = Env::new();
    let slow = helper(&env, "#!/bin/sh\nuntil [ -e go ]; do sleep 0.01; done\necho key\nexec sleep 600\n");
    let mut holder = env.hold_lock();
    let run = env.start(["--lock-helper", slow, "true"]);
    assert!(run.message().contains("waiting for the session lock"));
    holder.close_stdin();
    assert!(run.message().contains("got the session lock after"));
    assert!(run.message().contains("waiting for the lock helper ./helper"));
    fs::write(env.path("go"), "").expect("a file");
    assert!(run.message().contains("the lock helper ./helper has its lock after"));
    let ended = run.end();
    assert!(ended.code() == 0 && ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn silent_or_ended_helper_is_a_conflict() {
    let env = Env::new();
    let silent = helper(&env, "#!/bin/sh\necho $$ >helper.pid\nprintf 'no line'\nexec sleep 600\n");
    for (wait, at_least) in [("1.5", 1500), ("0", 2000)] {
        let started = Instant::now();
        let ended = env.start(["--wait", wait, "--lock-helper", silent, "touch", "started"]).end();
        assert_eq!(ended.code(), 75, "{ended:?}");
        assert!(ended.stderr_text().contains("the lock helper ./helper did not get its lock; "), "{ended:?}");
        assert!(started.elapsed() >= Duration::from_millis(at_least), "{:?}", started.elapsed());
        assert!(!is_alive(helper_pid(&env)) && !env.is_locked());
        fs::remove_file(env.path("helper.pid")).expect("a file");
    }
    let ended = env.start(["-E", "9", "--lock-helper", "sh -c 'echo no quorum >&2; exit 5'", "touch", "started"]).end();
    assert_eq!(ended.code(), 9, "{ended:?}");
    assert!(ended.stderr_text().contains("sh has ended without a lock (exit status 5: no quorum)"), "{ended:?}");
    assert!(!env.is_locked() && !env.path("started").exists());
    let history = fs::read_to_string(env.config_dir().join("claude-run/history.jsonl")).expect("a history");
    assert_eq!(history.matches(r#""outcome":"lock-busy""#).count(), 3, "{history}");
    assert_eq!(fs::read_dir(env.config_dir().join("claude-run/runs")).expect("records").count(), 0);
}

#[test]
fn helper_that_cannot_run_is_126_or_127() {
    let env = Env::new();
    env.script("lost", "#!/nonesuch/shell\n");
    env.script("plain", "echo no first line\n");
    fs::write(env.path("text"), "text").expect("a file");
    for (helper, code, message) in [
        ("nonesuch lock", 127, "cannot start the lock helper: nonesuch: not found on PATH"),
        ("./nonesuch", 127, "./nonesuch: not found"),
        ("./text", 126, "./text: is not executable"),
        ("./", 126, "./: is a directory"),
        ("./lost", 126, "./lost: its interpreter or loader is not there"),
        ("./plain", 126, "./plain: neither a binary for this machine nor a script"),
    ] {
        let ended = env.start(["--lock-helper", helper, "touch", "started"]).end();
        assert_eq!(ended.code(), code, "{ended:?}");
        assert!(ended.stderr_text().contains(message), "{ended:?}");
        assert!(!env.is_locked() && !env.path("started").exists());
    }
    for helper in ["'open", "", "  ", "--", "--ttl 30", "'' lock"] {
        let mut run = env.claude_run();
        run.args([&format!("--lock-helper={helper}"), "touch", "started"]);
        let run = run.assert().code(125);
        let said = String::from_utf8_lossy(&run.get_output().stderr);
        assert!(said.contains("--lock-helper: it is no command; write a program and its arguments"), "{said}");
    }
    let mut unset = env.claude_run();
    unset.env("CLAUDE_RUN_LOCK_HELPER", "").arg("true").assert().code(0);
}

#[test]
fn helper_words_are_split_without_expansion() {
    let env = Env::new();
    env.script("words", "#!/bin/sh\nprintf '%s|' \"$@\" >words.txt\necho key\nexec sleep 600\n");
    let mut run = env.claude_run();
    run.env("CLAUDE_RUN_LOCK_HELPER", r#"./words 'a b' "c"d\ e $HOME * ; ''"#).arg("true").assert().code(0);
    assert_eq!(fs::read_to_string(env.path("words.txt")).expect("words"), "a b|cd e|$HOME|*|;||");
}

#[test]
fn lost_lock_ends_the_child_with_69() {
    let env = Env::new();
    let helper =
        helper(&env, "#!/bin/bash\necho key\nuntil [ -e lose ]; do sleep 0.01; done\necho lease expired >&2\nexit 1\n");
    let run = env.start_fake(&["--lock-helper", helper, "--kill-after", "0.3"], "ready; on TERM exit 0; ready; hang");
    let [child, ..] = run.ready();
    run.ready();
    fs::write(env.path("lose"), "").expect("a file");
    let ended = run.end();
    assert_eq!(ended.code(), 69, "{ended:?}");
    let message = "the lock helper ./helper has ended (exit status 1: lease expired): the lock is lost, sending TERM";
    assert!(ended.stderr_text().contains(message), "{ended:?}");
    assert!(!is_alive(child) && !env.is_locked());
    let history = fs::read_to_string(env.config_dir().join("claude-run/history.jsonl")).expect("a history");
    assert!(history.contains(r#""outcome":"lock-lost","exit_code":69"#), "{history}");
    // One that ignores TERM has the kill grace.
    fs::remove_file(env.path("lose")).expect("a file");
    let run = env.start_fake(&["--lock-helper", helper, "--kill-after", "0.3"], "ignore TERM; ready; hang");
    run.ready();
    fs::write(env.path("lose"), "").expect("a file");
    assert_eq!(run.end().code(), 69);
}

#[test]
fn lost_lock_waits_for_a_refresh_under_way() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let helper = helper(&env, "#!/bin/bash\necho key\nuntil [ -e lose ]; do sleep 0.01; done\nexit 1\n");
    let stand_in = StandIn::start(&env, &[]);
    let agent = env.agent(&stand_in, "exclusive", &["--lock-helper", helper], "signals; refresh legacy locked");
    while agent.line() != "locked" {}
    fs::write(env.path("lose"), "").expect("a file");
    while !agent.message().contains("claude may be refreshing its token: deferring signals") {}
    fs::remove_dir(env.home().join(".claude.lock")).expect("a lock"); // the refresh is over
    agent.expect_line("signal TERM");
    agent.signal(Signal::SIGTERM);
    agent.term_again();
    assert_eq!(agent.end().code(), 69);
}

#[test]
fn lock_lost_before_the_start_starts_nothing() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let refresh_lock = lock_of(&env, std::process::id());
    let helper = helper(&env, "#!/bin/bash\necho key\nuntil [ -e lose ]; do sleep 0.01; done\nexit 1\n");
    let run = env.start(["--lock-helper", helper, "touch", "started"]);
    assert!(run.message().contains("a refresh is under way"));
    fs::write(env.path("lose"), "").expect("a file");
    let ended = run.end(); // though that refresh still is
    assert_eq!(ended.code(), 75, "{ended:?}");
    let message = "the lock helper ./helper has ended (exit status 1): the lock is lost; nothing was started";
    assert!(ended.stderr_text().contains(message), "{ended:?}");
    assert!(refresh_lock.exists() && !env.path("started").exists() && !env.is_locked());
}

#[test]
fn helper_is_released_with_the_session_lock() {
    let env = Env::new();
    let helper = helper(&env, REPORTING);
    env.log_in(FRESH);
    env.claude_run().args(["--lock", "refresh", "--lock-helper", helper, "true"]).assert().code(0);
    env.claude_run().args(["--lock", "pass-through", "--lock-helper", "nonesuch", "true"]).assert().code(0);
    assert_eq!(events(&env), "", "no lock is needed, and none taken");
    env.log_in(EXPIRED);
    let run = env.start_fake(&["--lock", "refresh", "--lock-helper", helper], "ready; signals; hang");
    let [child, ..] = run.ready();
    let pid = helper_pid(&env);
    assert!(is_alive(pid) && env.is_locked());
    fs::write(env.credentials(), credentials(FRESH)).expect("credentials");
    wait_until("the helper has released its lock", || events(&env) == "start\nterm\n");
    wait_until("the lock is free", || !env.is_locked());
    wait_until("the helper is gone", || !is_alive(pid));
    assert!(is_alive(child), "what ends now is no loss");
    run.signal(Signal::SIGUSR2);
    run.expect_line("signal USR2");
    run.signal(Signal::SIGTERM);
    run.term_again();
    assert_eq!(run.end().code(), 137);
}

#[test]
fn wait_for_helper_ends_once_the_token_is_fresh() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let silent = helper(&env, "#!/bin/sh\necho $$ >helper.pid\nexec sleep 600\n");
    let run = env.start(["--lock", "refresh", "--lock-helper", silent, "echo", "started"]);
    let pid = helper_pid(&env);
    assert!(run.message().contains("waiting for the lock helper ./helper"));
    fs::write(env.credentials(), credentials(FRESH)).expect("credentials");
    run.expect_line("started");
    let ended = run.end();
    assert!(ended.code() == 0 && ended.stderr_text().contains("need not wait for the lock helper ./helper any more, after"));
    assert!(!is_alive(pid) && !env.is_locked());
    // What was not said to be waited for is no news.
    env.log_in(EXPIRED);
    fs::remove_file(env.path("helper.pid")).expect("a file");
    let run = env.start(["--lock", "refresh", "--lock-helper", silent, "true"]);
    helper_pid(&env);
    fs::write(env.credentials(), credentials(FRESH)).expect("credentials");
    let ended = run.end();
    assert!(ended.code() == 0 && ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn killed_claude_run_leaves_no_helper_and_no_lock() {
    let env = Env::new();
    // It ignores TERM, and so does what it starts.
    let helper = helper(&env, "#!/bin/bash\ntrap '' TERM\necho $$ >helper.pid\nsleep 600 &\nsleep 600 &\necho key\nwait\n");
    for steps in ["ready; hang", "ignore TERM; ready; hang"] {
        let run = env.start_fake(&["--lock-helper", helper], steps);
        let [child, ..] = run.ready();
        let group = helper_pid(&env);
        wait_until("all of them are there", || members(group).len() == 3);
        run.signal(Signal::SIGKILL);
        assert_eq!(run.end().code(), 137);
        wait_until("they are gone", || members(group).is_empty());
        // One of them has ended of the kernel's TERM.
        let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        wait_until("the lock is free", || !env.is_locked());
        fs::remove_file(env.path("helper.pid")).expect("a file");
    }
    // Killed while it waits.
    let silent = self::helper(&env, "#!/bin/bash\necho $$ >helper.pid\nsleep 600 &\nwait\n");
    let run = env.start(["--lock-helper", silent, "true"]);
    let group = helper_pid(&env);
    wait_until("both are there", || members(group).len() == 2);
    run.signal(Signal::SIGKILL);
    run.end();
    wait_until("they are gone", || members(group).is_empty());
    assert!(!env.is_locked());
}

#[test]
fn helper_that_ignores_term_or_is_stopped_ends() {
    let env = Env::new();
    let ignoring = helper(&env, IGNORING_TERM);
    let started = Instant::now();
    let ended = env.start(["--kill-after", "0.3", "--lock-helper", ignoring, "true"]).end();
    assert_eq!(ended.code(), 0);
    assert!(ended.stderr_text().contains("does not release its lock: sending KILL"), "{ended:?}");
    assert!(started.elapsed() >= Duration::from_millis(300) && !is_alive(helper_pid(&env)));
    fs::remove_file(env.path("helper.pid")).expect("a file");
    let telling = helper(&env, REPORTING);
    mkfifo(&env.path("fifo"), Mode::S_IRWXU).expect("a FIFO");
    let mut run = env.start(["--kill-after", "0", "--lock-helper", telling, "sh", "-c", "echo in; read line <fifo"]);
    run.expect_line("in");
    let pid = helper_pid(&env);
    kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("it lives");
    assert!(run.is_running());
    fs::write(env.path("fifo"), "go\n").expect("a FIFO");
    assert_eq!(run.end().code(), 0);
    assert!(events(&env).ends_with("term\n"));
}

#[test]
fn signal_ends_the_wait_for_the_helper() {
    let env = Env::new();
    let silent = helper(&env, "#!/bin/sh\necho $$ >helper.pid\nexec sleep 600\n");
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        let run = env.start(["--lock-helper", silent, "touch", "started"]);
        let pid = helper_pid(&env);
        run.signal(Signal::SIGUSR1);
        assert!(run.message().contains("waiting for the lock helper ./helper"));
        let status = env.claude_run().arg("status").assert().code(0);
        let status = String::from_utf8_lossy(&status.get_output().stdout).into_owned();
        assert!(status.contains("held by        touch") && status.contains("not started yet"), "{status}");
        run.signal(signal);
        let ended = run.end();
        assert_eq!(ended.code(), code, "{ended:?}");
        assert!(ended.stderr_text().contains("ended the wait for the lock helper"), "{ended:?}");
        assert!(!is_alive(pid) && !env.is_locked() && !env.path("started").exists());
        fs::remove_file(env.path("helper.pid")).expect("a file");
    }
}

#[test]
fn nested_run_starts_no_second_helper() {
    let env = Env::new();
    let helper = helper(&env, REPORTING);
    let nested = format!("'{}' --lock-helper ./helper sh -c 'echo $CLAUDE_RUN_LOCK_KEY'", binary().display());
    let run = env.start(["--lock-helper", helper, "sh", "-c", &nested]);
    run.expect_line("the/key");
    assert_eq!(run.end().code(), 0);
    assert_eq!(events(&env), "start\nterm\n", "once");
    fs::remove_file(env.path("events")).expect("a file");
    // The old shell block has the session lock of this host, and no other.
    let block = format!("exec 9>'{}'; flock 9; {nested}", env.lock_file().display());
    let mut shell = env.command("bash");
    shell.args(["-c", &block]);
    let run = Running::start(shell);
    run.expect_line("the/key");
    assert_eq!(run.end().code(), 0);
    assert_eq!(events(&env), "start\nterm\n");
}

#[test]
fn nested_run_acquires_only_what_is_missing() {
    let env = Env::new();
    let helper = helper(&env, REPORTING);
    let claude_run = binary().display();
    let key = "echo key $CLAUDE_RUN_LOCK_KEY";
    let helped = format!("'{claude_run}' --wait 5 --lock-helper {helper}");
    let home = format!("HOME='{}'", env.home().display());
    let in_the_file = format!("env -i {home} '{claude_run}' --wait 5 sh -c '{key}'");
    let starts = |outer: &str, inner: &str, expected: &str| {
        env.script("inner", &format!("#!/bin/sh\n{inner}\n"));
        let mut shell = env.command("bash");
        shell.args(["-c", &format!("{outer} ./inner")]);
        let ended = Running::start(shell).end();
        assert_eq!((ended.code(), ended.stdout.join(",")), (0, expected.to_owned()), "{outer}: {inner}: {ended:?}");
        let starts = events(&env).matches("start").count();
        let _ = fs::remove_file(env.path("events"));
        assert!(!env.is_locked(), "{outer}: {inner}");
        starts
    };
    let below = format!("{helped} sh -c '{key}'");
    // The run above has the session lock alone; so has an old block, whose claude gives its tools no descriptor of it.
    assert_eq!(starts(&format!("'{claude_run}'"), &below, "key the/key"), 1);
    let block = format!("flock '{}' bash -c 'exec 3>&- 4>&- 5>&-; \"$@\"' sh", env.lock_file().display());
    assert_eq!(starts(&block, &below, "key the/key"), 1);
    // A third one below the second finds that it has all.
    let nested = format!("{helped} {helped} '{claude_run}' sh -c '{key}'");
    assert_eq!(starts(&format!("'{claude_run}'"), &nested, "key the/key"), 1);
    assert_eq!(starts(&block, &nested, "key the/key"), 1);
    // Where nothing is left of the environment, the record of the one above tells.
    fs::write(env.config_dir().join("claude-run.toml"), format!("lock-helper = \"{helper}\"\n")).expect("a file");
    assert_eq!(starts(&format!("'{claude_run}'"), &in_the_file, "key"), 1);
    // Where no records are kept, its word does.
    fs::remove_dir_all(env.config_dir().join("claude-run")).expect("a directory");
    fs::write(env.config_dir().join("claude-run"), "").expect("a file");
    assert_eq!(starts(&format!("'{claude_run}'"), &format!("'{claude_run}' --wait 5 sh -c '{key}'"), "key the/key"), 1);
}

#[test]
fn helper_inherits_only_the_environment() {
    let env = Env::new();
    let helper = helper(&env, REPORTING);
    let run = env.start_fake(&["--lock-helper", helper, "--log", "log", "-v"], "ready; hang");
    let [_, claude_run, group, session] = run.ready();
    let pid = helper_pid(&env);
    let stat = |pid: i32| -> Vec<i32> {
        let fields = stat(pid).expect("it lives");
        fields[1..4].iter().map(|field| field.parse().expect("a number")).collect()
    };
    let [monitor, its_group, its_session] = stat(pid)[..] else { panic!("three numbers") };
    assert_eq!((its_group, its_session), (pid, session), "a group of its own: a terminal's keys are not for it");
    assert_eq!(stat(monitor)[..2], [claude_run, monitor], "nor for its monitor");
    assert_ne!(its_group, group);
    let open = |pid: i32| {
        let all = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").flatten();
        let files = all.filter_map(|entry| Some((entry.file_name().into_string().ok()?, fs::read_link(entry.path()).ok()?)));
        files.collect::<Vec<_>>()
    };
    let is_pipe = |file: &Path| file.to_string_lossy().starts_with("pipe:");
    let (of_monitor, ours) = (open(monitor), open(claude_run));
    let is_own = |file: &Path| file == Path::new("/dev/null") || ours.iter().all(|(_, other)| other != file);
    let is_file = |file: &Path| file.is_absolute() && file != Path::new("/dev/null");
    assert!(of_monitor.iter().all(|(_, file)| is_own(file) && !is_file(file)), "{of_monitor:?}");
    for (number, file) in open(pid) {
        match number.as_str() {
            "0" => assert_eq!(file, Path::new("/dev/null")),
            "1" | "2" => assert!(is_pipe(&file)),
            "255" => assert!(file.ends_with("helper"), "bash reads its script there"),
            // What whoever started the tests has left open to all of us.
            _ => assert_eq!(fs::read_link(format!("/proc/self/fd/{number}")).ok(), Some(file), "{number}"),
        }
    }
    run.signal(Signal::SIGTERM);
    let ended = run.end();
    assert!(ended.stderr_text().contains("./helper: a warning"), "{ended:?}");
    let log = fs::read_to_string(env.path("log")).expect("a log");
    assert!(log.contains("./helper: a warning") && log.contains("the lock helper ./helper has the lock"), "{log}");
}

#[test]
fn helpers_daemons_end_with_it() {
    let env = Env::new();
    // Twice removed, so that it has a parent no more, and of no real parent's group.
    let text = "#!/bin/bash\n(setsid sh -c 'echo $$ >helper.pid; exec sleep 600' &)\nuntil [ -s helper.pid ]; do sleep 0.01; done\necho key\nexec sleep 600\n";
    let helper = helper(&env, text);
    let ended = env.start(["--lock-helper", helper, "true"]).end();
    assert_eq!((ended.code(), is_alive(helper_pid(&env))), (0, false), "{ended:?}");
    fs::remove_file(env.path("helper.pid")).expect("a file");
    let run = env.start_fake(&["--lock-helper", helper], "ready; hang");
    run.ready();
    run.signal(Signal::SIGKILL);
    run.end();
    let pid = helper_pid(&env);
    wait_until("it is gone", || !is_alive(pid));
}

#[test]
fn child_beside_a_helper_leaves_nothing() {
    let env = Env::new();
    let helper = helper(&env, REPORTING);
    // It denies where it comes from.
    let leaves = "env -i A=1 setsid sh -c 'echo $$ >left; exec sleep 600' & until [ -s left ]; do sleep 0.01; done";
    let ended = env.start(["--lock-helper", helper, "sh", "-c", leaves]).end();
    assert_eq!(ended.code(), 0, "{ended:?}");
    let left = fs::read_to_string(env.path("left")).expect("a pid").trim().parse().expect("a number");
    assert!(!is_alive(left) && !is_alive(helper_pid(&env)));
    assert_eq!(events(&env), "start\nterm\n", "and it was not taken for one of the child's");
}

#[test]
fn run_notices_the_end_of_helper_or_monitor() {
    let env = Env::new();
    let helper = helper(&env, REPORTING);
    let start = |steps| {
        let _ = fs::remove_file(env.path("helper.pid"));
        let mut command = env.command(binary());
        command.args(["--lock-helper", helper, "--kill-after", "0.1", "--claude"]).arg(fake_claude());
        let run = Running::start({
            command.args(["--", "-p", steps]).stdin(Stdio::piped());
            command
        });
        run.ready();
        let pid = helper_pid(&env);
        (run, pid, parent(pid))
    };
    // SAFETY: kill(2) of a process that this test has started.
    let kill_raw = |pid: i32, signal: i32| assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    for (signal, name) in [(libc::SIGKILL, "SIGKILL"), (libc::SIGRTMIN() + 3, "signal 37")] {
        let (run, pid, _) = start("ready; hang");
        kill_raw(pid, signal);
        let ended = run.end();
        assert_eq!(ended.code(), 69, "{ended:?}");
        assert!(ended.stderr_text().contains(&format!("(ended by {name}: a warning)")), "{ended:?}");
    }
    let (run, pid, monitor) = start("ready; hang");
    kill_raw(monitor, libc::SIGKILL);
    let ended = run.end();
    assert_eq!(ended.code(), 69, "{ended:?}");
    assert!(ended.stderr_text().contains("(its monitor was killed"), "{ended:?}");
    wait_until("the helper is gone", || !is_alive(pid));
    // A monitor that somebody has stopped ends nothing, and is ended itself.
    let (mut run, pid, monitor) = start("ready; read");
    kill_raw(monitor, libc::SIGSTOP);
    run.close_stdin();
    let ended = run.end();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.stderr_text().contains("does not end: sending KILL to its monitor"), "{ended:?}");
    wait_until("both are gone", || !is_alive(pid) && !is_alive(monitor));
}

#[test]
fn signals_count_while_the_helper_shuts_down() {
    let env = Env::new();
    let ignoring = helper(&env, IGNORING_TERM);
    let start = |words: &[&str]| {
        let _ = fs::remove_file(env.path("helper.pid"));
        let run = env.start([&["--kill-after", "0", "--lock-helper", ignoring], words].concat());
        let pid = helper_pid(&env);
        wait_until_shutting_down(&run, |signal| run.signal(signal));
        assert!(is_alive(pid) && env.is_locked());
        (run, pid)
    };
    // Whether or not somebody reads along, the output is whole, and so is the code.
    for reads in [&[][..], &["--redact", "all", "--log", "log"]] {
        let words = [reads, &["sh", "-c", "printf 'last words'; exit 7"]].concat();
        let (run, pid) = start(&words);
        let status = env.claude_run().arg("status").assert().code(0);
        let status = String::from_utf8_lossy(&status.get_output().stdout).into_owned();
        assert!(status.contains("held by        sh (pid ") && !status.contains("not started yet"), "{status}");
        run.signal(Signal::SIGTERM);
        let ended = run.end();
        assert_eq!((ended.code(), is_alive(pid), &ended.stdout[..]), (7, false, &["last words".to_owned()][..]), "{ended:?}");
        assert!(ended.stderr_text().contains("SIGTERM: sending KILL to the lock helper ./helper"), "{ended:?}");
        assert!(!ended.stderr_text().contains("nothing was started"), "{ended:?}");
    }
    // Nor can its monitor be stopped for that.
    let (run, pid) = start(&["true"]);
    let monitor = parent(pid);
    kill(Pid::from_raw(monitor), Signal::SIGSTOP).expect("it lives");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end().code(), 0);
    wait_until("both are gone", || !is_alive(pid) && !is_alive(monitor));
    let (run, pid) = start(&["true"]);
    run.signal(Signal::SIGKILL);
    run.end();
    wait_until("the helper is gone", || !is_alive(pid));
    assert!(!env.is_locked());
}

#[test]
fn termination_during_shutdown_counts_later() {
    let env = Env::new();
    // Nothing is started any more.
    env.log_in(EXPIRED);
    let text = "#!/bin/bash\ntrap 'echo term >>events; while :; do sleep 0.01; done' TERM\necho $$ >helper.pid\nwhile :; do sleep 0.01; done\n";
    let silent = helper(&env, text);
    let run = env.start(["--lock", "refresh", "--kill-after", "0", "--lock-helper", silent, "touch", "started"]);
    helper_pid(&env);
    fs::write(env.credentials(), credentials(FRESH)).expect("credentials");
    wait_until("the helper has its TERM", || events(&env) == "term\n");
    run.signal(Signal::SIGTERM);
    let ended = run.end();
    assert_eq!((ended.code(), env.path("started").exists()), (143, false), "{ended:?}");
    // What cannot be started keeps nobody from being heard.
    let ignoring = helper(&env, IGNORING_TERM);
    env.script("lost", "#!/nonesuch/shell\n");
    fs::remove_file(env.path("helper.pid")).expect("a file");
    let run = env.start(["--kill-after", "0", "--lock-helper", ignoring, "./lost"]);
    helper_pid(&env);
    wait_until_shutting_down(&run, |signal| run.signal(signal));
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end().code(), 126);
    // Nobody reads the output: one request ends both waits.
    let claude_run = binary().display();
    let script = format!(
        "( '{claude_run}' --kill-after 0 --log log --lock-helper {ignoring} sh -c 'head -c 4000000 /dev/zero; exit 7' &
           echo $! >pid; wait $!; echo $? >code ) | until [ -e code ]; do sleep 0.01; done"
    );
    fs::remove_file(env.path("helper.pid")).expect("a file");
    let mut shell = env.command("bash");
    shell.args(["-c", &script]);
    let run = Running::start(shell);
    helper_pid(&env);
    let read = |name: &str| fs::read_to_string(env.path(name)).ok()?.trim().parse::<i32>().ok();
    wait_until("it has begun", || read("pid").is_some());
    let pid = Pid::from_raw(read("pid").expect("a pid"));
    wait_until_shutting_down(&run, |signal| kill(pid, signal).expect("it lives"));
    kill(pid, Signal::SIGTERM).expect("it lives");
    run.end();
    assert_eq!(read("code"), Some(143));
}

/// Sends USR1 until the run says that it waits for its helper to end.
fn wait_until_shutting_down(run: &Running, signal: impl Fn(Signal)) {
    while {
        signal(Signal::SIGUSR1);
        !run.message().contains("waiting for the lock helper ./helper to release its lock")
    } {}
}

#[test]
fn nested_run_relies_on_no_lock_being_released() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let text = "#!/bin/bash\ntrap 'echo term >>events; until [ -e done ]; do sleep 0.01; done; exit' TERM\necho outer\nwhile :; do sleep 0.01; done\n";
    let helper = helper(&env, text);
    let inner = format!(
        "echo in; until [ -s events ]; do sleep 0.01; done
         '{}' --lock exclusive --lock-helper 'sh -c \"echo inner; exec sleep 600\"' sh -c 'echo key $CLAUDE_RUN_LOCK_KEY'",
        binary().display()
    );
    let run = env.start(["--lock", "refresh", "--kill-after", "1m", "--lock-helper", helper, "sh", "-c", &inner]);
    run.expect_line("in");
    fs::write(env.credentials(), credentials(FRESH)).expect("credentials");
    run.expect_line("key inner");
    fs::write(env.path("done"), "").expect("a file");
    assert_eq!(run.end().code(), 0);
    // And the one in between, that relies on another itself, says nothing of that one's helper.
    let other = Env::new();
    let telling = self::helper(&env, REPORTING);
    fs::remove_file(env.path("events")).expect("a file");
    let below = format!(
        "HOME='{}' '{}' --wait 5 --lock-file '{}' --lock-helper {telling}",
        other.home().display(),
        binary().display(),
        env.lock_file().display()
    );
    env.script("second", &format!("#!/bin/sh\n{below} ./third\n"));
    env.script("third", &format!("#!/bin/sh\n{below} sh -c 'echo key $CLAUDE_RUN_LOCK_KEY'\n"));
    let run = env.start(["--lock-helper", telling, "./second"]);
    run.expect_line("key the/key");
    assert_eq!(run.end().code(), 0);
    assert_eq!(events(&env), "start\nterm\n", "once");
}

#[test]
fn stale_or_foreign_key_is_no_lock() {
    let env = Env::new();
    let other = Env::new();
    let helper = helper(&env, REPORTING);
    let key = "echo \"key $CLAUDE_RUN_LOCK_KEY\"";
    let prints = |mut command: Command, expected: &str| {
        command.env("CLAUDE_RUN_LOCK_KEY", "stale");
        let ended = Running::start(command).end();
        assert_eq!((ended.code(), ended.stdout.join(",")), (0, expected.to_owned()), "{ended:?}");
    };
    let claude_run = binary().display().to_string();
    let run = |words: &[&str]| {
        let mut command = env.command(&claude_run);
        command.args(words).args(["sh", "-c", key]);
        command
    };
    prints(run(&[]), "key ");
    prints(run(&["--lock", "pass-through"]), "key ");
    prints(run(&["--lock-helper", helper]), "key the/key");
    // An old block with another config dir, below a run with a helper: that one's lock is not the block's.
    let home = other.home().display().to_string();
    let inner = format!(
        "exec 9>'{}'; flock 9; HOME='{home}' '{claude_run}' --lock-helper ./helper sh -c '{key}'",
        other.lock_file().display()
    );
    fs::create_dir_all(other.config_dir()).expect("a directory");
    let mut outer = env.command(&claude_run);
    outer.args(["--lock-helper", "sh -c 'echo outer; exec sleep 600'", "bash", "-c", &inner]);
    prints(outer, "key the/key");
}

#[test]
fn endless_output_of_a_helper_costs_no_memory() {
    let env = Env::new();
    let peak = "sleep 0.5; grep RssAnon /proc/$PPID/status"; // the pages of an unoptimised program's file are not its own
    let ended = env.start(["--lock-helper", "yes", "sh", "-c", peak]).end();
    assert_eq!(ended.code(), 0, "{ended:?}");
    let peak: u32 = ended.stdout[0].split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    assert!(peak < 4 * 1024, "{peak} KiB");
}

#[test]
fn reason_for_no_lock_is_reported() {
    const STAY: &str = "has ended after its first line (exit status 0), but has to stay while the lock is held";
    let env = Env::new();
    for (text, message) in [
        (
            "exec >&-; exec sleep 600",
            "gave up after 2s: the lock helper sh did not get its lock; it has closed its stdout without a line",
        ),
        (
            "printf key; exec sleep 600",
            "gave up after 2s: the lock helper sh did not get its lock; it has printed something, but no whole line",
        ),
        // Its thread that reads may be woken by the line before it is stopped.
        (
            "read _ _ _ run _ </proc/$PPID/stat; kill -STOP $run; while cat /proc/$run/task/*/stat | grep -qv \") T \"; do :; done; \
             echo $PPID >helper.pid; echo key",
            STAY,
        ),
    ] {
        let helper = format!("sh -c '{text}'");
        let run = env.start(["--wait", "2", "--lock-helper", &helper, "touch", "started"]);
        if message == STAY {
            let monitor = helper_pid(&env); // it has stopped us, so that we hear of its first line and of its end at once
            wait_until("its end was reported", || !is_alive(monitor));
            run.signal(Signal::SIGCONT);
        }
        let ended = run.end();
        assert_eq!(ended.code(), 75, "{ended:?}");
        assert!(ended.stderr_text().contains(message), "{ended:?}");
        assert!(!env.path("started").exists() && !env.is_locked());
    }
}

#[test]
fn first_line_without_an_end_is_no_lock() {
    let env = Env::new();
    for (text, reason) in [
        ("head -c 5000 /dev/zero | tr '\\0' x; echo; exec sleep 600", "its first line is longer than 4 KiB"),
        ("yes | tr -d '\\n'", "its first line is longer than 4 KiB"),
        ("printf key; exec >&-; exec sleep 600", "it has closed its stdout before the end of its first line"),
    ] {
        let helper = helper(&env, &format!("#!/bin/sh\n{text}\n"));
        let ended = env.start(["--wait", "none", "--lock-helper", helper, "touch", "started"]).end();
        assert_eq!(ended.code(), 75, "{ended:?}");
        assert!(ended.stderr_text().contains(reason), "{ended:?}");
        assert!(!env.path("started").exists() && !env.is_locked());
    }
}

#[test]
fn record_goes_before_the_lock_on_errors() {
    let env = Env::new();
    env.script("lost", "#!/nonesuch/shell\n");
    for (words, code) in
        [(&["--lock-helper", "./lost", "true"][..], 126), (&["--lock-helper", "true", "true"], 75), (&["./lost"], 126)]
    {
        let mut strace = env.command("strace");
        strace.args(["-f", "-e", "trace=unlink,unlinkat,flock", "-o", "calls"]).arg(binary()).args(words);
        assert_eq!(Running::start(strace).end().code(), code);
        let calls = fs::read_to_string(env.path("calls")).expect("calls");
        let released = calls.find("LOCK_UN").expect("a lock that is released");
        assert!(!calls[released..].contains("claude-run/runs"), "{calls}");
    }
}

#[test]
fn process_limit_is_125_and_no_busy_lock() {
    let env = Env::new();
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root && !can_unshare("-r") {
        return;
    }
    // Somebody who has no other process: root can be any user, and a user has none yet in a user namespace.
    let user = format!("--reuid={}", 1_000_000_000 + std::process::id());
    let somebody: &[&str] = if is_root { &["setpriv", &user, "--regid=65534", "--clear-groups"] } else { &["unshare", "-r"] };
    let copy = env.copy_of(binary(), "claude-run");
    for dir in [env.path(""), env.home()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("a mode");
    }
    let mut codes = Vec::new();
    for processes in 1..=6 {
        let mut command = env.command(somebody[0]);
        command.args(&somebody[1..]).arg("prlimit").arg(format!("--nproc={processes}")).arg(&copy);
        command.args(["--kill-after", "0", "--lock-helper", "sh -c 'echo key; exec sleep 600'", "true"]);
        let ended = Running::start(command).end();
        codes.push(ended.code());
    }
    assert!(codes.starts_with(&[125, 125, 125]) && codes.ends_with(&[0]), "{codes:?}");
    assert!(codes.iter().all(|code| [0, 125].contains(code)), "{codes:?}");
}
