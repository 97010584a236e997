//! The two ends of an attached partition, as a channel sees them: where to ring, where to listen, whose memory.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmbus_partition::{GpaSpace, GuestEnd, GuestPages, RootEnd};

use super::writes::Writes;

/// One channel's place on its partition's link.
pub(crate) enum Side {
    /// We are the root; the channel's packets come from a guest.
    Root {
        end: Arc<dyn RootEnd>,
        /// Guest VP to signal; changed by MODIFYCHANNEL. `u32::MAX` for none.
        vp: AtomicU32,
        /// Event flag to set for the guest.
        flag: u16,
        /// Our event area in which the guest signals.
        worker: u32,
        /// How the guest learns that its memory was written.
        writes: Arc<Writes>,
    },
    /// We are a guest.
    Guest {
        end: Arc<dyn GuestEnd>,
        /// Where to signal the root.
        connection_id: u32,
        /// Our event area in which the root signals.
        vp: u32,
    },
}

impl Side {
    /// Tells the peer to look. Never blocks; no system call if the peer is awake.
    pub(crate) fn ring(&self) {
        match self {
            Self::Root { end, vp, flag, .. } => match vp.load(Ordering::Relaxed) {
                u32::MAX => {}
                vp => end.signal(vp, *flag),
            },
            Self::Guest { end, connection_id, .. } => end.signal(*connection_id),
        }
    }

    /// The memory that page numbers in packets refer to.
    pub(crate) fn memory(&self) -> Arc<GpaSpace> {
        match self {
            Self::Root { end, .. } => end.memory(),
            Self::Guest { end, .. } => end.memory(),
        }
    }

    /// Signals to the guest go to another of its processors from now on.
    pub(crate) fn retarget(&self, to: u32) {
        match self {
            Self::Root { vp, .. } => vp.store(to, Ordering::Relaxed),
            Self::Guest { .. } => {}
        }
    }

    /// Asks the peer for one bell. `true`: it has signalled already, so do not sleep.
    pub(crate) fn arm(&self) -> bool {
        match self {
            Self::Root { end, worker, .. } => end.arm(*worker),
            Self::Guest { end, vp, .. } => end.arm(*vp),
        }
    }

    /// Clears the flags of an area that serves this channel alone, so that the next signal rings again.
    pub(crate) fn clear_flags(&self) {
        match self {
            Self::Root { end, worker, .. } => end.take_flags(*worker, &mut |_| {}),
            Self::Guest { end, vp, .. } => end.take_flags(*vp, &mut |_| {}),
        }
    }

    /// Empties the bell of an area that serves this channel alone.
    pub(crate) fn drain_bell(&self) {
        match self {
            Self::Root { end, worker, .. } => end.clear_bell(*worker),
            Self::Guest { end, vp, .. } => end.clear_bell(*vp),
        }
    }

    /// What becomes readable when the peer rings; `None` if this link has no bells.
    pub(crate) fn bell(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Root { end, worker, .. } => end.worker_bell(*worker),
            Self::Guest { end, vp, .. } => end.vp_bell(*vp),
        }
    }

    /// Whether the peer has to be told of writes to its memory.
    pub(crate) fn tells_writes(&self) -> bool {
        match self {
            Self::Root { writes, .. } => writes.needed(),
            Self::Guest { .. } => false,
        }
    }

    /// Tells the peer that these pages were written, and waits until it has seen it.
    pub(crate) async fn tell_written(&self, pages: &[GuestPages]) {
        match self {
            Self::Root { end, writes, .. } => writes.tell(end, pages).await,
            Self::Guest { .. } => {}
        }
    }
}
