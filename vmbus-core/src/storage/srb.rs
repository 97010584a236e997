//! The SCSI request block: one command and its result.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::Version;
use super::scsi::{Cdb, CdbError, Command, Sense};
use crate::Status;
use crate::wire::{open_values, wire_struct};

wire_struct! {
    /// A SCSI request block as it is on the wire (0x34 bytes; 0x24 before 5.1, without the tail).
    pub struct Srb {
        /// 0x34 or 0x24, see [`Version::srb_length`].
        pub length: U16,
        /// [`SrbStatus`], in an answer.
        pub srb_status: u8,
        /// [`ScsiStatus`], in an answer.
        pub scsi_status: u8,
        /// The guest's own number of the controller.
        pub port: u8,
        /// Path, 0 on a SCSI controller.
        pub path: u8,
        /// Target, 0 on a SCSI controller.
        pub target: u8,
        /// Logical unit.
        pub lun: u8,
        /// Bytes of the command in use.
        pub cdb_length: u8,
        /// Room for sense data in a request, valid bytes of it in an answer.
        pub sense_length: u8,
        /// [`DataDirection`].
        pub data_in: u8,
        /// 0, or properties that nobody reads.
        pub reserved: u8,
        /// Bytes of the buffer in a request, bytes moved in an answer.
        pub data_transfer_length: U32,
        /// The command, 16 bytes, in a request; sense data in an answer.
        pub cdb_or_sense: [u8; 20],
        /// 0. From here on: 5.1 and later.
        pub reserved2: U16,
        /// Tag, 0xff for none.
        pub queue_tag: u8,
        /// 0x20 for simple queueing.
        pub queue_action: u8,
        /// [`SrbFlags`].
        pub srb_flags: U32,
        /// Time the guest gives the command, in seconds.
        pub timeout_seconds: U32,
        /// For sorting, unused.
        pub queue_sort_key: U32,
    }
}

/// Where a command goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Path, 0 on a SCSI controller.
    pub path: u8,
    /// Target, 0 on a SCSI controller.
    pub target: u8,
    /// Logical unit.
    pub lun: u8,
}

/// Which way data moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataDirection {
    /// From guest to device: the device may only read the buffer.
    ToDevice,
    /// From device to guest.
    FromDevice,
    /// No data, or the guest does not say: the device may write the buffer.
    Unspecified,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Result for the adapter, without the autosense bit.
    pub srb_status: SrbStatus,
    /// Result of the device.
    pub scsi_status: ScsiStatus,
    /// Bytes moved.
    pub transferred: u32,
    /// What went wrong in detail.
    pub sense: Option<Sense>,
}

impl Outcome {
    /// Success, having moved this many bytes.
    pub const fn success(transferred: u32) -> Self {
        Self { srb_status: SrbStatus::SUCCESS, scsi_status: ScsiStatus::GOOD, transferred, sense: None }
    }
}

impl Srb {
    /// Size of the form before 5.1, in bytes.
    pub const SHORT_SIZE: usize = 0x24;
    /// Size of the command field, in bytes.
    pub const CDB_ROOM: usize = 16;

    /// A request as Linux fills it, for a command that moves `len` bytes.
    pub fn request(
        version: Version,
        address: Address,
        cdb: &Cdb,
        direction: DataDirection,
        len: u32,
    ) -> Self {
        let always =
            SrbFlags::DISABLE_SYNCH_TRANSFER | SrbFlags::QUEUE_ACTION_ENABLE | SrbFlags::NO_QUEUE_FREEZE;
        let mut srb = Self {
            length: U16::new(version.srb_length()),
            cdb_length: cdb.size(),
            sense_length: version.sense_room(),
            data_in: direction.number(),
            data_transfer_length: U32::new(len),
            queue_tag: 0xff,
            queue_action: 0x20,
            srb_flags: U32::new((always | direction.flags()).bits()),
            timeout_seconds: U32::new(60),
            ..Self::at(address)
        };
        srb.cdb_or_sense[..cdb.as_bytes().len()].copy_from_slice(cdb.as_bytes());
        srb
    }

    /// The answer to this request.
    pub fn answer(&self, outcome: &Outcome) -> Self {
        let mut answer = Self {
            length: self.length,
            srb_status: outcome.srb_status.0,
            scsi_status: outcome.scsi_status.0,
            cdb_length: self.cdb_length,
            data_in: self.data_in,
            data_transfer_length: U32::new(outcome.transferred),
            ..Self::at(self.address())
        };
        let sense = outcome.sense.map(|sense| sense.to_fixed()).unwrap_or_default();
        let room = outcome.sense.map_or(0, |_| self.sense_length.min(Sense::FIXED_SIZE));
        if room > 0 {
            answer.sense_length = room;
            answer.srb_status |= SrbStatus::AUTOSENSE_VALID;
            answer.cdb_or_sense[..usize::from(room)].copy_from_slice(&sense.as_bytes()[..usize::from(room)]);
        }
        answer
    }

    /// The address.
    pub fn address(&self) -> Address {
        Address { path: self.path, target: self.target, lun: self.lun }
    }

    /// The command of a request.
    #[inline]
    pub fn command(&self) -> Result<Command, CdbError> {
        let (field, _) = self.cdb_or_sense.split_first_chunk().ok_or(CdbError::Empty)?;
        Command::parse_field(field, self.cdb_length)
    }

    /// The bytes of a request's command. A length beyond their field is the guest's fault.
    pub fn cdb(&self) -> Result<&[u8], CdbError> {
        let cdb = &self.cdb_or_sense[..Self::CDB_ROOM];
        cdb.get(..usize::from(self.cdb_length)).ok_or(CdbError::TooLong(self.cdb_length))
    }

    /// Which way data moves.
    pub fn direction(&self) -> DataDirection {
        match self.data_in {
            0 => DataDirection::ToDevice,
            1 => DataDirection::FromDevice,
            _ => DataDirection::Unspecified,
        }
    }

    /// The adapter's result, without the autosense and frozen bits.
    pub fn srb_status(&self) -> SrbStatus {
        SrbStatus(self.srb_status & 0x3f)
    }

    /// The device's result.
    pub fn scsi_status(&self) -> ScsiStatus {
        ScsiStatus(self.scsi_status)
    }

    /// The sense data of an answer, if it says that there is any.
    pub fn sense(&self) -> Option<&[u8]> {
        let valid = self.srb_status & SrbStatus::AUTOSENSE_VALID != 0 && self.sense_length > 0;
        valid.then(|| {
            let len = usize::from(self.sense_length).min(self.cdb_or_sense.len());
            &self.cdb_or_sense[..len]
        })
    }

    /// How the command ended, from an answer.
    pub fn outcome(&self) -> Outcome {
        Outcome {
            srb_status: self.srb_status(),
            scsi_status: self.scsi_status(),
            transferred: self.data_transfer_length.get(),
            sense: self.sense().and_then(Sense::parse),
        }
    }

    pub(super) fn at(address: Address) -> Self {
        Self { path: address.path, target: address.target, lun: address.lun, ..Self::default() }
    }

    pub(super) fn from_payload(payload: &[u8; size_of::<Self>()]) -> Self {
        zerocopy::transmute!(*payload)
    }
}

impl DataDirection {
    fn number(self) -> u8 {
        match self {
            Self::ToDevice => 0,
            Self::FromDevice => 1,
            Self::Unspecified => 2,
        }
    }

    fn flags(self) -> SrbFlags {
        match self {
            Self::ToDevice => SrbFlags::DATA_OUT,
            Self::FromDevice => SrbFlags::DATA_IN,
            Self::Unspecified => SrbFlags::empty(),
        }
    }
}

bitflags::bitflags! {
    /// Flags of an SRB; a device acts on none of them.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SrbFlags: u32 {
        /// The queue action counts.
        const QUEUE_ACTION_ENABLE = 0x2;
        /// Do not let go of the bus.
        const DISABLE_DISCONNECT = 0x4;
        /// No synchronous transfer.
        const DISABLE_SYNCH_TRANSFER = 0x8;
        /// Go past a frozen queue.
        const BYPASS_FROZEN_QUEUE = 0x10;
        /// No sense data in the answer.
        const DISABLE_AUTOSENSE = 0x20;
        /// Data comes from the device.
        const DATA_IN = 0x40;
        /// Data goes to the device.
        const DATA_OUT = 0x80;
        /// Do not freeze the queue on errors.
        const NO_QUEUE_FREEZE = 0x100;
        /// The adapter may cache.
        const ADAPTER_CACHE_ENABLE = 0x200;
        /// The sense buffer is to be freed.
        const FREE_SENSE_BUFFER = 0x400;
        const _ = !0;
    }
}

open_values! {
    /// An adapter's result. Only the low 6 bits have names; see [`SrbStatus::AUTOSENSE_VALID`].
    pub struct SrbStatus(u8) {
        /// Not done yet.
        PENDING = 0x00,
        /// Done.
        SUCCESS = 0x01,
        /// Given up.
        ABORTED = 0x02,
        /// Could not be given up.
        ABORT_FAILED = 0x03,
        /// The device reports an error.
        ERROR = 0x04,
        /// Busy.
        BUSY = 0x05,
        /// Malformed.
        INVALID_REQUEST = 0x06,
        /// No such path.
        INVALID_PATH = 0x07,
        /// No device there.
        NO_DEVICE = 0x08,
        /// Took too long.
        TIMEOUT = 0x09,
        /// Nobody answered on the bus.
        SELECTION_TIMEOUT = 0x0a,
        /// The command took too long.
        COMMAND_TIMEOUT = 0x0b,
        /// The target rejected a message.
        MESSAGE_REJECTED = 0x0d,
        /// The bus was reset.
        BUS_RESET = 0x0e,
        /// Parity error.
        PARITY_ERROR = 0x0f,
        /// Sense data could not be fetched.
        REQUEST_SENSE_FAILED = 0x10,
        /// No adapter.
        NO_HBA = 0x11,
        /// More or less data than asked for.
        DATA_OVERRUN = 0x12,
        /// The target left the bus.
        UNEXPECTED_BUS_FREE = 0x13,
        /// Bus phases out of order.
        PHASE_SEQUENCE_FAILURE = 0x14,
        /// The block's length is wrong.
        BAD_SRB_LENGTH = 0x15,
        /// Flushed from a queue.
        REQUEST_FLUSHED = 0x16,
        /// No such unit.
        INVALID_LUN = 0x20,
        /// No such target.
        INVALID_TARGET = 0x21,
        /// No such function.
        BAD_FUNCTION = 0x22,
        /// Recovering from an error.
        ERROR_RECOVERY = 0x23,
        /// Powered off.
        NOT_POWERED = 0x24,
        /// The link is down.
        LINK_DOWN = 0x25,
    }
}

impl SrbStatus {
    /// Bit beside the status: the answer carries sense data.
    pub const AUTOSENSE_VALID: u8 = 0x80;
    /// Bit beside the status: the queue is frozen.
    pub const QUEUE_FROZEN: u8 = 0x40;

    /// The NTSTATUS of the packet that carries this result.
    pub const fn to_status(self) -> Status {
        match Self(self.0 & 0x3f) {
            Self::SUCCESS => Status::SUCCESS,
            Self::BUSY => Status::DEVICE_BUSY,
            Self::INVALID_LUN | Self::INVALID_TARGET | Self::NO_DEVICE | Self::NO_HBA => {
                Status::DEVICE_DOES_NOT_EXIST
            }
            Self::TIMEOUT | Self::COMMAND_TIMEOUT => Status::IO_TIMEOUT,
            Self::SELECTION_TIMEOUT => Status::DEVICE_NOT_CONNECTED,
            Self::BAD_FUNCTION | Self::BAD_SRB_LENGTH => Status::INVALID_DEVICE_REQUEST,
            Self::DATA_OVERRUN => Status::BUFFER_OVERFLOW,
            Self::REQUEST_FLUSHED => Status::UNSUCCESSFUL,
            Self::ABORTED => Status::CANCELLED,
            _ => Status::IO_DEVICE_ERROR,
        }
    }
}

open_values! {
    /// A SCSI device's result.
    pub struct ScsiStatus(u8) {
        /// Done.
        GOOD = 0x00,
        /// Failed: sense data say why.
        CHECK_CONDITION = 0x02,
        /// The condition asked about is met.
        CONDITION_MET = 0x04,
        /// Busy.
        BUSY = 0x08,
        /// Somebody else holds a reservation.
        RESERVATION_CONFLICT = 0x18,
        /// The queue is full.
        TASK_SET_FULL = 0x28,
        /// Something else must be cleared first.
        ACA_ACTIVE = 0x30,
        /// Another initiator gave the command up.
        TASK_ABORTED = 0x40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sense_never_exceeds_the_room_that_the_guest_gives() {
        let outcome = Outcome {
            srb_status: SrbStatus::INVALID_REQUEST,
            scsi_status: ScsiStatus::CHECK_CONDITION,
            transferred: 0,
            sense: Some(Sense::INVALID_OPCODE),
        };
        for (room, valid) in [(0, None), (8, Some(8)), (18, Some(18)), (20, Some(18)), (255, Some(18))] {
            let request = Srb { sense_length: room, ..Srb::default() };
            let answer = request.answer(&outcome);
            assert_eq!(answer.sense().map(<[u8]>::len), valid, "room {room}");
            assert_eq!(answer.srb_status(), SrbStatus::INVALID_REQUEST);
        }
    }

    #[test]
    fn a_command_length_beyond_its_field_is_refused() {
        let srb = Srb { cdb_length: 17, ..Srb::default() };
        assert_eq!(srb.cdb(), Err(CdbError::TooLong(17)));
        assert_eq!(srb.command(), Err(CdbError::TooLong(17)));
        assert_eq!(Srb { cdb_length: 16, ..srb }.cdb(), Ok([0; 16].as_slice()));
        assert_eq!(Srb { cdb_length: 0, ..srb }.cdb(), Ok([].as_slice()));
    }

    #[test]
    fn bits_beside_the_status_do_not_hide_it() {
        let answer = Srb { srb_status: 0xc4, ..Srb::default() };
        assert_eq!(answer.srb_status(), SrbStatus::ERROR);
    }

    #[test]
    fn an_answer_from_a_liar_reads_no_further_than_its_field() {
        let answer = Srb { srb_status: 0x84, sense_length: 255, ..Srb::default() };
        assert_eq!(answer.sense().map(<[u8]>::len), Some(20));
    }

    #[test]
    fn every_srb_status_but_success_is_a_failure_of_the_packet() {
        for status in 0..=0xff {
            let is_success = SrbStatus(status).to_status().is_success();
            assert_eq!(is_success, status & 0x3f == 1, "{status:#x}");
        }
    }
}
