//! A look at short text of ours. It nearly never has a secret, and a run is to know that without the time that it takes to make a masker,
//! which is longer than all else it does before claude is started.

use std::sync::OnceLock;

use memchr::memmem;

use super::decode::ENCODED;
use super::environment;
use super::known::Known;
use super::words::any_word;

/// True if there is surely no secret in `text`.
pub(super) fn is_plain(text: &str) -> bool {
    let text = text.as_bytes();
    !text.iter().any(|byte| ENCODED.contains(byte)) && !has_word(text) && !has_known(text)
}

/// True if there is a word of a rule in `text`, and may be a secret of that rule.
fn has_word(text: &[u8]) -> bool {
    any_word(text, |word, place| word.rule.is_none_or(|rule| rule.may_match(text, place, word.word)))
}

/// True if a value of our environment is in `text`, in any case.
fn has_known(text: &[u8]) -> bool {
    static KNOWN: OnceLock<Vec<Known>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let mut known = environment::known(std::env::vars_os(), &[]);
        known.iter_mut().for_each(|known| known.text.make_ascii_lowercase());
        known
    });
    let lower = text.to_ascii_lowercase();
    known.iter().any(|known| memmem::find(&lower, &known.text).is_some())
}
