//! Memory mapped twice in a row: a ring that never wraps.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Map, copy};

/// `size` bytes, then the same bytes again. An access begins in the first half and is no longer than a half, so one
/// comparison each is all its bounds need.
#[derive(Debug)]
pub(crate) struct Doubled {
    /// A page boundary.
    base: NonNull<u8>,
    size: u32,
    /// Keeps the memory mapped.
    _map: Arc<Map>,
}

// SAFETY: the memory is accessed by atomics and by copies that tolerate races only, from any thread.
unsafe impl Send for Doubled {}
// SAFETY: as above; no method needs exclusive access.
unsafe impl Sync for Doubled {}

impl Doubled {
    /// The whole of `map` but for its first `skip` bytes, a multiple of the page size. `None` if the rest is not twice
    /// a whole number of pages that a `u32` can count.
    pub(crate) fn new(map: Arc<Map>, skip: usize) -> Option<Self> {
        let half = map.len().checked_sub(skip)? / 2;
        let whole = skip.is_multiple_of(4096)
            && half.is_multiple_of(4096)
            && half > 0
            && skip + half * 2 == map.len();
        let size = u32::try_from(half).ok().filter(|_| whole)?;
        // SAFETY: skip is less than the length of the mapping.
        let base = unsafe { map.base().add(skip) };
        Some(Self { base, size, _map: map })
    }

    #[inline(always)]
    pub(crate) fn read(&self, at: u32, into: &mut [u8]) {
        let from = self.at(at, into.len());
        // SAFETY: checked to be inside the mapping, which self keeps alive.
        unsafe { copy::load(from.as_ptr(), into) }
    }

    #[inline(always)]
    pub(crate) fn write(&self, at: u32, from: &[u8]) {
        let into = self.at(at, from.len());
        // SAFETY: checked to be inside the mapping, which self keeps alive and which is writable.
        unsafe { copy::store(into.as_ptr(), from) }
    }

    #[inline(always)]
    pub(crate) fn read_u64(&self, at: u32) -> u64 {
        u64::from_le(self.word(at).load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(crate) fn write_u64(&self, at: u32, value: u64) {
        self.word(at).store(value.to_le(), Ordering::Relaxed);
    }

    /// Fetches the cache line at `at` for writing, ahead of time; in either half.
    #[inline(always)]
    pub(crate) fn prefetch_write(&self, at: u32) {
        copy::prefetch_write(self.base.as_ptr().wrapping_add(at as usize));
    }

    /// The word that `at` lies in.
    #[inline(always)]
    fn word(&self, at: u32) -> &AtomicU64 {
        debug_assert!(at.is_multiple_of(8), "unaligned word");
        let word = self.at(at & !7, 8).cast::<AtomicU64>();
        // SAFETY: inside the mapping, aligned since the base is, and an atomic may be written by others at any time.
        unsafe { word.as_ref() }
    }

    #[inline(always)]
    fn at(&self, at: u32, len: usize) -> NonNull<u8> {
        if at >= self.size || len > self.size as usize {
            outside(at, len, self.size);
        }
        // SAFETY: at is less than a half, and the mapping is two.
        unsafe { self.base.add(at as usize) }
    }
}

#[cold]
#[inline(never)]
fn outside(at: u32, len: usize, size: u32) -> ! {
    panic!("{len} bytes at {at:#x} are outside of a ring of {size:#x} bytes");
}
