//! Service providers of the partition bus.
//!
//! [`storage`] is a synthetic SCSI controller with disks behind it, [`network`] are NICs and the switch that they are
//! at. Providers know nothing of the clients that open them but what the protocol says.
#![forbid(unsafe_code)]

mod audience;
pub mod network;
pub mod storage;
