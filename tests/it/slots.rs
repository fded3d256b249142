//! Slots: at most N runs at once, first come, first served, whatever becomes of them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::Value;

use crate::env::{Env, Running, binary, can_unshare, is_alive, needs_root, wait_for_records, wait_until};
use crate::nested::record_elsewhere;
use crate::oauth::EXPIRED;

/// Directory of the slots.
fn slots_dir(env: &Env) -> PathBuf {
    env.home().join(".claude/claude-run/slots")
}

/// A run that prints `in`, and then its stdin, to whose end it stays.
fn start(env: &Env, options: &[&str]) -> Running {
    let mut command = env.command(binary());
    command.args(options).args(["--", "sh", "-c", "echo in; exec cat"]).stdin(Stdio::piped());
    Running::start(command)
}

/// The same, once it has its slot.
fn hold(env: &Env, options: &[&str]) -> Running {
    let run = start(env, options);
    run.expect_line("in");
    run
}

/// Sets the bound for all.
fn set(env: &Env, slots: &str) {
    env.claude_run().args(["slots", slots]).assert().code(0);
}

const ONE: [&str; 4] = ["--lock", "pass-through", "--slots", "1"];
const TWO: [&str; 4] = ["--lock", "pass-through", "--slots", "2"];

/// Pids of those that the kernel has in the queues for slots.
fn queued(env: &Env) -> BTreeSet<String> {
    let inode = |entry: fs::DirEntry| format!(":{}", entry.metadata().map_or(0, |found| found.ino()));
    let inodes: Vec<_> = fs::read_dir(slots_dir(env)).into_iter().flatten().flatten().map(inode).collect();
    let locks = fs::read_to_string("/proc/locks").expect("/proc/locks");
    let waiting = locks.lines().filter(|line| line.contains("->")).filter_map(|line| {
        let [_, _, _, _, _, pid, file, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else { return None };
        inodes.iter().any(|inode| file.ends_with(inode)).then(|| pid.to_owned())
    });
    waiting.collect()
}

/// A run that waits for a slot behind `before` others.
fn wait_in_line(env: &Env, options: &[&str], before: usize) -> Running {
    let run = start(env, options);
    // In the kernel's queue, and then in its record.
    let is_in_line = || queued(env).len() == before + 1 && length(&json(env, &["slots"])["waiting"]) == before + 1;
    wait_until("it is in the queue", is_in_line);
    run
}

fn json(env: &Env, words: &[&str]) -> Value {
    let output = env.command(binary()).args(words).arg("--json").output().expect("started");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn length(value: &Value) -> usize {
    value.as_array().map_or(0, Vec::len)
}

#[test]
fn runs_beyond_the_bound_wait_in_their_order() {
    let env = Env::new();
    let mut running = vec![hold(&env, &TWO), hold(&env, &TWO)];
    let mut waiting: Vec<_> = (0..6).map(|before| wait_in_line(&env, &TWO, before)).collect();
    for turn in 0..6 {
        // Whichever of the two ends, the first of the queue is next, and nobody else.
        let mut ended = running.remove(turn % 2);
        ended.close_stdin();
        assert_eq!(ended.end().code(), 0);
        let next = waiting.remove(0);
        next.expect_line("in");
        running.push(next);
        assert_eq!(length(&json(&env, &["slots"])["in_use"]), 2);
        wait_until("the others wait on", || queued(&env).len() == 5 - turn);
    }
    let names = fs::read_dir(slots_dir(&env)).expect("a dir").map(|entry| entry.expect("an entry").file_name());
    assert_eq!(names.collect::<BTreeSet<_>>(), ["1", "2", "queue"].map(OsString::from).into(), "no ticket is left");
}

#[test]
fn every_mode_counts_and_exclusive_is_still_alone() {
    let env = Env::new();
    env.log_in(EXPIRED);
    let exclusive = hold(&env, &["--lock", "exclusive", "--slots", "2"]);
    // The slot first, then the lock: a due refresh and a waiter for its slot end in no circle.
    let due = start(&env, &["--lock", "refresh", "--slots", "2"]);
    wait_until("it waits for the lock", || env.waiters() == 1);
    let mut third = wait_in_line(&env, &TWO, 0);
    let seen = json(&env, &["status"]);
    assert_eq!((length(&seen["slots"]["in_use"]), length(&seen["slots"]["waiting"])), (2, 1), "{seen}");
    assert_eq!(
        (&seen["slots"]["waiting"][0]["waits_for"], &seen["holders"][0]["record"]["hold"]),
        (&"slot".into(), &"own".into())
    );
    drop(exclusive);
    due.expect_line("in");
    third.expect_line("in");
    third.close_stdin();
    assert_eq!(third.end().code(), 0);
}

#[test]
fn killed_runs_and_waiters_free_their_places() {
    let env = Env::new();
    let holder = env.start([
        "--lock",
        "pass-through",
        "--slots",
        "1",
        "--",
        "sh",
        "-c",
        "trap '' TERM; echo $$; cat /dev/zero | sleep 60",
    ]);
    let child: i32 = holder.line().parse().expect("a pid");
    let first = wait_in_line(&env, &ONE, 0);
    let second = wait_in_line(&env, &ONE, 1);
    first.signal(Signal::SIGKILL);
    assert_eq!(first.end().code(), 137);
    wait_until("the second is the first", || queued(&env).len() == 1);
    // While what it started lives, the slot is not free.
    holder.signal(Signal::SIGKILL);
    assert_eq!(holder.end().code(), 137);
    env.claude_run().args(ONE).args(["--wait", "0", "true"]).assert().code(75);
    assert!(is_alive(child));
    for pid in env.processes().into_iter().filter(|&pid| pid != second.pid().as_raw()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // what the shell has started ends with it, or before
    }
    second.expect_line("in");
}

#[test]
fn daemon_with_the_descriptor_keeps_no_slot() {
    let env = Env::new();
    let keep = ["--leftovers", "keep", "--", "sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"];
    let ended = env.start(ONE.into_iter().chain(keep)).end();
    let daemon: i32 = ended.stdout[0].parse().expect("a pid");
    let kept = || {
        fs::read_dir(format!("/proc/{daemon}/fd")).is_ok_and(|all| {
            all.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|file| file.starts_with(slots_dir(&env))))
        })
    };
    assert!(is_alive(daemon) && kept());
    env.claude_run().args(ONE).args(["--wait", "0", "true"]).assert().code(0);
    kill(Pid::from_raw(daemon), Signal::SIGKILL).expect("a signal");
}

#[test]
fn nested_run_needs_no_second_slot() {
    let env = Env::new();
    let us = binary().display().to_string();
    let nested =
        [&us, "--wait", "0", "--slots", "1", "--", &us, "--wait", "0", "--slots", "1", "--", "sh", "-c", "echo in; exit 6"];
    env.claude_run().args(ONE).arg("--").args(nested).assert().code(6).stdout("in\n");
    // One that is below nobody who has a slot gets through by no claim.
    let two = [&us, "--lock", "pass-through", "--slots", "2", "--", &us, "slots", "--json"];
    let used = env.claude_run().args(TWO).arg("--").args(two).assert().code(0);
    let used: Value = serde_json::from_slice(&used.get_output().stdout).expect("JSON");
    assert_eq!(length(&used["in_use"]), 1, "though another is free: {used}");
    // Nor does the child of a run that was killed, which has its slot.
    let last = format!("trap '' TERM; echo in; read line; exec '{us}' --lock pass-through --slots 1 --wait 0 -v -- echo last");
    let mut outer = env.command(binary());
    outer.args(ONE).args(["--", "sh", "-c", &last]).stdin(Stdio::piped());
    let mut outer = Running::start(outer);
    outer.expect_line("in");
    outer.signal(Signal::SIGKILL);
    outer.close_stdin();
    outer.expect_line("last");
    let ended = outer.end();
    assert!(ended.stderr_text().contains("starting without a slot: a run above this one has one"), "{ended:?}");
    let holder = env.start(ONE.into_iter().chain(["--", "sh", "-c", "echo $CLAUDE_RUN_SLOT; exec sleep 60"]));
    let claim = holder.line();
    let file = fs::metadata(slots_dir(&env).join("1")).expect("a slot");
    assert!(claim.starts_with(&format!("{}:{}:{}-", file.dev(), file.ino(), holder.pid())), "{claim}");
    for claim in [&*claim, "x", "1:2:3-4"] {
        env.claude_run().env("CLAUDE_RUN_SLOT", claim).args(ONE).args(["--wait", "0", "true"]).assert().code(75);
    }
}

#[test]
fn nested_run_with_a_scrubbed_environment_needs_no_slot() {
    let env = Env::new();
    let us = binary().display().to_string();
    // As below sudo, and below a claude, which passes none of its descriptors to its tools.
    let closing = r#"for fd in 3 4 5 6 7 8 9; do eval "exec $fd>&-"; done; exec env -i HOME="$HOME" "$@""#;
    let nested = [&us, "--wait", "0", "--lock", "pass-through", "--slots", "1", "--", "echo", "in"];
    env.claude_run().args(ONE).args(["--", "sh", "-c", closing, "sh"]).args(nested).assert().code(0).stdout("in\n");
}

#[test]
fn record_that_comes_late_proves_that_none_is_needed() {
    for variable in ["CLAUDE_RUN_SLOT", "CLAUDE_RUN_HELD"] {
        let env = Env::new();
        let (_slot, _lock) = (hold(&env, &ONE), env.hold_lock());
        let slot = fs::metadata(slots_dir(&env).join("1")).expect("a slot");
        let lock = fs::metadata(env.lock_file()).expect("a lock file");
        let (file, has_slot) = if variable == "CLAUDE_RUN_SLOT" { (&slot, Some(&slot)) } else { (&lock, None) };
        let mut waiter = env.command(binary());
        waiter.env(variable, format!("{}:{}:7-7", file.dev(), file.ino()));
        waiter.args(ONE).args(["--", "sh", "-c", "echo in"]);
        let waiter = Running::start(waiter);
        assert!(waiter.message().contains("waiting for a slot"));
        let _record = record_elsewhere(&env, &lock, has_slot);
        waiter.expect_line("in");
    }
}

#[test]
fn busy_slots_are_75_and_named() {
    let env = Env::new();
    env.claude_run().args(TWO).arg("true").assert().code(0).stderr("");
    for name in ["2", "3", "01"] {
        fs::write(slots_dir(&env).join(name), "").expect("two free slots, and a file that is none");
    }
    let first = hold(&env, &TWO);
    let found = fs::metadata(slots_dir(&env).join("1")).expect("a slot");
    let seen = json(&env, &["slots"]);
    assert_eq!(seen["in_use"][0]["run"]["slot"]["inode"], found.ino(), "the first of them");
    assert_eq!(length(&seen["in_use"]), 1, "{seen}");
    drop(first);
    fs::remove_file(slots_dir(&env).join("3")).expect("a slot");
    let _holder = hold(&env, &ONE);
    fs::write(slots_dir(&env).join("2"), "").expect("a slot of a higher bound, which is free");
    let ended = env.start(ONE.into_iter().chain(["--wait", "0", "touch", "started"])).end();
    assert_eq!(ended.code(), 75);
    assert!(
        ended.stderr_text().contains("--wait is 0: 1 of 1 slots in use; see claude-run status, or raise --wait"),
        "{ended:?}"
    );
    let started = Instant::now();
    let ended = env.start(ONE.into_iter().chain(["--wait", "0.3", "-E", "9", "touch", "started"])).end();
    assert!(ended.code() == 9 && started.elapsed() >= Duration::from_millis(300), "{ended:?}");
    assert!(ended.stderr_text().contains("gave up after 300ms: 1 of 1 slots in use"), "{ended:?}");
    let ended = env.start(ONE.into_iter().chain(["--log-format", "json", "--wait", "2", "true"])).end();
    let event = |line: &String| serde_json::from_str::<Value>(line).expect("JSON")["event"].clone();
    assert_eq!(ended.stderr.iter().map(event).collect::<Vec<_>>(), ["slot.waiting", "slot.timeout"], "{ended:?}");
    let waiter = wait_in_line(&env, &ONE, 0);
    assert!(waiter.message().contains("waiting for a slot (at most 10m), 1 of 1 slots in use"));
    waiter.signal(Signal::SIGTERM);
    assert_eq!(waiter.end().code(), 143);
    assert!(!env.path("started").exists());
    let history = fs::read_to_string(env.config_dir().join("claude-run/history.jsonl")).expect("a history");
    let ended: Value = serde_json::from_str(history.lines().last().expect("a line")).expect("JSON");
    assert!(ended["slot_wait_ms"].is_u64(), "a wait that a signal has ended is a wait for a slot: {ended}");
    let report = json(&env, &["report"]);
    assert_eq!(report["outcomes"]["slot-busy"], 3, "{report}");
    assert!(report["slot_waited_ms"].as_u64().is_some_and(|waited| waited >= 300), "{report}");
}

#[test]
fn burst_without_a_wait_gets_all_free_slots() {
    let env = Env::new();
    // Somebody may just be at the queue, on the way to a slot of their own.
    let options = ["--lock", "pass-through", "--slots", "4", "--wait", "0"];
    let runs: Vec<_> = (0..4).map(|_| start(&env, &options)).collect();
    for run in &runs {
        run.expect_line("in");
    }
}

#[test]
fn change_of_the_bound_counts_for_those_who_wait() {
    let env = Env::new();
    set(&env, "1");
    let options = ["--lock", "pass-through"];
    let mut first = hold(&env, &options);
    let waiting: Vec<_> = (0..6).map(|before| wait_in_line(&env, &options, before)).collect();
    set(&env, "3");
    waiting[0].expect_line("in");
    waiting[1].expect_line("in");
    wait_until("four wait", || queued(&env).len() == 4);
    set(&env, "4");
    waiting[2].expect_line("in");
    wait_until("three wait", || queued(&env).len() == 3);
    // Fewer than before: three of the four that run have to end, and one more.
    set(&env, "1");
    first.close_stdin();
    first.end();
    waiting[1..3].iter().for_each(|run| run.signal(Signal::SIGTERM));
    wait_until("one runs", || length(&json(&env, &["slots"])["in_use"]) == 1);
    // The first of them sleeps in the kernel only after it has counted again.
    wait_until("three wait", || queued(&env).len() == 3);
    assert_eq!(length(&json(&env, &["slots"])["in_use"]), 1, "the one that runs is all that may");
    set(&env, "none");
    waiting[3..].iter().for_each(|run| run.expect_line("in"));
}

#[test]
fn wait_bounds_slot_and_lock_together() {
    let env = Env::new();
    let _lock = env.hold_lock();
    let mut slot = hold(&env, &ONE);
    let run = env.start(["--slots", "1", "--wait", "10", "true"]);
    wait_until("it is in the queue", || queued(&env).len() == 1);
    std::thread::sleep(Duration::from_secs(4)); // the part of its wait that the slot takes
    slot.close_stdin();
    assert_eq!(run.end().code(), 75);
    let history = fs::read_to_string(env.home().join(".claude/claude-run/history.jsonl")).expect("a history");
    // That of the run with the slot may come before it or after.
    let run = history.lines().find(|line| line.contains("lock-busy")).expect("its line");
    let run: Value = serde_json::from_str(run).expect("JSON");
    let [slot, lock] = ["slot_wait_ms", "wait_ms"].map(|key| run[key].as_u64().unwrap_or_default());
    assert!(slot >= 3_900 && lock < 9_500 && slot + lock >= 9_900, "{run}");
}

#[test]
fn lock_that_the_caller_holds_needs_no_slot() {
    let env = Env::new();
    let _holder = hold(&env, &ONE);
    // Its caller would keep the lock from those who have a slot, while it waits for one.
    let mut block = env.command("bash");
    block.args(["-c", r#"( flock 9; "$0" "${@:2}" ) 9>"$1""#]).arg(binary()).arg(env.make_lock_file());
    block.args(["--slots", "1", "--wait", "5", "echo", "in"]);
    let ended = Running::start(block).end();
    assert_eq!((ended.code(), &ended.stdout[..]), (0, &["in".to_owned()][..]), "{ended:?}");
}

#[test]
fn waiter_without_room_for_a_ticket_waits_all_the_same() {
    if !can_unshare("-rm") {
        return;
    }
    let env = Env::new();
    let script = r#"mkdir small && mount -t tmpfs -o mode=700,nr_inodes=30 tmpfs small && export CLAUDE_CONFIG_DIR=$PWD/small
        mkfifo go; "$0" --lock pass-through --slots 1 -- sh -c 'echo first; exec cat go' &
        until [ -s small/claude-run/history.jsonl ] || "$0" status --json | grep -q '"child":[0-9]'; do sleep 0.1; done
        n=0; while : >small/fill.$n; do n=$((n + 1)); done 2>/dev/null
        "$0" --lock pass-through --slots 1 --wait 20 -- echo second & waiter=$!
        until grep -q -- "->.*FLOCK.* $waiter " /proc/locks; do sleep 0.1; done
        echo >go; wait $waiter; echo "code $?""#;
    let mut unshare = env.command("unshare");
    unshare.args(["-rm", "timeout", "60", "bash", "-c", script]).arg(binary());
    let ended = Running::start(unshare).end();
    assert!(ended.stderr_text().contains("waiting without a place in the queue"), "{ended:?}");
    assert_eq!(ended.stdout, ["first", "", "second", "code 0"], "{ended:?}");
}

/// What `status` prints, if there is trouble.
fn trouble(env: &Env) -> String {
    let status = env.claude_run().arg("status").assert().code(1);
    String::from_utf8_lossy(&status.get_output().stdout).into_owned()
}

#[test]
fn slot_that_is_gone_is_trouble() {
    let release = "for fd in /proc/$$/fd/*; do case $(readlink $fd) in */slots/1) flock -u ${fd##*/};; esac; done";
    let (remove, remove_all) = ("rm $HOME/.claude/claude-run/slots/1", "rm -r $HOME/.claude/claude-run/slots");
    for (script, how) in [(release, "released"), (remove, "removed or replaced"), (remove_all, "removed or replaced")] {
        let env = Env::new();
        let mut command = env.command(binary());
        command.args(ONE).args(["--", "sh", "-c", &format!("{script}; echo gone; exec cat")]).stdin(Stdio::piped());
        let mut run = Running::start(command);
        run.expect_line("gone");
        let expected = format!("slot 1 was {how} under sh (pid ");
        assert!(trouble(&env).contains(&expected), "{script}");
        let other = hold(&env, &["--lock", "pass-through", "--slots", "1", "--label", "other"]);
        wait_for_records(&env.config_dir(), 2);
        assert!(trouble(&env).contains(&expected), "{script}");
        let seen = json(&env, &["slots"]);
        assert_eq!((length(&seen["in_use"]), &seen["in_use"][0]["run"]["label"]), (1, &"other".into()), "{seen}");
        run.close_stdin();
        assert_eq!(run.end().code(), 0);
        env.claude_run().arg("status").assert().code(0);
        drop(other);
    }
}

#[test]
fn killed_and_stopped_holders_of_a_slot_are_trouble() {
    let env = Env::new();
    let mut command = env.command(binary());
    command.args(ONE).args(["--label", "bob", "--", "sh", "-c", "trap '' TERM; echo in; exec sleep 60"]);
    let run = Running::start(command);
    run.expect_line("in");
    wait_for_records(&env.config_dir(), 1);
    let child = json(&env, &["slots"])["in_use"][0]["run"]["child"].as_i64().expect("a pid");
    run.signal(Signal::SIGSTOP);
    wait_until("it is stopped", || trouble(&env).contains("slot 1 is held by a stopped process; kill -CONT "));
    run.signal(Signal::SIGCONT);
    wait_until("it goes on", || env.claude_run().arg("status").output().expect("started").status.success());
    run.signal(Signal::SIGKILL);
    let _ended = run.end();
    for _ in 0..2 {
        let trouble = trouble(&env);
        assert!(trouble.contains("slot 1 is held by what bob (pid ") && trouble.contains(&child.to_string()), "{trouble}");
        // A waiter that looks for a holder leaves its record.
        env.claude_run().args(["--slots", "1", "--wait", "0", "true"]).assert().code(75);
    }
    let seen = json(&env, &["slots"]);
    assert_eq!((&seen["in_use"][0]["run"]["label"], &seen["in_use"][0]["orphaned"]), (&"bob".into(), &true.into()), "{seen}");
    env.claude_run().arg("slots").assert().code(1);
    env.claude_run().args(["slots", "1"]).assert().code(0); // it is set
    kill(Pid::from_raw(i32::try_from(child).expect("a pid")), Signal::SIGKILL).expect("it lives");
    wait_until("all is well", || env.claude_run().arg("status").output().expect("started").status.success());
}

#[test]
fn replaced_slot_files_are_noticed() {
    let env = Env::new();
    let mut holder = hold(&env, &ONE);
    let waiter = wait_in_line(&env, &ONE, 0);
    let second = wait_in_line(&env, &ONE, 1);
    fs::remove_dir_all(slots_dir(&env)).expect("removed");
    holder.close_stdin();
    waiter.expect_line("in");
    assert!(holder.end().stderr_text().contains("the slot of this run was not kept: its file was removed or replaced"));
    let found = fs::metadata(slots_dir(&env).join("1")).expect("a new file");
    let seen = json(&env, &["slots"]);
    assert_eq!(seen["in_use"][0]["run"]["slot"]["inode"], found.ino(), "{seen}");
    assert_eq!(length(&seen["in_use"]), 1, "{seen}");
    drop(waiter);
    second.expect_line("in");
    // A ticket of the same name in a new directory is another run's.
    let waiter = wait_in_line(&env, &ONE, 0);
    fs::remove_dir_all(slots_dir(&env)).and_then(|()| fs::create_dir(slots_dir(&env))).expect("a new directory");
    fs::write(slots_dir(&env).join("t1"), "").expect("a ticket");
    waiter.signal(Signal::SIGTERM);
    assert_eq!(waiter.end().code(), 143);
    assert!(slots_dir(&env).join("t1").exists());
}

#[test]
fn free_slot_is_for_those_who_wait_already() {
    let env = Env::new();
    fs::create_dir_all(slots_dir(&env)).expect("a dir");
    let [first, second] = ["t1", "t2"].map(|name| {
        let ticket = fs::File::create(slots_dir(&env).join(name)).expect("a ticket");
        fs4::FileExt::lock(&ticket).expect("a lock");
        ticket
    });
    let run = start(&env, &ONE);
    wait_until("it waits behind the second", || queued(&env).len() == 1);
    drop(second);
    wait_until("it waits behind the first", || !slots_dir(&env).join("t2").exists() && queued(&env).len() == 1);
    drop(first);
    run.expect_line("in");
}

/// Where the file is replaced meanwhile, for the new one.
#[test]
fn run_that_finds_the_queue_busy_waits_for_it() {
    let env = Env::new();
    set(&env, "1");
    let options = ["--lock", "pass-through"];
    let _holder = hold(&env, &options);
    let path = slots_dir(&env).join("queue");
    let lock = || {
        let file = fs::File::create(&path).expect("a file");
        fs4::FileExt::lock(&file).expect("a lock");
        file
    };
    let old = lock();
    let run = start(&env, &options);
    wait_until("it is in the queue", || queued(&env).len() == 1);
    fs::remove_file(&path).expect("removed");
    let new = lock();
    drop(old);
    wait_until("it is in the queue of the other", || queued(&env).len() == 1);
    assert!(run.message().contains("waiting for a slot"));
    drop(new);
    wait_until("it waits for the slot", || queued(&env).len() == 1);
    set(&env, "2");
    assert!(run.message().contains("got one of 2 slots after"));
    run.expect_line("in");
}

#[test]
fn unusable_slots_are_125_and_named() {
    let env = Env::new();
    let store = env.home().join(".claude/claude-run");
    let fails = |what: &str| {
        let ended = env.start(ONE.into_iter().chain(["touch", "started"])).end();
        let said = ended.stderr_text();
        assert!(ended.code() == 125 && said.contains(what) && said.contains("--slots none"), "{what}: {ended:?}");
    };
    fs::create_dir_all(&store).expect("a directory");
    fs::write(store.join("slots"), "").expect("a file");
    fails("slots/queue");
    fs::remove_file(store.join("slots")).expect("removed");
    // No link is followed: others can write there.
    fs::create_dir(env.path("elsewhere")).expect("a directory");
    std::os::unix::fs::symlink(env.path("elsewhere"), store.join("slots")).expect("a link");
    fails("slots/queue");
    assert_eq!(fs::read_dir(env.path("elsewhere")).expect("a directory").count(), 0);
    fs::remove_file(store.join("slots")).expect("removed");
    fs::create_dir(store.join("slots")).expect("a directory");
    mkfifo(&store.join("slots/1"), Mode::S_IRWXU).expect("a FIFO");
    fails("slots/1 is no regular file");
    assert!(!env.path("started").exists());
    env.claude_run().args(["--slots", "none", "true"]).assert().code(0);
}

#[test]
fn slots_of_another_user_are_refused_by_name() {
    if !needs_root("only root can be another user") {
        return;
    }
    let env = Env::new();
    env.claude_run().args(ONE).arg("true").assert().code(0);
    for dir in [env.path(""), env.home(), env.home().join(".claude")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let copy = env.path("claude-run"); // where any user can reach it
    assert!(env.command("cp").arg(binary()).arg(&copy).status().expect("cp").success());
    let mut other = env.command("setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy).args(ONE).arg("true");
    let ended = Running::start(other).end();
    assert!(ended.code() == 125 && ended.stderr_text().contains("claude-run/slots/queue"), "{ended:?}");
}

#[test]
fn status_tells_waiters_for_a_slot_from_those_for_the_lock() {
    let env = Env::new();
    set(&env, "1");
    let holder = hold(&env, &["--lock", "pass-through"]);
    let waiter = wait_in_line(&env, &["--label", "waiter"], 0);
    let text = env.claude_run().arg("status").output().expect("started").stdout;
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("waiting        nobody; 1 for a slot: 1 of 1 taken\n"), "{text}");
    assert_eq!(text.matches("1. waiter (pid ").count(), 1, "{text}");
    let seen = json(&env, &["status"]);
    assert_eq!((length(&seen["waiting"]), length(&seen["queue"])), (0, 0), "{seen}");
    assert_eq!(
        (&seen["slots"]["waiting"][0]["label"], &seen["slots"]["waiting"][0]["waits_for"]),
        (&"waiter".into(), &"slot".into())
    );
    drop((holder, waiter));
}

#[test]
fn doctor_knows_a_bound_that_is_exceeded() {
    let env = Env::new();
    let finding = |verdict: &str| -> String {
        let seen = json(&env, &["doctor"]);
        let all = seen["checks"].as_array().expect("findings");
        let found = all.iter().find(|found| found["check"] == "slots" && found["verdict"] == verdict);
        found.unwrap_or_else(|| panic!("{seen}"))["what"].to_string()
    };
    env.claude_run().args(["slots", "1"]).assert().code(0);
    let first = hold(&env, &["--lock", "pass-through"]);
    wait_for_records(&env.config_dir(), 1);
    assert!(finding("pass").contains("1 at most; 1 in use"));
    let _unbound = hold(&env, &["--lock", "pass-through", "--slots", "none"]);
    wait_for_records(&env.config_dir(), 2);
    assert!(finding("warning").contains("2 runs at once, and the bound is 1"));
    let output = env.claude_run().arg("slots").output().expect("started");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("\n1 in use\n") && shown.contains("\nnot counted: 1 live run without a slot, "), "{shown}");
    // What a killed claude-run leaves behind has its slot, and no record.
    let mut orphan = env.command("flock");
    orphan.arg(slots_dir(&env).join("7")).args(["sh", "-c", "echo held; exec cat"]).stdin(Stdio::piped());
    let orphan = Running::start(orphan);
    orphan.expect_line("held");
    assert!(finding("warning").contains("slot 7 is held by flock (pid "));
    drop((first, orphan));
    let mut queue = env.command("flock");
    queue.arg(slots_dir(&env).join("queue")).args(["sh", "-c", "echo held; exec cat"]).stdin(Stdio::piped());
    let queue = Running::start(queue);
    queue.expect_line("held");
    assert!(finding("failure").contains("the queue for the slots is held by flock (pid "));
    let status = env.claude_run().arg("status").assert().code(1);
    assert!(String::from_utf8_lossy(&status.get_output().stdout).contains("no run with a bound starts"));
    let refused = env.claude_run().args(["--lock", "pass-through", "--wait", "0", "true"]).assert().code(75);
    let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(said.contains("and the queue for them is held by flock (pid "), "{said}");
    drop(queue);
    fs::create_dir(slots_dir(&env).join("3")).expect("a directory");
    let status = env.claude_run().arg("status").assert().code(1);
    assert!(String::from_utf8_lossy(&status.get_output().stdout).contains("a run with a bound ends with 125"));
    assert!(finding("failure").contains("claude-run/slots/3 cannot be used: it is no regular file"));
    fs::remove_dir_all(slots_dir(&env)).expect("removed");
    fs::write(slots_dir(&env), "").expect("a file");
    assert!(finding("failure").contains("claude-run/slots cannot be used"));
}

#[test]
fn slots_that_no_run_can_have_are_not_called_free() {
    let env = Env::new();
    fs::create_dir_all(slots_dir(&env).parent().expect("a parent")).expect("directories");
    let bound = |words: &[&str], code| env.claude_run().args(["slots"]).args(words).assert().code(code);
    for make in [|path: PathBuf| fs::write(path, ""), |path| std::os::unix::fs::symlink("elsewhere", path)] {
        bound(&["1"], 0);
        make(slots_dir(&env)).expect("something else");
        env.claude_run().arg("true").assert().code(125);
        let asked = bound(&[], 1);
        let text = String::from_utf8_lossy(&asked.get_output().stdout).into_owned();
        assert!(text.contains("claude-run/slots cannot be used: ") && !text.contains("in use"), "{text}");
        let asked = bound(&["--json"], 1);
        let json: Value = serde_json::from_slice(&asked.get_output().stdout).expect("JSON");
        let trouble = json["trouble"][0].as_str().expect("trouble").to_owned();
        assert!(text.lines().any(|line| line == trouble), "{trouble}");
        let status = env.claude_run().arg("status").assert().code(1);
        assert!(String::from_utf8_lossy(&status.get_output().stdout).contains(&trouble), "as status says it: {trouble}");
        // Without a bound, runs start.
        bound(&["none"], 0);
        env.claude_run().arg("true").assert().code(0);
        fs::remove_file(slots_dir(&env)).expect("removed");
    }
}

#[test]
fn bound_is_shown_and_set_for_all() {
    let env = Env::new();
    let text = |words: &[&str]| {
        String::from_utf8_lossy(&env.command(binary()).args(words).output().expect("started").stdout).into_owned()
    };
    assert_eq!(text(&["slots"]), "the bound is none (default)\n0 in use\n");
    fs::create_dir_all(env.home().join(".claude")).expect("a config dir");
    let file = env.home().join(".claude/claude-run.toml");
    fs::write(&file, "# ours\nwait = 5 # s\n").expect("a file");
    assert!(text(&["slots", "4"]).starts_with("the bound is 4 now, set in "));
    assert_eq!(fs::read_to_string(&file).expect("a file"), "# ours\nwait = 5 # s\nslots = 4\n");
    let run = hold(&env, &["--lock", "pass-through", "--label", "one"]);
    let shown = text(&["slots"]);
    assert!(shown.contains("claude-run.toml:3)\n1 in use\n  slot 1: one (pid "), "{shown}");
    assert!(text(&["status"]).contains("\nslots          4 ("), "{}", text(&["status"]));
    assert!(text(&["mode"]).contains("slots: 4 ("), "{}", text(&["mode"]));
    let mode: Value = serde_json::from_str(&text(&["mode", "--json"])).expect("JSON");
    assert_eq!(mode["slots"]["value"], "4", "{mode}");
    assert!(text(&["settings"]).contains("slots               4"), "{}", text(&["settings"]));
    let mut overruled = env.command(binary());
    let output = overruled.env("CLAUDE_RUN_SLOTS", "7").args(["slots", "none"]).output().expect("started");
    assert!(String::from_utf8_lossy(&output.stdout).contains("but here CLAUDE_RUN_SLOTS says 7, and goes before the file\n"));
    let mut overruled = env.command(binary());
    let output = overruled.env("CLAUDE_RUN_SLOTS", "7").args(["slots", "3", "--json"]).output().expect("started");
    let seen: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&seen["set"], &seen["value"]), (&"3".into(), &"7".into()), "{seen}");
    for wrong in ["0", "1001", "-1", "x", ""] {
        env.claude_run().args(["slots", "--", wrong]).assert().code(125);
        env.claude_run().arg(format!("--slots={wrong}")).arg("true").assert().code(125);
    }
    drop(run);
}

#[test]
fn stopped_waiter_loses_its_turn() {
    let env = Env::new();
    let mut holder = hold(&env, &ONE);
    let first = wait_in_line(&env, &ONE, 0);
    let mut second = wait_in_line(&env, &ONE, 1);
    first.signal(Signal::SIGSTOP);
    wait_until("it is stopped, and out of the kernel's queue", || queued(&env).len() == 1);
    let held = Instant::now();
    holder.close_stdin();
    assert_eq!(holder.end().code(), 0);
    second.expect_line("in");
    assert!(held.elapsed() >= Duration::from_secs(10), "the slot has stayed free for {:?}", held.elapsed());
    first.signal(Signal::SIGCONT);
    wait_until("the first waits on", || queued(&env).len() == 1);
    second.close_stdin();
    assert_eq!(second.end().code(), 0);
    first.expect_line("in");
}

#[test]
fn bound_that_is_removed_frees_those_behind_a_stopped_waiter() {
    let env = Env::new();
    set(&env, "1");
    let only = ["--lock", "pass-through"];
    let _holder = hold(&env, &only);
    let first = wait_in_line(&env, &only, 0);
    let second = wait_in_line(&env, &only, 1);
    first.signal(Signal::SIGSTOP);
    set(&env, "none");
    second.expect_line("in");
    first.signal(Signal::SIGCONT);
    first.expect_line("in");
}

#[test]
fn waiter_for_many_slots_needs_one_descriptor_for_each() {
    let env = Env::new();
    let many = ["--lock", "pass-through", "--slots", "100"];
    drop(hold(&env, &many));
    // By another process: what an ancestor holds would be held for the waiter.
    let all = r#"for i in {1..100}; do exec {slot}>>$0/$i; flock $slot; [ $i = 55 ] && some=$slot; done
        echo held; until [ -e go ]; do sleep 0.1; done; exec {some}>&-; sleep 600"#;
    let mut holder = env.command("bash");
    holder.args(["-c", all]).arg(slots_dir(&env));
    let holder = Running::start(holder);
    holder.expect_line("held");
    let mut bash = env.command("bash");
    bash.args(["-c", r#"ulimit -Sn 128; exec "$@""#, "bash"]).arg(binary()).args(many).args(["--", "echo", "in"]);
    let waiter = Running::start(bash);
    wait_until("it waits", || length(&json(&env, &["slots"])["waiting"]) == 1);
    fs::write(env.path("go"), "").expect("a file");
    let ended = waiter.end();
    assert_eq!((ended.code(), ended.stdout.join("")), (0, "in".into()), "{:?}", ended.stderr_text());
}

#[test]
fn ticket_beyond_all_numbers_is_not_ours() {
    let env = Env::new();
    let mut holder = hold(&env, &ONE);
    fs::write(slots_dir(&env).join(format!("t{}", u64::MAX)), "").expect("a file");
    let waiter = wait_in_line(&env, &ONE, 0);
    holder.close_stdin();
    assert_eq!(holder.end().code(), 0);
    waiter.expect_line("in");
}

#[test]
fn bound_that_is_set_is_said_without_records() {
    let env = Env::new();
    fs::create_dir_all(env.config_dir()).expect("a config dir");
    fs::write(env.config_dir().join("claude-run"), "in the way").expect("a file");
    let assert = env.claude_run().args(["slots", "4"]).assert().code(1);
    let said = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
    assert!(said.starts_with("the bound is 4 now, ") && said.contains("who has a slot is not known"), "{said}");
}
