//! The file system of the config dir: whether it keeps the promises that locks depend on. Several processes at once try each, in
//! a temporary directory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use fs4::FileExt;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};

use super::Check;
use crate::config::duration::show;
use crate::sys::file_watch::FileWatch;
use crate::sys::mount::Mount;

/// Number of processes that try at once, and of their attempts.
const PROCESSES: usize = 4;
const ROUNDS: usize = 50;

/// A test of one promise. Returns what is wrong, if anything is.
type Probe = fn(&Path) -> io::Result<Option<String>>;

const PROBES: [(&str, Probe, &str); 5] = [
    ("mkdir", mkdir_is_exclusive, "claude's refresh locks are directories: two agents could have one at once"),
    ("flock", flock_excludes, "the session lock keeps nobody out"),
    ("rename", rename_replaces, "a reader of the credentials can find none, or half of them"),
    ("mtime", mtime_is_kept, "a refresh lock can look stale while it is held"),
    ("inotify", changes_are_reported, "refresh mode looks at the credentials once a second instead"),
];

pub(super) fn check(config_dir: &Path, check: &mut Check) {
    let Ok(real) = fs::canonicalize(config_dir) else { return };
    let dir = match tempfile::Builder::new().prefix(".claude-run-probe.").tempdir_in(&real) {
        Ok(dir) => dir,
        Err(error) => {
            let what = format!("nothing can be made in {}: {error}", real.display());
            return check.fail(what, "no lock can be taken here", "see that there is room, and the right to write");
        }
    };
    let mut passed = Vec::new();
    for (name, probe, means) in PROBES {
        match probe(dir.path()) {
            Ok(None) => passed.push(name),
            Ok(Some(what)) if name == "inotify" => {
                check.warn(format!("{name}: {what}"), means, "nothing, unless that second matters");
            }
            Ok(Some(what)) => {
                let todo = "put the config dir on a local file system, or on one that all hosts lock alike";
                check.fail(format!("{name}: {what}"), means, todo);
            }
            Err(error) => {
                let todo = "see that there are processes, descriptors and room left";
                check.warn(format!("{name} cannot be tried: {error}"), means, todo);
            }
        }
    }
    if !passed.is_empty() {
        let kind = Mount::of(&real).map_or_else(|| "unknown".to_owned(), |mount| mount.kind);
        check.pass(format!("{kind}: {} held for {PROCESSES} processes", passed.join(", ")));
    }
}

/// Of all processes that make a directory, one succeeds.
fn mkdir_is_exclusive(dir: &Path) -> io::Result<Option<String>> {
    let paths: Vec<_> = (0..ROUNDS).map(|round| dir.join(format!("mkdir-{round}"))).collect();
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
    let apart = |one: SystemTime, other: SystemTime| one.duration_since(other).unwrap_or_else(|error| error.duration());
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
    if changes.poll_at.is_some() {
        return Ok(Some(
            "the kernel does not tell of changes here, or no instance is left (fs.inotify.max_user_instances)".into(),
        ));
    }
    at_once(|_| usize::from(fs::create_dir(&file).is_ok()))?;
    let deadline = Instant::now() + Duration::from_secs(2);
    while !changes.take_changes() {
        if Instant::now() >= deadline {
            return Ok(Some("what another process has made was not told of".into()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(None)
}

/// Runs `work` in several processes that begin at the same moment; each gets its number and returns a count, at most 255. Returns
/// their sum.
fn at_once(work: impl Fn(usize) -> usize) -> io::Result<usize> {
    let (start, go) = pipe()?;
    let mut go = Some(go);
    let mut children: Vec<Pid> = Vec::new();
    for number in 0..PROCESSES {
        // SAFETY: doctor has no other thread, so the child may do whatever this process may; it ends without running our guards.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { child }) => children.push(child),
            Ok(ForkResult::Child) => {
                drop(go.take());
                let _ = File::from(start).read(&mut [0]); // EOF, once all processes have closed the other end
                let count = work(number).min(255);
                // SAFETY: _exit(2) only ends the process.
                unsafe { libc::_exit(count as i32) };
            }
            Err(error) => {
                drop(go);
                for child in children {
                    let _ = waitpid(child, None);
                }
                return Err(error.into());
            }
        }
    }
    drop(go);
    let counts = children.into_iter().map(|child| match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, count)) => Ok(count as usize),
        other => Err(io::Error::other(format!("a probe ended with {other:?}"))),
    });
    counts.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_probe_finds_fault_where_nothing_works() {
        for (name, probe, _) in PROBES {
            let found = probe(Path::new("/nonesuch/place"));
            assert!(!matches!(found, Ok(None)), "{name}: {found:?}");
        }
    }
}
