//! Stream sockets of a root.

use tokio::sync::oneshot;
use vmbus_core::Guid;

use super::partition::{Command, HvCommand};
use super::{Root, lock};
use crate::error::Error;
use crate::hvsock::{HvListener, HvStream};

impl Root {
    /// Accepts what guests connect to `service`. The backlog is that of
    /// [`RootBuilder::hvsock`](super::RootBuilder::hvsock); what does not fit is refused.
    ///
    /// # Errors
    /// [`Error::ServiceTaken`]; [`Error::Disconnected`] while the root ends.
    pub fn hvsock_listen(&self, service: Guid) -> Result<HvListener, Error> {
        self.inner.services.listen(service, self.inner.hvsock.backlog, None)
    }

    /// Accepts what guests connect to `service` for guest `to`, to which the caller passes it on. Guests reach each
    /// other in no other way; the policy agent is asked about each connect, and told `to`.
    ///
    /// # Errors
    /// As [`hvsock_listen`](Self::hvsock_listen).
    pub fn hvsock_route(&self, service: Guid, to: &str) -> Result<HvListener, Error> {
        self.inner.services.listen(service, self.inner.hvsock.backlog, Some(to.into()))
    }

    /// [`hvsock_connect`](Self::hvsock_connect) to the guest that attached as `name`, the last of them if there are
    /// several.
    ///
    /// # Errors
    /// As there, and [`Error::NotAttached`].
    pub async fn hvsock_connect_to(&self, name: &str, service: Guid) -> Result<HvStream, Error> {
        let status = self.status().await;
        let named = status.partitions.iter().rfind(|partition| partition.name == name);
        let partition = named.ok_or_else(|| Error::NotAttached(name.to_owned()))?.id;
        self.hvsock_connect(partition, service).await
    }

    /// Connects to `service` of a partition. Losing the future gives the attempt up.
    ///
    /// # Errors
    /// [`Error::NoPartition`]; [`Error::Refused`] if the guest does not accept, or may have no more streams;
    /// [`Error::TimedOut`] if it does not answer; [`Error::TooOld`] if it agreed on a version without stream sockets;
    /// [`Error::Disconnected`].
    pub async fn hvsock_connect(&self, partition: u32, service: Guid) -> Result<HvStream, Error> {
        let (reply, answer) = oneshot::channel();
        let (_interested, lost) = oneshot::channel();
        {
            let partitions = lock(&self.inner.partitions);
            let inbox = partitions.get(&partition).ok_or(Error::NoPartition(partition))?;
            let command = Command::Hvsock(HvCommand::Connect { service, reply, lost });
            inbox.send(command).map_err(|_| Error::Disconnected)?;
        }
        answer.await.map_err(|_| Error::Disconnected)?
    }
}
