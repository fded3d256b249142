//! A stream while it is masked: whole lines, and the pieces of a long one. What is found in a line depends on the line alone, not on
//! where reads split it.

use std::ops::Range;
use std::sync::Arc;

use memchr::{memchr, memrchr};

use super::json::{is_json, is_structure, strings};
use super::secrets::Secrets;
use super::span::{NEAR, Open, Span};
use super::wrapped::Block;

/// Replacement for a secret.
const MASK: &[u8] = b"***";

/// Length of the pieces of a line that is longer than this and [`AHEAD`].
const PIECE: usize = 64 << 10;

/// Bytes behind a piece that are looked at with it, for a secret that begins in it.
const AHEAD: usize = 8 << 10;

/// Bytes before a piece that are looked at with it, for the name of its first secret, or of an object around that.
const BEFORE: usize = NEAR + (1 << 10);

/// A stream that is masked.
#[derive(Debug)]
pub struct Masker {
    secrets: Arc<Secrets>,
    /// The line that has not ended, from a little before its next piece on.
    line: Vec<u8>,
    /// Place in `line` at which its next piece begins.
    piece: usize,
    /// Place in `line` up to which it is shown or masked.
    shown: usize,
    /// Length of `line` at the last pause.
    paused: usize,
    /// True if what was shown last is a mask.
    is_masked: bool,
    /// State of a long line, between two pieces.
    long: Option<Long>,
    block: Block,
}

#[derive(Clone, Copy, Debug)]
struct Long {
    is_json: bool,
    /// True in a string of JSON.
    in_string: bool,
    /// Secret that goes on.
    open: Option<Open>,
}

/// Appends one line, masked, to `out`.
fn mask_line(secrets: &Secrets, line: &[u8], block: &mut Block, out: &mut Vec<u8>) {
    let spans = secrets.spans(line, block);
    if spans.is_empty() {
        return out.extend_from_slice(line);
    }
    let spans = if is_json(line, true) { clipped(line, spans, 0, false) } else { spans };
    let mut at = 0;
    for span in spans {
        out.extend_from_slice(&line[at..span.range.start]);
        out.extend_from_slice(MASK);
        at = span.range.end;
    }
    out.extend_from_slice(&line[at..]);
}

/// The parts of `spans` that are in strings of JSON; all of them, if `text` has what is no JSON. `in_string`: `from` is in a string.
fn clipped(text: &[u8], spans: Vec<Span>, from: usize, in_string: bool) -> Vec<Span> {
    let (mut parts, mut outside, mut is_json) = (Vec::new(), from, true);
    let parts_in = |range: Range<usize>| {
        let first = spans.partition_point(|span| span.range.end <= range.start);
        let (start, end) = (range.start, range.end);
        let of_them = spans[first..].iter().take_while(move |span| span.range.start < end);
        of_them.map(move |span| Span { range: span.range.start.max(start)..span.range.end.min(end), open: span.open })
    };
    let is_between = |range: Range<usize>| parts_in(range).all(|part| is_structure(&text[part.range]));
    strings(text, from, in_string, |string| {
        is_json &= is_between(outside..string.start);
        outside = string.end;
        parts.extend(parts_in(string));
    });
    if is_json && is_between(outside..text.len()) { parts } else { spans }
}

impl Masker {
    /// A masker at the beginning of a stream.
    pub fn new(secrets: Arc<Secrets>) -> Self {
        Self { secrets, line: Vec::new(), piece: 0, shown: 0, paused: 0, is_masked: false, long: None, block: Block::default() }
    }

    /// Appends the lines that `bytes` complete, masked, to `out`, and what is certain of a long one.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        if !self.line.is_empty() {
            let end = memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1);
            let (rest, others) = bytes.split_at(end);
            self.extend(rest, out);
            bytes = others;
        }
        let whole = memrchr(b'\n', bytes).map_or(0, |end| end + 1);
        self.lines(&bytes[..whole], out);
        self.extend(&bytes[whole..], out);
    }

    /// Appends the rest to `out`, at the end of the stream.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        self.end_line(out);
    }

    /// Appends to `out` what is no secret of a line that waits for its end, as a prompt does, and does not begin like one.
    pub fn pause(&mut self, out: &mut Vec<u8>) {
        self.paused = self.line.len();
        if self.long.is_some() || self.block.is_open() {
            return;
        }
        let mut block = Block::default();
        let (spans, is_json) = (self.secrets.spans(&self.line, &mut block), is_json(&self.line, false));
        let until = if block.is_open() { self.shown } else { self.secrets.undecided(&self.line) };
        let spans = if is_json { clipped(&self.line, spans, 0, false) } else { spans };
        self.show(until, &spans, out);
    }

    /// True if a line has not ended, and it is worth a [`Masker::pause`].
    pub fn is_waiting(&self) -> bool {
        self.line.len() != self.paused
    }

    #[cfg(test)]
    pub(super) fn line_length(&self) -> usize {
        self.line.capacity()
    }

    /// Appends whole lines.
    fn lines(&mut self, text: &[u8], out: &mut Vec<u8>) {
        let mut at = 0;
        while at < text.len() {
            let place = if self.block.goes_on() { Some(at) } else { self.secrets.next(text, at) };
            let Some(place) = place else { break };
            let start = memrchr(b'\n', &text[at..place]).map_or(at, |end| at + end + 1);
            let end = memchr(b'\n', &text[place..]).map_or(text.len(), |end| place + end);
            out.extend_from_slice(&text[at..start]);
            self.whole_line(&text[start..end], out);
            out.extend_from_slice(&text[end..text.len().min(end + 1)]);
            at = end + 1;
        }
        out.extend_from_slice(text.get(at..).unwrap_or_default());
    }

    fn whole_line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        if line.len() > PIECE + AHEAD {
            self.line.extend_from_slice(line);
            self.pieces(out);
            self.end_line(out);
        } else {
            mask_line(&self.secrets, line, &mut self.block, out);
        }
    }

    /// Adds to the line that has not ended; its newline may come with it.
    fn extend(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for chunk in bytes.chunks(PIECE) {
            let (text, end) = chunk.strip_suffix(b"\n").map_or((chunk, false), |text| (text, true));
            self.line.extend_from_slice(text);
            self.pieces(out);
            if end {
                self.end_line(out);
                out.push(b'\n');
            }
        }
    }

    /// Appends the pieces of a long line that are complete.
    fn pieces(&mut self, out: &mut Vec<u8>) {
        while self.line.len() > self.piece + PIECE + AHEAD {
            let (whole, end) = (self.piece + PIECE, self.piece + PIECE + AHEAD);
            // The backslashes of a quote stay with it.
            let backslashes = self.line[..whole].iter().rev().take(PIECE / 2).take_while(|&&byte| byte == b'\\').count();
            let cut = whole - backslashes;
            self.mask_piece(end, Some(cut), out);
            let kept = cut - BEFORE;
            self.line.drain(..kept);
            (self.piece, self.shown) = (cut - kept, self.shown - kept);
        }
    }

    /// Appends the last piece of a line, or all of it.
    fn end_line(&mut self, out: &mut Vec<u8>) {
        self.mask_piece(self.line.len(), None, out);
        self.line.clear();
        (self.piece, self.shown, self.paused, self.is_masked, self.long) = (0, 0, 0, false, None);
    }

    /// Masks the piece that ends at `cut`, by what stands in the line up to `end`; without a cut it is the last.
    fn mask_piece(&mut self, end: usize, cut: Option<usize>, out: &mut Vec<u8>) {
        let text = &self.line[..end];
        let first = || Long { is_json: is_json(text, cut.is_none()), in_string: false, open: None };
        let mut long = self.long.unwrap_or_else(first);
        let mut spans = self.secrets.spans(text, &mut self.block);
        if let Some(open) = long.open.take() {
            let rest = &text[self.piece..];
            let length = open.length(rest);
            let range = self.piece..self.piece + length;
            spans.retain(|span| span.range.end > range.end);
            spans.insert(0, Span { range, open });
        }
        let cut_at = cut.unwrap_or(end);
        long.open = spans.last().map(|span| span.open);
        if long.is_json {
            let ends_inside = strings(&text[..cut_at], self.piece, long.in_string, |_| {});
            spans = clipped(text, spans, self.piece, long.in_string);
            long.in_string = ends_inside;
        }
        // A secret that begins in this piece is masked to its end.
        let begun = spans.iter().take_while(|span| span.range.start < cut_at).last();
        let until = begun.map_or(cut_at, |span| cut_at.max(span.range.end));
        self.show(until, &spans, out);
        if until < end {
            long.open = None;
        }
        self.long = Some(long);
    }

    /// Appends what is not shown yet, up to `until`, with `spans` masked.
    fn show(&mut self, until: usize, spans: &[Span], out: &mut Vec<u8>) {
        for span in spans {
            if span.range.end <= self.shown || span.range.start >= until {
                continue;
            }
            let start = span.range.start.max(self.shown);
            let goes_on = self.is_masked && start == self.shown;
            out.extend_from_slice(&self.line[self.shown..start]);
            if !goes_on {
                out.extend_from_slice(MASK);
            }
            (self.shown, self.is_masked) = (span.range.end, true);
        }
        if self.shown < until {
            out.extend_from_slice(&self.line[self.shown..until]);
            (self.shown, self.is_masked) = (until, false);
        }
    }
}
