//! Sealed memory files and mappings of them.
//!
//! All memory that partitions share is a memfd which nobody can shrink: a peer that truncated a file under a mapping
//! would end us with a bus error.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;
use vmbus_core::memory::SharedMemory;

use crate::raw::{Map, Piece, View};

/// Why memory could not be made or taken over.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The peer's descriptor is no memfd that can be sealed. The peer's fault.
    #[error("the descriptor is not a memfd with sealing allowed")]
    NotSealable,
    /// The peer's file is not sealed against shrinking, and its seals are locked. The peer's fault.
    #[error("the memory file can be shrunk by its owner and does not accept a seal")]
    Shrinkable,
    /// The peer's file takes huge pages from a pool that may run dry while we use it. The peer's fault.
    #[error("memory files on huge pages are not accepted")]
    HugePages,
    /// A part was asked for that is not inside the file, not whole pages, or empty.
    #[error("{size:#x} bytes at {offset:#x} are not whole pages inside a file of {file_size:#x} bytes")]
    OutsideFile {
        /// First byte of the part.
        offset: u64,
        /// Its length in bytes.
        size: u64,
        /// Length of the file in bytes.
        file_size: u64,
    },
    /// The operating system refused. Ours, usually a limit.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A memory file that cannot shrink while anybody uses it. Clones are the same file.
#[derive(Clone, Debug)]
pub struct Memfd {
    file: Arc<OwnedFd>,
    size: u64,
}

impl Memfd {
    /// A new zeroed file of `size` bytes, rounded up to whole pages, sealed against shrinking, growing and unsealing.
    /// `name` shows up in `/proc/PID/maps`.
    ///
    /// # Errors
    /// [`MemoryError::System`]: out of descriptors or memory.
    pub fn new(name: &str, size: u64) -> Result<Self, MemoryError> {
        let file = Self::unsealed(name, size)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
            .map_err(|errno| MemoryError::System { what: "sealing a memory file", source: errno.into() })?;
        Ok(file)
    }

    /// [`new`](Self::new) without seals: not to be shown to anybody before it has some.
    pub(crate) fn unsealed(name: &str, size: u64) -> Result<Self, MemoryError> {
        let failed = |what| move |errno: nix::Error| MemoryError::System { what, source: errno.into() };
        let size = size.max(1).next_multiple_of(vmbus_core::PAGE_SIZE as u64);
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        // Never executable, where the kernel (6.3) knows that.
        let file = memfd_create(name, flags | MFdFlags::from_bits_retain(nix::libc::MFD_NOEXEC_SEAL))
            .or_else(|_| memfd_create(name, flags))
            .map_err(failed("creating a memory file"))?;
        let length = i64::try_from(size).map_err(|_| MemoryError::System {
            what: "sizing a memory file",
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        ftruncate(&file, length).map_err(failed("sizing a memory file"))?;
        Ok(Self { file: Arc::new(file), size })
    }

    /// Takes over a file that a peer passed. If it is not sealed against shrinking yet, it is now.
    ///
    /// # Errors
    /// [`MemoryError::NotSealable`], [`MemoryError::Shrinkable`] or [`MemoryError::HugePages`]: the peer's fault, it
    /// must not be mapped.
    pub fn from_peer(file: OwnedFd) -> Result<Self, MemoryError> {
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|_| MemoryError::NotSealable)?;
        if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
            fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))
                .map_err(|_| MemoryError::Shrinkable)?;
        }
        let failed = |what| move |errno: nix::Error| MemoryError::System { what, source: errno.into() };
        let kind = fstatfs(&file).map_err(failed("asking for a file's kind"))?.filesystem_type();
        if kind == HUGETLBFS_MAGIC {
            return Err(MemoryError::HugePages);
        }
        // The size is asked for after the seal: it cannot become smaller from here on.
        let size = fstat(&file).map_err(failed("asking for a file's size"))?.st_size;
        Ok(Self { file: Arc::new(file), size: u64::try_from(size).unwrap_or(0) })
    }

    /// Length of the file in bytes, as it was when it was made or taken over. It never gets shorter.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Maps `size` bytes from `offset`, both whole pages.
    ///
    /// # Errors
    /// [`MemoryError::OutsideFile`]: whoever chose the numbers; [`MemoryError::System`]: a limit of ours, or a file
    /// that is sealed against writing.
    pub fn map(&self, offset: u64, size: u64) -> Result<Mapping, MemoryError> {
        self.check(offset, size)?;
        let len = usize::try_from(size).map_err(|_| self.outside(offset, size))?;
        let map = Map::shared(Piece { file: self.as_fd(), offset, len })
            .map_err(|source| MemoryError::System { what: "mapping memory", source })?;
        Ok(Mapping { view: View::whole(Arc::new(map)), file: self.clone(), file_offset: offset })
    }

    /// Maps all of it.
    ///
    /// # Errors
    /// As [`Memfd::map`].
    pub fn map_all(&self) -> Result<Mapping, MemoryError> {
        self.map(0, self.size)
    }

    /// Whether they are clones of one another.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }

    fn check(&self, offset: u64, size: u64) -> Result<(), MemoryError> {
        let page = vmbus_core::PAGE_SIZE as u64;
        let whole_pages = offset.is_multiple_of(page) && size.is_multiple_of(page) && size > 0;
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.size);
        if whole_pages && inside { Ok(()) } else { Err(self.outside(offset, size)) }
    }

    fn outside(&self, offset: u64, size: u64) -> MemoryError {
        MemoryError::OutsideFile { offset, size, file_size: self.size }
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A part of a [`Memfd`] in this process's address space. Clones and slices share one mapping, which lives as long as
/// any of them.
#[derive(Clone)]
pub struct Mapping {
    view: View,
    file: Memfd,
    file_offset: u64,
}

impl Mapping {
    /// New zeroed memory that no other process knows of, of `size` bytes rounded up to whole pages.
    ///
    /// # Errors
    /// [`MemoryError::System`]: a limit of ours.
    pub fn anonymous(size: usize) -> Result<Self, MemoryError> {
        Memfd::new("vmbus-private", size as u64)?.map_all()
    }

    /// The `len` bytes from `offset` as a mapping of their own. Panics if they are not inside.
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let view = self.view.slice(offset, len);
        Self { view, file: self.file.clone(), file_offset: self.file_offset + offset as u64 }
    }

    /// Copies `len` bytes to another mapping without a stop in private memory. Panics if either part is not inside.
    #[inline]
    pub fn copy_to(&self, offset: usize, to: &Mapping, to_offset: usize, len: usize) {
        self.view.copy_to(offset, &to.view, to_offset, len);
    }

    /// Hint that these bytes will be read soon, so that they can be fetched meanwhile: worth having for copies from
    /// here and there of a memory larger than the caches. What is not inside does nothing.
    #[inline]
    pub fn prefetch(&self, offset: usize, len: usize) {
        self.view.prefetch_read(offset, len);
    }

    /// Sets `len` bytes from `offset` to zero. Panics if they are not inside.
    pub fn fill_zero(&self, offset: usize, len: usize) {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut at = 0;
        while at < len {
            let part = ZEROES.len().min(len - at);
            self.view.write(offset + at, &ZEROES[..part]);
            at += part;
        }
    }

    /// Sets bits in the u64 at `offset` and returns what it was. Panics if it is not inside or not aligned.
    #[inline]
    pub fn fetch_or_u64(&self, offset: usize, bits: u64, order: Ordering) -> u64 {
        u64::from_le(self.view.word_u64(offset).fetch_or(bits.to_le(), order))
    }

    /// Keeps these bits of the u32 at `offset`, clears the others, and returns what it was. Panics if it is not inside or
    /// not aligned.
    #[inline]
    pub fn fetch_and_u32(&self, offset: usize, bits: u32, order: Ordering) -> u32 {
        u32::from_le(self.view.word_u32(offset).fetch_and(bits.to_le(), order))
    }

    /// Replaces the u64 at `offset` and returns what it was. Panics if it is not inside or not aligned.
    #[inline]
    pub fn swap_u64(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        u64::from_le(self.view.word_u64(offset).swap(value.to_le(), order))
    }

    /// Loads the u64 at `offset`. Panics if it is not inside or not aligned.
    #[inline]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        u64::from_le(self.view.word_u64(offset).load(order))
    }

    /// The file this is a part of.
    pub fn file(&self) -> &Memfd {
        &self.file
    }

    /// Where in [`Mapping::file`] it starts, in bytes.
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }
}

impl SharedMemory for Mapping {
    #[inline]
    fn size(&self) -> usize {
        self.view.len()
    }

    #[inline]
    fn read(&self, offset: usize, into: &mut [u8]) {
        self.view.read(offset, into);
    }

    #[inline]
    fn write(&self, offset: usize, from: &[u8]) {
        self.view.write(offset, from);
    }

    #[inline]
    fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        u32::from_le(self.view.word_u32(offset).load(order))
    }

    #[inline]
    fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        self.view.word_u32(offset).store(value.to_le(), order);
    }

    #[inline]
    fn read_u64(&self, offset: usize) -> u64 {
        self.view.read_u64(offset)
    }

    #[inline]
    fn write_u64(&self, offset: usize, value: u64) {
        self.view.write_u64(offset, value);
    }

    #[inline]
    fn fetch_or_u32(&self, offset: usize, bits: u32, order: Ordering) -> u32 {
        u32::from_le(self.view.word_u32(offset).fetch_or(bits.to_le(), order))
    }

    #[inline]
    fn swap_u32(&self, offset: usize, value: u32, order: Ordering) -> u32 {
        u32::from_le(self.view.word_u32(offset).swap(value.to_le(), order))
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("size", &self.view.len())
            .field("file_offset", &self.file_offset)
            .finish_non_exhaustive()
    }
}
