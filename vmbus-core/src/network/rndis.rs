//! RNDIS: what is said about the device, and the header in front of each frame (`network.md`, "RNDIS").
//!
//! Offsets inside a message count from its byte 8 on the wire; here from its beginning.

use alloc::vec::Vec;
use core::ops::Range;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Oid;
use crate::wire::{open_values, wire_struct};

open_values! {
    /// What a message is. A completion has bit 31 set.
    pub struct MessageType(u32) {
        /// A frame.
        PACKET = 1,
        /// The guest begins.
        INITIALIZE = 2,
        /// The guest ends.
        HALT = 3,
        /// The guest asks.
        QUERY = 4,
        /// The guest sets.
        SET = 5,
        /// The guest resets the device.
        RESET = 6,
        /// The host tells of a change.
        INDICATE_STATUS = 7,
        /// Is anybody there?
        KEEPALIVE = 8,
        /// The answer to INITIALIZE.
        INITIALIZE_COMPLETE = 0x8000_0002,
        /// The answer to QUERY.
        QUERY_COMPLETE = 0x8000_0004,
        /// The answer to SET.
        SET_COMPLETE = 0x8000_0005,
        /// The answer to RESET.
        RESET_COMPLETE = 0x8000_0006,
        /// The answer to KEEPALIVE.
        KEEPALIVE_COMPLETE = 0x8000_0008,
    }
}

open_values! {
    /// How a request went, or what an indication tells.
    pub struct Status(u32) {
        /// Well.
        SUCCESS = 0,
        /// Later.
        PENDING = 0x0000_0103,
        /// Badly.
        FAILURE = 0xc000_0001,
        /// Out of memory, or of something else.
        RESOURCES = 0xc000_009a,
        /// The device does not know how.
        NOT_SUPPORTED = 0xc000_00bb,
        /// No such version.
        BAD_VERSION = 0xc001_0004,
        /// The length makes no sense.
        INVALID_LENGTH = 0xc001_0014,
        /// The value makes no sense.
        INVALID_DATA = 0xc001_0015,
        /// There is more to say than room for it.
        BUFFER_TOO_SHORT = 0xc001_0016,
        /// No such object.
        INVALID_OID = 0xc001_0017,
        /// Indication: there is a link.
        MEDIA_CONNECT = 0x4001_000b,
        /// Indication: there is none.
        MEDIA_DISCONNECT = 0x4001_000c,
        /// Indication: the link has another speed, a u32 in 100 bit/s.
        LINK_SPEED_CHANGE = 0x4001_0013,
        /// Indication: another network.
        NETWORK_CHANGE = 0x4001_0018,
        /// Indication: what the device offloads has changed.
        TASK_OFFLOAD_CURRENT_CONFIG = 0x4002_0006,
    }
}

/// Bytes in front of every message's body.
pub const HEADER_SIZE: usize = 8;
/// Bytes of a packet message in front of its packet info or frame.
pub const PACKET_HEADER_SIZE: usize = 44;

/// Why bytes are no message. The sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RndisError {
    /// Shorter than its type needs.
    #[error("RNDIS message of {len} bytes, {needed} are needed")]
    TooShort {
        /// Bytes received.
        len: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The stated length is more than what came.
    #[error("RNDIS message of {len} bytes that states {stated}")]
    Length {
        /// Bytes received.
        len: usize,
        /// Bytes stated.
        stated: u32,
    },
    /// Data, packet info or frame is not inside the message.
    #[error("RNDIS message of {len} bytes with {count} bytes at {offset}")]
    Outside {
        /// Bytes of the message.
        len: usize,
        /// Where the part is stated to begin.
        offset: u32,
        /// Its stated bytes.
        count: u32,
    },
    /// A type that is unknown or not handled here.
    #[error("RNDIS message {0} is out of place")]
    OutOfPlace(MessageType),
}

/// One message about the device. Frames are [`PacketHeader`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// INITIALIZE.
    Initialize {
        /// Name of the request.
        request: u32,
        /// Version, 1.
        major: u32,
        /// Version, 0.
        minor: u32,
        /// Longest message to the guest.
        max_transfer: u32,
    },
    /// INITIALIZE's answer.
    InitializeComplete(InitializeComplete),
    /// HALT.
    Halt {
        /// Name of the request.
        request: u32,
    },
    /// QUERY.
    Query {
        /// Name of the request.
        request: u32,
        /// What is asked.
        oid: Oid,
        /// What the object needs to know.
        data: &'a [u8],
    },
    /// QUERY's answer.
    QueryComplete {
        /// Name of the request.
        request: u32,
        /// How it went.
        status: Status,
        /// The value.
        data: &'a [u8],
    },
    /// SET.
    Set {
        /// Name of the request.
        request: u32,
        /// What is set.
        oid: Oid,
        /// To what.
        data: &'a [u8],
    },
    /// SET's answer.
    SetComplete {
        /// Name of the request.
        request: u32,
        /// How it went.
        status: Status,
    },
    /// RESET.
    Reset,
    /// RESET's answer.
    ResetComplete {
        /// How it went.
        status: Status,
        /// Whether addresses and filters have to be set again.
        addressing_reset: bool,
    },
    /// INDICATE_STATUS.
    IndicateStatus {
        /// What is told.
        status: Status,
        /// More about it.
        data: &'a [u8],
    },
    /// KEEPALIVE.
    KeepAlive {
        /// Name of the request.
        request: u32,
    },
    /// KEEPALIVE's answer.
    KeepAliveComplete {
        /// Name of the request.
        request: u32,
        /// How it went.
        status: Status,
    },
}

/// What a host says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitializeComplete {
    /// Name of the request.
    pub request: u32,
    /// How it went.
    pub status: Status,
    /// Messages that one NVSP packet may carry.
    pub max_packets: u32,
    /// Bytes that one NVSP packet may carry.
    pub max_transfer: u32,
    /// Messages in one NVSP packet begin at multiples of 2 to this.
    pub alignment_exponent: u32,
}

wire_struct! {
    struct InitializeCompleteBody {
        request: U32,
        status: U32,
        major: U32,
        minor: U32,
        device_flags: U32,
        medium: U32,
        max_packets: U32,
        max_transfer: U32,
        alignment: U32,
        address_families_offset: U32,
        address_families_size: U32,
    }
}

wire_struct! {
    /// QUERY and SET: request, object, then where the data is.
    struct QueryBody {
        request: U32,
        oid: U32,
        data_len: U32,
        data_offset: U32,
        vc: U32,
    }
}

wire_struct! {
    struct QueryCompleteBody {
        request: U32,
        status: U32,
        data_len: U32,
        data_offset: U32,
    }
}

wire_struct! {
    struct IndicateBody {
        status: U32,
        data_len: U32,
        data_offset: U32,
    }
}

impl<'a> Message<'a> {
    /// Reads one message in private memory. Bytes beyond its stated length are not looked at.
    ///
    /// # Errors
    /// [`RndisError`]: the sender's fault.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RndisError> {
        let ([kind, stated], _) = take::<[U32; 2]>(bytes)?;
        let (kind, stated) = (MessageType(kind.get()), stated.get());
        let whole = match kind {
            // Some hosts forget the data in its length.
            MessageType::INDICATE_STATUS => bytes,
            _ => bytes.get(..stated as usize).ok_or(RndisError::Length { len: bytes.len(), stated })?,
        };
        let body =
            whole.get(HEADER_SIZE..).ok_or(RndisError::TooShort { len: whole.len(), needed: HEADER_SIZE })?;
        Ok(match kind {
            MessageType::INITIALIZE => {
                let [request, major, minor, max_transfer] = words(body)?;
                Self::Initialize { request, major, minor, max_transfer }
            }
            MessageType::INITIALIZE_COMPLETE => {
                let (body, _) = take::<InitializeCompleteBody>(body)?;
                Self::InitializeComplete(InitializeComplete {
                    request: body.request.get(),
                    status: Status(body.status.get()),
                    max_packets: body.max_packets.get(),
                    max_transfer: body.max_transfer.get(),
                    alignment_exponent: body.alignment.get(),
                })
            }
            MessageType::HALT => {
                let [request] = words(body)?;
                Self::Halt { request }
            }
            MessageType::QUERY | MessageType::SET => {
                let (head, _) = take::<QueryBody>(body)?;
                let data = part(body, head.data_offset, head.data_len)?;
                let (request, oid) = (head.request.get(), Oid(head.oid.get()));
                if kind == MessageType::QUERY {
                    Self::Query { request, oid, data }
                } else {
                    Self::Set { request, oid, data }
                }
            }
            MessageType::QUERY_COMPLETE => {
                let (head, _) = take::<QueryCompleteBody>(body)?;
                let data = part(body, head.data_offset, head.data_len)?;
                Self::QueryComplete { request: head.request.get(), status: Status(head.status.get()), data }
            }
            MessageType::SET_COMPLETE => {
                let [request, status] = words(body)?;
                Self::SetComplete { request, status: Status(status) }
            }
            MessageType::RESET => Self::Reset,
            MessageType::RESET_COMPLETE => {
                let [status, addressing_reset] = words(body)?;
                Self::ResetComplete { status: Status(status), addressing_reset: addressing_reset != 0 }
            }
            MessageType::INDICATE_STATUS => {
                let (head, _) = take::<IndicateBody>(body)?;
                let data = part(body, head.data_offset, head.data_len)?;
                Self::IndicateStatus { status: Status(head.status.get()), data }
            }
            MessageType::KEEPALIVE => {
                let [request] = words(body)?;
                Self::KeepAlive { request }
            }
            MessageType::KEEPALIVE_COMPLETE => {
                let [request, status] = words(body)?;
                Self::KeepAliveComplete { request, status: Status(status) }
            }
            kind => return Err(RndisError::OutOfPlace(kind)),
        })
    }

    /// Appends the message's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Initialize { request, major, minor, max_transfer } => {
                put_words(out, MessageType::INITIALIZE, [request, major, minor, max_transfer]);
            }
            Self::InitializeComplete(complete) => {
                let body = InitializeCompleteBody {
                    request: complete.request.into(),
                    status: complete.status.0.into(),
                    major: 1.into(),
                    // Connectionless.
                    device_flags: 1.into(),
                    max_packets: complete.max_packets.into(),
                    max_transfer: complete.max_transfer.into(),
                    alignment: complete.alignment_exponent.into(),
                    ..InitializeCompleteBody::default()
                };
                put(out, MessageType::INITIALIZE_COMPLETE, body.as_bytes(), &[]);
            }
            Self::Halt { request } => put_words(out, MessageType::HALT, [request]),
            Self::Query { request, oid, data } => put_query(out, MessageType::QUERY, request, oid, data),
            Self::Set { request, oid, data } => put_query(out, MessageType::SET, request, oid, data),
            Self::QueryComplete { request, status, data } => {
                let body = QueryCompleteBody {
                    request: request.into(),
                    status: status.0.into(),
                    data_len: count(data),
                    data_offset: offset::<QueryCompleteBody>(),
                };
                put(out, MessageType::QUERY_COMPLETE, body.as_bytes(), data);
            }
            Self::SetComplete { request, status } => {
                put_words(out, MessageType::SET_COMPLETE, [request, status.0]);
            }
            Self::Reset => put_words(out, MessageType::RESET, [0]),
            Self::ResetComplete { status, addressing_reset } => {
                put_words(out, MessageType::RESET_COMPLETE, [status.0, addressing_reset.into()]);
            }
            Self::IndicateStatus { status, data } => {
                let data_offset = if data.is_empty() { U32::ZERO } else { offset::<IndicateBody>() };
                let body = IndicateBody { status: status.0.into(), data_len: count(data), data_offset };
                put(out, MessageType::INDICATE_STATUS, body.as_bytes(), data);
            }
            Self::KeepAlive { request } => put_words(out, MessageType::KEEPALIVE, [request]),
            Self::KeepAliveComplete { request, status } => {
                put_words(out, MessageType::KEEPALIVE_COMPLETE, [request, status.0]);
            }
        }
    }
}

/// Where the parts of a packet message are, checked against its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketHeader {
    /// Bytes of the whole message as stated; the next one in the same NVSP packet begins after it.
    pub message_len: usize,
    /// The frame, from the message's beginning.
    pub frame: Range<usize>,
    /// The packet info, from the message's beginning.
    pub info: Range<usize>,
}

wire_struct! {
    struct PacketBody {
        kind: U32,
        message_len: U32,
        data_offset: U32,
        data_len: U32,
        oob_offset: U32,
        oob_len: U32,
        oob_count: U32,
        info_offset: U32,
        info_len: U32,
        vc: U32,
        reserved: U32,
    }
}

impl PacketHeader {
    /// Checks the first bytes of a message of at most `available` bytes. `None`: the message is about the device.
    ///
    /// # Errors
    /// [`RndisError`]: the sender's fault.
    #[inline]
    pub fn parse(header: &[u8; PACKET_HEADER_SIZE], available: usize) -> Result<Option<Self>, RndisError> {
        let (body, _) = take::<PacketBody>(header)?;
        if body.kind.get() != MessageType::PACKET.0 {
            return Ok(None);
        }
        let stated = body.message_len.get();
        let message_len = stated as usize;
        if message_len > available {
            return Err(RndisError::Length { len: available, stated });
        }
        let frame = inside(message_len, body.data_offset, body.data_len)?;
        let info = match body.info_len.get() {
            0 => 0..0,
            _ => inside(message_len, body.info_offset, body.info_len)?,
        };
        Ok(Some(Self { message_len, frame, info }))
    }

    /// The bytes in front of `info_len` bytes of packet info and then a frame of `frame_len` bytes.
    #[inline]
    pub fn encode(info_len: u32, frame_len: u32) -> [u8; PACKET_HEADER_SIZE] {
        const HEAD: u32 = 44;
        const BODY: u32 = 36;
        let body = PacketBody {
            kind: MessageType::PACKET.0.into(),
            message_len: (HEAD + info_len + frame_len).into(),
            data_offset: (BODY + info_len).into(),
            data_len: frame_len.into(),
            info_offset: if info_len == 0 { U32::ZERO } else { BODY.into() },
            info_len: info_len.into(),
            ..PacketBody::default()
        };
        zerocopy::transmute!(body)
    }
}

/// A part of a message, by an offset from its byte 8.
fn inside(len: usize, offset: U32, count: U32) -> Result<Range<usize>, RndisError> {
    let outside = RndisError::Outside { len, offset: offset.get(), count: count.get() };
    let start = (offset.get() as usize).checked_add(HEADER_SIZE).ok_or(outside)?;
    let end = start.checked_add(count.get() as usize).ok_or(outside)?;
    // Within the header is no place for data.
    if start < PACKET_HEADER_SIZE || end > len { Err(outside) } else { Ok(start..end) }
}

/// Data inside a body, by an offset from the body's beginning.
fn part(body: &[u8], offset: U32, count: U32) -> Result<&[u8], RndisError> {
    if count.get() == 0 {
        return Ok(&[]);
    }
    let range = (offset.get() as usize)..(offset.get() as usize).saturating_add(count.get() as usize);
    let outside =
        RndisError::Outside { len: body.len() + HEADER_SIZE, offset: offset.get(), count: count.get() };
    body.get(range).ok_or(outside)
}

fn take<T: FromBytes + Immutable + KnownLayout>(bytes: &[u8]) -> Result<(T, &[u8]), RndisError> {
    T::read_from_prefix(bytes).map_err(|_| RndisError::TooShort { len: bytes.len(), needed: size_of::<T>() })
}

fn words<const N: usize>(bytes: &[u8]) -> Result<[u32; N], RndisError> {
    Ok(take::<[U32; N]>(bytes)?.0.map(U32::get))
}

fn count(data: &[u8]) -> U32 {
    U32::new(u32::try_from(data.len()).unwrap_or(u32::MAX))
}

/// Where data begins that follows a body.
fn offset<Body>() -> U32 {
    U32::new(u32::try_from(size_of::<Body>()).unwrap_or(0))
}

fn put_query(out: &mut Vec<u8>, kind: MessageType, request: u32, oid: Oid, data: &[u8]) {
    let body = QueryBody {
        request: request.into(),
        oid: oid.0.into(),
        data_len: count(data),
        data_offset: offset::<QueryBody>(),
        vc: U32::ZERO,
    };
    put(out, kind, body.as_bytes(), data);
}

fn put_words<const N: usize>(out: &mut Vec<u8>, kind: MessageType, words: [u32; N]) {
    put(out, kind, words.map(U32::new).as_bytes(), &[]);
}

fn put(out: &mut Vec<u8>, kind: MessageType, body: &[u8], data: &[u8]) {
    let len = u32::try_from(HEADER_SIZE + body.len() + data.len()).unwrap_or(u32::MAX);
    out.extend_from_slice([kind.0, len].map(U32::new).as_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(data);
}
