//! NICs of two guests at one switch: NIC, provider, switch, provider, NIC.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmbus_channels::test_utils::{Succession, join};
use vmbus_channels::{Device, Guest, Guid, Resume, Root, guid};
use vmbus_core::network::ndis::{PacketFilter, RssHashInfo};
use vmbus_core::network::{CLASS, LargeSend, TransmitChecksum, Version, Vlan};
use vmbus_vsc::{Nic, NicOptions, ReceivedFrame, TransmitInfo};
use vmbus_vsp::network::switch::{DropReason, MacAddress, Switch};
use vmbus_vsp::network::{AdapterHandle, Limits, Link, NetworkAdapter};

const PATIENCE: Duration = Duration::from_secs(60);
const ADDRESSES: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const INSTANCES: [Guid; 2] =
    [guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a31"), guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a32")];
const NAMES: [&str; 2] = ["one", "two"];
const PLAIN: TransmitInfo = TransmitInfo { checksum: None, large_send: None, vlan: None, hash: None };

/// A root with a switch, and a NIC for each of two guests.
struct World {
    root: Root,
    switch: Switch,
    adapters: [AdapterHandle; 2],
}

impl World {
    fn new(limits: Limits) -> Self {
        let (root, switch) = (Root::builder().build(), Switch::new("lan"));
        let adapters = [0, 1].map(|place| {
            let adapter = NetworkAdapter::new(NAMES[place], &switch, MacAddress(ADDRESSES[place]))
                .instance(INSTANCES[place])
                .limits(limits)
                .only_for(NAMES[place]);
            let handle = adapter.handle();
            root.offer(adapter).unwrap();
            handle
        });
        Self { root, switch, adapters }
    }

    async fn guest(&self, place: usize) -> Guest {
        join(&self.root, NAMES[place]).await.unwrap()
    }

    /// Both guests with their NICs.
    async fn nics(&self, options: NicOptions) -> ([Guest; 2], [Nic; 2]) {
        let guests = [self.guest(0).await, self.guest(1).await];
        let (one, two) = (open(&guests[0], options.clone()).await, open(&guests[1], options).await);
        (guests, [one, two])
    }
}

async fn open(guest: &Guest, options: NicOptions) -> Nic {
    // It may still be the last guest's.
    within("a NIC", guest.wait_for(Device::class(CLASS))).await.unwrap();
    within("its opening", Nic::open_device(guest, Device::class(CLASS), options)).await.unwrap()
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(output) => output,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// A frame that says which it is, from one of the two to the other.
fn frame(from: usize, number: usize, len: usize) -> Vec<u8> {
    let mut frame = vec![u8::try_from(number % 251).unwrap(); len.max(18)];
    frame[..6].copy_from_slice(&ADDRESSES[1 - from]);
    frame[6..12].copy_from_slice(&ADDRESSES[from]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14..18].copy_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
    frame
}

fn number(frame: &[u8]) -> usize {
    u32::from_le_bytes(frame[14..18].try_into().unwrap()) as usize
}

async fn frames(nic: &Nic, count: usize) -> Vec<ReceivedFrame> {
    let mut frames = Vec::new();
    while frames.len() < count {
        within("frames", nic.recv(&mut frames)).await.unwrap();
    }
    frames
}

async fn bytes(nic: &Nic, count: usize) -> Vec<Vec<u8>> {
    frames(nic, count).await.iter().map(|frame| frame.to_vec().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_of_any_two_versions_exchange_frames() {
    let world = World::new(Limits::default());
    let guests = [world.guest(0).await, world.guest(1).await];
    for (index, version) in Version::ALL.into_iter().enumerate() {
        let other = Version::ALL[Version::ALL.len() - 1 - index];
        let one = open(&guests[0], NicOptions::new().versions(version..=version)).await;
        let two = open(&guests[1], NicOptions::new().versions(other..=other)).await;
        assert_eq!((one.info().version, two.info().version), (version, other));
        assert_eq!([one.info().address, two.info().address], ADDRESSES);
        for len in [18, 60, 61, 200, 1514] {
            one.send(&frame(0, len, len), PLAIN).await.unwrap();
            assert_eq!(bytes(&two, 1).await, [frame(0, len, len)]);
            two.send(&frame(1, len, len), PLAIN).await.unwrap();
            assert_eq!(bytes(&one, 1).await, [frame(1, len, len)]);
        }
        within("an end", one.close()).await;
        within("an end", two.close()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_frame_of_a_flood_both_ways_is_accounted_for() {
    const COUNT: usize = 50_000;
    let world = World::new(Limits::default());
    let (_guests, nics) = world.nics(NicOptions::new().receive_bytes(256 << 10)).await;
    let threads: Vec<_> = nics
        .into_iter()
        .enumerate()
        .map(|(from, nic)| {
            let mut queue = nic.into_queue().unwrap();
            tokio::task::spawn_blocking(move || {
                let (mut pushed, mut last) = (0, None);
                while pushed < COUNT {
                    let mut batch = 0;
                    while batch < 32 && pushed < COUNT {
                        if !queue.push(&frame(from, pushed, 60 + pushed % 1400), &PLAIN).unwrap() {
                            break;
                        }
                        (pushed, batch) = (pushed + 1, batch + 1);
                    }
                    queue.submit().unwrap();
                    queue
                        .receive(|received| {
                            let mut bytes = vec![0; received.len()];
                            received.read(0, &mut bytes).unwrap();
                            let now = number(&bytes);
                            assert_eq!(bytes, frame(1 - from, now, 60 + now % 1400), "whole");
                            assert!(last.is_none_or(|last| last < now), "in order");
                            last = Some(now);
                        })
                        .unwrap();
                    if batch == 0 {
                        assert!(queue.wait(Some(PATIENCE)).unwrap(), "stuck after {pushed} frames");
                    }
                }
                assert!(queue.drain(PATIENCE).unwrap());
                queue
            })
        })
        .collect();
    let mut queues = Vec::new();
    for thread in threads {
        queues.push(within("a flood", thread).await.unwrap());
    }
    for place in [0, 1] {
        // All that is for it is on its way: the other end has nothing in flight.
        let answered = tokio::task::block_in_place(|| {
            let queue = &mut queues[place];
            queue.set_filter(PacketFilter::empty()).unwrap();
            while queue.receive(|_| {}).unwrap() > 0 {}
            queue.statistics()
        });
        let port = world.adapters[place].statistics().unwrap();
        assert_eq!((answered.sent, answered.completed, answered.refused), (COUNT as u64, COUNT as u64, 0));
        assert_eq!(port.sent.frames, COUNT as u64);
        assert_eq!(port.forwarded + port.dropped_sent.total(), port.sent.frames);
        assert_eq!(port.delivered.frames, answered.received, "nothing is lost behind the switch");
        assert_eq!((answered.malformed, answered.overrun), (0, 0));
    }
    let all = world.switch.statistics();
    assert_eq!(all.copies, all.delivered.frames + all.dropped_received.total(), "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_sends_arrive_as_segments_with_right_checksums() {
    let world = World::new(Limits::default());
    let (_guests, [one, two]) = world.nics(NicOptions::new()).await;
    assert!(one.info().offloads.large_send_v4 > 0, "{:?}", one.info());
    let payload: Vec<u8> = (0..40_000_u32).map(|at| u8::try_from(at % 253).unwrap()).collect();
    let large = tcp(&payload);
    let large_send = LargeSend { segment_size: 1460, tcp_offset: 34, version_2: true, ipv6: false };
    let info = TransmitInfo { large_send: Some(large_send), ..PLAIN };
    within("the send", one.send(&large, info)).await.unwrap();
    let (mut came, mut segments) = (Vec::new(), 0);
    while came.len() < payload.len() {
        for received in frames(&two, 1).await {
            let segment = received.to_vec().unwrap();
            segments += 1;
            let total = usize::from(u16::from_be_bytes([segment[16], segment[17]]));
            assert_eq!(sum(&segment[14..34]), 0xffff, "IPv4's checksum");
            let vouched = received.info().checksum.is_some();
            assert!(vouched || tcp_sum(&segment[..14 + total]) == 0xffff, "TCP's checksum");
            let sequence = u32::from_be_bytes(segment[38..42].try_into().unwrap());
            assert_eq!(sequence as usize, came.len(), "in order");
            came.extend_from_slice(&segment[54..14 + total]);
        }
    }
    assert_eq!(came, payload);
    assert_eq!(segments, payload.len().div_ceil(1460));

    // Without a large send the sum alone is left to the device.
    let checksum =
        TransmitChecksum { ipv4: true, tcp: true, transport_offset: 34, ..TransmitChecksum::default() };
    let small = tcp(&payload[..500]);
    one.send(&small, TransmitInfo { checksum: Some(checksum), ..PLAIN }).await.unwrap();
    let received = frames(&two, 1).await.remove(0);
    let vouched = received.info().checksum.is_some();
    assert!(vouched || tcp_sum(&received.to_vec().unwrap()) == 0xffff);
}

/// A TCP segment over IPv4 from the first to the second, with the sums that a device is left to fill in.
fn tcp(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 54];
    frame[..6].copy_from_slice(&ADDRESSES[1]);
    frame[6..12].copy_from_slice(&ADDRESSES[0]);
    frame[12..15].copy_from_slice(&[8, 0, 0x45]);
    let total = u16::try_from(40 + payload.len()).unwrap();
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    (frame[22], frame[23]) = (64, 6);
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    let ip = !sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&ip.to_be_bytes());
    frame[34..38].copy_from_slice(&[0x10, 0, 0x20, 0]);
    frame[46] = 5 << 4;
    frame[47] = 0x10;
    let pseudo = [&[10, 0, 0, 1, 10, 0, 0, 2, 0, 6][..], &(total - 20).to_be_bytes()].concat();
    frame[50..52].copy_from_slice(&sum(&pseudo).to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// 0xffff if TCP's checksum is right.
fn tcp_sum(frame: &[u8]) -> u16 {
    let length = u16::try_from(frame.len() - 34).unwrap();
    let pseudo = [&frame[26..34], &[0, 6][..], &length.to_be_bytes()].concat();
    sum(&[&pseudo[..], &frame[34..]].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_frames_and_tags_go_through() {
    let world = World::new(Limits::default());
    let (_guests, [one, two]) = world.nics(NicOptions::new().mtu(9000)).await;
    assert_eq!((one.info().mtu, two.info().mtu), (9000, 9000));
    one.send(&frame(0, 1, 9014), PLAIN).await.unwrap();
    assert_eq!(bytes(&two, 1).await, [frame(0, 1, 9014)]);
    assert_eq!(within("a change", two.set_mtu(1500)).await.unwrap(), 1500);
    one.send(&frame(0, 2, 9014), PLAIN).await.unwrap();
    one.send(&frame(0, 3, 1514), PLAIN).await.unwrap();
    assert_eq!(bytes(&two, 1).await, [frame(0, 3, 1514)], "the long one was not for it");
    // A priority alone is no VLAN.
    let vlan = Vlan { priority: 6, drop_eligible: false, id: 0 };
    one.send(&frame(0, 4, 100), TransmitInfo { vlan: Some(vlan), ..PLAIN }).await.unwrap();
    let came = frames(&two, 1).await;
    assert_eq!(came[0].to_vec().unwrap(), frame(0, 4, 100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_many_flows_spread_over_the_queues_and_all_arrive() {
    const FLOWS: u16 = 64;
    let world = World::new(Limits { max_queues: 4, ..Limits::default() });
    let (_guests, [one, two]) = world.nics(NicOptions::new()).await;
    assert_eq!((one.info().queues, two.info().queues), (4, 4));
    assert_eq!(within("queues", two.widen(4)).await.unwrap(), 4);
    let table: Vec<u32> = (0..u32::from(two.info().rss_entries)).map(|entry| entry % 4).collect();
    let hash = RssHashInfo::TOEPLITZ | RssHashInfo::IPV4 | RssHashInfo::TCP_V4;
    let key: [u8; 40] = std::array::from_fn(|at| u8::try_from(at * 37 % 251).unwrap());
    within("scaling", two.set_rss(hash, &table, &key)).await.unwrap();
    let queues = two.into_queues();
    assert_eq!(queues.len(), 4);

    for flow in 0..FLOWS {
        let mut segment = tcp(&flow.to_be_bytes());
        segment[34..36].copy_from_slice(&(5000 + flow).to_be_bytes());
        one.send(&segment, PLAIN).await.unwrap();
    }
    // Delivered on the sender's thread: once it is answered, they are all there.
    within("an answer", one.keep_alive()).await.unwrap();
    let counts = tokio::task::spawn_blocking(move || {
        let mut counts = Vec::new();
        let mut queues = queues;
        for queue in &mut queues {
            let mut count = 0;
            while queue.wait(Some(Duration::from_millis(50))).unwrap() {
                count += queue.receive(|_| {}).unwrap();
            }
            counts.push(count);
        }
        counts
    });
    let counts = within("all queues", counts).await.unwrap();
    assert_eq!(counts.iter().sum::<u64>(), u64::from(FLOWS), "{counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_dies_in_the_middle_harms_nobody() {
    let world = World::new(Limits::default());
    let survivor = world.guest(0).await;
    let nic = open(&survivor, NicOptions::new()).await;
    let enough = Arc::new(AtomicBool::new(false));
    let sends = tokio::spawn({
        let (nic, enough) = (nic.clone(), Arc::clone(&enough));
        async move {
            let mut sent = 0;
            while !enough.load(Ordering::Relaxed) {
                let number = usize::try_from(sent).unwrap();
                nic.send(&frame(0, number, 60 + number % 1000), PLAIN).await.unwrap();
                sent += 1;
            }
            sent
        }
    });
    let mut received = 0;
    for round in 0..10 {
        let guest = world.guest(1).await;
        let other = open(&guest, NicOptions::new()).await;
        for number in 0..50 * round {
            other.send(&frame(1, number, 500), PLAIN).await.unwrap();
        }
        received += frames(&other, 1).await.len();
        // Neither closed nor left: gone.
        drop((guest, other));
    }
    assert!(received >= 10);
    enough.store(true, Ordering::Relaxed);
    let sent = within("the survivor", sends).await.unwrap();
    within("an answer", nic.keep_alive()).await.unwrap();
    let mut frames = Vec::new();
    nic.try_recv(&mut frames).unwrap();
    let statistics = nic.statistics();
    assert_eq!((statistics.sent, statistics.completed), (sent, sent));
    let port = world.adapters[0].statistics().unwrap();
    assert_eq!(port.sent.frames, port.forwarded + port.dropped_sent.total());
    assert_eq!(port.delivered.frames, statistics.received + statistics.overrun);
    let all = world.switch.statistics();
    assert_eq!(all.copies, all.delivered.frames + all.dropped_received.total(), "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cable_that_is_pulled_is_seen_and_nothing_comes() {
    let world = World::new(Limits::default());
    let (_guests, [one, two]) = world.nics(NicOptions::new()).await;
    let seen = two.link();
    assert!(seen.up && seen.speed > 0);
    let link = world.adapters[1].link();
    world.adapters[1].set_link(Link { connected: false, ..link });
    let seen = within("no link", two.link_changed(seen)).await.unwrap();
    assert!(!seen.up);
    one.send(&frame(0, 1, 60), PLAIN).await.unwrap();
    within("an answer", one.keep_alive()).await.unwrap();
    let dropped = world.adapters[1].statistics().unwrap().dropped_received;
    let down = dropped.iter().find(|(reason, _)| *reason == DropReason::LinkDown);
    assert_eq!(down.map(|(_, count)| count), Some(1), "{dropped:?}");
    world.adapters[1].set_link(link);
    assert!(within("a link", two.link_changed(seen)).await.unwrap().up);
    one.send(&frame(0, 2, 60), PLAIN).await.unwrap();
    assert_eq!(bytes(&two, 1).await, [frame(0, 2, 60)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_guests_talk_on_over_a_line_of_roots() {
    let succession = Succession::default();
    let crown = || succession.crown(World::new(Limits::default()).root);
    crown();
    let builder = || Guest::builder().resume(Resume::within(PATIENCE));
    let guests =
        [succession.join("one", builder()).await.unwrap(), succession.join("two", builder()).await.unwrap()];
    let (one, two) = (open(&guests[0], NicOptions::new()).await, open(&guests[1], NicOptions::new()).await);
    for round in 0..8 {
        // Until one gets through: a root takes what it holds to its grave, and a port is there when its guest is.
        let mut came = Vec::new();
        while came.is_empty() {
            within("a send", one.send(&frame(0, round, 300), PLAIN)).await.unwrap();
            let _ = tokio::time::timeout(Duration::from_millis(20), two.recv(&mut came)).await;
            came.retain(|frame: &ReceivedFrame| {
                frame.to_vec().is_ok_and(|bytes| number(&bytes) == round && bytes.len() == 300)
            });
        }
        succession.kill();
        crown();
    }
}
