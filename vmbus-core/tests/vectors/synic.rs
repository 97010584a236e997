//! Message slots and hypercall inputs.

use vmbus_core::message::{Direction, InitiateContact, Message, Payload, VersionResponse};
use vmbus_core::synic::{MessageSlot, MessageType, PostMessage, ReferenceTsc, SignalEvent, TimerExpired};
use vmbus_core::{FeatureFlags, Version};
use zerocopy::{FromBytes, IntoBytes};

use crate::Check;

pub(crate) const CHECKS: &[Check] = &[
    ("HV-1", |bytes| {
        let post = PostMessage::parse(bytes.try_into().unwrap()).unwrap();
        assert_eq!((post.connection_id, post.message_type), (4, MessageType::CHANNEL));
        let contact = InitiateContact {
            version: Version::Win10Rs5.word().into(),
            interrupt_page_or_target: InitiateContact::target(2, 0, FeatureFlags::empty()),
            parent_to_child_monitor: 0x1000_0000.into(),
            child_to_parent_monitor: 0x1000_1000.into(),
            ..InitiateContact::default()
        };
        assert_eq!(Message::parse(&post.payload, Direction::ToHost, None), Ok(contact.into()));
        assert_eq!(post.to_bytes(), bytes);
    }),
    ("HV-2", |bytes| signal(bytes, 0x2005, 0, 0x2005)),
    ("HV-3", |bytes| signal(bytes, 0x01_0007, 3, 0x0000_0003_0001_0007)),
    ("HV-4", |bytes| {
        let slot = MessageSlot::parse(bytes.try_into().unwrap()).unwrap();
        assert_eq!(slot.message_type, MessageType::CHANNEL);
        assert_eq!((slot.flags, slot.sender), (MessageSlot::PENDING, 0));
        let response = VersionResponse {
            supported: 1,
            version_or_connection_id: 4.into(),
            ..VersionResponse::default()
        };
        assert_eq!(Message::parse(&slot.payload, Direction::ToGuest, None), Ok(response.into()));
        assert_eq!(slot.to_bytes(), bytes);
    }),
    ("HV-5", |bytes| {
        let slot = MessageSlot::parse(bytes.try_into().unwrap()).unwrap();
        let timer =
            TimerExpired { expiration: 10_000_000.into(), delivery: 10_000_123.into(), ..Default::default() };
        assert_eq!(slot.message_type, MessageType::TIMER_EXPIRED);
        assert_eq!(TimerExpired::read_from_bytes(&slot.payload), Ok(timer));
        let payload = Payload::new(timer.as_bytes()).unwrap();
        let written = MessageSlot { message_type: MessageType::TIMER_EXPIRED, flags: 0, sender: 0, payload };
        assert_eq!(written.to_bytes(), bytes);
    }),
    ("HV-7", |bytes| {
        let page = ReferenceTsc {
            sequence: 1.into(),
            reserved: 0.into(),
            scale: 0x0106_24dd_2f1a_9fbe.into(),
            offset: (-5_000_000).into(),
        };
        assert_eq!(ReferenceTsc::read_from_bytes(bytes), Ok(page));
        assert_eq!(page.as_bytes(), bytes);
        assert_eq!(page.time(25_000_000_000), Some(94_999_999));
        assert_eq!(ReferenceTsc { sequence: 0.into(), ..page }.time(1), None);
    }),
];

fn signal(bytes: &[u8], connection_id: u32, flag: u16, register: u64) {
    let signal = SignalEvent { connection_id: connection_id.into(), flag: flag.into(), reserved: 0.into() };
    assert_eq!(SignalEvent::read_from_bytes(bytes), Ok(signal));
    assert_eq!(signal.as_bytes(), bytes);
    assert_eq!(SignalEvent::from_register(register), signal);
    assert_eq!(signal.to_register(), register);
}
