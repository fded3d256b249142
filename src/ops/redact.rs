//! `claude-run redact <FILE`: the masker of the log as a filter, from stdin to stdout.

use std::io::{ErrorKind, Read};

use anyhow::{Context as _, Result, bail};

use super::{Context, write_bytes};
use crate::outcome::Outcome;
use crate::redact::{Masker, secrets};
use crate::sys::stdio::{StandardInput, StandardOutput};

/// Copies stdin to stdout, masked; each line as soon as it is there.
pub(super) fn filter(context: &Context) -> Result<Outcome> {
    // Without its names and patterns, what they stand for would be shown.
    if let Some(error) = &context.file_error {
        bail!("{error}");
    }
    let mut masker = Masker::new(secrets()?);
    // Not the output of other operations, which takes escape sequences out of what goes to a file.
    let (mut input, mut output) = (StandardInput, StandardOutput);
    let (mut buffer, mut masked) = (vec![0; 64 << 10], Vec::new());
    loop {
        let length = match input.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            length => length.context("cannot read stdin")?,
        };
        match length {
            0 => masker.end(&mut masked),
            _ => masker.feed(&buffer[..length], &mut masked),
        }
        let has_reader = write_bytes(&mut output, &masked)?;
        masked.clear();
        if length == 0 || !has_reader {
            return Ok(Outcome::Shown);
        }
    }
}
