//! A checked window onto mapped memory.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Map, Populate, copy};

/// A part of a [`Map`], which it keeps alive. Every access is checked against its bounds and panics outside of them:
/// offsets come from checked values, never straight from a peer.
#[derive(Clone, Debug)]
pub(crate) struct View {
    base: NonNull<u8>,
    len: usize,
    map: Arc<Map>,
}

// SAFETY: the memory is accessed by atomics and by copies that tolerate races only, from any thread.
unsafe impl Send for View {}
// SAFETY: as above; no method needs exclusive access.
unsafe impl Sync for View {}

impl View {
    pub(crate) fn whole(map: Arc<Map>) -> Self {
        Self { base: map.base(), len: map.len(), map }
    }

    pub(crate) fn slice(&self, offset: usize, len: usize) -> Self {
        Self { base: self.at(offset, len), len, map: Arc::clone(&self.map) }
    }

    /// Makes all pages of the mapping present.
    pub(crate) fn populate(&self, how: Populate) -> std::io::Result<()> {
        self.map.populate(how)
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the memory is, for system calls.
    pub(super) fn address(&self, offset: usize, len: usize) -> NonNull<u8> {
        self.at(offset, len)
    }

    #[inline]
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: checked to be inside the mapping, which self keeps alive.
        unsafe { copy::load(from.as_ptr(), into) }
    }

    #[inline]
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        let into = self.at(offset, from.len());
        // SAFETY: checked to be inside the mapping, which self keeps alive and which is writable.
        unsafe { copy::store(into.as_ptr(), from) }
    }

    /// Copies straight into another view.
    #[inline]
    pub(crate) fn copy_to(&self, offset: usize, to: &View, to_offset: usize, len: usize) {
        let from = self.at(offset, len);
        let into = to.at(to_offset, len);
        // SAFETY: both checked to be inside mappings that self and to keep alive and that are writable.
        unsafe { copy::transfer(from.as_ptr(), into.as_ptr(), len) }
    }

    /// The atomic u32 at `offset`, which must be aligned in memory.
    #[inline(always)]
    pub(crate) fn word_u32(&self, offset: usize) -> &AtomicU32 {
        let word = self.at(offset, 4).cast::<AtomicU32>();
        assert!(word.is_aligned(), "unaligned word");
        // SAFETY: inside the mapping, aligned, and an atomic may be written by others at any time.
        unsafe { word.as_ref() }
    }

    /// The atomic u64 at `offset`, which must be aligned in memory.
    #[inline(always)]
    pub(crate) fn word_u64(&self, offset: usize) -> &AtomicU64 {
        let word = self.at(offset, 8).cast::<AtomicU64>();
        assert!(word.is_aligned(), "unaligned word");
        // SAFETY: inside the mapping, aligned, and an atomic may be written by others at any time.
        unsafe { word.as_ref() }
    }

    #[inline]
    pub(crate) fn read_u64(&self, offset: usize) -> u64 {
        u64::from_le(self.word_u64(offset).load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn write_u64(&self, offset: usize, value: u64) {
        self.word_u64(offset).store(value.to_le(), Ordering::Relaxed);
    }

    /// Fetches the cache line at `offset` for writing, ahead of time. An offset that is not inside does nothing.
    #[inline(always)]
    pub(crate) fn prefetch_write(&self, offset: usize) {
        if offset < self.len {
            copy::prefetch_write(self.base.as_ptr().wrapping_add(offset));
        }
    }

    /// Fetches bytes that will be read soon. What is not inside does nothing.
    #[inline]
    pub(crate) fn prefetch_read(&self, offset: usize, len: usize) {
        if offset < self.len {
            copy::prefetch_read(self.base.as_ptr().wrapping_add(offset), len.min(self.len - offset));
        }
    }

    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        if offset > self.len || len > self.len - offset {
            outside(offset, len, self.len);
        }
        // SAFETY: offset is at most the length of the view, which lies in one mapping.
        unsafe { self.base.add(offset) }
    }
}

#[cold]
#[inline(never)]
fn outside(offset: usize, len: usize, size: usize) -> ! {
    panic!("{len} bytes at {offset:#x} are outside of a memory of {size:#x} bytes");
}
