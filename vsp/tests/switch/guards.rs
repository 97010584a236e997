//! What a port may not send: as others, as a server or router, too much.

use std::time::Duration;

use proptest::prelude::*;
use vmbus_channels::Refusal;
use vmbus_vsp::network::switch::{
    AskedPort, Checksum, ConnectError, DropReason, MacAddress, Occasion, Offload, Permission, PortSettings,
    Rate, Senders, SettingsFault,
};

use crate::world::{Station, World, forget, frame, mac};

fn only(name: &str, number: u16) -> PortSettings {
    PortSettings { senders: Senders::Only(vec![mac(number)]), ..PortSettings::new(name) }
}

fn drops(station: &Station) -> Vec<(DropReason, u64)> {
    station.connection.statistics().dropped_sent.iter().collect()
}

#[test]
fn a_guarded_port_sends_as_itself_alone() {
    let world = World::new();
    let (a, b) = (world.port_with(only("a", 1)), world.port("b"));
    a.send_all([&*frame(mac(2), mac(1), "me"), &*frame(mac(2), mac(3), "not me")]);
    assert_eq!(b.received(), [frame(mac(2), mac(1), "me")]);
    assert_eq!(drops(&a), [(DropReason::Spoofed, 1)]);
    world.assert_balance();
}

#[test]
fn nobody_takes_an_address_that_a_port_has_for_itself() {
    let world = World::new();
    let [thief, c] = ["thief", "c"].map(|name| world.port(name));
    thief.send(&frame(mac(9), mac(1), "before it is owned"));
    let owner = world.port_with(only("owner", 1));
    thief.send(&frame(mac(9), mac(1), "after"));
    forget([&c, &owner]);
    c.send(&frame(mac(1), mac(3), "for the owner"));
    assert_eq!((owner.received().len(), thief.received().len()), (1, 0));
    assert_eq!(drops(&thief), [(DropReason::Spoofed, 1)]);
    let second = world.switch.connect(owner.inbox.clone(), only("second", 1)).err();
    let port = owner.connection.id();
    assert_eq!(second, Some(ConnectError::Address { address: mac(1), port }));
    drop(owner);
    world.port_with(only("second", 1));
}

#[test]
fn a_port_that_is_disconnected_keeps_nothing_however_long_it_is_held() {
    let world = World::new();
    let (owner, b) = (world.port_with(only("owner", 1)), world.port("b"));
    owner.connection.disconnect();
    owner.connection.disconnect();
    let second = world.port_with(only("second", 1));
    b.send(&frame(mac(1), mac(2), "hello"));
    owner.send(&frame(mac(2), mac(1), "still here"));
    assert_eq!((owner.received().len(), second.received().len(), b.received().len()), (0, 1, 0));
    assert_eq!(drops(&owner), [(DropReason::Disconnected, 1)]);
    let gone = owner.connection.reconfigure(PortSettings::new("back"));
    assert_eq!(gone, Err(ConnectError::Gone(owner.connection.id())));
    drop(owner);
    assert_eq!(world.switch.ports().len(), 2);
}

#[test]
fn a_guarded_port_gets_no_frames_for_strangers() {
    let world = World::new();
    let (a, guarded, b) = (world.port("a"), world.port_with(only("guarded", 2)), world.port("b"));
    a.send_all([&*frame(mac(7), mac(1), "for a stranger"), &*frame(mac(2), mac(1), "for the guarded")]);
    assert_eq!((guarded.received().len(), b.received().len()), (1, 1));
    a.send(&frame(MacAddress::BROADCAST, mac(1), "for all"));
    assert_eq!((guarded.received().len(), b.received().len()), (1, 1));
    world.assert_balance();
}

#[test]
fn settings_that_make_no_sense_are_refused_and_change_nothing() {
    let world = World::new();
    let a = world.port("a");
    for (senders, fault) in [
        (vec![], SettingsFault::SenderCount(0)),
        (vec![mac(1); 65], SettingsFault::SenderCount(65)),
        (vec![MacAddress::BROADCAST], SettingsFault::Sender(MacAddress::BROADCAST)),
    ] {
        let settings = PortSettings { senders: Senders::Only(senders), ..PortSettings::new("a") };
        assert_eq!(a.connection.reconfigure(settings), Err(ConnectError::Settings(fault)));
    }
    assert_eq!(a.connection.settings(), PortSettings::new("a"));
}

/// An IPv4 packet of this protocol in a frame.
fn ipv4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    [&mac(2).0[..], &mac(1).0, &[0x08, 0x00], &packet, payload].concat()
}

/// An IPv6 packet whose first header is of this kind.
fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let head = [&[0x60, 0, 0, 0, 0, 0, next, 255][..], &[0xfe; 32]].concat();
    [&mac(2).0[..], &mac(1).0, &[0x86, 0xdd], &head, payload].concat()
}

fn udp(source: u16, to: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &to.to_be_bytes(), &[0, 8, 0, 0]].concat()
}

/// The same packet in 802.3's older form.
fn snap(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0, 100, 0xaa, 0xaa, 3, 0, 0, 0], &frame[12..]].concat()
}

/// Sends each frame from a port with these permissions. Gives why the frame did not arrive.
fn fate(dhcp_server: Permission, router: Permission, frame: &[u8]) -> Option<DropReason> {
    let world = World::new();
    let sender = world.port_with(PortSettings { dhcp_server, router, ..PortSettings::new("sender") });
    let receiver = world.port("receiver");
    sender.send(frame);
    world.assert_balance();
    assert_eq!(receiver.received().len() + drops(&sender).len(), 1);
    drops(&sender).first().map(|(reason, _)| *reason)
}

const NO: Permission = Permission::Denied;
const YES: Permission = Permission::Allowed;

#[test]
fn a_dhcp_server_is_heard_only_where_one_may_be() {
    let servers = [
        ipv4(17, 0, &udp(67, 1000)),
        ipv6(17, &udp(547, 1000)),
        ipv6(0, &[&[17, 0, 0, 0, 0, 0, 0, 0][..], &udp(547, 1000)].concat()),
        snap(&ipv4(17, 0, &udp(67, 1000))),
        snap(&ipv6(17, &udp(547, 1000))),
        // Clients look at their own port alone.
        ipv4(17, 0, &udp(1000, 68)),
        ipv6(17, &udp(1000, 546)),
    ];
    for server in servers {
        assert_eq!(fate(NO, YES, &server), Some(DropReason::DhcpGuard), "{server:02x?}");
        assert_eq!(fate(YES, NO, &server), None, "{server:02x?}");
    }
    let others = [
        ipv4(17, 0, &udp(68, 67)),
        ipv4(6, 0, &udp(67, 68)),
        ipv4(17, 5, &udp(67, 68)),
        ipv6(17, &udp(546, 547)),
    ];
    for other in others {
        assert_eq!(fate(NO, NO, &other), None, "{other:02x?}");
    }
}

/// The sum was written where the sender said, over what the guards had looked at.
#[test]
fn a_checksum_makes_nothing_else_of_a_frame_that_was_let_through() {
    let cases = [
        // UDP whose source port, type and code of ICMPv6, IPv4's protocol.
        (ipv4(17, 0, &udp(1000, 2000)), 28, 6),
        (ipv6(58, &[0; 16]), 48, 6),
        (ipv4(6, 0, &[0; 20]), 16, 6),
        (ipv4(6, 0, &[0; 20]), 34, 6),
        (ipv4(17, 1 << 13, &udp(1000, 2000)), 34, 6),
    ];
    for (frame, start, field) in cases {
        let offload = Offload { checksum: Checksum::Missing { start, field }, ..Offload::NONE };
        let world = World::new();
        let guarded = PortSettings { dhcp_server: NO, router: NO, ..PortSettings::new("guarded") };
        let (sender, receiver) = (world.port_with(guarded), world.port("receiver"));
        sender.send_with(&frame, offload);
        assert_eq!(drops(&sender), [(DropReason::Offload, 1)], "{start} {field}");
        assert_eq!(receiver.received().len(), 0);
        let mut whole = ipv4(17, 0, &udp(1000, 2000));
        whole[17] = 28;
        sender.send_with(&whole, Offload { checksum: Checksum::udp(34), ..offload });
        assert_eq!(receiver.received().len(), 1, "what belongs there passes");
        world.assert_balance();
    }
}

const ADVERTISEMENT: [u8; 8] = [134, 0, 0, 0, 64, 0, 0, 0];

#[test]
fn a_router_is_heard_only_where_one_may_be() {
    let routers = [
        ipv6(58, &ADVERTISEMENT),
        ipv6(58, &[137, 0, 0, 0, 0, 0, 0, 0]),
        ipv6(60, &[&[43, 0, 0, 0, 0, 0, 0, 0][..], &[58, 0, 0, 0, 0, 0, 0, 0], &ADVERTISEMENT].concat()),
        ipv6(51, &[&[58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &ADVERTISEMENT].concat()),
        snap(&ipv6(58, &ADVERTISEMENT)),
    ];
    for router in routers {
        assert_eq!(fate(YES, NO, &router), Some(DropReason::RouterGuard), "{router:02x?}");
        assert_eq!(fate(NO, YES, &router), None, "{router:02x?}");
    }
    assert_eq!(fate(NO, NO, &ipv6(58, &[135, 0, 0, 0])), None, "a neighbour asks");
}

/// RFC 7113: what hides an advertisement behind headers or in later fragments.
#[test]
fn headers_that_hide_what_comes_are_dropped_where_something_is_forbidden() {
    let first_fragment = [58, 0, 0, 1, 0, 0, 0, 1];
    let hop = [0, 0, 0, 0, 0, 0, 0, 0];
    let hiding = [
        ipv6(44, &first_fragment),
        ipv6(60, &[44, 0, 0, 0, 0, 0, 0, 0]),
        ipv6(60, &[58, 200, 0, 0, 0, 0, 0, 0]),
        ipv6(0, &hop.repeat(17)),
        snap(&[&mac(2).0[..], &mac(1).0, &[0x81, 0, 0, 0, 0x86, 0xdd]].concat()),
    ];
    for frame in hiding {
        assert_eq!(fate(YES, NO, &frame), Some(DropReason::RouterGuard), "{frame:02x?}");
        assert_eq!(fate(NO, YES, &frame), Some(DropReason::DhcpGuard), "{frame:02x?}");
        assert_eq!(fate(YES, YES, &frame), None, "{frame:02x?}");
    }
    let whole = [&first_fragment[..], &ADVERTISEMENT].concat();
    assert_eq!(fate(NO, NO, &ipv6(44, &whole)), Some(DropReason::RouterGuard));
    let later_fragment = [58, 0, 0, 9, 0, 0, 0, 1];
    assert_eq!(fate(NO, NO, &ipv6(44, &[&later_fragment[..], &ADVERTISEMENT].concat())), None);
}

#[test]
fn a_storm_is_cut_to_its_limit_and_frames_for_one_pass() {
    let world = World::new();
    let limit = Some(Rate { per_second: 100, burst: 10 });
    let stormy = world.port_with(PortSettings { flood_limit: limit, ..PortSettings::new("stormy") });
    let b = world.port("b");
    b.send(&frame(mac(1), mac(2), "hello"));
    let storm = frame(MacAddress::BROADCAST, mac(1), "all!");
    let unknown = frame(mac(77), mac(1), "anybody!");
    let single = frame(mac(2), mac(1), "you");
    for _ in 0..1000 {
        stormy.send_all([&*storm, &*unknown, &*single]);
        world.pass(Duration::from_millis(1));
    }
    let received = b.received();
    let (singles, floods): (Vec<_>, Vec<_>) = received.iter().partition(|frame| **frame == single);
    assert_eq!(singles.len(), 1000);
    assert!((105..=112).contains(&floods.len()), "{}", floods.len());
    assert_eq!(
        stormy.connection.statistics().dropped_sent.of(DropReason::FloodLimit),
        2000 - floods.len() as u64
    );
    world.assert_balance();
}

#[test]
fn a_port_sends_and_receives_no_faster_than_its_limits() {
    let world = World::new();
    let rate = Some(Rate { per_second: 100_000, burst: 10_000 });
    let slow_sender = world.port_with(PortSettings { send_limit: rate, ..PortSettings::new("slow sender") });
    let slow_receiver =
        world.port_with(PortSettings { receive_limit: rate, ..PortSettings::new("slow receiver") });
    let fast = world.port("fast");
    let long = frame(MacAddress::BROADCAST, mac(1), &"x".repeat(986));
    for _ in 0..1000 {
        slow_sender.send(&long);
        world.pass(Duration::from_millis(1));
    }
    assert!((109..=112).contains(&fast.received().len()));
    forget([&slow_receiver]);
    world.pass(Duration::from_secs(1));
    for _ in 0..1000 {
        fast.send(&long);
        world.pass(Duration::from_millis(1));
    }
    assert!((109..=112).contains(&slow_receiver.received().len()));
    assert_eq!(slow_sender.received().len(), 1000, "who is slow holds up nobody else");
    assert!(slow_receiver.connection.statistics().dropped_received.of(DropReason::RateLimit) > 850);
    world.assert_balance();
}

#[test]
fn an_agent_decides_who_connects_and_how_he_is_treated() {
    let agent = |asked: &AskedPort<'_>| match asked.settings.name.as_str() {
        "stranger" => Err(Refusal::denied(format!("{} is for friends", asked.switch))),
        "broken" => panic!("the agent breaks"),
        _ if asked.occasion == Occasion::Connect => {
            Ok(PortSettings { router: Permission::Denied, ..asked.settings.clone() })
        }
        _ => Err(Refusal::denied("it stays as it is")),
    };
    let world = World::with(|builder| builder.policy(agent));
    let friend = world.port("friend");
    assert_eq!(friend.connection.settings().router, Permission::Denied);
    let denied = |name| world.switch.connect(friend.inbox.clone(), PortSettings::new(name)).err();
    assert_eq!(denied("stranger"), Some(ConnectError::Denied(Refusal::denied("test is for friends"))));
    assert_eq!(denied("broken").expect("a denial").to_string(), "the switch's policy agent panicked");
    let change = friend.connection.reconfigure(PortSettings::new("friend"));
    assert_eq!(change, Err(ConnectError::Denied(Refusal::denied("it stays as it is"))));
    assert_eq!(world.switch.ports().len(), 1);
}

#[test]
fn a_port_with_random_senders_fills_neither_the_table_nor_others_places() {
    let world = World::with(|builder| builder.addresses(64));
    let noisy = world.port_with(PortSettings { addresses: 16, ..PortSettings::new("noisy") });
    let quiet = world.port("quiet");
    (0..1000).for_each(|number| noisy.send(&frame(mac(9999), mac(number), "noise")));
    quiet.send(&frame(mac(9999), mac(5000), "hello"));
    let known = world.switch.addresses();
    let of = |station: &Station| known.iter().filter(|known| known.port == station.connection.id()).count();
    assert_eq!((of(&noisy), of(&quiet)), (16, 1));
}

proptest! {
    /// Whatever is in a frame: the guards look at it and nothing breaks.
    #[test]
    fn guards_look_at_any_bytes(kind in 0_usize..4, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let frame = match kind {
            0 => ipv4(17, 0, &bytes),
            1 => ipv6(bytes.first().copied().unwrap_or(0), &bytes),
            2 => snap(&ipv6(0, &bytes)),
            _ => bytes,
        };
        let world = World::new();
        let settings = PortSettings { dhcp_server: NO, router: NO, ..PortSettings::new("a") };
        let (a, _b) = (world.port_with(settings), world.port("b"));
        a.send(&frame);
        world.assert_balance();
    }
}
