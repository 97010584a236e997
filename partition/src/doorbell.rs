//! Doorbells: a descriptor that says "look", and nothing else.
//!
//! Neither end ever waits. A guest rings the root by an eventfd that the guest made. The root rings a guest by a pipe:
//! an eventfd whose other holder is hostile can be made to block its writer, since O_NONBLOCK belongs to what both
//! hold and the counter can be filled, while the write end of a pipe is the root's alone. For the same reason a bell
//! is cleared by a read that says itself that it will not wait.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{OFlag, open};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;
use nix::unistd::{pipe2, write};

use crate::raw::read_nowait;

/// The end that rings. Ringing a bell that already rings changes nothing.
#[derive(Debug)]
pub struct Bell {
    descriptor: OwnedFd,
    kind: BellKind,
    /// A reader where `descriptor` cannot be one itself: see [`unbreakable`].
    _reader: Option<OwnedFd>,
}

/// The end that waits: its descriptor is readable while the bell rings.
#[derive(Debug)]
pub struct BellReceiver {
    descriptor: Arc<OwnedFd>,
}

/// What a bell is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BellKind {
    /// An eventfd, for ends that trust each other or where the waiting end is the cautious one.
    Event,
    /// A pipe, for a ringing end that must not be made to wait.
    Pipe,
}

impl BellKind {
    /// A new bell.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn create(self) -> io::Result<(Bell, BellReceiver)> {
        match self {
            Self::Event => {
                let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
                let descriptor = OwnedFd::from(event);
                let receiver = BellReceiver { descriptor: Arc::new(descriptor.try_clone()?) };
                Ok((Bell { descriptor, kind: self, _reader: None }, receiver))
            }
            Self::Pipe => {
                let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
                let (descriptor, kept) = unbreakable(&reader, writer)?;
                let bell = Bell { descriptor, kind: self, _reader: kept };
                Ok((bell, BellReceiver { descriptor: Arc::new(reader) }))
            }
        }
    }
}

/// The writing end of a pipe that always has a reader: writing to one without raises SIGPIPE, which is the host
/// program's. A descriptor for both is its own reader, which saves one. Where none can be had a second one reads.
fn unbreakable(reader: &OwnedFd, writer: OwnedFd) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    match open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty()) {
        Ok(both) => Ok((both, None)),
        // No /proc, or we have become another user since.
        Err(_) => Ok((writer, Some(reader.try_clone()?))),
    }
}

impl Bell {
    /// Makes the receiver's descriptor readable. Never waits.
    #[inline]
    pub fn ring(&self) {
        // A full pipe or counter rings already; a receiver that has gone is noticed by its link.
        let _ = match self.kind {
            BellKind::Event => write(&self.descriptor, &1u64.to_ne_bytes()),
            BellKind::Pipe => write(&self.descriptor, &[1]),
        };
    }
}

impl BellReceiver {
    /// Takes over a descriptor that a peer passed.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`]: it is not what a bell of this kind is made of, but, say, a file whose owner
    /// could make us wait. The peer's fault.
    pub fn from_peer(descriptor: OwnedFd, kind: BellKind) -> io::Result<Self> {
        if kind_of(&descriptor)? == Some(kind) {
            Ok(Self { descriptor: Arc::new(descriptor) })
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }

    /// Takes over a descriptor that the root passed: a bell of either kind.
    ///
    /// # Errors
    /// As [`BellReceiver::from_peer`].
    pub fn from_root(descriptor: OwnedFd) -> io::Result<Self> {
        match kind_of(&descriptor)? {
            Some(_) => Ok(Self { descriptor: Arc::new(descriptor) }),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// The descriptor, for a reactor that keeps it.
    pub(crate) fn shared(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    /// The descriptor, to be handed to the end that waits.
    pub(crate) fn into_descriptor(self) -> io::Result<OwnedFd> {
        Arc::try_unwrap(self.descriptor).or_else(|shared| shared.try_clone())
    }

    /// Silences the bell and tells whether it rang. Never waits. Clear first, then look at what the bell was for.
    pub fn clear(&self) -> bool {
        let mut rang = false;
        let mut bytes = [0; 4096];
        // A pipe holds 64 KiB; the bound keeps a peer that writes without end from holding us.
        for _ in 0..16 {
            let count = read_nowait(self.descriptor.as_fd(), &mut bytes).unwrap_or(0);
            rang |= count > 0;
            if count < bytes.len() {
                break;
            }
        }
        rang
    }
}

/// What a descriptor is made of, as the kernel names it.
fn kind_of(descriptor: &OwnedFd) -> io::Result<Option<BellKind>> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?;
    let name = link.to_string_lossy();
    if name == "anon_inode:[eventfd]" {
        Ok(Some(BellKind::Event))
    } else if name.starts_with("pipe:[") {
        Ok(Some(BellKind::Pipe))
    } else {
        Ok(None)
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsFd for BellReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
