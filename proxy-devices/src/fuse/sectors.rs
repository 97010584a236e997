//! Reads and writes of any offset and length, made of whole sectors.

use std::ops::Range;
use std::sync::Arc;

use vmbus_core::memory::SharedMemory;
use vmbus_vsc::{Disk, DiskError};

use super::pool::Space;
use super::range_lock::RangeLock;

/// How a range becomes zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeroing {
    /// Its room stays taken.
    Keep,
    /// Its room is given back.
    Punch,
}

/// A disk, and which of its sectors are being changed.
#[derive(Debug)]
pub(super) struct Sectors {
    disk: Disk,
    changes: Arc<RangeLock>,
}

impl Sectors {
    pub(super) fn new(disk: Disk) -> Self {
        Self { disk, changes: Arc::default() }
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Reads the bytes of `range` into the space's private memory, which is then as long as the range.
    pub(super) async fn read(&self, range: Range<u64>, space: &mut Space) -> Result<(), DiskError> {
        let whole = self.whole(&range);
        self.disk.read(whole.start, space.buffer.range(..length(&whole))).await?;
        let at = length(&(whole.start..range.start));
        space.private.resize(length(&range), 0);
        space.buffer.mapping().read(at, &mut space.private);
        Ok(())
    }

    /// Copies what is to be written to `range` into the space, to where [`write`](Self::write) expects it.
    pub(super) fn place(&self, range: &Range<u64>, space: &Space, bytes: &[u8]) {
        let at = length(&(self.whole(range).start..range.start));
        space.buffer.mapping().write(at, bytes);
    }

    /// Writes the bytes that were placed for `range`.
    pub(super) async fn write(&self, range: Range<u64>, space: &Space) -> Result<(), DiskError> {
        let claim = self.changes.claim(self.whole(&range));
        claim.granted().await;
        self.write_claimed(range, space).await
    }

    /// Makes `range` zeros.
    pub(super) async fn zero(&self, range: Range<u64>, how: Zeroing, space: &Space) -> Result<(), DiskError> {
        let whole = self.whole(&range);
        let claim = self.changes.claim(whole.clone());
        claim.granted().await;
        let inner = self.inner(&range);
        if inner.is_empty() {
            // Less than two sectors: the space has room for all of it.
            return self.zero_edge(range, space).await;
        }
        self.zero_edge(range.start..inner.start, space).await?;
        self.zero_edge(inner.end..range.end, space).await?;
        let len = inner.end - inner.start;
        match how {
            Zeroing::Keep => self.disk.write_zeroes(inner.start, len).await,
            Zeroing::Punch => self.disk.punch_hole(inner.start, len).await,
        }
    }

    async fn zero_edge(&self, range: Range<u64>, space: &Space) -> Result<(), DiskError> {
        if range.is_empty() {
            return Ok(());
        }
        let at = length(&(self.whole(&range).start..range.start));
        space.buffer.mapping().fill_zero(at, length(&range));
        self.write_claimed(range, space).await
    }

    async fn write_claimed(&self, range: Range<u64>, space: &Space) -> Result<(), DiskError> {
        let whole = self.whole(&range);
        self.fill_edges(&range, &whole, space).await?;
        self.disk.write(whole.start, space.buffer.range(..length(&whole))).await
    }

    /// Puts what the disk holds around `range`, in the first and last sector of `whole`, around it in the space.
    async fn fill_edges(
        &self,
        range: &Range<u64>,
        whole: &Range<u64>,
        space: &Space,
    ) -> Result<(), DiskError> {
        let sector = u64::from(self.disk.info().sector_size);
        let memory = space.buffer.mapping();
        if range.start > whole.start {
            self.read_spare(whole.start, space).await?;
            memory.copy_to(space.spare, memory, 0, length(&(whole.start..range.start)));
        }
        if range.end < whole.end {
            let last = whole.end - sector;
            self.read_spare(last, space).await?;
            let from = space.spare + length(&(last..range.end));
            memory.copy_to(from, memory, length(&(whole.start..range.end)), length(&(range.end..whole.end)));
        }
        Ok(())
    }

    /// Reads the sector at `offset` into the spare sectors of the space.
    async fn read_spare(&self, offset: u64, space: &Space) -> Result<(), DiskError> {
        let sector = self.disk.info().sector_size as usize;
        self.disk.read(offset, space.buffer.range(space.spare..space.spare + sector)).await
    }

    /// All sectors that hold a byte of `range`.
    fn whole(&self, range: &Range<u64>) -> Range<u64> {
        let sector = u64::from(self.disk.info().sector_size);
        range.start / sector * sector..range.end.next_multiple_of(sector)
    }

    /// The sectors all of whose bytes are in `range`.
    fn inner(&self, range: &Range<u64>) -> Range<u64> {
        let sector = u64::from(self.disk.info().sector_size);
        range.start.next_multiple_of(sector)..range.end / sector * sector
    }
}

/// Bytes of a range that is no longer than a request.
fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}
