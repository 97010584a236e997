//! One guest's conversation in NVSP, without any I/O.
//!
//! Packet payloads go in, decisions come out: [`Nvsp::handle`] answers what it can answer alone, and hands the rest to
//! its caller, which tells how that went (`docs/src/protocol/network.md`, "Conversation"). Whatever a guest may wait for
//! is answered; only what no driver sends ends the conversation.

use vmbus_core::network::nvsp::{
    Buffer, Capabilities, ChannelType, Encoded, Message, MessageType, NvspError, ReceiveSection, Sender,
    Status,
};
use vmbus_core::network::{Version, rndis};

/// Bytes of a frame's Ethernet header, which the guest's MTU includes.
pub(super) const ETHERNET_HEADER: u32 = 14;
/// Bytes of a section of the send buffer.
pub(super) const SEND_SECTION: u32 = 6144;
/// Bytes of a section of the receive buffer beside the frame: the message's header and the packet info.
const RECEIVE_OVERHEAD: u32 = 256;
/// What Windows must not be given at the end of a section.
const RECEIVE_TRAILER: u32 = 36;
/// Sections begin at multiples of this, as copies to lines of their own are the fastest.
const RECEIVE_ALIGNMENT: u32 = 64;
/// Every answer of the device fits into this, however short frames are.
const SMALLEST_SECTION: u32 = 1024;
/// The same, in bytes of an answer.
pub(super) const LONGEST_ANSWER: usize = SMALLEST_SECTION as usize;
/// Fewer sections than this are no receive buffer.
const SECTIONS_AT_LEAST: u32 = 16;
/// More than this are not used.
const MOST_SECTIONS: u32 = 1 << 16;
/// A guest that states no MTU, or one that makes no sense, has this.
const USUAL_MTU: u32 = 1500;
/// The smallest MTU of an IP host.
const SMALLEST_MTU: u32 = 68;
/// What is said of the version in an answer, where it has no meaning.
const NO_VERSION: u32 = u32::MAX;
const MAX_MDL_CHAIN: u32 = 34;
/// The only operation of a request for sub-channels.
const ALLOCATE: u32 = 1;
/// Messages about virtual functions, of 6.1, whose bodies are not known here.
const VF_MESSAGES: [MessageType; 2] = [MessageType(135), MessageType(136)];

/// What an adapter offers to every guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Newest version that is accepted.
    pub newest: Version,
    /// Oldest version that is accepted.
    pub oldest: Version,
    /// Channels of one guest, the primary included.
    pub max_queues: u16,
    /// Largest MTU in bytes, without the Ethernet header.
    pub max_mtu: u32,
    /// Messages that one packet may carry.
    pub max_packets: u32,
}

impl Default for Limits {
    /// Every version, 8 queues, an MTU of up to 9216, 32 messages in one packet.
    fn default() -> Self {
        Self { newest: Version::V6_1, oldest: Version::V1, max_queues: 8, max_mtu: 9216, max_packets: 32 }
    }
}

/// The state of a conversation: what may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// INIT.
    Begin,
    /// Configuration, the version of NDIS, buffers; the first RNDIS message ends this.
    Setup(Version),
    /// RNDIS messages, sub-channels.
    Ready(Version),
}

/// A buffer by the names that the guest gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferName {
    /// The page list.
    pub gpadl: u32,
    /// Set id of transfer-page packets.
    pub id: u16,
}

/// What to do with a packet of the guest.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Complete it with this, if it wants a completion.
    Reply(Encoded),
    /// Complete it without payload, if it wants a completion.
    Done,
    /// Borrow the page list, and complete it with what [`Nvsp::buffer_borrowed`] says.
    Borrow(Buffer, BufferName),
    /// Let go of the buffer, then complete it without payload.
    LetGo(Buffer),
    /// There are RNDIS messages: `section_size` bytes of the send buffer's section, if that is not
    /// [`NO_SECTION`](vmbus_core::network::nvsp::NO_SECTION), and the packet's ranges. Complete it with
    /// [`Nvsp::packet_done`].
    Rndis {
        /// Frames, or something about the device.
        channel: ChannelType,
        /// Index of the section.
        section: u32,
        /// Bytes there.
        section_size: u32,
    },
    /// Offer this many sub-channels, and complete it with what [`Nvsp::sub_channels_offered`] says.
    OfferSubChannels(u16),
}

/// A packet that no driver sends here. The guest's fault; its channel must close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NvspFault {
    /// It cannot be read.
    #[error(transparent)]
    Message(#[from] NvspError),
    /// It is in order, but not now.
    #[error("the guest sent network message {0} too early, twice, or on the wrong channel")]
    OutOfTurn(MessageType),
}

/// The host's end of one conversation.
#[derive(Clone, Debug)]
pub struct Nvsp {
    limits: Limits,
    state: State,
    config: Option<Config>,
    ndis: Option<(u32, u32)>,
    receive: Option<BufferName>,
    send: Option<BufferName>,
    sub_channels: u16,
}

/// What the guest has said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Config {
    /// With the Ethernet header.
    mtu: u32,
    capabilities: Capabilities,
}

/// All that a conversation has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SavedParts {
    pub(super) version: Option<Version>,
    pub(super) ready: bool,
    /// Longest frame, and bits of what the guest can do.
    pub(super) config: Option<(u32, u64)>,
    pub(super) ndis: Option<(u32, u32)>,
    pub(super) receive: Option<BufferName>,
    pub(super) send: Option<BufferName>,
    pub(super) sub_channels: u16,
}

impl Nvsp {
    /// A conversation that has not begun.
    pub fn new(limits: Limits) -> Self {
        let (config, ndis, receive, send) = (None, None, None, None);
        Self { limits, state: State::Begin, config, ndis, receive, send, sub_channels: 0 }
    }

    /// What is to be remembered of it when it is saved.
    pub(super) fn parts(&self) -> SavedParts {
        SavedParts {
            version: self.version(),
            ready: matches!(self.state, State::Ready(_)),
            config: self.config.map(|config| (config.mtu, config.capabilities.bits())),
            ndis: self.ndis,
            receive: self.receive,
            send: self.send,
            sub_channels: self.sub_channels,
        }
    }

    /// A conversation where another has left it. `None`: within these limits it cannot have come to that.
    pub(super) fn from_parts(limits: Limits, parts: SavedParts) -> Option<Self> {
        let SavedParts { version, ready, config, ndis, receive, send, sub_channels } = parts;
        let state = match version {
            None => State::Begin,
            Some(version) if ready => State::Ready(version),
            Some(version) => State::Setup(version),
        };
        let possible = version.is_none_or(|version| (limits.oldest..=limits.newest).contains(&version))
            && config.is_none_or(|(mtu, _)| frames(&limits).contains(&mtu))
            && sub_channels < limits.max_queues;
        let config =
            config.map(|(mtu, bits)| Config { mtu, capabilities: Capabilities::from_bits_retain(bits) });
        possible.then_some(Self { limits, state, config, ndis, receive, send, sub_channels })
    }

    /// How far it has come.
    pub fn state(&self) -> State {
        self.state
    }

    /// The version agreed on.
    pub fn version(&self) -> Option<Version> {
        match self.state {
            State::Begin => None,
            State::Setup(version) | State::Ready(version) => Some(version),
        }
    }

    /// Bytes of the longest frame, its Ethernet header included.
    pub fn max_frame(&self) -> u32 {
        self.config.map_or(USUAL_MTU + ETHERNET_HEADER, |config| config.mtu)
    }

    /// What the guest can do.
    pub fn capabilities(&self) -> Capabilities {
        self.config.map_or(Capabilities::empty(), |config| config.capabilities)
    }

    /// The version of NDIS that the guest has stated: major and minor.
    pub fn ndis(&self) -> (u32, u32) {
        self.ndis.unwrap_or((6, 1))
    }

    /// A buffer that is in use.
    pub fn buffer(&self, buffer: Buffer) -> Option<BufferName> {
        match buffer {
            Buffer::Receive => self.receive,
            Buffer::Send => self.send,
        }
    }

    /// Whether RNDIS messages may come.
    pub fn is_ready(&self) -> bool {
        match self.state {
            State::Begin | State::Setup(_) => false,
            State::Ready(_) => true,
        }
    }

    /// The guest has torn a page list down without a word. A buffer that is gone may be followed by another.
    pub(super) fn buffer_gone(&mut self, buffer: Buffer) {
        match buffer {
            Buffer::Receive => self.receive = None,
            Buffer::Send => self.send = None,
        }
    }

    /// Sub-channels that the guest was granted.
    pub fn sub_channels(&self) -> u16 {
        self.sub_channels
    }

    /// Decides on a packet that came over the primary channel. `payload` is a private copy.
    #[inline]
    pub fn handle(&mut self, payload: &[u8]) -> Result<Step, NvspFault> {
        match Message::parse(payload, Sender::Guest, self.version()) {
            Ok(Message::Packet { channel, section, section_size }) => {
                self.packet(channel, section, section_size)
            }
            Ok(message) => self.converse(message),
            // A guest that asks for a virtual function has none, and must not wait for it.
            Err(NvspError::OutOfPlace(kind))
                if VF_MESSAGES.contains(&kind) && self.version() == Some(Version::V6_1) =>
            {
                Ok(Step::Done)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Decides on a packet that came over a sub-channel: frames alone.
    #[inline]
    pub fn handle_on_sub_channel(&self, payload: &[u8]) -> Result<Step, NvspFault> {
        let message = Message::parse(payload, Sender::Guest, self.version())?;
        match (self.state, message) {
            (State::Ready(_), Message::Packet { channel: ChannelType::Data, section, section_size }) => {
                Ok(Step::Rndis { channel: ChannelType::Data, section, section_size })
            }
            (State::Begin | State::Setup(_) | State::Ready(_), message) => {
                Err(NvspFault::OutOfTurn(kind(&message)))
            }
        }
    }

    #[inline]
    fn packet(&mut self, channel: ChannelType, section: u32, section_size: u32) -> Result<Step, NvspFault> {
        let step = Step::Rndis { channel, section, section_size };
        match (self.state, channel) {
            (State::Ready(_), _) => Ok(step),
            (State::Setup(version), ChannelType::Control)
                if self.ndis.is_some() && self.receive.is_some() =>
            {
                self.state = State::Ready(version);
                Ok(step)
            }
            (State::Begin | State::Setup(_), _) => Err(NvspFault::OutOfTurn(MessageType::SEND_RNDIS_PACKET)),
        }
    }

    #[cold]
    fn converse(&mut self, message: Message) -> Result<Step, NvspFault> {
        let out_of_turn = Err(NvspFault::OutOfTurn(kind(&message)));
        let version = match (self.state, message) {
            (State::Begin, Message::Init { version }) => return Ok(self.init(version)),
            (State::Begin, _) | (State::Setup(_) | State::Ready(_), Message::Init { .. }) => {
                return out_of_turn;
            }
            (State::Setup(version) | State::Ready(version), _) => version,
        };
        let in_setup = matches!(self.state, State::Setup(_));
        match message {
            Message::NdisConfig { mtu, capabilities } if in_setup && self.config.is_none() => {
                let mtu = if frames(&self.limits).contains(&mtu) { mtu } else { USUAL_MTU + ETHERNET_HEADER };
                self.config = Some(Config { mtu, capabilities });
                Ok(Step::Done)
            }
            Message::NdisVersion { major, minor } if in_setup && self.ndis.is_none() => {
                self.ndis = Some((major, minor));
                Ok(Step::Done)
            }
            Message::Buffer { buffer, gpadl, id } => {
                let configured = self.config.is_some() || version < Version::V2;
                let free = self.buffer(buffer).is_none();
                match buffer {
                    Buffer::Receive if free && configured => {}
                    Buffer::Send if free => {}
                    Buffer::Receive | Buffer::Send => return out_of_turn,
                }
                Ok(Step::Borrow(buffer, BufferName { gpadl, id }))
            }
            Message::Revoke { buffer, .. } => {
                self.buffer_gone(buffer);
                Ok(Step::LetGo(buffer))
            }
            // There is no other path, and none is needed to say so: Linux takes nothing but an empty answer.
            Message::SwitchDataPath { .. } => Ok(Step::Done),
            Message::OidQuery { .. } => {
                let status = rndis::Status::NOT_SUPPORTED.0;
                Ok(Step::Reply(Message::OidQueryComplete { status, bytes: 0 }.encode(version)))
            }
            Message::SubchannelRequest { operation, count } if !in_setup => {
                Ok(self.sub_channels_wanted(operation, count))
            }
            Message::NdisConfig { .. }
            | Message::NdisVersion { .. }
            | Message::SubchannelRequest { .. }
            | Message::Init { .. }
            | Message::InitComplete { .. }
            | Message::ReceiveBufferComplete { .. }
            | Message::SendBufferComplete { .. }
            | Message::Packet { .. }
            | Message::PacketComplete { .. }
            | Message::VfAssociation { .. }
            | Message::OidQueryComplete { .. }
            | Message::SubchannelComplete { .. }
            | Message::IndirectionTable { .. } => out_of_turn,
        }
    }

    fn init(&mut self, word: u32) -> Step {
        let possible = self.limits.oldest..=self.limits.newest;
        let version = Version::from_word(word).filter(|version| possible.contains(version));
        if let Some(version) = version {
            self.state = State::Setup(version);
        }
        let status = if version.is_some() { Status::SUCCESS } else { Status::NONE };
        let stated = if word == Version::V1.word() { word } else { NO_VERSION };
        let reply = Message::InitComplete { version: stated, max_mdl_chain: MAX_MDL_CHAIN, status };
        Step::Reply(reply.encode(version.unwrap_or(Version::V1)))
    }

    /// The page list of [`Step::Borrow`] has `len` bytes, or cannot be had: what to complete the packet with.
    pub fn buffer_borrowed(&mut self, buffer: Buffer, name: BufferName, len: Option<usize>) -> Encoded {
        let len = len.and_then(|len| u32::try_from(len).ok());
        let message = match buffer {
            Buffer::Receive => {
                let first = len.and_then(|len| self.receive_section(len));
                self.receive = first.map(|_| name);
                Message::ReceiveBufferComplete {
                    status: status(first.is_some()),
                    sections: first.map_or(0, |_| 1),
                    first: first.unwrap_or_default(),
                }
            }
            Buffer::Send => {
                let usable = len.is_some_and(|len| len >= SEND_SECTION);
                self.send = usable.then_some(name);
                let section_size = if usable { SEND_SECTION } else { 0 };
                Message::SendBufferComplete { status: status(usable), section_size }
            }
        };
        self.encode(message)
    }

    /// How a receive buffer of `len` bytes is divided; `None` if it is too small.
    pub fn receive_section(&self, len: u32) -> Option<ReceiveSection> {
        let wanted = RECEIVE_OVERHEAD + self.max_frame() + RECEIVE_TRAILER;
        let piece_size = wanted.max(SMALLEST_SECTION).next_multiple_of(RECEIVE_ALIGNMENT);
        let pieces = (len / piece_size).min(MOST_SECTIONS);
        (pieces >= SECTIONS_AT_LEAST).then(|| ReceiveSection {
            offset: 0.into(),
            piece_size: piece_size.into(),
            pieces: pieces.into(),
            end: (piece_size * pieces).into(),
        })
    }

    fn sub_channels_wanted(&self, operation: u32, count: u32) -> Step {
        let count = u16::try_from(count).ok().filter(|count| *count < self.limits.max_queues && *count > 0);
        match count {
            Some(count) if operation == ALLOCATE && self.sub_channels == 0 => Step::OfferSubChannels(count),
            Some(_) | None => Step::Reply(self.no_sub_channels()),
        }
    }

    fn no_sub_channels(&self) -> Encoded {
        self.encode(Message::SubchannelComplete { status: Status::FAILURE, count: 0 })
    }

    /// The sub-channels of [`Step::OfferSubChannels`] are on their way, or cannot be had (`None`): what to complete the
    /// packet with.
    pub fn sub_channels_offered(&mut self, count: Option<u16>) -> Encoded {
        self.sub_channels = count.unwrap_or(0);
        let message =
            Message::SubchannelComplete { status: status(count.is_some()), count: count.unwrap_or(0).into() };
        self.encode(message)
    }

    /// What to complete a packet of frames with.
    pub fn packet_done(&self, status: Status) -> Encoded {
        self.encode(Message::PacketComplete { status })
    }

    /// What goes in front of messages to the guest: that they lie in the packet's ranges.
    pub fn packet_to_guest(&self, channel: ChannelType) -> Encoded {
        use vmbus_core::network::nvsp::NO_SECTION;
        self.encode(Message::Packet { channel, section: NO_SECTION, section_size: 0 })
    }

    fn encode(&self, message: Message) -> Encoded {
        message.encode(self.version().unwrap_or(Version::V1))
    }
}

/// Bytes that the longest frame may have.
fn frames(limits: &Limits) -> std::ops::RangeInclusive<u32> {
    SMALLEST_MTU + ETHERNET_HEADER..=limits.max_mtu.saturating_add(ETHERNET_HEADER)
}

fn status(well: bool) -> Status {
    if well { Status::SUCCESS } else { Status::FAILURE }
}

/// The number of a message that a guest may send.
fn kind(message: &Message) -> MessageType {
    match message {
        Message::Init { .. } => MessageType::INIT,
        Message::InitComplete { .. } => MessageType::INIT_COMPLETE,
        Message::NdisVersion { .. } => MessageType::SEND_NDIS_VERSION,
        Message::Buffer { buffer: Buffer::Receive, .. } => MessageType::SEND_RECV_BUFFER,
        Message::Buffer { buffer: Buffer::Send, .. } => MessageType::SEND_SEND_BUFFER,
        Message::ReceiveBufferComplete { .. } => MessageType::SEND_RECV_BUFFER_COMPLETE,
        Message::SendBufferComplete { .. } => MessageType::SEND_SEND_BUFFER_COMPLETE,
        Message::Revoke { buffer: Buffer::Receive, .. } => MessageType::REVOKE_RECV_BUFFER,
        Message::Revoke { buffer: Buffer::Send, .. } => MessageType::REVOKE_SEND_BUFFER,
        Message::Packet { .. } => MessageType::SEND_RNDIS_PACKET,
        Message::PacketComplete { .. } => MessageType::SEND_RNDIS_PACKET_COMPLETE,
        Message::NdisConfig { .. } => MessageType::SEND_NDIS_CONFIG,
        Message::VfAssociation { .. } => MessageType::SEND_VF_ASSOCIATION,
        Message::SwitchDataPath { .. } => MessageType::SWITCH_DATA_PATH,
        Message::OidQuery { .. } => MessageType::OID_QUERY_EX,
        Message::OidQueryComplete { .. } => MessageType::OID_QUERY_EX_COMPLETE,
        Message::SubchannelRequest { .. } | Message::SubchannelComplete { .. } => MessageType::SUBCHANNEL,
        Message::IndirectionTable { .. } => MessageType::SEND_INDIRECTION_TABLE,
    }
}
