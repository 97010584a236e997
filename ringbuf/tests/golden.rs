//! The golden vectors of the ring, both ways: what we write is these bytes, and these bytes are what we read.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmbus_core::memory::{PlainMemory, SharedMemory};
use vmbus_ringbuf::{
    CONTROL_SIZE, Consumer, ControlWord, Flat, Outgoing, OutgoingKind, PacketKind, Producer, RingMemory,
    TransferRange,
};

/// A ring as it lies in memory, with a data area of one page, empty at `start`.
struct Ring {
    memory: Arc<PlainMemory>,
}

impl Ring {
    fn empty_at(start: u32) -> Self {
        let ring = Self { memory: Arc::new(PlainMemory::new(CONTROL_SIZE + 4096)) };
        ring.flat().store(ControlWord::WriteIndex, start, Ordering::Relaxed);
        ring.flat().store(ControlWord::ReadIndex, start, Ordering::Relaxed);
        ring
    }

    fn flat(&self) -> Flat<Arc<PlainMemory>> {
        Flat::new(Arc::clone(&self.memory))
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(at, &mut bytes);
        bytes
    }
}

/// The bytes of a golden vector.
fn vector(name: &str) -> Vec<u8> {
    let all: serde_json::Value = serde_json::from_str(include_str!("../../vmbus-core/tests/vectors.json"))
        .expect("the vectors are JSON");
    let hex = all[name].as_str().unwrap_or_else(|| panic!("no vector {name}"));
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits"))
        .collect()
}

/// Writes `packet` at `start` and expects the vector; puts the vector at `start` and expects `packet`.
fn both_ways(name: &str, start: u32, packet: Outgoing<'_>, header: &[u8]) {
    both_ways_of_bytes(name, &vector(name), start, packet, header);
}

fn both_ways_of_bytes(name: &str, golden: &[u8], start: u32, packet: Outgoing<'_>, header: &[u8]) {
    let len = u32::try_from(golden.len()).unwrap();

    let ring = Ring::empty_at(start);
    let mut producer = Producer::new(ring.flat()).unwrap();
    let mut batch = producer.batch();
    batch.push(packet).unwrap();
    let _ = batch.commit().unwrap();
    let mut written = vec![0; golden.len()];
    ring.flat().read(start, &mut written);
    assert_eq!(written, golden, "{name}: as written");
    assert_eq!(ring.flat().load(ControlWord::WriteIndex, Ordering::Relaxed), (start + len) % 4096, "{name}");

    let ring = Ring::empty_at(start);
    let mut consumer = Consumer::new(ring.flat()).unwrap();
    ring.flat().write(start, golden);
    ring.flat().store(ControlWord::WriteIndex, (start + len) % 4096, Ordering::Release);
    let read = consumer.next().unwrap().expect("a packet is there");
    let kind = match packet.kind {
        OutgoingKind::InBand => PacketKind::InBand,
        OutgoingKind::Completion => PacketKind::Completion,
        OutgoingKind::TransferPages { .. } => PacketKind::TransferPages,
        OutgoingKind::GpaDirect(_) | OutgoingKind::GpaDirectEncoded { .. } => PacketKind::GpaDirect,
    };
    assert_eq!(read.kind, kind, "{name}");
    assert_eq!(read.transaction_id, packet.transaction_id, "{name}");
    assert_eq!(read.completion_requested, packet.completion_requested, "{name}");
    let mut payload = vec![0; read.payload_len()];
    read.read_payload(0, &mut payload).unwrap();
    assert_eq!(payload[..packet.payload.len()], *packet.payload, "{name}: payload");
    assert!(payload[packet.payload.len()..].iter().all(|&pad| pad == 0), "{name}: padding");
    let mut read_header = vec![0; read.header_len()];
    read.read_header(&mut read_header).unwrap();
    assert_eq!(read_header, header, "{name}: header");
    let _ = consumer.publish().unwrap();
    assert_eq!(ring.flat().load(ControlWord::ReadIndex, Ordering::Relaxed), (start + len) % 4096, "{name}");
    assert!(consumer.next().unwrap().is_none(), "{name}: one packet only");
}

#[test]
fn rb_1_control_page() {
    let ring = Ring::empty_at(0);
    let flat = ring.flat();
    flat.store(ControlWord::WriteIndex, 0x40, Ordering::Relaxed);
    flat.store(ControlWord::ReadIndex, 0x18, Ordering::Relaxed);
    let mut consumer = Consumer::new(ring.flat()).unwrap();
    consumer.mask();
    let _producer = Producer::new(ring.flat()).unwrap();
    flat.store(ControlWord::PendingSendSize, 0x200, Ordering::Relaxed);
    let golden = vector("RB-1");
    assert_eq!(ring.bytes(0, golden.len()), golden);

    let ring = Ring::empty_at(0);
    ring.memory.write(0, &golden);
    let load = |word| ring.flat().load(word, Ordering::Relaxed);
    assert_eq!(load(ControlWord::WriteIndex), 0x40);
    assert_eq!(load(ControlWord::ReadIndex), 0x18);
    assert_eq!(load(ControlWord::InterruptMask), 1);
    assert_eq!(load(ControlWord::PendingSendSize), 0x200);
    assert_eq!(load(ControlWord::FeatureBits), 1);
}

#[test]
fn rb_2_in_band() {
    both_ways("RB-2", 0, Outgoing::in_band(b"hello"), &[]);
}

#[test]
fn rb_3_in_band_with_completion() {
    let payload: Vec<u8> = (0..16).collect();
    both_ways("RB-3", 0x20, Outgoing::request(0x1234, &payload), &[]);
}

#[test]
fn rb_4_bare_completion() {
    both_ways("RB-4", 0x100, Outgoing::completion(0x1234, &[]), &[]);
}

#[test]
fn rb_5_completion_with_payload() {
    both_ways("RB-5", 0x48, Outgoing::completion(7, &[0x6c, 0, 0, 0, 1, 0, 0, 0]), &[]);
}

#[test]
fn rb_6_transfer_pages() {
    let mut payload = [0; 32];
    payload[0] = 107;
    payload[8..12].fill(0xff);
    let ranges = [
        TransferRange { byte_count: 98, byte_offset: 0 },
        TransferRange { byte_count: 60, byte_offset: 0x6c0 },
    ];
    let packet = Outgoing {
        kind: OutgoingKind::TransferPages { set_id: 0xcafe, ranges: &ranges },
        transaction_id: 0xabcd,
        completion_requested: true,
        payload: &payload,
    };
    let golden = vector("RB-6");
    both_ways("RB-6", 0, packet, &golden[16..40]);
}

#[test]
fn rb_7_pipe_data() {
    both_ways("RB-7", 0, Outgoing::in_band(&[1, 0, 0, 0, 2, 0, 0, 0, b'h', b'i']), &[]);
}

#[test]
fn rb_8_pipe_end_of_stream() {
    both_ways("RB-8", 0, Outgoing::in_band(&[1, 0, 0, 0, 0, 0, 0, 0]), &[]);
}

#[test]
fn rb_9_and_10_wrapping_packet() {
    let golden = [vector("RB-9"), vector("RB-10")].concat();
    let payload: Vec<u8> = (0xa0..=0xb7).collect();
    both_ways_of_bytes("RB-9/10", &golden, 0xfe8, Outgoing::request(5, &payload), &[]);
}
