//! NVSP: how the two drivers agree on versions, buffers and queues, and say where an RNDIS message lies
//! (`network.md`, "NVSP").
//!
//! A message is as long as its version says; shorter ones are read as long as the fields they need are there, and
//! surplus bytes are ignored.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::Version;
use crate::wire::{open_values, wire_struct};

open_values! {
    /// What a message is.
    pub struct MessageType(u32) {
        /// Guest: proposes a version. Answered by INIT_COMPLETE.
        INIT = 1,
        /// Host: the answer.
        INIT_COMPLETE = 2,
        /// Guest: the version of NDIS.
        SEND_NDIS_VERSION = 100,
        /// Guest: where packets to it are put.
        SEND_RECV_BUFFER = 101,
        /// Host: how that buffer is divided.
        SEND_RECV_BUFFER_COMPLETE = 102,
        /// Guest: takes the buffer back.
        REVOKE_RECV_BUFFER = 103,
        /// Guest: where small packets from it are.
        SEND_SEND_BUFFER = 104,
        /// Host: how large its sections are.
        SEND_SEND_BUFFER_COMPLETE = 105,
        /// Guest: takes the buffer back.
        REVOKE_SEND_BUFFER = 106,
        /// Either: there is an RNDIS message.
        SEND_RNDIS_PACKET = 107,
        /// Either: its memory is free again.
        SEND_RNDIS_PACKET_COMPLETE = 108,
        /// Guest: frame size and abilities. Since 2.
        SEND_NDIS_CONFIG = 125,
        /// Host, unasked: a virtual function came or went. Since 4.
        SEND_VF_ASSOCIATION = 128,
        /// Guest: packets go this way from now on; host: they do. Since 4.
        SWITCH_DATA_PATH = 129,
        /// Guest: asks past RNDIS. Since 5.
        OID_QUERY_EX = 131,
        /// Host: the answer.
        OID_QUERY_EX_COMPLETE = 132,
        /// Guest: asks for sub-channels; host: its answer has the same number. Since 5.
        SUBCHANNEL = 133,
        /// Host, unasked: which channel to use for which hash. Since 5.
        SEND_INDIRECTION_TABLE = 134,
    }
}

open_values! {
    /// How a request ended.
    pub struct Status(u32) {
        /// No answer yet. Refuses a version.
        NONE = 0,
        /// Well.
        SUCCESS = 1,
        /// Badly.
        FAILURE = 2,
        /// The RNDIS message makes no sense.
        INVALID_RNDIS_PACKET = 5,
        /// Not now.
        BUSY = 6,
    }
}

bitflags::bitflags! {
    /// What a guest's driver can do, in its NDIS configuration.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Capabilities: u64 {
        /// Virtual machine queues.
        const VMQ = 0x01;
        /// TCP chimney.
        const CHIMNEY = 0x02;
        /// A virtual function beside this device.
        const SR_IOV = 0x04;
        /// Priority and VLAN as packet info.
        const IEEE_8021Q = 0x08;
        /// Correlation ids.
        const CORRELATION_ID = 0x10;
        /// Teaming; without it no link speed is told.
        const TEAMING = 0x20;
        /// Virtual subnets.
        const VIRTUAL_SUBNET_ID = 0x40;
        /// Several segments of a flow as one packet in pieces. Since 6.1.
        const RSC = 0x80;
        const _ = !0;
    }
}

/// Entries of an indirection table.
pub const INDIRECTION_ENTRIES: usize = ENTRIES as usize;
/// The same as it is on the wire.
const ENTRIES: u32 = 16;
/// "In no section of the send buffer".
pub const NO_SECTION: u32 = u32::MAX;

/// Whether an RNDIS message is a frame or about the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelType {
    /// Frames.
    Data,
    /// Everything else; on the primary channel only.
    Control,
}

wire_struct! {
    /// A part of the receive buffer that the host divides into pieces of one size.
    pub struct ReceiveSection {
        /// Where it begins in the buffer, in bytes; 0 for the only one that guests accept.
        pub offset: U32,
        /// Bytes of a piece: the longest RNDIS message that is delivered.
        pub piece_size: U32,
        /// How many pieces.
        pub pieces: U32,
        /// Where it ends: `piece_size * pieces` from its beginning.
        pub end: U32,
    }
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// INIT.
    Init {
        /// Number of the version that is proposed.
        version: u32,
    },
    /// INIT_COMPLETE.
    InitComplete {
        /// Not to be relied on.
        version: u32,
        /// Most pieces of one frame.
        max_mdl_chain: u32,
        /// [`Status::SUCCESS`], or the version is refused.
        status: Status,
    },
    /// SEND_NDIS_VERSION.
    NdisVersion {
        /// 6.
        major: u32,
        /// 1 or 30.
        minor: u32,
    },
    /// SEND_RECV_BUFFER or SEND_SEND_BUFFER.
    Buffer {
        /// Which.
        buffer: Buffer,
        /// The page list that it is.
        gpadl: u32,
        /// The guest's name for it: set id of transfer-page packets.
        id: u16,
    },
    /// SEND_RECV_BUFFER_COMPLETE.
    ReceiveBufferComplete {
        /// Whether it is used.
        status: Status,
        /// How many sections the host states; 1 is what guests accept.
        sections: u32,
        /// The first of them.
        first: ReceiveSection,
    },
    /// SEND_SEND_BUFFER_COMPLETE.
    SendBufferComplete {
        /// Whether it is used.
        status: Status,
        /// Bytes of each of its sections.
        section_size: u32,
    },
    /// REVOKE_RECV_BUFFER or REVOKE_SEND_BUFFER.
    Revoke {
        /// Which.
        buffer: Buffer,
        /// The guest's name for it.
        id: u16,
    },
    /// SEND_RNDIS_PACKET.
    Packet {
        /// Frames or control.
        channel: ChannelType,
        /// Section of the send buffer that holds the message or its beginning; [`NO_SECTION`] if none does.
        section: u32,
        /// Bytes of it there.
        section_size: u32,
    },
    /// SEND_RNDIS_PACKET_COMPLETE.
    PacketComplete {
        /// How it went.
        status: Status,
    },
    /// SEND_NDIS_CONFIG.
    NdisConfig {
        /// Longest frame in bytes, its Ethernet header of 14 included.
        mtu: u32,
        /// What the guest can do.
        capabilities: Capabilities,
    },
    /// SEND_VF_ASSOCIATION.
    VfAssociation {
        /// Whether there is a virtual function now.
        allocated: bool,
        /// The number in its slot.
        serial: u32,
    },
    /// SWITCH_DATA_PATH.
    SwitchDataPath {
        /// Whether packets go by the virtual function.
        to_vf: bool,
    },
    /// OID_QUERY_EX.
    OidQuery {
        /// What is asked.
        oid: u32,
    },
    /// OID_QUERY_EX_COMPLETE.
    OidQueryComplete {
        /// How it went, as an NDIS status.
        status: u32,
        /// Bytes written or needed.
        bytes: u32,
    },
    /// SUBCHANNEL from a guest.
    SubchannelRequest {
        /// 1: allocate.
        operation: u32,
        /// How many.
        count: u32,
    },
    /// SUBCHANNEL from a host.
    SubchannelComplete {
        /// [`Status::SUCCESS`] or a failure.
        status: Status,
        /// How many will be offered.
        count: u32,
    },
    /// SEND_INDIRECTION_TABLE.
    IndirectionTable {
        /// Channel index by hash.
        table: [u32; INDIRECTION_ENTRIES],
    },
}

/// One of the two buffers that a guest shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// For frames to the guest.
    Receive,
    /// For frames from the guest.
    Send,
}

/// Who says it: two messages have one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The guest's driver.
    Guest,
    /// The host's provider.
    Host,
}

/// Why bytes are no message. The sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NvspError {
    /// Shorter than what its type needs.
    #[error("network message of {len} bytes, {needed} are needed")]
    TooShort {
        /// Bytes received.
        len: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// A type that nobody knows, that this version does not have, or that this sender does not send.
    #[error("network message {0} is out of place")]
    OutOfPlace(MessageType),
    /// A channel type that is neither 0 nor 1, or an indirection table of another size.
    #[error("network message {kind} with {value:#x}")]
    BadValue {
        /// The message.
        kind: MessageType,
        /// What it holds.
        value: u32,
    },
}

impl Message {
    /// Reads a message of `sender` in private memory. `version` is the one agreed on; before there is one, `None`.
    ///
    /// # Errors
    /// [`NvspError`]: the sender's fault.
    #[inline]
    pub fn parse(bytes: &[u8], sender: Sender, version: Option<Version>) -> Result<Self, NvspError> {
        let (kind, body) = take::<U32>(bytes)?;
        let kind = MessageType(kind.get());
        if version.is_some_and(|version| kind > version.last_message()) {
            return Err(NvspError::OutOfPlace(kind));
        }
        match (kind, sender) {
            (MessageType::SEND_RNDIS_PACKET, _) => {
                let [channel, section, section_size] = words(body)?;
                let channel = match channel {
                    0 => ChannelType::Data,
                    1 => ChannelType::Control,
                    value => return Err(NvspError::BadValue { kind, value }),
                };
                Ok(Self::Packet { channel, section, section_size })
            }
            (MessageType::SEND_RNDIS_PACKET_COMPLETE, _) => {
                let [status] = words(body)?;
                Ok(Self::PacketComplete { status: Status(status) })
            }
            (MessageType::SWITCH_DATA_PATH, _) => {
                let [path] = words(body)?;
                Ok(Self::SwitchDataPath { to_vf: path != 0 })
            }
            (_, Sender::Guest) => Self::parse_guest(kind, body),
            (_, Sender::Host) => Self::parse_host(kind, bytes, body, version),
        }
    }

    fn parse_guest(kind: MessageType, body: &[u8]) -> Result<Self, NvspError> {
        let id = |body| Ok::<_, NvspError>(take::<U16>(body)?.0.get());
        Ok(match kind {
            MessageType::INIT => {
                let [version] = words(body)?;
                Self::Init { version }
            }
            MessageType::SEND_NDIS_VERSION => {
                let [major, minor] = words(body)?;
                Self::NdisVersion { major, minor }
            }
            MessageType::SEND_RECV_BUFFER | MessageType::SEND_SEND_BUFFER => {
                let (gpadl, rest) = take::<U32>(body)?;
                let buffer =
                    if kind == MessageType::SEND_RECV_BUFFER { Buffer::Receive } else { Buffer::Send };
                Self::Buffer { buffer, gpadl: gpadl.get(), id: id(rest)? }
            }
            MessageType::REVOKE_RECV_BUFFER => Self::Revoke { buffer: Buffer::Receive, id: id(body)? },
            MessageType::REVOKE_SEND_BUFFER => Self::Revoke { buffer: Buffer::Send, id: id(body)? },
            MessageType::SEND_NDIS_CONFIG => {
                let ([mtu, _reserved], rest) = take::<[U32; 2]>(body)?;
                let capabilities = Capabilities::from_bits_retain(take::<U64>(rest)?.0.get());
                Self::NdisConfig { mtu: mtu.get(), capabilities }
            }
            MessageType::OID_QUERY_EX => {
                let [_header, oid] = words(body)?;
                Self::OidQuery { oid }
            }
            MessageType::SUBCHANNEL => {
                let [operation, count] = words(body)?;
                Self::SubchannelRequest { operation, count }
            }
            kind => return Err(NvspError::OutOfPlace(kind)),
        })
    }

    fn parse_host(
        kind: MessageType,
        bytes: &[u8],
        body: &[u8],
        version: Option<Version>,
    ) -> Result<Self, NvspError> {
        Ok(match kind {
            MessageType::INIT_COMPLETE => {
                let [version, max_mdl_chain, status] = words(body)?;
                Self::InitComplete { version, max_mdl_chain, status: Status(status) }
            }
            MessageType::SEND_RECV_BUFFER_COMPLETE => {
                let ([status, sections], rest) = take::<[U32; 2]>(body)?;
                let first = if sections.get() == 0 { ReceiveSection::default() } else { take(rest)?.0 };
                Self::ReceiveBufferComplete { status: Status(status.get()), sections: sections.get(), first }
            }
            MessageType::SEND_SEND_BUFFER_COMPLETE => {
                let [status, section_size] = words(body)?;
                Self::SendBufferComplete { status: Status(status), section_size }
            }
            MessageType::SEND_VF_ASSOCIATION => {
                let [allocated, serial] = words(body)?;
                Self::VfAssociation { allocated: allocated != 0, serial }
            }
            MessageType::OID_QUERY_EX_COMPLETE => {
                let [status, bytes] = words(body)?;
                Self::OidQueryComplete { status, bytes }
            }
            MessageType::SUBCHANNEL => {
                let [status, count] = words(body)?;
                Self::SubchannelComplete { status: Status(status), count }
            }
            MessageType::SEND_INDIRECTION_TABLE => {
                let [count, stated] = words(body)?;
                if count != ENTRIES {
                    return Err(NvspError::BadValue { kind, value: count });
                }
                // Hosts up to version 6 send a whole message before the table and may state something else.
                let old = version.is_some_and(|version| version <= Version::V6);
                let offset = if old && bytes.len() >= LONGEST { FULL_SIZE } else { stated } as usize;
                let table = bytes.get(offset..).ok_or(short(bytes.len(), offset))?;
                Self::IndirectionTable { table: words(table)? }
            }
            kind => return Err(NvspError::OutOfPlace(kind)),
        })
    }

    /// The bytes of the message: what `version` pads it to, or more where it needs more.
    pub fn encode(&self, version: Version) -> Encoded {
        let mut out = Encoded::new(version.message_size());
        match *self {
            Self::Init { version } => out.put(MessageType::INIT, &[version, version]),
            Self::InitComplete { version, max_mdl_chain, status } => {
                out.put(MessageType::INIT_COMPLETE, &[version, max_mdl_chain, status.0]);
            }
            Self::NdisVersion { major, minor } => out.put(MessageType::SEND_NDIS_VERSION, &[major, minor]),
            Self::Buffer { buffer: Buffer::Receive, gpadl, id } => {
                out.put(MessageType::SEND_RECV_BUFFER, &[gpadl, id.into()]);
            }
            Self::Buffer { buffer: Buffer::Send, gpadl, id } => {
                out.put(MessageType::SEND_SEND_BUFFER, &[gpadl, id.into()]);
            }
            Self::ReceiveBufferComplete { status, sections, first } => {
                let ReceiveSection { offset, piece_size, pieces, end } = first;
                let [offset, piece_size, pieces, end] = [offset, piece_size, pieces, end].map(U32::get);
                let words = [status.0, sections, offset, piece_size, pieces, end];
                out.put(MessageType::SEND_RECV_BUFFER_COMPLETE, &words);
            }
            Self::SendBufferComplete { status, section_size } => {
                out.put(MessageType::SEND_SEND_BUFFER_COMPLETE, &[status.0, section_size]);
            }
            Self::Revoke { buffer: Buffer::Receive, id } => {
                out.put(MessageType::REVOKE_RECV_BUFFER, &[id.into()]);
            }
            Self::Revoke { buffer: Buffer::Send, id } => {
                out.put(MessageType::REVOKE_SEND_BUFFER, &[id.into()]);
            }
            Self::Packet { channel, section, section_size } => {
                let channel = match channel {
                    ChannelType::Data => 0,
                    ChannelType::Control => 1,
                };
                out.put(MessageType::SEND_RNDIS_PACKET, &[channel, section, section_size]);
            }
            Self::PacketComplete { status } => {
                out.put(MessageType::SEND_RNDIS_PACKET_COMPLETE, &[status.0]);
            }
            Self::NdisConfig { mtu, capabilities } => {
                let [low, high] = halves(capabilities.bits());
                out.put(MessageType::SEND_NDIS_CONFIG, &[mtu, 0, low, high]);
            }
            Self::VfAssociation { allocated, serial } => {
                out.put(MessageType::SEND_VF_ASSOCIATION, &[allocated.into(), serial]);
            }
            Self::SwitchDataPath { to_vf } => out.put(MessageType::SWITCH_DATA_PATH, &[to_vf.into()]),
            Self::OidQuery { oid } => out.put(MessageType::OID_QUERY_EX, &[0, oid]),
            Self::OidQueryComplete { status, bytes } => {
                out.put(MessageType::OID_QUERY_EX_COMPLETE, &[status, bytes]);
            }
            Self::SubchannelRequest { operation, count } => {
                out.put(MessageType::SUBCHANNEL, &[operation, count]);
            }
            Self::SubchannelComplete { status, count } => {
                out.put(MessageType::SUBCHANNEL, &[status.0, count]);
            }
            Self::IndirectionTable { table } => {
                // Compact for those who read the offset; where the offset is not read, where it is looked for.
                let offset = if version <= Version::V6 { FULL_SIZE } else { COMPACT_TABLE };
                out.put(MessageType::SEND_INDIRECTION_TABLE, &[ENTRIES, offset]);
                let start = offset as usize;
                out.bytes[start..start + TABLE_SIZE].copy_from_slice(table.map(U32::new).as_bytes());
                out.len = start + TABLE_SIZE;
            }
        }
        out
    }
}

/// Bytes of the longest message structure.
const FULL_SIZE: u32 = 40;
const TABLE_SIZE: usize = 4 * INDIRECTION_ENTRIES;
/// Where a table directly follows what speaks of it.
const COMPACT_TABLE: u32 = 12;
/// Bytes of the longest message with a table after it.
const LONGEST: usize = FULL_SIZE as usize + TABLE_SIZE;

/// A message's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Encoded {
    fn new(len: usize) -> Self {
        Self { bytes: [0; LONGEST], len }
    }

    fn put(&mut self, kind: MessageType, words: &[u32]) {
        for (place, word) in self.bytes.chunks_exact_mut(4).zip([kind.0].iter().chain(words)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
}

impl core::ops::Deref for Encoded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn take<T: FromBytes + zerocopy::Immutable + zerocopy::KnownLayout>(
    bytes: &[u8],
) -> Result<(T, &[u8]), NvspError> {
    T::read_from_prefix(bytes).map_err(|_| short(bytes.len(), size_of::<T>()))
}

fn words<const N: usize>(bytes: &[u8]) -> Result<[u32; N], NvspError> {
    Ok(take::<[U32; N]>(bytes)?.0.map(U32::get))
}

/// Lengths are counted from where the missing field should be; the difference is what matters.
fn short(len: usize, needed: usize) -> NvspError {
    NvspError::TooShort { len, needed }
}

fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}
