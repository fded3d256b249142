//! `history.jsonl`: a line for each finished run. It is appended to in single writes, and rotated to `history.1.jsonl` when
//! it is large, replacing the one before.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Error;
use fs4::FileExt;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::fields::{lenient, time, timestamp};
use super::kept::Line;
use super::run_record::RunRecord;
use super::store::RecordStore;
use crate::logging::{PATIENCE, append_lines};
use crate::redact::kept;
use crate::sys::fs::{file_obstacle, if_there, obstacles};

const CURRENT: &str = "history.jsonl";

/// The history before the last rotation.
const OLDER: &str = "history.1.jsonl";

/// Size at which the history is rotated.
const LARGE: u64 = 8 << 20;

/// Outcome of a run that could not write its own line.
const VANISHED: &str = "vanished";

/// Longer than any line that a run writes.
const LONGEST_LINE: u64 = 4 << 20;

/// Number of the last runs that tell how things stand.
const LAST: usize = 20;

/// Longest part of a history that is searched for its last runs.
const LARGEST_TAIL: u64 = 4 << 20;

/// Upper bound of what a line may say, so that sums stay numbers.
const LARGEST_NUMBER: u64 = 1_000_000_000_000;

/// Line of a run. The guide, logs.md, describes its fields.
#[derive(Debug, Default, Serialize)]
pub(super) struct HistoryLine<'a> {
    pub(super) run: String,
    pub(super) label: Option<&'a str>,
    pub(super) outcome: &'static str,
    pub(super) exit_code: Option<u8>,
    pub(super) child_exit_code: Option<u8>,
    pub(super) child_signal: Option<i32>,
    pub(super) began: String,
    pub(super) total_ms: u64,
    pub(super) slot_wait_ms: Option<u64>,
    pub(super) wait_ms: Option<u64>,
    pub(super) refresh_wait_ms: Option<u64>,
    pub(super) hold_ms: Option<u64>,
    pub(super) run_ms: Option<u64>,
    pub(super) lock: &'a str,
    pub(super) host: String,
    pub(super) pid: i32,
    pub(super) version: &'a str,
    pub(super) program: Cow<'a, str>,
    pub(super) cut_refresh: bool,
    pub(super) session_id: Option<&'a str>,
    pub(super) subtype: Option<&'a str>,
    pub(super) is_error: Option<bool>,
    pub(super) auth_refused: Option<bool>,
    pub(super) turns: Option<u64>,
    pub(super) claude_ms: Option<u64>,
    pub(super) cost_usd: Option<f64>,
}

/// A finished run, as far as anything here reads its line.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct FinishedRun {
    pub(crate) run: String,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) label: Option<String>,
    pub(crate) outcome: String,
    /// `None` for a run that vanished.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) exit_code: Option<u8>,
    /// Lock mode.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) lock: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) program: Option<String>,
    #[serde(with = "timestamp")]
    pub(crate) began: SystemTime,
    pub(crate) total_ms: u64,
    /// Time spent waiting for a slot, if the run wanted one.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) slot_wait_ms: Option<u64>,
    /// Time spent waiting for the lock, if the run wanted it.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) wait_ms: Option<u64>,
    /// Time spent waiting for claude's own refresh locks, with the lock held, if one was in the way.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) refresh_wait_ms: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) hold_ms: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) turns: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) cost_usd: Option<f64>,
    /// True if the API has refused claude's login; `None` if claude printed no result frame.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) auth_refused: Option<bool>,
}

impl RecordStore {
    /// Gives each run of the whole history to `take`, in the order of their ends. Returns the number of lines that could not be
    /// understood: cut or mixed by a full disk, or from elsewhere.
    pub(crate) fn read_history(&self, mut take: impl FnMut(FinishedRun)) -> io::Result<usize> {
        let mut skipped = 0;
        for name in [OLDER, CURRENT] {
            let path = self.path().join(name);
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let Some(file) = self.open_history(name).map_err(named)? else { continue };
            for_each_line(BufReader::new(file), |line| match FinishedRun::from_json(line) {
                Some(run) => take(run),
                None => skipped += 1,
            })?;
        }
        Ok(skipped)
    }

    /// Errors that keep a run from writing its record and the history, or from reading them alone.
    pub(crate) fn obstacles(&self, writes: bool) -> Vec<Error> {
        let flags = if writes { OFlag::O_RDWR | OFlag::O_APPEND } else { OFlag::O_RDONLY };
        obstacles(self.path(), self.open(), writes, |dir| {
            let files = [(CURRENT, flags), (OLDER, OFlag::O_RDONLY)].into_iter();
            let files = files.filter_map(|(name, flags)| file_obstacle(dir, self.path(), name, flags));
            files.chain(obstacles(&self.runs(), self.open_runs(), writes, |_| Vec::new())).collect()
        })
    }

    pub(super) fn history(&self) -> PathBuf {
        self.path().join(CURRENT)
    }

    fn open_history(&self, name: &str) -> io::Result<Option<File>> {
        if_there(self.open().and_then(|dir| dir.open_file(name, OFlag::O_RDONLY)))
    }

    /// The last finished runs.
    pub(crate) fn last_finished(&self) -> io::Result<Vec<FinishedRun>> {
        let mut last = Vec::new();
        for name in [CURRENT, OLDER] {
            if last.len() < LAST
                && let Some(file) = self.open_history(name)?
            {
                last.splice(0..0, last_of(&file, LAST - last.len())?);
            }
        }
        Ok(last)
    }
}

/// The `most` last runs in `file`.
fn last_of(mut file: &File, most: usize) -> io::Result<Vec<FinishedRun>> {
    let length = file.metadata()?.len();
    let mut tail = 16 << 10;
    loop {
        let mut bytes = Vec::new();
        let begin = length.saturating_sub(tail);
        file.seek(SeekFrom::Start(begin)).and_then(|_| file.take(tail).read_to_end(&mut bytes))?;
        let mut last: Vec<_> = bytes.rsplit(|&byte| byte == b'\n').filter_map(FinishedRun::from_json).take(most).collect();
        if last.len() == most || begin == 0 || tail >= LARGEST_TAIL {
            last.reverse();
            return Ok(last);
        }
        tail *= 16;
    }
}

/// Line of a run that was killed, or went down with its machine. Its exit code is not known; it counts as ended when this line is written.
pub(super) fn vanished(record: &RunRecord) -> HistoryLine<'_> {
    let passed = SystemTime::now().duration_since(record.began).unwrap_or_default();
    HistoryLine {
        run: record.run.clone(),
        label: record.label.as_deref(),
        outcome: VANISHED,
        began: time(record.began),
        total_ms: passed.as_millis() as u64,
        lock: &record.mode,
        host: record.host.clone(),
        pid: record.pid,
        version: &record.version,
        program: record.program.as_str().into(),
        ..HistoryLine::default()
    }
}

/// Gives each line to `take`, without its end, and those beyond a bound in memory as an empty one.
fn for_each_line(mut file: impl BufRead, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut file).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        if line.pop_if(|last| *last == b'\n').is_none() && length as u64 == LONGEST_LINE {
            line.clear();
            file.skip_until(b'\n')?;
            take(&line);
        } else if !line.is_empty() {
            take(&line);
        }
    }
}

/// Appends a complete line.
pub(super) fn append(store: &RecordStore, line: &Line) -> io::Result<()> {
    let dir = store.make()?;
    let open = || dir.open_file(CURRENT, OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT);
    let mut file = open()?;
    let found = file.metadata()?;
    if found.len() >= LARGE {
        // Of all who find it large, one gets the lock, and a later one sees that it is done.
        if FileExt::try_lock(&file).is_ok() && dir.has(CURRENT, &found) {
            let _ = dir.rename(CURRENT, OLDER); // else it grows: what is in the way is another's
        }
        file = open()?;
    }
    append_lines(&file, line.as_bytes(), PATIENCE)
}

impl FinishedRun {
    /// Reads a line.
    pub fn from_json(line: &[u8]) -> Option<Self> {
        let mut run: Self = serde_json::from_slice(line).ok()?;
        let optional = [&mut run.label, &mut run.lock, &mut run.program].into_iter().flatten();
        for text in [&mut run.run, &mut run.outcome].into_iter().chain(optional) {
            *text = kept(text);
        }
        let counts = [&mut run.slot_wait_ms, &mut run.wait_ms, &mut run.refresh_wait_ms, &mut run.hold_ms, &mut run.turns];
        let counts = counts.into_iter().flatten();
        counts.chain([&mut run.total_ms]).for_each(|count| *count = (*count).min(LARGEST_NUMBER));
        run.cost_usd = run.cost_usd.map(|cost| cost.clamp(0.0, LARGEST_NUMBER as f64));
        Some(run)
    }

    /// Number of runs in a row whose login was refused, up to this one, if it was `before`; a run that printed no result does not count.
    pub(crate) fn count_refusals(&self, before: usize) -> usize {
        self.auth_refused.map_or(before, |is_refused| if is_refused { before + 1 } else { 0 })
    }

    pub(crate) fn ended(&self) -> SystemTime {
        self.began.checked_add(Duration::from_millis(self.total_ms)).unwrap_or(self.began)
    }
}
