//! Network messages from any bytes, and from any values.

use proptest::collection::vec;
use proptest::prelude::*;
use vmbus_core::network::ndis::{
    ConfigParameter, LinkState, Object, Offload, OffloadParameters, Rss, RssCapabilities,
};
use vmbus_core::network::nvsp::{self, Sender};
use vmbus_core::network::rndis::{self, PACKET_HEADER_SIZE, PacketHeader};
use vmbus_core::network::{PacketInfo, PacketInfoList, PacketInfoWriter, Version, Way};

fn version() -> impl Strategy<Value = Option<Version>> {
    prop::option::of(prop::sample::select(&Version::ALL[..]))
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in vec(any::<u8>(), 0..120), version in version(), kind in 0_u32..140) {
        for sender in [Sender::Guest, Sender::Host] {
            let _ = nvsp::Message::parse(&bytes, sender, version);
            // Most random numbers are no message.
            let mut likely = bytes.clone();
            if let Some(place) = likely.first_chunk_mut() {
                *place = kind.to_le_bytes();
            }
            if let Ok(message) = nvsp::Message::parse(&likely, sender, version) {
                let newest = Version::V6_1;
                let written = message.encode(newest);
                prop_assert_eq!(nvsp::Message::parse(&written, sender, Some(newest)), Ok(message));
            }
        }
    }

    #[test]
    fn any_bytes_are_about_the_device_or_an_error(mut bytes in vec(any::<u8>(), 8..200), kind in 0_u32..12, answer: bool, small in any::<[u8; 4]>()) {
        let _ = rndis::Message::parse(&bytes);
        let kind = kind | u32::from(answer) << 31;
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        let len = u32::try_from(bytes.len()).unwrap();
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        // Offsets and lengths that have a chance.
        for (at, value) in [(16, small[0]), (20, small[1]), (12, small[2]), (24, small[3])] {
            if let Some(place) = bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&u32::from(value).to_le_bytes());
            }
        }
        if let Ok(message) = rndis::Message::parse(&bytes) {
            let mut written = Vec::new();
            message.encode(&mut written);
            prop_assert_eq!(rndis::Message::parse(&written), Ok(message));
        }
    }

    #[test]
    fn a_frame_is_inside_its_message(bytes in any::<[u8; PACKET_HEADER_SIZE]>(), words in any::<[u16; 5]>(), available in 0_usize..70_000) {
        let mut header = bytes;
        header[..4].copy_from_slice(&1_u32.to_le_bytes());
        for (at, word) in [4, 8, 12, 28, 32].into_iter().zip(words) {
            header[at..at + 4].copy_from_slice(&u32::from(word).to_le_bytes());
        }
        for header in [bytes, header] {
            if let Ok(Some(read)) = PacketHeader::parse(&header, available) {
                prop_assert!(read.message_len <= available);
                prop_assert!(read.frame.start >= PACKET_HEADER_SIZE && read.frame.end <= read.message_len);
                prop_assert!(read.info.end <= read.message_len);
            }
        }
    }

    #[test]
    fn information_ends_and_is_written_as_it_was_read(bytes in vec(any::<u8>(), 0..100), receive: bool) {
        let way = if receive { Way::Receive } else { Way::Transmit };
        let list = PacketInfoList::new(&bytes, way);
        prop_assert!(list.clone().count() <= bytes.len() / 12 + 1);
        let read: Vec<PacketInfo<'_>> = list.filter_map(Result::ok).collect();
        let mut writer = PacketInfoWriter::default();
        read.iter().for_each(|piece| writer.push(*piece));
        let again: Result<Vec<_>, _> = PacketInfoList::new(writer.bytes(), way).collect();
        for (before, after) in read.iter().zip(again.unwrap()) {
            match (before, after) {
                // Padded to whole words.
                (PacketInfo::Other(kind, data), PacketInfo::Other(after_kind, after)) => {
                    prop_assert_eq!(kind, &after_kind);
                    prop_assert!(after.starts_with(data));
                }
                // What has no name in a word is left out.
                (PacketInfo::TransmitChecksum(_) | PacketInfo::Rsc(_) | PacketInfo::Vlan(_), after) => {
                    prop_assert_eq!(before, &after);
                }
                (before, after) => prop_assert_eq!(before, &after),
            }
        }
    }

    #[test]
    fn objects_are_read_from_any_bytes(mut bytes in vec(any::<u8>(), 0..200), kind in prop::sample::select(&[0xa7_u8, 0x80, 0x88, 0x89][..])) {
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        let _ = (Offload::read(&bytes), OffloadParameters::read(&bytes), RssCapabilities::read(&bytes));
        let _ = (LinkState::read(&bytes), ConfigParameter::read(&bytes));
        if let Ok(rss) = Rss::read(&bytes) {
            prop_assert_eq!(rss.table.len() * 4, usize::from(rss.parameters.table_size.get()));
            prop_assert_eq!(rss.key.len(), usize::from(rss.parameters.key_size.get()));
        }
    }
}

#[test]
fn a_message_of_a_later_version_is_out_of_place() {
    let subchannels = nvsp::Message::SubchannelRequest { operation: 1, count: 3 };
    let bytes = subchannels.encode(Version::V6_1);
    for version in Version::ALL {
        let read = nvsp::Message::parse(&bytes, Sender::Guest, Some(version));
        assert_eq!(read.is_ok(), version >= Version::V5, "{version}: {read:?}");
    }
}

#[test]
fn an_indirection_table_of_another_size_is_refused() {
    let table = nvsp::Message::IndirectionTable { table: [1; 16] };
    let mut bytes = table.encode(Version::V6_1).to_vec();
    for count in [0, 15, 17, u8::MAX] {
        bytes[4] = count;
        assert!(nvsp::Message::parse(&bytes, Sender::Host, Some(Version::V6_1)).is_err());
    }
    bytes[4] = 16;
    assert!(nvsp::Message::parse(&bytes[..bytes.len() - 1], Sender::Host, Some(Version::V6_1)).is_err());
}
