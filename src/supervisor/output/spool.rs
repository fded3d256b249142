//! A queue of bytes: in memory up to a bound, beyond it in an unnamed temporary file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Bytes that were read and not yet written.
#[derive(Debug)]
pub(super) struct Spool {
    memory: VecDeque<Vec<u8>>,
    in_memory: usize,
    bound: usize,
    overflow: Option<Overflow>,
    popped: u64,
}

/// The part of the queue after that in memory.
#[derive(Debug)]
struct Overflow {
    file: File,
    read: u64,
    written: u64,
}

/// Largest piece.
const PIECE: usize = 128 << 10;

impl Spool {
    /// Makes an empty queue with at most `bound` bytes in memory.
    pub(super) fn new(bound: usize) -> Self {
        Self { memory: VecDeque::new(), in_memory: 0, bound, overflow: None, popped: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_memory == 0 && self.overflow.is_none()
    }

    /// True if `length` more bytes would stay in memory.
    pub(super) fn has_room_in_memory(&self, length: usize) -> bool {
        self.overflow.is_none() && self.in_memory + length <= self.bound
    }

    /// Number of calls of [`pop`](Self::pop).
    pub(super) fn popped(&self) -> u64 {
        self.popped
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// The file cannot be made or written; nothing was appended.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.overflow.is_none() {
            if self.in_memory + bytes.len() <= self.bound {
                self.push_to_memory(bytes);
                return Ok(());
            }
            self.overflow = Some(Overflow { file: tempfile::tempfile()?, read: 0, written: 0 });
        }
        // Even when memory has room again: the order counts.
        let Some(overflow) = &mut self.overflow else { return Ok(()) };
        let pushed = overflow.push(bytes);
        if pushed.is_err() && overflow.read == overflow.written {
            self.overflow = None;
        }
        pushed
    }

    fn push_to_memory(&mut self, bytes: &[u8]) {
        self.in_memory += bytes.len();
        match self.memory.back_mut() {
            Some(last) if last.len() + bytes.len() <= PIECE => last.extend_from_slice(bytes),
            _ => self.memory.extend(bytes.chunks(PIECE).map(<[u8]>::to_vec)),
        }
    }

    /// Removes the oldest piece.
    pub(super) fn pop(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.popped += 1;
        if let Some(piece) = self.memory.pop_front() {
            self.in_memory -= piece.len();
            return Ok(Some(piece));
        }
        let Some(overflow) = &mut self.overflow else { return Ok(None) };
        let piece = overflow.pop()?;
        if overflow.read == overflow.written {
            self.overflow = None; // frees its disk space
        }
        Ok(Some(piece))
    }
}

impl Overflow {
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.written))?;
        self.file.write_all(bytes)?; // after a partial write, the next one overwrites it
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pop(&mut self) -> io::Result<Vec<u8>> {
        let length = (self.written - self.read).min(PIECE as u64);
        let mut piece = vec![0; length as usize];
        self.file.seek(SeekFrom::Start(self.read))?;
        self.file.read_exact(&mut piece)?;
        self.read += length;
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_their_order_with_any_bound() -> io::Result<()> {
        for bound in [0, 1, 1_000, 1 << 20] {
            let mut spool = Spool::new(bound);
            let (mut pushed, mut popped) = (Vec::new(), Vec::new());
            for step in 0..2_000usize {
                let bytes: Vec<u8> = (0..step % 700).map(|at| (step * 31 + at) as u8).collect();
                spool.push(&bytes)?;
                pushed.extend_from_slice(&bytes);
                if step % 5 == 0 {
                    popped.extend(spool.pop()?.unwrap_or_default());
                }
                assert!(spool.in_memory <= bound);
            }
            while let Some(piece) = spool.pop()? {
                popped.extend(piece);
            }
            assert!(spool.is_empty());
            assert!(pushed == popped, "bound {bound}");
        }
        Ok(())
    }
}
