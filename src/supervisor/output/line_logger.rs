//! Logs the child's output by line. Long lines are logged in parts, so that memory is bounded.

use std::sync::Arc;

use memchr::memchr;

use crate::logging::{LogFile, Stamp};

/// Length of the parts in which a longer line is logged.
const LONGEST_PART: usize = 64 << 10;

/// Bytes of formatted lines that are written to the log at once, unless the stream pauses.
const BATCH: usize = 256 << 10;

/// Logger of one of the child's streams.
#[derive(Debug)]
pub(super) struct Lines {
    log: Arc<LogFile>,
    stream: &'static str,
    /// Lines end with CR LF there.
    is_terminal: bool,
    /// Of the lines that came with the last read.
    stamp: Stamp,
    part: Vec<u8>,
    /// True if a part of this line is logged.
    continued: bool,
    batch: Vec<u8>,
    /// True if some could not be written.
    pub(super) has_lost: bool,
}

impl Lines {
    pub(super) fn new(log: Arc<LogFile>, stream: &'static str, is_terminal: bool) -> Self {
        let (stamp, part, batch) = (Stamp::default(), Vec::new(), Vec::new());
        Self { log, stream, is_terminal, stamp, part, continued: false, batch, has_lost: false }
    }

    /// Logs the lines that `bytes` complete.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        self.stamp = self.log.stamp(self.stream);
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            let line = self.cut(line);
            self.line(line);
            bytes = &rest[1..];
        }
        let rest = self.cut(bytes);
        self.part.extend_from_slice(rest);
        self.write();
    }

    /// Logs the rest at the end of the stream.
    pub(super) fn end(&mut self) {
        self.stamp = self.log.stamp(self.stream);
        if !self.part.is_empty() {
            self.line(&[]);
        }
        self.write();
    }

    /// Logs as many full parts of a line as there are, and returns the rest. No character is cut.
    fn cut<'a>(&mut self, mut line: &'a [u8]) -> &'a [u8] {
        while self.part.len() + line.len() > LONGEST_PART {
            let (head, rest) = line.split_at(LONGEST_PART - self.part.len());
            self.part.extend_from_slice(head);
            let is_boundary = |at: &usize| !matches!(self.part.get(*at).or(rest.first()), Some(0x80..=0xbf));
            let end = (LONGEST_PART - 3..=LONGEST_PART).rfind(is_boundary).unwrap_or(LONGEST_PART);
            let next = self.part.split_off(end);
            self.entry(&[]);
            self.continued = true;
            self.part = next;
            line = rest;
        }
        line
    }

    /// Logs the last part of a line, or all of it.
    fn line(&mut self, rest: &[u8]) {
        let rest = match rest {
            _ if !self.is_terminal => rest,
            [] => {
                self.part.pop_if(|&mut last| last == b'\r');
                rest
            }
            [line @ .., b'\r'] => line,
            _ => rest,
        };
        self.entry(rest);
        self.continued = false;
    }

    fn entry(&mut self, rest: &[u8]) {
        if self.part.is_empty() {
            self.log.format_line(&self.stamp, rest, self.continued, &mut self.batch);
        } else {
            self.part.extend_from_slice(rest);
            self.log.format_line(&self.stamp, &self.part, self.continued, &mut self.batch);
            self.part.clear();
        }
        if self.batch.len() >= BATCH {
            self.write();
        }
    }

    fn write(&mut self) {
        if !self.batch.is_empty() {
            self.has_lost |= !self.log.append(&self.batch);
            self.batch.clear();
        }
    }
}
