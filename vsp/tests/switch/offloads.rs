//! What a receiver does not do itself is done for it, and what it does is left to it.

use proptest::prelude::*;
use vmbus_vsp::network::switch::{
    Capabilities, Checksum, DropReason, HeaderChecksum, IpVersion, Offload, PortSettings, Rate, Segmentation,
    VlanMode, VlanSet,
};

use crate::packets::{ACK, CWR, FIN, PSH, Seen, Tcp, take_apart, udp, verify};
use crate::world::World;

fn ip() -> impl Strategy<Value = IpVersion> {
    prop_oneof![Just(IpVersion::V4), Just(IpVersion::V6)]
}

/// What a sender says that leaves cutting and summing to others.
fn large_send(tcp: &Tcp, segment_size: u16) -> Offload {
    Offload {
        segmentation: Some(Segmentation { segment_size, tcp_offset: tcp.offset(), ip: tcp.ip }),
        checksum: Checksum::tcp(tcp.offset()),
        ..Offload::NONE
    }
}

fn missing(checksum: Checksum) -> Offload {
    Offload { checksum, header: HeaderChecksum::Missing, ..Offload::NONE }
}

proptest! {
    #[test]
    fn a_receiver_that_takes_nothing_gets_segments_that_sum_up(
        ip in ip(),
        ip_options in (0_usize..3).prop_map(|count| count * 8),
        options in (0_usize..11).prop_map(|count| count * 4),
        sequence: u32,
        flags: u8,
        payload in prop::collection::vec(any::<u8>(), 0..20_000),
        segment_size in 48_u16..9000,
    ) {
        let tcp = Tcp { ip, ip_options, options, sequence, flags, payload };
        // No less than its headers.
        let segment_size = segment_size.max(tcp.offset() - 14 + 20 + u16::try_from(tcp.options).unwrap());
        let world = World::new();
        let (sender, receiver) = (world.port("sender"), world.port_that_takes(Capabilities::empty(), PortSettings::new("r")));
        sender.send_with(&tcp.frame(), large_send(&tcp, segment_size));
        let got = receiver.received_with_offloads();
        prop_assert!(got.iter().all(|(_, offload)| offload.segmentation.is_none() && offload.checksum == Checksum::Valid));
        let seen: Vec<Seen> = got.iter().map(|(frame, _)| take_apart(frame)).collect();
        let mut payload: Vec<u8> = Vec::new();
        for (index, segment) in seen.iter().enumerate() {
            let (first, last) = (index == 0, index == seen.len() - 1);
            prop_assert_eq!(segment.sequence, sequence.wrapping_add(u32::try_from(payload.len()).unwrap()));
            prop_assert!(last || segment.payload.len() == usize::from(segment_size));
            let kept = if last { 0xff } else { !(FIN | PSH) } & if first { 0xff } else { !CWR };
            prop_assert_eq!(segment.flags, flags & kept);
            let id = 0xfffe_u16.wrapping_add(u16::try_from(index).unwrap());
            prop_assert_eq!(segment.id, if ip == IpVersion::V4 { id } else { 0 });
            payload.extend(&segment.payload);
        }
        prop_assert_eq!(payload, tcp.payload);
        world.assert_balance();
    }

    #[test]
    fn a_missing_checksum_is_filled_in_for_who_does_not_take_it(
        ip in ip(),
        use_tcp: bool,
        padding in 0_usize..20,
        payload in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let (mut frame, offload) = if use_tcp {
            let tcp = Tcp::new(ip, payload);
            (tcp.frame(), missing(Checksum::tcp(tcp.offset())))
        } else {
            let start = if ip == IpVersion::V4 { 34 } else { 54 };
            (udp(ip, &payload), missing(Checksum::udp(start)))
        };
        let offload = if ip == IpVersion::V4 { offload } else { Offload { header: HeaderChecksum::Unknown, ..offload } };
        let len = frame.len();
        frame.resize(len + padding, 0xee);
        let world = World::new();
        let (sender, takes) = (world.port("sender"), world.port("takes"));
        let does_not = world.port_that_takes(Capabilities::empty(), PortSettings::new("does not"));
        sender.send_with(&frame, offload);
        let taken = takes.received_with_offloads();
        prop_assert_eq!(taken[0].1.checksum, offload.checksum);
        let whole = does_not.received_with_offloads();
        prop_assert_eq!(whole[0].1.checksum, Checksum::Valid);
        verify(&whole[0].0[..len]);
        prop_assert!(whole[0].0[len..].iter().all(|&byte| byte == 0xee));
    }

    /// A sender may say anything about any frame: what cannot be is dropped, and nothing breaks.
    #[test]
    fn offloads_that_make_no_sense_harm_nobody(
        ip in ip(),
        flip in prop::collection::vec((0_usize..80, any::<u8>()), 0..4),
        len in 0_usize..300,
        segment_size: u16,
        tcp_offset in prop_oneof![Just(34_u16), Just(54), any::<u16>()],
        start in prop_oneof![Just(34_u16), Just(54), any::<u16>()],
        field in prop_oneof![Just(6_u16), Just(16), any::<u16>()],
        cut: bool,
        header: bool,
    ) {
        let mut frame = Tcp::new(ip, vec![7; 200]).frame();
        frame.resize(len, 0);
        for (at, byte) in flip {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        let offload = Offload {
            segmentation: cut.then_some(Segmentation { segment_size, tcp_offset, ip }),
            checksum: Checksum::Missing { start, field },
            header: if header { HeaderChecksum::Missing } else { HeaderChecksum::Unknown },
            ..Offload::NONE
        };
        let world = World::new();
        let trunk = PortSettings {
            vlan: VlanMode::Trunk { native: Some(0), tagged: VlanSet::all() },
            ..PortSettings::new("trunk")
        };
        let sender = world.port_with(trunk.clone());
        let _others = [Capabilities::empty(), Capabilities::CHECKSUM, Capabilities::VLAN, Capabilities::all()]
            .map(|takes| world.port_that_takes(takes, trunk.clone()));
        sender.send_with(&frame, offload);
        world.assert_balance();
    }
}

#[test]
fn a_receiver_that_takes_large_frames_gets_them_whole_with_lengths_and_pseudo_header_put_right() {
    for ip in [IpVersion::V4, IpVersion::V6] {
        let tcp = Tcp { flags: ACK | PSH, ..Tcp::new(ip, vec![3; 60_000]) };
        let offload = large_send(&tcp, 1460);
        let right = tcp.frame();
        let mut careless = right.clone();
        let length_at = if ip == IpVersion::V4 { 16 } else { 18 };
        careless[length_at..length_at + 2].fill(0);
        let checksum = usize::from(tcp.offset()) + 16;
        careless[checksum..checksum + 2].fill(0x55);
        let world = World::new();
        let (sender, takes) = (world.port("sender"), world.port("takes"));
        sender.send_with(&careless, offload);
        let (mut frame, seen) = takes.received_with_offloads().remove(0);
        assert_eq!((seen.segmentation, seen.checksum), (offload.segmentation, Checksum::tcp(tcp.offset())));
        if ip == IpVersion::V4 {
            assert_ne!(frame[24..26], [0, 0], "the header has its checksum");
            frame[24..26].fill(0);
        }
        assert_eq!(frame, right);
    }
}

#[test]
fn segments_carry_their_tag_and_leave_the_checksum_to_who_takes_it() {
    let world = World::new();
    let trunk = |name| PortSettings {
        vlan: VlanMode::Trunk { native: None, tagged: VlanSet::all() },
        ..PortSettings::new(name)
    };
    let sender = world.port_with(PortSettings { vlan: VlanMode::Access(5), ..PortSettings::new("sender") });
    let receiver = world.port_that_takes(Capabilities::CHECKSUM, trunk("takes checksums"));
    let plain = world.port_that_takes(Capabilities::empty(), trunk("takes nothing"));
    let tcp = Tcp::new(IpVersion::V4, vec![9; 2500]);
    sender.send_with(&tcp.frame(), large_send(&tcp, 1000));
    let got = receiver.received_with_offloads();
    assert_eq!(got.iter().map(|(frame, _)| frame.len()).collect::<Vec<_>>(), [1058, 1058, 558]);
    for (mut frame, offload) in got {
        assert_eq!((frame[12..16].to_vec(), offload.checksum), (vec![0x81, 0, 0, 5], Checksum::tcp(38)));
        assert_eq!(offload.vlan, None);
        frame.drain(12..16);
        assert_eq!(frame.len() - 14, usize::from(u16::from_be_bytes([frame[16], frame[17]])));
    }
    for mut frame in plain.received() {
        frame.drain(12..16);
        take_apart(&frame);
    }
    assert_eq!(sender.connection.statistics().copies, 6);
    world.assert_balance();
}

/// Its sender counts from the frame's beginning, and the tag is taken out: the offsets pointed four bytes too far.
#[test]
fn a_tag_in_the_frame_does_not_lead_the_offsets_astray() {
    let world = World::new();
    let trunk = PortSettings {
        vlan: VlanMode::Trunk { native: None, tagged: VlanSet::all() },
        ..PortSettings::new("trunk")
    };
    let access = || PortSettings { vlan: VlanMode::Access(5), ..PortSettings::new("access") };
    let sender = world.port_with(trunk);
    let whole = world.port_that_takes(Capabilities::all(), access());
    let plain = world.port_that_takes(Capabilities::empty(), access());
    let tcp = Tcp::new(IpVersion::V4, vec![9; 2500]);
    let mut tagged = tcp.frame();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let segmentation = Segmentation { segment_size: 1000, tcp_offset: 38, ip: IpVersion::V4 };
    let large = Offload { segmentation: Some(segmentation), ..missing(Checksum::tcp(38)) };
    sender.send_with(&tagged, large);
    let (_, offload) = whole.received_with_offloads().remove(0);
    assert_eq!(
        (offload.segmentation, offload.checksum),
        (large_send(&tcp, 1000).segmentation, Checksum::tcp(34))
    );
    let segments = plain.received();
    assert_eq!(
        segments.iter().map(|frame| take_apart(frame).payload.len()).collect::<Vec<_>>(),
        [1000, 1000, 500]
    );
    sender.send_with(&tagged, missing(Checksum::tcp(38)));
    assert_eq!(whole.received_with_offloads()[0].1.checksum, Checksum::tcp(34));
    take_apart(&plain.received()[0]);
}

#[test]
fn a_sender_that_asks_for_tiny_segments_or_lies_about_a_frame_is_refused() {
    let tcp = Tcp::new(IpVersion::V4, vec![1; 60_000]);
    let good = large_send(&tcp, 1460);
    let with = |segment_size, tcp_offset, ip| Offload {
        segmentation: Some(Segmentation { segment_size, tcp_offset, ip }),
        ..good
    };
    let bad = [
        with(47, 34, IpVersion::V4),
        with(0, 34, IpVersion::V4),
        with(1460, 34, IpVersion::V6),
        with(1460, 38, IpVersion::V4),
        with(1460, u16::MAX, IpVersion::V4),
        Offload { segmentation: None, checksum: Checksum::tcp(60_040), ..good },
        Offload { segmentation: None, checksum: Checksum::tcp(13), ..good },
        Offload {
            segmentation: None,
            checksum: Checksum::Missing { start: u16::MAX, field: u16::MAX },
            ..good
        },
    ];
    let world = World::new();
    let (sender, receiver) = (world.port("sender"), world.port("receiver"));
    for offload in bad {
        sender.send_with(&tcp.frame(), offload);
    }
    assert_eq!(receiver.received().len(), 0);
    assert_eq!(sender.connection.statistics().dropped_sent.of(DropReason::Offload), bad.len() as u64);
}

#[test]
fn large_frames_that_make_little_into_much_are_refused() {
    let world = World::new();
    let (sender, receiver) = (world.port("sender"), world.port("receiver"));
    let tcp = Tcp { ip_options: 200, ..Tcp::new(IpVersion::V6, vec![1; 60_000]) };
    sender.send_with(&tcp.frame(), large_send(&tcp, 259));
    let mut everybody = tcp.frame();
    everybody[..6].fill(0xff);
    sender.send_with(&everybody, large_send(&tcp, 1460));
    assert_eq!(sender.connection.statistics().dropped_sent.of(DropReason::Offload), 2);
    sender.send_with(&tcp.frame(), large_send(&tcp, 260));
    assert_eq!(receiver.received().len(), 1);
}

#[test]
fn a_large_frame_is_paid_for_as_what_it_becomes() {
    let world = World::new();
    let limit = Some(Rate { per_second: 1, burst: 41 });
    let sender = world.port_with(PortSettings { flood_limit: limit, ..PortSettings::new("sender") });
    let receiver = world.port("receiver");
    let tcp = Tcp::new(IpVersion::V4, vec![1; 60_000]);
    (0..3).for_each(|_| sender.send_with(&tcp.frame(), large_send(&tcp, 1500)));
    assert_eq!(receiver.received().len(), 2, "the second is the last that passes");
    assert_eq!(sender.connection.statistics().dropped_sent.of(DropReason::FloodLimit), 1);
}

/// Two receivers that take less than a third: each gets what it takes, whatever was made for the others.
#[test]
fn one_large_frame_reaches_all_kinds_of_receivers() {
    let world = World::new();
    let sender = world.port("sender");
    let kinds =
        [Capabilities::empty(), Capabilities::all(), Capabilities::CHECKSUM, Capabilities::SEGMENTATION_V6];
    let receivers = kinds.map(|takes| world.port_that_takes(takes, PortSettings::new("r")));
    let tcp = Tcp::new(IpVersion::V6, vec![4; 5000]);
    sender.send_with(&tcp.frame(), large_send(&tcp, 1440));
    assert_eq!(receivers.each_ref().map(|receiver| receiver.received().len()), [4, 1, 4, 1]);
    world.assert_balance();
}

#[test]
fn large_frames_that_become_more_than_a_batch_arrive_all_the_same() {
    let world = World::new();
    let (sender, receiver) =
        (world.port("sender"), world.port_that_takes(Capabilities::empty(), PortSettings::new("r")));
    let tcp = Tcp::new(IpVersion::V4, (0..60_000).map(|byte| u8::try_from(byte % 251).unwrap()).collect());
    sender.send_with(&tcp.frame(), large_send(&tcp, 48));
    let payload: Vec<u8> = receiver.received().iter().flat_map(|frame| take_apart(frame).payload).collect();
    assert_eq!(payload, tcp.payload);
    assert_eq!(sender.connection.statistics().copies, 1250);
    world.assert_balance();
}
