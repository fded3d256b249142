//! The command line: what is whose, and refusals that teach.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::env::{Env, binary, fake_claude, state, wait_until};

#[test]
fn word_with_a_dash_is_an_argument_of_claude() {
    let env = Env::new();
    for words in [&["--", "-p", "say hi"][..], &["--", "claude", "-p", "say hi"], &["claude", "-p", "say hi"]] {
        env.claude_run().arg("--claude").arg(fake_claude()).args(words).assert().code(0).stdout("hi\n");
        env.claude_run().env("CLAUDE_RUN_CLAUDE", fake_claude()).args(words).assert().code(0).stdout("hi\n");
    }
}

#[test]
fn arguments_pass_byte_for_byte_without_a_shell() {
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
        (&["-p", "hi"], "there is no option -p (put claude's arguments after `--`: `claude-run -- -p ...`)"),
        (&["--json", "status"], "there is no option --json; it is one of status and its like: `claude-run status --json`"),
        (&["redact", "a.log"], "redact: \"a.log\" is one word too many; it reads stdin: `claude-run redact <a.log`"),
        (&["--wiat", "1", "x"], "there is no option --wiat; did you mean --wait?"),
        (
            &["--foreground", "x"],
            "there is no option --foreground (put claude's arguments after `--`: `claude-run -- --foreground ...`; for flock's",
        ),
        (&["--log-file", "x"], "there is no option --log-file; did you mean --log?"),
        (&["--lock-timeout=5", "x"], "did you mean --wait?"),
        (&["-n", "x"], "`claude-run help coming-from`)"),
        (&["--wait"], "--wait needs a value (see `claude-run --help`)"),
        (&["--quiet=1", "x"], "--quiet takes no value"),
        (&["status", "--jsn"], "status: there is no option --jsn; did you mean --json? (see `claude-run status --help`)"),
        (&["status", "x"], "status: \"x\" is one word too many (see `claude-run status --help`)"),
        (&["report", "--json", "--prometheus"], "report: --json and --prometheus exclude each other; leave one out"),
        (&["completions"], "completions: SHELL is missing (see"),
        (&["completions", "tcsh"], "bash, fish, zsh (see"),
        (&["mode", "refesh"], "pass-through; did you mean refresh?"),
        (&["--lock", "none", "x"], "exclusive, refresh, pass-through"),
        (&["--leftovers", "x", "x"], "kill, keep"),
        (&["--stdin", "x", "x"], "inherit, null"),
        (&["--log-format", "x", "x"], "text, json"),
        (&["-E", "-1", "x"], "0 to 255"),
        (&["report", "--since", "-1"], "negative duration"),
        (&["mode", "refresh", "--drain", "-1"], "negative duration"),
        (&["--config-dir", "", "x"], "--config-dir"),
    ] {
        let assert = env.claude_run().args(words).assert().code(125).stdout("");
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.starts_with("claude-run: ") && stderr.contains(part), "{words:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{words:?}: {stderr}");
    }
}

#[test]
fn bad_variable_is_125_and_named_with_its_value() {
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
    let text = |word: &str| {
        let assert = env.claude_run().arg(word).assert().code(0).stderr("");
        String::from_utf8_lossy(&assert.get_output().stdout).into_owned()
    };
    let (short, long) = (text("-h"), text("--help"));
    for part in ["Session lock:", "Operations:", "Exit codes:", "Examples:", "[env: CLAUDE_RUN_LOCK]", "\n  -h\n", "--version"]
    {
        assert!(long.contains(part), "{part}: {long}");
    }
    let too_long = |text: &str, most| text.lines().find(|line| line.chars().count() > most).map(str::to_owned);
    assert_eq!(too_long(&long, 100), None);
    // On one screen, with a prompt below.
    assert!(short.lines().count() < 24 && short.is_ascii(), "{short}");
    assert_eq!(too_long(&short, 79), None);
    assert!(short.find("  status ") < short.find("--lock MODE"), "{short}");
    for operation in claude_run::config::cli::command().get_subcommands() {
        assert!(short.contains(operation.get_name()), "{}: {short}", operation.get_name());
    }
    for option in ["-w, --wait DUR", "--timeout DUR", "--require-result", "-v, -q", "claude-run --help"] {
        assert!(short.contains(option), "{option}: {short}");
    }
    let codes = long.split("Exit codes:").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("codes");
    let codes = codes.lines().filter_map(|line| line.split_whitespace().next()?.parse::<u8>().ok());
    assert!(codes.is_sorted(), "{long}");
    assert_eq!(text("-h"), text("-qh"));
    assert_eq!(text("--version"), format!("claude-run {}\n", env!("CLAUDE_RUN_VERSION")));
    assert_eq!(text("-V"), text("--version"));
}

#[test]
fn version_names_the_commit() {
    let git = |words: &[&str]| Command::new("git").args(words).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let is_ours = git(&["rev-parse", "--show-toplevel"])
        .is_ok_and(|output| output.stdout.trim_ascii_end() == env!("CARGO_MANIFEST_DIR").as_bytes());
    let commit = git(&["log", "-1", "--format=%h", "--abbrev=12"]).ok().filter(|output| is_ours && output.status.success());
    let version = env!("CLAUDE_RUN_VERSION");
    match commit {
        Some(commit) => {
            let commit = String::from_utf8(commit.stdout).expect("text");
            assert!(version.starts_with(&format!("{} ({} 20", env!("CARGO_PKG_VERSION"), commit.trim())), "{version}");
        }
        None => assert_eq!(version, env!("CARGO_PKG_VERSION")),
    }
}

#[test]
fn colours_appear_on_terminals_or_on_request() {
    let env = Env::new();
    let colours = |words: &[&str], variable: Option<(&str, &str)>| {
        let output = env.claude_run().env("CLAUDE_RUN_CLAUDE", fake_claude()).args(words).envs(variable).assert();
        output.get_output().stdout.contains(&b'\x1b')
    };
    for words in [&["-h"][..], &["--help"], &["status", "--help"], &["doctor"]] {
        assert!(!colours(words, None), "{words:?}");
        assert!(colours(words, Some(("CLICOLOR_FORCE", "1"))), "{words:?}");
    }
    assert!(!colours(&["doctor", "--json"], Some(("CLICOLOR_FORCE", "1"))));
}

#[test]
fn help_cut_short_by_its_reader_is_no_failure() {
    let env = Env::new();
    let mut claude_run = env.command(binary());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = claude_run.arg("--help").stdout(writer).output().expect("started");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn trouble_counts_without_a_reader() {
    let env = Env::new();
    env.make_lock_file();
    fs::write(env.home().join(".claude/claude-run.toml"), "lock = \"none\"\n").expect("a file");
    for words in ["doctor", "status", "status --json", "status --watch", "mode", "slots", "settings", "settings --json"] {
        let mut claude_run = env.command(binary());
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = claude_run.args(words.split(' ')).stdout(writer).output().expect("started");
        assert_eq!(output.status.code(), Some(1), "{words}: {output:?}");
    }
}

/// node makes a pipe non-blocking, for whoever else has it, too.
#[test]
fn nonblocking_stdin_and_stdout_of_operations_are_waited_for() {
    let env = Env::new();
    let lines = "a line as any other\n".repeat(20_000);
    let help = env.claude_run().arg("--help").assert().code(0).get_output().stdout.clone();
    for (word, input, expected) in [("--help", "", &*help), ("redact", &*lines, lines.as_bytes())] {
        let [(stdin, mut keyboard), (mut screen, stdout)] = [(); 2].map(|()| {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
            fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).expect("a small pipe");
            (File::from(reader), File::from(writer))
        });
        for ours in [&keyboard, &screen] {
            fcntl(ours, FcntlArg::F_SETFL(OFlag::empty())).expect("a blocking end");
        }
        let mut child = env.command(binary()).arg(word).stdin(stdin).stdout(stdout).spawn().expect("started");
        let waits = || state(child.id() as i32).is_some_and(|state| "SZ".contains(state));
        wait_until("it waits for us, or has failed", waits);
        let mut shown = Vec::new();
        thread::scope(|scope| {
            scope.spawn(move || keyboard.write_all(input.as_bytes()));
            screen.read_to_end(&mut shown).expect("output");
        });
        assert_eq!((child.wait().expect("ended").code(), shown.len()), (Some(0), expected.len()), "{word}");
        assert!(shown == expected, "{word}");
    }
}

#[test]
fn closed_stdin_or_stdout_of_an_operation_is_125() {
    let env = Env::new();
    for words in [
        "-h >&-",
        "--help >&-",
        "--help 1</dev/null",
        "--version >&-",
        "help modes >&-",
        "man-page >&-",
        "completions bash >&-",
        "settings >&-",
        "status --json >&-",
        "redact <<<x >&-",
        "redact >&-",
        "redact <&-",
        "redact 0>/dev/null",
        "redact <&- >&-",
    ] {
        let output = env.command("bash").args(["-c", &format!("\"$0\" {words}")]).arg(binary()).output().expect("started");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(125), 0), "{words}: {text}");
        let is_said = text.contains("cannot write to stdout") || text.contains("cannot read stdin");
        assert!(is_said && text.contains("Bad file descriptor"), "{words}: {text}");
    }
}

#[test]
fn missing_program_suggests_an_operation() {
    let env = Env::new();
    env.claude_run()
        .arg("statsu")
        .assert()
        .code(127)
        .stderr("claude-run: statsu: not found on PATH; did you mean `claude-run status`?\n");
    env.claude_run()
        .args(["--claude", "claude-2", "--", "-p", "x"])
        .assert()
        .code(127)
        .stderr("claude-run: claude-2: not found in the working directory; --claude is a path, PATH is not searched for it\n");
    env.claude_run().arg("nonesuch").assert().code(127).stderr("claude-run: nonesuch: not found on PATH\n");
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
            && text.contains(r#""message":"--timeout 100ms reached: sending TERM to pid "#)
            && text.contains(r#""limit":"hard-limit","after_ms":"#)
            && text.ends_with("}\n"),
        "{text}"
    );
    let assert = env.claude_run().args(["--log-format", "json", "nonesuch"]).assert().code(127);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(text.contains(r#""message":"nonesuch: not found on PATH""#), "{text}");
}

#[test]
fn messages_have_no_words_of_the_code() {
    let env = Env::new();
    let script = "trap '' TERM; sleep 600 & kill -STOP $$; sleep 600";
    let run = env.start(["-vv", "--log-format", "json", "--timeout", "0.3", "-k", "0.2", "--", "sh", "-c", script]);
    let ended = run.end();
    assert_eq!(ended.code(), 124);
    for line in &ended.stderr {
        let message: serde_json::Value = serde_json::from_str(line).expect("JSON");
        for (name, value) in message.as_object().expect("an object") {
            let is_code =
                |text: &str| ["Some(", "Ok(", "Err(", "None", "Exited(", "Killed("].iter().any(|word| text.contains(word));
            assert!(!value.as_str().is_some_and(is_code), "{name}: {line}");
        }
    }
    let mut run = env.claude_run();
    let assert = run.args(["--timeout", "0.1", "sleep", "600"]).assert().code(124);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    let pid = stderr.strip_prefix("claude-run: --timeout 100ms reached: sending TERM to pid ").expect(&stderr);
    assert!(pid.trim_end().parse::<i32>().is_ok(), "{stderr}");
}

#[test]
fn what_is_no_program_is_126_and_what_is_missing_127() {
    let env = Env::new();
    env.script("bin/runs", "#!/bin/sh\nexit 9\n");
    std::fs::create_dir_all(env.path("other/runs")).expect("a directory");
    std::fs::create_dir(env.path("other/dir")).expect("a directory");
    std::fs::write(env.path("other/text"), "text").expect("a file");
    let path = [env.path("other"), env.path("bin")].map(|dir| dir.display().to_string()).join(":");
    for (word, code) in [
        (".", 126),
        ("..", 126),
        ("./", 126),
        ("dir", 126),
        ("text", 126),
        ("./other/text", 126),
        ("none", 127),
        ("./none", 127),
        ("runs", 9),
    ] {
        env.claude_run().env("PATH", &path).args(["--", word]).assert().code(code);
        // As its peers.
        let mut peer = env.command("/usr/bin/env");
        assert_eq!(peer.env("PATH", &path).arg(word).output().expect("env").status.code(), Some(code), "{word}");
    }
}

#[test]
fn version_and_commands_of_claude_are_understood() {
    let env = Env::new();
    let version = env.claude_run().arg("--version").assert().code(0).get_output().stdout.clone();
    env.claude_run().arg("version").assert().code(0).stdout(version);
    let stderr = env.claude_run().args(["--", "mcp", "list"]).assert().code(127).get_output().stderr.clone();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(stderr.contains("claude's own command is `claude-run claude mcp"), "{stderr}");
}

#[test]
fn help_prints_chapters_and_operations() {
    let env = Env::new();
    let help = |words: &[&str], code: i32| {
        // As in an empty container.
        let mut command = env.claude_run();
        let assert = command.env_remove("HOME").env("LANG", "C.UTF-8").arg("help").args(words).assert().code(code);
        String::from_utf8_lossy(&[&assert.get_output().stdout[..], &assert.get_output().stderr].concat()).into_owned()
    };
    for (topic, chapter) in claude_run::guide::TOPICS {
        assert_eq!(help(&[topic], 0), *chapter, "{topic}");
        assert!(help(&[], 0).contains(topic), "{topic}");
    }
    assert!(help(&[], 0).contains("--refresh-margin"));
    assert!(help(&["status"], 0).contains("--watch"));
    for topic in ["watchdgo", "WATCHDOG"] {
        let refusal = help(&[topic], 125);
        assert!(refusal.contains("did you mean \"watchdog\"?") && refusal.lines().count() == 1, "{refusal}");
    }
}

#[test]
fn long_names_of_verbosity_count() {
    let env = Env::new();
    let messages = |words: &[&str]| {
        let assert = env.claude_run().args(words).args(["--timeout", "0.1", "sleep", "600"]).assert().code(124);
        String::from_utf8_lossy(&assert.get_output().stderr).lines().count()
    };
    let [quiet, warnings, info] = [&["--quiet"][..], &[], &["--verbose"]].map(messages);
    assert!(quiet == 0 && warnings > 0 && info > warnings, "{quiet} {warnings} {info}");
}

#[test]
fn unknown_variable_is_one_warning() {
    let env = Env::new();
    let messages = |name: &str| {
        let assert = env.claude_run().env(name, "1").arg("true").assert().code(0);
        String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
    };
    // That of the option, or one that is spelled nearly so.
    let cases = [
        ("CLAUDE_RUN_WIAT", "; did you mean CLAUDE_RUN_WAIT?"),
        ("CLAUDE_RUN_TIMEOUT", "; did you mean CLAUDE_TIMEOUT?"),
        ("CLAUDE_RUN_CONFIG_DIR", "; did you mean CLAUDE_CONFIG_DIR?"),
        ("CLAUDE_RUN_FOO", ""),
    ];
    for (name, similar) in cases {
        assert_eq!(messages(name), format!("claude-run: there is no variable {name}{similar}\n"));
    }
    assert_eq!(messages("CLAUDE_RUN_XYZXYZ").lines().count(), 1);
    for name in ["CLAUDE_RUN_LABEL", "CLAUDE_RUN_ID", "CLAUDE_RUN_BIN", "CLAUDE_RUNNER"] {
        assert_eq!(messages(name), "", "{name}");
    }
}
