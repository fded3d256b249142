//! Telemetry of Claude Code about its token refreshes. When telemetry cannot be delivered, it is kept in the config dir, in files
//! `telemetry/1p_failed_events.<session>.<uuid>.json`, one event of any kind a line. Files can be cut short or vanish while
//! they are read, and have lines of 100 KB.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memchr::memmem;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::sys::fs::open_to_read;

/// Error of a line about a refresh that cannot be understood: cut, or of another shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// An event of a token refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshEvent {
    /// Time by the clock of that claude.
    pub at: SystemTime,
    /// Name without the prefix that all of them share: `lock_retry`, `race_resolved` …
    pub name: String,
    /// Session of claude.
    pub session: String,
    /// Version of Claude Code.
    pub version: String,
}

/// Significance of an event for the refresh locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A step of an undisturbed refresh.
    Routine,
    /// The request for a new token goes out.
    Starts,
    /// The new token is there.
    Ends,
    /// Two wanted to refresh at once.
    Contention,
    /// Two refreshed at once, without harm.
    Resolved,
    /// The locks failed to keep two refreshes apart.
    Broken,
    /// A refresh failed, for whatever reason.
    Failed,
}

const PREFIX: &str = "tengu_oauth_token_refresh_";

const MAX_LINE: u64 = 8 << 20;

impl RefreshEvent {
    /// Reads a line of a telemetry file; `None` if it is about something else.
    ///
    /// # Errors
    /// The line is about a refresh and cannot be understood.
    pub fn parse(line: &[u8]) -> Result<Option<Self>, Malformed> {
        if memmem::find(line, PREFIX.as_bytes()).is_none() {
            return Ok(None);
        }
        let entry: Value = serde_json::from_slice(line).map_err(|_| Malformed)?;
        let event = entry["event_data"].as_object().ok_or(Malformed)?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        // Another event can have the prefix in its data.
        let name = text(event.get("event_name"));
        let Some(name) = name.strip_prefix(PREFIX) else { return Ok(None) };
        let at = humantime::parse_rfc3339_weak(text(event.get("client_timestamp")).trim()).map_err(|_| Malformed)?;
        // A page for operators knows this one name with a `lock_` more than it has.
        let name = if name == "lock_race_resolved" { "race_resolved" } else { name }.to_owned();
        let version = text(event.get("env").and_then(|env| env.get("version")));
        Ok(Some(Self { at, name, session: text(event.get("session_id")), version }))
    }

    /// Significance for the refresh locks, by the name.
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
    offsets: HashMap<PathBuf, u64>,
    /// Number of malformed lines so far.
    pub skipped: usize,
}

impl Telemetry {
    /// The files of `config_dir`, none of them read yet.
    pub fn of(config_dir: &Path) -> Self {
        Self { dir: config_dir.join("telemetry"), offsets: HashMap::new(), skipped: 0 }
    }

    /// Directory of the files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Number of files read so far.
    pub fn files(&self) -> usize {
        self.offsets.len()
    }

    /// Reads what has been added since the last call, and returns it oldest first.
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
                // Gone meanwhile, or not readable for us: the other files count all the same.
                let _ = self.read_file(path, &mut events);
            }
        }
        events.sort_by_key(|event| event.at);
        Ok(events)
    }

    /// Reads up to the last complete line; the line that is being written comes the next time.
    fn read_file(&mut self, path: PathBuf, events: &mut Vec<RefreshEvent>) -> io::Result<()> {
        let mut file = open_to_read(&path)?;
        let offset = self.offsets.entry(path).or_default();
        // Claude Code rewrites a file when it has delivered a part of it.
        if file.metadata()?.len() < *offset {
            *offset = 0;
        }
        file.seek(SeekFrom::Start(*offset))?;
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = Read::by_ref(&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)? as u64;
            if !line.ends_with(b"\n") && serde_json::from_slice::<HashMap<String, IgnoredAny>>(&line).is_err() {
                return Ok(());
            }
            match RefreshEvent::parse(&line) {
                Ok(event) => events.extend(event),
                Err(Malformed) => self.skipped += 1,
            }
            *offset += length;
        }
    }

    /// Counts the incomplete ends of files as malformed lines, once nobody completes them any more.
    pub fn count_cut(&mut self) {
        let ends = self.offsets.iter().filter_map(|(path, &offset)| Some((fs::metadata(path).ok()?, offset)));
        self.skipped += ends.filter(|(found, offset)| found.is_file() && found.len() > *offset).count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_about_a_refresh_malformed_or_unrelated() {
        let line = |data: &str| RefreshEvent::parse(format!(r#"{{"event_data":{data}}}"#).as_bytes());
        let name = format!(r#""event_name":"{PREFIX}lock_race_resolved""#);
        let at = r#""client_timestamp":"1970-01-01T00:00:00Z""#;
        let event = |session: &str, version: &str| {
            let (name, session, version) = ("race_resolved".to_owned(), session.to_owned(), version.to_owned());
            Ok(Some(RefreshEvent { at: SystemTime::UNIX_EPOCH, name, session, version }))
        };
        assert_eq!(line(&format!(r#"{{{name},{at},"session_id":"s","env":{{"version":"2"}}}}"#)), event("s", "2"));
        assert_eq!(line(&format!(r#"{{{name},{at},"session_id":7,"env":[]}}"#)), event("", ""));
        assert_eq!(line(&format!("{{{name}}}")), Err(Malformed));
        assert_eq!(line(&format!(r#""{PREFIX}""#)), Err(Malformed));
        assert_eq!(line(&format!(r#"{{"event_name":"other","text":"{PREFIX}"}}"#)), Ok(None));
        assert_eq!(RefreshEvent::parse(b"{"), Ok(None));
    }
}
