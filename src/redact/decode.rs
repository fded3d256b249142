//! Text as it reads below one level of an encoding, with the place of each byte in the text above.

use std::ops::Range;

use memchr::memchr;

/// First bytes of encoded characters.
pub(super) const ENCODED: &[u8] = b"\\%&\x1b";

/// An encoding of single characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// `\"`, `\n`, `\u0041`: strings of JSON and of most languages.
    Backslash,
    /// `%41`, in URLs.
    Percent,
    /// `&quot;`, `&#65;`.
    Html,
    /// Sequences that a terminal does not show: colours and their like.
    Escape,
}

/// Text with the characters of one syntax decoded.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) text: Vec<u8>,
    units: Vec<Unit>,
}

/// An encoded character.
#[derive(Debug)]
struct Unit {
    /// Its place in the decoded text.
    text: usize,
    /// Its place in the encoded text.
    source: usize,
    length: u8,
    width: u8,
}

impl Decoded {
    /// Decodes `source`; `None` if nothing in it is encoded.
    pub(super) fn new(source: &[u8], syntax: Syntax) -> Option<Self> {
        let (mut text, mut units, mut at) = (Vec::new(), Vec::new(), 0);
        let mut search = 0;
        while let Some(found) = memchr(syntax.sign(), &source[search..]) {
            let place = search + found;
            let Some((bytes, width)) = syntax.unit(&source[place..]) else {
                search = place + 1;
                continue;
            };
            if units.is_empty() {
                text.reserve(source.len());
            }
            text.extend_from_slice(&source[at..place]);
            let start = text.len();
            push_char(bytes, &mut text);
            units.push(Unit { text: start, source: place, length: (text.len() - start) as u8, width: width as u8 });
            at = place + width;
            search = at;
        }
        text.extend_from_slice(&source[at..]);
        (!units.is_empty()).then_some(Self { text, units })
    }

    /// Place of `span` in the encoded text; an encoded character belongs to it as a whole.
    pub(super) fn source(&self, span: &Range<usize>) -> Range<usize> {
        let passed = self.units.partition_point(|unit| unit.text + usize::from(unit.length) <= span.start);
        let start = match self.units.get(passed).filter(|unit| unit.text <= span.start) {
            Some(unit) => unit.source,
            None => self.after(passed, span.start),
        };
        let passed = self.units.partition_point(|unit| unit.text < span.end);
        let end = match self.units[..passed].last() {
            Some(unit) if unit.text + usize::from(unit.length) >= span.end => unit.source + usize::from(unit.width),
            _ => self.after(passed, span.end),
        };
        start..end
    }

    /// Place of `at` in the encoded text, behind the first `passed` units.
    fn after(&self, passed: usize, at: usize) -> usize {
        match self.units[..passed].last() {
            Some(unit) => unit.source + usize::from(unit.width) + at - unit.text - usize::from(unit.length),
            None => at,
        }
    }
}

/// A decoded character, or a byte of one.
#[derive(Clone, Copy)]
enum Piece {
    Char(char),
    Byte(u8),
    Nothing,
}

fn push_char(piece: Piece, text: &mut Vec<u8>) {
    match piece {
        Piece::Char(c) => text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        Piece::Byte(byte) => text.push(byte),
        Piece::Nothing => {}
    }
}

impl Syntax {
    fn sign(self) -> u8 {
        match self {
            Self::Backslash => b'\\',
            Self::Percent => b'%',
            Self::Html => b'&',
            Self::Escape => 0x1b,
        }
    }

    /// The character that `rest` begins with, and the length of its encoding.
    fn unit(self, rest: &[u8]) -> Option<(Piece, usize)> {
        match self {
            Self::Backslash => backslash(rest),
            Self::Percent => {
                let byte = hex(rest.get(1..3)?)? as u8;
                (byte >= b' ' || byte == b'\n').then_some((Piece::Byte(byte), 3))
            }
            Self::Html => html(rest),
            Self::Escape => escape(rest),
        }
    }
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number, &digit| Some(number << 4 | char::from(digit).to_digit(16)?))
}

fn backslash(rest: &[u8]) -> Option<(Piece, usize)> {
    let byte = |byte| Some((Piece::Byte(byte), 2));
    match *rest.get(1)? {
        b'n' => byte(b'\n'),
        b'r' => byte(b'\r'),
        b't' => byte(b'\t'),
        b'b' | b'f' | b'v' => byte(0x0c),
        b'e' => byte(0x1b),
        b'0' => {
            let digits = rest[2..].iter().take(2).take_while(|byte| (b'0'..b'8').contains(*byte)).count();
            let number = rest[2..2 + digits].iter().fold(0, |number, digit| number << 3 | (digit - b'0'));
            Some((Piece::Byte(number), 2 + digits))
        }
        b'x' => Some((Piece::Byte(hex(rest.get(2..4)?)? as u8), 4)),
        b'u' => {
            let unit = |at| hex(rest.get(at..at + 4)?);
            let first = unit(2)?;
            if let Some(c) = char::from_u32(first) {
                return Some((Piece::Char(c), 6));
            }
            let second = unit(8).filter(|_| rest.get(6..8) == Some(b"\\u")).unwrap_or_default();
            let pair = char::decode_utf16([first as u16, second as u16]).next()?.ok();
            Some((Piece::Char(pair.unwrap_or(char::REPLACEMENT_CHARACTER)), if pair.is_some() { 12 } else { 6 }))
        }
        other if other.is_ascii_punctuation() || other == b' ' => byte(other),
        _ => None,
    }
}

/// A control sequence of ECMA-48, as `ESC [ 1 ; 31 m`, or an escape sequence of ECMA-35, as `ESC ( B`. The strings of a terminal's title
/// and the like are text.
fn escape(rest: &[u8]) -> Option<(Piece, usize)> {
    let (head, inner, last) = match rest.get(1)? {
        b'[' => (2, 0x20..0x40, 0x40..0x7f),
        b']' | b'P' | b'X' | b'^' | b'_' => return None,
        _ => (1, 0x20..0x30, 0x30..0x7f),
    };
    let end = head + rest[head..].iter().take(64).take_while(|byte| inner.contains(*byte)).count();
    rest.get(end).filter(|byte| last.contains(*byte)).map(|_| (Piece::Nothing, end + 1))
}

/// True if `text` ends with a sequence that a terminal does not show, whose signs may be escaped.
pub(super) fn ends_with_escape(text: &[u8]) -> bool {
    let near = &text[text.len().saturating_sub(64)..];
    let Some(at) = near.iter().rposition(|&byte| byte == 0x1b) else { return false };
    let sequence: Vec<_> = near[at..].iter().copied().filter(|byte| *byte != b'\\').collect();
    escape(&sequence).is_some_and(|(_, width)| width == sequence.len())
}

/// True if the byte of `text` at `at` is the letter of an escape, as in `\n`.
pub(super) fn is_escape_letter(text: &[u8], at: usize) -> bool {
    at > 0 && text[at - 1] == b'\\' && b"nrtbfvae0".contains(&text[at])
}

fn html(rest: &[u8]) -> Option<(Piece, usize)> {
    let end = memchr(b';', &rest[..rest.len().min(10)])?;
    let c = match &rest[1..end] {
        b"quot" => '"',
        b"amp" => '&',
        b"lt" => '<',
        b"gt" => '>',
        b"apos" => '\'',
        [b'#', b'x' | b'X', digits @ ..] => char::from_u32(hex(digits)?)?,
        [b'#', digits @ ..] => char::from_u32(std::str::from_utf8(digits).ok()?.parse().ok()?)?,
        _ => return None,
    };
    Some((Piece::Char(c), end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_lead_back_to_whole_characters() {
        for (syntax, source, text) in [
            (Syntax::Backslash, r#"a\"b\u00e9\ud83d\ude00\\n\/c\qd\x41\"#, "a\"bé😀\\n/c\\qdA\\"),
            (Syntax::Percent, "a%22b%C3%a9c%zz%0", "a\"béc%zz%0"),
            (Syntax::Html, "a&quot;b&#233;&#xe9;&amp;c&x;&", "a\"béé&c&x;&"),
            (Syntax::Backslash, r"a\tb\rc\fd\ud83de", "a\tb\rc\x0cd\u{fffd}e"),
            (Syntax::Backslash, r"a\nb\ud83d--de00", "a\nb\u{fffd}--de00"),
            (Syntax::Backslash, r"a\e[0m\033b\0c\018", "a\x1b[0m\x1bb\0c\x018"),
            (Syntax::Percent, "a%20b%0ac%1f", "a b\nc%1f"),
            (Syntax::Html, "&lt;&gt;&apos;", "<>'"),
        ] {
            let decoded = Decoded::new(source.as_bytes(), syntax).expect("encoded");
            assert_eq!(String::from_utf8_lossy(&decoded.text), text);
            assert_eq!(decoded.source(&(0..decoded.text.len())), 0..source.len());
            for at in 0..decoded.text.len() {
                let place = decoded.source(&(at..at + 1));
                let again = Decoded::new(&source.as_bytes()[place.clone()], syntax);
                let piece = again.map_or(source.as_bytes()[place.clone()].to_vec(), |again| again.text);
                assert!(piece.contains(&decoded.text[at]), "{at} {place:?}");
            }
        }
        assert!(Decoded::new(b"plain \\q", Syntax::Backslash).is_none());
        assert_eq!(Decoded::new(b"a\x1b[1;31mb", Syntax::Escape).expect("a colour").text, b"ab");
        assert_eq!(Decoded::new(b"a\x1b[1 ?@b", Syntax::Escape).expect("its parts").text, b"ab");
        assert_eq!(Decoded::new(b"a\x1b(Bb\x1b7c\x1b8d\x1b#8e\x1b=", Syntax::Escape).expect("others").text, b"abcde");
        assert!(Decoded::new(b"\x1b]0;title\x07", Syntax::Escape).is_none(), "a title is text");
        assert!(Decoded::new(b"\x1b[31\x7f", Syntax::Escape).is_none(), "no end of a sequence");
    }
}
