//! The session lock, and claude's own refresh locks.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process;
use std::time::{Duration, SystemTime};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::Check;
use crate::claude::refresh_locks::{Owner, RefreshLock, Standing};
use crate::config::duration::show_seconds;
use crate::config::settings::HARD_LIMIT;
use crate::lock::{Holder, Queue};
use crate::ops::{Context, Factory};
use crate::records::RecordStore;
use crate::sys::file_id::FileId;

pub(super) fn check_session_lock(context: &Context, config_dir: &Path, check: &mut Check) {
    let Ok(factory) = Factory::of(context) else { return }; // reported by the check of the settings
    let shown = factory.lock_file.display();
    let Ok(found) = fs::metadata(&factory.lock_file) else {
        return check.pass(format!("{shown} is not there yet; nobody holds it"));
    };
    if !found.is_file() {
        return check.fail(format!("{shown} is no regular file"), "no run that needs the lock can start", "move it away");
    }
    let (owner, mode) = (found.uid(), found.permissions().mode() & 0o7777);
    if fs::metadata(config_dir).is_ok_and(|dir| dir.uid() != owner) || mode & 0o400 == 0 {
        let means = "who may not even read it cannot take the lock, and does not start";
        let todo = "let the owner of the config dir own it, readable for all agents";
        check.warn(format!("{shown} belongs to user {owner}, mode {mode:04o}"), means, todo);
    }
    let lock = FileId::of(&found);
    let records = RecordStore::of(config_dir);
    let census = records.census().unwrap_or_default();
    for run in &census.orphaned {
        let child = run.child.map_or_else(String::new, |pid| format!(" (pid {pid})"));
        let what = format!("{} was killed, and what it started{child} still holds the lock", run.who());
        check.fail(what, "everybody waits for it", "end that process; the lock is free with it");
    }
    let holder = if census.orphaned.is_empty() {
        let run = census.live.into_iter().find(|run| run.holds(lock));
        run.map(|run| Holder::Run(Box::new(run))).or_else(|| Holder::find_without_record(&Queue::look(lock), Some(&records)))
    } else {
        None
    };
    match holder {
        None if check.is_clean() => check.pass(format!("{shown}: nobody holds it")),
        None => {}
        Some(Holder::Run(run)) => {
            let held = SystemTime::now().duration_since(run.since).unwrap_or_default();
            let limit = factory.settings.hard_limit.unwrap_or(HARD_LIMIT).as_limit();
            let grace = factory.settings.kill_grace.as_limit().unwrap_or_default() + Duration::from_secs(1);
            if limit.is_some_and(|limit| held > limit.saturating_add(grace)) {
                let what = format!("{} has held it for {}, longer than the hard limit", run.who(), show_seconds(held));
                let means = "everybody waits for it; interactive runs have no limit";
                check.warn(what, means, "see what it does: USR1 to claude-run makes it tell");
            } else {
                check.pass(format!("held by {}", Holder::Run(run)));
            }
        }
        Some(holder @ Holder::Process { .. }) => {
            let means = "an old caller, or a user whose records cannot be kept here: how long it has had it is not known";
            check.warn(format!("held by {holder}"), means, "let it go through claude-run as well");
        }
    }
}

pub(super) fn check_refresh_locks(config_dir: &Path, fix: bool, check: &mut Check) {
    let now = SystemTime::now();
    let locks = RefreshLock::of(config_dir);
    for lock in &locks {
        check_refresh_lock(lock, now, fix, check);
    }
    let all_gone = RefreshLock::of(config_dir).iter().all(|lock| lock.touched.is_none());
    if fix && all_gone && locks.iter().any(|lock| lock.owner.is_some() && lock.standing(now) != Standing::Live) {
        // The owner file of a lock that is gone; the next holder writes a new one.
        let _ = fs::remove_file(RefreshLock::owner_file(config_dir));
    }
    if check.is_clean() {
        check.pass("free");
    }
}

fn check_refresh_lock(lock: &RefreshLock, now: SystemTime, fix: bool, check: &mut Check) {
    let path = lock.path.display();
    let owner = lock.owner.as_ref().map_or_else(String::new, |Owner { pid, .. }| format!(", of pid {pid}"));
    let (what, means) = match lock.standing(now) {
        Standing::Free => return,
        Standing::Live => return check.pass(format!("{path}{owner}: a refresh is under way")),
        Standing::OwnerDead(left) => (
            format!("{path}{owner}, which is dead; not stale for another {}", show_seconds(left)),
            "until then, claude from 2.1.128 on mostly fails when it has to refresh",
        ),
        Standing::Stale(age) => (
            format!("{path}{owner} is stale: not touched for {}", show_seconds(age)),
            "its holder was killed in mid-refresh, and the login may be lost; the next claude takes the lock",
        ),
    };
    if !fix {
        let todo = "claude-run doctor --fix removes it; then see whether claude is still logged in";
        return check.warn(what, means, todo);
    }
    match remove(lock) {
        Ok(()) => check.pass(format!("{what}: removed")),
        Err(error) => check.fail(format!("{what}: cannot be removed: {error}"), means, "remove it by hand"),
    }
}

/// Removes exactly this lock: a process that has acquired it meanwhile gets it back.
fn remove(lock: &RefreshLock) -> io::Result<()> {
    let mut aside = lock.path.clone().into_os_string();
    aside.push(format!(".claude-run-{}", process::id()));
    fs::rename(&lock.path, &aside)?;
    let touched = fs::metadata(&aside).and_then(|found| found.modified())?;
    if Some(touched) != lock.touched {
        renameat2(AT_FDCWD, Path::new(&aside), AT_FDCWD, &lock.path, RenameFlags::RENAME_NOREPLACE)?;
        return Err(io::Error::other("somebody has taken it just now"));
    }
    fs::remove_dir(aside)
}
