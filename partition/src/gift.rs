//! Memory that changes hands (`docs/src/protocol/attach.md`, "Gifts").
//!
//! A [`Gift`] is a memory file of its own that its maker fills. [`Gift::seal`] takes it out of the maker's address
//! space and seals it against writing, which the kernel refuses while anybody can still write there. What arrives is a
//! [`SealedGift`]: whatever descriptors the giver has kept, the bytes stay as they are. The taker either maps them
//! copy-on-write, so that its own writes are seen by nobody, or copies them into memory that it owns.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use vmbus_core::PAGE_SIZE;
use vmbus_core::memory::SharedMemory;

use crate::memory::{Mapping, Memfd, MemoryError};
use crate::raw::{Map, Piece, Populate, View};

/// What a gift is sealed against: nobody changes its bytes or its size, and nobody takes a seal away.
const SEALS: SealFlag = SealFlag::F_SEAL_WRITE
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_SEAL);

/// Why memory could not be given or taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GiftError {
    /// The file can still be written by somebody. The giver's fault.
    #[error("the gift is not sealed: its giver could still write to it")]
    NotSealed,
    /// The stated length is not within the file, or is nothing. The giver's fault.
    #[error("a gift of {len} bytes in a file of {size}")]
    Length {
        /// Bytes stated.
        len: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// Its file is none that can be taken over, or memory ran out.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Memory that is being filled in order to be given away. Nobody else can reach it.
#[derive(Debug)]
pub struct Gift {
    mapping: Mapping,
    len: usize,
}

impl Gift {
    /// `len` bytes of zeros.
    ///
    /// # Errors
    /// [`MemoryError::System`]: out of descriptors or memory.
    pub fn new(len: usize) -> Result<Self, MemoryError> {
        let mapping = Memfd::unsealed("vmbus-gift", len as u64)?.map_all()?;
        populate(mapping.view(), Populate::ToWrite)?;
        Ok(Self { mapping, len })
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to give.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// If they do not fit, as slices do.
    pub fn write(&mut self, at: usize, from: &[u8]) {
        assert!(
            at <= self.len && from.len() <= self.len - at,
            "{} bytes at {at} of {}",
            from.len(),
            self.len
        );
        self.mapping.write(at, from);
    }

    /// Takes the memory out of this address space and seals it. Nobody can write to it from here on.
    ///
    /// # Errors
    /// [`MemoryError::System`]: the kernel refused, which it does if somebody else maps the file.
    pub fn seal(self) -> Result<SealedGift, MemoryError> {
        let file = self.mapping.file().clone();
        // The last mapping: with it goes our access.
        drop(self.mapping);
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))
            .map_err(|errno: Errno| MemoryError::System { what: "sealing a gift", source: errno.into() })?;
        Ok(SealedGift { file, len: self.len })
    }
}

/// A gift on its way. Clones are the same one.
#[derive(Clone, Debug)]
pub struct SealedGift {
    file: Memfd,
    len: usize,
}

impl SealedGift {
    /// Takes over a file that a peer passed, which holds `len` bytes.
    ///
    /// # Errors
    /// [`GiftError::NotSealed`], [`GiftError::Length`] and the variants of [`GiftError::Memory`] that name the peer.
    pub fn from_peer(file: OwnedFd, len: u64) -> Result<Self, GiftError> {
        let file = Memfd::from_peer(file)?;
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|_| MemoryError::NotSealable)?;
        if !SealFlag::from_bits_retain(seals).contains(SEALS - SealFlag::F_SEAL_SEAL) {
            return Err(GiftError::NotSealed);
        }
        let size = file.size();
        match usize::try_from(len) {
            Ok(whole) if len > 0 && len <= size => Ok(Self { file, len: whole }),
            _ => Err(GiftError::Length { len, size }),
        }
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty one is not accepted.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Maps the gift, copy-on-write: nothing is copied until the taker writes, and only the page that it writes to.
    /// Its pages stay charged to the giver as long as they live.
    ///
    /// # Errors
    /// [`MemoryError`]: a limit of ours.
    pub fn open(self) -> Result<Given, MemoryError> {
        self.map(Populate::ToRead)
    }

    /// Copies the gift into memory that the taker owns, and lets the giver's file go.
    ///
    /// # Errors
    /// [`MemoryError`]: a limit of ours.
    pub fn copy(self) -> Result<Given, MemoryError> {
        self.map(Populate::ToWrite)
    }

    fn map(&self, how: Populate) -> Result<Given, MemoryError> {
        let len = self.len.next_multiple_of(PAGE_SIZE);
        let map = Map::private(Piece { file: self.file.as_fd(), offset: 0, len })
            .map_err(|source| MemoryError::System { what: "mapping a gift", source })?;
        let view = View::whole(Arc::new(map));
        populate(&view, how)?;
        Ok(Given { view, len: self.len })
    }
}

impl AsFd for SealedGift {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether they are the same gift, not whether they hold the same bytes.
impl PartialEq for SealedGift {
    fn eq(&self, other: &Self) -> bool {
        self.file.is(&other.file) && self.len == other.len
    }
}

impl Eq for SealedGift {}

/// Memory that was given to us: ours alone, to read and to write. It is gone when this is dropped.
pub struct Given {
    view: View,
    len: usize,
}

impl Given {
    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty gift is not accepted.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if they are not inside: the caller's fault.
    pub fn read(&self, at: usize, into: &mut [u8]) -> io::Result<()> {
        self.check(at, into.len())?;
        self.view.read(at, into);
        Ok(())
    }

    /// Copies bytes in, for nobody else to see.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if they are not inside: the caller's fault.
    pub fn write(&mut self, at: usize, from: &[u8]) -> io::Result<()> {
        self.check(at, from.len())?;
        self.view.write(at, from);
        Ok(())
    }

    fn check(&self, at: usize, len: usize) -> io::Result<()> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        if inside { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Given").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Makes pages present at once. A kernel before 5.14 does not know how: there they are touched one by one, which in a
/// private mapping makes them its own just the same.
fn populate(view: &View, how: Populate) -> Result<(), MemoryError> {
    match (view.populate(how), how) {
        (Ok(()), _) => Ok(()),
        (Err(error), Populate::ToRead) if error.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(()),
        (Err(error), Populate::ToWrite) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
            let mut byte = [0];
            for page in (0..view.len()).step_by(PAGE_SIZE) {
                view.read(page, &mut byte);
                view.write(page, &byte);
            }
            Ok(())
        }
        (Err(source), _) => Err(MemoryError::System { what: "making a gift's memory present", source }),
    }
}
