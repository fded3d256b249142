//! One supervised run: the child is started, watched and ended here, and by nobody else.
//!
//! `policy` decides, `spawn` starts, `tree` finds and signals descendants, `output` carries stdout; `refresh` looks
//! whether a token refresh is under way; `supervise` owns the child and brings them together.

pub mod output;
pub mod policy;
mod process_tree;
mod refresh;
pub mod refresh_guard;
mod run;
pub mod spawn;

pub use run::supervise;
