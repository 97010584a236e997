//! Guest pages: what a peer's page numbers become.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that fails may panic")]

use std::sync::Arc;

use proptest::prelude::*;
use vmbus_core::memory::SharedMemory;
use vmbus_partition::{GpaError, GpaSpace, Mapping, Region};

const HIGH: u64 = 0x1_0000_0000;

/// Eight pages at 0x10000 and four pages above the 32-bit hole, each page filled with its own number.
fn space() -> Arc<GpaSpace> {
    let low = Region { gpa: 0x10000, domain: 0, mapping: Mapping::anonymous(8 * 4096).unwrap() };
    let high = Region { gpa: HIGH, domain: 0, mapping: Mapping::anonymous(4 * 4096).unwrap() };
    for (region, first) in [(&low, 0u8), (&high, 100)] {
        for (page, value) in (0..region.mapping.size() / 4096).zip(first..) {
            region.mapping.write(page * 4096, &[value; 4096]);
        }
    }
    Arc::new(GpaSpace::new(vec![high, low], 100).unwrap())
}

#[test]
fn scattered_pages_read_in_the_order_named() {
    let space = space();
    let pages = space.pages_of(4094, 4 + 4096, [0x12, 0x10, HIGH / 4096].into_iter()).unwrap();
    let mut bytes = vec![0xff; 4100];
    pages.read(0, &mut bytes).unwrap();
    assert_eq!(bytes[..2], [2, 2]);
    assert_eq!(bytes[2..4098], [0; 4096]);
    assert_eq!(bytes[4098..], [100, 100]);
}

#[test]
fn neighbouring_pages_become_one_run() {
    let space = space();
    let pages = space.pages_of(100, 3 * 4096, [0x11, 0x12, 0x13, 0x16].into_iter()).unwrap();
    let ranges: Vec<_> = pages.addresses().collect();
    assert_eq!(ranges, [(0x11064, 3 * 4096 - 100), (0x16000, 100)]);
    assert_eq!(pages.runs().count(), 2);
}

#[test]
fn regions_that_touch_in_address_only_are_not_merged() {
    let first = Region { gpa: 0, domain: 0, mapping: Mapping::anonymous(4096).unwrap() };
    let second = Region { gpa: 4096, domain: 0, mapping: Mapping::anonymous(4096).unwrap() };
    let space = Arc::new(GpaSpace::new(vec![first, second], 0).unwrap());
    let pages = space.span(100, 8000).unwrap();
    pages.write(0, &[7; 8000]).unwrap();
    assert_eq!(pages.runs().count(), 2);
    let mut bytes = vec![0; 8000];
    pages.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 8000]);
}

#[test]
fn pages_that_are_no_memory_are_refused() {
    let space = space();
    for pfn in [0, 0xf, 0x18, HIGH / 4096 - 1, HIGH / 4096 + 4, u64::MAX, u64::MAX / 4096, 1 << 52] {
        assert_eq!(space.pages_of(0, 1, [pfn].into_iter()).unwrap_err(), GpaError::NoSuchPage { pfn });
    }
    assert!(matches!(space.pages_of(0, 4097, [0x10].into_iter()), Err(GpaError::WrongPageCount { .. })));
    assert!(matches!(
        space.pages_of(4096, 1, [0x10, 0x11].into_iter()),
        Err(GpaError::WrongPageCount { .. })
    ));
    assert!(matches!(space.span(HIGH, 4 * 4096 + 1), Err(GpaError::NoSuchPage { .. })));
    assert!(matches!(space.span(u64::MAX, 2), Err(GpaError::NoSuchPage { .. })));
}

#[test]
fn accesses_outside_of_the_range_are_refused_whole() {
    let pages = space().pages_of(0, 100, [0x10].into_iter()).unwrap();
    assert!(pages.write(99, &[1, 1]).is_err());
    assert!(pages.read(usize::MAX, &mut [0]).is_err());
    assert!(pages.slice(50, 51).is_err());
    let other = Mapping::anonymous(4096).unwrap();
    assert!(pages.copy_to(0, &other, 4090, 100).is_err());
    assert!(pages.copy_from(50, &other, 0, 51).is_err());
    let mut untouched = [1; 100];
    pages.read(0, &mut untouched).unwrap();
    assert_eq!(untouched, [0; 100]);
}

#[test]
fn regions_that_overlap_wrap_or_are_ragged_are_refused() {
    let mapping = Mapping::anonymous(8192).unwrap();
    let region = |gpa| Region { gpa, domain: 0, mapping: mapping.clone() };
    assert!(GpaSpace::new(vec![region(0), region(4096)], 0).is_err());
    assert!(GpaSpace::new(vec![region(100)], 0).is_err());
    assert!(GpaSpace::new(vec![region(u64::MAX - 4095)], 0).is_err());
    assert!(GpaSpace::new(vec![region(u64::MAX - 8191)], 0).is_err());
    let space = GpaSpace::new(vec![region(0), region(8192)], 0).unwrap();
    assert!(space.with(region(4096)).is_err());
    assert!(space.without(0, 4096).is_err());
    assert_eq!(space.without(0, 8192).unwrap().regions().len(), 1);
}

#[test]
fn pages_in_use_survive_the_removal_of_their_region() {
    let before = space();
    let pages = before.span(0x10000, 4096).unwrap();
    let after = Arc::new(before.without(0x10000, 8 * 4096).unwrap());
    drop(before);
    pages.write(0, &[9; 4096]).unwrap();
    assert!(after.span(0x10000, 1).is_err());
}

proptest! {
    /// Slices, copies and zeroing agree with the same work done on a plain vector.
    #[test]
    fn guest_pages_behave_like_one_buffer(
        pfns in proptest::collection::vec(0x10u64..0x18, 1..6),
        offset in 0u32..4096,
        at in 0usize..30_000,
        len in 0usize..30_000,
    ) {
        // A page named twice is two places of the buffer: a model of one buffer needs each page once.
        let mut pfns = pfns;
        let mut seen = std::collections::HashSet::new();
        pfns.retain(|pfn| seen.insert(*pfn));
        let total = pfns.len() * 4096 - offset as usize;
        let (at, len) = (at % total, len % total);
        let len = len.min(total - at);
        let pages = space().pages_of(offset, total as u32, pfns.into_iter()).unwrap();
        let mut model = vec![0; total];
        pages.read(0, &mut model).unwrap();
        let private: Vec<u8> = (0..len).map(|index| index as u8 ^ 0x5a).collect();

        pages.slice(at, len).unwrap().write(0, &private).unwrap();
        model[at..at + len].copy_from_slice(&private);
        let mut all = vec![0; total];
        pages.read(0, &mut all).unwrap();
        prop_assert_eq!(&all, &model);

        let other = Mapping::anonymous(65536).unwrap();
        pages.copy_to(at, &other, 3, len).unwrap();
        pages.fill_zero(at, len).unwrap();
        model[at..at + len].fill(0);
        pages.read(0, &mut all).unwrap();
        prop_assert_eq!(&all, &model);

        pages.copy_from(at, &other, 3, len).unwrap();
        model[at..at + len].copy_from_slice(&private);
        pages.read(0, &mut all).unwrap();
        prop_assert_eq!(&all, &model);
    }
}
