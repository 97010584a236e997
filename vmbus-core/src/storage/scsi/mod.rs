//! SCSI as disks on this bus use it: commands, sense data, and the data that commands return or take.
//!
//! Everything here is big-endian. A structure is read with `parse` or by its fields and written with `emit` or as the
//! bytes it is; what was read and written again is the same. An answer that the guest's allocation length has cut is
//! read as far as it goes.

mod capacity;
mod cdb;
mod command;
mod inquiry;
mod luns;
mod mode;
mod opcode;
mod reservation;
mod sense;
mod unmap;

pub use capacity::{Capacity10, Capacity16, LbaStatus};
pub use cdb::{BlockRange, Cdb, CdbError};
pub use command::Command;
pub use inquiry::{
    BlockCharacteristics, BlockLimits, BlockProvisioning, Designator, Identification, SerialNumber,
    StandardInquiry, SupportedPages, VitalHeader, VitalPage,
};
pub use luns::{LunListHeader, emit_luns, parse_luns};
pub use mode::{CachingPage, ModeParameters};
pub use opcode::{CdbForm, Opcode};
pub use reservation::{
    FullStatus, Registrant, RegistrantDescriptor, Reservation, ReservationCapabilities,
    ReservationDescriptor, ReservationKeys, ReservationKind, ReserveInAction, ReserveOutAction,
    ReserveOutParameters,
};
pub use sense::{Failure, FixedSense, Sense, SenseKey};
pub use unmap::UnmapDescriptor;
