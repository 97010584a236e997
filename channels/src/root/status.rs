//! What a root is doing, as a listing; and the way to ask a running root for it.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use vmbus_partition::query;

use super::{Command, Inner, lock};
use crate::quotas::Used;

/// Devices and partitions of a root at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Devices, in the order in which they were offered.
    pub devices: Vec<DeviceStatus>,
    /// How far the bounds of all partitions together are used.
    #[serde(default)]
    pub quotas: Vec<Used>,
    /// Partitions, in the order in which they attached.
    pub partitions: Vec<PartitionStatus>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// For people.
    pub name: String,
    /// Class GUID.
    pub class: String,
    /// Instance GUID.
    pub instance: String,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// The root's number for it.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Whether it speaks the attach extensions; a virtual machine of a plain VMM does not.
    pub extended: bool,
    /// The process at the other end of the socket.
    pub pid: Option<i32>,
    /// The protocol version, once agreed.
    pub version: Option<String>,
    /// Bytes of memory that it shares.
    pub memory: u64,
    /// Page lists that it makes the root hold.
    pub gpadls: usize,
    /// Pages in those.
    pub pages: usize,
    /// How far its bounds are used.
    pub quotas: Vec<Used>,
    /// How often it had to wait, as it caused more work than it may.
    pub pauses: u64,
    /// Open channels that it signals without a reason at present: those are looked at instead of waited for.
    pub storms: usize,
    /// Channels that it is shown.
    pub channels: Vec<ChannelStatus>,
}

/// One channel of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// Channel id, if it has one at present.
    pub relid: Option<u32>,
    /// Name of the device.
    pub device: String,
    /// Instance GUID of the device.
    pub instance: String,
    /// 0 for the primary channel.
    pub subchannel_index: u16,
    /// Its state, in the words of the specification.
    pub state: String,
}

impl Status {
    /// Asks the root that listens at `path`. Blocks for a few seconds at most.
    ///
    /// # Errors
    /// The system's: nobody listens, or not a root.
    pub fn of(path: impl AsRef<Path>) -> io::Result<Self> {
        let question = query::Question::default();
        serde_json::from_slice(&query::ask(path.as_ref(), &question)?).map_err(io::Error::other)
    }
}

impl Inner {
    pub(super) async fn status(&self) -> Status {
        let devices = lock(&self.devices)
            .iter()
            .map(|(_, device)| DeviceStatus {
                name: device.offer.name.clone(),
                class: device.offer.class.to_string(),
                instance: device.instance.to_string(),
            })
            .collect();
        let asked: Vec<_> = lock(&self.partitions)
            .values()
            .map(|inbox| {
                let (reply, answer) = oneshot::channel();
                let _ = inbox.send(Command::Status(reply));
                answer
            })
            .collect();
        let mut partitions = Vec::with_capacity(asked.len());
        for answer in asked {
            // One that ends while we ask is not there any more.
            partitions.extend(answer.await.ok());
        }
        Status { devices, quotas: self.door.used(), partitions }
    }
}
