//! The parameter list of UNMAP.

use alloc::vec::Vec;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::Failure;
use crate::wire::wire_struct;

wire_struct! {
    /// Blocks to let go.
    pub struct UnmapDescriptor {
        /// The first.
        pub lba: U64,
        /// How many.
        pub blocks: U32,
        /// 0.
        pub reserved: U32,
    }
}

wire_struct! {
    struct UnmapHeader {
        /// Bytes after this field.
        data_length: U16,
        /// Bytes of descriptors.
        descriptor_length: U16,
        reserved: U32,
    }
}

impl UnmapDescriptor {
    /// The most that one list can hold.
    pub const MAX: usize = (u16::MAX as usize - size_of::<UnmapHeader>()) / size_of::<Self>();

    /// Reads a list, which must be all of `bytes`. An empty list is allowed and so are no bytes at all; errors are the
    /// guest's fault.
    pub fn parse_list(bytes: &[u8]) -> Result<&[Self], Failure> {
        if bytes.is_empty() {
            return Ok(&[]);
        }
        let (header, rest) =
            UnmapHeader::read_from_prefix(bytes).map_err(|_| Failure::ParameterListLength)?;
        let data_length = usize::from(header.data_length.get());
        let descriptors = usize::from(header.descriptor_length.get());
        if data_length + 2 > bytes.len() {
            return Err(Failure::ParameterListLength);
        }
        if descriptors + size_of::<UnmapHeader>() > data_length + 2
            || !descriptors.is_multiple_of(size_of::<Self>())
        {
            return Err(Failure::InvalidParameter);
        }
        <[Self]>::ref_from_prefix_with_elems(rest, descriptors / size_of::<Self>())
            .map(|(list, _)| list)
            .map_err(|_| Failure::ParameterListLength)
    }

    /// The parameter list of at most [`Self::MAX`] descriptors; `None` for more.
    pub fn emit_list(list: &[Self]) -> Option<Vec<u8>> {
        let length = u16::try_from(size_of_val(list)).ok()?;
        let header = UnmapHeader {
            data_length: U16::new(length.checked_add(6)?),
            descriptor_length: U16::new(length),
            reserved: U32::ZERO,
        };
        Some([header.as_bytes(), list.as_bytes()].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        let one = UnmapDescriptor { lba: U64::new(8), blocks: U32::new(16), reserved: U32::ZERO };
        let good = UnmapDescriptor::emit_list(&[one]).unwrap();
        assert_eq!(UnmapDescriptor::parse_list(&good), Ok([one].as_slice()));
        assert_eq!(UnmapDescriptor::parse_list(&[]), Ok([].as_slice()));
        assert_eq!(UnmapDescriptor::parse_list(&good[..23]), Err(Failure::ParameterListLength));
        assert_eq!(UnmapDescriptor::parse_list(&good[..7]), Err(Failure::ParameterListLength));
        let mut bad = good.clone();
        bad[3] = 17;
        assert_eq!(UnmapDescriptor::parse_list(&bad), Err(Failure::InvalidParameter));
        bad[3] = 32;
        assert_eq!(UnmapDescriptor::parse_list(&bad), Err(Failure::InvalidParameter));
        assert_eq!(UnmapDescriptor::parse_list(&[0, 7, 0, 0, 0, 0, 0, 0]), Err(Failure::ParameterListLength));
        bad[1] = 38;
        assert_eq!(UnmapDescriptor::parse_list(&bad), Err(Failure::ParameterListLength));
    }

    #[test]
    fn the_largest_list_fits_its_length_field() {
        let list = std::vec![UnmapDescriptor::default(); UnmapDescriptor::MAX + 1];
        let bytes = UnmapDescriptor::emit_list(&list[1..]).unwrap();
        assert_eq!(UnmapDescriptor::parse_list(&bytes).map(<[_]>::len), Ok(UnmapDescriptor::MAX));
        assert_eq!(UnmapDescriptor::emit_list(&list), None);
    }
}
