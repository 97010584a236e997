//! The memory of one ring, as producer and consumer see it.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vmbus_core::memory::SharedMemory;

use crate::packet::CONTROL_SIZE;

/// The words of the control page that are in use, with their byte offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ControlWord {
    /// Where the next packet will start; written by the producer.
    WriteIndex = 0,
    /// Where the first unread packet starts; written by the consumer.
    ReadIndex = 4,
    /// Non-zero while the consumer wants no signals; written by the consumer.
    InterruptMask = 8,
    /// Bytes the producer waits for, 0 if it does not; written by the producer.
    PendingSendSize = 0xc,
    /// Bit 0: the producer sets the pending send size.
    FeatureBits = 0x40,
}

impl ControlWord {
    /// Byte offset in the control page.
    #[inline]
    pub const fn offset(self) -> usize {
        self as usize
    }
}

/// The memory of one ring, which a peer may change at any time.
///
/// Data offsets `at` are below [`data_size`](Self::data_size) and an access is no longer than it; one that runs past
/// the end goes on at 0, which a data area mapped twice in a row does for free. Callers in this crate keep to that; an
/// access outside is the caller's fault and may panic. Data accesses have no ordering of their own.
pub trait RingMemory: Send {
    /// Bytes of the data area: a multiple of 4096, more than 0, at most 2 GiB. The same value each time.
    fn data_size(&self) -> u32;

    /// Loads a control word.
    fn load(&self, word: ControlWord, order: Ordering) -> u32;

    /// Stores a control word.
    fn store(&self, word: ControlWord, value: u32, order: Ordering);

    /// Copies from the data area.
    fn read(&self, at: u32, into: &mut [u8]);

    /// Copies into the data area.
    fn write(&self, at: u32, from: &[u8]);

    /// Loads a little-endian word of the data area; `at` is a multiple of 8.
    #[inline]
    fn read_u64(&self, at: u32) -> u64 {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Stores a little-endian word of the data area; `at` is a multiple of 8.
    #[inline]
    fn write_u64(&self, at: u32, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    /// Hint that the cache line at `at` of the data area will be written soon, so that it can be fetched for writing
    /// meanwhile. `at` may be up to twice the data size, wrapping as accesses do. Nothing by default; worth having for
    /// commits one by one, as each waits for the writes before it to reach the cache.
    #[inline]
    fn prefetch_write(&self, at: u32) {
        let _ = at;
    }

    /// Stores a control word so that whoever sees the value sees everything done before, and so that no later load of
    /// this thread happens before the store: the one place on which all wake-ups depend. The loads that follow it are
    /// `SeqCst`, which makes a `SeqCst` store enough. A model checker that knows only fences overrides it.
    #[inline]
    fn publish(&self, word: ControlWord, value: u32) {
        self.store(word, value, Ordering::SeqCst);
    }
}

impl<R: RingMemory + Sync> RingMemory for Arc<R> {
    #[inline]
    fn data_size(&self) -> u32 {
        (**self).data_size()
    }
    #[inline]
    fn load(&self, word: ControlWord, order: Ordering) -> u32 {
        (**self).load(word, order)
    }
    #[inline]
    fn store(&self, word: ControlWord, value: u32, order: Ordering) {
        (**self).store(word, value, order);
    }
    #[inline]
    fn read(&self, at: u32, into: &mut [u8]) {
        (**self).read(at, into);
    }
    #[inline]
    fn write(&self, at: u32, from: &[u8]) {
        (**self).write(at, from);
    }
    #[inline]
    fn read_u64(&self, at: u32) -> u64 {
        (**self).read_u64(at)
    }
    #[inline]
    fn write_u64(&self, at: u32, value: u64) {
        (**self).write_u64(at, value);
    }
    #[inline]
    fn prefetch_write(&self, at: u32) {
        (**self).prefetch_write(at);
    }
    #[inline]
    fn publish(&self, word: ControlWord, value: u32) {
        (**self).publish(word, value);
    }
}

/// A ring in shared memory that holds the control page and, right after it, the data area mapped once.
#[derive(Debug, Clone)]
pub struct Flat<M> {
    memory: M,
    data_size: u32,
}

impl<M: SharedMemory> Flat<M> {
    /// The ring that fills `memory`: one control page, the rest data. Sizes that no ring can have are found by
    /// [`Producer::new`](crate::Producer::new) and [`Consumer::new`](crate::Consumer::new).
    pub fn new(memory: M) -> Self {
        // What does not fit is no valid size either: it is refused there.
        let data_size = u32::try_from(memory.size().saturating_sub(CONTROL_SIZE)).unwrap_or(u32::MAX);
        Self { memory, data_size }
    }

    /// Bytes of an access of `len` bytes at `at` that come before the end of the data area.
    #[inline]
    fn head_len(&self, at: u32, len: usize) -> usize {
        len.min(self.data_size.saturating_sub(at) as usize)
    }
}

impl<M: SharedMemory> RingMemory for Flat<M> {
    #[inline]
    fn data_size(&self) -> u32 {
        self.data_size
    }

    #[inline]
    fn load(&self, word: ControlWord, order: Ordering) -> u32 {
        self.memory.load_u32(word.offset(), order)
    }

    #[inline]
    fn store(&self, word: ControlWord, value: u32, order: Ordering) {
        self.memory.store_u32(word.offset(), value, order);
    }

    #[inline]
    fn read(&self, at: u32, into: &mut [u8]) {
        let (head, tail) = into.split_at_mut(self.head_len(at, into.len()));
        self.memory.read(CONTROL_SIZE + at as usize, head);
        if !tail.is_empty() {
            self.memory.read(CONTROL_SIZE, tail);
        }
    }

    #[inline]
    fn write(&self, at: u32, from: &[u8]) {
        let (head, tail) = from.split_at(self.head_len(at, from.len()));
        self.memory.write(CONTROL_SIZE + at as usize, head);
        if !tail.is_empty() {
            self.memory.write(CONTROL_SIZE, tail);
        }
    }

    #[inline]
    fn read_u64(&self, at: u32) -> u64 {
        self.memory.read_u64(CONTROL_SIZE + at as usize)
    }

    #[inline]
    fn write_u64(&self, at: u32, value: u64) {
        self.memory.write_u64(CONTROL_SIZE + at as usize, value);
    }
}
