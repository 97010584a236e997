//! Monitor ids go with channel ids, to guests that have monitor pages.

use vmbus_core::client::{self, Client, ClientAction, ClientConfig, ConnectFailure};
use vmbus_core::message::*;
use vmbus_core::server::*;
use vmbus_core::{FeatureFlags, Guid, Version};
use zerocopy::little_endian::{U32, U64};

use crate::pair::Pair;
use crate::root::CLASS;

const PAGES: MonitorPages = MonitorPages { parent_to_child: 0x1000, child_to_parent: 0x2000 };

fn monitored(number: u64) -> OfferParams {
    let instance = Guid::from_wire([number as u8; 16]);
    OfferParams { monitor_latency: Some(1000), ..OfferParams::new(CLASS, instance) }
}

fn pair(pages: Option<MonitorPages>) -> Pair {
    let config = ClientConfig { monitor_pages: pages, ..Default::default() };
    let mut pair = Pair::new(1, ServerConfig::default(), config);
    pair.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
    pair.run();
    pair.client.request_offers().unwrap();
    pair.run();
    pair
}

fn offer(pair: &mut Pair, device: u64) {
    pair.books.devices.insert(DeviceKey(device));
    pair.input(ServerInput::Offer { device: DeviceKey(device), offer: monitored(device) });
    pair.run();
}

/// Monitor ids as the guest knows them, by channel.
fn known(pair: &Pair) -> Vec<Option<u8>> {
    pair.client.channels().map(|channel| channel.offer.monitor).collect()
}

#[test]
fn both_ends_know_the_same_one() {
    let mut pair = pair(Some(PAGES));
    pair.offer(1);
    offer(&mut pair, 2);
    offer(&mut pair, 3);
    assert_eq!(known(&pair), [None, Some(0), Some(1)]);
    let monitors: Vec<_> = pair.server.channels().map(|channel| channel.monitor).collect();
    let monitor = |id| Some(Monitor { id, latency: 1000 });
    assert_eq!(monitors, [None, monitor(0), monitor(1)]);
    let gpadl = pair.create_gpadl(3).unwrap();
    pair.run();
    pair.open(3, gpadl);
    pair.run();
    let opened = pair.actions.iter().find_map(|action| match action {
        ServerAction::Open { open, .. } => Some(open.monitor),
        _ => None,
    });
    assert_eq!(opened, Some(monitor(1)));
    assert_eq!(pair.client.connection().unwrap().monitor_pages, Some(PAGES));
}

#[test]
fn a_guest_without_pages_gets_none() {
    let mut pair = pair(None);
    offer(&mut pair, 1);
    assert_eq!(known(&pair), [None]);
}

#[test]
fn a_hundred_and_twenty_eight_channels_get_one_and_others_are_signalled_directly() {
    let mut pair = pair(Some(PAGES));
    for device in 0..130 {
        offer(&mut pair, device);
    }
    let all: Vec<_> = (0..128).map(Some).chain([None, None]).collect();
    assert_eq!(known(&pair), all);
    pair.rescind(5);
    pair.run();
    offer(&mut pair, 200);
    assert_eq!(known(&pair)[130], None, "the guest has not released channel 6");
    pair.client.release(6).unwrap();
    pair.run();
    offer(&mut pair, 201);
    assert_eq!(known(&pair)[130], Some(5), "of the channel that was released");
}

#[test]
fn are_free_again_when_the_connection_ends() {
    let mut pair = pair(Some(PAGES));
    for _ in 0..300 {
        offer(&mut pair, 1);
        assert!(known(&pair)[0].is_some());
        pair.unload();
        pair.run();
        pair.rescind(1);
        pair.client.connect(Version::NEWEST..=Version::NEWEST).unwrap();
        pair.run();
        pair.client.request_offers().unwrap();
        pair.run();
    }
    assert!(pair.server.channels().next().is_none());
}

#[test]
fn pages_that_are_modified_are_known_to_both_ends_and_count_for_the_next_offer() {
    let mut pair = pair(None);
    offer(&mut pair, 1);
    pair.client.modify_connection(Some(PAGES)).unwrap();
    assert_eq!(pair.client.connection().unwrap().monitor_pages, None, "not before the host has agreed");
    pair.run();
    assert_eq!(pair.client.connection().unwrap().monitor_pages, Some(PAGES));
    offer(&mut pair, 2);
    assert_eq!(known(&pair), [None, Some(0)]);
    pair.client.modify_connection(None).unwrap();
    pair.run();
    assert_eq!(pair.client.connection().unwrap().monitor_pages, None);
}

#[test]
fn the_hosts_pages_are_used_where_both_want_that() {
    let server = ServerConfig { monitor_pages: Some(PAGES), ..Default::default() };
    let mut config = ClientConfig::default();
    config.features |= FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES;
    let mut pair = Pair::new(1, server, config);
    pair.client.connect(Version::Copper..=Version::Copper).unwrap();
    pair.run();
    assert_eq!(pair.client.connection().unwrap().monitor_pages, Some(PAGES));
    pair.client.request_offers().unwrap();
    offer(&mut pair, 1);
    assert_eq!(known(&pair), [Some(0)]);
}

/// A guest that asked for the host's pages hears this answer.
fn answered(parent_to_child: u64, child_to_parent: u64) -> (Client, Vec<ClientAction>) {
    let features = FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES;
    let mut client = Client::new(ClientConfig { features, ..Default::default() });
    client.connect(Version::Copper..=Version::Copper).unwrap();
    let response = VersionResponse {
        supported: 1,
        version_or_connection_id: U32::new(4),
        features: U32::new(features.bits()),
        parent_to_child_monitor: U64::new(parent_to_child),
        child_to_parent_monitor: U64::new(child_to_parent),
        ..Default::default()
    };
    client.handle_message(&Message::from(response).encode(Version::Copper, features));
    let actions = std::iter::from_fn(|| client.poll_action()).skip(1).collect();
    (client, actions)
}

#[test]
fn a_host_that_grants_its_pages_and_names_none_is_not_believed() {
    let (client, actions) = answered(0x1000, 0);
    let fault = client::Fault::BadVersionResponse {
        version: Version::Copper,
        what: "no monitor page for us to write",
    };
    assert!(matches!(actions[0], ClientAction::Fault(found) if found == fault));
    assert!(matches!(actions[1], ClientAction::ConnectFailed(ConnectFailure::NoCommonVersion)));
    assert_eq!(client.connection(), None);
    let (client, _) = answered(0, 0x2000);
    let pages = MonitorPages { parent_to_child: 0, child_to_parent: 0x2000 };
    assert_eq!(client.connection().unwrap().monitor_pages, Some(pages), "the page to us is optional");
}

#[test]
fn an_interrupt_page_is_in_use_before_5_0_only() {
    for version in Version::ALL {
        let config = ClientConfig { interrupt_page: 0x3000, ..Default::default() };
        let mut pair = Pair::new(1, ServerConfig::default(), config);
        pair.client.connect(version..=version).unwrap();
        pair.run();
        let expected = (version < Version::Win10Rs3_1).then_some(0x3000);
        assert_eq!(pair.client.connection().unwrap().interrupt_page, expected, "{version}");
        assert_eq!(pair.server.connection().unwrap().interrupt_page, expected, "{version}");
    }
}

crate::coverage::stories! {
    both_ends_know_the_same_one
    a_guest_without_pages_gets_none
    a_hundred_and_twenty_eight_channels_get_one_and_others_are_signalled_directly
    are_free_again_when_the_connection_ends
    pages_that_are_modified_are_known_to_both_ends_and_count_for_the_next_offer
    the_hosts_pages_are_used_where_both_want_that
    a_host_that_grants_its_pages_and_names_none_is_not_believed
    an_interrupt_page_is_in_use_before_5_0_only
}
