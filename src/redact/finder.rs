//! Finds words in text: those of the rules, and of texts that are known. [`Pairs`] says where one may begin, and a hash of its first
//! bytes which it may be.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use super::pairs::{HEAD, Head, Pairs};
use super::rules::Rule;

/// Bits of a hash: far more hashes than words, and few enough for a set of them in the first-level cache.
const BITS: u32 = 16;

/// Bits of a hash by which its words are found.
const BUCKET_BITS: u32 = 10;

/// A bit for each number of 16 bits.
pub(super) type Bits = [u64; 1 << (BITS - u64::BITS.trailing_zeros())];

/// Meaning that a word may have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meaning {
    /// A form of secrets, and the word in its own case.
    Rule(&'static Rule, &'static str),
    /// A known text, by its index, and the word's place in it.
    Known(usize, usize),
    /// A name that the settings file has.
    Name,
    /// The beginning of a private key.
    Key,
    /// An encoding that may hide a secret.
    Encoding,
}

/// The words, in lower case, and what they may belong to.
#[derive(Debug, Default)]
pub(super) struct Finder {
    words: Vec<(Vec<u8>, Vec<Meaning>)>,
    pairs: Pairs,
    /// The hashes of the heads of all words.
    heads: Vec<u64>,
    /// Hashes and indices of the words, sorted.
    sorted: Vec<(usize, usize)>,
    /// Where each bucket of `sorted` begins.
    buckets: Vec<usize>,
}

impl Finder {
    pub(super) fn new(words: impl Iterator<Item = (Vec<u8>, Meaning)>) -> Self {
        let mut meanings = BTreeMap::<_, Vec<_>>::new();
        for (mut word, meaning) in words {
            word.make_ascii_lowercase();
            meanings.entry(word).or_default().push(meaning);
        }
        let words: Vec<_> = meanings.into_iter().collect();
        let mut pairs = Pairs::new();
        let mut hashes = Vec::new();
        for (index, (word, _)) in words.iter().enumerate() {
            for head in heads(word) {
                pairs.add(head);
                hashes.push((hash(head), index));
            }
        }
        hashes.sort_unstable();
        hashes.dedup();
        let heads = bits(hashes.iter().map(|(hash, _)| *hash));
        let buckets = (0..=1 << BUCKET_BITS).map(|bucket| hashes.partition_point(|(hash, _)| self::bucket(*hash) < bucket));
        Self { buckets: buckets.collect(), sorted: hashes, heads, pairs, words }
    }

    /// Calls `found` for each word in `text` that begins at `from` or behind it, in the order of their places, until it returns `Break`.
    /// Words that begin in the last two bytes are left out.
    pub(super) fn find(&self, text: &[u8], from: usize, mut found: impl FnMut(Range<usize>, Meaning) -> ControlFlow<()>) {
        let mut at = from;
        while let Some((before, hash)) = self.next_head(&text[at..]) {
            at += before;
            let bucket = bucket(hash);
            for &(of_word, index) in &self.sorted[self.buckets[bucket]..self.buckets[bucket + 1]] {
                let (word, meanings) = &self.words[index];
                if of_word != hash || !begins(&text[at..], word) {
                    continue;
                }
                for &meaning in meanings {
                    if found(at..at + word.len(), meaning).is_break() {
                        return;
                    }
                }
            }
            at += 1;
        }
    }

    /// First place in `text` at which a word may begin, and its hash.
    fn next_head(&self, text: &[u8]) -> Option<(usize, usize)> {
        let heads: &Bits = self.heads.as_slice().try_into().ok()?;
        let mut from = 0;
        loop {
            let near = self.pairs.next(&text[from..]);
            // The last place may be in no pair that has a next one.
            let first = near.map_or(text.len().saturating_sub(HEAD), |near| from + near);
            let mut places = (first..first + 2).filter_map(|at| Some((at, hash(*text.get(at..)?.first_chunk()?))));
            if let Some(found) = places.find(|(_, hash)| has(heads, *hash)) {
                return Some(found);
            }
            near?;
            from = first + 2;
        }
    }
}

/// True if the bit of `number` is set.
#[inline(always)]
pub(super) fn has(bits: &Bits, number: usize) -> bool {
    bits[number / 64] & 1 << (number % 64) != 0
}

/// True if `text` begins with `word`, in any case.
fn begins(text: &[u8], word: &[u8]) -> bool {
    text.len() >= word.len() && text.iter().zip(word).all(|(byte, of_word)| byte.to_ascii_lowercase() == *of_word)
}

/// A set of numbers of 16 bits.
fn bits(of: impl Iterator<Item = usize>) -> Vec<u64> {
    let mut bits = vec![0; size_of::<Bits>() / size_of::<u64>()];
    of.for_each(|at| bits[at / 64] |= 1 << (at % 64));
    bits
}

/// The first bytes of `word`, and of what else may follow a short one.
fn heads(word: &[u8]) -> impl Iterator<Item = Head> {
    let bytes = move |at: usize| word.get(at).map_or(0..=u8::MAX, |&byte| byte..=byte);
    let pairs = bytes(0).flat_map(move |first| bytes(1).map(move |second| (first, second)));
    pairs.flat_map(move |(first, second)| bytes(2).map(move |third| [first, second, third]))
}

/// Hash of a head, alike in any case.
#[inline(always)]
fn hash([first, second, third]: Head) -> usize {
    let head = u32::from_le_bytes([first, second, third, 0]) | 0x0020_2020;
    (head.wrapping_mul(0x9e37_79b1) >> (u32::BITS - BITS)) as usize
}

fn bucket(hash: usize) -> usize {
    hash >> (BITS - BUCKET_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(finder: &Finder, text: &[u8], from: usize) -> Vec<(usize, usize)> {
        let mut places = Vec::new();
        finder.find(text, from, |place, _| {
            places.push((place.start, place.len()));
            ControlFlow::Continue(())
        });
        places
    }

    fn finder(words: &[&str]) -> Finder {
        Finder::new(words.iter().map(|word| (word.as_bytes().to_vec(), Meaning::Name)))
    }

    #[test]
    fn words_are_found_at_every_place_in_any_case() {
        let words = ["q~", "key", "ghp_", "://", "x"];
        let finder = finder(&words);
        for word in words {
            for before in 0..9 {
                for text in [word.to_owned(), word.to_uppercase()] {
                    let text = format!("{}{text}  ", "-".repeat(before));
                    assert_eq!(places(&finder, text.as_bytes(), 0), [(before, word.len())], "{text}");
                }
            }
        }
    }

    #[test]
    fn words_are_found_as_by_a_look_at_every_place() {
        // The first two letters are alike in what the table of pairs has of them.
        let (letters, words) = (*b"aI~i", ["aaia", "ai", "i~", "ia~", "ii~a", "~ai"]);
        let finder = finder(&words);
        for number in 0..4_usize.pow(7) {
            let text: Vec<_> = (0..7).map(|at| letters[number >> (2 * at) & 3]).collect();
            for (from, length) in [(0, 7), (1, 7), (0, 6), (4, 6)] {
                let text = &text[..length];
                let of_place = |at: usize| words.iter().filter(move |word| begins(&text[at..], word.as_bytes()));
                let all = (from..length - 2).flat_map(|at| of_place(at).map(move |word| (at, word.len())));
                assert_eq!(places(&finder, text, from), all.collect::<Vec<_>>(), "{}", String::from_utf8_lossy(text));
            }
        }
    }
}
