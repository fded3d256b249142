//! The session lock. [`acquire`](acquire()) is the story. Each of these imports only those before it: `file` (the lock file and
//! flock(2)), `monitor_process` and `helper_monitor` (the process that ends a lock helper in any case), `claims` (locks that an
//! ancestor or our caller holds for us), `holder` (holder and waiters of a lock), `refresh_due` (the state of claude's token), `wait`
//! (the one wait: signals, deadlines, progress), `helper_state` and `helper` (a command that holds a lock of another engine, between
//! hosts), `refresh_wait` (the wait for claude's own refresh locks), `guard` (the lock, held), `request` (a request and its outcome),
//! `queue` and `helper_wait` (the waits for the session lock and for the lock helper), `acquire` (all of it in order).

mod acquire;
mod claims;
mod file;
mod guard;
mod helper;
mod helper_monitor;
mod helper_state;
mod helper_wait;
mod holder;
mod monitor_process;
mod queue;
mod refresh_due;
mod refresh_wait;
mod request;
mod wait;

/// Name of the lock file in a config dir. The shell scripts before us lock the same file.
pub const FILE_NAME: &str = "session.lock";

pub use acquire::acquire;
pub use claims::{AncestorRuns, Claim, KEY_VARIABLE};
pub use guard::LockGuard;
pub use helper::HelperCommand;
pub use holder::{Holder, Queue};
pub use refresh_due::Refreshes;
pub(crate) use refresh_wait::describe_refresh_lock;
pub use request::{Acquisition, LockRequest};
