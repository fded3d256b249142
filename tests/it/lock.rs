//! The session lock: who is kept out, for how long, and what becomes of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::env::{Env, Running, binary, can_unshare, wait_until};

#[test]
fn busy_lock_without_a_wait_is_75_at_once() {
    let env = Env::new();
    let _holder = env.hold_lock();
    env.claude_run().args(["--wait", "0", "touch", "started"]).assert().code(75).stdout("");
    env.claude_run().args(["--wait", "0", "-E", "123", "touch", "started"]).assert().code(123);
    env.claude_run()
        .env("CLAUDE_RUN_WAIT", "0")
        .env("CLAUDE_RUN_CONFLICT_EXIT_CODE", "0")
        .args(["touch", "started"])
        .assert()
        .code(0);
    assert!(!env.path("started").exists());
}

#[test]
fn wait_that_times_out_is_75_and_names_the_file() {
    let env = Env::new();
    let _holder = env.hold_lock();
    let started = Instant::now();
    let assert = env.claude_run().args(["--wait", "0.3", "touch", "started"]).assert().code(75);
    assert!(started.elapsed() >= Duration::from_millis(300));
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains(&env.lock_file().display().to_string()) && stderr.contains("--wait"), "{stderr}");
    assert!(!env.path("started").exists());
}

#[test]
fn wait_ends_with_the_holder() {
    let env = Env::new();
    let mut holder = env.hold_lock();
    let run = env.start(["--wait", "50", "echo", "mine"]);
    assert!(run.message().contains("waiting for the session lock"));
    holder.close_stdin();
    assert!(run.message().contains("got the session lock"));
    run.expect_line("mine");
    assert_eq!(run.end().code(), 0);
}

/// What has come in time counts, though nobody was awake to see it.
#[test]
fn stopped_waiter_gets_what_came_in_time() {
    let slots = ["--lock", "pass-through", "--slots", "1"];
    let helper = ["--lock-helper", "sh -c 'until [ -e go ]; do sleep 0.1; done; echo key; exec sleep 600'"];
    let kinds: [(&str, &[&str], bool); 3] = [("lock", &[], true), ("slot", &slots, true), ("helper", &helper, false)];
    let waiters = kinds.map(|(kind, options, has_holder)| {
        let env = Env::new();
        let holder = has_holder
            .then(|| env.start(options.iter().copied().chain(["sh", "-c", "echo in; until [ -e go ]; do sleep 0.1; done"])));
        holder.iter().for_each(|holder| holder.expect_line("in"));
        let waiter = env.start(["--wait", "10"].into_iter().chain(options.iter().copied()).chain(["echo", "mine"]));
        assert!(waiter.message().contains("waiting for"), "{kind}");
        waiter.signal(Signal::SIGSTOP);
        (kind, env, holder, waiter)
    });
    let waiters = waiters.map(|(kind, env, holder, waiter)| {
        fs::write(env.path("go"), "").expect("a file");
        holder.into_iter().for_each(|holder| assert_eq!(holder.end().code(), 0, "{kind}"));
        (kind, env, waiter)
    });
    std::thread::sleep(Duration::from_secs(11));
    for (kind, _env, waiter) in waiters {
        waiter.signal(Signal::SIGCONT);
        let ended = waiter.end();
        assert_eq!((ended.code(), ended.stdout.join("")), (0, "mine".into()), "{kind}: {}", ended.stderr_text());
    }
}

#[test]
fn bash_block_and_claude_run_exclude_each_other() {
    let env = Env::new();
    let path = env.make_lock_file();
    let mut bash = env.command("bash");
    bash.args(["-c", r#"( flock -w 600 9 || exit 1; echo held; read -r; exit 6 ) 9>"$0""#])
        .arg(&path)
        .stdin(std::process::Stdio::piped());
    let mut block = Running::start(bash);
    block.expect_line("held");
    env.claude_run().args(["--wait", "0", "true"]).assert().code(75);
    block.close_stdin();
    assert_eq!(block.end().code(), 6);
    let _run = ready(env.start_fake(&[], "ready; hang"));
    let status = env.command("bash").args(["-c", r#"( flock -n 9 || exit 77 ) 9>"$0""#]).arg(&path).status().expect("bash");
    assert_eq!(status.code(), Some(77));
}

fn ready(run: Running) -> Running {
    run.ready();
    run
}

#[test]
fn lock_that_is_gone_is_said_once() {
    let release = "for fd in /proc/$$/fd/*; do case $(readlink $fd) in *session.lock) flock -u ${fd##*/};; esac; done";
    let replace = "rm \"$HOME/.claude/session.lock\"";
    let (released, replaced) = ("a process of this run has released it", "its file was removed or replaced");
    for (script, reason, another) in [(release, released, "true"), (release, released, "cat"), (replace, replaced, "true")] {
        let env = Env::new();
        let script = format!("{script}; echo gone; exec cat");
        let mut command = env.command(binary());
        command.args(["--", "sh", "-c", &script]).stdin(std::process::Stdio::piped());
        let mut run = Running::start(command);
        run.expect_line("gone");
        // Another gets in, as flock(2) has it.
        let mut others = env.command(binary());
        others.args(["--wait", "0", "--", "sh", "-c", &format!("echo in; exec {another}")]).stdin(std::process::Stdio::piped());
        let others = Running::start(others);
        others.expect_line("in");
        wait_until("it has ended, or holds the lock", || another == "cat" || !env.is_locked());
        let trouble = match (reason == released, another) {
            (true, "cat") => "several runs hold the session lock",
            (true, _) => "the session lock was released under sh (pid ",
            (false, _) => "the session lock was removed or replaced under sh (pid ",
        };
        let status = env.claude_run().arg("status").assert().code(1);
        let shown = String::from_utf8_lossy(&status.get_output().stdout);
        assert!(shown.contains(trouble), "{shown}");
        run.signal(Signal::SIGUSR1);
        assert!(run.message().contains(", next limit in "));
        assert!(run.message().contains(&format!("the session lock of this run was not kept: {reason}")));
        run.close_stdin();
        let ended = run.end();
        assert_eq!((ended.code(), ended.stderr.len()), (0, 0), "{ended:?}");
    }
}

#[test]
fn shared_holder_excludes_too() {
    let env = Env::new();
    let mut command = env.command("flock");
    command.arg("-s").arg(env.make_lock_file()).args(["sh", "-c", "echo held; exec cat"]).stdin(std::process::Stdio::piped());
    let holder = Running::start(command);
    holder.expect_line("held");
    env.claude_run().args(["--wait", "0", "true"]).assert().code(75);
}

#[test]
fn pass_through_runs_beside_any_holder() {
    let env = Env::new();
    let _holder = env.hold_lock();
    env.claude_run().args(["--lock", "pass-through", "echo", "hi"]).assert().code(0).stdout("hi\n");
    env.claude_run().env("CLAUDE_RUN_LOCK", "pass-through").args(["echo", "hi"]).assert().code(0).stdout("hi\n");
}

#[test]
fn symlinked_config_dir_and_target_are_one_lock() {
    let env = Env::new();
    let _holder = env.hold_lock();
    std::os::unix::fs::symlink(env.home().join(".claude"), env.path("link")).expect("a symlink");
    env.claude_run().arg("--config-dir").arg(env.path("link")).args(["--wait", "0", "true"]).assert().code(75);
    env.claude_run().env("CLAUDE_CONFIG_DIR", env.path("link")).args(["--wait", "0", "true"]).assert().code(75);
}

#[test]
fn read_only_lock_file_excludes_another_user() {
    // Root may write any file, so the read-only case needs another user; as a user, the file is simply our own.
    let env = Env::new();
    let path = env.make_lock_file();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("a mode");
    for dir in [env.path(""), env.home(), env.home().join(".claude")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let as_other_user = |arguments: &[&str]| {
        let mut command = if nix::unistd::geteuid().is_root() {
            let copy = env.path("claude-run"); // where any user can reach it
            if !copy.exists() {
                assert!(env.command("cp").arg(binary()).arg(&copy).status().expect("cp").success());
            }
            let mut command = env.command("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
            command
        } else {
            env.command(binary())
        };
        Running::start({
            command.args(arguments);
            command
        })
        .end()
    };
    let free = as_other_user(&["--wait", "0", "echo", "mine"]);
    assert_eq!((free.code(), &free.stdout[..]), (0, &["mine".to_owned()][..]), "{free:?}");
    let mut holder = env.command("flock");
    holder.arg(&path).args(["sh", "-c", "echo held; exec cat"]).stdin(std::process::Stdio::piped());
    let holder = Running::start(holder);
    holder.expect_line("held");
    assert_eq!(as_other_user(&["--wait", "0", "true"]).code(), 75);
}

#[test]
fn unusable_lock_file_is_125_and_named() {
    let env = Env::new();
    let assert = env.claude_run().args(["--lock-file", "/nonesuch/dir/lock", "touch", "started"]).assert().code(125);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("/nonesuch/dir/lock") && stderr.contains("--lock-file"), "{stderr}");
    env.claude_run().args(["--lock-file", "/proc/version_lock", "touch", "started"]).assert().code(125);
    assert!(!env.path("started").exists());
}

#[test]
fn lock_file_that_is_no_file_is_refused_and_named() {
    let env = Env::new();
    let (fifo, socket) = (env.path("fifo"), env.path("socket"));
    mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    for (path, kind) in [(fifo, "a FIFO"), (socket, "a socket"), ("/dev/null".into(), "a device"), (env.home(), "a directory")]
    {
        let assert = env.claude_run().arg("--lock-file").arg(&path).args(["touch", "started"]).assert().code(125);
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.contains(&format!("{} is {kind}", path.display())), "{stderr}");
    }
    assert!(!env.path("started").exists());
}

#[test]
fn fifo_as_lock_file_keeps_what_is_written() {
    let env = Env::new();
    mkfifo(&env.path("fifo"), Mode::S_IRWXU).expect("a FIFO");
    let mut shell = env.command("sh");
    shell.args(["-c", "echo begun; echo data >fifo; echo written"]);
    let writer = Running::start(shell);
    writer.expect_line("begun");
    for _ in 0..20 {
        env.claude_run().args(["--lock-file", "fifo", "true"]).assert().code(125);
    }
    assert_eq!(fs::read_to_string(env.path("fifo")).expect("a FIFO"), "data\n");
    writer.expect_line("written");
}

#[test]
fn quiet_run_says_nothing_of_a_busy_lock() {
    let env = Env::new();
    let _holder = env.hold_lock();
    for wait in ["0", "0.1"] {
        let ended = env.start(["-q", "--wait", wait, "touch", "started"]).end();
        assert_eq!((ended.code(), ended.stdout.len(), ended.stderr.len()), (75, 0, 0), "{ended:?}");
    }
    let ended = env.start(["--wait", "0", "touch", "started"]).end();
    let busy = format!("--wait is 0: the session lock {} is held by flock (pid ", env.lock_file().display());
    assert!(
        ended.stderr_text().contains(&busy) && ended.stderr_text().contains(", without a run record; see claude-run status"),
        "{ended:?}"
    );
    assert!(!env.path("started").exists());
}

#[test]
fn search_for_a_holder_touches_no_file_of_others() {
    let env = Env::new();
    // stat(2) of a descriptor hangs with its file system.
    let script = r#"exec 8<"$1"; flock -o "$0" "${@:2}" 8<&-; true"#;
    for words in [&["--wait", "0", "true"][..], &["status", "--json"]] {
        let mut shell = env.command("bash");
        shell.args(["-c", script]).arg(env.make_lock_file()).arg(env.home());
        shell
            .args(["strace", "-f", "-e", "trace=%stat,%statfs,readlink,?open,openat", "-o", "calls"])
            .arg(binary())
            .args(words);
        assert_eq!(Running::start(shell).end().code(), 0);
        let calls = fs::read_to_string(env.path("calls")).expect("calls");
        assert!(calls.contains("/fdinfo"), "{calls}");
        let touches = |line: &&str| line.contains("/proc/") && line.contains("/fd/") && !line.contains("/proc/self/fd/");
        assert_eq!(calls.lines().filter(touches).collect::<Vec<_>>(), [""; 0]);
    }
}

#[test]
fn lock_file_content_is_never_touched() {
    let env = Env::new();
    let path = env.make_lock_file();
    fs::write(&path, "somebody's notes").expect("a file");
    let before = fs::metadata(&path).expect("a file");
    env.claude_run().arg("true").assert().code(0);
    let after = fs::metadata(&path).expect("still there");
    assert_eq!(fs::read_to_string(&path).expect("a file"), "somebody's notes");
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
}

#[test]
fn waiter_locks_the_file_that_replaced_the_old() {
    for replace in ["rm", "mv"] {
        let env = Env::new();
        let mut holder = env.hold_lock();
        let path = env.lock_file();
        let run = env.start_fake(&[], "ready; hang");
        assert!(run.message().contains("waiting"));
        wait_until("it is in the kernel's queue", || env.waiters() == 1);
        if replace == "rm" {
            fs::remove_file(&path).expect("removed");
        } else {
            fs::write(env.path("new"), "").expect("a file");
            fs::rename(env.path("new"), &path).expect("moved");
        }
        holder.close_stdin();
        run.ready();
        assert!(env.is_locked(), "{replace}: the file at the path is not the one that is locked");
    }
}

#[test]
fn new_lock_file_that_is_held_is_waited_for() {
    let env = Env::new();
    let mut holder = env.hold_lock();
    let run = env.start_fake(&[], "ready; hang");
    assert!(run.message().contains("waiting"));
    wait_until("it is in the kernel's queue", || env.waiters() == 1);
    let mut other = env.command("flock");
    other.arg(env.path("new")).args(["sh", "-c", "echo held; exec cat"]).stdin(std::process::Stdio::piped());
    let mut other = Running::start(other);
    other.expect_line("held");
    fs::rename(env.path("new"), env.lock_file()).expect("moved");
    assert_eq!(env.waiters(), 0);
    holder.close_stdin();
    let message = run.message();
    assert!(
        message.contains("waiting for the session lock") && message.contains(&format!("(pid {})", other.pid())),
        "{message}"
    );
    wait_until("it is in the other queue", || env.waiters() == 1);
    other.close_stdin();
    run.ready();
    assert!(env.is_locked());
}

#[test]
fn holder_that_was_named_is_named_in_a_crowd() {
    let env = Env::new();
    let holder = env.hold_lock();
    let named = format!("held by flock (pid {})", holder.pid());
    let first = env.start(["true"]);
    assert!(first.message().contains(&named));
    // With so many runs, nobody looks among all processes any more.
    let others: Vec<_> = (0..10).map(|_| env.start(["true"])).collect();
    others.iter().for_each(|waiter| drop(waiter.message()));
    first.signal(Signal::SIGUSR1);
    let message = first.message();
    assert!(message.contains(&named), "{message}");
}

#[test]
fn term_ends_a_waiter_and_it_leaves_the_queue() {
    let env = Env::new();
    let mut holder = env.hold_lock();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129), (Signal::SIGQUIT, 131)] {
        let run = env.start(["--wait", "none", "touch", "started"]);
        assert!(run.message().contains("waiting"));
        wait_until("it is in the kernel's queue", || env.waiters() == 1);
        run.signal(signal);
        assert_eq!(run.end().code(), code);
        assert_eq!(env.waiters(), 0);
    }
    holder.close_stdin();
    wait_until("the lock is free", || !env.is_locked());
    assert!(!env.path("started").exists());
}

#[test]
fn killed_holder_and_child_free_the_lock() {
    let env = Env::new();
    let run = env.start_fake(&[], "ready; hang");
    let [child, ..] = run.ready();
    let next = env.start(["echo", "mine"]);
    assert!(next.message().contains("waiting"));
    run.signal(Signal::SIGKILL);
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL);
    next.expect_line("mine");
}

#[test]
fn no_two_runs_hold_the_lock_at_once() {
    let env = Env::new();
    env.make_lock_file();
    let runs: Vec<_> = (0..64).map(|_| env.start(["-q", "sh", "-c", "mkdir d || exit 9; sleep .01; rmdir d"])).collect();
    for run in runs {
        assert_eq!(run.end().code(), 0);
    }
}

#[test]
fn waiters_are_served_in_the_order_of_their_arrival() {
    let env = Env::new();
    let mut holder = env.hold_lock();
    let mut runs = Vec::new();
    for number in 0..64 {
        runs.push(env.start(["-q".to_owned(), "sh".into(), "-c".into(), format!("echo {number} >>served")]));
        wait_until("it is in the kernel's queue", || env.waiters() == number + 1);
    }
    holder.close_stdin();
    for run in runs {
        assert_eq!(run.end().code(), 0);
    }
    let served: Vec<usize> =
        fs::read_to_string(env.path("served")).expect("a list").lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(served, (0..64).collect::<Vec<_>>());
}

#[test]
fn all_of_256_waiters_are_served() {
    let env = Env::new();
    let mut holder = env.hold_lock();
    let runs: Vec<_> = (0..256).map(|_| env.start(["-q", "true"])).collect();
    wait_until("all are in the kernel's queue", || env.waiters() == 256);
    holder.close_stdin();
    for run in runs {
        assert_eq!(run.end().code(), 0);
    }
}

#[test]
fn callers_flock_on_the_same_file_is_recognised() {
    // The call site of the old bash block, with claude-run put into it and the flock forgotten.
    let env = Env::new();
    let mut bash = env.command("bash");
    bash.args(["-c", r#"( flock -w 600 9 || exit 1; "$1" --wait 5 -- sh -c 'echo ran; exit 4' ) 9>"$0""#])
        .arg(env.make_lock_file())
        .arg(binary());
    let ended = Running::start(bash).end();
    assert_eq!((ended.code(), ended.stdout), (4, vec!["ran".to_owned()]));
}

#[test]
fn callers_shared_flock_is_not_the_lock() {
    let env = Env::new();
    let mut bash = env.command("bash");
    bash.args(["-c", r#"( flock -s 9 || exit 1; "$1" --wait 0 -- true ) 9>"$0""#]).arg(env.make_lock_file()).arg(binary());
    assert_eq!(Running::start(bash).end().code(), 75);
}

#[test]
fn full_disk_is_125_and_named() {
    if !crate::env::can_unshare("-rm") {
        return;
    }
    let env = Env::new();
    let script = r#"mkdir small && mount -t tmpfs -o size=64k,nr_inodes=2 tmpfs small && touch small/last
        "$0" --lock-file "$PWD/small/lock" -- touch started; echo "code $?""#;
    let mut unshare = env.command("unshare");
    unshare.args(["-rm", "bash", "-c", script]).arg(binary());
    let ended = Running::start(unshare).end();
    assert_eq!(ended.stdout, ["code 125"], "{ended:?}");
    let parts = ["small/lock", "No space left", "free some space, or inodes, there"];
    assert!(parts.into_iter().all(|part| ended.stderr_text().contains(part)), "{ended:?}");
    assert!(!env.path("started").exists());
}

#[test]
fn relative_lock_file_is_warned_of() {
    let env = Env::new();
    let run = env.claude_run().env("CLAUDE_RUN_LOCK_FILE", "my.lock").current_dir(env.path("")).args(["true"]).assert().code(0);
    let message = String::from_utf8_lossy(&run.get_output().stderr).into_owned();
    assert!(message.contains("--lock-file=my.lock is relative"), "{message}");
}

#[test]
fn two_overlays_of_one_directory_have_two_locks() {
    if !can_unshare("-rmpf") {
        return;
    }
    let env = Env::new();
    // The kernel gives both lock files one inode number, and shows the locks of both on one device.
    let script = r#"mkdir m && mount -t tmpfs none m && cd m && mkdir -p l/cfg && : >l/cfg/session.lock
        for i in 1 2; do
            mkdir u$i w$i m$i && mount -t overlay none -o lowerdir=l,upperdir=u$i,workdir=w$i,userxattr m$i || exit 9
        done
        run() { CLAUDE_CONFIG_DIR=$PWD/m$1/cfg "$us" --wait 0 -- "${@:2}"; echo "$?"; }
        us=$0; export -f run; export us
        run 2 bash -c 'echo held; run 2 true; run 1 true; echo >ready; exec sleep 600' &
        until [ -e ready ]; do sleep 0.01; done
        run 1 bash -c 'run 2 echo beside the holder; run 1 echo nested'"#;
    let mut unshare = env.command("unshare");
    unshare.args(["-rmpf", "--mount-proc", "--kill-child", "bash", "-c", script]).arg(binary()).current_dir(env.path(""));
    let ended = Running::start(unshare).end();
    let stdout: std::collections::BTreeSet<_> = ended.stdout.iter().map(String::as_str).collect();
    assert!(stdout.contains("75") && stdout.contains("nested") && !stdout.contains("beside the holder"), "{ended:?}");
}
