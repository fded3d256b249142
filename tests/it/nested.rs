//! claude-run below claude-run: an agent whose claude calls claude cannot wait for itself, and nobody else gets through.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;

use crate::env::{Env, Running, binary, can_unshare, wait_for_records, wait_until};

#[test]
fn nested_run_starts_at_once_at_any_depth() {
    let env = Env::new();
    let us = binary().display().to_string();
    env.claude_run()
        .args(["--", &us, "--wait", "0", "--", &us, "--wait", "0", "--", "sh", "-c", "echo in; exit 6"])
        .assert()
        .code(6)
        .stdout("in\n");
}

#[test]
fn daemon_of_the_holder_counts_as_nested() {
    let env = Env::new();
    let script = format!(
        "(setsid '{}' --wait 0 -- echo in >out 2>&1 &); until [ -s out ]; do sleep 0.01; done; cat out",
        binary().display()
    );
    let run = env.start(["--", "bash", "-c", &script]);
    run.expect_line("in");
}

#[test]
fn stale_claim_lets_nobody_through() {
    let env = Env::new();
    let run = env.start_fake(&[], "env CLAUDE_RUN_HELD; exit 0");
    let stale = run.line().split_once('=').expect("a claim").1.to_owned();
    run.end();
    let holder = env.start_fake(&[], "env CLAUDE_RUN_HELD; hang");
    let live = holder.line().split_once('=').expect("a claim").1.to_owned();
    // A dead run's claim; a live run's claim in a process that is not below it; things that are no claim.
    for claim in [&*stale, &*live, "", "x", "1:2:3-4"] {
        env.claude_run().env("CLAUDE_RUN_HELD", claim).args(["--wait", "0", "true"]).assert().code(75);
    }
}

#[test]
fn claim_on_a_non_holder_lets_nobody_through() {
    let env = Env::new();
    let _holder = env.hold_lock();
    let file = std::fs::metadata(env.lock_file()).expect("a lock file");
    for pid in [1, std::process::id()] {
        let claim = format!("{}:{}:{pid}-9999999999999999999", file.dev(), file.ino());
        env.claude_run().env("CLAUDE_RUN_HELD", claim).args(["--wait", "0", "true"]).assert().code(75);
    }
}

#[test]
fn claim_ends_with_a_lock_released_early() {
    let env = Env::new();
    let us = binary().display();
    let nested =
        format!("until [ -e taken ]; do sleep 0.05; done; '{us}' --wait 0 -- true; echo \\$? >code.tmp; mv code.tmp code");
    let claude = format!("#!/bin/sh\ntouch started\nsetsid sh -c \"{nested}\" >/dev/null 2>&1 &\nhead -c 4000000 /dev/zero\n");
    let claude = env.script("big-claude", &claude);
    let mut outer = env.command(binary());
    outer.args(["--leftovers", "keep", "--claude"]).arg(claude).args(["--", "-p", "x", "--output-format=json"]);
    let mut outer = outer.stdout(std::process::Stdio::piped()).spawn().expect("started");
    wait_until("it holds the lock", || env.path("started").exists());
    wait_until("the lock is free, though nothing was read", || !env.is_locked());
    let _holder = env.hold_lock();
    std::fs::write(env.path("taken"), "").expect("a file");
    wait_until("the nested run is done", || env.path("code").exists());
    assert!(outer.try_wait().expect("a child").is_none(), "the outer run waits for its reader");
    assert_eq!(std::fs::read_to_string(env.path("code")).expect("a code"), "75\n");
    drop(outer.stdout.take());
    assert_eq!(outer.wait().expect("a child").code(), Some(0));
}

#[test]
fn run_nested_in_two_locks_waits_for_neither() {
    let env = Env::new();
    let us = binary().display().to_string();
    // As claude, which passes none of its descriptors to its tools.
    let closing = ["sh", "-c", r#"for fd in 3 4 5 6 7 8 9; do eval "exec $fd>&-"; done; exec "$@""#, "sh"];
    let words = ["a", "b", "a", "b"]
        .into_iter()
        .flat_map(|lock| [&*us, "--wait", "0", "--lock-file", lock, "--"].into_iter().chain(closing));
    env.claude_run().args(words.skip(1)).args(["echo", "in"]).assert().code(0).stdout("in\n");
}

#[test]
fn claim_on_another_lock_lets_nobody_through() {
    let env = Env::new();
    let _holder = env.hold_lock();
    let us = binary().display().to_string();
    let other = env.path("other.lock").display().to_string();
    let ended = env.start(["--lock-file", &other, "--", &us, "--wait", "0", "true"]).end();
    assert!(ended.code() == 75 && !ended.stderr_text().contains("waiting for"), "it has no reason to: {ended:?}");
}

#[test]
fn run_below_pass_through_acquires_the_lock() {
    let env = Env::new();
    let us = binary().display().to_string();
    let run =
        env.start(["--lock", "pass-through", "--", &us, "--lock", "exclusive", "--", "sh", "-c", "echo in; exec sleep 600"]);
    run.expect_line("in");
    wait_until("the lock is held", || env.is_locked());
}

#[test]
fn claude_that_calls_claude_run_is_detected() {
    let env = Env::new();
    env.script("bin/claude", &format!("#!/bin/sh\nexec '{}' -- claude \"$@\"\n", binary().display()));
    let path = format!("{}:/usr/bin:/bin", env.path("bin").display());
    let assert = env.claude_run().env("PATH", path).args(["--", "-p", "hi"]).assert().code(125);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("CLAUDE_RUN_CLAUDE"), "{stderr}");
}

#[test]
fn record_proves_the_holder_across_pid_namespaces() {
    if !can_unshare("-rpf") {
        return;
    }
    let env = Env::new();
    let us = binary().display().to_string();
    // As claude, which passes none of its descriptors to its tools.
    let closing = ["sh", "-c", r#"for fd in 3 4 5 6 7 8 9; do eval "exec $fd>&-"; done; exec "$@""#, "sh"];
    let elsewhere = ["unshare", "-rpf", "--mount-proc", &us, "--wait", "0", "--"];
    let words = || [&*us, "--"].into_iter().chain(closing).chain(elsewhere);
    env.claude_run().args(words().skip(1)).args(["echo", "in"]).assert().code(0).stdout("in\n");
    // The same below two of them, each in a namespace of its own.
    let deeper = words().skip(1).chain(closing).chain(elsewhere).chain(["echo", "in"]);
    env.claude_run().args(deeper).assert().code(0).stdout("in\n");
}

#[test]
fn record_that_comes_late_proves_the_holder() {
    let env = Env::new();
    let _holder = env.hold_lock();
    let file = std::fs::metadata(env.lock_file()).expect("a lock file");
    let mut waiter = env.command(binary());
    waiter.env("CLAUDE_RUN_HELD", format!("{}:{}:7-7", file.dev(), file.ino())).args(["echo", "in"]);
    let waiter = Running::start(waiter);
    assert!(waiter.message().contains("waiting for the session lock"));
    // It looks again and again, after 10 ms, 20 ms, 40 ms …
    std::thread::sleep(Duration::from_millis(300));
    let _record = record_elsewhere(&env, &file, None);
    waiter.expect_line("in");
    assert!(env.is_locked());
}

/// The record of a run with the id 7-7, in another PID namespace, that holds the lock on `file`, and the `slot`. It lives as long as this.
pub(crate) fn record_elsewhere(env: &Env, file: &Metadata, slot: Option<&Metadata>) -> File {
    let view = |file: &Metadata| json!({ "path": "/f", "device": file.dev(), "inode": file.ino() });
    let (slot, view) = (slot.map(view), view(file));
    let record = json!({
        "slot": slot,
        "run": "7-7", "state": "running", "since": "2026-01-01T00:00:00Z", "began": "2026-01-01T00:00:00Z", "mode": "exclusive",
        "pid": 7, "pid_namespace": "pid:[1]", "boot": "none", "hold": "own", "program": "claude", "lock": view,
        "config_dir": view, "parent": view,
    });
    std::fs::write(env.path("record"), record.to_string()).expect("a record");
    let record = File::open(env.path("record")).expect("a record");
    fs4::FileExt::lock(&record).expect("a lock");
    let runs = env.config_dir().join("claude-run/runs");
    std::fs::create_dir_all(&runs).expect("a directory");
    std::fs::rename(env.path("record"), runs.join("7-7.json")).expect("moved");
    record
}

#[test]
fn new_lock_file_that_a_run_above_holds_is_not_waited_for() {
    let env = Env::new();
    let mut holder = env.hold_lock();
    let [path, new] = [env.lock_file(), env.path("new")];
    let mut command = env.command("flock");
    command.arg(&new).args(["sh", "-c", "echo held; exec cat"]).stdin(std::process::Stdio::piped());
    let above = Running::start(command);
    above.expect_line("held");
    let file = std::fs::metadata(&new).expect("a lock file");
    let _record = record_elsewhere(&env, &file, None);
    let mut waiter = env.command(binary());
    waiter.env("CLAUDE_RUN_HELD", format!("{}:{}:7-7", file.dev(), file.ino())).args(["echo", "in"]);
    let waiter = Running::start(waiter);
    assert!(waiter.message().contains("waiting for the session lock"));
    wait_until("it is in the kernel's queue", || env.waiters() == 1);
    std::fs::rename(new, path).expect("moved");
    holder.close_stdin();
    waiter.expect_line("in");
    assert!(env.is_locked());
}

#[test]
fn new_lock_file_that_the_caller_holds_is_not_waited_for() {
    let env = Env::new();
    let mut holder = env.hold_lock();
    let [path, new] = [env.lock_file(), env.path("new")];
    let mut block = env.command("bash");
    block.args(["-c", r#"( flock 9; exec "$0" echo in ) 9>"$1""#]).arg(binary()).arg(&new);
    let waiter = Running::start(block);
    assert!(waiter.message().contains("waiting for the session lock"));
    wait_until("it is in the kernel's queue", || env.waiters() == 1);
    std::fs::rename(new, path).expect("moved");
    holder.close_stdin();
    waiter.expect_line("in");
    assert_eq!(waiter.end().code(), 0);
}

#[test]
fn stale_claim_fails_in_another_pid_namespace_too() {
    if !can_unshare("-rpf") {
        return;
    }
    let env = Env::new();
    let run = env.start_fake(&[], "env CLAUDE_RUN_HELD; exit 0");
    let stale = run.line().split_once('=').expect("a claim").1.to_owned();
    run.end();
    let _holder = env.hold_lock();
    let mut elsewhere = env.command("unshare");
    elsewhere.args(["-rpf", "--mount-proc"]).arg(binary()).args(["--wait", "0", "true"]).env("CLAUDE_RUN_HELD", stale);
    assert_eq!(Running::start(elsewhere).end().code(), 75);
}

#[test]
fn run_below_an_orphaned_holder_does_not_wait() {
    let env = Env::new();
    // Its tools get no descriptor of claude's, as with the real one.
    let tool = "#!/bin/bash\nexec 3>&- 4>&- 5>&- 6>&- 7>&-\nuntil [ -e go ]; do sleep 0.05; done\n\"$1\" --wait 0 -- echo in\n";
    let tool = env.script("tool", tool);
    let steps = format!("ignore TERM; ready; tool {} {}; exit 0", tool.display(), binary().display());
    let run = env.start_fake(&[], &steps);
    let [child, ..] = run.ready();
    run.signal(nix::sys::signal::Signal::SIGKILL);
    wait_until("claude-run is gone", || {
        std::fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(&format!(") S {} ", run.pid())))
    });
    std::fs::write(env.path("go"), "").expect("a file");
    run.expect_line("in");
    wait_until("the child is gone, and the lock free", || !env.is_locked());
}

/// True if `pid` has no memory any more.
fn is_gone(pid: Pid) -> bool {
    std::fs::read(format!("/proc/{pid}/environ")).map_or(true, |environment| environment.is_empty())
}

#[test]
fn run_below_an_orphan_that_is_no_claude_does_not_wait() {
    let env = Env::new();
    let closed = (3..20).map(|fd| format!(" {fd}>&-")).collect::<String>();
    let nested = format!("\"$1\" --wait 0 -- echo in >out 2>&1{closed}");
    let script = format!("#!/bin/bash\ntrap '' TERM\necho up\nuntil [ -e go ]; do sleep 0.05; done\n{nested}\ntouch done\n");
    let agent = env.script("agent", &script).display().to_string();
    let run = env.start(["--", &*agent, &*binary().display().to_string()]);
    run.expect_line("up");
    run.signal(Signal::SIGKILL);
    wait_until("claude-run is gone", || is_gone(run.pid()));
    std::fs::write(env.path("go"), "").expect("a file");
    wait_until("the nested run has ended", || env.path("done").exists());
    let text = std::fs::read_to_string(env.path("out")).expect("its output");
    assert!(text.contains("in\n"), "{text}");
}

#[test]
fn run_below_a_bash_block_does_not_wait_for_it() {
    let env = Env::new();
    // claude, by whatever name, has the descriptor, closes it for its tools, and one of them calls claude.
    for name in ["claude", "agent"] {
        let claude = env.script(name, "#!/bin/sh\n\"$1\" --wait 0 -- sh -c 'echo in; exit 4' 9>&-\nexit $?\n");
        let mut bash = env.command("bash");
        bash.args(["-c", r#"( flock -w 600 9 || exit 1; "$1" "$2"; exit $? ) 9>"$0""#]);
        bash.arg(env.make_lock_file()).arg(claude).arg(binary());
        let ended = Running::start(bash).end();
        assert_eq!((ended.code(), ended.stdout), (4, vec!["in".to_owned()]), "{name}: {:?}", ended.stderr);
    }
}

#[test]
fn run_below_a_block_that_was_killed_keeps_its_lock() {
    let env = Env::new();
    let nested = r#""$1" --wait 0 -- sh -c 'echo in; until [ -e go ]; do sleep 0.01; done' >out 2>&1 9>&-"#;
    let agent = env.script("agent", &format!("#!/bin/sh\n{nested}\necho $? >done\n"));
    let mut bash = env.command("bash");
    bash.args(["-c", r#"exec 9>"$0"; flock 9; "$1" "$2"; exit"#]).arg(env.make_lock_file()).arg(agent).arg(binary());
    let bash = Running::start(bash);
    wait_until("it has started", || std::fs::read_to_string(env.path("out")).is_ok_and(|out| out.contains("in\n")));
    bash.signal(Signal::SIGKILL);
    wait_until("the shell is gone", || is_gone(bash.pid()));
    std::fs::write(env.path("go"), "").expect("a file");
    wait_until("it has ended", || std::fs::read_to_string(env.path("done")).is_ok_and(|code| code == "0\n"));
    let text = std::fs::read_to_string(env.path("out")).expect("its messages");
    assert!(!text.contains("was not kept"), "{text}");
}

/// A tool that runs its words, and leaves them none of its descriptors.
const NODE: [&str; 3] = [
    "node",
    "-e",
    "process.exit(require('child_process').spawnSync(process.argv[1], process.argv.slice(2), {stdio: 'inherit'}).status)",
];

#[test]
fn run_below_a_claude_in_the_blocks_place_does_not_wait() {
    let env = Env::new();
    // It is in the shell's place, and no process between it and us has the descriptor.
    let claude = env.script("claude", "#!/bin/bash\n\"$@\" 9>&-\nexit $?\n").display().to_string();
    let lock = env.make_lock_file().display().to_string();
    let run = [binary().display().to_string(), "--wait".into(), "0".into(), "--".into(), "echo".into(), "in".into()];
    for block in ["( flock 9; \"$@\" ) 9>\"$0\"", "exec 9>\"$0\"; flock 9; exec \"$@\""] {
        let block = |words: &[&str]| {
            let mut bash = env.command("bash");
            bash.args(["-c", block, &lock]).args(words).args(&run);
            Running::start(bash).end()
        };
        let ended = block(&[&claude]);
        assert_eq!((ended.code(), &*ended.stdout), (0, &["in".to_owned()][..]), "{ended:?}");
        // Whatever else is there may hold it for something of its own.
        assert_eq!(block(&NODE).code(), 75);
    }
    let mut flock = env.command("flock");
    flock.args(["-F", &lock, &claude]).args(&run);
    assert_eq!(Running::start(flock).end().code(), 0, "claude in the place of flock(1)");
}

#[test]
fn orphan_without_environment_does_not_wait_for_the_run_above() {
    let env = Env::new();
    let script = r#"(setsid "$0" --wait 0 -- echo in >"$1" 2>&1 & ) ; until [ -s "$1" ]; do sleep 0.01; done; cat "$1""#;
    let mut words: Vec<_> = NODE.iter().map(|word| (*word).to_owned()).collect();
    let variables = ["PATH", "HOME"].map(|name| format!("{name}={}", std::env::var(name).expect("a variable")));
    let config_dir = format!("CLAUDE_CONFIG_DIR={}", env.config_dir().display());
    words.extend(["env".into(), "-i".into()].into_iter().chain(variables).chain([config_dir]));
    words.extend(["sh", "-c", script].map(str::to_owned));
    words.extend([binary().display().to_string(), env.path("out").display().to_string()]);
    env.start(["--"].into_iter().chain(words.iter().map(String::as_str))).expect_line("in");
}

#[test]
fn lock_an_ancestor_holds_for_another_is_waited_for() {
    let env = Env::new();
    // It holds the lock for an agent of its own, and passes the descriptor to none of us.
    let script =
        r#"exec 9>"$0"; flock 9; "$1" --wait 0 -- touch started 9>&-; echo $?; flock -u 9; "$1" --wait 0 -- echo in 9>&-"#;
    let file = std::fs::metadata(env.make_lock_file()).expect("a lock file");
    // Nor does it count that a dead run was above it, whose claim we have, or that the claim of one that was not is on this lock.
    let dead = format!("{}-1", i32::MAX);
    let [this, another] = [0, 1].map(|more| format!("{}:{}:{dead}", file.dev(), file.ino() + more));
    for (claim, lineage) in [("", ""), (&*another, &*dead), (&*this, "")] {
        let mut supervisor = env.command("bash");
        supervisor.args(["-c", script]).arg(env.lock_file()).arg(binary());
        supervisor.env("CLAUDE_RUN_HELD", claim).env("CLAUDE_RUN_LINEAGE", lineage);
        let ended = Running::start(supervisor).end();
        assert_eq!(ended.stdout, ["75", "in"], "{ended:?}");
        assert!(!env.path("started").exists());
    }
}

#[test]
fn holder_that_becomes_a_run_is_named_by_its_record() {
    let env = Env::new();
    let mut command = env.command("bash");
    let script = r#"exec 9>>"$0"; flock 9; echo held; read -r; exec "$1" --label nightly -- sleep 600"#;
    command.args(["-c", script]).arg(env.make_lock_file()).arg(binary()).stdin(std::process::Stdio::piped());
    let mut holder = Running::start(command);
    holder.expect_line("held");
    let waiter = env.start(["--wait", "10m", "--", "true"]);
    let message = waiter.message();
    assert!(message.contains("held by bash (pid "), "{message}");
    holder.close_stdin();
    wait_for_records(&env.config_dir(), 2);
    waiter.signal(Signal::SIGUSR1);
    let message = waiter.message();
    assert!(message.contains("held by nightly (pid "), "{message}");
    holder.signal(Signal::SIGTERM);
    assert_eq!((holder.end().code(), waiter.end().code()), (143, 0));
}

#[test]
fn lock_of_another_that_ends_too_soon_is_told() {
    let env = Env::new();
    let us = binary().display();
    let nested = format!("'{us}' --wait 0 -- sh -c 'echo in; until [ -e go ]; do sleep 0.01; done' >out 2>&1");
    env.script("nested", &format!("#!/bin/sh\n{nested}; echo $? >done\n"));
    let start = "setsid ./nested & until [ -s out ]; do sleep 0.01; done";
    env.make_lock_file();
    // A run above it, and a caller.
    let above = format!("'{us}' --leftovers keep -- sh -c '{start}'");
    for script in [above, format!("exec 9>$HOME/.claude/session.lock; flock 9; {start}; flock -u 9")] {
        let mut bash = env.command("bash");
        bash.args(["-c", &script]);
        assert_eq!(Running::start(bash).end().code(), 0);
        env.claude_run().args(["--wait", "0", "true"]).assert().code(0);
        std::fs::write(env.path("go"), "").expect("a file");
        wait_until("it has ended", || std::fs::read_to_string(env.path("done")).is_ok_and(|code| code == "0\n"));
        let text = std::fs::read_to_string(env.path("out")).expect("its messages");
        assert!(text.contains("the session lock of this run was not kept: the "), "{script}: {text}");
        for name in ["go", "done", "out"] {
            std::fs::remove_file(env.path(name)).expect("a file");
        }
    }
}

#[test]
fn ancestor_beyond_a_user_namespace_is_found() {
    if !can_unshare("-U") {
        return;
    }
    let env = Env::new();
    // A closed descriptor, or the lock would be seen there.
    let inner = format!("exec unshare -Ur '{}' --wait 0 -- echo in", binary().display());
    let script = format!("for fd in 3 4 5 6 7 8 9; do eval \"exec $fd>&-\"; done; {inner}");
    for options in [&["--lock", "exclusive"][..], &["--lock", "pass-through", "--slots", "1"]] {
        let mut outer = env.command(binary());
        let inner = script.replace("--wait 0", &format!("--wait 0 {}", options.join(" ")));
        outer.args(options).args(["--", "sh", "-c", &format!("sleep 0.3; {inner}")]);
        let ended = Running::start(outer).end();
        assert_eq!((ended.code(), &ended.stdout[..]), (0, &["in".to_owned()][..]), "{ended:?}");
    }
}
