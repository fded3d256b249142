//! Values of headers, which go on to the end of their line, or of the string that they stand in.

use std::ops::Range;

use memchr::memmem;

use super::names;
use super::ordinary::is_login;
use super::span::{NEAR, Open};

/// Ends of names of headers whose values have rules of their own.
pub(super) const NAMES: [&str; 2] = ["authorization", "cookie"];

/// Schemes with one word behind them.
const SINGLE: [&str; 4] = ["bearer", "basic", "token", "negotiate"];

/// The value at `value` of the header whose name ends with the word at `word`, to its end.
pub(super) fn to_end(text: &[u8], word: usize, value: usize) -> (Range<usize>, Open) {
    let name = names::around(text, &(word..word)).start;
    let open = Open::Line(quote_around(text, name, value), string_around(text, name));
    let length = text[value..value + open.length(&text[value..])].trim_ascii_end().len();
    (value..value + length, open)
}

/// The other strings of the list in which `value` is the first, or its end: `["a=b; Path=/", "c=d"]`.
pub(super) fn others_in_list(text: &[u8], value: &Range<usize>) -> Vec<Range<usize>> {
    let near = &text[value.start.saturating_sub(NEAR)..value.start];
    let opening = near.iter().rposition(|byte| b"\"'".contains(byte)).filter(|&at| near[..at].trim_ascii_end().ends_with(b"["));
    let Some(quote) = opening.map(|at| near[at]) else { return Vec::new() };
    let mut others = Vec::new();
    let mut end = value.end;
    while let Some(next) = text[end..].strip_prefix(&[quote]).and_then(|rest| rest.trim_ascii_start().strip_prefix(b","))
        && let Some(string) = next.trim_ascii_start().strip_prefix(&[quote])
    {
        let start = text.len() - string.len();
        end = start + Open::Quoted(quote, 0).length(string);
        others.push(start..end);
    }
    others
}

/// True if `word`, behind this scheme, begins a login: it looks like one, or like a parameter.
pub(super) fn is_credentials(scheme: &[u8], word: &[u8], rest: &[u8]) -> bool {
    let is_single = SINGLE.iter().any(|single| single.as_bytes().eq_ignore_ascii_case(scheme));
    let is_name = word.ends_with(b"=") && rest.first().is_some_and(|byte| b"\"\\".contains(byte));
    !is_single && !is_name && (word.contains(&b'"') || is_login(word.strip_suffix(b",").unwrap_or(word)))
}

/// The quote that opens a header's value, or the header, and the backslashes that it has.
fn quote_around(text: &[u8], name: usize, value: usize) -> Option<(u8, usize)> {
    let is_quote = |at: &usize| b"\"'`".contains(&text[*at]);
    let before = name.checked_sub(1).filter(is_quote);
    let mut between = (name..value).filter(is_quote);
    let opens = match (before, between.next(), between.next_back()) {
        (None, Some(opens), None) | (_, _, Some(opens)) | (Some(opens), None, _) => Some(opens),
        _ => None,
    };
    opens.map(|at| (text[at], text[..at].iter().rev().take_while(|&&byte| byte == b'\\').count()))
}

/// Backslashes of the quote that opens the string in which the header stands.
pub(super) fn string_around(text: &[u8], name: usize) -> Option<usize> {
    let near = name.saturating_sub(NEAR);
    let before = &text[near..name];
    let line = memchr::memrchr(b'\n', before).map_or(0, |end| end + 1);
    // Quotes of nested strings that are decoded tell nothing.
    let is_json = near > 0 || [&b"{\""[..], b"[\""].iter().any(|start| memmem::find(before, start).is_some());
    innermost(before[line..].strip_suffix(b"\"").unwrap_or(&before[line..])).or(is_json.then_some(0))
}

/// Backslashes of the quote that opens the innermost string which `before` does not close.
fn innermost(before: &[u8]) -> Option<usize> {
    let mut open = Vec::new();
    for at in memchr::memchr_iter(b'"', before) {
        let backslashes = before[..at].iter().rev().take_while(|&&byte| byte == b'\\').count();
        open.truncate(open.partition_point(|of_outer| *of_outer <= backslashes));
        if open.last() == Some(&backslashes) {
            open.pop();
        } else {
            open.push(backslashes);
        }
    }
    open.pop()
}
