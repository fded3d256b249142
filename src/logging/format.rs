//! One message as text on stderr, as a line of a log, and as JSON.

use std::fmt::Debug;

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::Event;
use tracing::field::{Field, Visit};
use tracing_serde::fields::AsMap;

use super::json::escaped_json;
use super::log_file::now;
use super::words::{clamped, escaped, masked};
use crate::run_id::RunId;

/// Fields that say for programs what the message says for people.
const FOR_PROGRAMS: [&str; 2] = ["limit", "after_ms"];

/// `claude-run: message key=value`, the form of every message in a terminal; without the keys that the message has.
pub(super) fn to_text(event: &Event<'_>) -> String {
    let mut text = Text { message: String::new(), fields: Vec::new() };
    event.record(&mut text);
    let Text { message, fields } = text;
    let is_said = |name: &str, value: &str| FOR_PROGRAMS.contains(&name) || message.ends_with(&format!("{name} {value}"));
    let fields = fields.into_iter().filter(|(name, value)| !is_said(name, value));
    let fields: String = fields.map(|(name, value)| format!(" {name}={value}")).collect();
    format!("claude-run: {}\n", escaped(&masked(&(message.clone() + &fields))))
}

/// As a line of a log that several runs share: with time, run and name of the event.
pub(super) fn to_log_line(event: &Event<'_>, run: RunId) -> String {
    let name = name(event).map_or_else(String::new, |name| format!(" event={name}"));
    format!("{} {run} {}{name}\n", now(), to_text(event).trim_end())
}

/// As a JSON object: the fields of the message follow those that every message has.
pub(super) fn to_json(event: &Event<'_>, run: RunId) -> String {
    #[derive(Serialize)]
    struct JsonLine {
        run: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        event: Option<&'static str>,
        timestamp: String,
        level: &'static str,
        #[serde(flatten)]
        fields: Map<String, Value>,
    }

    let fields = match serde_json::to_value(event.field_map()) {
        Ok(Value::Object(fields)) => fields.into_iter().map(|(name, value)| (name, clamped_value(value))).collect(),
        _ => Map::new(),
    };
    let (timestamp, level) = (now().to_string(), event.metadata().level().as_str());
    let line = JsonLine { run: run.to_string(), event: name(event), timestamp, level, fields };
    escaped_json(masked(&serde_json::to_string(&line).unwrap_or_default())) + "\n"
}

fn clamped_value(value: Value) -> Value {
    value.as_str().map(|text| clamped(text).into()).unwrap_or(value)
}

/// Name of the event, as `lock.acquired`. Without one, tracing calls it by the place it comes from.
fn name(event: &Event<'_>) -> Option<&'static str> {
    Some(event.metadata().name()).filter(|name| !name.starts_with("event "))
}

struct Text {
    message: String,
    /// Names and values.
    fields: Vec<(&'static str, String)>,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = clamped(value),
            name => self.fields.push((name, clamped(value))),
        }
    }
}
