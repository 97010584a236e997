//! Operation codes, and the length of a command that they imply.

use crate::wire::open_values;

open_values! {
    /// First byte of a command. Its top three bits give the length, see [`Opcode::form`]. Not every opcode that has a
    /// name here has a [`Command`](super::Command).
    pub struct Opcode(u8) {
        /// Is the unit there?
        TEST_UNIT_READY = 0x00,
        /// What went wrong?
        REQUEST_SENSE = 0x03,
        /// Formats the medium.
        FORMAT_UNIT = 0x04,
        /// Reads up to 256 blocks.
        READ_6 = 0x08,
        /// Writes up to 256 blocks.
        WRITE_6 = 0x0a,
        /// What are you?
        INQUIRY = 0x12,
        /// Sets parameters.
        MODE_SELECT_6 = 0x15,
        /// Reserves the unit, the old way.
        RESERVE_6 = 0x16,
        /// Undoes RESERVE.
        RELEASE_6 = 0x17,
        /// Returns parameters.
        MODE_SENSE_6 = 0x1a,
        /// Starts or stops the unit.
        START_STOP_UNIT = 0x1b,
        /// Asks for a self-test.
        SEND_DIAGNOSTIC = 0x1d,
        /// Locks the medium in.
        PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1e,
        /// Not in [`Command`](super::Command).
        READ_FORMAT_CAPACITIES = 0x23,
        /// Size of the disk, up to 2^32 blocks.
        READ_CAPACITY_10 = 0x25,
        /// Reads.
        READ_10 = 0x28,
        /// Writes.
        WRITE_10 = 0x2a,
        /// Writes and verifies.
        WRITE_AND_VERIFY_10 = 0x2e,
        /// Verifies, or compares.
        VERIFY_10 = 0x2f,
        /// Makes data stable.
        SYNCHRONIZE_CACHE_10 = 0x35,
        /// Writes one block many times.
        WRITE_SAME_10 = 0x41,
        /// Lets go of blocks.
        UNMAP = 0x42,
        /// CD; not in [`Command`](super::Command).
        READ_TOC = 0x43,
        /// CD; not in [`Command`](super::Command).
        GET_CONFIGURATION = 0x46,
        /// CD; not in [`Command`](super::Command).
        GET_EVENT_STATUS_NOTIFICATION = 0x4a,
        /// Not in [`Command`](super::Command).
        LOG_SENSE = 0x4d,
        /// CD; not in [`Command`](super::Command).
        READ_DISC_INFORMATION = 0x51,
        /// Sets parameters.
        MODE_SELECT_10 = 0x55,
        /// Returns parameters.
        MODE_SENSE_10 = 0x5a,
        /// Asks about reservations.
        PERSISTENT_RESERVE_IN = 0x5e,
        /// Changes reservations.
        PERSISTENT_RESERVE_OUT = 0x5f,
        /// Not in [`Command`](super::Command).
        EXTENDED_COPY = 0x83,
        /// Not in [`Command`](super::Command).
        RECEIVE_COPY_RESULTS = 0x84,
        /// Not in [`Command`](super::Command).
        ATA_PASS_THROUGH_16 = 0x85,
        /// Reads.
        READ_16 = 0x88,
        /// Not in [`Command`](super::Command).
        COMPARE_AND_WRITE = 0x89,
        /// Writes.
        WRITE_16 = 0x8a,
        /// Writes and verifies.
        WRITE_AND_VERIFY_16 = 0x8e,
        /// Verifies, or compares.
        VERIFY_16 = 0x8f,
        /// Makes data stable.
        SYNCHRONIZE_CACHE_16 = 0x91,
        /// Writes one block many times.
        WRITE_SAME_16 = 0x93,
        /// READ CAPACITY (16) and GET LBA STATUS.
        SERVICE_ACTION_IN_16 = 0x9e,
        /// Which units are there?
        REPORT_LUNS = 0xa0,
        /// Not in [`Command`](super::Command).
        ATA_PASS_THROUGH_12 = 0xa1,
        /// Not in [`Command`](super::Command).
        MAINTENANCE_IN = 0xa3,
        /// Reads.
        READ_12 = 0xa8,
        /// Writes.
        WRITE_12 = 0xaa,
        /// Writes and verifies.
        WRITE_AND_VERIFY_12 = 0xae,
        /// Verifies, or compares.
        VERIFY_12 = 0xaf,
        /// CD; not in [`Command`](super::Command).
        MECHANISM_STATUS = 0xbd,
    }
}

impl Opcode {
    /// The length of commands with this opcode, or `None` where the standard fixes none.
    pub const fn form(self) -> Option<CdbForm> {
        match self.0 >> 5 {
            0 => Some(CdbForm::Six),
            1 | 2 => Some(CdbForm::Ten),
            4 => Some(CdbForm::Sixteen),
            5 => Some(CdbForm::Twelve),
            _ => None,
        }
    }
}

/// Length of a command in bytes, which fixes the place of its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CdbForm {
    /// 6: address 21 bits, count 8 bits.
    Six = 6,
    /// 10: address 32 bits, count 16 bits.
    Ten = 10,
    /// 12: address 32 bits, count 32 bits.
    Twelve = 12,
    /// 16: address 64 bits, count 32 bits.
    Sixteen = 16,
}

impl CdbForm {
    /// The length in bytes.
    pub const fn size(self) -> u8 {
        self as u8
    }
}
