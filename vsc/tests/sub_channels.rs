//! A disk over several channels: more threads, the same data.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::time::Duration;

use vmbus_channels::test_utils::join;
use vmbus_channels::{Quotas, Root};
use vmbus_core::memory::SharedMemory;
use vmbus_vsc::{Disk, DiskError, DiskRequest};
use vmbus_vsp::storage::{Limits, Lun, Memory, StorageController};

const PATIENCE: Duration = Duration::from_secs(30);
const PIECE: usize = 64 << 10;
const PIECES: usize = 64;

fn controller() -> StorageController {
    StorageController::new("disk").lun(0, Lun::new(Memory::new((PIECE * PIECES) as u64).unwrap()))
}

fn pattern(piece: usize) -> Vec<u8> {
    (0..PIECE).map(|at| (piece * 31 + at / 512 * 7 + at % 251).to_le_bytes()[0]).collect()
}

async fn open_channels(root: &Root) -> usize {
    root.status().await.partitions[0].channels.iter().filter(|channel| channel.state == "open").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_one_thread_writes_another_reads_whatever_channel_each_goes_by() {
    let story = async {
        let root = Root::builder().build();
        root.offer(controller()).unwrap();
        let guest = join(&root, "guest").await.unwrap();
        let disk = Disk::open(&guest).await.unwrap();
        assert_eq!(open_channels(&root).await, 1);
        assert_eq!(disk.controller().widen(4).await.unwrap(), 4);
        assert_eq!(open_channels(&root).await, 4);
        assert_eq!(disk.controller().widen(9).await.unwrap(), 4, "once");

        let writers: Vec<_> = (0..PIECES)
            .map(|piece| {
                let disk = disk.clone();
                tokio::spawn(async move {
                    disk.write_bytes((piece * PIECE) as u64, &pattern(piece)).await.unwrap();
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        disk.flush().await.unwrap();
        let readers: Vec<_> = (0..PIECES)
            .map(|piece| {
                let disk = disk.clone();
                tokio::spawn(async move {
                    let mut bytes = vec![0; PIECE];
                    disk.read_bytes((piece * PIECE) as u64, &mut bytes).await.unwrap();
                    assert!(bytes == pattern(piece), "piece {piece}");
                })
            })
            .collect();
        for reader in readers {
            reader.await.unwrap();
        }

        // Sub-channels close with the handle, before the primary: nothing is left.
        drop(disk);
        while open_channels(&root).await > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let disk = Disk::open(&guest).await.unwrap();
        assert_eq!(disk.controller().widen(3).await.unwrap(), 3, "and they come back");
    };
    tokio::time::timeout(PATIENCE, story).await.expect("the story hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_thread_polls_a_queue_of_its_own_and_the_last_closes_them() {
    let root = Root::builder().build();
    root.offer(controller()).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let disk = Disk::open(&guest).await.unwrap();
    disk.controller().widen(3).await.unwrap();
    let queues = disk.into_queues().unwrap();
    assert_eq!(queues.len(), 3);
    let threads: Vec<_> = queues
        .into_iter()
        .enumerate()
        .map(|(number, mut queue)| {
            let buffer = guest.share(PIECE).unwrap();
            std::thread::spawn(move || {
                for round in 0..20 {
                    let piece = number * 20 + round;
                    buffer.mapping().write(0, &pattern(piece));
                    let offset = (piece * PIECE) as u64;
                    queue.push(1, DiskRequest::Write { offset, from: buffer.range(..) }).unwrap();
                    queue.submit().unwrap();
                    queue.wait(|_, result| result.unwrap()).unwrap();
                    buffer.mapping().fill_zero(0, PIECE);
                    queue.push(2, DiskRequest::Read { offset, into: buffer.range(..) }).unwrap();
                    queue.submit().unwrap();
                    queue.wait(|_, result| result.unwrap()).unwrap();
                    let mut bytes = vec![0; PIECE];
                    buffer.read(0, &mut bytes).unwrap();
                    assert!(bytes == pattern(piece), "piece {piece}");
                }
            })
        })
        .collect();
    for thread in threads {
        tokio::task::spawn_blocking(move || thread.join()).await.unwrap().unwrap();
    }
    let closed = async {
        while open_channels(&root).await > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("all queues are gone");
}

#[tokio::test]
async fn a_provider_gives_no_more_sub_channels_than_it_has_and_the_root_no_more_than_it_may_hold() {
    let root = Root::builder().build();
    let limits = Limits { max_sub_channels: 2, ..Limits::default() };
    root.offer(controller().limits(limits)).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let disk = Disk::open(&guest).await.unwrap();
    assert_eq!(disk.controller().widen(100).await.unwrap(), 3);

    let mut quotas = Quotas::default();
    quotas.subchannels = 1;
    let root = Root::builder().quotas(quotas).build();
    root.offer(controller()).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let disk = Disk::open(&guest).await.unwrap();
    assert!(matches!(disk.controller().widen(3).await, Err(DiskError::Refused { .. })));
    disk.write_bytes(0, &pattern(1)).await.unwrap();
    assert_eq!(disk.controller().widen(2).await.unwrap(), 2, "the guest may ask for fewer");
}
