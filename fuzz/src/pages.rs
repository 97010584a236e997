//! Any bytes as page lists: in control messages, in the headers of packets.

use arbitrary::{Arbitrary, Unstructured};
use vmbus_core::PAGE_SIZE;
use vmbus_core::message::Message;
use vmbus_core::pages::{GpaDirect, GpadlBuilder, PageRange, PageRanges, TransferPages};

/// Words that a list may have here: small, so that the fuzzer reaches the bound.
const QUOTA: usize = 512;

/// Parses the bytes as each kind of page list.
pub fn run(bytes: &[u8]) {
    if let Ok(packet) = GpaDirect::parse(bytes) {
        assert_eq!(packet.ranges().len(), packet.range_count() as usize);
        let mut sum = 0;
        for range in packet.ranges() {
            check(&range);
            sum += u64::from(range.byte_count());
        }
        assert_eq!(sum, packet.byte_count());
        assert_eq!(packet.single().is_some(), packet.range_count() == 1);
    }
    if let Ok(packet) = TransferPages::parse(bytes) {
        assert!(packet.ranges().len() * 8 <= bytes.len());
    }
    let _ = assemble(&mut Unstructured::new(bytes));
}

/// Puts a list together from pieces of any size, as GPADL_HEADER and GPADL_BODY bring them.
fn assemble(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let Ok(mut builder) = GpadlBuilder::new(u16::arbitrary(input)?, u16::arbitrary(input)?, QUOTA) else {
        return Ok(());
    };
    while !input.is_empty() {
        let len = input.int_in_range(0..=28)? * 8;
        let piece = input.bytes(len.min(input.len()))?;
        match builder.push(piece) {
            Ok(None) => assert!(builder.received_words() <= QUOTA),
            Ok(Some(list)) => {
                assert!(list.as_bytes().len() <= 8 * QUOTA);
                assert!(list.ranges().len() == usize::from(list.range_count()));
                list.ranges().for_each(|range| check(&range));
                assert_eq!(reassembled(&list).as_bytes(), list.as_bytes());
                return Ok(());
            }
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

fn check(range: &PageRange<'_>) {
    let end = u64::from(range.byte_offset()) + u64::from(range.byte_count());
    assert!((range.byte_offset() as usize) < PAGE_SIZE);
    assert_eq!(range.page_count() as u64, end.div_ceil(PAGE_SIZE as u64));
    assert_eq!(range.pfns().len(), range.page_count());
    assert_eq!(range.pfn(range.page_count()), None);
    let words = range.pfns().count() + 1;
    assert_eq!(range.encoded_len(), 8 * words);
}

/// The list after a way through the messages that a client would send for it.
fn reassembled(list: &PageRanges) -> PageRanges {
    let mut builder = None;
    for message in list.messages(1, 2) {
        let (builder, words) = match message {
            Message::GpadlHeader(header, words) => {
                let new = GpadlBuilder::new(header.range_buflen.get(), header.range_count.get(), QUOTA);
                (builder.insert(new.expect("a list that was accepted is accepted again")), words)
            }
            Message::GpadlBody(_, words) => (builder.as_mut().expect("the header comes first"), words),
            other => panic!("{other:?} is no part of a page list"),
        };
        if let Some(list) = builder.push(words).expect("a list that was accepted is accepted again") {
            return list;
        }
    }
    panic!("the list's own messages do not complete it");
}
