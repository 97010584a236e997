//! Broken rules, as typed events.

use super::{ChannelState, DeviceKey, Quota};
use crate::Version;
use crate::message::{Message, MessageError};
use crate::pages::GpadlError;

/// Who broke a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The other end.
    Peer,
    /// This end: the caller of the state machine.
    Ours,
}

/// A broken rule. Never fatal by itself: the message or call had no effect but the answer that the protocol prescribes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Posted to a connection that takes no messages.
    #[error("the guest posted to connection {connection_id:#x}, which takes no messages")]
    UnknownConnection {
        /// The connection.
        connection_id: u32,
    },
    /// The payload is not a message that may come now.
    #[error("the guest sent a bad message: {0}")]
    Malformed(MessageError),
    /// A message that the state of the connection does not allow.
    #[error("the guest sent {message} while {state}")]
    OutOfPlace {
        /// The message.
        message: &'static str,
        /// The state of the connection.
        state: &'static str,
    },
    /// Offers can be requested once.
    #[error("the guest requested the offers twice")]
    OffersRequestedTwice,
    /// A contact for a trust level that nobody serves here.
    #[error("the guest contacted trust level {vtl} with version {version}, which is not served")]
    UnservedTrustLevel {
        /// The version.
        version: Version,
        /// Virtual trust level.
        vtl: u8,
    },
    /// A contact for an interrupt source that does not exist.
    #[error("the guest wants its messages on interrupt source {sint}, which does not exist")]
    NoSuchSint {
        /// Synthetic interrupt source.
        sint: u8,
    },
    /// The guest was offered no channel of this id.
    #[error("the guest sent {message} for channel {relid}, which it was not offered")]
    UnknownChannel {
        /// The message.
        message: &'static str,
        /// The channel.
        relid: u32,
    },
    /// A message that the state of the channel does not allow.
    #[error("the guest sent {message} for channel {relid}, which is {state}")]
    WrongState {
        /// The message.
        message: &'static str,
        /// The channel.
        relid: u32,
        /// Its state.
        state: ChannelState,
    },
    /// An open that cannot be served.
    #[error("the guest opened channel {relid} with {what}")]
    BadOpen {
        /// The channel.
        relid: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No such page list, or not on this channel, or not one that can be torn down at present.
    #[error("the guest sent {message} for page list {gpadl:#x}, which is none that it could be sent for")]
    UnknownGpadl {
        /// The message.
        message: &'static str,
        /// The page list.
        gpadl: u32,
    },
    /// The name is in use or 0.
    #[error("the guest named a page list of channel {relid} {gpadl:#x}, which is taken")]
    GpadlNameTaken {
        /// The channel.
        relid: u32,
        /// The page list.
        gpadl: u32,
    },
    /// The page list contradicts itself, or is larger than allowed.
    #[error("the guest sent a bad page list {gpadl:#x} for channel {relid}: {error}")]
    BadGpadl {
        /// The channel.
        relid: u32,
        /// The page list.
        gpadl: u32,
        /// What is wrong with it.
        error: GpadlError,
    },
    /// One of two monitor pages is missing.
    #[error("the guest gave one monitor page of two")]
    HalfMonitor,
    /// A bound is reached.
    #[error("the guest wants more {quota} than it may have, {limit}")]
    OverQuota {
        /// Which bound.
        quota: Quota,
        /// Its value.
        limit: usize,
    },
    /// The device's channel is offered already.
    #[error("device {device:?} is offered twice")]
    OfferedTwice {
        /// The device.
        device: DeviceKey,
    },
    /// No such device is offered.
    #[error("device {device:?} is rescinded but not offered")]
    NotOffered {
        /// The device.
        device: DeviceKey,
    },
    /// An answer that no action asked for.
    #[error("{answer} was reported for channel {relid}, which does not wait for it")]
    UnexpectedAnswer {
        /// The answer.
        answer: &'static str,
        /// The channel.
        relid: u32,
    },
}

impl Fault {
    /// Whose fault it is.
    pub fn whose(&self) -> Whose {
        match self {
            Self::UnknownConnection { .. }
            | Self::Malformed(_)
            | Self::OutOfPlace { .. }
            | Self::OffersRequestedTwice
            | Self::UnservedTrustLevel { .. }
            | Self::NoSuchSint { .. }
            | Self::UnknownChannel { .. }
            | Self::WrongState { .. }
            | Self::BadOpen { .. }
            | Self::UnknownGpadl { .. }
            | Self::GpadlNameTaken { .. }
            | Self::BadGpadl { .. }
            | Self::HalfMonitor
            | Self::OverQuota { .. } => Whose::Peer,
            Self::OfferedTwice { .. } | Self::NotOffered { .. } | Self::UnexpectedAnswer { .. } => {
                Whose::Ours
            }
        }
    }

    /// A message that has no place at the host.
    pub(super) fn out_of_place(message: &Message<'_>) -> Self {
        Self::Malformed(MessageError::WrongDirection(message.info().number))
    }
}
