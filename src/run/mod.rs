//! One supervised run: the child is started, watched and ended here, and by nobody else.
//!
//! `policy` decides, `spawn` starts, `tree` finds and signals descendants, `output` carries stdout; `supervise` owns the
//! child and brings them together.

pub mod output;
pub mod policy;
pub mod spawn;
mod supervise;
mod terminal;
mod tree;

pub use supervise::supervise;
