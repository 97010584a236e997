//! Commands by which a disk tells of itself: INQUIRY, READ CAPACITY, MODE SENSE and their like.

use vmbus_core::storage::scsi::{CdbForm, Command, Failure, Sense};
use zerocopy::IntoBytes;

use super::{Execution, Lun};
use crate::storage::backend::{Access, WriteCache};
use crate::storage::data::Data;

/// Pages of vital product data, in the order in which they are listed.
const VPD_PAGES: [u8; 6] = [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2];
/// The most descriptors that one UNMAP may have: more than its 16-bit list length can hold.
pub(super) const MAX_UNMAP_DESCRIPTORS: u16 = 4096;
/// Peripheral qualifier and type of what is not there.
const NOTHING: u8 = 0x7f;
const CACHING_PAGE: u8 = 0x08;
const ALL_PAGES: u8 = 0x3f;

impl Lun {
    pub(super) fn inquiry(
        &self,
        options: u8,
        page: u8,
        room: u16,
        data: Data<'_>,
    ) -> Result<Execution, Failure> {
        let reply = match (options, page) {
            (0, 0) => standard_inquiry(0).to_vec(),
            (Command::EVPD, page) => self.vital_product_data(page)?,
            (_, _) => return Err(Failure::InvalidField),
        };
        data.reply(&reply, room.into()).map(Execution::done)
    }

    fn vital_product_data(&self, page: u8) -> Result<Vec<u8>, Failure> {
        let body = match page {
            0x00 => VPD_PAGES.to_vec(),
            0x80 => self.serial(),
            0x83 => self.designators(),
            0xb0 => self.block_limits(),
            0xb1 => self.characteristics(),
            0xb2 => self.provisioning(),
            _ => return Err(Failure::InvalidField),
        };
        Ok(vpd_page(0, page, &body))
    }

    fn serial(&self) -> Vec<u8> {
        let printable = |byte: &u8| (0x20..0x7f).contains(byte);
        self.identity.serial.bytes().filter(printable).take(64).collect()
    }

    /// The disk's GUID, as a vendor-specific name and as an NAA number under Microsoft's OUI; guests of this bus
    /// build stable device names from the latter.
    fn designators(&self) -> Vec<u8> {
        let guid = self.identity.disk.to_wire();
        let mut body = vec![0x01, 0x01, 0, 24];
        body.extend(VENDOR);
        body.extend(guid);
        body.extend([0x01, 0x03, 0, 16, 0x60, 0x02, 0x24, 0x80]);
        body.extend(&guid[..6]);
        body.extend(&guid[10..]);
        body
    }

    fn block_limits(&self) -> Vec<u8> {
        let mut page = [0; 0x40];
        // WSNZ: WRITE SAME of no blocks does not mean all of them.
        page[4] = 1;
        if let Some(unit) = self.geometry.discard_unit {
            let granularity = (unit / self.geometry.logical_sector).max(1);
            page[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
            page[24..28].copy_from_slice(&u32::from(MAX_UNMAP_DESCRIPTORS).to_be_bytes());
            page[28..32].copy_from_slice(&granularity.to_be_bytes());
            page[32..36].copy_from_slice(&(1_u32 << 31).to_be_bytes());
        }
        page[4..].to_vec()
    }

    fn characteristics(&self) -> Vec<u8> {
        let mut body = vec![0; 0x3c];
        // 0: not reported; 1: nothing turns.
        body[1] = u8::from(!self.geometry.rotational);
        body
    }

    fn provisioning(&self) -> Vec<u8> {
        match self.geometry.discard_unit {
            // LBPU, LBPWS, LBPWS10, LBPRZ: all ways to give space back, after which it reads as zeroes. Thin.
            Some(_) => vec![0, 0b1110_0100, 2, 0],
            None => vec![0, 0, 0, 0],
        }
    }

    pub(super) fn read_capacity_10(&self, data: Data<'_>) -> Result<Execution, Failure> {
        let last = u32::try_from(self.sectors() - 1).unwrap_or(u32::MAX);
        let mut reply = [0; 8];
        reply[..4].copy_from_slice(&last.to_be_bytes());
        reply[4..].copy_from_slice(&self.geometry.logical_sector.to_be_bytes());
        data.reply(&reply, reply.len()).map(Execution::done)
    }

    pub(super) fn read_capacity_16(&self, room: u32, data: Data<'_>) -> Result<Execution, Failure> {
        let per_physical = self.geometry.physical_sector / self.geometry.logical_sector;
        let mut reply = [0; 32];
        reply[..8].copy_from_slice(&(self.sectors() - 1).to_be_bytes());
        reply[8..12].copy_from_slice(&self.geometry.logical_sector.to_be_bytes());
        reply[13] = u8::try_from(per_physical.trailing_zeros()).unwrap_or(0);
        // LBPME, LBPRZ.
        reply[14] = if self.geometry.discard_unit.is_some() { 0xc0 } else { 0 };
        data.reply(&reply, room as usize).map(Execution::done)
    }

    /// Every block counts as mapped: which ones are is the backend's secret.
    pub(super) fn lba_status(&self, lba: u64, room: u32, data: Data<'_>) -> Result<Execution, Failure> {
        let left = self.sectors().checked_sub(lba).filter(|&left| left > 0).ok_or(Failure::LbaOutOfRange)?;
        let mut reply = [0; 24];
        reply[..4].copy_from_slice(&20_u32.to_be_bytes());
        reply[8..16].copy_from_slice(&lba.to_be_bytes());
        reply[16..20].copy_from_slice(&u32::try_from(left).unwrap_or(u32::MAX).to_be_bytes());
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
        if !matches!((page, subpage), (CACHING_PAGE, 0) | (ALL_PAGES, 0 | 0xff)) {
            return Err(Failure::InvalidField);
        }
        let cache = if control == CHANGEABLE { 0 } else { self.cache_bits() };
        let write_protected = match self.geometry.access {
            Access::ReadWrite => 0,
            Access::ReadOnly => 0x80,
        };
        // DPOFUA: forced unit access is honoured.
        let device = write_protected | 0x10;
        let pages = [CACHING_PAGE, 0x12, cache, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let length = |header: u8| header + 20;
        let reply = match form {
            CdbForm::Six => [&[length(3), 0, device, 0], pages.as_slice()].concat(),
            CdbForm::Ten | CdbForm::Twelve | CdbForm::Sixteen => {
                [&[0, length(6), 0, device, 0, 0, 0, 0], pages.as_slice()].concat()
            }
        };
        data.reply(&reply, room.into()).map(Execution::done)
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
        let (header, descriptors) = match form {
            CdbForm::Six => (4, list.get(3).copied().map(u16::from)),
            CdbForm::Ten | CdbForm::Twelve | CdbForm::Sixteen => {
                (8, list.get(6..8).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]])))
            }
        };
        let pages = match descriptors {
            None if list.is_empty() => return Ok(Execution::done(0)),
            None => None,
            Some(descriptors) => list.get(header + usize::from(descriptors)..),
        };
        let mut left = pages.ok_or(Failure::ParameterListLength)?;
        while let [code, length, rest @ ..] = left {
            let (page, after) =
                rest.split_at_checked(usize::from(*length)).ok_or(Failure::ParameterListLength)?;
            if code & 0x7f != CACHING_PAGE || page.first() != Some(&self.cache_bits()) {
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
    fn cache_bits(&self) -> u8 {
        match self.geometry.write_cache {
            WriteCache::Volatile => 0x04,
            WriteCache::None => 0,
        }
    }
}

const VENDOR: &[u8; 8] = b"Msft    ";

fn standard_inquiry(peripheral: u8) -> [u8; 36] {
    let mut reply = [0; 36];
    // SPC-3, response format 2, command queueing.
    reply[..8].copy_from_slice(&[peripheral, 0, 5, 2, 31, 0, 0, 2]);
    // Linux treats this vendor's disks on this bus as SPC-3, whatever the version says.
    reply[8..16].copy_from_slice(VENDOR);
    reply[16..32].copy_from_slice(b"Virtual Disk    ");
    reply[32..].copy_from_slice(b"1.0 ");
    reply
}

fn vpd_page(peripheral: u8, page: u8, body: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[peripheral, page, high, low], body].concat()
}

/// INQUIRY where no disk is.
pub(in crate::storage) fn inquire_nothing(
    options: u8,
    page: u8,
    room: u16,
    data: Data<'_>,
) -> Result<u32, Failure> {
    let reply = match options & Command::EVPD {
        0 => standard_inquiry(NOTHING).to_vec(),
        _ => vpd_page(NOTHING, page, &[]),
    };
    data.reply(&reply, room.into())
}

/// REPORT LUNS: the disks `numbers`.
pub(in crate::storage) fn report_luns(
    numbers: impl Iterator<Item = u8>,
    select: u8,
    room: u32,
    data: Data<'_>,
) -> Result<u32, Failure> {
    const WELL_KNOWN_ONLY: u8 = 0x01;
    if select > 0x02 || room < 16 {
        return Err(Failure::InvalidField);
    }
    let mut reply = vec![0; 8];
    for number in numbers.filter(|_| select != WELL_KNOWN_ONLY) {
        reply.extend([0, number, 0, 0, 0, 0, 0, 0]);
    }
    let length = u32::try_from(reply.len() - 8).map_err(|_| Failure::InvalidField)?;
    reply[..4].copy_from_slice(&length.to_be_bytes());
    data.reply(&reply, room as usize)
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
