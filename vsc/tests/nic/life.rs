//! How a NIC ends and goes on: closed, opened anew, withdrawn, or at another root.

use std::sync::Arc;
use std::time::Duration;

use vmbus_channels::test_utils::Succession;
use vmbus_channels::{ChannelError, Guest, Resume, Root};
use vmbus_core::network::Oid;
use vmbus_core::network::ndis::PacketFilter;
use vmbus_vsc::{Nic, NicError, NicOptions};

use super::peer::{Order, Peer, Script, message};
use super::{PATIENCE, PLAIN, World, bytes, frame, frames, within};

#[tokio::test]
async fn a_nic_is_closed_in_order() {
    let world = World::new(Script::default()).await;
    let nic = world.nic().await;
    let other = nic.clone();
    let waits = tokio::spawn(async move { other.recv(&mut Vec::new()).await });
    tokio::task::yield_now().await;
    within("the end", nic.close()).await;
    let ended = within("who waits", waits).await.unwrap();
    assert!(matches!(ended, Err(NicError::Channel(ChannelError::Closed))));
    let seen = world.script.seen();
    assert!(seen.halted);
    assert_eq!(seen.revoked, 2);
    // All of its memory is free again, for the next one.
    for _ in 0..50 {
        let nic = world.open(NicOptions::new().receive_bytes(12 << 20)).await.unwrap();
        within("the end", nic.close()).await;
    }
}

#[tokio::test]
async fn another_mtu_needs_another_opening() {
    let world = World::new(Script::default()).await;
    let nic = world.nic().await;
    nic.set_groups(&[[1, 0, 0x5e, 0, 0, 1]]).await.unwrap();
    nic.send(&frame(1, 900), PLAIN).await.unwrap();
    let kept = frames(&nic, 1).await;
    for (wanted, taken) in [(9000, 9000), (65521, 9216), (68, 68)] {
        assert_eq!(within("the change", nic.set_mtu(wanted)).await.unwrap(), taken);
        let longest = nic.info().longest_frame();
        assert_eq!(longest, taken as usize + 18);
        nic.send(&frame(2, longest), PLAIN).await.unwrap();
        assert_eq!(bytes(&nic, 1).await, [frame(2, longest)]);
        assert!(nic.send(&frame(2, longest + 1), PLAIN).await.is_err());
    }
    let set = world.script.seen().set;
    let groups = set.iter().filter(|(oid, _)| *oid == Oid::ETHERNET_MULTICAST_LIST).count();
    assert_eq!(groups, 4, "what was set is set again");
    assert_eq!(kept[0].to_vec().unwrap(), frame(1, 900), "what was received stays");
}

#[tokio::test]
async fn another_mtu_leaves_the_filter_as_it_was_set() {
    let world = World::new(Script::default()).await;
    let nic = world.nic().await;
    nic.set_filter(PacketFilter::MULTICAST).await.unwrap();
    within("the change", nic.set_mtu(9000)).await.unwrap();
    let filter = PacketFilter::MULTICAST.bits().to_le_bytes().to_vec();
    assert_eq!(world.script.seen().set.last(), Some(&(Oid::GEN_CURRENT_PACKET_FILTER, filter)));
}

#[tokio::test]
async fn a_nic_whose_device_is_withdrawn_says_so_and_can_be_reopened() {
    let root = Root::builder().build();
    let script = Arc::new(Script::default());
    let device = root.offer(Peer(Arc::clone(&script))).unwrap();
    let guest = vmbus_channels::test_utils::join(&root, "guest").await.unwrap();
    let nic = within("the NIC", Nic::open(&guest)).await.unwrap();
    let waiting = nic.clone();
    let waits = tokio::spawn(async move { waiting.recv(&mut Vec::new()).await });
    device.rescind();
    assert!(matches!(within("the end", waits).await.unwrap(), Err(NicError::Channel(ChannelError::Closed))));
    assert!(nic.send(&frame(1, 60), PLAIN).await.is_err());
    let again = nic.clone();
    let reopened = tokio::spawn(async move { again.reopen(NicOptions::new()).await });
    root.offer(Peer(Arc::clone(&script))).unwrap();
    within("the device", reopened).await.unwrap().unwrap();
    nic.send(&frame(2, 60), PLAIN).await.unwrap();
    assert_eq!(bytes(&nic, 1).await, [frame(2, 60)]);
}

/// Roots that have the same device.
struct Line(Succession);

impl Line {
    fn crown(&self, script: Script) -> Arc<Script> {
        let root = Root::builder().build();
        let script = Arc::new(script);
        root.offer(Peer(Arc::clone(&script))).unwrap();
        self.0.crown(root);
        script
    }

    async fn guest(&self) -> Guest {
        let builder = Guest::builder().resume(Resume::within(PATIENCE));
        self.0.join("guest", builder).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nic_outlives_its_root() {
    let line = Line(Succession::default());
    let first = line.crown(Script { queues: 2, ..Script::default() });
    let guest = line.guest().await;
    let nic = within("the NIC", Nic::open(&guest)).await.unwrap();
    assert_eq!(within("two queues", nic.widen(2)).await.unwrap(), 2);
    nic.set_groups(&[[1, 0, 0x5e, 0, 0, 1]]).await.unwrap();
    nic.send(&frame(1, 400), PLAIN).await.unwrap();
    let old = frames(&nic, 1).await;
    let asked = first.seen().set;

    line.0.kill();
    let second = line.crown(Script { queues: 2, ..Script::default() });
    // What the first root answers and delivers while it dies is lost.
    within("the second root", second.until(|seen| !seen.set.is_empty())).await;
    nic.send(&frame(2, 500), PLAIN).await.unwrap();
    // The first may come a second time: its root has echoed it, and perhaps not said so.
    let mut came = bytes(&nic, 1).await.remove(0);
    if came == frame(1, 400) {
        came = bytes(&nic, 1).await.remove(0);
    }
    assert_eq!(came, frame(2, 500));
    let seen = within("all settings", second.until(|seen| seen.set.len() >= 3)).await;
    for setting in asked.iter().filter(|(oid, _)| *oid != Oid::TCP_OFFLOAD_PARAMETERS) {
        assert!(seen.set.contains(setting), "{setting:?}");
    }
    assert_eq!(nic.query(Oid::GEN_VENDOR_ID, &[]).await.unwrap(), 0x155d_u32.to_le_bytes());
    assert!(matches!(old[0].to_vec(), Err(NicError::Stale)), "its memory is the second root's");
    drop(old);

    // A packet of the old root's, by its name for the buffer, is nothing to the new one.
    second.order(Order::Raw {
        bytes: message(&frame(9, 60), &[]),
        set_id: Some(0xcafe),
        ranges: vec![(0, 104)],
        payload: vmbus_core::network::nvsp::Message::Packet {
            channel: vmbus_core::network::nvsp::ChannelType::Data,
            section: u32::MAX,
            section_size: 0,
        }
        .encode(vmbus_core::network::Version::V6_1)
        .to_vec(),
    });
    while nic.statistics().malformed == 0 {
        within("an answer", nic.keep_alive()).await.unwrap();
    }
    assert_eq!(nic.statistics().malformed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nic_under_load_outlives_a_line_of_roots() {
    let line = Line(Succession::default());
    line.crown(Script::default());
    let guest = line.guest().await;
    let nic = within("the NIC", Nic::open(&guest)).await.unwrap();
    let sends = tokio::spawn({
        let nic = nic.clone();
        async move {
            for number in 0..40_000 {
                nic.send(&frame(number, 60 + number % 1000), PLAIN).await.unwrap();
            }
        }
    });
    let asks = tokio::spawn({
        let nic = nic.clone();
        async move {
            let mut answers = 0;
            while answers < 200 {
                match nic.query(Oid::GEN_VENDOR_ID, &[]).await {
                    Ok(_) => answers += 1,
                    Err(NicError::Interrupted) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    let receives = tokio::spawn({
        let nic = nic.clone();
        async move {
            let mut batch = Vec::new();
            while nic.recv(&mut batch).await.is_ok() {
                for received in batch.drain(..) {
                    let number = match received.to_vec() {
                        Ok(bytes) => {
                            let number = u32::from_le_bytes(bytes[14..18].try_into().unwrap());
                            assert_eq!(bytes, frame(number as usize, bytes.len()), "whole");
                            number
                        }
                        Err(NicError::Stale) => continue,
                        Err(error) => panic!("{error}"),
                    };
                    if number == 39_999 {
                        return;
                    }
                }
            }
        }
    });
    for number in 0..12_u64 {
        tokio::time::sleep(Duration::from_micros(number.wrapping_mul(0x9e37_79b9) >> 8 & 0x7fff)).await;
        line.0.kill();
        line.crown(Script::default());
    }
    within("questions", asks).await.unwrap();
    within("frames", sends).await.unwrap();
    // The last may have been dropped with a root, or for want of a piece.
    let _ = tokio::time::timeout(Duration::from_millis(200), receives).await;
    within("an answer", nic.keep_alive()).await.unwrap();
    let statistics = nic.statistics();
    assert_eq!((statistics.sent, statistics.in_flight(), statistics.refused), (40_000, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_device_is_not_taken_for_it() {
    let others = [
        (Script { address: [2, 0, 0, 0, 0, 8], ..Script::default() }, "its address is another one"),
        (Script { section_size: 4096, ..Script::default() }, "no packets of the old form"),
        (Script { newest: Some(vmbus_core::network::Version::V5), ..Script::default() }, "no version 6.1"),
        (Script { max_messages: 2, ..Script::default() }, "no packets of the old form"),
    ];
    for (other, why) in others {
        let line = Line(Succession::default());
        line.crown(Script::default());
        let guest = line.guest().await;
        let nic = within("the NIC", Nic::open(&guest)).await.unwrap();
        line.0.kill();
        line.crown(other);
        let error = within("an end", nic.recv(&mut Vec::new())).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        // Opened anew it is taken as it is.
        within("the device", nic.reopen(NicOptions::new())).await.unwrap();
        nic.send(&frame(2, 60), PLAIN).await.unwrap();
        assert_eq!(bytes(&nic, 1).await, [frame(2, 60)]);
    }
}
