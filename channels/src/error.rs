//! What can go wrong, and whose fault it is.

use std::io;

use vmbus_core::Guid;
use vmbus_core::client::Failure;
use vmbus_core::status::Status;

/// Why a root or guest could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The attach socket failed or the peer broke its rules.
    #[error(transparent)]
    Link(#[from] vmbus_partition::LinkError),
    /// The root's socket cannot be used.
    #[error(transparent)]
    Listen(#[from] vmbus_partition::ListenError),
    /// The root turned the partition away.
    #[error("the root refused: {0}")]
    Refused(Refusal),
    /// No version of the protocol is known to both ends.
    #[error("the root supports none of the protocol versions {oldest} to {newest}")]
    NoCommonVersion {
        /// Oldest version asked for.
        oldest: vmbus_core::Version,
        /// Newest version asked for.
        newest: vmbus_core::Version,
    },
    /// No device that fits is offered.
    #[error("no device {0} is offered to this guest")]
    NotOffered(String),
    /// Two devices with the same instance GUID.
    #[error("a device with instance {0} is already offered")]
    InstanceTaken(Guid),
    /// Somebody listens for this service already.
    #[error("somebody listens for service {0} already")]
    ServiceTaken(Guid),
    /// What should name a service does not.
    #[error("`{0}` is no service: expected a vsock port number or a GUID")]
    NotAService(String),
    /// No partition has this number.
    #[error("no partition {0} is attached")]
    NoPartition(u32),
    /// No partition has this name.
    #[error("no guest `{0}` is attached")]
    NotAttached(String),
    /// The protocol version that was agreed has no such thing.
    #[error("{what} need protocol version {needs}, and {agreed} was agreed")]
    TooOld {
        /// What.
        what: &'static str,
        /// The first version that has it.
        needs: vmbus_core::Version,
        /// The version in use.
        agreed: vmbus_core::Version,
    },
    /// The other end did not answer in time.
    #[error("{0} did not come in time")]
    TimedOut(&'static str),
    /// The device was withdrawn while it was being opened.
    #[error("the device was withdrawn")]
    Rescinded,
    /// The other end is gone.
    #[error("the other end of the bus is gone")]
    Disconnected,
    /// The guest's shared memory is used up.
    #[error("out of shared memory: {wanted} bytes wanted, attach with more memory")]
    OutOfSharedMemory {
        /// Bytes asked for.
        wanted: usize,
    },
    /// What was asked for is not possible with the version and features agreed on, or not now. The caller's fault.
    #[error("not possible: {0}")]
    NotPossible(String),
    /// The root did not say in time that it has let go. Whatever it still holds goes with the link.
    #[error("the root did not answer within {seconds} s")]
    NoAnswer {
        /// How long it had.
        seconds: u64,
    },
    /// A channel could not be set up.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

impl Error {
    /// A call that the protocol's state machine did not take.
    pub(crate) fn not_now(error: vmbus_core::client::ClientError) -> Self {
        Self::NotPossible(error.to_string())
    }

    /// Something that was begun and came to nothing.
    pub(crate) fn failed(failure: Failure) -> Self {
        match failure {
            Failure::Refused(status) | Failure::Denied(status) => {
                Self::Refused(Refusal { status, reason: failure.to_string() })
            }
            Failure::Rescinded => Self::Rescinded,
            Failure::Cancelled | Failure::Disconnected => Self::Disconnected,
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A denial with its reason. Process guests are told the reason; virtual machines see only the status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// What the protocol's answer carries.
    pub status: Status,
    /// For people.
    pub reason: String,
}

impl Refusal {
    /// Refuses because of a rule or state that `reason` explains.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { status: Status::UNSUCCESSFUL, reason: reason.into() }
    }

    /// Refuses because policy forbids it.
    pub fn denied(reason: impl Into<String>) -> Self {
        Self { status: Status::ACCESS_DENIED, reason: reason.into() }
    }
}

/// Why a channel cannot go on, or why one packet could not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The other end closed the channel, withdrew the device or is gone. Nobody's fault.
    #[error("the channel is closed")]
    Closed,
    /// The peer broke the ring's rules; the channel cannot be used any more.
    #[error("the peer broke the ring: {0}")]
    Ring(#[from] vmbus_ringbuf::RingFault),
    /// The peer named memory that it does not have.
    #[error("the peer named memory it does not have: {0}")]
    Memory(#[from] vmbus_partition::GpaError),
    /// The peer's packet does not follow the device protocol.
    #[error("the peer broke the device protocol: {0}")]
    Protocol(String),
    /// Our own packet is larger than the ring can ever carry.
    #[error("a packet of {len} bytes does not fit into a ring of {ring} bytes")]
    TooLarge {
        /// Bytes of payload and ranges.
        len: usize,
        /// Data bytes of the ring.
        ring: usize,
    },
    /// Our own completion is larger than what the offer set aside.
    #[error("a completion of {len} bytes exceeds the {room} bytes that the offer set aside")]
    CompletionTooLarge {
        /// Bytes of payload.
        len: usize,
        /// What `Offer::completion_room` said.
        room: usize,
    },
    /// Bytes outside of a buffer were asked for: the caller's fault.
    #[error("{len} bytes at {at} of a buffer of {size} bytes")]
    OutOfBuffer {
        /// First byte.
        at: usize,
        /// Bytes.
        len: usize,
        /// Size of the buffer.
        size: usize,
    },
    /// Policy or a quota of this end does not let in what the peer sent.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// This end or this link cannot do that: the caller's fault.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The root went before it answered, and the request must not run a second time: nobody knows whether it has run.
    /// The channel goes on. Nobody's fault.
    #[error("the root was restarted before it answered")]
    Interrupted,
    /// The channel should have survived its root and could not.
    #[error("the channel did not survive its root: {reason}")]
    NotResumed {
        /// Why.
        reason: String,
    },
    /// Nothing came in the time given.
    #[error("nothing came in time")]
    TimedOut,
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A device's own failure.
    #[error("{0}")]
    Device(String),
}

impl ChannelError {
    /// Whether the channel is of no use any more.
    pub(crate) fn ends_channel(&self) -> bool {
        match self {
            Self::Closed | Self::Ring(_) | Self::Memory(_) | Self::Protocol(_) | Self::NotResumed { .. } => {
                true
            }
            Self::Interrupted
            | Self::TooLarge { .. }
            | Self::Refused(_)
            | Self::Unsupported(_)
            | Self::OutOfBuffer { .. }
            | Self::CompletionTooLarge { .. }
            | Self::TimedOut
            | Self::Io(_)
            | Self::Device(_) => false,
        }
    }
}
