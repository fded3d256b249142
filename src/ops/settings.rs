//! `claude-run settings`: every setting, its value, and its origin.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use super::{Context, text, write, write_json};
use crate::config::settings::{Settings, Written, explain};
use crate::outcome::Outcome;

/// JSON form of one setting.
#[derive(Serialize)]
struct NamedSettingJson<'a> {
    #[serde(flatten)]
    setting: text::SettingJson<'a>,
    name: &'a str,
}

/// One line, or one object, for each. Refuses what a run would refuse.
pub(super) fn show(context: &Context, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let settings = explain(&context.cli, context.environment, context.file.as_ref());
    Settings::resolve(context.cli.clone(), context.environment, context.file.as_ref())?;
    if json {
        let settings: Vec<_> =
            settings.iter().map(|setting| (setting.name, setting.value.to_string_lossy(), &setting.origin)).collect();
        let json = |(name, value, origin)| NamedSettingJson { setting: text::setting(value, origin), name };
        write_json(out, &settings.iter().map(|(name, value, origin)| json((*name, value, origin))).collect::<Vec<_>>())?;
        return Ok(Outcome::Shown);
    }
    let row = |setting: &Written| (setting.name, setting.value.to_string_lossy().into_owned(), text::origin(&setting.origin));
    let rows: Vec<_> = settings.iter().map(row).collect();
    let width = rows.iter().map(|(_, value, _)| value.chars().count()).max().unwrap_or_default();
    let lines = rows.iter().map(|(name, value, origin)| format!("{name:<20}{value:<width$}  {origin}\n"));
    write(out, &lines.collect::<String>())?;
    Ok(Outcome::Shown)
}
