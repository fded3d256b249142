//! The session lock, and the slots. [`acquire`](acquire()) is the story of the one, [`acquire_slot`] that of the other. Each of these
//! imports only those before it: `file` (lock files and flock(2)), `flock_thread` (its wait), `ancestors` (what they hold), `claims`
//! (locks that are held for us), `holder` (holder and waiters of a lock), `refresh_due` (claude's token), `slot_files` (who has a
//! slot), `ancestor_checks` (when to ask `claims` again), `wait` (the one wait, and its messages), `monitor` and `helper` (a command that holds a lock of another engine, between hosts), `guard` (the
//! lock, held), `request` (a request and its outcome), `queue` and `helper_wait` (the waits for the session lock and the lock
//! helper), `acquire` (all of it in order, and the wait for claude's own refresh locks), `slots`.

mod acquire;
mod ancestor_checks;
mod ancestors;
mod claims;
mod file;
mod flock_thread;
mod guard;
mod helper;
mod helper_wait;
mod holder;
mod monitor;
mod queue;
mod refresh_due;
mod request;
mod slot_files;
mod slots;
mod wait;

pub use crate::records::LOCK_FILE as FILE_NAME;

pub use acquire::acquire;
pub(crate) use acquire::{describe_refresh_lock, wait_again};
pub use claims::{AncestorRuns, Claim, KEY_VARIABLE, MAX_NESTING};
pub(crate) use file::{FlockGuard, LockAttempt, LockFile};
pub use guard::LockGuard;
pub use helper::HelperCommand;
pub(crate) use holder::NAMED;
pub use holder::{Holder, Process, Queue};
pub use monitor::{MONITOR, run_monitor};
pub(crate) use refresh_due::AwaitedRefresh;
pub use refresh_due::Refreshes;
pub use request::{Acquisition, LockRequest};
pub(crate) use slot_files::{SlotFile, queue_holder, slot_files, slot_obstacles};
pub use slots::{SlotGuard, SlotRequest, acquire_slot};
