//! The two ends of an attached partition, as a channel sees them: where to ring, where to listen, whose memory.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use vmbus_core::synic::{EVENT_CONNECTION, MonitorPlace};
use vmbus_partition::{GpaSpace, GuestEnd, GuestPages, RootEnd, SealedGift, Watched};

use super::writes::Writes;
use crate::buffer::Buffer;
use crate::error::ChannelError;
use crate::guest::ROOT_DOMAIN;
use crate::interrupt_page::{Half, InterruptPage};
use crate::monitor::MonitorPages;
use crate::transfer::Gifts;

/// The event flag that all channels share where the interrupt page tells them apart. It announces messages, too, and
/// comes to the same area.
const SHARED_FLAG: u16 = 0;

/// One channel's place on its partition's link.
pub(crate) enum Side {
    /// We are the root; the channel's packets come from a guest.
    Root {
        end: Arc<dyn RootEnd>,
        /// Guest VP to signal; changed by MODIFYCHANNEL. `u32::MAX` for none.
        vp: AtomicU32,
        /// How the guest is told which channel it is.
        flag: Flag,
        /// How the guest learns that its memory was written.
        writes: Arc<Writes>,
        gifts: Arc<Gifts>,
        /// Where the guest may ask for attention instead of signalling.
        bit: Option<Bit>,
    },
    /// We are a guest.
    Guest {
        end: Arc<dyn GuestEnd>,
        /// How the root is signalled.
        doorbell: Doorbell,
        gifts: Arc<Gifts>,
    },
}

/// How a root tells its guest which channel a signal is for.
pub(crate) enum Flag {
    /// By this event flag.
    Event(u16),
    /// By this bit of the interrupt page; the event flag is 0 for all. Before Win8.
    Page(InterruptPage, u16),
}

/// How a guest signals its root.
pub(crate) enum Doorbell {
    /// On a connection of the channel's own.
    Connection(u32),
    /// By this bit of the interrupt page, on the connection that all channels share. V1.
    Page(InterruptPage, u16),
    /// By this bit, for which the root looks from time to time.
    Monitor(Arc<MonitorPages>, MonitorPlace),
}

/// A channel's bit in the monitor pages of its guest.
pub(crate) struct Bit {
    pub(crate) pages: Arc<MonitorPages>,
    pub(crate) place: MonitorPlace,
    /// Tells who looks for bits that this channel is in use.
    pub(crate) active: Arc<AtomicBool>,
}

impl Side {
    pub(crate) fn is_root(&self) -> bool {
        match self {
            Self::Root { .. } => true,
            Self::Guest { .. } => false,
        }
    }

    /// Tells the peer to look. Never blocks; no system call if the peer is awake.
    pub(crate) fn ring(&self) {
        match self {
            Self::Root { end, vp, flag, .. } => match vp.load(Ordering::Relaxed) {
                u32::MAX => {}
                vp => match flag {
                    Flag::Event(flag) => end.signal(vp, *flag),
                    Flag::Page(page, relid) => {
                        page.set(Half::ToGuest, *relid);
                        end.signal(vp, SHARED_FLAG);
                    }
                },
            },
            Self::Guest { end, doorbell, .. } => match doorbell {
                Doorbell::Connection(connection_id) => end.signal(*connection_id),
                Doorbell::Page(page, relid) => {
                    // Whoever set the bit before us has signalled, and the root has not taken it yet.
                    if page.set(Half::ToHost, *relid) {
                        end.signal(EVENT_CONNECTION);
                    }
                }
                Doorbell::Monitor(pages, place) => pages.each(|page| page.request(place)),
            },
        }
    }

    /// The memory that page numbers in packets refer to.
    pub(crate) fn memory(&self) -> Arc<GpaSpace> {
        match self {
            Self::Root { end, .. } => end.memory(),
            Self::Guest { end, .. } => end.memory(),
        }
    }

    /// Signals to the guest go to another of its processors from now on, and a first one at once.
    pub(crate) fn retarget(&self, to: u32) {
        match self {
            Self::Root { vp, .. } => {
                // Either whoever writes to the ring sees the new target, or what it wrote is seen by whom we tell:
                // there is such a fence between a ring's index and the look at its mask, too.
                vp.store(to, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                self.ring();
            }
            Self::Guest { .. } => {}
        }
    }

    /// Asks the peer for one bell. `true`: it has signalled already, so do not sleep.
    pub(crate) fn arm(&self, area: u32) -> bool {
        match self {
            Self::Root { end, .. } => end.arm(area),
            Self::Guest { end, .. } => end.arm(area),
        }
    }

    /// To be called before the last look at the rings before a sleep: what the peer asked for until now is seen by that
    /// look.
    pub(crate) fn cancel_request(&self) {
        match self {
            Self::Root { bit: Some(Bit { pages, place, active }), .. } => {
                active.store(true, Ordering::Relaxed);
                pages.each(|page| page.cancel(place));
            }
            Self::Root { bit: None, .. } | Self::Guest { .. } => {}
        }
    }

    /// Clears the flags of an area that serves this channel alone, so that the next signal rings again.
    pub(crate) fn clear_flags(&self, area: u32) {
        match self {
            Self::Root { end, .. } => end.take_flags(area, &mut |_| {}),
            Self::Guest { end, .. } => end.take_flags(area, &mut |_| {}),
        }
    }

    /// Empties the bell of an area that serves this channel alone.
    pub(crate) fn drain_bell(&self, area: u32) {
        match self {
            Self::Root { end, .. } => end.clear_bell(area),
            Self::Guest { end, .. } => end.clear_bell(area),
        }
    }

    /// What becomes readable when the peer rings; `None` if this link has no bells.
    pub(crate) fn bell(&self, area: u32) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Root { end, .. } => end.worker_bell(area),
            Self::Guest { end, .. } => end.vp_bell(area),
        }
    }

    /// The same, for a reactor that keeps it. `None` too when descriptors run out.
    pub(crate) fn watch_bell(&self, area: u32) -> Option<Arc<OwnedFd>> {
        let bell = match self {
            Self::Root { end, .. } => end.watch(Watched::Bell(area)),
            Self::Guest { end, .. } => end.watch(Watched::Bell(area)),
        };
        bell.ok().flatten()
    }

    /// Memory that both ends see, for one parcel.
    pub(crate) fn share(&self, bytes: usize) -> Result<Buffer, ChannelError> {
        match self {
            Self::Root { .. } => Err(ChannelError::Unsupported("a root has no memory that a guest sees")),
            Self::Guest { end, .. } => match end.allocate(ROOT_DOMAIN, bytes) {
                Ok(pages) => Ok(Buffer::new(pages, bytes)),
                Err(error) => Err(ChannelError::Io(std::io::Error::other(error))),
            },
        }
    }

    /// Whether memory can be given to the peer.
    pub(crate) fn takes_gifts(&self) -> bool {
        match self {
            Self::Root { end, .. } => end.info().takes_gifts,
            Self::Guest { end, .. } => end.info().takes_gifts,
        }
    }

    /// Gives memory to the peer, under the name that is returned.
    pub(crate) fn give(&self, gift: SealedGift) -> Result<u32, ChannelError> {
        let id = self.gifts().next_id();
        let given = match self {
            Self::Root { end, .. } => end.give(id, gift).and_then(|()| end.flush()),
            Self::Guest { end, .. } => end.give(id, gift).and_then(|()| end.flush()),
        };
        given.map(|_| id).map_err(|error| ChannelError::Io(std::io::Error::other(error)))
    }

    /// What the peer gave.
    pub(crate) fn gifts(&self) -> &Arc<Gifts> {
        match self {
            Self::Root { gifts, .. } | Self::Guest { gifts, .. } => gifts,
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
