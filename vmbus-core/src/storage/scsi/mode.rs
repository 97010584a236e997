//! What MODE SENSE returns and MODE SELECT takes.

use alloc::vec::Vec;

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use super::CdbForm;
use crate::wire::wire_struct;

/// Mode parameters: two fields of the header, then pages. Block descriptors are read over and never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeParameters<'a> {
    /// 0.
    pub medium_type: u8,
    /// See [`ModeParameters::WRITE_PROTECTED`] and [`ModeParameters::FUA_HONOURED`].
    pub device_specific: u8,
    /// Pages, see [`ModeParameters::page`].
    pub pages: &'a [u8],
}

impl<'a> ModeParameters<'a> {
    /// The disk is read-only.
    pub const WRITE_PROTECTED: u8 = 0x80;
    /// The FUA and DPO options of commands are honoured.
    pub const FUA_HONOURED: u8 = 0x10;
    /// Page number for all pages.
    pub const ALL_PAGES: u8 = 0x3f;

    /// Reads parameters with the header of the 6-byte or, for any other form, of the 10-byte command. The data length
    /// is ignored if it states less than the header or more than there is, as in MODE SELECT, where it is 0.
    pub fn parse(form: CdbForm, bytes: &'a [u8]) -> Option<Self> {
        let (stated, medium_type, device_specific, descriptors, rest) = if form == CdbForm::Six {
            let (header, rest) = Header6::read_from_prefix(bytes).ok()?;
            let stated = 1 + usize::from(header.data_length);
            (stated, header.medium_type, header.device_specific, usize::from(header.descriptor_length), rest)
        } else {
            let (header, rest) = Header10::read_from_prefix(bytes).ok()?;
            let stated = 2 + usize::from(header.data_length.get());
            let descriptors = usize::from(header.descriptor_length.get());
            (stated, header.medium_type, header.device_specific, descriptors, rest)
        };
        let header = bytes.len() - rest.len();
        let rest = match stated.checked_sub(header) {
            Some(len) if len < rest.len() && len > 0 => &rest[..len],
            Some(_) | None => rest,
        };
        Some(Self { medium_type, device_specific, pages: rest.get(descriptors..)? })
    }

    /// The parameters with the header of the 6-byte or, for any other form, of the 10-byte command; `None` if the
    /// pages are too long for its length field.
    pub fn emit(&self, form: CdbForm) -> Option<Vec<u8>> {
        let Self { medium_type, device_specific, pages } = *self;
        Some(if form == CdbForm::Six {
            let data_length = u8::try_from(pages.len() + size_of::<Header6>() - 1).ok()?;
            let header = Header6 { data_length, medium_type, device_specific, descriptor_length: 0 };
            [header.as_bytes(), pages].concat()
        } else {
            let data_length = U16::new(u16::try_from(pages.len() + size_of::<Header10>() - 2).ok()?);
            let header = Header10 { data_length, medium_type, device_specific, ..Header10::default() };
            [header.as_bytes(), pages].concat()
        })
    }

    /// The page with this number, its two-byte header included; cut if the parameters are.
    pub fn page(&self, number: u8) -> Option<&'a [u8]> {
        let mut rest = self.pages;
        while let [first, length, ..] = rest {
            let (page, after) = rest.split_at(rest.len().min(2 + usize::from(*length)));
            // Bit 6 marks pages with subpages, which have a longer header.
            if first & 0x7f == number {
                return Some(page);
            }
            rest = after;
        }
        None
    }
}

wire_struct! {
    /// Page 08: caching.
    pub struct CachingPage {
        /// 8.
        pub number: u8,
        /// Bytes that follow.
        pub length: u8,
        /// See [`CachingPage::WRITE_CACHE`].
        pub flags: u8,
        /// Retention, prefetch and segments: 0.
        pub rest: [u8; 17],
    }
}

impl CachingPage {
    /// Page number.
    pub const NUMBER: u8 = 0x08;
    /// Flag: writes are stable only after SYNCHRONIZE CACHE or with FUA.
    pub const WRITE_CACHE: u8 = 0x04;
    /// Flag: reads do not come from the cache.
    pub const READ_CACHE_DISABLED: u8 = 0x01;
    /// Size of the standard's page, in bytes.
    pub const SIZE: usize = 20;
    /// Size of the older, shorter page, in bytes.
    pub const SHORT_SIZE: usize = 12;

    /// The standard's page of 20 bytes.
    pub fn new(flags: u8) -> Self {
        Self { number: Self::NUMBER, length: 18, flags, rest: [0; 17] }
    }

    /// The same page in 12 bytes.
    pub fn short(flags: u8) -> Self {
        Self { length: 10, ..Self::new(flags) }
    }

    /// The page's bytes.
    pub fn bytes(&self) -> &[u8] {
        let len = (2 + usize::from(self.length)).min(Self::SIZE);
        &self.as_bytes()[..len]
    }

    /// Reads a page of at least 3 bytes. Fields that are missing are 0.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [first, _, _, ..] = bytes else { return None };
        let mut page = Self::default();
        let len = bytes.len().min(Self::SIZE);
        page.as_mut_bytes()[..len].copy_from_slice(&bytes[..len]);
        (first & 0x7f == Self::NUMBER).then_some(page)
    }
}

wire_struct! {
    struct Header6 {
        data_length: u8,
        medium_type: u8,
        device_specific: u8,
        descriptor_length: u8,
    }
}
wire_struct! {
    struct Header10 {
        data_length: U16,
        medium_type: u8,
        device_specific: u8,
        long_lba: u8,
        reserved: u8,
        descriptor_length: U16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_found_behind_others_and_behind_block_descriptors() {
        let page = CachingPage::new(CachingPage::WRITE_CACHE);
        let mut pages = std::vec![0x01, 2, 0xaa, 0xbb];
        pages.extend(page.bytes());
        let parameters = ModeParameters { medium_type: 0, device_specific: 0x10, pages: &pages };
        for form in [CdbForm::Six, CdbForm::Ten] {
            let bytes = parameters.emit(form).unwrap();
            let read = ModeParameters::parse(form, &bytes).unwrap();
            assert_eq!(read, parameters);
            assert_eq!(read.page(8).and_then(CachingPage::parse), Some(page));
            assert_eq!(read.page(2), None);
        }
        let select = [&[0, 0, 0, 8], [0; 8].as_slice(), page.bytes()].concat();
        let read = ModeParameters::parse(CdbForm::Six, &select).unwrap();
        assert_eq!(read.page(8).and_then(CachingPage::parse), Some(page));
    }

    #[test]
    fn parameters_that_are_cut_or_lie_are_read_as_far_as_they_go() {
        assert_eq!(ModeParameters::parse(CdbForm::Six, &[3, 0, 0]), None);
        assert_eq!(ModeParameters::parse(CdbForm::Six, &[3, 0, 0, 8, 0]), None, "descriptors beyond the end");
        let read = ModeParameters::parse(CdbForm::Six, &[255, 0, 0, 0, 8, 255, 4]).unwrap();
        assert_eq!(read.page(8), Some([8, 255, 4].as_slice()));
        assert_eq!(read.page(8).and_then(CachingPage::parse).map(|page| page.flags), Some(4));
        let read = ModeParameters::parse(CdbForm::Six, &[5, 0, 0, 0, 1, 0, 8, 1, 4]).unwrap();
        assert_eq!((read.pages.len(), read.page(8)), (2, None), "what follows the stated length is no page");
        let long = [0; 300];
        let parameters = ModeParameters { medium_type: 0, device_specific: 0, pages: &long };
        assert_eq!(parameters.emit(CdbForm::Six), None);
        assert!(parameters.emit(CdbForm::Ten).is_some());
    }
}
