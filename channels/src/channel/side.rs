//! The two ends of an attached partition, as a channel sees them: where to ring, where to listen, whose memory.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmbus_partition::{GpaSpace, GuestEnd, RootEnd};

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

    /// The event area in which the peer signals this channel.
    pub(crate) fn area(&self) -> u32 {
        match self {
            Self::Root { worker, .. } => *worker,
            Self::Guest { vp, .. } => *vp,
        }
    }

    /// Asks the peer for bells from now on.
    pub(crate) fn arm(&self) {
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
            Self::Root { end, worker, .. } => end.drain_bell(*worker),
            Self::Guest { end, vp, .. } => end.drain_bell(*vp),
        }
    }

    /// What becomes readable when the peer rings; `None` if this link has no bells.
    pub(crate) fn bell(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Root { end, worker, .. } => end.worker_bell(*worker),
            Self::Guest { end, vp, .. } => end.vp_bell(*vp),
        }
    }
}
