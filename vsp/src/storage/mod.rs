//! A synthetic SCSI controller and the disks behind it.

pub mod backend;
mod scratch;
