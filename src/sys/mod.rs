//! Linux, and nothing of claude: system calls, /proc, files and terminals. It imports nothing of ours.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) mod acl;
pub(crate) mod bounded;
mod core_dump;
pub(crate) mod dir;
pub mod exec;
pub mod file_id;
pub(crate) mod file_watch;
pub(crate) mod fs;
pub mod mount;
pub(crate) mod pipe;
pub(crate) mod priority;
pub(crate) mod proc;
pub(crate) mod replace;
pub mod signal;
pub mod signal_pipe;
pub mod signal_table;
pub(crate) mod stdio;
pub(crate) mod steps;
pub(crate) mod terminal;
pub(crate) mod wait;

/// Locks `mutex`, also behind a panic of another thread: what it guards is sound at each moment.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
