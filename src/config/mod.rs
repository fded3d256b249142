//! Settings: the words of the command line, the environment, and the shared file, and what they mean together.
//!
//! [`options`] is the one table: each row has a flag, a variable, a default, a help text and a type. From it come the parser, `-h`
//! and `--help`, the man page, the completions, the keys of the settings file and the rows of `claude-run settings`. A new type of
//! value goes to [`values`].
//!
//! [`cli`] takes the words apart and leaves the values as they were typed: an operation as `doctor` works though a value is wrong.
//! [`settings`] then finds for each option the value that counts. One reader per type reads flags, variables and file alike, and a
//! refusal names the place.

pub mod cli;
pub mod duration;
pub mod file;
pub mod help;
pub mod operations;
pub mod options;
pub mod settings;
pub(crate) mod trust;
pub mod values;
