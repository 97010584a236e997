//! Control messages.

use vmbus_core::message::*;
use vmbus_core::pages::{GpadlBuilder, PageRanges};
use vmbus_core::{FeatureFlags, Guid, Status, Version, guid};

use crate::{Check, vectors};

const SCSI: Guid = guid!("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
const NETWORK: Guid = guid!("f8615163-df3e-46c5-913f-f2d2f965ed0e");
const SHUTDOWN: Guid = guid!("0e0b6031-5213-4934-818b-38d90ced39db");
const SHUTDOWN_INSTANCE: Guid = guid!("b6650ff7-33bc-4840-8048-e0676786f393");
const INSTANCE_A: Guid = guid!("11223344-5566-7788-99aa-bbccddeeff00");
const INSTANCE_B: Guid = guid!("a0b1c2d3-e4f5-0617-2839-4a5b6c7d8e9f");
const ENDPOINT: Guid = guid!("80000001-facb-11e6-bd58-64006a7986d3");
const SERVICE: Guid = guid!("00000400-facb-11e6-bd58-64006a7986d3");

const NONE: FeatureFlags = FeatureFlags::empty();

pub(crate) const CHECKS: &[Check] = &[
    ("CM-1", |bytes| {
        let contact = old_contact(Version::Win8, 0);
        to_host(bytes, Version::Win8, NONE, contact);
    }),
    ("CM-2", |bytes| {
        let contact = old_contact(Version::Win10Rs3, 3);
        to_host(bytes, Version::Win10Rs3, NONE, contact);
    }),
    ("CM-3", |bytes| {
        let contact = InitiateContact {
            parent_to_child_monitor: 0x1000_0000.into(),
            child_to_parent_monitor: 0x1000_1000.into(),
            ..contact(Version::Win10Rs5, NONE)
        };
        assert_eq!((contact.target_sint(), contact.target_vtl()), (2, 0));
        to_host(bytes, Version::Win10Rs5, NONE, contact);
    }),
    ("CM-4", |bytes| to_host(bytes, Version::Iron, NONE, contact(Version::Iron, NONE))),
    ("CM-5", |bytes| {
        let features = FeatureFlags::from_bits_retain(0x27);
        let contact = contact(Version::Copper, features);
        assert_eq!(contact.features(), features);
        to_host(bytes, Version::Copper, features, contact);
    }),
    ("CM-6", |bytes| {
        let features = FeatureFlags::from_bits_retain(0x2f);
        let contact = InitiateContact { client_id: INSTANCE_A, ..contact(Version::Copper, features) };
        to_host(bytes, Version::Copper, features, contact);
        let cut = Message::parse(&bytes[..55], Direction::ToHost, None);
        assert_eq!(
            cut,
            Err(MessageError::TooShort { number: 14, len: 55, minimum: 56 }),
            "client id missing"
        );
    }),
    ("CM-7", |bytes| to_guest(bytes, Version::Iron, NONE, VersionResponse::default())),
    ("CM-8", |bytes| {
        let response = accepted(Version::Win10Rs3.word());
        to_guest(bytes, Version::Win10Rs3, NONE, response);
    }),
    ("CM-9", |bytes| to_guest(bytes, Version::Win10Rs5, NONE, accepted(4))),
    ("CM-10", |bytes| {
        let response = VersionResponse { supported: 1, connection_state: 1, ..VersionResponse::default() };
        to_guest(bytes, Version::Iron, NONE, response);
    }),
    ("CM-11", |bytes| {
        let features = FeatureFlags::from_bits_retain(0x07);
        let response = VersionResponse { features: features.bits().into(), ..accepted(4) };
        to_guest(bytes, Version::Copper, features, response);
    }),
    ("CM-12", |bytes| {
        let features = FeatureFlags::from_bits_retain(0x47);
        let response = VersionResponse {
            features: features.bits().into(),
            child_to_parent_monitor: 0x2000_1000.into(),
            ..accepted(4)
        };
        to_guest(bytes, Version::Copper, features, response);
    }),
    ("CM-13", |bytes| to_host(bytes, Version::Iron, NONE, RequestOffers {})),
    ("CM-14", |bytes| to_guest(bytes, Version::Iron, NONE, AllOffersDelivered {})),
    ("CM-15", |bytes| to_guest(bytes, Version::Iron, NONE, offer(SCSI, INSTANCE_A, 1, 0x2001))),
    ("CM-16", |bytes| {
        let offer = OfferChannel {
            subchannel_index: 2.into(),
            monitor_id: 3,
            monitor_allocated: 1,
            ..offer(NETWORK, INSTANCE_B, 7, 0x2007)
        };
        to_guest(bytes, Version::Iron, NONE, offer);
    }),
    ("CM-17", |bytes| {
        let flags = OfferFlags::ENUMERATE_DEVICE_INTERFACE | OfferFlags::NAMED_PIPE_MODE;
        let offer = OfferChannel {
            flags: flags.bits().into(),
            user_defined: UserDefined::pipe(PipeMode::MESSAGE),
            ..offer(SHUTDOWN, SHUTDOWN_INSTANCE, 2, 0x2002)
        };
        to_guest(bytes, Version::Iron, NONE, offer);
    }),
    ("CM-18", |bytes| {
        let flags =
            OfferFlags::ENUMERATE_DEVICE_INTERFACE | OfferFlags::NAMED_PIPE_MODE | OfferFlags::TLNPI_PROVIDER;
        let hvsock = HvsockOffer { guest_accepts: 1, version: 1.into(), ..HvsockOffer::default() };
        let offer = OfferChannel {
            flags: flags.bits().into(),
            user_defined: UserDefined::new(&hvsock),
            ..offer(SERVICE, ENDPOINT, 9, 0x2009)
        };
        assert_eq!(offer.user_defined.start::<HvsockOffer>(), hvsock);
        assert_eq!(offer.user_defined.pipe_mode(), PipeMode::BYTE_STREAM);
        to_guest(bytes, Version::Iron, NONE, offer);
    }),
    ("CM-19", |bytes| {
        let offer = OfferChannel {
            monitor_id: 5,
            monitor_allocated: 1,
            is_dedicated: 0.into(),
            connection_id: 0.into(),
            ..offer(SCSI, INSTANCE_A, 1, 0)
        };
        to_guest(bytes, Version::V1, NONE, offer);
        let newer = Message::parse(bytes, Direction::ToGuest, Some((Version::Win7, NONE)));
        assert_eq!(newer, Err(MessageError::TooShort { number: 1, len: 190, minimum: 196 }));
    }),
    ("CM-20", |bytes| to_guest(bytes, Version::V1, NONE, RescindChannelOffer { relid: 7.into() })),
    ("CM-21", |bytes| to_host(bytes, Version::V1, NONE, RelidReleased { relid: 7.into() })),
    ("CM-22", |bytes| {
        let list = PageRanges::single(0, 3 * 4096, [0x1000, 0x1001, 0x2345]).unwrap();
        page_list(&list, 1, 0xe1e10, &[bytes]);
    }),
    ("CM-23", |bytes| {
        let list = PageRanges::single(0x200, 0x2000, [0x10, 0x11, 0x12]).unwrap();
        page_list(&list, 1, 0xe1e11, &[bytes]);
    }),
    ("CM-24", |header| {
        let list = PageRanges::single(0, 30 * 4096, 0x4000..0x401e).unwrap();
        page_list(&list, 2, 0xe1e12, &[header, &vectors()["CM-25"]]);
    }),
    ("CM-25", |bytes| body(bytes, 0xe1e12, 0x401a..0x401e)),
    ("CM-26", |bytes| {
        body(bytes, 0xe1e13, 0x801a..0x8036);
        // The first message of this list is not among the vectors: take ours.
        let list = PageRanges::single(0, 66 * 4096, 0x8000..0x8042).unwrap();
        let first = list.messages(2, 0xe1e13).next().unwrap().encode(Version::Iron, NONE);
        page_list(&list, 2, 0xe1e13, &[&first, bytes, &vectors()["CM-27"]]);
    }),
    ("CM-27", |bytes| body(bytes, 0xe1e13, 0x8036..0x8042)),
    ("CM-28", |bytes| {
        let list =
            PageRanges::builder().range(0, 4096, [0xaa]).and_then(|list| list.range(4090, 100, [0xbb, 0xbc]));
        page_list(&list.unwrap().build().unwrap(), 3, 0x77, &[bytes]);
    }),
    ("CM-29", |bytes| to_guest(bytes, Version::V1, NONE, created(Status::SUCCESS))),
    ("CM-30", |bytes| to_guest(bytes, Version::V1, NONE, created(Status::FAILURE))),
    ("CM-31", |bytes| {
        to_host(bytes, Version::V1, NONE, GpadlTeardown { relid: 1.into(), gpadl: 0xe1e10.into() });
    }),
    ("CM-32", |bytes| to_guest(bytes, Version::V1, NONE, GpadlTorndown { gpadl: 0xe1e10.into() })),
    ("CM-33", |bytes| to_host(bytes, Version::Iron, NONE, open())),
    ("CM-34", |bytes| {
        let open = OpenChannel { connection_id: 0x1234.into(), event_flag: 77.into(), ..open() };
        to_host(bytes, Version::Copper, FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS, open);
    }),
    ("CM-35", |bytes| to_guest(bytes, Version::V1, NONE, opened(Status::SUCCESS))),
    ("CM-36", |bytes| to_guest(bytes, Version::V1, NONE, opened(Status::FAILURE))),
    ("CM-37", |bytes| to_host(bytes, Version::V1, NONE, CloseChannel { relid: 5.into() })),
    ("CM-38", |bytes| {
        to_host(bytes, Version::Win10Rs3, NONE, ModifyChannel { relid: 5.into(), target_vp: 1.into() });
    }),
    ("CM-39", |bytes| {
        to_guest(bytes, Version::Iron, NONE, ModifyChannelResponse { relid: 5.into(), status: 0.into() });
    }),
    ("CM-40", |bytes| to_host(bytes, Version::V1, NONE, Unload {})),
    ("CM-41", |bytes| to_guest(bytes, Version::Win7, NONE, UnloadResponse {})),
    ("CM-42", |bytes| to_host(bytes, Version::Win10, NONE, connect())),
    ("CM-43", |bytes| to_host(bytes, Version::Win10Rs5, NONE, connect())),
    ("CM-44", |bytes| {
        let status = i32::from_le_bytes(Status::CONNECTION_REFUSED.0.to_le_bytes());
        let result = TlConnectResult { endpoint_id: ENDPOINT, service_id: SERVICE, status: status.into() };
        to_guest(bytes, Version::Win10Rs3, NONE, result);
    }),
    ("CM-45", |bytes| {
        let open = OpenReservedChannel {
            relid: 1.into(),
            target_vp: 0.into(),
            target_sint: 2.into(),
            ring_gpadl: 0x99.into(),
            downstream_page_offset: 3.into(),
        };
        to_host(bytes, Version::Win10, NONE, open);
    }),
    ("CM-46", |bytes| {
        let close = CloseReservedChannel { relid: 1.into(), target_vp: 0.into(), target_sint: 2.into() };
        to_host(bytes, Version::Win10, NONE, close);
    }),
    ("CM-47", |bytes| to_guest(bytes, Version::Win10, NONE, CloseReservedResponse { relid: 1.into() })),
    ("CM-48", |bytes| {
        let modify = ModifyConnection {
            parent_to_child_monitor: 0x3000_0000.into(),
            child_to_parent_monitor: 0x3000_1000.into(),
        };
        to_host(bytes, Version::Copper, FeatureFlags::MODIFY_CONNECTION, modify);
    }),
    ("CM-49", |bytes| {
        let response = ModifyConnectionResponse { connection_state: 0 };
        to_guest(bytes, Version::Copper, FeatureFlags::MODIFY_CONNECTION, response);
    }),
    ("CM-50", |bytes| {
        to_host(&bytes[..8], Version::Copper, FeatureFlags::PAUSE_RESUME, Pause {});
        to_guest(&bytes[8..16], Version::Copper, FeatureFlags::PAUSE_RESUME, PauseResponse {});
        to_host(&bytes[16..], Version::Copper, FeatureFlags::PAUSE_RESUME, Resume {});
    }),
];

fn to_host(bytes: &[u8], version: Version, features: FeatureFlags, message: impl Into<Message<'static>>) {
    both_ways(bytes, Direction::ToHost, version, features, message.into());
}

fn to_guest(bytes: &[u8], version: Version, features: FeatureFlags, message: impl Into<Message<'static>>) {
    both_ways(bytes, Direction::ToGuest, version, features, message.into());
}

/// Read as expected, also with surplus bytes; written as it was; refused when cut below the shortest form.
fn both_ways(
    bytes: &[u8],
    direction: Direction,
    version: Version,
    features: FeatureFlags,
    message: Message<'_>,
) {
    let negotiated = Some((version, features));
    assert_eq!(Message::parse(bytes, direction, negotiated), Ok(message));
    assert_eq!(*message.encode(version, features), *bytes);
    if !message.info().has_pages {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(8), 0);
        assert_eq!(Message::parse(&padded, direction, negotiated), Ok(message), "rounded up to 8");
    }
    let cut = &bytes[..message.info().minimum_size - 1];
    assert!(matches!(Message::parse(cut, direction, negotiated), Err(MessageError::TooShort { .. })));
    let other = if direction == Direction::ToHost { Direction::ToGuest } else { Direction::ToHost };
    assert_eq!(
        Message::parse(bytes, other, negotiated),
        Err(MessageError::WrongDirection(message.info().number))
    );
}

/// The messages of a list are these, and they make up the list.
fn page_list(list: &PageRanges, relid: u32, gpadl: u32, expected: &[&[u8]]) {
    let written: Vec<Payload> =
        list.messages(relid, gpadl).map(|message| message.encode(Version::Iron, NONE)).collect();
    assert_eq!(written.iter().map(|payload| &**payload).collect::<Vec<_>>(), expected);

    let mut builder = None;
    let mut complete = None;
    for bytes in expected {
        assert_eq!(complete, None);
        let message = Message::parse(bytes, Direction::ToHost, None).unwrap();
        complete = match message {
            Message::GpadlHeader(header, words) => {
                assert_eq!((header.relid.get(), header.gpadl.get()), (relid, gpadl));
                builder
                    .insert(
                        GpadlBuilder::new(header.range_buflen.get(), header.range_count.get(), 4096).unwrap(),
                    )
                    .push(words)
            }
            Message::GpadlBody(body, words) => {
                assert_eq!(body.gpadl.get(), gpadl);
                builder.as_mut().unwrap().push(words)
            }
            other => panic!("not part of a page list: {other:?}"),
        }
        .unwrap();
    }
    assert_eq!(complete.as_ref(), Some(list));
}

fn body(bytes: &[u8], gpadl: u32, pfns: std::ops::Range<u64>) {
    let words: Vec<u8> = pfns.flat_map(u64::to_le_bytes).collect();
    let message = Message::GpadlBody(GpadlBody { message_number: 0.into(), gpadl: gpadl.into() }, &words);
    both_ways(bytes, Direction::ToHost, Version::V1, NONE, message);
}

fn old_contact(version: Version, target_vp: u32) -> InitiateContact {
    InitiateContact {
        version: version.word().into(),
        target_vp: target_vp.into(),
        interrupt_page_or_target: 0x0f00_0000.into(),
        parent_to_child_monitor: 0x0f00_1000.into(),
        child_to_parent_monitor: 0x0f00_2000.into(),
        client_id: Guid::ZERO,
    }
}

fn contact(version: Version, features: FeatureFlags) -> InitiateContact {
    InitiateContact {
        version: version.word().into(),
        interrupt_page_or_target: InitiateContact::target(2, 0, features),
        ..InitiateContact::default()
    }
}

fn accepted(version_or_connection_id: u32) -> VersionResponse {
    VersionResponse {
        supported: 1,
        version_or_connection_id: version_or_connection_id.into(),
        ..VersionResponse::default()
    }
}

fn offer(interface_type: Guid, interface_instance: Guid, relid: u32, connection_id: u32) -> OfferChannel {
    OfferChannel {
        interface_type,
        interface_instance,
        flags: OfferFlags::ENUMERATE_DEVICE_INTERFACE.bits().into(),
        relid: relid.into(),
        monitor_id: 0xff,
        is_dedicated: 1.into(),
        connection_id: connection_id.into(),
        ..OfferChannel::default()
    }
}

fn created(status: Status) -> GpadlCreated {
    GpadlCreated { relid: 1.into(), gpadl: 0xe1e10.into(), status: status.0.into() }
}

fn open() -> OpenChannel {
    OpenChannel {
        relid: 1.into(),
        open_id: 1.into(),
        ring_gpadl: 0xe1e10.into(),
        target_vp: 2.into(),
        downstream_page_offset: 4.into(),
        ..OpenChannel::default()
    }
}

fn opened(status: Status) -> OpenChannelResult {
    OpenChannelResult { relid: 1.into(), open_id: 1.into(), status: status.0.into() }
}

fn connect() -> TlConnectRequest {
    TlConnectRequest { endpoint_id: ENDPOINT, service_id: SERVICE, silo_id: Guid::ZERO }
}
