//! A disk in the host's memory.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use nix::fcntl::{FallocateFlags, fallocate};
use vmbus_core::memory::SharedMemory;
use vmbus_partition::{GuestPages, Mapping};

use super::workers::{Length, Workers};
use super::{Access, Backend, Durability, Geometry, WriteCache};

/// A disk that is a piece of memory and ends with it.
///
/// Every transfer is one copy from memory to memory, done at once and without a lock: two requests for the same
/// sectors may mix, as they may on any disk.
#[derive(Clone, Debug)]
pub struct Memory {
    bytes: Mapping,
    geometry: Geometry,
    workers: Arc<Workers>,
}

impl Memory {
    /// A zeroed disk of `size` bytes in sectors of 512, rounded down to whole pages of 4096.
    ///
    /// Fails where the host has no such amount of address space to give, or `size` is less than a page.
    pub fn new(size: u64) -> io::Result<Self> {
        let size = usize::try_from(size).map_err(io::Error::other)? / 4096 * 4096;
        if size == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a disk in memory has at least 4096 bytes",
            ));
        }
        Ok(Self::over(Mapping::anonymous(size).map_err(io::Error::other)?))
    }

    /// A disk over memory that somebody else may hold, too, such as a memfd that outlives this process.
    pub fn over(bytes: Mapping) -> Self {
        let geometry = Geometry {
            sectors: bytes.size() as u64 / 512,
            logical_sector: 512,
            physical_sector: 4096,
            access: Access::ReadWrite,
            write_cache: WriteCache::None,
            discard_unit: Some(4096),
            rotational: false,
        };
        Self { bytes, geometry, workers: Arc::default() }
    }

    /// The same disk in sectors of 4096 bytes.
    pub fn with_4k_sectors(mut self) -> Self {
        self.geometry.sectors = self.bytes.size() as u64 / 4096;
        self.geometry.logical_sector = 4096;
        self
    }

    /// The same disk, write-protected.
    pub fn read_only(mut self) -> Self {
        self.geometry.access = Access::ReadOnly;
        self.geometry.discard_unit = None;
        self
    }

    /// The memory.
    pub fn bytes(&self) -> &Mapping {
        &self.bytes
    }

    /// Where a range lies in the memory, if the disk has it.
    fn part(&self, range: &Range<u64>) -> io::Result<(usize, usize)> {
        let (start, end) = (place(range.start), place(range.end));
        match end.checked_sub(start).filter(|_| end <= self.bytes.size()) {
            Some(length) => Ok((start, length)),
            None => Err(beyond_end("range")),
        }
    }
}

#[async_trait]
impl Backend for Memory {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn will_read(&self, offset: u64) {
        self.bytes.prefetch(place(offset), 4096);
    }

    fn try_read(&self, offset: u64, into: &GuestPages) -> Option<io::Result<()>> {
        Some(into.copy_from(0, &self.bytes, place(offset), into.len()).map_err(beyond_end))
    }

    fn try_write(&self, offset: u64, from: &GuestPages, _: Durability) -> Option<io::Result<()>> {
        Some(from.copy_to(0, &self.bytes, place(offset), from.len()).map_err(beyond_end))
    }

    async fn read(&self, offset: u64, into: GuestPages) -> io::Result<()> {
        into.copy_from(0, &self.bytes, place(offset), into.len()).map_err(beyond_end)
    }

    async fn write(&self, offset: u64, from: GuestPages, _: Durability) -> io::Result<()> {
        from.copy_to(0, &self.bytes, place(offset), from.len()).map_err(beyond_end)
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let (at, length) = self.part(&range)?;
        let bytes = self.bytes.clone();
        let discarded = self.workers.run(Length::Long, move || {
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let signed = |value: u64| i64::try_from(value).map_err(io::Error::other);
            let start = signed(bytes.file_offset() + at as u64)?;
            if fallocate(bytes.file(), punch, start, signed(length as u64)?).is_err() {
                bytes.fill_zero(at, length);
            }
            Ok(())
        });
        discarded.await
    }

    async fn write_zeroes(&self, range: Range<u64>, _: Durability) -> io::Result<()> {
        let (at, length) = self.part(&range)?;
        let bytes = self.bytes.clone();
        let cleared = self.workers.run(Length::Long, move || {
            bytes.fill_zero(at, length);
            Ok(())
        });
        cleared.await
    }
}

/// An offset as one into memory; what is too large for memory is beyond the end of every mapping.
fn place(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn beyond_end(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("beyond the end of the disk: {what}"))
}
