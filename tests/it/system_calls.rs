//! What stands between our own exec and that of the child: each system call has its reason in the table of `src/supervisor/spawn.rs`,
//! and there are no others.

use std::collections::BTreeMap;
use std::fs;

use crate::env::{Env, Running, binary};

const SOURCE: &str = include_str!("../../src/supervisor/spawn.rs");

/// The table: how often at most, by name, for us and for the child's side of the clone.
fn allowed() -> BTreeMap<(bool, String), usize> {
    let table = SOURCE.split("//! ```text\n").nth(1).and_then(|rest| rest.split("//! ```").next()).expect("the table");
    let mut allowed = BTreeMap::new();
    for line in table.lines() {
        let mut words = line.trim_start_matches("//!").split_whitespace();
        let (Some(who), Some(count), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
        *allowed.entry((who == "child", name.to_owned())).or_default() += count.parse::<usize>().expect("a number");
    }
    allowed
}

#[test]
#[cfg(target_arch = "x86_64")] // other machines have other names for some
fn every_system_call_before_the_child_s_exec_has_its_reason() {
    let env = Env::new();
    env.claude_run().arg("true").assert().success(); // what is made once is there
    let mut strace = env.command("strace");
    strace.args(["-f", "-o", "calls"]).arg(binary()).arg("/usr/bin/true");
    assert_eq!(Running::start(strace).end().code(), 0);
    let calls = fs::read_to_string(env.path("calls")).expect("calls");
    let us = calls.split(' ').next().expect("a pid").to_owned();
    let mut made: BTreeMap<(bool, String), usize> = BTreeMap::new();
    for line in calls.lines() {
        let (pid, call) = line.split_once(' ').expect("a pid");
        let call = call.trim_start();
        let Some((name, rest)) = call.split_once('(').filter(|(name, _)| !name.starts_with(['<', '+', '-'])) else { continue };
        *made.entry((pid != us, name.to_owned())).or_default() += 1;
        if pid != us && name == "execve" && !rest.contains("ENOENT") {
            break;
        }
    }
    let allowed = allowed();
    let wrong: Vec<_> = made.iter().filter(|(call, count)| **count > allowed.get(*call).copied().unwrap_or(0)).collect();
    assert!(wrong.is_empty(), "not in the table, or more often: {wrong:#?}");
    let sum = |of: &BTreeMap<_, usize>| of.values().sum::<usize>();
    assert!(sum(&made) * 10 >= sum(&allowed) * 8, "the table names many that are not made: {made:#?}");
}
