//! Rings in a partition's memory: mapped twice in a row, or page by page.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that fails may panic")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmbus_core::memory::SharedMemory;
use vmbus_partition::{GpaError, GpaSpace, Mapping, Region, RingMapping};
use vmbus_ringbuf::{Consumer, ControlWord, Outgoing, Producer, RingMemory};

fn space(pages: usize, ring_maps: usize) -> Arc<GpaSpace> {
    let region = Region { gpa: 0, domain: 0, mapping: Mapping::anonymous(pages * 4096).unwrap() };
    Arc::new(GpaSpace::new(vec![region], ring_maps).unwrap())
}

/// Sends packets of growing size through a ring until it has wrapped many times, and reads each back.
fn carry_packets(ours: RingMapping, theirs: RingMapping) {
    let mut producer = Producer::new(ours).unwrap();
    let mut consumer = Consumer::new(theirs).unwrap();
    for id in 1..2000u64 {
        let payload: Vec<u8> = (0..id as usize % 700).map(|index| (index as u64 ^ id) as u8).collect();
        let mut batch = producer.batch();
        batch.push(Outgoing::request(id, &payload)).unwrap();
        let _ = batch.commit().unwrap();
        let packet = consumer.next().unwrap().expect("just committed");
        assert_eq!(packet.transaction_id, id);
        let mut read = vec![0; payload.len()];
        packet.read_payload(0, &mut read).unwrap();
        assert_eq!(read, payload);
        let _ = consumer.publish().unwrap();
    }
}

#[test]
fn a_contiguous_ring_is_mapped_twice_and_carries_packets_across_its_end() {
    let space = space(8, 100);
    let (ours, theirs) = (space.ring(2..5).unwrap(), space.ring(2..5).unwrap());
    assert!(ours.is_mapped_twice());
    carry_packets(ours, theirs);
}

#[test]
fn a_ring_of_scattered_runs_is_mapped_twice_while_they_are_few() {
    let space = space(16, 100);
    let pages = || [9, 3, 4, 1, 12, 13].into_iter();
    let ours = space.ring(pages()).unwrap();
    assert!(ours.is_mapped_twice());
    carry_packets(ours, space.ring(pages()).unwrap());
}

#[test]
fn a_ring_of_many_scattered_pages_works_page_by_page() {
    let space = space(64, 1000);
    let pages = || (0..64).step_by(2);
    let ours = space.ring(pages()).unwrap();
    assert!(!ours.is_mapped_twice());
    carry_packets(ours, space.ring(pages()).unwrap());
}

#[test]
fn mappings_are_a_quota_that_costs_speed_and_nothing_else() {
    let space = space(8, 4);
    let first = space.ring(0..4).unwrap();
    let second = space.ring(4..8).unwrap();
    let third = space.ring(0..4).unwrap();
    assert!(first.is_mapped_twice() && second.is_mapped_twice() && !third.is_mapped_twice());
    carry_packets(third, space.ring(0..4).unwrap());
    drop(first);
    assert!(space.ring(0..4).unwrap().is_mapped_twice(), "a ring that goes gives its mappings back");
}

#[test]
fn a_ring_shows_up_in_the_pages_it_was_made_of() {
    let region = Region { gpa: 0x10000, domain: 0, mapping: Mapping::anonymous(8 * 4096).unwrap() };
    let memory = region.mapping.clone();
    let space = Arc::new(GpaSpace::new(vec![region], 100).unwrap());
    for ring in [space.ring(0x12..0x15).unwrap(), space.ring([0x12, 0x16, 0x14].into_iter()).unwrap()] {
        ring.store(ControlWord::WriteIndex, 0x1230, Ordering::Release);
        assert_eq!(memory.load_u32(2 * 4096, Ordering::Acquire), 0x1230);
        ring.write(8188, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let mut bytes = [0; 4];
        memory.read(4 * 4096 + 4092, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4]);
        ring.write_u64(8184, 0x8877_6655_4433_2211);
        assert_eq!(memory.read_u64(4 * 4096 + 4088), 0x8877_6655_4433_2211);
        assert_eq!(ring.read_u64(8184), 0x8877_6655_4433_2211);
    }
    let mut first = [0; 4];
    memory.read(3 * 4096, &mut first);
    assert_eq!(first, [5, 6, 7, 8], "the first ring wraps to its own first data page");
}

#[test]
fn rings_without_data_or_memory_are_refused() {
    let space = space(8, 100);
    assert_eq!(space.ring(0..0).unwrap_err(), GpaError::RingSize { pages: 0 });
    assert_eq!(space.ring(0..1).unwrap_err(), GpaError::RingSize { pages: 1 });
    assert_eq!(space.ring(7..9).unwrap_err(), GpaError::NoSuchPage { pfn: 8 });
}

#[test]
fn a_ring_outlives_the_region_and_the_space() {
    let space = space(8, 100);
    let rings = [
        space.ring(0..3).unwrap(),
        space.ring([0, 2, 4, 6, 1, 3, 5, 7].into_iter().cycle().take(60)).unwrap(),
    ];
    drop(space);
    for ring in rings {
        ring.write(0, &[1; 64]);
        let mut bytes = [0; 64];
        ring.read(0, &mut bytes);
        assert_eq!(bytes, [1; 64]);
    }
}
