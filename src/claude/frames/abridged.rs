//! A frame as it is kept until its end: with long strings cut short, so that a result with an answer of any length takes little
//! memory and still parses.

use memchr::{memchr, memchr2};

/// Length of the longest frame that is kept, its strings cut.
pub(super) const MAX_FRAME: usize = 8 << 20;

/// Bytes of a string that are kept. What the watchdog reads of a frame is shorter by far.
const MAX_STRING: usize = 64 << 10;

/// Bytes of one JSON value, as they come, with its long strings cut at the end of a character.
#[derive(Debug, Default)]
pub(super) struct Abridged {
    pub(super) bytes: Vec<u8>,
    /// True if it grew beyond what is kept, and is dropped.
    pub(super) is_too_long: bool,
    /// Bytes of the string that it ends in.
    string: Option<usize>,
    /// The rest of that string is dropped, up to its quotation mark.
    is_cut: bool,
    /// Bytes that belong to the escape sequence before them.
    escaped: usize,
}

impl Abridged {
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while let Some(&first) = bytes.first() {
            let length = match self.string {
                None => {
                    let quote = memchr(b'"', bytes);
                    self.string = quote.map(|_| 0);
                    let length = quote.map_or(bytes.len(), |at| at + 1);
                    self.keep(&bytes[..length]);
                    length
                }
                Some(_) if self.escaped > 0 => {
                    self.escaped = if first == b'u' && self.escaped == UNKNOWN { 4 } else { (self.escaped - 1) % 4 };
                    self.keep_in_string(&bytes[..1]);
                    1
                }
                Some(_) if first == b'"' => {
                    (self.string, self.is_cut) = (None, false);
                    self.keep(b"\"");
                    1
                }
                Some(length) if first == b'\\' => {
                    self.is_cut |= length >= MAX_STRING;
                    self.escaped = UNKNOWN;
                    self.keep_in_string(b"\\");
                    1
                }
                Some(length) => {
                    let text = &bytes[..memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len())];
                    let room = MAX_STRING.saturating_sub(length).min(text.len());
                    // A character is cut nowhere but at its end, which may come with the next bytes.
                    let is_continued = |byte: &u8| (0x80..0xc0).contains(byte);
                    let kept = room + text[room..].iter().take_while(|byte| is_continued(byte)).count();
                    self.keep_in_string(&text[..kept]);
                    self.is_cut |= kept < text.len();
                    text.len()
                }
            };
            bytes = &bytes[length..];
        }
    }

    fn keep_in_string(&mut self, bytes: &[u8]) {
        if !self.is_cut {
            self.string = self.string.map(|length| length + bytes.len());
            self.keep(bytes);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.is_too_long |= self.bytes.len() + bytes.len() > MAX_FRAME;
        if self.is_too_long {
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// Makes room for the next value, in the same memory.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        *self = Self { bytes: std::mem::take(&mut self.bytes), ..Self::default() };
    }
}

/// Bytes of an escape sequence whose letter is still to come: one, or five if that is a `u`.
const UNKNOWN: usize = 5;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn abridged(text: &str, piece: usize) -> Abridged {
        let mut frame = Abridged::default();
        text.as_bytes().chunks(piece).for_each(|bytes| frame.push(bytes));
        frame
    }

    #[test]
    fn short_values_are_kept_as_they_are() {
        let text = r#"{"a":"b\"\\c\u00e9\n","d":[1,"}",{"e\\":"ü"}],"":""}"#;
        for piece in 1..text.len() {
            assert_eq!(abridged(text, piece).bytes, text.as_bytes(), "{piece}");
        }
    }

    #[test]
    fn long_strings_are_cut_and_parse() {
        for fill in ["x", "\\\"", "\\\\", "\\u00e9", "ü", "€", "\\ud83d\\ude00", "😀"] {
            for ahead in 0..8 {
                let long = "y".repeat(ahead) + &fill.repeat(3 * MAX_STRING / fill.len());
                let text = format!(r#"{{"text":"{long}","list":["{long}"],"type":"result"}}"#);
                for piece in [7, 4096, text.len()] {
                    let frame = abridged(&text, piece);
                    assert!(frame.bytes.len() < 2 * MAX_STRING + 100, "{fill}, {piece}: {}", frame.bytes.len());
                    let text = String::from_utf8(frame.bytes).expect("whole characters");
                    assert!(text.ends_with(r#"],"type":"result"}"#), "{fill}, {piece}");
                    assert!(serde_json::from_str::<Value>(&text).is_ok() || fill.starts_with("\\ud"), "{fill}, {piece}");
                    assert!(serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{fill}, {piece}");
                }
            }
        }
    }

    #[test]
    fn value_of_many_parts_is_dropped() {
        let mut frame = Abridged::default();
        while !frame.is_too_long {
            frame.push(br#"{"a":"b"},"#);
            assert!(frame.bytes.len() <= MAX_FRAME);
        }
        frame.push(b"x");
        assert!(frame.bytes.is_empty());
        frame.clear();
        frame.push(b"{}");
        assert_eq!((frame.bytes.as_slice(), frame.is_too_long), (&b"{}"[..], false));
    }
}
