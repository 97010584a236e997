//! No signal by a monitor bit is lost, in any order of events: the code of `channels/src/monitor/bits.rs` over a word
//! that loom watches. The twins leave something out and must fail.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p vmbus-partition --test loom_monitor`
#![cfg(loom)]

#[path = "../../channels/src/monitor/bits.rs"]
mod bits;

use bits::Pending;
use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

const MASK: u32 = 0b10;

/// What a twin leaves out.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Nothing,
    /// The last look at the ring comes before the bit is cleared, not after.
    Order,
    /// The ordering of the word, by which what was written before a bit is seen after it.
    WordOrder,
    /// The bit that others set in the same word.
    Others,
}

struct Word(AtomicU32, Missing);

impl Word {
    fn order(&self) -> Ordering {
        if self.1 == Missing::WordOrder { Relaxed } else { AcqRel }
    }
}

impl Pending for Word {
    fn load(&self) -> u32 {
        self.0.load(Acquire)
    }
    fn set(&self, bits: u32) {
        self.0.fetch_or(bits, self.order());
    }
    fn keep(&self, bits: u32) {
        let bits = if self.1 == Missing::Others { 0 } else { bits };
        self.0.fetch_and(bits, self.order());
    }
    fn take(&self) -> u32 {
        self.0.swap(0, self.order())
    }
}

/// A guest writes a packet and sets its bit. The session finds nothing, clears the bit, looks once more and sleeps. The
/// root looks for the bit once. If the session sleeps although the packet is there, either it was told, or the bit is
/// still there for the root's next look; whoever was told sees the packet.
fn a_packet_is_never_slept_over(missing: Missing) {
    loom::model(move || {
        let word = Arc::new(Word(AtomicU32::new(0), missing));
        let ring = Arc::new(AtomicU32::new(0));
        let told = Arc::new(AtomicU32::new(0));
        let guest = thread::spawn({
            let (word, ring) = (Arc::clone(&word), Arc::clone(&ring));
            move || {
                // The ring's own rules make a packet visible to who reads the index; that of the bit is ours.
                ring.store(1, Relaxed);
                bits::request(&*word, MASK);
            }
        });
        let root = thread::spawn({
            let (word, told, ring) = (Arc::clone(&word), Arc::clone(&told), Arc::clone(&ring));
            move || {
                if bits::collect(&*word, MASK) != 0 {
                    assert_eq!(ring.load(Relaxed), 1, "who was told sees the packet");
                    told.store(1, Release);
                }
            }
        });
        // The session.
        let mut sees = ring.load(Relaxed) == 1;
        if !sees {
            if missing == Missing::Order {
                sees = ring.load(Relaxed) == 1;
                bits::cancel(&*word, MASK);
            } else {
                bits::cancel(&*word, MASK);
                sees = ring.load(Relaxed) == 1;
            }
        }
        guest.join().unwrap();
        root.join().unwrap();
        if !sees {
            let found_later = bits::collect(&*word, MASK) != 0;
            assert!(found_later || told.load(Acquire) == 1, "a packet is slept over");
        }
    });
}

/// Two guests' channels share a word: clearing one's bit leaves the other's.
fn a_neighbours_bit_stays(missing: Missing) {
    loom::model(move || {
        let word = Arc::new(Word(AtomicU32::new(MASK), missing));
        let neighbour = thread::spawn({
            let word = Arc::clone(&word);
            move || bits::request(&*word, 1)
        });
        bits::cancel(&*word, MASK);
        neighbour.join().unwrap();
        assert_eq!(bits::collect(&*word, u32::MAX), 1);
    });
}

#[test]
fn no_packet_is_slept_over() {
    a_packet_is_never_slept_over(Missing::Nothing);
}

#[test]
#[should_panic(expected = "a packet is slept over")]
fn looking_before_clearing_loses_packets() {
    a_packet_is_never_slept_over(Missing::Order);
}

#[test]
#[should_panic]
fn an_unordered_word_shows_the_bit_before_the_packet() {
    a_packet_is_never_slept_over(Missing::WordOrder);
}

#[test]
fn clearing_a_bit_leaves_its_neighbours() {
    a_neighbours_bit_stays(Missing::Nothing);
}

#[test]
#[should_panic]
fn clearing_the_word_loses_neighbours() {
    a_neighbours_bit_stays(Missing::Others);
}
