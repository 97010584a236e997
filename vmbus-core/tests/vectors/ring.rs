//! The parts of ring packets that are page ranges. Descriptors and trailers are the ring's own affair.

use vmbus_core::pages::{GpaDirect, PageRanges, TransferPages, TransferRange};
use zerocopy::IntoBytes;

use crate::Check;

pub(crate) const CHECKS: &[Check] =
    &[("RB-6", |bytes| transfer_pages(bytes, 0xcafe, &[(98, 0), (60, 0x6c0)]))];

/// A transfer-page packet's header names the ranges (count, offset) of a set, and is written from them.
pub(crate) fn transfer_pages(packet: &[u8], set_id: u16, ranges: &[(u32, u32)]) {
    let header = header(packet);
    let pages = TransferPages::parse(header).unwrap();
    let ranges: Vec<TransferRange> = ranges
        .iter()
        .map(|&(count, offset)| TransferRange { byte_count: count.into(), byte_offset: offset.into() })
        .collect();
    assert_eq!((pages.set_id(), pages.sender_owns_set(), pages.ranges()), (set_id, false, &ranges[..]));
    let head = TransferPages::head(set_id, false, u32::try_from(ranges.len()).unwrap());
    assert_eq!([head.as_slice(), ranges.as_bytes()].concat(), header);
}

/// A GPA-direct packet's header names the ranges of `list`, and is written from them.
pub(crate) fn gpa_direct(packet: &[u8], list: &PageRanges) {
    gpa_direct_ranges(packet, std::slice::from_ref(list));
}

/// [`gpa_direct`] of several lists, one after the other.
pub(crate) fn gpa_direct_ranges(packet: &[u8], lists: &[PageRanges]) {
    let header = header(packet);
    let read = GpaDirect::parse(header).unwrap();
    assert!(read.ranges().eq(lists.iter().flat_map(PageRanges::ranges)));
    assert_eq!(read.byte_count(), lists.iter().map(PageRanges::byte_count).sum::<u64>());
    let mut written = GpaDirect::head(u32::try_from(read.ranges().count()).unwrap()).to_vec();
    for range in read.ranges() {
        written.extend_from_slice(&range.head());
        written.extend_from_slice(range.pfn_bytes());
    }
    assert_eq!(written, header);
    assert_eq!(lists.iter().flat_map(|list| list.as_bytes()).copied().collect::<Vec<u8>>(), header[8..]);
}

/// What stands between a packet's descriptor and its payload.
fn header(packet: &[u8]) -> &[u8] {
    &packet[16..usize::from(packet[2]) * 8]
}

/// What stands between a packet's header and its trailer.
pub(crate) fn payload(packet: &[u8]) -> &[u8] {
    &packet[usize::from(packet[2]) * 8..usize::from(packet[4]) * 8]
}
