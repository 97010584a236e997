//! SCSI as disks on this bus use it: commands, sense data, and the data that commands return or take.
//!
//! Everything here is big-endian. A structure is read with `parse` or by its fields and written with `to_...` or
//! `emit`; what was read and written again is the same.

mod command;
mod sense;

pub use command::{BlockRange, Cdb, CdbError, CdbForm, Command, Opcode};
pub use sense::{Failure, FixedSense, Sense, SenseKey};
