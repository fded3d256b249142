//! `claude-run events`: what Claude Code's own telemetry says of its refreshes, in the shape that both versions write.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::env::{Env, Running, binary};

fn telemetry(env: &Env) -> PathBuf {
    let dir = env.home().join(".claude/telemetry");
    fs::create_dir_all(&dir).expect("a directory");
    dir
}

/// A line as Claude Code writes it; `at` in seconds after an hour ago.
fn event(name: &str, at: u64, session: &str) -> String {
    let at = SystemTime::now() - Duration::from_secs(3600) + Duration::from_secs(at);
    let at = humantime::format_rfc3339_millis(at);
    format!(
        r#"{{"event_type":"ClaudeCodeInternalEvent","event_data":{{"event_name":"{name}","client_timestamp":"{at}","model":"m","session_id":"{session}","user_type":"external","env":{{"platform":"linux","version":"2.1.84","arch":"x64"}},"additional_metadata":"eyJyZXRyeUNvdW50IjoxfQ==","event_id":"e"}}}}"#
    )
}

fn refresh(name: &str, at: u64, session: &str) -> String {
    event(&format!("tengu_oauth_token_refresh_{name}"), at, session)
}

fn write(env: &Env, session: &str, lines: &[String]) -> PathBuf {
    let path = telemetry(env).join(format!("1p_failed_events.{session}.5c1c.json"));
    fs::write(&path, lines.join("\n") + "\n").expect("a file");
    path
}

fn seen(env: &Env, code: i32) -> Value {
    let assert = env.claude_run().args(["events", "--json"]).assert().code(code);
    serde_json::from_slice(&assert.get_output().stdout).expect("JSON")
}

#[test]
fn no_refresh_events_are_no_failure() {
    let env = Env::new();
    for make in [false, true] {
        if make {
            write(&env, "s", &[event("tengu_started", 0, "s")]);
        }
        let assert = env.claude_run().arg("events").assert().code(0);
        let text = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
        assert!(text.contains("no event of a refresh is here") && text.contains("healthy"), "{text}");
    }
    assert!(!env.home().join(".claude/claude-run").exists(), "it only looks");
}

#[test]
fn resolved_race_is_healthy_by_either_name() {
    for name in ["race_resolved", "lock_race_resolved", "race_recovered"] {
        let env = Env::new();
        write(&env, "one", &["lock_acquiring", "starting", "success"].map(|name| refresh(name, 0, "one")));
        write(&env, "two", &[refresh("lock_retry", 1, "two"), refresh("lock_retry", 2, "two"), refresh(name, 3, "two")]);
        let seen = seen(&env, 0);
        assert_eq!((&seen["verdict"], &seen["files"], &seen["skipped"]), (&"healthy".into(), &2.into(), &0.into()));
        let window = &seen["windows"][0];
        assert_eq!((&window["retries"], &window["resolved"], &window["broken"]), (&2.into(), &1.into(), &0.into()), "{seen}");
        let retries = seen["counts"].as_array().and_then(|counts| counts.iter().find(|count| count["name"] == "lock_retry"));
        let expected = serde_json::json!({"name": "lock_retry", "version": "2.1.84", "count": 2, "sessions": ["two"]});
        assert_eq!(retries, Some(&expected));
    }
}

#[test]
fn broken_locks_are_bad_and_say_what_to_check() {
    let cases: [(&[&str], &str); 7] = [
        (&["lock_retry", "lock_retry_limit_reached"], "claude-run status"),
        (&["lock_error"], "the directory above the config dir"),
        (&["lock_compromised_pre_post"], "a clock that jumps"),
        (&["compromised_post_post"], "a clock that jumps"),
        (&["lock_compromised_in_catch"], "a clock that jumps"),
        (&["lock_retry", "failure"], "refreshed at once"),
        (&["race_resolved", "failure"], "refreshed at once"),
    ];
    for (names, advice) in cases {
        let env = Env::new();
        let lines: Vec<_> = names.iter().enumerate().map(|(at, name)| refresh(name, at as u64, "s")).collect();
        write(&env, "s", &lines);
        let assert = env.claude_run().arg("events").assert().code(1);
        let text = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
        assert!(text.contains("\nbad: ") && text.contains(advice), "{names:?}: {text}");
        assert_eq!(seen(&env, 1)["verdict"], "bad");
    }
}

#[test]
fn overlapping_refreshes_are_bad_even_if_resolved() {
    let env = Env::new();
    write(&env, "one", &[refresh("starting", 10, "one"), refresh("success", 12, "one")]);
    write(&env, "two", &["starting", "failure", "race_recovered"].map(|name| refresh(name, 11, "two")));
    let seen = seen(&env, 1);
    let broken: Vec<_> = seen["broken"].as_array().into_iter().flatten().map(|event| &event["name"]).collect();
    assert_eq!(broken, ["starting"], "{seen}");
    // One after the other, they are as they should be; a failure with nobody near is not the locks'.
    let env = Env::new();
    write(&env, "one", &["starting", "success"].map(|name| refresh(name, 10, "one")));
    write(&env, "two", &[refresh("starting", 200, "two"), refresh("failure", 201, "two")]);
    let seen = self::seen(&env, 0);
    assert_eq!(seen["other_failures"], 1, "{seen}");
    assert!(seen["advice"][0].as_str().is_some_and(|advice| advice.contains("the network")), "{seen}");
}

#[test]
fn lost_login_is_bad_until_a_refresh_succeeds_again() {
    for name in [
        "tengu_oauth_refresh_token_marked_dead_invalid_grant",
        "tengu_oauth_refresh_token_cleared_on_disk",
        "tengu_oauth_tokens_save_failed",
    ] {
        let env = Env::new();
        write(&env, "s", &[refresh("starting", 1, "s"), refresh("failure", 2, "s"), event(name, 2, "s")]);
        let seen = seen(&env, 1);
        assert!(seen["why"].as_str().is_some_and(|why| why.starts_with("bad: the login was lost")), "{name}: {seen}");
        assert!(seen["advice"][0].as_str().is_some_and(|advice| advice.contains("log in again")), "{seen}");
        write(&env, "t", &[refresh("starting", 90, "t"), refresh("success", 91, "t")]);
        assert_eq!(self::seen(&env, 0)["verdict"], "healthy", "{name}");
    }
    let env = Env::new();
    write(&env, "s", &[event("tengu_oauth_refresh_token_legacy_lock_contended", 2, "s")]);
    assert_eq!(seen(&env, 0)["windows"][0]["retries"], 1);
    write(&env, "s", &[event("tengu_oauth_token_refresh_compromised_cas_mismatch", 2, "s")]);
    assert_eq!(seen(&env, 1)["verdict"], "bad");
}

#[test]
fn endless_line_hides_nothing_behind_it() {
    let env = Env::new();
    let long = event("tengu_other", 0, &"x".repeat(20 << 20));
    write(&env, "s", &[refresh("lock_retry", 1, "s"), long, refresh("lock_error", 2, "s")]);
    let seen = seen(&env, 1);
    assert_eq!((&seen["skipped"], &seen["broken"][0]["name"]), (&1.into(), &"lock_error".into()), "{seen}");
}

#[test]
fn malformed_files_are_read_as_far_as_possible() {
    let env = Env::new();
    let long = event(&"x".repeat(100_000), 0, "s");
    let mention = event("tengu_other", 0, "tengu_oauth_token_refresh_lock_error");
    let path = write(&env, "s", &[long, mention, "no JSON".into(), String::new(), refresh("lock_retry", 5, "s")]);
    let mut file = File::options().append(true).open(path).expect("a file");
    file.write_all(b"{\"event_data\":{\"event_name\":\"tengu_oauth_token_refresh_lock_error\"}}\n").expect("a line");
    file.write_all(b"\xff\xfe tengu_oauth_token_refresh_ \0\n").expect("a line");
    let cut = refresh("lock_error", 6, "s");
    file.write_all(&cut.as_bytes()[..cut.len() - 9]).expect("half a line");
    fs::write(telemetry(&env).join("other.json"), refresh("lock_error", 1, "s")).expect("a file");
    let complete = telemetry(&env).join("1p_failed_events.t.5c1c.json");
    fs::write(complete, refresh("lock_retry", 7, "t")).expect("a file without a newline at its end");
    let seen = seen(&env, 1);
    assert_eq!((&seen["skipped"], &seen["windows"][0]["retries"]), (&3.into(), &2.into()), "{seen}");
    assert_eq!(seen["verdict"], "not known", "{seen}");
}

#[test]
fn bad_event_is_seen_or_the_verdict_is_not_known() {
    let bad = refresh("lock_error", 1, "s");
    let odd = |what: &[u8]| [b"{\"x\":\"", what, b"\",", &bad.as_bytes()[1..]].concat();
    let deep = format!("{{\"x\":{}{},{}", "[".repeat(200), "]".repeat(200), &bad[1..]);
    for (line, verdict) in [
        (odd(br"\ud800"), "bad"),
        (odd(b"\xff"), "bad"),
        (deep.into_bytes(), "bad"),
        ([b"\xef\xbb\xbf", bad.as_bytes()].concat(), "bad"),
        ([b"\0\0", bad.as_bytes()].concat(), "not known"),
        (format!("{bad}{bad}").into_bytes(), "not known"),
        (bad.as_bytes()[..bad.len() - 9].to_owned(), "not known"),
    ] {
        for end in ["\n", "", "\n{}\n"] {
            let env = Env::new();
            let path = write(&env, "s", &[]);
            fs::write(path, [&line, end.as_bytes()].concat()).expect("a file");
            // A line that is being written is no reason.
            let is_incomplete = end.is_empty() && line.len() < bad.len();
            let (verdict, code) = if is_incomplete { ("healthy", 0) } else { (verdict, 1) };
            let seen = seen(&env, code);
            assert_eq!(seen["verdict"], verdict, "{} {end:?}: {seen}", String::from_utf8_lossy(&line));
        }
    }
    // A line of a time that nobody asks for is none of theirs, nor is a long one about something else.
    let env = Env::new();
    let path = write(&env, "s", &[]);
    fs::write(&path, format!("{}\n", &bad[..bad.len() - 9])).expect("a file");
    env.claude_run().args(["events", "--since", "1h"]).assert().code(1);
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    File::options().write(true).open(&path).expect("a file").set_modified(long_ago).expect("a time");
    env.claude_run().args(["events", "--since", "1h"]).assert().code(0);
    for (name, code) in [("tengu_other", 0), ("tengu_oauth_other", 1)] {
        fs::write(&path, format!("{{\"x\":\"{}{name}\"}}\n", "x".repeat(9 << 20))).expect("a file");
        env.claude_run().arg("events").assert().code(code);
    }
}

#[test]
fn events_before_the_window_do_not_count() {
    let env = Env::new();
    write(&env, "s", &[refresh("lock_error", 0, "s"), refresh("lock_retry", 3000, "s")]);
    env.claude_run().arg("events").assert().code(1);
    let assert = env.claude_run().args(["events", "--since", "30m", "--json"]).assert().code(0);
    let seen: Value = serde_json::from_slice(&assert.get_output().stdout).expect("JSON");
    assert_eq!(seen["windows"].as_array().map(Vec::len), Some(1), "{seen}");
    env.claude_run().args(["events", "--since", "x"]).assert().code(125);
}

#[test]
fn followed_events_are_shown_once() {
    for early in [true, false] {
        let env = Env::new();
        if early {
            telemetry(&env);
        } else {
            fs::create_dir(env.home().join(".claude")).expect("a config dir");
        }
        let mut command = env.command(binary());
        command.args(["events", "--follow", "--json"]);
        let mut follower = Running::start(command);
        let next = |follower: &Running| serde_json::from_str::<Value>(&follower.line()).expect("JSON");
        let path = write(&env, "one", &[event("tengu_started", 0, "one"), refresh("starting", 1, "one")]);
        assert_eq!(next(&follower)["name"], "starting");
        let line = refresh("success", 2, "one") + "\n";
        let (head, tail) = line.split_at(40);
        let mut file = File::options().append(true).open(path).expect("a file");
        file.write_all(head.as_bytes()).expect("a half");
        write(&env, "two", &[refresh("lock_retry", 3, "two")]);
        assert_eq!(next(&follower)["name"], "lock_retry");
        file.write_all(tail.as_bytes()).expect("the other half");
        assert_eq!((&next(&follower)["name"], follower.is_running()), (&"success".into(), true));
        let unreadable = env.home().join(".claude/telemetry/1p_failed_events.t.loop.json");
        symlink(&unreadable, &unreadable).expect("a link to itself");
        assert!(follower.message().contains("cannot be read: "));
    }
}

#[test]
fn row_of_the_table_is_one_line() {
    let env = Env::new();
    let forged = refresh("lock_acquired", 0, "s").replace("2.1.84", r"2\nhealthy\r\u009b31m\u202e");
    write(&env, "s", &[forged]);
    let output = env.claude_run().arg("events").output().expect("started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains(r"2\nhealthy\r\u{9b}31m\u{202e}") && !text.lines().any(|line| line.starts_with("healthy\\r")),
        "{text}"
    );
}

#[test]
fn file_that_cannot_be_read_is_no_health() {
    let env = Env::new();
    let file = write(&env, "s", &[refresh("lock_acquired", 0, "s")]);
    assert_eq!(seen(&env, 0)["verdict"], "healthy");
    let unreadable = file.with_file_name("1p_failed_events.t.5c1c.json");
    let is_unknown = || {
        let seen = seen(&env, 1);
        assert_eq!((&seen["verdict"], &seen["files"]), (&"not known".into(), &1.into()), "{seen}");
        assert!(seen["unreadable"].as_str().is_some_and(|why| why.contains("1p_failed_events.t.")), "{seen}");
    };
    for target in [&*unreadable, Path::new("nowhere"), Path::new("/dev/zero")] {
        symlink(target, &unreadable).expect("a link");
        is_unknown();
        fs::remove_file(&unreadable).expect("a link");
    }
    mkfifo(&unreadable, Mode::S_IRWXU).expect("a FIFO");
    is_unknown();
    fs::remove_file(&unreadable).expect("a FIFO");
    fs::create_dir(&unreadable).expect("a directory");
    is_unknown();
}
