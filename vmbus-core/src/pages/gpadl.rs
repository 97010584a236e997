//! Page lists: built from control messages by a server, split into them by a client.

use alloc::vec::Vec;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::{PageRange, RangeError, Ranges, head_word, pages_touched, parse_head, words};
use crate::message::{GPADL_BODY_ROOM, GPADL_HEADER_ROOM, GpadlBody, GpadlHeader, Message};

/// A complete and checked page list: one or more ranges, none of them empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRanges {
    words: Vec<U64>,
    count: u16,
}

impl PageRanges {
    /// The most words (8 bytes each) whose size the length field of a GPADL_HEADER can state: one range of 8,190
    /// pages. Not every server accepts more.
    pub const MAX_STATED_WORDS: usize = 0xffff / 8;

    /// A list of one range; `pfns` must be exactly the pages that it touches.
    pub fn single(
        byte_offset: u32,
        byte_count: u32,
        pfns: impl IntoIterator<Item = u64>,
    ) -> Result<Self, GpadlError> {
        Self::builder().range(byte_offset, byte_count, pfns)?.build()
    }

    /// Starts a list of several ranges.
    pub fn builder() -> PageRangesBuilder {
        PageRangesBuilder { words: Vec::new(), count: 0 }
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = PageRange<'_>> + Clone {
        Ranges { words: &self.words, left: u32::from(self.count) }
    }

    /// Number of ranges, at least 1.
    pub fn range_count(&self) -> u16 {
        self.count
    }

    /// Number of pages of all ranges, at least 1. A page named twice counts twice.
    pub fn page_count(&self) -> usize {
        self.words.len() - usize::from(self.count)
    }

    /// Bytes of all ranges together.
    pub fn byte_count(&self) -> u64 {
        self.ranges().map(|range| u64::from(range.byte_count())).sum()
    }

    /// All page frame numbers, in order, of a list that consists of whole pages: what a ring must be.
    pub fn whole_pages(&self) -> Option<impl Iterator<Item = u64> + Clone + '_> {
        self.ranges()
            .all(|range| range.is_whole_pages())
            .then(|| self.ranges().flat_map(|range| range.pfns()))
    }

    /// The ranges as they are on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        self.words.as_bytes()
    }

    /// The GPADL_HEADER and GPADL_BODY messages that carry this list.
    ///
    /// Beyond [`Self::MAX_STATED_WORDS`] the length field holds the low 16 bits only, as Linux does it.
    pub fn messages(&self, relid: u32, gpadl: u32) -> impl Iterator<Item = Message<'_>> {
        let bytes = self.as_bytes();
        let [b0, b1, ..] = (bytes.len() as u64).to_le_bytes();
        let header = GpadlHeader {
            relid: U32::new(relid),
            gpadl: U32::new(gpadl),
            range_buflen: U16::from_bytes([b0, b1]),
            range_count: U16::new(self.count),
        };
        let body = GpadlBody { message_number: U32::ZERO, gpadl: U32::new(gpadl) };
        let (first, rest) = bytes.split_at(bytes.len().min(GPADL_HEADER_ROOM));
        core::iter::once(Message::GpadlHeader(header, first))
            .chain(rest.chunks(GPADL_BODY_ROOM).map(move |piece| Message::GpadlBody(body, piece)))
    }
}

/// Makes a [`PageRanges`] range by range.
#[derive(Clone, Debug)]
pub struct PageRangesBuilder {
    words: Vec<U64>,
    count: u16,
}

impl PageRangesBuilder {
    /// Adds a range; `pfns` must be exactly the pages that it touches. Errors are the caller's fault.
    pub fn range(
        mut self,
        byte_offset: u32,
        byte_count: u32,
        pfns: impl IntoIterator<Item = u64>,
    ) -> Result<Self, GpadlError> {
        if byte_count == 0 {
            return Err(GpadlError::EmptyRange);
        }
        let needed = pages_touched(byte_offset, byte_count)?;
        self.count = self.count.checked_add(1).ok_or(GpadlError::TooManyRanges)?;
        self.words.push(head_word(byte_offset, byte_count));
        let before = self.words.len();
        self.words.extend(pfns.into_iter().map(U64::new));
        let given = self.words.len() - before;
        if given != needed {
            return Err(RangeError::PageCount { given, needed }.into());
        }
        Ok(self)
    }

    /// The list. A list without ranges is the caller's fault.
    pub fn build(self) -> Result<PageRanges, GpadlError> {
        if self.count == 0 {
            return Err(GpadlError::NoRange);
        }
        Ok(PageRanges { words: self.words, count: self.count })
    }
}

/// Why a page list was refused. The fault of whoever sends it, but for [`GpadlError::OverQuota`], which our limit
/// decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpadlError {
    /// The list has no ranges.
    #[error("page list without ranges")]
    NoRange,
    /// A range has no bytes.
    #[error("page list with an empty range")]
    EmptyRange,
    /// More ranges than the header's field can count.
    #[error("page list with more than 65535 ranges")]
    TooManyRanges,
    /// A range is wrong in itself.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The header states another size than its ranges have.
    #[error("page list states {stated} bytes (16 bits), its ranges take {needed}")]
    Length {
        /// The header's length field.
        stated: u16,
        /// Bytes that the ranges take.
        needed: usize,
    },
    /// The list is larger than allowed.
    #[error("page list of at least {needed} words where {quota} are allowed")]
    OverQuota {
        /// Words of 8 bytes known to be needed.
        needed: usize,
        /// Words allowed.
        quota: usize,
    },
}

/// A page list on its way: collects the words of one GPADL_HEADER and the GPADL_BODY messages after it.
///
/// What is needed follows from the ranges as they come in, since the header's length field holds 16 bits only and
/// some senders truncate it; the field must agree in those 16 bits. Memory grows with what was received, never with
/// what was announced.
#[derive(Debug)]
pub struct GpadlBuilder {
    words: Vec<U64>,
    /// Where the range that is being received ends, and the next begins.
    range_end: usize,
    ranges_left: u16,
    count: u16,
    stated: u16,
    quota: usize,
}

impl GpadlBuilder {
    /// Starts a list of `range_count` ranges in `range_buflen` bytes, as the header says, of at most `quota` words
    /// of 8 bytes.
    pub fn new(range_buflen: u16, range_count: u16, quota: usize) -> Result<Self, GpadlError> {
        if range_count == 0 {
            return Err(GpadlError::NoRange);
        }
        // A range takes two words at least.
        let needed = (usize::from(range_buflen) / 8).max(2 * usize::from(range_count));
        if needed > quota {
            return Err(GpadlError::OverQuota { needed, quota });
        }
        Ok(Self {
            words: Vec::new(),
            range_end: 0,
            ranges_left: range_count,
            count: range_count,
            stated: range_buflen,
            quota,
        })
    }

    /// Takes the page-list bytes of a header or body and returns the list once it is complete. Bytes beyond the end of
    /// the list, as padding of the last message, are ignored, as is all that comes after.
    ///
    /// After an error the list is lost: answer with a failure and drop the builder.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<PageRanges>, GpadlError> {
        let mut input = words(bytes);
        loop {
            let missing = self.range_end - self.words.len();
            let (taken, rest) = input.split_at(missing.min(input.len()));
            self.words.extend_from_slice(taken);
            input = rest;
            if taken.len() < missing {
                return Ok(None);
            }
            if self.ranges_left == 0 {
                self.range_end = 0;
                let words = core::mem::take(&mut self.words);
                let complete = PageRanges { words, count: self.count };
                return Ok((complete.words.len() > 1).then_some(complete));
            }
            let Some(head) = input.first() else {
                return Ok(None);
            };
            self.start_range(*head)?;
        }
    }

    /// What the header stated: the length of the ranges in bytes (16 bits), and their number.
    pub(crate) fn announced(&self) -> (u16, u16) {
        (self.stated, self.count)
    }

    /// The words received so far, as they are on the wire.
    pub(crate) fn received(&self) -> &[u8] {
        self.words.as_bytes()
    }

    /// Words of 8 bytes received so far: what a quota over several builders counts.
    pub fn received_words(&self) -> usize {
        self.words.len()
    }

    /// Checks the range that `head` announces before any of it is stored.
    fn start_range(&mut self, head: U64) -> Result<(), GpadlError> {
        let (byte_offset, byte_count) = parse_head(head);
        if byte_count == 0 {
            return Err(GpadlError::EmptyRange);
        }
        self.range_end += 1 + pages_touched(byte_offset, byte_count)?;
        self.ranges_left -= 1;
        let needed = self.range_end + 2 * usize::from(self.ranges_left);
        if needed > self.quota {
            return Err(GpadlError::OverQuota { needed, quota: self.quota });
        }
        let needed = 8 * self.range_end;
        if self.ranges_left == 0 && needed & 0xffff != usize::from(self.stated) {
            return Err(GpadlError::Length { stated: self.stated, needed });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list as a server puts it together from the messages of `list`.
    fn reassembled(list: &PageRanges) -> PageRanges {
        let mut messages = list.messages(1, 2);
        let Some(Message::GpadlHeader(header, first)) = messages.next() else { panic!("no header") };
        let (buflen, count) = (header.range_buflen.get(), header.range_count.get());
        let mut builder = GpadlBuilder::new(buflen, count, 1 << 20).unwrap();
        let mut done = builder.push(first).unwrap();
        for message in messages {
            let Message::GpadlBody(body, piece) = message else { panic!("not a body: {message:?}") };
            assert_eq!(body.gpadl.get(), 2);
            assert!(done.is_none(), "complete before the last message");
            done = builder.push(piece).unwrap();
        }
        done.expect("complete after the last message")
    }

    #[test]
    fn a_list_survives_the_journey_at_every_size() {
        for pages in (1..120_u32).chain([8190, 8191, 8192, 16384, 70_000]) {
            let list = PageRanges::single(0, pages * 4096, (0..u64::from(pages)).map(|n| n * 3)).unwrap();
            assert_eq!(list.page_count(), pages as usize);
            assert_eq!(reassembled(&list), list);
        }
    }

    #[test]
    fn ranges_may_break_anywhere_in_the_messages() {
        let mut builder = PageRanges::builder();
        for index in 0..40_u32 {
            let pages = u64::from(index % 3 + 2);
            builder = builder.range(4095, index % 3 * 4096 + 4096, 0..pages).unwrap();
        }
        let list = builder.build().unwrap();
        assert_eq!(reassembled(&list), list);
        assert_eq!(list.range_count(), 40);
        assert!(list.whole_pages().is_none());
    }

    #[test]
    fn padding_of_the_last_body_is_ignored() {
        let list = PageRanges::single(0, 28 * 4096, 0..28).unwrap();
        let bytes = list.as_bytes();
        let mut builder = GpadlBuilder::new(29 * 8, 1, 100).unwrap();
        assert_eq!(builder.push(&bytes[..GPADL_HEADER_ROOM]), Ok(None));
        let mut last = bytes[GPADL_HEADER_ROOM..].to_vec();
        last.resize(GPADL_BODY_ROOM, 0xff);
        assert_eq!(builder.push(&last), Ok(Some(list)));
        assert_eq!(builder.push(&last), Ok(None), "nothing comes after the end");
    }

    #[test]
    fn a_list_of_nothing_is_refused() {
        assert_eq!(GpadlBuilder::new(16, 0, 100).unwrap_err(), GpadlError::NoRange);
        let mut builder = GpadlBuilder::new(16, 1, 100).unwrap();
        assert_eq!(builder.push(&[0; 16]), Err(GpadlError::EmptyRange));
        assert_eq!(PageRanges::builder().build(), Err(GpadlError::NoRange));
    }

    #[test]
    fn a_length_that_its_ranges_contradict_is_refused() {
        let list = PageRanges::single(0, 8192, [1, 2]).unwrap();
        for stated in [0, 16, 23, 25, 32] {
            let mut builder = GpadlBuilder::new(stated, 1, 100).unwrap();
            assert_eq!(
                builder.push(list.as_bytes()),
                Err(GpadlError::Length { stated, needed: 24 }),
                "{stated}"
            );
        }
    }

    #[test]
    fn a_huge_announcement_costs_nothing_and_meets_the_quota() {
        let mut builder = GpadlBuilder::new(16, 1, 1000).unwrap();
        let head = u64::from(u32::MAX).to_le_bytes();
        assert_eq!(builder.push(&head), Err(GpadlError::OverQuota { needed: (1 << 20) + 1, quota: 1000 }));
        assert_eq!(builder.received_words(), 0);
        assert_eq!(
            GpadlBuilder::new(0, 600, 1000).unwrap_err(),
            GpadlError::OverQuota { needed: 1200, quota: 1000 }
        );
    }

    #[test]
    fn a_list_may_use_its_quota_up_and_no_more() {
        let list = PageRanges::builder()
            .range(0, 8192, [1, 2])
            .and_then(|list| list.range(0, 4096, [3]))
            .and_then(PageRangesBuilder::build)
            .unwrap();
        let read = |stated, quota| GpadlBuilder::new(stated, 2, quota)?.push(list.as_bytes());
        assert_eq!(read(40, 5), Ok(Some(list.clone())));
        assert_eq!(read(40, 4), Err(GpadlError::OverQuota { needed: 5, quota: 4 }), "stated by the header");
        // What the header hides, the first range that tells it ends.
        assert_eq!(read(0, 4), Err(GpadlError::OverQuota { needed: 5, quota: 4 }), "stated by the ranges");
        assert_eq!(read(0, 3), Err(GpadlError::OverQuota { needed: 4, quota: 3 }), "stated by the count");
    }
}
