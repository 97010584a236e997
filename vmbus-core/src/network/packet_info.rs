//! Per-packet information: what a frame needs done, or what was found out about it (`network.md`, "Packet info").

use alloc::vec::Vec;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::{open_values, wire_struct};

open_values! {
    /// What a piece of information is. Bit 31: a name of the two drivers' own.
    pub struct InfoType(u32) {
        /// Checksums.
        TCP_IP_CHECKSUM = 0,
        /// A large send.
        LARGE_SEND = 2,
        /// Priority and VLAN.
        IEEE_8021Q = 6,
        /// Hash of the flow.
        HASH_VALUE = 8,
        /// A piece of a coalesced frame.
        RSC_FRAGMENT = 0x8000_0001,
    }
}

bitflags::bitflags! {
    /// What the host is to do with a frame's checksums, without the offset that goes with it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct TransmitBits: u32 {
        const IPV4 = 0x01;
        const IPV6 = 0x02;
        const TCP = 0x04;
        const UDP = 0x08;
        const IP_HEADER = 0x10;
    }

    /// What the host has found out about a received frame's checksums.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ReceiveChecksum: u32 {
        /// TCP's is wrong.
        const TCP_FAILED = 0x01;
        /// UDP's is wrong.
        const UDP_FAILED = 0x02;
        /// IP's is wrong.
        const IP_FAILED = 0x04;
        /// TCP's is right.
        const TCP_SUCCEEDED = 0x08;
        /// UDP's is right.
        const UDP_SUCCEEDED = 0x10;
        /// IP's is right.
        const IP_SUCCEEDED = 0x20;
        /// The frame never left the machine.
        const LOOPBACK = 0x40;
        /// TCP's field holds something else.
        const TCP_VALUE_INVALID = 0x80;
        /// IP's field holds something else.
        const IP_VALUE_INVALID = 0x100;
        const _ = !0;
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct RscBits: u8 {
        const SUB_ALLOCATION = 0x01;
        const FIRST = 0x02;
        const LAST = 0x04;
        const _ = !0;
    }
}

/// What the host is to do with a frame's checksums. The TCP or UDP field holds the sum of the pseudo header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitChecksum {
    /// The frame is IPv4.
    pub ipv4: bool,
    /// The frame is IPv6.
    pub ipv6: bool,
    /// Fill in TCP's.
    pub tcp: bool,
    /// Fill in UDP's.
    pub udp: bool,
    /// Fill in IPv4's.
    pub ip_header: bool,
    /// Where the TCP or UDP header begins in the frame, below 1024.
    pub transport_offset: u16,
}

/// A frame that the host is to cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargeSend {
    /// Payload bytes of each segment, below 2^20.
    pub segment_size: u32,
    /// Where the TCP header begins in the frame, below 1024.
    pub tcp_offset: u16,
    /// Version 2 of the information; version 1 knows IPv4 only.
    pub version_2: bool,
    /// The frame is IPv6.
    pub ipv6: bool,
}

/// Priority and VLAN of a frame, which has no tag itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// 0 to 7.
    pub priority: u8,
    /// Drop eligible.
    pub drop_eligible: bool,
    /// 0 to 4095.
    pub id: u16,
}

/// One of the ranges of a frame that arrives in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RscFragment {
    /// The range is a piece of the receive buffer of its own.
    pub sub_allocation: bool,
    /// The frame begins here.
    pub first: bool,
    /// The frame ends here.
    pub last: bool,
    /// Which frame.
    pub packet: u16,
}

/// One piece of information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketInfo<'a> {
    /// To the host: fill in checksums.
    TransmitChecksum(TransmitChecksum),
    /// To the guest: checksums were looked at.
    ReceiveChecksum(ReceiveChecksum),
    /// To the host: cut the frame into segments.
    LargeSend(LargeSend),
    /// Either way: priority and VLAN.
    Vlan(Vlan),
    /// Either way: hash of the flow.
    Hash(u32),
    /// To the guest: a piece of a frame.
    Rsc(RscFragment),
    /// Something that is not looked into here.
    Other(InfoType, &'a [u8]),
}

impl PacketInfo<'_> {
    /// Its bytes, head included, if its data is one word: so it is with all that are known here.
    #[inline]
    pub fn encode(&self) -> Option<[u8; WORD_PIECE]> {
        let (kind, word) = match *self {
            PacketInfo::TransmitChecksum(checksum) => (InfoType::TCP_IP_CHECKSUM, checksum.to_word()),
            PacketInfo::ReceiveChecksum(checksum) => (InfoType::TCP_IP_CHECKSUM, checksum.bits()),
            PacketInfo::LargeSend(send) => (InfoType::LARGE_SEND, send.to_word()),
            PacketInfo::Vlan(vlan) => (InfoType::IEEE_8021Q, vlan.to_word()),
            PacketInfo::Hash(hash) => (InfoType::HASH_VALUE, hash),
            PacketInfo::Rsc(fragment) => (InfoType::RSC_FRAGMENT, fragment.to_word()),
            PacketInfo::Other(..) => return None,
        };
        const SIZE: u32 = 16;
        const OFFSET: u32 = 12;
        Some(zerocopy::transmute!([SIZE, kind.0, OFFSET, word].map(U32::new)))
    }
}

/// Bytes of a piece whose data is one word.
const WORD_PIECE: usize = HEAD_SIZE + 4;

/// Which way a frame goes: checksum information means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the guest.
    Transmit,
    /// To the guest.
    Receive,
}

wire_struct! {
    struct InfoHead {
        size: U32,
        kind: U32,
        offset: U32,
    }
}

/// Bytes in front of each piece's data.
const HEAD_SIZE: usize = 12;

/// The pieces of one frame, in order.
#[derive(Clone, Debug)]
pub struct PacketInfoList<'a> {
    rest: &'a [u8],
    way: Way,
}

/// A piece that does not fit its list. The sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packet information of {size} bytes with data at {offset} where {left} bytes are left")]
pub struct InfoError {
    /// Stated size of the piece.
    pub size: u32,
    /// Stated place of its data.
    pub offset: u32,
    /// Bytes that are left of the list.
    pub left: usize,
}

impl<'a> PacketInfoList<'a> {
    /// The pieces in `bytes`, which are in private memory.
    pub fn new(bytes: &'a [u8], way: Way) -> Self {
        Self { rest: bytes, way }
    }
}

impl<'a> Iterator for PacketInfoList<'a> {
    type Item = Result<PacketInfo<'a>, InfoError>;

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.rest.len();
        if left == 0 {
            return None;
        }
        let result = next_piece(self.rest, self.way);
        self.rest = match &result {
            Ok((_, size)) => self.rest.get(*size..).unwrap_or(&[]),
            Err(_) => &[],
        };
        Some(result.map(|(piece, _)| piece))
    }
}

fn next_piece(bytes: &[u8], way: Way) -> Result<(PacketInfo<'_>, usize), InfoError> {
    let left = bytes.len();
    let nothing = InfoError { size: 0, offset: 0, left };
    let (head, _) = InfoHead::read_from_prefix(bytes).map_err(|_| nothing)?;
    let (size, offset) = (head.size.get(), head.offset.get());
    let wrong = InfoError { size, offset, left };
    let whole = bytes.get(..size as usize).filter(|_| size as usize >= HEAD_SIZE).ok_or(wrong)?;
    let data = whole.get(offset as usize..).filter(|_| offset as usize >= HEAD_SIZE).ok_or(wrong)?;
    let kind = InfoType(head.kind.get());
    let word = || U32::read_from_prefix(data).map(|(word, _)| word.get()).map_err(|_| wrong);
    let info = match (kind, way) {
        (InfoType::TCP_IP_CHECKSUM, Way::Transmit) => {
            PacketInfo::TransmitChecksum(TransmitChecksum::from_word(word()?))
        }
        (InfoType::TCP_IP_CHECKSUM, Way::Receive) => {
            PacketInfo::ReceiveChecksum(ReceiveChecksum::from_bits_retain(word()?))
        }
        (InfoType::LARGE_SEND, _) => PacketInfo::LargeSend(LargeSend::from_word(word()?)),
        (InfoType::IEEE_8021Q, _) => PacketInfo::Vlan(Vlan::from_word(word()?)),
        (InfoType::HASH_VALUE, _) => PacketInfo::Hash(word()?),
        (InfoType::RSC_FRAGMENT, _) => PacketInfo::Rsc(RscFragment::from_word(word()?)),
        (kind, _) => PacketInfo::Other(kind, data),
    };
    Ok((info, size as usize))
}

/// Puts pieces together.
#[derive(Clone, Debug, Default)]
pub struct PacketInfoWriter {
    bytes: Vec<u8>,
}

impl PacketInfoWriter {
    /// Appends a piece.
    pub fn push(&mut self, info: PacketInfo<'_>) {
        match (info, info.encode()) {
            (_, Some(piece)) => self.bytes.extend_from_slice(&piece),
            (PacketInfo::Other(kind, data), None) => self.put(kind, data),
            (
                PacketInfo::TransmitChecksum(_)
                | PacketInfo::ReceiveChecksum(_)
                | PacketInfo::LargeSend(_)
                | PacketInfo::Vlan(_)
                | PacketInfo::Hash(_)
                | PacketInfo::Rsc(_),
                None,
            ) => {}
        }
    }

    /// All pieces so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Begins anew, with the same memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    fn put(&mut self, kind: InfoType, data: &[u8]) {
        let padded = data.len().next_multiple_of(4);
        let size = u32::try_from(HEAD_SIZE + padded).unwrap_or(u32::MAX);
        let head = InfoHead { size: size.into(), kind: kind.0.into(), offset: 12.into() };
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len() + padded - data.len(), 0);
    }
}

/// The low 16 bits of a word.
fn low(word: u32) -> u16 {
    let [a, b, _, _] = word.to_le_bytes();
    u16::from_le_bytes([a, b])
}

impl TransmitChecksum {
    fn from_word(word: u32) -> Self {
        let bits = TransmitBits::from_bits_truncate(word);
        Self {
            ipv4: bits.contains(TransmitBits::IPV4),
            ipv6: bits.contains(TransmitBits::IPV6),
            tcp: bits.contains(TransmitBits::TCP),
            udp: bits.contains(TransmitBits::UDP),
            ip_header: bits.contains(TransmitBits::IP_HEADER),
            transport_offset: low(word >> 16 & 0x3ff),
        }
    }

    fn to_word(self) -> u32 {
        let mut bits = TransmitBits::empty();
        bits.set(TransmitBits::IPV4, self.ipv4);
        bits.set(TransmitBits::IPV6, self.ipv6);
        bits.set(TransmitBits::TCP, self.tcp);
        bits.set(TransmitBits::UDP, self.udp);
        bits.set(TransmitBits::IP_HEADER, self.ip_header);
        bits.bits() | u32::from(self.transport_offset & 0x3ff) << 16
    }
}

impl LargeSend {
    fn from_word(word: u32) -> Self {
        Self {
            segment_size: word & 0xf_ffff,
            tcp_offset: low(word >> 20 & 0x3ff),
            version_2: word & 1 << 30 != 0,
            ipv6: word & 1 << 31 != 0,
        }
    }

    fn to_word(self) -> u32 {
        self.segment_size & 0xf_ffff
            | u32::from(self.tcp_offset & 0x3ff) << 20
            | u32::from(self.version_2) << 30
            | u32::from(self.ipv6) << 31
    }
}

impl Vlan {
    fn from_word(word: u32) -> Self {
        let [byte, ..] = word.to_le_bytes();
        Self { priority: byte & 7, drop_eligible: byte & 8 != 0, id: low(word >> 4 & 0xfff) }
    }

    fn to_word(self) -> u32 {
        u32::from(self.priority & 7) | u32::from(self.drop_eligible) << 3 | u32::from(self.id & 0xfff) << 4
    }
}

impl RscFragment {
    /// The version of this information.
    const VERSION: u8 = 1;

    fn from_word(word: u32) -> Self {
        let [_version, bits, a, b] = word.to_le_bytes();
        let bits = RscBits::from_bits_retain(bits);
        Self {
            sub_allocation: bits.contains(RscBits::SUB_ALLOCATION),
            first: bits.contains(RscBits::FIRST),
            last: bits.contains(RscBits::LAST),
            packet: u16::from_le_bytes([a, b]),
        }
    }

    fn to_word(self) -> u32 {
        let mut bits = RscBits::empty();
        bits.set(RscBits::SUB_ALLOCATION, self.sub_allocation);
        bits.set(RscBits::FIRST, self.first);
        bits.set(RscBits::LAST, self.last);
        let [a, b] = self.packet.to_le_bytes();
        u32::from_le_bytes([Self::VERSION, bits.bits(), a, b])
    }
}
