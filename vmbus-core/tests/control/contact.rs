//! From the first contact to the offers.

use vmbus_core::message::*;
use vmbus_core::server::*;
use vmbus_core::{FeatureFlags, Guid, Status, Version};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::root::{Answers, CLASS, Root};

const NOTHING: [&str; 0] = [];
const FAULT: [&str; 1] = ["fault of the guest"];

fn root() -> Root {
    Root::new(ServerConfig::default())
}

fn contact(version: Version) -> InitiateContact {
    InitiateContact { version: U32::new(version.word()), ..Default::default() }
}

/// The payloads that the server sends for a contact on connection 4.
fn responses(server: &mut Server, contact: InitiateContact) -> Vec<Payload> {
    let payload = [14_u64.to_le_bytes().as_slice(), contact.as_bytes()].concat();
    server.handle(ServerInput::Message { connection_id: 4, payload: &payload });
    let mut sent = Vec::new();
    while let Some(action) = server.poll_action() {
        match action {
            ServerAction::Ask { id, .. } => {
                server.handle(ServerInput::Decided { id, answer: Answer::Allow });
            }
            ServerAction::Send { payload, .. } => sent.push(payload),
            _ => {}
        }
    }
    sent
}

#[test]
fn the_answer_has_the_size_of_its_version() {
    let pages = MonitorPages { parent_to_child: 0x1000, child_to_parent: 0x2000 };
    let config = || ServerConfig { monitor_pages: Some(pages), ..Default::default() };
    let wants = |features| InitiateContact {
        interrupt_page_or_target: InitiateContact::target(2, 0, features),
        ..contact(Version::Copper)
    };
    let cases = [
        (contact(Version::V1), 16),
        (InitiateContact { interrupt_page_or_target: U64::new(2), ..contact(Version::Iron) }, 16),
        (wants(FeatureFlags::empty()), 20),
        (wants(FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES), 40),
        (InitiateContact { version: U32::new(0x0007_0000), ..Default::default() }, 16),
    ];
    for (contact, size) in cases {
        let sent = responses(&mut Server::new(config()), contact);
        assert_eq!(sent.iter().map(|payload| payload.len()).collect::<Vec<_>>(), [size], "{contact:?}");
    }
    let mut server = Server::new(config());
    let sent = responses(&mut server, wants(FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES));
    assert_eq!(sent[0][24..40], [0x1000_u64.to_le_bytes(), 0x2000_u64.to_le_bytes()].concat());
    assert_eq!(server.connection().unwrap().monitor_pages, Some(pages));
    let refused = responses(&mut Server::new(ServerConfig::default()), wants(FeatureFlags::all()));
    assert_eq!(refused[0].len(), 20, "without pages of ours the feature is not granted");
}

#[test]
fn the_answer_names_the_version_before_5_0_and_the_message_connection_from_then_on() {
    for version in Version::ALL {
        let contact = InitiateContact { interrupt_page_or_target: U64::new(2), ..contact(version) };
        let config = ServerConfig { message_connection_id: 77, ..Default::default() };
        let sent = responses(&mut Server::new(config), contact);
        let expected = if version.is_multi_client() { 77 } else { version.word() };
        assert_eq!(sent[0][12..16], expected.to_le_bytes(), "{version}");
    }
}

#[test]
fn a_version_that_nobody_knows_is_not_supported_and_the_next_one_is() {
    let mut root = root();
    let newest =
        InitiateContact { version: U32::new(0x0007_0001), target_vp: U32::new(3), ..Default::default() };
    assert_eq!(root.say_on(4, newest), ["VERSION not supported to 3/2"]);
    assert_eq!(root.contact(Version::Copper), ["VERSION accepted"]);
}

#[test]
fn versions_out_of_our_range_are_not_supported() {
    let mut root = Root::new(ServerConfig { versions: Version::Win8..=Version::Win10, ..Default::default() });
    for version in Version::ALL {
        let supported = (Version::Win8..=Version::Win10).contains(&version);
        let expected = if supported { "VERSION accepted" } else { "VERSION not supported" };
        assert_eq!(root.contact(version).last().map(String::as_str), Some(expected), "{version}");
    }
}

#[test]
fn policy_refuses_a_version_and_the_guest_learns_why_as_far_as_the_version_can_say() {
    for (version, status, expected) in [
        (Version::Iron, Status::ACCESS_DENIED, "VERSION not supported"),
        (Version::Iron, Status::INSUFFICIENT_RESOURCES, "VERSION state 1"),
        (Version::Win8, Status::INSUFFICIENT_RESOURCES, "VERSION state 1"),
        (Version::Win7, Status::INSUFFICIENT_RESOURCES, "VERSION not supported"),
    ] {
        let mut root = root();
        root.answers = Answers::None;
        assert_eq!(root.contact(version), [format!("ask version {version}")]);
        assert_eq!(root.decide(Answer::Deny(status)), [expected]);
        assert_eq!(root.say(RequestOffers {}), FAULT, "nobody is connected");
        root.answers = Answers::Policy;
        root.connect(version);
    }
}

#[test]
fn one_monitor_page_of_two_is_a_failure_that_only_win8_can_be_told() {
    for (version, expected) in [
        (Version::Win7, "VERSION not supported"),
        (Version::Win8, "VERSION state 2"),
        (Version::Iron, "VERSION state 2"),
    ] {
        let mut root = root();
        root.version = version;
        let half = InitiateContact { child_to_parent_monitor: U64::new(0x1000), ..contact(version) };
        assert_eq!(root.say(half), [FAULT[0], expected]);
    }
}

#[test]
fn another_interrupt_source_is_refused_there_and_counts_only_on_connection_4() {
    let mut root = root();
    let other = InitiateContact { interrupt_page_or_target: U64::new(5), ..contact(Version::Iron) };
    assert_eq!(root.say_on(4, other), ["VERSION not supported to 0/5"]);
    assert_eq!(root.say_on(1, other), ["VERSION accepted"]);
    let none = InitiateContact { interrupt_page_or_target: U64::new(16), ..contact(Version::Iron) };
    assert_eq!(root.say_on(4, none), FAULT, "such a source does not exist; the connection lives on");
    assert!(root.server.connection().is_some());
}

#[test]
fn another_trust_level_is_left_alone_from_5_1_on() {
    let target = InitiateContact::target(2, 1, FeatureFlags::empty());
    for (version, expected) in [
        (Version::Win10Rs3_1, "VERSION accepted"),
        (Version::Win10Rs4, FAULT[0]),
        (Version::Copper, FAULT[0]),
    ] {
        let contact = InitiateContact { interrupt_page_or_target: target, ..contact(version) };
        let mut root = root();
        root.version = version;
        assert_eq!(root.say_on(4, contact), [expected], "{version}");
    }
}

#[test]
fn a_contact_that_announces_a_client_id_and_has_none_is_dropped_whole() {
    let mut root = root();
    root.features = FeatureFlags::CLIENT_ID;
    root.connect(Version::Copper);
    let connection = root.server.connection();
    assert_eq!(connection.unwrap().client_id, Some(Guid::ZERO));
    let contact = InitiateContact {
        interrupt_page_or_target: InitiateContact::target(2, 0, FeatureFlags::CLIENT_ID),
        ..contact(Version::Copper)
    };
    let whole = Message::from(contact).encode(Version::Copper, FeatureFlags::CLIENT_ID);
    let lines = root.input(ServerInput::Message { connection_id: 4, payload: &whole[..40] });
    assert_eq!(lines, FAULT);
    assert_eq!(root.server.connection(), connection, "the old connection lives on");
}

#[test]
fn control_messages_go_to_the_chosen_processor_from_3_0_on() {
    for version in Version::ALL {
        let mut root = root();
        root.version = version;
        let contact = InitiateContact {
            target_vp: U32::new(6),
            interrupt_page_or_target: U64::new(2),
            ..contact(version)
        };
        let to = if version >= Version::Win8_1 { " to 6/2" } else { "" };
        assert_eq!(root.say(contact), [format!("VERSION accepted{to}")]);
        assert_eq!(root.say(RequestOffers {}), [format!("ALL OFFERS{to}")]);
    }
}

#[test]
fn the_interrupt_page_is_known_before_5_0_only() {
    for version in Version::ALL {
        let mut root = root();
        root.version = version;
        root.say(InitiateContact { interrupt_page_or_target: U64::new(0x5002), ..contact(version) });
        let page = root.server.connection().unwrap().interrupt_page;
        assert_eq!(page, (!version.is_multi_client()).then_some(0x5002), "{version}");
    }
}

#[test]
fn a_second_contact_replaces_one_that_policy_still_thinks_about() {
    let mut root = root();
    root.answers = Answers::None;
    root.contact(Version::Iron);
    assert_eq!(root.contact(Version::Win10), ["ask version 4.0"]);
    assert_eq!(root.decide(Answer::Allow), NOTHING, "the first question is void");
    assert_eq!(root.decide(Answer::Allow), ["connected 4.0", "VERSION accepted"][1..]);
    assert_eq!(root.server.usage().questions, 0);
}

#[test]
fn nothing_but_a_contact_means_anything_before_one() {
    let mut root = root();
    for info in MESSAGES {
        let mut payload = [0; MAX_PAYLOAD];
        payload[..4].copy_from_slice(&info.number.to_le_bytes());
        let lines = root.input(ServerInput::Message { connection_id: 1, payload: &payload });
        match info.name {
            "INITIATE_CONTACT" => assert_eq!(lines, ["VERSION not supported"]),
            name => assert_eq!(lines, FAULT, "{name}"),
        }
    }
}

#[test]
fn a_message_on_a_connection_that_takes_none_is_dropped() {
    let mut root = root();
    assert_eq!(root.say_on(2, contact(Version::Iron)), FAULT);
    assert_eq!(root.faults[0].to_string(), "the guest posted to connection 0x2, which takes no messages");
}

#[test]
fn unknown_and_misdirected_messages_change_nothing() {
    let mut root = Root::opened();
    for number in [0_u32, 1, 2, 4, 10, 30, 77, u32::MAX] {
        let mut payload = [0; 64];
        payload[..4].copy_from_slice(&number.to_le_bytes());
        assert_eq!(root.input(ServerInput::Message { connection_id: 1, payload: &payload }), FAULT);
    }
    assert_eq!(root.state(), ChannelState::Open);
}

#[test]
fn offers_can_be_requested_once() {
    let mut root = Root::closed();
    assert_eq!(root.say(RequestOffers {}), FAULT);
}

#[test]
fn nothing_is_offered_before_the_guest_asks() {
    let mut root = root();
    assert_eq!(root.offer(1), NOTHING);
    root.connect(Version::Iron);
    assert_eq!(root.offer(2), NOTHING);
    assert_eq!(root.say(RequestOffers {}), ["OFFER 1", "OFFER 2", "ALL OFFERS"]);
    assert_eq!(root.offer(3), ["OFFER 3"], "hot-added");
}

#[test]
fn all_offers_waits_for_policy_and_nothing_else_does() {
    let mut root = root();
    root.connect(Version::Iron);
    root.offer(1);
    root.offer(2);
    root.offer(3);
    root.answers = Answers::None;
    assert_eq!(root.say(RequestOffers {}), ["ask offer 1", "ask offer 2", "ask offer 3"]);
    assert_eq!(root.decide(Answer::Allow), ["OFFER 1"]);
    root.answers = Answers::Policy;
    assert_eq!(root.share(1, 5), ["gpadl 1/5", "CREATED 1/5 ok"], "channel 1 is in use meanwhile");
    assert_eq!(root.offer(4), ["OFFER 2"], "which was not there at the request");
    root.answers = Answers::None;
    assert_eq!(root.decide(Answer::Deny(Status::ACCESS_DENIED)), NOTHING, "device 2 is never shown");
    assert_eq!(root.rescind(3), ["ALL OFFERS", "released 3"], "nobody waits for device 3 any more");
}

#[test]
fn a_hidden_device_is_asked_about_again_on_the_next_connection() {
    let mut root = root();
    root.offer(1);
    root.connect(Version::Iron);
    root.answers = Answers::None;
    root.say(RequestOffers {});
    assert_eq!(root.decide(Answer::Deny(Status::ACCESS_DENIED)), ["ALL OFFERS"]);
    root.answers = Answers::Policy;
    root.connect(Version::Iron);
    assert_eq!(root.say(RequestOffers {}), ["OFFER 1", "ALL OFFERS"]);
}

#[test]
fn a_guest_is_shown_what_its_version_understands() {
    let flags = OfferFlags::ENUMERATE_DEVICE_INTERFACE
        | OfferFlags::NAMED_PIPE_MODE
        | OfferFlags::TLNPI_PROVIDER
        | OfferFlags::CONFIDENTIAL_RING_BUFFER
        | OfferFlags::from_bits_retain(0x8000);
    for version in Version::ALL {
        let mut server = Server::new(ServerConfig::default());
        let primary =
            OfferParams { flags, monitor_latency: Some(9), worker: 3, ..OfferParams::new(CLASS, CLASS) };
        let sub = OfferParams { subchannel_index: 1, monitor_latency: None, ..primary };
        server.handle(ServerInput::Offer { device: DeviceKey(1), offer: primary });
        server.handle(ServerInput::Offer { device: DeviceKey(2), offer: sub });
        let target = InitiateContact {
            interrupt_page_or_target: U64::new(2),
            parent_to_child_monitor: U64::new(0x1000),
            child_to_parent_monitor: U64::new(0x2000),
            ..contact(version)
        };
        responses(&mut server, target);
        let payload = Message::from(RequestOffers {}).encode(version, FeatureFlags::empty());
        server.handle(ServerInput::Message { connection_id: 1, payload: &payload });
        let mut sent = Vec::new();
        while let Some(action) = server.poll_action() {
            match action {
                ServerAction::Ask { id, .. } => {
                    server.handle(ServerInput::Decided { id, answer: Answer::Allow });
                }
                ServerAction::Send { payload, .. } => sent.push(payload),
                other => panic!("{other:?}"),
            }
        }
        let sizes: Vec<usize> = sent.iter().map(|payload| payload.len()).collect();
        let expected: &[usize] = match version {
            Version::V1 => &[190, 8],
            Version::Win7 => &[196, 8],
            _ => &[196, 196, 8],
        };
        assert_eq!(sizes, expected, "{version}: no sub-channels before Win8");
        let parsed = Message::parse(&sent[0], Direction::ToGuest, None).unwrap();
        let Message::OfferChannel(offer) = parsed else { panic!("{parsed:?}") };
        let known = if version >= Version::Win10 { 0x2011 } else { 0x0011 };
        assert_eq!(offer.flags.get(), known, "{version}");
        assert_eq!((offer.monitor_id, offer.monitor_allocated), (0, 1));
        if version > Version::V1 {
            assert_eq!((offer.connection_id.get(), offer.is_dedicated.get()), (0x0003_2001, 1));
        }
    }
}

#[test]
fn a_paused_guest_hears_nothing_until_it_resumes() {
    let mut root = root();
    root.features = FeatureFlags::PAUSE_RESUME;
    root.connect(Version::Copper);
    root.offer(1);
    assert_eq!(root.say(RequestOffers {}), ["OFFER 1", "ALL OFFERS"]);
    root.share(1, 5);
    root.open(1, 7, 5);
    assert_eq!(root.say(Resume {}), FAULT);
    assert_eq!(root.say(Pause {}), ["PAUSED"]);
    assert_eq!(root.offer(2), NOTHING);
    assert_eq!(root.device_opened(1), NOTHING);
    assert_eq!(root.close(1), FAULT, "a guest that paused us has nothing to say but to resume");
    assert_eq!(root.say(Pause {}), FAULT);
    assert_eq!(root.say(Resume {}), ["OFFER 2", "RESULT 1 open 7 ok"]);
    assert_eq!(root.close(1), ["close 1"]);
}

#[test]
fn unload_and_contact_end_a_pause() {
    let mut root = root();
    root.features = FeatureFlags::PAUSE_RESUME;
    root.connect(Version::Copper);
    root.say(Pause {});
    assert_eq!(root.contact(Version::Copper), ["disconnected", "VERSION accepted"]);
    root.say(Pause {});
    assert_eq!(root.say(Unload {}), ["disconnected", "UNLOADED"]);
}

#[test]
fn monitor_pages_change_while_connected_if_that_is_negotiated() {
    let mut root = root();
    root.features = FeatureFlags::MODIFY_CONNECTION;
    root.connect(Version::Copper);
    let both = ModifyConnection {
        parent_to_child_monitor: U64::new(0x1000),
        child_to_parent_monitor: U64::new(0x2000),
    };
    assert_eq!(root.say(both), ["monitor pages true", "CONNECTION MODIFIED 0"]);
    assert!(root.server.connection().unwrap().monitor_pages.is_some());
    let half = ModifyConnection { child_to_parent_monitor: U64::ZERO, ..both };
    assert_eq!(root.say(half), [FAULT[0], "CONNECTION MODIFIED 2"]);
    assert_eq!(root.say(ModifyConnection::default()), ["monitor pages false", "CONNECTION MODIFIED 0"]);
    root.features = FeatureFlags::empty();
    root.connect(Version::Copper);
    assert_eq!(root.say(both), FAULT, "not negotiated");
}

#[test]
fn an_hvsock_connect_is_refused_or_becomes_an_offer() {
    let mut root = root();
    root.connect(Version::Iron);
    root.say(RequestOffers {});
    let request = TlConnectRequest { endpoint_id: CLASS, ..Default::default() };
    assert_eq!(root.say(request), ["connect"]);
    assert_eq!(root.say(request), NOTHING, "it waits already");
    let refused = ConnectRequest { endpoint: CLASS, service: Guid::ZERO, silo: Guid::ZERO };
    let answer = ServerInput::ConnectResult { request: refused, result: Err(Status::CONNECTION_REFUSED) };
    assert_eq!(root.input(answer.clone()), [format!("CONNECT REFUSED {:#x}", 0xc000_0236_u32 as i32)]);
    assert_eq!(root.input(answer), NOTHING, "answered once");
    root.say(request);
    assert_eq!(root.server.usage().connects, 1);
    root.offer(1);
    let accepted = ServerInput::ConnectResult { request: refused, result: Ok(()) };
    assert_eq!(root.input(accepted), NOTHING, "the offer is the answer");
    assert_eq!(root.server.usage().connects, 0);
}

#[test]
fn a_guest_refuses_a_connection_by_giving_its_channel_back() {
    let mut root = root();
    root.connect(Version::Iron);
    root.say(RequestOffers {});
    let flags = OfferFlags::NAMED_PIPE_MODE | OfferFlags::TLNPI_PROVIDER;
    let offer = OfferParams { flags, ..OfferParams::new(CLASS, CLASS) };
    root.input(ServerInput::Offer { device: DeviceKey(7), offer });
    assert_eq!(root.release(1), ["declined 7"]);
    assert_eq!(
        root.rescind(7),
        ["released 7"],
        "and no message for a channel that it does not know any more"
    );
    assert_eq!(root.server.usage(), Usage::default());
}

crate::coverage::stories! {
    the_answer_has_the_size_of_its_version
    the_answer_names_the_version_before_5_0_and_the_message_connection_from_then_on
    a_version_that_nobody_knows_is_not_supported_and_the_next_one_is
    versions_out_of_our_range_are_not_supported
    policy_refuses_a_version_and_the_guest_learns_why_as_far_as_the_version_can_say
    one_monitor_page_of_two_is_a_failure_that_only_win8_can_be_told
    another_interrupt_source_is_refused_there_and_counts_only_on_connection_4
    another_trust_level_is_left_alone_from_5_1_on
    a_contact_that_announces_a_client_id_and_has_none_is_dropped_whole
    control_messages_go_to_the_chosen_processor_from_3_0_on
    the_interrupt_page_is_known_before_5_0_only
    a_second_contact_replaces_one_that_policy_still_thinks_about
    nothing_but_a_contact_means_anything_before_one
    a_message_on_a_connection_that_takes_none_is_dropped
    unknown_and_misdirected_messages_change_nothing
    offers_can_be_requested_once
    nothing_is_offered_before_the_guest_asks
    all_offers_waits_for_policy_and_nothing_else_does
    a_hidden_device_is_asked_about_again_on_the_next_connection
    a_guest_is_shown_what_its_version_understands
    a_paused_guest_hears_nothing_until_it_resumes
    unload_and_contact_end_a_pause
    monitor_pages_change_while_connected_if_that_is_negotiated
    an_hvsock_connect_is_refused_or_becomes_an_offer
    a_guest_refuses_a_connection_by_giving_its_channel_back
}
