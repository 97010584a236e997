//! What can go wrong, and whose fault it is.

use thiserror::Error;

/// Something the peer did to the ring that no correct peer does.
///
/// The ring object stays usable and memory-safe, but a channel whose ring is at fault has lost packet framing and
/// should be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RingFault {
    /// The data area is empty, larger than 2 GiB or not whole pages.
    #[error("the peer gave a ring data area of {0:#x} bytes")]
    DataSize(u32),
    /// A write index beyond the data area or not a multiple of 8.
    #[error("the peer set the write index to {0:#x}")]
    WriteIndex(u32),
    /// A read index beyond the data area or not a multiple of 8.
    #[error("the peer set the read index to {0:#x}")]
    ReadIndex(u32),
    /// A packet longer than what was committed, which may be less than any packet.
    #[error("the peer wrote a packet of {length} bytes where {unread} bytes are unread")]
    Length {
        /// What the packet occupies by its own account, trailer included.
        length: u32,
        /// Bytes between the read index and the write index.
        unread: u32,
    },
    /// A payload that starts inside the descriptor, inside the header of the packet's type, or after its end.
    #[error("the peer wrote a packet of {length} bytes whose payload starts at byte {offset}")]
    Offset {
        /// Where the payload starts, counted from the descriptor.
        offset: u32,
        /// Descriptor, headers and payload, trailer excluded.
        length: u32,
    },
    /// A packet type nobody sends.
    #[error("the peer wrote a packet of unknown type {0:#x}")]
    Type(u16),
    /// Flags nobody sets.
    #[error("the peer wrote a packet with unknown flags {0:#x}")]
    Flags(u16),
}

/// Why a packet was not put into a batch. Nothing of it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PushError {
    /// The ring has no room now: commit what the batch holds, then see
    /// [`Producer::request_space`](crate::Producer::request_space).
    #[error("the ring is full")]
    Full,
    /// Our own fault: the packet exceeds what its length field or an empty ring can hold.
    #[error("the packet is larger than the ring can ever take")]
    TooLarge,
    /// Our own fault: a GPA-direct packet without ranges, or a range whose page list does not match its bytes.
    #[error("a page range does not match its page list")]
    Range,
    /// The peer's fault.
    #[error(transparent)]
    Fault(#[from] RingFault),
}

/// More bytes were asked of a packet than it has. A peer chooses how long its packets are: a reader that expects more
/// has found a malformed packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("bytes {at}..{end} were asked of {length} bytes")]
pub struct OutOfPacket {
    /// First byte asked for.
    pub at: usize,
    /// One past the last byte asked for.
    pub end: usize,
    /// Bytes there are.
    pub length: usize,
}
