//! Commands: from a CDB to a [`Command`] and back.

use super::{BlockRange, Cdb, CdbError, CdbForm, Opcode};
use crate::storage::DataDirection;

/// A command and its fields. Fields that no device on this bus looks at are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Is the unit there?
    TestUnitReady,
    /// What went wrong?
    RequestSense {
        /// In descriptor format.
        descriptor: bool,
        /// Longest answer, in bytes.
        allocation_length: u8,
    },
    /// Formats the medium.
    FormatUnit,
    /// Reads blocks.
    Read(BlockRange),
    /// Writes blocks.
    Write(BlockRange),
    /// Writes blocks and verifies them.
    WriteAndVerify(BlockRange),
    /// Verifies blocks, or compares them.
    Verify(BlockRange),
    /// What are you?
    Inquiry {
        /// Byte 1: [`Command::EVPD`], [`Command::CMDDT`].
        options: u8,
        /// Page of vital product data.
        page: u8,
        /// Longest answer, in bytes.
        allocation_length: u16,
    },
    /// Sets parameters.
    ModeSelect {
        /// 6 or 10 bytes.
        form: CdbForm,
        /// The pages have the standard's format.
        page_format: bool,
        /// Save them.
        save_pages: bool,
        /// Bytes of parameters.
        list_length: u16,
    },
    /// Returns parameters.
    ModeSense {
        /// 6 or 10 bytes.
        form: CdbForm,
        /// Without block descriptors.
        disable_block_descriptors: bool,
        /// 0 current values, 1 which can change, 2 defaults, 3 saved values.
        page_control: u8,
        /// Page, 0x3f for all.
        page: u8,
        /// Subpage.
        subpage: u8,
        /// Longest answer, in bytes.
        allocation_length: u16,
    },
    /// Reserves the unit, the old way.
    Reserve,
    /// Undoes [`Command::Reserve`].
    Release,
    /// Starts or stops the unit.
    StartStopUnit {
        /// Answer at once.
        immediate: bool,
        /// Start rather than stop.
        start: bool,
        /// Load or eject the medium.
        load_eject: bool,
        /// Power condition, 0 for none.
        power_condition: u8,
    },
    /// Asks for a self-test.
    SendDiagnostic {
        /// The default self-test.
        self_test: bool,
        /// Another one.
        self_test_code: u8,
        /// The parameters have the standard's format.
        page_format: bool,
        /// Bytes of parameters.
        list_length: u16,
    },
    /// Locks the medium in, or not.
    PreventAllowMediumRemoval {
        /// Bit 0: lock.
        prevent: u8,
    },
    /// Size of the disk, up to 2^32 blocks.
    ReadCapacity10 {
        /// Must be 0 unless `partial` is set.
        lba: u32,
        /// The end of what can be read quickly; obsolete.
        partial: bool,
    },
    /// Size of the disk.
    ReadCapacity16 {
        /// Must be 0 unless `partial` is set.
        lba: u64,
        /// Longest answer, in bytes.
        allocation_length: u32,
        /// Obsolete.
        partial: bool,
    },
    /// Which blocks hold data?
    GetLbaStatus {
        /// From this one on.
        lba: u64,
        /// Longest answer, in bytes.
        allocation_length: u32,
    },
    /// Makes data stable; 0 blocks means all up to the end.
    SynchronizeCache(BlockRange),
    /// Writes one block many times, or lets go of blocks; 0 blocks means all up to the end.
    WriteSame(BlockRange),
    /// Lets go of blocks.
    Unmap {
        /// Let go of the data, keep the room.
        anchor: bool,
        /// Bytes of parameters.
        list_length: u16,
    },
    /// Asks about reservations.
    PersistentReserveIn {
        /// Service action, 0 to 3.
        action: u8,
        /// Longest answer, in bytes.
        allocation_length: u16,
    },
    /// Changes reservations.
    PersistentReserveOut {
        /// Service action, 0 to 8.
        action: u8,
        /// Scope, 0 for the unit.
        scope: u8,
        /// Type of the reservation.
        kind: u8,
        /// Bytes of parameters, 24.
        list_length: u32,
    },
    /// Which units are there?
    ReportLuns {
        /// Which of them.
        select: u8,
        /// Longest answer, in bytes.
        allocation_length: u32,
    },
}

const READ_CAPACITY_16: u8 = 0x10;
const GET_LBA_STATUS: u8 = 0x12;

impl Command {
    /// Option of INQUIRY: vital product data.
    pub const EVPD: u8 = 0x01;
    /// Option of INQUIRY: command support data, obsolete.
    pub const CMDDT: u8 = 0x02;

    /// Reads a command. Bytes beyond its length are ignored.
    pub fn parse(cdb: &[u8]) -> Result<Self, CdbError> {
        let mut field = [0; 16];
        let len = cdb.len().min(field.len());
        field[..len].copy_from_slice(&cdb[..len]);
        Self::parse_field(&field, u8::try_from(len).unwrap_or(u8::MAX))
    }

    /// Reads a command from the field of an SRB, of which `len` bytes are the command.
    #[inline]
    pub fn parse_field(field: &[u8; 16], len: u8) -> Result<Self, CdbError> {
        if len == 0 {
            return Err(CdbError::Empty);
        }
        if usize::from(len) > field.len() {
            return Err(CdbError::TooLong(len));
        }
        let opcode = Opcode(field[0]);
        let form = opcode.form().ok_or(CdbError::UnknownOpcode(opcode))?;
        let command = Self::from_parts(opcode, form, field)?;
        if len < form.size() {
            return Err(CdbError::TooShort { opcode, len, needed: form.size() });
        }
        Ok(command)
    }

    #[inline]
    fn from_parts(opcode: Opcode, form: CdbForm, b: &[u8; 16]) -> Result<Self, CdbError> {
        let bit = |byte: usize, bit: u8| b[byte] >> bit & 1 == 1;
        let blocks = || BlockRange::read(form, b);
        let word = |at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
        let long = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let short_or_word = || if form == CdbForm::Six { u16::from(b[4]) } else { word(7) };
        Ok(match opcode {
            Opcode::TEST_UNIT_READY => Self::TestUnitReady,
            Opcode::REQUEST_SENSE => Self::RequestSense { descriptor: bit(1, 0), allocation_length: b[4] },
            Opcode::FORMAT_UNIT => Self::FormatUnit,
            Opcode::READ_6 | Opcode::READ_10 | Opcode::READ_12 | Opcode::READ_16 => Self::Read(blocks()),
            Opcode::WRITE_6 | Opcode::WRITE_10 | Opcode::WRITE_12 | Opcode::WRITE_16 => Self::Write(blocks()),
            Opcode::WRITE_AND_VERIFY_10 | Opcode::WRITE_AND_VERIFY_12 | Opcode::WRITE_AND_VERIFY_16 => {
                Self::WriteAndVerify(blocks())
            }
            Opcode::VERIFY_10 | Opcode::VERIFY_12 | Opcode::VERIFY_16 => Self::Verify(blocks()),
            Opcode::SYNCHRONIZE_CACHE_10 | Opcode::SYNCHRONIZE_CACHE_16 => Self::SynchronizeCache(blocks()),
            Opcode::WRITE_SAME_10 | Opcode::WRITE_SAME_16 => Self::WriteSame(blocks()),
            Opcode::INQUIRY => Self::Inquiry { options: b[1], page: b[2], allocation_length: word(3) },
            Opcode::MODE_SELECT_6 | Opcode::MODE_SELECT_10 => Self::ModeSelect {
                form,
                page_format: bit(1, 4),
                save_pages: bit(1, 0),
                list_length: short_or_word(),
            },
            Opcode::MODE_SENSE_6 | Opcode::MODE_SENSE_10 => Self::ModeSense {
                form,
                disable_block_descriptors: bit(1, 3),
                page_control: b[2] >> 6,
                page: b[2] & 0x3f,
                subpage: b[3],
                allocation_length: short_or_word(),
            },
            Opcode::RESERVE_6 => Self::Reserve,
            Opcode::RELEASE_6 => Self::Release,
            Opcode::START_STOP_UNIT => Self::StartStopUnit {
                immediate: bit(1, 0),
                start: bit(4, 0),
                load_eject: bit(4, 1),
                power_condition: b[4] >> 4,
            },
            Opcode::SEND_DIAGNOSTIC => Self::SendDiagnostic {
                self_test: bit(1, 2),
                self_test_code: b[1] >> 5,
                page_format: bit(1, 4),
                list_length: word(3),
            },
            Opcode::PREVENT_ALLOW_MEDIUM_REMOVAL => Self::PreventAllowMediumRemoval { prevent: b[4] & 0x3 },
            Opcode::READ_CAPACITY_10 => Self::ReadCapacity10 { lba: long(2), partial: bit(8, 0) },
            Opcode::SERVICE_ACTION_IN_16 => {
                let (lba, allocation_length) = (blocks().lba, long(10));
                match b[1] & 0x1f {
                    READ_CAPACITY_16 => Self::ReadCapacity16 { lba, allocation_length, partial: bit(14, 0) },
                    GET_LBA_STATUS => Self::GetLbaStatus { lba, allocation_length },
                    action => return Err(CdbError::UnknownServiceAction { opcode, action }),
                }
            }
            Opcode::UNMAP => Self::Unmap { anchor: bit(1, 0), list_length: word(7) },
            Opcode::PERSISTENT_RESERVE_IN => {
                Self::PersistentReserveIn { action: b[1] & 0x1f, allocation_length: word(7) }
            }
            Opcode::PERSISTENT_RESERVE_OUT => Self::PersistentReserveOut {
                action: b[1] & 0x1f,
                scope: b[2] >> 4,
                kind: b[2] & 0xf,
                list_length: long(5),
            },
            Opcode::REPORT_LUNS => Self::ReportLuns { select: b[2], allocation_length: long(6) },
            unsupported => return Err(CdbError::UnknownOpcode(unsupported)),
        })
    }

    /// The command's bytes. A field that the form cannot hold is the caller's fault.
    pub fn emit(&self) -> Result<Cdb, CdbError> {
        let form = self.form();
        let opcode = self.opcode().ok_or(CdbError::DoesNotFit(form))?;
        let mut b = [0; 16];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[opcode.0]);
        match *self {
            Self::TestUnitReady | Self::FormatUnit | Self::Reserve | Self::Release => {}
            Self::RequestSense { descriptor, allocation_length } => {
                put(1, &[u8::from(descriptor), 0, 0, allocation_length]);
            }
            Self::Read(range)
            | Self::Write(range)
            | Self::WriteAndVerify(range)
            | Self::Verify(range)
            | Self::SynchronizeCache(range)
            | Self::WriteSame(range) => range.write(&mut b).ok_or(CdbError::DoesNotFit(form))?,
            Self::Inquiry { options, page, allocation_length } => {
                put(1, &[options, page]);
                put(3, &allocation_length.to_be_bytes());
            }
            Self::ModeSelect { page_format, save_pages, list_length, .. } => {
                put(1, &[u8::from(page_format) << 4 | u8::from(save_pages)]);
                put_short_or_word(&mut b, form, list_length)?;
            }
            Self::ModeSense {
                disable_block_descriptors,
                page_control,
                page,
                subpage,
                allocation_length,
                ..
            } => {
                let page = page_control << 6 | page & 0x3f;
                put(1, &[u8::from(disable_block_descriptors) << 3, page, subpage]);
                put_short_or_word(&mut b, form, allocation_length)?;
            }
            Self::StartStopUnit { immediate, start, load_eject, power_condition } => {
                put(1, &[u8::from(immediate)]);
                put(4, &[power_condition << 4 | u8::from(load_eject) << 1 | u8::from(start)]);
            }
            Self::SendDiagnostic { self_test, self_test_code, page_format, list_length } => {
                put(1, &[self_test_code << 5 | u8::from(page_format) << 4 | u8::from(self_test) << 2]);
                put(3, &list_length.to_be_bytes());
            }
            Self::PreventAllowMediumRemoval { prevent } => put(4, &[prevent & 0x3]),
            Self::ReadCapacity10 { lba, partial } => {
                put(2, &lba.to_be_bytes());
                put(8, &[u8::from(partial)]);
            }
            Self::ReadCapacity16 { lba, allocation_length, partial } => {
                put(1, &[READ_CAPACITY_16]);
                put(2, &lba.to_be_bytes());
                put(10, &allocation_length.to_be_bytes());
                put(14, &[u8::from(partial)]);
            }
            Self::GetLbaStatus { lba, allocation_length } => {
                put(1, &[GET_LBA_STATUS]);
                put(2, &lba.to_be_bytes());
                put(10, &allocation_length.to_be_bytes());
            }
            Self::Unmap { anchor, list_length } => {
                put(1, &[u8::from(anchor)]);
                put(7, &list_length.to_be_bytes());
            }
            Self::PersistentReserveIn { action, allocation_length } => {
                put(1, &[action & 0x1f]);
                put(7, &allocation_length.to_be_bytes());
            }
            Self::PersistentReserveOut { action, scope, kind, list_length } => {
                put(1, &[action & 0x1f, scope << 4 | kind & 0xf]);
                put(5, &list_length.to_be_bytes());
            }
            Self::ReportLuns { select, allocation_length } => {
                put(2, &[select]);
                put(6, &allocation_length.to_be_bytes());
            }
        }
        Ok(Cdb::new(b, form))
    }

    /// The opcode, or `None` if the command does not exist in its form.
    pub fn opcode(&self) -> Option<Opcode> {
        use CdbForm::{Six, Sixteen, Ten, Twelve};
        Some(match (self, self.form()) {
            (Self::TestUnitReady, _) => Opcode::TEST_UNIT_READY,
            (Self::RequestSense { .. }, _) => Opcode::REQUEST_SENSE,
            (Self::FormatUnit, _) => Opcode::FORMAT_UNIT,
            (Self::Read(_), Six) => Opcode::READ_6,
            (Self::Read(_), Ten) => Opcode::READ_10,
            (Self::Read(_), Twelve) => Opcode::READ_12,
            (Self::Read(_), Sixteen) => Opcode::READ_16,
            (Self::Write(_), Six) => Opcode::WRITE_6,
            (Self::Write(_), Ten) => Opcode::WRITE_10,
            (Self::Write(_), Twelve) => Opcode::WRITE_12,
            (Self::Write(_), Sixteen) => Opcode::WRITE_16,
            (Self::WriteAndVerify(_), Six) => return None,
            (Self::WriteAndVerify(_), Ten) => Opcode::WRITE_AND_VERIFY_10,
            (Self::WriteAndVerify(_), Twelve) => Opcode::WRITE_AND_VERIFY_12,
            (Self::WriteAndVerify(_), Sixteen) => Opcode::WRITE_AND_VERIFY_16,
            (Self::Verify(_), Six) => return None,
            (Self::Verify(_), Ten) => Opcode::VERIFY_10,
            (Self::Verify(_), Twelve) => Opcode::VERIFY_12,
            (Self::Verify(_), Sixteen) => Opcode::VERIFY_16,
            (Self::SynchronizeCache(_), Ten) => Opcode::SYNCHRONIZE_CACHE_10,
            (Self::SynchronizeCache(_), Sixteen) => Opcode::SYNCHRONIZE_CACHE_16,
            (Self::SynchronizeCache(_), Six | Twelve) => return None,
            (Self::WriteSame(_), Ten) => Opcode::WRITE_SAME_10,
            (Self::WriteSame(_), Sixteen) => Opcode::WRITE_SAME_16,
            (Self::WriteSame(_), Six | Twelve) => return None,
            (Self::Inquiry { .. }, _) => Opcode::INQUIRY,
            (Self::ModeSelect { .. }, Six) => Opcode::MODE_SELECT_6,
            (Self::ModeSelect { .. }, Ten) => Opcode::MODE_SELECT_10,
            (Self::ModeSelect { .. }, Twelve | Sixteen) => return None,
            (Self::ModeSense { .. }, Six) => Opcode::MODE_SENSE_6,
            (Self::ModeSense { .. }, Ten) => Opcode::MODE_SENSE_10,
            (Self::ModeSense { .. }, Twelve | Sixteen) => return None,
            (Self::Reserve, _) => Opcode::RESERVE_6,
            (Self::Release, _) => Opcode::RELEASE_6,
            (Self::StartStopUnit { .. }, _) => Opcode::START_STOP_UNIT,
            (Self::SendDiagnostic { .. }, _) => Opcode::SEND_DIAGNOSTIC,
            (Self::PreventAllowMediumRemoval { .. }, _) => Opcode::PREVENT_ALLOW_MEDIUM_REMOVAL,
            (Self::ReadCapacity10 { .. }, _) => Opcode::READ_CAPACITY_10,
            (Self::ReadCapacity16 { .. } | Self::GetLbaStatus { .. }, _) => Opcode::SERVICE_ACTION_IN_16,
            (Self::Unmap { .. }, _) => Opcode::UNMAP,
            (Self::PersistentReserveIn { .. }, _) => Opcode::PERSISTENT_RESERVE_IN,
            (Self::PersistentReserveOut { .. }, _) => Opcode::PERSISTENT_RESERVE_OUT,
            (Self::ReportLuns { .. }, _) => Opcode::REPORT_LUNS,
        })
    }

    /// The length of the command.
    pub fn form(&self) -> CdbForm {
        match self {
            Self::TestUnitReady
            | Self::RequestSense { .. }
            | Self::FormatUnit
            | Self::Inquiry { .. }
            | Self::Reserve
            | Self::Release
            | Self::StartStopUnit { .. }
            | Self::SendDiagnostic { .. }
            | Self::PreventAllowMediumRemoval { .. } => CdbForm::Six,
            Self::ReadCapacity10 { .. }
            | Self::Unmap { .. }
            | Self::PersistentReserveIn { .. }
            | Self::PersistentReserveOut { .. } => CdbForm::Ten,
            Self::ReportLuns { .. } => CdbForm::Twelve,
            Self::ReadCapacity16 { .. } | Self::GetLbaStatus { .. } => CdbForm::Sixteen,
            Self::ModeSelect { form, .. } | Self::ModeSense { form, .. } => *form,
            Self::Read(range)
            | Self::Write(range)
            | Self::WriteAndVerify(range)
            | Self::Verify(range)
            | Self::SynchronizeCache(range)
            | Self::WriteSame(range) => range.form,
        }
    }

    /// Which way the command's data move.
    pub fn direction(&self) -> DataDirection {
        match self {
            Self::Write(_)
            | Self::WriteAndVerify(_)
            | Self::ModeSelect { .. }
            | Self::Unmap { .. }
            | Self::PersistentReserveOut { .. } => DataDirection::ToDevice,
            Self::Verify(range) if range.has(BlockRange::BYTE_CHECK) => DataDirection::ToDevice,
            Self::WriteSame(range) if !range.has(BlockRange::NO_DATA_OUT) => DataDirection::ToDevice,
            Self::SendDiagnostic { list_length, .. } if *list_length > 0 => DataDirection::ToDevice,
            Self::Read(_)
            | Self::RequestSense { .. }
            | Self::Inquiry { .. }
            | Self::ModeSense { .. }
            | Self::ReadCapacity10 { .. }
            | Self::ReadCapacity16 { .. }
            | Self::GetLbaStatus { .. }
            | Self::PersistentReserveIn { .. }
            | Self::ReportLuns { .. } => DataDirection::FromDevice,
            Self::TestUnitReady
            | Self::FormatUnit
            | Self::Verify(_)
            | Self::Reserve
            | Self::Release
            | Self::StartStopUnit { .. }
            | Self::SendDiagnostic { .. }
            | Self::PreventAllowMediumRemoval { .. }
            | Self::SynchronizeCache(_)
            | Self::WriteSame(_) => DataDirection::Unspecified,
        }
    }
}

fn put_short_or_word(b: &mut [u8; 16], form: CdbForm, value: u16) -> Result<(), CdbError> {
    match form {
        CdbForm::Six => b[4] = u8::try_from(value).map_err(|_| CdbError::DoesNotFit(form))?,
        CdbForm::Ten | CdbForm::Twelve | CdbForm::Sixteen => b[7..9].copy_from_slice(&value.to_be_bytes()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Failure;
    use super::*;

    #[test]
    fn every_form_of_read_names_the_same_blocks() {
        let six = Command::parse(&[0x08, 0x1f, 0x34, 0x56, 0, 0]);
        assert_eq!(
            six,
            Ok(Command::Read(BlockRange { form: CdbForm::Six, options: 0, lba: 0x1f_3456, blocks: 256 }))
        );
        for (form, cdb) in [
            (CdbForm::Ten, [0x28, 0x08, 0, 1, 2, 3, 0, 4, 5, 0].as_slice()),
            (CdbForm::Twelve, &[0xa8, 0x08, 0, 1, 2, 3, 0, 0, 4, 5, 0, 0]),
            (CdbForm::Sixteen, &[0x88, 0x08, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 4, 5, 0, 0]),
        ] {
            let range = BlockRange { form, options: BlockRange::FUA, lba: 0x1_0203, blocks: 0x405 };
            assert_eq!(Command::parse(cdb), Ok(Command::Read(range)));
            assert_eq!(Command::Read(range).emit().unwrap().as_bytes(), cdb);
        }
    }

    #[test]
    fn a_range_takes_the_shortest_form_that_holds_it() {
        assert_eq!(BlockRange::new(u64::from(u32::MAX), 0xffff).form, CdbForm::Ten);
        assert_eq!(BlockRange::new(u64::from(u32::MAX) + 1, 1).form, CdbForm::Sixteen);
        assert_eq!(BlockRange::new(0, 0x1_0000).form, CdbForm::Sixteen);
        assert_eq!(BlockRange::new(u64::MAX, 1).end(), None);
    }

    #[test]
    fn what_a_form_cannot_hold_is_refused() {
        let range = BlockRange { form: CdbForm::Ten, options: 0, lba: 1 << 32, blocks: 1 };
        assert_eq!(Command::Read(range).emit(), Err(CdbError::DoesNotFit(CdbForm::Ten)));
        let range = BlockRange { form: CdbForm::Six, options: 0, lba: 1, blocks: 0 };
        assert_eq!(Command::Write(range).emit(), Err(CdbError::DoesNotFit(CdbForm::Six)));
        assert_eq!(Command::Verify(range).emit(), Err(CdbError::DoesNotFit(CdbForm::Six)));
    }

    #[test]
    fn unknown_commands_and_short_ones_tell_why() {
        assert_eq!(Command::parse(&[]), Err(CdbError::Empty));
        assert_eq!(Command::parse(&[0xff]), Err(CdbError::UnknownOpcode(Opcode(0xff))));
        assert_eq!(Command::parse(&[0x4d; 10]), Err(CdbError::UnknownOpcode(Opcode::LOG_SENSE)));
        assert_eq!(
            Command::parse(&[0x28; 9]),
            Err(CdbError::TooShort { opcode: Opcode::READ_10, len: 9, needed: 10 })
        );
        let unknown = Command::parse(&[0x9e, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap_err();
        assert_eq!(unknown.failure(), Failure::InvalidField);
    }
}
