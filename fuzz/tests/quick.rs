//! Every fuzz target for a moment: seeds, then pseudo-random bytes. The long runs are `cargo fuzz run TARGET`.

use std::fs;
use std::path::Path;

use vmbus_fuzz::TARGETS;

/// Inputs per target; a second or two each.
const ROUNDS: u64 = 3000;

#[test]
fn no_target_fails_on_its_seeds() {
    for (name, body) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries {
            let path = entry.expect("a readable entry").path();
            let _running = Running(format!("{name}: {}", path.display()));
            body(&fs::read(&path).expect("a readable seed"));
        }
    }
}

#[test]
fn no_target_fails_on_random_bytes() {
    for (name, body) in TARGETS {
        for seed in 1..=ROUNDS {
            let _running = Running(format!("{name}: seed {seed}"));
            body(&random_bytes(seed));
        }
    }
}

/// Says what was running if it panics.
struct Running(String);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// Up to 1 KiB with many small numbers in it, as lengths, counts and enums are.
fn random_bytes(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let len = next() % 1024;
    (0..len)
        .map(|_| {
            let random = next();
            let [byte, kind, ..] = random.to_le_bytes();
            if kind % 2 == 0 { byte % 8 } else { byte }
        })
        .collect()
}
