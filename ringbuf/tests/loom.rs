//! Models of the ring's three races under loom, each with a twin that has one ordering taken away and must fail: a
//! model whose twin passes proves nothing.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p vmbus-ringbuf --release --test loom`
//!
//! loom takes `SeqCst` accesses for acquire and release and knows the full order of fences only, so the model's memory
//! publishes by a release store and a fence. It also misses races of a thread that loads and then stores one word;
//! the ring's ends never load their own words.
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
use loom::thread;
use vmbus_ringbuf::{Consumer, ControlWord, Outgoing, Producer, RingMemory, Signal};

/// What [`RingMemory::publish`] is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Publication {
    /// As it must be.
    Full,
    /// Whoever sees the index need not see the data.
    WithoutRelease,
    /// What we load next may be older than what we stored.
    WithoutFence,
}

/// A ring of one page whose control words and first data words are loom's.
#[derive(Clone)]
struct ModelRing {
    shared: Arc<Shared>,
}

struct Shared {
    publication: Publication,
    control: [AtomicU32; 5],
    words: [AtomicU64; WORDS],
}

/// Words of the data area that are modelled: those the first two small packets need. The rest reads as zero.
const WORDS: usize = 8;

impl ModelRing {
    fn new(publication: Publication) -> Self {
        let shared = Shared {
            publication,
            control: std::array::from_fn(|_| AtomicU32::new(0)),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        Self { shared: Arc::new(shared) }
    }

    fn ends(&self) -> (Producer<Self>, Consumer<Self>) {
        (Producer::new(self.clone()).unwrap(), Consumer::new(self.clone()).unwrap())
    }

    fn word(&self, word: ControlWord) -> &AtomicU32 {
        let index = match word {
            ControlWord::WriteIndex => 0,
            ControlWord::ReadIndex => 1,
            ControlWord::InterruptMask => 2,
            ControlWord::PendingSendSize => 3,
            ControlWord::FeatureBits => 4,
        };
        &self.shared.control[index]
    }
}

impl RingMemory for ModelRing {
    fn data_size(&self) -> u32 {
        4096
    }

    fn load(&self, word: ControlWord, order: Ordering) -> u32 {
        self.word(word).load(order)
    }

    fn store(&self, word: ControlWord, value: u32, order: Ordering) {
        self.word(word).store(value, order);
    }

    fn read(&self, at: u32, into: &mut [u8]) {
        for (index, chunk) in into.chunks_mut(8).enumerate() {
            let word = self.read_u64(at + 8 * u32::try_from(index).unwrap());
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }

    fn write(&self, at: u32, from: &[u8]) {
        for (index, chunk) in from.chunks_exact(8).enumerate() {
            let word = u64::from_le_bytes(chunk.try_into().unwrap());
            self.write_u64(at + 8 * u32::try_from(index).unwrap(), word);
        }
    }

    fn read_u64(&self, at: u32) -> u64 {
        self.shared.words.get(at as usize / 8).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn write_u64(&self, at: u32, value: u64) {
        if let Some(word) = self.shared.words.get(at as usize / 8) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn publish(&self, word: ControlWord, value: u32) {
        match self.shared.publication {
            Publication::Full => {
                self.word(word).store(value, Ordering::Release);
                fence(Ordering::SeqCst);
            }
            Publication::WithoutRelease => {
                self.word(word).store(value, Ordering::Relaxed);
                fence(Ordering::SeqCst);
            }
            Publication::WithoutFence => self.word(word).store(value, Ordering::Release),
        }
    }
}

fn send(producer: &mut Producer<ModelRing>, payload: &[u8]) -> Signal {
    let mut batch = producer.batch();
    batch.push(Outgoing::in_band(payload)).unwrap();
    batch.commit().unwrap()
}

fn take(consumer: &mut Consumer<ModelRing>) -> Option<[u8; 8]> {
    let packet = consumer.next().expect("a committed packet is whole")?;
    let mut payload = [0; 8];
    packet.read_payload(0, &mut payload).expect("a committed packet is whole");
    Some(payload)
}

/// Runs the model over all executions.
fn holds(model: fn(Publication)) {
    loom::model(move || model(Publication::Full));
}

/// Expects that some execution breaks the weakened model.
fn breaks(model: fn(Publication), weakened: Publication) {
    let result = catch_unwind(AssertUnwindSafe(|| loom::model(move || model(weakened))));
    assert!(result.is_err(), "the model does not see what it is there for");
}

/// Who sees the write index sees the packets before it, descriptor and payload.
fn publication(memory: Publication) {
    let (mut producer, mut consumer) = ModelRing::new(memory).ends();
    consumer.mask();
    let writer = thread::spawn(move || {
        let _ = send(&mut producer, b"first...");
        let _ = send(&mut producer, b"second..");
    });
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.extend(take(&mut consumer));
    }
    writer.join().unwrap();
    while let Some(payload) = take(&mut consumer) {
        seen.push(payload);
    }
    assert_eq!(seen, [*b"first...", *b"second.."]);
}

/// A reader that found nothing after it unmasked sleeps; then the writer must have been told to signal. It had drained
/// one packet before, whose room it gives back late.
fn mask_and_rearm(memory: Publication) {
    let (mut producer, mut consumer) = ModelRing::new(memory).ends();
    let _ = send(&mut producer, b"before..");
    consumer.mask();
    assert!(take(&mut consumer).is_some());
    let writer = thread::spawn(move || send(&mut producer, b"racing.."));
    let asleep = !consumer.unmask().unwrap().unread;
    let signal = writer.join().unwrap();
    assert!(!asleep || signal == Signal::Ring, "the reader sleeps on a packet and nobody wakes it");
}

/// The same of a reader that never masks.
fn sleep_without_mask(memory: Publication) {
    let (mut producer, mut consumer) = ModelRing::new(memory).ends();
    let _ = send(&mut producer, b"before..");
    assert!(take(&mut consumer).is_some());
    let writer = thread::spawn(move || send(&mut producer, b"racing.."));
    let asleep = !consumer.unmask().unwrap().unread;
    let signal = writer.join().unwrap();
    assert!(!asleep || signal == Signal::Ring, "the reader sleeps on a packet and nobody wakes it");
}

/// A full ring, its writer about to ask for room, its reader about to give it.
fn full(memory: Publication) -> (Producer<ModelRing>, Consumer<ModelRing>) {
    let (mut producer, mut consumer) = ModelRing::new(memory).ends();
    let _ = send(&mut producer, &[1; 4064]);
    assert_eq!(producer.room(), Ok(0));
    consumer.mask();
    assert!(take(&mut consumer).is_some());
    (producer, consumer)
}

/// A writer that asked for room and did not find it sleeps; then the reader must have been told to signal.
fn pending_size(memory: Publication) {
    let (mut producer, mut consumer) = full(memory);
    let writer = thread::spawn(move || !producer.request_space(64).unwrap());
    let signal = consumer.publish().unwrap();
    let asleep = writer.join().unwrap();
    assert!(!asleep || signal == Signal::Ring, "the writer sleeps on room and nobody wakes it");
}

/// The same of a reader that goes to sleep.
fn pending_size_and_unmask(memory: Publication) {
    let (mut producer, mut consumer) = full(memory);
    let writer = thread::spawn(move || !producer.request_space(64).unwrap());
    let signal = consumer.unmask().unwrap().signal;
    let asleep = writer.join().unwrap();
    assert!(!asleep || signal == Signal::Ring, "the writer sleeps on room and nobody wakes it");
}

#[test]
fn packets_are_whole_when_seen() {
    holds(publication);
}

#[test]
fn packets_are_whole_when_seen_must_fail_twin() {
    breaks(publication, Publication::WithoutRelease);
}

#[test]
fn no_lost_wake_of_a_reader() {
    holds(mask_and_rearm);
}

#[test]
fn no_lost_wake_of_a_reader_must_fail_twin() {
    breaks(mask_and_rearm, Publication::WithoutFence);
}

#[test]
fn no_lost_wake_of_a_reader_that_never_masks() {
    holds(sleep_without_mask);
}

#[test]
fn no_lost_wake_of_a_reader_that_never_masks_must_fail_twin() {
    breaks(sleep_without_mask, Publication::WithoutFence);
}

#[test]
fn no_lost_wake_of_a_writer() {
    holds(pending_size);
}

#[test]
fn no_lost_wake_of_a_writer_must_fail_twin() {
    breaks(pending_size, Publication::WithoutFence);
}

#[test]
fn no_lost_wake_of_a_writer_by_a_reader_that_goes_to_sleep() {
    holds(pending_size_and_unmask);
}

#[test]
fn no_lost_wake_of_a_writer_by_a_reader_that_goes_to_sleep_must_fail_twin() {
    breaks(pending_size_and_unmask, Publication::WithoutFence);
}
