//! Finds the secrets in a line: by the table of rules, by the environment, and by what the settings file adds.

use std::ffi::OsString;
use std::ops::{ControlFlow, Range};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use regex::bytes::{Regex, RegexBuilder};

use super::decode::{Decoded, ENCODED, Syntax};
use super::finder::{Finder, Meaning};
use super::known::Known;
use super::pem::{self, Key};
use super::rules::{self, Rule, Run};
use super::span::{Open, Span};
use super::wrapped::Block;
use super::{environment, json, names, values};

/// Encodings that may hide a secret where no other word tells, beside those of single bytes.
const ENCODINGS: [&str; 2] = [r"\u0", r":\\"];

/// Length at the end of a value in which another secret may begin.
const END: usize = 64;

/// Encodings of single characters.
const SYNTAXES: [Syntax; 4] = [Syntax::Backslash, Syntax::Percent, Syntax::Html, Syntax::Escape];

/// Longest encoded character.
const LONGEST: usize = 12;

/// Beginnings of secrets that only what stands behind them tells: of a URL, of an element of XML, of a login's options.
const BEGUN: [&str; 3] = [
    r#"://(?:[^\s/:@"'`<>]*:([^\s/@"'`<>]*)|([^\s/:@"'`<>]{20,}))"#,
    r"<[\w.:-]*(?:pass|secret|token|key|pwd|cred|jwt|authorization|cookie)[\w.:-]*>([^<\n]*)",
    r"login\s(?:[^\n|;&]*?\s)?-p[ =]?([^\n|;&]*)",
];

/// Deepest nesting of strings that is looked into: at each level, a quote has twice as many backslashes.
const DEEPEST: usize = 12;

/// Largest memory of a compiled pattern of the settings file.
const PATTERN_SIZE: usize = 1 << 20;

/// All that is masked.
#[derive(Debug, Default)]
pub struct Secrets {
    known: Vec<Known>,
    names: Vec<Vec<u8>>,
    patterns: Vec<Regex>,
    finder: Finder,
}

/// Compiles a pattern of the settings file, in which `^` and `$` stand for the ends of a line, be it one that `\r` ends.
///
/// # Errors
/// Text that is no regular expression, or a large one.
pub fn compile(pattern: &str) -> Result<Regex> {
    let mut builder = RegexBuilder::new(pattern);
    builder.multi_line(true).crlf(true).size_limit(PATTERN_SIZE);
    let regex = builder.unicode(false).build().or_else(|_| builder.unicode(true).build());
    // Not the pattern itself, which may be a secret.
    let why = |error: regex::Error| error.to_string().rsplit("error: ").next().unwrap_or_default().trim().to_owned();
    let regex = regex.map_err(|error| anyhow::anyhow!(why(error)))?;
    anyhow::ensure!(!regex.is_match(b""), "it matches the empty text, and would mask everything");
    Ok(regex)
}

impl Secrets {
    /// Collects the secrets of a process with this environment; `names` and `patterns` are masked as well.
    ///
    /// # Errors
    /// A pattern cannot be compiled.
    pub fn new(
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        names: &[String],
        patterns: &[String],
    ) -> Result<Self> {
        let compiled = |pattern: &String| compile(pattern).with_context(|| format!("{pattern:?}"));
        let patterns = patterns.iter().map(compiled).collect::<Result<Vec<_>>>()?;
        let longest_part =
            |name: &String| name.split(['_', '-']).max_by_key(|part| part.len()).unwrap_or_default().as_bytes().to_vec();
        let parts: Vec<_> = names.iter().map(longest_part).filter(|part| !part.is_empty()).collect();
        let names: Vec<_> = names.iter().map(|name| names::normalized(name.as_bytes())).collect();
        let known = environment::known(environment, &names);
        let of_rules = rules::ALL
            .iter()
            .flat_map(|rule| rule.words.iter().map(move |word| (word.as_bytes().to_vec(), Meaning::Rule(rule, word))));
        let of_known = known.iter().enumerate().flat_map(|(index, known)| {
            let word = move |word: Range<usize>| (known.text[word.clone()].to_vec(), Meaning::Known(index, word.start));
            known.words().into_iter().map(word)
        });
        let words = rules::ALL.iter().flat_map(|rule| rule.words).chain(&pem::WORDS);
        let of_encodings =
            encodings().chain(words.flat_map(|word| escaped(word))).map(|word| (word.into_bytes(), Meaning::Encoding));
        let of_letters = known.iter().flat_map(Known::encoded).map(|word| (word.into_bytes(), Meaning::Encoding));
        let of_names = parts.into_iter().map(|part| (part, Meaning::Name));
        let of_keys = pem::WORDS.iter().map(|word| (word.as_bytes().to_vec(), Meaning::Key));
        let finder = Finder::new(of_rules.chain(of_known).chain(of_encodings).chain(of_letters).chain(of_names).chain(of_keys));
        Ok(Self { known, names, patterns, finder })
    }

    /// Place in `text`, from `from` on, in the first line that may have a secret.
    pub(super) fn next(&self, text: &[u8], from: usize) -> Option<usize> {
        if !self.patterns.is_empty() {
            return Some(from); // what a pattern finds below an encoding, no word tells
        }
        let (mut first, mut run) = (None, Run::default());
        self.finder.find(text, from, |word, meaning| {
            // Of the words of rules there are many.
            let mut may_match =
                |rule: &Rule, ours| rule.may_have_digit(text, &word, &mut run) && rule.may_match(text, &word, ours);
            if !matches!(meaning, Meaning::Rule(rule, ours) if !may_match(rule, ours)) {
                first = Some(word.start);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        first
    }

    /// Place in `line` from which on it may be the beginning of a secret. It may be within what was shown at an earlier pause: what stands
    /// before a secret tells it all the same.
    pub(super) fn undecided(&self, line: &[u8]) -> usize {
        static OPEN: OnceLock<Option<Regex>> = OnceLock::new();
        let open = OPEN.get_or_init(|| compile(&format!(r"(?i)(?:{})\z", BEGUN.join("|"))).ok()).as_ref();
        let begun = open.and_then(|open| Some(open.captures(line)?.iter().skip(1).flatten().next()?.start()));
        let word = line.iter().rposition(|byte| b" \t\"'=:>".contains(byte)).map_or(0, |end| end + 1);
        let token = rules::ALL.iter().any(|rule| rule.may_begin(&line[word..])).then_some(word);
        // The last character may be encoded, and not be there yet.
        let cut = line.iter().rev().take(LONGEST).position(|byte| ENCODED.contains(byte)).map(|at| line.len() - 1 - at);
        let of_text = |text: &[u8]| {
            let below = |syntax| {
                let decoded = Decoded::new(text, syntax)?;
                Some(decoded.source(&(self.known_begins(&decoded.text)?..decoded.text.len())).start)
            };
            SYNTAXES.into_iter().filter_map(below).chain(self.known_begins(text)).min()
        };
        let known = of_text(line).into_iter().chain(cut.and_then(|cut| of_text(&line[..cut])));
        begun.into_iter().chain(token).chain(known).min().unwrap_or(line.len())
    }

    /// First place from which on `text` is the beginning of a known text.
    fn known_begins(&self, text: &[u8]) -> Option<usize> {
        let longest = self.known.iter().map(|known| known.text.len()).max()?;
        (text.len().saturating_sub(longest)..text.len()).find(|&at| self.known.iter().any(|known| known.may_begin(&text[at..])))
    }

    fn is_added(&self, name: &[u8]) -> bool {
        self.names.contains(&names::normalized(name))
    }

    /// The secrets in `line`, sorted, none touching another. `block`: what has begun before it, and goes on behind it.
    pub(super) fn spans(&self, line: &[u8], block: &mut Block) -> Vec<Span> {
        let mut spans = Vec::new();
        self.search(line, block, |range, open| spans.push(span(line, range, open)));
        let mut layers = Vec::new();
        self.search_below(line, (Syntax::Backslash, DEEPEST), &mut layers, &mut spans);
        // A backslash that is none of a string's would be gone in a deeper layer.
        for strings in (0..=layers.len()).rev() {
            for syntax in SYNTAXES.into_iter().filter(|syntax| *syntax != Syntax::Backslash) {
                layers.truncate(strings);
                self.search_below(line, (syntax, 2), &mut layers, &mut spans);
            }
        }
        merged(line, spans)
    }

    /// Searches up to so many layers below the last of `layers`, which begin with `line`.
    fn search_below(&self, line: &[u8], (syntax, depth): (Syntax, usize), layers: &mut Vec<Decoded>, spans: &mut Vec<Span>) {
        for _ in 0..depth {
            let Some(decoded) = Decoded::new(layers.last().map_or(line, |layer| &layer.text), syntax) else { break };
            layers.push(decoded);
            let place = |range| layers.iter().rev().fold(range, |range, layer| layer.source(&range));
            let text = layers.last().map_or(line, |layer| &layer.text);
            self.search(text, &mut Block::default(), |range, open| spans.push(span(line, place(range), open)));
        }
        // JSON may stand in a URL.
        let backslashes = |text: &[u8]| memchr::memchr_iter(b'\\', text).count();
        if syntax != Syntax::Backslash
            && let Some(layer) = layers.last()
            && backslashes(&layer.text) > backslashes(line)
        {
            self.search_below(line, (Syntax::Backslash, 2), layers, spans);
        }
    }

    /// Calls `found` for each secret in `text`, as it stands there.
    fn search(&self, text: &[u8], block: &mut Block, mut found: impl FnMut(Range<usize>, Open)) {
        let (mut has_key, mut last, mut run) = (block.in_key != Key::Outside, 0..0, Run::default());
        block.go_on(text, 0, |range| found(range, Open::Base64));
        self.finder.find(text, 0, |word, meaning| {
            // Each of many words in one long value would be looked at to its end.
            let is_within = last.contains(&word.start) && word.start + END < last.end;
            if is_within && matches!(meaning, Meaning::Rule(..) | Meaning::Name) {
                return ControlFlow::Continue(());
            }
            let secrets = match meaning {
                Meaning::Rule(rule, _) if !rule.may_have_digit(text, &word, &mut run) => Vec::new(),
                Meaning::Rule(rule, ours) => rule.secrets(text, &word, ours),
                Meaning::Name => {
                    let name = Some(names::around(text, &word)).filter(|name| self.is_added(&text[name.clone()]));
                    name.map_or(Vec::new(), |name| values::of_name(text, name))
                }
                Meaning::Known(index, offset) => {
                    let place = self.known[index].find(text, word.start, offset);
                    place.into_iter().map(|range| (range, Open::Word)).collect()
                }
                Meaning::Encoding | Meaning::Key => Vec::new(),
            };
            has_key |= matches!(meaning, Meaning::Key);
            for (range, open) in secrets {
                last = range.clone();
                if open == Open::Base64 {
                    block.begin(text, range.end, |range| found(range, open));
                }
                found(range, open);
            }
            ControlFlow::Continue(())
        });
        if has_key {
            // A key goes on from line to line, between colours as well.
            let plain = Decoded::new(text, Syntax::Escape);
            let place = |range: Range<usize>| plain.as_ref().map_or(range.clone(), |plain| plain.source(&range));
            let shown = plain.as_ref().map_or(text, |plain| &plain.text);
            pem::find(shown, &mut block.in_key, |range| found(place(range), Open::Base64));
        }
        self.match_patterns(text, found);
    }

    /// Calls `found` for what the patterns match in each line of `text`: an encoding may have more than one.
    fn match_patterns(&self, text: &[u8], mut found: impl FnMut(Range<usize>, Open)) {
        let mut start = 0;
        for line in text.split(|&byte| byte == b'\n').filter(|_| !self.patterns.is_empty()) {
            for captures in self.patterns.iter().flat_map(|pattern| pattern.captures_iter(line)) {
                if let Some(part) = captures.get(1).or(captures.get(0)).filter(|part| !part.is_empty()) {
                    found(start + part.start()..start + part.end(), Open::Word);
                }
            }
            start += line.len() + 1;
        }
    }
}

/// Words of which one is in every text in which a letter, or a word of a rule, is encoded.
fn encodings() -> impl Iterator<Item = String> {
    let of_bytes = (b' '..0x7f).map(|byte| format!("%{byte:02x}"));
    let behind = |sign: &'static str, next: &'static str| next.chars().map(move |next| format!("{sign}{next}"));
    let of_digits = behind(r"\x", "234567").chain(behind("&#", "0123456789x")).chain(behind("\x1b[", "0123456789;?:mKHJABCD"));
    ENCODINGS.iter().map(|word| (*word).to_owned()).chain(of_bytes).chain(of_digits)
}

/// What a word with signs becomes where those are escaped, as `\-` in a regular expression or a shell, and as `\\-` in JSON of that: from
/// the letter before its first sign on. A letter before a backslash is rare elsewhere, so that such words cost next to nothing.
fn escaped(word: &str) -> Vec<String> {
    let is_sign = |c: char| "-.?&~ ".contains(c);
    let Some(sign) = word.find(is_sign) else { return Vec::new() };
    let with = |escape: &str| {
        let pieces = word[sign.saturating_sub(1)..].split_inclusive(is_sign).map(|piece| {
            piece.strip_suffix(is_sign).map_or(piece.to_owned(), |text| [text, escape, &piece[text.len()..]].concat())
        });
        pieces.collect()
    };
    vec![with(r"\"), with(r"\\")]
}

/// A secret at `range` of `line`, with the backslashes that its quote has there.
fn span(line: &[u8], range: Range<usize>, open: Open) -> Span {
    let backslashes = |quote: usize| line[..quote].iter().rev().take_while(|&&byte| byte == b'\\').count();
    let open = match open {
        Open::Quoted(quote, _) => Open::Quoted(quote, backslashes(range.start.saturating_sub(1))),
        other => other,
    };
    Span { range, open }
}

/// The spans in their order, with those that overlap or touch as one. None cuts an escape.
fn merged(line: &[u8], mut spans: Vec<Span>) -> Vec<Span> {
    for span in &mut spans {
        if let Some(escape) = json::escape_around(line, span.range.start) {
            span.range.start = escape.start;
        }
        if let Some(escape) = json::escape_around(line, span.range.end) {
            span.range.end = escape.end;
        }
    }
    spans.sort_by_key(|span| span.range.start);
    spans.dedup_by(|next, last| {
        let touches = next.range.start <= last.range.end;
        if touches && next.range.end > last.range.end {
            (last.range.end, last.open) = (next.range.end, next.open);
        }
        touches
    });
    spans
}
