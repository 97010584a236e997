//! Any order of what guest, host, policy and devices may do; the pair's books must balance after each step.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

use vmbus_core::Version;
use vmbus_core::client::{
    AnswerSlot, ChannelInfo, ChannelState, Client, ClientAction, ClientConfig, MonitorPages, Policy,
    ReservedOpenRequest,
};
use vmbus_core::server::{DeviceKey, ServerConfig, Usage};

use crate::pair::Pair;

const DEVICES: usize = 5;
const STEPS: usize = 400;
/// Seeds tried; `CONTROL_SEEDS` in the environment asks for more.
const SEEDS: u64 = 600;

/// Page lists that the guest was told are created and has not asked back.
#[derive(Default)]
struct Guest {
    lists: Vec<(u32, u32)>,
    rescinded: Vec<u32>,
    unloading: bool,
    paused: bool,
}

impl Guest {
    fn hear(&mut self, pair: &mut Pair) {
        for event in pair.take_events() {
            match event {
                ClientAction::GpadlCreated { relid, gpadl, result: Ok(()) } => {
                    self.lists.push((relid, gpadl))
                }
                ClientAction::Rescinded { relid } => {
                    self.lists.retain(|(channel, _)| *channel != relid);
                    self.rescinded.push(relid);
                }
                ClientAction::Paused => self.paused = true,
                ClientAction::Unloaded => {
                    self.unloading = false;
                    self.forget();
                }
                _ => {}
            }
        }
    }

    fn forget(&mut self) {
        self.paused = false;
        self.lists.clear();
        self.rescinded.clear();
    }

    /// Does something that a guest may do.
    fn act(&mut self, pair: &mut Pair, version: Version) {
        if pair.client.connection().is_none() {
            if !self.unloading && pair.client.connect(Version::OLDEST..=version).is_ok() {
                pair.collect();
            }
            return;
        }
        if self.paused && pair.dice.one_in(4) {
            self.paused = false;
            pair.client.resume().unwrap();
            return pair.collect();
        }
        let Some(relid) = any_channel(&pair.client, pair.dice.roll(DEVICES)) else {
            let _ = pair.client.request_offers();
            return pair.collect();
        };
        match pair.dice.roll(46) {
            0..8 => {
                let _ = pair.create_gpadl(relid);
            }
            8..20 => {
                if let Some((relid, gpadl)) = self.any_list(pair) {
                    pair.open(relid, gpadl);
                }
            }
            20..25 => {
                let _ = pair.client.close(relid);
            }
            25..30 => {
                if let Some((relid, gpadl)) = self.any_list(pair) {
                    pair.teardown(relid, gpadl);
                    if pair.books.teardowns.contains(&gpadl) {
                        self.lists.retain(|(_, list)| *list != gpadl);
                    }
                }
            }
            30..35 => {
                if let Some(relid) = self.rescinded.last()
                    && pair.client.release(*relid).is_ok()
                {
                    self.rescinded.pop();
                }
            }
            35 => {
                let vp = u32::try_from(pair.dice.roll(4)).unwrap();
                let _ = pair.client.modify(relid, vp);
            }
            36 => {
                // A creation or an open that is given up before it ended.
                let lists: Vec<u32> = pair.books.creations.keys().copied().collect();
                if let Some(&gpadl) = lists.first() {
                    let relid = pair.books.creations[&gpadl];
                    pair.teardown(relid, gpadl);
                }
            }
            37 if pair.dice.one_in(4) => {
                self.unloading = pair.unload();
                self.forget();
                self.hear(pair);
            }
            38 if pair.dice.one_in(4) => {
                pair.reset();
                self.unloading = false;
                self.forget();
                pair.take_events();
            }
            39 => {
                let _ = pair.client.pause();
            }
            40 => {
                let pages = MonitorPages { parent_to_child: 0x1000, child_to_parent: 0x2000 };
                let _ = pair.client.modify_connection(Some(pages));
            }
            41 => {
                if let Some((relid, ring_gpadl)) = self.any_list(pair) {
                    let answers = AnswerSlot { vp: 0, sint: 2 };
                    let request = ReservedOpenRequest { ring_gpadl, downstream_page: 2, answers };
                    if pair.client.open_reserved(relid, request).is_ok() {
                        pair.books.reserved_opens.insert(relid);
                    }
                }
            }
            42..44 => {
                let reserved = |channel: &ChannelInfo| channel.state == ChannelState::OpenReserved;
                let relid = pair.client.channels().find(reserved).map(|channel| channel.offer.relid);
                let _ = relid.map(|relid| pair.client.close_reserved(relid));
            }
            _ => {
                let _ = pair.client.release(relid);
            }
        }
        pair.collect();
    }

    fn any_list(&self, pair: &mut Pair) -> Option<(u32, u32)> {
        if self.lists.is_empty() { None } else { Some(self.lists[pair.dice.roll(self.lists.len())]) }
    }
}

fn any_channel(client: &Client, skip: usize) -> Option<u32> {
    let channels: Vec<u32> = client
        .channels()
        .filter(|channel| channel.state != ChannelState::Rescinded)
        .map(|channel| channel.offer.relid)
        .collect();
    channels.get(skip % channels.len().max(1)).copied()
}

fn host_acts(pair: &mut Pair) {
    let device = pair.dice.roll(DEVICES) as u64;
    let offered = pair.books.devices.contains(&DeviceKey(device));
    let withdrawn = pair.server.channels().any(|channel| {
        use vmbus_core::server::ChannelState::{ClientReleased, ClosingClientRelease, Revoked};
        channel.device == DeviceKey(device)
            && matches!(channel.state, ClientReleased | ClosingClientRelease | Revoked)
    });
    if !offered || (withdrawn && pair.withdrawn.contains(&device)) {
        pair.withdrawn.remove(&device);
        pair.offer(device);
    } else if !pair.withdrawn.contains(&device) {
        pair.withdrawn.insert(device);
        pair.rescind(device);
    }
}

/// How often each action and each state was seen: the test shows nothing about what never happened.
#[derive(Default)]
pub(crate) struct Tally(BTreeMap<String, usize>);

impl Tally {
    fn count(&mut self, what: &impl std::fmt::Debug) {
        let text = format!("{what:?}");
        let name = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        *self.0.entry(name.to_owned()).or_default() += 1;
    }
}

/// Looks at a pair after each step, and may meddle.
pub(crate) trait Witness {
    fn step(&mut self, pair: &mut Pair);
}

impl Witness for Tally {
    fn step(&mut self, pair: &mut Pair) {
        pair.events.iter().for_each(|event| self.count(event));
        pair.actions.iter().for_each(|action| self.count(action));
        pair.server.channels().for_each(|channel| self.count(&channel.state));
    }
}

/// One seed's story; in the end everybody leaves and nothing may be left.
pub(crate) fn live(seed: u64, witness: &mut impl Witness) {
    let version = Version::ALL[seed as usize % Version::ALL.len()];
    let policy = if seed.is_multiple_of(4) { Policy::Ask } else { Policy::AllowAll };
    let config = ClientConfig { policy, ..Default::default() };
    let mut pair = Pair::new(seed, ServerConfig::default(), config);
    pair.refuse_one_in = if seed.is_multiple_of(3) { 6 } else { 0 };
    let mut guest = Guest::default();
    for _ in 0..STEPS {
        match pair.dice.roll(12) {
            0..4 => guest.act(&mut pair, version),
            4 => host_acts(&mut pair),
            _ => {
                pair.step();
            }
        }
        witness.step(&mut pair);
        pair.actions.clear();
        guest.hear(&mut pair);
    }
    pair.refuse_one_in = 0;
    pair.run();
    guest.hear(&mut pair);
    if !pair.unload() {
        pair.reset();
    }
    pair.run();
    guest.hear(&mut pair);
    // What is open-reserved was left open.
    let left: Vec<u32> = pair.client.channels().map(|channel| channel.offer.relid).collect();
    for relid in left {
        pair.client.close_reserved(relid).unwrap();
        pair.collect();
    }
    pair.run();
    guest.hear(&mut pair);
    if seed.is_multiple_of(2) {
        pair.reset();
        pair.run();
    }
    assert!(pair.books.opens.is_empty(), "opens without end: {:?}", pair.books.opens);
    assert!(pair.books.creations.is_empty(), "page lists without end: {:?}", pair.books.creations);
    assert!(pair.books.lists.is_empty(), "page lists that nobody released: {:?}", pair.books.lists);
    assert_eq!(pair.server.usage(), Usage::default());
    for device in 0..DEVICES as u64 {
        if pair.books.devices.contains(&DeviceKey(device)) && pair.withdrawn.insert(device) {
            pair.rescind(device);
        }
    }
    assert_eq!(pair.server.channels().count(), 0);
    assert!(pair.books.devices.is_empty());
}

#[test]
fn nothing_is_lost_done_twice_or_left_whatever_happens_when() {
    let mut tally = Tally::default();
    let seeds = std::env::var("CONTROL_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    for seed in 0..seeds {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| live(seed, &mut tally)));
        assert!(outcome.is_ok(), "seed {seed}");
    }
    let states = "ClientReleased Closed Opening Open OpenReserved Closing ClosingReopen OpeningClientRelease \
                  ClosingClientRelease Revoked Reoffered";
    let events = "Offered Rescinded GpadlCreated GpadlTorndown Opened Modified Unloaded Connected ConnectFailed \
                  Paused MonitorPagesModified ReservedClosed";
    let actions = "Open Close Gpadl ReleaseGpadl Retarget Released Disconnected Ask";
    for name in [states, events, actions].join(" ").split_whitespace() {
        assert!(tally.0.get(name).is_some_and(|count| *count >= 10), "{name} is too rare: {:?}", tally.0);
    }
}
