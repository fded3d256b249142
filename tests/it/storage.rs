//! Where claude keeps its login: the config dir, unless a variable moves it. Everything that looks at the login follows, and every lock
//! around a refresh is respected, whatever it is for.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::doctor::{command, doctor, expect, healthy, in_namespace};
use crate::env::{Ended, Env, Running, binary, fake_claude, needs_root};
use crate::oauth::{EXPIRED, FRESH, StandIn, age, credentials};
use crate::refresh_locks::{expect_deferral, lock_of};

const STORAGE: &str = "CLAUDE_SECURESTORAGE_CONFIG_DIR";

/// Ways to move the storage to `dir`: a variable, a settings file, words for claude.
struct Move {
    about: &'static str,
    variable: Option<(&'static str, PathBuf)>,
    settings: Option<String>,
    words: Vec<String>,
}

fn moves(dir: &Path) -> Vec<Move> {
    let block = |name: &str| format!(r#"{{"env":{{"{name}":"{}"}}}}"#, dir.display());
    let by = |about, variable, settings, words| Move { about, variable, settings, words };
    vec![
        by("variable", Some((STORAGE, dir.to_owned())), None, vec![]),
        by("user settings as JavaScript reads them", None, Some(block(STORAGE).replacen('{', r#"{"x":"\ud800","#, 1)), vec![]),
        by("config dir in user settings", None, Some(block("CLAUDE_CONFIG_DIR")), vec![]),
        by("typed settings", None, None, vec!["--settings".into(), block(STORAGE)]),
        by("typed settings, one word", None, None, vec![format!("--settings={}", block(STORAGE))]),
    ]
}

#[test]
fn storage_is_followed_wherever_it_is_moved() {
    for number in 0..5 {
        let env = Env::new();
        let storage = env.path("storage");
        fs::create_dir(&storage).expect("a directory");
        let Move { about, variable, settings, words } = moves(&storage).remove(number);
        env.log_in(FRESH); // of no use to anybody
        fs::write(storage.join(".credentials.json"), credentials(EXPIRED)).expect("a login");
        if let Some(text) = settings {
            fs::write(env.config_dir().join("settings.json"), text).expect("settings");
        }
        let stand_in = StandIn::start(&env, &[]);
        let mut agent = env.command(binary());
        agent.env("FAKE_API", &stand_in.address).envs(variable.clone());
        // The fake reads no settings.
        let fake = format!("env {STORAGE}={} {}", storage.display(), fake_claude().display());
        let fake = env.script("fake", &format!("#!/bin/sh\nexec {fake} \"$@\"\n"));
        agent.args(["--lock", "refresh", "--claude"]).arg(fake).args(["--", "-p", "signals; ready; refresh modern posted"]);
        agent.args(words.clone());
        let run = Running::start(agent);
        run.ready();
        while run.line() != "posted" {}
        assert!(env.is_locked(), "{about}: a refresh is due");
        run.signal(Signal::SIGTERM);
        expect_deferral(&run);
        if words.is_empty() {
            let mut status = env.claude_run();
            let status = status.envs(variable.clone()).args(["status", "--json"]).assert();
            let status: Value = serde_json::from_slice(&status.get_output().stdout).expect("JSON");
            assert_eq!(
                (&status["token"]["state"], &status["refresh_locks"][1]["state"]),
                (&"expired".into(), &"live".into()),
                "{about}"
            );
            let doctor = env.claude_run().envs(variable).args(["doctor"]).assert();
            let doctor = String::from_utf8_lossy(&doctor.get_output().stdout).into_owned();
            assert!(doctor.contains(&format!("{} is claude's storage", storage.display())), "{about}: {doctor}");
        }
        for lock in [".oauth_refresh.lock", "../storage.lock"] {
            fs::remove_dir(storage.join(lock)).expect("a lock");
        }
        run.expect_line("signal TERM");
    }
}

#[test]
fn empty_storage_variable_means_the_home() {
    let env = Env::new();
    let config_dir = env.path("config");
    fs::create_dir(&config_dir).expect("a directory");
    fs::write(config_dir.join(".credentials.json"), credentials(EXPIRED)).expect("a login");
    env.log_in(FRESH);
    let newer = env.script("versions/2.1.144", "#!/bin/sh\n");
    let run = |value: Option<&str>, code| {
        let mut run = env.claude_run();
        run.env("CLAUDE_CONFIG_DIR", &config_dir).envs(value.map(|value| (STORAGE, value)));
        run.args(["--lock", "refresh", "--wait", "0", "--claude"]).arg(&newer).args(["--", "-p"]).assert().code(code);
    };
    let lock = fs::File::create(config_dir.join("session.lock")).expect("a lock file");
    lock.lock().expect("a lock");
    run(None, 75);
    run(Some(""), 0);
}

/// A claude of unknown version may be one that does not know the variable, and so has the login of its config dir.
#[test]
fn unknown_claude_may_have_either_login() {
    let versions = [("versions/2.1.143", true), ("claude", true), ("versions/2.1.144", false)];
    for (name, has_that_of_the_config_dir) in versions {
        let env = Env::new();
        let storage = env.path("storage");
        fs::create_dir(&storage).expect("a directory");
        fs::write(storage.join(".credentials.json"), credentials(FRESH)).expect("a login");
        env.log_in(EXPIRED);
        let stand_in = StandIn::start(&env, &[]);
        let fake = format!("#!/bin/sh\nunset {STORAGE}; exec {} \"$@\"\n", fake_claude().display());
        let claude = env.script(name, &fake);
        let start = |steps: &str| {
            let mut agent = env.command(binary());
            agent
                .env("FAKE_API", &stand_in.address)
                .env(STORAGE, &storage)
                .args(["--lock", "refresh", "--claude"])
                .arg(&claude);
            agent.args(["--", "-p", steps]);
            Running::start(agent)
        };
        let run = start("signals; ready; refresh legacy posted");
        run.ready();
        while run.line() != "posted" {}
        assert_eq!(env.is_locked(), has_that_of_the_config_dir, "{name}");
        run.signal(Signal::SIGTERM);
        if !has_that_of_the_config_dir {
            run.expect_line("signal TERM");
            continue;
        }
        expect_deferral(&run);
        fs::remove_dir(format!("{}.lock", env.config_dir().display())).expect("a lock");
        run.expect_line("signal TERM");
        drop(run);
        env.log_in(FRESH);
        let run = start("ready; on TERM exit 0; hang");
        run.ready();
        assert!(!env.is_locked(), "{name}: none of them is due");
    }
}

/// Nobody has named the config dir as the storage of a claude of unknown version.
#[test]
fn doctor_tells_of_a_lock_in_the_other_place_and_leaves_it() {
    let env = Env::new();
    env.log_in(FRESH);
    let storage = env.path("storage");
    fs::create_dir(&storage).expect("a directory");
    let lock = env.config_dir().join(".oauth_refresh.lock");
    fs::create_dir(&lock).expect("a lock");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    File::open(&lock).and_then(|lock| lock.set_modified(long_ago)).expect("a time");
    let mut doctor = env.claude_run();
    let assert = doctor.env(STORAGE, &storage).args(["doctor", "--fix"]).assert();
    let shown = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
    assert!(shown.contains(&format!("remove it: rmdir {}", lock.display())) && lock.exists(), "{shown}");
    env.command(binary()).args(["doctor", "--fix"]).output().expect("started");
    assert!(!lock.exists(), "here it is the storage");
}

#[test]
fn every_refresh_lock_of_claude_is_spared() {
    for name in [
        "mcp-refresh-0a1b.lock.lock",
        ".design_oauth_refresh.lock",
        ".cloud_sessions_oauth_refresh.lock",
        ".hybrid_gateway_idp_refresh.lock",
        "../.config/anthropic/credentials.lock",
    ] {
        let env = Env::new();
        env.log_in(FRESH);
        let lock = env.config_dir().join(name);
        fs::create_dir_all(lock.parent().expect("a parent")).expect("a directory");
        let run = env.start_fake(&["--lock", "pass-through"], "signals; ready; hang");
        run.ready();
        fs::create_dir(&lock).expect("a lock");
        run.signal(Signal::SIGTERM);
        expect_deferral(&run);
        fs::remove_dir(&lock).expect("a lock");
        run.expect_line("signal TERM");
        // Neither a file of that name nor the session lock is one.
        let run = env.start_fake(&["--lock", "pass-through"], "signals; ready; hang");
        run.ready();
        fs::write(&lock, "").expect("a file");
        run.signal(Signal::SIGTERM);
        run.expect_line("signal TERM");
    }
}

#[test]
fn every_refresh_lock_that_is_stuck_is_told() {
    for name in ["mcp-refresh-0a1b.lock.lock", ".design_oauth_refresh.lock", "../.config/anthropic/credentials.lock"] {
        let env = healthy("2.1.330");
        let lock = env.config_dir().join(name);
        fs::create_dir_all(lock.parent().expect("a parent")).expect("a directory");
        // The file that the first of them is the lock of.
        fs::write(env.config_dir().join("mcp-refresh-0a1b.lock"), "").expect("a file");
        expect(doctor(&env, |doctor| doctor), "refresh locks", "pass", "free");
        let told = |why| {
            expect(doctor(&env, |doctor| doctor), "refresh locks", "failure", why);
            let status = env.claude_run().arg("status").assert().code(1);
            assert!(String::from_utf8_lossy(&status.get_output().stdout).contains(why), "{name}");
        };
        fs::write(&lock, "").expect("a file");
        told("is no directory");
        fs::remove_file(&lock).and_then(|()| fs::create_dir(&lock)).expect("a lock");
        let ahead = std::time::SystemTime::now() + std::time::Duration::from_secs(365 * 86_400);
        File::open(&lock).and_then(|lock| lock.set_modified(ahead)).expect("a time");
        told("has a time that is yet to come");
    }
}

#[test]
fn claude_that_ends_in_mid_refresh_is_reported() {
    let env = Env::new();
    for (mode, steps, is_cut) in [
        ("refresh", "refresh modern leave posted", true),
        ("exclusive", "refresh modern leave posted", true),
        ("refresh", "refresh modern leave written", true),
        ("pass-through", "say nothing is new", false),
    ] {
        let stand_in = StandIn::start(&env, &[]);
        if is_cut {
            env.log_in(EXPIRED);
        }
        let ended = env.agent(&stand_in, mode, &[], steps).end();
        assert_eq!(ended.stderr_text().contains("its login is probably lost"), is_cut, "{mode}: {ended:?}");
        let history = fs::read_to_string(env.config_dir().join("claude-run/history.jsonl")).expect("a history");
        let last: Value = serde_json::from_str(history.lines().last().expect("a line")).expect("JSON");
        assert_eq!(last["cut_refresh"], is_cut, "{last}");
        let status = env.claude_run().arg("status").assert().code(1);
        let status = String::from_utf8_lossy(&status.get_output().stdout).into_owned();
        assert!(status.contains("in the midst of a refresh"), "{mode}: {status}");
    }
    env.log_in(FRESH);
    env.claude_run().arg("status").assert().code(0);
}

/// Locks lie beside the file: who shares it alone has others, and newer versions replace it.
#[test]
fn login_that_is_shared_as_a_file_is_a_failure() {
    let env = healthy("2.1.330");
    let file = env.credentials();
    fs::hard_link(&file, env.path("other-name")).expect("a link");
    expect(doctor(&env, |doctor| doctor), "storage", "failure", "has another name elsewhere");
    fs::remove_file(env.path("other-name")).expect("a link");
    let inner = env.config_dir().join("inner.json");
    fs::rename(&file, &inner).expect("a file");
    std::os::unix::fs::symlink("inner.json", &file).expect("a link");
    expect(doctor(&env, |doctor| doctor), "storage", "pass", "the config dir, is claude's storage");
    fs::rename(&inner, &file).expect("a file");
    let mount = format!("mount --bind {0} {0}", file.display());
    let Some(found) = in_namespace(&env, &mount, &env.config_dir()) else { return };
    expect(found, "storage", "failure", "is a mount point");
    let mount = format!("touch {0}; mount --bind {0} {0}", env.lock_file().display());
    let Some(found) = in_namespace(&env, &mount, &env.config_dir()) else { return };
    expect(found, "session lock", "failure", "is a mount point");
    let env = healthy("2.1.84");
    expect(doctor(&env, |doctor| doctor.env(STORAGE, env.path(""))), "storage", "warning", "does not know it");
}

/// claude makes the directory first, and the owner's file behind it.
#[test]
fn owner_file_of_an_earlier_lock_proves_nothing() {
    let env = healthy("2.1.330");
    let lock = lock_of(&env, 4_194_304);
    expect(doctor(&env, |doctor| doctor), "refresh locks", "warning", "which is dead");
    fs::remove_dir(&lock).expect("a lock");
    std::thread::sleep(std::time::Duration::from_millis(30)); // the grain of a file system's clock
    fs::create_dir(&lock).expect("a lock");
    expect(doctor(&env, |doctor| doctor.arg("--fix")), "refresh locks", "pass", "a refresh is under way");
    assert!(lock.exists());
    age(&lock, 100);
    expect(doctor(&env, |doctor| doctor.arg("--fix")), "refresh locks", "pass", "removed");
}

/// Root looks after the config dir of an agent, which may name any place.
#[test]
fn fix_removes_nothing_that_only_another_has_named() {
    if !needs_root("a config dir of another user") {
        return;
    }
    let owned = |path: &Path, uid| std::os::unix::fs::lchown(path, Some(uid), Some(uid)).expect("an owner");
    let env = healthy("2.1.330");
    let (elsewhere, settings) = (env.path("elsewhere"), env.config_dir().join("settings.json"));
    let (lock, link) = (elsewhere.join(".oauth_refresh.lock"), env.path("link"));
    let owner_file = elsewhere.join(".oauth_refresh.lock.owner");
    fs::create_dir(&elsewhere).expect("a directory");
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o700)).expect("a mode");
    std::os::unix::fs::symlink(&elsewhere, &link).expect("a link");
    owned(&link, 1000);
    let by_settings = |dir: &Path| fs::write(&settings, format!(r#"{{"env":{{"{STORAGE}":"{}"}}}}"#, dir.display()));
    let fix = |variable: &str, dir: &Path, says: (&str, &str)| {
        fs::create_dir_all(&lock).expect("a lock");
        owned(&lock, 0);
        age(&lock, 100);
        fs::write(&owner_file, "{}").expect("an owner");
        expect(doctor(&env, |doctor| doctor.arg("--fix").env(variable, dir)), "refresh locks", says.0, says.1);
        assert_eq!((lock.exists(), owner_file.exists()), (says.0 == "failure", true), "{variable}: {says:?}");
    };
    by_settings(&elsewhere).expect("settings");
    fix("NONE", &elsewhere, ("pass", "removed"));
    for theirs in [env.config_dir(), settings.clone()] {
        owned(&theirs, 1000);
        fix("NONE", &elsewhere, ("failure", "settings.json, which is not ours alone"));
    }
    by_settings(&link).expect("settings");
    fix("NONE", &elsewhere, ("failure", "link, which is not ours alone"));
    by_settings(&elsewhere).expect("settings");
    // What is that user's own goes.
    owned(&elsewhere, 1000);
    fix("NONE", &elsewhere, ("pass", "removed"));
    owned(&elsewhere, 0);
    fs::remove_file(&settings).expect("settings");
    fix("CLAUDE_CONFIG_DIR", &link, ("failure", "link, which is not ours alone"));
    fix(STORAGE, &elsewhere, ("pass", "removed"));
}

#[test]
fn dead_login_is_said_alike_by_all() {
    let env = healthy("2.1.330");
    let file = env.config_dir().join(".credentials.json");
    for (login, why) in [
        (r#"{"accessToken":"","refreshToken":"","expiresAt":0}"#, "a dead login, without an access token: log in again"),
        (r#"{"refreshToken":"r","expiresAt":9999999999999}"#, "a dead login, without an access token: log in again"),
        (
            r#"{"accessToken":null,"refreshToken":"r","expiresAt":9999999999999}"#,
            "a dead login, without an access token: log in again",
        ),
        (r#"{"accessToken":"a","expiresAt":1000}"#, "a dead login, expired and with no refresh token: log in again"),
        (
            r#"{"accessToken":"a","refreshToken":"r","expiresAt":4102444800000,"scopes":["user:profile"]}"#,
            "a login without the scope user:inference: log in again",
        ),
        (r#"{"accessToken":"a","refreshToken":"r","expiresAt":"2030-01-01"}"#, "cannot be understood: no expiresAt"),
        (r#"{"accessToken":"a","refreshToken":"r","expiresAt":null}"#, "cannot be understood: no expiresAt"),
        (r#"{"accessToken":"\q","refreshToken":"r","expiresAt":1}"#, "cannot be understood: no JSON of claude's"),
        ("", ".credentials.json is empty"),
    ] {
        let text = if login.is_empty() { String::new() } else { format!(r#"{{"claudeAiOauth":{login}}}"#) };
        fs::write(&file, text).expect("a file");
        let status = expect_said_by_all(&env, why);
        assert!(status.stdout.iter().any(|line| line == "token          none that can be used"), "{status:?}");
    }
}

/// Expects that doctor, status and a run in `refresh` mode, which holds the lock all the while, say `why`. Gives what status says.
fn expect_said_by_all(env: &Env, why: &str) -> Ended {
    expect(doctor(env, |doctor| doctor), "login", "failure", why);
    let mut status = command(env);
    status.arg("status");
    let status = Running::start(status).end();
    let trouble = status.stdout.iter().any(|line| line.starts_with("trouble") && line.contains(why));
    assert!(status.code() == 1 && trouble, "{status:?}");
    let mut run = command(env);
    run.args(["--lock", "refresh", "--", "claude", "-p", "x"]);
    let run = Running::start(run).end();
    let said = run.stderr.iter().filter(|line| line.contains(why) && line.contains("as in exclusive mode"));
    assert_eq!(said.count(), 1, "{run:?}");
    status
}

/// Where `CLAUDE_CONFIG_DIR` is set for it, claude has its state in the config dir, and in the home where it is not.
#[test]
fn key_in_claudes_state_counts_where_the_child_looks() {
    let env = Env::new();
    let dir = env.path("other");
    fs::create_dir(&dir).expect("a directory");
    for (state, counts) in [(env.home().join(".claude.json"), false), (dir.join(".claude.json"), true)] {
        fs::write(state, r#"{"primaryApiKey":"k"}"#).expect("a file");
        let mut run = env.command(binary());
        run.arg("--config-dir").arg(&dir).args(["--lock", "refresh", "true"]);
        let ended = Running::start(run).end();
        assert_eq!(ended.stderr_text().contains("as in exclusive mode"), !counts, "{ended:?}");
        let mut doctor = env.claude_run();
        let found = doctor.arg("--config-dir").arg(&dir).args(["doctor"]).assert();
        let found = String::from_utf8_lossy(&found.get_output().stdout).into_owned();
        assert_eq!(found.contains("an API key (primaryApiKey"), counts, "{found}");
    }
}

#[test]
fn unreadable_settings_are_said_alike_by_all() {
    let env = healthy("2.1.330");
    let file = env.config_dir().join("settings.json");
    fs::write(&file, r#"{"env":{"CLAUDE_CODE_OAUTH_TOKEN":"#).expect("settings");
    expect_said_by_all(&env, &format!("claude's settings: {} is no JSON", file.display()));
    // The project's do not move the login, and are those of another directory for each run.
    fs::write(&file, "{}").expect("settings");
    fs::create_dir(env.path(".claude")).expect("a project");
    fs::write(env.path(".claude/settings.json"), "{\"a\":1,}").expect("settings");
    let run = env.claude_run().current_dir(env.path("")).args(["-v", "--lock", "refresh", "true"]).assert().code(0);
    assert!(String::from_utf8_lossy(&run.get_output().stderr).contains("starting without the session lock"));
    env.claude_run().current_dir(env.path("")).arg("status").assert().code(0);
}
