//! Feature flags of 6.0: granted if both ends want them, without effect otherwise.

use vmbus_core::client::{ClientConfig, ClientError, OpenRequest, SignalParameters};
use vmbus_core::message::*;
use vmbus_core::server::*;
use vmbus_core::{FeatureFlags, Version};
use zerocopy::little_endian::{U16, U32};

use crate::pair::{Pair, open_request};
use crate::root::{CLASS, Root, open_message};

/// A guest of 6.0 with these features, whose host grants all; device 1 is offered with these flags.
fn pair(features: FeatureFlags, flags: OfferFlags) -> Pair {
    let server = ServerConfig { features: FeatureFlags::all(), ..Default::default() };
    let mut pair = Pair::new(1, server, ClientConfig { features, ..Default::default() });
    pair.client.connect(Version::Copper..=Version::Copper).unwrap();
    pair.run();
    pair.client.request_offers().unwrap();
    pair.run();
    let offer = OfferParams { flags, ..OfferParams::new(CLASS, CLASS) };
    pair.books.devices.insert(DeviceKey(1));
    pair.input(ServerInput::Offer { device: DeviceKey(1), offer });
    pair.run();
    pair
}

fn open(pair: &mut Pair, request: OpenRequest) -> Result<Open, ClientError> {
    let ring_gpadl = pair.create_gpadl(1).unwrap();
    pair.run();
    let open_id = pair.client.open(1, OpenRequest { ring_gpadl, ..request })?;
    pair.books.opens.insert(open_id, 1);
    pair.run();
    let open = pair.actions.iter().rev().find_map(|action| match action {
        ServerAction::Open { open, .. } => Some(open.clone()),
        _ => None,
    });
    Ok(open.expect("the device was told to open"))
}

#[test]
fn no_default_grants_what_needs_help_from_outside() {
    let mut root = Root::new(ServerConfig::default());
    root.features = FeatureFlags::all();
    root.contact(Version::Copper);
    let granted = root.server.connection().map(|connection| connection.features);
    let by_configuration = FeatureFlags::CHANNEL_INTERRUPT_REDIRECTION
        | FeatureFlags::CONFIDENTIAL_CHANNELS
        | FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES
        | FeatureFlags::GPA_PINNING;
    // A client id needs the longer message, which this contact is.
    assert_eq!(granted, Some(FeatureFlags::NAMED - by_configuration));
}

#[test]
fn bits_without_a_name_are_never_granted_and_hurt_nobody() {
    for bit in 8..32 {
        let features = FeatureFlags::from_bits_retain(1 << bit);
        let pair = pair(features, OfferFlags::empty());
        assert_eq!(pair.server.connection().unwrap().features, FeatureFlags::empty(), "bit {bit}");
        assert_eq!(pair.client.channels().count(), 1);
    }
}

#[test]
fn an_interrupt_is_redirected_if_that_is_negotiated() {
    let redirect = OpenRequest { flags: OpenFlags::REDIRECT_INTERRUPT, ..open_request(0) };
    let mut granted = pair(FeatureFlags::CHANNEL_INTERRUPT_REDIRECTION, OfferFlags::empty());
    assert_eq!(open(&mut granted, redirect).unwrap().flags, OpenFlags::REDIRECT_INTERRUPT);
    granted.client.close(1).unwrap();
    granted.run();
    assert_eq!(open(&mut granted, open_request(0)).unwrap().flags, OpenFlags::empty(), "for one open");
    let mut refused = pair(FeatureFlags::empty(), OfferFlags::empty());
    assert_eq!(open(&mut refused, redirect).unwrap_err(), ClientError::NotNegotiated(Version::Copper));
}

#[test]
fn each_feature_makes_its_own_fields_of_an_open_count_and_no_others() {
    let message = OpenChannel {
        connection_id: U32::new(0x77),
        event_flag: U16::new(99),
        flags: U16::new(0xffff),
        ..open_message(1, 7, 5)
    };
    let signals = FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS;
    let redirection = FeatureFlags::CHANNEL_INTERRUPT_REDIRECTION;
    for (features, expected) in [
        (FeatureFlags::empty(), (0x2001, 1, 0)),
        (signals, (0x77, 99, 0)),
        (redirection, (0x2001, 1, 1)),
        (signals | redirection, (0x77, 99, 1)),
    ] {
        let config = ServerConfig { features: FeatureFlags::all(), ..Default::default() };
        let mut root = Root::new(config);
        root.features = features;
        root.connect(Version::Copper);
        root.say(RequestOffers {});
        root.offer(1);
        root.share(1, 5);
        assert_eq!(root.say(message), ["open 1"]);
        let open = &root.opens[0];
        let found = (open.connection_id, open.event_flag, open.flags.bits());
        assert_eq!(found, expected, "{features:?}");
        root.device_opened(1);
        root.close(1);
        root.device_closed(1);
        // The short form is as good: nothing was chosen.
        let short = Message::from(message).encode(Version::Copper, FeatureFlags::empty());
        assert_eq!(short.len(), 148);
        root.input(ServerInput::Message { connection_id: 4, payload: &short });
        let open = &root.opens[1];
        assert_eq!((open.connection_id, open.event_flag, open.flags), (0x2001, 1, OpenFlags::empty()));
    }
}

#[test]
fn confidential_and_pinned_flags_are_seen_only_where_negotiated() {
    let plain = OfferFlags::ENUMERATE_DEVICE_INTERFACE;
    let confidential = OfferFlags::CONFIDENTIAL_RING_BUFFER | OfferFlags::CONFIDENTIAL_EXTERNAL_MEMORY;
    let pinned = OfferFlags::PINNED_EXTERNAL_MEMORY;
    let old = OfferFlags::LOOPBACK | OfferFlags::PARENT | OfferFlags::REQUEST_MONITOR;
    for (features, expected) in [
        (FeatureFlags::empty(), plain),
        (FeatureFlags::CONFIDENTIAL_CHANNELS, plain | confidential),
        (FeatureFlags::GPA_PINNING, plain | pinned),
        (FeatureFlags::all(), plain | confidential | pinned),
    ] {
        let pair = pair(features, plain | confidential | pinned | old);
        let flags = pair.client.channels().next().unwrap().offer.flags;
        assert_eq!(flags, expected, "{features:?}");
    }
}

#[test]
fn a_guest_takes_old_meanings_of_confidential_bits_for_nothing() {
    let mut pair = Pair::connected(1, Version::Win8);
    let offer = OfferChannel {
        relid: U32::new(9),
        flags: U16::new(0x0007),
        connection_id: U32::new(9),
        ..Default::default()
    };
    pair.client.handle_message(&Message::from(offer).encode(Version::Win8, FeatureFlags::empty()));
    let flags = pair.client.channels().next().unwrap().offer.flags;
    assert_eq!(flags, OfferFlags::ENUMERATE_DEVICE_INTERFACE);
}

#[test]
fn what_was_not_negotiated_is_refused_at_both_ends() {
    let mut pair = pair(FeatureFlags::empty(), OfferFlags::empty());
    let error = ClientError::NotNegotiated(Version::Copper);
    assert_eq!(pair.client.pause(), Err(error));
    assert_eq!(pair.client.modify_connection(None), Err(error));
    let signals = Some(SignalParameters { connection_id: 9, event_flag: 9 });
    let request = OpenRequest { signals, ..open_request(0) };
    assert_eq!(open(&mut pair, request).unwrap_err(), error);
    let mut root = Root::new(ServerConfig::default());
    root.connect(Version::Copper);
    root.say(RequestOffers {});
    let gated: [Message<'_>; 3] = [Pause {}.into(), Resume {}.into(), ModifyConnection::default().into()];
    for message in gated {
        assert_eq!(root.say(message), ["fault of the guest"]);
    }
}

crate::coverage::stories! {
    no_default_grants_what_needs_help_from_outside
    bits_without_a_name_are_never_granted_and_hurt_nobody
    an_interrupt_is_redirected_if_that_is_negotiated
    each_feature_makes_its_own_fields_of_an_open_count_and_no_others
    confidential_and_pinned_flags_are_seen_only_where_negotiated
    a_guest_takes_old_meanings_of_confidential_bits_for_nothing
    what_was_not_negotiated_is_refused_at_both_ends
}
