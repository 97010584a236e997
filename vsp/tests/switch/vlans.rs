//! VLANs, private ports and mirrors.

use vmbus_vsp::network::switch::{
    Capabilities, ConnectError, DropReason, Isolation, MacAddress, Mirror, Mirrored, Offload, PortSettings,
    Senders, Vlan, VlanMode,
};

use crate::world::{Station, World, forget, frame, mac};

fn access(name: &str, vlan: u16) -> PortSettings {
    PortSettings { vlan: VlanMode::Access(vlan), ..PortSettings::new(name) }
}

fn trunk(name: &str, native: Option<u16>, tagged: &str) -> PortSettings {
    let tagged = tagged.parse().expect("VLANs");
    PortSettings { vlan: VlanMode::Trunk { native, tagged }, ..PortSettings::new(name) }
}

fn broadcast(from: u16, text: &str) -> Vec<u8> {
    frame(MacAddress::BROADCAST, mac(from), text)
}

fn beside(id: u16) -> Offload {
    Offload { vlan: Some(Vlan { priority: 0, drop_eligible: false, id }), ..Offload::NONE }
}

/// The frame with a tag in its bytes.
fn tagged(frame: &[u8], tag: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &tag.to_be_bytes(), &frame[12..]].concat()
}

fn dropped(station: &Station, reason: DropReason) -> u64 {
    station.connection.statistics().dropped_sent.of(reason)
}

#[test]
fn access_ports_of_one_vlan_hear_each_other_and_nobody_else() {
    let world = World::new();
    let [a, b, c, d] =
        [("a", 10), ("b", 10), ("c", 20), ("d", 0)].map(|(name, vlan)| world.port_with(access(name, vlan)));
    a.send(&broadcast(1, "ten"));
    assert_eq!([&a, &b, &c, &d].map(|port| port.received().len()), [0, 1, 0, 0]);
    c.send(&frame(mac(1), mac(3), "the same address is unknown in twenty"));
    assert_eq!(dropped(&c, DropReason::NoReceiver), 1);
    world.assert_balance();
}

#[test]
fn a_trunk_gets_tags_beside_or_in_the_frame_as_it_takes_them() {
    let world = World::new();
    let (a, native) = (world.port_with(access("a", 10)), world.port_with(access("native", 7)));
    let takes = world.port_that_takes(Capabilities::VLAN, trunk("takes", Some(7), "10-20"));
    let does_not = world.port_that_takes(Capabilities::empty(), trunk("does not", Some(7), "10-20"));
    let other = world.port_with(trunk("other", None, "20"));
    a.send(&broadcast(1, "ten"));
    assert_eq!(takes.received_with_offloads(), [(broadcast(1, "ten"), beside(10))]);
    assert_eq!(does_not.received_with_offloads(), [(tagged(&broadcast(1, "ten"), 10), Offload::NONE)]);
    native.send(&broadcast(2, "seven"));
    assert_eq!(takes.received_with_offloads(), [(broadcast(2, "seven"), Offload::NONE)]);
    assert_eq!(does_not.received_with_offloads(), [(broadcast(2, "seven"), Offload::NONE)]);
    assert_eq!(other.received().len(), 0);
    world.assert_balance();
}

/// Its frames went to everybody but it.
#[test]
fn an_address_that_a_trunk_has_for_itself_is_found_before_it_sends() {
    let world = World::new();
    let senders = Senders::Only(vec![mac(1)]);
    let owner = world.port_with(PortSettings { senders, ..trunk("owner", None, "10,20") });
    let [a, b] = ["a", "b"].map(|name| world.port_with(access(name, 10)));
    let other = world.port_with(access("other", 30));
    a.send(&frame(mac(1), mac(2), "for the owner"));
    assert_eq!([&owner, &b].map(|port| port.received().len()), [1, 0]);
    other.send(&frame(mac(1), mac(3), "it is not in thirty"));
    assert_eq!(owner.received().len(), 0);
    assert_eq!(dropped(&other, DropReason::NoReceiver), 1);
    let apart = PortSettings { isolation: Isolation::Private, ..access("apart", 10) };
    let apart = world.port_with(apart);
    owner
        .connection
        .reconfigure(PortSettings { isolation: Isolation::Private, ..owner.connection.settings() })
        .expect("it is isolated");
    apart.send(&frame(mac(1), mac(4), "it is isolated"));
    assert_eq!(dropped(&apart, DropReason::Isolated), 1);
    world.assert_balance();
}

#[test]
fn a_trunk_sends_with_tags_beside_or_in_the_frame() {
    let world = World::new();
    let up = world.port_with(trunk("up", Some(7), "10,20"));
    let [ten, twenty, seven] =
        [("ten", 10), ("twenty", 20), ("seven", 7)].map(|(name, vlan)| world.port_with(access(name, vlan)));
    up.send(&tagged(&broadcast(1, "in the frame"), 10));
    up.send_with(&broadcast(1, "beside it"), beside(20));
    up.send(&broadcast(1, "none"));
    up.send(&tagged(&broadcast(1, "priority"), 0xa000));
    assert_eq!(ten.received_with_offloads(), [(broadcast(1, "in the frame"), Offload::NONE)]);
    assert_eq!(twenty.received(), [broadcast(1, "beside it")]);
    assert_eq!(seven.received(), [broadcast(1, "none"), broadcast(1, "priority")]);
    up.send(&tagged(&broadcast(1, "not ours"), 30));
    assert_eq!(dropped(&up, DropReason::Vlan), 1);
    world.assert_balance();
}

/// A second tag would be the first behind the trunk's native VLAN, and so lead into a VLAN the sender is not in.
#[test]
fn nobody_hops_into_another_vlan_by_two_tags() {
    let world = World::new();
    let guest = world.port_with(access("guest", 7));
    let uplink = world.port_that_takes(Capabilities::empty(), trunk("uplink", Some(7), "1-4094"));
    let frame = broadcast(1, "let me in");
    let attempts = [
        (tagged(&frame, 20), Offload::NONE),
        (tagged(&tagged(&frame, 20), 0), Offload::NONE),
        (tagged(&tagged(&frame, 20), 7), Offload::NONE),
        (tagged(&frame, 20), beside(0)),
        (tagged(&frame, 20), beside(7)),
        (frame.clone(), beside(20)),
        ([&frame[..12], &[0x88, 0xa8, 0, 20], &frame[12..]].concat(), Offload::NONE),
        ([&frame[..12], &[0x91, 0x00, 0, 20], &frame[12..]].concat(), Offload::NONE),
    ];
    for (frame, offload) in &attempts {
        guest.send_with(frame, *offload);
    }
    assert_eq!((uplink.received().len(), dropped(&guest, DropReason::Vlan)), (0, attempts.len() as u64));
    guest.send_with(&frame, beside(0));
    assert_eq!(uplink.received(), [frame]);
}

#[test]
fn private_ports_talk_to_the_uplink_and_communities_among_themselves() {
    let world = World::new();
    let port = |name: &str, isolation| world.port_with(PortSettings { isolation, ..PortSettings::new(name) });
    let uplink = port("uplink", Isolation::None);
    let [private, hermit] = ["private", "hermit"].map(|name| port(name, Isolation::Private));
    let [red, rose, blue] = [("red", 1), ("rose", 1), ("blue", 2)]
        .map(|(name, community)| port(name, Isolation::Community(community)));
    let all = [&uplink, &private, &hermit, &red, &rose, &blue];
    let heard = |number: usize| {
        all[number].send(&broadcast(u16::try_from(number).expect("few") + 1, "hello"));
        all.map(|port| port.received().len())
    };
    assert_eq!(heard(0), [0, 1, 1, 1, 1, 1]);
    assert_eq!(heard(1), [1, 0, 0, 0, 0, 0]);
    assert_eq!(heard(3), [1, 0, 0, 0, 1, 0]);
    assert_eq!(heard(5), [1, 0, 0, 0, 0, 0]);
    private.send(&frame(mac(4), mac(2), "red, do you hear me?"));
    assert_eq!((red.received().len(), dropped(&private, DropReason::Isolated)), (0, 1));
    private.send(&frame(mac(1), mac(2), "uplink?"));
    assert_eq!(uplink.received().len(), 1);
    world.assert_balance();
}

#[test]
fn a_mirror_shows_each_frame_of_its_sources_once_and_with_its_tag() {
    let world = World::new();
    let source = |name: &str, mirrored| PortSettings { mirror: Mirror::Source(mirrored), ..access(name, 10) };
    let both = world.port_with(source("both", Mirrored::Both));
    let received = world.port_with(source("received", Mirrored::Received));
    let plain = world.port_with(access("plain", 10));
    let monitor =
        world.port_with(PortSettings { mirror: Mirror::Destination, ..PortSettings::new("monitor") });
    both.send(&broadcast(1, "to all"));
    assert_eq!(monitor.received_with_offloads(), [(broadcast(1, "to all"), beside(10))]);
    received.send(&frame(mac(9), mac(2), "sent, to the one whose received frames show"));
    assert_eq!(monitor.received().len(), 1);
    plain.send(&frame(mac(2), mac(3), "received"));
    assert_eq!(monitor.received().len(), 1);
    received.send(&frame(mac(3), mac(2), "sent to the plain one"));
    assert_eq!(monitor.received().len(), 0);
    both.send(&frame(mac(1), mac(1), "to itself, dropped"));
    assert_eq!(monitor.received().len(), 1);
    monitor.send(&broadcast(4, "what a mirror says"));
    assert_eq!(dropped(&monitor, DropReason::MirrorPort), 1);
    world.assert_balance();
}

/// Frames for a station behind a port that became a destination went on to come as its own.
#[test]
fn a_port_that_becomes_a_destination_gets_nothing_else_any_more() {
    let world = World::new();
    let [a, b, monitor] = ["a", "b", "monitor"].map(|name| world.port(name));
    monitor.send(&frame(MacAddress::BROADCAST, mac(3), "not yet a monitor"));
    forget([&a, &b]);
    world.switch.mirror(monitor.connection.id(), Mirror::Destination).expect("a port");
    a.send(&frame(mac(3), mac(1), "for the station that it was"));
    assert_eq!((monitor.received().len(), b.received().len()), (0, 1));
    world.switch.mirror(a.connection.id(), Mirror::Source(Mirrored::Sent)).expect("a port");
    a.send(&frame(mac(2), mac(1), "for all to see"));
    assert_eq!((monitor.received().len(), b.received().len()), (1, 1));
    world.switch.mirror(a.connection.id(), Mirror::Off).expect("a port");
    a.send(&frame(mac(2), mac(1), "for b"));
    assert_eq!((monitor.received().len(), b.received().len()), (0, 1));
    let gone = b.connection.id();
    drop(b);
    assert_eq!(world.switch.mirror(gone, Mirror::Off), Err(ConnectError::Gone(gone)));
}

/// It got what was for its own addresses, once as theirs and once as a copy.
#[test]
fn a_destination_with_addresses_of_its_own_gets_copies_alone() {
    let world = World::new();
    let own = PortSettings { senders: Senders::Only(vec![mac(5)]), ..PortSettings::new("monitor") };
    let monitor = world.port_with(PortSettings { mirror: Mirror::Destination, ..own });
    let source = PortSettings { mirror: Mirror::Source(Mirrored::Sent), ..PortSettings::new("source") };
    let (source, other) = (world.port_with(source), world.port("other"));
    source.send(&frame(mac(5), mac(1), "for the monitor"));
    assert_eq!(monitor.received().len(), 1);
    other.send(&frame(mac(5), mac(2), "for the monitor, from somebody else"));
    assert_eq!((monitor.received().len(), source.received().len()), (0, 1));
    world.switch.mirror(monitor.connection.id(), Mirror::Off).expect("a port");
    forget([&other]);
    other.send(&frame(mac(5), mac(2), "for the station that it is again"));
    assert_eq!((monitor.received().len(), source.received().len()), (1, 0));
    world.assert_balance();
}

#[test]
fn a_mirror_sees_what_its_source_tried_and_was_not_allowed() {
    let world = World::new();
    let source = world.port_with(PortSettings {
        mirror: Mirror::Source(Mirrored::Sent),
        senders: Senders::Only(vec![mac(1)]),
        ..PortSettings::new("source")
    });
    let b = world.port("b");
    let monitor =
        world.port_with(PortSettings { mirror: Mirror::Destination, ..PortSettings::new("monitor") });
    source.send(&frame(mac(2), mac(3), "as somebody else"));
    assert_eq!((b.received().len(), monitor.received().len()), (0, 1));
    world.assert_balance();
}

#[test]
fn a_port_that_is_treated_otherwise_is_so_from_the_next_batch_on() {
    let world = World::new();
    let [a, b] = ["a", "b"].map(|name| world.port(name));
    b.send(&frame(mac(1), mac(2), "hello"));
    forget([&a]);
    b.connection.reconfigure(access("b", 10)).expect("new settings");
    a.send(&frame(mac(2), mac(1), "are you there?"));
    assert_eq!((b.received().len(), dropped(&a, DropReason::NoReceiver)), (0, 1));
    a.connection.reconfigure(access("a", 10)).expect("new settings");
    a.send(&frame(mac(2), mac(1), "and now?"));
    assert_eq!(b.received().len(), 1);
    assert_eq!(
        world.switch.ports().iter().map(|port| port.settings.vlan.clone()).collect::<Vec<_>>(),
        [VlanMode::Access(10), VlanMode::Access(10)]
    );
}

#[test]
fn what_is_for_the_other_end_of_a_wire_goes_nowhere() {
    let world = World::new();
    let [a, b] = ["a", "b"].map(|name| world.port(name));
    a.send(&frame(MacAddress([1, 0x80, 0xc2, 0, 0, 0]), mac(1), "spanning tree"));
    assert_eq!((b.received().len(), dropped(&a, DropReason::LinkLocal)), (0, 1));
}
