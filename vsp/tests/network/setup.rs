//! Versions, buffers, the link, and the end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use vmbus_channels::{Client, Device};
use vmbus_core::network::nvsp::{self, Capabilities, ChannelType, Message, Sender, Status};
use vmbus_core::network::rndis;
use vmbus_core::network::{CLASS, Oid, Version};
use vmbus_vsp::network::switch::{MacAddress, PortSettings};
use vmbus_vsp::network::{Limits, Link};

use crate::client::{Driver, LONG, NIC, PEER, RECEIVE, World, frame};

#[tokio::test]
async fn every_version_is_spoken_from_its_first_message_to_frames_both_ways() {
    for version in Version::ALL {
        let world = World::new().await;
        let mut driver = world.open().await;
        driver.set_up(version, 1500).await;
        let reply = driver.ask(Message::Revoke { buffer: nvsp::Buffer::Send, id: 0 }).await;
        assert!(reply.is_empty(), "{version}");
        driver.share(nvsp::Buffer::Send, 1 << 20).await;
        let complete = driver.begin().await;
        assert_eq!((complete.status, complete.alignment_exponent), (rndis::Status::SUCCESS, 3));
        let sent = frame(PEER, NIC, 1, 60);
        assert_eq!(driver.transmit(5, &sent, &[]).await, Status::SUCCESS);
        assert_eq!(world.peer.sees(1).await[0].0, sent, "{version}");
        let back = frame(NIC, PEER, 2, 1514);
        world.peer.send([&back]);
        assert_eq!(driver.receive(1).await, [back], "{version}");
    }
}

#[tokio::test]
async fn each_guest_may_have_a_nic_of_its_own_with_an_address_and_a_port_of_its_own() {
    let each = |client: &Client| (MacAddress::of_name(&client.name), PortSettings::new(&*client.name));
    let world = World::with(move |adapter| adapter.for_each_guest(each)).await;
    let other = vmbus_channels::test_utils::join(&world.root, "other").await.unwrap();
    let mut drivers = Vec::new();
    for (guest, name) in [(&world.guest, "guest"), (&other, "other")] {
        let channel = guest.open(Device::class(CLASS)).await.unwrap();
        let mut driver = Driver::new(guest, channel);
        driver.set_up(Version::V6_1, 1500).await;
        driver.begin().await;
        let address = driver.query(Oid::ETHERNET_CURRENT_ADDRESS, &[]).await.1;
        assert_eq!(address, MacAddress::of_name(name).0);
        drivers.push(driver);
    }
    let mut ports: Vec<_> = world.switch.ports().into_iter().map(|port| port.settings.name).collect();
    ports.sort();
    assert_eq!(ports, ["guest", "other", "peer"]);
    let hello = frame(MacAddress::of_name("other"), MacAddress::of_name("guest"), 1, 60);
    assert_eq!(drivers[0].transmit(0, &hello, &[]).await, Status::SUCCESS);
    assert_eq!(drivers[1].receive(1).await, [hello]);
}

#[tokio::test]
async fn messages_have_the_size_of_their_version() {
    for (version, size) in [(Version::V1, 32), (Version::V6, 32), (Version::V6_1, 40)] {
        let world = World::new().await;
        let driver = world.open().await;
        let reply = driver.ask(Message::Init { version: version.word() }).await;
        assert_eq!(reply.len(), size, "{version}");
    }
}

#[tokio::test]
async fn a_version_that_is_refused_is_no_end_and_the_next_one_may_be_taken() {
    let limits = Limits { newest: Version::V5, oldest: Version::V4, ..Limits::default() };
    let world = World::with(move |adapter| adapter.limits(limits)).await;
    let mut driver = world.open().await;
    for refused in [Version::V6_1, Version::V6, Version::V2, Version::V1] {
        assert_eq!(driver.init(refused).await, Status::NONE, "{refused}");
    }
    let reply = driver.ask(Message::Init { version: 0x0007_0000 }).await;
    let reply = Message::parse(&reply, Sender::Host, None).unwrap();
    assert!(matches!(reply, Message::InitComplete { status: Status::NONE, .. }));
    assert_eq!(driver.init(Version::V5).await, Status::SUCCESS);
}

#[tokio::test]
async fn the_mtu_is_the_guests_within_bounds_and_the_usual_one_beyond() {
    let max = Limits::default().max_mtu;
    for (stated, used) in
        [(68, 68), (1500, 1500), (max, max), (67, 1500), (max + 1, 1500), (u32::MAX - 14, 1500)]
    {
        let world = World::new().await;
        let mut driver = world.open().await;
        driver.set_up(Version::V5, stated).await;
        driver.begin().await;
        let size = driver.query(Oid::GEN_MAXIMUM_FRAME_SIZE, &[]).await.1;
        assert_eq!(size, used.to_le_bytes());
        assert_eq!(
            driver.query(Oid::GEN_FRIENDLY_NAME, &[]).await.1.len(),
            512,
            "answers fit, however short frames are"
        );
        let longest = frame(NIC, PEER, 1, used as usize + 14);
        let too_long = frame(NIC, PEER, 2, used as usize + 14 + 5);
        world.peer.send([&too_long, &longest]);
        assert_eq!(driver.receive(1).await, [longest]);
        let longest = frame(PEER, NIC, 1, used as usize + 14);
        if longest.len() + 44 <= 6144 {
            assert_eq!(driver.transmit(0, &longest, &[]).await, Status::SUCCESS);
            assert_eq!(
                driver.transmit(0, &[&longest[..], &[0; 5]].concat(), &[]).await,
                Status::INVALID_RNDIS_PACKET
            );
        }
    }
}

#[tokio::test]
async fn buffers_that_are_not_there_or_too_small_are_refused_and_may_be_tried_again() {
    let world = World::new().await;
    let mut driver = world.open().await;
    assert_eq!(driver.init(Version::V2).await, Status::SUCCESS);
    driver.tell(Message::NdisConfig { mtu: 1514, capabilities: Capabilities::empty() }).await;
    driver.tell(Message::NdisVersion { major: 6, minor: 1 }).await;
    let absent = Message::Buffer { buffer: nvsp::Buffer::Receive, gpadl: 4711, id: RECEIVE };
    let reply = driver.host(&driver.ask(absent).await);
    assert!(matches!(reply, Message::ReceiveBufferComplete { status: Status::FAILURE, sections: 0, .. }));
    let small = driver.share(nvsp::Buffer::Receive, 4096).await;
    assert!(matches!(small, Message::ReceiveBufferComplete { status: Status::FAILURE, .. }));
    let small = driver.share(nvsp::Buffer::Send, 4096).await;
    assert!(matches!(small, Message::SendBufferComplete { status: Status::FAILURE, .. }));
    let good = driver.share(nvsp::Buffer::Receive, 1 << 20).await;
    assert!(matches!(good, Message::ReceiveBufferComplete { status: Status::SUCCESS, .. }));
}

#[tokio::test]
async fn messages_about_virtual_functions_are_answered_so_that_nobody_waits() {
    let world = World::new().await;
    let driver = world.running().await;
    for to_vf in [true, false] {
        assert!(driver.ask(Message::SwitchDataPath { to_vf }).await.is_empty(), "Linux takes nothing else");
    }
    let reply = driver.host(&driver.ask(Message::OidQuery { oid: 0x0001_0106 }).await);
    assert_eq!(reply, Message::OidQueryComplete { status: rndis::Status::NOT_SUPPORTED.0, bytes: 0 });
    for kind in [135_u32, 136] {
        let mut bytes = [0; 40];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        assert!(driver.ask_bytes(&bytes).await.is_empty());
    }
}

#[tokio::test]
async fn a_guest_hears_of_the_link() {
    let world = World::new().await;
    let mut driver = world.running().await;
    let link = world.adapter.link();
    let connect_status = |answer: (rndis::Status, Vec<u8>)| answer.1;
    assert_eq!(connect_status(driver.query(Oid::GEN_MEDIA_CONNECT_STATUS, &[]).await), [0; 4]);
    world.adapter.set_link(Link { connected: false, ..link });
    let told = driver.hear().await;
    let told = rndis::Message::parse(&told).unwrap();
    assert!(matches!(told, rndis::Message::IndicateStatus { status: rndis::Status::MEDIA_DISCONNECT, .. }));
    assert_eq!(connect_status(driver.query(Oid::GEN_MEDIA_CONNECT_STATUS, &[]).await), [1, 0, 0, 0]);
    world.peer.send([&frame(NIC, PEER, 1, 60)]);
    assert_eq!(driver.transmit(0, &frame(PEER, NIC, 1, 60), &[]).await, Status::FAILURE);

    world.adapter.set_link(Link { connected: true, speed: 2_500_000_000 });
    let [first, second] = [driver.hear().await, driver.hear().await];
    let first = rndis::Message::parse(&first).unwrap();
    assert!(matches!(first, rndis::Message::IndicateStatus { status: rndis::Status::MEDIA_CONNECT, .. }));
    let second = rndis::Message::parse(&second).unwrap();
    let speed = 25_000_000_u32.to_le_bytes();
    let expected = rndis::Message::IndicateStatus { status: rndis::Status::LINK_SPEED_CHANGE, data: &speed };
    assert_eq!(second, expected);
    let frame = frame(NIC, PEER, 2, 60);
    world.peer.send([&frame]);
    assert_eq!(driver.receive(1).await, [frame], "what came while the link was down is gone");
}

#[tokio::test]
async fn halt_and_reset_end_frames_and_keepalive_is_answered() {
    let world = World::new().await;
    let mut driver = world.running().await;
    let alive = driver.control(rndis::Message::KeepAlive { request: 77 }).await;
    let expected = rndis::Message::KeepAliveComplete { request: 77, status: rndis::Status::SUCCESS };
    assert_eq!(rndis::Message::parse(&alive).unwrap(), expected);

    let reset = driver.control(rndis::Message::Reset).await;
    let expected = rndis::Message::ResetComplete { status: rndis::Status::SUCCESS, addressing_reset: true };
    assert_eq!(rndis::Message::parse(&reset).unwrap(), expected);
    world.peer.send([&frame(NIC, PEER, 1, 60)]);
    assert_eq!(driver.query(Oid::GEN_CURRENT_PACKET_FILTER, &[]).await.1, [0; 4]);

    let mut halt = Vec::new();
    rndis::Message::Halt { request: 1 }.encode(&mut halt);
    assert_eq!(driver.say(&halt).await, Status::SUCCESS);
    assert_eq!(driver.query(Oid::GEN_MAXIMUM_FRAME_SIZE, &[]).await.0, rndis::Status::FAILURE);
    assert_eq!(driver.transmit(0, &frame(PEER, NIC, 1, 60), &[]).await, Status::FAILURE);
    driver.begin().await;
    let frame = frame(NIC, PEER, 2, 60);
    world.peer.send([&frame]);
    assert_eq!(driver.receive(1).await, [frame]);
}

#[tokio::test]
async fn a_nic_is_closed_and_opened_again_with_packets_pending() {
    let world = World::new().await;
    for round in 0..20 {
        let driver = world.running().await;
        world.peer.send([&frame(NIC, PEER, round, 60), &frame(NIC, PEER, round, 1000)]);
        let pending = driver.arrive().await;
        let message = Message::Packet { channel: ChannelType::Data, section: 0, section_size: 60 };
        let _unanswered = driver.channel.send(&message.encode(driver.version), []).await.unwrap();
        drop(pending);
        drop(driver);
        timeout(LONG, async {
            while world.guest.open(Device::class(CLASS)).await.map(drop).is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // That one was closed at once, too.
            while world.adapter.statistics().is_some() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("it can be opened again");
    }
    assert_eq!(world.switch.ports().len(), 1, "a NIC that is closed is no port");
}

#[tokio::test]
async fn memory_that_is_revoked_is_not_touched_and_comes_back() {
    let world = World::new().await;
    let mut driver = world.running().await;
    for (buffer, id) in [(nvsp::Buffer::Receive, RECEIVE), (nvsp::Buffer::Send, 0)] {
        assert!(driver.ask(Message::Revoke { buffer, id }).await.is_empty());
    }
    let receive = driver.receive.take().unwrap();
    receive.buffer().write(0, &[0xaa; 4096]).unwrap();
    world.peer.send([&frame(NIC, PEER, 1, 1000)]);
    let mut bytes = [0; 4096];
    receive.buffer().read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0xaa; 4096]);
    timeout(LONG, Arc::into_inner(receive).unwrap().take_back()).await.expect("the provider has let go");
    timeout(LONG, driver.send.take().unwrap().take_back()).await.expect("the provider has let go");
    // A driver that changes its mind may go on.
    driver.share(nvsp::Buffer::Receive, 1 << 20).await;
    world.peer.send([&frame(NIC, PEER, 2, 1000)]);
    assert_eq!(driver.receive(1).await, [frame(NIC, PEER, 2, 1000)]);
}

#[tokio::test]
async fn memory_that_is_torn_down_without_a_word_comes_back_too() {
    let world = World::new().await;
    let mut driver = world.running().await;
    timeout(LONG, Arc::into_inner(driver.receive.take().unwrap()).unwrap().take_back())
        .await
        .expect("the provider has let go");
    timeout(LONG, driver.send.take().unwrap().take_back()).await.expect("the provider has let go");
    world.peer.send([&frame(NIC, PEER, 1, 1000)]);
    driver.send = None;
    let message = Message::Packet { channel: ChannelType::Data, section: 0, section_size: 60 };
    assert_eq!(driver.send_ranges(message, &[]).await, Status::INVALID_RNDIS_PACKET);
}
