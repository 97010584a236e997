//! Page ranges, page lists and packet headers.

use proptest::prelude::*;
use vmbus_core::FeatureFlags;
use vmbus_core::message::{Direction, Message};
use vmbus_core::pages::{GpaDirect, GpadlBuilder, PageRanges, TransferPages};
use vmbus_core::{PAGE_SIZE, Version};
use zerocopy::IntoBytes;

use crate::bytes;

/// Lists of one to eight ranges at any offset, some of them long enough for several messages.
fn page_list() -> impl Strategy<Value = PageRanges> {
    let range = (0..4096_u32, 1..200_000_u32, any::<u64>());
    proptest::collection::vec(range, 1..8).prop_map(|ranges| {
        let mut builder = PageRanges::builder();
        for (byte_offset, byte_count, first) in ranges {
            let pages = u64::from(byte_offset + byte_count).div_ceil(PAGE_SIZE as u64);
            let pfns = (0..pages).map(|index| first.wrapping_add(index * 7));
            builder = builder.range(byte_offset, byte_count, pfns).unwrap();
        }
        builder.build().unwrap()
    })
}

proptest! {
    #[test]
    fn a_page_list_survives_the_journey(list in page_list(), padding in 0..64_usize) {
        let mut builder = None;
        let mut complete = None;
        for message in list.messages(3, 4) {
            prop_assert!(complete.is_none());
            let mut payload = message.encode(Version::Iron, FeatureFlags::empty()).to_vec();
            payload.resize((payload.len() + padding).min(240), 0xee);
            complete = match Message::parse(&payload, Direction::ToHost, None).unwrap() {
                Message::GpadlHeader(header, words) => builder
                    .insert(GpadlBuilder::new(header.range_buflen.get(), header.range_count.get(), 4096).unwrap())
                    .push(words),
                Message::GpadlBody(_, words) => builder.as_mut().unwrap().push(words),
                other => panic!("not part of a page list: {other:?}"),
            }
            .unwrap();
        }
        prop_assert_eq!(complete, Some(list));
    }

    #[test]
    fn a_hostile_page_list_stays_within_what_was_sent_and_allowed(
        buflen: u16,
        count in 0..6_u16,
        quota in 0..200_usize,
        pieces in proptest::collection::vec(hostile_words(), 1..6),
    ) {
        let Ok(mut builder) = GpadlBuilder::new(buflen, count, quota) else { return Ok(()) };
        let mut sent = 0;
        for piece in pieces {
            sent += piece.len() / 8;
            let Ok(complete) = builder.push(&piece) else { return Ok(()) };
            prop_assert!(builder.received_words() <= sent.min(quota));
            if let Some(list) = complete {
                prop_assert_eq!(list.range_count(), count);
                prop_assert_eq!(list.as_bytes().len() & 0xffff, usize::from(buflen));
                prop_assert!(list.as_bytes().len() <= 8 * sent.min(quota));
                consistent(&list)?;
                return Ok(());
            }
        }
    }

    #[test]
    fn a_page_list_with_damage_is_refused_or_still_a_list(
        list in page_list(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0..8192_u64), 0..3),
        piece in 1..30_usize,
        quota in 0..400_usize,
    ) {
        let mut bytes = list.as_bytes().to_vec();
        for (index, word) in damage {
            let at = 8 * index.index(bytes.len() / 8);
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let buflen = u16::from_le_bytes(list.as_bytes().len().to_le_bytes()[..2].try_into().unwrap());
        let Ok(mut builder) = GpadlBuilder::new(buflen, list.range_count(), quota) else {
            prop_assert!(bytes.len() / 8 > quota);
            return Ok(());
        };
        for piece in bytes.chunks(8 * piece) {
            let Ok(complete) = builder.push(piece) else { return Ok(()) };
            prop_assert!(builder.received_words() <= quota);
            if let Some(read) = complete {
                prop_assert_eq!(read.as_bytes(), bytes.as_slice());
                prop_assert_eq!(read.range_count(), list.range_count());
                consistent(&read)?;
                return Ok(());
            }
        }
    }

    #[test]
    fn a_gpa_direct_header_survives_the_journey(list in page_list()) {
        let header = [&GpaDirect::head(u32::from(list.range_count())), list.as_bytes()].concat();
        let read = GpaDirect::parse(&header).unwrap();
        prop_assert!(read.ranges().eq(list.ranges()));
        prop_assert_eq!(read.byte_count(), list.byte_count());
        prop_assert_eq!(read.single().is_some(), list.range_count() == 1);
        for cut in 0..header.len() {
            prop_assert!(GpaDirect::parse(&header[..cut]).is_err(), "cut to {}", cut);
        }
    }

    #[test]
    fn any_bytes_are_packet_headers_or_an_error(bytes in bytes(), words in hostile_words(), count in 0..6_u32) {
        let likely = [&GpaDirect::head(count), words.as_slice()].concat();
        for header in [bytes, likely] {
            if let Ok(direct) = GpaDirect::parse(&header) {
                let pages: usize = direct.ranges().map(|range| range.page_count()).sum();
                prop_assert!(8 * (1 + direct.ranges().len() + pages) <= header.len());
                prop_assert_eq!(direct.ranges().count(), direct.range_count() as usize);
                let bytes: u64 = direct.ranges().map(|range| u64::from(range.byte_count())).sum();
                prop_assert_eq!(direct.byte_count(), bytes);
            }
            if let Ok(transfer) = TransferPages::parse(&header) {
                prop_assert!(8 * (1 + transfer.ranges().len()) <= header.len());
                let count = u32::try_from(transfer.ranges().len()).unwrap();
                let head = TransferPages::head(transfer.set_id(), transfer.sender_owns_set(), count);
                let written = [&head, transfer.ranges().as_bytes()].concat();
                let again = TransferPages::parse(&written).unwrap();
                prop_assert_eq!(again.ranges(), transfer.ranges());
                prop_assert_eq!(again.set_id(), transfer.set_id());
            }
        }
    }
}

/// Words of which many are small, so that they look like plausible counts and offsets.
fn hostile_words() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        3 => (0..10_000_u64, 0..4100_u64).prop_map(|(count, offset)| offset << 32 | count),
        1 => any::<u64>(),
    ];
    (proptest::collection::vec(word, 0..29), 0..8_usize).prop_map(|(words, surplus)| {
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        bytes.resize(bytes.len() + surplus, 1);
        bytes
    })
}

fn consistent(list: &PageRanges) -> Result<(), TestCaseError> {
    let pages: usize = list.ranges().map(|range| range.pfns().count()).sum();
    prop_assert_eq!(pages, list.page_count());
    for range in list.ranges() {
        prop_assert!(range.byte_count() > 0 && range.byte_offset() < 4096);
        let reach = u64::from(range.byte_offset()) + u64::from(range.byte_count());
        prop_assert_eq!(range.page_count() as u64, reach.div_ceil(4096));
    }
    Ok(())
}
