//! What both ends of a partition bus must agree on.
//!
//! Here live GUIDs, versions, the wire structures of the bus and of each device protocol, page ranges, the
//! shared-memory trait, and the sans-IO state machines of server and client. Nothing in this crate touches a clock,
//! a file descriptor, a thread or a log: it is `no_std` and holds no unsafe code.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod client;
pub mod guid;
pub mod memory;
pub mod message;
pub mod network;
pub mod pages;
pub mod saved;
pub mod server;
pub mod status;
pub mod storage;
pub mod synic;
#[cfg(feature = "test-utils")]
pub mod trace;
pub mod version;
mod wire;

pub use guid::Guid;
pub use status::{HvStatus, Status};
pub use version::{FeatureFlags, Version};

/// Size in bytes of a page of guest memory, whatever the guest's own page size.
pub const PAGE_SIZE: usize = 4096;
