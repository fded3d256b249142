//! What operators ask for. Each operation writes text, or JSON where it is asked for, and leaves everything as it is.

mod settings;

use std::io::{self, Write};

use anyhow::{Context, Result};

use crate::cli::{Cli, Operation};
use crate::outcome::Outcome;
use crate::settings::Environment;
use crate::settings::file::SettingsFile;

/// Does what the operator asks for.
///
/// # Errors
/// What was typed, the environment or the settings file is wrong; or stdout cannot be written.
pub fn run(operation: Operation, cli: Cli, environment: Environment, file: Option<&SettingsFile>) -> Result<Outcome> {
    let text = match operation {
        Operation::Settings { json } => settings::show(cli, environment, file, json)?,
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write to stdout")?;
    Ok(Outcome::Shown)
}
