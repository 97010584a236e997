//! Packets to be written, and the type-specific headers in front of their payload.

use crate::fault::PushError;
use crate::memory::RingMemory;
use crate::packet::{MAX_PACKET_SIZE, PacketKind};
use crate::signal::advance;

/// Bytes of a page, whatever the guest's own page size.
const PAGE: u32 = 4096;

/// A packet to be written, with its payload at hand.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// What the packet is, with its ranges.
    pub kind: OutgoingKind<'a>,
    /// The sender's name for it; never 0 for a request that wants a completion, as some peers do not complete 0.
    pub transaction_id: u64,
    /// Whether the peer must answer with a completion.
    pub completion_requested: bool,
    /// The payload; padded with zeros to a multiple of 8 in the ring.
    pub payload: &'a [u8],
}

impl<'a> Outgoing<'a> {
    /// An in-band packet that wants no answer.
    #[inline]
    pub const fn in_band(payload: &'a [u8]) -> Self {
        Self { kind: OutgoingKind::InBand, transaction_id: 0, completion_requested: false, payload }
    }

    /// An in-band packet that wants a completion.
    #[inline]
    pub const fn request(transaction_id: u64, payload: &'a [u8]) -> Self {
        Self { kind: OutgoingKind::InBand, transaction_id, completion_requested: true, payload }
    }

    /// The answer to the packet `transaction_id`.
    #[inline]
    pub const fn completion(transaction_id: u64, payload: &'a [u8]) -> Self {
        Self { kind: OutgoingKind::Completion, transaction_id, completion_requested: false, payload }
    }

    /// A request over ranges of guest memory.
    #[inline]
    pub const fn gpa_direct(transaction_id: u64, ranges: &'a [GpaRange<'a>], payload: &'a [u8]) -> Self {
        Self { kind: OutgoingKind::GpaDirect(ranges), transaction_id, completion_requested: true, payload }
    }

    /// Everything but the payload.
    #[inline]
    pub const fn head(&self) -> Head<'a> {
        Head {
            kind: self.kind,
            transaction_id: self.transaction_id,
            completion_requested: self.completion_requested,
        }
    }
}

/// A packet to be written whose payload is written in place.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// What the packet is, with its ranges.
    pub kind: OutgoingKind<'a>,
    /// As in [`Outgoing`].
    pub transaction_id: u64,
    /// As in [`Outgoing`].
    pub completion_requested: bool,
}

/// What a packet to be written is.
#[derive(Debug, Clone, Copy)]
pub enum OutgoingKind<'a> {
    /// The payload is all there is.
    InBand,
    /// The answer to an earlier packet.
    Completion,
    /// Ranges of a buffer that was set up earlier.
    TransferPages {
        /// The buffer's id.
        set_id: u16,
        /// Ranges of it.
        ranges: &'a [TransferRange],
    },
    /// Ranges of guest memory.
    GpaDirect(&'a [GpaRange<'a>]),
    /// Ranges of guest memory, already in the wire's form: per range its byte count and byte offset as u32 and its
    /// page numbers as u64, little-endian. The caller answers for the contents.
    GpaDirectEncoded {
        /// How many ranges the bytes hold, at least 1.
        range_count: u32,
        /// A multiple of 8 bytes.
        ranges: &'a [u8],
    },
}

/// A range of a transfer-page set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferRange {
    /// Bytes of the range.
    pub byte_count: u32,
    /// Where it starts in the set's buffer, in bytes.
    pub byte_offset: u32,
}

/// A virtually contiguous buffer in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpaRange<'a> {
    /// Bytes of the buffer.
    pub byte_count: u32,
    /// Where it starts in its first page, below 4096.
    pub byte_offset: u32,
    /// The pages it spans.
    pub pfns: Pfns<'a>,
}

/// Guest page numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pfns<'a> {
    /// Each page by name; exactly as many as the range spans.
    Listed(&'a [u64]),
    /// As many pages as the range spans, in a row from this one on.
    From(u64),
}

impl GpaRange<'_> {
    /// Pages the range spans.
    #[inline]
    pub const fn page_count(&self) -> usize {
        (self.byte_offset as usize).saturating_add(self.byte_count as usize).div_ceil(PAGE as usize)
    }

    #[inline]
    fn header_len(&self) -> Result<usize, PushError> {
        let pages = self.page_count();
        let (matches, last) = match self.pfns {
            Pfns::Listed(pfns) => (pfns.len() == pages, 0),
            Pfns::From(first) => (true, first.saturating_add(pages as u64)),
        };
        if !matches || last == u64::MAX || self.byte_offset >= PAGE {
            return Err(PushError::Range);
        }
        Ok(8 + 8 * pages)
    }
}

impl OutgoingKind<'_> {
    #[inline]
    pub(crate) const fn packet_kind(&self) -> PacketKind {
        match self {
            OutgoingKind::InBand => PacketKind::InBand,
            OutgoingKind::Completion => PacketKind::Completion,
            OutgoingKind::TransferPages { .. } => PacketKind::TransferPages,
            OutgoingKind::GpaDirect(_) | OutgoingKind::GpaDirectEncoded { .. } => PacketKind::GpaDirect,
        }
    }

    /// Bytes of type-specific header, with the ranges checked. For [`packet_size`](crate::packet_size).
    #[inline(always)]
    pub fn header_len(&self) -> Result<usize, PushError> {
        match *self {
            OutgoingKind::InBand | OutgoingKind::Completion => Ok(0),
            OutgoingKind::TransferPages { .. }
            | OutgoingKind::GpaDirect(_)
            | OutgoingKind::GpaDirectEncoded { .. } => self.ranges_len(),
        }
    }

    fn ranges_len(&self) -> Result<usize, PushError> {
        match *self {
            OutgoingKind::InBand | OutgoingKind::Completion => Ok(0),
            OutgoingKind::TransferPages { ranges, .. } => {
                if ranges.len() > MAX_PACKET_SIZE {
                    return Err(PushError::TooLarge);
                }
                Ok(8 + 8 * ranges.len())
            }
            OutgoingKind::GpaDirect(ranges) => {
                let mut len = 8_usize;
                for range in ranges {
                    len = len.saturating_add(range.header_len()?);
                }
                if ranges.is_empty() { Err(PushError::Range) } else { Ok(len) }
            }
            OutgoingKind::GpaDirectEncoded { range_count, ranges } => {
                if range_count == 0 || !ranges.len().is_multiple_of(8) {
                    return Err(PushError::Range);
                }
                Ok(ranges.len().saturating_add(8))
            }
        }
    }

    /// Writes the type-specific header of the packet that starts at `start`; its length was checked against the ring.
    #[inline(always)]
    pub(crate) fn write_header<R: RingMemory>(&self, memory: &R, start: u32, size: u32) {
        match *self {
            OutgoingKind::InBand | OutgoingKind::Completion => {}
            OutgoingKind::TransferPages { .. }
            | OutgoingKind::GpaDirect(_)
            | OutgoingKind::GpaDirectEncoded { .. } => {
                self.write_ranges(memory, advance(start, 16, size), size)
            }
        }
    }

    fn write_ranges<R: RingMemory>(&self, memory: &R, at: u32, size: u32) {
        let mut words = Words { memory, at, size };
        match *self {
            OutgoingKind::InBand | OutgoingKind::Completion => {}
            OutgoingKind::TransferPages { set_id, ranges } => {
                words.put(u64::from(set_id) | (ranges.len() as u64) << 32);
                for range in ranges {
                    words.put(pair(range.byte_count, range.byte_offset));
                }
            }
            OutgoingKind::GpaDirect(ranges) => {
                words.put((ranges.len() as u64) << 32);
                for range in ranges {
                    words.put(pair(range.byte_count, range.byte_offset));
                    match range.pfns {
                        Pfns::Listed(pfns) => pfns.iter().for_each(|&pfn| words.put(pfn)),
                        Pfns::From(first) => {
                            (first..first + range.page_count() as u64).for_each(|pfn| words.put(pfn))
                        }
                    }
                }
            }
            OutgoingKind::GpaDirectEncoded { range_count, ranges } => {
                words.put(u64::from(range_count) << 32);
                memory.write(words.at, ranges);
            }
        }
    }
}

/// Two u32 as they follow each other in memory.
#[inline]
const fn pair(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}

/// Consecutive words of the data area.
struct Words<'a, R> {
    memory: &'a R,
    at: u32,
    size: u32,
}

impl<R: RingMemory> Words<'_, R> {
    #[inline]
    fn put(&mut self, word: u64) {
        self.memory.write_u64(self.at, word);
        self.at = advance(self.at, 8, self.size);
    }
}
