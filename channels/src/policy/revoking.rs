//! Permissions that somebody took back, whatever the agent says.

use vmbus_core::Guid;

use super::question::{Question, Who};
use crate::error::Refusal;

/// What is taken back. All but a channel stays so until [`Root::reinstate`](crate::Root::reinstate).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Revoke {
    /// A partition's place on the bus. Its process or machine may attach again, under another number.
    Partition(u32),
    /// The place of all partitions of this name, now and later.
    Name(String),
    /// A device.
    Device {
        /// The device.
        instance: Guid,
        /// From this partition only; without it, from all.
        partition: Option<u32>,
    },
    /// One open channel. The device is offered anew, and policy decides about the next open.
    Channel {
        /// The partition.
        partition: u32,
        /// The channel.
        relid: u32,
    },
    /// A service that streams connect to; also a class of devices.
    Service(Guid),
}

impl Revoke {
    /// Whether this is about what is asked.
    pub(crate) fn covers(&self, who: &Who, question: &Question) -> bool {
        match self {
            Self::Partition(id) => who.id == *id,
            Self::Name(name) => *who.name == **name,
            Self::Device { instance, partition } => {
                partition.is_none_or(|partition| partition == who.id)
                    && question.device().is_some_and(|device| device.instance == *instance)
            }
            Self::Channel { .. } => false,
            Self::Service(service) => match question {
                Question::Connect { service: asked, .. } => asked == service,
                _ => question.device().is_some_and(|device| device.class == *service),
            },
        }
    }
}

/// What was revoked, and why.
#[derive(Clone, Debug)]
pub(crate) struct Revoked {
    pub(crate) what: Revoke,
    pub(crate) refusal: Refusal,
}
