//! Every version of a guest meets every version of a host.

use vmbus_core::client::{ClientAction, ClientConfig, ConnectFailure};
use vmbus_core::server::ServerConfig;
use vmbus_core::{FeatureFlags, Version};

use crate::pair::Pair;

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
    a_host_and_a_guest_of_one_version_each_connect_only_if_it_is_the_same
    a_guest_falls_back_below_5_0_where_connection_4_does_not_exist
    a_guest_that_finds_no_host_says_so
    features_are_what_both_ends_know
    a_message_connection_of_the_hosts_choice_is_used_from_5_0_on
}
