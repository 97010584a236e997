//! A guest that follows no rule against the host's state machine, with a host that does its part in any order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arbitrary::{Arbitrary, Unstructured};
use vmbus_core::message::{
    CloseChannel, CloseReservedChannel, Direction, GpadlBody, GpadlHeader, GpadlTeardown, InitiateContact,
    Message, ModifyChannel, ModifyConnection, OpenChannel, OpenReservedChannel, Pause, Payload,
    RelidReleased, RequestOffers, Resume, Unload,
};
use vmbus_core::pages::PageRanges;
use vmbus_core::server::{
    Answer, AskId, ConnectRequest, DeviceKey, Fault, OfferParams, Quotas, Server, ServerAction, ServerConfig,
    ServerInput, Usage, Whose,
};
use vmbus_core::{FeatureFlags, Guid, Status, Version};
use zerocopy::little_endian::{U16, U32};

/// Small bounds, so that the fuzzer reaches them.
pub(crate) const QUOTAS: Quotas = Quotas {
    channels: 6,
    half_built_gpadls: 4,
    half_built_words: 128,
    gpadls: 8,
    pages: 64,
    questions: 6,
    connects: 3,
};
pub(crate) const MAX_STEPS: usize = 400;

/// Plays the conversation that the bytes describe, then ends it and looks for what is left.
pub fn run(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let mut host = Host::new(ServerConfig { quotas: QUOTAS, ..ServerConfig::default() });
    // Half of the inputs begin where the interesting part of a conversation does.
    if bool::arbitrary(&mut input).unwrap_or_default() {
        host.begin();
    }
    for _ in 0..MAX_STEPS {
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        host.take(step);
        if input.is_empty() {
            break;
        }
    }
    host.end();
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Step {
    // What the guest does.
    Raw { connection_id: u8, payload: Vec<u8> },
    Numbered { number: u8, words: Vec<u8> },
    Contact { version: u8, features: u32, sint: u8, half_monitor: bool, on_connection_1: bool },
    RequestOffers,
    Share { relid: u8, gpadl: u8, pages: u8, messages: u8 },
    Header { relid: u8, gpadl: u8, range_buflen: u16, range_count: u16, words: Vec<u8> },
    Body { gpadl: u8, words: Vec<u8> },
    Teardown { relid: u8, gpadl: u8 },
    Open { relid: u8, gpadl: u8, downstream: u8, event_flag: u16 },
    Close { relid: u8 },
    Modify { relid: u8 },
    OpenReserved { relid: u8, gpadl: u8, sint: u8 },
    CloseReserved { relid: u8, sint: u8 },
    ModifyConnection { half: bool },
    Pause,
    Resume,
    Released { relid: u8 },
    Unload,
    // What the host does.
    Offer { device: u8, subchannel: u8 },
    OfferSubchannel { device: u8, primary: u8 },
    Rescind { device: u8 },
    Decide { which: u8, allow: bool },
    Opened { which: u8, ok: bool },
    Closed { which: u8 },
    GpadlReleased { which: u8 },
    Connect { which: u8, ok: bool },
    Reset,
}

/// Where a device is with its open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    Opening,
    Open,
    Closing,
}

/// The server, and what its caller must remember to do its part.
pub(crate) struct Host {
    pub(crate) server: Server,
    /// Messages that nobody has delivered.
    pub(crate) sent: VecDeque<Payload>,
    /// What the guest did wrong.
    pub(crate) faults: Vec<Fault>,
    offered: BTreeMap<DeviceKey, /* withdrawn */ bool>,
    /// Of sub-channels, which end with their primaries.
    primaries: BTreeMap<DeviceKey, DeviceKey>,
    quotas: Quotas,
    pub(crate) asked: Vec<AskId>,
    last_asked: Option<AskId>,
    pub(crate) opens: BTreeMap<u32, (DeviceKey, Opened, /* ring */ u32)>,
    pub(crate) lists: BTreeMap<(u32, u32), /* asked back */ bool>,
    pub(crate) connects: BTreeSet<ConnectRequest>,
    /// Disconnected actions still owed for resets.
    resets: usize,
}

impl Host {
    pub(crate) fn new(config: ServerConfig) -> Self {
        Self {
            quotas: config.quotas,
            server: Server::new(config),
            sent: VecDeque::new(),
            faults: Vec::new(),
            offered: BTreeMap::new(),
            primaries: BTreeMap::new(),
            asked: Vec::new(),
            last_asked: None,
            opens: BTreeMap::new(),
            lists: BTreeMap::new(),
            connects: BTreeSet::new(),
            resets: 0,
        }
    }

    /// A guest of the newest version with three channels offered and the rings of the first two shared.
    pub(crate) fn begin(&mut self) {
        for device in 0..3 {
            self.take(Step::Offer { device, subchannel: 0 });
        }
        let (features, sint) = (u32::MAX, 2);
        self.take(Step::Contact { version: 10, features, sint, half_monitor: false, on_connection_1: false });
        self.decide_all();
        self.take(Step::RequestOffers);
        self.decide_all();
        for relid in 1..3 {
            self.take(Step::Share { relid, gpadl: relid, pages: 4, messages: 9 });
        }
        self.decide_all();
        assert_eq!(self.lists.len(), 2, "a guest that does all right gets its pages shared");
    }

    pub(crate) fn decide_all(&mut self) {
        while !self.asked.is_empty() {
            self.take(Step::Decide { which: 0, allow: true });
        }
    }

    pub(crate) fn take(&mut self, step: Step) {
        match step {
            Step::Raw { connection_id, payload } => self.post(u32::from(connection_id % 8), &payload),
            Step::Numbered { number, words } => {
                let mut payload = vec![number % 32, 0, 0, 0, 0, 0, 0, 0];
                payload.extend(words.iter().flat_map(|word| [*word, 0, 0, 0]));
                payload.truncate(240);
                self.post(4, &payload);
            }
            Step::Contact { version, features, sint, half_monitor, on_connection_1 } => {
                let version = Version::ALL[usize::from(version) % Version::ALL.len()];
                let features = FeatureFlags::from_bits_retain(features);
                let sint = if sint < 128 { 2 } else { sint };
                let contact = InitiateContact {
                    version: U32::new(version.word()),
                    interrupt_page_or_target: InitiateContact::target(sint, 0, features),
                    child_to_parent_monitor: u64::from(half_monitor).into(),
                    ..Default::default()
                };
                let payload = Message::from(contact).encode(version, features);
                self.post(if on_connection_1 { 1 } else { 4 }, &payload);
            }
            Step::RequestOffers => self.send(RequestOffers {}),
            Step::Share { relid, gpadl, pages, messages } => {
                let pages = u64::from(pages % 80).max(1);
                let pfns: Vec<u64> = (0..pages).collect();
                let Ok(list) = PageRanges::single(0, pages as u32 * 4096, pfns) else { return };
                let (relid, gpadl) = (u32::from(relid % 8), u32::from(gpadl % 8));
                for message in list.messages(relid, gpadl).take(usize::from(messages).max(1)) {
                    let payload = message.encode(Version::NEWEST, FeatureFlags::empty());
                    self.post(4, &payload);
                }
            }
            Step::Header { relid, gpadl, range_buflen, range_count, words } => {
                let header = GpadlHeader {
                    relid: U32::new((relid % 8).into()),
                    gpadl: U32::new((gpadl % 8).into()),
                    range_buflen: U16::new(range_buflen),
                    range_count: U16::new(range_count),
                };
                let payload =
                    Message::GpadlHeader(header, &words).encode(Version::NEWEST, FeatureFlags::empty());
                self.post(4, &payload);
            }
            Step::Body { gpadl, words } => {
                let body = GpadlBody { message_number: U32::ZERO, gpadl: U32::new((gpadl % 8).into()) };
                let payload = Message::GpadlBody(body, &words).encode(Version::NEWEST, FeatureFlags::empty());
                self.post(4, &payload);
            }
            Step::Teardown { relid, gpadl } => self.send(GpadlTeardown {
                relid: U32::new((relid % 8).into()),
                gpadl: U32::new((gpadl % 8).into()),
            }),
            Step::Open { relid, gpadl, downstream, event_flag } => {
                let open = OpenChannel {
                    relid: U32::new((relid % 8).into()),
                    open_id: U32::new(relid.into()),
                    ring_gpadl: U32::new((gpadl % 8).into()),
                    downstream_page_offset: U32::new((downstream % 8).into()),
                    event_flag: U16::new(event_flag),
                    ..Default::default()
                };
                self.send(open);
            }
            Step::Close { relid } => self.send(CloseChannel { relid: U32::new((relid % 8).into()) }),
            Step::Modify { relid } => {
                let message = ModifyChannel { relid: U32::new((relid % 8).into()), target_vp: U32::new(1) };
                self.send(message);
            }
            Step::OpenReserved { relid, gpadl, sint } => self.send(OpenReservedChannel {
                relid: U32::new((relid % 8).into()),
                target_sint: U32::new((sint % 17).into()),
                ring_gpadl: U32::new((gpadl % 8).into()),
                downstream_page_offset: U32::new(2),
                ..Default::default()
            }),
            Step::CloseReserved { relid, sint } => self.send(CloseReservedChannel {
                relid: U32::new((relid % 8).into()),
                target_sint: U32::new((sint % 17).into()),
                ..Default::default()
            }),
            Step::ModifyConnection { half } => self.send(ModifyConnection {
                parent_to_child_monitor: 0x1000.into(),
                child_to_parent_monitor: u64::from(!half).into(),
            }),
            Step::Pause => self.send(Pause {}),
            Step::Resume => self.send(Resume {}),
            Step::Released { relid } => self.send(RelidReleased { relid: U32::new((relid % 8).into()) }),
            Step::Unload => self.send(Unload {}),
            Step::Offer { device, subchannel } => {
                let device = DeviceKey(u64::from(device % 10));
                if self.offered.get(&device) == Some(&false) {
                    return;
                }
                self.offered.insert(device, false);
                self.primaries.remove(&device);
                let mut offer = OfferParams::new(Guid::default(), Guid::default());
                offer.subchannel_index = u16::from(subchannel % 2);
                offer.monitor_latency = (subchannel >= 128).then_some(10);
                self.handle(ServerInput::Offer { device, offer });
            }
            Step::OfferSubchannel { device, primary } => {
                let [device, primary] = [device, primary].map(|key| DeviceKey(u64::from(key % 10)));
                let is_free = self.offered.get(&device) != Some(&false) && device != primary;
                let has_primary =
                    self.offered.get(&primary) == Some(&false) && !self.primaries.contains_key(&primary);
                // A device that has sub-channels is none itself.
                let is_primary = self.primaries.values().any(|other| *other == device);
                if !is_free || !has_primary || is_primary {
                    return;
                }
                self.offered.insert(device, false);
                self.primaries.insert(device, primary);
                let offer = OfferParams {
                    primary: Some(primary),
                    subchannel_index: 1,
                    ..OfferParams::new(Guid::default(), Guid::default())
                };
                self.handle(ServerInput::Offer { device, offer });
            }
            Step::Rescind { device } => {
                let device = DeviceKey(u64::from(device % 10));
                if self.offered.get(&device) == Some(&false) {
                    self.offered.insert(device, true);
                    self.handle(ServerInput::Rescind { device });
                }
            }
            Step::Decide { which, allow } => {
                if self.asked.is_empty() {
                    return;
                }
                let id = self.asked.swap_remove(usize::from(which) % self.asked.len());
                let answer = if allow { Answer::Allow } else { Answer::Deny(Status::ACCESS_DENIED) };
                self.handle(ServerInput::Decided { id, answer });
            }
            Step::Opened { which, ok } => self.answer_open(which, ok),
            Step::Closed { which } => self.answer_close(which),
            Step::GpadlReleased { which } => self.answer_release(which),
            Step::Connect { which, ok } => {
                let Some(request) = nth(self.connects.iter(), which).copied() else { return };
                self.connects.remove(&request);
                let result = if ok { Ok(()) } else { Err(Status::CONNECTION_REFUSED) };
                self.handle(ServerInput::ConnectResult { request, result });
            }
            Step::Reset => {
                self.resets = 1;
                self.handle(ServerInput::Reset);
            }
        }
    }

    pub(crate) fn answer_open(&mut self, which: u8, ok: bool) {
        let opening = self.opens.iter().filter(|(_, open)| open.1 == Opened::Opening);
        let Some(relid) = nth(opening, which).map(|(relid, _)| *relid) else { return };
        if ok {
            self.opens.entry(relid).and_modify(|open| open.1 = Opened::Open);
        } else {
            self.opens.remove(&relid);
        }
        let result = if ok { Ok(()) } else { Err(Status::INSUFFICIENT_RESOURCES) };
        self.handle(ServerInput::Opened { relid, result });
    }

    pub(crate) fn answer_close(&mut self, which: u8) {
        let closing = self.opens.iter().filter(|(_, open)| open.1 == Opened::Closing);
        let Some(relid) = nth(closing, which).map(|(relid, _)| *relid) else { return };
        self.opens.remove(&relid);
        self.handle(ServerInput::Closed { relid });
    }

    pub(crate) fn answer_release(&mut self, which: u8) {
        let releasing = self.lists.iter().filter(|(_, asked_back)| **asked_back);
        let Some((relid, gpadl)) = nth(releasing, which).map(|(name, _)| *name) else { return };
        self.lists.remove(&(relid, gpadl));
        self.handle(ServerInput::GpadlReleased { relid, gpadl });
    }

    fn send<'a>(&mut self, message: impl Into<Message<'a>>) {
        // The longest form, which every version accepts.
        let features = FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS;
        let payload = message.into().encode(Version::NEWEST, features);
        self.post(4, &payload);
    }

    pub(crate) fn post(&mut self, connection_id: u32, payload: &[u8]) {
        self.handle(ServerInput::Message { connection_id, payload });
    }

    fn handle(&mut self, input: ServerInput<'_>) {
        self.server.handle(input);
        while let Some(action) = self.server.poll_action() {
            self.act(action);
        }
        self.check_bounds();
    }

    fn act(&mut self, action: ServerAction) {
        match action {
            ServerAction::Send { vp: _, sint, payload } => {
                self.check_message(sint, &payload);
                self.sent.push_back(payload);
            }
            ServerAction::Ask { id, .. } => {
                assert!(self.last_asked < Some(id), "a question's name is used twice");
                self.last_asked = Some(id);
                self.asked.push(id);
            }
            ServerAction::Open { relid, device, open } => {
                assert!(self.offered.contains_key(&device), "a device that was never offered is opened");
                assert!(!self.opens.contains_key(&relid), "channel {relid} is opened twice");
                assert!(self.opens.values().all(|other| other.0 != device), "{device:?} is opened twice");
                assert_eq!(self.lists.get(&(relid, open.ring_gpadl)), Some(&false), "rings without pages");
                let pages = open.ring.page_count() as u32;
                assert!(open.downstream_page >= 2 && open.downstream_page + 2 <= pages);
                assert!((1..=2047).contains(&open.event_flag));
                self.opens.insert(relid, (device, Opened::Opening, open.ring_gpadl));
            }
            ServerAction::Reattach { .. } => panic!("nothing was restored"),
            ServerAction::Close { relid, device } => {
                let open = self.opens.get_mut(&relid).expect("only what is open is closed");
                assert_eq!((open.0, open.1), (device, Opened::Open));
                open.1 = Opened::Closing;
            }
            ServerAction::Gpadl { relid, device, gpadl, .. } => {
                assert!(self.offered.contains_key(&device));
                assert_eq!(self.lists.insert((relid, gpadl), false), None, "a list is given twice");
            }
            ServerAction::ReleaseGpadl { relid, gpadl, .. } => {
                assert_eq!(self.lists.insert((relid, gpadl), true), Some(false), "a list is asked back once");
                let is_ring = self.opens.get(&relid).is_some_and(|open| open.2 == gpadl);
                assert!(!is_ring, "the rings of an open channel are asked back");
            }
            ServerAction::Retarget { relid, device, .. } => {
                let open = self.opens.get(&relid).map(|open| (open.0, open.1));
                assert_eq!(open, Some((device, Opened::Open)));
            }
            ServerAction::Declined { device } => assert!(self.offered.contains_key(&device)),
            ServerAction::Released { device } => {
                let withdrawn = self.offered.remove(&device);
                let with_primary = self.primaries.remove(&device).is_some();
                let expected = withdrawn == Some(true) || (with_primary && withdrawn.is_some());
                assert!(expected, "only a rescinded device is released");
                assert!(self.opens.values().all(|open| open.0 != device));
            }
            ServerAction::Connect(request) => {
                self.connects.insert(request);
            }
            ServerAction::Disconnected => {
                assert!(
                    self.opens.is_empty() && self.lists.is_empty(),
                    "something is left of the connection"
                );
                // A contact that waited for this may have asked its question already.
                let usage = Usage { questions: 0, ..self.server.usage() };
                assert_eq!(usage, Usage::default());
                self.connects.clear();
                self.resets = 0;
            }
            ServerAction::Fault(fault) => {
                assert_eq!(fault.whose(), Whose::Peer, "{fault}");
                self.faults.push(fault);
            }
            ServerAction::Connected(_) | ServerAction::MonitorPages(_) => {}
        }
    }

    fn check_message(&mut self, sint: u8, payload: &[u8]) {
        assert!(sint < 16);
        let message = Message::parse(payload, Direction::ToGuest, None);
        match message.unwrap_or_else(|error| panic!("{payload:02x?} was sent: {error}")) {
            Message::RescindChannelOffer(rescind) => {
                let relid = rescind.relid.get();
                let mut channels = self.server.channels();
                let owner =
                    channels.find(|channel| channel.relid == Some(relid)).map(|channel| channel.device);
                assert!(!self.opens.contains_key(&relid), "rescinded while the device uses the rings");
                let mut lists = self.lists.range((relid, 0)..=(relid, u32::MAX));
                assert_eq!(lists.next(), None, "rescinded while the device uses pages");
                let mut subchannels = self.primaries.iter().filter(|(_, primary)| owner == Some(**primary));
                let open = subchannels.any(|(device, _)| self.opens.values().any(|open| open.0 == *device));
                assert!(!open, "rescinded before its sub-channel");
            }
            Message::OfferChannel(offer) => {
                assert!((1..=2047).contains(&offer.relid.get()));
                assert!(!self.opens.contains_key(&offer.relid.get()));
            }
            _ => {}
        }
    }

    fn check_bounds(&self) {
        let usage = self.server.usage();
        assert!(usage.channels <= self.quotas.channels, "{usage:?}");
        assert!(usage.half_built_gpadls <= self.quotas.half_built_gpadls, "{usage:?}");
        assert!(usage.half_built_words <= self.quotas.half_built_words, "{usage:?}");
        assert!(usage.gpadls <= self.quotas.gpadls, "{usage:?}");
        assert!(usage.pages <= self.quotas.pages, "{usage:?}");
        assert!(usage.questions <= self.quotas.questions, "{usage:?}");
        assert!(usage.connects <= self.quotas.connects, "{usage:?}");
        assert!(self.server.channels().count() <= self.offered.len());
    }

    /// Whether the server waits for an answer.
    pub(crate) fn is_busy(&self) -> bool {
        !self.asked.is_empty()
            || self.opens.values().any(|open| open.1 != Opened::Open)
            || self.lists.values().any(|asked_back| *asked_back)
    }

    /// Whether the device was told to open here, or is as far as that.
    pub(crate) fn serves(&self, device: DeviceKey, unless: Opened) -> bool {
        self.opens.values().any(|open| open.0 == device && open.1 != unless)
    }

    /// The device that [`Step::Opened`] with this number is about.
    pub(crate) fn nth_opening(&self, which: u8) -> Option<DeviceKey> {
        let opening = self.opens.values().filter(|open| open.1 == Opened::Opening);
        nth(opening, which).map(|open| open.0)
    }

    /// What somebody else's doing must not change.
    pub(crate) fn fingerprint(&self) -> String {
        let channels: Vec<_> = self.server.channels().collect();
        let (usage, connection) = (self.server.usage(), self.server.connection());
        format!("{usage:?} {connection:?} {channels:?} {:?} {:?}", self.opens, self.lists)
    }

    /// The devices do all that is asked of them, until a reset is over.
    pub(crate) fn answer_all(&mut self) {
        for _ in 0..4 * MAX_STEPS {
            if self.resets == 0 {
                break;
            }
            self.answer_open(0, true);
            self.answer_close(0);
            self.answer_release(0);
        }
    }

    /// Resets and answers all that is still asked for: then nothing may be left.
    pub(crate) fn end(mut self) {
        self.take(Step::Reset);
        self.answer_all();
        assert_eq!(self.resets, 0, "a reset did not end: {:?} {:?}", self.opens, self.lists);
        assert_eq!(self.server.connection(), None);
        assert_eq!(self.server.usage(), Usage::default());
        let devices: Vec<_> = self.offered.iter().filter(|(_, withdrawn)| !**withdrawn).collect();
        for device in devices.into_iter().map(|(device, _)| *device).collect::<Vec<_>>() {
            // A sub-channel goes with its primary.
            if let Some(withdrawn) = self.offered.get_mut(&device) {
                *withdrawn = true;
                self.handle(ServerInput::Rescind { device });
            }
        }
        assert_eq!(self.server.channels().count(), 0, "a rescinded device is remembered for ever");
        assert!(self.offered.is_empty(), "a rescinded device was not released: {:?}", self.offered);
    }
}

/// The item that a small number means: modulo how many there are.
fn nth<T>(items: impl Iterator<Item = T> + Clone, which: u8) -> Option<T> {
    let count = items.clone().count();
    items.into_iter().nth(usize::from(which) % count.max(1))
}
