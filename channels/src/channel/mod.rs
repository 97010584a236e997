//! An open channel: packets both ways, with as many requests in flight as the rings hold.

mod arrivals;
mod blocking;
mod core;
mod exchange;
mod flow;
mod in_flight;
mod lending;
mod queue;
mod receiving;
mod replies;
mod request;
mod resting;
mod retarget;
mod routing;
mod saving;
mod sending;
mod side;
mod storms;
mod stream;
mod subchannels;
mod survival;
mod swap;
mod wait;
mod writes;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use vmbus_ringbuf::{GpaRange, Outgoing, OutgoingKind, Pfns, TransferRange};

pub use self::blocking::{BlockingChannel, Tagged};
pub(crate) use self::core::{Core, Limits};
pub use self::exchange::Arrivals;
pub(crate) use self::flow::spin_for;
pub use self::in_flight::Replay;
pub(crate) use self::lending::Lend;
use self::lending::Lends;
pub use self::lending::Lent;
pub(crate) use self::queue::{WAITING_AT_GUEST, WAITING_AT_ROOT};
pub use self::replies::Reply;
pub use self::request::{Completions, Request};
pub(crate) use self::retarget::Retarget;
pub(crate) use self::saving::{SavedChannel, are_awaited};
pub(crate) use self::side::{Bit, Doorbell, Flag, Side};
pub(crate) use self::stream::{Read, Written};
pub(crate) use self::subchannels::{Admit, Ask};
pub(crate) use self::writes::Writes;
use crate::buffer::BufferRange;
use crate::error::ChannelError;
use crate::spin::Spin;

/// One end of an open channel. Both ends have the same one: either may send requests and complete the other's.
///
/// All methods work on a shared reference, from several tasks at a time; requests go to whoever receives first.
/// Dropping it closes the channel.
pub struct Channel {
    core: Arc<Core>,
    /// The root's end of a primary channel can have sub-channels.
    subchannels: Option<Ask>,
    /// The guest's end can say where it is signalled.
    retarget: Option<Retarget>,
    /// Memory beside the rings.
    lends: Option<Lends>,
    _end: End,
}

/// Closes the channel when its handle is gone.
struct End(Arc<Core>, Option<Box<dyn FnOnce() + Send + Sync>>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.let_go();
        if let Some(then) = self.1.take() {
            then();
        }
    }
}

impl Channel {
    /// `then` runs after the handle is gone.
    pub(crate) fn new(core: Arc<Core>, then: Option<Box<dyn FnOnce() + Send + Sync>>) -> Self {
        Self {
            core: Arc::clone(&core),
            subchannels: None,
            retarget: None,
            lends: None,
            _end: End(core, then),
        }
    }

    /// How long this channel looks for work before it sleeps; [`Spin::adaptive`] without this.
    pub fn set_spin(&self, spin: Spin) {
        self.core.set_spin(spin);
    }

    /// The completion payload that is sent in place of a request that was dropped unanswered. Without it such a drop
    /// closes the channel, since a completion has no status of its own. Counts once.
    pub fn answer_abandoned_with(&self, payload: impl Into<Bytes>) {
        let _ = self.core.abandoned.set(payload.into());
    }

    /// Says that nobody is going to [`recv`](Self::recv): packets that want no answer are dropped. Without this they
    /// wait for who receives them, and when many do, replies behind them wait as well.
    pub fn discard_notices(&self) {
        self.core.deaf.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// The next request, or `None` once the channel is closed.
    ///
    /// # Errors
    /// [`ChannelError::Ring`], [`ChannelError::Memory`], [`ChannelError::Protocol`]: the peer broke its rules, and
    /// the channel is closed.
    pub async fn recv(&self) -> Result<Option<Request>, ChannelError> {
        self.core.recv().await
    }

    /// Takes up to `at_most` requests that are there already, without waiting; gives how many.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn try_recv(&self, at_most: usize, into: &mut impl Extend<Request>) -> Result<usize, ChannelError> {
        self.core.judge(self.core.try_recv(at_most, into))
    }

    /// A batch for completing several requests with one signal.
    pub fn completions(&self) -> Completions {
        Completions::new(&self.core)
    }

    /// Sends a request with `payload` and access to `ranges`, and gives what will have its reply. Waits for ring
    /// space if there is none. The peer may access the ranges' memory until it completes the request.
    ///
    /// # Errors
    /// [`ChannelError::Closed`]; [`ChannelError::TooLarge`]: our own fault; [`ChannelError::Ring`]: the peer's.
    pub async fn send(
        &self,
        payload: &[u8],
        ranges: impl IntoIterator<Item = BufferRange>,
    ) -> Result<Pending, ChannelError> {
        self.send_with(payload, ranges, Replay::Again).await
    }

    /// [`send`](Self::send), with a word on what happens to the request if the root dies before it answers. It counts
    /// where the channel survives that ([`OpenOptions::on_resume`](crate::OpenOptions::on_resume)).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_with(
        &self,
        payload: &[u8],
        ranges: impl IntoIterator<Item = BufferRange>,
        replay: Replay,
    ) -> Result<Pending, ChannelError> {
        let ranges: replies::Held = ranges.into_iter().collect();
        let pending = Pending::start(&self.core, ranges.clone());
        with_packet(pending.id, payload, &ranges, async |packet| self.core.send(&packet, replay).await)
            .await?;
        Ok(pending.sent())
    }

    /// Sends a packet that nobody answers. One that a dying root has not read is lost, whatever the channel survives.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn notify(&self, payload: &[u8]) -> Result<(), ChannelError> {
        self.core.send(&Outgoing::in_band(payload), Replay::Never).await
    }

    /// Sends a request that refers to `ranges` of transfer-page set `set_id`.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_transfer_pages(
        &self,
        set_id: u16,
        ranges: &[TransferRange],
        payload: &[u8],
    ) -> Result<Pending, ChannelError> {
        self.send_transfer_pages_with(set_id, ranges, payload, Replay::Again).await
    }

    pub(crate) async fn send_transfer_pages_with(
        &self,
        set_id: u16,
        ranges: &[TransferRange],
        payload: &[u8],
        replay: Replay,
    ) -> Result<Pending, ChannelError> {
        let pending = Pending::start(&self.core, replies::Held::new());
        let kind = OutgoingKind::TransferPages { set_id, ranges };
        let packet = Outgoing { kind, transaction_id: pending.id, completion_requested: true, payload };
        self.core.send(&packet, replay).await?;
        Ok(pending.sent())
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The same channel for a thread without a runtime.
    pub fn into_blocking(self) -> BlockingChannel {
        self.core.wait.leave_reactor();
        BlockingChannel::new(self)
    }

    /// Returns when the other end has closed the channel, withdrawn the device or gone.
    pub async fn closed(&self) {
        self.core.closed().await;
    }

    /// Why the root has taken the channel away, in a guest that was told so.
    pub fn closed_because(&self) -> Option<&str> {
        self.core.why().filter(|_| self.is_closed())
    }

    /// Whether the channel is closed.
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Channel").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

/// Calls `send` with the packet for `payload` and `ranges`.
async fn with_packet(
    id: u64,
    payload: &[u8],
    ranges: &[BufferRange],
    send: impl AsyncFnOnce(Outgoing<'_>) -> Result<(), ChannelError>,
) -> Result<(), ChannelError> {
    if ranges.is_empty() {
        return send(Outgoing::request(id, payload)).await;
    }
    let ranges: smallvec::SmallVec<[GpaRange<'_>; 4]> = ranges.iter().map(gpa_range).collect();
    send(Outgoing::gpa_direct(id, &ranges, payload)).await
}

fn gpa_range(range: &BufferRange) -> GpaRange<'static> {
    GpaRange {
        byte_count: range.byte_count(),
        byte_offset: range.byte_offset(),
        pfns: Pfns::From(range.first_pfn()),
    }
}

/// A request that was sent and has not been answered.
///
/// Dropping it forgets the reply; the memory it shares stays shared until the peer completes it.
#[must_use = "the reply is lost without it"]
pub struct Pending {
    core: Arc<Core>,
    id: u64,
    state: PendingState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PendingState {
    Unsent,
    Sent,
    Answered,
}

impl Pending {
    fn start(core: &Arc<Core>, held: replies::Held) -> Self {
        let id = core::lock(&core.replies).start(held);
        Self { core: Arc::clone(core), id, state: PendingState::Unsent }
    }

    fn sent(mut self) -> Self {
        self.state = PendingState::Sent;
        self
    }

    /// The completion's payload, a multiple of 8 bytes.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] if the channel ended before the peer answered; [`ChannelError::Interrupted`] if the root
    /// died before and the request must not run again.
    pub async fn reply(mut self) -> Result<Reply, ChannelError> {
        let reply = self.core.reply(self.id).await?;
        self.state = PendingState::Answered;
        Ok(reply)
    }

    /// [`reply`](Self::reply) for a thread.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    pub fn reply_blocking(mut self) -> Result<Reply, ChannelError> {
        let reply = self.core.reply_blocking(self.id)?;
        self.state = PendingState::Answered;
        Ok(reply)
    }

    /// The reply if it has come; `Err(self)` if not. Does not look at the ring: see
    /// [`BlockingChannel::poll_replies`].
    ///
    /// # Errors
    /// The request itself, still pending: also for one that was interrupted, of which [`reply`](Self::reply) tells.
    pub fn try_reply(mut self) -> Result<Reply, Self> {
        let reply = core::lock(&self.core.replies).take_reply(self.id);
        match reply {
            Some(reply) => {
                self.state = PendingState::Answered;
                Ok(reply)
            }
            None => Err(self),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        match self.state {
            PendingState::Unsent => core::lock(&self.core.replies).cancel(self.id),
            PendingState::Sent => core::lock(&self.core.replies).abandon(self.id),
            PendingState::Answered => {}
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pending").field("id", &self.id).finish_non_exhaustive()
    }
}
