//! `history.jsonl`: a line for each finished run. It is appended to in single writes, and rotated to `history.1.jsonl` when
//! it is large, replacing the one before.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fs4::FileExt;
use serde::{Deserialize, Serialize};

use super::fields::{lenient, timestamp};
use super::store::RecordStore;
use crate::logging::open_to_append;
use crate::sys::file_id::FileId;
use crate::sys::fs::{open_to_read, read_bounded};

/// Size at which the history is rotated.
const LARGE: u64 = 8 << 20;

/// Upper bound on its size: a hundred runs that end at once each append a line before one rotates it.
const LARGEST: u64 = 8 * LARGE;

/// A finished run: its line in the history, and in the file of `--record`. Fields that nothing here reads are only written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishedRun {
    pub(crate) run: String,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) label: Option<String>,
    pub(crate) outcome: String,
    pub(crate) exit_code: u8,
    #[serde(with = "timestamp")]
    pub(crate) began: SystemTime,
    pub(crate) total_ms: u64,
    /// Time spent waiting for the lock, if the run wanted it.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) wait_ms: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) hold_ms: Option<u64>,
    #[serde(skip_deserializing)]
    pub(crate) run_ms: Option<u64>,
    #[serde(skip_deserializing)]
    pub(crate) lock: String,
    #[serde(skip_deserializing)]
    pub(crate) host: String,
    #[serde(skip_deserializing)]
    pub(crate) pid: i32,
    #[serde(skip_deserializing)]
    pub(crate) version: String,
    #[serde(skip_deserializing)]
    pub(crate) program: String,
    #[serde(skip_deserializing)]
    pub(crate) session_id: Option<String>,
    #[serde(skip_deserializing)]
    pub(crate) subtype: Option<String>,
    #[serde(skip_deserializing)]
    pub(crate) is_error: Option<bool>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) turns: Option<u64>,
    #[serde(skip_deserializing)]
    pub(crate) claude_ms: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) cost_usd: Option<f64>,
}

/// Finished runs, as the history has them.
#[derive(Debug, Default)]
pub struct History {
    /// Finished runs, in the order of their ends.
    pub(crate) finished: Vec<FinishedRun>,
    /// Number of lines that could not be understood: cut or mixed by a full disk, or from elsewhere.
    pub(crate) skipped: usize,
}

impl RecordStore {
    fn history(&self) -> PathBuf {
        self.path().join("history.jsonl")
    }

    fn older_history(&self) -> PathBuf {
        self.path().join("history.1.jsonl")
    }

    /// Reads the whole history.
    ///
    /// # Errors
    /// A file is there but cannot be read.
    pub fn read_history(&self) -> io::Result<History> {
        let mut history = History::default();
        for path in [self.older_history(), self.history()] {
            match read_bounded(&path, LARGEST) {
                Ok(bytes) => history.parse(&bytes),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            }
        }
        Ok(history)
    }

    /// The last `count` finished runs, as far as they stand near the end of the file.
    pub fn last_finished(&self, count: usize) -> Vec<FinishedRun> {
        let mut history = History::default();
        if let Ok(bytes) = read_end(&self.history(), count as u64 * 2048) {
            history.parse(&bytes);
        }
        let first = history.finished.len().saturating_sub(count);
        history.finished.split_off(first)
    }
}

/// Appends a complete line.
pub(super) fn append(store: &RecordStore, line: &str) -> io::Result<()> {
    let path = store.history();
    let open = || open_to_append(&path);
    let mut file = open().or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => store.make().and_then(|()| open()),
        _ => Err(error),
    })?;
    if file.metadata()?.len() >= LARGE {
        rotate(store, &file)?;
        file = open()?;
    }
    file.write_all(line.as_bytes())
}

/// Renames the history, once: of all who find it large, one gets the lock, and a later one sees that it is done.
fn rotate(store: &RecordStore, large: &File) -> io::Result<()> {
    if FileExt::try_lock(large).is_ok() && FileId::at(&store.history()) == Some(FileId::of(&large.metadata()?)) {
        fs::rename(store.history(), store.older_history())?;
    }
    Ok(())
}

fn read_end(path: &Path, length: u64) -> io::Result<Vec<u8>> {
    let mut file = open_to_read(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(length)))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl History {
    fn parse(&mut self, bytes: &[u8]) {
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match FinishedRun::from_json(line) {
                Some(run) => self.finished.push(run),
                None => self.skipped += 1,
            }
        }
    }
}

impl FinishedRun {
    /// Reads a line.
    pub fn from_json(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// End of the run.
    pub fn ended(&self) -> SystemTime {
        self.began.checked_add(Duration::from_millis(self.total_ms)).unwrap_or(self.began)
    }
}
