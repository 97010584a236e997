//! A NIC in use moves from root to root, and its guest notices nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::time::timeout;
use vmbus_channels::Device;
use vmbus_core::network::nvsp::{ChannelType, Message, Status};
use vmbus_core::network::{CLASS, Oid, rndis};
use vmbus_vsp::network::Link;
use vmbus_vsp::network::switch::{Batch, Offload};

use crate::client::{Arrived, LONG, NIC, PEER, SEND_SECTION, World, frame, message};
use crate::scaling::{scale, scale_some, table};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nic_goes_on_with_what_its_guest_has_set_and_holds() {
    let mut world = World::new().await;
    let mut driver = world.running().await;
    let group = [1, 0, 0x5e, 0, 0, 7];
    driver.set(Oid::ETHERNET_MULTICAST_LIST, &group).await;
    driver.set(Oid::GEN_CURRENT_PACKET_FILTER, &3_u32.to_le_bytes()).await;
    let held: Vec<_> = (0..50).map(|number| frame(NIC, PEER, number, 900)).collect();
    let mut kept: Vec<Arrived> = Vec::new();
    for frame in &held {
        world.peer.send([frame]);
        kept.push(driver.arrive().await);
    }
    world.moves().await;
    // Sections that the guest has are not written to by the next root.
    let sections = driver.section.pieces.get();
    let fill: Vec<_> = (0..sections).map(|number| frame(NIC, PEER, 1000 + number, 900)).collect();
    timeout(LONG, async {
        while world.adapter.statistics().is_none_or(|counts| counts.delivered.frames == 0) {
            world.peer.send([&fill[0]]);
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("frames come again");
    world.peer.send(&fill);
    for (arrived, sent) in kept.iter().zip(&held) {
        assert_eq!(
            driver.messages(&arrived.request)[0][44..],
            sent[..],
            "what the guest holds is what it was"
        );
    }
    let counts = world.adapter.statistics().unwrap();
    let taken = counts.delivered.frames;
    assert!((u64::from(sections) - 62..=u64::from(sections) - 58).contains(&taken), "{taken} of {sections}");
    // All of them come back, whoever sent them.
    for arrived in kept {
        arrived.give_back().await;
    }
    let mut left = taken;
    while left > 0 {
        let arrived = driver.arrive().await;
        left -= arrived.frames.len() as u64;
        arrived.give_back().await;
    }
    assert_eq!(driver.query(Oid::GEN_CURRENT_PACKET_FILTER, &[]).await.1, 3_u32.to_le_bytes());
    assert_eq!(driver.query(Oid::ETHERNET_MULTICAST_LIST, &[]).await.1, group);
    let again: Vec<_> = (0..sections - 12).map(|number| frame(NIC, PEER, number, 60)).collect();
    world.peer.send(&again);
    assert_eq!(driver.receive(again.len()).await, again, "no section is lost");
    assert_eq!(driver.transmit(7, &frame(PEER, NIC, 1, 60), &[]).await, Status::SUCCESS);
    assert_eq!(world.peer.sees(1).await.len(), 1);
    drop(driver);
    timeout(LONG, async {
        while world.switch.ports().len() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a NIC that was restored and closed is no port");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nic_with_sub_channels_moves_under_load_and_every_packet_is_answered() {
    let mut world = World::new().await;
    let primary = world.running().await;
    let subs = scale(&world, &primary, 2).await;
    let stop = Arc::new(AtomicBool::new(false));
    let sender = {
        let (stop, driver) = (Arc::clone(&stop), primary);
        tokio::spawn(async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let status = driver.transmit(number % 64, &frame(PEER, NIC, number, 200), &[]).await;
                assert_eq!(status, Status::SUCCESS);
                number += 1;
            }
            (driver, number)
        })
    };
    let mut seen = 0;
    for _ in 0..10 {
        timeout(LONG, async {
            let until = seen + 50;
            while seen < until {
                seen += world.peer.seen().len();
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("frames go on");
        world.moves().await;
    }
    stop.store(true, Ordering::Relaxed);
    let (driver, sent) = timeout(LONG, sender).await.expect("every packet is answered").unwrap();
    seen += world.peer.seen().len();
    assert_eq!(seen, sent as usize, "each frame went out once");
    assert!(!driver.channel.is_closed() && subs.iter().all(|sub| !sub.channel.is_closed()));
    // Nobody asks for sub-channels twice, whichever root it is.
    let again = driver.ask(Message::SubchannelRequest { operation: 1, count: 1 }).await;
    assert_eq!(driver.host(&again), Message::SubchannelComplete { status: Status::FAILURE, count: 0 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sub_channel_that_was_offered_before_a_move_opens_after_it() {
    let mut world = World::new().await;
    let primary = world.running().await;
    let _first = scale_some(&world, &primary, 2, 1).await;
    world.moves().await;
    let device = Device::class(CLASS).subchannel(2);
    let channel = timeout(LONG, world.guest.open(device)).await.expect("an answer").expect("it opens");
    let second = primary.sub_channel(channel);
    // There are more channels bit by bit.
    while table(&primary).await != std::array::from_fn(|entry| entry as u32 % 3) {}
    let sent = frame(PEER, NIC, 1, 100);
    let bytes = message(&sent, &[]);
    primary.send.as_ref().unwrap().buffer().write(SEND_SECTION, &bytes).unwrap();
    let packet = Message::Packet { channel: ChannelType::Data, section: 1, section_size: bytes.len() as u32 };
    let pending = second.channel.send(&packet.encode(second.version), []).await.unwrap();
    assert_eq!(second.status(pending).await, Status::SUCCESS);
    assert_eq!(world.peer.sees(1).await[0].0, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_changed_meanwhile_is_told() {
    let down = Arc::new(AtomicBool::new(false));
    let is_down = Arc::clone(&down);
    let settings = move |adapter: vmbus_vsp::network::NetworkAdapter| {
        let connected = !is_down.load(Ordering::Relaxed);
        adapter.link(Link { connected, ..Link::default() })
    };
    let mut world = World::with(settings).await;
    let driver = world.running().await;
    down.store(true, Ordering::Relaxed);
    world.moves().await;
    let told = driver.hear().await;
    let expected = rndis::Message::IndicateStatus { status: rndis::Status::MEDIA_DISCONNECT, data: &[] };
    assert_eq!(rndis::Message::parse(&told).unwrap(), expected);
}

/// Frames for a NIC without a channel killed whoever sent them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_was_set_up_before_its_conversation_is_refused() {
    let world = World::new().await;
    let _driver = world.running().await;
    let mut forged = world.save().await;
    // Ready, in version 6.1; and the same in setup.
    let [ready, setup] = [2, 1].map(|progress| [8, progress, 16, 0x81, 0x80, 0x18]);
    let places: Vec<_> = (0..forged.len()).filter(|&at| forged[at..].starts_with(&ready)).collect();
    assert_eq!(places.len(), 1);
    forged[places[0]..][..setup.len()].copy_from_slice(&setup);
    world.restore(&forged).await;
    assert_eq!(world.switch.ports().len(), 1, "it is no port");
}

/// A frame that came while the NIC was taken up found no channel, and killed whoever sent it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nic_moves_while_frames_for_it_do_not_pause() {
    let mut world = World::new().await;
    let driver = world.running().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (connection, until) = (Arc::clone(&world.peer.connection), Arc::clone(&stop));
    let sender = std::thread::spawn(move || {
        let frame = frame(NIC, PEER, 1, 60);
        let mut batch = Batch::new();
        while !until.load(Ordering::Relaxed) {
            batch.push(&frame, Offload::NONE).unwrap();
            connection.send(&mut batch);
        }
    });
    for _ in 0..50 {
        world.moves().await;
        driver.arrive().await.give_back().await;
    }
    stop.store(true, Ordering::Relaxed);
    sender.join().expect("who sends lives on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saved_bytes_that_somebody_has_changed_are_refused_or_do_no_harm() {
    let panics = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&panics);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name().is_some_and(|name| name.contains("tokio")) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        before(info);
    }));
    let world = World::new().await;
    let driver = world.running().await;
    let _subs = scale(&world, &driver, 1).await;
    table(&driver).await;
    let mut kept = Vec::new();
    for number in 0..5 {
        world.peer.send([&frame(NIC, PEER, number, 100)]);
        kept.push(driver.arrive().await);
    }
    let bytes = world.save().await;
    let (mut refused, mut taken) = (0, 0);
    let mut dice = 4711_u64;
    let mut roll = |sides: usize| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) as usize % sides
    };
    for _ in 0..300 {
        let mut forged = bytes.clone();
        for _ in 0..=roll(3) {
            let at = roll(forged.len());
            forged[at] = if roll(2) == 0 { roll(8) as u8 } else { roll(256) as u8 };
        }
        match world.restore(&forged).await {
            true => taken += 1,
            false => refused += 1,
        }
    }
    assert!(refused > 10 && taken > 10, "{refused} refused, {taken} taken");
    assert_eq!(panics.load(Ordering::Relaxed), 0, "somebody panicked");
}
