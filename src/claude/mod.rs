//! All that is known about Claude Code, and known nowhere else: where its config dir is and what ails it, which program
//! is claude, which of its words need no lock, what its output says of the run, how it proves who it is, and how its login and
//! its own locks stand, and what it tells of its refreshes.

pub mod auth;
pub mod config_dir;
pub mod credentials;
pub mod frames;
pub mod program;
pub mod refresh_locks;
pub mod telemetry;
