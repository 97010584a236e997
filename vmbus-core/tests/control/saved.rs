//! A server or client that is saved, as bytes, and restored goes on as if nothing had happened.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;

use vmbus_core::Version;
use vmbus_core::client::{Client, ClientAction, ClientConfig};
use vmbus_core::message::{RelidReleased, Unload};
use vmbus_core::saved::{DecodeError, RestoreError, SaveError, SavedClient, SavedServer};
use vmbus_core::server::*;

use crate::hostile::assert_within;
use crate::pair::{Dice, Owed, Pair};
use crate::random::{Witness, live};
use crate::root::{Answers, Root};

/// Seeds whose stories are told twice; `SAVED_SEEDS` in the environment asks for more.
const SEEDS: u64 = 120;

impl Pair {
    /// Another server takes over. It asks again for all that is owed, and for nothing else.
    fn restart_server(&mut self) {
        let saved = self.server.save().unwrap();
        let bytes = saved.encode();
        let decoded = SavedServer::decode(&bytes).unwrap();
        assert_eq!(decoded, saved);
        let mut server = Server::restore(self.server_config.clone(), decoded)
            .unwrap_or_else(|error| panic!("{error}: {saved:?}"));
        assert_eq!(server.usage(), self.server.usage());
        for channel in server.unattached().collect::<Vec<_>>() {
            server.handle(ServerInput::Restored { device: channel.device, presence: Presence::Back });
        }
        let (mut owed, mut lists, mut open) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        while let Some(action) = server.poll_action() {
            let new = match action {
                ServerAction::Ask { id, .. } => owed.insert(Owed::Decision(id)),
                ServerAction::Open { relid, .. } => owed.insert(Owed::Opened(relid)),
                ServerAction::Close { relid, .. } => owed.insert(Owed::Closed(relid)),
                ServerAction::ReleaseGpadl { relid, gpadl, .. } => {
                    owed.insert(Owed::GpadlReleased(relid, gpadl))
                }
                ServerAction::Gpadl { relid, gpadl, .. } => lists.insert((relid, gpadl)),
                ServerAction::Reattach { relid, .. } => open.insert(relid),
                other => panic!("a restored server does {other:?}"),
            };
            assert!(new, "something is asked for twice");
        }
        let opening = |relid: &u32| self.owed.contains(&Owed::Opened(*relid));
        let serving = self.books.serving.keys().copied();
        let was_open = serving.filter(|relid| !self.books.closing.contains(relid) && !opening(relid));
        assert_eq!(open, was_open.collect());
        assert_eq!(lists, self.books.lists.keys().copied().collect());
        let mut was_owed: BTreeSet<Owed> = self.owed.iter().copied().collect();
        // Questions are withdrawn silently; those are not asked again.
        was_owed.retain(|one| match one {
            Owed::Decision(_) => owed.contains(one),
            Owed::GuestDecision(_) => false,
            Owed::Opened(_) | Owed::Closed(_) | Owed::GpadlReleased(..) => true,
        });
        assert_eq!(owed, was_owed);
        assert_eq!(server.save().unwrap(), saved, "a restored server is the same");
        self.server = server;
    }

    fn restart_client(&mut self) {
        let saved = self.client.save().unwrap();
        let bytes = saved.encode();
        let decoded = SavedClient::decode(&bytes).unwrap();
        assert_eq!(decoded, saved);
        let mut client = Client::restore(self.client_config.clone(), decoded)
            .unwrap_or_else(|error| panic!("{error}: {saved:?}"));
        let mut owed = BTreeSet::new();
        while let Some(action) = client.poll_action() {
            let ClientAction::Ask { id, .. } = action else { panic!("a restored client does {action:?}") };
            assert!(owed.insert(Owed::GuestDecision(id)));
        }
        let mut was_owed: BTreeSet<Owed> = self.owed.iter().copied().collect();
        was_owed.retain(|one| owed.contains(one));
        assert_eq!(owed, was_owed, "nothing is asked that was not");
        assert_eq!(client.save().unwrap(), saved, "a restored client is the same");
        assert!(client.channels().eq(self.client.channels()));
        self.client = client;
    }

    /// An open that a device has not answered, of a guest that left: after a restore nobody wants it, so the device
    /// is not even told.
    fn opens_for_nobody(&self) -> bool {
        let nobody = self.server.connection().is_none();
        nobody && self.owed.iter().any(|owed| matches!(owed, Owed::Opened(_)))
    }
}

/// Writes down everything that both ends do, and restarts them in between.
struct Journal {
    lines: Vec<String>,
    restarts: Option<Dice>,
    restarted: usize,
}

impl Witness for Journal {
    fn step(&mut self, pair: &mut Pair) {
        self.lines.extend(pair.events.iter().map(|event| format!("{event:?}")));
        self.lines.extend(pair.actions.iter().map(|action| format!("{action:?}")));
        let Some(dice) = &mut self.restarts else { return };
        let (server, client) = (dice.one_in(2), dice.one_in(2));
        if server && !pair.opens_for_nobody() {
            pair.restart_server();
            self.restarted += 1;
        }
        if client {
            pair.restart_client();
        }
    }
}

fn told(seed: u64, restarts: Option<Dice>) -> Journal {
    let mut journal = Journal { lines: Vec::new(), restarts, restarted: 0 };
    live(seed, &mut journal);
    journal
}

#[test]
fn a_story_with_restarts_at_any_step_is_the_story_without() {
    let seeds = std::env::var("SAVED_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let mut happened = 0;
    for seed in 0..seeds {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let (straight, restarted) = (told(seed, None), told(seed, Some(Dice::new(!seed))));
            happened += straight.lines.len();
            assert!(restarted.restarted > 100, "too few restarts show nothing");
            for (at, (one, other)) in straight.lines.iter().zip(&restarted.lines).enumerate() {
                assert_eq!(one, other, "line {at}");
            }
            assert_eq!(straight.lines.len(), restarted.lines.len());
        }));
        assert!(outcome.is_ok(), "seed {seed}");
    }
    assert!(happened as u64 > 100 * seeds, "too little happened: {happened} lines");
}

/// Whoever keeps saved state may have changed it. What is restored from it nevertheless is a server like any other:
/// within its quotas, and it ends when its guest is reset and its devices do what they are told.
struct Forger {
    dice: Dice,
    refused: BTreeSet<String>,
    restored: usize,
}

impl Witness for Forger {
    fn step(&mut self, pair: &mut Pair) {
        let server = pair.server.save().unwrap().encode();
        let client = pair.client.save().unwrap().encode();
        if let Ok(saved) = SavedServer::decode(&self.forge(server)) {
            match Server::restore(pair.server_config.clone(), saved) {
                Ok(server) => {
                    self.restored += 1;
                    self.play(server, pair.server_config.quotas);
                }
                Err(error) => self.note(&error),
            }
        }
        if let Ok(saved) = SavedClient::decode(&self.forge(client)) {
            match Client::restore(pair.client_config.clone(), saved) {
                Ok(mut client) => {
                    self.restored += 1;
                    client.reset();
                    assert_eq!((client.connection(), client.channels().count()), (None, 0));
                }
                Err(error) => self.note(&error),
            }
        }
    }
}

impl Forger {
    fn note(&mut self, error: &impl std::fmt::Display) {
        self.refused.insert(error.to_string().replace(|c: char| c.is_ascii_digit(), ""));
    }

    fn forge(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.dice.roll(3) {
            let at = self.dice.roll(bytes.len());
            match self.dice.roll(4) {
                0 => bytes[at] ^= 1 << self.dice.roll(8),
                1 | 2 => bytes[at] = self.dice.roll(8) as u8,
                _ => {
                    // A part twice, or none.
                    let end = at + self.dice.roll(bytes.len() - at);
                    let part: Vec<u8> = bytes.splice(at..end, []).collect();
                    if self.dice.one_in(2) {
                        bytes.splice(at..at, [part.clone(), part].concat());
                    }
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        bytes
    }

    fn play(&mut self, mut server: Server, quotas: Quotas) {
        assert_within(server.usage(), quotas);
        for channel in server.unattached().collect::<Vec<_>>() {
            let presence = if self.dice.one_in(3) { Presence::Gone } else { Presence::Back };
            server.handle(ServerInput::Restored { device: channel.device, presence });
        }
        let mut devices = DutifulDevices::default();
        for _ in 0..self.dice.roll(20) {
            let mut payload = vec![self.dice.roll(24) as u8, 0, 0, 0, 0, 0, 0, 0];
            payload.extend((0..8).flat_map(|_| [self.dice.roll(8) as u8, 0, 0, 0]));
            server.handle(ServerInput::Message { connection_id: 4, payload: &payload });
            assert_within(server.usage(), quotas);
            if self.dice.one_in(2) {
                devices.answer(&mut server);
            }
        }
        devices.answer(&mut server);
        devices.ended = false;
        server.handle(ServerInput::Reset);
        devices.answer(&mut server);
        assert!(devices.ended, "a reset ends: {server:?}");
        assert_eq!(server.usage(), Usage::default());
    }
}

/// Devices and policy that do what they are told.
#[derive(Default)]
struct DutifulDevices {
    ended: bool,
}

impl DutifulDevices {
    fn answer(&mut self, server: &mut Server) {
        while let Some(action) = server.poll_action() {
            let input = match action {
                ServerAction::Ask { id, .. } => ServerInput::Decided { id, answer: Answer::Allow },
                ServerAction::Open { relid, .. } => ServerInput::Opened { relid, result: Ok(()) },
                ServerAction::Close { relid, .. } => ServerInput::Closed { relid },
                ServerAction::ReleaseGpadl { relid, gpadl, .. } => {
                    ServerInput::GpadlReleased { relid, gpadl }
                }
                ServerAction::Connect(request) => ServerInput::ConnectResult { request, result: Ok(()) },
                ServerAction::Fault(fault) => {
                    assert_eq!(fault.whose(), Whose::Peer, "{fault}");
                    continue;
                }
                ServerAction::Disconnected => {
                    self.ended = true;
                    continue;
                }
                ServerAction::Send { .. }
                | ServerAction::Reattach { .. }
                | ServerAction::Gpadl { .. }
                | ServerAction::Retarget { .. }
                | ServerAction::Released { .. }
                | ServerAction::Declined { .. }
                | ServerAction::Connected(_)
                | ServerAction::MonitorPages(_) => continue,
            };
            server.handle(input);
        }
    }
}

#[test]
fn forged_state_is_refused_or_harmless() {
    let mut forger = Forger { dice: Dice::new(1), refused: BTreeSet::new(), restored: 0 };
    for seed in 0..SEEDS / 2 {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| live(seed, &mut forger)));
        assert!(outcome.is_ok(), "seed {seed}");
    }
    let said = forger.refused.len();
    assert!(said > 20, "too few ways to be refused were tried: {:?}", forger.refused);
    assert!(forger.restored > 1000, "too few forgeries went through: {}", forger.restored);
}

/// Channel 1 open for the guest of `root`, saved and restored.
fn restored(server: &Server) -> Server {
    let bytes = server.save().unwrap().encode();
    Server::restore(ServerConfig::default(), SavedServer::decode(&bytes).unwrap()).unwrap()
}

#[test]
fn actions_must_be_taken_before_a_server_is_saved() {
    let mut server = Server::new(ServerConfig::default());
    server.handle(ServerInput::Reset);
    assert_eq!(server.save(), Err(SaveError::ActionsWaiting(1)));
    assert!(server.poll_action().is_some());
    assert!(server.save().is_ok());
}

#[test]
fn an_open_device_takes_up_its_channel_again() {
    let mut root = Root::opened();
    root.server = restored(&root.server);
    assert_eq!(root.lines(), [""; 0], "nothing before it is known who is there");
    root.server.handle(ServerInput::Restored { device: DeviceKey(1), presence: Presence::Back });
    assert_eq!(root.lines(), ["gpadl 1/5", "reattach 1"]);
    assert_eq!(root.close(1), ["close 1"]);
}

#[test]
fn a_device_that_does_not_come_back_is_rescinded_and_may_come_later() {
    let mut root = Root::opened();
    root.server = restored(&root.server);
    root.server.handle(ServerInput::Restored { device: DeviceKey(1), presence: Presence::Gone });
    assert_eq!(root.lines(), ["RESCIND 1"], "nobody is told to close who is not there");
    assert_eq!(root.offer(1), [""; 0]);
    assert_eq!(root.say(RelidReleased { relid: 1.into() }), ["OFFER 1"]);
}

#[test]
fn a_device_that_nobody_spoke_for_is_gone_when_the_guest_speaks() {
    let mut root = Root::opened();
    root.server = restored(&root.server);
    assert_eq!(root.say(Unload {}), ["RESCIND 1", "released 1", "disconnected", "UNLOADED"]);
}

#[test]
fn an_end_goes_on_where_devices_were_closing() {
    let mut root = Root::opened();
    root.answers = Answers::Policy;
    assert_eq!(root.say(Unload {}), ["close 1"]);
    root.server = restored(&root.server);
    root.server.handle(ServerInput::Restored { device: DeviceKey(1), presence: Presence::Back });
    assert_eq!(root.lines(), ["gpadl 1/5", "close 1"]);
    let mut gone = restored(&root.server);
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    gone.handle(ServerInput::Restored { device: DeviceKey(1), presence: Presence::Gone });
    root.server = gone;
    assert_eq!(root.lines(), ["released 1", "disconnected", "UNLOADED"]);
}

#[test]
fn an_open_for_a_guest_that_left_is_not_begun_again() {
    let mut root = Root::opening();
    assert_eq!(root.say(Unload {}), [""; 0]);
    root.server = restored(&root.server);
    root.server.handle(ServerInput::Restored { device: DeviceKey(1), presence: Presence::Back });
    assert_eq!(root.lines(), ["gpadl 1/5", "release 1/5"]);
}

#[test]
fn quotas_of_the_new_server_bind() {
    let root = Root::opened();
    let saved = root.server.save().unwrap();
    let config = ServerConfig { quotas: Quotas { pages: 3, ..Default::default() }, ..Default::default() };
    let error = Server::restore(config, saved.clone()).unwrap_err();
    assert_eq!(error, RestoreError::OverQuota { quota: Quota::Pages, limit: 3 });
    let config = ServerConfig { versions: Version::V1..=Version::Win10, ..Default::default() };
    let error = Server::restore(config, saved).unwrap_err();
    assert_eq!(error, RestoreError::Connection("a version that is not spoken here"));
}

#[test]
fn fields_of_newer_code_are_ignored() {
    let root = Root::opened();
    let saved = root.server.save().unwrap();
    // Field 900, a number; field 901, some bytes.
    let newer = [&[0xa0, 0x38, 7, 0xaa, 0x38, 3, 1, 2, 3][..], &saved.encode()[..]].concat();
    assert_eq!(SavedServer::decode(&newer).unwrap(), saved);
}

#[test]
fn state_of_older_code_is_read() {
    // A server that was saved when only this much was known of it: connected with 5.3 (field 3), device 9 (field 5)
    // offered as channel 1 and idle, channel id 2 the next one (field 10), and the end.
    let agreed = [0x08, 0x83, 0x80, 0x14, 0x20, 2, 0x28, 4];
    let connected = [&[0x0a, 8][..], &agreed[..], &[0x10, 2]].concat();
    let channel = [0x08, 9, 0x10, 1, 0x1a, 0, 0x20, 2, 0x4a, 0];
    let end = [0xc5, 0x3e, 0x31, 0x56, 0x52, 0x53];
    let bytes = [&[0x1a, 12][..], &connected[..], &[0x2a, 10], &channel[..], &[0x50, 2], &end[..]].concat();
    let server = Server::restore(ServerConfig::default(), SavedServer::decode(&bytes).unwrap()).unwrap();
    assert_eq!(server.connection().unwrap().version, Version::Iron);
    let channel = server.channels().next().unwrap();
    assert_eq!((channel.device, channel.relid), (DeviceKey(9), Some(1)));
    assert_eq!(channel.state, ChannelState::Closed);
}

#[test]
fn bytes_that_are_not_all_there_or_somebody_elses_are_refused() {
    let root = Root::opened();
    let bytes = root.server.save().unwrap().encode();
    for len in 0..bytes.len() {
        assert!(SavedServer::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
    let client = Client::new(ClientConfig::default()).save().unwrap().encode();
    assert_eq!(SavedServer::decode(&client), Err(DecodeError::NotThis("a server")));
    assert!(SavedClient::decode(&bytes).is_err());
}

#[test]
fn many_small_parts_do_not_become_a_large_state() {
    // Empty channels, two bytes each.
    let bytes = [0x2a, 0].repeat(1 << 20);
    assert_eq!(SavedServer::decode(&bytes), Err(DecodeError::TooManyParts { limit: 1 << 18 }));
}
