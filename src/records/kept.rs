//! The one door of what is kept of a run: its record, and its line of history. Whatever text is in them goes through the masker, but for
//! what is named here.

use std::io;
use std::ops::Deref;

use serde::Serialize;
use serde_json::Value;

use crate::claude::frames::clamped;
use crate::redact;

/// Fields of a run record that stay exact, with all in them, since records are compared by them: the files by which a run is known to
/// hold a lock or a slot (`RecordStore::orphaned` opens `lock.path` again), and where it runs. Host and namespaces are the kernel's
/// words, the rest is ours.
pub(super) const EXACT: [&str; 8] = ["run", "lock", "slot", "config_dir", "parent", "host", "boot", "pid_namespace"];

/// A line of JSON, masked, with its end.
#[derive(Debug)]
pub(super) struct Line(String);

impl Line {
    /// The line of `record`, an object of which the fields `exact` stay as they are.
    pub(super) fn of(record: &impl Serialize, exact: &[&str]) -> io::Result<Self> {
        let mut record = serde_json::to_value(record)?;
        let mut texts = Vec::new();
        for (_, value) in record.as_object_mut().into_iter().flatten().filter(|(name, _)| !exact.contains(&name.as_str())) {
            collect(value, &mut texts);
        }
        texts.iter_mut().for_each(|text| **text = clamped(text).to_string());
        // A run makes no masker where nothing needs it.
        let all = texts.iter().map(|text| text.as_str()).collect::<Vec<_>>().join("\n");
        if !redact::is_plain(&all) {
            texts.into_iter().for_each(|text| *text = redact::masked(text));
        }
        Ok(Self(format!("{record}\n")))
    }
}

impl Deref for Line {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

fn collect<'a>(value: &'a mut Value, texts: &mut Vec<&'a mut String>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(values) => values.iter_mut().for_each(|value| collect(value, texts)),
        Value::Object(members) => members.values_mut().for_each(|value| collect(value, texts)),
        _ => {}
    }
}
