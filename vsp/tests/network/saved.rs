//! A NIC in use moves from root to root, and its guest notices nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::timeout;
use vmbus_core::network::nvsp::{Message, Status};
use vmbus_core::network::{Oid, rndis};
use vmbus_vsp::network::Link;

use crate::client::{Arrived, LONG, NIC, PEER, World, frame};
use crate::scaling::scale;

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
