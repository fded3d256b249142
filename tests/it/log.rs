//! `--log`: the child's output and our own messages, line by line, as they come, with secrets masked.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;

use crate::env::{Env, Running, binary, fake_claude, wait_until};

/// Lines of the log, without their times and runs, whose form is checked.
fn lines(env: &Env) -> Vec<String> {
    let text = fs::read_to_string(env.path("log")).unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (time, run, rest) = (words.next(), words.next(), words.next());
        let is_time = time.is_some_and(|time| time.len() == 24 && time.starts_with("20") && time.ends_with('Z'));
        let is_run = run.is_some_and(|run| run.split('-').all(|part| part.parse::<u64>().is_ok()));
        assert!(is_time && is_run, "{line:?}");
        rest.expect("something was said").to_owned()
    };
    text.lines().map(entry).collect()
}

/// Lines of the child.
fn childs_lines(env: &Env) -> Vec<String> {
    lines(env).into_iter().filter(|line| !line.starts_with("claude-run: ")).collect()
}

#[test]
fn log_has_both_streams_and_messages_redacted() {
    let env = Env::new();
    let mut command = env.command(binary());
    let script = "logged() { until grep -q \"$1\" log; do sleep 0.01; done; }
        echo \"a $GITHUB_TOKEN b\"; logged 'stdout: a'; echo 'KEY GH_TOKEN=abc' >&2; logged 'stderr: KEY'; printf 'no newline'; exit 3";
    command.env("GITHUB_TOKEN", "geheim!").args(["--log", "log", "--", "sh", "-c", script]);
    let ended = Running::start(command).end();
    assert_eq!(
        (ended.code(), &*ended.stdout.concat(), &*ended.stderr_text()),
        (3, "a geheim! bno newline", "KEY GH_TOKEN=abc")
    );
    assert_eq!(childs_lines(&env), ["stdout: a *** b", "stderr: KEY GH_TOKEN=***", "stdout: no newline"]);
    let all = lines(&env);
    assert!(all[2].starts_with("claude-run: started pid="), "{all:?}");
    assert!(all.last().is_some_and(|line| line.starts_with("claude-run: ended outcome=exited exit_code=3 run_ms=")), "{all:?}");
    let events =
        all.iter().filter_map(|line| line.strip_prefix("claude-run: ")?.rsplit_once(" event=")).map(|(_, event)| event);
    let expected = ["lock.acquiring", "lock.acquired", "run.started", "lock.released", "run.ended"];
    assert_eq!(events.collect::<Vec<_>>(), expected);
    assert_eq!(fs::metadata(env.path("log")).expect("a log").permissions().mode() & 0o777, 0o600);
}

#[test]
fn log_fills_as_the_child_runs() {
    let env = Env::new();
    let run = env.start_fake(&["--log", "log"], "say one; hang");
    run.expect_line("one");
    wait_until("the line is in the log", || childs_lines(&env) == ["stdout: one"]);
}

#[test]
fn redact_off_masks_nothing() {
    let env = Env::new();
    env.claude_run().args(["--redact", "off", "--log", "log", "echo", "ghp_abc"]).assert().code(0);
    assert_eq!(childs_lines(&env), ["stdout: ghp_abc"]);
}

#[test]
fn json_log_has_an_object_per_line() {
    let env = Env::new();
    let script = r#"echo 'a "quoted" line'; printf '\377\n'"#;
    env.claude_run().args(["--log-format", "json", "--log", "log", "--", "sh", "-c", script]).assert().code(0);
    let text = fs::read_to_string(env.path("log")).expect("a log");
    let entries: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (ours, childs): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry["stream"].is_null());
    let of = |entries: &[&serde_json::Value], key: &str| entries.iter().map(|entry| entry[key].clone()).collect::<Vec<_>>();
    assert_eq!(of(&childs, "line"), ["a \"quoted\" line", "\u{fffd}"]);
    assert_eq!(of(&childs, "stream"), ["stdout", "stdout"]);
    let events = ["lock.acquiring", "lock.acquired", "run.started", "lock.released", "run.ended"];
    assert_eq!(of(&ours, "event"), events);
    assert!(of(&ours, "message").iter().all(|message| message.is_string()));
    let all: Vec<_> = entries.iter().collect();
    assert!(of(&all, "run").windows(2).all(|pair| pair[0] == pair[1] && pair[0].is_string()));
    assert!(of(&all, "timestamp").iter().all(|time| time.as_str().is_some_and(|time| time.starts_with("20"))));
}

#[test]
fn endless_line_is_logged_in_bounded_redacted_parts() {
    let env = Env::new();
    let script = r#"head -c 65530 /dev/zero | tr '\0' a; printf 'GH_TOKEN=0123456789ab'; head -c 20000000 /dev/zero | tr '\0' ' '; printf 'GH_TOKEN='; head -c 10000000 /dev/zero | tr '\0' b; echo; grep VmHWM /proc/$PPID/status >&2"#;
    let mut command = env.command(binary());
    command.args(["--log", "log", "--", "sh", "-c", script]).stdout(fs::File::create(env.path("out")).expect("a file"));
    let output = command.output().expect("started");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let peak: u64 = stderr.split_whitespace().nth(1).expect("VmHWM").parse().expect("a number");
    assert!(peak < 24 << 10, "{peak} KiB");
    let mut text = childs_lines(&env);
    text.retain(|line| !line.starts_with("stderr: "));
    assert!(text[0].starts_with("stdout: aaa") && text[1..].iter().all(|part| part.starts_with("stdout+ ")));
    let whole: String = text.iter().map(|part| &part["stdout: ".len()..]).collect();
    let spaces = " ".repeat(20_000_000);
    assert!(whole == format!("{}GH_TOKEN=***{spaces}GH_TOKEN=***", "a".repeat(65_530)), "{} bytes", whole.len());
}

#[test]
fn shared_log_never_mixes_lines() {
    let env = Env::new();
    let runs: Vec<_> = ["a", "b", "c", "d"]
        .into_iter()
        .map(|letter| {
            let script = format!("for i in $(seq 200); do head -c 3000 /dev/zero | tr '\\0' {letter}; echo; done");
            env.start(["--lock", "pass-through", "--log", "log", "--", "sh", "-c", &script])
        })
        .collect();
    for run in runs {
        assert_eq!(run.end().code(), 0);
    }
    let lines = childs_lines(&env);
    assert_eq!(lines.len(), 800);
    for line in lines {
        let text = line.strip_prefix("stdout: ").expect("a line");
        assert!(text.len() == 3_000 && text.bytes().all(|byte| byte == text.as_bytes()[0]), "{line}");
    }
}

#[test]
fn unwritable_log_does_not_fail_the_run() {
    let env = Env::new();
    for log in ["/nonesuch/log", "/dev/full"] {
        let ended = env.start(["--log", log, "--", "sh", "-c", "echo out; exit 3"]).end();
        assert_eq!((ended.code(), ended.stdout), (3, vec!["out".to_owned()]), "{:?}", ended.stderr);
        assert_eq!(ended.stderr.iter().filter(|line| line.contains(log)).count(), 1, "{:?}", ended.stderr);
    }
}

#[test]
fn stderr_that_is_the_log_is_written_once() {
    let env = Env::new();
    let mut bash = env.command("bash");
    let script = r#""$0" --log log --timeout 0.3 -- sh -c 'echo err >&2; exec sleep 600' 2>>log"#;
    bash.args(["-c", script]).arg(binary());
    assert_eq!(Running::start(bash).end().code(), 124);
    let lines = lines(&env);
    for once in ["stderr: err", "--timeout 300ms reached: "] {
        assert_eq!(lines.iter().filter(|line| line.contains(once)).count(), 1, "{lines:?}");
    }
}

#[test]
fn messages_carry_event_names() {
    let env = Env::new();
    let events = |file: &str| {
        let text = fs::read_to_string(env.path(file)).unwrap_or_default();
        let events = text.lines().filter_map(|line| line.rsplit_once(" event=")).map(|(_, event)| event.to_owned());
        events.collect::<Vec<_>>()
    };
    let mut holder = env.hold_lock();
    env.claude_run().args(["--wait", "0", "--log", "busy", "true"]).assert().code(75);
    assert_eq!(events("busy"), ["lock.acquiring", "lock.timeout", "run.ended"]);
    let waiter = env.start(["--log", "term", "true"]);
    wait_until("it waits", || events("term").contains(&"lock.waiting".to_owned()));
    waiter.signal(Signal::SIGTERM);
    assert_eq!(waiter.end().code(), 143);
    assert_eq!(events("term"), ["lock.acquiring", "lock.waiting", "lock.interrupted", "run.ended"]);
    let steps = "result new ok; hang";
    let mut command = env.command(binary());
    command.arg("--claude").arg(fake_claude()).args([
        "--log",
        "log",
        "--result-grace",
        "0.1",
        "--",
        "-p",
        steps,
        "--output-format=json",
    ]);
    let run = Running::start(command);
    wait_until("it waits", || events("log").contains(&"lock.waiting".to_owned()));
    holder.close_stdin();
    holder.end();
    assert_eq!(run.end().code(), 0);
    let expected =
        "lock.acquiring lock.waiting lock.acquired run.started run.result run.stopping run.limit lock.released run.ended";
    assert_eq!(events("log").join(" "), expected);
}

#[test]
fn characters_of_a_long_line_stay_whole() {
    let env = Env::new();
    for before in 0..4 {
        let script = r#"printf "%.$1s" xxx; yes '…é' | head -n 60000 | tr -d '\n'; printf '\nnext\n'"#;
        env.claude_run()
            .args(["--log-format", "json", "--log", "log", "--", "sh", "-c", script, "sh"])
            .arg(before.to_string())
            .assert()
            .code(0);
        let text = fs::read_to_string(env.path("log")).expect("a log");
        let entries = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let mut entries: Vec<_> = entries.filter(|entry| !entry["stream"].is_null()).collect();
        let next = entries.pop().expect("another line");
        assert!(next["line"] == "next" && next["continued"].is_null(), "{next}");
        let continued: Vec<_> = entries.iter().map(|entry| entry["continued"] == true).collect();
        assert!(continued.len() > 2 && !continued[0] && continued[1..].iter().all(|continued| *continued), "{continued:?}");
        let line: String = entries.iter().map(|entry| entry["line"].as_str().unwrap_or_default()).collect();
        assert!(line == format!("{}{}", "x".repeat(before.min(3)), "…é".repeat(60_000)), "{before}");
        fs::remove_file(env.path("log")).expect("a log");
    }
}

#[test]
fn carriage_return_is_logged_but_at_a_terminals_line_end() {
    let script = r#"printf 'one\r\nt\rwo\r'; sleep 0.3; printf '\nthree\r\r\nfour\r'"#; // read in two pieces
    for (option, expected) in
        [("--pty=off", ["one\r", "t\rwo\r", "three\r\r", "four\r"]), ("--pty", ["one", "t\rwo", "three\r", "four"])]
    {
        let env = Env::new();
        env.claude_run().args(["--redact", "off", "--log", "log", option, "--", "sh", "-c", script]).assert().code(0);
        let log = fs::read_to_string(env.path("log")).expect("a log"); // `lines` strips them
        let lines = log.split('\n').filter_map(|line| line.split_once(" stdout: ").map(|(_, line)| line));
        assert_eq!(lines.collect::<Vec<_>>(), expected, "{option}");
    }
}

#[test]
fn line_behind_a_cut_one_starts_afresh() {
    let env = Env::new();
    fs::write(env.path("log"), "cut by a full d").expect("a log");
    env.claude_run().args(["--log", "log", "--", "sh", "-c", "echo whole; exit 3"]).assert().code(3);
    let log = fs::read_to_string(env.path("log")).expect("a log");
    assert!(log.starts_with("cut by a full d\n20") && log.contains("stdout: whole\n") && !log.contains("\n\n"), "{log}");
}

#[test]
fn messages_are_masked_and_forge_no_line() {
    let env = Env::new();
    let mut command = env.claude_run();
    command.env("GH_TOKEN", "geheim!").args(["--log", "log", "-v"]);
    command.args(["--lock-helper", "sh -c 'echo key; exec sleep 600'", "--label", "x"]);
    let odd = "none\nclaude-run: forged geheim! ghp_0123456789abcdefghij \u{9b}31m\u{202e}";
    let assert = command.args(["--", odd]).assert().code(127);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    for text in [&stderr, &fs::read_to_string(env.path("log")).expect("a log")] {
        assert!(!text.contains("geheim!") && !text.contains("0123456789") && !text.contains("\nclaude-run: forged"), "{text}");
        assert!(
            text.contains(r"none\nclaude-run: forged *** ghp_***") && !text.contains('\u{9b}') && !text.contains('\u{202e}'),
            "{text}"
        );
    }
    let mut command = env.claude_run();
    command.env("GH_TOKEN", "geheim!").args(["--log-format", "json", "--", odd]);
    let json = command.assert().code(127).get_output().stderr.clone();
    let line: serde_json::Value = serde_json::from_slice(&json).expect("one object");
    assert!(line["message"].as_str().is_some_and(|text| !text.contains("geheim!") && text.contains('\u{202e}')), "{line}");
    assert!(!String::from_utf8_lossy(&json).contains('\u{202e}'));
}

#[test]
fn stdout_that_is_the_log_has_nothing_in_clear() {
    let env = Env::new();
    let mut bash = env.command("bash");
    bash.args(["-c", r#""$0" --log log -- sh -c 'echo GH_TOKEN=geheim; echo ghp_geheim >&2' >>log 2>&1"#]).arg(binary());
    assert_eq!(Running::start(bash).end().code(), 0);
    let mut lines = childs_lines(&env);
    lines.sort();
    assert_eq!(lines, ["stderr: ghp_***", "stdout: GH_TOKEN=***"]);
}

#[test]
fn pipe_as_log_gets_every_line_whole() {
    let env = Env::new();
    // A burst far beyond the pipe, and a reader that is a little late, though it has the FIFO open.
    let script = r#"mkfifo log; exec 3<>log; { sleep 0.3; exec cat; } <log 3>&- >copy &
        "$0" --log log -- seq -f 'line %.0f' 60000 >/dev/null 3>&-; exec 3>&-; wait"#;
    let mut bash = env.command("bash");
    bash.args(["-c", script]).arg(binary());
    assert_eq!(Running::start(bash).end().code(), 0);
    let copy = fs::read_to_string(env.path("copy")).expect("a copy");
    let lines: Vec<_> = copy.lines().filter_map(|line| line.split_once(" stdout: line ").map(|(_, number)| number)).collect();
    assert!(lines.iter().map(|number| number.parse::<u32>().expect("a number")).eq(1..=60_000), "{} lines", lines.len());
}

#[test]
fn reader_of_the_log_that_reads_nothing_is_given_up_once() {
    let env = Env::new();
    // Thousands of lines behind the first that finds no room: to wait for each would take minutes.
    let script = r#"mkfifo log; exec 3<>log; "$0" --log log -- sh -c 'yes "$0" | head -c 20000000; exit 3' "$1" 3>&- | wc -c
        echo "${PIPESTATUS[0]}""#;
    let mut bash = env.command("bash");
    bash.args(["-c", script]).arg(binary()).arg("x".repeat(500));
    let ended = Running::start(bash).end();
    assert_eq!(ended.stdout, ["20000000", "3"]);
    assert_eq!(ended.stderr.len(), 1, "{ended:?}");
    assert!(ended.stderr[0].contains("its reader does not read; lines of it are lost"), "{ended:?}");
}

#[test]
fn full_log_that_is_stdout_or_stderr_is_74() {
    let env = Env::new();
    // 100 KiB, which fail as a full disk does.
    let limited = |options: &str, child: &str, redirection: &str| {
        let script =
            format!(r#"rm -f log; trap '' XFSZ; ulimit -f 100; "$0" {options} --log log -- sh -c '{child}' {redirection}"#);
        let mut bash = env.command("bash");
        bash.args(["-c", &script]).arg(binary());
        Running::start(bash).end()
    };
    for (options, child, redirection, code) in [
        ("", "seq 100000", ">>log 2>&1", 74),
        ("-q --redact off", "seq 100000", ">>log", 74),
        ("--pty", "seq 100000", ">>log", 74),
        (
            "--require-result",
            r#"seq 100000; echo "{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false}""#,
            ">>log",
            74,
        ),
        ("-q", "seq 100000 >&2", "2>>log", 74),
        ("", "seq 100000; exit 3", ">>log", 3),
        // With another copy of it, the log alone is lost.
        ("", "seq 100000", ">/dev/null", 0),
        ("", "seq 100000", "2>>log >/dev/null", 0),
    ] {
        let ended = limited(options, child, redirection);
        assert_eq!(ended.code(), code, "{options} {child} {redirection}: {ended:?}");
        let said = ended.stderr_text().matches("cannot write the log log").count();
        assert_eq!(said, usize::from(!redirection.contains('2')), "{redirection}: {ended:?}");
    }
}
