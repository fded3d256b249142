//! The shapes that containers have: what is refused there, hidden or read-only. claude-run works, or says what it cannot do;
//! it never hangs, and never keeps the lock.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::env::{Ended, Env, Running, binary, can_unshare, fake_claude, wait_until};

/// The command in a mount namespace of its own, behind `prepare`, a shell command.
fn in_namespace(env: &Env, flags: &str, prepare: &str, words: &[&str]) -> Running {
    Running::start(namespace(env, flags, prepare, words))
}

fn namespace(env: &Env, flags: &str, prepare: &str, words: &[&str]) -> Command {
    let mut unshare = env.command("unshare");
    unshare.args([flags, "sh", "-c", &format!(r#"{prepare} && exec "$@""#), "sh"]).arg(binary()).args(words);
    unshare
}

#[test]
fn pid_and_mount_namespaces_exclude_each_other() {
    if !can_unshare("-rmpf") {
        return;
    }
    let env = Env::new();
    env.make_lock_file();
    let prepare = "mount -t proc proc /proc";
    let fake = fake_claude().display().to_string();
    let holder = in_namespace(&env, "-rmpf", prepare, &["--label", "first", "--claude", &fake, "--", "-p", "ready; hang"]);
    assert_eq!(holder.ready()[1], 1, "claude-run is PID 1 there");
    let busy = in_namespace(&env, "-rmpf", prepare, &["--wait", "0", "true"]).end();
    assert_eq!(busy.code(), 75, "{busy:?}");
    let waiter = in_namespace(&env, "-rmpf", prepare, &["--label", "second", "true"]);
    assert!(waiter.message().contains("held by first"), "another container's record tells who holds it");
    let mut status = env.claude_run();
    let seen = status.args(["status", "--json"]).assert().success();
    let seen: serde_json::Value = serde_json::from_slice(&seen.get_output().stdout).expect("JSON");
    let shown = || String::from_utf8_lossy(&env.claude_run().arg("status").output().expect("started").stdout).into_owned();
    assert!(shown().contains("first (pid 1 in another PID namespace) for "), "{}", shown());
    assert_eq!(seen["holders"][0]["record"]["label"], "first", "{seen:#}");
    assert_eq!(seen["waiting"][0]["label"], "second", "{seen:#}");
    assert_eq!(seen["waiting_without_record"], serde_json::json!([]), "nobody is counted twice: {seen:#}");
    // `unshare` ignores TERM; its child, which is claude-run, does not, and is not PID 1 for us.
    let [unshare, first] = [holder.pid().as_raw(), 0];
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).expect("a process");
    let claude_run: i32 = children.trim().parse().unwrap_or(first);
    let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(claude_run), signal).expect("it lives");
    signal(Signal::SIGSTOP);
    wait_until("status has its pid here", || shown().contains(&format!("kill -CONT {claude_run} ")));
    signal(Signal::SIGCONT);
    signal(Signal::SIGTERM);
    assert_eq!(holder.end().code(), 143);
    assert_eq!(waiter.end().code(), 0);
    assert!(!env.is_locked());
}

#[test]
fn read_only_root_is_enough_for_unread_output() {
    if !can_unshare("-rm") {
        return;
    }
    let env = Env::new();
    env.make_lock_file();
    // All of it, but for the config dir.
    let prepare = r#"mount -o remount,bind,ro / && for at in /tmp /var/tmp /run /dev/shm "$HOME/.claude"; do
            mount --bind "$at" "$at" && mount -o remount,bind,ro "$at"; done;
        mount -o remount,bind,rw "$HOME/.claude" && ! touch /tmp/probe 2>/dev/null"#;
    let fake = fake_claude().display().to_string();
    let words =
        ["--claude", &fake, "--", "-p", "ready; text 20000000; result new ok; exit 4", "--output-format", "stream-json"];
    let mut command = namespace(&env, "-rm", prepare, &words);
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("unshare");
    // Nobody reads yet, and 20 MB are more than what may wait in memory: there is no file to wait in.
    let stdout = run.stdout.take().expect("piped");
    let mut ready = String::new();
    let mut stdout = BufReader::new(stdout);
    stdout.read_line(&mut ready).expect("a line");
    let mut stderr = BufReader::new(run.stderr.take().expect("piped"));
    let mut errors = String::new();
    stderr.read_line(&mut errors).expect("a line");
    assert!(errors.contains("the child has to wait"), "{errors}");
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).expect("its end");
    assert!(rest.len() > 20_000_000, "{}", rest.len());
    assert!(
        rest.ends_with(b"\"type\":\"result\"}\n"),
        "{:?}",
        rest.last_chunk::<100>().map(|end| String::from_utf8_lossy(end))
    );
    stderr.read_to_string(&mut errors).expect("its end");
    let ended = run.wait().expect("a child");
    assert_eq!((ended.code(), errors.lines().count()), (Some(4), 1), "{errors}");
    assert!(!env.is_locked() && env.home().join(".claude/claude-run/history.jsonl").exists());
}

#[test]
fn run_without_proc_works_and_leaves_nothing() {
    for (flags, proc) in [("-rmpf", "umount -l /proc || mount -t tmpfs none /proc"), ("-rm", "mount -t tmpfs none /proc")] {
        if !can_unshare(flags) {
            return;
        }
        let env = Env::new();
        let run = in_namespace(&env, flags, &format!("{{ {proc}; }}"), &["sh", "-c", "sleep 600 & exit 4"]);
        let ended = run.end();
        assert_eq!(ended.code(), 4, "{flags}: {ended:?}");
        assert!(!env.is_locked(), "{flags}");
        assert_eq!(env.processes(), [0; 0], "{flags}");
    }
}

#[test]
fn run_works_with_hidden_processes() {
    if !can_unshare("-rmpf") {
        return;
    }
    let env = Env::new();
    let prepare = "mount -t proc -o hidepid=2 proc /proc";
    let ended = in_namespace(&env, "-rmpf", prepare, &["sh", "-c", "setsid sleep 600 & exit 4"]).end();
    assert_eq!(ended.code(), 4, "{ended:?}");
    assert!(!env.is_locked() && env.processes().is_empty());
}

/// System calls that a container's seccomp profile may refuse, and that claude-run has something to do with.
const REFUSED: [(&str, libc::c_long); 14] = [
    ("prctl", libc::SYS_prctl),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ("renameat2", libc::SYS_renameat2),
    ("inotify_init1", libc::SYS_inotify_init1),
    ("statx", libc::SYS_statx),
    ("clone3", libc::SYS_clone3),
    ("close_range", libc::SYS_close_range),
    ("getrandom", libc::SYS_getrandom),
    ("memfd_create", libc::SYS_memfd_create),
    ("splice", libc::SYS_splice),
    ("uname", libc::SYS_uname),
    ("setpgid", libc::SYS_setpgid),
    ("flock", libc::SYS_flock),
];

#[test]
fn refused_system_call_is_survived_or_reported() {
    for (name, number) in REFUSED {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let env = Env::new();
            // A run with all that it can have: the lock, frames to read, a tool that is left.
            let mut command = env.command(binary());
            command.arg("--claude").arg(fake_claude()).args(["--kill-after", "1", "--", "-p"]);
            command.args(["tool& exec sleep 600; result new ok; exit 4", "--output-format", "json"]);
            refuse(&mut command, number, errno);
            let ended = Running::start(command).end();
            let case = format!("{name}, {}: {ended:?}", io::Error::from_raw_os_error(errno));
            match name {
                // Without the lock nothing may run; without a group of its own, nothing does.
                "flock" => assert!(ended.code() == 125 && ended.stderr_text().contains("cannot lock"), "{case}"),
                _ if ended.code() == 125 => assert!(says_what(&ended, errno), "{case}"),
                _ => assert_eq!(ended.code(), 4, "{case}"),
            }
            if name == "prctl" {
                assert!(ended.stderr_text().contains("subreaper"), "{case}");
            }
            assert!(!env.is_locked(), "{case}");
            if name != "prctl" {
                wait_until(&format!("nothing is left: {case}"), || env.processes().is_empty());
            } else {
                for pid in env.processes() {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL); // it may have ended
                }
            }
        }
    }
}

/// One line, that names what was refused.
fn says_what(ended: &Ended, errno: i32) -> bool {
    let why = io::Error::from_raw_os_error(errno).to_string();
    ended.stderr.iter().any(|line| line.starts_with("claude-run: ") && line.contains(why.split(" (os").next().unwrap_or(&why)))
}

/// Has the kernel refuse one system call to `command` and all below it, as a container's profile does.
fn refuse(command: &mut Command, number: libc::c_long, errno: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let equal =
        libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf: 1, k: number as u32 };
    let filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0), // the number of the call
        equal,
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let mut filter = filter;
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program is a valid filter that lives for the length of the call.
        let installed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
        };
        if installed { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: prctl(2) is async-signal-safe, and the closure allocates nothing.
    unsafe { command.pre_exec(install) };
}

#[test]
fn limit_ends_a_run_beside_a_file_system_that_does_not_answer() {
    if !can_unshare("-rm") {
        return;
    }
    let env = Env::new();
    let dir = env.home().join(".config"); // claude's profiles are there, and a lock around the refresh of theirs
    fs::create_dir(&dir).expect("a directory");
    // Nobody answers for it, as for a server that is away.
    let mount = r#"exec 9<>/dev/fuse && mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 none "$HOME/.config""#;
    let script = format!("{mount} && echo mounted; exec sleep 60");
    let ended = in_namespace(&env, "-rm", ":", &["--timeout", "0.5", "-k", "0.5", "--", "sh", "-c", &script]).end();
    assert_eq!((ended.code(), &ended.stdout[..]), (124, &["mounted".to_owned()][..]), "{ended:?}");
    assert!(ended.stderr_text().contains("refresh locks are still out of reach"), "{ended:?}");
}
