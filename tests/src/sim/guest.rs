//! The guest's end: the client, a driver for each channel it was offered, and what must hold of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use vmbus_core::client::{ChannelState, Client, ClientConfig, MonitorPages, OfferInfo, Policy};
use vmbus_core::message::Payload;
use vmbus_core::{Guid, Version};

use super::memory::Memory;
use super::rings::Line;
use super::script::{Channel, Decides, GuestSetup};
use super::world::{Breach, Held};

/// What a page list is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Rings,
    Data,
}

/// A page list of the guest's, from the wish to share it until its pages are free.
#[derive(Debug)]
pub(super) struct List {
    /// The block that it names.
    pub(super) pfn: u64,
    pub(super) pages: usize,
    pub(super) purpose: Purpose,
    /// The root has not answered.
    pub(super) is_created: bool,
    /// It was asked back.
    pub(super) is_ending: bool,
}

#[derive(Debug)]
pub(super) enum Stage {
    Idle,
    /// The rings' list is being shared.
    Sharing {
        gpadl: u32,
    },
    Opening {
        gpadl: u32,
        open_id: u32,
        /// It was given up: whatever the root says, it does not succeed.
        is_given_up: bool,
    },
    Open {
        gpadl: u32,
        name: u64,
        line: Box<Line>,
    },
}

/// What the guest does with one channel.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) channel: Channel,
    pub(super) offer: OfferInfo,
    pub(super) stage: Stage,
    pub(super) lists: BTreeMap<u32, List>,
    /// Rings for the next open, to be used as soon as they are shared.
    pub(super) next_rings: Option<u32>,
    pub(super) is_rescinded: bool,
    /// It is to be given back, as soon as that may be said.
    pub(super) is_due: bool,
    /// Where the root's interrupts go, and where they are to go.
    pub(super) vp: u32,
    pub(super) modifying: Option<u32>,
    /// What the root signals, and what it is signalled by.
    pub(super) flag: u16,
    pub(super) connection: u32,
}

impl Driver {
    pub(super) fn new(offer: OfferInfo) -> Self {
        let sub = u8::try_from(offer.subchannel_index).unwrap_or(u8::MAX);
        let channel = Channel { device: offer.instance.to_wire()[0], sub };
        Self {
            channel,
            offer,
            stage: Stage::Idle,
            lists: BTreeMap::new(),
            next_rings: None,
            is_rescinded: false,
            is_due: false,
            vp: 0,
            modifying: None,
            flag: 0,
            connection: 0,
        }
    }
}

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) life: u32,
    pub(super) client: Client,
    pub(super) config: ClientConfig,
    pub(super) memory: Rc<RefCell<Memory>>,
    /// The partition that it has joined.
    pub(super) link: Option<u32>,
    pub(super) newest: Version,
    /// Messages that were not posted yet.
    pub(super) outbox: VecDeque<(u32, Payload)>,
    /// The next one is posted later.
    pub(super) is_posting: bool,
    pub(super) drivers: BTreeMap<u32, Driver>,
    /// Event flags that are set, and for which processor the last interrupt of each was.
    pub(super) flags: BTreeSet<u16>,
    pub(super) interrupted: BTreeMap<u16, u32>,
    /// Answers that its policy owes.
    pub(super) owed: usize,
    pub(super) is_paused: bool,
    pub(super) is_pausing: bool,
    /// Requests it has sent.
    pub(super) requests: u64,
    pub(super) states: Vec<(u32, ChannelState)>,
    /// The version of the last connection.
    pub(super) version: Option<Version>,
}

impl Guest {
    pub(super) fn new(setup: &GuestSetup, life: u32) -> Self {
        let policy = match setup.policy {
            Decides::AllowAll => Policy::AllowAll,
            Decides::Ask => Policy::Ask,
        };
        let client_id = Some(Guid::from_wire([7; 16]));
        let monitor_pages = Some(MonitorPages { parent_to_child: 0x5000, child_to_parent: 0x6000 });
        let config = ClientConfig { policy, client_id, monitor_pages, ..ClientConfig::default() };
        Self {
            life,
            client: Client::new(config.clone()),
            config,
            memory: Rc::default(),
            link: None,
            newest: setup.newest,
            outbox: VecDeque::new(),
            is_posting: false,
            drivers: BTreeMap::new(),
            flags: BTreeSet::new(),
            interrupted: BTreeMap::new(),
            owed: 0,
            is_paused: false,
            is_pausing: false,
            requests: 0,
            states: Vec::new(),
            version: None,
        }
    }

    /// The driver of a channel that the guest may use.
    pub(super) fn driver(&self, channel: Channel) -> Option<(u32, &Driver)> {
        let usable = |driver: &&Driver| driver.channel == channel && !driver.is_rescinded;
        self.drivers.iter().find(|(_, driver)| usable(driver)).map(|(relid, driver)| (*relid, driver))
    }

    /// Frees the pages of a list that has ended; those that ended with the connection come back with the others.
    pub(super) fn free(&mut self, list: &List) -> Held {
        if self.client.connection().is_none() {
            return Ok(());
        }
        self.memory.borrow_mut().free(list.pfn).map_err(|what| Breach("pages", what))
    }

    /// The connection has ended: whatever the guest did on its channels has ended with it.
    pub(super) fn forget_channels(&mut self) -> Held {
        for driver in std::mem::take(&mut self.drivers).into_values() {
            if let Stage::Opening { open_id, .. } = driver.stage {
                return Err(Breach(
                    "open",
                    format!("open {open_id} of channel {} never ended", driver.channel),
                ));
            }
            let waits = driver.lists.iter().find(|(_, list)| !list.is_created || list.is_ending);
            if let Some((gpadl, _)) = waits {
                return Err(Breach(
                    "page list",
                    format!("page list {gpadl} of {} never ended", driver.channel),
                ));
            }
        }
        self.flags.clear();
        self.is_paused = false;
        self.is_pausing = false;
        Ok(())
    }

    /// Whether nothing is under way from this end.
    pub(super) fn is_quiet(&self) -> bool {
        self.outbox.is_empty() && self.owed == 0
    }

    /// Once nothing more is to come: all that was begun has ended, nobody sleeps on something that is there for him.
    pub(super) fn assert_nothing_waits(&self) -> Held {
        let stuck = |what: String| Err(Breach("rest", what));
        if !self.is_quiet() || !self.flags.is_empty() || self.is_paused || self.is_pausing {
            let outbox = self.outbox.len();
            return stuck(format!("{outbox} posts, {} decisions, flags {:?} wait", self.owed, self.flags));
        }
        for driver in self.drivers.values() {
            let channel = driver.channel;
            match &driver.stage {
                Stage::Idle => {}
                Stage::Open { line, .. } if line.unfinished() == 0 => {}
                Stage::Open { line, .. } => {
                    let what = format!("{} requests on channel {channel} never end", line.unfinished());
                    return Err(Breach("sleeper", what));
                }
                stage @ (Stage::Sharing { .. } | Stage::Opening { .. }) => {
                    return stuck(format!("channel {channel} stays in {stage:?}"));
                }
            }
            let waits = driver.lists.values().any(|list| !list.is_created || list.is_ending);
            if waits || driver.is_rescinded || driver.modifying.is_some() || driver.next_rings.is_some() {
                return stuck(format!("channel {channel} waits for something: {driver:?}"));
            }
        }
        Ok(())
    }
}
