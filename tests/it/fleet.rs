//! A fleet of agents whose versions, modes, mounts or clocks differ: what keeps their refreshes apart does not hold, and it is said.

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::doctor::{doctor, expect, healthy};
use crate::env::{Running, binary, fake_claude, records, wait_for_records};
use crate::oauth::mount_namespace;

#[test]
fn mixed_versions_without_a_common_lock_are_a_failure() {
    let env = healthy("2.1.330");
    let Some(flags) = mount_namespace() else { return };
    let start = |version: &str, mount: &str| {
        let fake = format!("#!/bin/sh\nexec {} \"$@\"\n", fake_claude().display());
        let claude = env.script(&format!("versions/{version}"), &fake);
        let dir = env.path(mount);
        fs::create_dir_all(&dir).expect("a directory");
        let mut container = env.command("unshare");
        container.args([flags, "sh", "-ec", r#"mount --bind "$0" "$1"; export CLAUDE_CONFIG_DIR="$1"; shift; exec "$@""#]);
        container.args([&env.config_dir(), &dir]).arg(binary()).args(["--lock", "pass-through", "--claude"]).arg(claude);
        let run = Running::start({
            container.args(["--", "-p", "ready; hang"]);
            container
        });
        run.ready();
        run
    };
    let _older = start("2.1.84", "one/config");
    wait_for_records(&env.config_dir(), 1);
    let other = start("2.1.126", "two/config");
    wait_for_records(&env.config_dir(), 2);
    let (_, seen) = doctor(&env, |doctor| doctor);
    assert!(!seen.to_string().contains("without a lock in common"), "{seen:#}");
    drop(other);
    let _newer = start("2.1.330", "three/config");
    wait_for_records(&env.config_dir(), 2);
    let (code, seen) = doctor(&env, |doctor| doctor);
    let text = seen.to_string();
    assert!(code == 1 && text.contains("has claude 2.1.84, and") && text.contains("without a lock in common"), "{seen:#}");
}

#[test]
fn mode_refresh_in_a_mounted_dir_advises_by_version() {
    let env = healthy("unknown");
    let Some(flags) = mount_namespace() else { return };
    let set = |version: &str, mode: &str| {
        let claude = env.script(&format!("versions/{version}"), "#!/bin/sh\n");
        let mut container = env.command("unshare");
        container.args([flags, "sh", "-ec", r#"mount --bind "$0" "$0"; exec "$@""#]).arg(env.config_dir()).arg(binary());
        container.env("CLAUDE_RUN_CLAUDE", claude).args(["mode", mode]);
        Running::start(container).end().stdout.join(" ")
    };
    for (version, mode, is_advised) in [
        ("2.1.126", "refresh", true),
        ("unknown", "refresh", true),
        ("2.1.128", "refresh", false),
        ("2.1.126", "exclusive", false),
    ] {
        let lines = set(version, mode);
        assert!(lines.contains(&format!("the lock mode is {mode} now")), "{lines}");
        assert_eq!(lines.contains(" is a mount point"), is_advised, "{version}: {lines}");
    }
}

#[test]
fn clock_of_another_host_that_is_ahead_is_a_failure() {
    let env = healthy("2.1.330");
    let run = env.start_fake(&["--lock", "pass-through"], "ready; hang");
    run.ready();
    wait_for_records(&env.config_dir(), 1);
    let runs = env.config_dir().join("claude-run/runs");
    let path = records(&env.config_dir()).remove(0);
    let mut record: Value = serde_json::from_slice(&fs::read(&path).expect("a record")).expect("JSON");
    // Alive, as far as can be seen: a copy that somebody keeps locked.
    let (id, host) = ("7-77", "moon");
    (record["run"], record["host"]) = (id.into(), host.into());
    let copy = runs.join(format!("{id}.json"));
    let mut write = |ahead: u64| {
        let later = SystemTime::now() + Duration::from_secs(ahead);
        record["since"] = humantime::format_rfc3339_millis(later).to_string().into();
        fs::write(&copy, record.to_string()).expect("a record");
    };
    write(30);
    let held = fs::File::open(&copy).expect("a record");
    held.lock().expect("a lock");
    expect(doctor(&env, |doctor| doctor), "fleet", "pass", "2 live runs");
    write(300);
    expect(doctor(&env, |doctor| doctor), "fleet", "failure", "the clock of moon is ");
}

#[test]
fn live_runs_of_another_mode_are_one_warning() {
    let env = healthy("2.1.330");
    let runs = ["1", "2"].map(|label| env.start_fake(&["--lock", "pass-through", "--label", label], "ready; hang"));
    for run in &runs {
        run.ready();
    }
    wait_for_records(&env.config_dir(), 2);
    let (code, seen) = doctor(&env, |doctor| doctor);
    let warnings = seen["checks"].as_array().into_iter().flatten().filter(|finding| finding["verdict"] == "warning");
    let texts: Vec<_> = warnings.filter_map(|finding| finding["what"].as_str()).collect();
    assert!(code == 0 && texts.len() == 1 && texts[0].starts_with("2 live runs of another mode than exclusive: "), "{seen:#}");
    assert!(runs.iter().all(|run| texts[0].contains(&format!("(pid {}) follows pass-through", run.pid()))), "{seen:#}");
    fs::write(env.config_dir().join("claude-run.toml"), "lock = \"pass-through\"\n").expect("a file");
    expect(doctor(&env, |doctor| doctor), "settings", "pass", "the lock mode is pass-through");
}
