//! A queue of bytes: in memory up to a bound, beyond it in an unnamed temporary file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::mem;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::fstatvfs;

/// Bytes that are kept in memory.
const IN_MEMORY: usize = 8 << 20;

/// Most bytes in the file, unless a quarter of what is free on its disk is less.
const IN_FILE: u64 = 256 << 20;

/// Bytes that are read from the file at once. Fewer than that are in memory only at the end, so that lines are whole.
const PIECE: usize = 256 << 10;

/// Memory that is left to everybody else: where it is bounded (`ulimit -v`), they end by what they do not get.
const HEADROOM: usize = 4 << 20;

/// Bytes that were read and not yet written. Oldest first: those in memory, in the file, in the tail.
#[derive(Debug, Default)]
pub(super) struct Spool {
    memory: VecDeque<u8>,
    overflow: Option<File>,
    /// Range of the file that is in the queue.
    start: u64,
    end: u64,
    /// Most bytes that the file may have.
    limit: u64,
    /// Bytes that the file did not take.
    tail: Vec<u8>,
}

impl Spool {
    pub(super) fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// Bytes in the queue.
    pub(super) fn len(&self) -> usize {
        self.memory.len() + (self.end - self.start) as usize + self.tail.len()
    }

    /// True if there is no room, not even in the file: more bytes are taken, but should wait until the queue is shorter.
    pub(super) fn is_full(&self) -> bool {
        !self.tail.is_empty()
    }

    /// Appends `bytes`; false if there is no memory for them, and nothing is.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let fits = !self.is_full() && self.overflow.is_none() && self.memory.len() + bytes.len() <= IN_MEMORY;
        if fits && has_room_for(self.memory.len() + bytes.len(), self.memory.capacity()) {
            self.memory.extend(bytes);
            return true;
        }
        // The oldest are in memory.
        if self.is_empty() {
            return false;
        }
        if self.is_full() || self.push_to_file(bytes).is_err() {
            if !has_room_for(self.tail.len() + bytes.len(), self.tail.capacity()) {
                return false;
            }
            self.tail.extend_from_slice(bytes);
        }
        true
    }

    fn push_to_file(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.overflow.is_none() {
            let file = tempfile::tempfile()?;
            let disk = fstatvfs(&file)?;
            self.limit = IN_FILE.min(disk.blocks_available().saturating_mul(disk.fragment_size()) / 4);
            self.overflow = Some(file);
        }
        let Some(file) = self.overflow.as_ref().filter(|_| self.end - self.start + bytes.len() as u64 <= self.limit) else {
            return Err(ErrorKind::StorageFull.into());
        };
        file.write_all_at(bytes, self.end)?; // after a partial write, the next one overwrites it
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// The oldest bytes; none if the queue is empty.
    pub(super) fn front(&mut self) -> &[u8] {
        self.memory.make_contiguous()
    }

    /// Removes the oldest `length` bytes, which are part of the front.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn consume(&mut self, length: usize) -> io::Result<()> {
        self.memory.drain(..length);
        if self.memory.len() >= PIECE {
            return Ok(());
        }
        if let Some(file) = &self.overflow {
            let (at, capacity) = (self.memory.len(), self.memory.capacity());
            let wanted = PIECE.min((self.end - self.start) as usize);
            let length = if has_room_for(at + wanted, capacity) { wanted } else { wanted.min(capacity - at) };
            self.memory.resize(at + length, 0);
            file.read_exact_at(&mut self.memory.make_contiguous()[at..], self.start)?;
            let (start, length) = (self.start as i64, length as i64);
            // Frees the space; without, on some file systems, it is freed at the end.
            let _ = fallocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, start, length);
            self.start += length as u64;
        }
        if self.start == self.end {
            (self.overflow, self.start, self.end) = (None, 0, 0); // frees its disk space
            if self.memory.is_empty() {
                self.memory = mem::take(&mut self.tail).into();
            } else if has_room_for(self.memory.len() + self.tail.len(), self.memory.capacity()) {
                self.memory.extend(mem::take(&mut self.tail));
            }
        }
        self.memory.shrink_to(2 * PIECE);
        Ok(())
    }
}

/// True if a buffer of this `capacity`, which doubles when it grows, can grow to `length`, with enough left.
fn has_room_for(length: usize, capacity: usize) -> bool {
    length <= capacity || Vec::<u8>::new().try_reserve_exact(length.max(2 * capacity) + HEADROOM).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_their_order_beyond_the_bound() -> io::Result<()> {
        for pushes_per_pop in [1, 3, 300] {
            let mut spool = Spool::default();
            let (mut pushed, mut popped) = (Vec::new(), Vec::new());
            for step in 0..300usize {
                let bytes: Vec<u8> = (0..step * 701 % 200_000).map(|at| (step * 31 + at) as u8).collect();
                assert!(spool.push(&bytes));
                pushed.extend_from_slice(&bytes);
                if step % pushes_per_pop == 0 {
                    pop(&mut spool, &mut popped)?;
                }
                assert!(spool.memory.len() <= IN_MEMORY && !spool.is_full());
                assert_eq!(spool.len(), pushed.len() - popped.len());
            }
            while !spool.is_empty() {
                pop(&mut spool, &mut popped)?;
            }
            assert!(spool.overflow.is_none() && pushed == popped, "{pushes_per_pop}");
        }
        Ok(())
    }

    #[test]
    fn bytes_keep_their_order_on_a_full_disk() -> io::Result<()> {
        let full = File::options().read(true).write(true).open("/dev/full")?;
        let mut spool = Spool { overflow: Some(full), limit: IN_FILE, ..Spool::default() };
        spool.memory.extend(b"oldest");
        assert!(spool.push(b", older") && spool.is_full());
        assert!(spool.push(b", old"));
        let mut popped = Vec::new();
        while !spool.is_empty() {
            pop(&mut spool, &mut popped)?;
        }
        assert_eq!(popped, b"oldest, older, old");
        assert!(!spool.is_full() && spool.overflow.is_none());
        Ok(())
    }

    #[test]
    fn bytes_behind_the_tail_stay_behind_it() -> io::Result<()> {
        for overflow in [None, Some(tempfile::tempfile()?)] {
            let mut spool = Spool { overflow, limit: IN_FILE, tail: b", older".to_vec(), ..Spool::default() };
            spool.memory.extend(b"oldest");
            assert!(spool.push(b", old") && spool.is_full());
            let mut popped = Vec::new();
            while !spool.is_empty() {
                pop(&mut spool, &mut popped)?;
            }
            assert_eq!(String::from_utf8_lossy(&popped), "oldest, older, old");
        }
        Ok(())
    }

    #[test]
    fn front_is_long_while_there_is_more() -> io::Result<()> {
        let mut spool = Spool::default();
        assert!(spool.push(&[b'x'; IN_MEMORY]) && spool.push(&[b'y'; 2 * PIECE]));
        for rest in [1, PIECE] {
            spool.consume(spool.memory.len() - rest)?;
            assert!(spool.front().len() >= PIECE, "{rest}");
        }
        Ok(())
    }

    #[test]
    fn file_grows_to_its_limit() -> io::Result<()> {
        let mut spool = Spool { overflow: Some(tempfile::tempfile()?), limit: 10, ..Spool::default() };
        spool.memory.extend(b"oldest");
        assert!(spool.push(b", older") && !spool.is_full());
        assert!(spool.push(b", old") && spool.is_full());
        assert_eq!((spool.end, spool.len()), (7, 18));
        Ok(())
    }

    fn pop(spool: &mut Spool, popped: &mut Vec<u8>) -> io::Result<()> {
        let length = spool.front().len().div_ceil(2);
        popped.extend_from_slice(&spool.front()[..length]);
        spool.consume(length)
    }
}
