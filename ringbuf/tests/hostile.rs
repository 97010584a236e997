//! A peer that writes anything anywhere at any time.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::sync::atomic::Ordering;

use proptest::collection::vec;
use proptest::prelude::*;
use vmbus_ringbuf::{
    Consumer, ControlWord, Outgoing, Packet, PlainRing, Producer, PushError, RingFault, RingMemory, Signal,
};

#[path = "hostile/story.rs"]
#[expect(clippy::cast_possible_truncation, reason = "numbers out of a hat")]
mod story;

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_a_peer_writes_leads_astray(data in vec(any::<u8>(), 0..1500)) {
        story::play(&data);
    }
}

/// A reader on a ring of one page in which the peer committed `unread` bytes that start with this descriptor.
fn read(kind: u16, offset8: u16, len8: u16, flags: u16, unread: u32) -> Result<(), RingFault> {
    let memory = PlainRing::new(4096);
    let mut consumer = Consumer::new(memory.clone()).unwrap();
    let word = u64::from(kind) | u64::from(offset8) << 16 | u64::from(len8) << 32 | u64::from(flags) << 48;
    memory.write_u64(0, word);
    memory.store(ControlWord::WriteIndex, unread, Ordering::Release);
    consumer.next().map(|packet| assert!(packet.is_some()))
}

#[test]
fn each_lie_of_a_descriptor_has_its_fault() {
    assert_eq!(read(6, 2, 3, 0, 32), Ok(()));
    assert_eq!(read(6, 2, 3, 1, 32), Ok(()));
    for kind in (0..6).chain([8, 0xa, 0xc, 0xd, 0x106, u16::MAX]) {
        assert_eq!(read(kind, 2, 3, 0, 32), Err(RingFault::Type(kind)));
    }
    for flags in [2, 3, 0x8000, u16::MAX] {
        assert_eq!(read(6, 2, 3, flags, 32), Err(RingFault::Flags(flags)));
    }
    for unread in [8, 16, 24] {
        assert_eq!(read(6, 2, 3, 0, unread), Err(RingFault::Length { length: 32, unread }));
    }
    assert_eq!(read(6, 2, 0xffff, 0, 4088), Err(RingFault::Length { length: 0x8_0000, unread: 4088 }));
    for len8 in [0, 1] {
        assert_eq!(
            read(6, 2, len8, 0, 32),
            Err(RingFault::Offset { offset: 16, length: u32::from(len8) * 8 })
        );
    }
    for kind in [6, 0xb] {
        for offset8 in [0, 1, 4, u16::MAX] {
            let offset = u32::from(offset8) * 8;
            assert_eq!(read(kind, offset8, 3, 0, 32), Err(RingFault::Offset { offset, length: 24 }));
        }
    }
    for kind in [7, 9] {
        assert_eq!(read(kind, 3, 3, 0, 32), Ok(()));
        assert_eq!(
            read(kind, 2, 3, 0, 32),
            Err(RingFault::Offset { offset: 16, length: 24 }),
            "no room for a header"
        );
    }
}

#[test]
fn a_packet_without_room_for_its_trailer_is_refused() {
    assert_eq!(read(6, 2, 4, 0, 32), Err(RingFault::Length { length: 40, unread: 32 }));
}

#[test]
fn a_ring_of_no_pages_is_refused() {
    let refused = Some(RingFault::DataSize(0));
    assert_eq!(Producer::new(PlainRing::new(0)).err(), refused);
    assert_eq!(Consumer::new(PlainRing::new(0)).err(), refused);
}

#[test]
fn bad_indices_are_refused_when_taken_up_and_each_time_after() {
    for bad in [4, 4096, 4104, 0x8000_0000, u32::MAX] {
        let memory = PlainRing::new(4096);
        memory.store(ControlWord::WriteIndex, bad, Ordering::Relaxed);
        assert_eq!(Producer::new(memory.clone()).err(), Some(RingFault::WriteIndex(bad)));
        assert_eq!(Consumer::new(memory.clone()).err(), Some(RingFault::WriteIndex(bad)));
        memory.store(ControlWord::WriteIndex, 0, Ordering::Relaxed);
        memory.store(ControlWord::ReadIndex, bad, Ordering::Relaxed);
        assert_eq!(Producer::new(memory.clone()).err(), Some(RingFault::ReadIndex(bad)));
        assert_eq!(Consumer::new(memory.clone()).err(), Some(RingFault::ReadIndex(bad)));
        memory.store(ControlWord::ReadIndex, 0, Ordering::Relaxed);

        let mut producer = Producer::new(memory.clone()).unwrap();
        let mut consumer = Consumer::new(memory.clone()).unwrap();
        memory.store(ControlWord::WriteIndex, bad, Ordering::Relaxed);
        assert_eq!(consumer.has_unread(), Err(RingFault::WriteIndex(bad)));
        assert_eq!(consumer.next().map(|_| ()), Err(RingFault::WriteIndex(bad)));
        assert_eq!(consumer.unmask(), Err(RingFault::WriteIndex(bad)));
        memory.store(ControlWord::ReadIndex, bad, Ordering::Relaxed);
        assert_eq!(producer.room(), Err(RingFault::ReadIndex(bad)));
        assert_eq!(producer.request_space(8), Err(RingFault::ReadIndex(bad)));
        let mut batch = producer.batch();
        batch.push(Outgoing::in_band(&[1])).unwrap();
        assert_eq!(batch.commit(), Err(RingFault::ReadIndex(bad)));
        assert_eq!(memory.load(ControlWord::WriteIndex, Ordering::Relaxed), 32, "our own index is ours");
    }
}

#[test]
fn own_indices_do_not_come_from_shared_memory() {
    let memory = PlainRing::new(4096);
    let mut producer = Producer::new(memory.clone()).unwrap();
    let mut consumer = Consumer::new(memory.clone()).unwrap();
    let mut send = |payload: &[u8]| {
        let mut batch = producer.batch();
        batch.push(Outgoing::in_band(payload)).unwrap();
        batch.commit()
    };
    assert_eq!(send(b"first..."), Ok(Signal::Ring));
    memory.store(ControlWord::WriteIndex, 0x800, Ordering::Relaxed);
    assert_eq!(send(b"second.."), Ok(Signal::Quiet));
    assert_eq!(memory.load(ControlWord::WriteIndex, Ordering::Relaxed), 64);

    let text = |packet: Packet<'_, PlainRing>| {
        let mut text = [0; 8];
        packet.read_payload(0, &mut text).unwrap();
        text
    };
    assert_eq!(consumer.next().unwrap().map(text), Some(*b"first..."));
    memory.store(ControlWord::ReadIndex, 0x800, Ordering::Relaxed);
    assert_eq!(consumer.next().unwrap().map(text), Some(*b"second.."));
    assert_eq!(consumer.publish(), Ok(Signal::Quiet));
    assert_eq!(memory.load(ControlWord::ReadIndex, Ordering::Relaxed), 64);
}

#[test]
fn a_read_index_inside_an_uncommitted_batch_gives_no_room() {
    let memory = PlainRing::new(4096);
    let mut producer = Producer::new(memory.clone()).unwrap();
    let mut batch = producer.batch();
    batch.push(Outgoing::in_band(&[0; 4000])).unwrap();
    memory.store(ControlWord::ReadIndex, 8, Ordering::Relaxed);
    assert_eq!(batch.push(Outgoing::in_band(&[0; 4000])), Err(PushError::Full));
    assert_eq!(batch.room(), Ok(0));
}

#[test]
fn after_a_fault_the_next_look_is_a_fault_again() {
    let memory = PlainRing::new(4096);
    let mut consumer = Consumer::new(memory.clone()).unwrap();
    memory.write_u64(0, 0xdead);
    memory.store(ControlWord::WriteIndex, 64, Ordering::Release);
    for _ in 0..3 {
        assert_eq!(consumer.next().map(|_| ()), Err(RingFault::Type(0xdead)));
    }
}
