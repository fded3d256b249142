//! Bookkeeping of runs, in `<config dir>/claude-run`: a record of each live run, so that everybody can see who holds the
//! session lock and who waits for it, and a history line for each finished one. Never a prompt, never a token, and
//! never a reason for a run to fail.

mod census;
mod fields;
mod history;
mod kept;
mod recorder;
mod run_record;
mod spare;
mod store;

pub use history::FinishedRun;
pub use recorder::{RunInfo, RunRecorder};
pub use run_record::RunRecord;
pub use store::{LOCK_FILE, RecordStore};
pub(crate) use {
    census::Census,
    fields::{time, timestamp},
    run_record::{Hold, PathView, State, WaitsFor},
    store::{is_locked, is_locked_at},
};
