//! The command line: what is whose, and refusals that teach.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::env::{Env, fake_claude};

#[test]
fn a_first_word_with_a_dash_is_claude_s_and_so_is_the_word_claude() {
    let env = Env::new();
    for words in [&["--", "-p", "say hi"][..], &["--", "claude", "-p", "say hi"], &["claude", "-p", "say hi"]] {
        env.claude_run().arg("--claude").arg(fake_claude()).args(words).assert().code(0).stdout("hi\n");
        env.claude_run().env("CLAUDE_RUN_CLAUDE", fake_claude()).args(words).assert().code(0).stdout("hi\n");
    }
}

#[test]
fn arguments_pass_byte_for_byte_and_never_through_a_shell() {
    let env = Env::new();
    let odd = OsStr::from_bytes(b"\xff\xfe $(touch started) `x` ; & \" ' \\ \n*");
    let mut expected = odd.as_bytes().to_vec();
    expected.extend_from_slice(b"|--|--wait||");
    env.claude_run()
        .args(["--", "printf", "%s|%s|%s|%s|"])
        .arg(odd)
        .args(["--", "--wait", ""])
        .assert()
        .code(0)
        .stdout(expected);
    assert!(!env.path("started").exists());
}

#[test]
fn usage_errors_are_125_and_name_the_word() {
    let env = Env::new();
    for (words, part) in [
        (&["--bad", "x"][..], "--bad"),
        (&["-p", "hi"], "-- -p"),
        (&["--wait"], "--wait"),
        (&["--lock", "none", "x"], "exclusive, refresh, pass-through"),
        (&["--leftovers", "x", "x"], "kill, keep"),
        (&["--stdin", "x", "x"], "inherit, null"),
        (&["--log-format", "x", "x"], "text, json"),
        (&["-E", "-1", "x"], "0 to 255"),
        (&["--config-dir", "", "x"], "--config-dir"),
    ] {
        let assert = env.claude_run().args(words).assert().code(125).stdout("");
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.starts_with("claude-run: ") && stderr.contains(part), "{words:?}: {stderr}");
    }
}

#[test]
fn a_bad_variable_is_125_and_named_with_its_value() {
    let env = Env::new();
    for (variable, value) in [
        ("CLAUDE_RUN_LOCK", "x"),
        ("CLAUDE_RUN_WAIT", "42D"),
        ("CLAUDE_RUN_CONFLICT_EXIT_CODE", "256"),
        ("CLAUDE_TIMEOUT", "soon"),
        ("CLAUDE_RUN_KILL_AFTER", "-1"),
        ("CLAUDE_RUN_LEFTOVERS", "x"),
        ("CLAUDE_RUN_STDIN", "x"),
        ("CLAUDE_RUN_LOG_FORMAT", "x"),
        ("CLAUDE_RUN_VERBOSITY", "x"),
    ] {
        let assert = env.claude_run().env(variable, value).args(["touch", "started"]).assert().code(125);
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.contains(variable) && stderr.contains(value), "{stderr}");
    }
    assert!(!env.path("started").exists());
}

#[test]
fn help_and_version_go_to_stdout_with_0() {
    let env = Env::new();
    for word in ["--help", "-h"] {
        let assert = env.claude_run().arg(word).assert().code(0).stderr("");
        let text = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
        assert!(text.contains("Examples:") && text.contains("Exit codes:"), "{text}");
    }
    env.claude_run().arg("--version").assert().code(0).stdout(format!("claude-run {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn verbosity_goes_from_errors_to_every_signal() {
    let env = Env::new();
    for (option, lines) in [("-q", 0), ("-v", 5)] {
        let assert = env.claude_run().args([option, "true"]).assert().code(0);
        assert_eq!(assert.get_output().stderr.iter().filter(|&&byte| byte == b'\n').count(), lines, "{option}");
    }
    env.claude_run()
        .env("CLAUDE_RUN_VERBOSITY", "quiet")
        .args(["--timeout", "0.1", "sleep", "600"])
        .assert()
        .code(124)
        .stderr("");
}

#[test]
fn messages_can_be_json_lines() {
    let env = Env::new();
    let assert = env.claude_run().args(["--log-format", "json", "--timeout", "0.1", "sleep", "600"]).assert().code(124);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(
        text.starts_with(r#"{"run":""#)
            && text.contains(r#","event":"run.limit","timestamp":""#)
            && text.contains(r#""message":"the hard limit ran out"#)
            && text.ends_with("}\n"),
        "{text}"
    );
    let assert = env.claude_run().args(["--log-format", "json", "nonesuch"]).assert().code(127);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(text.contains(r#""message":"nonesuch: not found on PATH""#), "{text}");
}
