//! Any bytes as a control message, of any version, in both directions.

use arbitrary::{Arbitrary, Unstructured};
use vmbus_core::message::{Direction, MAX_PAYLOAD, Message};
use vmbus_core::{FeatureFlags, Version};

/// Parses the bytes. What parses can be sent again and is read the same.
pub fn run(bytes: &[u8]) {
    let Ok((version, features, payload)) = split(&mut Unstructured::new(bytes)) else { return };
    for direction in [Direction::ToHost, Direction::ToGuest] {
        for negotiated in [None, Some((version, features))] {
            let Ok(message) = Message::parse(payload, direction, negotiated) else { continue };
            let _ = format!("{message:?}");
            let info = message.info();
            assert!(payload.len() >= info.minimum_size && payload.len() <= MAX_PAYLOAD);
            assert_eq!(info.direction, direction);
            let sent = message.encode(version, features);
            assert!(sent.len() <= MAX_PAYLOAD);
            // The form of this version may lack fields, so what it says is compared after one more round.
            let Ok(read) = Message::parse(&sent, direction, None) else {
                panic!("{message:?} was encoded as {sent:?}, which is no message");
            };
            assert_eq!(read.info().number, info.number);
            assert_eq!(
                read.encode(version, features),
                sent,
                "the same message is not sent the same way twice"
            );
        }
    }
}

fn split<'a>(input: &mut Unstructured<'a>) -> arbitrary::Result<(Version, FeatureFlags, &'a [u8])> {
    let version = *input.choose(&Version::ALL)?;
    let features = FeatureFlags::from_bits_retain(u32::arbitrary(input)?);
    Ok((version, features, input.bytes(input.len())?))
}
