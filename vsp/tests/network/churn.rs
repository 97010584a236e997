//! Guests come and go while frames go both ways: every frame is accounted for, and nothing is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use vmbus_core::network::nvsp::{ChannelType, Message};

use crate::client::{LONG, NIC, PEER, SEND_SECTION, World, frame, message};

/// How often the NIC is opened; `VMBUS_LONG` asks for more.
fn rounds() -> u32 {
    if std::env::var_os("VMBUS_LONG").is_some() { 3000 } else { 30 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_balance_whenever_a_guest_vanishes() {
    let world = World::new().await;
    let stop = Arc::new(AtomicBool::new(false));
    let peer = Arc::clone(&world.peer.connection);
    let flood = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut batch = vmbus_vsp::network::switch::Batch::new();
            let (mut number, mut sent) = (0_u32, 0);
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..number % 50 {
                    let bytes = frame(NIC, PEER, number, 60 + number as usize % 1400);
                    batch.push(&bytes, vmbus_vsp::network::switch::Offload::NONE).unwrap();
                    number = number.wrapping_add(1);
                    sent += 1;
                }
                number = number.wrapping_add(1);
                peer.send(&mut batch);
                std::thread::yield_now();
            }
            sent
        }
    });
    let mut out = 0;
    for round in 0..rounds() {
        let driver = world.running().await;
        let bytes = message(&frame(PEER, NIC, round, 200), &[]);
        let mut requests = Vec::new();
        for number in 0..round % 40 + 1 {
            let section = number % 64;
            let memory = driver.send.as_ref().unwrap().buffer();
            memory.write(section as usize * SEND_SECTION, &bytes).unwrap();
            let section_size = u32::try_from(bytes.len()).unwrap();
            let message = Message::Packet { channel: ChannelType::Data, section, section_size };
            // Nobody waits for all of them.
            let pending = driver.channel.send(&message.encode(driver.version), []).await.unwrap();
            if number % 7 == 0 {
                let _ = driver.status(pending).await;
            }
            driver.channel.try_recv(64, &mut requests).unwrap();
            if number % 3 == 0 {
                for request in requests.drain(..) {
                    request.complete(&[]).await.unwrap();
                }
            }
            out += 1;
        }
        drop((requests, driver));
        timeout(LONG, async {
            while world.adapter.statistics().is_some() {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        })
        .await
        .expect("the NIC is let go of");
    }
    stop.store(true, Ordering::Relaxed);
    let flooded: u64 = flood.join().unwrap();
    let all = world.switch.statistics();
    assert!(all.sent.frames >= flooded && all.sent.frames <= flooded + out, "{all:?}");
    assert_eq!(all.sent.frames, all.forwarded + all.dropped_sent.total(), "{all:?}");
    assert_eq!(all.copies, all.delivered.frames + all.dropped_received.total(), "{all:?}");
    assert_eq!(world.switch.ports().len(), 1, "no port is left");
    // The guest takes its lists back when it hears that the channel is closed.
    timeout(LONG, async {
        while world.root.status().await.partitions[0].gpadls > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("no page list is left");
    // All of the guest's memory is its own again.
    timeout(LONG, async {
        while world.guest.share(60 << 20).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("no memory is left with the root");
}
