//! The ranges of a transfer-page packet.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::RangeError;

/// A piece of a page list that both ends agreed on before, in bytes from its beginning.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct TransferRange {
    /// Length in bytes.
    pub byte_count: U32,
    /// Where it begins. Not checked against the page list here.
    pub byte_offset: U32,
}

/// What a transfer-page packet names (`docs/src/protocol/ring.md`, "Transfer pages").
#[derive(Clone, Copy, Debug)]
pub struct TransferPages<'a> {
    set_id: u16,
    sender_owns_set: bool,
    ranges: &'a [TransferRange],
}

impl<'a> TransferPages<'a> {
    /// Checks the bytes between the packet's descriptor and its payload, already copied to private memory: set id u16,
    /// sender owns set u8, reserved u8, number of ranges u32, the ranges. Surplus bytes are ignored.
    #[inline]
    pub fn parse(header: &'a [u8]) -> Result<Self, RangeError> {
        let Some((&[id0, id1, owns, _, c0, c1, c2, c3], rest)) = header.split_first_chunk::<8>() else {
            return Err(RangeError::TooShort { len: header.len(), needed: 8 });
        };
        let count = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
        match <[TransferRange]>::ref_from_prefix_with_elems(rest, count) {
            Ok((ranges, _)) => {
                Ok(Self { set_id: u16::from_le_bytes([id0, id1]), sender_owns_set: owns != 0, ranges })
            }
            Err(_) => Err(RangeError::Truncated { needed: count, left: rest.len() / 8 }),
        }
    }

    /// The set of pages, numbered by the device protocol.
    #[inline]
    pub fn set_id(&self) -> u16 {
        self.set_id
    }

    /// Whether the sender says that the set is its own.
    #[inline]
    pub fn sender_owns_set(&self) -> bool {
        self.sender_owns_set
    }

    /// The ranges, in order.
    #[inline]
    pub fn ranges(&self) -> &'a [TransferRange] {
        self.ranges
    }

    /// The 8 bytes that stand before `count` ranges of set `set_id` on the wire.
    #[inline]
    pub fn head(set_id: u16, sender_owns_set: bool, count: u32) -> [u8; 8] {
        let word = u64::from(set_id) | u64::from(u8::from(sender_owns_set)) << 16 | u64::from(count) << 32;
        word.to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn ranges_are_count_then_offset() {
        assert!(
            TransferPages::parse(&[0, 0, 2, 0, 0, 0, 0, 0]).unwrap().sender_owns_set(),
            "any value but 0"
        );
        let mut bytes: Vec<u8> = TransferPages::head(0xcafe, false, 2).to_vec();
        for word in [0x62_u32, 0, 0x3c, 0x6c0] {
            bytes.extend(word.to_le_bytes());
        }
        let packet = TransferPages::parse(&bytes).unwrap();
        assert_eq!((packet.set_id(), packet.sender_owns_set()), (0xcafe, false));
        assert_eq!(packet.ranges()[1].byte_count.get(), 0x3c);
        assert_eq!(packet.ranges()[1].byte_offset.get(), 0x6c0);
    }

    #[test]
    fn a_count_beyond_the_header_is_refused() {
        let bytes = TransferPages::head(1, true, u32::MAX);
        assert_eq!(
            TransferPages::parse(&bytes).unwrap_err(),
            RangeError::Truncated { needed: u32::MAX as usize, left: 0 }
        );
        assert_eq!(
            TransferPages::parse(&bytes[..5]).unwrap_err(),
            RangeError::TooShort { len: 5, needed: 8 }
        );
    }
}
