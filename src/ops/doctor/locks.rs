//! The session lock, claude's own refresh locks, and the live runs: whether they see the same lock, and have one version.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::unistd::geteuid;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{Check, Subject};
use crate::claude::refresh_locks::{Owner, RefreshLock, Standing, owner_file};
use crate::claude::storage::ClaudeStorage;
use crate::claude::version::Version;
use crate::config::duration::show_seconds;
use crate::config::settings::{HARD_LIMIT, Settings};
use crate::config::trust::open_to_others;
use crate::lock::{Holder, describe_refresh_lock};
use crate::ops::checks::{self, check_lock_file, let_go_on, stopped_processes};
use crate::ops::fleet::Fleet;
use crate::ops::text;
use crate::records::{Census, PathView, RunRecord};
use crate::sys::fs::{parent_of, real};
use crate::sys::mount;
use crate::sys::steps::{foreign_links, is_foreign};

pub(super) fn check_session_lock(subject: &Subject, check: &mut Check) {
    let Ok(factory) = &subject.factory else { return }; // reported by the check of the settings
    let shown = factory.lock_file.display();
    if factory.settings.lock_file.as_ref().is_some_and(|path| path.is_relative()) {
        let means = "every working directory has a lock of its own";
        check.warn(format!("{shown} is relative"), means, "make --lock-file, or CLAUDE_RUN_LOCK_FILE, absolute");
    }
    if !check_lock_file(&factory.lock_file, &factory.config_dir, check) {
        return;
    }
    let Ok(found) = fs::metadata(&factory.lock_file) else {
        return check.pass_if_clean(format!("{shown} is not there yet; nobody holds it"));
    };
    if mount::is_mount_point(&factory.lock_file) {
        let means = "it is shared without the directory around it: claude's own locks and the run records are not, and its login may not be";
        check.fail(format!("{shown} is a mount point"), means, "share the directory, not the file");
    }
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    if fs::metadata(&factory.config_dir).is_ok_and(|dir| dir.uid() != owner) || mode & 0o400 == 0 {
        let means = "who may not even read it cannot take the lock, and does not start";
        let todo = "let the owner of the config dir own it, readable for all agents";
        check.warn(format!("{shown} belongs to user {owner}, mode {mode:04o}"), means, todo);
    }
    let fleet = Fleet::look(factory);
    for what in &fleet.broken {
        check.fail(what, "it keeps apart from nobody who came later: two may refresh the login at once", "let it end");
    }
    match fleet.holders.first() {
        Some(holder) => check_holder(holder, &factory.settings, check),
        None => check.pass_if_clean(format!("{shown}: nobody holds it")),
    }
}

fn check_holder(holder: &Holder, settings: &Settings, check: &mut Check) {
    let means = "everybody waits for it";
    if let Some(pids) = stopped_processes(holder) {
        return check.warn(format!("held by {holder}; stopped: {pids}"), means, let_go_on(&pids));
    }
    if matches!(holder, Holder::Orphan(..)) {
        return check.fail(format!("held by {holder}"), means, text::end_orphan(holder));
    }
    let Holder::Run(run) = holder else {
        let means = "an old caller, or a run whose record cannot be kept (another user's, or the disk is full or read-only): how long it has had it is not known";
        return check.warn(format!("held by {holder}"), means, "let old callers go through claude-run as well");
    };
    let held = run.age();
    let limit = settings.hard_limit.unwrap_or(HARD_LIMIT).as_limit();
    let grace = settings.kill_grace.as_limit().unwrap_or_default() + Duration::from_secs(1);
    if limit.is_none_or(|limit| held <= limit.saturating_add(grace)) {
        return check.pass(format!("held by {holder}"));
    }
    let what = format!("{} has held it for {}, longer than the hard limit", run.who(), show_seconds(held));
    check.warn(
        what,
        "everybody waits for it; interactive runs have no limit",
        "see what it does: USR1 to claude-run makes it tell",
    );
}

pub(super) fn check_refresh_locks(subject: &Subject, check: &mut Check) {
    let now = SystemTime::now();
    let locks = RefreshLock::of_concern(&subject.storage);
    for (at, lock) in locks.iter().enumerate() {
        let what = describe_refresh_lock(lock);
        let means = match lock.standing(now) {
            Standing::Free => continue,
            Standing::NotKnown => {
                let todo = "have it looked at by the user who runs the agents";
                check.warn(what, "whether a refresh is under way is not known", todo);
                continue;
            }
            Standing::Live => {
                check.pass(what);
                continue;
            }
            Standing::Stuck(_) => {
                check.fail(what, "no version of claude takes it over, and none can refresh", removal(&lock.path));
                continue;
            }
            Standing::OwnerDead(_) => "until then, claude from 2.1.128 on mostly fails when it has to refresh",
            Standing::Stale(_) => match &lock.owner {
                Some(Owner { pid, lives: Some(true), .. }) => {
                    let means =
                        "its owner lives, but was stopped or is stuck, and may lose the login if another claude refreshes";
                    check.warn(what, means, let_go_on(&pid.to_string()));
                    continue;
                }
                _ => "its holder was killed in mid-refresh, and the login may be lost; the next claude takes the lock",
            },
        };
        // Those of the other place that claude may use are left alone: nobody has named it as its storage.
        let may_fix = at < RefreshLock::PER_LOGIN;
        match (subject.fix && may_fix).then(|| ensure_removable(&subject.storage, &lock.path).and_then(|()| remove(lock))) {
            Some(Ok(())) => check.pass(format!("{what}: removed; see whether claude is still logged in")),
            Some(Err(error)) => check.fail(format!("{what}: cannot be removed: {error}"), means, removal(&lock.path)),
            None if !may_fix => check.warn(what, means, removal(&lock.path)),
            None => check.warn(what, means, "claude-run doctor --fix removes it; then see whether claude is still logged in"),
        }
    }
    let (locks, all_gone) = (
        &locks[..RefreshLock::PER_LOGIN],
        RefreshLock::of(&subject.storage).iter().all(|lock| lock.standing(now) == Standing::Free),
    );
    if subject.fix && all_gone && locks.iter().any(|lock| lock.owner.is_some() && lock.standing(now) != Standing::Live) {
        // The owner files of locks that are gone; the next holder writes new ones.
        let removable = |path: &PathBuf| ensure_removable(&subject.storage, path).is_ok();
        locks.iter().map(|lock| owner_file(&lock.path)).filter(removable).for_each(|file| drop(fs::remove_file(file)));
    }
    check.pass_if_clean("free");
}

/// The command that removes the lock at `path`, whatever it is.
fn removal(path: &Path) -> String {
    let command = match fs::read_dir(path).map(|entries| entries.count()) {
        _ if path.is_symlink() => "rm",
        Ok(0) => "rmdir",
        Ok(_) => "rm -r",
        Err(_) => "rm",
    };
    format!("remove it: {command} {}", shell_words::quote(&path.to_string_lossy()))
}

/// Fails if somebody else has named the place of `path` in the `storage`, by claude's settings or by a link, and could not remove it
/// there: nobody has another remove anything.
fn ensure_removable(storage: &ClaudeStorage, path: &Path) -> io::Result<()> {
    let owner = |path: &Path| fs::symlink_metadata(path).map(|found| found.uid()).ok();
    let owners = [owner(path), path.parent().and_then(|dir| owner(&real(dir)))];
    let may = |uid: u32| is_foreign(uid) && owners.contains(&Some(uid));
    let by_link = foreign_links(&storage.dir).find(|(_, uid)| !may(*uid)).map(|(link, _)| link);
    let by_settings = storage.named_in.as_deref().filter(|file| {
        let is_ours = || open_to_others(file, 0o022, geteuid()).is_ok_and(|open| open.is_none());
        !owner(file).is_some_and(may) && !is_ours()
    });
    match by_link.as_deref().or(by_settings) {
        None => Ok(()),
        Some(by) => Err(io::Error::other(format!("its place is named by {}, which is not ours alone", by.display()))),
    }
}

/// Removes exactly this lock: a process that has acquired it meanwhile gets it back.
fn remove(lock: &RefreshLock) -> io::Result<()> {
    // In a directory of our own, whose name nobody can have guessed.
    let dir = tempfile::Builder::new().prefix(".claude-run-").tempdir_in(parent_of(&lock.path))?;
    let aside = dir.path().join("aside");
    fs::rename(&lock.path, &aside)?;
    let touched = fs::metadata(&aside).and_then(|found| found.modified());
    let removed = match touched {
        Ok(touched) if Some(touched) == lock.touched => fs::remove_dir(&aside),
        Ok(_) => Err(io::Error::other("somebody has taken it just now")),
        Err(error) => Err(error),
    };
    removed.inspect_err(|_| {
        // If another one is there by now, this one is nobody's.
        let put_back = renameat_with(CWD, &aside, CWD, &lock.path, RenameFlags::NOREPLACE);
        if put_back == Err(Errno::INVAL) {
            let _ = fs::rename(&aside, &lock.path); // a file system without that flag; at most an empty directory is replaced
        }
    })
}

type View = fn(&RunRecord) -> Option<&PathView>;
/// Paths that have to be the same file for all runs: name, consequence if they are not, and what to do.
const SHARED_PATHS: [(&str, View, &str, &str); 3] = [
    (
        "lock file",
        |run| run.lock.as_ref(),
        "the session lock does not keep them apart",
        "give both the same config dir, and no --lock-file of their own; if the file was removed under the older one, let that end",
    ),
    (
        "config dir",
        |run| Some(&run.config_dir),
        "each has a login of its own, though they share these records",
        "give both the same CLAUDE_CONFIG_DIR, mounted from the same place",
    ),
    (
        "directory above the config dir",
        |run| Some(&run.parent),
        "claude before 2.1.128 has its lock there: two refreshes at once, and one of them loses",
        "mount the directory above the config dir, at the same absolute path everywhere",
    ),
];

pub(super) fn check_records(subject: &Subject, check: &mut Check) {
    if checks::check_records(&subject.records, true, check)
        && let Err(error) = &subject.census
    {
        let what = format!("the run records cannot be read: {error}");
        check.fail(what, "who runs cannot be told", "see what is wrong there");
    }
    check.pass_if_clean(format!("nothing is in the way in {}", subject.records.path().display()));
}

pub(super) fn check_views(subject: &Subject, check: &mut Check) {
    let Ok(Census { live, .. }) = &subject.census else { return }; // reported by the check of the records
    for (name, view, means, todo) in SHARED_PATHS {
        // Each view once, that of the oldest run first.
        let mut known: Vec<(&RunRecord, &PathView)> = Vec::new();
        for (run, seen) in live.iter().filter_map(|run| Some((run, view(run)?))) {
            if known.iter().all(|(other, view)| !is_same(view, seen, other.boot == run.boot)) {
                known.push((run, seen));
            }
        }
        for other in known.iter().skip(1) {
            let what = format!("two runs see another {name}: {}; {}", describe(&known[0]), describe(other));
            check.fail(what, means, todo);
        }
    }
    check_mixed_versions(live, check);
    let elsewhere = subject.census.iter().flat_map(|census| &census.elsewhere);
    check_clocks(live.iter().chain(elsewhere), check);
    check.pass_if_clean(match live.len() {
        0 => "no live run to compare".to_owned(),
        runs => format!("{}, and no two see another lock", text::count(runs, "live run")),
    });
}

/// A clock that is so far ahead takes a refresh lock for stale that is held.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);

fn check_clocks<'a>(runs: impl Iterator<Item = &'a RunRecord>, check: &mut Check) {
    let now = SystemTime::now();
    let ahead = |run: &RunRecord| run.since.duration_since(now).ok().filter(|ahead| *ahead > MAX_CLOCK_SKEW);
    let mut hosts = BTreeMap::new();
    for (run, ahead) in runs.filter_map(|run| Some((run, ahead(run)?))) {
        hosts.entry(&run.host).or_insert(ahead);
    }
    for (host, ahead) in hosts {
        let means =
            "claude there takes a refresh lock that is held for stale: two refresh at once, and the login is lost for all";
        check.fail(
            format!("the clock of {host} is {} ahead of this one", show_seconds(ahead)),
            means,
            "set the clocks by NTP on every host",
        );
    }
}

/// Older and newer versions of claude have but one lock in common, which a mount of the config dir alone does not share.
fn check_mixed_versions(live: &[RunRecord], check: &mut Check) {
    let version = |run: &&RunRecord| run.claude_version.as_deref().and_then(Version::parse);
    let is_older = |run: &&RunRecord| version(run).is_some_and(|version| version < Version::INNER_LOCK);
    let is_newer = |run: &&RunRecord| version(run).is_some_and(|version| version >= Version::INNER_LOCK);
    let pairs = live.iter().filter(is_older).flat_map(|older| live.iter().filter(is_newer).map(move |newer| (older, newer)));
    let split = pairs.into_iter().find(|(older, newer)| !is_same(&older.parent, &newer.parent, older.boot == newer.boot));
    let Some((older, newer)) = split else { return };
    let name = |run: &RunRecord| format!("{} has claude {}", run.who(), run.claude_version.as_deref().unwrap_or_default());
    let means =
        "they refresh at once in spite of the session lock in refresh mode, and the newer one then empties the login for all";
    let todo = "update claude everywhere to 2.1.128 or later, or mount the directory above the config dir; until then, --lock exclusive";
    check.fail(format!("{}, and {}, without a lock in common", name(older), name(newer)), means, todo);
}

fn describe((run, seen): &(&RunRecord, &PathView)) -> String {
    let file = seen.file_id().map_or_else(|| "not there".into(), |id| format!("device {}, inode {}", id.device, id.inode));
    format!("{} in {} sees {} ({file})", run.who(), run.host, seen.path)
}

/// True if both are the same file. Device numbers are not comparable between hosts; paths count only where there is no file yet.
fn is_same(one: &PathView, other: &PathView, same_host: bool) -> bool {
    match (one.file_id(), other.file_id()) {
        (Some(one), Some(other)) => one.inode == other.inode && (one.device == other.device || !same_host),
        _ => one.path == other.path,
    }
}

pub(super) fn check_versions(subject: &Subject, check: &mut Check) {
    let ours = env!("CARGO_PKG_VERSION");
    let live = subject.census.iter().flat_map(|census| &census.live);
    let others: Vec<_> =
        live.filter(|run| run.version != ours).map(|run| format!("{} has {}", run.who(), run.version)).collect();
    if others.is_empty() {
        return check.pass(format!("{ours}; no live run has another version"));
    }
    let means = "they lock alike, but may not understand each other's records and settings in full";
    check.warn(format!("this is {ours}, but {}", others.join(", ")), means, "install one version everywhere");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_that_cannot_be_removed_is_put_back() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let storage = dir.path().join("config");
        let path = dir.path().join("config.lock");
        fs::create_dir(&storage)?;
        fs::create_dir(&path)?;
        let stale = SystemTime::now() - Duration::from_secs(100);
        let touch = |at| fs::File::open(&path)?.set_modified(at);
        let look = || {
            let [older, _] = RefreshLock::of(&ClaudeStorage::at(&storage));
            older
        };
        let entries = || fs::read_dir(dir.path()).map(|entries| entries.count());
        touch(stale)?;
        let seen = look();
        touch(SystemTime::now())?; // somebody takes it over
        let error = remove(&seen).expect_err("it is held");
        assert!(error.to_string().contains("somebody has taken it"), "{error}");
        assert_eq!((look().standing(SystemTime::now()), entries()?), (Standing::Live, 2), "back, and nothing beside it");
        touch(stale)?;
        let seen = look();
        fs::write(path.join("file"), "x")?; // somebody puts something into it
        touch(stale)?;
        let error = remove(&seen).expect_err("it is not empty");
        assert_eq!(error.kind(), io::ErrorKind::DirectoryNotEmpty);
        assert_eq!((fs::read(path.join("file"))?, entries()?), (b"x".to_vec(), 2));
        fs::remove_file(path.join("file"))?;
        touch(stale)?;
        remove(&look())?;
        assert_eq!((path.exists(), entries()?), (false, 1));
        Ok(())
    }
}
