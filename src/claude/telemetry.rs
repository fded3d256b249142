//! What Claude Code writes of its token refreshes when its telemetry cannot be delivered: files
//! `telemetry/1p_failed_events.<session>.<uuid>.json` in the config dir, one event a line, of all kinds. Only those about
//! refreshes are looked at; files are cut short, vanish while they are read, and have lines of 100 KB.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memchr::memmem;

use serde::de::IgnoredAny;
use serde_json::Value;

use crate::sys::fs::open_to_read;

/// An event of a refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshEvent {
    /// When, by the clock of that claude.
    pub at: SystemTime,
    /// Its name, less what all of them begin with: `lock_retry`, `race_resolved` …
    pub name: String,
    /// The session of claude.
    pub session: String,
    /// Claude Code's version.
    pub version: String,
}

/// What an event tells of the refresh locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A refresh goes its way.
    Routine,
    /// The token is asked for.
    Starts,
    /// It is there.
    Ends,
    /// Two wanted to refresh at once.
    Contention,
    /// Two did, and it went well.
    Resolved,
    /// The locks did not do what they are for.
    Broken,
    /// A refresh has failed, for whatever reason.
    Failed,
}

/// What their names begin with. One name is also known, from a page for operators, with a `lock_` more than it has.
const PREFIX: &str = "tengu_oauth_token_refresh_";

/// Longer than any line.
const LARGEST_LINE: u64 = 8 << 20;

impl RefreshEvent {
    /// Reads a line. None, if it is about something else; an error, if it is about a refresh and cannot be understood.
    ///
    /// # Errors
    /// As above; there is no more to be said of it.
    pub fn parse(line: &[u8]) -> Option<Result<Self, ()>> {
        memmem::find(line, PREFIX.as_bytes())?;
        let line: Value = serde_json::from_slice(line).unwrap_or_default();
        let event = &line["event_data"];
        if !event.is_object() {
            return Some(Err(()));
        }
        // The words may stand in the data of some other event.
        let name = event["event_name"].as_str()?.strip_prefix(PREFIX)?;
        let at = event["client_timestamp"].as_str().and_then(|at| humantime::parse_rfc3339_weak(at.trim()).ok());
        let Some(at) = at else { return Some(Err(())) };
        let name = if name == "lock_race_resolved" { "race_resolved" } else { name }.to_owned();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Some(Ok(Self { at, name, session: text(&event["session_id"]), version: text(&event["env"]["version"]) }))
    }

    /// What it tells.
    pub fn meaning(&self) -> Meaning {
        match self.name.as_str() {
            "lock_retry" | "lock_dead_holder_takeover" => Meaning::Contention,
            "race_resolved" | "race_recovered" => Meaning::Resolved,
            "lock_retry_limit_reached" | "lock_error" => Meaning::Broken,
            name if name.starts_with("lock_compromised_") || name.starts_with("compromised_") => Meaning::Broken,
            "starting" => Meaning::Starts,
            "success" | "completed" => Meaning::Ends,
            "failure" => Meaning::Failed,
            _ => Meaning::Routine,
        }
    }
}

/// The telemetry files of a config dir, and how far they were read.
#[derive(Debug)]
pub struct Telemetry {
    dir: PathBuf,
    read: Vec<(PathBuf, u64)>,
    /// Lines about a refresh that could not be understood: cut, or of another shape.
    pub skipped: usize,
}

impl Telemetry {
    /// Those of `config_dir`; nothing is read yet.
    pub fn of(config_dir: &Path) -> Self {
        Self { dir: config_dir.join("telemetry"), read: Vec::new(), skipped: 0 }
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many files were read so far.
    pub fn files(&self) -> usize {
        self.read.len()
    }

    /// What is new since the last time, the oldest first.
    ///
    /// # Errors
    /// The directory is there but cannot be read.
    pub fn read(&mut self) -> io::Result<Vec<RefreshEvent>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut events = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with("1p_failed_events.") && name.ends_with(".json") {
                // Gone meanwhile, or not for our eyes: the others count all the same.
                let _ = self.read_file(path, &mut events);
            }
        }
        events.sort_by_key(|event| event.at);
        Ok(events)
    }

    /// Reads on where it was left, up to the last line that is complete: one that is being written comes the next time.
    fn read_file(&mut self, path: PathBuf, events: &mut Vec<RefreshEvent>) -> io::Result<()> {
        let mut file = open_to_read(&path)?;
        let known = self.read.iter().position(|(known, _)| *known == path);
        let known = known.unwrap_or_else(|| {
            self.read.push((path, 0));
            self.read.len() - 1
        });
        let length = file.metadata()?.len();
        // Claude Code rewrites a file when it has delivered a part of it.
        let from = if length < self.read[known].1 { 0 } else { self.read[known].1 };
        file.seek(SeekFrom::Start(from))?;
        let mut reader = BufReader::new(file);
        let (mut at, mut line) = (from, Vec::new());
        loop {
            line.clear();
            let read = Read::by_ref(&mut reader).take(LARGEST_LINE).read_until(b'\n', &mut line)? as u64;
            if read == 0 {
                break;
            }
            if !line.ends_with(b"\n") && serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(&line).is_err() {
                break; // it may be completed yet
            }
            match RefreshEvent::parse(&line) {
                Some(Ok(event)) => events.push(event),
                Some(Err(())) => self.skipped += 1,
                None => {}
            }
            at += read;
        }
        self.read[known].1 = at;
        Ok(())
    }

    /// Counts what is cut at the end of a file as well: nobody completes it any more.
    pub fn count_cut(&mut self) {
        for (path, read) in &self.read {
            let tail = open_to_read(path).and_then(|mut file| {
                file.seek(SeekFrom::Start(*read))?;
                file.take(1).read_to_end(&mut Vec::new())
            });
            self.skipped += usize::from(tail.is_ok_and(|length| length > 0));
        }
    }
}
