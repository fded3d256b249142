//! `claude-run doctor`: each check can pass, and each can find what it is there for.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::env::{Env, Running, binary, fake_claude, is_alive, needs_root, records, stat, wait_for_records, wait_until};
use crate::oauth::{EXPIRED, FRESH, age, mount_namespace};
use crate::refresh_locks::lock_of;

/// Healthy config dir, and a claude of `version`.
pub(crate) fn healthy(version: &str) -> Env {
    let env = Env::new();
    env.log_in(FRESH);
    fs::set_permissions(env.config_dir(), Permissions::from_mode(0o700)).expect("a mode");
    fs::set_permissions(env.credentials(), Permissions::from_mode(0o600)).expect("a mode");
    env.script("bin/claude", &format!("#!/bin/sh\necho '{version} (Claude Code)'\n"));
    env
}

pub(crate) fn command(env: &Env) -> Command {
    let mut command = env.command(binary());
    command.env("PATH", format!("{}:/usr/bin:/bin", env.path("bin").display()));
    command
}

/// Exit code and report of doctor.
pub(crate) fn doctor(env: &Env, prepare: impl for<'a> FnOnce(&'a mut Command) -> &'a mut Command) -> (i32, Value) {
    let mut command = command(env);
    command.args(["doctor", "--json"]);
    prepare(&mut command);
    examined(command)
}

fn examined(command: Command) -> (i32, Value) {
    let ended = Running::start(command).end();
    let seen = serde_json::from_str(&ended.stdout.join("\n")).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    assert!(ended.stderr.is_empty(), "{ended:?}");
    (ended.code(), seen)
}

/// The worst finding of a check.
pub(crate) fn worst<'a>(seen: &'a Value, check: &str) -> (&'a str, String) {
    let findings = seen["checks"].as_array().into_iter().flatten().filter(|finding| finding["check"] == check);
    let rank = |finding: &&Value| ["pass", "warning", "failure"].iter().position(|verdict| finding["verdict"] == **verdict);
    let worst = findings.max_by_key(rank).unwrap_or_else(|| panic!("no {check}: {seen}"));
    if worst["verdict"] != "pass" {
        assert!(worst["means"].is_string() && worst["do"].is_string(), "what it means and what to do: {worst}");
    }
    (worst["verdict"].as_str().expect("a verdict"), worst["what"].as_str().expect("a finding").to_owned())
}

#[track_caller]
pub(crate) fn expect((code, seen): (i32, Value), check: &str, verdict: &str, what: &str) {
    let (found, text) = worst(&seen, check);
    assert!(found == verdict && text.contains(what), "{check}: {seen:#}");
    let is_failure = seen["failures"].as_u64().is_some_and(|failures| failures > 0);
    assert_eq!(code, i32::from(is_failure), "{seen:#}");
}

#[test]
fn healthy_setup_passes_and_nothing_is_left() {
    let env = healthy("2.1.330");
    let (code, seen) = doctor(&env, |doctor| doctor);
    assert_eq!((code, &seen["verdict"]), (0, &"pass".into()), "{seen:#}");
    let checks = [
        "config dir",
        "sibling lock",
        "file system",
        "several hosts",
        "fleet",
        "session lock",
        "refresh locks",
        "storage",
        "login",
        "claude",
        "settings",
        "claude-run",
    ];
    for check in checks {
        worst(&seen, check);
    }
    let left: Vec<_> = fs::read_dir(env.config_dir()).expect("a directory").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, [".credentials.json"]);
    let mut text = command(&env);
    text.arg("doctor");
    let ended = Running::start(text).end();
    assert_eq!(ended.stdout.last().map(String::as_str), Some("0 failures, 0 warnings in 14 checks"));
    assert!(!ended.stdout.join("").contains("at-0") && !seen.to_string().contains("rt-0"), "never a token");
}

#[test]
fn config_dir_is_checked() {
    let env = healthy("2.1.330");
    fs::set_permissions(env.config_dir(), Permissions::from_mode(0o755)).expect("a mode");
    expect(doctor(&env, |doctor| doctor), "config dir", "warning", "mode 0755");
    fs::set_permissions(env.config_dir(), Permissions::from_mode(0o700)).expect("a mode");
    expect(doctor(&env, |doctor| doctor.env("CLAUDE_CONFIG_DIR", "")), "config dir", "warning", "set but empty");
    expect(doctor(&env, |doctor| doctor.env("CLAUDE_CONFIG_DIR", "home/.claude")), "config dir", "warning", "is relative");
    let nowhere = env.path("nowhere");
    expect(doctor(&env, |doctor| doctor.env("CLAUDE_CONFIG_DIR", &nowhere)), "config dir", "warning", "is not there");
    assert!(!nowhere.exists(), "it only looks");
    let file = env.lock_file();
    fs::write(&file, "").expect("a file");
    expect(doctor(&env, |doctor| doctor.env("CLAUDE_CONFIG_DIR", &file)), "config dir", "failure", "not a directory");
    let decomposed = env.path("cafe\u{301}");
    fs::create_dir(&decomposed).expect("a directory");
    expect(doctor(&env, |doctor| doctor.env("CLAUDE_CONFIG_DIR", &decomposed)), "config dir", "failure", "NFC");
    expect(doctor(&env, |doctor| doctor.env_remove("HOME")), "config dir", "failure", "no config dir");
}

/// doctor in a mount namespace in which `mounts` were made first, by a shell.
pub(crate) fn in_namespace(env: &Env, mounts: &str, config_dir: &std::path::Path) -> Option<(i32, Value)> {
    let mut unshare = command(env);
    let mut inner = Command::new("unshare");
    inner.arg(mount_namespace()?).args(["sh", "-ec", &format!("{mounts}; exec \"$@\""), "sh"]).arg(binary());
    inner.args(["doctor", "--json", "--config-dir"]).arg(config_dir);
    inner.env_clear().envs(unshare.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inner.stdin(Stdio::null()).current_dir(env.path(""));
    std::mem::swap(&mut unshare, &mut inner);
    Some(examined(unshare))
}

#[test]
fn way_to_the_config_dir_that_others_can_change_is_a_warning() {
    let env = healthy("2.1.330");
    let mode = |mode| fs::set_permissions(env.home(), Permissions::from_mode(mode)).expect("a mode");
    mode(0o777);
    expect(doctor(&env, |doctor| doctor), "config dir", "warning", &format!("{} has owner", env.home().display()));
    for closed in [0o1777, 0o775, 0o755] {
        mode(closed);
        assert_eq!(worst(&doctor(&env, |doctor| doctor).1, "config dir").0, "pass", "{closed:o}");
    }
    // What is said of the dir itself is said once.
    fs::set_permissions(env.config_dir(), Permissions::from_mode(0o777)).expect("a mode");
    let warnings = |env: &Env| {
        doctor(env, |doctor| doctor).1["checks"].as_array().map_or(0, |checks| {
            checks.iter().filter(|found| found["check"] == "config dir" && found["verdict"] == "warning").count()
        })
    };
    assert_eq!(warnings(&env), 1);
    if !needs_root("a config dir of another user") {
        return;
    }
    for dir in [env.home(), env.config_dir()] {
        std::os::unix::fs::chown(dir, Some(1000), None).expect("an owner");
    }
    assert_eq!(warnings(&env), 2, "its mode, and its owner");
    let link = env.path("link");
    symlink(env.config_dir(), &link).expect("a link");
    std::os::unix::fs::lchown(&link, Some(1001), None).expect("an owner");
    let found = doctor(&env, |doctor| doctor.env("CLAUDE_CONFIG_DIR", &link)).1;
    assert!(found.to_string().contains(&format!("{} is a link of uid 1001, on the way to", link.display())), "{found:#}");
}

#[test]
fn mount_point_is_judged_by_the_claude_version() {
    for (version, verdict) in
        [("2.1.84", "failure"), ("2.1.127", "failure"), ("2.1.128", "warning"), ("3.0.0", "warning"), ("new", "warning")]
    {
        let env = healthy(version);
        let bound = env.path("container/config");
        fs::create_dir_all(&bound).expect("a directory");
        let mount = format!("mount --bind {} {}", env.config_dir().display(), bound.display());
        let Some(found) = in_namespace(&env, &mount, &bound) else { return };
        expect(found, "sibling lock", verdict, "is a mount point");
    }
}

#[test]
fn read_only_dir_and_file_system_without_inotify() {
    let env = healthy("2.1.330");
    let dir = env.config_dir();
    let mount = format!("mount --bind {0} {0}; mount -o remount,bind,ro {0}", dir.display());
    let Some(found) = in_namespace(&env, &mount, &dir) else { return };
    assert_eq!(worst(&found.1, "config dir").0, "pass", "chmod is of no use: {:#}", found.1);
    assert!(!found.1.to_string().contains("make it writable"), "{:#}", found.1);
    expect(found, "file system", "failure", "is mounted read-only");
    let other = env.path("ramfs");
    fs::create_dir(&other).expect("a directory");
    let mount = format!("mount -t ramfs ramfs {0}; chmod 700 {0}", other.display());
    let Some(found) = in_namespace(&env, &mount, &other) else { return };
    expect(found, "file system", "warning", "inotify");
}

#[test]
fn runs_with_another_lock_or_parent_dir_are_found() {
    let env = healthy("2.1.330");
    let one = env.start_fake(&["--lock", "pass-through", "--label", "one"], "ready; hang");
    one.ready();
    wait_for_records(&env.config_dir(), 1);
    expect(doctor(&env, |doctor| doctor), "fleet", "pass", "1 live run");
    let other_lock = env.path("other.lock");
    let other = env.start_fake(&["--lock-file", &other_lock.to_string_lossy(), "--label", "two"], "ready; hang");
    other.ready();
    let exclusive = env.start_fake(&["--label", "three"], "ready; hang");
    exclusive.ready();
    wait_for_records(&env.config_dir(), 3);
    let (code, seen) = doctor(&env, |doctor| doctor);
    let (verdict, what) = worst(&seen, "fleet");
    assert!(code == 1 && verdict == "failure" && what.contains("another lock file"), "{seen:#}");
    assert!(what.contains("two (pid ") && what.contains("three (pid ") && what.contains("other.lock"), "{what}");
    drop((other, exclusive));
    let bound = env.path("container/config");
    fs::create_dir_all(&bound).expect("a directory");
    let Some(flags) = mount_namespace() else { return };
    let mut container = env.command("unshare");
    container.args([
        flags,
        "sh",
        "-c",
        r#"mount --bind "$0" "$1"; CLAUDE_CONFIG_DIR=$1; export CLAUDE_CONFIG_DIR; shift; exec "$@""#,
    ]);
    container.args([env.config_dir(), bound]).arg(binary()).args(["--lock", "pass-through", "--label", "inside", "--claude"]);
    container.arg(fake_claude()).args(["--", "-p", "ready; hang"]);
    let container = Running::start(container);
    container.ready();
    wait_for_records(&env.config_dir(), 2);
    let (code, seen) = doctor(&env, |doctor| doctor);
    let (verdict, what) = worst(&seen, "fleet");
    assert!(code == 1 && verdict == "failure" && what.contains("another directory above the config dir"), "{seen:#}");
    assert!(what.contains("one (pid ") && what.contains("inside (pid ") && what.contains("container"), "{what}");
}

#[test]
fn full_file_system_is_named_with_what_fails() {
    let env = healthy("2.1.330");
    let small = env.path("small");
    fs::create_dir(&small).expect("a directory");
    let cases = [
        ("size=1m", "head -c 1M /dev/zero >{}/fill || :", "0 bytes are free"),
        ("size=8m,nr_inodes=2", "touch {}/last", "; 0 inodes and "),
    ];
    for (options, fill, free) in cases {
        let (shown, fill) = (small.display(), fill.replace("{}", &small.to_string_lossy()));
        let mount = format!("mount -t tmpfs -o mode=700,{options} tmpfs {shown}; {fill}");
        let Some((code, seen)) = in_namespace(&env, &mount, &small) else { return };
        let (_, what) = worst(&seen, "file system");
        assert!(what.contains(&format!("on tmpfs at {shown}, has no room")) && what.contains(free), "{what}");
        expect((code, seen), "file system", "failure", "No space left on device");
    }
}

#[test]
fn limit_of_file_sizes_is_no_full_disk() {
    let env = healthy("2.1.330");
    let mut doctor = env.command("sh");
    doctor.args(["-c", "ulimit -f 0; exec \"$0\" doctor"]).arg(binary());
    let output = doctor.output().expect("started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("no file here may have 1048576 bytes: ") && said.contains("(ulimit -f)"), "{said}");
    assert!(!said.contains("has no room"), "{said}");
}

#[test]
fn session_lock_is_checked() {
    let env = healthy("2.1.330");
    let holder = env.hold_lock();
    expect(doctor(&env, |doctor| doctor), "session lock", "warning", "without a run record");
    drop(holder);
    let run = env.start_fake(&["--label", "long"], "ready; hang");
    let [child, ..] = run.ready();
    wait_for_records(&env.config_dir(), 1);
    expect(doctor(&env, |doctor| doctor), "session lock", "pass", "held by long");
    wait_until("it has held the lock for too long", || {
        let (code, seen) = doctor(&env, |doctor| doctor.env("CLAUDE_TIMEOUT", "0.1").env("CLAUDE_RUN_KILL_AFTER", "0.1"));
        code == 0 && worst(&seen, "session lock").1.contains("longer than the hard limit")
    });
    // Killed, with a child that outlives the kernel's TERM.
    drop(run);
    wait_until("the child is gone", || !is_alive(child));
    let run = env.start_fake(&["--label", "killed"], "ignore TERM; ready; hang");
    let [child, ..] = run.ready();
    wait_for_records(&env.config_dir(), 1);
    kill(run.pid(), Signal::SIGKILL).expect("a process");
    run.end();
    let found = doctor(&env, |doctor| doctor);
    kill(Pid::from_raw(child), Signal::SIGKILL).expect("a process");
    expect(found, "session lock", "failure", "killed (pid ");
    let env = healthy("2.1.330");
    nix::unistd::mkfifo(&env.lock_file(), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    expect(doctor(&env, |doctor| doctor), "session lock", "failure", "no regular file");
    fs::remove_file(env.lock_file()).and_then(|()| symlink("session.lock", env.lock_file())).expect("a link to itself");
    expect(doctor(&env, |doctor| doctor), "session lock", "failure", "cannot be looked at");
}

#[test]
fn lock_file_that_cannot_be_made_is_trouble() {
    let env = healthy("2.1.330");
    symlink("nowhere/lock", env.lock_file()).expect("a link to nowhere");
    env.claude_run().arg("true").assert().code(125);
    expect(doctor(&env, |doctor| doctor), "session lock", "failure", "session.lock cannot be made: ");
    let status = |code, words: &[&str]| {
        let assert = env.claude_run().arg("status").args(words).assert().code(code);
        String::from_utf8_lossy(&assert.get_output().stdout).into_owned()
    };
    assert!(status(1, &[]).contains("session.lock cannot be made: "));
    status(0, &["--lock-file", "relative"]);
    env.claude_run().env("CLAUDE_RUN_LOCK", "pass-through").arg("status").assert().code(0);
    let elsewhere = env.path("elsewhere").display().to_string();
    assert!(status(1, &["--lock-file", &format!("{elsewhere}/lock")]).contains("make that directory"));
    fs::create_dir(env.path("elsewhere")).expect("a directory");
    status(0, &["--lock-file", &format!("{elsewhere}/lock")]);
    // A link to a link to nowhere.
    symlink(env.lock_file(), format!("{elsewhere}/lock")).expect("a link");
    assert!(status(1, &["--lock-file", &format!("{elsewhere}/lock")]).contains("nowhere: No such file"));
}

#[test]
fn refresh_locks_are_checked_and_fixed() {
    for is_newer in [false, true] {
        let env = healthy("2.1.330");
        let lock = if is_newer { env.config_dir().join(".oauth_refresh.lock") } else { env.home().join(".claude.lock") };
        fs::create_dir(&lock).expect("a lock");
        let fix = |env: &Env| doctor(env, |doctor| doctor.arg("--fix"));
        expect(fix(&env), "refresh locks", "pass", "a refresh is under way");
        assert!(lock.exists(), "nothing that may be held is removed");
        age(&lock, 100);
        expect(doctor(&env, |doctor| doctor), "refresh locks", "warning", "is stale");
        assert!(lock.exists(), "not without --fix");
        expect(fix(&env), "refresh locks", "pass", "removed");
        assert!(!lock.exists());
        expect(doctor(&env, |doctor| doctor), "refresh locks", "pass", "free");
    }
    // The owner lives, but has been stopped.
    let env = healthy("2.1.330");
    let lock = lock_of(&env, std::process::id());
    age(&lock, 100);
    expect(doctor(&env, |doctor| doctor.arg("--fix")), "refresh locks", "warning", "is stale");
    assert!(lock.exists(), "it still has the refresh");
    // The owner is dead, and the lock not yet stale.
    let env = healthy("2.1.330");
    let owner = env.config_dir().join(".oauth_refresh.lock.owner");
    let locks = [env.config_dir().join(".oauth_refresh.lock"), env.home().join(".claude.lock")];
    locks.iter().for_each(|lock| fs::create_dir(lock).expect("a lock"));
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").expect("a namespace");
    let text = format!(r#"{{"pid":4194304,"procStart":"1","pidDomain":"linux:{}:{}"}}"#, machine.trim(), namespace.display());
    fs::write(&owner, text).expect("an owner");
    expect(doctor(&env, |doctor| doctor), "refresh locks", "warning", "which is dead");
    let found = doctor(&env, |doctor| doctor.arg("--fix"));
    expect(found.clone(), "refresh locks", "pass", "removed");
    expect(found, "login", "warning", "has ended in the midst of a refresh");
    assert!(!owner.exists() && locks.iter().all(|lock| !lock.exists()));
}

#[test]
fn refresh_lock_of_a_hidden_process_is_not_removed() {
    if !needs_root("a process of another user") {
        return;
    }
    let env = healthy("2.1.330");
    let lock = lock_of(&env, std::process::id());
    fs::set_permissions(env.config_dir(), Permissions::from_mode(0o777)).expect("a mode");
    let script = r#"mount -t proc -o hidepid=invisible none /proc; exec setpriv --reuid 1000 --regid 1000 --clear-groups "$@""#;
    let mut unshare = env.command("unshare");
    unshare.args(["-m", "bash", "-c", script, "-"]).arg(binary()).args(["doctor", "--fix"]);
    let ended = Running::start(unshare).end();
    assert!(lock.exists() && !ended.stdout.join("\n").contains("dead"), "{ended:?}");
}

#[test]
fn login_is_checked() {
    let env = healthy("2.1.330");
    let file = env.credentials();
    let mode = |mode| fs::set_permissions(&file, Permissions::from_mode(mode)).expect("a mode");
    mode(0o644);
    expect(doctor(&env, |doctor| doctor), "login", "warning", "mode 0644");
    mode(0o400);
    expect(doctor(&env, |doctor| doctor), "login", "failure", "not writable");
    mode(0o600);
    fs::rename(&file, env.path("elsewhere")).expect("a file");
    symlink(env.path("elsewhere"), &file).expect("a link");
    expect(doctor(&env, |doctor| doctor), "storage", "failure", "is a symlink");
    fs::remove_file(&file).expect("a link");
    expect(doctor(&env, |doctor| doctor), "login", "failure", "there is no login");
    expect(doctor(&env, |doctor| doctor.env("ANTHROPIC_API_KEY", "sk-x")), "login", "pass", "an API key");
    fs::write(&file, r#"{"claudeAiOauth":{"accessToken":"at-0","#).expect("a file");
    mode(0o600);
    expect(doctor(&env, |doctor| doctor), "login", "failure", "no JSON");
    fs::write(&file, r#"{"claudeAiOauth":{"accessToken":"at-0","expiresAt":1000}}"#).expect("a file");
    expect(doctor(&env, |doctor| doctor), "login", "failure", "no refresh token");
    fs::write(&file, r#"{"claudeAiOauth":{"accessToken":"at-0","expiresAt":4102444800000}}"#).expect("a file");
    expect(doctor(&env, |doctor| doctor), "login", "warning", "no refresh token");
    env.log_in(EXPIRED);
    mode(0o600);
    expect(doctor(&env, |doctor| doctor), "login", "pass", "OAuth login; the token expired");
}

#[test]
fn refresh_lock_that_never_ends_is_a_failure() {
    let env = healthy("2.1.330");
    env.log_in(EXPIRED);
    let lock = env.config_dir().join(".oauth_refresh.lock");
    let target = env.path("elsewhere");
    fs::create_dir(&target).expect("a directory");
    let make: [(&str, &str, &dyn Fn()); 4] = [
        ("has a time that is yet to come", "rmdir", &|| {
            fs::create_dir(&lock).expect("a lock");
            let later = SystemTime::now() + Duration::from_secs(3600);
            File::open(&lock).and_then(|lock| lock.set_modified(later)).expect("a time");
        }),
        ("has something in it", "rm -r", &|| fs::create_dir_all(lock.join("x")).expect("a lock")),
        ("is no directory", "rm", &|| fs::write(&lock, "").expect("a file")),
        ("is no directory", "rm", &|| symlink(&target, &lock).expect("a link")),
    ];
    for (why, removal, make) in make {
        make();
        let found = doctor(&env, |doctor| doctor.arg("--fix"));
        assert!(found.1.to_string().contains(&format!("remove it: {removal} {}", lock.display())), "{:#}", found.1);
        expect(found, "refresh locks", "failure", why);
        let mut status = command(&env);
        status.arg("status");
        let status = Running::start(status).end();
        let trouble = status.stdout.iter().any(|line| line.starts_with("trouble") && line.contains(why));
        assert!(status.code() == 1 && trouble, "{status:?}");
        // There is no end to wait for.
        let mut run = command(&env);
        run.args(["--lock", "refresh", "--", "claude", "-p", "x"]);
        let run = Running::start(run).end();
        assert!(!run.stderr_text().contains("waiting"), "{run:?}");
        let _ = fs::remove_dir_all(&lock).or_else(|_| fs::remove_file(&lock));
    }
}

#[test]
fn claude_program_is_checked() {
    let env = healthy("2.1.330");
    expect(doctor(&env, |doctor| doctor.env("PATH", env.path("nowhere"))), "claude", "failure", "not found");
    for (script, verdict, what) in [
        ("echo '2.1.84 (Claude Code)'", "warning", "before 2.1.128"),
        ("echo hello", "warning", "is no version"),
        ("exit 3", "failure", "exit status: 3"),
        // A shim that finds itself.
        (&format!("exec {} -- \"$@\"", binary().display()), "failure", "exit status: 125"),
        // Its answer is there, and somebody keeps the stream.
        ("echo '2.1.330'; sleep 3 & exit 0", "pass", "2.1.330"),
    ] {
        env.script("bin/claude", &format!("#!/bin/sh\n{script}\n"));
        expect(doctor(&env, |doctor| doctor), "claude", verdict, what);
    }
    env.script("bin/claude", "#!/bin/sh\nexec sleep 600\n");
    expect(doctor(&env, |doctor| doctor), "claude", "failure", "no answer within 10 s");
}

#[test]
fn daemon_of_claude_is_a_warning() {
    let env = healthy("2.1.332");
    let us = std::process::id() as i32;
    let start: u64 = stat(us).expect("our own")[19].parse().expect("ticks");
    for (start, verdict, what) in [(start, "warning", format!("pid {us}")), (start - 1, "pass", "2.1.332".to_owned())] {
        let file = format!(r#"{{"pid":{us},"version":"2.1.332","origin":"transient","procStart":"{start}"}}"#);
        fs::write(env.config_dir().join("daemon.lock"), file).expect("a file");
        expect(doctor(&env, |doctor| doctor), "claude", verdict, &what);
    }
}

#[test]
fn settings_are_checked() {
    let env = healthy("2.1.330");
    expect(doctor(&env, |doctor| doctor.env("CLAUDE_EXTERNAL_LOCK", "1")), "settings", "warning", "CLAUDE_EXTERNAL_LOCK");
    expect(doctor(&env, |doctor| doctor.env("CLAUDE_RUN_WAIT", "x")), "settings", "failure", "CLAUDE_RUN_WAIT");
    expect(doctor(&env, |doctor| doctor.env("CLAUDE_RUN_LOK", "x")), "settings", "warning", "did you mean CLAUDE_RUN_LOCK?");
    let file = env.config_dir().join("claude-run.toml");
    fs::write(&file, "lock = \"refresh\"\n").expect("a file");
    expect(doctor(&env, |doctor| doctor), "settings", "pass", "the lock mode is refresh");
    fs::write(&file, "wait = 5\nlokc = \"refresh\"\n").expect("a file");
    expect(doctor(&env, |doctor| doctor), "settings", "failure", "claude-run.toml:2");
}

#[test]
fn live_runs_of_another_version_are_found() {
    let env = healthy("2.1.330");
    let run = env.start_fake(&["--label", "ours"], "ready; hang");
    run.ready();
    wait_for_records(&env.config_dir(), 1);
    let runs = env.config_dir().join("claude-run/runs");
    let record = records(&env.config_dir()).remove(0);
    let text = fs::read_to_string(record)
        .expect("a record")
        .replace(env!("CARGO_PKG_VERSION"), "0.0.9")
        .replace("\"ours\"", "\"older\"");
    let older = runs.join("1-1.json");
    fs::write(&older, text.replace("\"hold\":\"own\"", "\"hold\":null")).expect("a record");
    let locked = File::open(&older).expect("a record");
    fs4::FileExt::lock(&locked).expect("a lock");
    expect(doctor(&env, |doctor| doctor), "claude-run", "warning", "older (pid ");
}

#[test]
fn what_only_looks_like_a_leftover_is_kept() {
    let env = healthy("2.1.330");
    let dir = |name: &str, files: &[&str]| {
        let dir = env.config_dir().join(name);
        fs::create_dir_all(dir.join("mkdir-0")).expect("a directory");
        files.iter().for_each(|file| fs::write(dir.join(file), "").expect("a file"));
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        File::open(&dir).and_then(|dir| dir.set_modified(hour_ago)).expect("a time");
        dir
    };
    let left = dir(".claude-run-probe.abc123", &["room", "flock"]);
    let in_use = dir(".claude-run-probe.abc456", &["room"]);
    let others =
        [".claude-run-probe.backup", ".claude-run.toml.claude-run.backup"].map(|name| dir(name, &["room", "precious"]));
    let lock = File::open(&in_use).expect("a directory");
    fs4::FileExt::lock(&lock).expect("a lock");
    env.claude_run().args(["mode", "exclusive"]).assert().code(0);
    let (code, seen) = doctor(&env, |doctor| doctor);
    assert!(code == 0 && !left.exists(), "{seen:#}");
    assert!(in_use.join("room").exists() && others.iter().all(|dir| dir.join("precious").exists()), "{seen:#}");
}

#[test]
fn probes_that_somebody_removes_prove_nothing() {
    let env = healthy("2.1.330");
    if !crate::setup_interrupted::can_trace(&env) {
        return;
    }
    let probe = || {
        let mut entries = fs::read_dir(env.config_dir()).expect("a directory").flatten();
        entries.find(|entry| entry.file_name().to_string_lossy().contains("-probe.")).map(|entry| entry.path())
    };
    for call in ["fsync", "mkdir"] {
        let mut strace = env.command("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"]);
        strace.arg(format!("inject={call}:delay_enter=2000000:when=1")).arg(binary()).args(["doctor", "--json"]);
        strace.env("PATH", format!("{}:/usr/bin:/bin", env.path("bin").display()));
        let doctor = Running::start(strace);
        wait_until("it tries", || probe().is_some());
        // Its first file is there at the fsync, and gone when its processes begin.
        wait_until("it waits", || probe().is_some_and(|probe| probe.join("room").exists() == (call == "fsync")));
        fs::remove_dir_all(probe().expect("a directory")).expect("removed");
        let ended = doctor.end();
        let seen = serde_json::from_str(&ended.stdout.join("")).expect("JSON");
        expect((ended.code(), seen), "file system", "warning", "nothing can be tried: somebody has removed ");
    }
}
