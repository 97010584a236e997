//! Sense data, and what a disk answers to each thing that can go wrong.

use zerocopy::FromBytes;
use zerocopy::big_endian::U32;

use super::super::{Outcome, ScsiStatus, SrbStatus};
use crate::wire::{open_values, wire_struct};

open_values! {
    /// What kind of trouble there is.
    pub struct SenseKey(u8) {
        /// None.
        NO_SENSE = 0x0,
        /// Done after some recovery.
        RECOVERED_ERROR = 0x1,
        /// Not ready.
        NOT_READY = 0x2,
        /// The medium is bad.
        MEDIUM_ERROR = 0x3,
        /// The device is bad.
        HARDWARE_ERROR = 0x4,
        /// The request is bad.
        ILLEGAL_REQUEST = 0x5,
        /// Something changed.
        UNIT_ATTENTION = 0x6,
        /// Write protected.
        DATA_PROTECT = 0x7,
        /// Blank medium.
        BLANK_CHECK = 0x8,
        /// Given up.
        ABORTED_COMMAND = 0xb,
        /// Compared data differ.
        MISCOMPARE = 0xe,
    }
}

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sense {
    /// Kind of trouble.
    pub key: SenseKey,
    /// Additional sense code.
    pub code: u8,
    /// Its qualifier.
    pub qualifier: u8,
}

impl Sense {
    /// Size of [`FixedSense`], in bytes.
    pub const FIXED_SIZE: u8 = 18;

    /// Nothing to say.
    pub const NONE: Self = Self::new(SenseKey::NO_SENSE, 0, 0);
    /// Unknown operation code.
    pub const INVALID_OPCODE: Self = Self::new(SenseKey::ILLEGAL_REQUEST, 0x20, 0x00);
    /// Logical block address out of range.
    pub const LBA_OUT_OF_RANGE: Self = Self::new(SenseKey::ILLEGAL_REQUEST, 0x21, 0x00);
    /// A field of the command is wrong.
    pub const INVALID_FIELD_IN_CDB: Self = Self::new(SenseKey::ILLEGAL_REQUEST, 0x24, 0x00);
    /// A field of the parameter list is wrong.
    pub const INVALID_FIELD_IN_PARAMETER_LIST: Self = Self::new(SenseKey::ILLEGAL_REQUEST, 0x26, 0x00);
    /// The parameter list has the wrong length.
    pub const PARAMETER_LIST_LENGTH: Self = Self::new(SenseKey::ILLEGAL_REQUEST, 0x1a, 0x00);
    /// Saving parameters is not supported.
    pub const SAVING_NOT_SUPPORTED: Self = Self::new(SenseKey::ILLEGAL_REQUEST, 0x39, 0x00);
    /// The disk is write protected.
    pub const WRITE_PROTECTED: Self = Self::new(SenseKey::DATA_PROTECT, 0x27, 0x00);
    /// The disk's size changed.
    pub const CAPACITY_CHANGED: Self = Self::new(SenseKey::UNIT_ATTENTION, 0x2a, 0x09);
    /// Powered on or reset.
    pub const RESET: Self = Self::new(SenseKey::UNIT_ATTENTION, 0x29, 0x00);
    /// Reading failed.
    pub const READ_ERROR: Self = Self::new(SenseKey::MEDIUM_ERROR, 0x11, 0x00);
    /// Writing failed.
    pub const WRITE_ERROR: Self = Self::new(SenseKey::MEDIUM_ERROR, 0x0c, 0x00);
    /// The device cannot write.
    pub const WRITE_FAULT: Self = Self::new(SenseKey::MEDIUM_ERROR, 0x03, 0x00);
    /// Compared data differ.
    pub const MISCOMPARE: Self = Self::new(SenseKey::MISCOMPARE, 0x1d, 0x00);
    /// Given up.
    pub const ABORTED: Self = Self::new(SenseKey::ABORTED_COMMAND, 0x00, 0x00);

    /// A sense of these three numbers.
    pub const fn new(key: SenseKey, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier }
    }

    /// Reads sense data in fixed or descriptor format; `None` if they are neither, or cut before the code.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? & 0x7f {
            0x70 | 0x71 => Some(Self::new(SenseKey(bytes.get(2)? & 0xf), *bytes.get(12)?, *bytes.get(13)?)),
            0x72 | 0x73 => Some(Self::new(SenseKey(bytes.get(1)? & 0xf), *bytes.get(2)?, *bytes.get(3)?)),
            _ => None,
        }
    }

    /// The sense in fixed format.
    pub fn to_fixed(self) -> FixedSense {
        FixedSense {
            response_code: FixedSense::CURRENT,
            key: self.key.0,
            additional_length: Self::FIXED_SIZE - 8,
            code: self.code,
            qualifier: self.qualifier,
            ..FixedSense::default()
        }
    }

    /// The sense in descriptor format, without descriptors.
    pub fn to_descriptor(self) -> [u8; 8] {
        [0x72, self.key.0, self.code, self.qualifier, 0, 0, 0, 0]
    }
}

impl core::fmt::Display for Sense {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(formatter, "{:X}/{:02X}/{:02X}", self.key.0, self.code, self.qualifier)
    }
}

wire_struct! {
    /// Sense data in fixed format, 18 bytes.
    pub struct FixedSense {
        /// 0x70 for this command, 0x71 for an earlier one; bit 7: the information is valid.
        pub response_code: u8,
        /// 0.
        pub obsolete: u8,
        /// [`SenseKey`] in bits 3:0.
        pub key: u8,
        /// Often a block address.
        pub information: U32,
        /// Bytes that follow this one.
        pub additional_length: u8,
        /// Meaning by command.
        pub command_specific: U32,
        /// Additional sense code.
        pub code: u8,
        /// Its qualifier.
        pub qualifier: u8,
        /// Which part to replace.
        pub field_replaceable_unit: u8,
        /// Meaning by sense key.
        pub key_specific: [u8; 3],
    }
}

impl FixedSense {
    /// Response code: about this command.
    pub const CURRENT: u8 = 0x70;

    /// Reads 18 bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(sense, _)| sense)
    }
}

/// What can go wrong with a command, as a disk answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The operation code is unknown.
    UnknownOpcode,
    /// Blocks beyond the end of the disk.
    LbaOutOfRange,
    /// A field of the command is wrong, or a page is not supported.
    InvalidField,
    /// A field of the parameter list is wrong.
    InvalidParameter,
    /// The parameter list has the wrong length.
    ParameterListLength,
    /// Saved mode pages do not exist.
    SavingNotSupported,
    /// The guest's buffer is too small.
    BufferTooSmall,
    /// The disk is read-only.
    WriteProtected,
    /// The disk's size changed; reported once.
    CapacityChanged,
    /// The disk was reset; reported once.
    Reset,
    /// Reading failed.
    ReadError,
    /// Writing failed.
    WriteError,
    /// The device cannot write.
    WriteFault,
    /// VERIFY found different data.
    Miscompare,
    /// Another guest holds a reservation.
    ReservationConflict,
    /// Another guest gave the command up.
    AbortedByPreemption,
    /// There is no such unit.
    NoSuchLun,
    /// There is no such path or target.
    NoDevice,
    /// The device is busy.
    Busy,
    /// The queue is full.
    QueueFull,
}

impl Failure {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::UnknownOpcode,
        Self::LbaOutOfRange,
        Self::InvalidField,
        Self::InvalidParameter,
        Self::ParameterListLength,
        Self::SavingNotSupported,
        Self::BufferTooSmall,
        Self::WriteProtected,
        Self::CapacityChanged,
        Self::Reset,
        Self::ReadError,
        Self::WriteError,
        Self::WriteFault,
        Self::Miscompare,
        Self::ReservationConflict,
        Self::AbortedByPreemption,
        Self::NoSuchLun,
        Self::NoDevice,
        Self::Busy,
        Self::QueueFull,
    ];

    /// The answer. Malformed requests are INVALID_REQUEST, real trouble is ERROR: guests treat the two differently.
    pub const fn outcome(self) -> Outcome {
        use {ScsiStatus as Scsi, SrbStatus as Srb};
        let (scsi_status, srb_status, sense) = match self {
            Self::UnknownOpcode => (Scsi::CHECK_CONDITION, Srb::INVALID_REQUEST, Some(Sense::INVALID_OPCODE)),
            Self::LbaOutOfRange => {
                (Scsi::CHECK_CONDITION, Srb::INVALID_REQUEST, Some(Sense::LBA_OUT_OF_RANGE))
            }
            Self::InvalidField => {
                (Scsi::CHECK_CONDITION, Srb::INVALID_REQUEST, Some(Sense::INVALID_FIELD_IN_CDB))
            }
            Self::InvalidParameter => {
                (Scsi::CHECK_CONDITION, Srb::INVALID_REQUEST, Some(Sense::INVALID_FIELD_IN_PARAMETER_LIST))
            }
            Self::ParameterListLength => {
                (Scsi::CHECK_CONDITION, Srb::INVALID_REQUEST, Some(Sense::PARAMETER_LIST_LENGTH))
            }
            Self::SavingNotSupported => {
                (Scsi::CHECK_CONDITION, Srb::INVALID_REQUEST, Some(Sense::SAVING_NOT_SUPPORTED))
            }
            Self::BufferTooSmall => {
                (Scsi::CHECK_CONDITION, Srb::DATA_OVERRUN, Some(Sense::INVALID_FIELD_IN_CDB))
            }
            Self::WriteProtected => (Scsi::CHECK_CONDITION, Srb::ERROR, Some(Sense::WRITE_PROTECTED)),
            Self::CapacityChanged => (Scsi::CHECK_CONDITION, Srb::ERROR, Some(Sense::CAPACITY_CHANGED)),
            Self::Reset => (Scsi::CHECK_CONDITION, Srb::ERROR, Some(Sense::RESET)),
            Self::ReadError => (Scsi::CHECK_CONDITION, Srb::ERROR, Some(Sense::READ_ERROR)),
            Self::WriteError => (Scsi::CHECK_CONDITION, Srb::ERROR, Some(Sense::WRITE_ERROR)),
            Self::WriteFault => (Scsi::CHECK_CONDITION, Srb::ERROR, Some(Sense::WRITE_FAULT)),
            Self::Miscompare => (Scsi::CHECK_CONDITION, Srb::ERROR, Some(Sense::MISCOMPARE)),
            Self::ReservationConflict => (Scsi::RESERVATION_CONFLICT, Srb::ERROR, None),
            Self::AbortedByPreemption => (Scsi::TASK_ABORTED, Srb::ABORTED, Some(Sense::ABORTED)),
            Self::NoSuchLun => (Scsi::CHECK_CONDITION, Srb::INVALID_LUN, None),
            Self::NoDevice => (Scsi::CHECK_CONDITION, Srb::NO_DEVICE, None),
            Self::Busy => (Scsi::BUSY, Srb::BUSY, None),
            Self::QueueFull => (Scsi::TASK_SET_FULL, Srb::BUSY, None),
        };
        Outcome { srb_status, scsi_status, transferred: 0, sense }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use zerocopy::IntoBytes;

    #[test]
    fn both_formats_are_read_as_they_were_written() {
        for failure in Failure::ALL {
            let Some(sense) = failure.outcome().sense else { continue };
            assert_eq!(Sense::parse(sense.to_fixed().as_bytes()), Some(sense));
            assert_eq!(Sense::parse(&sense.to_descriptor()), Some(sense));
        }
        assert_eq!(Sense::parse(&[]), None);
        assert_eq!(Sense::parse(&[0x70, 0, 5]), None);
        assert_eq!(Sense::parse(&[0; 18]), None);
    }

    #[test]
    fn a_failure_is_never_success_and_check_condition_explains_itself() {
        for failure in Failure::ALL {
            let outcome = failure.outcome();
            assert_ne!(outcome.srb_status, SrbStatus::SUCCESS);
            assert_ne!(outcome.scsi_status, ScsiStatus::GOOD);
            let must_explain = outcome.scsi_status == ScsiStatus::CHECK_CONDITION
                && !matches!(failure, Failure::NoSuchLun | Failure::NoDevice);
            assert!(outcome.sense.is_some() || !must_explain, "{failure:?}");
        }
        assert_eq!(
            Failure::CapacityChanged.outcome().sense.map(|sense| sense.to_string()).as_deref(),
            Some("6/2A/09")
        );
    }
}
