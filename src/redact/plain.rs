//! A look at short text of ours. It nearly never has a secret, and a run is to know that without the time that it takes to make a masker,
//! which is longer than all else it does before claude is started.

use std::sync::OnceLock;

use memchr::memmem;

use super::finder::bits;
use super::rules::{self, Rule};
use super::{environment, pem, secrets, values};

/// A word, with its first two bytes; the rule that it is of, unless it begins a key.
type Word = (usize, &'static str, Option<&'static Rule>);

/// True if there is surely no secret in `text`.
pub(super) fn is_plain(text: &str) -> bool {
    let text = text.as_bytes();
    !secrets::has_added() && !text.iter().any(|byte| values::ENCODED.contains(byte)) && !has_word(text) && !has_known(text)
}

/// True if there is a word of a rule in `text`, and may be a secret of that rule.
fn has_word(text: &[u8]) -> bool {
    static WORDS: OnceLock<(Vec<u64>, Vec<Word>)> = OnceLock::new();
    let (pairs, words) = WORDS.get_or_init(|| {
        let of_rules = rules::all().flat_map(|rule| rule.words.iter().map(move |word| (*word, Some(rule))));
        let all = of_rules.chain(pem::WORDS.iter().map(|word| (*word, None)));
        let words: Vec<Word> = all.map(|(word, rule)| (pair(word.as_bytes()), word, rule)).collect();
        (bits(words.iter().map(|(pair, ..)| *pair)), words)
    });
    let may_match = |at: usize, word: &str, rule: &Option<&Rule>| {
        let place = at..at + word.len();
        let is_there = text.get(place.clone()).is_some_and(|found| found.eq_ignore_ascii_case(word.as_bytes()));
        is_there && rule.is_none_or(|rule| rule.may_match(text, &place, word))
    };
    (0..text.len()).map(|at| (at, pair(&text[at..]))).any(|(at, here)| {
        pairs[here / 64] & 1 << (here % 64) != 0
            && words.iter().any(|(pair, word, rule)| *pair == here && may_match(at, word, rule))
    })
}

/// True if a value of our environment is in `text`, in any case.
fn has_known(text: &[u8]) -> bool {
    static KNOWN: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let mut known = environment::known(std::env::vars_os(), &[]);
        known.iter_mut().for_each(|value| value.make_ascii_lowercase());
        known
    });
    let lower = text.to_ascii_lowercase();
    known.iter().any(|value| memmem::find(&lower, value).is_some())
}

/// The first two bytes of `text` in lower case, as a number.
fn pair(text: &[u8]) -> usize {
    let at = |index: usize| usize::from(text.get(index).map_or(0, u8::to_ascii_lowercase));
    at(0) << 8 | at(1)
}
