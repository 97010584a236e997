//! The parts of ring packets that are page ranges. Descriptors and trailers are the ring's own affair.

use vmbus_core::pages::{GpaDirect, PageRanges, TransferPages, TransferRange};
use zerocopy::IntoBytes;

use crate::Check;

pub(crate) const CHECKS: &[Check] = &[("RB-6", |bytes| {
    let header = header(bytes);
    let pages = TransferPages::parse(header).unwrap();
    let range = |byte_count: u32, byte_offset: u32| TransferRange {
        byte_count: byte_count.into(),
        byte_offset: byte_offset.into(),
    };
    let ranges = [range(98, 0), range(60, 0x6c0)];
    assert_eq!((pages.set_id(), pages.sender_owns_set(), pages.ranges()), (0xcafe, false, ranges.as_slice()));
    assert_eq!([TransferPages::head(0xcafe, false, 2).as_slice(), ranges.as_bytes()].concat(), header);
})];

/// A GPA-direct packet's header names the ranges of `list`, and is written from them.
pub(crate) fn gpa_direct(packet: &[u8], list: &PageRanges) {
    let header = header(packet);
    let read = GpaDirect::parse(header).unwrap();
    assert!(read.ranges().eq(list.ranges()));
    assert_eq!(read.byte_count(), list.byte_count());
    assert_eq!([&GpaDirect::head(1), list.as_bytes()].concat(), header);
    for range in read.ranges() {
        assert_eq!([&range.head(), range.pfn_bytes()].concat(), header[8..]);
    }
}

/// What stands between a packet's descriptor and its payload.
fn header(packet: &[u8]) -> &[u8] {
    &packet[16..usize::from(packet[2]) * 8]
}

/// What stands between a packet's header and its trailer.
pub(crate) fn payload(packet: &[u8]) -> &[u8] {
    &packet[usize::from(packet[2]) * 8..usize::from(packet[4]) * 8]
}
