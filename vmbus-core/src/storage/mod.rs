//! The storage protocol (VSTOR): its packets, the SCSI request block in them, and in [`scsi`] the commands and data
//! that cross it (`docs/src/protocol/storage.md`).
//!
//! Only bytes and their meaning live here. The conversation is in the service provider and client crates.

mod packet;
pub mod scsi;
mod srb;
mod version;

use crate::{Guid, guid};

pub use packet::{
    Event, Notice, OfferProperties, Operation, Packet, PacketError, PacketFlags, Properties, PropertyFlags,
    Request, WorldWideNames,
};
pub use srb::{Address, DataDirection, Outcome, ScsiStatus, Srb, SrbFlags, SrbStatus};
pub use version::Version;

/// Class of a synthetic SCSI controller.
pub const SCSI_CLASS: Guid = guid!("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
/// Class of the accelerator of an emulated IDE disk.
pub const IDE_CLASS: Guid = guid!("32412632-86cb-44a2-9b5c-50d1417354f5");
/// Class of a synthetic Fibre Channel adapter.
pub const FIBRE_CHANNEL_CLASS: Guid = guid!("2f9bcc4a-0069-4af3-b76b-6fd0be528cda");
