//! `claude-run settings`: every setting, its value, and where that comes from.

use anyhow::Result;
use serde_json::{Value, json};

use crate::cli::{Cli, Opt};
use crate::settings::file::SettingsFile;
use crate::settings::{Environment, Origin, Settings, explain};

/// One line, or one object, for each. What would be refused at a run is refused here.
pub(super) fn show(cli: Cli, environment: Environment, file: Option<&SettingsFile>, json: bool) -> Result<String> {
    let settings = explain(&cli, environment, file);
    Settings::resolve(cli, environment, file)?;
    if json {
        let all: Vec<Value> =
            settings.iter().map(|(option, value, origin)| object(option, &value.to_string_lossy(), origin)).collect();
        return Ok(format!("{}\n", Value::from(all)));
    }
    let rows: Vec<_> =
        settings.iter().map(|(option, value, origin)| (option.flag, value.to_string_lossy(), words(origin))).collect();
    let width = rows.iter().map(|(_, value, _)| value.chars().count()).max().unwrap_or_default();
    Ok(rows.iter().map(|(name, value, origin)| format!("{name:<20}{value:<width$}  {origin}\n")).collect())
}

fn words(origin: &Origin) -> String {
    match origin {
        Origin::Flag => "flag".into(),
        Origin::Variable(name) => (*name).into(),
        Origin::File(path, line) => format!("{}:{line}", path.display()),
        Origin::Default => "default".into(),
    }
}

fn object(option: &Opt, value: &str, origin: &Origin) -> Value {
    let (kind, variable, file, line) = match origin {
        Origin::Flag => ("flag", None, None, None),
        Origin::Variable(name) => ("environment", Some(*name), None, None),
        Origin::File(path, line) => ("file", None, Some(path.to_string_lossy()), Some(*line)),
        Origin::Default => ("default", None, None, None),
    };
    json!({ "name": option.flag, "value": value, "origin": kind, "variable": variable, "file": file, "line": line })
}
