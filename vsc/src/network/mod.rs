//! The network client: a NIC's conversation, its frames, and how they are sent and received
//! (`docs/src/protocol/network.md`).
//!
//! [`conversation`] says what is said to the provider, without I/O; [`receive`] and [`transmit`] are frames in shared
//! memory; [`engine`] is one channel of both, without waits. [`Nic`] and [`NicQueue`] wait.

mod conversation;
mod engine;
mod error;
mod known;
mod lane;
mod nic;
mod options;
mod queue;
mod receive;
mod tags;
mod transmit;

pub use engine::NicStatistics;
pub use error::NicError;
pub use known::Link;
pub use nic::Nic;
pub use options::{NicInfo, NicOptions, Offloads};
pub use queue::NicQueue;
pub use receive::{FrameView, ReceiveInfo, ReceivedFrame};
pub use transmit::TransmitInfo;
