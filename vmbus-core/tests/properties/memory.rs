//! Shared memory.

use core::sync::atomic::Ordering;

use proptest::prelude::*;
use vmbus_core::memory::{PlainMemory, SharedMemory};

proptest! {
    #[test]
    fn copies_at_any_place_see_the_same_bytes(
        writes in proptest::collection::vec((0..64_usize, proptest::collection::vec(any::<u8>(), 0..24)), 0..20),
        reads in proptest::collection::vec((0..64_usize, 0..24_usize), 0..20),
    ) {
        let memory = PlainMemory::new(88);
        let mut model = [0; 88];
        for (at, bytes) in writes {
            memory.write(at, &bytes);
            model[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        for (at, len) in reads {
            let mut bytes = vec![0xee; len];
            memory.read(at, &mut bytes);
            prop_assert_eq!(&bytes[..], &model[at..at + len]);
        }
        for at in (0..88).step_by(4) {
            let word = u32::from_le_bytes(model[at..at + 4].try_into().unwrap());
            prop_assert_eq!(memory.load_u32(at, Ordering::Relaxed), word);
        }
    }
}
