//! Check 11: whether the session lock holds between hosts: by the file system that the lock file is on, or by a lock helper.

use std::fs;
use std::path::Path;

use super::Finding;
use crate::claude::program::Program;
use crate::ops::{Context, Place};
use crate::sys::mount::{LockScope, Mount};

const CHECK: &str = "several hosts";

pub(super) fn check(context: &Context) -> Vec<Finding> {
    let Ok(place) = Place::of(context) else { return Vec::new() }; // the settings' own check tells
    let words = place.settings.lock_helper.unwrap_or_default();
    let found = |name: &String| match Program::find(&[name.into()], None) {
        Ok(program) => {
            let what = format!("the lock helper {} holds a lock between hosts", program.path.display());
            Finding::pass(CHECK, what)
        }
        Err(error) => {
            let todo = "install it for every agent, or correct lock-helper";
            Finding::failure(CHECK, format!("lock helper: {error}"), "a run that needs the session lock does not start", todo)
        }
    };
    let helper = words.first().map(found);
    let has_helper = helper.is_some();
    let apart = lies_apart(&place.config_dir, &place.lock_file).filter(|_| !has_helper);
    helper.into_iter().chain([apart.unwrap_or_else(|| of_file_system(&place.lock_file, has_helper))]).collect()
}

const MEANS: &str = "if agents of other hosts have the same login, two can refresh its token at once: the login is lost";

/// The login on a file system that other hosts may have, too, and its lock on one that they cannot have.
fn lies_apart(config_dir: &Path, lock_file: &Path) -> Option<Finding> {
    let (login, lock) = (mount_of(config_dir)?, mount_of(lock_file)?);
    if login.lock_scope().0 == LockScope::LocalFs || lock.lock_scope().0 != LockScope::LocalFs {
        return None;
    }
    let (config_dir, lock_file) = (config_dir.display(), lock_file.display());
    let what = format!(
        "{config_dir} is on {}, which other hosts may share, but {lock_file} on {}, which none does",
        login.kind, lock.kind
    );
    Some(Finding::warning(
        CHECK,
        what,
        MEANS,
        "leave the lock file in the config dir, or set lock-helper (README, \"Several hosts\")",
    ))
}

/// That of `path`, or of the directory that it is to be made in.
fn mount_of(path: &Path) -> Option<Mount> {
    Mount::of(&fs::canonicalize(path).or_else(|_| fs::canonicalize(path.parent().unwrap_or(path))).ok()?)
}

/// What the file system of the lock file does by itself.
fn of_file_system(lock_file: &Path, has_helper: bool) -> Finding {
    let Some(mount) = mount_of(lock_file) else {
        return Finding::pass(CHECK, "/proc does not tell which file system the lock file is on");
    };
    let (reach, why) = mount.lock_scope();
    let on = format!("{} is on {}", lock_file.display(), mount.kind);
    match reach {
        LockScope::Cluster => Finding::pass(CHECK, format!("{on}: its flock reaches all hosts that mount it ({why})")),
        LockScope::LocalFs => {
            Finding::pass(CHECK, format!("{on}, {why}: its flock keeps apart what runs here, and nothing elsewhere"))
        }
        LockScope::PerHost | LockScope::Unknown if has_helper => {
            Finding::pass(CHECK, format!("{on}: its flock may not reach other hosts ({why}), and need not"))
        }
        LockScope::PerHost => {
            let todo = "mount it with locks, use NFSv4 or CephFS, or set lock-helper (README, \"Several hosts\")";
            Finding::warning(CHECK, format!("{on}: its flock does not reach other hosts: {why}"), MEANS, todo)
        }
        LockScope::Unknown => {
            let todo = "try it: `flock FILE sleep 60` there on one host, `flock -n FILE true` on another; or set lock-helper";
            Finding::warning(CHECK, format!("{on}: whether its flock reaches other hosts is not known: {why}"), MEANS, todo)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_tells_follows_from_that_and_from_the_helper() {
        for has_helper in [false, true] {
            let finding = of_file_system(Path::new("/proc/session.lock"), has_helper);
            let (verdict, part) = if has_helper { ("pass", "need not") } else { ("warning", "not known") };
            assert!(finding.verdict.name() == verdict && finding.what.contains(part), "{finding:?}");
        }
    }
}
