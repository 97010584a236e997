//! Peers that follow no rule: no panic, no bound exceeded, nothing left.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vmbus_core::client::{Client, ClientAction, ClientConfig, Policy};
use vmbus_core::message::*;
use vmbus_core::server::*;
use vmbus_core::{FeatureFlags, Status, Version};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::pair::{Dice, Owed, open_request};
use crate::root::{CLASS, open_message, page_list};

const QUOTAS: Quotas = Quotas {
    channels: 3,
    half_built_gpadls: 3,
    half_built_words: 100,
    gpadls: 5,
    pages: 60,
    questions: 4,
    connects: 2,
};

pub(crate) fn assert_within(usage: Usage, quotas: Quotas) {
    assert!(usage.channels <= quotas.channels, "{usage:?}");
    assert!(usage.half_built_gpadls <= quotas.half_built_gpadls, "{usage:?}");
    assert!(usage.half_built_words <= quotas.half_built_words, "{usage:?}");
    assert!(usage.gpadls <= quotas.gpadls, "{usage:?}");
    assert!(usage.pages <= quotas.pages, "{usage:?}");
    assert!(usage.questions <= quotas.questions, "{usage:?}");
    assert!(usage.connects <= quotas.connects, "{usage:?}");
}

/// A root whose devices answer when the dice say so, and a guest that posts what it likes.
struct Siege {
    server: Server,
    dice: Dice,
    devices: BTreeSet<DeviceKey>,
    owed: Vec<Owed>,
    lists: BTreeSet<(u32, u32)>,
    serving: BTreeSet<u32>,
    /// What came to pass; a siege that never comes far shows nothing.
    seen: BTreeSet<&'static str>,
}

impl Siege {
    fn new(seed: u64) -> Self {
        let config = ServerConfig { quotas: QUOTAS, ..Default::default() };
        Self {
            server: Server::new(config),
            dice: Dice::new(seed),
            devices: BTreeSet::new(),
            owed: Vec::new(),
            lists: BTreeSet::new(),
            serving: BTreeSet::new(),
            seen: BTreeSet::new(),
        }
    }

    fn input(&mut self, input: ServerInput<'_>) {
        let text = format!("{input:?}");
        self.server.handle(input);
        assert_within(self.server.usage(), QUOTAS);
        let mut actions = 0;
        while let Some(action) = self.server.poll_action() {
            actions += 1;
            self.act(action);
        }
        // Devices, page lists and held messages are few here, so a message cannot have more effects than this.
        assert!(actions <= 64, "{actions} actions for {text}");
    }

    fn act(&mut self, action: ServerAction) {
        match action {
            ServerAction::Ask { id, .. } => self.owed.push(Owed::Decision(id)),
            ServerAction::Open { relid, device, open } => {
                assert!(self.devices.contains(&device) && self.serving.insert(relid));
                assert!(open.ring.page_count() >= 4 && self.lists.contains(&(relid, open.ring_gpadl)));
                assert!((1..=2047).contains(&open.event_flag) && open.connection_id <= 0x00ff_ffff);
                self.owed.push(Owed::Opened(relid));
                self.seen.insert("open");
            }
            ServerAction::Close { relid, device } => {
                assert!(self.devices.contains(&device) && self.serving.contains(&relid));
                self.owed.push(Owed::Closed(relid));
            }
            ServerAction::Gpadl { relid, device, gpadl, .. } => {
                assert!(self.devices.contains(&device) && self.lists.insert((relid, gpadl)));
            }
            ServerAction::ReleaseGpadl { relid, device, gpadl } => {
                assert!(self.devices.contains(&device) && self.lists.contains(&(relid, gpadl)));
                self.owed.push(Owed::GpadlReleased(relid, gpadl));
            }
            ServerAction::Released { device } => assert!(self.devices.remove(&device)),
            ServerAction::Retarget { device, .. } | ServerAction::Declined { device } => {
                assert!(self.devices.contains(&device));
            }
            ServerAction::Connect(request) if self.dice.one_in(2) => {
                self.server.handle(ServerInput::ConnectResult { request, result: Err(Status::SUCCESS) });
            }
            ServerAction::Fault(fault) => {
                assert_eq!(fault.whose(), Whose::Peer, "{fault}");
                self.seen.insert(match fault {
                    Fault::OverQuota { quota: Quota::Channels, .. } => "channels",
                    Fault::OverQuota { quota: Quota::HalfBuiltGpadls, .. } => "half-built",
                    Fault::OverQuota { quota: Quota::HalfBuiltWords, .. } => "words",
                    Fault::OverQuota { quota: Quota::Gpadls, .. } => "gpadls",
                    Fault::OverQuota { quota: Quota::Pages, .. } => "pages",
                    Fault::OverQuota { quota: Quota::Questions, .. } => "questions",
                    Fault::OverQuota { quota: Quota::Connects, .. } => "connects",
                    _ => "other",
                });
            }
            ServerAction::Send { payload, sint, .. } => {
                assert!(payload.len() <= MAX_PAYLOAD && sint < 16);
            }
            ServerAction::Connect(_)
            | ServerAction::Connected(_)
            | ServerAction::MonitorPages(_)
            | ServerAction::Disconnected => {}
            ServerAction::Reattach { .. } => panic!("nothing was saved"),
        }
    }

    fn answer_one(&mut self) {
        if self.owed.is_empty() {
            return;
        }
        let owed = self.owed.swap_remove(self.dice.roll(self.owed.len()));
        let refuse = self.dice.one_in(5);
        match owed {
            Owed::Decision(id) => {
                let answer = if refuse { Answer::Deny(Status(5)) } else { Answer::Allow };
                self.input(ServerInput::Decided { id, answer });
            }
            Owed::GuestDecision(_) => {}
            Owed::Opened(relid) => {
                if refuse {
                    self.serving.remove(&relid);
                }
                let result = if refuse { Err(Status::SUCCESS) } else { Ok(()) };
                self.input(ServerInput::Opened { relid, result });
            }
            Owed::Closed(relid) => {
                self.serving.remove(&relid);
                self.input(ServerInput::Closed { relid });
            }
            Owed::GpadlReleased(relid, gpadl) => {
                self.lists.remove(&(relid, gpadl));
                self.input(ServerInput::GpadlReleased { relid, gpadl });
            }
        }
    }

    fn host_acts(&mut self) {
        let device = DeviceKey(self.dice.roll(6) as u64);
        let withdrawn = self.server.channels().find(|channel| channel.device == device).map(|c| c.state);
        match withdrawn {
            None => {
                self.devices.insert(device);
                let offer = OfferParams::new(CLASS, CLASS);
                self.input(ServerInput::Offer { device, offer });
            }
            Some(ChannelState::Revoked) => {
                self.input(ServerInput::Offer { device, offer: OfferParams::default() });
            }
            Some(ChannelState::Closed | ChannelState::Opening | ChannelState::Open) => {
                self.input(ServerInput::Rescind { device });
            }
            Some(_) => {}
        }
    }

    fn post(&mut self, connection_id: u32, payload: &[u8]) {
        self.input(ServerInput::Message { connection_id, payload });
    }

    fn end(&mut self) {
        self.input(ServerInput::Reset);
        while !self.owed.is_empty() {
            self.answer_one();
        }
        assert_eq!(self.server.usage(), Usage::default());
        assert!(self.lists.is_empty() && self.serving.is_empty());
    }
}

/// A payload that looks like a message: its fields are small numbers, sizes, or nonsense.
fn likely_payload(dice: &mut Dice, connected: bool) -> Vec<u8> {
    // Often a well-formed message, as little means anything before a contact or without page lists.
    if dice.one_in(if connected { 120 } else { 3 }) {
        let version = Version::ALL[dice.roll(11)];
        let contact = InitiateContact {
            version: U32::new(version.word()),
            interrupt_page_or_target: InitiateContact::target(2, 0, FeatureFlags::all()),
            ..Default::default()
        };
        return Message::from(contact).encode(version, FeatureFlags::all()).to_vec();
    }
    let (relid, gpadl) = (small(dice), small(dice));
    match dice.roll(12) {
        0..3 => {
            let list = page_list(1 + u32::try_from(dice.roll(40)).unwrap());
            let messages: Vec<_> = list.messages(relid, gpadl).collect();
            let index = if dice.one_in(2) { 0 } else { dice.roll(messages.len()) };
            return messages[index].encode(Version::Iron, FeatureFlags::empty()).to_vec();
        }
        3 => return encoded(RequestOffers {}),
        4 | 5 => return encoded(open_message(relid, small(dice), gpadl)),
        _ if dice.one_in(3) => {}
        _ => return likely_payload(dice, connected),
    }
    nonsense(dice)
}

fn encoded(message: impl Into<Message<'static>>) -> Vec<u8> {
    message.into().encode(Version::Iron, FeatureFlags::empty()).to_vec()
}

fn nonsense(dice: &mut Dice) -> Vec<u8> {
    if dice.one_in(40) {
        return encoded(Unload {});
    }
    let number =
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28, 29, 99];
    let number: u32 = number[dice.roll(number.len())];
    let mut payload = vec![0; 8];
    payload[..4].copy_from_slice(&number.to_le_bytes());
    let words = dice.roll(59);
    for _ in 0..words {
        let word = match dice.roll(8) {
            0 => u32::MAX,
            1 => 4096,
            2 => 24,
            3 => 1 << 16 | 24,
            _ => small(dice),
        };
        payload.extend(word.to_le_bytes());
    }
    payload.truncate(8 + dice.roll(payload.len()));
    payload
}

fn small(dice: &mut Dice) -> u32 {
    u32::try_from(dice.roll(5)).unwrap()
}

/// One guest's life, and what came to pass in it.
pub(crate) fn one_hostile_guest(seed: u64) -> BTreeSet<&'static str> {
    let mut siege = Siege::new(seed);
    for _ in 0..500 {
        match siege.dice.roll(8) {
            0 | 1 => siege.answer_one(),
            2 if siege.dice.one_in(3) => siege.host_acts(),
            _ => {
                let payload = likely_payload(&mut siege.dice, siege.server.connection().is_some());
                let connection_id = if siege.dice.one_in(2) { 1 } else { 4 };
                siege.post(connection_id, &payload);
            }
        }
    }
    siege.end();
    std::mem::take(&mut siege.seen)
}

#[test]
fn a_guest_that_follows_no_rule_finds_no_panic_and_exceeds_no_bound() {
    let mut seen = BTreeSet::new();
    for seed in 0..400 {
        seen.append(&mut one_hostile_guest(seed));
    }
    let all = "channels connects gpadls half-built open other pages questions words";
    assert_eq!(seen.into_iter().collect::<Vec<_>>().join(" "), all, "the siege must come far");
}

proptest! {
    #[test]
    fn any_bytes_on_any_connection_are_survived(
        messages in prop::collection::vec((0..6_u32, prop::collection::vec(any::<u8>(), 0..260)), 0..40)
    ) {
        let mut siege = Siege::new(1);
        for (connection_id, payload) in messages {
            siege.post(connection_id, &payload);
        }
        siege.end();
    }

    #[test]
    fn any_bytes_from_a_host_are_survived(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..260), 0..40)
    ) {
        let mut client = Client::new(ClientConfig::default());
        for payload in messages {
            let _ = client.connect(Version::OLDEST..=Version::NEWEST);
            client.handle_message(&payload);
            while client.poll_action().is_some() {}
        }
    }
}

/// A message that a host might send, with fields of small numbers.
fn likely_answer(dice: &mut Dice) -> Vec<u8> {
    const NUMBERS: [u32; 14] = [1, 1, 2, 4, 6, 6, 10, 10, 12, 15, 17, 24, 26, 28];
    let number = NUMBERS[dice.roll(NUMBERS.len())];
    if number == 1 {
        let offer = OfferChannel {
            relid: U32::new(small(dice)),
            connection_id: U32::new(small(dice)),
            monitor_allocated: u8::from(dice.one_in(2)),
            monitor_id: if dice.one_in(2) { 200 } else { 7 },
            ..Default::default()
        };
        return [1_u64.to_le_bytes().as_slice(), offer.as_bytes()].concat();
    }
    let mut payload = u64::from(number).to_le_bytes().to_vec();
    for _ in 0..10 {
        payload.extend(if dice.one_in(2) { 0 } else { small(dice) }.to_le_bytes());
    }
    if number == 15 {
        payload[8..10].copy_from_slice(&[u8::from(!dice.one_in(3)), u8::from(dice.one_in(3))]);
    }
    payload
}

#[test]
fn a_host_that_follows_no_rule_ends_nothing_twice() {
    for seed in 0..300 {
        let mut dice = Dice::new(seed);
        let policy = if seed.is_multiple_of(2) { Policy::AllowAll } else { Policy::Ask };
        let mut client = Client::new(ClientConfig { policy, ..Default::default() });
        let mut asked = Vec::new();
        let (mut opens, mut lists) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..400 {
            let relid = small(&mut dice);
            match dice.roll(14) {
                0 => drop(client.connect(Version::OLDEST..=Version::NEWEST)),
                1 => drop(client.request_offers()),
                2 | 3 => lists.extend(client.create_gpadl(relid, &page_list(40))),
                4 | 5 => {
                    opens.extend(client.open(relid, open_request(u32::try_from(dice.roll(20)).unwrap())))
                }
                6 => drop(client.close(relid)),
                7 => drop(client.teardown_gpadl(relid, u32::try_from(dice.roll(20)).unwrap())),
                8 => drop(client.modify(relid, 1)),
                9 => drop(client.release(relid)),
                10 if dice.one_in(10) => drop(client.unload()),
                11 if dice.one_in(10) => client.connection_refused(4),
                12 if !asked.is_empty() => {
                    let id = asked.swap_remove(dice.roll(asked.len()));
                    let refuse = dice.one_in(4);
                    client.decided(id, if refuse { Answer::Deny(Status::FAILURE) } else { Answer::Allow });
                }
                _ => client.handle_message(&likely_answer(&mut dice)),
            }
            while let Some(action) = client.poll_action() {
                match action {
                    ClientAction::Opened { open_id, .. } => assert!(opens.remove(&open_id), "seed {seed}"),
                    ClientAction::GpadlCreated { gpadl, .. } => assert!(lists.remove(&gpadl), "seed {seed}"),
                    ClientAction::Ask { id, .. } => asked.push(id),
                    _ => {}
                }
            }
        }
        client.reset();
        while let Some(action) = client.poll_action() {
            match action {
                ClientAction::Opened { open_id, .. } => assert!(opens.remove(&open_id)),
                ClientAction::GpadlCreated { gpadl, .. } => assert!(lists.remove(&gpadl)),
                _ => {}
            }
        }
        assert!(opens.is_empty() && lists.is_empty(), "seed {seed}");
        assert_eq!(client.channels().count(), 0);
    }
}
