//! A reader and a writer on a ring whose every byte a peer changes at every moment. One body for the property test
//! and the fuzz target: it ends, nothing panics, no access leaves the ring, and what we publish is well formed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arbitrary::{Arbitrary, Unstructured};
use vmbus_ringbuf::{
    Batch, Consumer, ControlWord, GpaRange, Head, MAX_PACKET_SIZE, Outgoing, OutgoingKind, Pfns, Producer,
    PushError, RingMemory, TransferRange,
};

const CONTROL: usize = 4096;

/// Something the peer does: between two calls of ours, or in the middle of one, before one of our accesses.
#[derive(Debug, Arbitrary)]
enum Strike {
    /// Nothing, so that runs of correct play occur, too.
    Hold,
    /// A control word becomes anything.
    Control(u8, u32),
    /// A control word becomes a plausible index.
    Index(u8, u16),
    /// A word of the data area becomes anything.
    Data(u16, u64),
    /// A descriptor that is nearly right, at the given place.
    Descriptor { at: u16, kind: u8, offset8: u8, len8: u16, flags: u8 },
    /// A byte anywhere in control page or data area.
    Byte(u16, u8),
}

/// What our two ends do.
#[derive(Debug, Arbitrary)]
enum Step {
    Strike(Strike),
    Push { kind: u8, len: u16, id: u64, in_place: bool },
    Commit,
    Drop,
    Room,
    RequestSpace(u16),
    ClearSpaceRequest,
    Next,
    HasUnread,
    Publish,
    PublishIfDue,
    Mask,
    Unmask,
    Reopen,
}

/// A ring that the peer changes before any access that `strikes` says.
struct Struck<'a> {
    bytes: Mutex<Vec<u8>>,
    strikes: Mutex<Unstructured<'a>>,
    /// The ends must not fail to end: each call makes a bounded number of accesses.
    accesses: AtomicUsize,
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Struck<'_> {
    fn size(&self) -> usize {
        lock(&self.bytes).len() - CONTROL
    }

    /// Before each access, perhaps a strike: in the middle of our calls.
    fn before_access(&self) {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        let mut strikes = lock(&self.strikes);
        // Rarely, or no packet would ever be read in full.
        if strikes.arbitrary::<u8>().is_ok_and(|chance| chance >= 0xe0)
            && let Ok(strike) = strikes.arbitrary::<Strike>()
        {
            drop(strikes);
            self.strike(&strike);
        }
    }

    fn strike(&self, strike: &Strike) {
        let words = [0, 4, 8, 0xc, 0x40];
        let size = self.size();
        let mut bytes = lock(&self.bytes);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        match *strike {
            Strike::Hold => {}
            Strike::Control(word, value) => put(words[usize::from(word) % words.len()], &value.to_le_bytes()),
            Strike::Index(word, at) => {
                let index = u32::try_from(usize::from(at) * 8 % size).unwrap_or(0);
                put(words[usize::from(word) % 2], &index.to_le_bytes());
            }
            Strike::Data(at, value) => put(CONTROL + usize::from(at) * 8 % size, &value.to_le_bytes()),
            Strike::Descriptor { at, kind, offset8, len8, flags } => {
                let words = [u16::from(kind % 16), u16::from(offset8), len8, u16::from(flags % 4)];
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                put(CONTROL + usize::from(at) * 8 % size, &bytes);
            }
            Strike::Byte(at, value) => put(usize::from(at) % (CONTROL + size), &[value]),
        }
    }
}

impl RingMemory for &Struck<'_> {
    fn data_size(&self) -> u32 {
        u32::try_from(self.size()).unwrap_or(0)
    }

    fn load(&self, word: ControlWord, _: Ordering) -> u32 {
        self.before_access();
        let bytes = lock(&self.bytes);
        u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[word.offset() + byte]))
    }

    fn store(&self, word: ControlWord, value: u32, _: Ordering) {
        match word {
            ControlWord::WriteIndex | ControlWord::ReadIndex => {
                assert!(value.is_multiple_of(8) && value < self.data_size(), "we published index {value:#x}");
            }
            ControlWord::PendingSendSize => {
                assert!(value.is_multiple_of(8) && value < self.data_size(), "we asked for {value:#x} bytes");
            }
            ControlWord::InterruptMask => assert!(value <= 1, "we wrote mask {value:#x}"),
            ControlWord::FeatureBits => {}
        }
        self.before_access();
        lock(&self.bytes)[word.offset()..][..4].copy_from_slice(&value.to_le_bytes());
    }

    fn read(&self, at: u32, into: &mut [u8]) {
        self.before_access();
        let (at, size) = (at as usize, self.size());
        assert!(at < size && into.len() <= size, "we read {} bytes at {at:#x}", into.len());
        let bytes = lock(&self.bytes);
        for (index, byte) in into.iter_mut().enumerate() {
            *byte = bytes[CONTROL + (at + index) % size];
        }
    }

    fn write(&self, at: u32, from: &[u8]) {
        self.before_access();
        let (at, size) = (at as usize, self.size());
        assert!(at < size && from.len() <= size, "we wrote {} bytes at {at:#x}", from.len());
        let mut bytes = lock(&self.bytes);
        for (index, &byte) in from.iter().enumerate() {
            bytes[CONTROL + (at + index) % size] = byte;
        }
    }

    fn read_u64(&self, at: u32) -> u64 {
        assert!(at.is_multiple_of(8), "we read a word at {at:#x}");
        let mut bytes = [0; 8];
        self.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn write_u64(&self, at: u32, value: u64) {
        assert!(at.is_multiple_of(8), "we wrote a word at {at:#x}");
        self.write(at, &value.to_le_bytes());
    }
}

/// Plays what `data` says.
pub(crate) fn play(data: &[u8]) {
    // The first half is what happens in the middle of calls, the second what happens between them.
    let (within, between) = data.split_at(data.len() / 2);
    let mut between = Unstructured::new(between);
    let pages = between.int_in_range(1..=3).unwrap_or(1);
    let memory = Struck {
        bytes: Mutex::new(vec![0; CONTROL + pages * 4096]),
        strikes: Mutex::new(Unstructured::new(within)),
        accesses: AtomicUsize::new(0),
    };
    let (Ok(mut producer), Ok(mut consumer)) = (Producer::new(&memory), Consumer::new(&memory)) else {
        return;
    };
    let mut pushes = Vec::new();
    while let Ok(step) = between.arbitrary::<Step>() {
        if between.is_empty() {
            break;
        }
        memory.accesses.store(0, Ordering::Relaxed);
        // Whatever a call answers, it answers; faults are the peer's doing and leave the ends usable.
        match step {
            Step::Strike(strike) => memory.strike(&strike),
            Step::Push { kind, len, id, in_place } => pushes.push((kind, len, id, in_place)),
            Step::Commit => {
                let mut batch = producer.batch();
                for &(kind, len, id, in_place) in &pushes {
                    let _ = push(&mut batch, kind, len, id, in_place);
                }
                let _ = batch.commit();
                pushes.clear();
            }
            Step::Drop => {
                let mut batch = producer.batch();
                for &(kind, len, id, in_place) in &pushes {
                    let _ = push(&mut batch, kind, len, id, in_place);
                }
                pushes.clear();
            }
            Step::Room => {
                let _ = producer.room();
                assert!(producer.known_room() <= producer.capacity());
            }
            Step::RequestSpace(needed) => {
                let _ = producer.request_space(usize::from(needed));
            }
            Step::ClearSpaceRequest => producer.clear_space_request(),
            Step::Next => next(&mut consumer),
            Step::HasUnread => {
                let _ = consumer.has_unread();
            }
            Step::Publish => drop(consumer.publish()),
            Step::PublishIfDue => drop(consumer.publish_if_due()),
            Step::Mask => consumer.mask(),
            Step::Unmask => {
                let _ = consumer.unmask();
            }
            Step::Reopen => {
                let (Ok(again), Ok(anew)) = (Producer::new(&memory), Consumer::new(&memory)) else { return };
                (producer, consumer) = (again, anew);
            }
        }
        assert!(memory.accesses.load(Ordering::Relaxed) < 10_000, "a call went on and on");
    }
}

fn next(consumer: &mut Consumer<&Struck<'_>>) {
    let size = consumer.data_size() as usize;
    let Ok(Some(packet)) = consumer.next() else { return };
    let (header, payload) = (packet.header_len(), packet.payload_len());
    assert!(header.is_multiple_of(8) && payload.is_multiple_of(8));
    assert!(24 + header + payload <= MAX_PACKET_SIZE.min(size - 8), "a packet of {header}+{payload}");
    let mut bytes = vec![0; payload + 1];
    assert!(packet.read_payload(0, &mut bytes).is_err(), "one byte too many");
    assert!(packet.read_payload(usize::MAX, &mut bytes).is_err(), "beyond all bounds");
    packet.read_payload(0, &mut bytes[..payload]).expect("all there is");
    packet.read_payload(payload / 3, &mut bytes[..payload / 2]).expect("a part of it");
    let mut bytes = vec![0; header + 1];
    assert!(packet.read_header(&mut bytes).is_err(), "one byte too many");
    packet.read_header(&mut bytes[..header]).expect("all there is");
}

fn push<'a>(
    batch: &mut Batch<'_, &Struck<'a>>,
    kind: u8,
    len: u16,
    id: u64,
    in_place: bool,
) -> Result<(), PushError> {
    let payload = vec![0xa5; usize::from(len)];
    let transfer = [TransferRange { byte_count: id as u32, byte_offset: (id >> 32) as u32 }; 3];
    let direct = [
        GpaRange { byte_count: u32::from(len), byte_offset: (id % 5000) as u32, pfns: Pfns::From(id) },
        GpaRange { byte_count: id as u32, byte_offset: 0, pfns: Pfns::Listed(&[1, 2, 3]) },
    ];
    let kind = match kind % 5 {
        0 => OutgoingKind::InBand,
        1 => OutgoingKind::Completion,
        2 => OutgoingKind::TransferPages { set_id: len, ranges: &transfer[..usize::from(kind) % 4] },
        3 => OutgoingKind::GpaDirect(&direct[..usize::from(kind) % 3]),
        _ => OutgoingKind::GpaDirectEncoded {
            range_count: u32::from(kind),
            ranges: &payload[..payload.len() / 2],
        },
    };
    if in_place {
        let head = Head { kind, transaction_id: id, completion_requested: id.is_multiple_of(2) };
        batch.push_with(head, payload.len(), |writer| {
            assert!(writer.write(1, &payload).is_err() || payload.is_empty());
            writer.write(0, &payload).expect("as long as it was said to be");
        })
    } else {
        batch.push(Outgoing { kind, transaction_id: id, completion_requested: false, payload: &payload })
    }
}
