//! What INQUIRY returns: standard data and pages of vital product data.

use alloc::vec::Vec;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::Guid;
use crate::wire::{open_values, wire_struct};

wire_struct! {
    /// Standard INQUIRY data, the 36 bytes that everybody has.
    pub struct StandardInquiry {
        /// Qualifier in bits 7:5, device type in bits 4:0: 0 is a disk that is there.
        pub peripheral: u8,
        /// Bit 7: the medium can be removed.
        pub removable: u8,
        /// 5 for SPC-3.
        pub version: u8,
        /// Response format 2 in bits 3:0.
        pub response_format: u8,
        /// Bytes that follow this one.
        pub additional_length: u8,
        /// Features, see [`StandardInquiry::COMMAND_QUEUE`] in the last.
        pub features: [u8; 3],
        /// Vendor, ASCII padded with spaces.
        pub vendor: [u8; 8],
        /// Product, ASCII padded with spaces.
        pub product: [u8; 16],
        /// Revision, ASCII padded with spaces.
        pub revision: [u8; 4],
    }
}

impl StandardInquiry {
    /// In the last byte of features: several commands may be under way.
    pub const COMMAND_QUEUE: u8 = 0x02;
    /// Peripheral byte of a unit that is not there and never will be.
    pub const ABSENT: u8 = 0x7f;

    /// A disk that Linux takes for one of Hyper-V: it looks at the vendor.
    pub fn disk() -> Self {
        Self {
            peripheral: 0,
            removable: 0,
            version: 5,
            response_format: 2,
            additional_length: 31,
            features: [0, 0, Self::COMMAND_QUEUE],
            vendor: *b"Msft    ",
            product: *b"Virtual Disk    ",
            revision: *b"1.0 ",
        }
    }

    /// The answer for a unit that is not there.
    pub fn absent() -> Self {
        Self { peripheral: Self::ABSENT, ..Self::disk() }
    }

    /// Whether a unit is there.
    pub fn is_present(&self) -> bool {
        self.peripheral >> 5 == 0
    }

    /// Reads an answer of at least 36 bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(inquiry, _)| inquiry)
    }
}

open_values! {
    /// A page of vital product data.
    pub struct VitalPage(u8) {
        /// Which pages there are: [`SupportedPages`].
        SUPPORTED_PAGES = 0x00,
        /// [`SerialNumber`].
        SERIAL_NUMBER = 0x80,
        /// [`Identification`].
        IDENTIFICATION = 0x83,
        /// Third-party copy.
        THIRD_PARTY_COPY = 0x8f,
        /// [`BlockLimits`].
        BLOCK_LIMITS = 0xb0,
        /// [`BlockCharacteristics`].
        BLOCK_CHARACTERISTICS = 0xb1,
        /// [`BlockProvisioning`].
        BLOCK_PROVISIONING = 0xb2,
        /// Microsoft's paging extent.
        PAGING_EXTENT = 0xce,
        /// Microsoft's virtual device properties.
        VIRTUAL_DEVICE = 0xcf,
    }
}

wire_struct! {
    /// What stands before every page.
    pub struct VitalHeader {
        /// As in [`StandardInquiry`].
        pub peripheral: u8,
        /// [`VitalPage`].
        pub page: u8,
        /// Bytes that follow.
        pub length: U16,
    }
}

impl VitalHeader {
    /// The header of a disk's page with `length` bytes after it.
    pub const fn disk(page: VitalPage, length: u16) -> Self {
        Self { peripheral: 0, page: page.0, length: U16::new(length) }
    }

    /// Splits an answer into its header and the bytes of the page that are there; `None` if it is another page.
    pub fn split(bytes: &[u8], page: VitalPage) -> Option<(Self, &[u8])> {
        let (header, rest) = Self::read_from_prefix(bytes).ok()?;
        let len = rest.len().min(usize::from(header.length.get()));
        (header.page == page.0).then(|| (header, &rest[..len]))
    }
}

/// Page 00: which pages there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SupportedPages<'a> {
    /// Page numbers, ascending.
    pub pages: &'a [u8],
}

impl<'a> SupportedPages<'a> {
    /// Reads an answer.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        VitalHeader::split(bytes, VitalPage::SUPPORTED_PAGES).map(|(_, pages)| Self { pages })
    }

    /// The page's bytes.
    pub fn emit(&self) -> Vec<u8> {
        vital_page(VitalPage::SUPPORTED_PAGES, self.pages)
    }
}

/// Page 80: the serial number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialNumber<'a> {
    /// ASCII.
    pub serial: &'a [u8],
}

impl<'a> SerialNumber<'a> {
    /// Reads an answer.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        VitalHeader::split(bytes, VitalPage::SERIAL_NUMBER).map(|(_, serial)| Self { serial })
    }

    /// The page's bytes.
    pub fn emit(&self) -> Vec<u8> {
        vital_page(VitalPage::SERIAL_NUMBER, self.serial)
    }
}

/// Page 83: names of the unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identification<'a> {
    /// The names.
    pub designators: Vec<Designator<'a>>,
}

/// One name of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Designator<'a> {
    /// Protocol in bits 7:4, code set in bits 3:0: 1 binary, 2 ASCII, 3 UTF-8.
    pub protocol_and_code_set: u8,
    /// Bit 7: the protocol is valid. Bits 5:4: 0 for the unit. Bits 3:0: see [`Designator::NAA`] and its neighbours.
    pub association_and_kind: u8,
    /// The name, at most 255 bytes.
    pub name: &'a [u8],
}

impl Designator<'_> {
    /// Code set: binary.
    pub const BINARY: u8 = 1;
    /// Kind: vendor in 8 bytes of ASCII, then anything.
    pub const T10_VENDOR: u8 = 1;
    /// Kind: a registered name of 8 or 16 bytes.
    pub const NAA: u8 = 3;

    /// The vendor's name of the disk with this GUID.
    pub fn vendor_name(disk: Guid) -> [u8; 24] {
        let mut name = *b"Msft                    ";
        name[8..].copy_from_slice(&disk.to_wire());
        name
    }

    /// The registered name (NAA 6, Microsoft's company id) of the disk with this GUID: what Linux calls it by.
    pub fn registered_name(disk: Guid) -> [u8; 16] {
        let guid = disk.to_wire();
        let mut name = [0; 16];
        name[..4].copy_from_slice(&[0x60, 0x02, 0x24, 0x80]);
        name[4..10].copy_from_slice(&guid[..6]);
        name[10..].copy_from_slice(&guid[10..]);
        name
    }
}

impl<'a> Identification<'a> {
    /// Reads an answer; stops at the first name that is cut.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (_, mut rest) = VitalHeader::split(bytes, VitalPage::IDENTIFICATION)?;
        let mut designators = Vec::new();
        while let [protocol_and_code_set, association_and_kind, _, len, after @ ..] = rest
            && let Some((name, after)) = after.split_at_checked(usize::from(*len))
        {
            designators.push(Designator {
                protocol_and_code_set: *protocol_and_code_set,
                association_and_kind: *association_and_kind,
                name,
            });
            rest = after;
        }
        Some(Self { designators })
    }

    /// The page's bytes. A name is cut after 255 bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut page = Vec::new();
        for designator in &self.designators {
            let len = u8::try_from(designator.name.len()).unwrap_or(u8::MAX);
            page.extend([designator.protocol_and_code_set, designator.association_and_kind, 0, len]);
            page.extend(&designator.name[..usize::from(len)]);
        }
        vital_page(VitalPage::IDENTIFICATION, &page)
    }
}

wire_struct! {
    /// Page B0: how much one command may do. Counts are in blocks; 0 means no limit is reported.
    pub struct BlockLimits {
        /// Page number and length 0x3c.
        pub header: VitalHeader,
        /// Bit 0: WRITE SAME of 0 blocks is an error.
        pub write_same_non_zero: u8,
        /// Longest COMPARE AND WRITE.
        pub max_compare_and_write: u8,
        /// Transfers should be multiples of this.
        pub optimal_transfer_granularity: U16,
        /// Longest transfer.
        pub max_transfer: U32,
        /// Best transfer.
        pub optimal_transfer: U32,
        /// Longest prefetch.
        pub max_prefetch: U32,
        /// Most blocks of one UNMAP.
        pub max_unmap_blocks: U32,
        /// Most ranges of one UNMAP.
        pub max_unmap_descriptors: U32,
        /// UNMAP should use multiples of this.
        pub unmap_granularity: U32,
        /// Bit 31: the alignment in the other bits is valid.
        pub unmap_alignment: U32,
        /// Longest WRITE SAME.
        pub max_write_same: U64,
        /// Longest atomic write.
        pub max_atomic: U32,
        /// Alignment of atomic writes.
        pub atomic_alignment: U32,
        /// Granularity of atomic writes.
        pub atomic_granularity: U32,
        /// 0.
        pub reserved: U64,
    }
}

impl BlockLimits {
    /// In [`BlockLimits::unmap_alignment`]: it is valid.
    pub const ALIGNMENT_VALID: u32 = 1 << 31;

    /// A page that reports nothing.
    pub fn none() -> Self {
        Self { header: VitalHeader::disk(VitalPage::BLOCK_LIMITS, 0x3c), ..Self::default() }
    }

    /// Reads an answer. Fields that are missing are 0.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        parse_vital(bytes, VitalPage::BLOCK_LIMITS)
    }
}

wire_struct! {
    /// Page B1: what the medium is like, 64 bytes.
    pub struct BlockCharacteristics {
        /// Page number and length 0x3c.
        pub header: VitalHeader,
        /// 0 unknown, 1 does not rotate.
        pub rotation_rate: U16,
        /// Product type, 0.
        pub product_type: u8,
        /// Form factor in bits 3:0, 0.
        pub form_factor: u8,
        /// 0.
        pub reserved: [u8; 28],
        /// 0.
        pub reserved2: [u8; 28],
    }
}

impl BlockCharacteristics {
    /// A medium that does not rotate.
    pub fn solid_state() -> Self {
        let header = VitalHeader::disk(VitalPage::BLOCK_CHARACTERISTICS, 0x3c);
        Self { header, rotation_rate: U16::new(1), ..Self::default() }
    }

    /// Reads an answer. Fields that are missing are 0.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        parse_vital(bytes, VitalPage::BLOCK_CHARACTERISTICS)
    }
}

wire_struct! {
    /// Page B2: how room for blocks is found and let go, 8 bytes.
    pub struct BlockProvisioning {
        /// Page number and length 4.
        pub header: VitalHeader,
        /// Exponent of thresholds.
        pub threshold_exponent: u8,
        /// See [`BlockProvisioning::UNMAP`] and its neighbours.
        pub flags: u8,
        /// Bits 2:0: see [`BlockProvisioning::THIN`].
        pub kind: u8,
        /// 0.
        pub reserved: u8,
    }
}

impl BlockProvisioning {
    /// Flag: UNMAP works.
    pub const UNMAP: u8 = 0x80;
    /// Flag: WRITE SAME (16) with UNMAP works.
    pub const WRITE_SAME_16: u8 = 0x40;
    /// Flag: WRITE SAME (10) with UNMAP works.
    pub const WRITE_SAME_10: u8 = 0x20;
    /// Flag: blocks let go read as zeros.
    pub const READS_ZEROS: u8 = 0x04;
    /// Flag: anchoring works.
    pub const ANCHOR: u8 = 0x02;
    /// Kind: thin.
    pub const THIN: u8 = 2;

    /// The page with these flags and kind.
    pub fn new(flags: u8, kind: u8) -> Self {
        let header = VitalHeader::disk(VitalPage::BLOCK_PROVISIONING, 4);
        Self { header, threshold_exponent: 0, flags, kind, reserved: 0 }
    }

    /// Reads an answer. Fields that are missing are 0.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        parse_vital(bytes, VitalPage::BLOCK_PROVISIONING)
    }
}

/// A page after its header. What does not fit the length field is cut.
fn vital_page(page: VitalPage, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    let mut bytes = VitalHeader::disk(page, length).as_bytes().to_vec();
    bytes.extend(&content[..usize::from(length)]);
    bytes
}

/// A page of fixed layout whose header is part of it.
fn parse_vital<T: FromBytes + IntoBytes + zerocopy::KnownLayout + zerocopy::Immutable>(
    bytes: &[u8],
    page: VitalPage,
) -> Option<T> {
    let (header, content) = VitalHeader::split(bytes, page)?;
    let mut value = T::new_zeroed();
    let (head, body) = value.as_mut_bytes().split_at_mut(size_of::<VitalHeader>());
    head.copy_from_slice(header.as_bytes());
    let len = body.len().min(content.len());
    body[..len].copy_from_slice(&content[..len]);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_cut_by_the_allocation_length_is_read_as_far_as_it_goes() {
        let limits =
            BlockLimits { max_unmap_blocks: U32::new(7), max_transfer: U32::new(9), ..BlockLimits::none() };
        let cut = BlockLimits::parse(&limits.as_bytes()[..13]).unwrap();
        assert_eq!((cut.max_transfer.get(), cut.max_unmap_blocks.get()), (9, 0));
        assert_eq!(BlockLimits::parse(&limits.as_bytes()[..3]), None);
        assert_eq!(BlockProvisioning::parse(limits.as_bytes()), None, "another page");
    }

    #[test]
    fn a_name_that_is_cut_ends_the_list() {
        let name = [1, 2, 3];
        let designator = Designator { protocol_and_code_set: 1, association_and_kind: 3, name: &name };
        let page = Identification { designators: [designator; 2].to_vec() }.emit();
        assert_eq!(Identification::parse(&page).unwrap().designators, [designator; 2]);
        assert_eq!(Identification::parse(&page[..17]).unwrap().designators, [designator]);
    }

    #[test]
    fn an_absent_unit_says_so() {
        assert!(StandardInquiry::disk().is_present());
        assert!(!StandardInquiry::absent().is_present());
    }
}
