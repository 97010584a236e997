//! The packet on the wire, and a packet taken from a ring.

use crate::fault::{OutOfPacket, RingFault};
use crate::memory::{ControlWord, RingMemory};
use crate::signal::{advance, is_index};

/// Bytes of the control page that precedes the data area.
pub const CONTROL_SIZE: usize = 4096;
/// Bytes of the descriptor that starts a packet.
pub const DESCRIPTOR_SIZE: usize = 16;
/// Bytes of the trailer that ends a packet; the length field does not count them.
pub const TRAILER_SIZE: usize = 8;
/// Bytes the largest packet occupies, trailer included: its length field has 16 bits and counts 8-byte units.
pub const MAX_PACKET_SIZE: usize = 0xffff * 8 + TRAILER_SIZE;
/// Bytes of the largest data area: sums of two offsets stay within 32 bits.
pub const MAX_DATA_SIZE: u32 = 1 << 31;
/// Feature bit by which a producer says that it sets the pending send size and wants a signal for it.
pub const FEATURE_PENDING_SEND_SIZE: u32 = 1;

/// Flag of a packet whose sender waits for a completion.
const COMPLETION_REQUESTED: u16 = 1;

/// Type and payload offset of packets without headers, as they stand in a descriptor.
const BARE_IN_BAND: u32 = 0x0002_0006;
const BARE_COMPLETION: u32 = 0x0002_000b;

/// Bytes a packet occupies in the ring with `header_len` bytes of type-specific headers (a multiple of 8), or `None`
/// where the length field cannot say it.
#[inline]
pub const fn packet_size(header_len: usize, payload_len: usize) -> Option<usize> {
    // Each summand is bounded first, so that the sum cannot overflow.
    if header_len > MAX_PACKET_SIZE || payload_len > MAX_PACKET_SIZE {
        return None;
    }
    let size = DESCRIPTOR_SIZE + header_len + payload_len.next_multiple_of(8) + TRAILER_SIZE;
    if size > MAX_PACKET_SIZE { None } else { Some(size) }
}

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PacketKind {
    /// The payload is all there is.
    InBand,
    /// Ranges of a buffer that the channel set up earlier; header as in the specification's transfer-page packet.
    TransferPages,
    /// Ranges of guest memory; header as in the specification's GPA-direct packet.
    GpaDirect,
    /// The answer to the packet with the same transaction id.
    Completion,
}

impl PacketKind {
    const fn code(self) -> u16 {
        match self {
            PacketKind::InBand => 6,
            PacketKind::TransferPages => 7,
            PacketKind::GpaDirect => 9,
            PacketKind::Completion => 0xb,
        }
    }

    /// The kind, and the least distance from descriptor to payload.
    #[inline(always)]
    const fn from_code(code: u16) -> Option<(Self, u32)> {
        // Types are an open set of the peer's, so here the rest is a fault.
        match code {
            6 => Some((PacketKind::InBand, 16)),
            7 => Some((PacketKind::TransferPages, 24)),
            9 => Some((PacketKind::GpaDirect, 24)),
            0xb => Some((PacketKind::Completion, 16)),
            _ => None,
        }
    }
}

/// The first word of a descriptor, private and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) kind: PacketKind,
    pub(crate) completion_requested: bool,
    /// Bytes from the descriptor to the payload.
    pub(crate) payload_offset: u32,
    /// Bytes from the descriptor to the trailer.
    pub(crate) length: u32,
}

impl Descriptor {
    /// The whole descriptor as it stands in the ring.
    #[inline(always)]
    pub(crate) fn bytes(self, transaction_id: u64) -> [u8; DESCRIPTOR_SIZE] {
        let mut bytes = [0; DESCRIPTOR_SIZE];
        bytes[..8].copy_from_slice(&self.word().to_le_bytes());
        bytes[8..].copy_from_slice(&transaction_id.to_le_bytes());
        bytes
    }

    #[inline(always)]
    fn word(self) -> u64 {
        let flags = if self.completion_requested { COMPLETION_REQUESTED } else { 0 };
        u64::from(self.kind.code())
            | u64::from(self.payload_offset / 8) << 16
            | u64::from(self.length / 8) << 32
            | u64::from(flags) << 48
    }

    /// Checks the word a peer wrote against the `unread` bytes it committed.
    #[inline(always)]
    pub(crate) fn check(word: u64, unread: u32) -> Result<Self, RingFault> {
        let [k0, k1, o0, o1, l0, l1, f0, f1] = word.to_le_bytes();
        let length = u32::from(u16::from_le_bytes([l0, l1])) * 8;
        let flags = u16::from_le_bytes([f0, f1]);

        // Packets without headers in one comparison.
        let (kind, payload_offset) = match u32::from_le_bytes([k0, k1, o0, o1]) {
            BARE_IN_BAND => (PacketKind::InBand, 16),
            BARE_COMPLETION => (PacketKind::Completion, 16),
            _ => Self::check_offset(word)?,
        };
        // The payload starts at 16 at least, so a packet as long as that is long enough for a descriptor.
        if payload_offset > length || length + 8 > unread || flags > COMPLETION_REQUESTED {
            return Err(Self::fault(word, unread));
        }
        Ok(Self { kind, completion_requested: flags == COMPLETION_REQUESTED, payload_offset, length })
    }

    #[inline]
    fn check_offset(word: u64) -> Result<(PacketKind, u32), RingFault> {
        let [k0, k1, o0, o1, l0, l1, ..] = word.to_le_bytes();
        let code = u16::from_le_bytes([k0, k1]);
        let offset = u32::from(u16::from_le_bytes([o0, o1])) * 8;
        let length = u32::from(u16::from_le_bytes([l0, l1])) * 8;
        let (kind, min_offset) = PacketKind::from_code(code).ok_or(RingFault::Type(code))?;
        if offset < min_offset { Err(RingFault::Offset { offset, length }) } else { Ok((kind, offset)) }
    }

    /// What is wrong with a word of known type that failed a check.
    #[cold]
    #[inline(never)]
    fn fault(word: u64, unread: u32) -> RingFault {
        let [_, _, o0, o1, l0, l1, f0, f1] = word.to_le_bytes();
        let offset = u32::from(u16::from_le_bytes([o0, o1])) * 8;
        let length = u32::from(u16::from_le_bytes([l0, l1])) * 8;
        let flags = u16::from_le_bytes([f0, f1]);
        if flags > COMPLETION_REQUESTED {
            RingFault::Flags(flags)
        } else if offset > length {
            RingFault::Offset { offset, length }
        } else {
            RingFault::Length { length: length + 8, unread }
        }
    }
}

/// A packet taken from a ring. Its descriptor is a private, checked copy; headers and payload are still in shared
/// memory, where the peer may change them between two reads: copy once, check the copy.
///
/// The room it occupies is the peer's again after the next [`Consumer::publish`](crate::Consumer::publish), which the
/// borrow rules out while the packet lives.
#[derive(Debug)]
pub struct Packet<'a, R> {
    /// What the packet is.
    pub kind: PacketKind,
    /// The sender's name for it; meaningless where no completion is requested, unless this is a completion.
    pub transaction_id: u64,
    /// Whether the sender waits for a completion.
    pub completion_requested: bool,
    pub(crate) memory: &'a R,
    pub(crate) size: u32,
    /// Ring offset of the descriptor.
    pub(crate) start: u32,
    pub(crate) header_len: u32,
    pub(crate) payload_len: u32,
}

impl<'a, R: RingMemory> Packet<'a, R> {
    /// Bytes of payload, with the padding to a multiple of 8 that senders append.
    #[inline]
    pub fn payload_len(&self) -> usize {
        self.payload_len as usize
    }

    /// Copies payload bytes from `at` on. Asking for more than the peer sent is its fault or the caller's.
    #[inline(always)]
    pub fn read_payload(&self, at: usize, into: &mut [u8]) -> Result<(), OutOfPacket> {
        let at = within(at, into.len(), self.payload_len)?;
        // The packet is shorter than the ring, so this wraps once at most.
        self.memory.read(advance(self.start, 16 + self.header_len + at, self.size), into);
        Ok(())
    }

    /// Bytes of type-specific header, a multiple of 8: 0 for in-band packets and completions.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.header_len as usize
    }

    /// Copies the type-specific header from its start on (byte 16 of the packet). Asking for more than
    /// [`header_len`](Self::header_len) is refused.
    #[inline]
    pub fn read_header(&self, into: &mut [u8]) -> Result<(), OutOfPacket> {
        within(0, into.len(), self.header_len)?;
        self.memory.read(advance(self.start, 16, self.size), into);
        Ok(())
    }

    /// Ring offset at which the payload starts: with [`memory`](Self::memory) for copies straight from the ring to
    /// elsewhere. The payload may run past the end of the data area and goes on at 0.
    #[inline]
    pub fn payload_offset(&self) -> u32 {
        advance(self.start, 16 + self.header_len, self.size)
    }

    /// The ring's memory.
    #[inline]
    pub fn memory(&self) -> &'a R {
        self.memory
    }
}

/// `at` as a ring distance if `len` bytes from there lie within `length`.
#[inline]
pub(crate) fn within(at: usize, len: usize, length: u32) -> Result<u32, OutOfPacket> {
    let end = at.saturating_add(len);
    if end > length as usize {
        return Err(OutOfPacket { at, end, length: length as usize });
    }
    // At most `length`, so it fits.
    Ok(u32::try_from(at).unwrap_or(length))
}

/// Loads an index that the peer writes, and checks it: every time, for it may be anything every time.
#[inline]
pub(crate) fn load_write_index<R: RingMemory>(
    memory: &R,
    size: u32,
    order: core::sync::atomic::Ordering,
) -> Result<u32, RingFault> {
    let index = memory.load(ControlWord::WriteIndex, order);
    if is_index(index, size) { Ok(index) } else { Err(RingFault::WriteIndex(index)) }
}

/// As [`load_write_index`], for the read index.
#[inline]
pub(crate) fn load_read_index<R: RingMemory>(
    memory: &R,
    size: u32,
    order: core::sync::atomic::Ordering,
) -> Result<u32, RingFault> {
    let index = memory.load(ControlWord::ReadIndex, order);
    if is_index(index, size) { Ok(index) } else { Err(RingFault::ReadIndex(index)) }
}

/// The size of a data area that a ring can have.
pub(crate) fn checked_size<R: RingMemory>(memory: &R) -> Result<u32, RingFault> {
    let size = memory.data_size();
    if size == 0 || size > MAX_DATA_SIZE || !size.is_multiple_of(4096) {
        return Err(RingFault::DataSize(size));
    }
    Ok(size)
}
