//! `history.jsonl`: a line for each finished run. It is appended to in single writes, and rotated to `history.1.jsonl` when
//! it is large, replacing the one before.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use fs4::FileExt;
use serde::Deserialize;

use super::fields::{lenient, timestamp};
use super::store::RecordStore;
use crate::logging::open_to_append;
use crate::sys::file_id::FileId;
use crate::sys::fs::read_bounded;

/// Size at which the history is rotated.
const LARGE: u64 = 8 << 20;

/// Upper bound on its size: a hundred runs that end at once each append a line before one rotates it.
const LARGEST: u64 = 8 * LARGE;

/// A finished run, as far as anything here reads its line.
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) turns: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) cost_usd: Option<f64>,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    /// In the order of their ends.
    pub(crate) finished: Vec<FinishedRun>,
    /// Number of lines that could not be understood: cut or mixed by a full disk, or from elsewhere.
    pub(crate) skipped: usize,
}

impl RecordStore {
    /// Paths of the history before the last rotation, and of the current one.
    fn histories(&self) -> [PathBuf; 2] {
        ["history.1.jsonl", "history.jsonl"].map(|name| self.path().join(name))
    }

    /// Reads the whole history.
    pub(crate) fn read_history(&self) -> io::Result<History> {
        let mut history = History::default();
        for path in self.histories() {
            let bytes = match read_bounded(&path, LARGEST) {
                Ok(bytes) => bytes,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            };
            for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                match FinishedRun::from_json(line) {
                    Some(run) => history.finished.push(run),
                    None => history.skipped += 1,
                }
            }
        }
        Ok(history)
    }

    /// The last `count` finished runs since the history was rotated.
    pub(crate) fn last_finished(&self, count: usize) -> Vec<FinishedRun> {
        let bytes = read_bounded(&self.histories()[1], LARGEST).unwrap_or_default();
        let mut last: Vec<_> = bytes.rsplit(|&byte| byte == b'\n').filter_map(FinishedRun::from_json).take(count).collect();
        last.reverse();
        last
    }
}

/// Appends a complete line.
pub(super) fn append(store: &RecordStore, line: &str) -> io::Result<()> {
    let [older, current] = store.histories();
    let mut file = store.open(|| open_to_append(&current))?;
    let found = file.metadata()?;
    if found.len() >= LARGE {
        // Of all who find it large, one gets the lock, and a later one sees that it is done.
        if FileExt::try_lock(&file).is_ok() && FileId::at(&current) == Some(FileId::of(&found)) {
            fs::rename(&current, older)?;
        }
        file = open_to_append(&current)?;
    }
    file.write_all(line.as_bytes())
}

impl FinishedRun {
    /// Reads a line.
    pub fn from_json(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    pub(crate) fn ended(&self) -> SystemTime {
        self.began.checked_add(Duration::from_millis(self.total_ms)).unwrap_or(self.began)
    }
}
