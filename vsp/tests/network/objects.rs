//! What drivers ask of a NIC and set: object by object, in the sizes that they accept.

use vmbus_core::network::ndis::{
    LinkState, Object, Offload, OffloadParameters, RssCapabilities, RssFlags, RssHashInfo, RssParameters,
    header_of,
};
use vmbus_core::network::rndis::Status;
use vmbus_core::network::{Oid, Version};
use vmbus_vsp::network::Limits;
use zerocopy::{FromBytes, IntoBytes};

use crate::client::{Driver, NIC, World};

async fn driver(world: &World, version: Version) -> Driver {
    let mut driver = world.open().await;
    driver.set_up(version, 1500).await;
    driver.begin().await;
    driver
}

fn word(word: u32) -> Vec<u8> {
    word.to_le_bytes().to_vec()
}

#[tokio::test]
async fn each_object_that_is_asked_has_its_value() {
    let world = World::new().await;
    let mut driver = driver(&world, Version::V6_1).await;
    let name: Vec<u8> = "nic".encode_utf16().flat_map(u16::to_le_bytes).chain([0; 506]).collect();
    let counts = || vec![0; 8];
    let expected: [(Oid, Vec<u8>); 37] = [
        (Oid::GEN_HARDWARE_STATUS, word(0)),
        (Oid::GEN_MEDIA_SUPPORTED, word(0)),
        (Oid::GEN_MEDIA_IN_USE, word(0)),
        (Oid::GEN_MAXIMUM_LOOKAHEAD, word(1500)),
        (Oid::GEN_CURRENT_LOOKAHEAD, word(1500)),
        (Oid::GEN_MAXIMUM_FRAME_SIZE, word(1500)),
        (Oid::GEN_MAXIMUM_TOTAL_SIZE, word(1514)),
        (Oid::GEN_TRANSMIT_BLOCK_SIZE, word(1514)),
        (Oid::GEN_RECEIVE_BLOCK_SIZE, word(1514)),
        (Oid::GEN_TRANSMIT_BUFFER_SPACE, word(262_144)),
        (Oid::GEN_RECEIVE_BUFFER_SPACE, word(262_144)),
        (Oid::GEN_LINK_SPEED, word(100_000_000)),
        (Oid::GEN_VENDOR_ID, word(0x155d)),
        (Oid::GEN_CURRENT_PACKET_FILTER, word(0xd)),
        (Oid::GEN_DRIVER_VERSION, vec![30, 6]),
        (Oid::GEN_PROTOCOL_OPTIONS, word(0)),
        (Oid::GEN_MAC_OPTIONS, word(0x24d)),
        (Oid::GEN_MEDIA_CONNECT_STATUS, word(0)),
        (Oid::GEN_MAXIMUM_SEND_PACKETS, word(u32::MAX)),
        (Oid::GEN_VENDOR_DRIVER_VERSION, word(0x1_0000)),
        (Oid::GEN_XMIT_OK, counts()),
        (Oid::GEN_RCV_OK, counts()),
        (Oid::GEN_XMIT_ERROR, counts()),
        (Oid::GEN_RCV_ERROR, counts()),
        (Oid::GEN_RCV_NO_BUFFER, counts()),
        (Oid::ETHERNET_PERMANENT_ADDRESS, NIC.0.to_vec()),
        (Oid::ETHERNET_CURRENT_ADDRESS, NIC.0.to_vec()),
        (Oid::ETHERNET_MULTICAST_LIST, vec![]),
        (Oid::ETHERNET_MAXIMUM_LIST_SIZE, word(64)),
        (Oid::ETHERNET_RCV_ERROR_ALIGNMENT, word(0)),
        (Oid::ETHERNET_XMIT_ONE_COLLISION, word(0)),
        (Oid::ETHERNET_XMIT_MORE_COLLISIONS, word(0)),
        (Oid::GEN_MAX_LINK_SPEED, [10_000_000_000_u64; 2].map(u64::to_le_bytes).concat()),
        (Oid::GEN_FRIENDLY_NAME, name.clone()),
        (Oid::GEN_MACHINE_NAME, name),
        (Oid::GEN_INTERRUPT_MODERATION, vec![0x80, 1, 12, 0, 0, 0, 0, 0, 1, 0, 0, 0]),
        (Oid::OFFLOAD_ENCAPSULATION, [0x001c_01a8_u32, 1, 2, 14, 1, 2, 14].map(u32::to_le_bytes).concat()),
    ];
    for (oid, value) in expected {
        assert_eq!(driver.query(oid, &[]).await, (Status::SUCCESS, value), "{oid}");
    }
    let link = driver.query(Oid::GEN_LINK_STATE, &[]).await.1;
    let link = LinkState::read_from_bytes(&link).unwrap();
    assert_eq!((link.connected.get(), link.transmit_speed.get()), (1, 10_000_000_000));
    assert!(driver.query(Oid::GEN_VENDOR_DESCRIPTION, &[]).await.1.ends_with(&[0]));
    for unknown in [0x0001_01ff, 0, u32::MAX, 0x0002_0201] {
        assert_eq!(driver.query(Oid(unknown), &[]).await, (Status::INVALID_OID, vec![]));
        assert_eq!(driver.set(Oid(unknown), &[0; 4]).await, Status::INVALID_OID);
    }
}

#[tokio::test]
async fn all_that_is_said_to_be_supported_can_be_asked_or_set() {
    for version in [Version::V2, Version::V6_1] {
        let world = World::new().await;
        let mut driver = driver(&world, version).await;
        let (_, list) = driver.query(Oid::GEN_SUPPORTED_LIST, &[]).await;
        let list: Vec<_> = list.as_chunks().0.iter().map(|word| Oid(u32::from_le_bytes(*word))).collect();
        assert_eq!(list.contains(&Oid::GEN_RECEIVE_SCALE_CAPABILITIES), version >= Version::V5);
        for oid in list {
            let asked = driver.query(oid, &[]).await.0;
            assert!(
                asked == Status::SUCCESS || driver.set(oid, &[0; 4]).await != Status::INVALID_OID,
                "{oid}"
            );
        }
    }
}

#[tokio::test]
async fn offloads_are_told_in_the_form_that_the_guest_knows() {
    let world = World::new().await;
    let mut driver = driver(&world, Version::V6_1).await;
    for (revision, size) in [(1_u8, 112_u16), (2, 144), (3, 156), (9, 156)] {
        let mut header = vec![0xa7, revision];
        header.extend_from_slice(&size.to_le_bytes());
        header.resize(size.into(), 0);
        let (status, value) = driver.query(Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES, &header).await;
        assert_eq!(
            (status, value.len()),
            (Status::SUCCESS, size.into()),
            "Linux takes no more than it asked for"
        );
        let offload = Offload::read(&value).unwrap();
        assert_eq!((offload.header.revision, offload.header.size.get()), (revision.min(3), size));
        // What Linux looks for before it uses an offload.
        assert_eq!(offload.v4_transmit.get() & 0x14, 0x14);
        assert_eq!(offload.v6_transmit.get() & 0x15, 0x15);
        assert_eq!(offload.lso_v6_options.get() & 0x5, 0x5);
        assert_eq!((offload.lso_v4_encapsulation.get(), offload.lso_v4_max_size.get()), (2, 62_780));
        assert_eq!(offload.rsc_v4 == 1, size == 156);
    }
    let (status, _) = driver.query(Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES, &[0x80, 1, 4, 0]).await;
    assert_eq!(status, Status::INVALID_DATA);
    let parameters =
        OffloadParameters { header: header_of::<OffloadParameters>(), ..OffloadParameters::default() };
    for size in [20, 22, 28] {
        let mut bytes = parameters.as_bytes()[..size].to_vec();
        bytes[2..4].copy_from_slice(&u16::try_from(size).unwrap().to_le_bytes());
        assert_eq!(driver.set(Oid::TCP_OFFLOAD_PARAMETERS, &bytes).await, Status::SUCCESS, "{size}");
        let _told_which_are_on = driver.hear().await;
    }
    assert_eq!(driver.set(Oid::TCP_OFFLOAD_PARAMETERS, &[1, 2, 3]).await, Status::INVALID_DATA);
}

#[tokio::test]
async fn scaling_is_told_and_set_in_the_sizes_of_linux() {
    let limits = Limits { max_queues: 4, ..Limits::default() };
    let world = World::with(move |adapter| adapter.limits(limits)).await;
    let mut driver = driver(&world, Version::V6_1).await;
    let (status, value) = driver.query(Oid::GEN_RECEIVE_SCALE_CAPABILITIES, &[0x88, 2, 18, 0]).await;
    assert_eq!((status, value.len()), (Status::SUCCESS, 18), "Linux takes no more");
    let capabilities = RssCapabilities::read(&value).unwrap();
    assert_eq!((capabilities.queues.get(), capabilities.table_entries.get()), (4, 128));

    let set = |flags: RssFlags, queue: u32, entries: u16, key: u16| {
        let parameters = RssParameters {
            header: header_of::<RssParameters>(),
            flags: flags.bits().into(),
            hash_info: (RssHashInfo::TOEPLITZ | RssHashInfo::TCP_V4).bits().into(),
            table_size: (4 * entries).into(),
            table_offset: 40.into(),
            key_size: key.into(),
            key_offset: (40 + 4 * u32::from(entries)).into(),
            ..RssParameters::default()
        };
        let mut bytes = parameters.as_bytes().to_vec();
        (0..entries).for_each(|_| bytes.extend_from_slice(&queue.to_le_bytes()));
        bytes.resize(bytes.len() + usize::from(key), 0x5a);
        bytes
    };
    let none = RssFlags::empty();
    let cases = [
        (set(none, 3, 128, 40), Status::SUCCESS),
        (set(RssFlags::DISABLE, 0, 128, 40), Status::SUCCESS),
        (set(none, 4, 128, 40), Status::INVALID_DATA),
        (set(none, u32::MAX, 128, 40), Status::INVALID_DATA),
        (set(none, 0, 100, 40), Status::INVALID_DATA),
        (set(none, 0, 256, 40), Status::INVALID_DATA),
        (set(none, 0, 128, 39), Status::INVALID_DATA),
        (set(RssFlags::TABLE_UNCHANGED, 0, 0, 40), Status::INVALID_DATA),
        (set(none, 1, 64, 40), Status::SUCCESS),
        (set(RssFlags::TABLE_UNCHANGED | RssFlags::KEY_UNCHANGED, 0, 0, 0), Status::SUCCESS),
        (set(none, 1, 128, 40)[..100].to_vec(), Status::INVALID_DATA),
    ];
    for (index, (bytes, status)) in cases.into_iter().enumerate() {
        assert_eq!(driver.set(Oid::GEN_RECEIVE_SCALE_PARAMETERS, &bytes).await, status, "case {index}");
    }
}

#[tokio::test]
async fn a_guest_may_take_another_address() {
    let setting = |name: &str, value: &str| {
        let [name, value] =
            [name, value].map(|text| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>());
        let value_offset = 20 + name.len();
        let words = [20, name.len(), 2, value_offset, value.len()];
        let head = words.map(|word| u32::try_from(word).unwrap().to_le_bytes()).concat();
        [head, name, value].concat()
    };
    let world = World::new().await;
    let mut driver = driver(&world, Version::V6_1).await;
    let oid = Oid::GEN_RNDIS_CONFIG_PARAMETER;
    assert_eq!(driver.set(oid, &setting("NetworkAddress", "0200000000aB")).await, Status::SUCCESS);
    assert_eq!(driver.query(Oid::ETHERNET_CURRENT_ADDRESS, &[]).await.1, [2, 0, 0, 0, 0, 0xab]);
    assert_eq!(driver.query(Oid::ETHERNET_PERMANENT_ADDRESS, &[]).await.1, NIC.0);
    assert_eq!(driver.set(oid, &setting("Something", "else")).await, Status::SUCCESS);
    for wrong in ["0200000000a", "02000000000g", "010000000000", "000000000000", ""] {
        let status = driver.set(oid, &setting("NetworkAddress", wrong)).await;
        if wrong.starts_with("01") || wrong.starts_with("0000") {
            assert_eq!(status, Status::SUCCESS, "nobody's address changes nothing");
        } else {
            assert_eq!(status, Status::INVALID_DATA, "{wrong}");
        }
        assert_eq!(driver.query(Oid::ETHERNET_CURRENT_ADDRESS, &[]).await.1, [2, 0, 0, 0, 0, 0xab]);
    }
}

#[tokio::test]
async fn values_that_make_no_sense_are_refused_and_change_nothing() {
    let world = World::new().await;
    let mut driver = driver(&world, Version::V6_1).await;
    let cases = [
        (Oid::GEN_CURRENT_PACKET_FILTER, vec![1, 2, 3], Status::INVALID_LENGTH),
        (Oid::GEN_CURRENT_PACKET_FILTER, vec![], Status::INVALID_LENGTH),
        (Oid::ETHERNET_MULTICAST_LIST, vec![1; 7], Status::INVALID_LENGTH),
        (Oid::ETHERNET_MULTICAST_LIST, vec![1; 6 * 65], Status::RESOURCES),
        (Oid::GEN_RNDIS_CONFIG_PARAMETER, vec![0xff; 20], Status::INVALID_DATA),
        (Oid::GEN_RECEIVE_SCALE_PARAMETERS, vec![0x89], Status::INVALID_DATA),
    ];
    for (oid, value, status) in cases {
        assert_eq!(driver.set(oid, &value).await, status, "{oid}");
    }
    assert_eq!(driver.query(Oid::GEN_CURRENT_PACKET_FILTER, &[]).await.1, word(0xd));
    assert!(driver.query(Oid::ETHERNET_MULTICAST_LIST, &[]).await.1.is_empty());
}

#[tokio::test]
async fn coalescing_is_on_when_it_was_switched_on_and_until_a_reset() {
    let world = World::new().await;
    let mut driver = world.running().await;
    let current = Oid::TCP_OFFLOAD_CURRENT_CONFIG;
    let is_on = |value: &[u8]| Offload::read(value).unwrap().rsc_v4 == 1;
    assert!(!is_on(&driver.query(current, &[]).await.1), "nobody has switched it on");
    let parameters = OffloadParameters {
        header: header_of::<OffloadParameters>(),
        rsc_v4: 2,
        ..OffloadParameters::default()
    };
    assert_eq!(driver.set(Oid::TCP_OFFLOAD_PARAMETERS, parameters.as_bytes()).await, Status::SUCCESS);
    let _told_which_are_on = driver.hear().await;
    assert!(is_on(&driver.query(current, &[]).await.1));
    driver.control(vmbus_core::network::rndis::Message::Reset).await;
    assert!(!is_on(&driver.query(current, &[]).await.1));
}
