//! What is kept of runs, in `<config dir>/claude-run`: a record of each live one, so that everybody can see who holds the
//! session lock and who waits for it, and a line of history for each that has ended. Never a prompt, never a token, and
//! never a reason for a run to fail.

mod directory;
mod history;
mod journal;
mod run_record;

pub use directory::{Census, Directory};
pub use history::{Finished, History};
pub use journal::{Journal, Particulars};
pub(crate) use run_record::time;
pub use run_record::{Hold, RunRecord, Sight, State};
