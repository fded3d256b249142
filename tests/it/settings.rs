//! `claude-run.toml` and `claude-run settings`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::Value;

use crate::env::{Env, Running, binary, fake_claude, needs_root};
use crate::terminal::OnTerminal;

fn write_file(env: &Env, text: &str) -> std::path::PathBuf {
    let path = env.home().join(".claude/claude-run.toml");
    fs::create_dir_all(path.parent().expect("a parent")).expect("a config dir");
    fs::write(&path, text).expect("a settings file");
    path
}

#[test]
fn file_ranks_below_flag_and_variable() {
    let env = Env::new();
    write_file(&env, "timeout = 0.2 # seconds\nlabel = \"from the file\"\nkill-after = \"1m\"\n");
    let sleep = ["--", "-p", "sleep 0.6; exit 3"];
    let run = |command: &mut std::process::Command| {
        command.arg("--claude").arg(fake_claude()).args(sleep).output().expect("started").status.code()
    };
    assert_eq!(run(&mut env.command(binary())), Some(124));
    assert_eq!(run(env.command(binary()).env("CLAUDE_TIMEOUT", "1h")), Some(3));
    assert_eq!(run(env.command(binary()).args(["--timeout", "0"])), Some(3));
    symlink(binary(), env.path("claude")).expect("a link");
    let mut shim = env.command(env.path("claude"));
    shim.env("CLAUDE_RUN_CLAUDE", fake_claude()).args(["-p", "sleep 60"]);
    assert_eq!(Running::start(shim).end().code(), 124);
}

#[test]
fn invalid_file_is_125_with_line_and_key() {
    let env = Env::new();
    for (text, parts) in [
        ("wait = 5\ntimeot = 5\n", [":2: unknown key \"timeot\"", "timeout"]),
        ("\n\nwait = \"42D\"\n", [":3: wait", "42D"]),
        ("lock = \"none\"", [":1: lock", "exclusive, refresh, pass-through"]),
        ("lock = ", ["claude-run.toml:1", ""]),
        ("wait = { x = 1 }", [":1: wait", "inline table"]),
        ("log = false", [":1: log", "text in quotes is wanted, not false"]),
    ] {
        let path = write_file(&env, text).display().to_string();
        for (words, code) in [(&["touch", "started"][..], 125), (&["settings"], 1)] {
            let assert = env.claude_run().args(words).assert().code(code);
            let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
            let is_shown = String::from_utf8_lossy(&assert.get_output().stdout).contains("kill-after ");
            assert_eq!(is_shown, code == 1, "settings shows what it can");
            assert!(stderr.starts_with("claude-run: ") && stderr.lines().count() == 1, "{stderr}");
            assert!(stderr.contains(&path) && parts.iter().all(|part| stderr.contains(part)), "{text:?}: {stderr}");
        }
    }
    assert!(!env.path("started").exists() && !env.lock_file().exists());
}

#[test]
fn invalid_variable_hides_nothing_and_sets_nothing() {
    let env = Env::new();
    for (operation, part) in
        [("status", "held by "), ("mode", "not known"), ("slots", "the bound is "), ("settings", "kill-after ")]
    {
        let assert = env.claude_run().env("CLAUDE_RUN_WAIT", "soon").arg(operation).assert().code(1);
        let text =
            [&assert.get_output().stdout, &assert.get_output().stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        assert!(text[0].contains(part) && text.concat().contains("CLAUDE_RUN_WAIT: \"soon\""), "{operation}: {text:?}");
    }
    for words in [["mode", "refresh"], ["slots", "2"]] {
        env.claude_run().env("CLAUDE_RUN_WAIT", "soon").args(words).assert().code(125).stdout("");
    }
    assert!(!env.home().join(".claude/claude-run.toml").exists());
    let assert = env.claude_run().env("CLAUDE_RUN_LOK", "refresh").arg("settings").assert().code(0);
    let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert_eq!(said, "claude-run: there is no variable CLAUDE_RUN_LOK; did you mean CLAUDE_RUN_LOCK?\n");
}

#[test]
fn unreadable_file_is_no_silent_default() {
    let env = Env::new();
    let path = env.home().join(".claude/claude-run.toml");
    fs::create_dir_all(&path).expect("a directory in its place");
    let assert = env.claude_run().arg("true").assert().code(125);
    assert!(String::from_utf8_lossy(&assert.get_output().stderr).contains("claude-run.toml"));
    fs::remove_dir(&path).expect("removed");
    let path = write_file(&env, "wait = 5");
    fs::set_permissions(env.path(""), fs::Permissions::from_mode(0o755)).expect("permissions");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("permissions");
    // Root may read it all the same: somebody else.
    let mut command = env.command(if nix::unistd::geteuid().is_root() { "setpriv" } else { "env" });
    if nix::unistd::geteuid().is_root() {
        command.args(["--reuid", "65534", "--clear-groups"]);
    }
    command.arg(binary()).arg("true");
    let ended = Running::start(command).end();
    assert!(ended.code() == 125 && ended.stderr_text().contains("claude-run.toml"), "{ended:?}");
}

#[test]
fn settings_prints_each_value_and_origin() {
    let env = Env::new();
    let file = write_file(&env, "wait = \"20m\"\npty = false\nredact-names = [\"a\"]\n").display().to_string();
    let mut command = env.claude_run();
    command.args(["--lock", "pass-through"]).env("CLAUDE_TIMEOUT", "90").env("LOG_AGENT", "fixer");
    let output = command.arg("settings").assert().code(0).get_output().clone();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [
        &["lock", "pass-through", "flag"][..],
        &["timeout", "90", "CLAUDE_TIMEOUT"],
        &["label", "fixer", "LOG_AGENT"],
        &["wait", "20m", &format!("{file}:1")],
        &["pty", "off", &format!("{file}:2")],
        &["kill-after", "5s", "default"],
        &["verbosity", "warnings", "default"],
        &["redact-names", "[\"a\"]", &format!("{file}:3")],
        &["redact-patterns", "none", "default"],
    ] {
        assert!(rows.iter().any(|found| found == row), "{row:?} is not in\n{text}");
    }
    let mut command = env.claude_run();
    let output = command.args(["settings", "--json"]).assert().code(0).get_output().clone();
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let wait = all.iter().find(|setting| setting["name"] == "wait").expect("wait");
    assert_eq!((&wait["value"], &wait["origin"], &wait["line"]), (&"20m".into(), &"file".into(), &1.into()));
    assert!(!env.lock_file().exists(), "it only looks");
}

#[test]
fn program_called_settings_goes_after_dashes() {
    let env = Env::new();
    env.script("bin/settings", "#!/bin/sh\necho mine $1\n");
    let path = format!("{}:/usr/bin:/bin", env.path("bin").display());
    env.claude_run().env("PATH", &path).args(["--", "settings", "--json"]).assert().code(0).stdout("mine --json\n");
    env.claude_run().env("PATH", &path).args(["settings", "--bad"]).assert().code(125).stdout("");
    let help = env.claude_run().args(["settings", "--help"]).assert().code(0).get_output().clone();
    assert!(String::from_utf8_lossy(&help.stdout).contains("--json"));
}

#[test]
fn credentials_in_place_of_the_file_are_not_printed() {
    let env = Env::new();
    let secret = "sk-ant-oat01-abcdefghijklmnop";
    for text in [
        format!("{{\"claudeAiOauth\":{{\"accessToken\":\"{secret}\"}}}}"),
        format!("wait = \"{secret}\""),
        format!("lock-helper = \"-x --user root:{secret}\""),
        format!("{secret} = 1"),
        format!("wait = {secret}"),
        "x".repeat(7_000_000),
        format!("wait = \"{}\"", "x".repeat(100_000)),
    ] {
        let path = write_file(&env, &text);
        let assert = env.claude_run().arg("true").assert().code(125);
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(!stderr.contains("abcdefgh") && stderr.len() < 5_000 && stderr.lines().count() == 1, "{stderr}");
        assert!(stderr.contains(&path.display().to_string()), "{stderr}");
    }
}

#[test]
fn number_is_read_as_it_is_written() {
    let env = Env::new();
    for (text, code) in [("timeout = 1e-400\n", 124), ("timeout = \"1e-10000\"\n", 124), ("timeout = 0.0\n", 3)] {
        write_file(&env, text);
        env.claude_run().args(["sh", "-c", "sleep 0.5; exit 3"]).assert().code(code);
    }
    write_file(&env, "slots = 4.0\n");
    env.claude_run().arg("true").assert().code(125);
    write_file(&env, "");
    env.claude_run().args(["--slots", "4.0", "true"]).assert().code(125);
}

#[test]
fn text_from_elsewhere_does_not_act_on_a_terminal() {
    let env = Env::new();
    let odd = "\u{1b}]52;c;eA==\u{7}\u{9b}31m\u{202e}\r\nnext: forged";
    let mut command = env.command(binary());
    command.env("CLAUDE_RUN_LABEL", odd).arg("settings");
    let mut terminal = OnTerminal::start(command);
    let label = terminal.shows("label ");
    assert!(label.contains(r"\u{1b}]52;c;eA==\u{7}\u{9b}31m\u{202e}\r\nnext: forged"), "{label:?}");
    let mut command = env.claude_run();
    let json = command.env("CLAUDE_RUN_LABEL", odd).args(["settings", "--json"]).assert().code(0).get_output().clone();
    let text = String::from_utf8(json.stdout).expect("text");
    assert!(!text.trim_end().contains(|c: char| c.is_control() || c == '\u{202e}'), "{text}");
    let all: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    assert!(all.iter().any(|setting| setting["value"] == odd));
}

#[test]
fn file_that_others_can_write_names_no_program() {
    let env = Env::new();
    let marker = env.path("started");
    let program = env.script("bin/named", &format!("#!/bin/sh\ntouch '{}'\n", marker.display()));
    let [claude, helper] = ["claude", "lock-helper"].map(|key| format!("wait = 5\n{key} = \"{}\"\n", program.display()));
    let texts = [&*claude, &*helper, "log = \"log\"\n", "record = \"record\"\n", "redact = \"off\"\n"];
    let dir = env.home().join(".claude");
    let check = |what: &std::path::Path, mode: u32, text: &str, code: i32| {
        let file = write_file(&env, text);
        fs::set_permissions(what, fs::Permissions::from_mode(mode)).expect("permissions");
        let assert = env.claude_run().arg("true").assert().code(code);
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        if code == 125 {
            assert!(stderr.contains(&format!("{} has owner ", what.display())), "{stderr}");
            assert!(stderr.contains(&format!("mode {mode:04o}")) && stderr.contains(&file.display().to_string()), "{stderr}");
            let doctor = env.claude_run().arg("doctor").assert().code(1);
            assert!(String::from_utf8_lossy(&doctor.get_output().stdout).contains("has owner "));
        }
    };
    for text in texts {
        let file = write_file(&env, "");
        for mode in [0o666, 0o664] {
            check(&file, mode, text, 125);
        }
        check(&file, 0o666, "wait = 5\n", 0);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("permissions");
        for (dir, mode) in [(&dir, 0o777), (&env.home(), 0o775)] {
            check(dir, mode, text, 125);
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).expect("permissions");
        }
    }
    assert!(!marker.exists());
}

/// Whoever can replace a link on the way to the file chooses the file.
#[test]
fn file_behind_a_link_that_others_could_replace_names_no_program() {
    let env = Env::new();
    let marker = env.path("started");
    let program = env.script("bin/named", &format!("#!/bin/sh\ntouch '{}'\n", marker.display()));
    let text = format!("claude = \"{}\"\n", program.display());
    let [open, ours, dir] = ["open", "ours", "dir"].map(|name| env.path(name));
    for dir in [&open, &ours, &dir] {
        fs::create_dir(dir).expect("a directory");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("permissions");
    }
    fs::write(dir.join("claude-run.toml"), text).expect("a file");
    let run = |config_dir: &std::path::Path| {
        let mut command = env.claude_run();
        let ended = command.env("CLAUDE_CONFIG_DIR", config_dir).args(["--", "-p", "x"]).assert().get_output().clone();
        (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
    };
    // Of the config dir, of a directory above it, by a relative target, and of the file alone.
    let links = [("config", "../dir", ""), ("above", "..", "dir"), ("far", &*dir.to_string_lossy(), "")];
    let toml = ours.join("alone/claude-run.toml");
    fs::create_dir(ours.join("alone")).expect("a directory");
    for (name, target, below) in links {
        for place in [&open, &ours] {
            symlink(target, place.join(name)).expect("a link");
        }
        assert_eq!(run(&ours.join(name).join(below)).0, Some(0), "{name}: ours");
        assert!(fs::remove_file(&marker).is_ok(), "{name}");
        for mode in [0o777, 0o1777] {
            fs::set_permissions(&open, fs::Permissions::from_mode(mode)).expect("permissions");
            let expected = match (mode, needs_root("a link of another user")) {
                (0o777, _) => format!("{} has owner ", open.display()),
                (_, true) => format!("{} is a link of uid 1000", open.join(name).display()),
                (_, false) => continue,
            };
            if mode == 0o1777 {
                std::os::unix::fs::lchown(open.join(name), Some(1000), None).expect("an owner");
            }
            // Also where ours leads there.
            let _ = fs::remove_file(&toml);
            symlink(open.join(name).join(below).join("claude-run.toml"), &toml).expect("a link");
            for config_dir in [open.join(name).join(below), ours.join("alone")] {
                let (code, stderr) = run(&config_dir);
                assert!(code == Some(125) && stderr.contains(&expected), "{name} {mode:o}: {code:?} {stderr}");
            }
        }
    }
    assert!(!marker.exists());
}

#[test]
fn fifo_in_place_of_the_file_keeps_its_data() {
    let env = Env::new();
    let path = write_file(&env, "");
    fs::remove_file(&path).expect("removed");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let mut fifo = fs::File::options().read(true).write(true).open(&path).expect("both ends");
    fifo.write_all(b"wait = 5\n").expect("written");
    for (words, code) in [(&["true"][..], 125), (&["settings"], 1), (&["mode", "refresh"], 125)] {
        let assert = env.claude_run().args(words).assert().code(code);
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.contains(&path.display().to_string()), "{stderr}");
    }
    let mut bytes = [0; 9];
    fifo.read_exact(&mut bytes).expect("still there");
    assert_eq!(&bytes, b"wait = 5\n");
}
