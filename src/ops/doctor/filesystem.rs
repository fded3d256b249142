//! Check 3: whether the file system of the config dir keeps the promises that locks are made of. Each is put to the test by several
//! processes at once, in a directory of their own that is gone afterwards.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};

use super::Finding;
use crate::sys::file_watch::FileWatch;
use crate::sys::mount::Mount;

const CHECK: &str = "file system";

/// How many processes try at once, and how often.
const PROCESSES: usize = 4;
const ROUNDS: usize = 50;

/// What was wrong, if anything was.
type Probe = fn(&Path) -> io::Result<Option<String>>;

pub(super) fn check(config_dir: &Path) -> Vec<Finding> {
    let Ok(real) = fs::canonicalize(config_dir) else { return Vec::new() };
    let kind = Mount::of(&real).map_or_else(|| "unknown".to_owned(), |mount| mount.kind);
    let mut findings = Vec::new();
    let place = match tempfile::Builder::new().prefix(".claude-run-probe.").tempdir_in(&real) {
        Ok(place) => place,
        Err(error) => {
            let what = format!("nothing can be made in {}: {error}", real.display());
            findings.push(Finding::failure(
                CHECK,
                what,
                "no lock can be taken here",
                "see that there is room, and the right to write",
            ));
            return findings;
        }
    };
    let probes: [(&str, Probe, &str); 5] = [
        ("mkdir", mkdir_is_exclusive, "claude's refresh locks are directories: two agents could have one at once"),
        ("flock", flock_excludes, "the session lock keeps nobody out"),
        ("rename", rename_replaces, "a reader of the credentials can find none, or half of them"),
        ("mtime", mtime_is_kept, "a refresh lock can look stale while it is held"),
        ("inotify", changes_are_told, "refresh mode looks at the credentials once a second instead"),
    ];
    let mut passed = Vec::new();
    for (name, probe, means) in probes {
        match probe(place.path()) {
            Ok(None) => passed.push(name),
            Ok(Some(what)) if name == "inotify" => {
                findings.push(Finding::warning(CHECK, format!("{name}: {what}"), means, "nothing, unless that second matters"));
            }
            Ok(Some(what)) => {
                let todo = "put the config dir on a local file system, or on one that all hosts lock alike";
                findings.push(Finding::failure(CHECK, format!("{name}: {what}"), means, todo));
            }
            Err(error) => {
                let todo = "see that there are processes, descriptors and room left";
                findings.push(Finding::warning(CHECK, format!("{name} cannot be tried: {error}"), means, todo));
            }
        }
    }
    if !passed.is_empty() {
        findings.push(Finding::pass(CHECK, format!("{kind}: {} held for {PROCESSES} processes", passed.join(", "))));
    }
    findings
}

/// Of all who make a directory, one does.
fn mkdir_is_exclusive(place: &Path) -> io::Result<Option<String>> {
    let names = (0..ROUNDS).map(|round| c_path(&place.join(format!("mkdir-{round}")))).collect::<io::Result<Vec<_>>>()?;
    let made = at_once(|_| {
        // SAFETY: strings that end with a NUL.
        let made = names.iter().filter(|name| unsafe { libc::mkdir(name.as_ptr(), 0o700) } == 0);
        made.count() as i32
    })?;
    let made: i32 = made.iter().sum();
    let once = made == ROUNDS as i32;
    Ok((!once).then(|| format!("of {ROUNDS} directories, {made} were made by {PROCESSES} processes")))
}

/// Whoever has the lock is alone: nobody else's directory is there.
fn flock_excludes(place: &Path) -> io::Result<Option<String>> {
    let (file, inside) = (c_path(&place.join("flock"))?, c_path(&place.join("inside"))?);
    let met = at_once(|_| {
        // SAFETY: a string that ends with a NUL, and numbers.
        let lock = unsafe { libc::open(file.as_ptr(), libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC, 0o600) };
        let mut met = 0;
        for _ in 0..ROUNDS {
            // SAFETY: as above; a descriptor that is none makes flock fail.
            let alone = unsafe {
                libc::flock(lock, libc::LOCK_EX) == 0
                    && libc::mkdir(inside.as_ptr(), 0o700) == 0
                    && libc::rmdir(inside.as_ptr()) == 0
                    && libc::flock(lock, libc::LOCK_UN) == 0
            };
            met += i32::from(!alone);
        }
        met
    })?;
    let met: i32 = met.iter().sum();
    Ok((met > 0).then(|| format!("{met} times of {} it failed, or two had it at once", PROCESSES * ROUNDS)))
}

/// A file that is replaced by a rename is there at every moment, whole.
fn rename_replaces(place: &Path) -> io::Result<Option<String>> {
    let path = place.join("rename");
    fs::write(&path, [b'a'; 4096])?;
    let temporary = (0..PROCESSES).map(|number| place.join(format!("rename-{number}"))).collect::<Vec<_>>();
    let torn = at_once(|number| {
        let mut torn = 0;
        for round in 0..ROUNDS {
            if number == 0 {
                // The one that replaces.
                let text = [b'a' + (round % 26) as u8; 4096];
                let replaced = fs::write(&temporary[number], text).and_then(|()| fs::rename(&temporary[number], &path));
                torn += i32::from(replaced.is_err());
            } else {
                let whole = fs::read(&path).is_ok_and(|text| text.len() == 4096 && text.iter().all(|byte| *byte == text[0]));
                torn += i32::from(!whole);
            }
        }
        torn
    })?;
    let torn: i32 = torn.iter().sum();
    Ok((torn > 0).then(|| format!("{torn} times of {} the file was gone, or not whole", PROCESSES * ROUNDS)))
}

/// A time that is set can be read again, to the millisecond, and now is now.
fn mtime_is_kept(place: &Path) -> io::Result<Option<String>> {
    let dir = place.join("mtime");
    fs::create_dir(&dir)?;
    let made = fs::metadata(&dir)?.modified()?;
    let now = SystemTime::now();
    let apart = |one: SystemTime, other: SystemTime| one.duration_since(other).unwrap_or_else(|error| error.duration());
    if apart(made, now) > Duration::from_secs(2) {
        return Ok(Some(format!(
            "what is made now is dated {} away: two clocks",
            crate::config::settings::show(apart(made, now))
        )));
    }
    let set = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
    File::open(&dir)?.set_modified(set)?;
    let off = apart(fs::metadata(&dir)?.modified()?, set);
    Ok((off >= Duration::from_millis(1))
        .then(|| format!("a time that was set reads {} off", crate::config::settings::show(off))))
}

/// What another process makes is told.
fn changes_are_told(place: &Path) -> io::Result<Option<String>> {
    let file = place.join("inotify");
    let mut changes = FileWatch::of(std::slice::from_ref(&file));
    if changes.next_poll().is_some() {
        return Ok(Some(
            "the kernel does not tell of changes here, or no instance is left (fs.inotify.max_user_instances)".into(),
        ));
    }
    let name = c_path(&file)?;
    // SAFETY: a string that ends with a NUL.
    at_once(|_| i32::from(unsafe { libc::mkdir(name.as_ptr(), 0o700) } == 0))?;
    let deadline = Instant::now() + Duration::from_secs(2);
    while !changes.take_changes() {
        if Instant::now() >= deadline {
            return Ok(Some("what another process has made was not told of".into()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(None)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(PathBuf::from(path).as_os_str().as_bytes())?)
}

/// Runs `work` in several processes that begin at the same moment; each gets its number, and gives one: at most 255.
fn at_once(work: impl Fn(usize) -> i32) -> io::Result<Vec<i32>> {
    let (start, go) = pipe()?;
    let mut children: Vec<Pid> = Vec::new();
    for number in 0..PROCESSES {
        // SAFETY: doctor has no other thread, so the child may do whatever this process may; it ends without running our guards.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { child }) => children.push(child),
            Ok(ForkResult::Child) => {
                drop_go(&go);
                let _ = File::from(start).read(&mut [0]); // until nobody can write any more
                let result = work(number).clamp(0, 255);
                // SAFETY: _exit(2) only ends the process.
                unsafe { libc::_exit(result) };
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
    let ended = children.into_iter().map(|child| match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, status)) => Ok(status),
        other => Err(io::Error::other(format!("a probe ended with {other:?}"))),
    });
    ended.collect()
}

fn drop_go(go: &impl AsRawFd) {
    // SAFETY: the child's own copy, which it never uses.
    unsafe { libc::close(go.as_raw_fd()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_probe_finds_fault_where_nothing_works() {
        let nowhere = Path::new("/nonesuch/place");
        for probe in [mkdir_is_exclusive, flock_excludes, rename_replaces, mtime_is_kept, changes_are_told] as [Probe; 5] {
            let found = probe(nowhere);
            assert!(!matches!(found, Ok(None)), "{found:?}");
        }
    }
}
