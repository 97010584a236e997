//! A session that rests in a storm does not sleep over a packet, in any order of events: the code of
//! `channels/src/channel/resting.rs`. The twin leaves the fences out and must fail.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p vmbus-partition --test loom_resting`
#![cfg(loom)]

#[path = "../../channels/src/channel/resting.rs"]
#[expect(dead_code, reason = "the model takes no signals: it has one")]
mod resting;

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicBool, AtomicUsize};
use loom::thread;
use resting::Signals;

/// The same without its fences.
#[derive(Default)]
struct Unfenced(AtomicUsize);

trait Rests: Default + Send + Sync + 'static {
    fn came(&self) -> bool;
    fn rests(&self, looks_out: impl FnOnce());
}

impl Rests for Signals {
    fn came(&self) -> bool {
        Self::came(self)
    }
    fn rests(&self, looks_out: impl FnOnce()) {
        let _resting = self.rest();
        looks_out();
    }
}

impl Rests for Unfenced {
    fn came(&self) -> bool {
        self.0.load(Relaxed) > 0
    }
    fn rests(&self, looks_out: impl FnOnce()) {
        self.0.fetch_add(1, Relaxed);
        looks_out();
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A guest writes a packet and signals. The session, which rested, looks for the last time and sleeps.
fn a_packet_is_seen_or_somebody_is_woken<R: Rests>() {
    loom::model(|| {
        let signals = Arc::new(R::default());
        let packet = Arc::new(AtomicBool::new(false));
        let woken = Arc::new(AtomicBool::new(false));
        let guest = {
            let (signals, packet, woken) = (Arc::clone(&signals), Arc::clone(&packet), Arc::clone(&woken));
            thread::spawn(move || {
                packet.store(true, Release);
                if !signals.came() {
                    woken.store(true, Release);
                }
            })
        };
        signals.rests(thread::yield_now);
        let seen = packet.load(Acquire);
        guest.join().unwrap();
        assert!(seen || woken.load(Acquire), "the session sleeps over the packet");
    });
}

#[test]
fn who_rests_does_not_sleep_over_a_packet() {
    a_packet_is_seen_or_somebody_is_woken::<Signals>();
}

#[test]
#[should_panic(expected = "the session sleeps over the packet")]
fn without_fences_it_does() {
    a_packet_is_seen_or_somebody_is_woken::<Unfenced>();
}
