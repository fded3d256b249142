//! Inheritance of the child: everything as its caller would have given it.

use std::process::Stdio;

use crate::env::{Env, Running, binary};

#[test]
fn directory_umask_nice_and_limits_are_untouched() {
    let env = Env::new();
    let script = "pwd; umask; nice; ulimit -n; ulimit -c";
    let mut bare = env.command("bash");
    bare.args(["-c", &format!("umask 027; ulimit -Sn 99; ulimit -Sc 7; exec nice -n 3 bash -c '{script}'")]);
    let mut wrapped = env.command("bash");
    wrapped.args([
        "-c",
        &format!("umask 027; ulimit -Sn 99; ulimit -Sc 7; exec nice -n 3 '{}' -- bash -c '{script}'", binary().display()),
    ]);
    assert_eq!(Running::start(bare).end().stdout, Running::start(wrapped).end().stdout);
}

#[test]
fn environment_gains_only_our_variables() {
    let env = Env::new();
    let mut command = env.command(binary());
    command.env("A", "1").env("B", "two\nlines").env("CLAUDE_TIMEOUT", "60").args(["--", "env", "-0"]);
    let ended = Running::start(command).end();
    let text = ended.stdout.join("\n");
    let mut names: Vec<_> = text.split('\0').filter_map(|entry| Some(entry.split_once('=')?.0)).collect();
    names.sort_unstable();
    assert_eq!(names, ["A", "B", "CLAUDE_RUN_HELD", "CLAUDE_RUN_ID", "CLAUDE_RUN_LINEAGE", "CLAUDE_TIMEOUT", "HOME", "PATH"]);
    assert!(text.contains("B=two\nlines\0"));
}

#[test]
fn descriptors_are_the_callers_and_the_lock() {
    let env = Env::new();
    let list = "for fd in /proc/$$/fd/*; do echo ${fd##*/} $(readlink $fd | sed s/[0-9]//g); done";
    let mut bare = env.command("bash");
    bare.args(["-c", list]);
    let lock = env.lock_file().display().to_string().replace(|c: char| c.is_ascii_digit(), "");
    let wrapped = env.start(["--", "bash", "-c", list]).end().stdout;
    let (locks, others): (Vec<_>, Vec<_>) = wrapped.into_iter().partition(|line| line.ends_with(&lock));
    assert_eq!((locks.len(), others), (1, Running::start(bare).end().stdout));
}

#[test]
fn closed_standard_descriptors_stay_closed() {
    let env = Env::new();
    let mut command = env.command("bash");
    let script = r#""$0" -- bash -c 'for n in 0 1 2; do [ -e /proc/$$/fd/$n ] && echo "$n open" >>seen; done; echo end >>seen' <&- >&- 2>&-"#;
    command.args(["-c", script]).arg(binary());
    assert_eq!(Running::start(command).end().code(), 0);
    assert_eq!(std::fs::read_to_string(env.path("seen")).expect("a list"), "end\n");
    assert_eq!(std::fs::metadata(env.lock_file()).expect("a lock file").len(), 0);
}

#[test]
fn stdin_is_the_callers_or_null() {
    let env = Env::new();
    env.claude_run().args(["cat"]).write_stdin("as it came").assert().code(0).stdout("as it came");
    env.claude_run().args(["--stdin", "null", "cat"]).write_stdin("unread").assert().code(0).stdout("");
    env.claude_run().env("CLAUDE_RUN_STDIN", "null").args(["cat"]).write_stdin("unread").assert().code(0).stdout("");
}

#[test]
fn output_passes_byte_for_byte() {
    let env = Env::new();
    let bytes: Vec<u8> = (0..=255u8).cycle().take(300_000).chain(*b"\r\n\0no newline").collect();
    env.claude_run().arg("cat").write_stdin(bytes.clone()).assert().code(0).stdout(bytes);
}

#[test]
fn child_without_a_terminal_leads_its_own_group() {
    let env = Env::new();
    let run = env.start_fake(&[], "ready; exit 0");
    let [pid, parent, group, session] = run.ready();
    assert_eq!((parent, group), (run.pid().as_raw(), pid));
    assert_eq!(session, nix::unistd::getsid(None).expect("a session").as_raw());
}

#[test]
fn pass_through_without_limits_execs_the_program() {
    let env = Env::new();
    let mut command = env.command(binary());
    command.args([
        "--lock",
        "pass-through",
        "--timeout",
        "0",
        "--leftovers",
        "keep",
        "--",
        "sh",
        "-c",
        "echo $$; echo $CLAUDE_RUN_HELD",
    ]);
    command.stdin(Stdio::null());
    let run = Running::start(command);
    run.expect_line(&run.pid().to_string());
    run.expect_line("");
    assert!(!env.lock_file().exists());
}

#[test]
fn longest_possible_argument_is_passed_on() {
    let env = Env::new();
    let mut command = env.command(binary());
    command.args(["--", "true", &"x".repeat(131_000)]);
    assert_eq!(Running::start(command).end().code(), 0);
}

#[test]
fn privileges_of_another_user_are_refused() {
    if !nix::unistd::geteuid().is_root() {
        return; // nobody else can make a program of another user's
    }
    let env = Env::new();
    let copy = env.copy_of(binary(), "claude-run");
    std::os::unix::fs::chown(&copy, Some(65534), None).expect("another owner");
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).expect("setuid");
    for words in [&["--", "true"][..], &["status"], &["redact"]] {
        let output = env.command(&copy).args(words).stdin(std::process::Stdio::null()).output().expect("started");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(125) && stderr.contains("setuid"), "{words:?}: {output:?}");
    }
}
