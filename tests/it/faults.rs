//! The short form of `scripts/faults.sh`: dozens of agents at once, and for a few seconds every kind of fault at random.

use std::process::{Command, Stdio};

use crate::env::{CEILING, binary, faults};

#[test]
fn promises_hold_under_random_faults() {
    // With the rights of root only in there, where they are needed for mounts; or as root, where that is refused.
    let Some(own) = ["-rmpf", "-mpf"].into_iter().find(|flags| can_mount(flags)) else {
        assert!(std::env::var_os("CI").is_none(), "namespaces are refused here, where every test has to run");
        eprintln!("SKIPPED: namespaces are refused on this machine");
        return;
    };
    let mut unshare = assert_cmd::Command::new("unshare");
    unshare.args([own, "--mount-proc", "--kill-child"]).arg(faults()).arg("--claude-run").arg(binary());
    let summary = unshare.args(["--seconds", "6", "--agents", "40"]).timeout(3 * CEILING).assert().success();
    let summary = String::from_utf8_lossy(&summary.get_output().stdout).into_owned();
    let count = |line: &str| -> u32 {
        let rest =
            summary.lines().find_map(|summary| summary.strip_prefix(line)).unwrap_or_else(|| panic!("no {line}: {summary}"));
        rest.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{summary}"))
    };
    assert_eq!(count("violations: "), 0, "{summary}");
    assert!(count("agents: ") >= 40 && count("faults: ") > 20 && count("cases: ") > 0, "{summary}");
}

#[test]
fn slots_keep_their_promises_under_kills() {
    let mut command = assert_cmd::Command::new(faults());
    command.args(["slots", "--runs", "30", "--slots", "3"]).arg("--claude-run").arg(binary());
    let summary = command.timeout(6 * CEILING).assert().success();
    let summary = String::from_utf8_lossy(&summary.get_output().stdout).into_owned();
    assert!(summary.contains("30 runs on 3 slots") && summary.contains("violations: 0\n"), "{summary}");
}

fn can_mount(flags: &str) -> bool {
    let mut unshare = Command::new("unshare");
    unshare.args([flags, "--mount-proc", "mount", "-t", "tmpfs", "probe", "/mnt"]).stderr(Stdio::null());
    unshare.status().is_ok_and(|status| status.success())
}
