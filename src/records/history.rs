//! `history.jsonl`: a line for each finished run. It is appended to in single writes, and set aside as `history.1.jsonl` when
//! it is large, over the one before it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use fs4::FileExt;

use super::run_record::read_time;
use super::store::RecordStore;
use crate::logging::open_to_append;
use crate::object::Members;
use crate::sys::file_id::FileId;
use crate::sys::fs::{open_to_read, read_bounded};

/// When it is set aside.
const LARGE: u64 = 8 << 20;

/// More than a file of history can be: a hundred agents that end at once each add a line before one sets it aside.
const LARGEST: u64 = 8 * LARGE;

/// A finished run, as its line tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Its name.
    pub run: String,
    /// What its caller called it.
    pub label: Option<String>,
    /// When it began.
    pub began: SystemTime,
    /// From its beginning to its end.
    pub total: Duration,
    /// How long it waited for the lock, if it wanted it.
    pub waited: Option<Duration>,
    /// How long it held the lock.
    pub held: Option<Duration>,
    /// The name of its outcome.
    pub outcome: String,
    /// Its exit code.
    pub exit_code: u8,
    /// Turns of claude, from the result frame.
    pub turns: Option<u64>,
    /// Cost, from the result frame, in US dollars.
    pub cost_usd: Option<f64>,
}

/// What the history tells.
#[derive(Debug, Default)]
pub struct History {
    /// The finished runs, in the order of their ends.
    pub finished: Vec<Finished>,
    /// Lines that could not be understood: cut or mixed by a full disk, or from elsewhere.
    pub skipped: usize,
}

impl RecordStore {
    fn history(&self) -> PathBuf {
        self.path().join("history.jsonl")
    }

    fn older_history(&self) -> PathBuf {
        self.path().join("history.1.jsonl")
    }

    /// All there is.
    ///
    /// # Errors
    /// A file is there but cannot be read.
    pub fn read_history(&self) -> io::Result<History> {
        let mut history = History::default();
        for path in [self.older_history(), self.history()] {
            match read_bounded(&path, LARGEST) {
                Ok(bytes) => history.handle_event(&bytes),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            }
        }
        Ok(history)
    }

    /// The last `count` runs, as far as they stand near the end.
    pub fn last_finished(&self, count: usize) -> Vec<Finished> {
        let mut history = History::default();
        if let Ok(bytes) = read_end(&self.history(), count as u64 * 2048) {
            history.handle_event(&bytes);
        }
        let first = history.finished.len().saturating_sub(count);
        history.finished.split_off(first)
    }
}

/// Appends a complete line.
pub(super) fn append(directory: &RecordStore, line: &str) -> io::Result<()> {
    let path = directory.history();
    let open = || open_to_append(&path);
    let mut file = open().or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => directory.make().and_then(|()| open()),
        _ => Err(error),
    })?;
    if file.metadata()?.len() >= LARGE {
        rotate(directory, &file)?;
        file = open()?;
    }
    file.write_all(line.as_bytes())
}

/// Moves the history away, once: of all who find it large, one has the lock, and who comes after sees that it is done.
fn rotate(directory: &RecordStore, large: &File) -> io::Result<()> {
    if FileExt::try_lock(large).is_ok() && FileId::at(&directory.history()) == Some(FileId::of(&large.metadata()?)) {
        fs::rename(directory.history(), directory.older_history())?;
    }
    Ok(())
}

fn read_end(path: &std::path::Path, length: u64) -> io::Result<Vec<u8>> {
    let mut file = open_to_read(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(length)))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl History {
    fn handle_event(&mut self, bytes: &[u8]) {
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match Finished::from_json(line) {
                Some(run) => self.finished.push(run),
                None => self.skipped += 1,
            }
        }
    }
}

impl Finished {
    /// Reads its line.
    pub fn from_json(line: &[u8]) -> Option<Self> {
        let members = Members::read(line)?;
        let span = |name| members.get(name).map(Duration::from_millis);
        Some(Self {
            run: members.get("run")?,
            label: members.get("label"),
            began: read_time(&members, "began")?,
            total: span("total_ms")?,
            waited: span("wait_ms"),
            held: span("hold_ms"),
            outcome: members.get("outcome")?,
            exit_code: members.get("exit_code")?,
            turns: members.get("turns"),
            cost_usd: members.get("cost_usd"),
        })
    }
}
