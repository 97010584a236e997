//! Commands by which a disk tells of itself: INQUIRY, READ CAPACITY, MODE SENSE and their like.

use vmbus_core::storage::scsi::{
    BlockCharacteristics, BlockLimits, BlockProvisioning, CachingPage, Capacity10, Capacity16, CdbForm,
    Command, Designator, Failure, Identification, LbaStatus, LunListHeader, ModeParameters, Sense,
    SerialNumber, StandardInquiry, SupportedPages, VitalHeader, VitalPage, emit_luns,
};
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U16, U32, U64};

use super::provisioning::MAX_UNMAP_DESCRIPTORS;
use super::{Execution, Lun};
use crate::storage::backend::{Access, WriteCache};
use crate::storage::data::Data;

/// Pages of vital product data, in ascending order.
const VITAL_PAGES: [u8; 6] = [
    VitalPage::SUPPORTED_PAGES.0,
    VitalPage::SERIAL_NUMBER.0,
    VitalPage::IDENTIFICATION.0,
    VitalPage::BLOCK_LIMITS.0,
    VitalPage::BLOCK_CHARACTERISTICS.0,
    VitalPage::BLOCK_PROVISIONING.0,
];

impl Lun {
    pub(super) fn inquiry(
        &self,
        options: u8,
        page: u8,
        room: u16,
        data: Data<'_>,
    ) -> Result<Execution, Failure> {
        let moved = match (options, page) {
            (0, 0) => data.reply(StandardInquiry::disk().as_bytes(), room.into()),
            (Command::EVPD, page) => data.reply(&self.vital_page(VitalPage(page))?, room.into()),
            (_, _) => Err(Failure::InvalidField),
        };
        moved.map(Execution::done)
    }

    fn vital_page(&self, page: VitalPage) -> Result<Vec<u8>, Failure> {
        Ok(match page {
            VitalPage::SUPPORTED_PAGES => SupportedPages { pages: &VITAL_PAGES }.emit(),
            VitalPage::SERIAL_NUMBER => SerialNumber { serial: &self.serial() }.emit(),
            VitalPage::IDENTIFICATION => self.identification(),
            VitalPage::BLOCK_LIMITS => self.block_limits().as_bytes().to_vec(),
            VitalPage::BLOCK_CHARACTERISTICS => self.characteristics().as_bytes().to_vec(),
            VitalPage::BLOCK_PROVISIONING => self.provisioning().as_bytes().to_vec(),
            _ => return Err(Failure::InvalidField),
        })
    }

    fn serial(&self) -> Vec<u8> {
        let printable = |byte: &u8| (0x20..0x7f).contains(byte);
        self.identity.serial.bytes().filter(printable).take(64).collect()
    }

    /// The disk's GUID as a vendor's name and as a registered one; guests build stable device names from the latter.
    fn identification(&self) -> Vec<u8> {
        let vendor = Designator::vendor_name(self.identity.disk);
        let registered = Designator::registered_name(self.identity.disk);
        let designators = vec![
            Designator {
                protocol_and_code_set: Designator::BINARY,
                association_and_kind: Designator::T10_VENDOR,
                name: &vendor,
            },
            Designator {
                protocol_and_code_set: Designator::BINARY,
                association_and_kind: Designator::NAA,
                name: &registered,
            },
        ];
        Identification { designators }.emit()
    }

    fn block_limits(&self) -> BlockLimits {
        // WRITE SAME of no blocks does not mean all of them.
        let limits = BlockLimits {
            write_same_non_zero: 1,
            // As many as a command can name; Linux zeroes by writing zeroes where this is not stated.
            max_write_same: U64::new(u32::MAX.into()),
            ..BlockLimits::none()
        };
        match self.geometry.discard_unit {
            None => limits,
            Some(unit) => BlockLimits {
                max_unmap_blocks: U32::new(u32::MAX),
                max_unmap_descriptors: U32::new(MAX_UNMAP_DESCRIPTORS.into()),
                unmap_granularity: U32::new((unit / self.geometry.logical_sector).max(1)),
                unmap_alignment: U32::new(BlockLimits::ALIGNMENT_VALID),
                ..limits
            },
        }
    }

    fn characteristics(&self) -> BlockCharacteristics {
        match self.geometry.rotational {
            // 0: not reported.
            true => BlockCharacteristics { rotation_rate: U16::ZERO, ..BlockCharacteristics::solid_state() },
            false => BlockCharacteristics::solid_state(),
        }
    }

    /// Every way to give space back is known, and what was given back reads as zeroes.
    fn provisioning(&self) -> BlockProvisioning {
        const WAYS: u8 = BlockProvisioning::UNMAP
            | BlockProvisioning::WRITE_SAME_16
            | BlockProvisioning::WRITE_SAME_10
            | BlockProvisioning::READS_ZEROS;
        match self.geometry.discard_unit {
            Some(_) => BlockProvisioning::new(WAYS, BlockProvisioning::THIN),
            None => BlockProvisioning::new(0, 0),
        }
    }

    pub(super) fn read_capacity_10(&self, data: Data<'_>) -> Result<Execution, Failure> {
        let reply = Capacity10::new(self.sectors(), self.geometry.logical_sector);
        data.reply(reply.as_bytes(), size_of_val(&reply)).map(Execution::done)
    }

    pub(super) fn read_capacity_16(&self, room: u32, data: Data<'_>) -> Result<Execution, Failure> {
        let per_physical = self.geometry.physical_sector / self.geometry.logical_sector;
        let exponent = u8::try_from(per_physical.trailing_zeros()).unwrap_or(0);
        let provisioning = match self.geometry.discard_unit {
            Some(_) => Capacity16::PROVISIONED | Capacity16::READS_ZEROS,
            None => 0,
        };
        let reply = Capacity16::new(self.sectors(), self.geometry.logical_sector, exponent, provisioning);
        data.reply(reply.as_bytes(), room as usize).map(Execution::done)
    }

    /// Every block counts as mapped: which ones are is the backend's secret.
    pub(super) fn lba_status(&self, lba: u64, room: u32, data: Data<'_>) -> Result<Execution, Failure> {
        let left = self.sectors().checked_sub(lba).filter(|&left| left > 0).ok_or(Failure::LbaOutOfRange)?;
        let blocks = U32::new(u32::try_from(left).unwrap_or(u32::MAX));
        let reply = LbaStatus::emit_list(&[LbaStatus { lba: U64::new(lba), blocks, ..LbaStatus::default() }]);
        data.reply(&reply, room as usize).map(Execution::done)
    }

    pub(super) fn mode_sense(
        &self,
        form: CdbForm,
        control: u8,
        (page, subpage): (u8, u8),
        room: u16,
        data: Data<'_>,
    ) -> Result<Execution, Failure> {
        const CHANGEABLE: u8 = 1;
        const SAVED: u8 = 3;
        if control == SAVED {
            return Err(Failure::SavingNotSupported);
        }
        if !matches!((page, subpage), (CachingPage::NUMBER, 0) | (ModeParameters::ALL_PAGES, 0 | 0xff)) {
            return Err(Failure::InvalidField);
        }
        let caching = CachingPage::new(if control == CHANGEABLE { 0 } else { self.cache_flags() });
        let write_protected = match self.geometry.access {
            Access::ReadWrite => 0,
            Access::ReadOnly => ModeParameters::WRITE_PROTECTED,
        };
        let device_specific = write_protected | ModeParameters::FUA_HONOURED;
        let reply = ModeParameters { medium_type: 0, device_specific, pages: caching.bytes() }.emit(form);
        data.reply(&reply.ok_or(Failure::InvalidField)?, room.into()).map(Execution::done)
    }

    /// Nothing can be changed, but a guest may set what is already so.
    pub(super) fn mode_select(
        &self,
        form: CdbForm,
        save: bool,
        list_length: u16,
        data: Data<'_>,
    ) -> Result<Execution, Failure> {
        if save {
            return Err(Failure::InvalidField);
        }
        let mut list = vec![0; list_length.into()];
        data.parameters(&mut list)?;
        if list.is_empty() {
            return Ok(Execution::done(0));
        }
        let parameters = ModeParameters::parse(form, &list).ok_or(Failure::ParameterListLength)?;
        let mut left = parameters.pages;
        while let [code, length, rest @ ..] = left {
            let (page, after) =
                rest.split_at_checked(usize::from(*length)).ok_or(Failure::ParameterListLength)?;
            if code & 0x7f != CachingPage::NUMBER || page.first() != Some(&self.cache_flags()) {
                return Err(Failure::InvalidParameter);
            }
            left = after;
        }
        if !left.is_empty() {
            return Err(Failure::ParameterListLength);
        }
        Ok(Execution::done(list_length.into()))
    }

    /// WCE, where there is a cache to flush.
    fn cache_flags(&self) -> u8 {
        match self.geometry.write_cache {
            WriteCache::Volatile => CachingPage::WRITE_CACHE,
            WriteCache::None => 0,
        }
    }
}

/// INQUIRY where no disk is.
pub(in crate::storage) fn inquire_nothing(
    options: u8,
    page: u8,
    room: u16,
    data: Data<'_>,
) -> Result<u32, Failure> {
    match options & Command::EVPD {
        0 => data.reply(StandardInquiry::absent().as_bytes(), room.into()),
        _ => {
            let header = VitalHeader { peripheral: StandardInquiry::ABSENT, page, length: U16::ZERO };
            data.reply(header.as_bytes(), room.into())
        }
    }
}

/// REPORT LUNS: the disks `numbers`.
pub(in crate::storage) fn report_luns(
    numbers: impl Iterator<Item = u8>,
    select: u8,
    room: u32,
    data: Data<'_>,
) -> Result<u32, Failure> {
    const WELL_KNOWN_ONLY: u8 = 0x01;
    const ALL: u8 = 0x02;
    if select > ALL || room < LunListHeader::MINIMUM_ALLOCATION {
        return Err(Failure::InvalidField);
    }
    let luns = numbers.filter(|_| select != WELL_KNOWN_ONLY).map(u16::from);
    data.reply(&emit_luns(luns), room as usize)
}

/// REQUEST SENSE, with what the guest has yet to be told.
pub(super) fn request_sense(
    pending: Option<Failure>,
    descriptor: bool,
    room: u8,
    data: Data<'_>,
) -> Result<Execution, Failure> {
    let sense = pending.and_then(|failure| failure.outcome().sense).unwrap_or(Sense::NONE);
    let moved = match descriptor {
        true => data.reply(&sense.to_descriptor(), room.into()),
        false => data.reply(sense.to_fixed().as_bytes(), room.into()),
    };
    moved.map(Execution::done)
}
