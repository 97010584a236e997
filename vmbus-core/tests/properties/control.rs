//! Control messages and their envelope.

use proptest::prelude::*;
use vmbus_core::message::{Direction, MAX_PAYLOAD, MESSAGES, Message, Payload};
use vmbus_core::synic::{MessageSlot, MessageType, PostMessage, SignalEvent};
use vmbus_core::{FeatureFlags, Guid, Status, Version};

use crate::bytes;

fn version() -> impl Strategy<Value = Version> {
    proptest::sample::select(&Version::ALL[..])
}

fn features() -> impl Strategy<Value = FeatureFlags> {
    any::<u32>().prop_map(FeatureFlags::from_bits_retain)
}

/// A payload with a number that exists, so that more than the first check is reached.
fn likely_message() -> impl Strategy<Value = Vec<u8>> {
    (1..=29_u32, proptest::collection::vec(any::<u8>(), 0..MAX_PAYLOAD - 7))
        .prop_map(|(number, body)| [number.to_le_bytes().as_slice(), &[0; 4], &body].concat())
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in bytes(), version in version(), features in features()) {
        for direction in [Direction::ToHost, Direction::ToGuest] {
            let _ = Message::parse(&bytes, direction, None);
            let _ = Message::parse(&bytes, direction, Some((version, features)));
        }
    }

    #[test]
    fn a_message_survives_the_journey_in_its_longest_form(payload in likely_message()) {
        let direction = MESSAGES[payload[0] as usize - 1].direction;
        let Ok(message) = Message::parse(&payload, direction, None) else { return Ok(()) };
        if matches!(message, Message::VersionResponse(response) if response.supported == 0) {
            // A refusal is always sent short.
            return Ok(());
        }
        let sent = message.encode(Version::Copper, FeatureFlags::all());
        prop_assert_eq!(sent.len() >= message.info().minimum_size, true);
        let received = Message::parse(&sent, direction, None).unwrap();
        // A short contact without client id comes out without the bytes beyond it.
        if let Message::InitiateContact(contact) = message && !contact.has_client_id() {
            let plain = Message::InitiateContact(vmbus_core::message::InitiateContact { client_id: Guid::ZERO, ..contact });
            prop_assert_eq!(received, plain);
        } else {
            prop_assert_eq!(received, message);
        }
    }

    #[test]
    fn every_version_can_read_what_it_writes(
        payload in likely_message(),
        version in version(),
        features in features(),
    ) {
        let direction = MESSAGES[payload[0] as usize - 1].direction;
        let features = if version == Version::Copper { features } else { FeatureFlags::empty() };
        let negotiated = Some((version, features));
        let Ok(message) = Message::parse(&payload, direction, negotiated) else { return Ok(()) };
        let sent = message.encode(version, features);
        let received = Message::parse(&sent, direction, negotiated).unwrap();
        prop_assert_eq!(&*received.encode(version, features), &*sent);
    }

    #[test]
    fn any_bytes_are_a_slot_or_an_error(bytes in any::<[u8; 256]>()) {
        let Ok(slot) = MessageSlot::parse(&bytes) else {
            prop_assert!(bytes[4] > 240);
            return Ok(());
        };
        prop_assert_eq!(MessageSlot::parse(&slot.to_bytes()), Ok(slot));
    }

    #[test]
    fn a_posted_message_survives_the_journey(
        connection_id: u32,
        message_type in 1..0x8000_0000_u32,
        payload in proptest::collection::vec(any::<u8>(), 0..=240),
    ) {
        let message_type = MessageType(message_type);
        let post = PostMessage { connection_id, message_type, payload: Payload::new(&payload).unwrap() };
        prop_assert_eq!(PostMessage::parse(&post.to_bytes()), Ok(post));
    }

    #[test]
    fn any_bytes_are_an_input_of_post_message_or_an_error(mut bytes in any::<[u8; 256]>(), size in 0..300_u32) {
        let _ = PostMessage::parse(&bytes);
        bytes[8..16].copy_from_slice(&[1_u32.to_le_bytes(), size.to_le_bytes()].concat());
        prop_assert_eq!(PostMessage::parse(&bytes).is_ok(), size <= 240);
    }

    #[test]
    fn a_signal_is_the_same_in_memory_and_in_a_register(register: u64) {
        prop_assert_eq!(SignalEvent::from_register(register).to_register(), register);
    }

    #[test]
    fn a_guid_is_read_as_it_is_written(wire: [u8; 16]) {
        let guid = Guid::from_wire(wire);
        prop_assert_eq!(guid.to_string().parse(), Ok(guid));
    }

    #[test]
    fn any_text_is_a_guid_and_a_version_or_an_error(text in ".{0,40}") {
        let _ = text.parse::<Guid>();
        let _ = text.parse::<Version>();
    }

    #[test]
    fn only_zero_is_success(status: u32) {
        prop_assert_eq!(Status(status).is_success(), status == 0);
    }
}
