//! A text that is masked wherever it stands: a secret of our environment, or an encoding of it that [`super::decode`] does not undo.

use std::ops::Range;

use super::pairs::HEAD;

/// Most bytes of a text by which it is looked for; the rest is compared.
const WORD: usize = 6;

/// Fewest bytes by which a text is looked for.
const SHORTEST: usize = 2;

/// Shortest piece of base64 or hex that is masked: lines of it are wrapped anywhere.
const PIECE: usize = 16;

/// A text to mask.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Known {
    pub(super) text: Vec<u8>,
    /// True if a piece of it is masked as well.
    is_base: bool,
}

impl Known {
    /// The forms of `value`: as it is, with what stands for a quote in the quotes of a shell, `+` for a space, hex and base64.
    pub(super) fn forms(value: &[u8]) -> impl Iterator<Item = Self> {
        let replaced = |byte: u8, by: &str| value.split(|&other| other == byte).collect::<Vec<_>>().join(by.as_bytes());
        let plain = [value.to_vec(), replaced(b'\'', r"'\''"), replaced(b'\'', r#"'"'"'"#), replaced(b' ', "+")];
        let hex = value.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
        let base64 = (0..3).flat_map(|shift| {
            let plain = base64(value, shift);
            let url = plain.iter().map(|&byte| match byte {
                b'+' => b'-',
                b'/' => b'_',
                other => other,
            });
            [url.collect(), plain]
        });
        let base = base64.chain([hex]).collect::<Vec<_>>().into_iter().map(|text| Self { text, is_base: true });
        plain.into_iter().map(|text| Self { text, is_base: false }).chain(base)
    }

    /// Places in it of the words by which it is looked for. No encoding of signs hides such a word, and each piece has one; of letters
    /// beyond ASCII, [`encoded`](Self::encoded) tells.
    pub(super) fn words(&self) -> Vec<Range<usize>> {
        if self.is_base {
            let starts = (0..=self.text.len().saturating_sub(WORD)).step_by(PIECE - WORD + 1);
            return starts.map(|start| start..self.text.len().min(start + WORD)).collect();
        }
        let (mut best, mut at) = (0..0, 0);
        // The finder finds no word that begins in the last two bytes of a text, which may end with this one.
        while at + HEAD <= self.text.len() {
            let length = self.text[at..].iter().take(WORD).take_while(|byte| is_letter(**byte)).count();
            if length > best.len() {
                best = at..at + length;
            }
            at += length.max(1);
        }
        vec![if best.len() < SHORTEST { 0..self.text.len().min(WORD) } else { best }]
    }

    /// Words of which one is in every text in which its first letter beyond ASCII is encoded, as JSON or a URL has it.
    pub(super) fn encoded(&self) -> Vec<String> {
        let Some(at) = self.text.iter().position(|byte| !byte.is_ascii()) else { return Vec::new() };
        let byte = self.text[at];
        let letter = self.text[at..].utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next());
        let unit = letter.map(|letter| format!("\\u{:04x}", letter.encode_utf16(&mut [0; 2])[0]));
        unit.into_iter().chain([format!("%{byte:02x}"), format!("\\x{byte:02x}")]).collect()
    }

    /// Its place in `text`, where its word that begins at `offset` stands at `at`.
    pub(super) fn find(&self, text: &[u8], at: usize, offset: usize) -> Option<Range<usize>> {
        let same = |(one, other): &(&u8, &u8)| one.eq_ignore_ascii_case(other);
        let before = text[..at].iter().rev().zip(self.text[..offset].iter().rev()).take_while(same).count();
        let behind = text[at..].iter().zip(&self.text[offset..]).take_while(same).count();
        let least = if self.is_base { PIECE.min(self.text.len()) } else { self.text.len() };
        (before + behind >= least).then_some(at - before..at + behind)
    }

    /// True if it begins with `rest`, the end of a text.
    pub(super) fn may_begin(&self, rest: &[u8]) -> bool {
        rest.len() > 2 && self.text.len() > rest.len() && self.text[..rest.len()].eq_ignore_ascii_case(rest)
    }
}

/// True for a letter or digit of ASCII, and for a byte of anything beyond it.
fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || !byte.is_ascii()
}

/// Part of the base64 of `value` that is the same whatever stands around it; `shift` of its bytes are in a group before it.
fn base64(value: &[u8], shift: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = |at: usize| {
        (0..6).fold(0, |digit, bit| {
            let place = at * 6 + bit;
            let byte = value[place / 8 - shift];
            digit << 1 | usize::from(byte >> (7 - place % 8) & 1)
        })
    };
    let first = (shift * 8).div_ceil(6);
    (first..(shift + value.len()) * 8 / 6).map(|at| DIGITS[bits(at)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_part_that_never_changes() {
        assert_eq!(base64(b"hunter2", 0), b"aHVudGVyM");
        for shift in 0..3 {
            assert!(base64(b"hunter2", shift).len() >= 7);
        }
    }

    #[test]
    fn every_long_piece_of_base64_is_found() {
        let value: Vec<u8> = (0..108_u32).map(|at| b'!' + (at * 7 % 90) as u8).collect();
        for known in Known::forms(&value).filter(|known| known.is_base) {
            for (start, end) in (0..=known.text.len()).flat_map(|start| (start..=known.text.len()).map(move |end| (start, end)))
            {
                let piece = &known.text[start..end];
                let found = known.words().into_iter().any(|word| {
                    memchr::memmem::find(piece, &known.text[word.clone()])
                        .is_some_and(|at| known.find(piece, at, word.start) == Some(0..piece.len()))
                });
                assert_eq!(found, piece.len() >= PIECE);
            }
        }
    }

    #[test]
    fn word_is_what_no_encoding_of_signs_changes() {
        for (value, word) in [
            ("ab-swordfish", "swordf"),
            ("#a1b2!c3", "a1b2"),
            ("!#a?bc.", "bc"),
            ("!#a?b!bc", "!#a?b!"),
            ("!#a?b.", "!#a?b."),
            ("a\"b", "a\"b"),
        ] {
            let known = Known { text: value.into(), is_base: false };
            assert_eq!(&known.text[known.words()[0].clone()], word.as_bytes());
        }
    }
}
