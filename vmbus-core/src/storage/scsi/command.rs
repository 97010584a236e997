//! Commands: from a CDB to a [`Command`] and back.

use crate::storage::DataDirection;
use crate::wire::open_values;

use super::Failure;

open_values! {
    /// First byte of a command. Its top three bits give the length, see [`Opcode::form`]. Not every opcode that has a
    /// name here has a [`Command`].
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
        /// Not in [`Command`].
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
        /// CD; not in [`Command`].
        READ_TOC = 0x43,
        /// CD; not in [`Command`].
        GET_CONFIGURATION = 0x46,
        /// CD; not in [`Command`].
        GET_EVENT_STATUS_NOTIFICATION = 0x4a,
        /// Not in [`Command`].
        LOG_SENSE = 0x4d,
        /// CD; not in [`Command`].
        READ_DISC_INFORMATION = 0x51,
        /// Sets parameters.
        MODE_SELECT_10 = 0x55,
        /// Returns parameters.
        MODE_SENSE_10 = 0x5a,
        /// Asks about reservations.
        PERSISTENT_RESERVE_IN = 0x5e,
        /// Changes reservations.
        PERSISTENT_RESERVE_OUT = 0x5f,
        /// Not in [`Command`].
        EXTENDED_COPY = 0x83,
        /// Not in [`Command`].
        RECEIVE_COPY_RESULTS = 0x84,
        /// Not in [`Command`].
        ATA_PASS_THROUGH_16 = 0x85,
        /// Reads.
        READ_16 = 0x88,
        /// Not in [`Command`].
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
        /// Not in [`Command`].
        ATA_PASS_THROUGH_12 = 0xa1,
        /// Not in [`Command`].
        MAINTENANCE_IN = 0xa3,
        /// Reads.
        READ_12 = 0xa8,
        /// Writes.
        WRITE_12 = 0xaa,
        /// Writes and verifies.
        WRITE_AND_VERIFY_12 = 0xae,
        /// Verifies, or compares.
        VERIFY_12 = 0xaf,
        /// CD; not in [`Command`].
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

/// Bytes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb {
    bytes: [u8; 16],
    form: CdbForm,
}

impl Cdb {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.form.size())]
    }

    /// How many there are.
    pub fn size(&self) -> u8 {
        self.form.size()
    }
}

/// Blocks that a command names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// Length of the command.
    pub form: CdbForm,
    /// Byte 1 of the command: flags by command, see the methods. 0 in a 6-byte command.
    pub options: u8,
    /// First block.
    pub lba: u64,
    /// Number of blocks. 1 to 256 in a 6-byte READ or WRITE.
    pub blocks: u32,
}

impl BlockRange {
    /// Option of READ, WRITE: on stable storage before the answer.
    pub const FUA: u8 = 0x08;
    /// Option of READ, WRITE, VERIFY: do not cache.
    pub const DPO: u8 = 0x10;
    /// Option of VERIFY: compare with the data that come along.
    pub const BYTE_CHECK: u8 = 0x02;
    /// Option of SYNCHRONIZE CACHE: answer at once.
    pub const IMMEDIATE: u8 = 0x02;
    /// Option of WRITE SAME: let go of the blocks.
    pub const UNMAP: u8 = 0x08;
    /// Option of WRITE SAME: let go of the data, keep the room.
    pub const ANCHOR: u8 = 0x10;
    /// Option of WRITE SAME (16): no data come along, write zeros.
    pub const NO_DATA_OUT: u8 = 0x01;

    /// A range without options in the shortest form, of 10 or 16 bytes, that can name it.
    pub const fn new(lba: u64, blocks: u32) -> Self {
        let fits = lba <= u32::MAX as u64 && blocks <= u16::MAX as u32;
        Self { form: if fits { CdbForm::Ten } else { CdbForm::Sixteen }, options: 0, lba, blocks }
    }

    /// The same range with these options.
    pub const fn with(self, options: u8) -> Self {
        Self { options, ..self }
    }

    /// Whether all of these options are set.
    pub const fn has(&self, options: u8) -> bool {
        self.options & options == options
    }

    /// The PROTECT field of READ, WRITE and VERIFY.
    pub const fn protect(&self) -> u8 {
        self.options >> 5
    }

    /// The block after the last, if there is such a number.
    pub const fn end(&self) -> Option<u64> {
        self.lba.checked_add(self.blocks as u64)
    }
}

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

/// Why bytes are not a command, or a command has no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CdbError {
    /// There is no opcode.
    #[error("empty command")]
    Empty,
    /// The opcode has no [`Command`]. The guest's fault.
    #[error("unknown command {0}")]
    UnknownOpcode(Opcode),
    /// The command is shorter than its opcode says. The guest's fault.
    #[error("command {opcode} of {len} bytes, {needed} are needed")]
    TooShort {
        /// The opcode.
        opcode: Opcode,
        /// Bytes there.
        len: usize,
        /// Bytes needed.
        needed: u8,
    },
    /// The opcode has no such service action here. The guest's fault.
    #[error("command {opcode} with unknown service action {action:#04x}")]
    UnknownServiceAction {
        /// The opcode.
        opcode: Opcode,
        /// The service action.
        action: u8,
    },
    /// A field is too large for the command's form. The fault of whoever made the [`Command`].
    #[error("a field does not fit into a command of {} bytes", .0.size())]
    DoesNotFit(CdbForm),
}

impl CdbError {
    /// What a disk answers.
    pub const fn failure(&self) -> Failure {
        match self {
            Self::Empty | Self::UnknownOpcode(_) => Failure::UnknownOpcode,
            Self::TooShort { .. } | Self::UnknownServiceAction { .. } | Self::DoesNotFit(_) => {
                Failure::InvalidField
            }
        }
    }
}

const READ_CAPACITY_16: u8 = 0x10;
const GET_LBA_STATUS: u8 = 0x12;

impl Command {
    /// Option of INQUIRY: vital product data.
    pub const EVPD: u8 = 0x01;
    /// Option of INQUIRY: command support data, obsolete.
    pub const CMDDT: u8 = 0x02;

    /// Reads a command. Bytes beyond its length are ignored.
    #[inline]
    pub fn parse(cdb: &[u8]) -> Result<Self, CdbError> {
        let opcode = Opcode(*cdb.first().ok_or(CdbError::Empty)?);
        let form = match (opcode.name(), opcode.form()) {
            (Some(_), Some(form)) => form,
            (None, _) | (_, None) => return Err(CdbError::UnknownOpcode(opcode)),
        };
        if cdb.len() < usize::from(form.size()) {
            return Err(CdbError::TooShort { opcode, len: cdb.len(), needed: form.size() });
        }
        let mut b = [0; 16];
        let len = cdb.len().min(16);
        b[..len].copy_from_slice(&cdb[..len]);
        Self::from_parts(opcode, form, &b)
    }

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
        Ok(Cdb { bytes: b, form })
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

impl BlockRange {
    #[inline]
    fn read(form: CdbForm, b: &[u8; 16]) -> Self {
        let long = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        match form {
            CdbForm::Six => {
                let lba = u32::from_be_bytes([0, b[1] & 0x1f, b[2], b[3]]);
                let blocks = if b[4] == 0 { 256 } else { u32::from(b[4]) };
                Self { form, options: 0, lba: u64::from(lba), blocks }
            }
            CdbForm::Ten => {
                let blocks = u32::from(u16::from_be_bytes([b[7], b[8]]));
                Self { form, options: b[1], lba: u64::from(long(2)), blocks }
            }
            CdbForm::Twelve => Self { form, options: b[1], lba: u64::from(long(2)), blocks: long(6) },
            CdbForm::Sixteen => {
                let lba = u64::from(long(2)) << 32 | u64::from(long(6));
                Self { form, options: b[1], lba, blocks: long(10) }
            }
        }
    }

    /// `None` if the form cannot hold the range.
    fn write(&self, b: &mut [u8; 16]) -> Option<()> {
        b[1] = self.options;
        match self.form {
            CdbForm::Six => {
                if self.lba >= 1 << 21 || self.options != 0 || !(1..=256).contains(&self.blocks) {
                    return None;
                }
                b[..4][1..].copy_from_slice(&u32::try_from(self.lba).ok()?.to_be_bytes()[1..]);
                b[4] = self.blocks.to_be_bytes()[3];
            }
            CdbForm::Ten => {
                b[2..6].copy_from_slice(&u32::try_from(self.lba).ok()?.to_be_bytes());
                b[7..9].copy_from_slice(&u16::try_from(self.blocks).ok()?.to_be_bytes());
            }
            CdbForm::Twelve => {
                b[2..6].copy_from_slice(&u32::try_from(self.lba).ok()?.to_be_bytes());
                b[6..10].copy_from_slice(&self.blocks.to_be_bytes());
            }
            CdbForm::Sixteen => {
                b[2..10].copy_from_slice(&self.lba.to_be_bytes());
                b[10..14].copy_from_slice(&self.blocks.to_be_bytes());
            }
        }
        Some(())
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
