//! Who gets a frame: learning, flooding, ageing, full receivers, disconnecting.

use std::sync::atomic::Ordering;
use std::time::Duration;

use vmbus_vsp::network::switch::{ConnectError, DropReason, MacAddress, PortSettings};

use crate::world::{World, forget, frame, mac};

#[test]
fn a_frame_for_somebody_unknown_goes_to_all_others_and_the_answer_to_him_alone() {
    let world = World::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| world.port(name));
    let question = frame(mac(2), mac(1), "who are you?");
    a.send(&question);
    assert_eq!((a.received(), b.received(), c.received()), (vec![], vec![question.clone()], vec![question]));
    let answer = frame(mac(1), mac(2), "me");
    b.send(&answer);
    assert_eq!((a.received(), c.received()), (vec![answer], vec![]));
    let thanks = frame(mac(2), mac(1), "thanks");
    a.send(&thanks);
    assert_eq!((b.received(), c.received()), (vec![thanks], vec![]));
    world.assert_balance();
}

#[test]
fn frames_of_a_batch_arrive_in_order_wherever_each_goes() {
    let world = World::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| world.port(name));
    b.send(&frame(MacAddress::BROADCAST, mac(2), "b is here"));
    c.send(&frame(MacAddress::BROADCAST, mac(3), "c is here"));
    forget([&a, &b, &c]);
    let everybody = MacAddress::BROADCAST;
    let frames: Vec<_> =
        [(mac(2), "1"), (everybody, "2"), (mac(3), "3"), (mac(2), "4"), (everybody, "5"), (mac(3), "6")]
            .map(|(to, text)| frame(to, mac(1), text))
            .into();
    a.send_all(frames.iter().map(Vec::as_slice));
    let texts = |frames: Vec<Vec<u8>>| frames.iter().map(|frame| char::from(frame[14])).collect::<String>();
    assert_eq!((texts(b.received()), texts(c.received())), ("1245".to_owned(), "2356".to_owned()));
    assert_eq!(b.inbox.deliveries.load(Ordering::Relaxed), 2, "one delivery for each batch");
    assert_eq!(a.connection.statistics().copies, 8);
    world.assert_balance();
}

#[test]
fn a_station_that_is_silent_for_too_long_is_unknown_again() {
    let world = World::with(|builder| builder.ageing(Duration::from_secs(10)));
    let [a, b, c] = ["a", "b", "c"].map(|name| world.port(name));
    b.send(&frame(mac(1), mac(2), "hello"));
    forget([&a, &c]);
    world.pass(Duration::from_secs(10));
    a.send(&frame(mac(2), mac(1), "still there?"));
    assert_eq!((b.received().len(), c.received().len()), (1, 0));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.switch.addresses().len(), 1);
    a.send(&frame(mac(2), mac(1), "and now?"));
    assert_eq!((b.received().len(), c.received().len()), (1, 1));
}

#[test]
fn a_station_that_moves_is_found_where_it_sends_from() {
    let world = World::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| world.port(name));
    b.send(&frame(mac(1), mac(9), "from b"));
    c.send(&frame(mac(1), mac(9), "from c"));
    forget([&a, &b, &c]);
    a.send(&frame(mac(9), mac(1), "where are you?"));
    assert_eq!((b.received().len(), c.received().len()), (0, 1));
}

#[test]
fn what_a_slow_receiver_has_no_room_for_is_dropped_at_his_port_alone() {
    let world = World::new();
    let [a, slow, fast] = ["a", "slow", "fast"].map(|name| world.port(name));
    slow.inbox.room.store(3, Ordering::Relaxed);
    let frames: Vec<_> = (0..10).map(|_| frame(MacAddress::BROADCAST, mac(1), "all")).collect();
    a.send_all(frames.iter().map(Vec::as_slice));
    assert_eq!((slow.received().len(), fast.received().len()), (3, 10));
    let statistics = slow.connection.statistics();
    assert_eq!(statistics.dropped_received.iter().collect::<Vec<_>>(), [(DropReason::Full, 7)]);
    assert_eq!(a.connection.statistics().dropped_sent.total(), 0);
    world.assert_balance();
}

#[test]
fn three_hundred_ports_hear_a_broadcast_once_each_and_one_that_sleeps_holds_up_none() {
    let world = World::new();
    let ports: Vec<_> = (0..300).map(|number| world.port(&format!("port {number}"))).collect();
    ports[7].inbox.room.store(0, Ordering::Relaxed);
    ports[0].send(&frame(MacAddress::BROADCAST, mac(1), "all of you"));
    let heard: Vec<_> = ports.iter().map(|port| port.received().len()).collect();
    assert!(
        heard.iter().enumerate().all(|(port, heard)| *heard == usize::from(port != 0 && port != 7)),
        "{heard:?}"
    );
    assert_eq!(ports[0].connection.statistics().copies, 299);
    assert_eq!(ports[7].connection.statistics().dropped_received.of(DropReason::Full), 1);
    world.assert_balance();
}

#[test]
fn what_goes_nowhere_is_counted_with_its_reason() {
    let world = World::new();
    let a = world.port("a");
    a.send(&frame(MacAddress::BROADCAST, mac(1), "is anybody here?"));
    a.send(&frame(mac(1), mac(3), "a neighbour of mine"));
    a.send(b"too short");
    a.send(&frame(mac(2), MacAddress::BROADCAST, "from everybody"));
    let drops = a.connection.statistics().dropped_sent;
    let counted =
        [DropReason::NoReceiver, DropReason::SamePort, DropReason::Malformed].map(|reason| drops.of(reason));
    assert_eq!((counted, drops.total()), ([1, 1, 2], 4));
    world.assert_balance();
}

#[test]
fn a_port_that_is_disconnected_leaves_nothing_but_its_counts() {
    let world = World::new();
    let [a, b] = ["a", "b"].map(|name| world.port(name));
    b.send(&frame(mac(1), mac(2), "hello"));
    let inbox = std::sync::Arc::clone(&b.inbox);
    drop(b);
    assert_eq!(std::sync::Arc::strong_count(&inbox), 1, "the switch has let go of the port");
    assert_eq!((world.switch.ports().len(), world.switch.addresses().len()), (1, 0));
    assert_eq!(world.switch.statistics().sent.frames, 1);
    let c = world.port("c");
    a.send(&frame(mac(2), mac(1), "is b there?"));
    assert_eq!(c.received().len(), 1, "nobody is behind the slot that c took over");
    world.assert_balance();
}

#[test]
fn a_switch_has_so_many_ports_and_knows_so_many_stations() {
    let world = World::with(|builder| builder.ports(2).addresses(10));
    let [a, b] = ["a", "b"].map(|name| world.port(name));
    let third = world.switch.connect(b.inbox, PortSettings::new("c")).err();
    assert_eq!(third, Some(ConnectError::Ports(2)));
    (0..100).for_each(|number| a.send(&frame(mac(1000), mac(number), "hello")));
    assert_eq!(world.switch.addresses().len(), 10);
}
