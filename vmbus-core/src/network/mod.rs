//! The network protocol (`docs/src/protocol/network.md`): NVSP between the drivers, RNDIS inside of it, and the NDIS
//! structures that RNDIS queries and settings carry.
//!
//! Plain structures with symmetrical reading and writing; who may say what, and when, is for provider and client.

pub mod ndis;
pub mod nvsp;
mod oid;
mod packet_info;
pub mod rndis;
mod version;

pub use oid::Oid;
pub use packet_info::{
    InfoError, InfoType, LargeSend, PacketInfo, PacketInfoList, PacketInfoWriter, ReceiveChecksum,
    RscFragment, TransmitChecksum, Vlan, Way,
};
pub use version::Version;

use crate::Guid;
use crate::guid;

/// Class of network devices.
pub const CLASS: Guid = guid!("f8615163-df3e-46c5-913f-f2d2f965ed0e");
