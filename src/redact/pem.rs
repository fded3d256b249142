//! Private keys in PEM, whose lines are secret from BEGIN to END.

use std::ops::{Range, RangeInclusive};

use memchr::memmem;

use super::decode::is_escape_letter;

/// Words of which the first line has one.
pub(super) const WORDS: [&str; 2] = ["private key", "private-lines:"];

/// Least length of a line of base64 with something beside it.
const LEAST: usize = 16;

/// Lengths of a full line of base64, and how many lines behind a BEGIN such a line is masked, though others stand between.
const FULL: RangeInclusive<usize> = 40..=80;
const NEAR_LINES: u8 = 64;

/// The same right behind such a line, where a shorter one may be the last.
const JUST_SEEN: u8 = NEAR_LINES + 1;

/// Where a stream stands towards a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Key {
    #[default]
    Outside,
    /// Behind a line that ended with BEGIN.
    Begun,
    /// Behind a line of base64, which began at this column.
    Inside(usize),
    /// So many lines may still have some of a key that has begun, between others.
    Near(u8),
}

impl Key {
    /// True if what comes next is of a key.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Begun | Self::Inside(_))
    }
}

/// Marks what of `text` is secret. `key`: the state before it, and then behind it.
pub(super) fn find(text: &[u8], key: &mut Key, mut found: impl FnMut(Range<usize>)) {
    let mut start = 0;
    for line in text.split(|&byte| byte == b'\n') {
        *key = in_line(line, *key, |range| found(start + range.start..start + range.end));
        start += line.len() + 1;
    }
}

/// Marks what of `line` is secret, and returns the state behind it.
fn in_line(line: &[u8], mut key: Key, mut found: impl FnMut(Range<usize>)) -> Key {
    let mut from = 0;
    if key.is_open() {
        let end = marker(line, b"END");
        let body = &line[..end.as_ref().map_or(line.len(), |end| end.start)];
        let range = run_on(body).or_else(|| last_run(body, key));
        key = match (&range, &end) {
            (_, Some(_)) => Key::Outside,
            (Some(range), None) => Key::Inside(range.start),
            (None, None) if is_header(body, key == Key::Begun) => key,
            (None, None) if key == Key::Begun => Key::Near(NEAR_LINES),
            (None, None) => Key::Near(JUST_SEEN),
        };
        range.into_iter().for_each(&mut found);
        from = end.map_or(0, |end| end.end);
    }
    if let Key::Near(left) = key {
        let mut runs = full_runs(line, if left == JUST_SEEN { LEAST..=*FULL.end() } else { FULL }).peekable();
        let is_over = memmem::find(line, b"-----END").is_some() || memmem::find(line, b"-----BEGIN").is_some();
        let left = if runs.peek().is_some() { JUST_SEEN } else { left - 1 };
        key = if is_over || left == 0 { Key::Outside } else { Key::Near(left) };
        runs.for_each(&mut found);
    }
    // A line of JSON may have several keys.
    while let Some(begin) = marker(&line[from..], b"BEGIN") {
        from += begin.end;
        let range = run_on(&line[from..]);
        let rest = from + range.as_ref().map_or(0, |range| range.end);
        range.iter().for_each(|range| found(from + range.start..from + range.end));
        key = match range {
            _ if marker(&line[rest..], b"END").is_some() => Key::Outside,
            _ if !is_signs(&line[rest..]) => Key::Near(NEAR_LINES),
            Some(_) => Key::Inside(0),
            None => Key::Begun,
        };
        from = rest;
    }
    key
}

/// Place of a marker as `-----BEGIN RSA PRIVATE KEY-----`, from `word` on, which is BEGIN or END.
fn marker(line: &[u8], word: &[u8]) -> Option<Range<usize>> {
    if word == b"BEGIN" && line.starts_with(b"Private-Lines:") {
        return Some(0..line.len());
    }
    memmem::find_iter(line, word).find_map(|start| {
        let near = &line[start..line.len().min(start + 64)];
        let key = start + memmem::find(near, b"PRIVATE KEY").filter(|&at| at < 40)? + b"PRIVATE KEY".len();
        let rest = &line[key..];
        let rest = rest.strip_prefix(b" BLOCK").unwrap_or(rest);
        let dashes = rest.iter().skip_while(|&&byte| byte == b' ').take_while(|&&byte| byte == b'-').count();
        (dashes >= 4 && line[..start].ends_with(b"-") || line[..start].ends_with(b"- ")).then_some(start..key)
    })
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

/// True for what words, a path or `name=value` have not. `least`: bytes to each slash.
fn is_mixed(run: &[u8], least: usize) -> bool {
    let has_both = run.iter().any(u8::is_ascii_uppercase) && run.iter().any(u8::is_ascii_lowercase);
    let slashes = run.iter().filter(|&&byte| byte == b'/').count();
    let is_name = run.windows(2).any(|pair| pair[0] == b'=' && pair[1] != b'=');
    run.first().is_some_and(|&first| first != b'/')
        && slashes * least <= run.len()
        && !is_name
        && (has_both || run.len() > *FULL.end())
}

/// True if nothing but signs and escapes stand here, and no object or list is closed.
fn is_signs(rest: &[u8]) -> bool {
    let rest = rest.strip_prefix(b" BLOCK").unwrap_or(rest);
    let is_sign =
        |(at, byte): (usize, &u8)| !byte.is_ascii_alphanumeric() && !b"}]".contains(byte) || is_escape_letter(rest, at);
    rest.iter().enumerate().all(is_sign) || rest.starts_with(b": ")
}

/// Place of the base64 that `text` begins with, in one line: its lines end with blanks, escapes, or as strings of a list.
fn run_on(text: &[u8]) -> Option<Range<usize>> {
    let text_at = |at: usize| text.get(at).copied().unwrap_or(b'\n');
    let head = text.strip_prefix(b" BLOCK").unwrap_or(text).iter().take_while(|&&byte| b" -+".contains(&byte)).count();
    let head = head + if text.starts_with(b" BLOCK") { 6 } else { 0 };
    let start = head + separators(&text[head..]);
    let (mut at, mut end, mut longest) = (start, start, 0);
    loop {
        let length = text[at..].iter().take_while(|&&byte| is_base64(byte)).count();
        let run = &text[at..at + length];
        let behind = at + length + text[at + length..].iter().take_while(|&&byte| byte == b' ').count();
        let is_last = length < longest;
        let is_key = b"\"'".contains(&text_at(behind)) && text[behind + 1..].trim_ascii_start().starts_with(b":");
        let fits = match longest {
            0 => length >= LEAST && is_mixed(run, LEAST),
            _ => !is_key && (!is_last || b"\n\r\"'\\-".contains(&text_at(behind))),
        };
        if length == 0 || !fits {
            break;
        }
        (end, longest) = (at + length, longest.max(length));
        if is_last {
            break;
        }
        at = end + separators(&text[end..]);
    }
    (longest > 0).then_some(start..end)
}

/// Length of what stands between two lines of base64 in one: blanks, `\n`, `", "`, `" + "`.
fn separators(text: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let backslashes = rest.iter().take_while(|&&byte| byte == b'\\').count();
        let joint = rest.first().filter(|byte| b"\"'".contains(byte)).and_then(|quote| {
            let signs = rest[1..].iter().take_while(|byte| b" ,+".contains(byte)).count();
            (rest.get(1 + signs) == Some(quote)).then_some(signs + 2)
        });
        let tag = rest.iter().take(8).position(|&byte| byte == b'>').filter(|_| rest[0] == b'<').map(|end| end + 1);
        at += match rest.first() {
            Some(b' ' | b'\t' | b'\r') => 1,
            Some(b'\\') => backslashes + usize::from(rest.get(backslashes).is_some_and(|byte| b"nrt".contains(byte))),
            _ => match tag.or(joint) {
                Some(length) => length,
                None => return at,
            },
        };
    }
}

/// Place of the base64 at the end of a line of a key, which may be quoted, numbered, indented, or behind the prefix of a log.
fn last_run(body: &[u8], key: Key) -> Option<Range<usize>> {
    let is_escape = |at: usize| is_escape_letter(body, at);
    let last = (0..body.len()).rev().find(|&at| body[at].is_ascii_alphanumeric() && !is_escape(at))?;
    let run_before = |end: usize| body[..end].iter().rev().take_while(|&&byte| is_base64(byte)).count();
    let mut start = last + 1 - run_before(last + 1);
    let end = last + body[last..].iter().take_while(|&&byte| is_base64(byte)).count();
    start += usize::from(is_escape(start) || start == 0 && body[0] == b'+'); // of `\n`, of a diff
    while body[..start].ends_with(b" ") && run_before(start - 1) > 2 * LEAST {
        start -= 1 + run_before(start - 1);
    }
    let (run, before) = (body.get(start..end).filter(|run| !run.is_empty())?, &body[..start]);
    let is_named = body[end..].contains(&b':');
    let is_alone = !is_named && !before.iter().any(|&byte| byte.is_ascii_alphabetic() || byte == b':');
    let in_column = key == Key::Inside(start) && !is_named;
    let is_line = run.len() >= LEAST && is_mixed(run, LEAST) && before.iter().filter(|&&byte| byte == b'"').count() < 2;
    (is_line || is_alone && (run.len() >= LEAST || key != Key::Begun && run.iter().any(u8::is_ascii_alphabetic)) || in_column)
        .then_some(start..end)
}

/// Places of lines of base64, of such lengths, that stand alone, in a line, in a string, or at the end of a line.
fn full_runs(line: &[u8], lengths: RangeInclusive<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        at += line[at..].iter().position(|&byte| is_base64(byte))?;
        let start = at + usize::from(at == 0 && line[0] == b'+');
        at += line[at..].iter().take_while(|&&byte| is_base64(byte)).count();
        Some(start..at.max(start))
    })
    .filter(move |range| {
        let (run, before) = (&line[range.clone()], line[..range.start].last().copied().unwrap_or(b'+'));
        let is_alone =
            b"+\"'\t".contains(&before) || before == b' ' && (run.len() >= 60 || line[..range.start].trim_ascii().is_empty());
        let ends = line.get(range.end).is_none_or(|byte| b"\"'\\\r".contains(byte));
        let is_key = is_mixed(run.strip_prefix(b"/").unwrap_or(run), 12) && run.iter().any(u8::is_ascii_digit);
        lengths.contains(&run.len()) && is_alone && ends && is_key
    })
}

/// True for a header of a key, as `Version: 2`, or the empty line behind it. At the `top` of a key, the name of a file or a container, or
/// a number, may stand before it.
fn is_header(body: &[u8], top: bool) -> bool {
    let is_field = |at: usize| {
        let text = &body[at + body[at..].iter().take_while(|byte| !byte.is_ascii_alphabetic()).count()..];
        let name = text.iter().take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'-').count();
        name > 3 && text[name..].starts_with(b": ")
    };
    let is_letter = |at: usize| body[at].is_ascii_alphabetic() && !is_escape_letter(body, at);
    let ends_prefix = |at: &usize| b":-|".contains(&body[*at]);
    // `     4→`, `dir/k.asc-2-`, `web-1  | `
    let is_prefix = || {
        let text = body.trim_ascii();
        let is_word = !text.contains(&b' ') && (text.ends_with(b":") || text.ends_with(b"-"));
        is_word || text.ends_with(b"|") || !(0..body.len()).any(is_letter)
    };
    let is_behind_prefix = || (0..body.len().min(64)).filter(ends_prefix).any(|at| is_field(at + 1));
    !body.iter().any(u8::is_ascii_alphanumeric) || is_field(0) || top && (is_prefix() || is_behind_prefix())
}

#[cfg(test)]
mod tests;
