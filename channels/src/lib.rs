//! The partition bus at run time.
//!
//! A [`Root`] offers devices, each a [`Provider`]; partitions attach, see what their root lets them see, and open
//! channels. A [`Guest`] is the other end, for a process that joins a bus. Both ends of an open channel hold a
//! [`Channel`]: requests with a payload and memory of the guest go one way, completions the other, in any order and
//! any number. [`BytePipe`] and [`MessagePipe`] are channels for simpler needs, [`BlockingChannel`] is for threads
//! without a runtime.
//!
//! No device protocol is known here.
#![forbid(unsafe_code)]

mod areas;
mod block_on;
mod buffer;
mod channel;
mod error;
mod event;
mod flags;
mod guest;
pub mod hvsock;
mod interrupt_page;
mod lists;
mod monitor;
mod offer;
mod pace;
mod pipe;
pub mod policy;
mod provider;
mod quotas;
mod root;
mod saved;
mod sources;
mod spin;
#[cfg(feature = "test-utils")]
pub mod test_utils;
mod transfer;

pub use vmbus_core::Guid;
pub use vmbus_core::guid;
pub use vmbus_partition::{Credentials, GuestPages};

pub use buffer::{Buffer, BufferRange};
pub use channel::{
    Arrivals, BlockingChannel, Channel, Completions, Lent, Pending, Replay, Reply, Request, Tagged,
};
pub use error::{ChannelError, Error, Refusal};
pub use event::Event;
pub use guest::{Device, Guest, GuestBuilder, OfferedDevice, OpenOptions, Resume};
pub use hvsock::{HvLimits, HvListener, HvPeer, HvStream};
pub use lists::Borrowed;
pub use offer::{Framing, Offer};
pub use pipe::{BytePipe, MAX_MESSAGE, MessagePipe};
pub use policy::{AllowAll, DenyAll, PolicyAgent};
pub use provider::{Client, OpenRequest, Provider, Session};
pub use quotas::{BusQuotas, Quotas, Used};
pub use root::{
    Asked, ChannelStatus, DeviceHandle, DeviceStatus, MonitorPageSource, PartitionStatus, Root, RootBuilder,
    Status,
};
pub use saved::{RestoreError, SaveError, SavedPartition};
pub use spin::Spin;
pub use transfer::{Delivery, Parcel, TransferMode};
