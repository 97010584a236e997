//! Service clients of the partition bus.
//!
//! [`Disk`] is a guest's disk: reads, writes, flushes and discards, any number in flight, straight between the disk
//! and shared [`Buffer`](vmbus_channels::Buffer)s. [`DiskQueue`] is the same for a thread that polls.
#![forbid(unsafe_code)]

mod storage;

pub use storage::{Controller, Disk, DiskError, DiskInfo, DiskQueue, DiskRequest};
