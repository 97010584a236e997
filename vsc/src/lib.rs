//! Service clients of the partition bus.
//!
//! [`Disk`] is a guest's disk: reads, writes, flushes and discards, any number in flight, straight between the disk
//! and shared [`Buffer`](vmbus_channels::Buffer)s. [`DiskQueue`] is the same for a thread that polls.
//!
//! [`Nic`] is a guest's network card: frames in batches both ways, received where the provider has put them.
//! [`NicQueue`] is one of its queues for a thread; with the feature `smoltcp`, `NicDevice` is that as a stack's device.
#![forbid(unsafe_code)]

/// A network client without a bus.
#[cfg(feature = "test-utils")]
pub use network::bare;

mod network;
mod storage;

pub use network::{
    FrameView, Link, Nic, NicError, NicInfo, NicOptions, NicQueue, NicStatistics, Offloads, ReceiveInfo,
    ReceivedFrame, TransmitInfo,
};
#[cfg(feature = "smoltcp")]
pub use network::{NicDevice, Received, Sending};
pub use storage::{Controller, Disk, DiskError, DiskInfo, DiskQueue, DiskRequest};
