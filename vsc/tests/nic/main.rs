//! A NIC against a provider that follows a script, by the rules and against them.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod hostile;
mod life;
mod peer;
mod threads;

use std::sync::Arc;
use std::time::Duration;

use vmbus_channels::test_utils::join;
use vmbus_channels::{Device, Guest, Root};
use vmbus_core::network::ndis::PacketFilter;
use vmbus_core::network::rndis::{self, Status};
use vmbus_core::network::{
    CLASS, LargeSend, Oid, PacketInfo, ReceiveChecksum, RscFragment, TransmitChecksum, Version, Vlan, nvsp,
};
use vmbus_vsc::{Nic, NicError, NicOptions, ReceiveInfo, ReceivedFrame, TransmitInfo};

use peer::{ADDRESS, Order, Peer, Script, message};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const PLAIN: TransmitInfo =
    TransmitInfo { checksum: None, large_send: None, vlan: None, hash: None };

/// A bus with one such device, and a guest.
pub(crate) struct World {
    pub(crate) guest: Guest,
    pub(crate) script: Arc<Script>,
    _root: Root,
}

impl World {
    pub(crate) async fn new(script: Script) -> Self {
        let root = Root::builder().build();
        let script = Arc::new(script);
        root.offer(Peer(Arc::clone(&script))).unwrap();
        let guest = join(&root, "guest").await.unwrap();
        Self { guest, script, _root: root }
    }

    pub(crate) async fn nic(&self) -> Nic {
        self.open(NicOptions::new()).await.unwrap()
    }

    pub(crate) async fn open(&self, options: NicOptions) -> Result<Nic, NicError> {
        within("the NIC", Nic::open_device(&self.guest, Device::class(CLASS), options)).await
    }
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(output) => output,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// A frame that says which it is.
pub(crate) fn frame(number: usize, len: usize) -> Vec<u8> {
    let mut frame = vec![u8::try_from(number % 251).unwrap(); len];
    frame[..6].copy_from_slice(&ADDRESS);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    if len >= 18 {
        frame[14..18].copy_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
    }
    frame
}

/// The next `count` frames.
pub(crate) async fn frames(nic: &Nic, count: usize) -> Vec<ReceivedFrame> {
    let mut frames = Vec::new();
    while frames.len() < count {
        within("frames", nic.recv(&mut frames)).await.unwrap();
    }
    frames
}

pub(crate) async fn bytes(nic: &Nic, count: usize) -> Vec<Vec<u8>> {
    frames(nic, count).await.iter().map(|frame| frame.to_vec().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nic_speaks_each_version() {
    for (index, version) in Version::ALL.into_iter().enumerate() {
        let world = World::new(Script { newest: Some(version), ..Script::default() }).await;
        let nic = world.nic().await;
        assert_eq!((nic.info().version, nic.info().address), (version, ADDRESS));
        assert_eq!((nic.info().mtu, nic.link().up), (1500, true));
        nic.send(&frame(1, 60), PLAIN).await.unwrap();
        assert_eq!(bytes(&nic, 1).await, [frame(1, 60)]);

        let seen = world.script.seen();
        let newest_first: Vec<u32> = Version::ALL[index..].iter().rev().map(|it| it.word()).collect();
        assert_eq!(seen.versions, newest_first);
        assert_eq!(seen.ndis, Some(version.ndis()));
        assert_eq!(seen.mtu, (version >= Version::V2).then_some(1514), "version {version}");
        let filter = PacketFilter::DIRECTED | PacketFilter::ALL_MULTICAST | PacketFilter::BROADCAST;
        let filter = filter.bits().to_le_bytes().to_vec();
        assert_eq!(seen.set.last(), Some(&(Oid::GEN_CURRENT_PACKET_FILTER, filter)));
        let speed = if version >= Version::V5 { 10_000_000_000 } else { 0 };
        assert_eq!(nic.link().speed, speed);
    }
}

#[tokio::test]
async fn a_provider_that_knows_no_version_is_not_used() {
    let world = World::new(Script { newest: None, ..Script::default() }).await;
    let error = world.open(NicOptions::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "the provider supports none of the network protocol versions 1 to 6.1");
    assert_eq!(world.script.seen().versions.len(), Version::ALL.len());
    let only = NicOptions::new().versions(Version::V5..=Version::V5);
    assert!(matches!(world.open(only).await, Err(NicError::NoCommonVersion { .. })));
    assert_eq!(world.script.seen().versions.len(), Version::ALL.len() + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_come_back_as_they_were_sent_and_counts_balance() {
    let world = World::new(Script::default()).await;
    let nic = world.nic().await;
    const COUNT: usize = 5000;
    let sent: Vec<Vec<u8>> = (0..COUNT).map(|number| frame(number, 14 + number * 7 % 1501)).collect();
    let sender = tokio::spawn({
        let (nic, sent) = (nic.clone(), sent.clone());
        async move {
            for batch in sent.chunks(100) {
                let batch: Vec<_> = batch.iter().map(|frame| (&frame[..], PLAIN)).collect();
                nic.send_batch(&batch).await.unwrap();
                // Pieces are as many as frames on their way: none is dropped.
                tokio::task::yield_now().await;
            }
        }
    });
    let through = async {
        sender.await.unwrap();
        world.script.until(|seen| seen.frames.len() == COUNT).await;
        // All that was delivered before its answer is there when that is.
        nic.keep_alive().await.unwrap();
    };
    let mut through = std::pin::pin!(within("all frames", through));
    let (mut batch, mut came) = (Vec::new(), Vec::new());
    loop {
        tokio::select! {
            result = nic.recv(&mut batch) => { result.unwrap(); }
            () = &mut through => break,
        }
        came.extend(batch.drain(..).map(|frame| frame.to_vec().unwrap()));
    }
    nic.try_recv(&mut batch).unwrap();
    came.extend(batch.drain(..).map(|frame| frame.to_vec().unwrap()));
    let mut rest = sent.iter();
    for came in &came {
        assert!(rest.any(|sent| sent == came), "a frame that was sent, in order");
    }
    let statistics = nic.statistics();
    let bytes: usize = sent.iter().map(Vec::len).sum();
    assert_eq!((statistics.sent, statistics.sent_bytes), (COUNT as u64, bytes as u64));
    assert_eq!((statistics.received, statistics.malformed), (came.len() as u64, 0));
    assert_eq!((statistics.completed, statistics.in_flight(), statistics.refused), (COUNT as u64, 0, 0));
}

#[tokio::test]
async fn several_frames_travel_in_one_packet() {
    let world = World::new(Script { max_messages: 5, echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    let small: Vec<Vec<u8>> = (0..12).map(|number| frame(number, 61)).collect();
    let batch: Vec<_> = small.iter().map(|frame| (&frame[..], PLAIN)).collect();
    nic.send_batch(&batch).await.unwrap();
    let seen = within("frames", world.script.until(|seen| seen.frames.len() == 12)).await;
    assert_eq!(seen.batches, [5, 5, 2], "as many as the provider takes");
    assert!(seen.frames.iter().map(|(frame, _)| frame).eq(&small), "odd lengths are padded, and whole");

    let long: Vec<Vec<u8>> = (0..7).map(|number| frame(number, 1514)).collect();
    let batch: Vec<_> = long.iter().map(|frame| (&frame[..], PLAIN)).collect();
    nic.send_batch(&batch).await.unwrap();
    let seen = within("frames", world.script.until(|seen| seen.frames.len() == 19)).await;
    assert_eq!(seen.batches[3..], [3, 3, 1], "as many as fit into a section");
}

#[tokio::test]
async fn frames_take_their_information_along_both_ways() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    let checksum =
        TransmitChecksum { ipv4: true, tcp: true, transport_offset: 34, ..TransmitChecksum::default() };
    let vlan = Vlan { priority: 5, drop_eligible: true, id: 4000 };
    let info = TransmitInfo { checksum: Some(checksum), vlan: Some(vlan), hash: Some(77), large_send: None };
    nic.send(&frame(1, 100), info).await.unwrap();
    let seen = within("the frame", world.script.until(|seen| !seen.frames.is_empty())).await;
    let expected = [
        format!("{:?}", PacketInfo::Hash(77)),
        format!("{:?}", PacketInfo::Vlan(vlan)),
        format!("{:?}", PacketInfo::TransmitChecksum(checksum)),
    ];
    assert_eq!(seen.frames, [(frame(1, 100), expected.to_vec())]);

    let found = ReceiveChecksum::TCP_SUCCEEDED | ReceiveChecksum::IP_FAILED;
    let infos = [PacketInfo::Vlan(vlan), PacketInfo::ReceiveChecksum(found), PacketInfo::Hash(78)];
    world.script.order(Order::Deliver(vec![message(&frame(2, 99), &infos), message(&frame(3, 64), &[])]));
    let came = frames(&nic, 2).await;
    assert_eq!(
        came[0].info(),
        ReceiveInfo { checksum: Some(found), vlan: Some(vlan), hash: Some(78), large_send: None }
    );
    assert_eq!((came[0].to_vec().unwrap(), came[0].len()), (frame(2, 99), 99));
    assert_eq!((came[1].to_vec().unwrap(), came[1].info()), (frame(3, 64), ReceiveInfo::default()));
    let mut part = [0; 4];
    came[1].read(14, &mut part).unwrap();
    assert_eq!(part, 3_u32.to_le_bytes());
    assert!(matches!(came[1].read(62, &mut part), Err(NicError::FrameLength { len: 66, most: 64 })));
}

#[tokio::test]
async fn large_sends_go_from_memory_of_their_own_and_too_long_frames_nowhere() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    let large_send = LargeSend { segment_size: 1448, tcp_offset: 34, version_2: true, ipv6: false };
    let info = TransmitInfo { large_send: Some(large_send), ..PLAIN };
    let sent: Vec<Vec<u8>> = (0..40).map(|number| frame(number, 62_000 + number)).collect();
    for (number, large) in sent.iter().enumerate() {
        nic.send(&frame(number, 60), PLAIN).await.unwrap();
        nic.send(large, info).await.unwrap();
    }
    let seen = within("all frames", world.script.until(|seen| seen.frames.len() == 80)).await;
    for (number, pair) in seen.frames.chunks(2).enumerate() {
        assert!(pair[0].0 == frame(number, 60) && pair[1].0 == sent[number], "in order and whole");
        assert_eq!(pair[1].1, [format!("{:?}", PacketInfo::LargeSend(large_send))]);
    }
    let error = nic.send(&frame(0, 1519), PLAIN).await.unwrap_err();
    assert_eq!(error.to_string(), "a frame of 1519 bytes, the NIC sends 14 to 1518");
    assert!(matches!(nic.send(&[0; 13], PLAIN).await, Err(NicError::FrameLength { len: 13, .. })));
    assert!(matches!(nic.send(&frame(0, 62_795), info).await, Err(NicError::FrameLength { .. })));
}

#[tokio::test]
async fn what_a_provider_does_not_offer_is_not_asked_of_it() {
    let world = World::new(Script { offloads: false, ..Script::default() }).await;
    let nic = world.nic().await;
    let checksum = TransmitChecksum { ipv6: true, udp: true, ..TransmitChecksum::default() };
    let error = nic.send(&frame(1, 100), TransmitInfo { checksum: Some(checksum), ..PLAIN }).await;
    assert_eq!(error.unwrap_err().to_string(), "the device does not offer these checksums");
    let large_send = LargeSend { segment_size: 1448, tcp_offset: 34, version_2: true, ipv6: true };
    let error = nic.send(&frame(1, 100), TransmitInfo { large_send: Some(large_send), ..PLAIN }).await;
    assert_eq!(error.unwrap_err().to_string(), "the device does not offer large sends of IPv6");
    assert_eq!(nic.statistics().sent, 0);
}

#[tokio::test]
async fn a_nic_does_without_a_send_buffer() {
    let world = World::new(Script { section_size: 0, ..Script::default() }).await;
    let nic = world.nic().await;
    let sent: Vec<Vec<u8>> = (0..300).map(|number| frame(number, 100 + number)).collect();
    for batch in sent.chunks(10) {
        let batch: Vec<_> = batch.iter().map(|frame| (&frame[..], PLAIN)).collect();
        nic.send_batch(&batch).await.unwrap();
        assert_eq!(bytes(&nic, 10).await, batch.iter().map(|(frame, _)| frame.to_vec()).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn who_sends_waits_while_the_provider_takes_nothing() {
    let script = Script { holds: true, echo: false, max_messages: 1, ..Script::default() };
    let world = World::new(script).await;
    let options = NicOptions::new().send_bytes(10 * 6144);
    let nic = world.open(options).await.unwrap();
    for number in 0..10 {
        assert!(nic.try_send(&frame(number, 60), PLAIN).unwrap());
    }
    assert!(!nic.try_send(&frame(10, 60), PLAIN).unwrap(), "ten sections are ten frames");
    let mut eleventh = std::pin::pin!(async { nic.send(&frame(11, 60), PLAIN).await });
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut eleventh).await.is_err());
    within("ten frames", world.script.until(|seen| seen.frames.len() == 10)).await;
    assert_eq!(nic.statistics().in_flight(), 10);
    world.script.order(Order::Release);
    within("room", eleventh).await.unwrap();
    within("the last", world.script.until(|seen| seen.frames.len() == 11)).await;
    assert_eq!(nic.statistics().completed, 10);
}

#[tokio::test]
async fn who_never_waits_sends_on_when_the_provider_has_taken_some() {
    let world = World::new(Script { echo: false, max_messages: 1, ..Script::default() }).await;
    let nic = world.open(NicOptions::new().send_bytes(10 * 6144)).await.unwrap();
    let mut sent = 0;
    let story = async {
        while sent < 100 {
            match nic.try_send(&frame(sent, 60), PLAIN).unwrap() {
                true => sent += 1,
                false => tokio::task::yield_now().await,
            }
        }
    };
    within("a hundred frames", story).await;
    within("all of them", world.script.until(|seen| seen.frames.len() == 100)).await;
}

#[tokio::test]
async fn frames_that_the_provider_refuses_are_counted() {
    let script =
        Script { frame_status: nvsp::Status::INVALID_RNDIS_PACKET, echo: false, ..Script::default() };
    let world = World::new(script).await;
    let nic = world.nic().await;
    nic.send_batch(&[(&frame(1, 60), PLAIN), (&frame(2, 60), PLAIN)]).await.unwrap();
    within("an answer", nic.keep_alive()).await.unwrap();
    let statistics = nic.statistics();
    assert_eq!((statistics.sent, statistics.completed, statistics.refused), (2, 0, 2));
}

#[tokio::test]
async fn memory_goes_back_when_the_last_frame_in_it_is_dropped() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    let messages = (0..3).map(|number| message(&frame(number, 80), &[])).collect();
    world.script.order(Order::Deliver(messages));
    let mut came = frames(&nic, 3).await;
    let last = came.pop();
    drop(came);
    nic.keep_alive().await.unwrap();
    assert_eq!(world.script.seen().completed, 0, "one frame holds all of a packet");
    drop(last);
    within("the rest", world.script.until(|seen| seen.completed == 1)).await;
}

#[tokio::test]
async fn coalesced_segments_are_one_frame() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.open(NicOptions::new().coalescing()).await.unwrap();
    assert!(world.script.seen().capabilities.contains(nvsp::Capabilities::RSC));
    let part =
        |first, last, packet| PacketInfo::Rsc(RscFragment { sub_allocation: true, first, last, packet });
    let whole: Vec<u8> = frame(9, 3000);
    let messages = vec![
        message(&whole[..1500], &[part(true, false, 4), PacketInfo::Hash(3)]),
        message(&whole[1500..2990], &[part(false, false, 4)]),
        message(&whole[2990..], &[part(false, true, 4)]),
        message(&frame(10, 60), &[part(true, true, 5)]),
        // Of another frame, and one that never ends.
        message(&frame(11, 60), &[part(false, true, 6)]),
        message(&frame(12, 60), &[part(true, false, 7)]),
    ];
    world.script.order(Order::Deliver(messages));
    let came = frames(&nic, 2).await;
    assert_eq!((came[0].to_vec().unwrap(), came[0].info().hash), (whole.clone(), Some(3)));
    assert_eq!(came[1].to_vec().unwrap(), frame(10, 60));
    let mut middle = [0; 1000];
    came[0].read(1400, &mut middle).unwrap();
    assert_eq!(middle[..], whole[1400..2400]);
    assert_eq!((came.len(), nic.statistics().malformed), (2, 2));
}

#[tokio::test]
async fn a_device_is_asked_and_set_and_says_no() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    assert_eq!(nic.query(Oid::GEN_VENDOR_ID, &[]).await.unwrap(), 0x155d_u32.to_le_bytes());
    let error = nic.query(Oid::GEN_XMIT_OK, &[]).await.unwrap_err();
    assert!(matches!(error, NicError::Object { oid: Oid::GEN_XMIT_OK, status: Status::INVALID_OID }));
    let error = nic.set(Oid::GEN_MACHINE_NAME, b"x").await.unwrap_err();
    assert!(matches!(error, NicError::Object { status: Status::NOT_SUPPORTED, .. }));
    assert!(nic.set(Oid::GEN_MACHINE_NAME, &[0; 5000]).await.is_err(), "longer than there is room for");

    let groups = [[1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]];
    nic.set_groups(&groups).await.unwrap();
    let set = world.script.seen().set;
    assert_eq!(set.last(), Some(&(Oid::ETHERNET_MULTICAST_LIST, groups.concat())));

    // Several at a time.
    let asked = (0..20).map(|_| {
        let nic = nic.clone();
        tokio::spawn(async move { nic.query(Oid::GEN_VENDOR_ID, &[]).await })
    });
    for asked in asked.collect::<Vec<_>>() {
        within("an answer", asked).await.unwrap().unwrap();
    }
    nic.keep_alive().await.unwrap();
}

#[tokio::test]
async fn what_was_set_is_set_again_after_a_reset() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    nic.set_groups(&[[1, 0, 0x5e, 0, 0, 1]]).await.unwrap();
    nic.set_filter(PacketFilter::MULTICAST).await.unwrap();
    let before = world.script.seen().set.len();
    nic.reset().await.unwrap();
    nic.keep_alive().await.unwrap();
    let set = world.script.seen().set;
    let again: Vec<Oid> = set[before..].iter().map(|(oid, _)| *oid).collect();
    assert_eq!(again, [Oid::GEN_CURRENT_PACKET_FILTER, Oid::ETHERNET_MULTICAST_LIST]);
    assert_eq!(set[before].1, PacketFilter::MULTICAST.bits().to_le_bytes());
}

#[tokio::test]
async fn whoever_wants_to_know_of_the_link_is_told() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    let seen = nic.link();
    assert!(seen.up);
    let indicate = |status, data: &[u8]| {
        let mut bytes = Vec::new();
        rndis::Message::IndicateStatus { status, data }.encode(&mut bytes);
        world.script.order(Order::Control(bytes));
    };
    indicate(Status::MEDIA_DISCONNECT, &[]);
    let seen = within("the link's end", nic.link_changed(seen)).await.unwrap();
    assert!(!seen.up);
    indicate(Status::LINK_SPEED_CHANGE, &25_u32.to_le_bytes());
    let seen = within("its speed", nic.link_changed(seen)).await.unwrap();
    assert_eq!((seen.up, seen.speed), (false, 2500));
    indicate(Status::MEDIA_CONNECT, &[]);
    let seen = within("its return", nic.link_changed(seen)).await.unwrap();
    indicate(Status::NETWORK_CHANGE, &[]);
    let seen = within("another network", nic.link_changed(seen)).await.unwrap();
    assert_eq!((seen.up, seen.networks), (true, 1));

    let table: [u32; 16] = std::array::from_fn(|index| u32::try_from(index % 2).unwrap());
    let notice = |message: nvsp::Message| {
        world.script.order(Order::Notice(message.encode(Version::V6_1).to_vec()));
    };
    notice(nvsp::Message::IndirectionTable { table });
    let seen = within("a table", nic.link_changed(seen)).await.unwrap();
    assert_eq!(seen.table, Some(table));
    notice(nvsp::Message::VfAssociation { allocated: true, serial: 5 });
    let seen = within("a virtual function", nic.link_changed(seen)).await.unwrap();
    assert_eq!(seen.virtual_function, Some(5));

    // Is anybody there?
    let mut bytes = Vec::new();
    rndis::Message::KeepAlive { request: 99 }.encode(&mut bytes);
    world.script.order(Order::Control(bytes));
    nic.keep_alive().await.unwrap();
    within("our answer", world.script.until(|seen| seen.kept_alive == 1)).await;
}

#[tokio::test]
async fn frames_that_nobody_takes_are_dropped_and_counted() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.open(NicOptions::new().receive_bytes(16 << 20)).await.unwrap();
    for _ in 0..50 {
        let messages = (0..100).map(|number| message(&frame(number, 60), &[])).collect();
        world.script.order(Order::Deliver(messages));
        nic.keep_alive().await.unwrap();
    }
    let statistics = nic.statistics();
    assert_eq!(statistics.received + statistics.overrun, 5000);
    assert!((900..=1000).contains(&statistics.overrun), "{statistics:?}");
    assert_eq!(frames(&nic, 4096).await.len(), usize::try_from(statistics.received).unwrap());
}

#[tokio::test]
async fn who_asks_is_answered_while_nobody_receives() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let options = NicOptions::new().receive_bytes(8 << 20);
    let nic = world.open(options.clone()).await.unwrap();
    // A frame to a packet, and more of them than a guest holds requests.
    for number in 0..3000 {
        world.script.order(Order::Deliver(vec![message(&frame(number, 60), &[])]));
    }
    while nic.statistics().received + nic.statistics().overrun < 3000 {
        within("an answer", nic.keep_alive()).await.unwrap();
    }
    let came = bytes(&nic, 700).await;
    assert!(came.iter().enumerate().all(|(number, came)| *came == frame(number, 60)), "the oldest are kept");
    within("the end", nic.close()).await;

    let mut queue = world.open(options).await.unwrap().into_queue().unwrap();
    for number in 0..3000 {
        world.script.order(Order::Deliver(vec![message(&frame(number, 60), &[])]));
    }
    let asked = tokio::task::spawn_blocking(move || {
        while queue.statistics().overrun < 2000 {
            queue.query(Oid::GEN_VENDOR_ID, &[]).unwrap();
        }
    });
    within("answers", asked).await.unwrap();
}
