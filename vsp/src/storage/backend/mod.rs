//! What holds a disk's bytes.
//!
//! A [`Backend`] moves bytes between its medium and guest pages, makes them durable, and discards them. It knows
//! neither SCSI nor channels: the logical unit in front of it checks every range against the geometry, orders
//! flushes behind earlier writes and turns I/O errors into sense data. Offsets and lengths are in bytes, always
//! multiples of the logical sector, and always within the geometry.

mod identity;
mod image;
mod lock;
mod memory;
mod raw_file;
mod workers;

use std::io;
use std::ops::Range;

use async_trait::async_trait;
use vmbus_partition::GuestPages;

pub use identity::Identity;
pub use memory::Memory;
pub use raw_file::{OpenError, RawFile, RawFileOptions};

/// Whether a medium may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads and writes.
    ReadWrite,
    /// Reads alone; the guest sees a write-protected disk.
    ReadOnly,
}

/// Where an acknowledged write may still be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteCache {
    /// Nowhere: a completed write is as durable as the medium ever makes it. Guests need no flush.
    None,
    /// In a cache that only [`Backend::flush`] or a [`Durability::Stable`] write empties.
    Volatile,
}

/// What a write promises when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The bytes are visible to every later read.
    Visible,
    /// They are also stable (FUA): as if a flush of this very write had followed.
    Stable,
}

/// Shape and abilities of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Number of logical sectors.
    pub sectors: u64,
    /// Bytes of a logical sector, the unit of every request: 512 or 4096.
    pub logical_sector: u32,
    /// Bytes that the medium writes in one go: a power-of-two multiple of `logical_sector`.
    pub physical_sector: u32,
    /// Whether writes are possible.
    pub access: Access,
    /// Whether completed writes want flushing.
    pub write_cache: WriteCache,
    /// Bytes of the unit in which [`Backend::discard`] gives space back; `None` where it never does.
    pub discard_unit: Option<u32>,
    /// Whether the medium is as fast at random places as in sequence.
    pub rotational: bool,
}

impl Geometry {
    /// Size in bytes, rounded down to whole sectors.
    pub fn bytes(&self) -> u64 {
        self.sectors.saturating_mul(u64::from(self.logical_sector))
    }
}

/// A disk's medium.
///
/// Every method may be called from many tasks at once; requests may complete in any order. The `try_` forms run on
/// the thread that serves the guest's ring and must not block: they give `None` when they cannot finish at once, and
/// the caller then takes the `async` form *from the start* of the request, so they may have done part of it.
///
/// An error is the medium's fault or the host's, never the guest's. A method returns only after it has stopped
/// touching the guest's pages.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Shape and abilities; everything but `sectors` stays the same while the backend lives.
    fn geometry(&self) -> Geometry;

    /// What the disk is called where nobody gives it another name. Without this a name that no other disk has, and
    /// that ends with the process.
    fn identity(&self) -> Identity {
        Identity::made_up()
    }

    /// Hint that a read from `offset` comes soon, for backends that can fetch ahead at next to no cost. Nothing is
    /// known of the offset.
    fn will_read(&self, offset: u64) {
        let _ = offset;
    }

    /// Reads `into.len()` bytes from `offset` without blocking, or gives `None`.
    fn try_read(&self, offset: u64, into: &GuestPages) -> Option<io::Result<()>> {
        let _ = (offset, into);
        None
    }

    /// Writes `from` at `offset` without blocking, or gives `None`.
    fn try_write(&self, offset: u64, from: &GuestPages, durability: Durability) -> Option<io::Result<()>> {
        let _ = (offset, from, durability);
        None
    }

    /// Reads `into.len()` bytes from `offset`.
    async fn read(&self, offset: u64, into: GuestPages) -> io::Result<()>;

    /// Writes `from` at `offset`.
    async fn write(&self, offset: u64, from: GuestPages, durability: Durability) -> io::Result<()>;

    /// Makes every write that has completed before this call stable.
    async fn flush(&self) -> io::Result<()>;

    /// Gives the space of a range back; it reads as zeroes afterwards.
    async fn discard(&self, range: Range<u64>) -> io::Result<()>;

    /// Makes a range read as zeroes and keeps its space where that is possible.
    async fn write_zeroes(&self, range: Range<u64>, durability: Durability) -> io::Result<()>;
}
