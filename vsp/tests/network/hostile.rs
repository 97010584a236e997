//! What no driver does: it costs the guest its packet or its channel, and nobody else anything.

use std::time::Duration;

use tokio::time::timeout;
use vmbus_channels::Device;
use vmbus_core::network::nvsp::{self, Capabilities, ChannelType, Message, NO_SECTION, Status};
use vmbus_core::network::{CLASS, LargeSend, Oid, PacketInfo, TransmitChecksum, Version, rndis};

use crate::client::{Driver, LONG, NIC, PEER, RECEIVE, World, frame, message};
use crate::raw::Raw;

/// The NIC works for its guest and sends nothing that was not asked for.
async fn works(world: &World, driver: &Driver) {
    let sent = frame(PEER, NIC, 99, 60);
    assert_eq!(driver.transmit(0, &sent, &[]).await, Status::SUCCESS);
    assert_eq!(world.peer.sees(1).await[0].0, sent);
    assert!(world.peer.seen().is_empty());
}

/// The channel has closed, and the guest may open the NIC again.
async fn closes(world: &World, driver: Driver) {
    timeout(LONG, driver.channel.closed()).await.expect("the channel closes");
    drop(driver);
    timeout(LONG, async {
        loop {
            match world.guest.open(Device::class(CLASS)).await {
                Ok(_) => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    })
    .await
    .expect("it can be opened again");
}

fn set_word(bytes: &mut [u8], at: usize, word: u32) {
    bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

#[tokio::test]
async fn messages_that_lie_about_themselves_cost_their_packet() {
    let world = World::new().await;
    let driver = world.running().await;
    let good = message(&frame(PEER, NIC, 1, 60), &[PacketInfo::Hash(1)]);
    let lies = |at: usize, word: u32| {
        let mut bytes = good.clone();
        set_word(&mut bytes, at, word);
        bytes
    };
    let mut cases = vec![
        good[..43].to_vec(),
        good[..8].to_vec(),
        vec![],
        lies(0, 7),
        lies(4, 0),
        lies(4, 43),
        lies(4, u32::MAX),
        lies(4, u32::try_from(good.len() + 1).unwrap()),
        // Data: within the header, beyond the message, of no length, around the end of the address space.
        lies(8, 0),
        lies(8, u32::MAX),
        lies(8, u32::MAX - 7),
        lies(12, u32::MAX),
        lies(12, 61),
        lies(12, 0),
        lies(12, 13),
        // Packet info.
        lies(28, u32::MAX),
        lies(28, 1000),
        lies(32, u32::MAX),
        lies(32, 15),
        lies(32, 17),
        lies(44, 0),
        lies(44, 8),
        lies(44, u32::MAX),
        lies(52, u32::MAX),
        lies(52, 16),
    ];
    // Zeros after a message are no message.
    cases.push([&good[..], &[0; 44]].concat());
    for (index, case) in cases.iter().enumerate() {
        let status = driver.transmit_bytes(0, case).await;
        assert_eq!(status, Status::INVALID_RNDIS_PACKET, "case {index}");
        let whole = world.peer.seen();
        assert!(whole.len() <= 1, "case {index}");
        assert!(whole.is_empty() || index == cases.len() - 1, "case {index}");
    }
    works(&world, &driver).await;
}

#[tokio::test]
async fn wishes_that_make_no_sense_cost_their_packet() {
    let world = World::new().await;
    let driver = world.running().await;
    let checksum = |transport_offset| {
        let tcp = TransmitChecksum { ipv4: true, tcp: true, transport_offset, ..TransmitChecksum::default() };
        PacketInfo::TransmitChecksum(tcp)
    };
    let large = |segment_size, tcp_offset| {
        PacketInfo::LargeSend(LargeSend { segment_size, tcp_offset, version_2: true, ipv6: false })
    };
    let frame = frame(PEER, NIC, 1, 80);
    for info in
        [checksum(13), checksum(63), checksum(1023), large(0xf_ffff, 34), large(100, 0), large(100, 61)]
    {
        let status = driver.transmit(0, &frame, &[info]).await;
        assert_eq!(status, Status::INVALID_RNDIS_PACKET, "{info:?}");
    }
    // UDP whose checksum would be its source port.
    let mut datagram = frame.clone();
    datagram[12..34]
        .copy_from_slice(&[8, 0, 0x45, 0, 0, 66, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    for (transport_offset, expected) in
        [(28, Status::INVALID_RNDIS_PACKET), (34, Status::SUCCESS), (0, Status::SUCCESS)]
    {
        let wish =
            TransmitChecksum { ipv4: true, udp: true, transport_offset, ..TransmitChecksum::default() };
        let status = driver.transmit(0, &datagram, &[PacketInfo::TransmitChecksum(wish)]).await;
        assert_eq!(status, expected, "{transport_offset}");
    }
    assert_eq!(world.peer.sees(2).await.len(), 2);
    let many = vec![PacketInfo::Hash(1); 40];
    assert_eq!(driver.transmit(0, &frame, &many).await, Status::INVALID_RNDIS_PACKET);
    assert!(world.peer.seen().is_empty());
    works(&world, &driver).await;
}

#[tokio::test]
async fn more_messages_than_a_packet_may_have_are_not_all_sent() {
    let world = World::new().await;
    let driver = world.running().await;
    let one = message(&frame(PEER, NIC, 1, 16), &[]);
    assert_eq!(driver.transmit_bytes(0, &one.repeat(32)).await, Status::SUCCESS);
    assert_eq!(world.peer.sees(32).await.len(), 32);
    assert_eq!(driver.transmit_bytes(0, &one.repeat(33)).await, Status::INVALID_RNDIS_PACKET);
    assert_eq!(world.peer.sees(32).await.len(), 32);
    works(&world, &driver).await;
}

#[tokio::test]
async fn sections_that_are_not_there_cost_their_packet() {
    let world = World::new().await;
    let driver = world.running().await;
    for (section, section_size) in [
        (64, 100),
        (u32::MAX - 1, 100),
        (0, 6145),
        (0, u32::MAX),
        (63, u32::MAX),
        (0, 0),
        (NO_SECTION, 100),
        (1 << 20, 6144),
    ] {
        let message = Message::Packet { channel: ChannelType::Data, section, section_size };
        let status = driver.send_ranges(message, &[]).await;
        assert_eq!(status, Status::INVALID_RNDIS_PACKET, "section {section}, {section_size} bytes");
    }
    works(&world, &driver).await;
}

#[tokio::test]
async fn a_packet_that_changes_while_it_is_read_is_one_of_both() {
    let world = World::new().await;
    let driver = world.running().await;
    let [one, other] = [frame(PEER, NIC, 1, 100), frame(PEER, NIC, 2, 1000)];
    let [first, second] = [&one, &other].map(|frame| message(frame, &[PacketInfo::Hash(1)]));
    let memory = driver.send.as_ref().unwrap().buffer().clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flips = std::thread::spawn({
        let (stop, memory) = (stop.clone(), memory);
        move || {
            let mut bytes = second.clone();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                bytes[..first.len()].copy_from_slice(&first);
                memory.write(0, &bytes).unwrap();
                memory.write(0, &second).unwrap();
            }
        }
    });
    for _ in 0..2000 {
        let message = Message::Packet { channel: ChannelType::Data, section: 0, section_size: 1060 };
        let pending = driver.channel.send(&message.encode(driver.version), []).await.unwrap();
        // It is whatever it was at the moment of the look, or none.
        let status = driver.status(pending).await;
        assert!(status == Status::SUCCESS || status == Status::INVALID_RNDIS_PACKET);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flips.join().unwrap();
    for (bytes, _) in world.peer.seen() {
        assert!(bytes.len() == one.len() || bytes.len() == other.len(), "{} bytes", bytes.len());
    }
    works(&world, &driver).await;
}

/// How a guest completes what it should not.
enum Hostile {
    Unknown(u64),
    Twice,
    /// With more than anybody keeps.
    Long,
}

#[tokio::test]
async fn a_completion_of_nothing_or_of_the_same_again_or_of_much_ends_the_channel_alone() {
    let world = World::with(|adapter| adapter.only_for("raw")).await;
    for hostile in [
        Hostile::Unknown(0),
        Hostile::Unknown(4711),
        Hostile::Unknown(u64::MAX),
        Hostile::Twice,
        Hostile::Long,
    ] {
        let mut raw = Raw::running(&world).await;
        world.peer.send([&frame(NIC, PEER, 1, 60)]);
        let delivered = raw.hear().await;
        match hostile {
            Hostile::Unknown(id) => raw.complete(id),
            Hostile::Twice => {
                raw.complete(delivered);
                raw.complete(delivered);
            }
            Hostile::Long => raw.complete_with(delivered, 97),
        }
        timeout(LONG, async {
            while world.adapter.statistics().is_some() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("the NIC closes");
        drop(raw);
    }
    let mut next = Raw::running(&world).await;
    for number in 0..3 {
        world.peer.send([&frame(NIC, PEER, number, 60)]);
        let delivered = next.hear().await;
        next.complete_with(delivered, 96);
    }
}

#[tokio::test]
async fn a_guest_that_asks_on_and_takes_no_answer_is_bounded() {
    let world = World::new().await;
    let mut driver = world.open().await;
    driver.set_up_with(Version::V6_1, 1500, 128 << 10).await;
    driver.begin().await;
    let mut ask = Vec::new();
    rndis::Message::KeepAlive { request: 1 }.encode(&mut ask);
    let (mut asked, mut kept) = (0_u32, Vec::new());
    let message = Message::Packet { channel: ChannelType::Control, section: NO_SECTION, section_size: 0 };
    let scratch = driver.guest.share(4096).unwrap();
    scratch.write(0, &ask).unwrap();
    while let Ok(pending) =
        driver.channel.send(&message.encode(driver.version), [scratch.range(..ask.len())]).await
    {
        if timeout(LONG, pending.reply()).await.unwrap().is_err() {
            break;
        }
        asked += 1;
        if driver.channel.try_recv(64, &mut kept).is_err() {
            break;
        }
    }
    let sections = driver.section.pieces.get();
    assert!((sections..sections + 40).contains(&asked), "{asked} answers for {sections} sections");
    closes(&world, driver).await;
}

#[tokio::test]
async fn messages_out_of_turn_end_the_channel() {
    let init = Message::Init { version: Version::V6_1.word() };
    let config = Message::NdisConfig { mtu: 1514, capabilities: Capabilities::empty() };
    let ndis = Message::NdisVersion { major: 6, minor: 30 };
    let receive = Message::Buffer { buffer: nvsp::Buffer::Receive, gpadl: 1, id: RECEIVE };
    let control = Message::Packet { channel: ChannelType::Control, section: NO_SECTION, section_size: 0 };
    let data = Message::Packet { channel: ChannelType::Data, section: NO_SECTION, section_size: 0 };
    let sub_channels = Message::SubchannelRequest { operation: 1, count: 1 };
    let cases: [&[Message]; 13] = [
        &[config],
        &[ndis],
        &[receive],
        &[control],
        &[init, init],
        &[init, config, config],
        &[init, ndis, ndis],
        &[init, receive],
        &[init, control],
        &[init, config, ndis, control],
        &[init, config, ndis, data],
        &[init, config, ndis, sub_channels],
        &[init, Message::PacketComplete { status: Status::SUCCESS }],
    ];
    for (index, case) in cases.iter().enumerate() {
        let world = World::new().await;
        let driver = world.open().await;
        for message in *case {
            driver.tell(*message).await;
        }
        timeout(LONG, driver.channel.closed()).await.unwrap_or_else(|_| panic!("case {index} stays open"));
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_end_the_channel() {
    let mut unknown = [0; 40];
    unknown[0] = 77;
    let mut too_new = [0; 40];
    too_new[..4].copy_from_slice(&133_u32.to_le_bytes());
    let cases: [(Version, &[u8]); 6] = [
        (Version::V6_1, &[]),
        (Version::V6_1, &[1]),
        (Version::V6_1, &unknown),
        (Version::V6_1, &107_u32.to_le_bytes()),
        (Version::V2, &too_new),
        (Version::V6, &[135, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for (version, bytes) in cases {
        let world = World::new().await;
        let mut driver = world.open().await;
        driver.set_up(version, 1500).await;
        driver.begin().await;
        driver.channel.notify(bytes).await.unwrap();
        closes(&world, driver).await;
    }
}

#[tokio::test]
async fn messages_about_the_device_that_are_none_end_the_channel_or_are_refused() {
    let world = World::new().await;
    let mut driver = world.running().await;
    // A question whose data is nowhere.
    let mut question = Vec::new();
    rndis::Message::Query { request: 5, oid: Oid::GEN_MAXIMUM_FRAME_SIZE, data: &[1; 8] }
        .encode(&mut question);
    set_word(&mut question, 20, u32::MAX);
    assert_eq!(driver.say(&question).await, Status::SUCCESS);
    let answer = driver.hear().await;
    let expected =
        rndis::Message::QueryComplete { request: 5, status: rndis::Status::INVALID_DATA, data: &[] };
    assert_eq!(rndis::Message::parse(&answer).unwrap(), expected);
    // Longer than anything about a device.
    assert_eq!(driver.say(&[4; 20_000]).await, Status::INVALID_RNDIS_PACKET);
    assert_eq!(driver.query(Oid::GEN_MAXIMUM_FRAME_SIZE, &[]).await.0, rndis::Status::SUCCESS);

    let mut indicate = Vec::new();
    rndis::Message::IndicateStatus { status: rndis::Status::MEDIA_CONNECT, data: &[] }.encode(&mut indicate);
    let unknown = [77_u32, 16, 0, 0].map(u32::to_le_bytes).concat();
    let set_ex = [9_u32, 16, 0, 0].map(u32::to_le_bytes).concat();
    for bytes in [&indicate[..], &unknown, &set_ex, &[1, 2, 3]] {
        let world = World::new().await;
        let driver = world.running().await;
        let scratch = driver.guest.share(4096).unwrap();
        scratch.write(0, bytes).unwrap();
        let message = Message::Packet { channel: ChannelType::Control, section: NO_SECTION, section_size: 0 };
        let ranges = [scratch.range(..bytes.len())];
        let _pending = driver.channel.send(&message.encode(driver.version), ranges).await.unwrap();
        closes(&world, driver).await;
    }
}
