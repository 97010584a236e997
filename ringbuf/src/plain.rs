//! A ring on the heap: for tests, models, measurements, and for both ends in one process.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::memory::{ControlWord, RingMemory};

/// The memory of one ring on the heap. Clones share it.
///
/// Its data area is mapped once, so an access that passes the end is split. Copies are made of relaxed 8-byte atomics;
/// one that covers a word in part rewrites the whole word, which is sound for the ring's single producer.
#[derive(Debug, Clone)]
pub struct PlainRing {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    control: Control,
    data_size: u32,
    words: alloc::boxed::Box<[AtomicU64]>,
}

/// The control words on cache lines of their own, as in the control page.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Control {
    line: [AtomicU32; 4],
    features: AtomicU32,
}

impl PlainRing {
    /// A zeroed ring with a data area of `data_size` bytes, rounded up to whole pages.
    pub fn new(data_size: u32) -> Self {
        let data_size = data_size.next_multiple_of(4096);
        let words = (0..data_size / 8).map(|_| AtomicU64::new(0)).collect();
        Self { shared: Arc::new(Shared { control: Control::default(), data_size, words }) }
    }

    #[inline]
    fn word(&self, word: ControlWord) -> &AtomicU32 {
        let control = &self.shared.control;
        match word {
            ControlWord::WriteIndex => &control.line[0],
            ControlWord::ReadIndex => &control.line[1],
            ControlWord::InterruptMask => &control.line[2],
            ControlWord::PendingSendSize => &control.line[3],
            ControlWord::FeatureBits => &control.features,
        }
    }

    #[inline]
    fn read_part(&self, at: usize, into: &mut [u8]) {
        if at.is_multiple_of(8) && into.len().is_multiple_of(8) {
            let words = &self.shared.words[at / 8..][..into.len() / 8];
            for (chunk, word) in into.chunks_exact_mut(8).zip(words) {
                chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
            }
        } else {
            self.read_bytes(at, into);
        }
    }

    #[inline]
    fn write_part(&self, at: usize, from: &[u8]) {
        if at.is_multiple_of(8) && from.len().is_multiple_of(8) {
            let words = &self.shared.words[at / 8..][..from.len() / 8];
            for (chunk, word) in from.chunks_exact(8).zip(words) {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(chunk);
                word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
            }
        } else {
            self.write_bytes(at, from);
        }
    }

    #[cold]
    fn read_bytes(&self, at: usize, into: &mut [u8]) {
        for (index, byte) in into.iter_mut().enumerate() {
            let at = at + index;
            *byte = self.shared.words[at / 8].load(Ordering::Relaxed).to_le_bytes()[at % 8];
        }
    }

    #[cold]
    fn write_bytes(&self, at: usize, from: &[u8]) {
        for (index, &byte) in from.iter().enumerate() {
            let at = at + index;
            let word = &self.shared.words[at / 8];
            let mut bytes = word.load(Ordering::Relaxed).to_le_bytes();
            bytes[at % 8] = byte;
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }
}

impl RingMemory for PlainRing {
    #[inline]
    fn data_size(&self) -> u32 {
        self.shared.data_size
    }

    #[inline]
    fn load(&self, word: ControlWord, order: Ordering) -> u32 {
        self.word(word).load(order)
    }

    #[inline]
    fn store(&self, word: ControlWord, value: u32, order: Ordering) {
        self.word(word).store(value, order);
    }

    #[inline]
    fn read(&self, at: u32, into: &mut [u8]) {
        let (at, size) = (at as usize, self.shared.data_size as usize);
        if at + into.len() <= size {
            self.read_part(at, into);
        } else {
            let (head, tail) = into.split_at_mut(size - at);
            self.read_part(at, head);
            self.read_part(0, tail);
        }
    }

    #[inline]
    fn write(&self, at: u32, from: &[u8]) {
        let (at, size) = (at as usize, self.shared.data_size as usize);
        if at + from.len() <= size {
            self.write_part(at, from);
        } else {
            let (head, tail) = from.split_at(size - at);
            self.write_part(at, head);
            self.write_part(0, tail);
        }
    }

    #[inline]
    fn read_u64(&self, at: u32) -> u64 {
        self.shared.words[at as usize / 8].load(Ordering::Relaxed)
    }

    #[inline]
    fn write_u64(&self, at: u32, value: u64) {
        self.shared.words[at as usize / 8].store(value, Ordering::Relaxed);
    }
}
