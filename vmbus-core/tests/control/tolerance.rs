//! What is longer, shorter, newer or stranger than it should be.

use vmbus_core::client::{Client, ClientConfig};
use vmbus_core::message::*;
use vmbus_core::server::*;
use vmbus_core::{FeatureFlags, Guid, Version};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::client::{Guest, offer};
use crate::root::{CLASS, Root, open_message};

const FAULT: [&str; 1] = ["fault of the guest"];
const ALL: FeatureFlags = FeatureFlags::all();

/// Every message with its longest form, as bytes.
fn every_message(direction: Direction) -> Vec<(&'static MessageInfo, Vec<u8>)> {
    let of_direction = MESSAGES.iter().filter(|info| info.direction == direction);
    of_direction.map(|info| (info, [&info.number.to_le_bytes()[..], &[0; 236]].concat())).collect()
}

#[test]
fn surplus_bytes_change_no_message() {
    for direction in [Direction::ToHost, Direction::ToGuest] {
        for (info, zeros) in every_message(direction).into_iter().filter(|(info, _)| !info.has_pages) {
            let exact = &zeros[..info.full_size];
            let mut surplus = exact.to_vec();
            surplus.resize(MAX_PAYLOAD, 0xff);
            let parse =
                |payload| format!("{:?}", Message::parse(payload, direction, Some((Version::Copper, ALL))));
            assert_eq!(parse(&surplus), parse(exact), "{}", info.name);
            assert!(parse(exact).starts_with("Ok"), "{}", parse(exact));
        }
    }
}

#[test]
fn a_byte_too_few_is_a_fault_of_whoever_sent_it_in_every_version_that_knows_the_message() {
    for version in Version::ALL {
        for (info, zeros) in every_message(Direction::ToHost) {
            let mut root = Root::with_device(version, ServerConfig::default());
            let before = root.server.usage();
            let payload = &zeros[..info.minimum_size - 1];
            let lines = root.input(ServerInput::Message { connection_id: 4, payload });
            assert_eq!(lines, FAULT, "{} in {version}", info.name);
            let fault = root.faults.pop();
            let number = info.number;
            let has_header = payload.len() >= HEADER_SIZE;
            let gated = has_header && (version < info.first_version || !info.gate.is_empty());
            match fault {
                Some(Fault::Malformed(MessageError::TooShort { minimum, .. })) if !gated => {
                    assert_eq!(minimum, info.minimum_size);
                }
                Some(Fault::Malformed(MessageError::NotNegotiated(found))) if gated => {
                    assert_eq!(found, number)
                }
                other => panic!("{} in {version}: {other:?}", info.name),
            }
            assert_eq!(root.server.usage(), before);
            assert_eq!(root.server.connection().map(|connection| connection.version), Some(version));
        }
    }
}

#[test]
fn numbers_that_nobody_knows_and_messages_of_the_other_direction_are_dropped_at_both_ends() {
    for number in [0, 30, 31, 255, 0x8000_0000, u32::MAX] {
        let payload = [number.to_le_bytes().as_slice(), &[0; 100]].concat();
        let mut root = Root::opened();
        assert_eq!(root.input(ServerInput::Message { connection_id: 4, payload: &payload }), FAULT);
        assert_eq!(root.state(), ChannelState::Open);
        let mut guest = Guest::opened();
        guest.client.handle_message(&payload);
        assert_eq!(guest.lines(), ["fault of the host"]);
    }
    for (info, zeros) in every_message(Direction::ToGuest) {
        let mut root = Root::opened();
        let payload = &zeros[..info.full_size];
        assert_eq!(root.input(ServerInput::Message { connection_id: 4, payload }), FAULT, "{}", info.name);
        assert_eq!(root.state(), ChannelState::Open);
    }
    for (info, zeros) in every_message(Direction::ToHost) {
        let mut guest = Guest::opened();
        guest.client.handle_message(&zeros[..info.full_size]);
        assert_eq!(guest.lines(), ["fault of the host"], "{}", info.name);
    }
}

#[test]
fn a_service_is_connected_to_with_the_short_form_on_every_version() {
    for version in Version::ALL.into_iter().filter(|version| *version >= Version::Win10) {
        for (len, expected) in [(40, Guid::ZERO), (55, Guid::ZERO), (56, CLASS), (240, CLASS)] {
            let mut root = Root::with_device(version, ServerConfig::default());
            let request = TlConnectRequest { endpoint_id: CLASS, service_id: CLASS, silo_id: CLASS };
            let mut payload = [21_u64.to_le_bytes().as_slice(), request.as_bytes()].concat();
            payload.resize(len, 0xff);
            root.server.handle(ServerInput::Message { connection_id: 4, payload: &payload });
            let Some(ServerAction::Connect(request)) = root.server.poll_action() else {
                panic!("{version} {len}")
            };
            // A silo that is cut off is none; before 5.2 there is none at all.
            let expected = if version >= Version::Win10Rs5 { expected } else { Guid::ZERO };
            assert_eq!((request.endpoint, request.service), (CLASS, CLASS));
            assert_eq!(request.silo, expected, "{version} {len}");
        }
    }
}

#[test]
fn a_version_response_of_ten_bytes_is_enough_before_5_0() {
    for (version, len) in [(Version::Win8, 10), (Version::Win10Rs3, 12), (Version::Win10Rs3, 240)] {
        let mut client = Client::new(ClientConfig::default());
        client.connect(version..=version).unwrap();
        let response = VersionResponse { supported: 1, ..Default::default() };
        let mut payload = Message::from(response).encode(version, ALL).to_vec();
        payload.resize(len, 0xff);
        client.handle_message(&payload);
        assert_eq!(client.connection().map(|connection| connection.version), Some(version), "{len}");
    }
}

#[test]
fn an_offer_is_short_in_v1_alone() {
    for version in Version::ALL {
        let mut guest = Guest::connected_with(version);
        let long = Message::from(offer(1)).encode(Version::Win7, FeatureFlags::empty());
        guest.client.handle_message(&long[..190]);
        let expected = if version == Version::V1 { "offered 1" } else { "fault of the host" };
        assert_eq!(guest.lines(), [expected], "{version}");
        guest.client.handle_message(&[&long[..], &[0xff; 4]].concat());
        let expected = if version == Version::V1 { "fault of the host" } else { "offered 1" };
        assert_eq!(guest.lines(), [expected], "{version}: rounded up, and taken already in V1");
    }
}

#[test]
fn an_open_is_long_or_short_whatever_was_negotiated() {
    for features in [FeatureFlags::empty(), FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS] {
        for len in [148, 152, 155, 156, 240] {
            let mut root = Root::new(ServerConfig::default());
            root.features = features;
            root.connect(Version::Copper);
            root.say(RequestOffers {});
            root.offer(1);
            root.share(1, 5);
            let open = OpenChannel { connection_id: U32::new(0x77), ..open_message(1, 7, 5) };
            let mut payload = Message::from(open).encode(Version::Copper, ALL).to_vec();
            payload.resize(len, 0xff);
            let lines = root.input(ServerInput::Message { connection_id: 4, payload: &payload });
            assert_eq!(lines, ["open 1"]);
            let chosen = !features.is_empty() && len >= 156;
            assert_eq!(root.opens[0].connection_id, if chosen { 0x77 } else { 0x2001 }, "{features:?} {len}");
        }
    }
}

#[test]
fn a_second_request_for_offers_is_dropped_and_offers_nothing_twice() {
    let mut root = Root::closed();
    for _ in 0..3 {
        assert_eq!(root.say(RequestOffers {}), FAULT);
    }
    assert_eq!(root.faults.pop(), Some(Fault::OffersRequestedTwice));
    assert_eq!(root.offer(2), ["OFFER 2"]);
    root.connect(Version::Iron);
    assert_eq!(root.say(RequestOffers {}).len(), 3, "once per connection");
}

#[test]
fn of_many_contacts_while_disconnecting_the_latest_counts() {
    let mut root = Root::opened();
    let versions = [Version::Win8, Version::Copper, Version::V1, Version::Win10];
    for version in versions {
        root.contact(version);
    }
    root.device_closed(1);
    assert_eq!(root.device_let_go(1, 5), ["disconnected", "VERSION accepted"]);
    assert_eq!(root.server.connection().unwrap().version, Version::Win10);
}

#[test]
fn a_device_that_comes_and_goes_fast_is_never_two_channels_with_one_id() {
    let mut root = Root::closed();
    let mut live = std::collections::BTreeSet::from(["1".to_owned()]);
    for round in 0..5000_u64 {
        let device = 2 + round % 7;
        for line in root.offer(device) {
            let relid = line.strip_prefix("OFFER ").expect("it is free").to_owned();
            assert!(live.insert(relid), "{line}: the id is taken");
        }
        for line in root.rescind(device) {
            let relid = line.strip_prefix("RESCIND ").expect("it was shown");
            assert!(live.contains(relid), "{line}: never offered");
        }
        // The guest is slow: it releases one channel when seven wait for it.
        let released: Vec<String> =
            if round % 7 == 6 { live.iter().filter(|id| *id != "1").cloned().collect() } else { vec![] };
        for relid in released {
            assert_eq!(root.release(relid.parse().unwrap()).len(), 1);
            live.remove(&relid);
        }
    }
    assert_eq!(root.server.usage().channels, live.len());
}
