//! A disk outlives its root: same data, no errors, and another disk is not taken for it.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::Duration;

use vmbus_channels::test_utils::Succession;
use vmbus_channels::{Guest, Guid, Resume, Root, guid};
use vmbus_vsc::Disk;
use vmbus_vsp::storage::{Access, Limits, Lun, RawFile, StorageController};

const INSTANCE: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a11");
const PATIENCE: Duration = Duration::from_secs(60);
const SIZE: u64 = 1 << 20;

struct World {
    place: tempfile::TempDir,
    succession: Succession,
}

impl World {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        for (name, size) in [("disk", SIZE), ("same-size", SIZE), ("larger", 2 * SIZE)] {
            std::fs::File::create(place.path().join(name)).unwrap().set_len(size).unwrap();
        }
        Self { place, succession: Succession::default() }
    }

    fn crown(&self, disk: &str) {
        self.crown_with(disk, Limits { max_sub_channels: 3, ..Limits::default() });
    }

    fn crown_with(&self, disk: &str, limits: Limits) {
        let path = self.place.path().join(disk);
        // The last root lets go of the file a little after its guests.
        let started = std::time::Instant::now();
        let file = loop {
            match RawFile::open(&path, Access::ReadWrite) {
                Ok(file) => break file,
                Err(error) if started.elapsed() > PATIENCE => panic!("{error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let root = Root::builder().build();
        let controller = StorageController::new("disk").instance(INSTANCE).limits(limits);
        root.offer(controller.lun(0, Lun::new(file))).unwrap();
        self.succession.crown(root);
    }

    async fn disk(&self) -> (Guest, Disk) {
        let builder = Guest::builder().resume(Resume::within(PATIENCE));
        let guest = self.succession.join("guest", builder).await.unwrap();
        let disk = Disk::open(&guest).await.unwrap();
        (guest, disk)
    }
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(output) => output,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// Writes, flushes and reads back, one extent after the other.
async fn work(disk: Disk, lane: u64, rounds: u64) {
    for round in 0..rounds {
        let offset = (lane * 8 + round % 8) * 16384;
        let bytes = vec![u8::try_from((lane * 31 + round) % 251).unwrap(); 16384];
        disk.write_bytes(offset, &bytes).await.unwrap();
        if round % 7 == 0 {
            disk.flush().await.unwrap();
        }
        let mut found = vec![0; 16384];
        disk.read_bytes(offset, &mut found).await.unwrap();
        assert!(found == bytes, "lane {lane}, round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_under_load_outlives_a_line_of_roots() {
    let world = World::new();
    world.crown("disk");
    let (_guest, disk) = world.disk().await;
    let lanes: Vec<_> = (0..8).map(|lane| tokio::spawn(work(disk.clone(), lane, 150))).collect();
    for number in 0..15_u64 {
        tokio::time::sleep(Duration::from_micros(number.wrapping_mul(0x9e37_79b9) >> 8 & 0x3fff)).await;
        world.succession.kill();
        world.crown("disk");
    }
    for lane in lanes {
        within("a lane", lane).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_over_several_channels_outlives_a_line_of_roots() {
    let world = World::new();
    world.crown("disk");
    let (_guest, disk) = world.disk().await;
    assert_eq!(disk.controller().widen(4).await.unwrap(), 4);
    let lanes: Vec<_> = (0..8).map(|lane| tokio::spawn(work(disk.clone(), lane, 150))).collect();
    for number in 0..15_u64 {
        tokio::time::sleep(Duration::from_micros(number.wrapping_mul(0x9e37_79b9) >> 8 & 0x3fff)).await;
        world.succession.kill();
        world.crown("disk");
    }
    for lane in lanes {
        within("a lane", lane).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_is_opened_while_roots_come_and_go() {
    let world = World::new();
    world.crown("disk");
    let builder = Guest::builder().resume(Resume::within(PATIENCE));
    let guest = world.succession.join("guest", builder).await.unwrap();
    let opening = tokio::spawn(async move {
        for _ in 0..60 {
            let disk = Disk::open(&guest).await.unwrap();
            assert_eq!(disk.size(), SIZE);
        }
    });
    let mut number = 0_u64;
    while !opening.is_finished() {
        number += 1;
        tokio::time::sleep(Duration::from_micros(number.wrapping_mul(0x9e37_79b9) >> 8 & 0x3fff)).await;
        world.succession.kill();
        world.crown("disk");
    }
    within("opens", opening).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_disk_is_not_taken_for_it() {
    for (other, why) in [("same-size", "the disk at LUN 0 is another one"), ("larger", "is another one")] {
        let world = World::new();
        world.crown("disk");
        let (_guest, disk) = world.disk().await;
        let disk = Arc::new(disk);
        disk.write_bytes(0, &[7; 512]).await.unwrap();
        world.succession.kill();
        world.crown(other);
        let error = within("an end", disk.write_bytes(0, &[8; 512])).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        let found = std::fs::read(world.place.path().join(other)).unwrap();
        assert!(found.iter().all(|&byte| byte == 0), "nothing was written to the wrong disk");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_takes_shorter_transfers_is_no_heir() {
    let world = World::new();
    world.crown("disk");
    let (_guest, disk) = world.disk().await;
    world.succession.kill();
    world.crown_with("disk", Limits { max_transfer: 4096, ..Limits::default() });
    let error = within("an end", disk.flush()).await.unwrap_err();
    assert!(error.to_string().contains("no transfers of"), "{error}");
}
