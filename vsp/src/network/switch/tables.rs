//! Who is connected, and which station is behind whom: what all senders look at and few change.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::addresses::{AddressLimits, Addresses, Station};
use super::limit::Bucket;
use super::port::Port;
use super::settings::{Mirror, PortSettings, Senders};
use super::statistics::Counters;
use super::switch::{ConnectError, PortId, PortState};
use super::vlan::VlanMode;

/// Who is connected, and which station is behind whom.
pub(super) struct Tables {
    /// Never changed but replaced, so that a sender takes it along out of the lock.
    pub(super) ports: Arc<Ports>,
    pub(super) addresses: Addresses,
}

/// All ports at one moment.
#[derive(Clone, Default)]
pub(super) struct Ports {
    /// By slot.
    pub(super) members: Vec<Option<Member>>,
    /// Slots of those that get what others mirror.
    pub(super) mirrors: Vec<usize>,
}

impl Ports {
    pub(super) fn member(&self, slot: usize) -> Option<&Member> {
        self.members.get(slot)?.as_ref()
    }

    pub(super) fn find(&self, id: PortId) -> Option<&Member> {
        self.members.iter().flatten().find(|member| member.link.id == id)
    }

    /// Where a new port goes.
    pub(super) fn free_slot(&self) -> usize {
        self.members.iter().position(Option::is_none).unwrap_or(self.members.len())
    }
}

impl Tables {
    pub(super) fn new(limits: AddressLimits) -> Self {
        Self { ports: Arc::default(), addresses: Addresses::new(limits) }
    }

    /// Treats a port so from now on: one that is new, in a [free slot](Ports::free_slot), or one that is here already.
    pub(super) fn admit(&mut self, link: &Arc<Link>, settings: PortSettings) -> Result<(), ConnectError> {
        if let Senders::Only(addresses) = &settings.senders {
            for &address in addresses {
                if let Some(owner) = self.addresses.owner(address).filter(|owner| *owner != link.slot)
                    && let Some(owner) = self.ports.member(owner)
                {
                    return Err(ConnectError::Address { address, port: owner.link.id });
                }
            }
        }
        self.put(link.slot, Some(Member { link: Arc::clone(link), settings: Arc::new(settings) }));
        Ok(())
    }

    /// Lets a port show its frames to others, or those of others to it, and changes nothing else about it.
    pub(super) fn mirror(&mut self, id: PortId, mirror: Mirror) -> Result<(), ConnectError> {
        let before = self.ports.find(id).cloned().ok_or(ConnectError::Gone(id))?;
        let settings = PortSettings { mirror, ..PortSettings::clone(&before.settings) };
        let after = Member { link: Arc::clone(&before.link), settings: Arc::new(settings) };
        // Nobody is behind a destination.
        if before.is_mirror() || after.is_mirror() {
            self.put(before.link.slot, Some(after));
        } else {
            self.replace(before.link.slot, Some(after));
        }
        Ok(())
    }

    /// Forgets a port, unless that has happened.
    pub(super) fn dismiss(&mut self, link: &Arc<Link>) {
        if self.member_of(link).is_some() {
            self.put(link.slot, None);
        }
    }

    /// Writes down who has sent from behind a port.
    pub(super) fn learn(&mut self, link: &Arc<Link>, stations: impl Iterator<Item = Station>, now: u64) {
        // The port may have been disconnected since its batch was sorted, and its slot be another's.
        let Some(member) = self.member_of(link) else { return };
        let most = member.settings.addresses;
        stations.for_each(|station| self.addresses.learn(station, link.slot, most, now));
    }

    /// Puts a port where another, or itself as it was treated before, or nobody has been.
    fn put(&mut self, slot: usize, member: Option<Member>) {
        self.addresses.forget_port(slot);
        if let Some(member) = &member
            && let Senders::Only(addresses) = &member.settings.senders
        {
            let vlan = match member.settings.vlan {
                VlanMode::Access(vlan) if !member.is_mirror() => Some(vlan),
                VlanMode::Access(_) | VlanMode::Trunk { .. } => None,
            };
            addresses.iter().for_each(|&address| self.addresses.own(address, vlan, slot));
        }
        self.replace(slot, member);
    }

    /// The same, but for those behind the port.
    fn replace(&mut self, slot: usize, member: Option<Member>) {
        let mut ports = Ports::clone(&self.ports);
        if slot >= ports.members.len() {
            ports.members.resize(slot + 1, None);
        }
        ports.members[slot] = member;
        let mirrors = ports.members.iter().flatten().filter(|member| member.is_mirror());
        ports.mirrors = mirrors.map(|member| member.link.slot).collect();
        self.ports = Arc::new(ports);
    }

    /// The port of a connection, unless it is disconnected: another may have its slot by now.
    pub(super) fn member_of(&self, link: &Arc<Link>) -> Option<&Member> {
        self.ports.member(link.slot).filter(|member| Arc::ptr_eq(&member.link, link))
    }
}

/// A port as it is treated at present.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) link: Arc<Link>,
    pub(super) settings: Arc<PortSettings>,
}

impl Member {
    /// Whether it gets what others mirror, and nothing else.
    pub(super) fn is_mirror(&self) -> bool {
        match self.settings.mirror {
            Mirror::Destination => true,
            Mirror::Off | Mirror::Source(_) => false,
        }
    }

    pub(super) fn state(&self) -> PortState {
        PortState {
            id: self.link.id,
            settings: PortSettings::clone(&self.settings),
            statistics: self.link.counters.read(),
        }
    }
}

/// A port, from when it was connected to when the last sender has let go of it.
pub(super) struct Link {
    pub(super) id: PortId,
    pub(super) slot: usize,
    pub(super) port: Box<dyn Port>,
    pub(super) closed: AtomicBool,
    pub(super) counters: Counters,
    buckets: Buckets,
    /// Where its counts go when it is no more.
    departed: Arc<Counters>,
}

/// What may pass at the moment, where there are limits. Each is locked for one batch at a time.
#[derive(Default)]
struct Buckets {
    flood: Mutex<Bucket>,
    send: Mutex<Bucket>,
    receive: Mutex<Bucket>,
}

impl Link {
    pub(super) fn new(id: PortId, slot: usize, port: impl Port, departed: Arc<Counters>) -> Arc<Self> {
        let closed = AtomicBool::new(false);
        let (counters, buckets) = (Counters::default(), Buckets::default());
        Arc::new(Self { id, slot, port: Box::new(port), closed, counters, buckets, departed })
    }

    pub(super) fn flood_bucket(&self) -> MutexGuard<'_, Bucket> {
        self.buckets.flood.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn send_bucket(&self) -> MutexGuard<'_, Bucket> {
        self.buckets.send.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn receive_bucket(&self) -> MutexGuard<'_, Bucket> {
        self.buckets.receive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.departed.add(&self.counters.read());
    }
}
