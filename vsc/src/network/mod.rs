//! The network client: a NIC's conversation, its frames, and how they are sent and received
//! (`docs/src/protocol/network.md`).
//!
//! [`conversation`] says what is said to the provider, without I/O; [`receive`] and [`transmit`] are frames in shared
//! memory; [`engine`] is one channel of both, without waits. [`Nic`] and [`NicQueue`] wait.

#[cfg(feature = "test-utils")]
pub mod bare;
mod conversation;
mod engine;
mod error;
mod known;
mod lane;
mod nic;
mod options;
mod queue;
mod receive;
#[cfg(feature = "smoltcp")]
mod stack;
mod tags;
mod transmit;

pub use engine::NicStatistics;
pub use error::NicError;
pub use known::Link;
pub use nic::Nic;
pub use options::{NicInfo, NicOptions, Offloads};
pub use queue::NicQueue;
pub use receive::{FrameView, ReceiveInfo, ReceivedFrame};
#[cfg(feature = "smoltcp")]
pub use stack::{NicDevice, Received, Sending};
pub use transmit::TransmitInfo;
