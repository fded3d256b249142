//! `history.jsonl`: a line for each finished run. It is appended to in single writes, and rotated to `history.1.jsonl` when
//! it is large, replacing the one before.

use std::io;
use std::time::{Duration, SystemTime};

use fs4::FileExt;
use nix::fcntl::OFlag;
use serde::Deserialize;

use super::fields::{lenient, timestamp};
use super::store::RecordStore;
use crate::claude::frames::clamped;
use crate::logging::append_lines;
use crate::sys::fs::read_all;

const CURRENT: &str = "history.jsonl";

/// The history before the last rotation.
const OLDER: &str = "history.1.jsonl";

/// Size at which the history is rotated.
const LARGE: u64 = 8 << 20;

/// Upper bound on its size: a hundred runs that end at once each append a line before one rotates it.
const LARGEST: u64 = 8 * LARGE;

/// Upper bound of what a line may say, so that sums stay numbers.
const LARGEST_NUMBER: u64 = 1_000_000_000_000;

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
    /// Time spent waiting for a slot, if the run wanted one.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) slot_wait_ms: Option<u64>,
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
    /// Reads the whole history.
    pub(crate) fn read_history(&self) -> io::Result<History> {
        let mut history = History::default();
        for name in [OLDER, CURRENT] {
            let bytes = match self.read_lines(name) {
                Ok(bytes) => bytes,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
                Err(error) => {
                    return Err(io::Error::new(error.kind(), format!("{}: {error}", self.path().join(name).display())));
                }
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
        let bytes = self.read_lines(CURRENT).unwrap_or_default();
        let mut last: Vec<_> = bytes.rsplit(|&byte| byte == b'\n').filter_map(FinishedRun::from_json).take(count).collect();
        last.reverse();
        last
    }

    fn read_lines(&self, name: &str) -> io::Result<Vec<u8>> {
        read_all(&self.open()?.open_file(name, OFlag::O_RDONLY)?, LARGEST)
    }
}

/// Appends a complete line.
pub(super) fn append(store: &RecordStore, line: &str) -> io::Result<()> {
    let dir = store.make()?;
    let open = || dir.open_file(CURRENT, OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT);
    let mut file = open()?;
    let found = file.metadata()?;
    if found.len() >= LARGE {
        // Of all who find it large, one gets the lock, and a later one sees that it is done.
        if FileExt::try_lock(&file).is_ok() && dir.has(CURRENT, &found) {
            dir.rename(CURRENT, OLDER)?;
        }
        file = open()?;
    }
    append_lines(&file, line.as_bytes())
}

impl FinishedRun {
    /// Reads a line.
    pub fn from_json(line: &[u8]) -> Option<Self> {
        let mut run: Self = serde_json::from_slice(line).ok()?;
        for text in [&mut run.run, &mut run.outcome].into_iter().chain(&mut run.label) {
            *text = clamped(text);
        }
        let counts = [&mut run.slot_wait_ms, &mut run.wait_ms, &mut run.hold_ms, &mut run.turns].into_iter().flatten();
        counts.chain([&mut run.total_ms]).for_each(|count| *count = (*count).min(LARGEST_NUMBER));
        run.cost_usd = run.cost_usd.map(|cost| cost.clamp(0.0, LARGEST_NUMBER as f64));
        Some(run)
    }

    pub(crate) fn ended(&self) -> SystemTime {
        self.began.checked_add(Duration::from_millis(self.total_ms)).unwrap_or(self.began)
    }
}
