//! `claude-run settings`: every setting, its value, and its origin.

use std::env;
use std::io::Write;

use anyhow::Result;

use super::layout::{columns, fitted};
use super::{Context, Factory, answer, text};
use crate::config::settings::{Written, unknown_variables};
use crate::logging;
use crate::outcome::Outcome;

/// One line, or one object, for each. A mistake that a run would refuse is said on stderr.
pub(super) fn show(context: &Context, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let settings = context.written();
    let mistake = match Factory::of(context) {
        Ok(factory) => factory.mistake,
        // Without a config dir, there is no settings file either.
        Err(_) if context.config_dir.is_err() => context.settings().err().map(|error| format!("{error:#}")),
        Err(error) => return Err(error),
    };
    if let Some(mistake) = &mistake {
        logging::tell(&format!("{mistake}; no run starts"));
    }
    unknown_variables(&env::vars_os().collect::<Vec<_>>()).for_each(|warning| logging::tell(&warning));
    answer(out, json, mistake.is_none(), || to_text(&settings), || settings.iter().map(text::setting_json).collect())
}

fn to_text(settings: &[Written]) -> String {
    let values: Vec<_> = settings.iter().map(|setting| text::shown(&setting.value)).collect();
    // One long value is not to push all origins off the screen.
    let width = values.iter().map(|value| columns(value)).filter(|width| *width <= 40).max().unwrap_or_default();
    let row = |(Written { name, origin, .. }, value): (&Written, &String)| {
        let value = if columns(value) > width { value.clone() } else { fitted(value, width) };
        format!("{name:<20}{value}  {}\n", text::origin(origin))
    };
    settings.iter().zip(&values).map(row).collect()
}
