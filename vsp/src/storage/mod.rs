//! A synthetic SCSI controller and the disks behind it.
//!
//! From the guest inwards: [`Vstor`] is the conversation on a channel, the target finds the disk that an address
//! means, [`Lun`] does what a command says, a [`Backend`] holds the bytes. Only the outermost layer knows channels.

mod backend;
mod controller;
mod data;
mod in_flight;
mod lun;
mod nexuses;
mod saved;
mod scratch;
mod session;
mod target;
mod vstor;

pub use backend::{
    Access, Backend, Durability, Geometry, Identity, Memory, OpenError, RawFile, RawFileOptions, WriteCache,
};
pub use controller::StorageController;
pub use data::Data;
pub use lun::{Execution, Lun, LunError, Nexus};
pub use session::StorageSession;
pub use target::{Changes, Target, Units};
pub use vstor::{Limits, Reply, ResetScope, State, Step, Vstor, VstorFault};
