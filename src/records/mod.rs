//! Bookkeeping of runs, in `<config dir>/claude-run`: a record of each live run, so that everybody can see who holds the
//! session lock and who waits for it, and a history line for each finished one. Never a prompt, never a token, and
//! never a reason for a run to fail.

mod fields;
mod history;
mod recorder;
mod run_record;
mod store;

pub(crate) use fields::{time, timestamp};
pub use history::{FinishedRun, History};
pub use recorder::{RunInfo, RunRecorder};
pub(crate) use run_record::sanitize;
pub use run_record::{Hold, PathView, RunRecord, State};
pub use store::{Census, RecordStore};
