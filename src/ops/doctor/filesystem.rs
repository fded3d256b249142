//! The file system of the config dir: whether it keeps the promises that locks depend on, which several processes at once try in a
//! temporary directory; and whether the session lock holds between hosts, by the file system of the lock file or by a lock helper.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use fs4::FileExt;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};

use super::{Check, Subject};
use crate::claude::program::Program;
use crate::config::duration::show;
use crate::ops::checks::{ROOM, check_room, fail_for_room};
use crate::sys::dir::Dir;
use crate::sys::file_watch::FileWatch;
use crate::sys::fs::{apart, is_for_lack_of_room};
use crate::sys::mount::{LockScope, Mount};

/// Beginning of the name of the directory in which all is tried.
const PROBE: &str = ".claude-run-probe.";

/// Names in it, and the beginning of more.
const PROBED: [&str; 7] = ["room", "flock", "inside", "rename", "rename-new", "mtime", "inotify"];
const MKDIR: &str = "mkdir-";

const PROCESSES: usize = 4;
const ROUNDS: usize = 50;

/// Test of one promise. Returns what is wrong, if anything is.
type Probe = fn(&Path) -> io::Result<Option<String>>;
const PROBES: [(&str, Probe, &str); 5] = [
    ("mkdir", mkdir_is_exclusive, "claude's refresh locks are directories: two agents could have one at once"),
    ("flock", flock_excludes, "the session lock keeps nobody out"),
    ("rename", rename_replaces, "a reader of the credentials can find none, or half of them"),
    ("mtime", mtime_is_kept, "a refresh lock can look stale while it is held"),
    ("inotify", changes_are_reported, "refresh mode looks at the credentials once a second instead"),
];

pub(super) fn check(subject: &Subject, check: &mut Check) {
    let Ok(real) = fs::canonicalize(&subject.config_dir) else { return };
    let _ = remove_leftovers(&real); // where they cannot be removed, they stay
    let dir = match tempfile::Builder::new().prefix(PROBE).tempdir_in(&real) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => return check_room(&real, check),
        Err(error) if is_for_lack_of_room(&error) => return fail_for_room(&real, &error, check),
        Err(error) => {
            let what = format!("nothing can be made in {}: {error}", real.display());
            return check.fail(what, "no lock can be taken here", "see that there is the right to write");
        }
    };
    // Where no directory can be locked, none is taken for a leftover.
    let _in_use = dir.path().file_name().and_then(|name| Dir::open(&real).ok()?.lock_dir(name.to_str()?).ok());
    // Whatever it is that is short: blocks, those that are not root's, a quota. The probes would only fail for the same reason.
    match try_to_write(&dir.path().join("room")) {
        Ok(()) => {}
        Err(_) if !dir.path().exists() => return warn_of_removal(dir.path(), check),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            let what = format!("no file here may have {ROOM} bytes: {error}");
            return check.fail(what, "a refreshed token, records and logs can be cut", "raise the limit (ulimit -f)");
        }
        Err(error) => return fail_for_room(&real, &error, check),
    }
    let mut passed = Vec::new();
    for (name, probe, means) in PROBES {
        match probe(dir.path()) {
            Ok(None) => passed.push(name),
            Ok(Some(_)) | Err(_) if !dir.path().exists() => return warn_of_removal(dir.path(), check),
            Ok(Some(what)) if name == "inotify" => {
                check.warn(format!("{name}: {what}"), means, "nothing, unless that second matters");
            }
            Ok(Some(what)) => check.fail(format!("{name}: {what}"), means, "put the config dir where all hosts lock alike"),
            Err(error) => {
                let todo = "see that there are processes and descriptors left";
                check.warn(format!("{name} cannot be tried: {error}"), means, todo);
            }
        }
    }
    if !passed.is_empty() {
        let kind = Mount::of(&real).map_or_else(|| "unknown".to_owned(), |mount| mount.kind);
        check.pass(format!("{kind}: {} held for {PROCESSES} processes", passed.join(", ")));
    }
}

fn warn_of_removal(dir: &Path, check: &mut Check) {
    let what = format!("nothing can be tried: somebody has removed {}", dir.display());
    check.warn(what, "whether locks hold here is not known", "call doctor again");
}

/// Removes what calls that were killed have left: unlocked, with nothing in it but what is made here.
fn remove_leftovers(real: &Path) -> io::Result<()> {
    let dir = Dir::open(real)?;
    // What cannot be removed keeps nothing else.
    dir.leftovers(PROBE, "")?.iter().for_each(|name| drop(remove_probes(&dir, name)));
    Ok(())
}

fn remove_probes(dir: &Dir, name: &str) -> io::Result<()> {
    let (probe, mut inside) = (dir.lock_dir(name)?, Vec::new());
    probe.for_each_name(usize::MAX, |name| inside.push(name.to_owned()))?;
    inside.retain(|name| ![".", ".."].contains(&&**name));
    if inside.iter().all(|name| PROBED.contains(&&**name) || name.starts_with(MKDIR)) {
        inside.iter().try_for_each(|name| probe.remove(name).or_else(|_| probe.remove_dir(name)))?;
        dir.remove_dir(name)?;
    }
    Ok(())
}

fn try_to_write(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    // Some file systems find only then that they have no place for it.
    let written = file.write_all(&vec![b'-'; ROOM]).and_then(|()| file.sync_all());
    written.and(fs::remove_file(path))
}

/// Of all processes that make a directory, one succeeds.
fn mkdir_is_exclusive(dir: &Path) -> io::Result<Option<String>> {
    let paths: Vec<_> = (0..ROUNDS).map(|round| dir.join(format!("{MKDIR}{round}"))).collect();
    let made = at_once(|_| paths.iter().filter(|path| fs::create_dir(path).is_ok()).count())?;
    Ok((made != ROUNDS).then(|| format!("of {ROUNDS} directories, {made} were made by {PROCESSES} processes")))
}

/// The holder of the lock is alone: no other process' directory is there.
fn flock_excludes(dir: &Path) -> io::Result<Option<String>> {
    let (lock, inside) = (dir.join("flock"), dir.join("inside"));
    let is_alone = |lock: &File| {
        FileExt::lock(lock).is_ok()
            && fs::create_dir(&inside).is_ok()
            && fs::remove_dir(&inside).is_ok()
            && FileExt::unlock(lock).is_ok()
    };
    let failed = at_once(|_| match File::options().read(true).write(true).create(true).truncate(false).open(&lock) {
        Ok(lock) => (0..ROUNDS).filter(|_| !is_alone(&lock)).count(),
        Err(_) => ROUNDS,
    })?;
    Ok((failed > 0).then(|| format!("{failed} times of {} it failed, or two had it at once", PROCESSES * ROUNDS)))
}

/// A file that is replaced by a rename is there at every moment, whole.
fn rename_replaces(dir: &Path) -> io::Result<Option<String>> {
    let (path, temporary) = (dir.join("rename"), dir.join("rename-new"));
    fs::write(&path, [b'a'; 4096])?;
    let replace = |round: usize| {
        fs::write(&temporary, [b'a' + (round % 26) as u8; 4096]).and_then(|()| fs::rename(&temporary, &path)).is_ok()
    };
    let is_whole = || fs::read(&path).is_ok_and(|text| text.len() == 4096 && text.iter().all(|byte| *byte == text[0]));
    let torn = at_once(|number| (0..ROUNDS).filter(|&round| !(if number == 0 { replace(round) } else { is_whole() })).count())?;
    Ok((torn > 0).then(|| format!("{torn} times of {} the file was gone, or not whole", PROCESSES * ROUNDS)))
}

/// A time that is set can be read again, to the millisecond, and a new file is dated now.
fn mtime_is_kept(dir: &Path) -> io::Result<Option<String>> {
    let dir = dir.join("mtime");
    fs::create_dir(&dir)?;
    let made = fs::metadata(&dir)?.modified()?;
    let off = apart(made, SystemTime::now());
    if off > Duration::from_secs(2) {
        return Ok(Some(format!("what is made now is dated {} away: two clocks", show(off))));
    }
    let set = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
    File::open(&dir)?.set_modified(set)?;
    let off = apart(fs::metadata(&dir)?.modified()?, set);
    Ok((off >= Duration::from_millis(1)).then(|| format!("a time that was set reads {} off", show(off))))
}

/// The kernel reports what another process makes.
fn changes_are_reported(dir: &Path) -> io::Result<Option<String>> {
    let file = dir.join("inotify");
    let mut changes = FileWatch::of(std::slice::from_ref(&file));
    if changes.is_polled() {
        let why = "the kernel does not tell of changes here, or no instance is left (fs.inotify.max_user_instances)";
        return Ok(Some(why.into()));
    }
    at_once(|_| usize::from(fs::create_dir(&file).is_ok()))?;
    let is_told = (0..200).any(|_| {
        thread::sleep(Duration::from_millis(10));
        changes.take_changes()
    });
    Ok((!is_told).then(|| "what another process has made was not told of".into()))
}

/// Runs `work` in several processes that begin at the same moment; each gets its number and returns a count, at most 255. Returns
/// their sum.
fn at_once(work: impl Fn(usize) -> usize) -> io::Result<usize> {
    let (start, go) = pipe()?;
    let mut children = Vec::new();
    for number in 0..PROCESSES {
        // SAFETY: doctor has no other thread, so the child may do whatever this process may; it ends without running our guards.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { child }) => children.push(Ok(child)),
            Ok(ForkResult::Child) => {
                drop(go);
                let _ = File::from(start).read(&mut [0]); // EOF, once all processes have closed the other end
                let count = work(number).min(255);
                // SAFETY: _exit(2) only ends the process.
                unsafe { libc::_exit(count as i32) };
            }
            Err(error) => children.push(Err(error)),
        }
    }
    drop(go);
    let count = |child: nix::Result<Pid>| match waitpid(child?, None)? {
        WaitStatus::Exited(_, count) => Ok(count as usize),
        other => Err(io::Error::other(format!("a probe ended with {other:?}"))),
    };
    // All are waited for, whatever one says.
    let counts: Vec<_> = children.into_iter().map(count).collect();
    counts.into_iter().sum()
}

pub(super) fn check_hosts(subject: &Subject, check: &mut Check) {
    let Ok(factory) = &subject.factory else { return }; // reported by the check of the settings
    if !subject.config_dir.exists() {
        return; // reported by the check of the config dir
    }
    let helper = factory.settings.lock_helper.as_deref().unwrap_or_default().first();
    match helper.map(|name| Program::find(&[name.into()], None)) {
        None => {}
        Some(Ok(program)) => check.pass(format!("the lock helper {} is there; it is not tried", program.path.display())),
        Some(Err(error)) => {
            let todo = "install it for every agent, or correct lock-helper";
            check.fail(format!("lock helper: {error}"), "a run that needs the session lock does not start", todo);
        }
    }
    check_lock_scope(&factory.config_dir, &factory.lock_file, helper.is_some(), check);
}

const TWO_REFRESHES: &str =
    "if agents of other hosts have the same login, two can refresh its token at once: the login is lost";

/// Mount of `path`, or of the directory that it is to be made in.
fn mount_of(path: &Path) -> Option<Mount> {
    path.ancestors().take(2).find_map(Mount::of)
}

/// Checks how far a flock on the lock file reaches by itself, and whether it reaches all who may have the login.
fn check_lock_scope(config_dir: &Path, lock_file: &Path, has_helper: bool, check: &mut Check) {
    let Some(mount) = mount_of(lock_file) else {
        return check.pass("/proc does not tell which file system the lock file is on");
    };
    let shared = mount_of(config_dir).filter(|login| !has_helper && login.lock_scope().0 != LockScope::LocalFs);
    let (reach, why) = mount.lock_scope();
    let on = format!("{} is on {}", lock_file.display(), mount.kind);
    match (reach, shared) {
        (LockScope::Cluster, _) => check.pass(format!("{on}: its flock reaches all hosts that mount it ({why})")),
        (LockScope::LocalFs, Some(login)) => {
            let (dir, kind) = (config_dir.display(), login.kind);
            let what = format!("{dir} is on {kind}, which other hosts may share, but {on}, which none does");
            check.warn(
                what,
                TWO_REFRESHES,
                "leave the lock file in the config dir, or set lock-helper (claude-run help hosts)",
            );
        }
        (LockScope::LocalFs, None) => {
            check.pass(format!("{on}, {why}: the lock holds on this host only"));
        }
        (LockScope::PerHost | LockScope::Unknown, _) if has_helper => {
            check.pass(format!("{on}: its flock may not reach other hosts ({why}), and need not"));
        }
        (LockScope::PerHost, _) => {
            let todo = "mount it with locks, use NFSv4 or CephFS, or set lock-helper (claude-run help hosts)";
            check.warn(format!("{on}: its flock does not reach other hosts: {why}"), TWO_REFRESHES, todo);
        }
        (LockScope::Unknown, _) => {
            let todo = "try it: `flock FILE sleep 60` there on one host, `flock -n FILE true` on another; or set lock-helper";
            check.warn(format!("{on}: whether its flock reaches other hosts is not known: {why}"), TWO_REFRESHES, todo);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn each_probe_finds_fault_where_nothing_works() {
        for (name, probe, _) in PROBES {
            let found = probe(Path::new("/nonesuch/place"));
            assert!(!matches!(found, Ok(None)), "{name}: {found:?}");
        }
    }

    #[test]
    fn unknown_scope_matters_only_without_a_helper() {
        for (has_helper, verdict, part) in [(true, Verdict::Pass, "need not"), (false, Verdict::Warning, "not known")] {
            let mut check = Check::default();
            check_lock_scope(Path::new("/proc"), Path::new("/proc/session.lock"), has_helper, &mut check);
            let [finding] = check.findings.as_slice() else { panic!("{:?}", check.findings) };
            assert!(finding.verdict == verdict && finding.what.contains(part), "{finding:?}");
        }
    }
}
