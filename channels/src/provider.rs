//! What a device author implements.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use vmbus_core::message::UserDefined;

use crate::channel::Channel;
use crate::error::{ChannelError, Refusal};
use crate::offer::Offer;

/// A device. One provider is shared by all guests; each open gets a [`Session`] of its own.
pub trait Provider: Send + Sync + 'static {
    /// What serves one open.
    type Session: Session;

    /// What the device says of itself. Asked once, when it is offered.
    fn offer(&self) -> Offer;

    /// Whether `client` gets to see the device. Asked when a guest attaches, and again for every guest that does
    /// not see it when a client for which the answer was yes has left.
    fn visible_to(&self, client: &Client) -> bool {
        let _ = client;
        true
    }

    /// `client`, for which [`visible_to`](Self::visible_to) was true, is gone from the bus.
    fn left(&self, client: &Client) {
        let _ = client;
    }

    /// Admits one open of the primary channel, or refuses it with a reason that both ends show. Must not block. Opens of
    /// sub-channels are admitted by who asked for them ([`Channel::offer_subchannels`]).
    fn open(&self, client: &Client, open: &OpenRequest) -> Result<Self::Session, Refusal>;

    /// Takes over a channel of this device, primary or sub-channel, that was open when its partition was saved; `state`
    /// is what its session gave to [`Channel::save_state`], and not to be trusted. Refused, the device is rescinded
    /// and offered again. Must not block. Refuses without this.
    fn restore(&self, client: &Client, open: &OpenRequest, state: &[u8]) -> Result<Self::Session, Refusal> {
        let _ = (client, open, state);
        Err(Refusal::new("this device cannot be restored"))
    }
}

/// The service of one open channel, from open to close.
pub trait Session: Send + 'static {
    /// Runs until [`Channel::recv`] gives `None` or the device ends. Returning early withdraws the device from this
    /// guest and offers it anew.
    fn serve(self, channel: Channel) -> impl Future<Output = Result<(), ChannelError>> + Send;
}

/// The guest at the other end of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Number of the partition, unique as long as the root runs.
    pub id: u32,
    /// Name under which the partition attached.
    pub name: Arc<str>,
    /// Process and user at the other end of the attach socket, where there is one.
    pub credentials: Option<crate::Credentials>,
}

/// What a guest asks for when it opens a channel.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// 0 for the device's primary channel.
    pub subchannel_index: u16,
    /// Data bytes of the ring from the guest.
    pub incoming_bytes: u32,
    /// Data bytes of the ring to the guest.
    pub outgoing_bytes: u32,
    /// The VP that is to get the channel's signals.
    pub target_vp: u32,
    /// Meaning by device protocol.
    pub user_data: UserDefined,
}

pub(crate) type Served = Pin<Box<dyn Future<Output = Result<(), ChannelError>> + Send>>;
pub(crate) type Start = Box<dyn FnOnce(Channel) -> Served + Send>;

/// [`Provider`] without its session type.
pub(crate) trait AnyProvider: Send + Sync {
    fn visible_to(&self, client: &Client) -> bool;
    fn left(&self, client: &Client);
    fn open(&self, client: &Client, open: &OpenRequest) -> Result<Start, Refusal>;
    fn restore(&self, client: &Client, open: &OpenRequest, state: &[u8]) -> Result<Start, Refusal>;
}

impl<P: Provider> AnyProvider for P {
    fn visible_to(&self, client: &Client) -> bool {
        Provider::visible_to(self, client)
    }

    fn left(&self, client: &Client) {
        Provider::left(self, client);
    }

    fn open(&self, client: &Client, open: &OpenRequest) -> Result<Start, Refusal> {
        Provider::open(self, client, open).map(start)
    }

    fn restore(&self, client: &Client, open: &OpenRequest, state: &[u8]) -> Result<Start, Refusal> {
        Provider::restore(self, client, open, state).map(start)
    }
}

/// What starts a session when its channel is there.
pub(crate) fn start(session: impl Session) -> Start {
    Box::new(move |channel| Box::pin(session.serve(channel)))
}
