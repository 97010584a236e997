//! Every version of a guest meets every version of a host.

use vmbus_core::client::{
    self, AnswerSlot, ClientAction, ClientConfig, ConnectFailure, ConnectRequest, MonitorPages,
    ReservedOpenRequest,
};
use vmbus_core::message::{Direction, MESSAGES};
use vmbus_core::server::{self, ServerConfig, ServerInput};
use vmbus_core::trace::{End, Item, record};
use vmbus_core::{FeatureFlags, Guid, Status, Version};

use crate::pair::Pair;
use crate::root::{CLASS, page_list};

fn meet(host: core::ops::RangeInclusive<Version>, guest: core::ops::RangeInclusive<Version>) -> Pair {
    let config = ServerConfig { versions: host, ..Default::default() };
    let mut pair = Pair::new(1, config, ClientConfig::default());
    pair.client.connect(guest).unwrap();
    pair.run();
    pair
}

/// Offer, share, open, close, tear down, rescind, release, unload, in this version.
fn live_a_life(pair: &mut Pair) {
    pair.take_events();
    pair.offer(1);
    pair.client.request_offers().unwrap();
    pair.run();
    let offered = pair.take_events();
    assert!(
        matches!(offered[..], [ClientAction::Offered(_), ClientAction::AllOffersDelivered]),
        "{offered:?}"
    );
    let gpadl = pair.create_gpadl(1).unwrap();
    pair.run();
    pair.open(1, gpadl);
    pair.run();
    let [created, opened] = &pair.take_events()[..] else { panic!("one creation, one open") };
    assert!(matches!(created, ClientAction::GpadlCreated { relid: 1, result: Ok(()), .. }));
    assert!(matches!(opened, ClientAction::Opened { relid: 1, result: Ok(()), .. }));
    pair.client.close(1).unwrap();
    pair.teardown(1, gpadl);
    pair.run();
    pair.rescind(1);
    pair.run();
    pair.client.release(1).unwrap();
    pair.run();
    let events = pair.take_events();
    assert!(
        matches!(events[..], [ClientAction::GpadlTorndown { .. }, ClientAction::Rescinded { relid: 1 }]),
        "{events:?}"
    );
    pair.client.unload().unwrap();
    pair.run();
    assert!(matches!(pair.take_events()[..], [ClientAction::Unloaded]));
    assert!(pair.books.devices.is_empty());
    assert_eq!(pair.server.usage(), Default::default());
    assert!(pair.client.connection().is_none() && pair.server.connection().is_none());
}

#[test]
fn host_and_guest_of_any_two_versions_agree_on_the_older_one() {
    for host in Version::ALL {
        for guest in Version::ALL {
            let mut pair = meet(Version::OLDEST..=host, Version::OLDEST..=guest);
            let agreed = pair.client.connection().expect("they have a version in common");
            assert_eq!(agreed.version, host.min(guest), "host {host} guest {guest}");
            assert_eq!(pair.server.connection().map(|connection| connection.version), Some(agreed.version));
            assert_eq!(agreed.message_connection_id, if agreed.version.is_multi_client() { 4 } else { 1 });
            live_a_life(&mut pair);
        }
    }
}

/// Does everything that the version and its features allow, and notes what it refuses.
fn do_everything(host: Version, guest: Version) -> Pair {
    let pages = MonitorPages { parent_to_child: 0x1000, child_to_parent: 0x2000 };
    let server = ServerConfig {
        versions: Version::OLDEST..=host,
        features: FeatureFlags::all(),
        ..Default::default()
    };
    let config = ClientConfig {
        features: FeatureFlags::all(),
        interrupt_page: 0x3000,
        monitor_pages: Some(pages),
        client_id: Some(CLASS),
        target_vp: 3,
        ..Default::default()
    };
    let mut pair = Pair::new(1, server, config);
    pair.client.connect(Version::OLDEST..=guest).unwrap();
    pair.run();
    pair.offer(1);
    pair.client.request_offers().unwrap();
    pair.run();
    let long = pair.client.create_gpadl(1, &page_list(100)).unwrap();
    pair.books.creations.insert(long, 1);
    pair.run();
    pair.open(1, long);
    pair.run();
    let _ = pair.client.modify(1, 2);
    pair.collect();
    pair.run();
    pair.client.close(1).unwrap();
    pair.run();
    let answers = AnswerSlot { vp: 0, sint: 2 };
    let reserved = ReservedOpenRequest { ring_gpadl: long, downstream_page: 2, answers };
    if pair.client.open_reserved(1, reserved).is_ok() {
        pair.books.reserved_opens.insert(1);
        pair.run();
        pair.client.close_reserved(1).unwrap();
        pair.run();
    }
    pair.teardown(1, long);
    pair.run();
    let request = ConnectRequest { endpoint: CLASS, service: CLASS, silo: Guid::ZERO };
    if pair.client.connect_service(request).is_ok() {
        pair.run();
        let result = Err(Status::CONNECTION_REFUSED);
        pair.input(ServerInput::ConnectResult { request, result });
        pair.run();
    }
    let _ = pair.client.modify_connection(None);
    pair.run();
    if pair.client.pause().is_ok() {
        pair.run();
        pair.client.resume().unwrap();
        pair.run();
    }
    pair.rescind(1);
    pair.run();
    pair.client.release(1).unwrap();
    pair.run();
    pair
}

#[test]
fn any_two_versions_say_and_hear_what_the_older_one_knows_and_no_more() {
    for host in Version::ALL {
        for guest in Version::ALL {
            let agreed = host.min(guest);
            let (mut pair, seen) = record(|| {
                let mut pair = do_everything(host, guest);
                let connections = (pair.server.connection().unwrap(), pair.client.connection().unwrap());
                check_agreement(agreed, connections.0, connections.1);
                pair.unload();
                pair.run();
                pair
            });
            let newest = agreed == Version::Copper;
            for info in MESSAGES {
                let known = agreed >= info.first_version && (newest || info.gate.is_empty());
                let number = info.number;
                let (says, hears) = match info.direction {
                    Direction::ToHost => (End::Guest, End::Host),
                    Direction::ToGuest => (End::Host, End::Guest),
                };
                assert_eq!(
                    seen.contains(&Item::Said { end: says, number }),
                    known,
                    "{host} {guest} {}",
                    info.name
                );
                assert_eq!(
                    seen.contains(&Item::Heard { end: hears, number }),
                    known,
                    "{host} {guest} {}",
                    info.name
                );
            }
            check_posts(&mut pair, agreed, guest);
        }
    }
}

fn check_agreement(agreed: Version, server: server::Connection, client: client::Connection) {
    assert_eq!((server.version, client.version), (agreed, agreed));
    let features = if agreed == Version::Copper {
        FeatureFlags::NAMED - FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES
    } else {
        FeatureFlags::empty()
    };
    assert_eq!((server.features, client.features), (features, features), "{agreed}");
    let old = agreed < Version::Win10Rs3_1;
    assert_eq!(server.interrupt_page, old.then_some(0x3000), "{agreed}");
    assert_eq!(client.interrupt_page, server.interrupt_page);
    assert_eq!(server.target_vp, if agreed >= Version::Win8_1 { 3 } else { 0 }, "{agreed}");
    assert_eq!(server.client_id, (agreed == Version::Copper).then_some(CLASS), "{agreed}");
    assert_eq!(client.message_connection_id, if old { 1 } else { 4 });
}

/// One contact for each version from the guest's newest down, and everything else on the connection agreed on.
fn check_posts(pair: &mut Pair, agreed: Version, guest: Version) {
    const INITIATE_CONTACT: u32 = 14;
    let of = |version: Version| if version.is_multi_client() { 4 } else { 1 };
    let (contacts, others): (Vec<_>, Vec<_>) =
        pair.posted.drain(..).partition(|(_, number)| *number == INITIATE_CONTACT);
    let tried = Version::ALL.into_iter().rev().filter(|version| (agreed..=guest).contains(version));
    assert_eq!(contacts.iter().map(|(id, _)| *id).collect::<Vec<_>>(), tried.map(of).collect::<Vec<_>>());
    assert!(others.iter().all(|(id, _)| *id == of(agreed)), "{agreed}: {others:?}");
}

#[test]
fn a_host_and_a_guest_of_one_version_each_connect_only_if_it_is_the_same() {
    for host in Version::ALL {
        for guest in Version::ALL {
            let mut pair = meet(host..=host, guest..=guest);
            assert_eq!(pair.client.connection().is_some(), host == guest, "host {host} guest {guest}");
            if host != guest {
                let events = pair.take_events();
                let failed = ClientAction::ConnectFailed(ConnectFailure::NoCommonVersion);
                assert_eq!(format!("{events:?}"), format!("{:?}", [failed]));
            }
        }
    }
}

#[test]
fn a_guest_falls_back_below_5_0_where_connection_4_does_not_exist() {
    let mut pair = Pair::new(1, ServerConfig::default(), ClientConfig::default());
    pair.missing = vec![4];
    pair.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
    pair.run();
    assert_eq!(pair.client.connection().unwrap().version, Version::Win10Rs3);
    live_a_life(&mut pair);
}

#[test]
fn a_guest_that_finds_no_host_says_so() {
    let mut pair = Pair::new(1, ServerConfig::default(), ClientConfig::default());
    pair.missing = vec![1, 4];
    pair.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
    pair.run();
    assert!(matches!(pair.take_events()[..], [ClientAction::ConnectFailed(ConnectFailure::NoHost)]));
}

#[test]
fn features_are_what_both_ends_know() {
    for host in 0..256_u32 {
        let host = FeatureFlags::from_bits_retain(host);
        let config = ServerConfig { features: host, ..Default::default() };
        let guest = FeatureFlags::PAUSE_RESUME | FeatureFlags::MODIFY_CONNECTION | FeatureFlags::GPA_PINNING;
        let mut pair = Pair::new(1, config, ClientConfig { features: guest, ..Default::default() });
        pair.client.connect(Version::Copper..=Version::Copper).unwrap();
        pair.run();
        let agreed = pair.client.connection().unwrap().features;
        assert_eq!(agreed, host & guest);
        assert_eq!(pair.server.connection().unwrap().features, agreed);
    }
}

#[test]
fn a_message_connection_of_the_hosts_choice_is_used_from_5_0_on() {
    let config = ServerConfig { message_connection_id: 0x1234, ..Default::default() };
    let mut pair = Pair::new(1, config, ClientConfig::default());
    pair.missing = vec![1];
    pair.client.connect(Version::OLDEST..=Version::Iron).unwrap();
    pair.run();
    assert_eq!(pair.client.connection().unwrap().message_connection_id, 0x1234);
    pair.missing.push(4);
    live_a_life(&mut pair);
}

crate::coverage::stories! {
    host_and_guest_of_any_two_versions_agree_on_the_older_one
    any_two_versions_say_and_hear_what_the_older_one_knows_and_no_more
    a_host_and_a_guest_of_one_version_each_connect_only_if_it_is_the_same
    a_guest_falls_back_below_5_0_where_connection_4_does_not_exist
    a_guest_that_finds_no_host_says_so
    features_are_what_both_ends_know
    a_message_connection_of_the_hosts_choice_is_used_from_5_0_on
}
