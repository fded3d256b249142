//! The words of all rules, in a table that the compiler sorts: for a short text, which is not worth a [finder](super::finder).

use std::ops::Range;

use super::finder::{Bits, has};
use super::pem;
use super::rules::{self, Rule};

/// A word, with its first two bytes, and the rule that it is of, unless it begins a key.
#[derive(Clone, Copy)]
pub(super) struct Word {
    pair: usize,
    pub(super) word: &'static str,
    pub(super) rule: Option<&'static Rule>,
}

/// All words, sorted by their first two bytes.
static WORDS: [Word; COUNT] = {
    let mut words = [Word { pair: 0, word: "", rule: None }; COUNT];
    let (mut count, mut at) = (0, 0);
    while at < pem::WORDS.len() {
        insert(&mut words, &mut count, pem::WORDS[at], None);
        at += 1;
    }
    at = 0;
    while at < rules::ALL.len() {
        let (rule, mut of_rule) = (&rules::ALL[at], 0);
        while of_rule < rule.words.len() {
            insert(&mut words, &mut count, rule.words[of_rule], Some(rule));
            of_rule += 1;
        }
        at += 1;
    }
    words
};

const COUNT: usize = {
    let (mut count, mut at) = (pem::WORDS.len(), 0);
    while at < rules::ALL.len() {
        count += rules::ALL[at].words.len();
        at += 1;
    }
    count
};

/// A bit for each pair of bytes, set for those that a word begins with: nearly every byte of a text costs a load and no branch.
static PAIRS: Bits = {
    let (mut pairs, mut at) = ([0; 1 << 10], 0);
    while at < COUNT {
        pairs[WORDS[at].pair / 64] |= 1 << (WORDS[at].pair % 64);
        at += 1;
    }
    pairs
};

/// Puts a word in its place among those that are there.
const fn insert(words: &mut [Word; COUNT], count: &mut usize, word: &'static str, rule: Option<&'static Rule>) {
    let bytes = word.as_bytes();
    let (pair, mut at) = (pair(bytes[0], bytes[1]), *count);
    while at > 0 && words[at - 1].pair > pair {
        words[at] = words[at - 1];
        at -= 1;
    }
    words[at] = Word { pair, word, rule };
    *count += 1;
}

/// Two bytes in lower case, as a number.
const fn pair(first: u8, second: u8) -> usize {
    (first.to_ascii_lowercase() as usize) << 8 | second.to_ascii_lowercase() as usize
}

/// The secrets that the rules find in `text`, but for those of URLs.
pub(super) fn secrets_in(text: &[u8]) -> Vec<Range<usize>> {
    let mut secrets = Vec::new();
    any_word(text, |word, place| {
        let rule = word.rule.filter(|_| !word.word.ends_with('/'));
        secrets.extend(rule.into_iter().flat_map(|rule| rule.secrets(text, place, word.word)).map(|(range, _)| range));
        false
    });
    secrets
}

/// True if `is_it` says so of a word in `text`.
pub(super) fn any_word(text: &[u8], mut is_it: impl FnMut(&Word, &Range<usize>) -> bool) -> bool {
    text.windows(2).enumerate().map(|(at, bytes)| (at, pair(bytes[0], bytes[1]))).any(|(at, here)| {
        has(&PAIRS, here)
            && WORDS[WORDS.partition_point(|word| word.pair < here)..].iter().take_while(|word| word.pair == here).any(|word| {
                let place = at..at + word.word.len();
                let found = text.get(place.clone());
                found.is_some_and(|found| found.eq_ignore_ascii_case(word.word.as_bytes())) && is_it(word, &place)
            })
    })
}
