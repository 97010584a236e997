//! Commands that change blocks without moving as many: UNMAP and WRITE SAME.

use std::io;
use std::sync::Arc;

use vmbus_core::memory::SharedMemory;
use vmbus_core::storage::scsi::{BlockRange, CdbForm, Failure, UnmapDescriptor};

use super::transfer::Extent;
use super::{Execution, Lun};
use crate::storage::backend::{Access, Durability};
use crate::storage::data::Data;
use crate::storage::scratch::Scratch;

/// Bytes of repeated pattern that WRITE SAME hands to the medium at a time.
const PATTERN_CHUNK: usize = 1 << 20;
/// The most descriptors that one UNMAP may have: their list must be kept until all is done.
pub(super) const MAX_UNMAP_DESCRIPTORS: u16 = 256;
/// Bytes of the longest list of them.
const MAX_UNMAP_LIST: u16 = 8 + 16 * MAX_UNMAP_DESCRIPTORS;

/// What becomes of the blocks of a WRITE SAME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SameMode {
    /// The guest would have the space given back if that leaves the same bytes.
    pub(super) unmap: bool,
    /// No block of data comes along: zeroes.
    pub(super) no_data: bool,
}

impl SameMode {
    /// The mode that a command asks for. Anchored blocks and protection information are not to be had.
    pub(super) fn of(blocks: &BlockRange) -> Result<Self, Failure> {
        if blocks.has(BlockRange::ANCHOR) || blocks.protect() != 0 {
            return Err(Failure::InvalidField);
        }
        let no_data = blocks.form == CdbForm::Sixteen && blocks.has(BlockRange::NO_DATA_OUT);
        Ok(Self { unmap: blocks.has(BlockRange::UNMAP), no_data })
    }
}

impl Lun {
    pub(super) fn unmap(
        self: &Arc<Self>,
        anchor: bool,
        list_length: u16,
        data: Data<'_>,
    ) -> Result<Execution, Failure> {
        if self.geometry.discard_unit.is_none() && self.geometry.access == Access::ReadWrite {
            return Err(Failure::UnknownOpcode);
        }
        self.writable()?;
        if anchor {
            return Err(Failure::InvalidField);
        }
        if list_length > MAX_UNMAP_LIST {
            return Err(Failure::InvalidParameter);
        }
        let mut list = vec![0; list_length.into()];
        data.parameters(&mut list)?;
        let extents = self.unmap_extents(&list)?;
        if extents.is_empty() {
            return Ok(Execution::done(0));
        }
        let (lun, ticket) = (Arc::clone(self), self.writes.take_off());
        Ok(Execution::later(async move {
            let mut result = Ok(());
            for extent in extents {
                result = lun.backend.discard(extent.range()).await;
                if result.is_err() {
                    break;
                }
            }
            drop(ticket);
            lun.write_outcome(result, list_length.into())
        }))
    }

    /// The parts of the disk that an UNMAP parameter list names. All are checked before any is touched.
    fn unmap_extents(&self, list: &[u8]) -> Result<Vec<Extent>, Failure> {
        let named = UnmapDescriptor::parse_list(list)?.iter();
        let extents =
            named.map(|descriptor| self.extent(descriptor.lba.get(), descriptor.blocks.get().into()));
        extents.filter(|extent| !extent.is_ok_and(|extent| extent.length == 0)).collect()
    }

    pub(super) fn write_same(
        self: &Arc<Self>,
        blocks: &BlockRange,
        mode: SameMode,
        data: Data<'_>,
    ) -> Result<Execution, Failure> {
        self.writable()?;
        // "To the end of the disk" is refused, as page B0 says (WSNZ).
        if blocks.blocks == 0 || (mode.unmap && self.geometry.discard_unit.is_none()) {
            return Err(Failure::InvalidField);
        }
        let extent = self.extent(blocks.lba, u64::from(blocks.blocks))?;
        let mut block = vec![0; self.geometry.logical_sector as usize];
        if !mode.no_data {
            data.parameters(&mut block).map_err(|failure| match failure {
                Failure::ParameterListLength => Failure::LbaOutOfRange,
                other => other,
            })?;
        }
        let moved = if mode.no_data { 0 } else { self.geometry.logical_sector };
        let zeroes = block.iter().all(|&byte| byte == 0);
        let (lun, ticket) = (Arc::clone(self), self.writes.take_off());
        Ok(Execution::later(async move {
            let result = match (zeroes, mode.unmap) {
                (true, true) => lun.backend.discard(extent.range()).await,
                (true, false) => lun.backend.write_zeroes(extent.range(), Durability::Visible).await,
                (false, _) => lun.write_pattern(extent, &block).await,
            };
            drop(ticket);
            lun.write_outcome(result, moved)
        }))
    }

    async fn write_pattern(&self, extent: Extent, block: &[u8]) -> io::Result<()> {
        // Never closed; a permit it is, or there is nothing to wait for.
        let _permit = self.scratches.acquire().await;
        let chunk = usize::try_from(extent.length).unwrap_or(usize::MAX).min(PATTERN_CHUNK);
        let scratch = Scratch::new(chunk)?;
        for at in (0..chunk).step_by(block.len()) {
            scratch.mapping().write(at, block);
        }
        let mut offset = extent.offset;
        while offset < extent.end() {
            let length = usize::try_from(extent.end() - offset).unwrap_or(usize::MAX).min(chunk);
            self.backend.write(offset, scratch.pages(length)?, Durability::Visible).await?;
            offset += length as u64;
        }
        Ok(())
    }
}
