//! A device that comes and goes a hundred thousand times leaves nothing in the memory of either end.
//!
//! One test in a program of its own: whoever else allocates would be counted too.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod bus;

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use vmbus_core::server::{DeviceKey, Usage};

use crate::bus::Bus;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PAIRS: u64 = 100_000;
/// After these all channel ids were used once and every collection has its size.
const WARM_UP: u64 = 10_000;

#[test]
fn a_hundred_thousand_offers_and_rescinds_leave_nothing() {
    let every_other = |relid| relid % 2 == 0;
    let mut bus = Bus::new(every_other);
    let mut before = Region::new(ALLOCATOR);
    for round in 0..PAIRS {
        if round == WARM_UP {
            before.reset();
        }
        let device = DeviceKey(round % 3);
        bus.offer(device);
        bus.rescind(device);
    }
    let change = before.change();
    assert_eq!(bus.released, PAIRS);
    assert!(bus.opened > PAIRS * 2 / 5, "nearly half of them were open when they were rescinded");
    assert_eq!(bus.server.usage(), Usage::default());
    assert_eq!(bus.client.usage(), Default::default());
    assert_eq!(bus.server.channels().count(), 0);
    assert!(change.allocations > 0, "the allocator counts");
    assert_eq!(change.bytes_allocated, change.bytes_deallocated, "{change:?}");
}
