//! The storage client: a controller's conversation, its disks, and the commands that move their data.

mod controller;
mod disk;
mod error;
mod queue;
mod resuming;
mod spread;

pub use controller::Controller;
pub use disk::{Disk, DiskInfo};
pub use error::DiskError;
pub use queue::{DiskQueue, DiskRequest};
