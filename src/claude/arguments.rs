//! Claude's command line, as claude reads it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// True if claude runs without a person who talks to it: with `-p`, also among other letters, or `--print`.
pub(super) fn is_headless(arguments: &[OsString]) -> bool {
    let is_print = |word: &[u8]| {
        let letters = word.strip_prefix(b"-").and_then(|letters| letters.split(|&letter| letter == b'p').next());
        // Letters of other options may take the rest of the word as their value.
        word == b"--print"
            || letters.is_some_and(|letters| 1 + letters.len() < word.len() && letters.iter().all(|l| b"chv".contains(l)))
    };
    options(arguments).any(is_print)
}

/// The value of `option`, as `--option value` or `--option=value`: of several the last, and none behind a bare `--`.
pub(super) fn value_of<'a>(arguments: &'a [OsString], option: &str) -> Option<&'a OsStr> {
    let mut words = options(arguments);
    let mut last = None;
    while let Some(word) = words.next() {
        match word.strip_prefix(option.as_bytes()) {
            Some([]) => last = words.next().or(last),
            Some([b'=', value @ ..]) => last = Some(value),
            _ => {}
        }
    }
    last.map(OsStr::from_bytes)
}

/// The words up to a bare `--`, behind which there are no options.
pub(super) fn options(arguments: &[OsString]) -> impl Iterator<Item = &[u8]> {
    arguments.iter().map(|word| word.as_bytes()).take_while(|word| *word != b"--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_value_before_a_bare_dash_counts() {
        let cases = [
            ("--format a", Some("a")),
            ("--format=a --format b", Some("b")),
            ("--format a --format=b -p", Some("b")),
            ("--format=a --formats b --form c", Some("a")),
            ("--format=a=b", Some("a=b")),
            ("--format=", Some("")),
            ("--format", None),
            ("-p -- --format=a", None),
            ("--format a -- --format b", Some("a")),
            ("-p", None),
        ];
        for (line, value) in cases {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(value_of(&words, "--format"), value.map(OsStr::new), "{line}");
        }
    }
}
