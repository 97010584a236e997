//! Queues of a NIC, each for a thread.

use std::time::Duration;

use vmbus_core::network::Oid;
use vmbus_core::network::ndis::{PacketFilter, RssHashInfo};

use super::peer::{Order, Script, message};
use super::{PATIENCE, PLAIN, World, frame, within};
use smoltcp::phy::{Device as _, RxToken as _, TxToken as _};
use vmbus_core::network::LargeSend;
use vmbus_vsc::{NicDevice, NicOptions, TransmitInfo};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_sends_and_receives_in_batches() {
    let world = World::new(Script::default()).await;
    let mut queue = world.nic().await.into_queue().unwrap();
    let worked = tokio::task::spawn_blocking(move || {
        let (mut pushed, mut came) = (0, 0);
        while came < 2000 {
            while pushed < 2000 && pushed < came + 500 {
                if !queue.push(&frame(pushed, 60 + pushed % 1400), &PLAIN).unwrap() {
                    break;
                }
                pushed += 1;
            }
            queue.submit().unwrap();
            let received = queue.receive(|received| {
                let mut bytes = vec![0; received.len()];
                received.read(0, &mut bytes).unwrap();
                assert_eq!(bytes, frame(came, 60 + came % 1400));
                came += 1;
            });
            if received.unwrap() == 0 && came < 2000 {
                assert!(queue.wait(Some(PATIENCE)).unwrap(), "{came} of {pushed} came");
            }
        }
        assert!(queue.drain(PATIENCE).unwrap());
        let statistics = queue.statistics();
        assert_eq!((statistics.sent, statistics.completed, statistics.received), (2000, 2000, 2000));
        assert!(!queue.wait(Some(Duration::from_millis(1))).unwrap(), "nothing more comes");
        assert_eq!(queue.query(Oid::GEN_VENDOR_ID, &[]).unwrap(), 0x155d_u32.to_le_bytes());
        queue.set_filter(PacketFilter::empty()).unwrap();
    });
    within("the thread", worked).await.unwrap();
    let none = (Oid::GEN_CURRENT_PACKET_FILTER, vec![0; 4]);
    assert_eq!(world.script.seen().set.last(), Some(&none));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_both_ways_never_stops() {
    // A provider that waits for room to deliver, and reads nothing meanwhile.
    let world = World::new(Script::default()).await;
    let options = NicOptions::new().ring_pages(1).send_bytes(4 << 20).receive_bytes(8 << 20);
    let mut queue = world.open(options).await.unwrap().into_queue().unwrap();
    let flooded = tokio::task::spawn_blocking(move || {
        let (mut pushed, mut came) = (0, 0_u64);
        while pushed < 15_000 {
            while pushed < 15_000 && queue.push(&frame(pushed, 60), &PLAIN).unwrap() {
                // One frame to a packet: as many packets as the ring holds, and more that wait.
                queue.submit().unwrap();
                pushed += 1;
            }
            came += queue.receive(|_| {}).unwrap();
            if pushed < 15_000 {
                assert!(queue.wait(Some(PATIENCE)).unwrap(), "stuck after {pushed} frames and {came} back");
            }
        }
        assert!(queue.drain(PATIENCE).unwrap(), "stuck at the end");
        queue.statistics()
    });
    let statistics = within("the flood", flooded).await.unwrap();
    assert_eq!((statistics.sent, statistics.completed), (15_000, 15_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_that_sends_alone_waits_for_room() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let mut queue = world.nic().await.into_queue().unwrap();
    let sent = tokio::task::spawn_blocking(move || {
        for number in 0..3000 {
            queue.send(&frame(number, 1514), &PLAIN).unwrap();
        }
        assert!(queue.drain(PATIENCE).unwrap());
        queue.statistics()
    });
    let statistics = within("the thread", sent).await.unwrap();
    assert_eq!((statistics.sent, statistics.completed), (3000, 3000));
    let seen = world.script.seen();
    assert!(seen.frames.iter().enumerate().all(|(number, (sent, _))| *sent == frame(number, 1514)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_threads_have_a_queue_each() {
    let world = World::new(Script { queues: 4, echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    assert_eq!(nic.info().queues, 4);
    nic.send(&frame(0, 60), PLAIN).await.unwrap();
    assert_eq!(nic.widen(9).await.unwrap(), 4, "as many as there are");
    assert_eq!(nic.widen(2).await.unwrap(), 4, "once");
    let table: Vec<u32> = (0..128).map(|entry| entry % 4).collect();
    nic.set_rss(RssHashInfo::TOEPLITZ | RssHashInfo::TCP_V4, &table, &[7; 40]).await.unwrap();
    let (oid, value) = world.script.seen().set.last().cloned().unwrap();
    assert_eq!((oid, value.len()), (Oid::GEN_RECEIVE_SCALE_PARAMETERS, 40 + 4 * 128 + 40));
    let rss = vmbus_core::network::ndis::Rss::read(&value).unwrap();
    assert_eq!((rss.table.len(), rss.table[127].get(), rss.key), (128, 3, &[7; 40][..]));

    let queues = nic.into_queues();
    assert_eq!(queues.len(), 4);
    let threads: Vec<_> = queues
        .into_iter()
        .enumerate()
        .map(|(index, mut queue)| {
            tokio::task::spawn_blocking(move || {
                for number in 0..500 {
                    queue.send(&frame(1000 * (index + 1) + number, 700), &PLAIN).unwrap();
                }
                assert!(queue.drain(PATIENCE).unwrap());
                // With the first queue the others would close.
                queue
            })
        })
        .collect();
    let mut queues = Vec::new();
    for thread in threads {
        queues.push(within("a thread", thread).await.unwrap());
    }
    let seen = world.script.seen();
    for index in 1..=4 {
        let of_queue = seen.frames.iter().filter(|(sent, _)| {
            let number = u32::from_le_bytes(sent[14..18].try_into().unwrap());
            number / 1000 == index
        });
        let wanted = (0..500).map(|number| frame(1000 * index as usize + number, 700));
        assert!(of_queue.map(|(sent, _)| sent.clone()).eq(wanted), "queue {index}: all, in order");
    }
    assert_eq!(seen.sub_channels, 3);
}

#[tokio::test]
async fn queues_share_memory_when_all_of_it_is_free() {
    let world = World::new(Script { queues: 4, holds: true, echo: false, ..Script::default() }).await;
    let nic = world.open(NicOptions::new().large_frames(3)).await.unwrap();
    let large_send = LargeSend { segment_size: 1448, tcp_offset: 34, version_2: true, ipv6: false };
    let info = TransmitInfo { large_send: Some(large_send), ..PLAIN };
    nic.send(&frame(1, 60_000), info).await.unwrap();
    within("the frame", world.script.until(|seen| seen.frames.len() == 1)).await;
    let mut widened = std::pin::pin!(nic.widen(4));
    let early = tokio::time::timeout(Duration::from_millis(50), &mut widened).await;
    assert!(early.is_err(), "a slot for long frames is on its way");
    world.script.order(Order::Release);
    assert_eq!(within("the queues", widened).await.unwrap(), 3, "each has a slot for long frames");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stack_whose_answers_find_no_room_waits_for_it() {
    let script = Script { holds: true, echo: false, max_messages: 1, ..Script::default() };
    let world = World::new(script).await;
    // Room for ten frames, and twenty to be answered.
    let nic = world.open(NicOptions::new().send_bytes(10 * 6144)).await.unwrap();
    world.script.order(Order::Deliver((0..20).map(|number| message(&frame(number, 60), &[])).collect()));
    let mut device = NicDevice::new(nic.into_queue().unwrap());
    let answer = |device: &mut NicDevice| {
        let mut answered = 0;
        while let Some((received, sending)) = device.receive(smoltcp::time::Instant::ZERO) {
            let bytes = received.consume(<[u8]>::to_vec);
            sending.consume(bytes.len(), |into| into.copy_from_slice(&bytes));
            answered += 1;
        }
        answered
    };
    let script = std::sync::Arc::clone(&world.script);
    let worked = tokio::task::spawn_blocking(move || {
        let mut answered = 0;
        while answered < 10 {
            device.wait(Some(PATIENCE)).unwrap();
            answered += answer(&mut device);
        }
        assert_eq!(answered, 10);
        // It may be woken for nothing, but not all the time.
        let (begun, mut waits) = (std::time::Instant::now(), 0);
        while begun.elapsed() < Duration::from_millis(100) {
            device.wait(Some(Duration::from_millis(50))).unwrap();
            waits += 1;
        }
        assert!(waits < 50, "{waits} waits in 100 ms, with nothing to do");
        assert!(device.transmit(smoltcp::time::Instant::ZERO).is_none());
        let until = std::time::Instant::now() + PATIENCE;
        while answered < 20 {
            assert!(std::time::Instant::now() < until, "{answered} answers");
            // Only what is held by now.
            script.order(Order::Release);
            device.wait(Some(Duration::from_millis(10))).unwrap();
            answered += answer(&mut device);
        }
        // What it sent last is on its way.
        device
    });
    let _device = within("all answers", worked).await.unwrap();
    let seen = within("twenty frames", world.script.until(|seen| seen.frames.len() == 20)).await;
    assert!(seen.frames.iter().enumerate().all(|(number, (sent, _))| *sent == frame(number, 60)));
}
