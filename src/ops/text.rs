//! How operations say things.

use std::time::{Duration, SystemTime};

use crate::config::settings::{Origin, show_seconds};
use crate::object::Object;
use crate::records::RunRecord;

/// An origin, for people.
pub(super) fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Flag => "flag".into(),
        Origin::Variable(name) => name.clone(),
        Origin::File(path, line) => format!("{}:{line}", path.display()),
        Origin::Default => "default".into(),
    }
}

/// A value and its origin, for programs.
pub(super) fn setting(value: &str, origin: &Origin) -> Object {
    let (kind, variable, file, line) = match origin {
        Origin::Flag => ("flag", None, None, None),
        Origin::Variable(name) => ("environment", Some(name.as_str()), None, None),
        Origin::File(path, line) => ("file", None, Some(path.to_string_lossy()), Some(*line)),
        Origin::Default => ("default", None, None, None),
    };
    let mut object = Object::default();
    object.add("value", value).add("origin", kind).add("variable", variable).add("file", file).add("line", line);
    object
}

/// How long ago it was.
pub(super) fn ago(at: SystemTime, now: SystemTime) -> String {
    show_seconds(since(at, now))
}

/// The time since `at`; none, if that is yet to come.
pub(super) fn since(at: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(at).unwrap_or_default()
}

/// A run, its mode and how long it has been in its state.
pub(super) fn run(record: &RunRecord, now: SystemTime) -> String {
    format!("{}, {}, {}", record.who(), record.mode, ago(record.since, now))
}

/// A run record and its age, for programs.
pub(super) fn record(record: &RunRecord, now: SystemTime) -> Object {
    let mut object = record.to_json();
    object.add("age_ms", milliseconds(since(record.since, now)));
    object
}

/// What comes from elsewhere, and goes to a terminal: what could steer that is shown, not obeyed.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `1 run`, `2 runs`
pub(super) fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A span, for programs.
pub(super) fn milliseconds(span: Duration) -> u64 {
    span.as_millis() as u64
}
