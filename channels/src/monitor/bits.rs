//! How a guest asks for attention by a bit, and the root finds it, without either waiting for the other.
//!
//! The guest writes to a ring and *then* sets the bit. The root takes bits from time to time and tells whoever serves
//! the ring. Who serves the ring and is about to sleep clears the bit, since its packets may have been read already,
//! and *then* looks at the ring a last time: a bit that was set before the look has its packet seen by it, and one that
//! is set after stays for the next poll. The other order loses signals, which hangs guests that poll nothing
//! themselves.
//!
//! Written once, over a trait, so that a model checker (`partition/tests/loom_monitor.rs`) runs the code that is used.

/// A word of pending bits. All operations are sequentially consistent.
pub(crate) trait Pending {
    /// Looks at it.
    fn load(&self) -> u32;
    /// Sets bits.
    fn set(&self, bits: u32);
    /// Keeps these bits alone.
    fn keep(&self, bits: u32);
    /// Clears all and returns what it was.
    fn take(&self) -> u32;
}

/// For the guest, after it has written to the ring.
#[inline]
pub(crate) fn request(word: &impl Pending, mask: u32) {
    word.set(mask);
}

/// For the root: the bits of `watched` that were set. Others, which nobody serves, are cleared as well.
#[inline]
pub(crate) fn collect(word: &impl Pending, watched: u32) -> u32 {
    if word.load() == 0 {
        return 0;
    }
    word.take() & watched
}

/// For who serves the ring and looks at it next, before it sleeps.
#[inline]
pub(crate) fn cancel(word: &impl Pending, mask: u32) {
    if word.load() & mask != 0 {
        word.keep(!mask);
    }
}
