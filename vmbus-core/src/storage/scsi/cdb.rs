//! The bytes of a command, and the fields that commands on blocks share.

use super::{CdbForm, Failure, Opcode};

/// Bytes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb {
    bytes: [u8; 16],
    form: CdbForm,
}

impl Cdb {
    pub(super) fn new(bytes: [u8; 16], form: CdbForm) -> Self {
        Self { bytes, form }
    }

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

/// Why bytes are not a command, or a command has no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CdbError {
    /// There is no opcode.
    #[error("empty command")]
    Empty,
    /// The opcode has no [`Command`](super::Command). The guest's fault.
    #[error("unknown command {0}")]
    UnknownOpcode(Opcode),
    /// The command is shorter than its opcode says. The guest's fault.
    #[error("command {opcode} of {len} bytes, {needed} are needed")]
    TooShort {
        /// The opcode.
        opcode: Opcode,
        /// Bytes there.
        len: u8,
        /// Bytes needed.
        needed: u8,
    },
    /// More bytes than the longest command has. The guest's fault.
    #[error("command of {0} bytes, at most 16 are possible")]
    TooLong(u8),
    /// The opcode has no such service action here. The guest's fault.
    #[error("command {opcode} with unknown service action {action:#04x}")]
    UnknownServiceAction {
        /// The opcode.
        opcode: Opcode,
        /// The service action.
        action: u8,
    },
    /// A field is too large for the command's form. The fault of whoever made the [`Command`](super::Command).
    #[error("a field does not fit into a command of {} bytes", .0.size())]
    DoesNotFit(CdbForm),
}

impl CdbError {
    /// What a disk answers.
    pub const fn failure(&self) -> Failure {
        match self {
            Self::Empty | Self::UnknownOpcode(_) => Failure::UnknownOpcode,
            Self::TooShort { .. }
            | Self::TooLong(_)
            | Self::UnknownServiceAction { .. }
            | Self::DoesNotFit(_) => Failure::InvalidField,
        }
    }
}

impl BlockRange {
    #[inline]
    pub(super) fn read(form: CdbForm, b: &[u8; 16]) -> Self {
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
    pub(super) fn write(&self, b: &mut [u8; 16]) -> Option<()> {
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
