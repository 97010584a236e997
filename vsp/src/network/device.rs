//! The device that a guest sees behind RNDIS, without any I/O: what it is asked and told, and what that changes
//! (`docs/src/protocol/network.md`, "RNDIS" and "Objects").

use vmbus_core::network::ndis::{
    ChecksumV4, ChecksumV6, ENCAPSULATION_802_3, Offload, PacketFilter, header_of,
};
use vmbus_core::network::rndis::{InitializeComplete, Message, RndisError, Status};

use zerocopy::IntoBytes;

use super::objects::{self, World};
use super::rss::RssTable;
use super::switch::MacAddress;

/// Bytes of the longest message about the device that is read.
pub(super) const LONGEST_CONTROL: usize = 16 << 10;
/// Messages in one packet begin at multiples of 2 to this.
const ALIGNMENT_EXPONENT: u32 = 3;
/// What is told of the longest transfer: it is not what bounds it.
const MAX_TRANSFER: u32 = 0xefff_ffff;
/// Groups that a guest may want frames of.
pub(super) const MOST_GROUPS: usize = 64;
/// Bytes of the longest frame that is cut into segments.
pub(super) const LONGEST_LARGE_SEND: u32 = 0xf53c;

/// What does not change while the adapter is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// For people.
    pub name: String,
    /// The address that it was made with.
    pub address: MacAddress,
}

/// The state of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether there is a link.
    pub connected: bool,
    /// Bits per second.
    pub speed: u64,
}

impl Default for Link {
    /// Connected, 10 Gbit/s.
    fn default() -> Self {
        Self { connected: true, speed: 10_000_000_000 }
    }
}

/// Whether the guest has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// INITIALIZE comes first, also after HALT.
    Halted,
    /// Everything else.
    Initialized,
}

/// Which coalescing the guest has switched on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Coalescing {
    /// Of IPv4.
    pub v4: bool,
    /// Of IPv6.
    pub v6: bool,
}

/// What a message about the device has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Which frames the guest gets, or how.
    pub receiving: bool,
    /// The guest is to be told how the link is.
    pub tell_link: bool,
    /// The guest is to be told which offloads are on.
    pub offload: bool,
}

/// A message that no driver sends. The guest's fault; its channel must close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// It cannot be answered.
    #[error(transparent)]
    Message(#[from] RndisError),
    /// Only hosts send this.
    #[error("the guest sent what only hosts send")]
    NotAGuests,
}

/// The device as one guest has set it up.
#[derive(Clone, Debug)]
pub struct Device {
    pub(super) identity: Identity,
    pub(super) stage: Stage,
    pub(super) filter: PacketFilter,
    pub(super) groups: Vec<[u8; 6]>,
    /// The address that the guest has chosen.
    pub(super) address: MacAddress,
    pub(super) offload: Offload,
    pub(super) coalescing: Coalescing,
    pub(super) rss: Option<RssTable>,
}

impl Device {
    /// A device that nobody has set up.
    pub fn new(identity: Identity) -> Self {
        Self {
            stage: Stage::Halted,
            filter: PacketFilter::empty(),
            groups: Vec::new(),
            address: identity.address,
            offload: capabilities(Coalescing::default()),
            coalescing: Coalescing::default(),
            rss: None,
            identity,
        }
    }

    /// Answers a message about the device in private memory; the answer's bytes are appended to `out`.
    pub fn handle(&mut self, bytes: &[u8], world: &World, out: &mut Vec<u8>) -> Result<Effect, DeviceFault> {
        let message = match Message::parse(bytes) {
            Ok(message) => message,
            Err(error) => return refuse(bytes, error, out).map(|()| Effect::default()),
        };
        match message {
            Message::Initialize { request, major, .. } => Ok(self.initialize(request, major, world, out)),
            Message::Halt { .. } => {
                self.forget();
                self.stage = Stage::Halted;
                Ok(Effect { receiving: true, ..Effect::default() })
            }
            Message::Query { request, oid, data } => {
                let mut value = Vec::new();
                let status = match self.stage {
                    Stage::Initialized => objects::query(self, world, oid, data, &mut value),
                    Stage::Halted => Err(Status::FAILURE),
                };
                let (status, data) = match status {
                    Ok(()) => (Status::SUCCESS, &value[..]),
                    Err(status) => (status, &[][..]),
                };
                Message::QueryComplete { request, status, data }.encode(out);
                Ok(Effect::default())
            }
            Message::Set { request, oid, data } => {
                let result = match self.stage {
                    Stage::Initialized => objects::set(self, world, oid, data),
                    Stage::Halted => Err(Status::FAILURE),
                };
                let status = result.err().unwrap_or(Status::SUCCESS);
                Message::SetComplete { request, status }.encode(out);
                Ok(result.unwrap_or_default())
            }
            Message::Reset => {
                self.forget();
                let status = Status::SUCCESS;
                Message::ResetComplete { status, addressing_reset: true }.encode(out);
                Ok(Effect { receiving: true, ..Effect::default() })
            }
            Message::KeepAlive { request } => {
                Message::KeepAliveComplete { request, status: Status::SUCCESS }.encode(out);
                Ok(Effect::default())
            }
            Message::InitializeComplete(_)
            | Message::QueryComplete { .. }
            | Message::SetComplete { .. }
            | Message::ResetComplete { .. }
            | Message::IndicateStatus { .. }
            | Message::KeepAliveComplete { .. } => Err(DeviceFault::NotAGuests),
        }
    }

    fn initialize(&mut self, request: u32, major: u32, world: &World, out: &mut Vec<u8>) -> Effect {
        let known = major == 1;
        if known {
            self.forget();
            self.stage = Stage::Initialized;
        }
        let complete = InitializeComplete {
            request,
            status: if known { Status::SUCCESS } else { Status::BAD_VERSION },
            max_packets: world.max_packets,
            max_transfer: MAX_TRANSFER,
            alignment_exponent: ALIGNMENT_EXPONENT,
        };
        Message::InitializeComplete(complete).encode(out);
        // What the link is now is not told: who has just begun asks. A link that is down is.
        Effect { receiving: true, tell_link: known && !world.link.connected, offload: false }
    }

    /// What is taken off its driver's hands at present, as the guest is told.
    pub fn current_offload(&self) -> Vec<u8> {
        self.offload.as_bytes().to_vec()
    }

    /// Nothing is set any more, and no frames are wanted.
    fn forget(&mut self) {
        *self = Self { stage: self.stage, ..Self::new(self.identity.clone()) };
    }
}

/// Answers what states a request but makes no sense otherwise.
fn refuse(bytes: &[u8], error: RndisError, out: &mut Vec<u8>) -> Result<(), DeviceFault> {
    use vmbus_core::network::rndis::MessageType;
    let word = |at: usize| {
        let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
        word.ok_or(DeviceFault::Message(error))
    };
    let (kind, request) = (MessageType(word(0)?), word(8)?);
    let status = Status::INVALID_DATA;
    match kind {
        MessageType::QUERY => Message::QueryComplete { request, status, data: &[] }.encode(out),
        MessageType::SET => Message::SetComplete { request, status }.encode(out),
        _ => return Err(error.into()),
    }
    Ok(())
}

/// What the device takes off its driver's hands. `coalescing` is what of that the guest could switch on.
pub(super) fn capabilities(coalescing: Coalescing) -> Offload {
    let v4 =
        ChecksumV4::IP_OPTIONS | ChecksumV4::TCP_OPTIONS | ChecksumV4::TCP | ChecksumV4::UDP | ChecksumV4::IP;
    let v6 = ChecksumV6::EXTENSION_HEADERS | ChecksumV6::TCP_OPTIONS | ChecksumV6::TCP | ChecksumV6::UDP;
    let ethernet = ENCAPSULATION_802_3.into();
    /// Extension headers and TCP options.
    const LSO_V6_OPTIONS: u32 = 0x5;
    Offload {
        header: header_of::<Offload>(),
        v4_transmit_encapsulation: ethernet,
        v4_transmit: v4.bits().into(),
        v4_receive_encapsulation: ethernet,
        v4_receive: v4.bits().into(),
        v6_transmit_encapsulation: ethernet,
        v6_transmit: v6.bits().into(),
        v6_receive_encapsulation: ethernet,
        v6_receive: v6.bits().into(),
        lso_v4_encapsulation: ethernet,
        lso_v4_max_size: LONGEST_LARGE_SEND.into(),
        lso_v4_min_segments: 2.into(),
        lso_v6_encapsulation: ethernet,
        lso_v6_max_size: LONGEST_LARGE_SEND.into(),
        lso_v6_min_segments: 2.into(),
        lso_v6_options: LSO_V6_OPTIONS.into(),
        rsc_v4: coalescing.v4.into(),
        rsc_v6: coalescing.v6.into(),
        ..Offload::default()
    }
}
