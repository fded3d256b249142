//! setup beside others at work, and killed at any moment.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{Env, Running, binary, can_unshare};
use crate::oauth::FRESH;
use crate::setup::{Place, expect_tidy};

#[test]
fn live_run_or_refresh_blocks_the_move() {
    let place = Place::on_one_file_system();
    place.fill();
    let run = place.env.start_fake(&["--lock", "pass-through", "--label", "busy"], "ready; hang");
    run.ready();
    crate::env::wait_for_records(&place.link(), 1);
    let text = place.setup(&["--yes", "--wait", "0"], 1);
    assert!(text.contains("1 run is live there") && text.contains("busy (pid "), "{text}");
    assert!(!place.link().is_symlink());
    // So do one that needs no lock, and one that waits for another lock.
    place.env.log_in(FRESH);
    let other = place.env.start_fake(&["--lock", "refresh"], "ready; hang");
    other.ready();
    crate::env::wait_for_records(&place.link(), 2);
    assert!(place.setup(&["--yes", "--wait", "0"], 1).contains("2 runs are live there"));
    let mut holder = place.env.command("flock");
    let own = place.env.path("own.lock").to_string_lossy().into_owned();
    holder.args([&own, "sh", "-c", "echo held; exec cat"]).stdin(Stdio::piped());
    let holder = Running::start(holder);
    holder.expect_line("held");
    let waiter = place.env.start(["--lock-file", &own, "--lock", "exclusive", "--wait", "1h", "true"]);
    assert!(waiter.message().contains("waiting"));
    crate::env::wait_for_records(&place.link(), 3);
    assert!(place.setup(&["--yes", "--wait", "0"], 1).contains("3 runs are live there"));
    // A lock file that is set counts, too.
    for file in [own.as_str(), "own.lock"] {
        let named = place.setup(&["--yes", "--wait", "0", "--lock-file", file], 1);
        assert!(named.contains("own.lock is in use"), "{file}: {named}");
    }
    // Neither does its own under another name, nor one that is not made yet, keep it from going on.
    let linked = place.env.path("linked");
    symlink(place.link(), &linked).expect("a link");
    for file in [linked.join("session.lock"), place.shared.join("config/session.lock")] {
        let text = place.setup(&["--yes", "--wait", "0", "--lock-file", &file.to_string_lossy()], 1);
        assert!(text.contains("3 runs are live there"), "{text}");
    }
    drop((other, waiter, holder));
    // It waits as long as it may, and then goes on.
    let waiting = Running::start(place.command(&["--yes", "--wait", "1h"]));
    drop(run);
    let ended = waiting.end();
    assert_eq!(ended.code(), 0, "{ended:?}");
    let place = Place::on_one_file_system();
    place.fill();
    let holder = place.env.hold_lock();
    assert!(place.setup(&["--yes", "--wait", "0"], 1).contains("is in use"));
    drop(holder);
    fs::create_dir(place.link().join(".oauth_refresh.lock")).expect("a lock");
    assert!(place.setup(&["--yes"], 1).contains("a refresh is under way"));
    assert!(!place.link().is_symlink() && !place.shared.join("config").exists());
}

#[test]
fn run_that_waits_for_setup_is_not_waited_for() {
    let place = Place::on_one_file_system();
    place.fill();
    let holder = place.env.hold_lock();
    let setup = Running::start(place.command(&["--yes", "--wait", "1h"]));
    assert!(setup.message().contains("waiting for "));
    crate::env::wait_until("it is in the kernel's queue", || place.env.waiters() == 1);
    let run = place.env.start(["--wait", "1h", "--", "sh", "-c", "cd -P ~/.claude && pwd"]);
    assert!(run.message().contains("waiting"));
    let live = place.env.start_fake(&["--lock", "pass-through"], "ready; hang");
    live.ready();
    crate::env::wait_for_records(&place.link(), 2);
    drop(holder);
    crate::env::wait_until("setup is named", || {
        let assert = place.env.claude_run().arg("status").assert();
        String::from_utf8_lossy(&assert.get_output().stdout).contains("; claude-run setup, which moves this config dir")
    });
    drop(live);
    let (setup, run) = (setup.end(), run.end());
    assert_eq!((setup.code(), run.code()), (0, 0), "{setup:?} {run:?}");
    assert_eq!(run.stdout, [place.config_dir().to_string_lossy()], "{run:?}");
    assert!(place.config_dir().join("claude-run/history.jsonl").exists());
}

/// Every system call that can change something, or that what follows rests on.
const CHANGES: [&str; 14] = [
    "?open", // by musl
    "openat",
    "write",
    "rename",
    "renameat2",
    "symlink",
    "mkdir",
    "rmdir",
    "unlink",
    "chmod",
    "fchmodat",
    "flock",
    "getdents64",
    "faccessat2",
];

/// True if strace works on this machine. In CI a test may not be skipped for that.
pub(crate) fn can_trace(env: &Env) -> bool {
    let can = env.command("strace").arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !can {
        assert!(std::env::var_os("CI").is_none(), "strace does not work here, where every test has to run");
        eprintln!("SKIPPED: strace does not work on this machine");
    }
    can
}

/// KILL at the first such call, at the second, … until it ends by itself: each time the old state stands or the new one, and the
/// next setup gets there, though an agent has been at work since.
#[test]
fn kill_at_any_system_call_loses_nothing() {
    let place = Place::on_one_file_system();
    if !can_trace(&place.env) {
        return;
    }
    let mut kills = 0;
    for call in CHANGES {
        for number in 1.. {
            assert!(number < 1_000, "{call} never ends");
            let place = Place::on_one_file_system();
            place.fill();
            let mut before = place.content();
            let mut strace = place.env.command("strace");
            strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={call}:signal=KILL:when={number}"), "-e"]);
            strace.arg(format!("trace={call}")).arg(binary()).args(["setup", "--yes", "--shared-dir"]).arg(&place.shared);
            let output = strace.output().expect("strace");
            let about = || format!("{call} {number}: {output:?}");
            assert_eq!(place.content(), before, "after {}", about());
            let json = fs::read_to_string(place.env.home().join(".claude.json"));
            assert_eq!(json.ok().as_deref(), Some(r#"{"mcpServers":{}}"#), "after {}", about());
            let was_whole = output.status.success();
            fs::write(place.link().join(".credentials.json"), format!("{call} {number}")).expect("a refreshed token");
            before = place.content();
            kills += u32::from(!was_whole);
            place.setup(&["--yes"], 0);
            assert_eq!(place.content(), before, "in the end, {}", about());
            assert_eq!(fs::read_link(place.link()).expect("a link"), place.config_dir(), "{}", about());
            assert!(fs::symlink_metadata(place.config_dir()).is_ok_and(|found| found.is_dir()), "{}", about());
            assert!(place.env.home().join(".claude.json").is_symlink(), "{}", about());
            expect_tidy(&place);
            if was_whole {
                break;
            }
        }
    }
    assert!(kills > 40, "{kills} kills");
}

#[test]
fn second_setup_on_a_shared_dir_ends_at_once() {
    let place = Place::on_one_file_system();
    place.fill();
    fs::create_dir(&place.shared).expect("a directory");
    let mut first = place.env.command("flock");
    first.arg(&place.shared).args(["sh", "-c", "echo held; exec cat"]).stdin(Stdio::piped());
    let first = Running::start(first);
    first.expect_line("held");
    assert!(place.setup(&["--yes", "--wait", "none"], 1).contains("another setup is at work in "));
    drop(first);
    // Of many at once, one moves its content there, and all others keep theirs.
    let homes: Vec<_> = (0..8).map(|number| place.env.path(&format!("home{number}"))).collect();
    let start = |home: &PathBuf| {
        fs::create_dir_all(home.join(".claude")).expect("a home");
        fs::write(home.join(".claude/own"), home.to_string_lossy().as_ref()).expect("a file");
        let mut command = place.command(&["--yes"]);
        command.env("HOME", home);
        Running::start(command)
    };
    let setups: Vec<_> = homes.iter().map(start).collect();
    let codes: Vec<_> = setups.into_iter().map(|setup| setup.end().code()).collect();
    assert!(codes.iter().filter(|code| **code == 0).count() == 1, "{codes:?}");
    for home in homes {
        let own = fs::read_to_string(home.join(".claude/own")).expect("its own file");
        assert_eq!(own, home.to_string_lossy());
    }
}

#[test]
fn plan_is_made_again_once_nobody_else_is_at_work() {
    let place = Place::on_one_file_system();
    place.fill();
    let holder = place.env.hold_lock();
    let copy = place.env.path(".agents.env.abc123.claude-run-copy");
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::create(&copy).and_then(|copy| copy.set_modified(hour_ago)).expect("a copy");
    let waiting = Running::start(place.command(&["--yes", "--wait", "1h", "--env-file", "agents.env"]));
    assert!(waiting.message().contains("waiting for "));
    let other = place.env.path("other");
    fs::create_dir_all(other.join(".claude/own")).expect("a home");
    place.setup(&["--yes", "--home", &other.to_string_lossy()], 0);
    drop(holder);
    let ended = waiting.end();
    assert!(ended.code() == 1 && ended.stdout.join("").contains("both have content"), "{ended:?}");
    assert!(place.link().join("twin").exists() && place.config_dir().join("own").is_dir());
    assert!(copy.exists(), "nothing was changed");
    // What is done needs nothing that another setup has.
    let mut first = place.env.command("flock");
    first.arg(&place.shared).args(["sh", "-c", "echo held; exec cat"]).stdin(Stdio::piped());
    let first = Running::start(first);
    first.expect_line("held");
    assert!(place.setup(&["--home", &other.to_string_lossy()], 0).contains("nothing to do"));
}

#[test]
fn killed_setup_goes_on_after_an_agent() {
    let place = Place::on_one_file_system();
    place.fill();
    fs::create_dir(&place.shared).expect("a directory");
    symlink(place.config_dir(), place.config_dir()).expect("what a move leaves that is killed before its rename");
    fs::write(place.link().join(".credentials.json"), "newer").expect("a refreshed token");
    let mut command = place.command(&["--yes"]);
    command.env("CLAUDE_CONFIG_DIR", place.config_dir()); // as in the containers that follow
    assert_eq!(Running::start(command).end().code(), 0);
    assert_eq!(fs::read_to_string(place.config_dir().join(".credentials.json")).expect("a file"), "newer");
    // The same for ~/.claude.json, which is moved last.
    let json = place.config_dir().join(".claude.json");
    fs::remove_file(place.json()).and_then(|()| fs::remove_file(&json)).expect("files");
    fs::write(place.json(), "newer").and_then(|()| symlink(&json, &json)).expect("files");
    place.setup(&[], 0);
    assert!(place.json().is_symlink());
    assert_eq!(fs::read_to_string(json).expect("a file"), "newer");
    // And where nothing is left to move.
    let place = Place::on_one_file_system();
    fs::create_dir(&place.shared).expect("a directory");
    symlink(place.config_dir(), place.config_dir()).expect("a link");
    place.setup(&[], 0);
    assert!(place.config_dir().is_dir() && place.link().join(".").is_dir());
}

#[test]
fn setup_keeps_its_lock_to_the_end() {
    let place = Place::on_one_file_system();
    if !can_trace(&place.env) {
        return;
    }
    place.fill();
    let mut strace = place.env.command("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=renameat2:delay_enter=3000000:when=1", "-e", "trace=renameat2"]);
    strace.arg(binary()).args(["setup", "--yes", "--shared-dir"]).arg(&place.shared);
    let first = Running::start(strace);
    crate::env::wait_until("it is at its move", || place.config_dir().is_symlink());
    let other = place.env.path("other").to_string_lossy().into_owned();
    fs::create_dir(&other).expect("a home");
    assert!(place.setup(&["--yes", "--home", &other], 1).contains("another setup is at work in "));
    assert_eq!(first.end().code(), 0);
}

#[test]
fn term_ends_the_wait_and_nothing_is_moved() {
    let place = Place::on_one_file_system();
    place.fill();
    let holder = place.env.hold_lock();
    let waiting = Running::start(place.command(&["--yes", "--wait", "none"]));
    assert!(waiting.message().contains("waiting for "));
    waiting.signal(Signal::SIGTERM);
    assert_eq!(waiting.end().code(), 143);
    drop(holder);
    let run = place.env.start_fake(&["--lock", "pass-through"], "ready; hang");
    run.ready();
    crate::env::wait_for_records(&place.link(), 1);
    let waiting = Running::start(place.command(&["--yes", "--wait", "none"]));
    crate::env::wait_until("it has the lock", || place.env.is_locked());
    waiting.signal(Signal::SIGTERM);
    assert_eq!(waiting.end().code(), 143);
    assert!(!place.link().is_symlink() && !place.shared.exists());
    drop(run);
    // So does it as PID 1 of a container, which has no default action.
    if !can_unshare("-rpf") {
        return;
    }
    let _holder = place.env.hold_lock();
    let mut unshare = place.env.command("unshare");
    unshare.args(["-rpf"]).arg(binary()).args(["setup", "--yes", "--wait", "none", "--shared-dir"]).arg(&place.shared);
    let waiting = Running::start(unshare);
    assert!(waiting.message().contains("waiting for "));
    let parent = waiting.pid();
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).expect("a process");
    kill(children.trim().parse().map(Pid::from_raw).expect("a child"), Signal::SIGTERM).expect("a signal");
    assert_eq!(waiting.end().code(), 143);
}
