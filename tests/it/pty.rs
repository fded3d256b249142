//! `--pty`: the child sees a terminal, and what it prints comes out as it went in.

use std::process::Stdio;

use crate::env::{Env, Running, binary};

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
    for (endless, code) in [("while :; do echo y; done", "129"), ("exec yes 2>/dev/null", "1"), (deaf, "129")] {
        let mut shell = env.command("sh");
        shell.args(["-c", r#"("$0" --pty -- sh -c "$1"; echo $? >code) | head -n 1; cat code"#]).arg(binary()).arg(endless);
        let ended = Running::start(shell).end();
        // yes(1) may see the EIO before its HUP.
        assert!(ended.stdout == ["y", code] || ended.stdout == ["y", "129"], "{endless}: {ended:?}");
        assert!(!env.is_locked());
    }
}
