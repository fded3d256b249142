//! The config dir, and the place of Claude Code's own lock beside it.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, geteuid};
use unicode_normalization::is_nfc;

use super::{Check, Subject};
use crate::claude::config_dir::{ConfigDir, ForChild, obstacle};
use crate::config::trust::open_to_others;
use crate::ops::Context;
use crate::sys::mount;

/// Checks where it is, its owner and mode, and what claude makes of it.
pub(super) fn check(context: &Context, check: &mut Check) {
    let resolved = match &context.config_dir {
        Ok(resolved) => resolved,
        Err(error) => {
            let todo = "set CLAUDE_CONFIG_DIR to the shared config dir for every agent";
            return check.fail(format!("{error:#}"), "claude has no place for its login, and there is no lock", todo);
        }
    };
    let origin = resolved.origin(context.environment);
    let shown = format!("{} ({origin})", resolved.path.display());
    if let Some(obstacle) = obstacle(&resolved.path) {
        let means = "no run starts; claude by itself fails, or prints nothing and exits with 0 (2.1.84)";
        let todo = "mount it, move what is there away, or point CLAUDE_CONFIG_DIR at a directory that the user of the agents can reach";
        return check.fail(format!("{shown} {obstacle}"), means, todo);
    }
    match fs::metadata(&resolved.path) {
        Ok(found) => check_directory(resolved, &found, &shown, check),
        Err(_) => {
            let means = "the first run makes it, and nobody is logged in there";
            check.warn(format!("{shown} is not there"), means, "log in there, or point CLAUDE_CONFIG_DIR at the right one");
        }
    }
}

fn check_directory(resolved: &ConfigDir, found: &Metadata, with_origin: &str, check: &mut Check) {
    let path = &resolved.path;
    let shown = path.display();
    if resolved.for_child == ForChild::Unset {
        let means = "claude by itself would scatter its files over the working directory, logged out; under claude-run it counts as unset";
        check.warn("CLAUDE_CONFIG_DIR is set but empty", means, "unset it, or set it to the shared config dir");
    }
    if path.is_relative() {
        let means = "every working directory has a config dir and a lock of its own";
        check.warn(format!("{shown} is relative"), means, "make CLAUDE_CONFIG_DIR absolute");
    }
    let (mode, owner, us) = (found.mode() & 0o7777, found.uid(), geteuid().as_raw());
    if mode & 0o077 != 0 {
        let means = "other users may read the names in it, or more; the login is for its owner alone";
        check.warn(format!("{shown} has mode {mode:04o}"), means, "chmod 700 it");
    }
    if owner != us {
        let means = "records and history are for their owner alone, and claude may not be able to save its login";
        let what = format!("{shown} belongs to user {owner}, and this is user {us}");
        check.warn(what, means, "let one user own it and run all agents");
    }
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    // Of itself, that is said by now.
    if let Ok(Some((_, open))) = open_to_others(path, 0o002, owner.into()).map(|open| open.filter(|(at, _)| *at != real)) {
        let means = "others can put another directory in its place, and take the login away";
        check.warn(format!("{open}, on the way to {shown}"), means, "change that, or move the config dir");
    }
    if path.to_str().is_some_and(|text| !is_nfc(text)) {
        let means = "claude looks for its credentials at the NFC form of that path and is not logged in";
        check.fail(format!("{shown} is not in Unicode NFC"), means, "rename it");
    }
    // Of a file system that is read-only, its own check tells.
    if access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_err_and(|errno| errno != Errno::EROFS) {
        let means = "claude cannot refresh its login; 2.1.84 prints nothing and exits with 0";
        check.fail(format!("{shown} is not writable by us"), means, "make it writable for the user of the agents");
    }
    let real = if real == *path { String::new() } else { format!(", really {}", real.display()) };
    check.pass_if_clean(format!("{with_origin}{real}: ours, mode {mode:04o}"));
}

/// Checks whether all who share the config dir share Claude Code's own lock, which lies beside the real config dir.
pub(super) fn check_sibling(subject: &Subject, check: &mut Check) {
    let Ok(real) = fs::canonicalize(&subject.storage.dir) else { return };
    let Some(parent) = real.parent() else { return };
    let lock = format!("{}.lock", real.display());
    let is_newer = subject.has_inner_lock();
    let severity = if is_newer == Some(false) { Check::fail } else { Check::warn };
    if access(parent, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        let what = format!("{lock} cannot be made: {} is not writable by us", parent.display());
        let means = match is_newer {
            Some(false) => "this claude, before 2.1.128, then never refreshes its token",
            _ => "claude before 2.1.128 then never refreshes its token; later ones go without this lock",
        };
        severity(
            check,
            what,
            means,
            "make that directory writable for the user of the agents, or remount it, if it is mounted read-only",
        );
    }
    if mount::is_mount_point(&real) {
        let what = format!("{} is a mount point: what is beside it, {lock}, is not shared with it", real.display());
        let todo = "mount the directory above it, at the same absolute path everywhere; until then, --lock exclusive: refresh mode does not \
                    cover refreshes in mid-run, unless --refresh-margin is the hard limit and 5 minutes";
        let means = match is_newer {
            Some(true) => "this claude has a lock inside as well; one before 2.1.128 beside it would race",
            Some(false) => {
                "agents refresh at once, and all but one lose: measured, 6 refreshes and 5 invalid_grant of 6 agents"
            }
            None => {
                "claude before 2.1.128 refreshes once for each agent, and all but one lose; which one is here cannot be told"
            }
        };
        severity(check, what, means, todo);
    }
    check.pass_if_clean(format!("{lock} can be made, and is on the mount of the config dir"));
}
