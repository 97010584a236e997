//! Two threads that sleep whenever they may, under a controlled scheduler: a wake-up lost is a deadlock found.
//!
//! `cargo test -p vmbus-ringbuf --features shuttle --test shuttle`
//!
//! The scheduler is sequentially consistent: orderings are loom's business (`tests/loom.rs`).
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use shuttle::sync::atomic::AtomicU32;
use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread;
use vmbus_ringbuf::{Consumer, ControlWord, Outgoing, PlainRing, Producer, PushError, RingMemory, Signal};

/// A ring of one page whose control words are the scheduler's.
#[derive(Clone)]
struct ScheduledRing {
    control: Arc<[AtomicU32; 5]>,
    data: PlainRing,
}

impl ScheduledRing {
    fn new() -> Self {
        Self { control: Arc::new(std::array::from_fn(|_| AtomicU32::new(0))), data: PlainRing::new(4096) }
    }

    fn word(&self, word: ControlWord) -> &AtomicU32 {
        let index = match word {
            ControlWord::WriteIndex => 0,
            ControlWord::ReadIndex => 1,
            ControlWord::InterruptMask => 2,
            ControlWord::PendingSendSize => 3,
            ControlWord::FeatureBits => 4,
        };
        &self.control[index]
    }
}

impl RingMemory for ScheduledRing {
    fn data_size(&self) -> u32 {
        self.data.data_size()
    }
    fn load(&self, word: ControlWord, _: Ordering) -> u32 {
        self.word(word).load(Ordering::SeqCst)
    }
    fn store(&self, word: ControlWord, value: u32, _: Ordering) {
        self.word(word).store(value, Ordering::SeqCst);
    }
    fn read(&self, at: u32, into: &mut [u8]) {
        self.data.read(at, into);
    }
    fn write(&self, at: u32, from: &[u8]) {
        self.data.write(at, from);
    }
}

/// A doorbell.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring_if(&self, signal: Signal) {
        if signal.is_ring() {
            *self.rung.lock().unwrap() = true;
            self.changed.notify_one();
        }
    }

    fn sleep(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// Which step, if any, an end leaves out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Omission {
    Nothing,
    /// The reader sleeps without a last look.
    LastLook,
    /// The writer waits for room without having asked for it.
    SpaceRequest,
    /// The reader sleeps on room that it has not given back.
    Publication,
}

const PACKETS: usize = 24;

fn writer(memory: ScheduledRing, room: &Bell, packets: &Bell, omission: Omission) {
    let mut producer = Producer::new(memory).unwrap();
    let mut sent = 0;
    while sent < PACKETS {
        // Nine of these fill the ring, three are worth publishing; batches are of one and two.
        let payload = [u8::try_from(sent).unwrap(); 400];
        let mut batch = producer.batch();
        let mut full = false;
        for _ in 0..1 + sent % 2 {
            match batch.push(Outgoing::in_band(&payload)) {
                Ok(()) => sent += 1,
                Err(PushError::Full) => full = true,
                Err(error) => panic!("{error}"),
            }
        }
        packets.ring_if(batch.commit().unwrap());
        if full {
            if omission == Omission::SpaceRequest || !producer.request_space(424).unwrap() {
                room.sleep();
            }
            producer.clear_space_request();
        }
    }
}

fn reader(memory: ScheduledRing, room: &Bell, packets: &Bell, omission: Omission) {
    let mut consumer = Consumer::new(memory.clone()).unwrap();
    let mut taken = 0;
    loop {
        consumer.mask();
        while let Some(packet) = consumer.next().unwrap() {
            assert_eq!(packet.payload_len(), 400);
            taken += 1;
        }
        room.ring_if(consumer.publish_if_due().unwrap());
        if taken >= PACKETS {
            break;
        }
        if omission == Omission::Publication {
            memory.store(ControlWord::InterruptMask, 0, Ordering::SeqCst);
            if !consumer.has_unread().unwrap() {
                packets.sleep();
            }
            continue;
        }
        let unmasked = consumer.unmask().unwrap();
        room.ring_if(unmasked.signal);
        if !unmasked.unread || omission == Omission::LastLook {
            packets.sleep();
        }
    }
}

fn story(omission: Omission) {
    let memory = ScheduledRing::new();
    let bells = Arc::new((Bell::default(), Bell::default()));
    let (their_memory, their_bells) = (memory.clone(), Arc::clone(&bells));
    let thread = thread::spawn(move || writer(their_memory, &their_bells.0, &their_bells.1, omission));
    reader(memory, &bells.0, &bells.1, omission);
    thread.join().unwrap();
}

fn breaks(omission: Omission) {
    let result = catch_unwind(AssertUnwindSafe(|| shuttle::check_random(move || story(omission), 20_000)));
    assert!(result.is_err(), "a wake-up is lost and nobody noticed");
}

#[test]
fn no_wake_up_is_lost() {
    shuttle::check_random(|| story(Omission::Nothing), 2_000);
    shuttle::check_pct(|| story(Omission::Nothing), 2_000, 3);
}

#[test]
fn no_wake_up_is_lost_must_fail_twin_without_last_look() {
    breaks(Omission::LastLook);
}

#[test]
fn no_wake_up_is_lost_must_fail_twin_without_space_request() {
    breaks(Omission::SpaceRequest);
}

#[test]
fn no_wake_up_is_lost_must_fail_twin_without_publication() {
    breaks(Omission::Publication);
}
