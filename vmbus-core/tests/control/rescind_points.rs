//! The host takes a device back at each point of its life, with both ends and everything that is on its way between
//! them. Afterwards nothing may be left at either end.

use vmbus_core::client::{
    self, AnswerSlot, ClientAction, ClientConfig, ConnectRequest, MonitorPages, Policy, ReservedOpenRequest,
};
use vmbus_core::server::*;
use vmbus_core::{Guid, Status, Version};

use crate::pair::{Owed, Pair};
use crate::root::{CLASS, page_list};

type Prepare = fn(&mut Pair);

/// A point of a life, the channel's states at both ends there, and how a pair comes there. Device 1 is rescinded, and is
/// channel 1 where it is one.
const POINTS: &[(&str, &str, Prepare)] = &[
    ("before the guest asks for offers", "ClientReleased/None", |pair| {
        pair.reset();
        pair.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
        pair.run();
        pair.offer(1);
    }),
    ("with the request for offers on its way", "ClientReleased/None", |pair| {
        pair.reset();
        pair.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
        pair.run();
        pair.offer(1);
        pair.client.request_offers().unwrap();
        pair.collect();
    }),
    ("while policy thinks about showing it", "ClientReleased/None", |pair| pair.offer(1)),
    ("between offer and open, the offer on its way", "Closed/None", |pair| {
        pair.offer(1);
        decide(pair);
    }),
    ("between offer and open", "Closed/Closed", offered),
    ("while the guest's policy thinks about using it", "Closed/Proposed", |pair| {
        *pair =
            Pair::new(3, ServerConfig::default(), ClientConfig { policy: Policy::Ask, ..Default::default() });
        pair.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
        pair.run();
        pair.client.request_offers().unwrap();
        pair.run();
        pair.offer(1);
        decide(pair);
        while pair.deliver_to_guest() {}
    }),
    ("with a page list on its way", "Closed/Closed", |pair| {
        offered(pair);
        pair.create_gpadl(1).unwrap();
    }),
    ("between header and body", "Closed/Closed", |pair| {
        offered(pair);
        share_long(pair);
        pair.deliver_to_root();
    }),
    ("between two bodies", "Closed/Closed", |pair| {
        offered(pair);
        share_long(pair);
        pair.deliver_to_root();
        pair.deliver_to_root();
    }),
    ("while share is asked of policy", "Closed/Closed", |pair| {
        offered(pair);
        pair.create_gpadl(1).unwrap();
        while pair.deliver_to_root() {}
    }),
    ("with the acceptance of a page list on its way", "Closed/Closed", |pair| {
        offered(pair);
        pair.create_gpadl(1).unwrap();
        while pair.deliver_to_root() {}
        decide(pair);
    }),
    ("with a page list shared", "Closed/Closed", |pair| _ = shared(pair)),
    ("with a page list that is given up", "Closed/Closed", |pair| {
        offered(pair);
        let gpadl = pair.create_gpadl(1).unwrap();
        pair.teardown(1, gpadl);
    }),
    ("with a teardown on its way", "Closed/Closed", |pair| {
        let gpadl = shared(pair);
        pair.teardown(1, gpadl);
    }),
    ("while the device lets go of a page list", "Closed/Closed", |pair| {
        let gpadl = shared(pair);
        pair.teardown(1, gpadl);
        while pair.deliver_to_root() {}
    }),
    ("with the end of a teardown on its way", "Closed/Closed", |pair| {
        let gpadl = shared(pair);
        pair.teardown(1, gpadl);
        while pair.deliver_to_root() {}
        owed(pair);
    }),
    ("with an open on its way", "Closed/Opening", |pair| {
        let gpadl = shared(pair);
        pair.open(1, gpadl);
    }),
    ("while policy thinks about the open", "Opening/Opening", |pair| {
        let gpadl = shared(pair);
        pair.open(1, gpadl);
        while pair.deliver_to_root() {}
    }),
    ("mid-open, while the device opens", "Opening/Opening", opening),
    ("with the result of an open on its way", "Open/Opening", |pair| {
        opening(pair);
        owed(pair);
    }),
    ("with the refusal of an open on its way", "Closed/Opening", |pair| {
        opening(pair);
        pair.refuse_one_in = 1;
        owed(pair);
        pair.refuse_one_in = 0;
    }),
    ("with an open that is given up", "Opening/Opening", |pair| {
        opening(pair);
        pair.client.close(1).unwrap();
        pair.collect();
    }),
    ("open, with requests in flight", "Open/Open", |pair| _ = opened(pair)),
    ("open, and signalled through a monitor page", "Open/Open", |pair| {
        let pages = MonitorPages { parent_to_child: 0x1000, child_to_parent: 0x2000 };
        *pair = Pair::new(
            3,
            ServerConfig::default(),
            ClientConfig { monitor_pages: Some(pages), ..Default::default() },
        );
        pair.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
        pair.run();
        pair.client.request_offers().unwrap();
        pair.run();
        pair.books.devices.insert(DeviceKey(1));
        let offer = OfferParams { monitor_latency: Some(1), ..OfferParams::new(CLASS, CLASS) };
        pair.input(ServerInput::Offer { device: DeviceKey(1), offer });
        pair.run();
        let gpadl = pair.create_gpadl(1).unwrap();
        pair.run();
        pair.open(1, gpadl);
        pair.run();
        assert!(pair.client.channels().next().unwrap().offer.monitor.is_some());
    }),
    ("during modify, the request on its way", "Open/Open", |pair| {
        opened(pair);
        pair.client.modify(1, 2).unwrap();
        pair.collect();
    }),
    ("during modify, the answer on its way", "Open/Open", |pair| {
        opened(pair);
        pair.client.modify(1, 2).unwrap();
        pair.collect();
        while pair.deliver_to_root() {}
    }),
    ("during close, the message on its way", "Open/Closed", |pair| {
        opened(pair);
        pair.client.close(1).unwrap();
        pair.collect();
    }),
    ("during close, while the device closes", "Closing/Closed", closing),
    ("closed and torn down in one breath", "Closing/Closed", |pair| {
        let gpadl = opened(pair);
        pair.client.close(1).unwrap();
        pair.teardown(1, gpadl);
        while pair.deliver_to_root() {}
    }),
    ("closing, and to be opened again", "ClosingReopen/Opening", |pair| {
        let gpadl = opened(pair);
        pair.client.close(1).unwrap();
        pair.open(1, gpadl);
        while pair.deliver_to_root() {}
    }),
    ("opening again after a close", "Opening/Opening", |pair| {
        let gpadl = opened(pair);
        pair.client.close(1).unwrap();
        pair.open(1, gpadl);
        while pair.deliver_to_root() {}
        owed(pair);
    }),
    ("with a release on its way", "Closed/None", |pair| {
        offered(pair);
        pair.client.release(1).unwrap();
        pair.collect();
    }),
    ("with a pause on its way", "Open/Open", |pair| {
        opened(pair);
        pair.client.pause().unwrap();
        pair.collect();
    }),
    ("during a pause", "Open/Open", |pair| {
        opened(pair);
        pair.client.pause().unwrap();
        pair.run();
    }),
    ("during unload, the message on its way", "Open/Open", |pair| {
        opened(pair);
        pair.unload();
    }),
    ("during unload, while devices close", "ClosingClientRelease/Open", |pair| {
        opened(pair);
        pair.unload();
        while pair.deliver_to_root() {}
    }),
    ("during unload, while a device opens", "OpeningClientRelease/Opening", |pair| {
        opening(pair);
        pair.unload();
        while pair.deliver_to_root() {}
    }),
    ("during a reset, while devices close", "ClosingClientRelease/None", |pair| {
        opened(pair);
        pair.reset();
    }),
    ("during a new contact, while devices close", "ClosingClientRelease/None", |pair| {
        opened(pair);
        pair.reset();
        pair.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
        pair.collect();
        while pair.deliver_to_root() {}
    }),
    ("while the monitor pages change", "Open/Open", |pair| {
        opened(pair);
        let pages = MonitorPages { parent_to_child: 0x1000, child_to_parent: 0x2000 };
        pair.client.modify_connection(Some(pages)).unwrap();
        pair.collect();
    }),
    ("in an hvsock connect, before its channel is offered", "Closed/Closed", |pair| {
        offered(pair);
        connect_service(pair);
    }),
    ("in an hvsock connect, its channel on its way", "Closed/None", |pair| {
        let request = connect_service(pair);
        pair.offer(1);
        decide(pair);
        pair.input(ServerInput::ConnectResult { request, result: Ok(()) });
    }),
    ("in an hvsock connect, refused on the way", "Closed/Closed", |pair| {
        offered(pair);
        let request = connect_service(pair);
        let result = Err(Status::CONNECTION_REFUSED);
        pair.input(ServerInput::ConnectResult { request, result });
    }),
    ("a primary whose sub-channel is offered", "Open/Open", |pair| {
        opened(pair);
        offer_subchannel(pair);
    }),
    ("a primary whose sub-channel is open", "Open/Open", |pair| {
        opened(pair);
        open_subchannel(pair);
    }),
    ("a primary that closes, and takes its sub-channel along", "Closing/Closed", |pair| {
        opened(pair);
        open_subchannel(pair);
        pair.client.close(1).unwrap();
        pair.collect();
        while pair.deliver_to_root() {}
    }),
    ("a primary whose sub-channel is rescinded already", "Open/Open", |pair| {
        opened(pair);
        open_subchannel(pair);
        pair.rescind(2);
    }),
    ("opening for a crash dump", "Opening/Opening", |pair| {
        open_reserved(pair);
        while pair.deliver_to_root() {}
        decide(pair);
    }),
    ("open for a crash dump, the result on its way", "OpenReserved/Opening", |pair| {
        open_reserved(pair);
        while pair.deliver_to_root() {}
        decide(pair);
        owed(pair);
    }),
    ("open for a crash dump", "OpenReserved/OpenReserved", |pair| {
        open_reserved(pair);
        pair.run();
    }),
    ("closing after a crash dump", "Closing/ClosingReserved", |pair| {
        open_reserved(pair);
        pair.run();
        pair.client.close_reserved(1).unwrap();
        pair.collect();
        while pair.deliver_to_root() {}
    }),
    ("open for a crash dump beyond the connection", "OpenReserved/OpenReserved", |pair| {
        open_reserved(pair);
        pair.run();
        pair.unload();
        pair.run();
    }),
    ("back before the guest has heard of its rescind", "Reoffered/Open", |pair| {
        opened(pair);
        pair.rescind(1);
        pair.offer(1);
    }),
    ("back after RESCIND, before the guest has released it", "Reoffered/Rescinded", |pair| {
        offered(pair);
        pair.rescind(1);
        while pair.deliver_to_guest() {}
        pair.offer(1);
    }),
    ("back, while policy thinks about showing it again", "ClientReleased/None", |pair| {
        offered(pair);
        pair.rescind(1);
        while pair.deliver_to_guest() {}
        pair.offer(1);
        pair.client.release(1).unwrap();
        pair.collect();
        while pair.deliver_to_root() {}
    }),
    ("without a channel id to show it under", "ClientReleased/Closed", |pair| {
        let quotas = Quotas { channels: 1, ..Default::default() };
        *pair = Pair::new(3, ServerConfig { quotas, ..Default::default() }, ClientConfig::default());
        pair.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
        pair.run();
        pair.client.request_offers().unwrap();
        pair.run();
        pair.offer(2);
        pair.run();
        pair.over_quota = true;
        pair.offer(1);
        pair.run();
    }),
];

fn decide(pair: &mut Pair) {
    while let Some(index) = pair.owed.iter().position(|owed| matches!(owed, Owed::Decision(_))) {
        let owed = pair.owed.remove(index);
        pair.answer(owed);
    }
}

/// One thing that a device owes.
fn owed(pair: &mut Pair) {
    let owed = pair.owed.remove(0);
    pair.answer(owed);
}

fn offered(pair: &mut Pair) {
    pair.offer(1);
    pair.run();
}

fn share_long(pair: &mut Pair) {
    let gpadl = pair.client.create_gpadl(1, &page_list(100)).unwrap();
    pair.books.creations.insert(gpadl, 1);
    pair.collect();
}

fn shared(pair: &mut Pair) -> u32 {
    offered(pair);
    let gpadl = pair.create_gpadl(1).unwrap();
    pair.run();
    gpadl
}

fn opening(pair: &mut Pair) {
    let gpadl = shared(pair);
    pair.open(1, gpadl);
    while pair.deliver_to_root() {}
    decide(pair);
}

fn opened(pair: &mut Pair) -> u32 {
    let gpadl = shared(pair);
    pair.open(1, gpadl);
    pair.run();
    gpadl
}

fn closing(pair: &mut Pair) {
    opened(pair);
    pair.client.close(1).unwrap();
    pair.collect();
    while pair.deliver_to_root() {}
}

fn open_reserved(pair: &mut Pair) {
    let ring_gpadl = shared(pair);
    let answers = AnswerSlot { vp: 0, sint: 2 };
    let request = ReservedOpenRequest { ring_gpadl, downstream_page: 2, answers };
    pair.client.open_reserved(1, request).unwrap();
    pair.books.reserved_opens.insert(1);
    pair.collect();
}

fn connect_service(pair: &mut Pair) -> ConnectRequest {
    let request = ConnectRequest { endpoint: Guid::from_wire([1; 16]), service: CLASS, silo: Guid::ZERO };
    pair.client.connect_service(request).unwrap();
    pair.collect();
    while pair.deliver_to_root() {}
    request
}

fn offer_subchannel(pair: &mut Pair) {
    pair.books.devices.insert(DeviceKey(2));
    let primary = Some(DeviceKey(1));
    let offer = OfferParams { primary, subchannel_index: 1, ..OfferParams::new(CLASS, CLASS) };
    pair.input(ServerInput::Offer { device: DeviceKey(2), offer });
    pair.run();
}

fn open_subchannel(pair: &mut Pair) {
    offer_subchannel(pair);
    let gpadl = pair.create_gpadl(2).unwrap();
    pair.run();
    pair.open(2, gpadl);
    pair.run();
}

/// The guest does what it must: it releases what is rescinded and ends its pauses.
fn let_everything_happen(pair: &mut Pair) {
    loop {
        pair.run();
        let events = pair.take_events();
        if events.is_empty() {
            break;
        }
        for event in events {
            match event {
                ClientAction::Rescinded { relid } => _ = pair.client.release(relid),
                ClientAction::Paused => _ = pair.client.resume(),
                _ => {}
            }
            pair.collect();
        }
        release_rescinded(pair);
    }
}

/// Also those of which the news came during a pause.
fn release_rescinded(pair: &mut Pair) {
    let rescinded = |channel: &client::ChannelInfo| channel.state == client::ChannelState::Rescinded;
    let relids: Vec<u32> =
        pair.client.channels().filter(rescinded).map(|channel| channel.offer.relid).collect();
    for relid in relids {
        let _ = pair.client.release(relid);
        pair.collect();
    }
}

fn assert_nothing_is_left(pair: &mut Pair, point: &str) {
    // Whoever else was there goes too. A guest that has left a channel open learns nothing of its end.
    for device in [2, 3] {
        if pair.server.channels().any(|channel| channel.device == DeviceKey(device)) {
            pair.rescind(device);
        }
    }
    let_everything_happen(pair);
    if pair.client.connection().is_none() && pair.client.channels().count() > 0 {
        pair.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
        let_everything_happen(pair);
    }
    assert!(pair.owed.is_empty(), "{point}: {:?} was never answered", pair.owed);
    let books = &pair.books;
    assert!(books.devices.is_empty(), "{point}: {:?} was never released", books.devices);
    assert!(books.lists.is_empty(), "{point}: {:?} was never returned", books.lists);
    assert!(books.opens.is_empty() && books.reserved_opens.is_empty(), "{point}: an open has not ended");
    assert!(books.creations.is_empty() && books.teardowns.is_empty(), "{point}: a page list has not ended");
    assert_eq!(pair.server.channels().count(), 0, "{point}");
    let usage = Usage { connects: 0, ..pair.server.usage() };
    assert_eq!(usage, Usage::default(), "{point}");
    assert_eq!(pair.client.usage(), client::Usage::default(), "{point}");
    if pair.unload() {
        pair.run();
    }
    assert_eq!(pair.server.usage(), Usage::default(), "{point}: after the connection");
    assert!(pair.server.connection().is_none());
}

/// Of device 1 at the host, of channel 1 at the guest.
fn states_of(pair: &Pair) -> String {
    let device = pair.server.channels().find(|channel| channel.device == DeviceKey(1));
    let channel = pair.client.channels().find(|channel| channel.offer.relid == 1);
    let host = device.map_or("None".into(), |channel| format!("{:?}", channel.state));
    let guest = channel.map_or("None".into(), |channel| format!("{:?}", channel.state));
    format!("{host}/{guest}")
}

/// How the host goes about it.
const WAYS: &[(&str, Prepare)] = &[
    ("once", |pair| pair.rescind(1)),
    ("once, and nothing else happens for a while", |pair| {
        pair.rescind(1);
        while pair.deliver_to_guest() {}
    }),
    ("twice, the device back in between", |pair| {
        pair.rescind(1);
        if !pair.books.devices.contains(&DeviceKey(1)) || is_withdrawn(pair) {
            pair.offer(1);
            pair.rescind(1);
        }
    }),
    ("twice, the guest hearing of each", |pair| {
        pair.rescind(1);
        let_everything_happen(pair);
        pair.offer(1);
        let_everything_happen(pair);
        pair.rescind(1);
    }),
];

fn is_withdrawn(pair: &Pair) -> bool {
    pair.server.channels().any(|channel| channel.device == DeviceKey(1))
}

#[test]
fn a_rescind_at_any_point_leaves_nothing_behind() {
    assert!(POINTS.len() >= 25);
    for seed in 0..12 {
        for (point, states, prepare) in POINTS {
            for (way, rescind) in WAYS {
                let mut pair = Pair::connected(seed, Version::NEWEST);
                prepare(&mut pair);
                assert_eq!(states_of(&pair), *states, "{point}");
                rescind(&mut pair);
                let_everything_happen(&mut pair);
                assert_nothing_is_left(&mut pair, &format!("{point}, {way}, seed {seed}"));
            }
        }
    }
}

#[test]
fn a_device_that_never_was_is_our_fault_alone() {
    let mut pair = Pair::connected(1, Version::NEWEST);
    pair.server.handle(ServerInput::Rescind { device: DeviceKey(1) });
    let action = pair.server.poll_action();
    assert!(matches!(action, Some(ServerAction::Fault(fault)) if fault.whose() == Whose::Ours));
    assert_nothing_is_left(&mut pair, "a device that never was");
}
