//! A secret in a line: where it stands, and how it goes on behind the end of what is there.

use std::ops::Range;

use memchr::memchr2_iter;

/// Length to which a value is looked at before it is known to be secret.
pub(super) const NEAR: usize = 4 << 10;

/// A secret in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) range: Range<usize>,
    /// How it goes on behind the end of the text, where it reaches that.
    pub(super) open: Open,
}

/// How a secret goes on behind the end of a piece of a long line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Open {
    /// To the end of its word.
    Word,
    /// To this quote, or a `"`, behind so many backslashes, or fewer.
    Quoted(u8, usize),
    /// To the end of the line, also an encoded one, to this quote behind so many backslashes, or fewer, or to a `"` behind so many.
    Line(Option<(u8, usize)>, Option<usize>),
    /// To what is no base64.
    Base64,
}

impl Open {
    /// Length of the rest of the secret in `text`.
    pub(super) fn length(self, text: &[u8]) -> usize {
        let end = match self {
            Self::Word => {
                text.iter().position(|byte| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'`' | b'\\'))
            }
            Self::Base64 => {
                let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'\\' | b' ');
                text.iter().position(|byte| !goes_on(byte))
            }
            Self::Line(quote, string) => {
                let mut backslashes = 0;
                text.iter().enumerate().find_map(|(at, &byte)| {
                    let before = backslashes;
                    backslashes = if byte == b'\\' { before + 1 } else { 0 };
                    let is_end = b"nr".contains(&byte) && before > 0
                        || quote.is_some_and(|(quote, most)| byte == quote && before <= most)
                        || string.is_some_and(|most| byte == b'"' && before <= most);
                    (is_end || b"\r\n".contains(&byte)).then_some(at - before)
                })
            }
            Self::Quoted(quote, most) => memchr2_iter(quote, b'"', text).find_map(|at| {
                let backslashes = text[..at].iter().rev().take_while(|&&byte| byte == b'\\').count();
                (backslashes <= most).then_some(at - backslashes) // its own are shown
            }),
        };
        end.unwrap_or(text.len())
    }
}
