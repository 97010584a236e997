//! What a channel costs does not depend on how many there are.
//!
//! Times are compared within one run, the best of several stretches each, taken in turns: the machine's own drift is in
//! both. `cargo test -p vmbus-core --release --test cost -- --nocapture` shows them.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod bus;

use std::time::{Duration, Instant};

use vmbus_core::server::DeviceKey;

use crate::bus::Bus;

const COUNTS: [u64; 4] = [1, 64, 512, 2000];
const STRETCHES: u64 = 12;
const CYCLES: u64 = 400;

/// A bus with so many channels, all open.
struct Crowd {
    bus: Bus,
    channels: u64,
    next: u64,
}

impl Crowd {
    fn new(channels: u64) -> Self {
        let mut bus = Bus::new(|_| true);
        for device in 0..channels {
            bus.offer(DeviceKey(device));
        }
        assert_eq!(bus.opened, channels);
        Self { bus, channels, next: 0 }
    }

    /// Takes one device back and offers it anew: rescind, release, offer, page list, open.
    fn cycle(&mut self) {
        // In an order that is not that of their numbers.
        self.next = (self.next + 7919) % self.channels;
        self.bus.rescind(DeviceKey(self.next));
        self.bus.offer(DeviceKey(self.next));
    }
}

#[test]
fn opening_a_channel_costs_the_same_among_one_and_among_two_thousand() {
    let mut crowds = COUNTS.map(Crowd::new);
    let mut best = [Duration::MAX; COUNTS.len()];
    for _ in 0..STRETCHES {
        for (crowd, best) in crowds.iter_mut().zip(&mut best) {
            let start = Instant::now();
            for _ in 0..CYCLES {
                crowd.cycle();
            }
            *best = start.elapsed().min(*best);
        }
    }
    for crowd in crowds {
        let (opened, released) = (crowd.bus.opened - crowd.channels, crowd.bus.released);
        assert_eq!((opened, released), (STRETCHES * CYCLES, STRETCHES * CYCLES), "each came and went");
    }
    let each = best.map(|time| time.as_nanos() / u128::from(CYCLES));
    println!("rescind, offer and open, in ns, among {COUNTS:?} channels: {each:?}");
    // Maps of two thousand are a few steps deeper than maps of one; a scan would cost hundreds of times more.
    assert!(each[3] < each[0] * 4, "among {COUNTS:?}: {each:?} ns");
}
