//! Any bytes as network messages, frame headers, packet information and objects.

use vmbus_core::network::ndis::{
    ConfigParameter, LinkState, Object, Offload, OffloadParameters, Rss, RssCapabilities,
};
use vmbus_core::network::nvsp::{self, Sender};
use vmbus_core::network::rndis::{self, PACKET_HEADER_SIZE, PacketHeader};
use vmbus_core::network::{PacketInfoList, PacketInfoWriter, Version, Way};

/// Reads the bytes as each structure. What is read is sent and read the same again.
pub fn run(bytes: &[u8]) {
    for sender in [Sender::Guest, Sender::Host] {
        for version in Version::ALL.map(Some).into_iter().chain([None]) {
            if let Ok(message) = nvsp::Message::parse(bytes, sender, version) {
                let sent = message.encode(Version::V6_1);
                assert_eq!(nvsp::Message::parse(&sent, sender, Some(Version::V6_1)), Ok(message));
            }
        }
    }
    if let Ok(message) = rndis::Message::parse(bytes) {
        let mut sent = Vec::new();
        message.encode(&mut sent);
        assert_eq!(rndis::Message::parse(&sent), Ok(message));
        match message {
            rndis::Message::Set { data, .. } | rndis::Message::QueryComplete { data, .. } => objects(data),
            _ => {}
        }
    }
    if let Some(head) = bytes.first_chunk::<PACKET_HEADER_SIZE>()
        && let Ok(Some(header)) = PacketHeader::parse(head, bytes.len())
    {
        let frame = &bytes[header.frame];
        assert!(frame.len() <= header.message_len);
        information(&bytes[header.info]);
    }
    information(bytes);
    objects(bytes);
}

fn information(bytes: &[u8]) {
    for way in [Way::Transmit, Way::Receive] {
        let mut writer = PacketInfoWriter::default();
        let read = PacketInfoList::new(bytes, way)
            .map_while(Result::ok)
            .inspect(|piece| writer.push(*piece))
            .count();
        assert_eq!(PacketInfoList::new(writer.bytes(), way).filter(Result::is_ok).count(), read);
    }
}

fn objects(bytes: &[u8]) {
    let _ = (Offload::read(bytes), OffloadParameters::read(bytes), RssCapabilities::read(bytes));
    let _ = (LinkState::read(bytes), ConfigParameter::read(bytes));
    if let Ok(rss) = Rss::read(bytes) {
        assert!(4 * rss.table.len() <= bytes.len() && rss.key.len() <= bytes.len());
    }
}
