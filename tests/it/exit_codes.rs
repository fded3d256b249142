//! Exit codes: the child's own pass unchanged, ours can be told apart, and a child that cannot be started has its reason.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use crate::env::Env;

#[test]
fn all_256_statuses_pass_unchanged() {
    let env = Env::new();
    for status in 0..=255 {
        env.claude_run().args(["sh", "-c", &format!("exit {status}")]).assert().code(status);
    }
}

#[test]
fn child_ended_by_a_signal_is_128_plus_its_number() {
    let env = Env::new();
    for (name, number) in
        [("HUP", 1), ("INT", 2), ("QUIT", 3), ("ABRT", 6), ("KILL", 9), ("SEGV", 11), ("TERM", 15), ("USR1", 10)]
    {
        let ended = env.start(["sh", "-c", &format!("ulimit -c 0; kill -{name} $$")]).end();
        assert_eq!((ended.status.signal(), ended.status.core_dumped(), ended.code()), (Some(number), false, 128 + number));
    }
    // Real-time signals have no name in nix, and must not be lost for that.
    assert_eq!(env.start(["bash", "-c", "kill -40 $$"]).end().code(), 168);
}

#[test]
fn missing_program_is_127_and_named() {
    let env = Env::new();
    for name in ["nonesuch", "/nonesuch/claude", "./nonesuch", "/etc/passwd/claude"] {
        let assert = env.claude_run().args(["--", name]).assert().code(127).stdout("");
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.contains(name) && stderr.contains("not found"), "{stderr}");
    }
    env.claude_run()
        .arg("")
        .assert()
        .code(127)
        .stderr("claude-run: COMMAND is an empty word; name a program, or leave it out for claude\n");
    assert!(!env.is_locked());
}

#[test]
fn program_that_cannot_run_is_126_and_named() {
    let env = Env::new();
    fs::write(env.path("plain"), "text").expect("a file");
    let headless = env.script("headless", "echo never through a shell\n");
    let orphaned = env.script("orphaned", "#!/nonesuch/interpreter\n");
    env.script("binary", "\x7fELF\0");
    for path in [env.path("plain"), env.home(), headless, orphaned, env.path("binary")] {
        let assert = env.claude_run().arg("--").arg(&path).assert().code(126).stdout("");
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.contains(&path.display().to_string()), "{stderr}");
    }
    assert!(!env.is_locked());
}

#[test]
fn missing_claude_says_how_to_name_it() {
    let env = Env::new();
    let assert = env.claude_run().env("PATH", env.path("nowhere")).args(["--", "-p", "hi"]).assert().code(127);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("--claude") && stderr.contains("CLAUDE_RUN_CLAUDE"), "{stderr}");
}

#[test]
fn our_75_and_124_differ_from_the_childs_by_message() {
    let env = Env::new();
    for status in [1, 75, 124, 125, 126, 127] {
        env.claude_run().args(["sh", "-c", &format!("exit {status}")]).assert().code(status).stderr("");
    }
    let _holder = env.hold_lock();
    for (options, code, message) in [
        (&["--wait", "0"][..], 75, "session lock"),
        (&["--lock", "pass-through", "--timeout", "0.1"], 124, "--timeout 100ms reached"),
    ] {
        let assert = env.claude_run().args(options).args(["sleep", "60"]).assert().code(code);
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.contains(message), "{stderr}");
    }
}
