//! Server and client joined in one thread, with messages and answers delivered in a seeded order.
//!
//! Messages stay in order in each direction, as on a real bus; when each is delivered, and when policy and devices
//! answer, is up to the seed. The pair watches what must hold whatever happens: see [`Books`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use vmbus_core::client::{Client, ClientAction, ClientConfig, OpenRequest};
use vmbus_core::message::Payload;
use vmbus_core::server::*;
use vmbus_core::{Guid, Status, Version};

use crate::root::{CLASS, page_list};

/// A small generator of pseudo-random numbers (SplitMix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).unwrap()
    }

    pub(crate) fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }
}

/// Something that policy or devices owe an answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owed {
    Decision(AskId),
    /// This one is the guest's policy's to answer.
    GuestDecision(AskId),
    Opened(u32),
    Closed(u32),
    GpadlReleased(u32, u32),
}

/// What must hold of the actions of both ends, checked as they come.
#[derive(Default)]
pub(crate) struct Books {
    /// Devices offered and not released.
    pub(crate) devices: BTreeSet<DeviceKey>,
    /// Channels between Open and Close, and after.
    pub(crate) serving: BTreeMap<u32, (DeviceKey, u32)>,
    pub(crate) closing: BTreeSet<u32>,
    /// Channels that the guest has left open-reserved: they and their page lists outlive UNLOAD.
    reserved: BTreeSet<u32>,
    /// Page lists that devices may use, or were asked to let go of.
    pub(crate) lists: BTreeMap<(u32, u32), DeviceKey>,
    /// Opens, creations and teardowns that the guest has begun and that have not ended.
    pub(crate) opens: BTreeMap<u32, u32>,
    pub(crate) reserved_opens: BTreeSet<u32>,
    pub(crate) creations: BTreeMap<u32, u32>,
    pub(crate) teardowns: BTreeSet<u32>,
    /// The guest does not wait for the host: after a reset, or when it unloads before 3.0.
    nobody_waits: bool,
}

impl Books {
    fn server_acts(&mut self, action: &ServerAction) {
        match action {
            ServerAction::Open { relid, device, open } => {
                assert!(self.devices.contains(device), "open of an unknown device");
                assert!(self.lists.contains_key(&(*relid, open.ring_gpadl)), "open without rings");
                let before = self.serving.insert(*relid, (*device, open.ring_gpadl));
                assert_eq!(before, None, "channel {relid} opened twice");
            }
            ServerAction::Reattach { relid, .. } => panic!("channel {relid} was not saved"),
            ServerAction::Close { relid, device } => {
                assert_eq!(
                    self.serving.get(relid).map(|(d, _)| d),
                    Some(device),
                    "close of what is not open"
                );
                assert!(self.closing.insert(*relid), "channel {relid} closed twice");
            }
            ServerAction::Gpadl { relid, device, gpadl, .. } => {
                assert!(self.devices.contains(device), "pages for an unknown device");
                assert_eq!(self.lists.insert((*relid, *gpadl), *device), None, "page list shared twice");
            }
            ServerAction::ReleaseGpadl { relid, device, gpadl } => {
                assert_eq!(self.lists.get(&(*relid, *gpadl)), Some(device), "release of what is not shared");
                let rings = self.serving.get(relid).is_some_and(|(_, ring)| ring == gpadl);
                assert!(!rings, "the rings of open channel {relid} are taken away");
            }
            ServerAction::Retarget { relid, .. } => {
                assert!(self.serving.contains_key(relid) && !self.closing.contains(relid));
            }
            ServerAction::Declined { device } => {
                assert!(self.devices.contains(device), "an unknown device is declined");
            }
            ServerAction::Released { device } => {
                assert!(self.devices.remove(device), "release of an unknown device");
                assert!(!self.lists.values().any(|owner| owner == device), "released with page lists");
                assert!(!self.serving.values().any(|(owner, _)| owner == device), "released while open");
            }
            ServerAction::Disconnected => {
                assert!(
                    self.lists.is_empty() && self.serving.is_empty(),
                    "disconnected before all was let go"
                );
            }
            ServerAction::Ask { question: Question::Offer { device }, .. } => {
                assert!(self.devices.contains(device), "question about an unknown device");
            }
            ServerAction::Ask { .. }
            | ServerAction::Send { .. }
            | ServerAction::Connected(_)
            | ServerAction::MonitorPages(_)
            | ServerAction::Connect(_) => {}
            ServerAction::Fault(fault) => panic!("the server blames somebody: {fault}"),
        }
    }

    fn client_acts(&mut self, action: &ClientAction) {
        match action {
            ClientAction::Opened { relid, open_id: 0, .. } => {
                assert!(self.reserved_opens.remove(relid), "a reserved open ended that was not begun");
            }
            ClientAction::Opened { relid, open_id, .. } => {
                assert_eq!(self.opens.remove(open_id), Some(*relid), "an open ended that was not begun");
            }
            ClientAction::GpadlCreated { relid, gpadl, result } => {
                assert_eq!(self.creations.remove(gpadl), Some(*relid), "a page list came from nowhere");
                if result.is_err() && !self.teardowns.contains(gpadl) {
                    self.pages_are_free(*relid, *gpadl);
                }
            }
            ClientAction::GpadlTorndown { gpadl } => {
                assert!(self.teardowns.remove(gpadl), "torn down without being asked to");
                let in_use = self.lists.keys().any(|(_, list)| list == gpadl);
                assert!(self.nobody_waits || !in_use, "torn down while in use");
            }
            ClientAction::Rescinded { relid } => {
                assert!(!self.lists.keys().any(|(channel, _)| channel == relid), "rescinded while in use");
                assert!(!self.opens.values().any(|channel| channel == relid), "an open got no result");
                assert!(!self.reserved_opens.contains(relid), "a reserved open got no result");
                assert!(!self.creations.values().any(|channel| channel == relid), "a list got no answer");
            }
            ClientAction::Fault(fault) => panic!("the client blames the host: {fault}"),
            ClientAction::Post { .. }
            | ClientAction::Ask { .. }
            | ClientAction::Connected(_)
            | ClientAction::ConnectFailed(_)
            | ClientAction::Offered(_)
            | ClientAction::AllOffersDelivered
            | ClientAction::Modified { .. }
            | ClientAction::ReservedClosed { .. }
            | ClientAction::MonitorPagesModified(_)
            | ClientAction::ConnectRefused { .. }
            | ClientAction::Paused => {}
            ClientAction::Unloaded => {
                assert!(self.opens.is_empty() && self.creations.is_empty() && self.teardowns.is_empty());
                assert!(self.reserved_opens.is_empty());
                let released = self.lists.keys().all(|(relid, _)| self.reserved.contains(relid));
                assert!(self.nobody_waits || released, "unloaded while the host uses pages");
            }
        }
    }

    fn pages_are_free(&self, relid: u32, gpadl: u32) {
        let in_use = self.lists.contains_key(&(relid, gpadl));
        assert!(self.nobody_waits || !in_use, "page list {relid}/{gpadl} is free but in use");
    }
}

pub(crate) struct Pair {
    pub(crate) server_config: ServerConfig,
    pub(crate) client_config: ClientConfig,
    pub(crate) server: Server,
    pub(crate) client: Client,
    pub(crate) dice: Dice,
    pub(crate) books: Books,
    /// On their way to the root, with the connection that each was posted to.
    to_root: VecDeque<(u32, Payload)>,
    to_guest: VecDeque<Payload>,
    pub(crate) owed: Vec<Owed>,
    /// Messages that the guest has posted: connection and number.
    pub(crate) posted: Vec<(u32, u32)>,
    /// What the guest was told since the last look.
    pub(crate) events: Vec<ClientAction>,
    /// What the root was told since the last look.
    pub(crate) actions: Vec<ServerAction>,
    /// Connections that do not exist at this root.
    pub(crate) missing: Vec<u32>,
    /// Devices that the host took back and has not offered again.
    pub(crate) withdrawn: BTreeSet<u64>,
    /// One in this many opens and questions is refused; 0 for none.
    pub(crate) refuse_one_in: usize,
    /// The host knows that it offers more than the guest may have.
    pub(crate) over_quota: bool,
}

impl Pair {
    pub(crate) fn new(seed: u64, server: ServerConfig, client: ClientConfig) -> Self {
        Self {
            server_config: server.clone(),
            client_config: client.clone(),
            server: Server::new(server),
            client: Client::new(client),
            dice: Dice::new(seed),
            books: Books::default(),
            to_root: VecDeque::new(),
            to_guest: VecDeque::new(),
            owed: Vec::new(),
            posted: Vec::new(),
            events: Vec::new(),
            actions: Vec::new(),
            missing: Vec::new(),
            withdrawn: BTreeSet::new(),
            refuse_one_in: 0,
            over_quota: false,
        }
    }

    /// Connected with this version, offers requested.
    pub(crate) fn connected(seed: u64, version: Version) -> Self {
        let mut pair = Self::new(seed, ServerConfig::default(), ClientConfig::default());
        pair.client.connect(Version::OLDEST..=version).unwrap();
        pair.run();
        pair.client.request_offers().unwrap();
        pair.run();
        assert_eq!(pair.client.connection().map(|connection| connection.version), Some(version));
        pair
    }

    pub(crate) fn offer(&mut self, device: u64) {
        self.books.devices.insert(DeviceKey(device));
        let offer = OfferParams::new(CLASS, Guid::from_wire([device as u8; 16]));
        self.input(ServerInput::Offer { device: DeviceKey(device), offer });
    }

    pub(crate) fn rescind(&mut self, device: u64) {
        self.input(ServerInput::Rescind { device: DeviceKey(device) });
    }

    /// Shares four pages; fails where the client does.
    pub(crate) fn create_gpadl(&mut self, relid: u32) -> Result<u32, vmbus_core::client::ClientError> {
        let pages = 4 + u32::try_from(self.dice.roll(60)).unwrap();
        let gpadl = self.client.create_gpadl(relid, &page_list(pages))?;
        self.books.creations.insert(gpadl, relid);
        self.collect();
        Ok(gpadl)
    }

    pub(crate) fn teardown(&mut self, relid: u32, gpadl: u32) {
        if self.client.teardown_gpadl(relid, gpadl).is_ok() {
            self.books.teardowns.insert(gpadl);
        }
        self.collect();
    }

    pub(crate) fn open(&mut self, relid: u32, gpadl: u32) {
        if let Ok(open_id) = self.client.open(relid, open_request(gpadl)) {
            self.books.opens.insert(open_id, relid);
        }
        self.collect();
    }

    pub(crate) fn input(&mut self, input: ServerInput<'_>) {
        self.server.handle(input);
        self.collect();
    }

    /// Takes the actions of both ends.
    pub(crate) fn collect(&mut self) {
        while let Some(action) = self.server.poll_action() {
            if let ServerAction::Fault(Fault::OverQuota { quota: Quota::Channels, .. }) = action
                && self.over_quota
            {
                continue;
            }
            self.books.server_acts(&action);
            match &action {
                ServerAction::Send { payload, .. } => self.to_guest.push_back(*payload),
                ServerAction::Ask { id, .. } => self.owed.push(Owed::Decision(*id)),
                ServerAction::Open { relid, .. } => self.owed.push(Owed::Opened(*relid)),
                ServerAction::Close { relid, .. } => self.owed.push(Owed::Closed(*relid)),
                ServerAction::ReleaseGpadl { relid, gpadl, .. } => {
                    self.owed.push(Owed::GpadlReleased(*relid, *gpadl));
                }
                ServerAction::Gpadl { .. }
                | ServerAction::Reattach { .. }
                | ServerAction::Retarget { .. }
                | ServerAction::Released { .. }
                | ServerAction::Declined { .. }
                | ServerAction::Connected(_)
                | ServerAction::MonitorPages(_)
                | ServerAction::Disconnected
                | ServerAction::Connect(_)
                | ServerAction::Fault(_) => {}
            }
            self.actions.push(action);
        }
        while let Some(action) = self.client.poll_action() {
            if let ClientAction::Unloaded = action {
                self.books.reserved = self.client.channels().map(|channel| channel.offer.relid).collect();
            }
            self.books.client_acts(&action);
            match action {
                ClientAction::Post { connection_id, payload } => {
                    let number = u32::from_le_bytes(payload[..4].try_into().unwrap());
                    self.posted.push((connection_id, number));
                    if self.missing.contains(&connection_id) {
                        self.client.connection_refused(connection_id);
                    } else {
                        self.to_root.push_back((connection_id, payload));
                    }
                }
                ClientAction::Ask { id, .. } => self.owed.push(Owed::GuestDecision(id)),
                action => self.events.push(action),
            }
        }
    }

    /// Lets one thing happen that may happen; `false` if there is none.
    pub(crate) fn step(&mut self) -> bool {
        let (to_root, to_guest) =
            (usize::from(!self.to_root.is_empty()), usize::from(!self.to_guest.is_empty()));
        let choices = to_root + to_guest + self.owed.len();
        if choices == 0 {
            return false;
        }
        let choice = self.dice.roll(choices);
        if choice < to_root {
            self.deliver_to_root();
        } else if choice < to_root + to_guest {
            self.deliver_to_guest();
        } else {
            let owed = self.owed.swap_remove(choice - to_root - to_guest);
            self.answer(owed);
        }
        true
    }

    /// Lets everything happen.
    pub(crate) fn run(&mut self) {
        self.collect();
        while self.step() {}
    }

    /// The root takes the next message of the guest, if there is one.
    pub(crate) fn deliver_to_root(&mut self) -> bool {
        let Some((connection_id, payload)) = self.to_root.pop_front() else { return false };
        self.input(ServerInput::Message { connection_id, payload: &payload });
        true
    }

    pub(crate) fn deliver_to_guest(&mut self) -> bool {
        let Some(payload) = self.to_guest.pop_front() else { return false };
        self.client.handle_message(&payload);
        self.collect();
        true
    }

    pub(crate) fn answer(&mut self, owed: Owed) {
        let refuse = self.refuse_one_in > 0 && self.dice.one_in(self.refuse_one_in);
        let answer = if refuse { Answer::Deny(Status::ACCESS_DENIED) } else { Answer::Allow };
        let input = match owed {
            Owed::Decision(id) => ServerInput::Decided { id, answer },
            Owed::GuestDecision(id) => {
                self.client.decided(id, answer);
                return self.collect();
            }
            Owed::Opened(relid) => {
                if refuse {
                    self.books.serving.remove(&relid);
                }
                let result = if refuse { Err(Status::DEVICE_BUSY) } else { Ok(()) };
                ServerInput::Opened { relid, result }
            }
            Owed::Closed(relid) => {
                self.books.serving.remove(&relid);
                self.books.closing.remove(&relid);
                ServerInput::Closed { relid }
            }
            Owed::GpadlReleased(relid, gpadl) => {
                self.books.lists.remove(&(relid, gpadl));
                ServerInput::GpadlReleased { relid, gpadl }
            }
        };
        self.input(input);
    }

    /// The partition was reset: messages under way are lost.
    pub(crate) fn reset(&mut self) {
        self.to_root.clear();
        self.to_guest.clear();
        self.client.reset();
        self.books.nobody_waits = true;
        self.collect();
        self.books.nobody_waits = false;
        self.input(ServerInput::Reset);
    }

    /// Whether there was a connection to leave.
    pub(crate) fn unload(&mut self) -> bool {
        let Some(connection) = self.client.connection() else { return false };
        self.client.unload().unwrap();
        self.books.nobody_waits = connection.version < Version::Win8_1;
        self.collect();
        self.books.nobody_waits = false;
        true
    }

    pub(crate) fn take_events(&mut self) -> Vec<ClientAction> {
        std::mem::take(&mut self.events)
    }
}

pub(crate) fn open_request(ring_gpadl: u32) -> OpenRequest {
    OpenRequest { ring_gpadl, downstream_page: 2, target_vp: 1, ..Default::default() }
}
