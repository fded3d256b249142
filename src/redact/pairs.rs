//! Finds where a word may begin, two bytes at a time: for nearly every pair of bytes, one load and one test say that none does.
//!
//! The first three bytes of a word begin in one pair, at its first or second byte, and end in the next. For each pair, a table has the
//! words that may begin in it and those whose first three bytes may end in it, as sets of a few classes.

/// Bytes of a word by which it is looked for.
pub(super) const HEAD: usize = 3;

/// The first bytes of a word.
pub(super) type Head = [u8; HEAD];

/// Bits of a pair that its place in the table depends on. Letters are alike in any case; signs and digits stay apart from them.
const BITS: u16 = 0x5f5f;

/// A set of classes, of which there are eight by the third byte, for words at the first byte of a pair, and eight by the first byte, for
/// words at the second.
type Classes = u16;

/// For each pair of bytes, the words that may begin in it, and those that may end in it.
#[derive(Debug, Default)]
pub(super) struct Pairs(Vec<[Classes; 2]>);

const COUNT: usize = BITS as usize + 1;

impl Pairs {
    /// A table of no words. It has what one byte alone tells: the first of a word that begins at it, and the third of one that ends at it.
    pub(super) fn new() -> Self {
        let mut pairs = vec![[0; 2]; COUNT];
        // Other places of the table are of no pair.
        let [bits, _] = BITS.to_le_bytes();
        let bytes = || (0..=bits).filter(|byte| byte & !bits == 0);
        for (first, second) in bytes().flat_map(|first| bytes().map(move |second| (first, second))) {
            pairs[index([first, second])] = [of_second(second), of_first(first)];
        }
        Self(pairs)
    }

    /// Adds the words with this head, by the pair of bytes in it: the other byte is in [`Self::new`]'s part.
    pub(super) fn add(&mut self, [first, second, third]: Head) {
        self.0[index([first, second])][0] |= of_first(third);
        self.0[index([second, third])][1] |= of_second(first);
    }

    /// Place in `text` of the first pair in which a word may begin whose first bytes end in the next one.
    pub(super) fn next(&self, text: &[u8]) -> Option<usize> {
        let pairs: &[[Classes; 2]; COUNT] = self.0.as_slice().try_into().ok()?;
        let mut begun = 0;
        let end = text.chunks_exact(2).position(|pair| {
            let [begin, end] = pairs[index([pair[0], pair[1]])];
            let is_end = begun & end != 0;
            begun = begin;
            is_end
        })?;
        Some(2 * end - 2)
    }
}

fn index(pair: [u8; 2]) -> usize {
    usize::from(u16::from_le_bytes(pair) & BITS)
}

/// Class of the words that begin at the first byte of a pair and have this third byte.
fn of_first(third: u8) -> Classes {
    1 << (third % 8)
}

/// Class of the words that begin at the second byte of a pair, which is this one.
fn of_second(first: u8) -> Classes {
    1 << (8 + first % 8)
}
