//! One message as text on stderr, as a line of a log, and as JSON.

use std::fmt::Debug;

use serde::{Serialize, Serializer};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::log_file::now;
use crate::run_id::RunId;

/// An event of tracing, taken apart.
pub(super) struct Message {
    level: Level,
    /// Name of the event, as `lock.acquired`, if it has one.
    name: Option<&'static str>,
    text: String,
    fields: Vec<(&'static str, Value)>,
}

/// The JSON form of a message: its own fields follow those that every message has.
#[derive(Serialize)]
struct JsonLine<'a> {
    run: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'static str>,
    timestamp: String,
    level: &'static str,
    message: &'a str,
    #[serde(flatten, serialize_with = "as_members")]
    fields: &'a [(&'static str, Value)],
}

fn as_members<S: Serializer>(fields: &&[(&'static str, Value)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(fields.iter().map(|(name, value)| (name, value)))
}

impl Message {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        // Without a name of its own, tracing calls an event by the place it comes from.
        let name = Some(metadata.name()).filter(|name| !name.starts_with("event "));
        let mut message = Self { level: *metadata.level(), name, text: String::new(), fields: Vec::new() };
        event.record(&mut message);
        message
    }

    /// `claude-run: message key=value`, the form of every message in a terminal.
    pub(super) fn to_text(&self) -> String {
        let mut line = format!("claude-run: {}", self.text);
        for (name, value) in &self.fields {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            line.extend([" ", name, "=", &value]);
        }
        // Text of others, such as a path, must not control the terminal.
        let is_harmless = |c: char| !c.is_control() || c == '\n';
        let mut line = line.chars().fold(String::new(), |mut line, c| {
            if is_harmless(c) {
                line.push(c)
            } else {
                line.extend(c.escape_default())
            }
            line
        });
        line.push('\n');
        line
    }

    /// As a line of a log that several runs share: with time, run and name of the event.
    pub(super) fn to_log_line(&self, run: RunId) -> String {
        let text = self.to_text();
        let name = self.name.map_or_else(String::new, |name| format!(" event={name}"));
        format!("{} {run} {}{name}\n", now(), text.trim_end())
    }

    /// As a JSON object.
    pub(super) fn to_json(&self, run: RunId) -> String {
        let (timestamp, level, message) = (now().to_string(), self.level.as_str(), &self.text);
        let line = JsonLine { run: run.to_string(), event: self.name, timestamp, level, message, fields: &self.fields };
        serde_json::to_string(&line).unwrap_or_default() + "\n"
    }

    fn take(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.text = text,
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.take(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, value.into());
    }
}
