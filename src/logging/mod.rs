//! The only writer to stderr and to the log: `messages` takes each message of the process, `format` makes text or JSON of it,
//! `log_file` appends to the file of `--log`, `live_line` is the line that a waiter rewrites, `columns` has its width, `stderr` writes,
//! `words` has what every text from elsewhere passes, `json` gives it each text of a value.
//!
//! Nothing here writes to stdout, which is claude's, fails a run because stderr is gone, or waits long for the reader of
//! stderr: a watchdog that sleeps in a write watches nothing.

mod columns;
mod format;
mod json;
mod live_line;
mod log_file;
mod messages;
mod stderr;
mod words;

pub(crate) use columns::{columns, fitted, with_columns};
pub(crate) use json::{json_line, json_of};
pub use live_line::LiveLine;
pub use log_file::{LogFile, Stamp};
pub(crate) use log_file::{PATIENCE, append_lines, open_to_append};
pub use messages::{ask, init, report, tell};
pub(crate) use words::{escaped, escaped_lines, in_locale, mask_with, shown};
