//! The ranges of a GPA-direct packet.

use zerocopy::little_endian::U64;

use super::{PageRange, RangeError, Ranges, words};

/// The buffers that a GPA-direct packet names (`docs/src/protocol/ring.md`, "GPA direct").
#[derive(Clone, Copy, Debug)]
pub struct GpaDirect<'a> {
    words: &'a [U64],
    count: u32,
    byte_count: u64,
}

impl<'a> GpaDirect<'a> {
    /// Checks the bytes between the packet's descriptor and its payload, already copied to private memory: a reserved
    /// u32 (ignored), the number of ranges, the ranges. Words between the last range and the payload are ignored.
    #[inline]
    pub fn parse(header: &'a [u8]) -> Result<Self, RangeError> {
        let Some((head, rest)) = header.split_first_chunk::<8>() else {
            return Err(RangeError::TooShort { len: header.len(), needed: 8 });
        };
        let [_, _, _, _, count @ ..] = *head;
        let count = u32::from_le_bytes(count);
        if count == 0 {
            return Err(RangeError::NoRange);
        }
        let words = words(rest);
        let (mut left, mut byte_count) = (words, 0);
        // A range takes a word at least, so this ends after `words.len()` rounds whatever `count` says.
        for _ in 0..count {
            let (range, rest) = PageRange::split_from(left)?;
            byte_count += u64::from(range.byte_count);
            left = rest;
        }
        Ok(Self { words, count, byte_count })
    }

    /// The ranges, in order.
    #[inline]
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = PageRange<'a>> + Clone + use<'a> {
        Ranges { words: self.words, left: self.count }
    }

    /// The range, if there is exactly one.
    #[inline]
    pub fn single(&self) -> Option<PageRange<'a>> {
        match self.count {
            1 => self.ranges().next(),
            _ => None,
        }
    }

    /// Number of ranges, at least 1.
    #[inline]
    pub fn range_count(&self) -> u32 {
        self.count
    }

    /// Bytes of all ranges together.
    #[inline]
    pub fn byte_count(&self) -> u64 {
        self.byte_count
    }

    /// The 8 bytes that stand before `count` ranges on the wire.
    #[inline]
    pub fn head(count: u32) -> [u8; 8] {
        (u64::from(count) << 32).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn header(count: u32, words: &[u64]) -> Vec<u8> {
        let mut bytes = GpaDirect::head(count).to_vec();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    #[test]
    fn two_fragments_of_a_frame() {
        let bytes = header(2, &[0x0000_07c0_0000_003c, 9, 0x0ff0_0000_0020, 10, 11]);
        let packet = GpaDirect::parse(&bytes).unwrap();
        assert_eq!(packet.range_count(), 2);
        assert_eq!(packet.byte_count(), 0x5c);
        assert!(packet.single().is_none());
        let pages: Vec<Vec<u64>> = packet.ranges().map(|range| range.pfns().collect()).collect();
        assert_eq!(pages, [[9].as_slice(), [10, 11].as_slice()]);
    }

    #[test]
    fn a_lie_about_counts_is_found_without_looking_beyond_the_header() {
        assert_eq!(GpaDirect::parse(&[0; 7]).unwrap_err(), RangeError::TooShort { len: 7, needed: 8 });
        assert_eq!(GpaDirect::parse(&header(0, &[])).unwrap_err(), RangeError::NoRange);
        assert_eq!(
            GpaDirect::parse(&header(u32::MAX, &[1, 5])).unwrap_err(),
            RangeError::Truncated { needed: 1, left: 0 }
        );
        assert_eq!(
            GpaDirect::parse(&header(1, &[u64::from(u32::MAX), 5])).unwrap_err(),
            RangeError::Truncated { needed: 1 << 20, left: 1 }
        );
        assert_eq!(
            GpaDirect::parse(&header(1, &[4096 << 32 | 1, 5])).unwrap_err(),
            RangeError::OffsetBeyondPage(4096)
        );
    }
}
