//! The one door to memory that another party can change at any time.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering};

/// Memory shared with a peer that may write any of it at any moment.
///
/// Bytes are copied out before they are looked at and copied in from private memory; no reference into the memory
/// escapes. Copies have no ordering of their own: publish and observe them through the atomic words. Offsets and
/// lengths come from checked views, never straight from a peer: an access outside `0..size()` is a fault of the
/// caller and panics, as does a word at an offset that is not a multiple of its size.
pub trait SharedMemory: Send + Sync {
    /// Size in bytes, a multiple of 8.
    fn size(&self) -> usize;
    /// Copies `into.len()` bytes from `offset`.
    fn read(&self, offset: usize, into: &mut [u8]);
    /// Copies `from` to `offset`.
    fn write(&self, offset: usize, from: &[u8]);
    /// Loads a little-endian u32.
    fn load_u32(&self, offset: usize, order: Ordering) -> u32;
    /// Stores a little-endian u32.
    fn store_u32(&self, offset: usize, value: u32, order: Ordering);
    /// Loads a little-endian u64 without ordering.
    fn read_u64(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }
    /// Stores a little-endian u64 without ordering.
    fn write_u64(&self, offset: usize, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }
    /// Sets bits in the u32 at `offset` and returns what it was.
    fn fetch_or_u32(&self, offset: usize, bits: u32, order: Ordering) -> u32;
    /// Replaces the u32 at `offset` and returns what it was.
    fn swap_u32(&self, offset: usize, value: u32, order: Ordering) -> u32;
}

/// Plain heap memory behind [`SharedMemory`]: for tests, models and simulation in one process.
#[derive(Debug)]
pub struct PlainMemory {
    words: Box<[AtomicU32]>,
}

impl PlainMemory {
    /// Zeroed memory of `size` bytes, rounded up to a multiple of 8.
    pub fn new(size: usize) -> Self {
        Self { words: (0..size.next_multiple_of(8) / 4).map(|_| AtomicU32::new(0)).collect() }
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "unaligned word at offset {offset:#x}");
        &self.words[offset / 4]
    }
}

impl SharedMemory for PlainMemory {
    fn size(&self) -> usize {
        self.words.len() * 4
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        let (mut at, mut rest) = (offset, into);
        while !rest.is_empty() {
            let word = self.words[at / 4].load(Ordering::Relaxed).to_le_bytes();
            let piece = &word[at % 4..];
            let len = piece.len().min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&piece[..len]);
            (at, rest) = (at + len, later);
        }
    }

    fn write(&self, offset: usize, from: &[u8]) {
        let (mut at, mut rest) = (offset, from);
        while !rest.is_empty() {
            let (now, later) = rest.split_at((4 - at % 4).min(rest.len()));
            let word = &self.words[at / 4];
            match now {
                [a, b, c, d] => word.store(u32::from_le_bytes([*a, *b, *c, *d]), Ordering::Relaxed),
                // Neighbouring bytes belong to others, who may write them now.
                part => {
                    let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
                        let mut bytes = old.to_le_bytes();
                        bytes[at % 4..][..part.len()].copy_from_slice(part);
                        Some(u32::from_le_bytes(bytes))
                    });
                }
            }
            (at, rest) = (at + now.len(), later);
        }
    }

    fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        self.word(offset).load(order)
    }

    fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        self.word(offset).store(value, order);
    }

    fn fetch_or_u32(&self, offset: usize, bits: u32, order: Ordering) -> u32 {
        self.word(offset).fetch_or(bits, order)
    }

    fn swap_u32(&self, offset: usize, value: u32, order: Ordering) -> u32 {
        self.word(offset).swap(value, order)
    }
}

impl<M: SharedMemory + ?Sized> SharedMemory for alloc::sync::Arc<M> {
    fn size(&self) -> usize {
        (**self).size()
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        (**self).read(offset, into);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        (**self).write(offset, from);
    }
    fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        (**self).load_u32(offset, order)
    }
    fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        (**self).store_u32(offset, value, order);
    }
    fn read_u64(&self, offset: usize) -> u64 {
        (**self).read_u64(offset)
    }
    fn write_u64(&self, offset: usize, value: u64) {
        (**self).write_u64(offset, value);
    }
    fn fetch_or_u32(&self, offset: usize, bits: u32, order: Ordering) -> u32 {
        (**self).fetch_or_u32(offset, bits, order)
    }
    fn swap_u32(&self, offset: usize, value: u32, order: Ordering) -> u32 {
        (**self).swap_u32(offset, value, order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_words_see_the_same_memory() {
        let memory = PlainMemory::new(16);
        memory.write(3, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(memory.load_u32(4, Ordering::Relaxed), 0x0504_0302);
        memory.store_u32(8, 0xaabb_ccdd, Ordering::Relaxed);
        let mut bytes = [0; 4];
        memory.read(7, &mut bytes);
        assert_eq!(bytes, [5, 0xdd, 0xcc, 0xbb]);
        assert_eq!(memory.fetch_or_u32(0, 1, Ordering::Relaxed), 0x0100_0000);
        assert_eq!(memory.swap_u32(0, 7, Ordering::Relaxed), 0x0100_0001);
    }
}
