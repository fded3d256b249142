//! Checks 5 and 6: the session lock, and claude's own refresh locks.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process;
use std::time::{Duration, SystemTime};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::Finding;
use crate::claude::refresh_locks::{Owner, RefreshLock, Standing};
use crate::config::settings::{HARD_LIMIT, show_seconds};
use crate::lock::{Holder, Queue};
use crate::ops::{Context, Place};
use crate::records::RecordStore;
use crate::sys::file_id::FileId;

const SESSION: &str = "session lock";
const REFRESH: &str = "refresh locks";

pub(super) fn session(context: &Context, config_dir: &Path) -> Vec<Finding> {
    let Ok(place) = Place::of(context) else { return Vec::new() }; // the settings are wrong: that has a check of its own
    let shown = place.lock_file.display();
    let mut findings = Vec::new();
    let Ok(found) = fs::metadata(&place.lock_file) else {
        return vec![Finding::pass(SESSION, format!("{shown} is not there yet; nobody holds it"))];
    };
    let owner_of_dir = fs::metadata(config_dir).map(|dir| dir.uid()).ok();
    if !found.is_file() {
        let what = format!("{shown} is no regular file");
        return vec![Finding::failure(SESSION, what, "no run that needs the lock can start", "move it away")];
    }
    if owner_of_dir.is_some_and(|owner| owner != found.uid()) || found.permissions().mode() & 0o400 == 0 {
        let what = format!("{shown} belongs to user {}, mode {:04o}", found.uid(), found.permissions().mode() & 0o7777);
        let means = "who may not even read it cannot take the lock, and does not start";
        findings.push(Finding::warning(
            SESSION,
            what,
            means,
            "let the owner of the config dir own it, readable for all agents",
        ));
    }
    let lock = FileId::of(&found);
    let records = RecordStore::of(config_dir);
    let census = records.census().unwrap_or_default();
    for run in &census.orphaned {
        let child = run.child.map_or_else(String::new, |pid| format!(" (pid {pid})"));
        let what = format!("{} was killed, and what it started{child} still holds the lock", run.who());
        findings.push(Finding::failure(SESSION, what, "everybody waits for it", "end that process; the lock is free with it"));
    }
    let holder = if census.orphaned.is_empty() {
        let run = census.live.iter().find(|run| run.holds(lock));
        run.map(|run| Holder::Run(Box::new(run.clone())))
            .or_else(|| Holder::find_without_record(&Queue::look(lock), Some(&records)))
    } else {
        None
    };
    let limit = place.settings.hard_limit.unwrap_or(HARD_LIMIT).as_limit();
    match holder {
        None if findings.is_empty() => findings.push(Finding::pass(SESSION, format!("{shown}: nobody holds it"))),
        None => {}
        Some(Holder::Run(run)) => {
            let held = SystemTime::now().duration_since(run.since).unwrap_or_default();
            let grace = place.settings.kill_grace.as_limit().unwrap_or_default() + Duration::from_secs(1);
            if limit.is_some_and(|limit| held > limit.saturating_add(grace)) {
                let what = format!("{} has held it for {}, longer than the hard limit", run.who(), show_seconds(held));
                let means = "everybody waits for it; interactive runs have no limit";
                findings.push(Finding::warning(SESSION, what, means, "see what it does: USR1 to claude-run makes it tell"));
            } else {
                findings.push(Finding::pass(SESSION, format!("held by {}", Holder::Run(run))));
            }
        }
        Some(holder @ Holder::Process { .. }) => {
            let means = "an old caller, or a user whose records cannot be kept here: how long it has had it is not known";
            let todo = "let it go through claude-run as well";
            findings.push(Finding::warning(SESSION, format!("held by {holder}"), means, todo));
        }
    }
    findings
}

pub(super) fn refresh(config_dir: &Path, fix: bool) -> Vec<Finding> {
    let now = SystemTime::now();
    let locks = RefreshLock::of(config_dir);
    let mut findings: Vec<_> = locks.iter().filter_map(|lock| judge(lock, now, fix)).collect();
    let all_gone = RefreshLock::of(config_dir).iter().all(|lock| lock.touched.is_none());
    if fix && all_gone && locks.iter().any(|lock| lock.owner.is_some() && lock.standing(now) != Standing::Live) {
        // Whose lock it was; a new one is written with the next.
        let _ = fs::remove_file(RefreshLock::owner_file(config_dir));
    }
    if findings.is_empty() {
        findings.push(Finding::pass(REFRESH, "free"));
    }
    findings
}

fn judge(lock: &RefreshLock, now: SystemTime, fix: bool) -> Option<Finding> {
    let path = lock.path.display();
    let owner = lock.owner.as_ref().map_or_else(String::new, |Owner { pid, .. }| format!(", of pid {pid}"));
    let (what, means) = match lock.standing(now) {
        Standing::Free => return None,
        Standing::Live => return Some(Finding::pass(REFRESH, format!("{path}{owner}: a refresh is under way"))),
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
        return Some(Finding::warning(REFRESH, what, means, todo));
    }
    Some(match remove(lock) {
        Ok(()) => Finding::pass(REFRESH, format!("{what}: removed")),
        Err(error) => Finding::failure(REFRESH, format!("{what}: cannot be removed: {error}"), means, "remove it by hand"),
    })
}

/// Removes the lock that was looked at, and no other: whoever has taken it meanwhile gets it back.
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
