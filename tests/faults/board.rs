//! Where agents and faults leave word for each other: a directory of small files. What somebody holds here is a POSIX record
//! lock: unlike a flock it belongs to one process alone, is inherited by nobody, and is gone with it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Board(PathBuf);

/// A record lock, held until it is dropped or its process is gone. A process must have each file open only once: closing
/// another descriptor of it would let go as well.
#[derive(Debug)]
pub(crate) struct Mark(File);

impl Mark {
    /// Has it end before all else that this process holds: an exit closes descriptors in their order, and stdin's is the first.
    pub(crate) fn end_first(&self) {
        // SAFETY: dup2(2) touches only descriptors.
        unsafe { libc::dup2(self.0.as_raw_fd(), libc::STDIN_FILENO) };
    }
}

/// How a file is marked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Shared,
    Exclusive,
}

impl Board {
    /// The variable that tells agents where it is.
    pub(crate) const VARIABLE: &'static str = "FAULTS_BOARD";

    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn is_noted(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Notes something that is then true for good. Whoever reads it meanwhile finds what was there before, or all of it.
    pub(crate) fn note(&self, name: &str, text: &str) {
        if let Err(error) = replace(&self.0, name, text) {
            self.violation(&format!("the board itself: {name}: {error}"));
        }
    }

    pub(crate) fn violation(&self, what: &str) {
        let line = format!("{}\n", what.trim_end().replace('\n', " | "));
        let file = File::options().append(true).create(true).open(self.path("violations"));
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            // Nowhere to write it: whoever looks at the end must not take that for peace.
            let _ = writeln!(io::stderr(), "{what} ({error})");
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("violations")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Marks `name`, or says which process is in the way.
    pub(crate) fn mark(&self, name: &str, kind: Kind) -> io::Result<Result<Mark, i32>> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(self.path(name))?;
        // SAFETY: flock is a plain C structure, for which all zeros are a value.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = match kind {
            Kind::Shared => libc::F_RDLCK,
            Kind::Exclusive => libc::F_WRLCK,
        } as i16;
        // SAFETY: the descriptor is open and the structure valid, here and below.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock) } == 0 {
            return Ok(Ok(Mark(file)));
        }
        // SAFETY: see above.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock) };
        Ok(Err(if i32::from(lock.l_type) == libc::F_UNLCK { 0 } else { lock.l_pid })) // 0: gone meanwhile
    }

    /// Notes that somebody who is no agent changes this now.
    pub(crate) fn note_time(&self, of: &str) {
        self.note(of, &now_ms().to_string());
    }

    /// When somebody last did.
    pub(crate) fn time_of(&self, what: &str) -> u64 {
        fs::read_to_string(self.path(what)).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Notes the mode that the settings file has from now on; `?` while it is about to be changed.
    pub(crate) fn note_mode(&self, mode: &str) {
        self.note("mode", &format!("{} {mode}", now_ms()));
    }

    /// The mode that the settings file has had since `began`, if it was one.
    pub(crate) fn mode_since(&self, began: u64) -> Option<String> {
        let text = fs::read_to_string(self.path("mode")).ok()?;
        let (since, mode) = text.split_once(' ')?;
        (since.parse::<u64>().ok()? < began && mode != "?").then(|| mode.to_owned())
    }

    pub(crate) fn count_refresh(&self) {
        if let Ok(mut file) = File::options().append(true).create(true).open(self.path("refreshes")) {
            let _ = file.write_all(b"x"); // a count for the reader, no promise
        }
    }

    pub(crate) fn refreshes(&self) -> u64 {
        fs::metadata(self.path("refreshes")).map_or(0, |found| found.len())
    }

    /// Writes credentials that expire then, and are replaced in one step.
    pub(crate) fn save_credentials(&self, config_dir: &Path, expires_at_ms: u64) -> io::Result<()> {
        replace(config_dir, ".credentials.json", &credentials(expires_at_ms))
    }
}

/// Writes the file `name`, which is replaced in one step.
fn replace(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.{}", std::process::id()));
    let replaced = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, dir.join(name)));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary); // it may not even have been made
    }
    replaced
}

pub(crate) fn credentials(expires_at_ms: u64) -> String {
    format!(r#"{{"claudeAiOauth":{{"accessToken":"a","refreshToken":"r","expiresAt":{expires_at_ms}}}}}"#)
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}
