//! The one door of what is kept of a run: its record, and its line of history. Whatever text is in them goes through the masker, but for
//! what is named here.

use std::io;
use std::ops::Deref;

use serde::Serialize;

use crate::logging::json_of;
use crate::redact;

/// Fields of a run record that stay exact, with all in them, since records are compared by them: the files by which a run is known to
/// hold a lock or a slot (`RecordStore::orphaned` opens `lock.path` again), and where it runs. Host and namespaces are the kernel's
/// words, the rest is ours.
pub(super) const EXACT: [&str; 8] = ["run", "lock", "slot", "config_dir", "parent", "host", "boot", "pid_namespace"];

/// A line of JSON, masked and escaped, with its end.
#[derive(Debug)]
pub(super) struct Line(String);

impl Line {
    /// The line of `record`, of which the fields `exact` stay as they are.
    pub(super) fn of(record: &impl Serialize, exact: &[&str]) -> io::Result<Self> {
        Ok(Self(json_of(record, redact::kept, exact)? + "\n"))
    }
}

impl Deref for Line {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}
