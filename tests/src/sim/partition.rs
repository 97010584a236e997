//! The root's end of one guest: the server, what its devices use, and what must hold of both.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use vmbus_core::message::{OfferFlags, Payload};
use vmbus_core::server::{
    ChannelState, DeviceKey, Fault, OfferParams, Open, Quota, Quotas, Server, ServerConfig, ServerInput,
    Usage,
};
use vmbus_core::{Guid, Version};

use super::memory::Memory;
use super::rings::Device;
use super::script::{Bounds, Channel, Decides, GuestSetup, Tick};
use super::world::{Breach, Held};

/// The class of all model devices.
const CLASS: Guid = Guid::from_wire([0xd1; 16]);
/// Messages that a root keeps for itself to read; the next one is refused, and posted again.
const MOST_UNREAD: usize = 12;

/// What a guest may hold of each where its bounds are tight.
const TIGHT: Quotas = Quotas {
    channels: 4,
    half_built_gpadls: 1,
    half_built_words: 48,
    gpadls: 5,
    pages: 80,
    questions: 3,
    connects: 1,
};

/// One open channel of a device.
#[derive(Debug)]
pub(super) struct Session {
    /// Never used twice.
    pub(super) name: u64,
    pub(super) key: DeviceKey,
    pub(super) open: Open,
    /// The block of the guest's memory that holds the rings.
    pub(super) pfn: u64,
    /// None while it opens.
    pub(super) device: Option<Device>,
    pub(super) is_closing: bool,
    /// Its server was restored and has not spoken of it yet.
    pub(super) is_lost: bool,
    pub(super) vp: u32,
}

/// A page list that a device may use.
#[derive(Debug)]
pub(super) struct List {
    device: DeviceKey,
    pub(super) pfn: u64,
    is_released: bool,
}

#[derive(Debug)]
pub(super) struct Partition {
    /// Whose it is, or was.
    pub(super) guest: usize,
    pub(super) server: Server,
    pub(super) config: ServerConfig,
    pub(super) memory: Rc<RefCell<Memory>>,
    pub(super) policy: Decides,
    /// Posted and not yet read.
    pub(super) to_root: VecDeque<(u32, Payload)>,
    pub(super) to_guest: VecDeque<Payload>,
    /// When the last message of each direction arrives.
    pub(super) last_to_root: Tick,
    pub(super) last_to_guest: Tick,
    pub(super) sessions: BTreeMap<u32, Session>,
    pub(super) lists: BTreeMap<(u32, u32), List>,
    /// Doorbells that were rung and not heard, by connection.
    pub(super) doorbells: BTreeSet<u32>,
    /// Answers that devices and policy owe.
    pub(super) owed: usize,
    /// The guest has died and the server was told.
    pub(super) is_orphaned: bool,
    /// Devices that the server knows.
    known: BTreeSet<DeviceKey>,
    /// Those of them that are offered and not taken back.
    offered: BTreeSet<DeviceKey>,
    /// States of the channels at the last look.
    pub(super) states: Vec<(DeviceKey, ChannelState)>,
    quotas: Quotas,
    /// A page list was cut off by a quota: the rest of it means nothing to the server.
    over_quota: bool,
    /// The root is of a time when connection 4 did not exist.
    pub(super) lacks_multi_client: bool,
}

impl Partition {
    pub(super) fn new(guest: usize, setup: &GuestSetup, memory: Rc<RefCell<Memory>>) -> Self {
        let quotas = match setup.quotas {
            Bounds::Wide => Quotas::default(),
            Bounds::Tight => TIGHT,
        };
        let config =
            ServerConfig { versions: Version::OLDEST..=setup.root, quotas, ..ServerConfig::default() };
        Self {
            guest,
            server: Server::new(config.clone()),
            config,
            memory,
            policy: setup.policy,
            to_root: VecDeque::new(),
            to_guest: VecDeque::new(),
            last_to_root: 0,
            last_to_guest: 0,
            sessions: BTreeMap::new(),
            lists: BTreeMap::new(),
            doorbells: BTreeSet::new(),
            owed: 0,
            is_orphaned: false,
            known: BTreeSet::new(),
            offered: BTreeSet::new(),
            states: Vec::new(),
            quotas,
            over_quota: false,
            lacks_multi_client: setup.root < Version::Win10Rs3_1,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.to_root.len() >= MOST_UNREAD
    }

    /// Offers a channel; its answers are for the caller to take.
    pub(super) fn offer(&mut self, key: DeviceKey, channel: Channel) {
        if self.offered.insert(key) {
            self.known.insert(key);
            self.server.handle(ServerInput::Offer { device: key, offer: offer(channel) });
        }
    }

    /// Takes a channel back; whether it was offered.
    pub(super) fn rescind(&mut self, key: DeviceKey) -> bool {
        let offered = self.offered.remove(&key);
        if offered {
            self.server.handle(ServerInput::Rescind { device: key });
        }
        offered
    }

    /// A device is lost, and its channel is rescinded by whoever restores the server.
    pub(super) fn forget_offer(&mut self, key: DeviceKey) {
        self.offered.remove(&key);
    }

    /// The root dies: what it used is not in use any more.
    pub(super) fn vanish(&mut self) -> Held {
        for list in std::mem::take(&mut self.lists).into_values() {
            self.memory.borrow_mut().unmap(list.pfn).map_err(|what| Breach("pages", what))?;
        }
        Ok(())
    }

    // What must hold of the server's actions.

    pub(super) fn session_begins(&mut self, relid: u32, key: DeviceKey, open: &Open) -> Result<u64, Breach> {
        let wrong = |what: &str| Err(Breach("open", format!("channel {relid} is opened {what}")));
        if !self.known.contains(&key) {
            return wrong("of a device that was not offered");
        }
        if self.sessions.contains_key(&relid) {
            return wrong("twice");
        }
        match self.lists.get(&(relid, open.ring_gpadl)) {
            Some(list) if list.device == key && !list.is_released => Ok(list.pfn),
            Some(_) => wrong("on rings of another device or that were asked back"),
            None => wrong("without rings"),
        }
    }

    /// A restored server goes on with a channel as it was.
    pub(super) fn session_goes_on(&mut self, relid: u32, key: DeviceKey, open: &Open) -> Held {
        let wrong = |what: &str| Err(Breach("restore", format!("channel {relid} {what}")));
        let Some(session) = self.sessions.get_mut(&relid).filter(|session| session.device.is_some()) else {
            return wrong("was not open");
        };
        let before = (session.key, session.open.open_id, session.open.event_flag, session.open.connection_id);
        if before != (key, open.open_id, open.event_flag, open.connection_id) || session.vp != open.target_vp
        {
            return wrong("is not as it was");
        }
        if !self.lists.contains_key(&(relid, open.ring_gpadl)) {
            return wrong("has lost its rings");
        }
        session.is_lost = false;
        Ok(())
    }

    pub(super) fn session_ends(&mut self, relid: u32) -> Held {
        match self.sessions.get_mut(&relid) {
            Some(session) if session.device.is_some() && !session.is_closing => {
                session.is_closing = true;
                session.is_lost = false;
                Ok(())
            }
            Some(_) => {
                Err(Breach("close", format!("channel {relid} is closed twice, or before it has opened")))
            }
            None => Err(Breach("close", format!("channel {relid} is closed and not open"))),
        }
    }

    pub(super) fn list_begins(&mut self, relid: u32, gpadl: u32, device: DeviceKey, pfn: u64) -> Held {
        let list = List { device, pfn, is_released: false };
        if !self.known.contains(&device) || self.lists.insert((relid, gpadl), list).is_some() {
            return Err(Breach(
                "page list",
                format!("list {gpadl} of channel {relid} came twice, or to nobody"),
            ));
        }
        self.memory.borrow_mut().map(pfn).map_err(|what| Breach("pages", what))
    }

    pub(super) fn list_ends(&mut self, relid: u32, gpadl: u32) -> Held {
        let rings = self.sessions.get(&relid).is_some_and(|session| session.open.ring_gpadl == gpadl);
        match self.lists.get_mut(&(relid, gpadl)) {
            Some(list) if !list.is_released && !rings => {
                list.is_released = true;
                Ok(())
            }
            Some(_) if rings => {
                Err(Breach("page list", format!("the rings {gpadl} of open channel {relid} are taken away")))
            }
            Some(_) | None => Err(Breach(
                "page list",
                format!("list {gpadl} of channel {relid} is asked back and not there"),
            )),
        }
    }

    pub(super) fn device_ends(&mut self, key: DeviceKey) -> Held {
        let used = self.lists.values().any(|list| list.device == key);
        // A sub-channel goes with its primary channel, unasked.
        let offered = self.offered.remove(&key) && key.0 & 0xff == 0;
        if !self.known.remove(&key) || offered || used {
            return Err(Breach(
                "rescind",
                format!("device {key:?} is released while it is offered or in use"),
            ));
        }
        Ok(())
    }

    pub(super) fn connection_ends(&mut self) -> Held {
        // The contact of the next connection may be under question already.
        let usage = Usage { questions: 0, ..self.server.usage() };
        if self.lists.is_empty() && self.sessions.is_empty() && usage == Usage::default() {
            return Ok(());
        }
        let left = (self.lists.keys(), self.sessions.keys(), usage);
        Err(Breach("quota", format!("disconnected before all was let go of: {left:?}")))
    }

    /// A guest that follows the rules is blamed for nothing but that it wants too much.
    pub(super) fn may_blame(&mut self, fault: &Fault) -> Held {
        match fault {
            Fault::OverQuota { quota, .. } => {
                let tight = matches!(quota, Quota::HalfBuiltGpadls | Quota::HalfBuiltWords | Quota::Gpadls);
                self.over_quota |= tight;
                if self.quotas == TIGHT {
                    return Ok(());
                }
            }
            Fault::UnknownGpadl { message: "GPADL_BODY", .. } if self.over_quota => return Ok(()),
            Fault::BadGpadl { error: vmbus_core::pages::GpadlError::OverQuota { .. }, .. } => {
                self.over_quota = true;
                if self.quotas == TIGHT {
                    return Ok(());
                }
            }
            _ => {}
        }
        Err(Breach("blame", format!("the server blames somebody: {fault}")))
    }

    /// What must hold after each step.
    pub(super) fn assert_bounded(&self) -> Held {
        let (usage, quotas) = (self.server.usage(), &self.quotas);
        let pairs = [
            (usage.channels, quotas.channels, "channels"),
            (usage.half_built_gpadls, quotas.half_built_gpadls, "half-built page lists"),
            (usage.half_built_words, quotas.half_built_words, "words of half-built page lists"),
            (usage.gpadls, quotas.gpadls, "page lists"),
            (usage.pages, quotas.pages, "pages"),
            (usage.questions, quotas.questions, "questions"),
            (usage.connects, quotas.connects, "connects"),
        ];
        if let Some((used, limit, what)) = pairs.into_iter().find(|(used, limit, _)| used > limit) {
            return Err(Breach("quota", format!("{used} {what} where {limit} are allowed")));
        }
        if usage.gpadls < self.lists.len() {
            let what = format!("{} page lists are in use and {} counted", self.lists.len(), usage.gpadls);
            return Err(Breach("quota", what));
        }
        Ok(())
    }

    /// Whether nothing is under way to or from this end.
    pub(super) fn is_quiet(&self) -> bool {
        self.owed == 0 && self.to_root.is_empty() && self.to_guest.is_empty()
    }

    pub(super) fn assert_nothing_waits(&self) -> Held {
        if self.is_orphaned || !self.is_quiet() || !self.doorbells.is_empty() {
            let what = format!(
                "guest {}'s partition: orphaned {}, {} answers owed, {} and {} messages, doorbells {:?}",
                self.guest,
                self.is_orphaned,
                self.owed,
                self.to_root.len(),
                self.to_guest.len(),
                self.doorbells
            );
            return Err(Breach("rest", what));
        }
        Ok(())
    }

    pub(super) fn assert_nothing_is_left(&self) -> Held {
        self.assert_nothing_waits()?;
        let channels: Vec<_> = self.server.channels().collect();
        let usage = self.server.usage();
        if usage != Usage::default() || !channels.is_empty() || !self.known.is_empty() {
            return Err(Breach(
                "quota",
                format!("guest {}'s partition holds {usage:?} {channels:?}", self.guest),
            ));
        }
        Ok(())
    }
}

/// The root's name for a channel.
pub(super) fn key(channel: Channel) -> DeviceKey {
    DeviceKey(u64::from(channel.device) << 8 | u64::from(channel.sub))
}

/// What a guest is told of a channel. Its instance is the device's number, so that guests know it again.
fn offer(channel: Channel) -> OfferParams {
    let mut offer = OfferParams::new(CLASS, Guid::from_wire([channel.device; 16]));
    offer.subchannel_index = u16::from(channel.sub);
    if channel.device >= Channel::FIRST_CALL {
        offer.flags |= OfferFlags::NAMED_PIPE_MODE | OfferFlags::TLNPI_PROVIDER;
    }
    // Some are signalled by monitor, which takes its time.
    offer.monitor_latency = (channel.device % 8 == 7).then_some(1000);
    offer.primary = (channel.sub > 0).then(|| key(Channel::primary(channel.device)));
    offer
}
