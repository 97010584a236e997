//! The ring against a queue that cannot be wrong: whatever is written comes out, in order, once, byte for byte.
#![cfg(not(loom))]
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that meets an error has failed"
)]

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;
use vmbus_core::memory::PlainMemory;
use vmbus_ringbuf::{
    CONTROL_SIZE, Consumer, Flat, GpaRange, Head, MAX_PACKET_SIZE, Outgoing, OutgoingKind, PacketKind, Pfns,
    PlainRing, Producer, PushError, RingMemory, Signal, TransferRange, packet_size,
};

/// A packet as both ends see it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    kind: PacketKind,
    transaction_id: u64,
    completion_requested: bool,
    header: Vec<u8>,
    payload: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Shape {
    InBand,
    Completion,
    TransferPages(Vec<(u32, u32)>),
    GpaDirect(Vec<(u32, u32, u64)>),
}

#[derive(Debug, Clone)]
enum Step {
    /// Push these, then commit or drop the batch.
    Write {
        packets: Vec<(Shape, u64, bool, usize)>,
        in_place: bool,
        commit: bool,
    },
    Take(usize),
    Publish,
    PublishIfDue,
    Mask,
    Unmask,
    RequestSpace(usize),
}

fn shapes() -> impl Strategy<Value = Shape> {
    prop_oneof![
        3 => Just(Shape::InBand),
        2 => Just(Shape::Completion),
        1 => vec((any::<u32>(), any::<u32>()), 0..5).prop_map(Shape::TransferPages),
        2 => vec((0..20_000_u32, 0..4096_u32, 0..u64::MAX / 2), 1..4).prop_map(Shape::GpaDirect),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let len = prop_oneof![4 => 0..200_usize, 2 => 0..3000_usize, 1 => 0..9000_usize];
    let packet = (shapes(), any::<u64>(), any::<bool>(), len);
    prop_oneof![
        6 => (vec(packet, 0..6), any::<bool>(), prop::bool::weighted(0.9))
            .prop_map(|(packets, in_place, commit)| Step::Write { packets, in_place, commit }),
        6 => (0..12_usize).prop_map(Step::Take),
        1 => Just(Step::Publish),
        2 => Just(Step::PublishIfDue),
        1 => Just(Step::Mask),
        2 => Just(Step::Unmask),
        2 => (0..10_000_usize).prop_map(Step::RequestSpace),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn plain_ring_is_a_queue(pages in 1..4_u32, story in vec(steps(), 1..80)) {
        act(&PlainRing::new(pages * 4096), &story);
    }

    #[test]
    fn flat_memory_is_a_queue(pages in 1..3_usize, story in vec(steps(), 1..30)) {
        act(&std::sync::Arc::new(Flat::new(PlainMemory::new(CONTROL_SIZE + pages * 4096))), &story);
    }
}

/// Plays the story on a ring and on a queue.
fn act<R: RingMemory + Clone>(memory: &R, story: &[Step]) {
    let size = memory.data_size() as usize;
    let mut producer = Producer::new(memory.clone()).unwrap();
    let mut consumer = Consumer::new(memory.clone()).unwrap();
    let mut queue: VecDeque<Sent> = VecDeque::new();
    // What the producer must not overwrite yet: committed and not published, in bytes.
    let mut held = 0;
    let mut taken = 0;
    let mut waits_for = None;
    let mut masked = false;

    for (index, step) in story.iter().enumerate() {
        match step {
            Step::Write { packets, in_place, commit } => {
                let was_drained = held == 0;
                let mut batch = producer.batch();
                let mut pushed = Vec::new();
                for (number, (shape, id, requested, len)) in packets.iter().enumerate() {
                    let payload: Vec<u8> = (0..*len).map(|at| (at * 7 + index + number) as u8).collect();
                    let sent = Sent {
                        kind: kind(shape),
                        transaction_id: *id,
                        completion_requested: *requested,
                        header: header(shape),
                        payload,
                    };
                    let needed = packet_size(sent.header.len(), *len).unwrap();
                    let occupied: usize = pushed.iter().map(occupies).sum();
                    let result = push(&mut batch, shape, &sent, *in_place);
                    if needed > size - 8 {
                        assert_eq!(result, Err(PushError::TooLarge));
                    } else if held + occupied + needed > size - 8 {
                        assert_eq!(result, Err(PushError::Full));
                    } else {
                        assert_eq!(result, Ok(()));
                        pushed.push(sent);
                    }
                }
                if *commit {
                    let signal = batch.commit().unwrap();
                    let owed = was_drained && !masked && !pushed.is_empty();
                    assert_eq!(signal == Signal::Ring, owed, "signal after write");
                    held += pushed.iter().map(occupies).sum::<usize>();
                    queue.extend(pushed);
                }
            }
            Step::Take(count) => {
                for _ in 0..*count {
                    let Some(packet) = consumer.next().unwrap() else {
                        assert!(queue.is_empty(), "the ring lost a packet");
                        break;
                    };
                    let mut sent = queue.pop_front().expect("the ring made a packet up");
                    taken += occupies(&sent);
                    sent.payload.resize(sent.payload.len().next_multiple_of(8), 0);
                    let mut read = Sent {
                        kind: packet.kind,
                        transaction_id: packet.transaction_id,
                        completion_requested: packet.completion_requested,
                        header: vec![0; packet.header_len()],
                        payload: vec![0; packet.payload_len()],
                    };
                    packet.read_header(&mut read.header).unwrap();
                    packet.read_payload(0, &mut read.payload).unwrap();
                    assert_eq!(read, sent);
                    // Any part of it is what the whole said.
                    let (from, to) = (read.payload.len() / 3, read.payload.len() / 2);
                    let mut part = vec![0; to - from];
                    packet.read_payload(from, &mut part).unwrap();
                    assert_eq!(part, read.payload[from..to]);
                    assert!(packet.read_payload(1, &mut read.payload).is_err() || read.payload.is_empty());
                }
            }
            Step::Publish => {
                let signal = consumer.publish().unwrap();
                check_wake(signal, &mut held, &mut taken, waits_for, size);
            }
            Step::PublishIfDue => {
                let due = taken >= size / 4 || (taken > 0 && queue.is_empty() && waits_for.is_some());
                let signal = consumer.publish_if_due().unwrap();
                // When the last packets are not looked for yet, it may wait for the look.
                let room = producer.room().unwrap();
                if room == size - 8 - held && taken > 0 {
                    assert!(!due || (queue.is_empty() && taken < size / 4), "it was due");
                    assert_eq!(signal, Signal::Quiet);
                } else {
                    check_wake(signal, &mut held, &mut taken, waits_for, size);
                }
            }
            Step::Mask => {
                consumer.mask();
                masked = true;
            }
            Step::Unmask => {
                let unmasked = consumer.unmask().unwrap();
                masked = false;
                assert_eq!(unmasked.unread, !queue.is_empty());
                check_wake(unmasked.signal, &mut held, &mut taken, waits_for, size);
            }
            Step::RequestSpace(needed) => {
                let wanted = (*needed).clamp(8, size - 8).next_multiple_of(8);
                let there = producer.request_space(*needed).unwrap();
                assert_eq!(there, wanted <= size - 8 - held);
                waits_for = (!there).then_some(wanted);
            }
        }
        if waits_for.is_some_and(|wanted| wanted <= size - 8 - held) {
            producer.clear_space_request();
            waits_for = None;
        }
    }
}

/// The read index went out: checks the signal, and gives the producer its room.
fn check_wake(signal: Signal, held: &mut usize, taken: &mut usize, waits_for: Option<usize>, size: usize) {
    let (before, after) = (size - 8 - *held, size - 8 - *held + *taken);
    let owed = waits_for.is_some_and(|wanted| before < wanted && after >= wanted);
    assert_eq!(signal == Signal::Ring, owed, "signal after read");
    *held -= *taken;
    *taken = 0;
}

fn occupies(sent: &Sent) -> usize {
    packet_size(sent.header.len(), sent.payload.len()).unwrap()
}

fn kind(shape: &Shape) -> PacketKind {
    match shape {
        Shape::InBand => PacketKind::InBand,
        Shape::Completion => PacketKind::Completion,
        Shape::TransferPages(_) => PacketKind::TransferPages,
        Shape::GpaDirect(_) => PacketKind::GpaDirect,
    }
}

/// The type-specific header by the book, made apart from the ring's own code.
fn header(shape: &Shape) -> Vec<u8> {
    let mut bytes = Vec::new();
    match shape {
        Shape::InBand | Shape::Completion => {}
        Shape::TransferPages(ranges) => {
            bytes.extend(0xcafe_u16.to_le_bytes());
            bytes.extend([0, 0]);
            bytes.extend(u32::try_from(ranges.len()).unwrap().to_le_bytes());
            for (count, offset) in ranges {
                bytes.extend(count.to_le_bytes());
                bytes.extend(offset.to_le_bytes());
            }
        }
        Shape::GpaDirect(ranges) => {
            bytes.extend([0; 4]);
            bytes.extend(u32::try_from(ranges.len()).unwrap().to_le_bytes());
            for (count, offset, first) in ranges {
                bytes.extend(count.to_le_bytes());
                bytes.extend(offset.to_le_bytes());
                for page in 0..u64::from(offset + count).div_ceil(4096) {
                    bytes.extend((first + page).to_le_bytes());
                }
            }
        }
    }
    bytes
}

fn push<R: RingMemory>(
    batch: &mut vmbus_ringbuf::Batch<'_, R>,
    shape: &Shape,
    sent: &Sent,
    in_place: bool,
) -> Result<(), PushError> {
    let transfer: Vec<TransferRange>;
    let listed: Vec<Vec<u64>>;
    let direct: Vec<GpaRange<'_>>;
    let kind = match shape {
        Shape::InBand => OutgoingKind::InBand,
        Shape::Completion => OutgoingKind::Completion,
        Shape::TransferPages(ranges) => {
            transfer = ranges
                .iter()
                .map(|&(byte_count, byte_offset)| TransferRange { byte_count, byte_offset })
                .collect();
            OutgoingKind::TransferPages { set_id: 0xcafe, ranges: &transfer }
        }
        // The three ways to name pages, by what the range starts with.
        Shape::GpaDirect(ranges) if ranges[0].2 % 3 == 0 => OutgoingKind::GpaDirectEncoded {
            range_count: u32::try_from(ranges.len()).unwrap(),
            ranges: &sent.header[8..],
        },
        Shape::GpaDirect(ranges) if ranges[0].2 % 3 == 1 => {
            direct = ranges
                .iter()
                .map(|&(byte_count, byte_offset, first)| GpaRange {
                    byte_count,
                    byte_offset,
                    pfns: Pfns::From(first),
                })
                .collect();
            OutgoingKind::GpaDirect(&direct)
        }
        Shape::GpaDirect(ranges) => {
            listed = ranges
                .iter()
                .map(|&(count, offset, first)| {
                    (first..first + u64::from(offset + count).div_ceil(4096)).collect::<Vec<_>>()
                })
                .collect();
            direct = ranges
                .iter()
                .zip(&listed)
                .map(|(&(byte_count, byte_offset, _), pfns)| GpaRange {
                    byte_count,
                    byte_offset,
                    pfns: Pfns::Listed(pfns),
                })
                .collect();
            OutgoingKind::GpaDirect(&direct)
        }
    };
    let (transaction_id, completion_requested) = (sent.transaction_id, sent.completion_requested);
    if in_place {
        let head = Head { kind, transaction_id, completion_requested };
        batch.push_with(head, sent.payload.len(), |writer| {
            assert_eq!(writer.len(), sent.payload.len());
            let (first, second) = sent.payload.split_at(sent.payload.len() / 2);
            writer.write(first.len(), second).unwrap();
            writer.write(0, first).unwrap();
            assert!(writer.write(sent.payload.len(), &[1]).is_err(), "one past the end");
        })
    } else {
        batch.push(Outgoing { kind, transaction_id, completion_requested, payload: &sent.payload })
    }
}

#[test]
fn a_write_of_600_kib_is_refused_and_not_truncated() {
    let mut producer = Producer::new(PlainRing::new(1 << 20)).unwrap();
    let mut batch = producer.batch();
    let payload = vec![0; 600 * 1024];
    assert_eq!(batch.push(Outgoing::in_band(&payload)), Err(PushError::TooLarge));
    assert!(batch.is_empty());

    let largest = MAX_PACKET_SIZE - 24;
    assert_eq!(batch.push(Outgoing::in_band(&payload[..largest + 1])), Err(PushError::TooLarge));
    assert_eq!(batch.push(Outgoing::in_band(&payload[..largest])), Ok(()));
    assert_eq!(batch.commit(), Ok(Signal::Ring));
}

#[test]
fn the_largest_packet_of_a_small_ring_fills_it_but_for_8_bytes() {
    let memory = PlainRing::new(4096);
    let mut producer = Producer::new(memory.clone()).unwrap();
    let mut consumer = Consumer::new(memory).unwrap();
    let payload = vec![9; 4096];
    for _ in 0..5 {
        let mut batch = producer.batch();
        assert_eq!(batch.push(Outgoing::in_band(&payload[..4065])), Err(PushError::TooLarge));
        assert_eq!(batch.push(Outgoing::in_band(&payload[..4064])), Ok(()));
        assert_eq!(batch.push(Outgoing::in_band(&[])), Err(PushError::Full));
        assert_eq!(batch.commit(), Ok(Signal::Ring));
        assert_eq!(consumer.next().unwrap().unwrap().payload_len(), 4064);
        assert_eq!(consumer.publish(), Ok(Signal::Quiet));
    }
}

#[test]
fn ranges_that_do_not_match_their_pages_are_refused() {
    let mut producer = Producer::new(PlainRing::new(65536)).unwrap();
    let mut batch = producer.batch();
    let mut push = |ranges: &[GpaRange<'_>]| batch.push(Outgoing::gpa_direct(1, ranges, &[0; 64]));
    let range = |byte_count, byte_offset, pfns| GpaRange { byte_count, byte_offset, pfns };
    assert_eq!(push(&[]), Err(PushError::Range), "no range at all");
    assert_eq!(push(&[range(4096, 0, Pfns::Listed(&[1, 2]))]), Err(PushError::Range), "too many pages");
    assert_eq!(push(&[range(4096, 1, Pfns::Listed(&[1]))]), Err(PushError::Range), "too few pages");
    assert_eq!(
        push(&[range(16, 4096, Pfns::From(1))]),
        Err(PushError::Range),
        "offset beyond the first page"
    );
    assert_eq!(push(&[range(16, 0, Pfns::From(u64::MAX))]), Err(PushError::Range), "no such page");
    assert_eq!(push(&[range(u32::MAX, 4095, Pfns::From(1))]), Err(PushError::TooLarge), "a header of 8 MiB");
    assert_eq!(push(&[range(4096, 1, Pfns::Listed(&[1, 7])), range(512, 512, Pfns::From(9))]), Ok(()));
}
