//! The session lock: when to take it (`mode`), whether a refresh is due (`refresh`), the flock itself (`session`), until
//! when it is held (`holding`), the bounded wait for it (`waiting`), the two ways in which it can already be ours (`ours`), and who else
//! has it (`holder`). Between hosts, a command that holds a lock of another engine (`helper`), how it is asked for that lock
//! (`asking`), and the process that ends it in any case (`keeper`).

mod asking;
mod helper;
mod holder;
mod holding;
mod keeper;
mod mode;
mod ours;
mod refresh;
mod session;
mod waiting;

/// What the lock file in a config dir is called: by us, and by the shell scripts before.
pub const FILE_NAME: &str = "session.lock";

pub use helper::{HelperCommand, KEY_VARIABLE};
pub use holder::{Holder, Queue};
pub use holding::Holding;
pub use mode::{Lock, Taken, take};
pub use ours::{Above, Claim};
pub use refresh::Refreshes;
