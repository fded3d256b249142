//! The variables by which agents find the shared config dir, in a file of `NAME=value` lines.

use std::io::{self, Write};
use std::path::{Path, absolute};

use anyhow::{Context as _, Result, ensure};

use crate::sys::replace::{directory_of, read_to_replace, replace};

/// What writes these variables, each a plain path, into the file `path`, unless they are there; all other lines stay as they are.
pub(super) fn change(
    path: &Path,
    variables: [(&'static str, &Path); 2],
) -> Result<Option<impl FnOnce() -> io::Result<()> + 'static>> {
    let values = variables.map(|(name, value)| (name, value.to_string_lossy().into_owned()));
    ensure!(!path.is_symlink(), "{} is a link; name the file that it leads to", path.display());
    let cannot = || format!("cannot write {}", path.display());
    let directory = directory_of(path)?;
    ensure!(directory.is_dir(), "{}: {} is no directory; make it first", cannot(), directory.display());
    let (path, old) = (absolute(path)?, read_to_replace(path).with_context(cannot)?);
    let new = with(&old, &values);
    if new == old {
        return Ok(None);
    }
    // A file system without room is found now, rather than once all else is done.
    tempfile::tempfile_in(directory).and_then(|mut copy| copy.write_all(new.as_bytes())).with_context(cannot)?;
    Ok(Some(move || replace(&path, |text| Ok(with(text, &values)))))
}

/// Sets these values in `text`, each in the place of the line that has set it last, if all of that is its assignment, or at the end.
fn with(text: &str, values: &[(&str, String)]) -> String {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    for (name, value) in values {
        let assignment = format!("{name}={}", shell_words::quote(value));
        let (at, export) = match lines.iter().rposition(|line| mentions(line, name)) {
            Some(at) if is_its_own(&lines, at, name) && bare(&lines[at]).1 == assignment => continue,
            Some(at) if is_its_own(&lines, at, name) => (at, bare(&lines[at]).0),
            _ => {
                if let Some(last) = lines.last_mut().filter(|last| !last.ends_with('\n')) {
                    last.push_str(end);
                }
                lines.push(String::new());
                (lines.len() - 1, "")
            }
        };
        lines[at] = format!("{export}{assignment}{end}");
    }
    lines.concat()
}

/// `line` in two: `export `, if it begins with that, and the rest.
fn bare(line: &str) -> (&'static str, &str) {
    let line = line.trim();
    line.strip_prefix("export ").map_or(("", line), |rest| ("export ", rest.trim_start()))
}

/// True if `line` may set the variable `name`.
fn mentions(line: &str, name: &str) -> bool {
    let is_part = |before: &str| before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    !line.trim_start().starts_with('#') && line.match_indices(&format!("{name}=")).any(|(at, _)| !is_part(&line[..at]))
}

/// True if all of the line `at` is one assignment to the variable `name`.
fn is_its_own(lines: &[String], at: usize, name: &str) -> bool {
    let assignment = bare(&lines[at]).1;
    let is_word = shell_words::split(assignment).is_ok_and(|words| words.len() == 1);
    let is_plain = is_word && !assignment.contains(['#', ';', '&', '|']) && !assignment.ends_with('\\');
    // What stays open to the end is no quote: Docker has none in such a file.
    let is_text = || is_open(&lines[..at]) && !is_open(lines);
    is_plain && assignment.starts_with(&format!("{name}=")) && !is_text()
}

/// True if what follows these lines is in quotes, or in a here-document.
fn is_open(lines: &[String]) -> bool {
    let word =
        |line: &str| line.split_once("<<")?.1.trim_start_matches(['-', ' ']).split_whitespace().next().map(str::to_owned);
    let is_endless = |(at, word): (usize, String)| {
        let word = word.replace(['"', '\'', '\\'], "");
        lines[at..].iter().all(|line| line.trim() != word)
    };
    let mut documents = lines.iter().enumerate().filter_map(|(at, line)| Some((at, word(line)?)));
    shell_words::split(&lines.concat()).is_err() || documents.any(is_endless)
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
            // What else stands on a line is kept, and the last line counts.
            ("A=1\nMY_A=2\n", "A=/x\nMY_A=2\nB='/with space'\\''s'\n"),
            ("A=1; export A\n", "A=1; export A\nA=/x\nB='/with space'\\''s'\n"),
            ("A=1;C=2\nB=3\n", "A=1;C=2\nB='/with space'\\''s'\nA=/x\n"),
            ("A=1\nexport B=2 A=3\n", "A=1\nexport B=2 A=3\nA=/x\nB='/with space'\\''s'\n"),
            ("export A=1 # why\nB='1 2'", "export A=1 # why\nB='/with space'\\''s'\nA=/x\n"),
            ("A=1\\\nC\nB=2\n", "A=1\\\nC\nB='/with space'\\''s'\nA=/x\n"),
            (" export A=/x\nB='/with space'\\''s'", " export A=/x\nB='/with space'\\''s'"),
            ("A=1\r\nC=2\r\n", "A=/x\r\nC=2\r\nB='/with space'\\''s'\r\n"),
            // A value may have it in its text.
            ("C=\"-e A=1 -v /d\"\nB=2\n", "C=\"-e A=1 -v /d\"\nB='/with space'\\''s'\nA=/x\n"),
            ("C=--env=A=1\nC='B=2 x'\n", "C=--env=A=1\nC='B=2 x'\nA=/x\nB='/with space'\\''s'\n"),
            ("C='x\nA=1\n'\nB=2\n", "C='x\nA=1\n'\nB='/with space'\\''s'\nA=/x\n"),
            ("cat <<-'E'\nC\nA=/x\nE\nB=2\n", "cat <<-'E'\nC\nA=/x\nE\nB='/with space'\\''s'\nA=/x\n"),
        ];
        for (before, after) in cases {
            assert_eq!(with(before, &values), after, "{before:?}");
            assert_eq!(with(after, &values), after, "again");
        }
        // One that is not closed is none.
        for before in ["# it's\nC=it's\nA=1\n", "# it's\nC=it's\nA=/x\n"] {
            assert_eq!(with(before, &values[..1]), "# it's\nC=it's\nA=/x\n");
        }
    }
}
