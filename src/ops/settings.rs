//! `claude-run settings`: every setting, its value, and where that comes from.

use std::io::Write;

use anyhow::Result;

use super::{Context, text, write};
use crate::config::settings::{Settings, explain};
use crate::object::array;
use crate::outcome::Outcome;

/// One line, or one object, for each. What would be refused at a run is refused here.
pub(super) fn show(context: &Context, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let settings = explain(&context.cli, context.environment, context.file.as_ref());
    Settings::resolve(context.cli.clone(), context.environment, context.file.as_ref())?;
    if json {
        let objects = settings.iter().map(|(option, value, origin)| {
            let mut setting = text::setting(&value.to_string_lossy(), origin);
            setting.add("name", option.flag);
            setting
        });
        write(out, &format!("{}\n", array(objects)))?;
        return Ok(Outcome::Shown);
    }
    let rows: Vec<_> =
        settings.iter().map(|(option, value, origin)| (option.flag, value.to_string_lossy(), text::origin(origin))).collect();
    let width = rows.iter().map(|(_, value, _)| value.chars().count()).max().unwrap_or_default();
    let lines = rows.iter().map(|(name, value, origin)| format!("{name:<20}{value:<width$}  {origin}\n"));
    write(out, &lines.collect::<String>())?;
    Ok(Outcome::Shown)
}
