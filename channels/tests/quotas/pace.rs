//! What a guest makes the root do without a reason: it is heard later, and nobody else is.

use std::time::{Duration, Instant};

use vmbus_channels::test_utils::{MockGuest, MockRings};
use vmbus_channels::{Event, Quotas, Root};
use vmbus_core::synic::ChannelConnection;
use vmbus_partition::GuestEnd;
use vmbus_ringbuf::Outgoing;

use crate::world::{Neighbour, PATIENCE, bus, intruder, offers, open, partition};

/// How long a test misbehaves.
const WHILE: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_floods_the_root_with_garbage_is_read_later_and_its_neighbour_at_once() {
    let mut quotas = Quotas::default();
    (quotas.work_per_second, quotas.work_at_once) = (2000, 2000);
    let root = bus(quotas, 1);
    let neighbour = Neighbour::of(&root).await;
    let mut events = root.events();
    let guest = intruder(&root).await;
    let start = Instant::now();
    while start.elapsed() < WHILE {
        guest.post(&[0xff; 40]);
        neighbour.is_served().await;
    }
    // A fault is 50 units: 40 at once, and 40 each second.
    let throttled = tokio::time::timeout(PATIENCE, async {
        loop {
            if matches!(events.recv().await.unwrap(), Event::Throttled { client } if &*client.name == "intruder")
            {
                break;
            }
        }
    });
    throttled.await.expect("the intruder is told of");
    let status = partition(&root, "intruder").await;
    assert!(status.pauses > 0);
    assert_eq!(partition(&root, "neighbour").await.pauses, 0);
    // It can be taken off the bus all the same, at once.
    root.detach(status.id);
    let gone = tokio::time::timeout(PATIENCE, async {
        while root.status().await.partitions.len() > 1 {
            tokio::task::yield_now().await;
        }
    });
    gone.await.expect("it is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_takes_its_offers_one_by_one_is_not_in_a_storm() {
    let root = bus(Quotas::default(), 1500);
    let guest = intruder(&root).await;
    offers(&guest, 1500).await;
    assert_eq!(partition(&root, "intruder").await.pauses, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_works_hard_by_the_rules_is_not_slowed_down() {
    let root = bus(Quotas::default(), 8);
    let guest = vmbus_channels::test_utils::join(&root, "busy").await.unwrap();
    let devices = guest.all_offers().await.unwrap();
    for round in 0..20 {
        let mut channels = Vec::new();
        for device in &devices {
            let device = vmbus_channels::Device::instance(device.instance);
            let channel = tokio::time::timeout(PATIENCE, async {
                loop {
                    // The last one may be on its way out.
                    match guest.open(device).await {
                        Ok(channel) => break channel,
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
            });
            channels.push(channel.await.unwrap_or_else(|_| panic!("a channel in round {round}")));
        }
        for channel in &channels {
            for _ in 0..20 {
                channel.send(b"question", []).await.unwrap().reply().await.unwrap();
            }
        }
    }
    let status = partition(&root, "busy").await;
    assert_eq!((status.pauses, status.storms), (0, 0));
}

/// Rings for a channel in one worker's area, or for none, as fast as it can for a while.
async fn storm(guest: &MockGuest, connection_id: u32, neighbour: &Neighbour) {
    let start = Instant::now();
    while start.elapsed() < WHILE {
        for _ in 0..1000 {
            guest.end().signal(connection_id);
        }
        neighbour.is_served().await;
    }
}

/// Sends a request as the ring's rules want it and waits for its answer.
async fn answered(guest: &MockGuest, connection_id: u32, rings: &mut MockRings, id: u64) {
    let mut batch = rings.to_host.batch();
    batch.push(Outgoing::request(id, b"question")).unwrap();
    if batch.commit().unwrap().is_ring() {
        guest.end().signal(connection_id);
    }
    let start = Instant::now();
    while !rings.from_host.has_unread().unwrap() {
        assert!(start.elapsed() < PATIENCE, "an answer");
        tokio::task::yield_now().await;
    }
    assert!(rings.from_host.next().unwrap().is_some());
}

async fn storms(root: &Root, worker: u32) {
    let neighbour = Neighbour::of(root).await;
    let guest = intruder(root).await;
    let relid = offers(&guest, 1).await[0];
    let (status, mut rings) = open(&guest, relid, 16).await;
    assert_eq!(status, 0);
    let connection_id = ChannelConnection { relid, worker }.id();
    storm(&guest, connection_id, &neighbour).await;
    assert_eq!(partition(root, "intruder").await.storms, 1);
    // In the midst of the storm nothing is lost, although its bell says nothing any more.
    for id in 1..=20 {
        for _ in 0..1000 {
            guest.end().signal(connection_id);
        }
        answered(&guest, connection_id, &mut rings, id).await;
    }
    neighbour.is_served().await;
    // After it, work is work again: signals that bring some end it.
    let calm = tokio::time::timeout(PATIENCE, async {
        let mut id = 100;
        while partition(root, "intruder").await.storms > 0 {
            answered(&guest, connection_id, &mut rings, id).await;
            id += 1;
            // Until it sleeps, so that the next signal is one.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    calm.await.expect("the storm is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doorbell_storm_over_a_channel_with_an_area_of_its_own_is_looked_at_every_now_and_then() {
    storms(&bus(Quotas::default(), 1), 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doorbell_storm_in_the_shared_area_is_looked_at_every_now_and_then() {
    // Areas 1 and 2 are taken by the first two devices, which stay closed.
    let root = bus(Quotas::default(), 3);
    let neighbour = Neighbour::of(&root).await;
    let guest = intruder(&root).await;
    let relids = offers(&guest, 3).await;
    let (status, mut rings) = open(&guest, relids[2], 16).await;
    assert_eq!(status, 0);
    let connection_id = ChannelConnection { relid: relids[2], worker: 0 }.id();
    storm(&guest, connection_id, &neighbour).await;
    let status = partition(&root, "intruder").await;
    assert_eq!(status.storms, 1);
    assert!(status.pauses > 0);
    for id in 1..=10 {
        guest.end().signal(connection_id);
        answered(&guest, connection_id, &mut rings, id).await;
    }
    neighbour.is_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_says_look_without_saying_anything_is_looked_at_every_now_and_then() {
    let root = bus(Quotas::default(), 1);
    let neighbour = Neighbour::of(&root).await;
    let guest = intruder(&root).await;
    let start = Instant::now();
    while start.elapsed() < WHILE {
        for _ in 0..1000 {
            // Flag 0 of area 0 means messages; an empty message ring is found.
            guest.end().signal(ChannelConnection { relid: 0, worker: 0 }.id());
        }
        neighbour.is_served().await;
    }
    assert!(partition(&root, "intruder").await.pauses > 0);
    // What it says at last is heard.
    offers(&guest, 1).await;
}
