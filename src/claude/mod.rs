//! All that is known about Claude Code, and known nowhere else: where its config dir is and what ails it, which program
//! is claude, and which of its words need no lock.

pub mod config_dir;
pub mod program;
