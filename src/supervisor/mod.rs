//! One supervised run, sole owner of the child. `run` brings together `policy` (pure), `refresh_guard` around it, `spawn`, `child`,
//! `process_tree` and `output`.

mod child;
pub mod output;
pub mod policy;
mod process_tree;
pub mod refresh_guard;
mod run;
pub mod spawn;

pub use run::{Supervision, supervise};
