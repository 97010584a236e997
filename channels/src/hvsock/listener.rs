//! Accepting connections to a service.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use vmbus_core::Guid;

use super::services::{Incoming, Services};
use super::{HvPeer, HvStream};
use crate::error::Error;

/// Accepts connections to one service, as a `UnixListener` does at a path. Dropping it refuses those that wait.
pub struct HvListener {
    service: Guid,
    waiting: mpsc::Receiver<Incoming>,
    services: Arc<Services>,
}

impl HvListener {
    pub(super) fn new(service: Guid, waiting: mpsc::Receiver<Incoming>, services: Arc<Services>) -> Self {
        Self { service, waiting, services }
    }

    /// The service.
    pub fn service(&self) -> Guid {
        self.service
    }

    /// The next connection, and who made it. Losing the future loses no connection.
    ///
    /// # Errors
    /// [`Error::Disconnected`]: the bus is gone.
    pub async fn accept(&mut self) -> Result<(HvStream, HvPeer), Error> {
        self.waiting.recv().await.ok_or(Error::Disconnected)
    }

    /// [`accept`](Self::accept) for who polls.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<Result<(HvStream, HvPeer), Error>> {
        self.waiting.poll_recv(context).map(|incoming| incoming.ok_or(Error::Disconnected))
    }
}

impl Drop for HvListener {
    fn drop(&mut self) {
        self.services.stop_listening(self.service);
    }
}

impl fmt::Debug for HvListener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HvListener").field("service", &self.service).finish_non_exhaustive()
    }
}
