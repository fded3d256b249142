//! Forms that several operations share: in text for people, in JSON for programs.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::config::duration::show_seconds;
use crate::config::settings::Origin;
use crate::records::RunRecord;

/// JSON form of a value and its origin.
#[derive(Serialize)]
pub(super) struct SettingJson<'a> {
    value: &'a str,
    /// `flag`, `environment`, `file` or `default`
    origin: &'static str,
    variable: Option<&'a str>,
    file: Option<Cow<'a, str>>,
    line: Option<usize>,
}

/// JSON form of a run record: its own fields, and how long the run has been in its state.
#[derive(Serialize)]
pub(super) struct RecordJson<'a> {
    #[serde(flatten)]
    record: &'a RunRecord,
    age_ms: u64,
}

/// An origin, for people.
pub(super) fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Flag => "flag".into(),
        Origin::Variable(name) => name.to_string(),
        Origin::File(path, line) => format!("{}:{line}", path.display()),
        Origin::Default => "default".into(),
    }
}

/// A value and its origin, for programs.
pub(super) fn setting<'a>(value: &'a str, origin: &'a Origin) -> SettingJson<'a> {
    let (origin, variable, file, line) = match origin {
        Origin::Flag => ("flag", None, None, None),
        Origin::Variable(name) => ("environment", Some(*name), None, None),
        Origin::File(path, line) => ("file", None, Some(path.to_string_lossy()), Some(*line)),
        Origin::Default => ("default", None, None, None),
    };
    SettingJson { value, origin, variable, file, line }
}

/// Run records, for programs.
pub(super) fn records<'a>(records: impl IntoIterator<Item = &'a RunRecord>, now: SystemTime) -> Vec<RecordJson<'a>> {
    records.into_iter().map(|record| RecordJson::of(record, now)).collect()
}

impl<'a> RecordJson<'a> {
    pub(super) fn of(record: &'a RunRecord, now: SystemTime) -> Self {
        Self { record, age_ms: milliseconds(since(record.since, now)) }
    }
}

/// Name, mode and age of a run.
pub(super) fn run(record: &RunRecord, now: SystemTime) -> String {
    format!("{}, {}, {}", record.who(), record.mode, ago(record.since, now))
}

/// Time since `at`, for people.
pub(super) fn ago(at: SystemTime, now: SystemTime) -> String {
    show_seconds(since(at, now))
}

/// Time since `at`; zero if that is yet to come.
pub(super) fn since(at: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(at).unwrap_or_default()
}

/// `1 run`, `2 runs`
pub(super) fn count(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A duration, for programs.
pub(super) fn milliseconds(span: Duration) -> u64 {
    span.as_millis() as u64
}
