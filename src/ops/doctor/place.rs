//! The config dir, and the place of Claude Code's own lock beside it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::{AccessFlags, access, geteuid};
use unicode_normalization::is_nfc;

use super::Finding;
use super::claude::{SAFE_VERSION, Version};
use crate::claude::config_dir::{self, ForChild};
use crate::ops::Context;
use crate::sys::mount;

const CONFIG_DIR: &str = "config dir";
const SIBLING: &str = "sibling lock";

/// Check 1: where it is, whose, and what claude makes of it.
pub(super) fn config_dir(context: &Context) -> Vec<Finding> {
    let failure = |what: String, means, todo| vec![Finding::failure(CONFIG_DIR, what, means, todo)];
    let resolved = match &context.config_dir {
        Ok(resolved) => resolved,
        Err(error) => {
            let todo = "set CLAUDE_CONFIG_DIR to the shared config dir for every agent";
            return failure(format!("{error:#}"), "claude has no place for its login, and there is no lock", todo);
        }
    };
    let path = &resolved.path;
    let shown = path.display();
    let origin = match &resolved.for_child {
        ForChild::Set(_) => "--config-dir",
        ForChild::AsItIs if (context.environment)(config_dir::VARIABLE).is_some() => config_dir::VARIABLE,
        ForChild::AsItIs | ForChild::Unset => "HOME",
    };
    let found = match fs::metadata(path) {
        Ok(found) if found.is_dir() => found,
        Ok(_) => {
            let means = "2.1.84 then prints nothing and exits with 0, later versions fail";
            return failure(
                format!("{shown} ({origin}) is not a directory"),
                means,
                "move it away, or point CLAUDE_CONFIG_DIR at one",
            );
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let what = format!("{shown} ({origin}) is not there");
            let means = "the first run makes it, and nobody is logged in there";
            return vec![Finding::warning(
                CONFIG_DIR,
                what,
                means,
                "log in there, or point CLAUDE_CONFIG_DIR at the right one",
            )];
        }
        Err(error) => {
            let means = "no run can start here";
            return failure(format!("{shown} ({origin}) cannot be reached: {error}"), means, "let the agents' user go there");
        }
    };
    let mut findings = Vec::new();
    let mut warn = |what: String, means, todo| findings.push(Finding::warning(CONFIG_DIR, what, means, todo));
    if resolved.for_child == ForChild::Unset {
        let means = "claude by itself would scatter its files over the working directory, logged out; under claude-run it counts as unset";
        warn("CLAUDE_CONFIG_DIR is set but empty".into(), means, "unset it, or set it to the shared config dir");
    }
    if path.is_relative() {
        let means = "every working directory has a config dir and a lock of its own";
        warn(format!("{shown} is relative"), means, "make CLAUDE_CONFIG_DIR absolute");
    }
    let (mode, owner, us) = (found.permissions().mode() & 0o7777, found.uid(), geteuid().as_raw());
    if mode & 0o077 != 0 {
        let means = "other users may read the names in it, or more; the login is for its owner alone";
        warn(format!("{shown} has mode {mode:04o}"), means, "chmod 700 it");
    }
    if owner != us {
        let means = "records and history are for their owner alone, and claude may not be able to save its login";
        warn(
            format!("{shown} belongs to user {owner}, and this is user {us}"),
            means,
            "let one user own it and run all agents",
        );
    }
    if path.to_str().is_some_and(|text| !is_nfc(text)) {
        let means = "claude looks for its credentials at the NFC form of that path and is not logged in";
        findings.push(Finding::failure(CONFIG_DIR, format!("{shown} is not in Unicode NFC"), means, "rename it"));
    }
    if access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        let means = "claude cannot refresh its login; 2.1.84 prints nothing and exits with 0";
        let what = format!("{shown} is not writable by us");
        findings.push(Finding::failure(CONFIG_DIR, what, means, "make it writable for the user of the agents"));
    }
    if findings.is_empty() {
        let real = fs::canonicalize(path).ok().filter(|real| real != path);
        let real = real.map_or_else(String::new, |real| format!(", really {}", real.display()));
        findings.push(Finding::pass(CONFIG_DIR, format!("{shown} ({origin}){real}: ours, mode {mode:04o}")));
    }
    findings
}

/// Check 2: where Claude Code's own lock is, beside the real config dir, and whether everybody who shares the one shares the other.
pub(super) fn sibling(config_dir: &Path, version: Option<Version>) -> Vec<Finding> {
    let Ok(real) = fs::canonicalize(config_dir) else { return Vec::new() };
    let Some(parent) = real.parent() else { return Vec::new() };
    let lock = format!("{}.lock", real.display());
    let is_old = version.is_some_and(|version| version < SAFE_VERSION);
    let mut findings = Vec::new();
    if access(parent, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        let what = format!("{lock} cannot be made: {} is not writable by us", parent.display());
        let todo = "make that directory writable for the user of the agents";
        findings.push(if is_old {
            Finding::failure(SIBLING, what, "this claude, before 2.1.128, then never refreshes its token", todo)
        } else {
            Finding::warning(
                SIBLING,
                what,
                "claude before 2.1.128 then never refreshes its token; later ones go without this lock",
                todo,
            )
        });
    }
    if mount::is_mount_point(&real) {
        let what = format!("{} is a mount point: what is beside it, {lock}, is not shared with it", real.display());
        let todo =
            "mount the directory above it, at the same absolute path everywhere; until then, --lock refresh or exclusive";
        findings.push(match version {
            Some(version) if version >= SAFE_VERSION => {
                let means = "this claude has a lock inside as well; one before 2.1.128 beside it would race";
                Finding::warning(SIBLING, what, means, todo)
            }
            Some(_) => {
                let means = "agents refresh at once, and all but one lose: measured, 6 refreshes and 5 invalid_grant of 6 agents";
                Finding::failure(SIBLING, what, means, todo)
            }
            None => {
                let means = "claude before 2.1.128 refreshes once for each agent, and all but one lose; which one is here cannot be told";
                Finding::warning(SIBLING, what, means, todo)
            }
        });
    }
    if findings.is_empty() {
        findings.push(Finding::pass(SIBLING, format!("{lock} can be made, and is on the mount of the config dir")));
    }
    findings
}
