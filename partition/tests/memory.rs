//! Memory files, mappings and copies: what both sides of a shared memory see.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that fails may panic")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use proptest::prelude::*;
use vmbus_core::memory::SharedMemory;
use vmbus_partition::{Mapping, Memfd, MemoryError};

fn memfd(flags: MFdFlags, size: i64) -> OwnedFd {
    let file = memfd_create("peer", MFdFlags::MFD_CLOEXEC | flags).unwrap();
    ftruncate(&file, size).unwrap();
    file
}

#[test]
fn two_mappings_of_one_file_see_the_same_bytes() {
    let file = Memfd::new("test", 3 * 4096).unwrap();
    let (here, there) = (file.map_all().unwrap(), file.map(4096, 8192).unwrap());
    here.write(4096 + 5, b"across the wall");
    let mut bytes = [0; 15];
    there.read(5, &mut bytes);
    assert_eq!(&bytes, b"across the wall");
    there.store_u32(8, 7, Ordering::Release);
    assert_eq!(here.load_u32(4096 + 8, Ordering::Acquire), 7);
}

#[test]
fn our_own_file_can_neither_shrink_nor_grow() {
    let file = Memfd::new("test", 8192).unwrap();
    assert!(ftruncate(file.as_fd(), 4096).is_err());
    assert!(ftruncate(file.as_fd(), 16384).is_err());
}

#[test]
fn a_file_that_could_shrink_is_sealed_before_use() {
    let file = memfd(MFdFlags::MFD_ALLOW_SEALING, 8192);
    let theirs = file.try_clone().unwrap();
    let taken = Memfd::from_peer(file).unwrap();
    assert_eq!(taken.size(), 8192);
    assert!(ftruncate(&theirs, 0).is_err(), "the peer could end us with a bus error");
}

#[test]
fn a_file_that_stays_shrinkable_is_refused() {
    let unsealable = memfd(MFdFlags::empty(), 8192);
    assert!(matches!(Memfd::from_peer(unsealable), Err(MemoryError::Shrinkable)));
    let locked = memfd(MFdFlags::MFD_ALLOW_SEALING, 8192);
    fcntl(&locked, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL)).unwrap();
    assert!(matches!(Memfd::from_peer(locked), Err(MemoryError::Shrinkable)));
    let file = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
    assert!(matches!(Memfd::from_peer(file), Err(MemoryError::NotSealable)));
}

#[test]
fn a_file_that_refuses_writing_gives_an_error_and_no_mapping() {
    let file = memfd(MFdFlags::MFD_ALLOW_SEALING, 8192);
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
    let taken = Memfd::from_peer(file).unwrap();
    assert!(matches!(taken.map_all(), Err(MemoryError::System { .. })));
}

#[test]
fn parts_outside_of_the_file_are_refused() {
    let file = Memfd::new("test", 8192).unwrap();
    for (offset, size) in
        [(0, 0), (0, 12288), (4096, 8192), (1, 4096), (0, 100), (u64::MAX - 4095, 4096), (8192, 4096)]
    {
        assert!(
            matches!(file.map(offset, size), Err(MemoryError::OutsideFile { .. })),
            "{offset:#x} {size:#x}"
        );
    }
}

#[test]
#[should_panic(expected = "outside of a memory")]
fn an_access_past_the_end_of_a_slice_is_caught_although_memory_is_there() {
    let memory = Mapping::anonymous(8192).unwrap();
    memory.slice(0, 4096).read(4090, &mut [0; 8]);
}

#[test]
fn every_writer_wins_once_when_threads_set_bits() {
    let memory = Mapping::anonymous(4096).unwrap();
    let first: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let memory = memory.clone();
                scope.spawn(move || {
                    (0..64)
                        .filter(|bit| memory.fetch_or_u64(64, 1 << bit, Ordering::SeqCst) & 1 << bit == 0)
                        .count()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert_eq!(first, 64);
    assert_eq!(memory.swap_u64(64, 0, Ordering::SeqCst), u64::MAX);
}

proptest! {
    /// Each copy does just what a slice copy does, at any alignment and on both sides of the word-wise limit.
    #[test]
    fn copies_are_exact(offset in 0usize..600, len in 0usize..1400, to_offset in 0usize..600, seed: u8) {
        let from = Mapping::anonymous(4096).unwrap();
        let to = Mapping::anonymous(4096).unwrap();
        let private: Vec<u8> = (0..len).map(|index| (index as u8).wrapping_mul(31).wrapping_add(seed) | 1).collect();
        from.write(offset, &private);
        from.copy_to(offset, &to, to_offset, len);
        for (memory, start) in [(from, offset), (to, to_offset)] {
            let mut model = vec![0; 4096];
            model[start..start + len].copy_from_slice(&private);
            let mut all = vec![0; 4096];
            memory.read(0, &mut all);
            prop_assert_eq!(&all, &model);
            let mut back = vec![0; len];
            memory.read(start, &mut back);
            prop_assert_eq!(&back, &private);
        }
    }
}

/// A view of plain pages keeps the mapping alive after everything else of it is gone.
#[test]
fn a_slice_outlives_its_mapping() {
    let memory = Arc::new(Mapping::anonymous(8192).unwrap());
    let slice = memory.slice(4096, 4096);
    drop(memory);
    slice.write(0, &[1, 2, 3]);
    let mut bytes = [0; 3];
    slice.read(0, &mut bytes);
    assert_eq!(bytes, [1, 2, 3]);
}
