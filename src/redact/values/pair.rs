//! A name and its value as two members of an object, or two attributes of an element: `"name": "NAME", "value": "…"`,
//! `<add value="…" key="NAME"/>`.

use std::ops::Range;

use super::super::names;
use super::super::span::NEAR;
use super::Scan;

/// Most members from the one to the other.
const MOST: usize = 8;

impl Scan<'_> {
    /// Place of the value of a name, behind which the scan stands: in a member behind it, or before it.
    pub(super) fn pair(&self) -> Option<usize> {
        self.value_behind().or_else(|| self.value_before())
    }

    /// The first member behind the name is its value, if it says so; another one, if the name's own key says what that is.
    fn value_behind(&self) -> Option<usize> {
        let is_named = names_next(self.text, &self.name);
        let most = if is_named { MOST } else { usize::from(self.quote.is_some()) };
        let mut at = self.at;
        for _ in 0..most {
            let (key, value) = member(self.text, at)?;
            if is_value(&self.text[key]) {
                return Some(value);
            }
            at = end_of_value(self.text, value)?;
        }
        None
    }

    /// The same, where the value stands before the name, in quotes.
    fn value_before(&self) -> Option<usize> {
        self.quote.filter(|_| names_next(self.text, &self.name))?;
        let before = self.before();
        let line = self.name.start - before.len();
        let opener = line + before.iter().position(|byte| b"<{".contains(byte))?;
        let mut ends = (5..before.len()).rev().filter(|&end| is_value(&before[..end]));
        ends.find_map(|end| {
            let key = names::around(self.text, &(line + end..line + end)).start;
            let start = (key > opener).then(|| key - usize::from(is_quote(self.text.get(key - 1))))?;
            let (key, value) = member_at(self.text, start)?;
            let end = end_of_value(self.text, value).filter(|&end| is_quote(self.text.get(value)) && end > value + 2)?;
            (is_value(&self.text[key]) && self.leads_here(end)).then_some(value)
        })
    }

    /// True if the name is the value of a member behind `at`.
    fn leads_here(&self, mut at: usize) -> bool {
        (0..MOST)
            .map_while(|_| {
                let (_, value) = member(self.text, at)?;
                at = end_of_value(self.text, value)?;
                Some(value + 1)
            })
            .any(|value| value == self.name.start)
    }
}

/// True if `name` is the value of a key that says so, also in an encoding, or the end of it: `"name": "NAME"`, `"Name": "/a/NAME"`.
pub(super) fn names_next(text: &[u8], name: &Range<usize>) -> bool {
    let trimmed = |text: &[u8]| text.iter().rposition(|byte| !b" \t\r\n\\\"'".contains(byte)).map_or(0, |last| last + 1);
    let before = &text[name.start.saturating_sub(names::LONGEST)..name.start];
    let is_path = |byte: &&u8| before.ends_with(b"/") && (names::is_part(**byte) || **byte == b'/');
    let before = &before[..before.len() - before.iter().rev().take_while(is_path).count()];
    let before = &before[..trimmed(before)];
    let key = before.strip_suffix(b":").or_else(|| before.strip_suffix(b"=")).map(|key| &key[..trimmed(key)]);
    key.is_some_and(|key| ends_with(key, b"name") || ends_with(key, b"key"))
}

fn is_value(key: &[u8]) -> bool {
    ends_with(key, b"value")
}

/// True if `text` ends so, in any case.
fn ends_with(text: &[u8], end: &[u8]) -> bool {
    text.len().checked_sub(end.len()).is_some_and(|at| text[at..].eq_ignore_ascii_case(end))
}

fn is_quote(byte: Option<&u8>) -> bool {
    byte.is_some_and(|byte| b"\"'".contains(byte))
}

/// Key of the member behind the comma and the blanks at `at`, if any, and place of its value.
fn member(text: &[u8], at: usize) -> Option<(Range<usize>, usize)> {
    let signs = text.get(at..)?.iter().take(64).take_while(|&&byte| byte == b',' || byte.is_ascii_whitespace()).count();
    member_at(text, at + signs)
}

/// Key of the member that begins at `at`, and place of its value.
fn member_at(text: &[u8], at: usize) -> Option<(Range<usize>, usize)> {
    let blanks = |at: usize| at + text[at..].iter().take(16).take_while(|byte| byte.is_ascii_whitespace()).count();
    let quote = usize::from(is_quote(text.get(at)));
    let start = at + quote;
    let end = start + text[start..].iter().take(names::LONGEST).take_while(|&&byte| names::is_part(byte)).count();
    let is_key = end > start && (quote == 0 || text.get(end) == text.get(at));
    let sign = is_key.then(|| blanks(end + quote)).filter(|&sign| text.get(sign).is_some_and(|byte| b":=".contains(byte)))?;
    Some((start..end, blanks(sign + 1)))
}

/// Place behind the string or the word at `at`.
fn end_of_value(text: &[u8], at: usize) -> Option<usize> {
    let near = &text[at..text.len().min(at + NEAR)];
    match *near.first()? {
        quote @ (b'"' | b'\'') => {
            let is_end = |end: &usize| {
                near[*end] == quote && near[..*end].iter().rev().take_while(|&&byte| byte == b'\\').count() % 2 == 0
            };
            (1..near.len()).find(is_end).map(|end| at + end + 1)
        }
        _ => near.iter().position(|byte| byte.is_ascii_whitespace() || b",}>\"'".contains(byte)).map(|end| at + end),
    }
}
