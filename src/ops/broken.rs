//! Locks and slots that keep nobody out any more: released or replaced under the run that has them, by its record.

use std::fs;
use std::path::Path;

use crate::records::{RecordStore, RunRecord};
use crate::sys::file_id::FileId;
use crate::sys::fs::if_there;

/// A lock or a slot in the file at `path`, for people `name`.
pub(super) struct Held<'a> {
    pub(super) name: &'a str,
    pub(super) path: &'a Path,
    /// True if a run has it, by its record.
    pub(super) has: fn(&RunRecord, FileId) -> bool,
}

impl Held<'_> {
    /// What has become of it under the live `run`, if something has: whoever has inherited the descriptor can release it, whoever may
    /// write in the directory can put another file in its place.
    pub(super) fn broken(&self, records: &RecordStore, run: &RunRecord, is_free: impl Fn(FileId) -> bool) -> Option<String> {
        let has = |run: &RunRecord, file| (self.has)(run, file);
        // A place where we may not look says nothing.
        let file = if_there(fs::metadata(self.path)).ok()?.map(|found| FileId::of(&found));
        let how = match file {
            Some(file) if has(run, file) => is_free(file).then_some("released")?,
            _ => "removed or replaced",
        };
        // A run that lets it go says so in its record first.
        let now = records.live(&run.run)?;
        let is_unchanged =
            (now.hold, &now.lock, &now.slot) == (run.hold, &run.lock, &run.slot) && file == FileId::at(self.path);
        is_unchanged.then(|| format!("{} was {how} under {}", self.name, run.who()))
    }
}
