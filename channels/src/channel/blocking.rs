//! The channel for driver threads and poll loops: no runtime, a descriptor for every wait.

use std::time::Duration;

use smallvec::SmallVec;
use vmbus_ringbuf::{GpaRange, Outgoing};

use super::in_flight::Replay;
use super::{Channel, Completions, Pending, Reply, Request, gpa_range, replies};
use crate::buffer::BufferRange;
use crate::error::ChannelError;

/// A request whose reply is told by its tag.
#[derive(Clone, Debug)]
pub struct Tagged {
    /// The caller's name for it.
    pub tag: u64,
    /// Payload.
    pub payload: SmallVec<[u8; 64]>,
    /// Memory that the peer may access until it completes the request.
    pub range: Option<BufferRange>,
}

/// A [`Channel`] whose waits block the calling thread.
#[derive(Debug)]
pub struct BlockingChannel {
    pub(super) channel: Channel,
}

impl BlockingChannel {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// How long this channel looks for work before it sleeps.
    pub fn set_spin(&self, spin: crate::Spin) {
        self.channel.set_spin(spin);
    }

    /// As [`Channel::recv`].
    ///
    /// # Errors
    /// As [`Channel::recv`].
    pub fn recv(&self) -> Result<Option<Request>, ChannelError> {
        self.channel.core.recv_blocking(None)
    }

    /// As [`Channel::recv`], for at most `timeout`.
    ///
    /// # Errors
    /// As [`Channel::recv`], and [`ChannelError::TimedOut`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<Request>, ChannelError> {
        self.channel.core.recv_blocking(Some(timeout))
    }

    /// As [`Channel::try_recv`].
    ///
    /// # Errors
    /// As [`Channel::try_recv`].
    pub fn try_recv(&self, at_most: usize, into: &mut impl Extend<Request>) -> Result<usize, ChannelError> {
        self.channel.try_recv(at_most, into)
    }

    /// As [`Channel::completions`].
    pub fn completions(&self) -> Completions {
        self.channel.completions()
    }

    /// As [`Channel::send`].
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send(
        &self,
        payload: &[u8],
        ranges: impl IntoIterator<Item = BufferRange>,
    ) -> Result<Pending, ChannelError> {
        let ranges: replies::Held = ranges.into_iter().collect();
        let pending = Pending::start(&self.channel.core, ranges.clone());
        if ranges.is_empty() {
            self.channel.core.send_blocking(&Outgoing::request(pending.id, payload), Replay::Again)?;
        } else {
            let ranges: smallvec::SmallVec<[GpaRange<'_>; 4]> = ranges.iter().map(gpa_range).collect();
            let packet = Outgoing::gpa_direct(pending.id, &ranges, payload);
            self.channel.core.send_blocking(&packet, Replay::Again)?;
        }
        Ok(pending.sent())
    }

    /// Sends as many of `requests` (tag, payload, memory) as there is room for now, with one signal at most; gives how
    /// many. Their replies come by [`replies`](Self::replies), with their tags. At least one is sent if any is given:
    /// for that this waits. What a dying root has not answered runs again on a channel that survives that.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn submit(&self, requests: &[Tagged]) -> Result<usize, ChannelError> {
        self.channel.core.submit_tagged(requests)
    }

    /// Collects replies to tagged requests, waiting for at least one if `wait`; gives how many were added to `into`.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] if the channel has ended; none of the outstanding requests will be answered.
    pub fn replies(&self, into: &mut Vec<(u64, Reply)>, wait: bool) -> Result<usize, ChannelError> {
        self.channel.core.tagged_replies(into, wait)
    }

    /// As [`Channel::notify`].
    ///
    /// # Errors
    /// As [`Channel::notify`].
    pub fn notify(&self, payload: &[u8]) -> Result<(), ChannelError> {
        self.channel.core.send_blocking(&Outgoing::in_band(payload), Replay::Never)
    }

    /// Reads the ring once and hands replies to their [`Pending`].
    ///
    /// # Errors
    /// As [`Channel::recv`].
    pub fn poll_replies(&self) -> Result<(), ChannelError> {
        self.channel.core.judge(self.channel.core.route_replies())
    }
}
