//! One disk of a controller.

use std::sync::Arc;

use vmbus_channels::{Buffer, BufferRange, Guest};
use vmbus_core::memory::SharedMemory;
use vmbus_core::storage::scsi::{
    BlockRange, CachingPage, Capacity16, CdbForm, Command, ModeParameters, StandardInquiry, UnmapDescriptor,
};

use super::controller::Controller;
use super::{DiskError, DiskQueue};

/// Most sectors that one UNMAP descriptor names.
const UNMAP_SECTORS: u64 = 1 << 31;

/// What a disk says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Number of sectors.
    pub sectors: u64,
    /// Bytes of a sector.
    pub sector_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether discarding gives room back.
    pub discards: bool,
}

impl DiskInfo {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.sectors.saturating_mul(u64::from(self.sector_size))
    }
}

/// A disk. Clones are handles to the same one; requests may be made from several tasks at a time.
///
/// Offsets and lengths are in bytes and multiples of the sector size. A write is on stable storage after the next
/// [`flush`](Self::flush) that starts after it has returned, or when [`write_durably`](Self::write_durably) returns.
#[derive(Clone, Debug)]
pub struct Disk {
    controller: Controller,
    lun: u8,
    info: DiskInfo,
}

impl Disk {
    /// The first disk of the guest's first controller.
    ///
    /// # Errors
    /// As [`Controller::open`] and [`Controller::disk`].
    pub async fn open(guest: &Guest) -> Result<Self, DiskError> {
        let controller = Controller::open(guest).await?;
        let lun = controller.luns().await?.into_iter().min().ok_or(DiskError::NoSuchDisk(0))?;
        controller.disk(lun).await
    }

    pub(super) async fn open_on(controller: &Controller, lun: u8) -> Result<Self, DiskError> {
        let inquiry = Command::Inquiry { options: 0, page: 0, allocation_length: 36 };
        let inquiry = controller.query("INQUIRY", lun, &inquiry, 36).await?;
        let inquiry = StandardInquiry::parse(&inquiry).ok_or(DiskError::Answer("INQUIRY"))?;
        if !inquiry.is_present() {
            return Err(DiskError::NoSuchDisk(lun));
        }
        let capacity = Command::ReadCapacity16 { lba: 0, allocation_length: 32, partial: false };
        let capacity = controller.query("READ CAPACITY", lun, &capacity, 32).await?;
        let capacity = Capacity16::parse(&capacity).ok_or(DiskError::Answer("READ CAPACITY"))?;
        let sectors = capacity.blocks().ok_or(DiskError::Answer("READ CAPACITY"))?;
        let sector_size = capacity.block_size.get();
        if !sector_size.is_power_of_two() || !(512..=65536).contains(&sector_size) {
            return Err(DiskError::Answer("READ CAPACITY"));
        }
        let info = DiskInfo {
            sectors,
            sector_size,
            read_only: is_read_only(controller, lun).await?,
            discards: capacity.provisioning_and_alignment.get() & Capacity16::PROVISIONED != 0,
        };
        controller.remember(lun).await?;
        Ok(Self { controller: controller.clone(), lun, info })
    }

    /// What the disk says of itself.
    pub fn info(&self) -> DiskInfo {
        self.info
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.info.size()
    }

    /// The controller that it belongs to.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Memory for requests of this disk.
    ///
    /// # Errors
    /// [`vmbus_channels::Error::OutOfSharedMemory`].
    pub fn buffer(&self, bytes: usize) -> Result<Buffer, DiskError> {
        Ok(self.controller.guest().share(bytes)?)
    }

    /// Reads into shared memory.
    ///
    /// # Errors
    /// [`DiskError::Failed`] if the disk says so; [`DiskError::Unaligned`], [`DiskError::BeyondEnd`]: the caller's
    /// fault; [`DiskError::Channel`] if the bus is gone.
    pub async fn read(&self, offset: u64, into: BufferRange) -> Result<(), DiskError> {
        self.transfer("READ", offset, into, Command::Read).await
    }

    /// Writes from shared memory.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn write(&self, offset: u64, from: BufferRange) -> Result<(), DiskError> {
        self.transfer("WRITE", offset, from, Command::Write).await
    }

    /// Writes from shared memory, and returns when the data are on stable storage.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn write_durably(&self, offset: u64, from: BufferRange) -> Result<(), DiskError> {
        self.transfer("WRITE", offset, from, |range| Command::Write(range.with(BlockRange::FUA))).await
    }

    /// Reads consecutive bytes into several pieces of shared memory, all in flight together.
    ///
    /// # Errors
    /// As [`read`](Self::read), for any of the pieces; the others may have been read.
    pub async fn read_vectored(
        &self,
        offset: u64,
        into: impl IntoIterator<Item = BufferRange>,
    ) -> Result<(), DiskError> {
        self.transfer_all("READ", offset, into, Command::Read).await
    }

    /// Writes several pieces of shared memory one after the other, all in flight together.
    ///
    /// # Errors
    /// As [`read`](Self::read), for any of the pieces; the others may have been written.
    pub async fn write_vectored(
        &self,
        offset: u64,
        from: impl IntoIterator<Item = BufferRange>,
    ) -> Result<(), DiskError> {
        self.transfer_all("WRITE", offset, from, Command::Write).await
    }

    /// Returns when all writes that have returned are on stable storage.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn flush(&self) -> Result<(), DiskError> {
        let outcome =
            self.controller.run(self.lun, &Command::SynchronizeCache(BlockRange::new(0, 0)), None).await?;
        DiskError::check("SYNCHRONIZE CACHE", outcome).map(drop)
    }

    /// Gives the room of bytes back whose contents do not matter any more. Does nothing on a disk that cannot.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check(offset, len)?;
        if !self.info.discards || len == 0 {
            return Ok(());
        }
        let sector = u64::from(self.info.sector_size);
        let (mut lba, mut left) = (offset / sector, len / sector);
        while left > 0 {
            let blocks = left.min(UNMAP_SECTORS);
            let descriptor = UnmapDescriptor {
                lba: lba.into(),
                blocks: u32::try_from(blocks).unwrap_or(u32::MAX).into(),
                ..UnmapDescriptor::default()
            };
            let list = UnmapDescriptor::emit_list(&[descriptor]).ok_or(DiskError::Answer("UNMAP"))?;
            let buffer = self.buffer(list.len())?;
            buffer.write(0, &list)?;
            let length = u16::try_from(list.len()).unwrap_or(u16::MAX);
            let command = Command::Unmap { anchor: false, list_length: length };
            let outcome = self.controller.run(self.lun, &command, Some(buffer.range(..))).await?;
            DiskError::check("UNMAP", outcome)?;
            (lba, left) = (lba + blocks, left - blocks);
        }
        Ok(())
    }

    /// Makes bytes zeros, without sending any. Their room stays theirs where the disk can arrange it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.fill_with_zeroes(offset, len, 0).await
    }

    /// Makes bytes zeros and gives their room back, as punching a hole into a file does. Writes zeros on a disk that
    /// gives none back. Unlike after [`discard`](Self::discard) one may count on the zeros.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn punch_hole(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        // A disk that lets blocks go which would not read as zeros has to write them all the same (SBC, WRITE SAME).
        let options = if self.info.discards { BlockRange::UNMAP } else { 0 };
        self.fill_with_zeroes(offset, len, options).await
    }

    /// Copies bytes out of the disk, by way of shared memory.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_bytes(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let buffer = self.buffer(into.len())?;
        self.read(offset, buffer.range(..)).await?;
        buffer.mapping().read(0, into);
        Ok(())
    }

    /// Copies bytes to the disk, by way of shared memory.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn write_bytes(&self, offset: u64, from: &[u8]) -> Result<(), DiskError> {
        let buffer = self.buffer(from.len())?;
        buffer.mapping().write(0, from);
        self.write(offset, buffer.range(..)).await
    }

    /// The same disk for a thread that polls. `None` while there are other handles to its controller.
    pub fn into_queue(self) -> Option<DiskQueue> {
        self.into_queues()?.into_iter().next()
    }

    /// The same disk for several threads that poll: a queue for each channel of its controller, see
    /// [`Controller::widen`]. Their channels close with the last queue. `None` while there are other handles to the
    /// controller.
    pub fn into_queues(self) -> Option<Vec<DiskQueue>> {
        let version = self.controller.version();
        let (primary, more) = self.controller.into_channels()?;
        let first = DiskQueue::new(Arc::new(primary.into_blocking()), version, self.lun, self.info);
        let mut queues: Vec<_> =
            more.into_iter().map(|channel| first.beside(channel.into_blocking())).collect();
        queues.insert(0, first);
        Some(queues)
    }

    async fn fill_with_zeroes(&self, offset: u64, len: u64, options: u8) -> Result<(), DiskError> {
        self.check(offset, len)?;
        let sector = u64::from(self.info.sector_size);
        let (mut lba, mut left) = (offset / sector, len / sector);
        let zeros = self.buffer(self.info.sector_size as usize)?;
        zeros.mapping().fill_zero(0, self.info.sector_size as usize);
        while left > 0 {
            let blocks = u32::try_from(left.min(UNMAP_SECTORS)).unwrap_or(u32::MAX);
            let range = BlockRange { form: CdbForm::Sixteen, ..BlockRange::new(lba, blocks).with(options) };
            let outcome =
                self.controller.run(self.lun, &Command::WriteSame(range), Some(zeros.range(..))).await?;
            DiskError::check("WRITE SAME", outcome)?;
            (lba, left) = (lba + u64::from(blocks), left - u64::from(blocks));
        }
        Ok(())
    }

    async fn transfer_all(
        &self,
        name: &'static str,
        mut offset: u64,
        pieces: impl IntoIterator<Item = BufferRange>,
        command: impl Fn(BlockRange) -> Command + Copy,
    ) -> Result<(), DiskError> {
        let mut transfers = Vec::new();
        for piece in pieces {
            let len = u64::from(piece.byte_count());
            transfers.push(self.transfer(name, offset, piece, command));
            offset += len;
        }
        join_all(transfers).await
    }

    /// Moves one piece of memory, in as many commands as it takes.
    async fn transfer(
        &self,
        name: &'static str,
        offset: u64,
        data: BufferRange,
        command: impl Fn(BlockRange) -> Command + Copy,
    ) -> Result<(), DiskError> {
        let len = data.byte_count();
        let range = self.blocks(offset, len)?;
        let longest = self.controller.longest_transfer();
        if len <= longest {
            return self.run(name, &command(range), data).await;
        }
        let mut parts = Vec::new();
        let mut at = 0;
        while at < len {
            let part = longest.min(len - at);
            let range = self.blocks(offset + u64::from(at), part)?;
            let data = data.part(at, part);
            parts.push(async move { self.run(name, &command(range), data).await });
            at += part;
        }
        join_all(parts).await
    }

    async fn run(&self, name: &'static str, command: &Command, data: BufferRange) -> Result<(), DiskError> {
        let outcome = self.controller.run(self.lun, command, Some(data)).await?;
        DiskError::check(name, outcome).map(drop)
    }

    fn blocks(&self, offset: u64, len: u32) -> Result<BlockRange, DiskError> {
        blocks(&self.info, offset, len)
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        check(&self.info, offset, len)
    }
}

/// Waits for all; gives the first error.
async fn join_all(parts: Vec<impl Future<Output = Result<(), DiskError>>>) -> Result<(), DiskError> {
    let mut parts: Vec<_> = parts.into_iter().map(|part| Some(Box::pin(part))).collect();
    let mut result = Ok(());
    std::future::poll_fn(|context| {
        for slot in &mut parts {
            if let Some(part) = slot
                && let std::task::Poll::Ready(done) = part.as_mut().poll(context)
            {
                *slot = None;
                if result.is_ok() {
                    result = done;
                }
            }
        }
        if parts.iter().all(Option::is_none) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    result
}

pub(super) fn blocks(info: &DiskInfo, offset: u64, len: u32) -> Result<BlockRange, DiskError> {
    check(info, offset, u64::from(len))?;
    Ok(BlockRange::new(offset / u64::from(info.sector_size), len / info.sector_size))
}

fn check(info: &DiskInfo, offset: u64, len: u64) -> Result<(), DiskError> {
    let sector = info.sector_size;
    if !offset.is_multiple_of(u64::from(sector)) || !len.is_multiple_of(u64::from(sector)) {
        return Err(DiskError::Unaligned { offset, len, sector });
    }
    let size = info.size();
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        Some(_) | None => Err(DiskError::BeyondEnd { offset, len, size }),
    }
}

async fn is_read_only(controller: &Controller, lun: u8) -> Result<bool, DiskError> {
    let command = Command::ModeSense {
        form: CdbForm::Six,
        disable_block_descriptors: true,
        page_control: 0,
        page: CachingPage::NUMBER,
        subpage: 0,
        allocation_length: 64,
    };
    let answer = controller.query("MODE SENSE", lun, &command, 64).await?;
    let parameters = ModeParameters::parse(CdbForm::Six, &answer).ok_or(DiskError::Answer("MODE SENSE"))?;
    Ok(parameters.device_specific & ModeParameters::WRITE_PROTECTED != 0)
}
