//! A command line that is written as a list of strings: `["mysql", "-u", "root"]`.

use std::ops::Range;

use super::NEAR;

/// A command line, and the place of each of its bytes in the text.
pub(super) struct Line {
    pub(super) text: Vec<u8>,
    places: Vec<usize>,
}

impl Line {
    /// The list whose first string ends with `word`, or a little behind it.
    pub(super) fn at(text: &[u8], word: &Range<usize>) -> Option<Self> {
        let name = text[word.end..].iter().take(16).take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'.').count();
        let first = word.end + name;
        let quote = *text.get(first).filter(|byte| b"\"'".contains(byte))?;
        // Only from the first string on, or the second: each of many would be looked at to the end.
        let before = before_string(&text[..word.start], quote)?;
        let second = || before_string(before.strip_suffix(b",")?.strip_suffix(&[quote])?, quote);
        [Some(before), second()]
            .into_iter()
            .flatten()
            .find(|before| before.ends_with(b"[") || before.ends_with(b"(") || before.ends_with(b"{"))?;
        let mut line = Self { text: text[word.start..first].to_vec(), places: (word.start..first).collect() };
        let mut at = first + 1;
        while line.text.len() < NEAR
            && let Some(start) = next(text.get(at..).unwrap_or_default(), quote)
        {
            line.push(b' ', at);
            at += start;
            while let Some(&byte) = text.get(at).filter(|byte| **byte != quote && **byte != b'\n') {
                // What stands in one string is one word.
                line.push(if byte.is_ascii_whitespace() { b'_' } else { byte }, at);
                at += 1;
            }
            at += 1;
        }
        (at > first + 1).then_some(line)
    }

    fn push(&mut self, byte: u8, place: usize) {
        self.text.push(byte);
        self.places.push(place);
    }

    /// Place of a part in the text.
    pub(super) fn source(&self, part: &Range<usize>) -> Range<usize> {
        self.places[part.start]..self.places[part.end - 1] + 1
    }
}

/// What stands before the string that `head` ends in.
fn before_string(head: &[u8], quote: u8) -> Option<&[u8]> {
    let path = head.iter().rev().take(64).take_while(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(byte)).count();
    Some(head[..head.len() - path].strip_suffix(&[quote])?.trim_ascii_end())
}

/// Beginning of the string in `quote` that follows in the list.
fn next(rest: &[u8], quote: u8) -> Option<usize> {
    let blanks = |rest: &[u8]| rest.iter().take(16).take_while(|&&byte| byte == b' ').count();
    let comma = blanks(rest);
    let rest = rest.get(comma..)?.strip_prefix(b",")?;
    let before = blanks(rest);
    (rest.get(before) == Some(&quote)).then_some(comma + before + 2)
}
