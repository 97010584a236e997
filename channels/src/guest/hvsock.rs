//! Stream sockets of a guest.

use tokio::sync::{mpsc, oneshot};
use vmbus_core::Guid;

use super::Guest;
use super::task::{Command, HvCommand};
use crate::error::Error;
use crate::hvsock::{self, HvListener, HvPeer, HvStream};

/// Connects that a guest has under way; hosts refuse more than so many.
pub(super) const CONNECTS: usize = 16;

impl Guest {
    /// Connects to a service of the root. With sixteen connects under way, others wait their turn. The stream closes
    /// when the guest leaves the bus. Losing the future gives the attempt up.
    ///
    /// # Errors
    /// [`Error::Refused`] if nobody accepts; [`Error::TimedOut`]; [`Error::TooOld`] if the agreed version has no stream
    /// sockets; [`Error::OutOfSharedMemory`]; [`Error::Disconnected`].
    pub async fn hvsock_connect(&self, service: Guid) -> Result<HvStream, Error> {
        let _turn = self.inner.connects.acquire().await.map_err(|_| Error::Disconnected)?;
        let endpoint = hvsock::endpoint();
        let (reply, answer) = oneshot::channel();
        let command = Command::Hvsock(HvCommand::Connect { service, endpoint, reply });
        self.inner.commands.send(command).map_err(|_| Error::Disconnected)?;
        let _wish = Wish { endpoint, commands: &self.inner.commands };
        let answer = tokio::time::timeout(self.inner.hvsock.patience, answer).await;
        let channel = answer
            .map_err(|_| Error::TimedOut("the root's answer to a connect"))?
            .map_err(|_| Error::Disconnected)??;
        Ok(HvStream::new(channel, HvPeer { partition: None, service, endpoint }, None))
    }

    /// Accepts what the root connects to `service`.
    ///
    /// # Errors
    /// [`Error::ServiceTaken`]; [`Error::Disconnected`].
    pub fn hvsock_listen(&self, service: Guid) -> Result<HvListener, Error> {
        self.inner.services.listen(service, self.inner.hvsock.backlog, None)
    }
}

/// A connect under way; without it nobody waits for the answer.
struct Wish<'a> {
    endpoint: Guid,
    commands: &'a mpsc::UnboundedSender<Command>,
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Hvsock(HvCommand::GiveUp { endpoint: self.endpoint }));
    }
}
