//! Streams in rings: the golden bytes, every way to cut them, and writers that follow no rule.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::sync::Arc;

use vmbus_core::memory::{PlainMemory, SharedMemory};
use vmbus_ringbuf::{
    CONTROL_SIZE, Consumer, Flat, MAX_STREAM_DATA, Outgoing, PlainRing, Producer, StreamFault, StreamReader,
    end_stream, stream_room, write_stream,
};

fn ends(data_size: u32) -> (Producer<PlainRing>, Consumer<PlainRing>) {
    let ring = PlainRing::new(data_size);
    (Producer::new(ring.clone()).unwrap(), Consumer::new(ring).unwrap())
}

fn push(producer: &mut Producer<PlainRing>, packet: Outgoing<'_>) {
    let mut batch = producer.batch();
    batch.push(packet).unwrap();
    let _ = batch.commit().unwrap();
}

/// A pipe packet with this header.
fn framed(kind: u32, len: u32, data: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &len.to_le_bytes()[..], data].concat()
}

#[test]
fn data_and_the_end_are_the_golden_bytes() {
    let all: serde_json::Value =
        serde_json::from_str(include_str!("../../vmbus-core/tests/vectors.json")).unwrap();
    let memory = Arc::new(PlainMemory::new(CONTROL_SIZE + 4096));
    let mut producer = Producer::new(Flat::new(Arc::clone(&memory))).unwrap();
    assert_eq!(write_stream(&mut producer, b"hi").unwrap().0, 2);
    let start = 40;
    let _ = end_stream(&mut producer).unwrap();
    let hex = |at: usize, len: usize| {
        let mut bytes = vec![0; len];
        memory.read(CONTROL_SIZE + at, &mut bytes);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let (data, mut end) = (all["RB-7"].as_str().unwrap(), all["RB-8"].as_str().unwrap().to_owned());
    assert_eq!(hex(0, data.len() / 2), data);
    // The vector starts at 0; its trailer says so in the last four bytes.
    end.truncate(end.len() - 8);
    assert_eq!(hex(start, end.len() / 2), end);
}

#[test]
fn any_pieces_come_out_as_one_stream_and_its_end() {
    let sent: Vec<u8> = (0..300_000_u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    for (ring, write, read) in
        [(4096, 1, 1), (4096, 5000, 7), (8192, 333, 100_000), (65536, 300_000, 4096), (65536, 20_000, 20_001)]
    {
        let (mut producer, mut consumer) = ends(ring);
        let (mut reader, mut received, mut buffer) = (StreamReader::new(), Vec::new(), vec![0; read]);
        let (mut written, mut said_end) = (0, false);
        while !reader.is_ended() {
            while written < sent.len() {
                let piece = &sent[written..sent.len().min(written + write)];
                match write_stream(&mut producer, piece).unwrap() {
                    (0, _) => {
                        let wanted = stream_room(producer.capacity(), piece.len());
                        assert!(!producer.request_space(wanted).unwrap(), "there is room after all");
                        break;
                    }
                    (bytes, _) => written += bytes,
                }
            }
            if written == sent.len() && !said_end {
                said_end = true;
                let _ = end_stream(&mut producer).expect("there is always room for the end");
            }
            loop {
                let (bytes, _) = reader.read(&mut consumer, &mut buffer).unwrap();
                if bytes == 0 {
                    break;
                }
                received.extend_from_slice(&buffer[..bytes]);
            }
        }
        assert!(received == sent, "{ring}, {write}, {read}: {} bytes", received.len());
    }
}

#[test]
fn a_reader_that_takes_a_packet_in_part_keeps_its_room_and_gives_it_back_at_the_end() {
    let (mut producer, mut consumer) = ends(4096);
    let mut reader = StreamReader::new();
    let (written, _) = write_stream(&mut producer, &[7; 5000]).unwrap();
    assert!((4000..4096).contains(&written), "{written}");
    assert!(!producer.request_space(1000).unwrap());
    let mut part = vec![0; written - 1];
    assert_eq!(reader.read(&mut consumer, &mut part).unwrap().0, written - 1);
    assert_eq!(write_stream(&mut producer, &[8; 1000]).unwrap().0, 0, "the rest is still there");
    let (bytes, signal) = reader.read(&mut consumer, &mut part).unwrap();
    assert_eq!((bytes, part[0], signal.is_ring()), (1, 7, true), "the writer waits for this room");
    assert_eq!(write_stream(&mut producer, &[8; 1000]).unwrap().0, 1000);
}

#[test]
fn what_no_stream_has_is_a_fault_after_all_data_before_it() {
    let good = framed(1, 5, b"hello");
    let (other_kind, too_long, absurd) =
        (framed(2, 5, b"hello"), framed(1, 9, b"hello"), framed(1, u32::MAX, b""));
    let cases: [(Outgoing<'_>, StreamFault); 6] = [
        (Outgoing::in_band(b""), StreamFault::Header),
        (Outgoing::in_band(&other_kind), StreamFault::Type(2)),
        (Outgoing::in_band(&too_long), StreamFault::Length { stated: 9, room: 8 }),
        (Outgoing::in_band(&absurd), StreamFault::Length { stated: u32::MAX, room: 0 }),
        (Outgoing::request(1, &good), StreamFault::Packet),
        (Outgoing::completion(1, &good), StreamFault::Packet),
    ];
    for (packet, fault) in cases {
        let (mut producer, mut consumer) = ends(4096);
        push(&mut producer, Outgoing::in_band(&good));
        push(&mut producer, packet);
        push(&mut producer, Outgoing::in_band(&good));
        let (mut reader, mut buffer) = (StreamReader::new(), [0; 64]);
        assert_eq!(reader.read(&mut consumer, &mut buffer).unwrap().0, 5, "{fault}");
        for _ in 0..2 {
            assert_eq!(reader.read(&mut consumer, &mut buffer), Err(fault));
        }
        assert_eq!((reader.fault(), reader.is_ended()), (Some(fault), false));
    }
}

#[test]
fn data_after_the_end_is_never_seen() {
    let (mut producer, mut consumer) = ends(4096);
    let _ = write_stream(&mut producer, b"all").unwrap();
    let _ = end_stream(&mut producer).unwrap();
    let _ = write_stream(&mut producer, b"more").unwrap();
    let (mut reader, mut buffer) = (StreamReader::new(), [0; 64]);
    assert_eq!(reader.read(&mut consumer, &mut buffer).unwrap().0, 3);
    for _ in 0..2 {
        assert_eq!(reader.read(&mut consumer, &mut buffer).unwrap().0, 0);
        assert!(reader.is_ended());
    }
}

#[test]
fn packets_are_no_longer_than_others_take_them() {
    let (mut producer, mut consumer) = ends(1 << 20);
    assert_eq!(write_stream(&mut producer, &[1; 100_000]).unwrap().0, MAX_STREAM_DATA);
    let packet = consumer.next().unwrap().unwrap();
    assert_eq!(packet.payload_len(), MAX_STREAM_DATA + 8);
}
