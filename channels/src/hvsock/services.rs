//! Who listens for which service.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::mpsc;
use vmbus_core::Guid;

use super::{HvListener, HvPeer, HvStream};
use crate::error::Error;

/// A connection that waits to be accepted.
pub(crate) type Incoming = (HvStream, HvPeer);

/// The services of one end of a bus.
#[derive(Default)]
pub(crate) struct Services {
    /// `None` once the bus is gone.
    listening: Mutex<Option<Listening>>,
}

type Listening = HashMap<Guid, Service>;

/// One service.
#[derive(Clone)]
pub(crate) struct Service {
    /// Where connections go.
    pub(crate) listener: mpsc::Sender<Incoming>,
    /// The partition that serves in the end, if this end only passes connections on.
    pub(crate) to: Option<Arc<str>>,
}

impl Services {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { listening: Mutex::new(Some(HashMap::new())) })
    }

    /// Listens for `service`, with up to `backlog` connections waiting.
    pub(crate) fn listen(
        self: &Arc<Self>,
        service: Guid,
        backlog: usize,
        to: Option<Arc<str>>,
    ) -> Result<HvListener, Error> {
        let (listener, waiting) = mpsc::channel(backlog.max(1));
        let mut listening = self.lock();
        let Some(listening) = listening.as_mut() else { return Err(Error::Disconnected) };
        if listening.contains_key(&service) {
            return Err(Error::ServiceTaken(service));
        }
        listening.insert(service, Service { listener, to });
        Ok(HvListener::new(service, waiting, Arc::clone(self)))
    }

    /// Who listens for `service`, if anybody does.
    pub(crate) fn find(&self, service: Guid) -> Option<Service> {
        self.lock().as_ref()?.get(&service).cloned()
    }

    pub(super) fn stop_listening(&self, service: Guid) {
        if let Some(listening) = self.lock().as_mut() {
            listening.remove(&service);
        }
    }

    /// The bus is gone: listeners are told, and there are no new ones.
    pub(crate) fn end(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Listening>> {
        self.listening.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
