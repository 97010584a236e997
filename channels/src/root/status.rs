//! What a root is doing, as a listing.

use tokio::sync::oneshot;
use vmbus_core::server::{ChannelState, Usage};
use vmbus_core::{Guid, Version};

use super::{Command, Inner, lock};
use crate::provider::Client;

/// Partitions and devices of a root at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Devices, in the order in which they were offered.
    pub devices: Vec<DeviceStatus>,
    /// Partitions, in the order in which they attached.
    pub partitions: Vec<PartitionStatus>,
}

/// One device.
#[derive(Clone, Debug)]
pub struct DeviceStatus {
    /// For people.
    pub name: String,
    /// Class.
    pub class: Guid,
    /// Instance.
    pub instance: Guid,
}

/// One partition.
#[derive(Clone, Debug)]
pub struct PartitionStatus {
    /// Who it is.
    pub client: Client,
    /// Whether it speaks the attach extensions; a virtual machine of a plain VMM does not.
    pub extended: bool,
    /// The protocol version, once agreed.
    pub version: Option<Version>,
    /// Bytes of memory it shares.
    pub memory: u64,
    /// What it makes the root hold.
    pub usage: Usage,
    /// Channels it is shown.
    pub channels: Vec<ChannelStatus>,
}

/// One channel of a partition.
#[derive(Clone, Debug)]
pub struct ChannelStatus {
    /// Channel id, if it has one at present.
    pub relid: Option<u32>,
    /// Name of the device.
    pub device: String,
    /// Instance of the device.
    pub instance: Guid,
    /// 0 for the primary channel.
    pub subchannel_index: u16,
    /// Its state.
    pub state: ChannelState,
}

impl Inner {
    pub(super) async fn status(&self) -> Status {
        let devices = lock(&self.devices)
            .iter()
            .map(|(_, device)| DeviceStatus {
                name: device.offer.name.clone(),
                class: device.offer.class,
                instance: device.instance,
            })
            .collect();
        let asked: Vec<_> = lock(&self.partitions)
            .values()
            .map(|attachment| {
                let (reply, answer) = oneshot::channel();
                let _ = attachment.commands.send(Command::Status(reply));
                answer
            })
            .collect();
        let mut partitions = Vec::with_capacity(asked.len());
        for answer in asked {
            // One that ends while we ask is not there any more.
            partitions.extend(answer.await.ok());
        }
        Status { devices, partitions }
    }
}
