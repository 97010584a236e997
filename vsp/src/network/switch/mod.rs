//! A virtual Ethernet switch that runs on its senders' threads.
//!
//! Whoever receives frames from the outside copies them once into a [`Batch`] of its own and hands that to its
//! [`Connection`]. The switch looks at the headers and hands each receiver its frames by [`Port::deliver`], on the same
//! thread; the receiver copies them once to where they go. There is no queue and no task in between, so there is
//! nothing that can grow: what a receiver has no room for is dropped there, at once, and counted with its reason.
//!
//! What a frame still needs (a checksum, a tag, to be cut into segments) travels beside it as [`Offload`]. A port says
//! by its [`Capabilities`] what it takes as it is, and the switch does the rest in software.

mod addresses;
mod batch;
mod checksum;
mod deliver;
mod forward;
pub(super) mod ip;
mod limit;
mod mac;
#[cfg(test)]
mod model;
mod offload;
mod policy;
mod port;
mod segment;
mod settings;
mod statistics;
#[expect(clippy::module_inception, reason = "the thing itself stands among its parts")]
mod switch;
mod tables;
mod vlan;
mod work;

pub use batch::{Batch, Frame, Frames, Full, Iter, MAX_BATCH_BYTES, MAX_BATCH_FRAMES, MAX_FRAME, Slot};
pub use limit::Rate;
pub use mac::{MacAddress, MacAddressError};
pub use offload::{Capabilities, Checksum, HeaderChecksum, IpVersion, Offload, Segmentation, Vlan};
pub use policy::{AskedPort, Occasion, PortPolicy};
pub use port::{Delivered, Port};
pub use settings::{
    Isolation, MOST_SENDERS, Mirror, Mirrored, Permission, PortSettings, Senders, SettingsFault,
};
pub use statistics::{Count, DropReason, Drops, PortStatistics};
pub use switch::{Address, Clock, ConnectError, Connection, PortId, PortState, Switch, SwitchBuilder};
pub use vlan::{VlanMode, VlanSet, VlanSetError};
