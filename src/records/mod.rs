//! What is kept of runs, in `<config dir>/claude-run`: a record of each live one, so that everybody can see who holds the
//! session lock and who waits for it, and a line of history for each that has ended. Never a prompt, never a token, and
//! never a reason for a run to fail.

mod history;
mod recorder;
mod run_record;
mod store;

pub use history::{Finished, History};
pub use recorder::{RunInfo, RunRecorder};
pub(crate) use run_record::time;
pub use run_record::{Hold, PathView, RunRecord, State};
pub use store::{Census, RecordStore};
