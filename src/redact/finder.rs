//! Finds words in text: those of the rules, and the beginnings of values that are known.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::OnceLock;

use aho_corasick::automaton::OverlappingState;
use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};
use memchr::memmem;

use super::rules::Rule;

/// Bytes of a known value that are looked for; the rest is compared.
const BEGINNING: usize = 6;

/// Most words for which the fastest automaton is made.
const MOST_STATES: usize = 6_000;

/// Meaning that a word may have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meaning {
    /// A form of secrets, and the word in its own case.
    Rule(&'static Rule, &'static str),
    /// A known value, by its index.
    Known(usize),
    /// A name that the settings file has.
    Name,
    /// The beginning of a private key.
    Key,
    /// An encoding that may hide a known value.
    Encoding,
}

/// The words, in lower case, and what they may belong to.
#[derive(Debug, Default)]
pub(super) struct Finder {
    words: Vec<(Vec<u8>, Vec<Meaning>)>,
    automaton: OnceLock<Option<AhoCorasick>>,
}

impl Finder {
    pub(super) fn new(words: impl Iterator<Item = (Vec<u8>, Meaning)>) -> Self {
        let mut meanings = BTreeMap::<_, Vec<_>>::new();
        for (mut word, meaning) in words {
            if matches!(meaning, Meaning::Known(_)) {
                word.truncate(BEGINNING);
            }
            word.make_ascii_lowercase();
            meanings.entry(word).or_default().push(meaning);
        }
        Self { words: meanings.into_iter().collect(), automaton: OnceLock::new() }
    }

    /// Compiles what makes [`Finder::find`] fast. A few short texts are not worth its memory.
    pub(super) fn prepare(&self) {
        self.automaton.get_or_init(|| self.compile());
    }

    /// Calls `found` for each word in `text` from `from` on, as far as it says to go on; by their ends, if it is prepared.
    pub(super) fn find(&self, text: &[u8], from: usize, mut found: impl FnMut(Range<usize>, Meaning) -> ControlFlow<()>) {
        let Some(automaton) = self.automaton.get().and_then(Option::as_ref) else { return self.find_each(text, from, found) };
        let mut state = OverlappingState::start();
        let input = Input::new(text).range(from..);
        loop {
            automaton.find_overlapping(input.clone(), &mut state);
            let Some(word) = state.get_match() else { return };
            for &meaning in &self.words[word.pattern().as_usize()].1 {
                if found(word.range(), meaning).is_break() {
                    return;
                }
            }
        }
    }

    fn find_each(&self, text: &[u8], from: usize, mut found: impl FnMut(Range<usize>, Meaning) -> ControlFlow<()>) {
        let lower = text[from..].to_ascii_lowercase();
        for (word, meanings) in &self.words {
            for at in memmem::find_iter(&lower, word) {
                for &meaning in meanings {
                    if found(from + at..from + at + word.len(), meaning).is_break() {
                        return;
                    }
                }
            }
        }
    }

    fn compile(&self) -> Option<AhoCorasick> {
        let bytes: usize = self.words.iter().map(|(word, _)| word.len()).sum();
        let kind = if bytes > MOST_STATES { AhoCorasickKind::ContiguousNFA } else { AhoCorasickKind::DFA };
        let mut builder = AhoCorasick::builder();
        builder.match_kind(MatchKind::Standard).ascii_case_insensitive(true).kind(Some(kind)).prefilter(false);
        builder.build(self.words.iter().map(|(word, _)| word)).ok()
    }
}
