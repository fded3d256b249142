//! Masks secrets in a stream of bytes, in bounded memory and wherever the stream is cut into pieces: what looks like a
//! token of Anthropic's or GitHub's, the value of a variable whose name says that it is a secret, and the values that such
//! variables have in our own environment, as they are and as they look inside JSON strings.

use std::ffi::OsString;
use std::iter::repeat_n;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use memchr::memrchr;

/// What stands in the place of a secret.
const MASK: &[u8] = b"***";

/// Names of secret variables, in upper, lower or mixed case: one of these, then letters, and somewhere in them one of `KINDS`.
const OWNERS: [&[u8]; 7] = [b"FORGE", b"VAULT", b"GH", b"GITHUB", b"CLAW", b"CLAUDE", b"ANTHROPIC"];
const KINDS: [&[u8]; 4] = [b"TOKEN", b"PASS", b"KEY", b"SECRET"];

/// How tokens begin that show by themselves what they are.
const TOKENS: [&[u8]; 7] = [b"sk-ant-", b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"];

/// No variable has a longer name; what is longer is no name.
const LONGEST_NAME: usize = 128;

/// Shorter values are too ordinary to be masked wherever they stand, and so are plain numbers: some variables with such
/// names count tokens.
const SHORTEST_VALUE: usize = 6;

/// What to mask.
#[derive(Debug)]
pub struct Secrets {
    /// Finds whatever a secret can begin with.
    finder: AhoCorasick,
    /// Values from our own environment, the longest first.
    values: Vec<Vec<u8>>,
    longest: usize,
}

/// One stream on its way through.
#[derive(Debug)]
pub struct Masker {
    secrets: Arc<Secrets>,
    /// The end of what came, if it can be the beginning of a secret.
    held: Vec<u8>,
    /// The last byte before those.
    previous: Option<u8>,
    state: State,
    line: Line,
}

/// What the line that we are in begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Empty,
    /// A brace or a bracket: it is JSON, and is to stay so.
    Json,
    Text,
}

impl Line {
    /// The line after `bytes` of it, or of it and the next ones.
    fn after(self, bytes: &[u8]) -> Self {
        let (line, rest) = match memrchr(b'\n', bytes) {
            Some(end) => (Self::Empty, &bytes[end + 1..]),
            None => (self, bytes),
        };
        match (line, rest.first()) {
            (Self::Empty, Some(b'{' | b'[')) => Self::Json,
            (Self::Empty, Some(_)) => Self::Text,
            _ => line,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Copying,
    /// In the rest of a token.
    Token,
    /// In the value of a variable. Of `backslashes`, not yet written, it shows behind them what they belong to.
    Value {
        opened_by: Option<Quote>,
        backslashes: usize,
        masked: bool,
    },
}

/// A quotation mark: plain, or escaped, as it is in a JSON string (or in one in one).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quote {
    mark: u8,
    backslashes: usize,
}

impl Quote {
    /// Whether `mark` behind so many backslashes ends what this mark has opened, or the JSON string around it.
    fn is_closed_by(self, mark: u8, mut backslashes: usize, line: Line) -> bool {
        match (self.mark, mark) {
            // Nothing is escaped between single marks. In JSON, a plain double mark ends the string that they are in.
            (b'\'', b'\'') => true,
            (b'\'', b'"') => line == Line::Json && backslashes.is_multiple_of(2),
            (b'"', b'"') => {
                // Each string around takes away half of the backslashes. An even number of them is none: a plain mark.
                let mut around = self.backslashes;
                while !backslashes.is_multiple_of(2) && around > 0 {
                    (backslashes, around) = (backslashes / 2, around / 2);
                }
                backslashes.is_multiple_of(2)
            }
            _ => false,
        }
    }
}

/// What stands at a place where a secret can begin.
enum Found {
    Nothing,
    /// What comes next will tell.
    Unfinished,
    /// A value of ours, of this length.
    Value(usize),
    /// A token: this much of it is shown.
    Token(usize),
    /// A variable, up to its value.
    Variable(usize, Option<Quote>),
}

impl Secrets {
    /// The secrets of a process with this environment.
    ///
    /// # Errors
    /// The values are too many or too large to be looked for.
    pub fn new(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, aho_corasick::BuildError> {
        let mut values = Vec::new();
        for (name, value) in environment {
            let value = value.as_bytes().trim_ascii();
            let is_number = value.iter().all(u8::is_ascii_digit);
            if is_secret_name(name.as_bytes()) && value.len() >= SHORTEST_VALUE && !is_number {
                values.push(value.to_vec());
                // As in a JSON string, and as in one that is quoted in another.
                let once = escaped(value);
                values.push(escaped(&once));
                values.push(once);
            }
        }
        values.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        values.dedup();
        let longest = beginnings(&values).map(<[u8]>::len).max().unwrap_or_default();
        let finder = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .match_kind(MatchKind::LeftmostFirst)
            .build(beginnings(&values))?;
        Ok(Self { finder, longest, values })
    }

    /// From where on, not before `from`, `bytes` can be the first part of what a secret begins with.
    fn beginning_at_the_end(&self, bytes: &[u8], from: usize) -> usize {
        let first = from.max((bytes.len() + 1).saturating_sub(self.longest));
        // As the finder does, it minds no case.
        let is_begun = |at: &usize| {
            let end = &bytes[*at..];
            beginnings(&self.values).any(|text| text.len() > end.len() && text[..end.len()].eq_ignore_ascii_case(end))
        };
        (first..bytes.len()).find(is_begun).unwrap_or(bytes.len())
    }

    /// What stands at the beginning of `bytes`, behind the byte `previous`. `complete`: nothing comes behind them.
    fn recognise(&self, previous: Option<u8>, bytes: &[u8], complete: bool, line: Line) -> Found {
        let mut known = self.values.iter().map(Vec::as_slice).chain(TOKENS);
        if !complete && known.any(|text| is_first_part(bytes, text)) {
            return Found::Unfinished;
        }
        if let Some(value) = self.values.iter().find(|value| bytes.starts_with(value)) {
            return Found::Value(value.len());
        }
        if let Some(token) = TOKENS.into_iter().find(|token| bytes.starts_with(token)) {
            return match bytes.get(token.len()) {
                Some(&next) if is_of_token(next) => Found::Token(token.len()),
                None if !complete => Found::Unfinished,
                _ => Found::Nothing,
            };
        }
        // In the middle of a word in lower case, as in "highlight_keys", nobody's name begins.
        if bytes[0].is_ascii_lowercase() && previous.is_some_and(|byte| byte.is_ascii_alphanumeric()) {
            return Found::Nothing;
        }
        variable(bytes, complete, line)
    }
}

/// All that a secret can begin with.
fn beginnings(values: &[Vec<u8>]) -> impl Iterator<Item = &[u8]> {
    values.iter().map(Vec::as_slice).chain(OWNERS).chain(TOKENS)
}

/// Whether `bytes` are some of `text`, from its beginning, but not all of it.
fn is_first_part(bytes: &[u8], text: &[u8]) -> bool {
    text.len() > bytes.len() && text.starts_with(bytes)
}

/// Looks at `NAME=`, `NAME = "`, `"NAME":"`, also where the quotation marks are escaped.
fn variable(bytes: &[u8], complete: bool, line: Line) -> Found {
    let ran_out = if complete { Found::Nothing } else { Found::Unfinished };
    let name = bytes.iter().take(LONGEST_NAME + 1).take_while(|&&byte| is_of_name(byte)).count();
    if name > LONGEST_NAME {
        return Found::Nothing;
    }
    if name < bytes.len() && !is_secret_name(&bytes[..name]) {
        return Found::Nothing;
    }
    let Some((after_name, closed_by)) = quote(bytes, name) else { return ran_out };
    let sign = after_name + spaces(&bytes[after_name..]);
    let is_colon = match bytes.get(sign) {
        None => return ran_out,
        Some(b'=') => false,
        Some(b':') if closed_by.is_some() => true,
        Some(_) => return Found::Nothing,
    };
    let value = sign + 1 + spaces(&bytes[sign + 1..]);
    let Some((value, opened_by)) = quote(bytes, value) else { return ran_out };
    let ends_a_string = |quote: Quote| quote.mark == b'"' && quote.backslashes.is_multiple_of(2);
    let is_value = if is_colon {
        // Behind a name in marks, a number or null is no secret, and other marks are those of a string around.
        opened_by.is_some() && (opened_by == closed_by || line != Line::Json)
    } else {
        line != Line::Json || !opened_by.is_some_and(ends_a_string)
    };
    if is_value { Found::Variable(value, opened_by) } else { Found::Nothing }
}

/// More backslashes escape nothing that anybody writes.
const MOST_BACKSLASHES: usize = 8;

/// What is behind a quotation mark at `at`, and the mark; or `at`, and no mark. `None`: the bytes ran out.
fn quote(bytes: &[u8], at: usize) -> Option<(usize, Option<Quote>)> {
    let backslashes = bytes[at..].iter().take(MOST_BACKSLASHES).take_while(|&&byte| byte == b'\\').count();
    Some(match *bytes.get(at + backslashes)? {
        mark @ (b'"' | b'\'') => (at + backslashes + 1, Some(Quote { mark, backslashes })),
        _ => (at, None),
    })
}

fn spaces(bytes: &[u8]) -> usize {
    bytes.iter().take(2).take_while(|&&byte| byte == b' ').count()
}

fn is_secret_name(name: &[u8]) -> bool {
    OWNERS.into_iter().any(|owner| {
        name.split_at_checked(owner.len()).is_some_and(|(first, rest)| {
            let says = |kind: &[u8]| rest.windows(kind.len()).any(|part| part.eq_ignore_ascii_case(kind));
            first.eq_ignore_ascii_case(owner) && KINDS.into_iter().any(says)
        })
    })
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn escaped(value: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(value);
    let json = serde_json::to_string(&text).unwrap_or_default();
    json.trim_start_matches('"').strip_suffix('"').unwrap_or_default().as_bytes().to_vec()
}

impl Masker {
    /// A stream that nothing has come through yet.
    pub fn new(secrets: Arc<Secrets>) -> Self {
        Self { secrets, held: Vec::new(), previous: None, state: State::Copying, line: Line::Empty }
    }

    /// Takes the next bytes, and writes what can be said of them to `out`. What it keeps back is shorter than the longest
    /// secret, or than a name with its quotation marks.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.held.is_empty() {
            self.held = self.run(bytes, false, out);
        } else {
            let mut all = std::mem::take(&mut self.held);
            all.extend_from_slice(bytes);
            self.held = self.run(&all, false, out);
        }
    }

    /// The stream has ended: writes what was kept back.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.held);
        self.run(&held, true, out);
        if let State::Value { backslashes, .. } = self.state {
            out.extend(repeat_n(b'\\', backslashes));
        }
        self.state = State::Copying;
    }

    /// Gives back what cannot be decided yet.
    fn run(&mut self, bytes: &[u8], complete: bool, out: &mut Vec<u8>) -> Vec<u8> {
        let secrets = Arc::clone(&self.secrets);
        let undecided = |from| if complete { bytes.len() } else { secrets.beginning_at_the_end(bytes, from) };
        let mut open = undecided(0);
        let mut at = 0; // all before is dealt with
        while at < bytes.len() {
            if open < at {
                open = undecided(at);
            }
            let rest = &bytes[at..];
            let length = match self.state {
                State::Copying => match self.copy(rest, open - at, complete, out) {
                    Copied::Until(length) => length,
                    Copied::AllButFrom(length) => {
                        self.pass(&rest[..length]);
                        return rest[length..].to_vec();
                    }
                },
                State::Token => self.skip_token(rest),
                State::Value { opened_by, backslashes, masked } => self.skip_value(rest, opened_by, backslashes, masked, out),
            };
            self.pass(&rest[..length]);
            at += length;
        }
        Vec::new()
    }

    /// `bytes` are dealt with.
    fn pass(&mut self, bytes: &[u8]) {
        self.line = self.line.after(bytes);
        self.previous = bytes.last().copied().or(self.previous);
    }

    /// Copies what comes before the next place where a secret can begin, and deals with that. What begins at `open`, or
    /// later, cannot be told yet.
    fn copy(&mut self, bytes: &[u8], open: usize, complete: bool, out: &mut Vec<u8>) -> Copied {
        let start = match self.secrets.finder.find(bytes).map(|found| found.start()) {
            Some(start) if start <= open => start,
            _ => {
                out.extend_from_slice(&bytes[..open]);
                return Copied::AllButFrom(open);
            }
        };
        let (before, rest) = bytes.split_at(start);
        out.extend_from_slice(before);
        let previous = before.last().copied().or(self.previous);
        let length = match self.secrets.recognise(previous, rest, complete, self.line.after(before)) {
            Found::Unfinished => return Copied::AllButFrom(start),
            Found::Nothing => {
                out.push(rest[0]);
                1
            }
            Found::Value(length) => {
                out.extend_from_slice(MASK);
                length
            }
            Found::Token(length) => {
                out.extend_from_slice(&rest[..length]);
                out.extend_from_slice(MASK);
                self.state = State::Token;
                length
            }
            Found::Variable(length, opened_by) => {
                out.extend_from_slice(&rest[..length]);
                self.state = State::Value { opened_by, backslashes: 0, masked: false };
                length
            }
        };
        Copied::Until(start + length)
    }

    fn skip_token(&mut self, bytes: &[u8]) -> usize {
        let length = bytes.iter().take_while(|&&byte| is_of_token(byte)).count();
        if length < bytes.len() {
            self.state = State::Copying;
        }
        length
    }

    fn skip_value(
        &mut self,
        bytes: &[u8],
        opened_by: Option<Quote>,
        mut backslashes: usize,
        mut masked: bool,
        out: &mut Vec<u8>,
    ) -> usize {
        for (at, &byte) in bytes.iter().enumerate() {
            if byte == b'\\' {
                backslashes += 1;
                continue;
            }
            let ends = match opened_by {
                Some(quote) => byte == b'\n' || quote.is_closed_by(byte, backslashes, self.line),
                None => {
                    let line_end_in_json = backslashes > 0 && matches!(byte, b'n' | b'r' | b't');
                    byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'`') || line_end_in_json
                }
            };
            if ends {
                out.extend(repeat_n(b'\\', backslashes));
                self.state = State::Copying;
                return at;
            }
            if !masked {
                out.extend_from_slice(MASK);
            }
            (backslashes, masked) = (0, true);
        }
        self.state = State::Value { opened_by, backslashes, masked };
        bytes.len()
    }
}

/// How far a copy came.
enum Copied {
    /// So many bytes are dealt with; a secret may have begun behind them.
    Until(usize),
    /// From here on nothing can be said yet.
    AllButFrom(usize),
}

#[cfg(test)]
mod tests;
