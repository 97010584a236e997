//! Both ends of a ring, saved and taken up at any moment: nothing is lost, nothing comes twice, and who waits is told.
#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vmbus_ringbuf::{
    Consumer, ControlWord, Outgoing, PlainRing, Producer, PushError, RingFault, RingMemory, SavedConsumer,
    SavedProducer, Signal, TakeUpError,
};

const SIZE: u32 = 4096;

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    WaitForRoom(usize),
    Take,
    Publish,
    Mask,
    Unmask,
    ProducerRestarts,
    ConsumerRestarts,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..900_usize).prop_map(Step::Send),
        1 => (8..4000_usize).prop_map(Step::WaitForRoom),
        5 => Just(Step::Take),
        2 => Just(Step::Publish),
        1 => Just(Step::Mask),
        1 => Just(Step::Unmask),
        2 => Just(Step::ProducerRestarts),
        2 => Just(Step::ConsumerRestarts),
    ];
    prop::collection::vec(step, 1..200)
}

/// What both ends did: the packets in order, and every signal that was owed.
fn told(steps: &[Step], with_restarts: bool) -> (Vec<u64>, Vec<Signal>, usize) {
    let memory = PlainRing::new(SIZE);
    let mut producer = Producer::new(memory.clone()).unwrap();
    let mut consumer = Consumer::new(memory.clone()).unwrap();
    let (mut taken, mut signals, mut sent) = (Vec::new(), Vec::new(), 0);
    let mut waiting = VecDeque::new();
    for step in steps {
        match step {
            Step::Send(len) => {
                let mut batch = producer.batch();
                match batch.push(Outgoing::request(sent, &vec![7; *len])) {
                    Ok(()) => {
                        sent += 1;
                        signals.push(batch.commit().unwrap());
                    }
                    Err(PushError::Full) => waiting.push_back(*len),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::WaitForRoom(needed) => {
                producer.request_space(*needed).unwrap();
            }
            Step::Take => {
                if let Some(packet) = consumer.next().unwrap() {
                    taken.push(packet.transaction_id);
                }
            }
            Step::Publish => signals.push(consumer.publish().unwrap()),
            Step::Mask => consumer.mask(),
            Step::Unmask => signals.push(consumer.unmask().unwrap().signal),
            Step::ProducerRestarts if with_restarts => {
                let saved = producer.save();
                producer = Producer::take_up(memory.clone(), saved).unwrap();
                assert_eq!(producer.save(), saved);
            }
            Step::ConsumerRestarts if with_restarts => {
                let saved = consumer.save();
                consumer = Consumer::take_up(memory.clone(), saved).unwrap();
                assert_eq!(consumer.save(), saved);
            }
            Step::ProducerRestarts | Step::ConsumerRestarts => {}
        }
    }
    let pending = memory.load(ControlWord::PendingSendSize, Ordering::Relaxed);
    producer.clear_space_request();
    let withdrawn = memory.load(ControlWord::PendingSendSize, Ordering::Relaxed);
    assert_eq!(withdrawn, 0, "a request for room of {pending} bytes stands for ever");
    (taken, signals, waiting.len())
}

proptest! {
    #[test]
    fn a_ring_whose_ends_restart_is_the_ring_whose_ends_do_not(steps in steps()) {
        prop_assert_eq!(told(&steps, true), told(&steps, false));
    }

    #[test]
    fn saved_numbers_that_anybody_kept_are_checked(
        write in 0..2 * SIZE, read in 0..2 * SIZE, published in 0..2 * SIZE,
        at_write in 0..2 * SIZE, at_read in 0..2 * SIZE,
    ) {
        let memory = PlainRing::new(SIZE);
        memory.store(ControlWord::WriteIndex, at_write % (SIZE + 8), Ordering::Relaxed);
        memory.store(ControlWord::ReadIndex, at_read % (SIZE + 8), Ordering::Relaxed);
        let saved = SavedConsumer { read, published };
        if let Ok(mut consumer) = Consumer::take_up(memory.clone(), saved) {
            while let Ok(Some(_)) = consumer.next() {}
            let _ = consumer.unmask();
        }
        if let Ok(mut producer) = Producer::take_up(memory, SavedProducer { write, space_requested: true }) {
            let _ = producer.batch().push(Outgoing::request(1, &[1; 100]));
        }
    }
}

#[test]
fn packets_that_were_taken_do_not_come_again() {
    let memory = PlainRing::new(SIZE);
    let mut producer = Producer::new(memory.clone()).unwrap();
    let mut consumer = Consumer::new(memory.clone()).unwrap();
    for id in 0..3 {
        let mut batch = producer.batch();
        batch.push(Outgoing::request(id, b"question")).unwrap();
        let _ = batch.commit().unwrap();
    }
    assert_eq!(consumer.next().unwrap().unwrap().transaction_id, 0);
    let saved = consumer.save();
    let mut consumer = Consumer::take_up(memory, saved).unwrap();
    assert_eq!(consumer.next().unwrap().unwrap().transaction_id, 1);
}

#[test]
fn state_of_another_moment_is_refused() {
    let memory = PlainRing::new(SIZE);
    let mut producer = Producer::new(memory.clone()).unwrap();
    let mut consumer = Consumer::new(memory.clone()).unwrap();
    let (before_write, before_read) = (producer.save(), consumer.save());
    let mut batch = producer.batch();
    batch.push(Outgoing::request(1, &[])).unwrap();
    let _ = batch.commit().unwrap();
    let moved = Producer::take_up(memory.clone(), before_write).unwrap_err();
    assert_eq!(moved, TakeUpError::Moved { saved: 0, found: 24 });
    assert!(consumer.next().unwrap().is_some());
    let _ = consumer.publish().unwrap();
    let moved = Consumer::take_up(memory.clone(), before_read).unwrap_err();
    assert_eq!(moved, TakeUpError::Moved { saved: 0, found: 24 });
    let ahead = SavedConsumer { read: 64, published: 24 };
    assert_eq!(Consumer::take_up(memory.clone(), ahead).unwrap_err(), TakeUpError::Index(64));
    memory.store(ControlWord::WriteIndex, 5, Ordering::Relaxed);
    let ring = Producer::take_up(memory, producer.save()).unwrap_err();
    assert_eq!(ring, TakeUpError::Ring(RingFault::WriteIndex(5)));
}
