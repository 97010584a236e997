//! What REPORT LUNS returns.

use alloc::vec::Vec;

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::wire_struct;

wire_struct! {
    /// What stands before the list.
    pub struct LunListHeader {
        /// Bytes of the whole list, also when it is cut.
        pub length: U32,
        /// 0.
        pub reserved: U32,
    }
}

impl LunListHeader {
    /// Shortest allocation length that is allowed, in bytes.
    pub const MINIMUM_ALLOCATION: u32 = 16;
}

/// The answer that lists these units, below 16384.
pub fn emit_luns(luns: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut bytes = LunListHeader::default().as_bytes().to_vec();
    for lun in luns {
        let [high, low] = lun.to_be_bytes();
        // Up to 255 a bus address, beyond it "flat space".
        let method = if high == 0 { 0 } else { 0x40 };
        bytes.extend([method | high & 0x3f, low, 0, 0, 0, 0, 0, 0]);
    }
    let length = u32::try_from(bytes.len() - size_of::<LunListHeader>()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// The units in an answer, as far as it goes; others than those of the forms in [`emit_luns`] are left out.
pub fn parse_luns(bytes: &[u8]) -> Option<impl Iterator<Item = u16> + '_> {
    let (header, list) = LunListHeader::read_from_prefix(bytes).ok()?;
    let len = list.len().min(header.length.get() as usize);
    let (entries, _) = list[..len].as_chunks::<8>();
    Some(entries.iter().filter_map(|entry| match entry {
        [high @ (0 | 0x40..=0x7f), low, 0, 0, 0, 0, 0, 0] => Some(u16::from_be_bytes([high & 0x3f, *low])),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_survive_the_journey_and_strange_ones_are_left_out() {
        let mut bytes = emit_luns([0, 5, 255, 256, 16383]);
        bytes.extend([0xc1, 0, 0, 0, 0, 0, 0, 0]);
        bytes[3] += 8;
        let luns: Vec<u16> = parse_luns(&bytes).unwrap().collect();
        assert_eq!(luns, [0, 5, 255, 256, 16383]);
        assert_eq!(parse_luns(&bytes[..23]).unwrap().count(), 1, "a list that was cut");
        assert!(parse_luns(&bytes[..7]).is_none());
    }
}
