//! Settings: the words of the command line, the environment, and the shared file, and what they mean together.
//!
//! [`options`] is the one table: a struct derived by clap, each field with its flag, variable, default, help and type. From it
//! come the parser, `-h` and `--help`, the man page, the completions, the keys of the settings file and the rows of
//! `claude-run settings`. A new option is a new field there; a new type of value goes to [`values`].
//!
//! The struct is used twice. [`cli`] takes the words apart and leaves the values as they were typed: an operation as `doctor`
//! works though a value is wrong. [`settings`] then finds for each option the value that counts, and parses those, so that one
//! parser reads flags, variables and file alike, and a refusal can name the place. clap's own environment is not asked: to it, an
//! empty variable is a value.

pub mod cli;
pub mod duration;
pub mod file;
pub mod help;
pub mod options;
pub mod settings;
pub mod subcommands;
pub mod values;
