//! What a device says of itself when it is offered.

use std::time::Duration;

use vmbus_core::Guid;
use vmbus_core::message::{OfferFlags, UserDefined};

/// How packets of a channel are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Packets as they are, with requests and completions.
    Packets,
    /// A byte stream ([`BytePipe`](crate::BytePipe)).
    ByteStream,
    /// A sequence of messages ([`MessagePipe`](crate::MessagePipe)).
    Messages,
}

/// A device to offer. Only the class is needed.
#[derive(Clone, Debug)]
pub struct Offer {
    pub(crate) class: Guid,
    pub(crate) instance: Option<Guid>,
    pub(crate) name: String,
    pub(crate) framing: Framing,
    pub(crate) user_defined: UserDefined,
    pub(crate) completion_room: usize,
    pub(crate) requests: usize,
    more_flags: OfferFlags,
    /// In units of 100 ns.
    pub(crate) monitor_latency: Option<u16>,
}

impl Offer {
    /// A device of class `class`. `name` is for people: it appears in listings and errors.
    pub fn new(class: Guid, name: impl Into<String>) -> Self {
        Self {
            class,
            instance: None,
            name: name.into(),
            framing: Framing::Packets,
            user_defined: UserDefined::default(),
            completion_room: 128,
            requests: 1024,
            more_flags: OfferFlags::empty(),
            monitor_latency: None,
        }
    }

    /// The instance GUID. Without it the root makes one that no other device of its bus has.
    pub fn instance(mut self, instance: Guid) -> Self {
        self.instance = Some(instance);
        self
    }

    /// How packets are framed; [`Framing::Packets`] without this.
    pub fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        if framing != Framing::Packets {
            // Pipes have no completions.
            self.completion_room = 0;
        }
        self
    }

    /// Bytes that the device protocol gives a meaning. Overwritten by the pipe mode where there is one.
    pub fn user_defined(mut self, bytes: UserDefined) -> Self {
        self.user_defined = bytes;
        self
    }

    /// The longest completion payload, in bytes; 128 without this. That much ring space is set aside for each
    /// request before it is taken, so that completing can never fail for want of room.
    pub fn completion_room(mut self, bytes: usize) -> Self {
        self.completion_room = bytes;
        self
    }

    /// How many requests of one channel may be in flight; 1024 without this. More stay in the ring.
    pub fn requests(mut self, at_most: usize) -> Self {
        self.requests = at_most.max(1);
        self
    }

    /// Flags beside those that the framing says.
    pub(crate) fn more_flags(mut self, flags: OfferFlags) -> Self {
        self.more_flags = flags;
        self
    }

    /// Lets guests that have monitor pages signal by a bit there, for which the root looks after `latency`, up to 6.5 ms,
    /// while the channel is in use, and at least every 8 ms while it is not: no call for each signal, for a delay and
    /// some processor time as long as the channel is open. For devices that are not in a hurry, and for guests that
    /// signal in no other way.
    pub fn monitored(mut self, latency: Duration) -> Self {
        let ticks = u16::try_from(latency.as_nanos() / 100).unwrap_or(u16::MAX);
        self.monitor_latency = Some(ticks.max(1));
        self
    }

    pub(crate) fn flags(&self) -> OfferFlags {
        let framing = match self.framing {
            Framing::Packets => OfferFlags::ENUMERATE_DEVICE_INTERFACE,
            Framing::ByteStream | Framing::Messages => {
                OfferFlags::ENUMERATE_DEVICE_INTERFACE | OfferFlags::NAMED_PIPE_MODE
            }
        };
        framing | self.more_flags
    }

    /// The user-defined bytes with the pipe mode in front, if there is one.
    pub(crate) fn wire_user_defined(&self) -> UserDefined {
        let mut bytes = self.user_defined;
        let mode: u32 = match self.framing {
            Framing::Packets => return bytes,
            Framing::ByteStream => 0,
            Framing::Messages => 4,
        };
        bytes.0[..4].copy_from_slice(&mode.to_le_bytes());
        bytes
    }
}
