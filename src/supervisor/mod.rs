//! One supervised run, sole owner of the child. `run` brings together `policy` (pure), `spawn`, `process_tree` and `output`.

pub mod output;
pub mod policy;
mod process_tree;
mod run;
mod spawn;

pub(crate) use run::{Supervision, refresh_first, supervise};
pub(crate) use spawn::{Launch, Role};
