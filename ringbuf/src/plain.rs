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
    control: Arc<Control>,
    words: Arc<[AtomicU64]>,
    data_size: u32,
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
        Self { control: Arc::default(), words, data_size }
    }

    #[inline]
    fn word(&self, word: ControlWord) -> &AtomicU32 {
        let control = &self.control;
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
            let words = &self.words[at / 8..][..into.len() / 8];
            load_words(words, into.as_chunks_mut().0);
        } else {
            self.read_bytes(at, into);
        }
    }

    #[inline]
    fn write_part(&self, at: usize, from: &[u8]) {
        if at.is_multiple_of(8) && from.len().is_multiple_of(8) {
            let words = &self.words[at / 8..][..from.len() / 8];
            store_words(words, from.as_chunks().0);
        } else {
            self.write_bytes(at, from);
        }
    }

    #[cold]
    fn read_bytes(&self, at: usize, into: &mut [u8]) {
        for (index, byte) in into.iter_mut().enumerate() {
            let at = at + index;
            *byte = self.words[at / 8].load(Ordering::Relaxed).to_le_bytes()[at % 8];
        }
    }

    #[cold]
    fn write_bytes(&self, at: usize, from: &[u8]) {
        for (index, &byte) in from.iter().enumerate() {
            let at = at + index;
            let word = &self.words[at / 8];
            let mut bytes = word.load(Ordering::Relaxed).to_le_bytes();
            bytes[at % 8] = byte;
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }
}

impl RingMemory for PlainRing {
    #[inline]
    fn data_size(&self) -> u32 {
        self.data_size
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
        let (at, size) = (at as usize, self.data_size as usize);
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
        let (at, size) = (at as usize, self.data_size as usize);
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
        self.words[at as usize / 8].load(Ordering::Relaxed)
    }

    #[inline]
    fn write_u64(&self, at: u32, value: u64) {
        self.words[at as usize / 8].store(value, Ordering::Relaxed);
    }
}

/// Copies words out, eight at a time as far as they go.
#[inline]
fn load_words(from: &[AtomicU64], into: &mut [[u8; 8]]) {
    let (into_lines, into_rest) = into.as_chunks_mut::<8>();
    let (from_lines, from_rest) = from.as_chunks::<8>();
    for (bytes, words) in into_lines.iter_mut().zip(from_lines) {
        for (bytes, word) in bytes.iter_mut().zip(words) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
    }
    for (bytes, word) in into_rest.iter_mut().zip(from_rest) {
        *bytes = word.load(Ordering::Relaxed).to_le_bytes();
    }
}

/// Copies words in, eight at a time as far as they go.
#[inline]
fn store_words(into: &[AtomicU64], from: &[[u8; 8]]) {
    let (from_lines, from_rest) = from.as_chunks::<8>();
    let (into_lines, into_rest) = into.as_chunks::<8>();
    for (bytes, words) in from_lines.iter().zip(into_lines) {
        for (bytes, word) in bytes.iter().zip(words) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
    }
    for (bytes, word) in from_rest.iter().zip(into_rest) {
        word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
    }
}
