//! Base64 of a secret that is wrapped into lines: the first shows what it is, and those behind it are secret, too.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;

use super::pem::Key;

/// Lengths of lines into which tools wrap.
const WIDTHS: Range<usize> = 48..81;

/// What goes on from one line to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    /// A private key in PEM: see [`super::pem::find`].
    pub(super) in_key: Key,
    /// Length of the lines of wrapped base64, or none.
    width: Option<usize>,
    /// Column at which it began, behind the number of a line or the name of a container, and the [`shape`] of that.
    column: usize,
    shape: u64,
}

impl Block {
    /// True if what comes next is of it.
    pub(super) fn is_open(self) -> bool {
        self.in_key.is_open() || self.width.is_some()
    }

    /// True if what comes next may be of it.
    pub(super) fn goes_on(self) -> bool {
        self.in_key != Key::Outside || self.width.is_some()
    }

    /// Begins with base64 that ends at `end` of `text`, if nothing stands behind it on its line. Calls `found` for the lines behind it.
    pub(super) fn begin(&mut self, text: &[u8], end: usize, found: impl FnMut(Range<usize>)) {
        let run = text[..end].iter().rev().take(WIDTHS.end).take_while(|&&byte| is_base64(byte)).count();
        let rest = &text[end..];
        let spaces = rest.iter().take_while(|&&byte| byte == b'\r').count();
        self.width = Some(run).filter(|run| WIDTHS.contains(run) && rest.get(spaces).is_none_or(|&byte| byte == b'\n'));
        if self.width.is_some() {
            let start = end - run;
            let line = memchr::memrchr(b'\n', &text[..start]).map_or(0, |end| end + 1);
            (self.column, self.shape) = (start - line, shape(&text[line..start]));
        }
        self.go_on(text, end + spaces + 1, found);
    }

    /// Calls `found` for the lines of `text` from `from` on that go on with base64; the first shorter one is the last.
    pub(super) fn go_on(&mut self, text: &[u8], from: usize, mut found: impl FnMut(Range<usize>)) {
        let mut start = from;
        while let Some(width) = self.width
            && start < text.len()
        {
            let line = text[start..].split(|&byte| byte == b'\n').next().unwrap_or_default();
            let is_behind_prefix = line.get(..self.column).is_some_and(|prefix| shape(prefix) == self.shape);
            let rest = if is_behind_prefix { &line[self.column..] } else { line };
            let (body, at) = (rest.trim_ascii(), start + line.len() - rest.trim_ascii_start().len());
            let is_part = (1..=width).contains(&body.len()) && body.iter().all(|&byte| is_base64(byte));
            if is_part {
                found(at..at + body.len());
            }
            self.width = self.width.filter(|_| is_part && body.len() == width);
            start += line.len() + 1;
        }
    }
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte)
}

/// What is alike of two prefixes of one kind: all but the numbers in them.
fn shape(prefix: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    prefix.iter().for_each(|byte| if byte.is_ascii_digit() { b' ' } else { *byte }.hash(&mut hasher));
    hasher.finish()
}
