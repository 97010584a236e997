//! A reader and a writer for ThreadSanitizer, over memory mapped as at run time, with the copies made plain so that it
//! sees them:
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 \
//! RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg plain_copies" \
//! CARGO_TARGET_DIR=target/tsan \
//! cargo run -p vmbus-ringbuf --target x86_64-unknown-linux-gnu --example tsan
//! ```
//!
//! Silent, with exit status 0, means no race. With the argument `broken` the indices are published without order, and
//! the sanitizer must complain (exit status 66): the proof that it can. It works outside of the test harness only.
#![expect(clippy::unwrap_used, reason = "what fails here ends the run")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use vmbus_partition::{GpaSpace, Mapping, Region, RingMapping};
use vmbus_ringbuf::{Consumer, ControlWord, Outgoing, Producer, PushError, RingMemory};

const PACKETS: u64 = 5_000;

fn main() {
    let broken = std::env::args().nth(1).is_some_and(|argument| argument == "broken");
    // One mapping, so that a byte has one address only: the sanitizer knows no other way to tell bytes apart.
    let region = Region { gpa: 0, domain: 0, mapping: Mapping::anonymous(3 * 4096).unwrap() };
    let space = Arc::new(GpaSpace::new(vec![region], 0).unwrap());
    let memory = Arc::new(space.ring(0..3).unwrap());
    assert!(!memory.is_mapped_twice());
    let ring = || Ring { memory: Arc::clone(&memory), broken };

    let mut producer = Producer::new(ring()).unwrap();
    let mut consumer = Consumer::new(ring()).unwrap();
    let writer = thread::spawn(move || {
        for id in 1..=PACKETS {
            let payload = vec![id.to_le_bytes()[0]; 8 * (id % 90) as usize];
            loop {
                let mut batch = producer.batch();
                match batch.push(Outgoing::request(id, &payload)) {
                    Ok(()) => {
                        let _ = batch.commit().unwrap();
                        break;
                    }
                    Err(PushError::Full) => {
                        if !producer.request_space(1024).unwrap() {
                            thread::yield_now();
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    let mut expected = 1;
    while expected <= PACKETS {
        if let Some(packet) = consumer.next().unwrap() {
            let mut payload = vec![0; packet.payload_len()];
            packet.read_payload(0, &mut payload).unwrap();
            if !broken {
                assert_eq!(packet.transaction_id, expected);
                assert!(payload.iter().all(|&byte| byte == expected.to_le_bytes()[0]));
            }
            expected += 1;
        } else {
            thread::yield_now();
        }
        let _ = consumer.publish_if_due().unwrap();
    }
    writer.join().unwrap();
}

/// The ring's memory, or one that has forgotten the order of its control words.
struct Ring {
    memory: Arc<RingMapping>,
    broken: bool,
}

impl RingMemory for Ring {
    fn data_size(&self) -> u32 {
        self.memory.data_size()
    }
    fn load(&self, word: ControlWord, order: Ordering) -> u32 {
        self.memory.load(word, if self.broken { Ordering::Relaxed } else { order })
    }
    fn store(&self, word: ControlWord, value: u32, order: Ordering) {
        self.memory.store(word, value, if self.broken { Ordering::Relaxed } else { order });
    }
    fn read(&self, at: u32, into: &mut [u8]) {
        self.memory.read(at, into);
    }
    fn write(&self, at: u32, from: &[u8]) {
        self.memory.write(at, from);
    }
}
