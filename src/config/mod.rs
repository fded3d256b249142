//! What was asked for: the words on the command line (`cli`, by the table of `options` and the list of `subcommands`), the shared
//! file (`file`), and what both mean together with the environment (`settings`).

pub mod cli;
pub mod duration;
pub mod file;
pub mod help;
pub mod options;
pub mod settings;
pub mod subcommands;
