//! Telemetry of Claude Code about its token refreshes. When telemetry cannot be delivered, it is kept in the config dir, in files
//! `telemetry/1p_failed_events.<session>.<uuid>.json`, one event of any kind a line. Files can be cut short or vanish while
//! they are read, and have lines of 100 KB.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::mem;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memchr::memmem;

use super::json::Object;
use crate::redact::kept;
use crate::sys::fs::open_regular;

/// Error of a line about a refresh that cannot be understood: cut, or of another shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// An event of a token refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshEvent {
    /// Time by the clock of that claude.
    pub(crate) at: SystemTime,
    /// Name without the prefix that all of them share: `lock_retry`, `race_resolved` …
    pub(crate) name: String,
    pub(crate) session: String,
    pub(crate) version: String,
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
    /// The login is of no use any more, for nobody.
    Lost,
}

/// Prefixes of names that are about a refresh, with what is left of each name. The second came with 2.1.330.
const PREFIXES: [(&str, &str); 3] =
    [("tengu_oauth_token_refresh_", ""), ("tengu_oauth_refresh_token_", ""), ("tengu_oauth_tokens_save_", "save_")];
/// Beginning of all of them.
const COMMON: &str = "tengu_oauth_";
/// Longest line that is looked at; a longer one is skipped.
const MAX_LINE: u64 = 8 << 20;

impl RefreshEvent {
    /// Reads a line of a telemetry file; `None` if it is about something else.
    ///
    /// # Errors
    /// The line is about a refresh and cannot be understood.
    pub fn parse(line: &[u8]) -> Result<Option<Self>, Malformed> {
        if memmem::find(line, COMMON.as_bytes()).is_none() {
            return Ok(None);
        }
        let entry = Object::parse(line).map_err(|_| Malformed)?;
        let event = entry.object("event_data").ok_or(Malformed)?;
        let text = |object: &Object, name: &str| kept(&object.text(name).unwrap_or_default());
        // Another event can have the prefix in its data.
        let name = text(&event, "event_name");
        let short = PREFIXES.iter().find_map(|(prefix, rest)| Some(format!("{rest}{}", name.strip_prefix(prefix)?)));
        let Some(name) = short else { return Ok(None) };
        let at = humantime::parse_rfc3339_weak(text(&event, "client_timestamp").trim()).map_err(|_| Malformed)?;
        // A page for operators knows this one name with a `lock_` more than it has.
        let name = if name == "lock_race_resolved" { "race_resolved".to_owned() } else { name };
        let version = text(&event.object("env").unwrap_or_default(), "version");
        Ok(Some(Self { at, name, session: text(&event, "session_id"), version }))
    }

    /// Significance for the refresh locks, by the name.
    pub fn meaning(&self) -> Meaning {
        match self.name.as_str() {
            name if name.ends_with("_contended") => Meaning::Contention,
            "lock_retry" | "lock_dead_holder_takeover" => Meaning::Contention,
            "race_resolved" | "race_recovered" => Meaning::Resolved,
            "lock_retry_limit_reached" | "lock_error" => Meaning::Broken,
            name if name.starts_with("lock_compromised_") || name.starts_with("compromised_") => Meaning::Broken,
            "starting" => Meaning::Starts,
            "success" | "completed" => Meaning::Ends,
            name if name.starts_with("marked_dead") || name.ends_with("cleared_on_disk") => Meaning::Lost,
            "save_failed" => Meaning::Lost,
            "failure" => Meaning::Failed,
            _ => Meaning::Routine,
        }
    }
}

/// The telemetry files of a config dir.
#[derive(Debug)]
pub(crate) struct Telemetry {
    pub(crate) dir: PathBuf,
    /// How far each file was read.
    pub(crate) offsets: HashMap<PathBuf, u64>,
    /// Number of malformed lines so far.
    pub(crate) malformed: usize,
    /// Number of those that are about a refresh: what they say is not known; and the last change of a file with one.
    pub(crate) unclear: (usize, Option<SystemTime>),
    /// Number of files whose end is incomplete.
    pub(crate) cut: usize,
    /// A file that could not be read at the last look, and why.
    pub(crate) unreadable: Option<String>,
}

impl Telemetry {
    /// The files of `config_dir`, none of them read yet.
    pub(crate) fn of(config_dir: &Path) -> Self {
        Self {
            dir: config_dir.join("telemetry"),
            offsets: HashMap::new(),
            malformed: 0,
            unclear: (0, None),
            cut: 0,
            unreadable: None,
        }
    }

    /// Reads what has been added since the last call, and returns it oldest first.
    pub(crate) fn read(&mut self) -> io::Result<Vec<RefreshEvent>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if is_gone(&error, &self.dir) => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut events = Vec::new();
        (self.cut, self.unreadable) = (0, None);
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("1p_failed_events.") && name.ends_with(".json") {
                let path = entry.path();
                // The other files count all the same. One that is gone was delivered.
                if let Err(error) = self.read_file(path.clone(), &mut events)
                    && !is_gone(&error, &path)
                {
                    self.unreadable.get_or_insert(format!("{}: {error}", path.display()));
                }
            }
        }
        events.sort_by_key(|event| event.at);
        Ok(events)
    }

    /// Reads up to the last complete line; the line that is being written comes the next time.
    fn read_file(&mut self, path: PathBuf, events: &mut Vec<RefreshEvent>) -> io::Result<()> {
        let (mut file, found) = open_regular(&path, File::options().read(true))?;
        let offset = self.offsets.entry(path).or_default();
        // Claude Code rewrites a file when it has delivered a part of it.
        if found.len() < *offset {
            *offset = 0;
        }
        file.seek(SeekFrom::Start(*offset))?;
        let mut reader = BufReader::new(file);
        // Length of the pieces before this one, if the line is too long; and whether it is about a refresh.
        let (mut line, mut skipped, mut is_relevant) = (Vec::new(), 0, false);
        loop {
            line.clear();
            let length = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? as u64;
            let has_end = line.ends_with(b"\n");
            if length == 0 && skipped == 0 {
                return Ok(());
            }
            if skipped > 0 || length == MAX_LINE {
                is_relevant |= memmem::find(&line, COMMON.as_bytes()).is_some();
            }
            if length == MAX_LINE && !has_end {
                skipped += length;
                continue;
            }
            // No line to come makes one good that is bad already.
            if !has_end && (skipped > 0 || Object::parse(&line).is_err_and(|error| error.is_eof())) {
                break;
            }
            match if skipped > 0 { Err(Malformed) } else { RefreshEvent::parse(&line) } {
                Ok(event) => events.extend(event),
                Err(Malformed) => {
                    self.malformed += 1;
                    if is_relevant || skipped == 0 {
                        let (count, at) = self.unclear;
                        self.unclear = (count + 1, at.max(found.modified().ok()));
                    }
                }
            }
            is_relevant = false;
            *offset += mem::take(&mut skipped) + length;
        }
        self.cut += 1;
        Ok(())
    }
}

/// True if `error` is that nothing is at `path`, not even a link that leads nowhere.
fn is_gone(error: &io::Error, path: &Path) -> bool {
    error.kind() == ErrorKind::NotFound && !path.is_symlink()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_of_a_refresh_or_malformed_or_other() {
        let line = |data: &str| RefreshEvent::parse(format!(r#"{{"event_data":{data}}}"#).as_bytes());
        let name = r#""event_name":"tengu_oauth_token_refresh_lock_race_resolved""#;
        let at = r#""client_timestamp":"1970-01-01T00:00:00Z""#;
        let event = |session: &str, version: &str| {
            let (name, session, version) = ("race_resolved".to_owned(), session.to_owned(), version.to_owned());
            Ok(Some(RefreshEvent { at: SystemTime::UNIX_EPOCH, name, session, version }))
        };
        assert_eq!(line(&format!(r#"{{{name},{at},"session_id":"s","env":{{"version":"2"}}}}"#)), event("s", "2"));
        assert_eq!(line(&format!(r#"{{{name},{at},"session_id":7,"env":[]}}"#)), event("", ""));
        assert_eq!(line(&format!("{{{name}}}")), Err(Malformed));
        assert_eq!(line(&format!(r#""{COMMON}""#)), Err(Malformed));
        assert_eq!(line(&format!(r#"{{"event_name":"other","text":"{COMMON}"}}"#)), Ok(None));
        assert_eq!(RefreshEvent::parse(b"{"), Ok(None));
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        for other in [&b"\"\\ud800\""[..], b"\"\xff\"", b"1e999", deep.as_bytes()] {
            let data = format!(r#","event_data":{{{name},{at},"session_id":"s","env":{{"version":"2"}}}}}}"#);
            let line = [b"\xef\xbb\xbf{\"x\":", other, data.as_bytes()].concat();
            assert_eq!(RefreshEvent::parse(&line), event("s", "2"));
        }
    }

    #[test]
    fn line_beyond_the_bound_is_skipped_once_it_has_an_end() -> io::Result<()> {
        let config_dir = tempfile::tempdir()?;
        let mut telemetry = Telemetry::of(config_dir.path());
        fs::create_dir(&telemetry.dir)?;
        let path = telemetry.dir.join("1p_failed_events.s.u.json");
        let event =
            r#"{"event_data":{"event_name":"tengu_oauth_token_refresh_starting","client_timestamp":"1970-01-01T00:00:00Z"}}"#;
        for length in [MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE, 2 * MAX_LINE + 1] {
            let long = "x".repeat(length as usize);
            telemetry = Telemetry { malformed: 0, offsets: HashMap::new(), ..telemetry };
            fs::write(&path, format!("{event}\n{long}"))?;
            assert_eq!((telemetry.read()?.len(), telemetry.malformed, telemetry.cut), (1, 0, 1), "{length}");
            fs::write(&path, format!("{event}\n{long}\n{event}\n"))?;
            assert_eq!((telemetry.read()?.len(), telemetry.malformed, telemetry.cut), (1, 1, 0), "{length}");
            assert_eq!(telemetry.offsets[&path], fs::metadata(&path)?.len());
        }
        Ok(())
    }
}
