//! The guest's buffer of one command.

use std::borrow::Cow;

use vmbus_core::storage::DataDirection;
use vmbus_core::storage::scsi::Failure;
use vmbus_partition::GuestPages;

/// The first bytes of a guest's buffer, as many as the command's transfer length says.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    pages: Option<&'a GuestPages>,
    length: usize,
    direction: DataDirection,
}

impl<'a> Data<'a> {
    /// A command without a buffer.
    pub const NONE: Self = Self { pages: None, length: 0, direction: DataDirection::Unspecified };

    /// The first `length` bytes of `pages`, or `None` if there are not that many.
    pub fn new(pages: Option<&'a GuestPages>, length: u32, direction: DataDirection) -> Option<Self> {
        let length = usize::try_from(length).ok()?;
        let room = pages.map_or(0, GuestPages::len);
        (length <= room).then_some(Self { pages, length, direction })
    }

    /// Bytes of the buffer.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Answers with the first `allocation` bytes of `bytes`. Gives how many that were.
    ///
    /// An allocation length shorter than the answer is the guest's right and cuts it; a buffer shorter than what
    /// the guest asked for is its mistake, and nothing is written.
    pub(super) fn reply(&self, bytes: &[u8], allocation: usize) -> Result<u32, Failure> {
        let bytes = &bytes[..allocation.min(bytes.len())];
        self.destination(bytes.len())?
            .map_or(Ok(()), |pages| pages.write(0, bytes))
            .map_err(|_| Failure::BufferTooSmall)?;
        u32::try_from(bytes.len()).map_err(|_| Failure::BufferTooSmall)
    }

    /// Copies the first `into.len()` bytes of a parameter list into private memory.
    pub(super) fn parameters(&self, into: &mut [u8]) -> Result<(), Failure> {
        if into.len() > self.length {
            return Err(Failure::ParameterListLength);
        }
        match (self.direction, self.pages) {
            (DataDirection::FromDevice, _) => Err(Failure::InvalidField),
            (DataDirection::ToDevice | DataDirection::Unspecified, Some(pages)) => {
                pages.read(0, into).map_err(|_| Failure::ParameterListLength)
            }
            (DataDirection::ToDevice | DataDirection::Unspecified, None) => Ok(()),
        }
    }

    /// The first `bytes` bytes of the buffer, to be written into: `None` only if that is no byte.
    #[inline]
    pub(super) fn destination(&self, bytes: usize) -> Result<Option<Cow<'a, GuestPages>>, Failure> {
        self.first(bytes, DataDirection::ToDevice)
    }

    /// The first `bytes` bytes of the buffer, to be read: `None` only if that is no byte.
    #[inline]
    pub(super) fn source(&self, bytes: usize) -> Result<Option<Cow<'a, GuestPages>>, Failure> {
        self.first(bytes, DataDirection::FromDevice)
    }

    #[inline]
    fn first(&self, bytes: usize, forbidden: DataDirection) -> Result<Option<Cow<'a, GuestPages>>, Failure> {
        if bytes == 0 {
            return Ok(None);
        }
        if bytes > self.length {
            return Err(Failure::BufferTooSmall);
        }
        if self.direction == forbidden {
            return Err(Failure::InvalidField);
        }
        match self.pages {
            Some(pages) if pages.len() == bytes => Ok(Some(Cow::Borrowed(pages))),
            Some(pages) => {
                pages.slice(0, bytes).map(|part| Some(Cow::Owned(part))).map_err(|_| Failure::BufferTooSmall)
            }
            None => Err(Failure::BufferTooSmall),
        }
    }
}
