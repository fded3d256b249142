//! The only writer to stderr and to the log: `messages` takes each message of the process, `format` makes text or JSON of it,
//! `log_file` appends to the file of `--log`, `live_line` is the line that a waiter rewrites, `stderr` writes.
//!
//! Nothing here writes to stdout, which is claude's, fails a run because stderr is gone, or waits long for the reader of
//! stderr: a watchdog that sleeps in a write watches nothing.

mod format;
mod live_line;
mod log_file;
mod messages;
mod stderr;

pub use live_line::LiveLine;
pub use log_file::LogFile;
pub(crate) use log_file::open_to_append;
pub use messages::{ask, init, report};
