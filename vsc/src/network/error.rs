//! What can go wrong with a NIC, and whose fault it is.

use vmbus_channels::{ChannelError, Error};
use vmbus_core::network::nvsp::{self, NvspError};
use vmbus_core::network::rndis::{self, RndisError};
use vmbus_core::network::{Oid, Version};

/// Why a NIC could not be opened or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The device could not be opened, or there is no memory for its buffers.
    #[error(transparent)]
    Open(#[from] Error),
    /// The bus failed; [`ChannelError::Closed`] if the device or its root is gone.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The provider knows no version that we know.
    #[error("the provider supports none of the network protocol versions {oldest} to {newest}")]
    NoCommonVersion {
        /// Oldest that was asked for.
        oldest: Version,
        /// Newest that was asked for.
        newest: Version,
    },
    /// The provider refused a step of the start.
    #[error("the provider refused {step}: {status}")]
    Refused {
        /// What was asked.
        step: &'static str,
        /// Its answer.
        status: nvsp::Status,
    },
    /// The provider does not do what it was asked, or not like this.
    #[error("the device refused {oid}: {status}")]
    Object {
        /// What was asked or set.
        oid: Oid,
        /// Its answer.
        status: rndis::Status,
    },
    /// The provider did not reset the device.
    #[error("the device refused to be reset: {0}")]
    Reset(rndis::Status),
    /// The provider's message makes no sense. Its fault.
    #[error("the provider answered {0} with what is no answer")]
    Answer(&'static str),
    /// The provider's message is none. Its fault.
    #[error(transparent)]
    Nvsp(#[from] NvspError),
    /// The provider's RNDIS message is none. Its fault.
    #[error(transparent)]
    Rndis(#[from] RndisError),
    /// The provider states sizes that cannot be. Its fault.
    #[error("the provider divides {what} of {len} bytes into {count} pieces of {size} bytes")]
    Division {
        /// Which buffer.
        what: &'static str,
        /// Its size.
        len: usize,
        /// Pieces.
        count: u32,
        /// Bytes each.
        size: u32,
    },
    /// At another root the device is not what it was, so that the NIC cannot go on.
    #[error("another root has another network device: {0}")]
    Changed(String),
    /// The root went before it answered. The NIC goes on.
    #[error("the root was restarted before it answered")]
    Interrupted,
    /// A frame that is shorter than an Ethernet header, or longer than the NIC sends. The caller's fault.
    #[error("a frame of {len} bytes, the NIC sends 14 to {most}")]
    FrameLength {
        /// Bytes of the frame.
        len: usize,
        /// The longest.
        most: usize,
    },
    /// The provider does not offer to do that with a frame. The caller's fault.
    #[error("the device does not offer {0}")]
    NotOffered(&'static str),
    /// The frame is one that a former root delivered, and its memory is used for others. Nobody's fault.
    #[error("the frame went with the root that delivered it")]
    Stale,
}

impl NicError {
    /// Whether the root's restart is why a step did not end, so that it may be tried again.
    pub(super) fn is_interruption(&self) -> bool {
        match self {
            Self::Channel(ChannelError::Interrupted | ChannelError::NotResumed { .. })
            | Self::Interrupted => true,
            Self::Open(_)
            | Self::Channel(_)
            | Self::NoCommonVersion { .. }
            | Self::Refused { .. }
            | Self::Object { .. }
            | Self::Reset(_)
            | Self::Answer(_)
            | Self::Nvsp(_)
            | Self::Rndis(_)
            | Self::Division { .. }
            | Self::Changed(_)
            | Self::FrameLength { .. }
            | Self::NotOffered(_)
            | Self::Stale => false,
        }
    }
}
