//! What stands at a switch's port.

use super::batch::Frames;
use super::offload::Capabilities;

/// A receiver of frames: a guest's NIC, a TAP device, a capture.
///
/// Sending is not its business: whoever connects it gets a [`Connection`](super::Connection) to send by. A port that
/// owned its own connection would keep itself alive.
pub trait Port: Send + Sync + 'static {
    /// Takes frames, in order, and says what became of them. Called on senders' threads, so of several at a time, and
    /// never while the switch holds a lock. It must not wait: what there is no room for is dropped here and counted.
    ///
    /// After the port was disconnected, calls that had begun on other threads may still be under way; none begins.
    fn deliver(&self, frames: Frames<'_>) -> Delivered;

    /// What it takes as it is. Asked for each delivery, so it may change at run time, and must cost nothing.
    fn capabilities(&self) -> Capabilities;
}

/// What became of the frames of one delivery. What appears nowhere was dropped for want of room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Frames taken.
    pub frames: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Frames that the receiver does not want: its packet filter, its multicast list.
    pub filtered: usize,
    /// Frames above its MTU.
    pub too_long: usize,
    /// Frames that came while the receiver's link was down.
    pub link_down: usize,
}

impl Delivered {
    /// All were taken.
    pub fn all(frames: Frames<'_>) -> Self {
        Self { frames: frames.len(), bytes: frames.bytes(), ..Self::default() }
    }

    /// None was: the link is down.
    pub fn link_down(frames: Frames<'_>) -> Self {
        Self { link_down: frames.len(), ..Self::default() }
    }
}

impl<P: Port + ?Sized> Port for std::sync::Arc<P> {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        P::deliver(self, frames)
    }

    fn capabilities(&self) -> Capabilities {
        P::capabilities(self)
    }
}
