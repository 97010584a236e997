//! Stream sockets of a guest: its own connects, and the root's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};
use vmbus_core::client::{ConnectRequest, Failure, OfferInfo};
use vmbus_core::message::{HvsockOffer, OfferFlags};
use vmbus_core::{Guid, Version};

use super::super::{OfferedDevice, OpenOptions};
use super::Task;
use crate::channel::Channel;
use crate::error::{Error, Refusal};
use crate::hvsock::{self, HvLimits, HvPeer, HvStream, Services};

/// What handles of the guest want of its stream sockets.
pub(in super::super) enum HvCommand {
    Connect {
        service: Guid,
        endpoint: Guid,
        reply: Reply,
    },
    /// Nobody waits for this connect any more.
    GiveUp {
        endpoint: Guid,
    },
}

type Reply = oneshot::Sender<Result<Channel, Error>>;

/// The stream sockets of one guest.
pub(in super::super) struct Hvsock {
    services: Arc<Services>,
    /// Our own connects that are not answered yet, by endpoint.
    connecting: HashMap<Guid, Reply>,
    /// Channels that are connections.
    relids: HashSet<u32>,
    /// Streams that the root may make us have.
    streams: Arc<Semaphore>,
    ring_pages: usize,
}

impl Hvsock {
    pub(in super::super) fn new(services: Arc<Services>, limits: &HvLimits, ring_pages: usize) -> Self {
        Self {
            services,
            connecting: HashMap::new(),
            relids: HashSet::new(),
            streams: Arc::new(Semaphore::new(limits.streams.min(Semaphore::MAX_PERMITS))),
            ring_pages,
        }
    }

    /// Whether the channel carries a stream.
    pub(super) fn is_connection(&self, relid: u32) -> bool {
        self.relids.contains(&relid)
    }

    pub(super) fn forget(&mut self, relid: u32) {
        self.relids.remove(&relid);
    }

    /// The root is gone, and connections with it.
    pub(super) fn forget_all(&mut self) {
        self.connecting.clear();
        self.relids.clear();
    }
}

impl Drop for Hvsock {
    fn drop(&mut self) {
        self.services.end();
    }
}

/// Whether an offer stands for a connection and not for a device.
pub(super) fn is_connection(offer: &OfferInfo) -> bool {
    offer.flags.contains(OfferFlags::TLNPI_PROVIDER)
}

impl Task {
    pub(super) fn hvsock_command(&mut self, command: HvCommand) {
        match command {
            HvCommand::Connect { service, endpoint, reply } => self.connect_root(service, endpoint, reply),
            HvCommand::GiveUp { endpoint } => _ = self.hvsock.connecting.remove(&endpoint),
        }
    }

    fn connect_root(&mut self, service: Guid, endpoint: Guid, reply: Reply) {
        let request = ConnectRequest { endpoint, service, silo: Guid::ZERO };
        let Err(_) = self.client.connect_service(request) else {
            self.hvsock.connecting.insert(endpoint, reply);
            return;
        };
        let agreed = self.client.connection().map(|connection| connection.version);
        let error = match agreed {
            Some(agreed) if agreed < Version::Win10 => {
                Error::TooOld { what: "stream sockets", needs: Version::Win10, agreed }
            }
            Some(_) | None => Error::Disconnected,
        };
        let _ = reply.send(Err(error));
    }

    pub(super) fn connect_refused(&mut self, request: &ConnectRequest, failure: Failure) {
        let Some(reply) = self.hvsock.connecting.remove(&request.endpoint) else { return };
        let error = match failure {
            Failure::Refused(status) | Failure::Denied(status) => {
                let reason = format!("connecting to hvsock {}: {status}", hvsock::show(request.service));
                Error::Refused(Refusal { status, reason })
            }
            Failure::Rescinded => Error::Rescinded,
            Failure::Cancelled | Failure::Disconnected => Error::Disconnected,
        };
        let _ = reply.send(Err(error));
    }

    /// A connection is there to be opened: the answer to our connect, or the root's connect.
    pub(super) fn connection_offered(&mut self, offer: &OfferInfo) {
        let reply = match offer.user_defined.start::<HvsockOffer>().guest_accepts {
            0 => self.hvsock.connecting.remove(&offer.instance).filter(|reply| !reply.is_closed()),
            _ => self.accept(offer.class, offer.instance),
        };
        let Some(reply) = reply else { return self.decline(offer.relid) };
        let options = OpenOptions::new().ring_pages(self.hvsock.ring_pages);
        self.hvsock.relids.insert(offer.relid);
        if let Err((error, reply)) = self.begin_open(OfferedDevice::of(offer), options, reply) {
            let _ = reply.send(Err(error));
            self.decline(offer.relid);
        }
    }

    /// Where the channel goes that the root's connect becomes, if somebody listens and may have it.
    fn accept(&self, service: Guid, endpoint: Guid) -> Option<Reply> {
        let place = self.hvsock.services.find(service)?.listener.try_reserve_owned().ok()?;
        let counted = Arc::clone(&self.hvsock.streams).try_acquire_owned().ok()?;
        let peer = HvPeer { partition: None, service, endpoint };
        let (reply, opened) = oneshot::channel();
        tokio::spawn(async move {
            if let Ok(Ok(channel)) = opened.await {
                place.send((HvStream::new(channel, peer.clone(), Some(counted)), peer));
            }
        });
        Some(reply)
    }

    /// Says that we do not want a connection.
    fn decline(&mut self, relid: u32) {
        self.hvsock.forget(relid);
        self.connections.remove(&relid);
        let _ = self.client.release(relid);
    }
}
