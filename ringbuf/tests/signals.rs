//! Signals counted: as many as needed, not one more.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use vmbus_ringbuf::{Consumer, Outgoing, PlainRing, Producer, Signal, Unmasked, packet_size};

fn ring() -> (Producer<PlainRing>, Consumer<PlainRing>) {
    let memory = PlainRing::new(128 * 1024);
    (Producer::new(memory.clone()).unwrap(), Consumer::new(memory).unwrap())
}

/// Commits `packets` packets of 64 bytes at once and gives the signal.
fn send(producer: &mut Producer<PlainRing>, packets: usize) -> Signal {
    let mut batch = producer.batch();
    for _ in 0..packets {
        batch.push(Outgoing::in_band(&[7; 64])).unwrap();
    }
    batch.commit().unwrap()
}

fn drain(consumer: &mut Consumer<PlainRing>) -> usize {
    let mut taken = 0;
    while consumer.next().unwrap().is_some() {
        taken += 1;
    }
    taken
}

const ASLEEP: Unmasked = Unmasked { signal: Signal::Quiet, unread: false };

#[test]
fn a_packet_for_a_sleeping_reader_signals_once() {
    let (mut producer, mut consumer) = ring();
    assert_eq!(consumer.unmask().unwrap(), ASLEEP);
    assert_eq!(send(&mut producer, 1), Signal::Ring);
    assert_eq!(send(&mut producer, 1), Signal::Quiet, "the reader was signalled already");

    assert_eq!(drain(&mut consumer), 2);
    assert_eq!(send(&mut producer, 1), Signal::Quiet, "the reader has not said that it sleeps");
    assert!(consumer.unmask().unwrap().unread, "so it must not sleep");
}

#[test]
fn a_thousand_packets_in_one_batch_signal_once() {
    let (mut producer, mut consumer) = ring();
    assert_eq!(consumer.unmask().unwrap(), ASLEEP);
    assert_eq!(send(&mut producer, 1000), Signal::Ring);
    assert_eq!(drain(&mut consumer), 1000);
}

#[test]
fn an_empty_or_dropped_batch_signals_nobody_and_writes_nothing() {
    let (mut producer, mut consumer) = ring();
    assert_eq!(consumer.unmask().unwrap(), ASLEEP);
    assert_eq!(send(&mut producer, 0), Signal::Quiet);
    let mut batch = producer.batch();
    batch.push(Outgoing::in_band(&[1; 64])).unwrap();
    drop(batch);
    assert!(!consumer.has_unread().unwrap());
    assert_eq!(send(&mut producer, 1), Signal::Ring);
    assert_eq!(drain(&mut consumer), 1);
}

#[test]
fn a_polling_reader_is_never_signalled() {
    const PACKETS: usize = 20_000;
    let (mut producer, mut consumer) = ring();
    consumer.mask();
    let reader = thread::spawn(move || {
        let mut taken = 0;
        while taken < PACKETS {
            taken += drain(&mut consumer);
            let _ = consumer.publish_if_due().unwrap();
            thread::yield_now();
        }
    });
    let mut sent = 0;
    while sent < PACKETS {
        if producer.room().unwrap() >= packet_size(0, 64).unwrap() {
            assert_eq!(send(&mut producer, 1), Signal::Quiet);
            sent += 1;
        }
    }
    reader.join().unwrap();
}

/// A doorbell on which the reader really sleeps, and which counts.
#[derive(Default)]
struct Bell {
    state: Mutex<BellState>,
    changed: Condvar,
}

#[derive(Default)]
struct BellState {
    rung: usize,
    heard: usize,
    asleep: bool,
    taken: usize,
}

impl Bell {
    fn ring(&self, signal: Signal) {
        if signal.is_ring() {
            self.state.lock().unwrap().rung += 1;
            self.changed.notify_all();
        }
    }

    fn sleep(&self) {
        let mut state = self.state.lock().unwrap();
        state.asleep = true;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.rung == state.heard).unwrap();
        state.heard = state.rung;
        state.asleep = false;
    }

    /// Waits until the reader sleeps after it took `packets` in all; gives how often the bell rang.
    fn rung_when_asleep_after(&self, packets: usize) -> usize {
        let state = self.state.lock().unwrap();
        self.changed.wait_while(state, |state| !(state.asleep && state.taken == packets)).unwrap().rung
    }
}

#[test]
fn a_sleeping_thread_wakes_once_per_batch() {
    let (mut producer, mut consumer) = ring();
    let bell = Arc::new(Bell::default());
    let theirs = Arc::clone(&bell);
    let reader = thread::spawn(move || {
        let mut taken = 0;
        while taken < 2001 {
            consumer.mask();
            let now = drain(&mut consumer);
            taken += now;
            theirs.state.lock().unwrap().taken = taken;
            if taken < 2001 && !consumer.unmask().unwrap().unread {
                theirs.sleep();
            }
        }
    });
    assert_eq!(bell.rung_when_asleep_after(0), 0);
    bell.ring(send(&mut producer, 1));
    assert_eq!(bell.rung_when_asleep_after(1), 1, "one packet, one signal");
    bell.ring(send(&mut producer, 1000));
    assert_eq!(bell.rung_when_asleep_after(1001), 2, "a thousand packets, one signal");
    bell.ring(send(&mut producer, 1000));
    reader.join().unwrap();
    assert_eq!(bell.state.lock().unwrap().rung, 3);
}

#[test]
fn a_waiting_writer_is_signalled_when_its_room_is_there_and_only_then() {
    let memory = PlainRing::new(4096);
    let mut producer = Producer::new(memory.clone()).unwrap();
    let mut consumer = Consumer::new(memory).unwrap();
    let packet = packet_size(0, 900).unwrap();
    let payload = [3; 900];
    let mut batch = producer.batch();
    for _ in 0..3 {
        batch.push(Outgoing::in_band(&payload)).unwrap();
    }
    let _ = batch.commit().unwrap();
    assert!(!producer.request_space(2 * packet).unwrap(), "one more would fit, two do not");

    assert!(consumer.next().unwrap().is_some());
    assert_eq!(consumer.publish().unwrap(), Signal::Ring, "now two do");
    assert!(consumer.next().unwrap().is_some());
    assert_eq!(consumer.publish().unwrap(), Signal::Quiet, "the threshold is crossed once");

    assert!(producer.request_space(2 * packet).unwrap(), "room is there: no need to wait");
    assert!(consumer.next().unwrap().is_some());
    assert_eq!(consumer.publish().unwrap(), Signal::Quiet, "and nobody waits");
}

#[test]
fn a_writer_that_waits_for_the_whole_ring_is_served_by_a_reader_that_only_polls() {
    let memory = PlainRing::new(4096);
    let mut producer = Producer::new(memory.clone()).unwrap();
    let mut consumer = Consumer::new(memory).unwrap();
    consumer.mask();
    assert_eq!(producer.capacity(), 4088);
    let _ = {
        let mut batch = producer.batch();
        batch.push(Outgoing::in_band(&[1; 8])).unwrap();
        batch.commit().unwrap()
    };
    assert!(consumer.next().unwrap().is_some());
    assert_eq!(consumer.publish_if_due().unwrap(), Signal::Quiet, "too little to be worth it");
    assert!(!producer.request_space(producer.capacity()).unwrap());
    assert!(consumer.next().unwrap().is_none());
    assert_eq!(consumer.publish_if_due().unwrap(), Signal::Ring, "but somebody waits for it");
    assert!(producer.request_space(producer.capacity()).unwrap());
}

#[test]
fn a_writer_that_does_not_report_its_needs_is_never_signalled_but_gets_its_room() {
    use std::sync::atomic::Ordering;
    use vmbus_ringbuf::{ControlWord, RingMemory};

    let memory = PlainRing::new(4096);
    let mut producer = Producer::new(memory.clone()).unwrap();
    let mut consumer = Consumer::new(memory.clone()).unwrap();
    memory.store(ControlWord::FeatureBits, 0, Ordering::Relaxed);
    memory.store(ControlWord::PendingSendSize, 4088, Ordering::Relaxed);
    let mut batch = producer.batch();
    batch.push(Outgoing::in_band(&[1; 8])).unwrap();
    let _ = batch.commit().unwrap();
    assert!(consumer.next().unwrap().is_some());
    assert!(consumer.next().unwrap().is_none());
    assert_eq!(consumer.publish_if_due().unwrap(), Signal::Quiet);
    assert_eq!(producer.room().unwrap(), producer.capacity());
}
