//! The session lock: when to take it (`mode`), whether a refresh is due (`refresh`), the flock itself (`session`), until
//! when it is held (`holding`), the bounded wait for it (`waiting`), the two ways in which it can already be ours (`ours`), and who else
//! has it (`holder`). Between hosts, a command that holds a lock of another engine (`helper`), how it is asked for that lock
//! (`asking`), and the process that ends it in any case (`keeper`).

mod acquire;
mod claims;
mod file;
mod guard;
mod helper;
mod helper_monitor;
mod helper_wait;
mod holder;
mod queue;
mod refresh_due;

/// What the lock file in a config dir is called: by us, and by the shell scripts before.
pub const FILE_NAME: &str = "session.lock";

pub use acquire::{Acquisition, LockRequest, take};
pub use claims::{AncestorRuns, Claim};
pub use guard::LockGuard;
pub use helper::{HelperCommand, KEY_VARIABLE};
pub use holder::{Holder, Queue};
pub use refresh_due::Refreshes;
