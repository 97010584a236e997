//! A partition that moves: from a root that is to end, or from a VMM that stops for a while, to a root that goes on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use vmbus_core::Guid;
use vmbus_core::server::{DeviceKey, Server, ServerConfig};
use vmbus_partition::RootEnd;

use super::partition::{Command, Resumed, Returned, key_of};
use super::{Inner, Root, lock};
use crate::saved::{RestoreError, SaveError, SavedPartition};

/// Keys of devices that this root does not have begin here.
const UNKNOWN_DEVICES: u64 = 1 << 63;

impl Root {
    /// Takes a partition off the bus so that it can be [restored](Self::restore): nothing is lost, and the guest notices
    /// nothing but a pause. Each open channel's session is asked for its state
    /// ([`Channel::is_saving`](crate::Channel::is_saving)); requests that were taken are answered first, those that
    /// were not stay in their rings. A session that takes longer than
    /// [`Quotas::grace`](crate::Quotas::grace) counts as one that cannot be saved.
    ///
    /// The caller keeps the partition's end of the link, whose memory, messages and signals live on there. What the
    /// guest gave and nobody has taken ([`TransferMode::Give`](crate::TransferMode)) does not.
    ///
    /// # Errors
    /// [`SaveError::NoPartition`], [`SaveError::TellsWrites`]: then nothing has happened. [`SaveError::Link`]: the
    /// partition is gone.
    pub async fn save(&self, partition: u32) -> Result<SavedPartition, SaveError> {
        let (reply, answer) = oneshot::channel();
        match lock(&self.inner.partitions).get(&partition) {
            Some(inbox) => _ = inbox.send(Command::Save(reply)),
            None => return Err(SaveError::NoPartition(partition)),
        }
        answer.await.unwrap_or(Err(SaveError::NoPartition(partition)))
    }

    /// Takes over a partition that was saved, with `end` as its link. Devices are known by their instance; those that
    /// this root does not have, or that cannot go on with their state, are rescinded, and offered again if they are
    /// there. Gives its number. Policy is asked whether it may attach, as for every other.
    ///
    /// # Errors
    /// A [`RestoreError`]: then nothing has happened.
    pub fn restore(&self, saved: SavedPartition, end: Arc<dyn RootEnd>) -> Result<u32, RestoreError> {
        let inner = &self.inner;
        if inner.closing.load(Ordering::Relaxed) {
            return Err(RestoreError::Closing);
        }
        let id = end.info().id;
        if lock(&inner.partitions).contains_key(&id) {
            return Err(RestoreError::Taken(id));
        }
        let resumed = inner.resumed(saved)?;
        inner.next_partition.fetch_max(id.saturating_add(1), Ordering::Relaxed);
        Ok(inner.attach_resumed(end, Some(Box::new(resumed)), None))
    }
}

impl Inner {
    /// What was saved, in this root's terms.
    fn resumed(&self, saved: SavedPartition) -> Result<Resumed, RestoreError> {
        let SavedPartition { mut server, devices, channels } = saved;
        let ids: HashMap<Guid, u64> =
            lock(&self.devices).iter().map(|(id, device)| (device.instance, id)).collect();
        let mut names = HashMap::new();
        let mut offered = Vec::new();
        for device in devices {
            let id = ids.get(&device.instance).copied();
            let unknown = DeviceKey(UNKNOWN_DEVICES | device.key.0);
            let key = id.map_or(unknown, |id| key_of(id, device.subchannel));
            if names.insert(device.key, key).is_some() {
                return Err(RestoreError::Bad("a device twice"));
            }
            let subchannel = device.subchannel;
            offered.extend(id.map(|id| Returned {
                key,
                id,
                subchannel,
                area: device.area,
                withdrawn: device.withdrawn,
            }));
        }
        let unknown = |key: DeviceKey| DeviceKey(UNKNOWN_DEVICES | key.0);
        server.rename_devices(|key| names.get(&key).copied().unwrap_or_else(|| unknown(key)));
        let config = ServerConfig { quotas: self.quotas.protocol, ..self.config.clone() };
        let server = Server::restore(config, server)?;
        Ok(Resumed { server, devices: offered, channels })
    }
}
