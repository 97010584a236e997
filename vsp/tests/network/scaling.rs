//! Sub-channels: asked for, opened, and flows spread over them.

use std::collections::BTreeSet;

use tokio::time::timeout;
use vmbus_channels::{Channel, Device};
use vmbus_core::network::ndis::{RssFlags, RssHashInfo, RssParameters, header_of};
use vmbus_core::network::nvsp::{ChannelType, Message, Status};
use vmbus_core::network::{CLASS, Oid, PacketInfo, Version, rndis};
use vmbus_vsp::network::Limits;
use vmbus_vsp::network::switch::{PortSettings, Senders};
use zerocopy::IntoBytes;

use crate::client::{Driver, LONG, NIC, PEER, SEND_SECTION, World, frame, infos, message};

/// Asks for sub-channels and opens them.
pub(crate) async fn scale(world: &World, driver: &Driver, count: u16) -> Vec<Driver> {
    scale_some(world, driver, count, count).await
}

/// Asks for `count` sub-channels, waits for them, and opens the first few.
pub(crate) async fn scale_some(world: &World, driver: &Driver, count: u16, opened: u16) -> Vec<Driver> {
    let request = Message::SubchannelRequest { operation: 1, count: count.into() };
    let reply = driver.host(&driver.ask(request).await);
    assert_eq!(reply, Message::SubchannelComplete { status: Status::SUCCESS, count: count.into() });
    let mut channels = Vec::new();
    for index in 1..=count {
        let device = Device::class(CLASS).subchannel(index);
        timeout(LONG, world.guest.wait_for(device)).await.expect("an offer").unwrap();
        if index > opened {
            continue;
        }
        channels.push(driver.sub_channel(world.guest.open(device).await.unwrap()));
    }
    channels
}

/// The next table that the host sends.
pub(crate) async fn table(driver: &Driver) -> [u32; 16] {
    loop {
        let request = timeout(LONG, driver.channel.recv()).await.expect("a table").unwrap().unwrap();
        assert!(!request.wants_completion());
        if let Message::IndirectionTable { table } = driver.host(request.payload()) {
            return table;
        }
    }
}

fn rss(table: &[u32]) -> Vec<u8> {
    let bytes = u16::try_from(4 * table.len()).unwrap();
    let hash = RssHashInfo::TOEPLITZ | RssHashInfo::IPV4 | RssHashInfo::TCP_V4;
    let parameters = RssParameters {
        header: header_of::<RssParameters>(),
        flags: RssFlags::empty().bits().into(),
        hash_info: hash.bits().into(),
        table_size: bytes.into(),
        table_offset: 40.into(),
        key_size: 40.into(),
        key_offset: (40 + u32::from(bytes)).into(),
        ..RssParameters::default()
    };
    let mut value = parameters.as_bytes().to_vec();
    table.iter().for_each(|queue| value.extend_from_slice(&queue.to_le_bytes()));
    value.extend((0..40_u8).map(|byte| byte.wrapping_mul(37) ^ 0x6d));
    value
}

/// A TCP segment of flow `flow`.
fn flow(flow: u16) -> Vec<u8> {
    let mut frame = frame(NIC, PEER, flow.into(), 80);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14] = 0x45;
    frame[20..22].copy_from_slice(&[0, 0]);
    frame[23] = 6;
    frame[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
    frame[34..36].copy_from_slice(&flow.to_be_bytes());
    frame[36..38].copy_from_slice(&80_u16.to_be_bytes());
    frame
}

async fn none_comes(channel: &Channel) -> bool {
    let mut requests = Vec::new();
    channel.try_recv(1, &mut requests).unwrap() == 0
}

#[tokio::test]
async fn flows_are_spread_over_sub_channels_as_the_guest_says() {
    let world = World::new().await;
    let mut primary = world.running().await;
    let subs = scale(&world, &primary, 3).await;
    assert_eq!(table(&primary).await, std::array::from_fn(|entry| entry as u32 % 4));

    let wanted: Vec<u32> = (0..128).map(|entry| (entry * 7 + 1) % 4).collect();
    let set = primary.set(Oid::GEN_RECEIVE_SCALE_PARAMETERS, &rss(&wanted)).await;
    assert_eq!(set, rndis::Status::SUCCESS);
    let flows: Vec<_> = (0..200).map(flow).collect();
    world.peer.send(&flows);
    let (mut all, mut used) = (Vec::new(), BTreeSet::new());
    for (index, driver) in std::iter::once(&primary).chain(&subs).enumerate() {
        let arrived = driver.arrive().await;
        for (info, frame) in &arrived.frames {
            let [PacketInfo::Hash(hash)] = infos(info)[..] else { panic!("no hash") };
            assert_eq!(wanted[hash as usize % 128], index as u32, "where the table says");
            all.push(frame.clone());
        }
        used.insert(index);
        arrived.give_back().await;
    }
    all.sort();
    let mut sent = flows.clone();
    sent.sort();
    assert_eq!(all, sent, "each flow arrives, once");

    for (number, driver) in (0..).zip(&subs) {
        let sent = frame(PEER, NIC, number, 100);
        let bytes = message(&sent, &[]);
        primary.send.as_ref().unwrap().buffer().write(3 * SEND_SECTION, &bytes).unwrap();
        let message =
            Message::Packet { channel: ChannelType::Data, section: 3, section_size: bytes.len() as u32 };
        let pending = driver.channel.send(&message.encode(driver.version), []).await.unwrap();
        assert_eq!(driver.status(pending).await, Status::SUCCESS, "answered on the same channel");
        assert_eq!(world.peer.sees(1).await[0].0, sent);
    }
}

#[tokio::test]
async fn what_goes_to_a_sub_channel_that_has_closed_goes_to_the_primary() {
    let world = World::new().await;
    let mut primary = world.running().await;
    let mut subs = scale(&world, &primary, 1).await;
    table(&primary).await;
    primary.set(Oid::GEN_RECEIVE_SCALE_PARAMETERS, &rss(&[1, 1])).await;
    let sections = primary.section.pieces.get();
    for number in 0..20 {
        world.peer.send([&flow(number)]);
    }
    let sub = subs.remove(0);
    // Some are never given back.
    let _kept = sub.arrive().await;
    assert!(none_comes(&primary.channel).await);
    drop((_kept, sub));
    assert_eq!(table(&primary).await, [0; 16], "there is one left");
    let flows: Vec<_> = (0..u16::try_from(sections).unwrap() - 12).map(flow).collect();
    world.peer.send(&flows);
    assert_eq!(primary.receive(flows.len()).await, flows, "what the other had is free again");
}

/// The table named as many channels as there were, and with them one that was gone.
#[tokio::test]
async fn the_table_names_the_channels_that_are_left() {
    let world = World::new().await;
    let primary = world.running().await;
    let mut subs = scale(&world, &primary, 2).await;
    table(&primary).await;
    drop(subs.remove(0));
    assert_eq!(table(&primary).await, std::array::from_fn(|entry| entry as u32 % 2 * 2));
}

#[tokio::test]
async fn sub_channels_are_granted_once_and_within_the_limit() {
    let limits = Limits { max_queues: 4, ..Limits::default() };
    let world = World::with(move |adapter| adapter.limits(limits)).await;
    let primary = world.running().await;
    for (operation, count) in [(1, 4), (1, 0), (1, u32::MAX), (0, 1), (2, 1), (1, 65_537)] {
        let reply = primary.host(&primary.ask(Message::SubchannelRequest { operation, count }).await);
        assert_eq!(
            reply,
            Message::SubchannelComplete { status: Status::FAILURE, count: 0 },
            "{operation} {count}"
        );
    }
    scale(&world, &primary, 3).await;
    let again = primary.ask(Message::SubchannelRequest { operation: 1, count: 1 }).await;
    assert_eq!(primary.host(&again), Message::SubchannelComplete { status: Status::FAILURE, count: 0 });
}

#[tokio::test]
async fn a_sub_channel_has_frames_alone() {
    let control = Message::Packet {
        channel: ChannelType::Control,
        section: vmbus_core::network::nvsp::NO_SECTION,
        section_size: 0,
    };
    for wrong in [Message::Init { version: Version::V6_1.word() }, control] {
        let world = World::new().await;
        let primary = world.running().await;
        let subs = scale(&world, &primary, 1).await;
        subs[0].tell(wrong).await;
        timeout(LONG, subs[0].channel.closed()).await.expect("it closes");
        assert!(!primary.channel.is_closed(), "the primary is none of its business");
    }
}

/// The port of before was there until the guest released what its sub-channels were, and had the address.
#[tokio::test]
async fn a_nic_opens_again_while_its_guest_still_has_sub_channels_of_before() {
    let world = World::with(|adapter| {
        let senders = Senders::Only(vec![NIC]);
        adapter.port(PortSettings { senders, ..PortSettings::new("nic") })
    })
    .await;
    let primary = world.running().await;
    let subs = scale(&world, &primary, 2).await;
    drop(primary);
    timeout(LONG, async {
        while world.switch.ports().len() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the port goes with the primary channel");
    let again = timeout(LONG, world.running()).await.expect("it opens");
    let sent = frame(NIC, PEER, 1, 60);
    world.peer.send([&sent]);
    assert_eq!(again.receive(1).await, [sent]);
    drop(subs);
}
