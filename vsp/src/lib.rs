//! Service providers of the partition bus.
//!
//! [`storage`] is a synthetic SCSI controller with disks behind it, [`network`] a virtual switch. Providers know nothing of the clients that open
//! them but what the protocol says.
#![forbid(unsafe_code)]

pub mod network;
pub mod storage;
