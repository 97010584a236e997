//! What an I/O costs beside its copies: nothing is allocated for it at either end.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use vmbus_channels::{Buffer, Device, Guest, Root};
use vmbus_core::storage::SCSI_CLASS;
use vmbus_vsc::{Disk, DiskQueue, DiskRequest};
use vmbus_vsp::storage::{Lun, Memory, StorageController};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const DEPTH: usize = 32;
/// Stretches of reads that are looked at on their own.
const WINDOWS: usize = 16;

/// So many rounds of as many reads as there are buffers.
fn read(queue: &mut DiskQueue, buffers: &[Buffer], rounds: usize) {
    for round in 0..rounds {
        for (tag, buffer) in buffers.iter().enumerate() {
            let offset = ((round + tag) % 256 * 4096) as u64;
            queue.push(tag as u64, DiskRequest::Read { offset, into: buffer.range(..) }).unwrap();
        }
        queue.submit().unwrap();
        let mut left = buffers.len();
        while left > 0 {
            queue
                .wait(|_, result| {
                    result.unwrap();
                    left -= 1;
                })
                .unwrap();
        }
    }
}

#[test]
fn reads_under_way_allocate_nothing_at_either_end() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (_root, guest, disk) = runtime.block_on(async {
        let root = Root::listen(&socket).await.unwrap();
        root.offer(StorageController::new("disk").lun(0, Lun::new(Memory::new(1 << 20).unwrap()))).unwrap();
        let guest = Guest::connect(&socket).await.unwrap();
        guest.wait_for(Device::class(SCSI_CLASS)).await.unwrap();
        let disk = Disk::open(&guest).await.unwrap();
        (root, guest, disk)
    });
    let mut queue = disk.into_queue().unwrap();
    let buffers: Vec<Buffer> = (0..DEPTH).map(|_| guest.share(4096).unwrap()).collect();
    read(&mut queue, &buffers, 200);

    // What a thread makes once for itself, as when it sleeps for the first time, may fall into any round. What a read
    // costs falls into each, so one window without is the proof.
    let costs: Vec<usize> = (0..WINDOWS)
        .map(|_| {
            let region = Region::new(ALLOCATOR);
            read(&mut queue, &buffers, 200);
            let change = region.change();
            change.allocations + change.reallocations
        })
        .collect();
    assert!(costs.contains(&0), "allocations in {WINDOWS} windows of {} reads: {costs:?}", 200 * DEPTH);
    let once = costs.iter().sum::<usize>();
    assert!(once < WINDOWS, "allocations in {WINDOWS} windows of {} reads: {costs:?}", 200 * DEPTH);
}
