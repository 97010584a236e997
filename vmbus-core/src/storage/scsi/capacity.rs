//! What READ CAPACITY and GET LBA STATUS return.

use alloc::vec::Vec;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::wire_struct;

wire_struct! {
    /// Answer to READ CAPACITY (10), 8 bytes.
    pub struct Capacity10 {
        /// The last block, `u32::MAX` if there are more.
        pub last_lba: U32,
        /// Bytes of a block.
        pub block_size: U32,
    }
}

impl Capacity10 {
    /// The answer for a disk of this many blocks, at least one.
    pub fn new(blocks: u64, block_size: u32) -> Self {
        let last = u32::try_from(blocks.saturating_sub(1)).unwrap_or(u32::MAX);
        Self { last_lba: U32::new(last), block_size: U32::new(block_size) }
    }

    /// Reads an answer.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(capacity, _)| capacity)
    }
}

wire_struct! {
    /// Answer to READ CAPACITY (16), 32 bytes.
    pub struct Capacity16 {
        /// The last block.
        pub last_lba: U64,
        /// Bytes of a block.
        pub block_size: U32,
        /// Bits 3:1 type, bit 0: the blocks carry protection data.
        pub protection: u8,
        /// Bits 3:0: a physical block is 2 to the power of this many blocks.
        pub physical_exponent: u8,
        /// See [`Capacity16::PROVISIONED`]; bits 13:0 lowest aligned block.
        pub provisioning_and_alignment: U16,
        /// 0.
        pub reserved: [u8; 16],
    }
}

impl Capacity16 {
    /// Blocks can be let go.
    pub const PROVISIONED: u16 = 0x8000;
    /// Blocks let go read as zeros.
    pub const READS_ZEROS: u16 = 0x4000;
    /// The shortest useful part of an answer, in bytes: size and block size.
    pub const MINIMUM_SIZE: usize = 12;

    /// The answer for a disk of this many blocks, at least one.
    pub fn new(blocks: u64, block_size: u32, physical_exponent: u8, provisioning: u16) -> Self {
        Self {
            last_lba: U64::new(blocks.saturating_sub(1)),
            block_size: U32::new(block_size),
            physical_exponent: physical_exponent & 0xf,
            provisioning_and_alignment: U16::new(provisioning),
            ..Self::default()
        }
    }

    /// Reads an answer of at least 12 bytes. Fields that are missing are 0.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut capacity = Self::default();
        let len = bytes.len().min(size_of::<Self>());
        capacity.as_mut_bytes()[..len].copy_from_slice(&bytes[..len]);
        (len >= Self::MINIMUM_SIZE).then_some(capacity)
    }

    /// Number of blocks; `None` if the answer states more than there can be.
    pub fn blocks(&self) -> Option<u64> {
        self.last_lba.get().checked_add(1)
    }
}

wire_struct! {
    /// Blocks of one kind, in the answer to GET LBA STATUS.
    pub struct LbaStatus {
        /// The first.
        pub lba: U64,
        /// How many.
        pub blocks: U32,
        /// 0 hold data, 1 let go, 2 anchored.
        pub status: u8,
        /// 0.
        pub reserved: [u8; 3],
    }
}

impl LbaStatus {
    /// The list in an answer; what was cut off is left out.
    pub fn parse_list(bytes: &[u8]) -> Option<&[Self]> {
        let (header, rest) = StatusHeader::read_from_prefix(bytes).ok()?;
        let stated = (header.length.get() as usize).saturating_sub(4);
        let count = stated.min(rest.len()) / size_of::<Self>();
        <[Self]>::ref_from_prefix_with_elems(rest, count).ok().map(|(list, _)| list)
    }

    /// An answer with this list, as much of it as the length field can state.
    pub fn emit_list(list: &[Self]) -> Vec<u8> {
        let length = u32::try_from(4 + size_of_val(list)).unwrap_or(u32::MAX);
        let header = StatusHeader { length: U32::new(length), reserved: U32::ZERO };
        [header.as_bytes(), list.as_bytes()].concat()
    }
}

wire_struct! {
    struct StatusHeader {
        length: U32,
        reserved: U32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_too_large_for_the_short_answer_says_so() {
        assert_eq!(Capacity10::new(1 << 32, 512).last_lba.get(), u32::MAX);
        assert_eq!(Capacity10::new((1 << 32) - 1, 512).last_lba.get(), u32::MAX - 1);
        assert_eq!(Capacity16::new(1 << 40, 512, 3, 0).blocks(), Some(1 << 40));
        let lie = Capacity16 { last_lba: U64::new(u64::MAX), ..Capacity16::default() };
        assert_eq!(lie.blocks(), None);
    }

    #[test]
    fn a_status_list_is_read_as_far_as_it_is_there() {
        let list = [LbaStatus { blocks: U32::new(8), ..LbaStatus::default() }; 2];
        let bytes = LbaStatus::emit_list(&list);
        assert_eq!(LbaStatus::parse_list(&bytes), Some(list.as_slice()));
        assert_eq!(LbaStatus::parse_list(&bytes[..39]).map(<[_]>::len), Some(1));
        assert_eq!(LbaStatus::parse_list(&[0xff; 8]).map(<[_]>::len), Some(0));
        assert_eq!(LbaStatus::parse_list(&[0; 7]), None);
    }
}
