//! Ranges of guest pages, as page lists (GPADL) and ring packets carry them.
//!
//! A range is one buffer that is contiguous to its owner and scattered over pages: a word with byte count and byte
//! offset into the first page, then one page frame number for each page it touches
//! (`docs/src/protocol/control.md`, "GPADL_HEADER"). Every bound is checked once, when a view is made; using a view
//! cannot fail. Nothing here knows whether a page exists: that is for whoever maps it.

mod gpa_direct;
mod gpadl;
mod transfer;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

pub use gpa_direct::GpaDirect;
pub use gpadl::{GpadlBuilder, GpadlError, PageRanges, PageRangesBuilder};
pub use transfer::{TransferPages, TransferRange};

const PAGE: u32 = 4096;

/// A buffer of `byte_count` bytes that begins `byte_offset` bytes into the first of its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange<'a> {
    byte_count: u32,
    byte_offset: u32,
    /// As many as the buffer touches, no more.
    pfns: &'a [U64],
}

/// Why words are not ranges. Always the fault of whoever wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The header in front of the ranges is incomplete.
    #[error("page range header needs {needed} bytes and has {len}")]
    TooShort {
        /// Bytes there.
        len: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// A packet that lives from its ranges has none.
    #[error("there is no page range")]
    NoRange,
    /// The offset lies beyond the first page.
    #[error("page range starts at offset {0}, beyond its first page")]
    OffsetBeyondPage(u32),
    /// Fewer ranges or page frame numbers are there than announced.
    #[error("page ranges need {needed} more words where {left} are left")]
    Truncated {
        /// Words of 8 bytes needed from this point on.
        needed: usize,
        /// Words there.
        left: usize,
    },
    /// More page frame numbers are given than the buffer touches (only for ranges we make ourselves).
    #[error("page range has {given} pages where its buffer touches {needed}")]
    PageCount {
        /// Page frame numbers given.
        given: usize,
        /// Pages that the buffer touches.
        needed: usize,
    },
}

impl<'a> PageRange<'a> {
    /// The range of `byte_count` bytes from `byte_offset` in the first of `pfns`, which must be exactly the pages it
    /// touches.
    #[inline]
    pub fn new(byte_offset: u32, byte_count: u32, pfns: &'a [U64]) -> Result<Self, RangeError> {
        let needed = pages_touched(byte_offset, byte_count)?;
        if pfns.len() != needed {
            return Err(RangeError::PageCount { given: pfns.len(), needed });
        }
        Ok(Self { byte_count, byte_offset, pfns })
    }

    /// Length of the buffer in bytes.
    #[inline]
    pub fn byte_count(&self) -> u32 {
        self.byte_count
    }

    /// Where the buffer begins in its first page, 0 to 4095.
    #[inline]
    pub fn byte_offset(&self) -> u32 {
        self.byte_offset
    }

    /// Number of pages that the buffer touches.
    #[inline]
    pub fn page_count(&self) -> usize {
        self.pfns.len()
    }

    /// The numbers of the pages, in 4 KiB units of guest-physical address space.
    #[inline]
    pub fn pfns(&self) -> impl ExactSizeIterator<Item = u64> + DoubleEndedIterator + Clone + use<'a> {
        self.pfns.iter().map(|pfn| pfn.get())
    }

    /// The number of the page at `index`, or `None` beyond the last.
    #[inline]
    pub fn pfn(&self, index: usize) -> Option<u64> {
        self.pfns.get(index).map(|pfn| pfn.get())
    }

    /// Whether the buffer begins and ends at page boundaries.
    #[inline]
    pub fn is_whole_pages(&self) -> bool {
        self.byte_offset == 0 && self.byte_count.is_multiple_of(PAGE)
    }

    /// Size of the range on the wire, in bytes.
    #[inline]
    pub fn encoded_len(&self) -> usize {
        8 * (1 + self.pfns.len())
    }

    /// The first word on the wire; the page frame numbers follow it.
    #[inline]
    pub fn head(&self) -> [u8; 8] {
        head_word(self.byte_offset, self.byte_count).to_bytes()
    }

    /// The page frame numbers as they are on the wire.
    #[inline]
    pub fn pfn_bytes(&self) -> &'a [u8] {
        self.pfns.as_bytes()
    }

    /// Takes the range that `words` begin with and returns what follows it.
    #[inline]
    fn split_from(words: &'a [U64]) -> Result<(Self, &'a [U64]), RangeError> {
        let Some((head, rest)) = words.split_first() else {
            return Err(RangeError::Truncated { needed: 1, left: 0 });
        };
        let (byte_offset, byte_count) = parse_head(*head);
        let needed = pages_touched(byte_offset, byte_count)?;
        match rest.split_at_checked(needed) {
            Some((pfns, rest)) => Ok((Self { byte_count, byte_offset, pfns }, rest)),
            None => Err(RangeError::Truncated { needed, left: rest.len() }),
        }
    }
}

/// Iterator over ranges in words that were checked before.
#[derive(Clone, Debug)]
struct Ranges<'a> {
    words: &'a [U64],
    left: u32,
}

impl<'a> Iterator for Ranges<'a> {
    type Item = PageRange<'a>;

    #[inline]
    fn next(&mut self) -> Option<PageRange<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (range, rest) = PageRange::split_from(self.words).ok()?;
        self.words = rest;
        Some(range)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Ranges<'_> {}

/// Number of pages that a buffer touches, at most 2^20 + 1.
#[inline]
fn pages_touched(byte_offset: u32, byte_count: u32) -> Result<usize, RangeError> {
    if byte_offset >= PAGE {
        return Err(RangeError::OffsetBeyondPage(byte_offset));
    }
    // Neither sum can overflow, as the offset is below one page.
    let pages = byte_count / PAGE + (byte_count % PAGE + byte_offset).div_ceil(PAGE);
    Ok(pages as usize)
}

#[inline]
fn parse_head(word: U64) -> (u32, u32) {
    let [c0, c1, c2, c3, o0, o1, o2, o3] = word.to_bytes();
    (u32::from_le_bytes([o0, o1, o2, o3]), u32::from_le_bytes([c0, c1, c2, c3]))
}

#[inline]
fn head_word(byte_offset: u32, byte_count: u32) -> U64 {
    U64::new(u64::from(byte_offset) << 32 | u64::from(byte_count))
}

/// The whole words of `bytes`; up to 7 bytes at the end are left out.
#[inline]
fn words(bytes: &[u8]) -> &[U64] {
    match <[U64]>::ref_from_prefix_with_elems(bytes, bytes.len() / 8) {
        Ok((words, _)) => words,
        Err(_) => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_touches_the_pages_it_reaches_into_and_no_more() {
        for (offset, count, pages) in [
            (0, 0, 0),
            (0, 1, 1),
            (0, 4096, 1),
            (0, 4097, 2),
            (1, 4096, 2),
            (4095, 1, 1),
            (4095, 2, 2),
            (4095, 0, 1),
            (0, u32::MAX, 1 << 20),
            (4095, u32::MAX, (1 << 20) + 1),
        ] {
            assert_eq!(pages_touched(offset, count), Ok(pages), "offset {offset} count {count}");
        }
        assert_eq!(pages_touched(4096, 1), Err(RangeError::OffsetBeyondPage(4096)));
    }

    #[test]
    fn a_range_of_our_own_names_exactly_its_pages() {
        let pfns = [U64::new(7), U64::new(9)];
        let range = PageRange::new(4000, 200, &pfns).unwrap();
        assert_eq!(range.pfns().collect::<std::vec::Vec<_>>(), [7, 9]);
        assert_eq!((range.pfn(1), range.pfn(2)), (Some(9), None));
        assert_eq!(range.head(), [200, 0, 0, 0, 0xa0, 0x0f, 0, 0]);
        assert_eq!(range.encoded_len(), 24);
        assert_eq!(PageRange::new(0, 200, &pfns), Err(RangeError::PageCount { given: 2, needed: 1 }));
    }
}
