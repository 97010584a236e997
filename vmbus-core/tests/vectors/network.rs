//! Network packets.

use vmbus_core::network::ndis::{
    self, ChecksumV4, ChecksumV6, Object, ObjectHeader, Offload, OffloadParameters, PacketFilter, Rss,
    RssCapabilities, RssCapabilityFlags, RssHashInfo, RssParameters,
};
use vmbus_core::network::nvsp::{
    Buffer, Capabilities, ChannelType, Message, NO_SECTION, ReceiveSection, Sender, Status,
};
use vmbus_core::network::rndis::{self, InitializeComplete, PacketHeader};
use vmbus_core::network::{
    LargeSend, Oid, PacketInfo, PacketInfoList, PacketInfoWriter, ReceiveChecksum, RscFragment,
    TransmitChecksum, Version, Vlan, Way,
};
use vmbus_core::pages::PageRanges;
use zerocopy::IntoBytes;

use crate::{Check, ring};

const CONTROL: Message =
    Message::Packet { channel: ChannelType::Control, section: NO_SECTION, section_size: 0 };
const DATA: Message = Message::Packet { channel: ChannelType::Data, section: NO_SECTION, section_size: 0 };

pub(crate) const CHECKS: &[Check] = &[
    ("NV-1", |bytes| guest(bytes, Message::Init { version: Version::V6_1.word() })),
    ("NV-2", |bytes| host(bytes, Version::V6_1, accepted())),
    ("NV-3", |bytes| host(bytes, Version::V4, accepted())),
    ("NV-4", |bytes| {
        let capabilities =
            Capabilities::IEEE_8021Q | Capabilities::SR_IOV | Capabilities::TEAMING | Capabilities::RSC;
        guest(bytes, Message::NdisConfig { mtu: 1514, capabilities });
    }),
    ("NV-5", |bytes| {
        let (major, minor) = Version::V6_1.ndis();
        guest(bytes, Message::NdisVersion { major, minor });
    }),
    ("NV-6", |bytes| guest(bytes, Message::Buffer { buffer: Buffer::Receive, gpadl: 0xe1e20, id: 0xcafe })),
    ("NV-7", |bytes| {
        let first = ReceiveSection {
            offset: 0.into(),
            piece_size: 1728.into(),
            pieces: 9709.into(),
            end: 0x00ff_ffc0.into(),
        };
        let complete = Message::ReceiveBufferComplete { status: Status::SUCCESS, sections: 1, first };
        host(bytes, Version::V6_1, complete);
    }),
    ("NV-8", |bytes| guest(bytes, Message::Buffer { buffer: Buffer::Send, gpadl: 0xe1e21, id: 0 })),
    ("NV-9", |bytes| {
        let complete = Message::SendBufferComplete { status: Status::SUCCESS, section_size: 6144 };
        host(bytes, Version::V6_1, complete);
    }),
    ("NV-10", |bytes| {
        let packet = Message::Packet { channel: ChannelType::Data, section: 3, section_size: 98 + 44 };
        guest(bytes, packet);
    }),
    ("NV-11", |bytes| guest(bytes, CONTROL)),
    ("NV-12", |bytes| {
        let complete = Message::PacketComplete { status: Status::SUCCESS };
        assert_eq!(Message::parse(bytes, Sender::Guest, Some(Version::V6_1)), Ok(complete));
        assert_eq!(complete.encode(Version::V1)[..bytes.len()], *bytes);
    }),
    ("NV-13", |bytes| guest(bytes, Message::SubchannelRequest { operation: 1, count: 3 })),
    ("NV-14", |bytes| {
        host(bytes, Version::V6_1, Message::SubchannelComplete { status: Status::SUCCESS, count: 3 });
    }),
    ("NV-15", |bytes| host(bytes, Version::V6_1, table())),
    ("NV-16", |bytes| {
        host(bytes, Version::V6, table());
        let mut wrong = bytes.to_vec();
        wrong[8] = 12;
        let read = Message::parse(&wrong, Sender::Host, Some(Version::V5));
        assert_eq!(read, Ok(table()), "a host of that age states something else");
    }),
    ("NV-17", |bytes| host(bytes, Version::V6_1, Message::VfAssociation { allocated: true, serial: 2 })),
    ("NV-18", |bytes| guest(bytes, Message::SwitchDataPath { to_vf: true })),
    ("NV-19", |bytes| guest(bytes, Message::Revoke { buffer: Buffer::Receive, id: 0xcafe })),
    ("RN-1", |bytes| {
        message(bytes, rndis::Message::Initialize { request: 1, major: 1, minor: 0, max_transfer: 0x4000 });
    }),
    ("RN-2", |bytes| {
        let complete = InitializeComplete {
            request: 1,
            status: rndis::Status::SUCCESS,
            max_packets: 8,
            max_transfer: 0xefff_ffff,
            alignment_exponent: 3,
        };
        message(bytes, rndis::Message::InitializeComplete(complete));
    }),
    ("RN-3", |bytes| {
        message(bytes, rndis::Message::Query { request: 2, oid: Oid::ETHERNET_PERMANENT_ADDRESS, data: &[] });
    }),
    ("RN-4", |bytes| {
        let data = &[0x00, 0x15, 0x5d, 1, 2, 3];
        message(bytes, rndis::Message::QueryComplete { request: 2, status: rndis::Status::SUCCESS, data });
    }),
    ("RN-5", |bytes| {
        let filter = PacketFilter::DIRECTED | PacketFilter::ALL_MULTICAST | PacketFilter::BROADCAST;
        let data = &filter.bits().to_le_bytes();
        message(bytes, rndis::Message::Set { request: 9, oid: Oid::GEN_CURRENT_PACKET_FILTER, data });
    }),
    ("RN-6", |bytes| {
        message(bytes, rndis::Message::SetComplete { request: 9, status: rndis::Status::SUCCESS });
    }),
    ("RN-7", |bytes| {
        let empty = Offload { header: ndis::header_of::<Offload>(), ..Offload::default() };
        let data = empty.as_bytes();
        let oid = Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES;
        message(bytes, rndis::Message::Query { request: 4, oid, data });
        assert_eq!(Offload::read(data), Ok(empty));
    }),
    ("RN-8", |bytes| {
        let data = offload();
        let (status, data) = (rndis::Status::SUCCESS, data.as_bytes());
        message(bytes, rndis::Message::QueryComplete { request: 4, status, data });
    }),
    ("RN-9", |bytes| {
        let parameters = OffloadParameters {
            header: ndis::header_of::<OffloadParameters>(),
            ip_v4_checksum: 1,
            tcp_v4_checksum: 4,
            udp_v4_checksum: 4,
            tcp_v6_checksum: 4,
            udp_v6_checksum: 4,
            lso_v2_v4: 2,
            lso_v2_v6: 2,
            ..OffloadParameters::default()
        };
        let (oid, data) = (Oid::TCP_OFFLOAD_PARAMETERS, parameters.as_bytes());
        message(bytes, rndis::Message::Set { request: 5, oid, data });
        assert_eq!(OffloadParameters::read(data), Ok(parameters));
    }),
    ("RN-10", |bytes| {
        let flags = RssCapabilityFlags::TOEPLITZ | RssCapabilityFlags::TCP_V4 | RssCapabilityFlags::TCP_V6;
        let capabilities = RssCapabilities {
            header: ndis::header_of::<RssCapabilities>(),
            flags: flags.bits().into(),
            interrupts: 1.into(),
            queues: 4.into(),
            table_entries: 128.into(),
        };
        let (status, data) = (rndis::Status::SUCCESS, capabilities.as_bytes());
        message(bytes, rndis::Message::QueryComplete { request: 6, status, data });
        assert_eq!(RssCapabilities::read(data), Ok(capabilities));
    }),
    ("RN-11", scaling),
    ("RN-12", |bytes| {
        message(bytes, rndis::Message::IndicateStatus { status: rndis::Status::MEDIA_CONNECT, data: &[] });
    }),
    ("RN-13", |bytes| {
        let data = &100_000_000_u32.to_le_bytes();
        message(bytes, rndis::Message::IndicateStatus { status: rndis::Status::LINK_SPEED_CHANGE, data });
    }),
    ("RN-14", |bytes| {
        let (ask, answer) = bytes.split_at(12);
        message(ask, rndis::Message::KeepAlive { request: 11 });
        message(answer, rndis::Message::KeepAliveComplete { request: 11, status: rndis::Status::SUCCESS });
    }),
    ("RN-15", |bytes| message(bytes, rndis::Message::Halt { request: 12 })),
    ("RN-16", |bytes| {
        let header = packet(bytes, 104, 0, 60);
        assert_eq!((header.frame, header.info.len()), (44..104, 0));
    }),
    ("RN-17", |bytes| {
        let (head, pieces) = bytes.split_at(44);
        let header = packet(head, 136, 32, 60);
        assert_eq!((header.frame, header.info), (76..136, 44..76));
        let checksum =
            TransmitChecksum { ipv4: true, tcp: true, transport_offset: 34, ..TransmitChecksum::default() };
        let vlan = Vlan { priority: 5, drop_eligible: false, id: 100 };
        info(pieces, Way::Transmit, &[PacketInfo::TransmitChecksum(checksum), PacketInfo::Vlan(vlan)]);
    }),
    ("RN-18", |bytes| {
        let send = LargeSend { segment_size: 1460, tcp_offset: 34, version_2: true, ipv6: false };
        info(bytes, Way::Transmit, &[PacketInfo::LargeSend(send)]);
    }),
    ("RN-19", |bytes| {
        let checksum = ReceiveChecksum::TCP_SUCCEEDED | ReceiveChecksum::IP_SUCCEEDED;
        info(bytes, Way::Receive, &[PacketInfo::ReceiveChecksum(checksum)]);
    }),
    ("RN-20", |bytes| {
        let fragment = RscFragment { sub_allocation: false, first: true, last: false, packet: 7 };
        info(bytes, Way::Receive, &[PacketInfo::Rsc(fragment)]);
    }),
    ("RN-21", |bytes| {
        ring::transfer_pages(bytes, 0xcafe, &[(0x68, 0x6c0)]);
        host(&ring::payload(bytes)[..Version::V6.message_size()], Version::V6, DATA);
    }),
    ("RN-22", |bytes| {
        let header = PageRanges::single(0x100, 44, [0x900]).unwrap();
        let frame = PageRanges::single(0x7c0, 60, [0x901]).unwrap();
        ring::gpa_direct_ranges(bytes, &[header, frame]);
        guest(ring::payload(bytes), DATA);
    }),
];

fn accepted() -> Message {
    Message::InitComplete { version: u32::MAX, max_mdl_chain: 34, status: Status::SUCCESS }
}

fn table() -> Message {
    Message::IndirectionTable { table: [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3] }
}

fn offload() -> Offload {
    let v4 = ChecksumV4::all() & ChecksumV4::from_bits_truncate(0x155);
    let v6 = ChecksumV6::from_bits_truncate(0x55);
    Offload {
        header: ndis::header_of::<Offload>(),
        v4_transmit_encapsulation: ndis::ENCAPSULATION_802_3.into(),
        v4_transmit: v4.bits().into(),
        v4_receive_encapsulation: ndis::ENCAPSULATION_802_3.into(),
        v4_receive: v4.bits().into(),
        v6_transmit_encapsulation: ndis::ENCAPSULATION_802_3.into(),
        v6_transmit: v6.bits().into(),
        v6_receive_encapsulation: ndis::ENCAPSULATION_802_3.into(),
        v6_receive: v6.bits().into(),
        lso_v4_encapsulation: ndis::ENCAPSULATION_802_3.into(),
        lso_v4_max_size: 62780.into(),
        lso_v4_min_segments: 2.into(),
        lso_v6_encapsulation: ndis::ENCAPSULATION_802_3.into(),
        lso_v6_max_size: 62780.into(),
        lso_v6_min_segments: 2.into(),
        lso_v6_options: 5.into(),
        ..Offload::default()
    }
}

fn scaling(bytes: &[u8]) {
    let rndis::Message::Set { request: 7, oid: Oid::GEN_RECEIVE_SCALE_PARAMETERS, data } =
        rndis::Message::parse(bytes).unwrap()
    else {
        panic!("not a SET of the parameters")
    };
    let rss = Rss::read(data).unwrap();
    assert_eq!(rss.table.iter().map(|entry| entry.get()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(rss.key, (0..40).collect::<Vec<u8>>());
    let hash_info = RssHashInfo::TOEPLITZ
        | RssHashInfo::IPV4
        | RssHashInfo::TCP_V4
        | RssHashInfo::IPV6
        | RssHashInfo::TCP_V6;
    let parameters = RssParameters {
        header: ObjectHeader { kind: 0x89, revision: 2, size: 40.into() },
        hash_info: hash_info.bits().into(),
        table_size: 16.into(),
        table_offset: 40.into(),
        key_size: 40.into(),
        key_offset: 56.into(),
        ..RssParameters::default()
    };
    assert_eq!(rss.parameters, parameters);
    let data = [parameters.as_bytes(), rss.table.as_bytes(), rss.key].concat();
    let oid = Oid::GEN_RECEIVE_SCALE_PARAMETERS;
    message(bytes, rndis::Message::Set { request: 7, oid, data: &data });
}

/// What a guest says: always of full size.
fn guest(bytes: &[u8], message: Message) {
    assert_eq!(Message::parse(bytes, Sender::Guest, Some(Version::V6_1)), Ok(message));
    assert_eq!(*message.encode(Version::V6_1), *bytes);
}

fn host(bytes: &[u8], version: Version, message: Message) {
    assert_eq!(Message::parse(bytes, Sender::Host, Some(version)), Ok(message));
    assert_eq!(*message.encode(version), *bytes);
}

fn message(bytes: &[u8], message: rndis::Message<'_>) {
    assert_eq!(rndis::Message::parse(bytes), Ok(message));
    let mut written = Vec::new();
    message.encode(&mut written);
    assert_eq!(written, bytes);
}

fn packet(bytes: &[u8], len: usize, info: u32, frame: u32) -> PacketHeader {
    let head = bytes.try_into().unwrap();
    let header = PacketHeader::parse(head, len).unwrap().unwrap();
    assert_eq!(header.message_len, len);
    assert!(PacketHeader::parse(head, len - 1).is_err(), "longer than what is there");
    assert_eq!(PacketHeader::encode(info, frame), *head);
    header
}

fn info(bytes: &[u8], way: Way, expected: &[PacketInfo<'_>]) {
    let read: Result<Vec<_>, _> = PacketInfoList::new(bytes, way).collect();
    assert_eq!(read.unwrap(), expected);
    let mut writer = PacketInfoWriter::default();
    expected.iter().for_each(|piece| writer.push(*piece));
    assert_eq!(writer.bytes(), bytes);
}
