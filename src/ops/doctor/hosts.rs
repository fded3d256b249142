//! The session lock between hosts: whether it holds there, by the file system of the lock file or by a lock helper.

use std::path::Path;

use super::Check;
use crate::claude::program::Program;
use crate::ops::{Context, Factory};
use crate::sys::mount::{LockScope, Mount};

pub(super) fn check(context: &Context, check: &mut Check) {
    let Ok(factory) = Factory::of(context) else { return }; // reported by the check of the settings
    let helper = factory.settings.lock_helper.unwrap_or_default();
    let Some(name) = helper.first() else {
        if !lies_apart(&factory.config_dir, &factory.lock_file, check) {
            check_lock_scope(&factory.lock_file, false, check);
        }
        return;
    };
    match Program::find(&[name.into()], None) {
        Ok(program) => check.pass(format!("the lock helper {} holds a lock between hosts", program.path.display())),
        Err(error) => {
            let todo = "install it for every agent, or correct lock-helper";
            check.fail(format!("lock helper: {error}"), "a run that needs the session lock does not start", todo);
        }
    }
    check_lock_scope(&factory.lock_file, true, check);
}

const MEANS: &str = "if agents of other hosts have the same login, two can refresh its token at once: the login is lost";

/// Warns, and returns true, if the login is on a file system that other hosts may share, and its lock on one that they cannot.
fn lies_apart(config_dir: &Path, lock_file: &Path, check: &mut Check) -> bool {
    let (Some(login), Some(lock)) = (mount_of(config_dir), mount_of(lock_file)) else { return false };
    if login.lock_scope().0 == LockScope::LocalFs || lock.lock_scope().0 != LockScope::LocalFs {
        return false;
    }
    let (config_dir, lock_file) = (config_dir.display(), lock_file.display());
    let what = format!(
        "{config_dir} is on {}, which other hosts may share, but {lock_file} on {}, which none does",
        login.kind, lock.kind
    );
    check.warn(what, MEANS, "leave the lock file in the config dir, or set lock-helper (README, \"Several hosts\")");
    true
}

/// Mount of `path`, or of the directory that it is to be made in.
fn mount_of(path: &Path) -> Option<Mount> {
    path.ancestors().take(2).find_map(Mount::of)
}

/// Checks how far a flock on the lock file reaches by itself.
fn check_lock_scope(lock_file: &Path, has_helper: bool, check: &mut Check) {
    let Some(mount) = mount_of(lock_file) else {
        return check.pass("/proc does not tell which file system the lock file is on");
    };
    let (reach, why) = mount.lock_scope();
    let on = format!("{} is on {}", lock_file.display(), mount.kind);
    match reach {
        LockScope::Cluster => check.pass(format!("{on}: its flock reaches all hosts that mount it ({why})")),
        LockScope::LocalFs => {
            check.pass(format!("{on}, {why}: its flock keeps apart what runs here, and nothing elsewhere"));
        }
        LockScope::PerHost | LockScope::Unknown if has_helper => {
            check.pass(format!("{on}: its flock may not reach other hosts ({why}), and need not"));
        }
        LockScope::PerHost => {
            let todo = "mount it with locks, use NFSv4 or CephFS, or set lock-helper (README, \"Several hosts\")";
            check.warn(format!("{on}: its flock does not reach other hosts: {why}"), MEANS, todo);
        }
        LockScope::Unknown => {
            let todo = "try it: `flock FILE sleep 60` there on one host, `flock -n FILE true` on another; or set lock-helper";
            check.warn(format!("{on}: whether its flock reaches other hosts is not known: {why}"), MEANS, todo);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn unknown_scope_matters_only_without_a_helper() {
        for (has_helper, verdict, part) in [(true, Verdict::Pass, "need not"), (false, Verdict::Warning, "not known")] {
            let findings = Check::run("hosts", |check| check_lock_scope(Path::new("/proc/session.lock"), has_helper, check));
            let [finding] = findings.as_slice() else { panic!("{findings:?}") };
            assert!(finding.verdict == verdict && finding.what.contains(part), "{finding:?}");
        }
    }
}
