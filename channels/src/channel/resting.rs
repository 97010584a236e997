//! Whom a signal need not wake.
//!
//! In a storm a session rests: somebody looks at the rings in its place, and signals leave it alone. What must not
//! happen is that a signal finds it resting, and that it finds nothing in the rings when it looks after its rest.

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// Signals of one channel, and who rests from them.
#[derive(Default)]
pub(crate) struct Signals {
    /// One has come since somebody last took them.
    come: AtomicBool,
    resting: AtomicUsize,
}

impl Signals {
    /// The peer has signalled. `true`: whoever would have to be woken rests, and will look.
    #[must_use]
    pub(crate) fn came(&self) -> bool {
        self.come.store(true, Ordering::Relaxed);
        // The other of the two is in `drop`: either this sees that nobody rests, or who rested sees the packet.
        fence(Ordering::SeqCst);
        self.resting.load(Ordering::Relaxed) > 0
    }

    /// Whether one has come since this was last asked.
    pub(crate) fn take(&self) -> bool {
        self.come.swap(false, Ordering::Relaxed)
    }

    /// Signals wake nobody until the result is dropped. Then it is time to look.
    pub(crate) fn rest(&self) -> Resting<'_> {
        self.resting.fetch_add(1, Ordering::Relaxed);
        Resting(&self.resting)
    }
}

/// One who rests.
pub(crate) struct Resting<'a>(&'a AtomicUsize);

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}
