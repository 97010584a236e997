//! Commands that move blocks or make them stable: READ, WRITE, VERIFY, SYNCHRONIZE CACHE.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmbus_core::memory::SharedMemory;
use vmbus_core::storage::Outcome;
use vmbus_core::storage::scsi::{BlockRange, Failure, Sense, SenseKey};
use vmbus_partition::GuestPages;

use super::{Execution, Lun};
use crate::storage::backend::{Access, Durability, WriteCache};
use crate::storage::data::Data;
use crate::storage::scratch::Scratch;

/// Bytes of the medium that a VERIFY holds in private memory at a time.
const VERIFY_CHUNK: usize = 256 << 10;

/// A checked part of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Extent {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.length
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.end()
    }
}

impl Lun {
    /// Tells the backend of a read that is about to be executed, if all is well with it.
    #[inline]
    pub(in crate::storage) fn expect(&self, blocks: &BlockRange) {
        if let Ok(extent) = self.extent(blocks.lba, u64::from(blocks.blocks)) {
            self.backend.will_read(extent.offset);
        }
    }

    #[inline]
    pub(super) fn read(self: &Arc<Self>, blocks: &BlockRange, data: Data<'_>) -> Result<Execution, Failure> {
        let (extent, moved) = self.transfer_extent(blocks, &data)?;
        let Some(pages) = data.destination(moved as usize)? else { return Ok(Execution::done(0)) };
        match self.backend.try_read(extent.offset, &pages) {
            Some(result) => Ok(Execution::Done(self.read_outcome(result, moved))),
            None => Ok(self.read_later(extent, pages.into_owned(), moved)),
        }
    }

    #[cold]
    fn read_later(self: &Arc<Self>, extent: Extent, pages: GuestPages, moved: u32) -> Execution {
        let lun = Arc::clone(self);
        Execution::later(async move {
            let result = lun.backend.read(extent.offset, pages).await;
            lun.read_outcome(result, moved)
        })
    }

    #[inline]
    pub(super) fn write(
        self: &Arc<Self>,
        blocks: &BlockRange,
        durability: Durability,
        data: Data<'_>,
    ) -> Result<Execution, Failure> {
        self.writable()?;
        let (extent, moved) = self.transfer_extent(blocks, &data)?;
        let Some(pages) = data.source(moved as usize)? else { return Ok(Execution::done(0)) };
        match self.backend.try_write(extent.offset, &pages, durability) {
            Some(result) => Ok(Execution::Done(self.write_outcome(result, moved))),
            None => Ok(self.write_later(extent, pages.into_owned(), durability, moved)),
        }
    }

    #[cold]
    fn write_later(
        self: &Arc<Self>,
        extent: Extent,
        pages: GuestPages,
        durability: Durability,
        moved: u32,
    ) -> Execution {
        let (lun, ticket) = (Arc::clone(self), self.writes.take_off());
        Execution::later(async move {
            let result = lun.backend.write(extent.offset, pages, durability).await;
            drop(ticket);
            lun.write_outcome(result, moved)
        })
    }

    /// SYNCHRONIZE CACHE: everything written so far becomes stable, whatever part of it the guest names.
    pub(super) fn synchronize(self: &Arc<Self>, blocks: &BlockRange) -> Result<Execution, Failure> {
        self.extent(blocks.lba, u64::from(blocks.blocks))?;
        Ok(self.flush())
    }

    /// Everything written so far becomes stable. Writes that are under way are waited for.
    pub(super) fn flush(self: &Arc<Self>) -> Execution {
        let earlier = self.writes.earlier();
        if self.geometry.write_cache == WriteCache::None && self.writes.is_idle() {
            return Execution::done(0);
        }
        let lun = Arc::clone(self);
        Execution::later(async move {
            earlier.await;
            let result = lun.backend.flush().await;
            lun.write_outcome(result, 0)
        })
    }

    /// Without bytes to compare, the medium is taken at its word: its own checksums are checked when it is read.
    pub(super) fn verify(
        self: &Arc<Self>,
        blocks: &BlockRange,
        data: Data<'_>,
    ) -> Result<Execution, Failure> {
        // The high bit of BYTCHK: one block compared with many.
        const ONE_BLOCK: u8 = 0x04;
        if blocks.protect() != 0 || blocks.has(ONE_BLOCK) {
            return Err(Failure::InvalidField);
        }
        if !blocks.has(BlockRange::BYTE_CHECK) {
            self.extent(blocks.lba, u64::from(blocks.blocks))?;
            return Ok(Execution::done(0));
        }
        let (extent, moved) = self.transfer_extent(blocks, &data)?;
        let Some(expected) = data.source(moved as usize)?.map(Cow::into_owned) else {
            return Ok(Execution::done(0));
        };
        let lun = Arc::clone(self);
        Ok(Execution::later(async move {
            match lun.compare(extent, &expected).await {
                Ok(()) => Outcome::success(moved),
                Err(failure) => failure.outcome(),
            }
        }))
    }

    async fn compare(&self, extent: Extent, expected: &GuestPages) -> Result<(), Failure> {
        // Never closed; a permit it is, or there is nothing to wait for.
        let _permit = self.scratches.acquire().await;
        let chunk = VERIFY_CHUNK.min(expected.len());
        let scratch = Scratch::new(chunk).map_err(|error| self.read_failure(&error))?;
        let (mut ours, mut theirs) = (vec![0; chunk], vec![0; chunk]);
        for at in (0..expected.len()).step_by(chunk) {
            let length = chunk.min(expected.len() - at);
            let pages = scratch.pages(length).map_err(|error| self.read_failure(&error))?;
            let read = self.backend.read(extent.offset + at as u64, pages).await;
            read.map_err(|error| self.read_failure(&error))?;
            scratch.mapping().read(0, &mut ours[..length]);
            expected.read(at, &mut theirs[..length]).map_err(|_| Failure::BufferTooSmall)?;
            if ours[..length] != theirs[..length] {
                return Err(Failure::Miscompare);
            }
        }
        Ok(())
    }

    /// The bytes of `blocks` blocks from `lba`, if all of them are on the disk.
    #[inline]
    pub(super) fn extent(&self, lba: u64, blocks: u64) -> Result<Extent, Failure> {
        match lba.checked_add(blocks) {
            Some(end) if end <= self.sectors() => {
                // Neither shift loses bits: both stay below the disk's size in bytes, which fits.
                Ok(Extent { offset: lba << self.sector_shift, length: blocks << self.sector_shift })
            }
            Some(_) | None => Err(Failure::LbaOutOfRange),
        }
    }

    /// The same for a transfer: all of it also fits into the guest's buffer, whose length bounds the bytes moved.
    #[inline]
    fn transfer_extent(&self, blocks: &BlockRange, data: &Data<'_>) -> Result<(Extent, u32), Failure> {
        // There is no protection information on these disks.
        if blocks.protect() != 0 {
            return Err(Failure::InvalidField);
        }
        let extent = self.extent(blocks.lba, u64::from(blocks.blocks))?;
        match u32::try_from(extent.length) {
            Ok(moved) if moved as usize <= data.len() => Ok((extent, moved)),
            Ok(_) | Err(_) => Err(Failure::LbaOutOfRange),
        }
    }

    #[inline]
    pub(super) fn writable(&self) -> Result<(), Failure> {
        match self.geometry.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Failure::WriteProtected),
        }
    }

    #[inline]
    fn read_outcome(&self, result: io::Result<()>, moved: u32) -> Outcome {
        match result {
            Ok(()) => Outcome::success(moved),
            Err(error) => self.read_failure(&error).outcome(),
        }
    }

    #[inline]
    pub(super) fn write_outcome(&self, result: io::Result<()>, moved: u32) -> Outcome {
        match result {
            Ok(()) => Outcome::success(moved),
            Err(error) => self.write_failure(&error),
        }
    }

    /// Says so in the log: the first time and then ever more rarely, since a guest can repeat it for ever.
    fn medium_failed(&self, what: &str, error: &io::Error) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures.is_power_of_two() {
            tracing::warn!(disk = %self.identity.disk, %error, failures, "the medium failed a {what}");
        }
    }

    #[cold]
    fn read_failure(&self, error: &io::Error) -> Failure {
        self.medium_failed("read", error);
        Failure::ReadError
    }

    #[cold]
    fn write_failure(&self, error: &io::Error) -> Outcome {
        self.medium_failed("write", error);
        match error.kind() {
            // "Space allocation failed": guests report a full disk then, not a broken one.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Outcome {
                sense: Some(Sense::new(SenseKey::DATA_PROTECT, 0x27, 0x07)),
                ..Failure::WriteProtected.outcome()
            },
            io::ErrorKind::ReadOnlyFilesystem => Failure::WriteProtected.outcome(),
            _ => Failure::WriteError.outcome(),
        }
    }
}
