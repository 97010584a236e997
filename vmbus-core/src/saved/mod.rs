//! State machines saved to bytes, and what is wrong with bytes that cannot be restored.
//!
//! [`Server::save`](crate::server::Server::save) and [`Client::save`](crate::client::Client::save) work at every step,
//! [`Server::restore`](crate::server::Server::restore) and [`Client::restore`](crate::client::Client::restore) make
//! state machines that go on as the saved ones would have. Here is only the encoding, protobuf, apart from the state:
//! every field is optional, old code skips fields that it does not know, and new code gives those that are missing a
//! value under which old state means what it meant. Nothing but numbers is saved: offsets and names, no addresses of
//! ours.
//!
//! The bytes are not trusted. Decoding holds not much more than they have, and restoring checks every value, every
//! relation between them, and the quotas of the server that is to take them over.

mod bounds;
pub(crate) mod client;
pub(crate) mod parts;
pub(crate) mod server;

use alloc::vec::Vec;

use prost::Message;

pub use bounds::check as check_parts;

use crate::server::{AskId, DeviceKey, Quota};

/// What a [`Server`](crate::server::Server) was when it was saved.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedServer(pub(crate) server::Server);

/// What a [`Client`](crate::client::Client) was when it was saved.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedClient(pub(crate) client::Client);

/// Says at the end of the bytes whose state they are, and that they are all there.
const SERVER: u32 = 0x5352_5631;
const CLIENT: u32 = 0x434c_4e31;

impl SavedServer {
    /// The state as bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.0.encode_to_vec()
    }

    /// The state that these bytes encode. Whether it can be restored is another question. Errors are the fault of
    /// whoever kept the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        bounds::check(bytes)?;
        let server = server::Server::decode(bytes).map_err(|_| DecodeError::Encoding)?;
        if server.kind == SERVER { Ok(Self(server)) } else { Err(DecodeError::NotThis("a server")) }
    }

    /// Gives its devices other names, as another root knows them. Two that get the same make a state that is not
    /// restored.
    pub fn rename_devices(&mut self, name: impl Fn(DeviceKey) -> DeviceKey) {
        for channel in &mut self.0.channels {
            channel.device = name(DeviceKey(channel.device)).0;
            if let Some(primary) = channel.offer.as_mut().and_then(|offer| offer.primary.as_mut()) {
                *primary = name(DeviceKey(*primary)).0;
            }
        }
    }

    pub(crate) fn new(server: server::Server) -> Self {
        Self(server::Server { kind: SERVER, ..server })
    }
}

impl SavedClient {
    /// The state as bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.0.encode_to_vec()
    }

    /// The state that these bytes encode. Whether it can be restored is another question. Errors are the fault of
    /// whoever kept the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        bounds::check(bytes)?;
        let client = client::Client::decode(bytes).map_err(|_| DecodeError::Encoding)?;
        if client.kind == CLIENT { Ok(Self(client)) } else { Err(DecodeError::NotThis("a client")) }
    }

    pub(crate) fn new(client: client::Client) -> Self {
        Self(client::Client { kind: CLIENT, ..client })
    }
}

/// Why a state machine cannot be saved now. The caller's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SaveError {
    /// Actions were not polled: what they say must be done, or kept, by the caller.
    #[error("{0} actions must be taken before the state is saved")]
    ActionsWaiting(usize),
}

/// Why bytes are not saved state at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They are no encoding.
    #[error("the saved state is damaged")]
    Encoding,
    /// The end is missing, or they encode something else.
    #[error("this is not the whole saved state of {0}")]
    NotThis(&'static str),
    /// They have more parts than anything could have.
    #[error("the saved state has more than {limit} parts")]
    TooManyParts {
        /// What is allowed.
        limit: usize,
    },
}

/// Why saved state is not restored: a part of it could not have come to be, or is more than the new owner may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The connection.
    #[error("the saved connection has {0}")]
    Connection(&'static str),
    /// The channel ids as a whole.
    #[error("the saved channel ids have {0}")]
    Relids(&'static str),
    /// A device's channel at a server.
    #[error("saved {device:?} has {what}")]
    Device {
        /// Our name for it.
        device: DeviceKey,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A channel at a client.
    #[error("saved channel {relid} has {what}")]
    Channel {
        /// The channel.
        relid: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A page list.
    #[error("saved page list {gpadl:#x} of channel {relid} has {what}")]
    PageList {
        /// The channel.
        relid: u32,
        /// The page list.
        gpadl: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Two things wait for the same question, or it was never asked.
    #[error("saved {0:?} cannot be")]
    Question(AskId),
    /// An hvsock connect.
    #[error("a saved connect has {0}")]
    Connect(&'static str),
    /// A message that is held back.
    #[error("a saved message has {0}")]
    Message(&'static str),
    /// More than the new owner may hold.
    #[error("the saved state has more {quota} than the {limit} allowed here")]
    OverQuota {
        /// Which bound.
        quota: Quota,
        /// Its value.
        limit: usize,
    },
}
