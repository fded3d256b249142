//! The session lock: when to take it (`mode`), the flock itself (`session`), the bounded wait for it (`waiting`), and the
//! two ways in which it can already be ours (`ours`).

mod mode;
mod ours;
mod session;
mod waiting;

pub use mode::{Lock, Taken, take};
pub use ours::Claim;
pub use session::{Held, Identity};
