//! Memory of a guest that its root may access.

use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use vmbus_core::PAGE_SIZE;
use vmbus_core::memory::SharedMemory;
use vmbus_partition::{Mapping, SharedPages};

use crate::error::ChannelError;

/// Shared memory for requests, whole pages in a row. Cheap to clone; the memory is free again when the last clone
/// and the last request that shares it are gone.
///
/// The root may write to it at any time, so bytes are copied in and out and never borrowed.
#[derive(Clone, Debug)]
pub struct Buffer {
    pages: Arc<SharedPages>,
    len: usize,
}

impl Buffer {
    pub(crate) fn new(pages: SharedPages, len: usize) -> Self {
        Self { pages: Arc::new(pages), len }
    }

    /// Size in bytes, as asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`ChannelError::OutOfBuffer`]: the caller's fault.
    pub fn read(&self, at: usize, into: &mut [u8]) -> Result<(), ChannelError> {
        check(at, into.len(), self.len)?;
        self.pages.mapping().read(at, into);
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`ChannelError::OutOfBuffer`]: the caller's fault.
    pub fn write(&self, at: usize, from: &[u8]) -> Result<(), ChannelError> {
        check(at, from.len(), self.len)?;
        self.pages.mapping().write(at, from);
        Ok(())
    }

    /// The memory itself, for copies from and to other shared memory.
    pub fn mapping(&self) -> &Mapping {
        self.pages.mapping()
    }

    /// A part of the buffer to give a request access to.
    ///
    /// # Panics
    /// If the range is not within the buffer or holds more than 4 GiB, as slicing does.
    pub fn range(&self, range: impl RangeBounds<usize>) -> BufferRange {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end + 1,
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len,
        };
        assert!(start <= end && end <= self.len, "range {start}..{end} of a buffer of {} bytes", self.len);
        let len = u32::try_from(end - start).expect("a range of less than 4 GiB");
        BufferRange { pages: Arc::clone(&self.pages), start, len }
    }

    /// All pages as one range.
    pub(crate) fn list(&self) -> Result<vmbus_core::pages::PageRanges, vmbus_core::pages::GpadlError> {
        self.pages.ranges()
    }
}

/// A part of a [`Buffer`].
#[derive(Clone, Debug)]
pub struct BufferRange {
    pages: Arc<SharedPages>,
    start: usize,
    len: u32,
}

impl BufferRange {
    /// Bytes of the range.
    pub fn byte_count(&self) -> u32 {
        self.len
    }

    /// A part of the range: `len` bytes from byte `at` of it.
    ///
    /// # Panics
    /// If that is not within the range, as slicing does.
    pub fn part(&self, at: u32, len: u32) -> Self {
        assert!(
            at <= self.len && len <= self.len - at,
            "{len} bytes at {at} of a range of {} bytes",
            self.len
        );
        Self { pages: Arc::clone(&self.pages), start: self.start + at as usize, len }
    }

    /// Copies bytes of the range out.
    ///
    /// # Errors
    /// [`ChannelError::OutOfBuffer`]: the caller's fault.
    pub fn read(&self, at: usize, into: &mut [u8]) -> Result<(), ChannelError> {
        check(at, into.len(), self.len as usize)?;
        self.pages.mapping().read(self.start + at, into);
        Ok(())
    }

    /// Where it starts in its first page.
    pub(crate) fn byte_offset(&self) -> u32 {
        u32::try_from(self.start % PAGE_SIZE).unwrap_or(0)
    }

    pub(crate) fn first_pfn(&self) -> u64 {
        self.pages.first_pfn() + (self.start / PAGE_SIZE) as u64
    }
}

/// Whether `len` bytes from byte `at` are within `size` bytes.
pub(crate) fn check(at: usize, len: usize, size: usize) -> Result<(), ChannelError> {
    let inside = at.checked_add(len).is_some_and(|end| end <= size);
    if inside { Ok(()) } else { Err(ChannelError::OutOfBuffer { at, len, size }) }
}
