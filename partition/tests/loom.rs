//! No sleeper of a control area misses what it sleeps for, in any order of events: the code of `src/area.rs` over
//! words that loom watches. Each model has a twin with one thing missing that must fail.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p vmbus-partition --test loom`
#![cfg(loom)]

#[path = "../src/area.rs"]
#[allow(dead_code, reason = "the model uses its part")]
mod area;

use std::convert::Infallible;

use area::{AreaWords, RoomWords};
use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;

/// What a twin leaves out.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Nothing,
    /// The fence between one's own word and the look at the other's.
    Fence,
    /// The ordering of the flag words, by which data written before a signal is seen after it.
    FlagOrder,
    /// The second look after arming.
    SecondLook,
}

struct Words {
    flags: AtomicU64,
    summary: AtomicU32,
    waiting: AtomicU32,
    consumed: AtomicU32,
    missing: Missing,
}

impl Words {
    fn new(missing: Missing) -> Self {
        let [summary, waiting, consumed] = [(); 3].map(|()| AtomicU32::new(0));
        Self { flags: AtomicU64::new(0), summary, waiting, consumed, missing }
    }

    fn flag_order(&self) -> Ordering {
        if self.missing == Missing::FlagOrder { Relaxed } else { AcqRel }
    }

    fn fence(&self) {
        if self.missing != Missing::Fence {
            fence(SeqCst);
        }
    }
}

impl AreaWords for Words {
    fn fetch_or_flags(&self, _index: usize, bits: u64) -> u64 {
        self.flags.fetch_or(bits, self.flag_order())
    }
    fn take_flags(&self, _index: usize) -> u64 {
        self.flags.swap(0, self.flag_order())
    }
    fn fetch_or_summary(&self, bits: u32) {
        self.summary.fetch_or(bits, AcqRel);
    }
    fn take_summary(&self) -> u32 {
        self.summary.swap(0, AcqRel)
    }
    fn summary(&self) -> u32 {
        self.summary.load(Acquire)
    }
    fn set_waiting(&self, value: u32) {
        self.waiting.store(value, Release);
    }
    fn waiting(&self) -> u32 {
        self.waiting.load(Acquire)
    }
    fn take_waiting(&self) -> u32 {
        self.waiting.swap(0, AcqRel)
    }
    fn full_fence(&self) {
        self.fence();
    }
}

impl RoomWords for Words {
    fn set_consumed(&self, value: u32) {
        self.consumed.store(value, Release);
    }
    fn set_blocked(&self, value: u32) {
        self.waiting.store(value, Release);
    }
    fn blocked(&self) -> u32 {
        self.waiting.load(Acquire)
    }
    fn take_blocked(&self) -> u32 {
        self.waiting.swap(0, AcqRel)
    }
    fn full_fence(&self) {
        self.fence();
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Each of the signallers writes its datum and sets its flag. The sleeper looks until it has seen every datum or goes to
/// sleep; if it sleeps although it has not, somebody must have rung.
fn signallers(flags: &'static [u16], missing: Missing) {
    check(move || {
        let words = Arc::new(Words::new(missing));
        let rung = Arc::new(AtomicBool::new(false));
        let data: Arc<Vec<AtomicU32>> = Arc::new(flags.iter().map(|_| AtomicU32::new(0)).collect());
        let threads: Vec<_> = flags
            .iter()
            .enumerate()
            .map(|(index, &flag)| {
                let (words, rung, data) = (Arc::clone(&words), Arc::clone(&rung), Arc::clone(&data));
                thread::spawn(move || {
                    data[index].store(1, Relaxed);
                    if area::signal(&*words, flag) {
                        rung.store(true, Relaxed);
                    }
                })
            })
            .collect();
        let sleeps = loop {
            area::take(&*words, |_| {});
            if data.iter().all(|datum| datum.load(Relaxed) == 1) {
                area::disarm(&*words);
                break false;
            }
            let pending = area::arm(&*words);
            if !pending || missing == Missing::SecondLook {
                break true;
            }
        };
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(!sleeps || rung.load(Relaxed), "it sleeps, and nobody has rung");
    });
}

#[test]
fn a_signal_wakes_a_sleeper() {
    signallers(&[5], Missing::Nothing);
}

#[test]
#[should_panic(expected = "nobody has rung")]
fn a_signal_wakes_a_sleeper_must_fail_without_the_fence() {
    signallers(&[5], Missing::Fence);
}

#[test]
#[should_panic(expected = "nobody has rung")]
fn a_signal_wakes_a_sleeper_must_fail_without_the_second_look() {
    signallers(&[5], Missing::SecondLook);
}

#[test]
fn a_second_signal_of_a_flag_that_is_set_is_not_lost() {
    signallers(&[5, 5], Missing::Nothing);
}

#[test]
#[should_panic(expected = "nobody has rung")]
fn a_second_signal_of_a_flag_that_is_set_must_fail_without_order() {
    signallers(&[5, 5], Missing::FlagOrder);
}

#[test]
fn signals_of_two_flags_are_both_seen() {
    signallers(&[5, 6], Missing::Nothing);
}

/// A sender that found its ring full and sees no room goes to sleep; then the receiver must have signalled.
fn full_ring(missing: Missing) {
    check(move || {
        let words = Arc::new(Words::new(missing));
        let receiver = {
            let words = Arc::clone(&words);
            thread::spawn(move || area::free_slot(&*words, 1))
        };
        let has_room = || Ok::<_, Infallible>(words.consumed.load(Acquire) == 1);
        let sleeps = !area::ask_for_room(&*words, has_room).unwrap();
        let signalled = receiver.join().unwrap();
        assert!(!sleeps || signalled, "it sleeps, and nobody has signalled");
    });
}

#[test]
fn room_in_a_full_ring_is_told() {
    full_ring(Missing::Nothing);
}

#[test]
#[should_panic(expected = "nobody has signalled")]
fn room_in_a_full_ring_must_fail_without_the_fence() {
    full_ring(Missing::Fence);
}
