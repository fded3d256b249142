//! Keeps a line of JSON one: masks stay inside its strings, and cut no escape.

use std::ops::Range;

use memchr::{memchr, memchr2};
use serde::de::IgnoredAny;

/// True if `line` begins as an object of JSON does, or is a list. `is_whole`: it ends here.
pub(super) fn is_json(line: &[u8], is_whole: bool) -> bool {
    let text = line.trim_ascii_start();
    let is_list = || match serde_json::from_slice::<IgnoredAny>(text) {
        Ok(_) => true,
        Err(error) => error.is_eof() && !is_whole,
    };
    text.strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii_start().starts_with(b"\""))
        || text.starts_with(b"[") && is_list()
}

/// Calls `found` for each string of JSON in `text` from `from` on, without its quotes. `is_inside`: `from` is in a string. Returns that
/// of the end.
pub(super) fn strings(text: &[u8], from: usize, mut is_inside: bool, mut found: impl FnMut(Range<usize>)) -> bool {
    let (mut at, mut start) = (from, from);
    while at < text.len() {
        if !is_inside {
            let Some(quote) = memchr(b'"', &text[at..]) else { break };
            (is_inside, start) = (true, at + quote + 1);
            at = start;
            continue;
        }
        match memchr2(b'"', b'\\', &text[at..]) {
            Some(place) if text[at + place] == b'\\' => at += place + 2,
            Some(place) => {
                found(start..at + place);
                (is_inside, at) = (false, at + place + 1);
            }
            None => break,
        }
    }
    if is_inside {
        found(start..text.len());
    }
    is_inside
}

/// True if `text` can stand between strings of JSON.
pub(super) fn is_structure(text: &[u8]) -> bool {
    let mut words = text.split(|byte| !byte.is_ascii_alphabetic());
    words.all(|word| [&b""[..], b"true", b"false", b"null", b"e", b"E"].contains(&word))
}

/// The escape in `text` that `at` would cut, or the pair of those of one character.
pub(super) fn escape_around(text: &[u8], at: usize) -> Option<Range<usize>> {
    let is_second = |at: usize| {
        let half = text.get(at..at + 4);
        half.is_some_and(|half| half[..3].eq_ignore_ascii_case(b"\\ud") && b"cdef".contains(&half[3].to_ascii_lowercase()))
    };
    (1..=at.min(11)).find_map(|back| {
        let start = at - back;
        let backslashes = text[..=start].iter().rev().take_while(|&&byte| byte == b'\\').count();
        let width = match text.get(start + 1) {
            Some(b'u') if is_second(start + 6) => 12,
            Some(b'u') if is_second(start) => return None,
            Some(b'u') => 6,
            _ => 2,
        };
        (backslashes % 2 == 1 && width > back).then(|| start..(start + width).min(text.len()))
    })
}
