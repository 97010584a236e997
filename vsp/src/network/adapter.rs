//! A NIC as a device of the bus.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use vmbus_channels::{Client, Offer, OpenRequest, Provider, Refusal};
use vmbus_core::Guid;
use vmbus_core::network::CLASS;

use super::device::{Identity, Link};
use super::nic::Nic;
use super::nvsp::{Limits, Nvsp};
use super::saved::SavedSession;
use super::session::NetworkSession;
use super::switch::{MacAddress, PortSettings, PortStatistics, Switch};
use crate::audience::Audience;

/// The longest answer to a packet of the guest.
const COMPLETION_ROOM: usize = 40;

/// A NIC at a switch, to be given to `Root::offer`.
///
/// It is one guest's at a time: the first's that comes, until it leaves, without [`only_for`](Self::only_for) and
/// [`for_each_guest`](Self::for_each_guest). A port of the switch is there while a guest has it open.
#[derive(Debug)]
pub struct NetworkAdapter {
    identity: Identity,
    instance: Option<Guid>,
    limits: Limits,
    audience: Audience,
    switch: Switch,
    port: PortSettings,
    each: Option<EachGuest>,
    state: Arc<AdapterState>,
    /// What the channels of guests share that were restored here, as long as the primary ones are open, and how far those
    /// had come.
    restored: Mutex<HashMap<u32, (Weak<Nic>, Nvsp)>>,
}

/// What the NIC of a guest is, where each guest has one.
struct EachGuest(Box<WhatNic>);

type WhatNic = dyn Fn(&Client) -> (MacAddress, PortSettings) + Send + Sync;

impl fmt::Debug for EachGuest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("EachGuest")
    }
}

#[derive(Debug)]
struct AdapterState {
    link: watch::Sender<Link>,
    open: Mutex<Weak<Nic>>,
}

/// What can be changed of an adapter while it is offered.
#[derive(Clone, Debug)]
pub struct AdapterHandle {
    state: Arc<AdapterState>,
}

impl NetworkAdapter {
    /// A NIC with this address, called `name` in listings and at the switch.
    pub fn new(name: impl Into<String>, switch: &Switch, address: MacAddress) -> Self {
        let name = name.into();
        Self {
            port: PortSettings::new(name.clone()),
            identity: Identity { name, address },
            instance: None,
            limits: Limits::default(),
            audience: Audience::first_comer(),
            switch: switch.clone(),
            each: None,
            state: Arc::new(AdapterState {
                link: watch::Sender::new(Link::default()),
                open: Mutex::default(),
            }),
            restored: Mutex::default(),
        }
    }

    /// By what guests know it again. Without this the root makes an instance GUID.
    pub fn instance(mut self, instance: Guid) -> Self {
        self.instance = Some(instance);
        self
    }

    /// Versions, channels and sizes that it accepts.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = Limits { max_queues: limits.max_queues.max(1), ..limits };
        self
    }

    /// How the switch treats its port; as a plain one of the adapter's name without this.
    pub fn port(mut self, port: PortSettings) -> Self {
        self.port = port;
        self
    }

    /// The link as it is at first; connected, 10 Gbit/s without this.
    pub fn link(self, link: Link) -> Self {
        self.state.link.send_replace(link);
        self
    }

    /// Visible to the guest called `name` alone; to one at a time, should several be called so.
    pub fn only_for(mut self, name: impl Into<String>) -> Self {
        self.audience = Audience::named(name);
        self
    }

    /// Visible to all guests, at the same time: each has a NIC of its own, with the address and the port that `what` gives
    /// it. [`AdapterHandle::statistics`] is then that of the guest that came last.
    pub fn for_each_guest(
        mut self,
        what: impl Fn(&Client) -> (MacAddress, PortSettings) + Send + Sync + 'static,
    ) -> Self {
        self.audience = Audience::everyone();
        self.each = Some(EachGuest(Box::new(what)));
        self
    }

    /// To change it and to look at it while it is offered.
    pub fn handle(&self) -> AdapterHandle {
        AdapterHandle { state: Arc::clone(&self.state) }
    }

    fn connect(&self, client: &Client) -> Result<Arc<Nic>, Refusal> {
        let link = self.state.link.subscribe();
        let mut identity = self.identity.clone();
        let port = match &self.each {
            None => self.port.clone(),
            Some(EachGuest(what)) => {
                let (address, port) = what(client);
                identity.address = address;
                port
            }
        };
        let nic = Nic::connect(identity, self.limits, link, (&self.switch, port))?;
        *self.state.open.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&nic);
        Ok(nic)
    }
}

impl AdapterHandle {
    /// Plugs the cable in or out, or changes its speed; the guest is told.
    pub fn set_link(&self, link: Link) {
        self.state.link.send_if_modified(|now| std::mem::replace(now, link) != link);
    }

    /// The link.
    pub fn link(&self) -> Link {
        *self.state.link.borrow()
    }

    /// What went through the adapter's port since a guest has opened it; `None` while it is not open.
    pub fn statistics(&self) -> Option<PortStatistics> {
        let open = self.state.open.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        open.map(|nic| nic.connection.statistics())
    }
}

impl Provider for NetworkAdapter {
    type Session = NetworkSession;

    fn offer(&self) -> Offer {
        let offer = Offer::new(CLASS, &self.identity.name).completion_room(COMPLETION_ROOM);
        match self.instance {
            Some(instance) => offer.instance(instance),
            None => offer,
        }
    }

    fn visible_to(&self, client: &Client) -> bool {
        self.audience.admits(client)
    }

    fn left(&self, client: &Client) {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner).remove(&client.id);
        self.audience.left(client);
    }

    fn open(&self, client: &Client, open: &OpenRequest) -> Result<NetworkSession, Refusal> {
        Ok(NetworkSession::new(self.connect(client)?, open))
    }

    fn restore(&self, client: &Client, open: &OpenRequest, state: &[u8]) -> Result<NetworkSession, Refusal> {
        let none = || Refusal::new("the saved network session is none");
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        // The primary channel comes first, and with it what all of the guest's channels share.
        if open.subchannel_index == 0 {
            let saved = SavedSession::decode_whole(state).ok_or_else(none)?;
            let nic = self.connect(client)?;
            let session = NetworkSession::restored(Arc::clone(&nic), saved, open).ok_or_else(none)?;
            restored.insert(client.id, (Arc::downgrade(&nic), session.nvsp().clone()));
            return Ok(session);
        }
        let primary = || Refusal::new("the primary channel was not restored");
        let (nic, nvsp) = restored.get(&client.id).ok_or_else(primary)?;
        let nic = nic.upgrade().ok_or_else(primary)?;
        if open.subchannel_index > nvsp.sub_channels() {
            return Err(Refusal::new("the guest has no such sub-channel"));
        }
        // One that was offered and not open has nothing of its own.
        let saved = match state {
            [] => SavedSession::new(nvsp),
            state => SavedSession::decode_whole(state).ok_or_else(none)?,
        };
        NetworkSession::restored(nic, saved, open).ok_or_else(none)
    }
}
