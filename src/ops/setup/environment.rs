//! The variables by which agents find the shared config dir, in a file of `NAME=value` lines.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::geteuid;

use crate::config::file;

/// What writes these variables, each a plain path, into the file `path`, unless they are there; all other lines stay as they are.
pub(super) fn change(
    path: &Path,
    variables: [(&'static str, &Path); 2],
) -> Result<Option<impl FnOnce() -> io::Result<()> + 'static>> {
    let values = variables.map(|(name, value)| (name, value.to_string_lossy().into_owned()));
    ensure_plain(path)?;
    let old = file::read_to_rewrite(path).with_context(|| format!("cannot write {}", path.display()))?;
    let (path, is_new) = (path.to_owned(), with(&old, &values) != old);
    Ok(is_new.then_some(move || file::rewrite(&path, |text| Ok(with(text, &values)))))
}

/// Refuses a link, which may lead to a file of others, and a file of others.
fn ensure_plain(path: &Path) -> Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    ensure!(!found.is_symlink(), "{} is a link; name the file that it leads to", path.display());
    let us = geteuid().as_raw();
    ensure!(found.uid() == us, "{} belongs to uid {}, and not to uid {us}; name another env file", path.display(), found.uid());
    Ok(())
}

/// Sets these values in `text`, each in the place of the last line that has set it, or at the end.
fn with(text: &str, values: &[(&str, String)]) -> String {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    for (name, value) in values {
        let assignment = format!("{name}={}\n", shell_words::quote(value));
        let unexported = |line: &str| line.trim_start().strip_prefix("export ").map(|rest| rest.trim_start().to_owned());
        let sets = |line: &&mut String| {
            let line = unexported(line).unwrap_or_else(|| line.trim_start().to_owned());
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('='))
        };
        if let Some(line) = lines.iter_mut().rev().find(sets) {
            let export = if unexported(line).is_some() { "export " } else { "" };
            *line = format!("{export}{assignment}");
            continue;
        }
        if let Some(last) = lines.last_mut().filter(|last| !last.ends_with('\n')) {
            last.push('\n');
        }
        lines.push(assignment);
    }
    lines.concat()
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
