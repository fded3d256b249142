//! The table: every form of a secret, with the words that it has in it. `tests/examples.rs` has examples of each.

mod contexts;
mod list;
mod tokens;

use std::ops::Range;
use std::sync::OnceLock;

use regex::bytes::{Regex, RegexBuilder};

use self::contexts::CONTEXTS;
use self::list::Line;
use self::tokens::TOKENS;
use super::decode::{ENCODED, ends_with_escape, is_escape_letter};
use super::ordinary::{Shape, is_keyword, is_login, is_number, is_ordinary, is_placeholder};
use super::span::{NEAR, Open};
use super::{headers, names, nested, values};

/// A form of secrets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    #[cfg_attr(not(test), expect(dead_code, reason = "for people, and for the examples"))]
    pub(super) name: &'static str,
    /// Words of which each secret of this form has one.
    pub(super) words: &'static [&'static str],
    pub(super) matcher: Matcher,
    /// Its place in [`ALL`], which sets it.
    number: usize,
}

/// Way to find a secret around a word.
#[derive(Clone, Copy, Debug)]
pub(super) enum Matcher {
    /// A name with the word in it, and a value.
    Name,
    /// A token that begins with the word, in its own case, and goes on as the pattern says.
    Token { rest: &'static str, kind: Kind },
    /// The pattern begins with the word, in any case; its group is the secret.
    Context(&'static str),
    /// As a context, and the secret is no ordinary value of a name.
    Value(&'static str),
    /// As a context, and the secret looks like a login.
    Login(&'static str),
    /// The last group of the pattern begins the secret, which goes on to the end of its line or string. A first one of two is the scheme
    /// of a login.
    Line(&'static str),
}

/// Properties of a token, beside its pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its first word is enough.
    Plain,
    /// The value has letters and digits.
    Mixed,
    /// As mixed, and it is no part of base64.
    Strict,
    /// As strict, with letters of both cases, and no name in code goes on behind it.
    Random,
    /// So many bytes before the word belong to it.
    Behind(usize),
    /// Base64, in which the word stands anywhere, and which may go on in the next line.
    Base64,
}

/// A run of signs without blanks and quotes, and the next digit in it: so that of many words in one long run, each is not looked at to
/// its end.
#[derive(Default)]
pub(super) struct Run {
    end: usize,
    digit: usize,
}

impl Run {
    /// True if a digit follows the place `at`, perhaps an encoded one. Places come in order.
    fn has_digit(&mut self, text: &[u8], at: usize) -> bool {
        let goes_on = |byte: &&u8| !byte.is_ascii_whitespace() && !b"\"'`".contains(byte) && !ENCODED.contains(byte);
        if at >= self.end {
            self.end = at + text[at..].iter().take_while(goes_on).count();
        }
        self.digit = self.digit.max(at);
        self.digit += text[self.digit..self.end].iter().take_while(|byte| !byte.is_ascii_digit()).count();
        self.digit < self.end || text.get(self.end).is_some_and(|byte| ENCODED.contains(byte))
    }
}

const fn rule(name: &'static str, words: &'static [&'static str], matcher: Matcher) -> Rule {
    Rule { name, words, matcher, number: 0 }
}

const fn token(name: &'static str, words: &'static [&'static str], rest: &'static str, kind: Kind) -> Rule {
    rule(name, words, Matcher::Token { rest, kind })
}

const COUNT: usize = CONTEXTS.len() + TOKENS.len();

/// All rules.
pub(super) static ALL: [Rule; COUNT] = {
    let (mut all, mut at) = ([CONTEXTS[0]; COUNT], 0);
    while at < COUNT {
        all[at] = if at < CONTEXTS.len() { CONTEXTS[at] } else { TOKENS[at - CONTEXTS.len()] };
        all[at].number = at;
        at += 1;
    }
    all
};

/// Their patterns, each compiled at its first use.
static REGEXES: [OnceLock<Option<Regex>>; COUNT] = [const { OnceLock::new() }; COUNT];

impl Rule {
    /// False if such a secret has a digit behind `word`, and there is none.
    pub(super) fn may_have_digit(&self, text: &[u8], word: &Range<usize>, run: &mut Run) -> bool {
        let needs_digit = matches!(self.matcher, Matcher::Token { kind: Kind::Mixed | Kind::Strict | Kind::Random, .. });
        !needs_digit || run.has_digit(text, word.start)
    }

    /// True if there may be such a secret at `word`, which is `ours` in any case, also in an encoding.
    pub(super) fn may_match(&self, text: &[u8], word: &Range<usize>, ours: &str) -> bool {
        match &self.matcher {
            Matcher::Name => {
                let behind_code = || {
                    let name = ends_part(text, word, ours).then(|| names::around(text, word))?;
                    names::is_behind_code(text, &name).then_some(name)
                };
                self.secret_name(text, word, ours).or_else(behind_code).is_some_and(|name| values::may_follow(text, &name))
                    || text[..word.start].ends_with(br"\-")
            }
            Matcher::Token { .. } => {
                let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.~+/=".contains(&byte);
                self.secret(text, word, ours).is_some()
                    || self.is_token_at(text, word, ours) && is_encoded(&text[word.end..], 128, is_part)
            }
            Matcher::Context(_) | Matcher::Value(_) | Matcher::Login(_) | Matcher::Line(_) => {
                self.secret(text, word, ours).is_some()
                    || starts_word(text, word) && is_encoded(&text[word.end..], 24, |_| true)
            }
        }
    }

    /// True if `rest`, the end of a text, begins with one of these tokens.
    pub(super) fn may_begin(&self, rest: &[u8]) -> bool {
        let begins = |word: &&str| rest.starts_with(word.as_bytes()) || rest.len() > 2 && word.as_bytes().starts_with(rest);
        matches!(self.matcher, Matcher::Token { .. }) && self.words.iter().any(begins)
    }

    /// The secrets that `word` says of.
    pub(super) fn secrets(&self, text: &[u8], word: &Range<usize>, ours: &str) -> Vec<(Range<usize>, Open)> {
        let mut found = self.secret_name(text, word, ours).map_or(Vec::new(), |name| values::of_name(text, name));
        if let Some((value, open)) = self.secret(text, word, ours) {
            let others = if headers::NAMES.contains(&ours) { headers::others_in_list(text, &value) } else { Vec::new() };
            found.extend(others.into_iter().map(|other| (other, Open::Line(None, Some(0)))));
            found.push((value, open));
        }
        found
    }

    /// The secret name around `word`, if this is the rule of names.
    pub(super) fn secret_name(&self, text: &[u8], word: &Range<usize>, ours: &str) -> Option<Range<usize>> {
        let is_end = matches!(self.matcher, Matcher::Name) && ends_part(text, word, ours);
        let name = is_end.then(|| names::around(text, word))?;
        // Of "tokens" of nobody, only what is below it counts.
        let is_plural = ours == "token" && name.end == word.end + 1 && nested::may_open(&text[name.end..]);
        let single = name.start..name.end - usize::from(is_plural);
        names::is_secret(&text[single]).then_some(name)
    }

    /// The secret in the value of a header's name, where no `:` stands between: as it would be behind one.
    fn in_header(&self, text: &[u8], word: &Range<usize>, ours: &str) -> Option<(Range<usize>, Open)> {
        let is_name = headers::NAMES.contains(&ours) && starts_word(text, word);
        let (value, open) = is_name.then(|| values::of_header(text, word))??;
        let header = [ours.as_bytes(), b": ", &text[value.clone()]].concat();
        let (secret, _) = self.secret(&header, &(0..ours.len()), ours)?;
        let place = |at: usize| value.start + at - ours.len() - 2;
        Some((place(secret.start)..place(secret.end), open))
    }

    /// The secret at `word`, if this is no rule of names.
    pub(super) fn secret(&self, text: &[u8], word: &Range<usize>, ours: &str) -> Option<(Range<usize>, Open)> {
        if let Some(found) = self.in_header(text, word, ours) {
            return Some(found);
        }
        let range = match &self.matcher {
            Matcher::Name => return None,
            Matcher::Token { kind, .. } => self.token(text, word, ours, *kind)?,
            Matcher::Line(_) => {
                let rest = starts_word(text, word).then(|| &text[word.start..])?;
                let captures = self.regex()?.captures(&rest[..rest.len().min(NEAR)])?;
                let value = captures.get(captures.len() - 1)?;
                let is_secret = captures.len() == 2
                    || headers::is_credentials(captures.get(1)?.as_bytes(), value.as_bytes(), &rest[value.end()..]);
                return is_secret.then(|| headers::to_end(text, word.start, word.start + value.start()));
            }
            Matcher::Context(_) | Matcher::Value(_) | Matcher::Login(_) => {
                let rest = starts_word(text, word).then(|| &text[word.start..])?;
                let rest = &rest[..rest.len().min(NEAR)];
                let part = |text: &[u8]| Some(self.regex()?.captures(text)?.iter().skip(1).flatten().next()?.range());
                let in_list = || Line::at(text, word).and_then(|line| Some(line.source(&part(&line.text)?)));
                let in_text = || {
                    // A password may go on behind what is looked at.
                    let is_cut = rest.len() == NEAR && self.words.contains(&"://");
                    let part = part(rest).or_else(|| is_cut.then(|| part(&[rest, b"@"].concat()))?)?;
                    let more = if part.end == NEAR { Open::Word.length(&text[word.start + NEAR..]) } else { 0 };
                    Some(word.start + part.start..word.start + part.end + more)
                };
                let range = in_list().or_else(in_text)?;
                let value = &text[range.clone()];
                let is_secret = !is_placeholder(value) && !is_number(value) && !is_keyword(value);
                (is_secret && self.fits(value)).then_some(range)?
            }
        };
        let is_base64 = matches!(self.matcher, Matcher::Token { kind: Kind::Base64, .. });
        Some((range, if is_base64 { Open::Base64 } else { Open::Word }))
    }

    /// True if `value` is one of this rule's, beyond what its pattern says.
    fn fits(&self, value: &[u8]) -> bool {
        let end = value.iter().rposition(|byte| !b",;)]}".contains(byte)).map_or(0, |last| last + 1);
        let shape = Shape {
            name: b"authorization",
            is_quoted: false,
            is_literal: false,
            is_assigned: false,
            is_text: false,
            goes_on: end < value.len(),
        };
        match self.matcher {
            Matcher::Value(_) => !is_ordinary(&value[..end], shape),
            Matcher::Login(_) => is_login(&value[..end]),
            _ => true,
        }
    }

    fn token(&self, text: &[u8], word: &Range<usize>, ours: &str, kind: Kind) -> Option<Range<usize>> {
        let rest = self.is_token_at(text, word, ours).then(|| &text[word.end..])?;
        let near = self.regex()?.find(&rest[..rest.len().min(NEAR)])?.end();
        let length = if near == NEAR { near + Open::Word.length(&rest[near..]) } else { near };
        let start = if let Kind::Behind(before) = kind { word.start - before } else { word.end };
        let (token, next) = (&text[start..word.end + length], rest.get(length));
        let is_mixed = token.iter().any(u8::is_ascii_digit) && token.iter().any(u8::is_ascii_alphabetic);
        let is_base64 = next.is_some_and(|&byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
            || word.start > 0 && b"+/".contains(&text[word.start - 1]);
        match kind {
            Kind::Plain | Kind::Base64 => Some(()),
            Kind::Mixed | Kind::Behind(_) => is_mixed.then_some(()),
            Kind::Random => {
                let has_both = token.iter().any(u8::is_ascii_uppercase) && token.iter().any(u8::is_ascii_lowercase);
                let is_code = next.is_some_and(|byte| b"_.(-".contains(byte))
                    && rest.get(length + 1).is_some_and(|byte| !byte.is_ascii_whitespace());
                (is_mixed && has_both && !is_base64 && !is_code).then_some(())
            }
            Kind::Strict => (!is_base64 && (is_mixed || token.iter().all(u8::is_ascii_digit))).then_some(()),
        }?;
        // Not the dot that ends a sentence.
        let dots = token.iter().rev().take_while(|&&byte| byte == b'.').count();
        Some(start..start + token.len() - dots)
    }

    /// True if `word` stands in its own case, and begins a token.
    fn is_token_at(&self, text: &[u8], word: &Range<usize>, ours: &str) -> bool {
        *ours.as_bytes() == text[word.clone()]
            && match self.matcher {
                Matcher::Token { kind: Kind::Behind(before), .. } => {
                    word.start >= before && text[word.start - before..word.start].iter().all(u8::is_ascii_alphanumeric)
                }
                Matcher::Token { kind: Kind::Base64, .. } => true,
                _ => starts_word(text, word),
            }
    }

    /// The compiled pattern.
    fn regex(&self) -> Option<&Regex> {
        let pattern = match &self.matcher {
            Matcher::Name => return None,
            Matcher::Token { rest, .. } => rest,
            Matcher::Context(pattern) | Matcher::Value(pattern) | Matcher::Login(pattern) | Matcher::Line(pattern) => pattern,
        };
        let is_context = !matches!(self.matcher, Matcher::Token { .. });
        let compile =
            || RegexBuilder::new(&format!(r"\A(?:{pattern})")).unicode(false).case_insensitive(is_context).build().ok();
        REGEXES[self.number].get_or_init(compile).as_ref()
    }
}

/// True if something is encoded in the first `near` bytes of `text`, behind nothing but what `passes`, and on the same line.
fn is_encoded(text: &[u8], near: usize, passes: impl Fn(u8) -> bool) -> bool {
    let near = &text[..text.len().min(near)];
    let sign = near.iter().position(|&byte| ENCODED.contains(&byte) || !passes(byte) || byte == b'\n');
    sign.is_some_and(|at| ENCODED.contains(&near[at]) && !near[at..].starts_with(b"\\n"))
}

/// False if letters behind `word` make another word of it, as in `input_tokens`, which is most of what there is.
fn ends_part(text: &[u8], word: &Range<usize>, ours: &str) -> bool {
    match text.get(word.end) {
        Some(b's') if ours == "token" => !nested::is_count(&text[word.end + 1..]),
        Some(b's') => !text.get(word.end + 1).is_some_and(u8::is_ascii_lowercase),
        Some(byte) if byte.is_ascii_lowercase() => ours.starts_with("pass"),
        _ => true,
    }
}

/// True if no letter or digit stands before `word`, or it begins with neither.
fn starts_word(text: &[u8], word: &Range<usize>) -> bool {
    let before = word.start.checked_sub(1).map(|at| text[at]);
    !text[word.start].is_ascii_alphanumeric()
        || before.is_none_or(|byte| !byte.is_ascii_alphanumeric())
        || is_escape_letter(text, word.start - 1)
        || ends_encoded(&text[..word.start])
}

/// True if `text` ends with an encoded character or a colour: `%3D`, `\u003d`, `\x3d`, `\012`, `ESC [ 3 1 m`.
fn ends_encoded(text: &[u8]) -> bool {
    let has_hex = |digits: usize, before: &[u8]| {
        text.len()
            .checked_sub(digits)
            .is_some_and(|at| text[..at].ends_with(before) && text[at..].iter().all(u8::is_ascii_hexdigit))
    };
    let colour = || {
        let (last, rest) = text.split_last()?;
        let parameters = rest.iter().rev().take(64).take_while(|&&byte| byte.is_ascii_digit() || byte == b';').count();
        Some(last.is_ascii_alphabetic() && rest[..rest.len() - parameters].ends_with(b"["))
    };
    let octal = || {
        let digits = text.iter().rev().take(3).take_while(|byte| (b'0'..b'8').contains(*byte)).count();
        digits > 0 && text[..text.len() - digits].ends_with(b"\\")
    };
    has_hex(2, b"%") || has_hex(4, b"\\u") || has_hex(2, b"\\x") || octal() || colour() == Some(true) || ends_with_escape(text)
}
