//! The config dir: looked at before anything else, because claude fails over it in silence.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::env::{Env, fake_claude};

fn stderr(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

#[test]
fn missing_dir_is_created_for_its_owner_only() {
    let env = Env::new();
    let dir = env.path("deep/config");
    let assert = env.claude_run().env("CLAUDE_CONFIG_DIR", &dir).arg("true").assert().code(0);
    // It may have been mistyped, or lead into a volume that is not mounted.
    assert!(stderr(&assert).contains("deep/config (CLAUDE_CONFIG_DIR) is not there: ") && stderr(&assert).lines().count() == 1);
    env.claude_run().env("CLAUDE_CONFIG_DIR", &dir).arg("true").assert().code(0).stderr("");
    env.claude_run().arg("true").assert().code(0).stderr("");
    assert_eq!(fs::metadata(&dir).expect("made").permissions().mode() & 0o777, 0o700);
    assert!(dir.join("session.lock").exists());
}

#[test]
fn missing_dir_is_one_finding_of_doctor() {
    let env = Env::new();
    let assert = env.claude_run().env("CLAUDE_CONFIG_DIR", env.path("none")).arg("doctor").assert();
    let text = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
    assert!(text.contains("config dir") && text.contains("is not there"), "{text}");
    for check in ["several hosts", "file system", "sibling lock"] {
        assert!(!text.contains(&format!("  {check}")), "{text}");
    }
    assert!(!env.path("none").exists());
}

#[test]
fn missing_dir_is_told_by_operations() {
    let env = Env::new();
    for words in [&["status"][..], &["mode"], &["slots"], &["settings"], &["report"], &["events"], &["mode", "refresh"]] {
        let assert = env.claude_run().args(words).assert();
        assert!(!stderr(&assert).contains("is not there"), "{words:?}: the default is made by whoever comes first");
        let assert = env.claude_run().args(words).args(["--config-dir", "mistyped"]).assert().code(0);
        let told = stderr(&assert);
        assert!(told.contains("mistyped (--config-dir) is not there: ") && told.lines().count() == 1, "{words:?}: {told}");
    }
    let assert = env.claude_run().args(["status", "--config-dir", "mistyped"]).assert();
    assert_eq!(stderr(&assert), "", "it has been made to set the mode");
}

#[test]
fn empty_variable_is_unset_for_the_child_too() {
    let env = Env::new();
    let assert = env
        .claude_run()
        .env("CLAUDE_CONFIG_DIR", "")
        .env("CLAUDE_RUN_CLAUDE", fake_claude())
        .args(["--", "-p", "env CLAUDE_CONFIG_DIR"])
        .assert();
    let assert = assert.code(0).stdout("CLAUDE_CONFIG_DIR unset\n");
    assert!(stderr(&assert).contains("CLAUDE_CONFIG_DIR is set but empty"));
    assert!(env.lock_file().exists());
}

#[test]
fn flag_sets_the_dir_for_the_child_too() {
    let env = Env::new();
    let dir = env.path("config").display().to_string();
    let run = env
        .claude_run()
        .args(["--config-dir", "config", "--claude"])
        .arg(fake_claude())
        .args(["--", "-p", "env CLAUDE_CONFIG_DIR"])
        .assert();
    run.code(0).stdout(format!("CLAUDE_CONFIG_DIR={dir}\n"));
    assert!(env.path("config/session.lock").exists());
}

#[test]
fn file_in_its_place_is_125_and_named() {
    let env = Env::new();
    fs::write(env.path("file"), "").expect("a file");
    let assert = env.claude_run().env("CLAUDE_CONFIG_DIR", env.path("file")).args(["touch", "started"]).assert().code(125);
    assert!(stderr(&assert).contains(&env.path("file").display().to_string()));
    let assert =
        env.claude_run().env("CLAUDE_CONFIG_DIR", env.path("file/below")).args(["touch", "started"]).assert().code(125);
    assert!(stderr(&assert).contains("file/below"));
    env.claude_run().env("CLAUDE_CONFIG_DIR", "/proc/nonesuch").args(["touch", "started"]).assert().code(125);
    assert!(!env.path("started").exists());
}

/// What follows from it is not said again.
#[test]
fn dir_that_cannot_be_is_said_alike_by_all() {
    let env = Env::new();
    fs::write(env.path("file"), "").expect("a file");
    symlink(env.path("unmounted"), env.path("link")).expect("a link");
    let link = format!("is a link to {}, which is not there (is it not mounted?)", env.path("unmounted").display());
    let below = format!("is below {}, which {link}", env.path("link").display());
    for (dir, what) in
        [("file", "is not a directory"), ("file/x", "cannot be reached"), ("link", &link), ("link/", &link), ("link/x", &below)]
    {
        let call = |words: &[&str], code| {
            let assert = env.claude_run().env("CLAUDE_CONFIG_DIR", env.path(dir)).args(words).assert().code(code);
            assert_eq!(assert.get_output().stdout.is_empty(), code == 125, "{words:?}");
            String::from_utf8_lossy(&assert.get_output().stdout).into_owned() + &stderr(&assert)
        };
        for words in [&["touch", "started"][..], &["mode", "refresh"], &["slots", "2"]] {
            let said = call(words, 125);
            assert!(said.contains(what) && said.lines().count() == 1, "{words:?}: {said}");
        }
        let shown = call(&["status"], 1);
        assert!(shown.contains(what) && shown.matches("trouble ").count() == 1 && !shown.contains("log in"), "{shown}");
        let found = call(&["doctor"], 1);
        assert!(found.contains(what) && found.ends_with("1 failure, 0 warnings in 1 check\n"), "{found}");
    }
    assert!(!env.path("started").exists() && !env.path("unmounted").exists());
}

#[test]
fn missing_home_says_what_to_set() {
    let env = Env::new();
    let assert = env.claude_run().env_remove("HOME").arg("true").assert().code(125);
    assert!(stderr(&assert).contains("HOME") && stderr(&assert).contains("CLAUDE_CONFIG_DIR"));
    env.claude_run().env_remove("HOME").args(["--lock", "pass-through", "true"]).assert().code(0);
    env.claude_run().env_remove("HOME").arg("--lock-file").arg(env.path("lock")).arg("true").assert().code(0);
}

#[test]
fn odd_paths_are_warned_about() {
    let env = Env::new();
    let decomposed = env.path("cafe\u{301}");
    let assert = env.claude_run().env("CLAUDE_CONFIG_DIR", &decomposed).arg("true").assert().code(0);
    assert!(stderr(&assert).contains("NFC"));
    fs::create_dir(env.path("caf\u{e9}")).expect("a config dir");
    env.claude_run().env("CLAUDE_CONFIG_DIR", env.path("caf\u{e9}")).arg("true").assert().code(0).stderr("");
    let assert = env.claude_run().env("CLAUDE_CONFIG_DIR", "relative").arg("true").assert().code(0);
    assert!(stderr(&assert).contains("relative"));
}

#[test]
fn read_only_dir_is_warned_about_and_used() {
    if !crate::env::can_unshare("-rm") {
        return;
    }
    // A read-only mount, since root may write anywhere else.
    let env = Env::new();
    let path = env.make_lock_file();
    let dir = path.parent().expect("a parent").display().to_string();
    let script = format!(r#"mount --bind '{dir}' '{dir}' && mount -o remount,bind,ro '{dir}' && "$0" -- echo ran"#);
    let mut unshare = env.command("unshare");
    unshare.args(["-rm", "bash", "-c", &script]).arg(crate::env::binary());
    let ended = crate::env::Running::start(unshare).end();
    assert_eq!((ended.code(), &ended.stdout[..]), (0, &["ran".to_owned()][..]), "{ended:?}");
    assert!(ended.stderr_text().contains("not writable"), "{ended:?}");
}

#[test]
fn fifo_in_place_of_a_file_hangs_nothing() {
    for (name, code) in [
        ("claude-run.toml", 125),
        (".credentials.json", 4),
        (".oauth_refresh.lock.owner", 4),
        ("settings.json", 4),
        ("claude-run/history.jsonl", 4),
        ("claude-run/runs/1-1.json", 4),
        ("telemetry/1p_failed_events.a.b.json", 4),
    ] {
        let env = crate::env::Env::new();
        let fifo = env.home().join(".claude").join(name);
        std::fs::create_dir_all(fifo.parent().expect("a parent")).expect("a directory");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let ended = env.start(["--lock", "refresh", "--", "sh", "-c", "exit 4"]).end();
        assert_eq!(ended.code(), code, "{name}: {ended:?}");
        assert_eq!(code == 125, ended.stderr_text().contains("claude-run.toml: it is a FIFO"), "{name}: {ended:?}");
        for operation in ["status", "report", "doctor", "events", "settings"] {
            let mut command = env.command(crate::env::binary());
            command.env("CLAUDE_RUN_CLAUDE", fake_claude()).arg(operation);
            let ended = crate::env::Running::start(command).end();
            assert!(ended.code() <= 1 || ended.code() == 125 && ended.stderr_text().contains(name), "{name}: {ended:?}");
        }
    }
}
