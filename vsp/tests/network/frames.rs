//! Frames both ways: in sections and ranges, many at a time, with what goes beside them.

use vmbus_core::network::nvsp::{ChannelType, Message, NO_SECTION, Status};
use vmbus_core::network::{LargeSend, Oid, PacketInfo, ReceiveChecksum, TransmitChecksum, Version, Vlan};
use vmbus_vsp::network::switch::{
    Capabilities, Checksum, DropReason, HeaderChecksum, IpVersion, MacAddress, Offload, Segmentation,
};

use crate::client::{NIC, PEER, Peer, SEND_SECTION, World, frame, infos, message};

#[tokio::test]
async fn several_frames_lie_in_one_section_and_one_packet() {
    let world = World::new().await;
    let driver = world.running().await;
    let sent: Vec<_> = (0..20).map(|number| frame(PEER, NIC, number, 60 + number as usize)).collect();
    let mut bytes = Vec::new();
    for frame in &sent {
        // Linux counts the padding in the message's length.
        let mut one = message(frame, &[]);
        one.resize(one.len().next_multiple_of(8), 0);
        let len = u32::try_from(one.len()).unwrap();
        one[4..8].copy_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&one);
    }
    assert!(bytes.len() <= SEND_SECTION);
    assert_eq!(driver.transmit_bytes(63, &bytes).await, Status::SUCCESS);
    let seen: Vec<_> = world.peer.sees(20).await.into_iter().map(|(bytes, _)| bytes).collect();
    assert_eq!(seen, sent);
}

#[tokio::test]
async fn a_frame_may_lie_in_ranges_and_begin_in_a_section() {
    let world = World::new().await;
    let driver = world.running().await;
    let sent = frame(PEER, NIC, 1, 1514);
    let bytes = message(&sent, &[PacketInfo::Hash(7)]);
    let scratch = driver.guest.share(64 << 10).unwrap();
    for in_section in [0, 44, 60, 100] {
        for piece in [1, 7, 300, 4096] {
            let (first, rest) = bytes.split_at(in_section);
            driver.send.as_ref().unwrap().buffer().write(SEND_SECTION, first).unwrap();
            // Pieces apart from one another, each at another place in its page.
            let pieces: Vec<_> = rest.chunks(rest.len().div_ceil(300).max(piece)).collect();
            let ranges: Vec<_> = pieces
                .iter()
                .enumerate()
                .map(|(index, piece)| {
                    let at = index * 200 % (64 << 10);
                    let at = if piece.len() > 200 { index * 1600 } else { at };
                    scratch.write(at, piece).unwrap();
                    scratch.range(at..at + piece.len())
                })
                .collect();
            let section = if in_section == 0 { NO_SECTION } else { 1 };
            let message =
                Message::Packet { channel: ChannelType::Data, section, section_size: in_section as u32 };
            let pending = driver.channel.send(&message.encode(driver.version), ranges).await.unwrap();
            assert_eq!(driver.status(pending).await, Status::SUCCESS);
            let (seen, offload) = world.peer.sees(1).await.remove(0);
            assert_eq!(seen, sent, "{in_section} bytes in the section, pieces of {piece}");
            assert_eq!(offload.hash, Some(7));
        }
    }
}

#[tokio::test]
async fn frames_that_come_together_are_told_of_together_and_in_order() {
    let world = World::new().await;
    let driver = world.running().await;
    let sent: Vec<_> = (0..300).map(|number| frame(NIC, PEER, number, 60 + number as usize)).collect();
    world.peer.send(&sent);
    let arrived = driver.arrive().await;
    assert_eq!(arrived.frames.len(), 300, "more than a byte can count");
    let frames: Vec<_> = arrived.frames.iter().map(|(_, frame)| frame.clone()).collect();
    assert_eq!(frames, sent);
    arrived.give_back().await;
    let counts = world.adapter.statistics().unwrap();
    assert_eq!(counts.delivered.frames, 300);
}

#[tokio::test]
async fn a_guest_that_gives_nothing_back_loses_frames_and_is_told_how_many() {
    let world = World::new().await;
    let mut driver = world.open().await;
    driver.set_up_with(Version::V6_1, 1500, 256 << 10).await;
    driver.begin().await;
    let sections = driver.section.pieces.get();
    for number in 0..sections + 100 {
        world.peer.send([&frame(NIC, PEER, number, 60)]);
    }
    let counts = world.adapter.statistics().unwrap();
    let (taken, no_room) = (counts.delivered.frames, counts.dropped_received.of(DropReason::Full));
    assert_eq!(taken + no_room, u64::from(sections + 100));
    // Some may still hold what was said about the device.
    assert!((u64::from(sections) - 12..=u64::from(sections) - 8).contains(&taken), "{taken} of {sections}");
    let mut kept = Vec::new();
    while kept.len() < taken as usize {
        kept.push(driver.arrive().await);
    }
    // What is said about the device has sections of its own.
    assert_eq!(driver.query(Oid::GEN_RCV_NO_BUFFER, &[]).await.1, no_room.to_le_bytes());
    for arrived in kept {
        arrived.give_back().await;
    }
    assert_eq!(driver.query(Oid::GEN_RCV_OK, &[]).await.1, taken.to_le_bytes());
    let again: Vec<_> = (0..sections - 12).map(|number| frame(NIC, PEER, number, 60)).collect();
    world.peer.send(&again);
    assert_eq!(driver.receive(again.len()).await, again, "the sections are free again");
}

#[tokio::test]
async fn a_guest_gets_the_frames_that_it_wants() {
    let other = MacAddress([2, 0, 0, 0, 0, 9]);
    let group = MacAddress([1, 0, 0x5e, 0, 0, 1]);
    let other_group = MacAddress([1, 0, 0x5e, 0, 0, 2]);
    let to = [NIC, other, group, other_group, MacAddress::BROADCAST];
    let frames = to.map(|to| frame(to, PEER, 0, 60));
    let [own, _, of_group, of_other_group, broadcast] = &frames;
    let world = World::new().await;
    let mut driver = world.running().await;
    assert_eq!(driver.set(Oid::ETHERNET_MULTICAST_LIST, &group.0).await.0, 0);
    let cases: [(u32, Vec<&Vec<u8>>); 6] = [
        (0x01, vec![own]),
        (0x02, vec![of_group]),
        (0x04, vec![of_group, of_other_group]),
        (0x08, vec![broadcast]),
        (0x0d, vec![own, of_group, of_other_group, broadcast]),
        (0x20, frames.iter().collect()),
    ];
    for (filter, expected) in cases {
        driver.set(Oid::GEN_CURRENT_PACKET_FILTER, &filter.to_le_bytes()).await;
        world.peer.send(&frames);
        let got = driver.receive(expected.len()).await;
        assert_eq!(got.iter().collect::<Vec<_>>(), expected, "filter {filter:#x}");
    }
    driver.set(Oid::GEN_CURRENT_PACKET_FILTER, &[0; 4]).await;
    world.peer.send(&frames);
    let filtered = world.adapter.statistics().unwrap().dropped_received.of(DropReason::Filtered);
    assert_eq!(filtered, 5 + 4 + 4 + 3 + 4 + 1);
}

#[tokio::test]
async fn what_a_guest_wants_done_goes_with_the_frame() {
    let world = World::new().await;
    let driver = world.running().await;
    let mut tcp = tcp_frame(PEER, NIC, 100);
    tcp[40] = 9;
    let vlan = Vlan { priority: 3, drop_eligible: false, id: 0 };
    let checksum =
        TransmitChecksum { ipv4: true, tcp: true, transport_offset: 34, ..TransmitChecksum::default() };
    let info = [PacketInfo::TransmitChecksum(checksum), PacketInfo::Vlan(vlan), PacketInfo::Hash(0x1234)];
    assert_eq!(driver.transmit(0, &tcp, &info).await, Status::SUCCESS);
    let (_, offload) = world.peer.sees(1).await.remove(0);
    assert_eq!(offload.checksum, Checksum::tcp(34));
    assert_eq!((offload.hash, offload.segmentation), (Some(0x1234), None));
    // Without an offset the frame says where the header is.
    let checksum = TransmitChecksum { transport_offset: 0, ..checksum };
    assert_eq!(driver.transmit(0, &tcp, &[PacketInfo::TransmitChecksum(checksum)]).await, Status::SUCCESS);
    assert_eq!(world.peer.sees(1).await.remove(0).1.checksum, Checksum::tcp(34));

    let large = tcp_frame(PEER, NIC, 5000);
    let send = LargeSend { segment_size: 1460, tcp_offset: 34, version_2: true, ipv6: false };
    assert_eq!(driver.transmit(0, &large, &[PacketInfo::LargeSend(send)]).await, Status::SUCCESS);
    let (_, offload) = world.peer.sees(1).await.remove(0);
    let expected = Segmentation { segment_size: 1460, tcp_offset: 34, ip: IpVersion::V4 };
    assert_eq!(offload.segmentation, Some(expected));
    assert_eq!(offload.checksum, Checksum::tcp(34));
}

#[tokio::test]
async fn a_frame_that_only_some_can_take_whole_reaches_all() {
    let world = World::new().await;
    let plain = Peer::with(&world.switch, Capabilities::empty());
    let driver = world.running().await;
    let large = tcp_frame(MacAddress([2, 0, 0, 0, 0, 99]), NIC, 5000);
    let send = LargeSend { segment_size: 1460, tcp_offset: 34, version_2: true, ipv6: false };
    assert_eq!(driver.transmit(0, &large, &[PacketInfo::LargeSend(send)]).await, Status::SUCCESS);
    assert_eq!(world.peer.sees(1).await.len(), 1);
    let segments = plain.sees(5000_usize.div_ceil(1460)).await;
    assert!(segments.iter().all(|(bytes, offload)| bytes.len() <= 1514 && offload.segmentation.is_none()));
}

#[tokio::test]
async fn a_guest_is_told_what_is_known_of_checksums() {
    let world = World::new().await;
    let driver = world.running().await;
    let tcp = tcp_frame(NIC, PEER, 100);
    let known = Offload { header: HeaderChecksum::Valid, checksum: Checksum::Valid, ..Offload::NONE };
    // The switch fills in what is missing: guests that send frames on send them as they are.
    let missing = Offload { checksum: Checksum::tcp(34), ..Offload::NONE };
    world.peer.send_with([(&tcp, known), (&tcp, missing), (&tcp, Offload::NONE)]);
    let arrived = driver.arrive().await;
    let [known, filled, unknown] = &arrived.frames[..] else { panic!("other frames") };
    let right = ReceiveChecksum::IP_SUCCEEDED | ReceiveChecksum::TCP_SUCCEEDED;
    assert_eq!(infos(&known.0), [PacketInfo::ReceiveChecksum(right)]);
    assert_eq!(infos(&filled.0), [PacketInfo::ReceiveChecksum(ReceiveChecksum::TCP_SUCCEEDED)]);
    assert_ne!(filled.1[50..52], tcp[50..52]);
    assert_eq!(infos(&unknown.0), []);
}

#[tokio::test]
async fn a_guest_that_coalesces_gets_long_frames_in_pieces_and_others_get_segments() {
    use vmbus_core::network::ndis::{OffloadParameters, header_of};
    use zerocopy::IntoBytes;

    let world = World::new().await;
    let mut driver = world.running().await;
    let large = tcp_frame(NIC, PEER, 20_000);
    let segmentation = Segmentation { segment_size: 1460, tcp_offset: 34, ip: IpVersion::V4 };
    let offload = Offload { segmentation: Some(segmentation), checksum: Checksum::tcp(34), ..Offload::NONE };
    world.peer.send_with([(&large, offload)]);
    let segments = driver.receive(14).await;
    assert!(segments.iter().all(|segment| segment.len() <= 1514));

    let on = OffloadParameters {
        header: header_of::<OffloadParameters>(),
        rsc_v4: 2,
        rsc_v6: 2,
        ..OffloadParameters::default()
    };
    assert_eq!(driver.set(Oid::TCP_OFFLOAD_PARAMETERS, on.as_bytes()).await.0, 0);
    let _told_which_are_on = driver.hear().await;
    world.peer.send_with([(&large, offload)]);
    let arrived = driver.arrive().await;
    let last = arrived.frames.len() - 1;
    let mut whole = Vec::new();
    for (index, (info, piece)) in arrived.frames.iter().enumerate() {
        let info = infos(info);
        let fragment = info.iter().find_map(|info| match info {
            PacketInfo::Rsc(fragment) => Some(*fragment),
            _ => None,
        });
        let fragment = fragment.expect("each says that it is a piece");
        assert_eq!((fragment.first, fragment.last, fragment.packet), (index == 0, index == last, 1));
        assert!(info.contains(&PacketInfo::LargeSend(LargeSend {
            segment_size: 1460,
            tcp_offset: 34,
            version_2: true,
            ipv6: false
        })));
        whole.extend_from_slice(piece);
    }
    assert_eq!(whole.len(), large.len());
    assert_eq!(whole[54..], large[54..], "the payload is what it was");
    arrived.give_back().await;
}

/// A TCP segment over IPv4 with so much payload, without checksums.
fn tcp_frame(to: MacAddress, from: MacAddress, payload: usize) -> Vec<u8> {
    let mut frame = frame(to, from, 0, 54 + payload);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..54].fill(0);
    frame[14] = 0x45;
    let len = u16::try_from(40 + payload).unwrap();
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 6]);
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[46] = 0x50;
    frame[47] = 0x10;
    frame
}
