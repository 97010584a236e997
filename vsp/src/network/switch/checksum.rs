//! The Internet checksum, where a receiver wants it in place.

use super::ip;

/// Fills in a missing TCP or UDP checksum: the sum from `start` to the end of the packet goes into its field.
/// `None` if it does not lie in the frame, which its sender made up.
pub(super) fn complete(bytes: &mut [u8], start: u16, field: u16) -> Option<()> {
    let end = ip::end(bytes);
    let covered = bytes.get_mut(usize::from(start)..end)?;
    let sum = !fold(sum(covered));
    // UDP's zero means that there is none.
    let sum = if field == UDP_FIELD && sum == 0 { u16::MAX } else { sum };
    *covered.get_mut(usize::from(field)..)?.first_chunk_mut()? = sum.to_ne_bytes();
    Some(())
}

/// Where the checksum is in a UDP header.
const UDP_FIELD: u16 = 6;

/// Fills in an IPv4 header's checksum.
pub(super) fn complete_header(header: &mut [u8]) {
    if let Some(field) = header.get_mut(10..12) {
        field.fill(0);
        let sum = !fold(sum(header));
        header[10..12].copy_from_slice(&sum.to_ne_bytes());
    }
}

/// The ones' complement sum of 16-bit words in the machine's own byte order, not yet folded: sums may be added, but
/// only of pieces that begin at even offsets.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let whole: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    whole + u64::from(u32::from_ne_bytes(last))
}

/// A number that is added to a sum as a field of the packet would be.
pub(super) fn sum_of(number: u32) -> u64 {
    u64::from(u32::from_ne_bytes(number.to_be_bytes()))
}

/// The sum as 16 bits in the machine's own byte order, to be inverted.
pub(super) fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 1071 says it: word by word, carries around.
    fn slow(bytes: &[u8]) -> u16 {
        bytes.chunks(2).fold(0, |sum: u16, pair| {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            let (sum, carry) = sum.overflowing_add(word);
            sum + u16::from(carry)
        })
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_slow_one(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(fold(sum(&bytes)).to_ne_bytes(), slow(&bytes).to_be_bytes());
        }
    }

    #[test]
    fn the_largest_sums_fold() {
        for len in [0, 1, 2, 3, 4, 65_535] {
            let bytes = vec![0xff; len];
            assert_eq!(fold(sum(&bytes)).to_ne_bytes(), slow(&bytes).to_be_bytes(), "{len}");
        }
        assert_eq!(fold(u64::MAX), u16::MAX);
    }

    #[test]
    fn a_header_of_the_book_gets_its_checksum() {
        let mut header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xaa, 0xaa, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        complete_header(&mut header);
        assert_eq!(header[10..12], [0xb8, 0x61]);
    }

    #[test]
    fn a_checksum_outside_of_the_frame_is_not_written() {
        let mut frame = [0; 60];
        for (start, field) in [(61, 0), (60, 0), (50, 9), (u16::MAX, u16::MAX), (0, u16::MAX)] {
            assert_eq!(complete(&mut frame, start, field), None, "{start} {field}");
        }
        assert_eq!(complete(&mut frame, 50, 8), Some(()));
    }
}
