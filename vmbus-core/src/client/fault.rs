//! How things fail at a client: by the host's answer, by the host's fault, or by our own.

use crate::message::MessageError;
use crate::server::Whose;
use crate::{Status, Version};

/// Why something that was begun came to nothing. Nobody broke a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The host refused.
    #[error("the host refused: {0}")]
    Refused(Status),
    /// Our own policy refused; the host was not asked.
    #[error("our policy refused: {0}")]
    Denied(Status),
    /// The host took the channel back.
    #[error("the host took the channel back")]
    Rescinded,
    /// We gave it up ourselves before the answer came.
    #[error("given up before the host answered")]
    Cancelled,
    /// The connection ended.
    #[error("the connection to the host ended")]
    Disconnected,
}

/// Why a call was not accepted. Always the caller's fault; nothing was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// There is no connection, or there is one already where none may be.
    #[error("not in this state of the connection: {0}")]
    Connection(&'static str),
    /// The range of versions is empty.
    #[error("the range of versions is empty")]
    NoVersion,
    /// The version or the features agreed on do not know this.
    #[error("version {0} and its features do not allow this")]
    NotNegotiated(Version),
    /// No such channel was offered, or it was released.
    #[error("no channel {0}")]
    NoChannel(u32),
    /// The channel's state does not allow it.
    #[error("channel {relid} is {state}")]
    ChannelState {
        /// The channel.
        relid: u32,
        /// Its state.
        state: super::ChannelState,
    },
    /// The channel still has page lists; tear them down first.
    #[error("channel {0} still has page lists")]
    GpadlsLeft(u32),
    /// No such page list on this channel, or it is not ready.
    #[error("page list {0:#x} is not ready")]
    NoGpadl(u32),
    /// The page list is the rings of an open channel; close it first.
    #[error("page list {0:#x} is the rings of an open channel")]
    GpadlInUse(u32),
    /// All names of page lists are in use.
    #[error("too many page lists")]
    TooManyGpadls,
}

/// A message of the host that breaks the rules. It had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The payload is not a message that may come now.
    #[error("the host sent a bad message: {0}")]
    Malformed(MessageError),
    /// An answer to nothing.
    #[error("the host sent {message}, which nothing asked for")]
    Unexpected {
        /// The message.
        message: &'static str,
    },
    /// An answer to nothing, for a channel.
    #[error("the host sent {message} for channel {relid}, which does not wait for it")]
    UnexpectedForChannel {
        /// The message.
        message: &'static str,
        /// The channel.
        relid: u32,
    },
    /// An answer about a page list that never was.
    #[error("the host sent {message} for page list {gpadl:#x}, which does not wait for it")]
    UnexpectedForGpadl {
        /// The message.
        message: &'static str,
        /// The page list.
        gpadl: u32,
    },
    /// An offer that contradicts itself or another one.
    #[error("the host offered channel {relid} with {what}")]
    BadOffer {
        /// The channel.
        relid: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The answer to a contact that cannot be used.
    #[error("the host accepted version {version} with {what}")]
    BadVersionResponse {
        /// The version.
        version: Version,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A connection of the host went away.
    #[error("the host's connection {connection_id:#x} does not exist any more")]
    ConnectionGone {
        /// The connection.
        connection_id: u32,
    },
}

impl Fault {
    /// Whose fault it is: our own are [`ClientError`].
    pub fn whose(&self) -> Whose {
        match self {
            Self::Malformed(_)
            | Self::Unexpected { .. }
            | Self::UnexpectedForChannel { .. }
            | Self::UnexpectedForGpadl { .. }
            | Self::BadOffer { .. }
            | Self::BadVersionResponse { .. }
            | Self::ConnectionGone { .. } => Whose::Peer,
        }
    }
}
