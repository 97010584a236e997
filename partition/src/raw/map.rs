//! Address space: file mappings, alone or several side by side.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// A stretch of address space that this process owns until the value is dropped.
#[derive(Debug)]
pub(crate) struct Map {
    base: NonNull<u8>,
    len: usize,
}

/// A part of a file that takes its place in a [`Map::side_by_side`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

/// What present pages are for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Populate {
    ToRead,
    ToWrite,
}

// SAFETY: a Map is an address range owned by nobody else; any thread may use or unmap it.
unsafe impl Send for Map {}
// SAFETY: a shared Map gives out nothing but its address; the accesses are View's.
unsafe impl Sync for Map {}

impl Map {
    /// Maps `len` bytes of `file` from `offset`, shared and writable.
    pub(crate) fn shared(piece: Piece<'_>) -> io::Result<Self> {
        Self::writable(piece, MapFlags::MAP_SHARED)
    }

    /// Maps `len` bytes of `file` from `offset`, writable, so that nobody else sees what is written.
    pub(crate) fn private(piece: Piece<'_>) -> io::Result<Self> {
        Self::writable(piece, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE)
    }

    fn writable(piece: Piece<'_>, flags: MapFlags) -> io::Result<Self> {
        let length = nonzero(piece.len)?;
        let offset = file_offset(piece.offset)?;
        // SAFETY: the kernel chooses a free place, so no existing mapping is touched.
        let base = unsafe {
            mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags, piece.file, offset)
        }?;
        Ok(Self { base: base.cast(), len: piece.len })
    }

    /// Maps the pieces one after the other without a gap; each must be whole pages.
    pub(crate) fn side_by_side(pieces: &[Piece<'_>]) -> io::Result<Self> {
        let total = pieces.iter().try_fold(0usize, |sum, piece| sum.checked_add(piece.len));
        let len = total.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let length = nonzero(len)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: the kernel chooses a free place, so no existing mapping is touched.
        let base = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags) }?;
        let reserved = Self { base: base.cast(), len };
        let mut at = reserved.base.addr().get();
        for piece in pieces {
            let place = nonzero(at)?;
            let offset = file_offset(piece.offset)?;
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: place..place+len is inside `reserved`, which is ours and which nobody uses yet.
            unsafe { mmap(Some(place), nonzero(piece.len)?, access, flags, piece.file, offset) }?;
            at += piece.len;
        }
        Ok(reserved)
    }

    /// Makes all pages present at once, for `how` they will be used: much cheaper than one by one as they are touched.
    /// In a private mapping pages to be written become its own.
    pub(crate) fn populate(&self, how: Populate) -> io::Result<()> {
        let advice = match how {
            Populate::ToRead => MmapAdvise::MADV_POPULATE_READ,
            Populate::ToWrite => MmapAdvise::MADV_POPULATE_WRITE,
        };
        // SAFETY: the range is ours; this advice changes no contents.
        unsafe { madvise(self.base.cast(), self.len, advice) }?;
        Ok(())
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and every View of it holds this Map alive, so none is left.
        let result = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert!(result.is_ok(), "munmap of an owned range failed: {result:?}");
    }
}

fn nonzero(len: usize) -> io::Result<NonZeroUsize> {
    NonZeroUsize::new(len).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn file_offset(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}
