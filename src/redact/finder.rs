//! Finds words in text: those of the rules, and of texts that are known. A set of bits says where one may begin, so that
//! nearly every byte costs a load and no branch.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use super::rules::Rule;

/// Bytes of a word by which it is looked for.
const HEAD: usize = 3;

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
        let of_word = |(index, (word, _)): (usize, &(Vec<u8>, _))| {
            let (head, known) =
                (word.iter().take(HEAD).fold(0, |head, &byte| add(head, byte)), 8 * word.len().min(HEAD) as u32);
            // Anything may follow a short word.
            let fillers = 0..1 << (8 * HEAD as u32 - known);
            fillers.map(move |filler| (hash(head >> (8 * HEAD as u32 - known) | filler << known), index))
        };
        let mut hashes: Vec<_> = words.iter().enumerate().flat_map(of_word).collect();
        hashes.sort_unstable();
        hashes.dedup();
        let heads = bits(hashes.iter().map(|(hash, _)| *hash));
        let buckets = (0..=1 << BUCKET_BITS).map(|bucket| hashes.partition_point(|(hash, _)| self::bucket(*hash) < bucket));
        Self { buckets: buckets.collect(), sorted: hashes, heads, words }
    }

    /// Calls `found` for each word in `text` from `from` on, as far as it says to go on, by their beginnings. The last bytes, too few for
    /// a word and a secret behind it, are left out.
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
        let (&[first, second], rest) = text.split_first_chunk()?;
        let mut head = add(add(0, first), second);
        let at = rest.iter().position(|&byte| {
            head = add(head, byte);
            has(heads, hash(head))
        })?;
        Some((at, hash(head)))
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

/// The head that ends with `byte`, behind the last bytes of `head`.
#[inline(always)]
fn add(head: u32, byte: u8) -> u32 {
    head >> 8 | u32::from(byte) << 16
}

/// Hash of a head, alike in any case.
#[inline(always)]
fn hash(head: u32) -> usize {
    ((head | 0x0020_2020).wrapping_mul(0x9e37_79b1) >> (u32::BITS - BITS)) as usize
}

fn bucket(hash: usize) -> usize {
    hash >> (BITS - BUCKET_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_at_every_place_in_any_case() {
        let words = ["q~", "key", "ghp_", "://", "x"];
        let finder = Finder::new(words.iter().map(|word| (word.as_bytes().to_vec(), Meaning::Name)));
        for word in words {
            for before in 0..9 {
                for text in [word.to_owned(), word.to_uppercase()] {
                    let text = format!("{}{text}  ", "-".repeat(before));
                    let mut places = Vec::new();
                    finder.find(text.as_bytes(), 0, |place, _| {
                        places.push((place.start, place.len()));
                        ControlFlow::Continue(())
                    });
                    assert_eq!(places, [(before, word.len())], "{text}");
                }
            }
        }
    }
}
