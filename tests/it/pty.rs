//! `--pty`: the child sees a terminal, and what it prints comes out as it went in.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

use crate::env::{Env, Running, binary, shell_code};

#[test]
fn child_sees_a_terminal_and_no_cr_is_added() {
    let env = Env::new();
    let script = "[ -t 1 ] && [ ! -t 2 ] && printf 'a\\nb\\r\\nc \\033[?25h'; stty size <&1 >size; exit 4";
    for (option, code) in [("--pty", 4), ("--pty=on", 4)] {
        let mut command = env.command(binary());
        command.args([option, "--", "sh", "-c", script]).stderr(Stdio::null());
        let output = command.output().expect("started");
        assert_eq!((output.status.code(), &*output.stdout), (Some(code), &b"a\nb\r\nc \x1b[?25h"[..]));
        assert_eq!(std::fs::read_to_string(env.path("size")).expect("a size"), "24 80\n");
    }
    env.claude_run().env("CLAUDE_RUN_PTY", "1").args(["--pty=off", "--", "sh", "-c", "[ ! -t 1 ]"]).assert().code(0);
}

#[test]
fn output_arrives_though_the_child_exits_at_once() {
    let env = Env::new();
    for _ in 0..20 {
        let mut command = env.command(binary());
        command.args(["--pty", "--", "sh", "-c", "head -c 300000 /dev/zero; echo end"]);
        let output = command.output().expect("started");
        assert!(output.stdout.len() == 300_004 && output.stdout.ends_with(b"end\n"), "{}", output.stdout.len());
    }
}

#[test]
fn frames_are_found_despite_trailing_escapes() {
    let env = Env::new();
    let mut command = env.command(binary());
    let frame = r#"printf '{"type":"result","subtype":"success","is_error":false}\n\033[?25h\033[0m'; sleep 600"#;
    command.args(["--pty", "--require-result", "--result-grace", "0.2", "--", "sh", "-c", frame]);
    let ended = Running::start(command).end();
    assert_eq!((ended.code(), ended.stdout.len()), (0, 2), "{ended:?}");
    assert!(ended.stdout[1].ends_with("\u{1b}[0m"), "{ended:?}");
}

#[test]
fn kept_descendant_on_the_pty_is_not_waited_for() {
    let env = Env::new();
    let run = env.start(["--pty", "--leftovers", "keep", "--", "sh", "-c", "setsid sleep 600 & echo $!; exit 6"]);
    let kept: i32 = run.line().parse().expect("a pid");
    assert_eq!(run.end().code(), 6);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(kept), nix::sys::signal::Signal::SIGKILL).expect("it lives");
}

#[test]
fn reader_that_goes_hangs_the_terminal_up() {
    let env = Env::new();
    let deaf = "trap '' PIPE; while :; do echo y; sleep 0.01; done 2>/dev/null";
    let deafer = "trap '' HUP PIPE; while echo y; do :; done 2>/dev/null; exit 7";
    for (endless, code) in [("while :; do echo y; done", "129"), ("exec yes 2>/dev/null", "1"), (deaf, "129"), (deafer, "7")] {
        let mut shell = env.command("sh");
        // With a log, its stderr has another pipe, which stays.
        shell.args(["-c", r#"("$0" --pty --log log -- sh -c "$1"; echo $? >code) | head -n 1; cat code"#]);
        shell.arg(binary()).arg(endless);
        let ended = Running::start(shell).end();
        // yes(1) may see the EIO before its HUP.
        assert!(ended.stdout == ["y", code] || ended.stdout == ["y", "129"], "{endless}: {ended:?}");
        assert!(!env.is_locked());
    }
}

#[test]
fn own_terminal_that_hangs_up_is_a_reader_that_goes() {
    let env = Env::new();
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a pseudo-terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("a pseudo-terminal");
    let slave = ptsname_r(&master).expect("its name");
    let slave = File::options().write(true).custom_flags(nix::libc::O_NOCTTY).open(slave).expect("its other end");
    // A process that another test starts just now may have the other end a moment longer.
    let script = "echo first; until [ -e gone ]; do sleep 0.01; done; while :; do echo more; done 2>/dev/null";
    let mut command = env.command(binary());
    command.args(["--pty", "--timeout", "60", "--", "sh", "-c", script]).stdout(slave).stderr(Stdio::piped());
    let run = command.spawn().expect("started");
    drop(command);
    let mut master = File::from(OwnedFd::from(master));
    master.read_exact(&mut [0; 5]).expect("some bytes");
    drop(master);
    std::fs::write(env.path("gone"), "").expect("a file");
    let output = run.wait_with_output().expect("a child");
    assert_eq!((shell_code(output.status), &*String::from_utf8_lossy(&output.stderr)), (129, ""));
}
