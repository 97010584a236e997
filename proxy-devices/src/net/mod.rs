//! Doors of a network: between a switch or a guest's NIC and the host's world.
//!
//! A [`TapPort`] is an interface of the host's kernel, a [`StreamPort`] a process such as `passt` that speaks with frames
//! on a stream socket, a [`HostPort`] a small computer that is built in, a [`LinkPort`] the cable to another switch, a
//! [`CapturePort`] a file of what goes through. [`Sink`] and [`Generator`] are for tests and measurements.

mod capture;
mod host;
mod link;
mod mailbox;
mod nic_door;
pub mod pcapng;
mod service;
mod status;
mod stream;
mod tap_port;
mod traffic;
mod vnet;
mod wake;

use std::io;

use vmbus_vsp::network::switch::ConnectError;

pub use self::capture::{CaptureOptions, CapturePort};
pub use self::host::{DOMAIN, HostOptions, HostPort};
pub use self::link::{LinkEnds, LinkPort};
pub use self::nic_door::{NicDoor, NicDoorError};
pub use self::service::{CaptureError, CaptureRequest, answer_for, capture};
pub use self::status::{AddressStatus, Counters, NetStatus, PortStatus, SwitchStatus};
pub use self::stream::StreamPort;
pub use self::tap_port::TapPort;
pub use self::traffic::{Generator, Sink, Traffic};
pub use vmbus_partition::Tap;

/// Why something is not connected to a switch.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The switch does not want it.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The system does not give what it takes: threads, descriptors, addresses, paths.
    #[error(transparent)]
    System(#[from] io::Error),
}
