//! The variables by which agents find the shared config dir, in a file of `NAME=value` lines.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::SHARED_DIR;
use super::plan::SetupPaths;
use crate::claude::config_dir;
use crate::config::file;

/// Writes the variables; all other lines stay as they are. Returns true if anything has changed, or would.
pub(super) fn write(path: &Path, paths: &SetupPaths, dry_run: bool) -> Result<bool> {
    let values = [
        (SHARED_DIR, paths.shared.to_string_lossy().into_owned()),
        (config_dir::VARIABLE, paths.config_dir.to_string_lossy().into_owned()),
    ];
    let old = std::fs::read_to_string(path).unwrap_or_default();
    let changed = with(&old, &values) != old;
    if changed && !dry_run {
        file::rewrite(path, |text| Ok(with(text, &values))).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(changed)
}

/// Sets these values in `text`, each in the place of the last line that has set it, or at the end.
fn with(text: &str, values: &[(&str, String)]) -> String {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    for (name, value) in values {
        let sets = |line: &String| {
            let line = line.trim_start();
            let line = line.strip_prefix("export ").unwrap_or(line);
            line.trim_start().strip_prefix(name).is_some_and(|rest| rest.starts_with('='))
        };
        match lines.iter().rposition(sets) {
            Some(at) => {
                let export = if lines[at].trim_start().starts_with("export ") { "export " } else { "" };
                lines[at] = format!("{export}{name}={}\n", quoted(value));
            }
            None => {
                if let Some(last) = lines.last_mut().filter(|last| !last.ends_with('\n')) {
                    last.push('\n');
                }
                lines.push(format!("{name}={}\n", quoted(value)));
            }
        }
    }
    lines.concat()
}

/// Quotes a value as a shell and compose read it.
pub(super) fn quoted(value: &str) -> String {
    let is_plain = value.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c));
    if is_plain { value.to_owned() } else { format!("'{}'", value.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_replaced_in_place() {
        let values = [("A", "/x".to_owned()), ("B", "/with space's".to_owned())];
        let cases = [
            ("", "A=/x\nB='/with space'\\''s'\n"),
            ("# c\nA=1\n\nZ=2", "# c\nA=/x\n\nZ=2\nB='/with space'\\''s'\n"),
            ("export A=1\nB=old\nAB=3\n#A=4\n", "export A=/x\nB='/with space'\\''s'\nAB=3\n#A=4\n"),
        ];
        for (before, after) in cases {
            assert_eq!(with(before, &values), after, "{before:?}");
            assert_eq!(with(after, &values), after, "again");
        }
    }
}
