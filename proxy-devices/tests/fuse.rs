//! A disk as a file: what programs may do with it, and that nothing of it stays.
#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use vmbus_channels::{Guest, Root, test_utils};
use vmbus_proxy_devices::fuse::{DiskDoor, DoorError};
use vmbus_vsc::Disk;
use vmbus_vsp::storage::{Access, Lun, Memory, RawFile, StorageController};

const SIZE: usize = 8 << 20;

/// A root, a guest and its disk behind a door.
struct World {
    runtime: Runtime,
    root: Option<Root>,
    /// Keeps the guest on the bus.
    _guest: Guest,
    door: Option<DiskDoor>,
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        Self::with(Lun::new(Memory::new(SIZE as u64).unwrap()))
    }

    fn with(lun: Lun) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (root, guest, door) = runtime.block_on(async {
            let root = Root::builder().build();
            root.offer(StorageController::new("disk").lun(0, lun)).unwrap();
            let guest = test_utils::join(&root, "guest").await.unwrap();
            let disk = Disk::open(&guest).await.unwrap();
            (root, guest, DiskDoor::mount(disk, folder.path()).unwrap())
        });
        Self { runtime, root: Some(root), _guest: guest, door: Some(door), folder }
    }

    fn open(&self) -> File {
        let file = self.door.as_ref().unwrap().file();
        OpenOptions::new().read(true).write(true).open(file).unwrap()
    }

    fn unmount(&mut self) -> Result<(), DoorError> {
        self.door.take().unwrap().unmount()
    }
}

fn is_mounted(folder: &Path) -> bool {
    fs::read_to_string("/proc/self/mounts").unwrap().contains(folder.to_str().unwrap())
}

/// Bytes that differ from place to place and from `seed` to `seed`.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn any_offset_and_length_reads_back() {
    vmbus_tests::require!(Fuse);
    let mut world = World::new();
    let file = world.open();
    let mut model = vec![0; SIZE];
    let ranges = [
        (0, 1),
        (511, 2),
        (512, 512),
        (513, 510),
        (1000, 3000),
        (4096, 65536),
        (70_001, 65_537),
        (200_000, 1 << 20),
        (1_300_001, (1 << 20) + 777),
        (3 << 20, 4 << 20),
        (SIZE - 1, 1),
        (SIZE - 700, 700),
    ];
    for (seed, (at, len)) in (1..).zip(ranges) {
        let bytes = pattern(seed, len);
        file.write_all_at(&bytes, at as u64).unwrap();
        model[at..at + len].copy_from_slice(&bytes);
    }
    file.sync_all().unwrap();
    let mut all = vec![0; SIZE];
    file.read_exact_at(&mut all, 0).unwrap();
    assert!(
        all == model,
        "the first difference is at {:?}",
        all.iter().zip(&model).position(|(a, b)| a != b)
    );
    for (at, len) in ranges {
        let mut part = vec![0; len];
        file.read_exact_at(&mut part, at as u64).unwrap();
        assert!(part == model[at..at + len], "{len} bytes at {at}");
    }
    drop(file);
    world.unmount().unwrap();
    assert!(!is_mounted(world.folder.path()));
}

#[test]
fn parallel_writes_to_one_sector_do_not_lose_each_other() {
    vmbus_tests::require!(Fuse);
    const WRITERS: usize = 4;
    const PIECE: usize = 100;
    let mut world = World::new();
    let file = world.open();
    // Each writer owns every fourth piece of a hundred bytes: no sector has one writer only.
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let file = &file;
            scope.spawn(move || {
                for piece in (writer..400).step_by(WRITERS) {
                    file.write_all_at(&pattern(piece as u64, PIECE), (piece * PIECE) as u64).unwrap();
                }
            });
        }
    });
    let mut written = vec![0; 400 * PIECE];
    file.read_exact_at(&mut written, 0).unwrap();
    for (piece, bytes) in written.chunks(PIECE).enumerate() {
        assert!(bytes == pattern(piece as u64, PIECE), "piece {piece} is lost");
    }
    drop(file);
    world.unmount().unwrap();
}

#[test]
fn the_disk_keeps_its_size() {
    vmbus_tests::require!(Fuse);
    let mut world = World::new();
    let file = world.open();
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (SIZE as u64, 0o600));

    assert_eq!(file.set_len(SIZE as u64 + 1).unwrap_err().raw_os_error(), Some(Errno::EFBIG as i32));
    assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
    file.set_len(SIZE as u64).unwrap();

    let past_end = file.write_at(&[1], SIZE as u64).unwrap_err();
    assert_eq!(past_end.raw_os_error(), Some(Errno::ENOSPC as i32));
    assert_eq!(
        file.write_at(&[1; 1000], SIZE as u64 - 600).unwrap(),
        600,
        "what there is room for is written"
    );
    assert_eq!(file.read_at(&mut [0; 1000], SIZE as u64 - 600).unwrap(), 600);
    assert_eq!(file.read_at(&mut [0; 10], SIZE as u64).unwrap(), 0);

    let other = world.folder.path().join("other");
    assert_eq!(File::create(other).unwrap_err().kind(), ErrorKind::PermissionDenied);
    let names: Vec<_> =
        fs::read_dir(world.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["disk"]);
    drop(file);
    world.unmount().unwrap();
}

#[test]
fn holes_and_zeroed_ranges_read_as_zeros_and_nothing_else_does() {
    vmbus_tests::require!(Fuse);
    let mut world = World::new();
    let file = world.open();
    let mut model = pattern(7, 1 << 20);
    file.write_all_at(&model, 0).unwrap();
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep;
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    let ranges = [
        (punch, 4096, 8192),
        (zero, 65536, 4096),
        (punch, 100_001, 30_000),
        (zero, 200_100, 50),
        (punch, 300_000, 700),
        (zero | keep, 400_001, 100_001),
    ];
    for (mode, at, len) in ranges {
        fallocate(&file, mode, i64::try_from(at).unwrap(), i64::try_from(len).unwrap()).unwrap();
        model[at..at + len].fill(0);
    }
    let mut all = vec![0; model.len()];
    file.read_exact_at(&mut all, 0).unwrap();
    assert!(
        all == model,
        "the first difference is at {:?}",
        all.iter().zip(&model).position(|(a, b)| a != b)
    );

    let beyond = i64::try_from(SIZE).unwrap();
    assert_eq!(fallocate(&file, zero, beyond - 10, 20), Err(Errno::EFBIG));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 4096), Err(Errno::EOPNOTSUPP));
    drop(file);
    world.unmount().unwrap();
}

#[test]
fn a_read_only_disk_is_a_read_only_file() {
    vmbus_tests::require!(Fuse);
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, pattern(3, 1 << 20)).unwrap();
    let mut world = World::with(Lun::new(RawFile::open(&image, Access::ReadOnly).unwrap()));
    let path = world.door.as_ref().unwrap().file();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
    let refused = OpenOptions::new().write(true).open(&path).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    assert!(fs::read(&path).unwrap() == pattern(3, 1 << 20));
    world.unmount().unwrap();
}

#[test]
fn what_was_written_is_in_the_image_after_unmounting() {
    vmbus_tests::require!(Fuse);
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let mut world = World::with(Lun::new(RawFile::open(&image, Access::ReadWrite).unwrap()));
    let bytes = pattern(5, 1 << 20);
    world.open().write_all_at(&bytes, 0).unwrap();
    world.unmount().unwrap();
    assert!(fs::read(&image).unwrap() == bytes);
}

#[test]
fn a_door_in_use_says_so_and_is_out_of_sight() {
    vmbus_tests::require!(Fuse);
    let mut world = World::new();
    let file = world.open();
    let busy = world.unmount().unwrap_err();
    assert!(matches!(busy, DoorError::Busy { .. }), "{busy}");
    assert!(!is_mounted(world.folder.path()));
    file.write_all_at(b"still served", 0).unwrap();
}

#[test]
fn a_dropped_door_is_unmounted() {
    vmbus_tests::require!(Fuse);
    let mut world = World::new();
    world.door = None;
    assert!(!is_mounted(world.folder.path()));
}

#[test]
fn the_end_of_the_root_is_an_error_and_no_hang() {
    vmbus_tests::require!(Fuse);
    let mut world = World::new();
    let file = world.open();
    file.write_all_at(&[1; 4096], 0).unwrap();
    let root = world.root.take().unwrap();
    root.detach(world.runtime.block_on(root.status()).partitions[0].id);
    drop(root);
    // What is on its way may still be answered.
    let started = Instant::now();
    let error = loop {
        assert!(started.elapsed() < Duration::from_secs(30), "the disk still answers");
        match file.read_at(&mut [0; 4096], 0) {
            Ok(_) => thread::sleep(Duration::from_millis(1)),
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(Errno::ENODEV as i32), "{error}");
    drop(file);
    let unflushed = world.unmount().unwrap_err();
    assert!(matches!(unflushed, DoorError::Flush(_)), "{unflushed}");
    assert!(!is_mounted(world.folder.path()));
}

#[test]
fn a_mount_point_that_is_none_is_refused() {
    vmbus_tests::require!(Fuse);
    let mut world = World::new();
    world.unmount().unwrap();
    let disk = world.runtime.block_on(async {
        let root = world.root.as_ref().unwrap();
        root.offer(StorageController::new("other").lun(0, Lun::new(Memory::new(1 << 20).unwrap()))).unwrap();
        let guest = test_utils::join(root, "other").await.unwrap();
        Disk::open(&guest).await.unwrap()
    });
    let _entered = world.runtime.enter();
    let missing = world.folder.path().join("missing");
    assert!(matches!(DiskDoor::mount(disk.clone(), &missing), Err(DoorError::Mountpoint { .. })));
    fs::write(&missing, "a file").unwrap();
    assert!(matches!(DiskDoor::mount(disk, &missing), Err(DoorError::Mountpoint { .. })));
}
