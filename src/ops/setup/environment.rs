//! The variables by which agents find the shared config dir, in a file of `NAME=value` lines.

use std::io::{self, Write};
use std::iter::zip;
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

/// `line`, which begins in the first column, in two: `export `, if it begins with that, and the rest.
fn bare(line: &str) -> (&'static str, &str) {
    let line = line.trim_end();
    line.strip_prefix("export ").map_or(("", line), |rest| ("export ", rest.trim_start()))
}

/// True if `line` may set the variable `name`.
fn mentions(line: &str, name: &str) -> bool {
    let is_part = |before: &str| before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    !is_comment(line) && line.match_indices(&format!("{name}=")).any(|(at, _)| !is_part(&line[..at]))
}

/// True if all of the line `at` is one assignment to the variable `name`, in whatever way the file is read.
fn is_its_own(lines: &[String], at: usize, name: &str) -> bool {
    let assignment = bare(&lines[at]).1;
    let words = shell_words::split(assignment).unwrap_or_default();
    let (Some(value), [word]) = (assignment.strip_prefix(&format!("{name}=")), &*words) else { return false };
    let is_plain_sign = |sign: char| sign.is_alphanumeric() || "/._-+:,@%=~ \"'\\".contains(sign);
    let is_plain = value.chars().all(is_plain_sign) && !value.ends_with('\\');
    let is_quoted = word.split_once('=').is_some_and(|(_, word)| value == shell_words::quote(word));
    // What stays open to the end is none: Docker has no quotes in such a file.
    let is_within = || zip(open(&lines[..at]), open(lines)).any(|(before, at_end)| before && !at_end);
    let is_continued =
        || lines[..at].last().is_some_and(|line| !is_comment(line) && line.trim_end().ends_with(['\\', '&', '|']));
    (is_plain || is_quoted) && !is_within() && !is_continued() && !end_a_block(&lines[at + 1..])
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// True if these lines end a block that they have not begun.
fn end_a_block(lines: &[String]) -> bool {
    let mut depth = 0;
    let commands = lines.iter().filter(|line| !is_comment(line)).flat_map(|line| line.split([';', '&', '|', '\n']));
    commands.into_iter().any(|command| {
        for (at, word) in command.split_whitespace().enumerate() {
            match word {
                "if" | "for" | "while" | "until" | "case" | "select" if at == 0 => depth += 1,
                "fi" | "done" | "esac" if at == 0 => depth -= 1,
                "}" | ")" => depth -= 1,
                word if word == "{" || word.ends_with('(') => depth += 1,
                _ => {}
            }
        }
        depth < 0
    })
}

/// True for each that is open behind these lines: quotes, backquotes, brackets, a here-document.
fn open(lines: &[String]) -> [bool; 4] {
    let word =
        |line: &str| line.split_once("<<")?.1.trim_start_matches(['-', ' ']).split_whitespace().next().map(str::to_owned);
    let is_endless = |(at, word): (usize, String)| {
        let word = word.replace(['"', '\'', '\\'], "");
        lines[at..].iter().all(|line| line.trim() != word)
    };
    let mut documents = lines.iter().enumerate().filter_map(|(at, line)| Some((at, word(line)?)));
    let text: String = lines.iter().filter(|line| !is_comment(line)).map(String::as_str).collect();
    let count = |sign: char| text.matches(sign).count();
    [shell_words::split(&text).is_err(), count('`') % 2 == 1, count('(') > count(')'), documents.any(is_endless)]
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
            ("export A=/x\nB='/with space'\\''s'", "export A=/x\nB='/with space'\\''s'"),
            ("A=1\r\nC=2\r\n", "A=/x\r\nC=2\r\nB='/with space'\\''s'\r\n"),
            ("A=\"1 2\"\necho done\n", "A=/x\necho done\nB='/with space'\\''s'\n"),
            ("A='a ) b'\n", "A=/x\nB='/with space'\\''s'\n"),
            // A value may have it in its text.
            ("C=\"-e A=1 -v /d\"\nB=2\n", "C=\"-e A=1 -v /d\"\nB='/with space'\\''s'\nA=/x\n"),
            ("C=--env=A=1\nC='B=2 x'\n", "C=--env=A=1\nC='B=2 x'\nA=/x\nB='/with space'\\''s'\n"),
            ("C='x\nA=1\n'\nB=2\n", "C='x\nA=1\n'\nB='/with space'\\''s'\nA=/x\n"),
            (
                "A=1\ncase $- in\n*i*) ;;\n  *) return;;\nesac\nif x; then y; fi\nf() { y; }\n",
                "A=/x\ncase $- in\n*i*) ;;\n  *) return;;\nesac\nif x; then y; fi\nf() { y; }\nB='/with space'\\''s'\n",
            ),
            ("# see (docs |\nA=1\n# it's)\n", "# see (docs |\nA=/x\n# it's)\nB='/with space'\\''s'\n"),
            ("cat <<-'E'\nC\nA=/x\nE\nB=2\n", "cat <<-'E'\nC\nA=/x\nE\nB='/with space'\\''s'\nA=/x\n"),
        ];
        for (before, after) in cases {
            assert_eq!(with(before, &values), after, "{before:?}");
            assert_eq!(with(after, &values), after, "again");
        }
        // Of a line that is a part of something, or may not be run, nothing is known.
        for before in [
            "A=`\necho /y\n`\n",
            "A=$(\necho /y\n)\n",
            "A=(\n/y\n)\n",
            "A=${Z:-\n/y}\n",
            "A=$'\\'\n/y'\n",
            "Z=$(\nA=1\necho $A)\n",
            "Z=`\nA=1\necho $A`\n",
            "env Z=1 \\\nA=1\n",
            "[ -n \"$Q\" ] &&\nA=1\n",
            " A=/x\n",
            "if [ -n \"$Q\" ]; then\n  export A=/y\nfi\n",
            "if [ -n \"$Q\" ]; then\nexport A=/x\nfi\n",
            "f() {\nA=/y\n}\nf\n",
            "if y; then\nA=1\necho if\nfi\n",
            "f() {\nA=/y\necho a b\n}\nf\n",
            "case x in\nx)\nA=/y\n;;\nesac\n",
            "(\nA=/y\n) >log\n",
            "# it's :(\ncat <<E\nA=1\nE\n",
        ] {
            let after = format!("{before}A=/x\n");
            assert_eq!((with(before, &values[..1]), with(&after, &values[..1])), (after.clone(), after));
        }
        // One that is not closed is none.
        for before in ["# it's\nC=it's\nA=1\n", "# it's\nC=it's\nA=/x\n"] {
            assert_eq!(with(before, &values[..1]), "# it's\nC=it's\nA=/x\n");
        }
    }
}
