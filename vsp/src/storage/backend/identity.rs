//! What tells one disk from another.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use vmbus_core::Guid;

/// Last bytes of the identities made here, after which no others are made.
const OF_FILE: [u8; 4] = *b"file";
const MADE_UP: [u8; 4] = *b"temp";

/// What a disk says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Names this disk among all disks there are, for as long as its bytes exist: guests build stable device names
    /// from it.
    pub disk: Guid,
    /// Serial number, printable ASCII; other characters and those after the 64th are left out.
    pub serial: String,
}

impl Identity {
    /// The identity of a disk without a serial number of its own: its GUID is that, too.
    pub fn of(disk: Guid) -> Self {
        Self { disk, serial: disk.to_string() }
    }

    /// The identity of what a file holds, under whatever name: it lasts until the file is copied or deleted.
    pub(super) fn of_file(metadata: &Metadata) -> Self {
        let place = if metadata.rdev() == 0 { metadata.ino() } else { metadata.rdev() };
        Self::made_of(place, metadata.dev(), OF_FILE)
    }

    /// The identity of a disk that ends with this process.
    pub(super) fn made_up() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let [low @ .., _, _, _, _, _, _, _, _] = now.to_le_bytes();
        let process = u64::from(std::process::id()) << 32;
        Self::made_of(u64::from_le_bytes(low), process | NEXT.fetch_add(1, Ordering::Relaxed), MADE_UP)
    }

    fn made_of(place: u64, within: u64, kind: [u8; 4]) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&place.to_le_bytes());
        // The parts of a device number lie in both halves.
        let [a, b, c, d, e, f, g, h] = within.to_le_bytes();
        bytes[8..12].copy_from_slice(&[a ^ e, b ^ f, c ^ g, d ^ h]);
        bytes[12..].copy_from_slice(&kind);
        Self::of(Guid::from_wire(bytes))
    }
}
