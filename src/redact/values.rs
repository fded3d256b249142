//! The value behind a secret name: `NAME=value`, `"name": "value"`, `--name value` and their like.

use std::ops::Range;

use super::ordinary::{Shape, is_ordinary, is_random};
use super::span::{NEAR, Open};
use super::{headers, names, nested};

mod pair;
mod sign;

use self::sign::Sign;
pub(super) use self::sign::may_follow;

/// A text and a place in it, on the way from a name to its value.
#[derive(Clone)]
struct Scan<'a> {
    text: &'a [u8],
    name: Range<usize>,
    at: usize,
    /// Quote around the name.
    quote: Option<u8>,
    sign: Sign,
    is_spaced: bool,
}

/// The secret values of `name` in `text`: its own, or those below it.
pub(super) fn of_name(text: &[u8], name: Range<usize>) -> Vec<(Range<usize>, Open)> {
    let Some(scan) = Scan::behind(text, name) else { return Vec::new() };
    let opens = scan.peek().filter(|_| ![Sign::Compares, Sign::Comma].contains(&scan.sign));
    let first = || text[scan.at + 1..].trim_ascii_start().first().copied().filter(|byte| b"\"'".contains(byte));
    let quote = match opens {
        Some(b'{') => scan.quote,
        Some(b'[') => scan.quote.or_else(first),
        _ => None,
    };
    match quote {
        Some(quote) => nested::in_json(text, scan.name(), quote, scan.at),
        None => {
            let value = scan.value();
            let next = value.as_ref().and_then(|(value, _)| scan.behind_change(value.end)?.value());
            value.into_iter().chain(next).collect()
        }
    }
}

/// The value of the header whose name ends with `word` in `text`, where it is a member of a pair, the text of a tag, or a flag's.
pub(super) fn of_header(text: &[u8], word: &Range<usize>) -> Option<(Range<usize>, Open)> {
    let name = names::around(text, word);
    let next = text[name.end..].iter().find(|byte| !b"\"'`".contains(byte));
    let scan = (name.end == word.end && !next.is_some_and(|byte| b":=".contains(byte))).then(|| Scan::behind(text, name))??;
    let quote = scan.peek().filter(|byte| b"\"'`".contains(byte));
    let rest = &text[scan.at..text.len().min(scan.at + NEAR)];
    let end = |from: usize, ends: &[u8]| {
        let end = rest[from..].iter().position(|byte| ends.contains(byte) || b"\n\"'`\\".contains(byte));
        end.map_or(rest.len(), |end| from + end)
    };
    let length = match (scan.sign, quote) {
        (Sign::Pair | Sign::Space, Some(quote)) => return Some((scan.quoted(quote)?, Open::Quoted(quote, 0))),
        (Sign::Pair, None) => end(0, b",}"),
        (Sign::Space, None) => {
            // Behind a scheme, another word.
            let scheme = rest.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
            end(scheme + usize::from(rest.get(scheme) == Some(&b' ')), b" \t\r")
        }
        (Sign::Tag, _) => memchr::memchr2(b'<', b'\n', rest).filter(|&end| rest[end] == b'<')?,
        _ => return None,
    };
    Some((scan.at..scan.at + length, Open::Word))
}

impl<'a> Scan<'a> {
    /// At the value behind `name`.
    fn behind(text: &'a [u8], name: Range<usize>) -> Option<Self> {
        let mut scan = Scan { text, at: name.end, name, quote: None, sign: Sign::Equals, is_spaced: false };
        scan.quote = scan.peek().filter(|byte| b"\"'`".contains(byte));
        scan.at += usize::from(scan.quote.is_some());
        let pair = scan.pair();
        scan.at += usize::from((scan.quote.is_some() || scan.is_bracketed()) && scan.peek() == Some(b']'));
        scan.skip_emphasis();
        let spaces = scan.skip_spaces(64);
        (scan.sign, scan.at) = pair.map_or_else(|| scan.sign(spaces), |place| Some((Sign::Pair, place)))?;
        scan.is_spaced = spaces > 0;
        scan.skip_emphasis();
        scan.skip_spaces(16);
        scan.skip_opener();
        scan.skip_prefix();
        // The default in `${TOKEN:-default}`.
        scan.at += usize::from(scan.before().ends_with(b"${") && scan.peek().is_some_and(|byte| b"-=+?".contains(&byte)));
        Some(scan)
    }

    /// At the new value behind the old one, which ends at `end`: `"old" -> "new"`.
    fn behind_change(&self, end: usize) -> Option<Self> {
        let rest = self.text.get(end + 1..)?.trim_ascii_start().strip_prefix(b"->")?.trim_ascii_start();
        rest.starts_with(b"\"").then(|| Self { at: self.text.len() - rest.len(), ..self.clone() })
    }

    /// The value, if it is secret.
    fn value(&self) -> Option<(Range<usize>, Open)> {
        let quote = self.peek().filter(|byte| b"\"'`".contains(byte));
        let range = match quote {
            Some(quote) => self.quoted(quote)?,
            None => self.bare()?,
        };
        // A longer value is judged by its beginning.
        let value = &self.text[range.start..range.end.min(range.start + 512)];
        let is_shell = self.sign == Sign::Equals && !self.is_spaced && names::is_loud(self.name());
        let is_header = self.sign == Sign::Colon && self.name().contains(&b'-');
        let goes_on = self.text[range.end..].trim_ascii_start().first().is_some_and(|byte| b",;){>".contains(byte));
        let shape = Shape {
            name: self.name(),
            is_quoted: quote.is_some() || self.sign == Sign::Tag && value.contains(&b' '),
            is_literal: quote.is_none() && (is_shell || is_header || self.is_bracketed()),
            is_assigned: is_shell && quote != Some(b'`'),
            is_text: quote.is_some() || !goes_on && (self.sign == Sign::Colon || !self.is_spaced),
            goes_on,
        };
        let open = quote.map_or(Open::Word, |quote| Open::Quoted(quote, 0));
        // TOKEN=`command`
        let is_command = quote == Some(b'`')
            && self.sign == Sign::Equals
            && !self.is_spaced
            && (value.contains(&b' ') || is_shell && !is_random(value));
        let is_compared = self.sign == Sign::Compares && !is_random(value);
        // `token => "text"` may be a function.
        let is_function = self.sign == Sign::Arrow && !self.is_key() && !is_random(value);
        let end = if range.len() >= NEAR { range.end + Open::Word.length(&self.text[range.end..]) } else { range.end };
        let is_shown =
            is_compared || is_function || is_command || self.sign == Sign::Comma && !self.fits_list(value, range.end);
        (!is_shown && !is_ordinary(value, shape)).then_some((range.start..end, open))
    }

    /// True if the name before an arrow can be no argument of a function.
    fn is_key(&self) -> bool {
        let name = self.name();
        let is_symbol = self.quote.is_some() || self.is_bracketed() || self.text[..self.name.start].ends_with(b":");
        is_symbol || names::is_loud(name) || names::is_password(name)
    }

    /// True for `[NAME] => value`, as PHP prints an array.
    fn is_bracketed(&self) -> bool {
        self.before().ends_with(b"[") && self.text[self.name.end..].starts_with(b"] =>")
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn name(&self) -> &[u8] {
        &self.text[self.name.clone()]
    }

    /// Text of the line before the name.
    fn before(&self) -> &[u8] {
        let before = &self.text[..self.name.start];
        let before = &before[before.len().saturating_sub(512)..];
        memchr::memrchr(b'\n', before).map_or(before, |end| &before[end + 1..])
    }

    fn skip_spaces(&mut self, most: usize) -> usize {
        let spaces = self.text[self.at..].iter().take(most).take_while(|&&byte| byte == b' ' || byte == b'\t').count();
        self.at += spaces;
        spaces
    }

    /// Skips the end of what Markdown has in bold: `**Password:** …`, `**API Key**: …`, ``**`TOKEN`**: …``.
    fn skip_emphasis(&mut self) {
        let before = self.before();
        let before = self.quote.and_then(|quote| before.strip_suffix(&[quote])).unwrap_or(before);
        if before.ends_with(b"*") {
            self.at += self.text[self.at..].iter().take(3).take_while(|&&byte| byte == b'*').count();
        }
    }

    /// Skips what stands before a quote in some languages: `b"…"`, `$'…'`, `#"…"#`.
    fn skip_prefix(&mut self) {
        let rest = &self.text[self.at..];
        let letters = rest.iter().take(2).take_while(|byte| b"bBrRfFuU$@".contains(byte)).count();
        let hashes = rest[letters..].iter().take(8).take_while(|&&byte| byte == b'#').count();
        if rest.get(letters + hashes).is_some_and(|byte| b"\"'".contains(byte)) {
            self.at += letters + hashes;
        }
    }

    /// The value in `quote`, at which the scan stands. Without a closing quote it ends at any, but for those that are escaped.
    fn quoted(&self, quote: u8) -> Option<Range<usize>> {
        let start = self.at + 1;
        let rest = &self.text[start..];
        if self.sign == Sign::Colon && self.quote.is_none() && self.is_in_string(quote) && ends_string(quote, rest) {
            return None;
        }
        let mut end = 0;
        while let Some(found) = memchr::memchr2(quote, b'\n', &rest[end..]) {
            let at = end + found;
            let backslashes = rest[..at].iter().rev().take_while(|&&byte| byte == b'\\').count();
            if rest[at] == b'\n' {
                break;
            }
            // A quote in the quotes of a shell.
            let joints: [&[u8]; 2] = [br#"'"'"'"#, br"'\''"];
            if let Some(joint) = joints.iter().find(|joint| rest[at..].starts_with(joint)) {
                end = at + joint.len();
                continue;
            }
            if backslashes % 2 == 0 {
                return Some(start..start + self.in_string(quote, &rest[..at]));
            }
            end = at + 1;
        }
        let line = rest[end..].iter().position(|byte| b"\"'\n".contains(byte)).map_or(rest.len(), |line| end + line);
        Some(start..start + line)
    }

    /// Length of `value` up to the end of the string in which it stands: what is in `'` there may not be closed.
    fn in_string(&self, quote: u8, value: &[u8]) -> usize {
        let string = Some(quote).filter(|&quote| quote != b'"' && value.contains(&b'"'));
        let string = string.and_then(|_| headers::string_around(self.text, self.name.start));
        string.map_or(value.len(), |most| Open::Line(None, Some(most)).length(value))
    }

    /// True if the name stands in a string that `quote` would close: `print("token: " + …)`.
    fn is_in_string(&self, quote: u8) -> bool {
        self.before().iter().filter(|&&byte| byte == quote).count() % 2 == 1
    }

    /// The value without quotes.
    fn bare(&self) -> Option<Range<usize>> {
        let rest = &self.text[self.at..];
        let is_tag = self.sign == Sign::Tag;
        let near = &rest[..rest.len().min(NEAR)];
        let is_escaped = |at: usize| {
            at > 0 && near[at - 1] == b'\\' && near.get(at).is_some_and(|byte| b" !#$&()*,;<>?[]^{}~".contains(byte))
        };
        let ends = |at: usize| match near[at] {
            b'\\' => at == 0 || !is_escaped(at + 1),
            b'"' | b'\'' | b'`' => true,
            b'<' => is_tag,
            b' ' | b'\t' if is_tag => false,
            byte => byte.is_ascii_whitespace() && !is_escaped(at),
        };
        let whole = (0..near.len()).find(|&at| ends(at)).unwrap_or(near.len());
        let value = &rest[..without_tail(&rest[..whole])];
        let value = value.strip_suffix(b"]]>").filter(|_| is_tag).unwrap_or(value);
        let next = rest[whole..].iter().copied().find(|&byte| byte != b' ' && byte != b'\t');
        let is_last = next.is_none_or(|byte| b"\n\r\"'`\\#,})]|;&".contains(&byte)) || value.len() < whole;
        let fits = match self.sign {
            Sign::Equals if self.is_spaced => self.fits_assignment(value, is_last),
            Sign::Equals => self.fits_argument(value),
            Sign::Arrow if self.is_bracketed() => !value.contains(&b'(') && !value.eq_ignore_ascii_case(b"array"),
            Sign::Arrow => is_last && self.fits_arrow(value),
            Sign::Compares | Sign::Pair | Sign::Comma => false,
            Sign::Colon => self.fits_colon(value, is_last),
            Sign::Space => self.fits_word(value),
            Sign::Tag => rest.get(whole) == Some(&b'<'),
        };
        fits.then_some(self.at..self.at + value.len())
    }

    /// `name = value`: in code, a word is a variable.
    fn fits_assignment(&self, value: &[u8], is_last: bool) -> bool {
        let is_word = value.iter().all(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
        let is_setting = is_last && names::is_password(self.name()) && !self.before().iter().any(u8::is_ascii_alphabetic);
        !is_word || names::is_loud(self.name()) || is_setting || value.len() >= 16 && !value.contains(&b'_')
    }

    /// `name=value`: behind `(` or `, ` in code, a word is a variable.
    fn fits_argument(&self, value: &[u8]) -> bool {
        let is_argument = self.before().ends_with(b"(") || self.before().ends_with(b", ");
        let is_word = value.iter().all(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
        names::is_loud(self.name()) || !(is_argument && is_word)
    }

    /// `name: value`: a sentence, unless it stands at the start of a line or of a field, or looks like nothing else.
    fn fits_colon(&self, value: &[u8], is_last: bool) -> bool {
        let is_verdict = [&b"PASS"[..], b"Pass"].contains(&self.name()); // of a test
        let is_tight = self.text[self.at - 1] == b':';
        let word = self.before().rsplit(|byte| b" \t\"'=".contains(byte)).next().unwrap_or_default();
        let is_kind = word.starts_with(b"arn:"); // `arn:aws:…:secret:NAME`
        let is_header = names::is_loud(self.name()) || self.name().contains(&b'-') || self.name().contains(&b'_');
        !is_verdict && !is_kind && (is_last && (self.starts() || is_tight && is_header) || is_random(value))
    }

    /// `name => value`: of no function's argument, and no name of a variable.
    fn fits_arrow(&self, value: &[u8]) -> bool {
        let is_name = self.is_key() || self.name().contains(&b'_');
        is_name && value.len() >= 16 && is_random(value) && !value.iter().any(|byte| b"(.".contains(byte))
    }

    /// `--name value`.
    fn fits_word(&self, value: &[u8]) -> bool {
        let is_name = value.iter().all(|byte| byte.is_ascii_uppercase() || b"_-.]".contains(byte));
        let words: [&[u8]; 22] = [
            b"option",
            b"options",
            b"flag",
            b"flags",
            b"argument",
            b"parameter",
            b"is",
            b"to",
            b"or",
            b"and",
            b"for",
            b"from",
            b"in",
            b"with",
            b"if",
            b"when",
            b"value",
            b"instead",
            b"was",
            b"can",
            b"are",
            b"on",
        ];
        !is_name && !words.contains(&value) && !value.starts_with(b"-")
    }

    /// True if the name begins a line, a string or a field.
    fn starts(&self) -> bool {
        let before = self.before().trim_ascii_end();
        let has_space = before.len() < self.before().len();
        let is_first = !before.iter().any(u8::is_ascii_alphabetic);
        let last = before.last().copied().unwrap_or(b'\n');
        is_first
            || b"{[(,;|".contains(&last)
            || !has_space && b"\"'`&?./".contains(&last)
            || before.ends_with(b"-H")
            || before.ends_with(b"**")
    }
}

/// True if `rest`, behind a `quote` that may open a value, goes on as behind one that ends a string: `" + token`. In JSON, what is decoded
/// there may open one: `{"text":"password: \"hunter2\""}`.
fn ends_string(quote: u8, rest: &[u8]) -> bool {
    let word = memchr::memchr2(quote, b'\n', rest).unwrap_or(rest.len());
    // Behind the quote that closes a value, no word begins.
    let is_joined = rest.get(word + 1).is_some_and(|next| next.is_ascii_alphanumeric() || b"\\_$".contains(next));
    word < 6
        || rest[0].is_ascii_whitespace()
        || b"+,.;:)]}>%&|?*".contains(&rest[0])
        || [&b"<<"[..], b"=="].iter().any(|sign| rest.starts_with(sign))
        || is_joined
}

/// Length of `value` without what ends an expression, and what follows in a list: `a;b=c`, `a&b=c`, `a, b`, `a)`.
fn without_tail(value: &[u8]) -> usize {
    let is_next = |rest: &[u8]| {
        let name = rest.iter().take_while(|&&byte| names::is_part(byte) || byte == b'.').count();
        name > 0 && rest.get(name).is_some_and(|byte| b"=:".contains(byte))
    };
    let is_end = |&at: &usize| b";&|,".contains(&value[at]) && is_next(&value[at + 1..]);
    let mut end = (1..value.len()).find(is_end).unwrap_or(value.len());
    let is_open = |close: u8, open: u8, part: &[u8]| part.ends_with(&[close]) && !part.contains(&open);
    loop {
        let part = &value[..end];
        let trims = part.last().is_some_and(|byte| b",;|&".contains(byte))
            || is_open(b')', b'(', part)
            || is_open(b']', b'[', part)
            || is_open(b'}', b'{', part)
            || part.ends_with(b"):");
        if !trims {
            return end;
        }
        end -= 1;
    }
}
