//! Masks secrets in a stream of bytes: tokens of Anthropic and GitHub, values of variables whose name says that they are
//! secret, and the values of such variables in our own environment. Memory is bounded, and the output does not depend on
//! where reads split. A byte is held only as long as a secret may begin with it.

mod rules;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use aho_corasick::{AhoCorasick, MatchKind};
use anyhow::Result;
use memchr::memrchr;
use regex::bytes::Regex;

use rules::{BACKSLASHES, LONGEST_HEAD, LONGEST_NAME, MOST_BACKSLASHES, OWNERS, RULES, TOKENS, Value, name_length};

/// Replacement for a secret.
const MASK: &[u8] = b"***";

/// Largest piece of the stream that is matched at once.
const PIECE: usize = 64 << 10;

/// Compiled rules, and the values of secret variables.
#[derive(Debug)]
pub struct Secrets {
    /// Finds heads; its groups are those of `RULES`.
    heads: Regex,
    /// Finds a head that may go on behind the end of a piece.
    unfinished_head: Regex,
    values: Vec<Regex>,
    /// Values from the environment.
    known: Vec<Vec<u8>>,
    /// Finds `known` and, with higher pattern ids, `TOKENS`.
    literals: AhoCorasick,
    /// Length of the longest of `prefixes`.
    longest: usize,
}

/// A stream while it is masked.
#[derive(Debug)]
pub struct Masker {
    secrets: Arc<Secrets>,
    /// Bytes that are not drained yet, after at most one that is: the patterns look behind by one byte.
    buffer: Vec<u8>,
    drained: usize,
    /// Value that the stream is in, and true if its mask is written.
    value: Option<(Value, bool)>,
    line: Line,
}

/// Kind of a line, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Empty,
    Json,
    Text,
}

impl Line {
    /// Kind of the line after `bytes`, which may contain ends of lines.
    fn after(self, bytes: &[u8]) -> Self {
        let rest = match memrchr(b'\n', bytes) {
            Some(end) => &bytes[end + 1..],
            None if self == Self::Empty => bytes,
            None => return self,
        };
        match rest.first() {
            None => Self::Empty,
            Some(b'{' | b'[') => Self::Json,
            Some(_) => Self::Text,
        }
    }
}

/// Kind of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A value from the environment.
    Known,
    /// The prefix of a token.
    Token,
    /// Index in `RULES`.
    Variable(usize),
}

#[derive(Clone, Copy, Debug)]
struct Match {
    start: usize,
    end: usize,
    kind: Kind,
}

impl Secrets {
    /// Those of our own environment, compiled once.
    ///
    /// # Errors
    /// As [`Secrets::new`].
    pub(crate) fn of_environment() -> Result<Arc<Self>> {
        static OURS: OnceLock<Arc<Secrets>> = OnceLock::new();
        match OURS.get() {
            Some(secrets) => Ok(Arc::clone(secrets)),
            None => Self::new(std::env::vars_os()).map(|secrets| Arc::clone(OURS.get_or_init(|| Arc::new(secrets)))),
        }
    }

    /// Compiles the rules, and collects the secrets of a process with this environment.
    ///
    /// # Errors
    /// The values in the environment are too large to be compiled.
    pub fn new(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self> {
        let heads = rules::heads()?;
        let mut known = Vec::new();
        for (name, value) in environment {
            let value = value.as_bytes().trim_ascii();
            let assignment = [name.as_bytes(), b"="].concat();
            let is_secret = heads.find(&assignment).is_some_and(|head| head.range() == (0..assignment.len()));
            if is_secret && is_distinctive(value) {
                // As in a JSON string, and as in one that is quoted in another.
                let once = escaped(value);
                known.extend([value.to_vec(), escaped(&once), once]);
            }
        }
        known.sort();
        known.dedup();
        let texts = known.iter().map(Vec::as_slice).chain(TOKENS.map(str::as_bytes));
        let literals = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts)?;
        let longest = prefixes(&known).map(<[u8]>::len).max().unwrap_or_default();
        Ok(Self { heads, unfinished_head: rules::unfinished_head()?, values: rules::values()?, known, literals, longest })
    }

    /// First position, not before `from`, at which a secret may begin that goes on behind the end of `bytes`.
    fn undecided_from(&self, bytes: &[u8], from: usize) -> usize {
        let is_prefix = |at: &usize| {
            let end = &bytes[*at..];
            prefixes(&self.known).any(|text| text.len() > end.len() && text[..end.len()].eq_ignore_ascii_case(end))
        };
        let window = |length| from.max(bytes.len().saturating_sub(length));
        let prefix = (window(self.longest)..bytes.len()).find(is_prefix).unwrap_or(bytes.len());
        let head = self.unfinished_head.find_at(bytes, window(LONGEST_HEAD)).map_or(bytes.len(), |head| head.start());
        let first = prefix.min(head);
        // A `_` before an owner belongs to the match.
        if first > from && bytes[first - 1] == b'_' { first - 1 } else { first }
    }

    fn find_literal(&self, bytes: &[u8], from: usize) -> Option<Match> {
        let found = self.literals.find(aho_corasick::Input::new(bytes).range(from..))?;
        let kind = if found.pattern().as_usize() < self.known.len() { Kind::Known } else { Kind::Token };
        Some(Match { start: found.start(), end: found.end(), kind })
    }

    fn find_head(&self, bytes: &[u8], from: usize) -> Option<Match> {
        let groups = self.heads.captures_at(bytes, from)?;
        let whole = groups.get(0)?;
        let rule = groups.iter().skip(1).position(|group| group.is_some())?;
        Some(Match { start: whole.start(), end: whole.end(), kind: Kind::Variable(rule) })
    }
}

/// Literals that a secret can begin with.
fn prefixes(known: &[Vec<u8>]) -> impl Iterator<Item = &[u8]> {
    known.iter().map(Vec::as_slice).chain(OWNERS.into_iter().chain(TOKENS).map(str::as_bytes))
}

/// False if a value is too ordinary to be masked everywhere: short, a number, an existing path.
fn is_distinctive(value: &[u8]) -> bool {
    let is_path = || value.starts_with(b"/") && Path::new(OsStr::from_bytes(value)).exists();
    value.len() >= 6 && !value.iter().all(u8::is_ascii_digit) && !is_path()
}

fn escaped(value: &[u8]) -> Vec<u8> {
    let json = serde_json::Value::from(String::from_utf8_lossy(value)).to_string();
    json[1..json.len() - 1].into()
}

impl Masker {
    /// A masker at the beginning of a stream.
    pub fn new(secrets: Arc<Secrets>) -> Self {
        Self { secrets, buffer: Vec::new(), drained: 0, value: None, line: Line::Empty }
    }

    /// Appends `bytes`, masked, to `out`, except for an end that may be the beginning of a secret.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for piece in bytes.chunks(PIECE) {
            self.buffer.extend_from_slice(piece);
            self.drain(false, out);
        }
    }

    /// Appends the rest to `out`, at the end of the stream.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        self.drain(true, out);
    }

    fn drain(&mut self, is_last: bool, out: &mut Vec<u8>) {
        let (secrets, mut bytes) = (Arc::clone(&self.secrets), std::mem::take(&mut self.buffer));
        let undecided_from = |from| if is_last { bytes.len() } else { secrets.undecided_from(&bytes, from) };
        let mut at = self.drained;
        let (mut literal, mut head) = (secrets.find_literal(&bytes, at), secrets.find_head(&bytes, at));
        let mut undecided = undecided_from(at);
        loop {
            at += self.mask_value(&bytes[at..], is_last, out);
            if self.value.is_some() {
                break;
            }
            if literal.is_some_and(|literal| literal.start < at) {
                literal = secrets.find_literal(&bytes, at);
            }
            if head.is_some_and(|head| head.start < at) {
                head = secrets.find_head(&bytes, at);
            }
            if undecided < at {
                undecided = undecided_from(at);
            }
            // `_ghp_abc_key=` is a token, not a name.
            let is_token =
                |head: &Match| literal.is_some_and(|found| found.kind == Kind::Token && found.start == head.start + 1);
            let matches =
                [literal, head.filter(|head| !is_token(head))].into_iter().flatten().filter(|found| found.start < undecided);
            let Some(found) = matches.min_by_key(|found| found.start) else { break };
            self.show(&bytes[at..found.start], out);
            let text = &bytes[found.start..found.end];
            at = found.start + self.mask(found.kind, text, out);
            let excess = name_length(text).saturating_sub(LONGEST_NAME);
            if excess > 0 {
                head = secrets.find_head(&bytes, found.start + excess); // the end of a long name may be a name
            }
        }
        if self.value.is_none() {
            self.show(&bytes[at..undecided], out);
            at = undecided;
        }
        self.drained = at.min(1);
        bytes.drain(..at - self.drained);
        self.buffer = bytes;
    }

    fn show(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(bytes);
        self.line = self.line.after(bytes);
    }

    /// Masks a known value, or shows the head of another. Returns the number of bytes of `text`, the match, that are drained.
    fn mask(&mut self, kind: Kind, text: &[u8], out: &mut Vec<u8>) -> usize {
        let is_json = self.line.after(&text[..1]) == Line::Json;
        let value = match kind {
            Kind::Known => {
                out.extend_from_slice(MASK);
                self.line = self.line.after(text);
                return text.len();
            }
            Kind::Token => Some(Value::Word),
            Kind::Variable(_) if name_length(text) > LONGEST_NAME => None,
            Kind::Variable(rule) if is_json => RULES[rule].in_json,
            Kind::Variable(rule) => Some(RULES[rule].value),
        };
        self.value = value.map(|value| (value, false));
        let shown = if value.is_some() { text.len() } else { 1 };
        self.show(&text[..shown], out);
        shown
    }

    /// Masks what of a value is in `rest`, and returns its length. Backslashes at the end wait for what follows them.
    fn mask_value(&mut self, rest: &[u8], is_last: bool, out: &mut Vec<u8>) -> usize {
        let Some((value, is_masked)) = self.value else { return 0 };
        let end = self.secrets.values[value as usize].find(rest).map_or(0, |found| found.end());
        let backslashes = rest[end..].iter().take_while(|&&byte| byte == b'\\').count();
        let is_open = !is_last && end + backslashes == rest.len();
        let length = end + backslashes.saturating_sub(MOST_BACKSLASHES).next_multiple_of(BACKSLASHES);
        if length > 0 && !is_masked {
            out.extend_from_slice(MASK);
        }
        self.value = is_open.then_some((value, is_masked || length > 0));
        length
    }
}

#[cfg(test)]
mod tests;
