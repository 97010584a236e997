//! NICs, and the switch that they are at.
//!
//! From the guest inwards: [`Nvsp`] is the conversation on a channel about versions, buffers and queues, [`Device`] is
//! what RNDIS messages ask and set, and frames go between the guest's buffers and a [`switch`], which carries them
//! between ports, whatever is behind them. Only the outermost layer knows channels.

mod adapter;
mod device;
mod memory;
mod nic;
mod nvsp;
mod objects;
mod packet_info;
mod receive;
mod rss;
mod saved;
mod sections;
mod session;
pub mod switch;
pub mod transmit;

pub use adapter::{AdapterHandle, NetworkAdapter};
pub use device::{Device, DeviceFault, Effect, Identity, Link, Stage};
pub use nvsp::{BufferName, Limits, Nvsp, NvspFault, State, Step};
pub use objects::{Counts, World};
pub use session::NetworkSession;
