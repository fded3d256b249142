//! `claude-run settings`: every setting, its value, and its origin.

use std::io::Write;

use anyhow::Result;

use super::{Context, text, write};
use crate::config::settings::{Settings, Written, explain};
use crate::object::array;
use crate::outcome::Outcome;

/// One line, or one object, for each. Refuses what a run would refuse.
pub(super) fn show(context: &Context, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let settings = explain(&context.cli, context.environment, context.file.as_ref());
    Settings::resolve(context.cli.clone(), context.environment, context.file.as_ref())?;
    if json {
        let objects = settings.iter().map(|setting| {
            let mut object = text::setting(&setting.value.to_string_lossy(), &setting.origin);
            object.add("name", &setting.name);
            object
        });
        write(out, &format!("{}\n", array(objects)))?;
        return Ok(Outcome::Shown);
    }
    let row =
        |setting: &Written| (setting.name.clone(), setting.value.to_string_lossy().into_owned(), text::origin(&setting.origin));
    let rows: Vec<_> = settings.iter().map(row).collect();
    let width = rows.iter().map(|(_, value, _)| value.chars().count()).max().unwrap_or_default();
    let lines = rows.iter().map(|(name, value, origin)| format!("{name:<20}{value:<width$}  {origin}\n"));
    write(out, &lines.collect::<String>())?;
    Ok(Outcome::Shown)
}
