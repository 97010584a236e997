//! How a guest opens a channel.

use std::fmt;

use vmbus_core::client::SignalParameters;
use vmbus_core::message::UserDefined;

use super::resume::Greeting;
use crate::channel::Channel;

/// How a guest opens a channel. The default takes everything as the guest was set up.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// `None`: as the guest was set up.
    pub(super) ring_pages: Option<usize>,
    pub(super) user_data: UserDefined,
    /// `None`: the channel ends with its root.
    pub(super) on_resume: Option<Greeting>,
    pub(super) low_latency: bool,
    pub(super) target_vp: Option<u32>,
    pub(super) signals: Option<SignalParameters>,
}

impl OpenOptions {
    /// The usual way.
    pub fn new() -> Self {
        Self::default()
    }

    /// Data pages of each of the two rings, at least 1;
    /// [`GuestBuilder::ring_pages`](crate::GuestBuilder::ring_pages) without this.
    pub fn ring_pages(mut self, pages: usize) -> Self {
        self.ring_pages = Some(pages.max(1));
        self
    }

    /// The event area of this guest in which the root signals, below
    /// [`vps`](vmbus_partition::GuestInfo::vps); the guest chooses without this. 0 is shared by all channels that want it,
    /// any other serves one.
    pub fn target_vp(mut self, vp: u32) -> Self {
        self.target_vp = Some(vp);
        self
    }

    /// Other signals than those of the offer, for this open alone: the connection on which this guest will signal (24
    /// bits, not 0), and the event flag that the root will set (1 to 2047). Roots of 6.0 alone know this.
    pub fn signals(mut self, connection_id: u32, event_flag: u16) -> Self {
        self.signals = Some(SignalParameters { connection_id, event_flag });
        self
    }

    /// Signals the root at once even where it would look for a bit of ours from time to time
    /// ([`Offer::monitored`](crate::Offer::monitored)).
    pub fn low_latency(mut self) -> Self {
        self.low_latency = true;
        self
    }

    /// Bytes that the device protocol gives a meaning; zeros without this.
    pub fn user_data(mut self, bytes: UserDefined) -> Self {
        self.user_data = bytes;
        self
    }

    /// Lets the channel outlive its root, where the guest does ([`GuestBuilder::resume`](crate::GuestBuilder::resume)).
    ///
    /// When the device is there again, at another root, `greet` gets a channel to it, and says what the device's
    /// protocol wants said first: the root knows nothing of what was before. When it is done, requests that nobody has
    /// answered are sent again, in their order, except those sent with [`Replay::Never`](crate::Replay::Never), which
    /// end as [`Interrupted`](crate::ChannelError::Interrupted); then the channel goes on. Users of the channel wait
    /// meanwhile. An error ends the channel. Requests of the old root go unanswered, and packets that want no answer
    /// may be lost.
    ///
    /// `greet` must wait for the answers to all that it sends, and answer all that it takes. It is held by the guest:
    /// a handle of the guest or of the channel in it would keep both for ever.
    pub fn on_resume<F, E>(mut self, greet: impl Fn(Channel) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        self.on_resume = Some(Greeting::new(greet));
        self
    }
}
