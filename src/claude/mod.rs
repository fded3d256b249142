//! All that is known about Claude Code, and known nowhere else: where its config dir is and what ails it, which program
//! is claude, which of its words need no lock, and what its output says of the run.

pub mod config_dir;
pub mod frames;
pub mod program;
