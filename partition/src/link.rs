//! What the bus sees of a partition: two traits, one for each end, whatever carries them.
//!
//! A [`RootEnd`] is what the root holds of an attached partition; a [`GuestEnd`] is what a guest holds of its root. No
//! call waits, and every wait is a file descriptor.
//!
//! # How an end sleeps
//!
//! Each event area belongs to one sleeper: the root's workers and the guest's processors. Flag 0 of area 0 means
//! "call `receive` until it gives `None`"; the others are the channels' numbers. A sleeper, in a loop:
//!
//! 1. takes its flags and does what they ask for;
//! 2. arms its area; if that says that flags are set, goes back to 1;
//! 3. waits for its bell (and, for area 0, for the socket);
//! 4. disarms, clears the bell if it was readable, and goes back to 1.
//!
//! While an area is not armed, nobody rings its bell: an end that polls costs its peer no system call.

use std::io;
use std::ops::Deref;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::allocator::{AllocError, SharedPages};
use crate::control_area::ControlAreaError;
use crate::frame::{FrameError, MAX_MESSAGE, RefusedWhat};
use crate::gift::SealedGift;
use crate::gpa::{GpaError, GpaSpace};
use crate::memory::{Memfd, MemoryError};

/// Where memory of the root's own begins in a partition's address space; a guest's own is below.
pub const ROOT_MEMORY: u64 = 1 << 46;
/// The sharing domain of memory of the root's own.
pub(crate) const ROOT_MEMORY_DOMAIN: u32 = u32::MAX;
/// Regions of the root's own memory, at most.
pub(crate) const MAX_ROOT_REGIONS: usize = 16;

/// Why a link cannot go on. After an error other than [`LinkError::Backlog`] and [`LinkError::TooLong`] the link is
/// finished: drop it.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A frame breaks the protocol. The peer's fault.
    #[error("the peer sent {0}")]
    Frame(#[from] FrameError),
    /// The control area breaks the protocol. The peer's fault.
    #[error("the peer wrote {0}")]
    ControlArea(#[from] ControlAreaError),
    /// The memory that the peer passed cannot be used. The peer's fault.
    #[error("the peer's memory: {0}")]
    Memory(#[from] MemoryError),
    /// The memory that the peer described makes no sense. The peer's fault.
    #[error("the peer's memory: {0}")]
    Gpa(#[from] GpaError),
    /// A frame came at a time when it makes no sense, or without the descriptors that belong to it. The peer's fault.
    #[error("the peer {0}")]
    Protocol(&'static str),
    /// The peer does not take what is sent to it, and the queue is full. The peer's fault.
    #[error("the peer does not read: {queued} messages or frames are waiting")]
    Backlog {
        /// How many are queued.
        queued: usize,
    },
    /// A message of more than 240 bytes. The caller's fault.
    #[error("a message of {len} bytes; 240 are the most")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// The root has refused the partition.
    #[error("the root refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The other end did not answer the offer of extensions in time: it may be a root that knows base frames only.
    #[error("the root did not answer within {seconds} s")]
    NoAnswer {
        /// How long it had.
        seconds: u64,
    },
    /// The other end takes no memory, neither as a gift nor to share: it is a base VMM or an older root.
    #[error("the other end takes no memory")]
    NoGifts,
    /// The other end has gone.
    #[error("the other end has gone")]
    Gone,
    /// The operating system refused. Ours, usually a limit.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl LinkError {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Who a process is, as the kernel vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id at the time it connected.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What is known of a partition from its attachment on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// The name it gave, or the one of the socket it came through.
    pub name: String,
    /// The root's number for it.
    pub id: u32,
    /// Virtual processors: targets of messages and signals.
    pub vps: u32,
    /// Event areas of the root's workers that it may signal, at least 1; area 0 is shared.
    pub workers: u32,
    /// Whether it speaks the extensions; if not, it is a base VMM.
    pub extended: bool,
    /// Whether memory can be given to it.
    pub takes_gifts: bool,
    /// The process at the other end; `None` for a partition in this process.
    pub credentials: Option<Credentials>,
}

/// A message's bytes, a private copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MessageBytes {
    bytes: [u8; MAX_MESSAGE],
    len: u8,
}

impl MessageBytes {
    /// A copy of `payload`; `None` if it is longer than 240 bytes.
    pub fn new(payload: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_MESSAGE];
        bytes.get_mut(..payload.len())?.copy_from_slice(payload);
        Some(Self { bytes, len: u8::try_from(payload.len()).ok()? })
    }
}

impl Deref for MessageBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for MessageBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MessageBytes").field(&&**self).finish()
    }
}

/// What a partition tells its root.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "most are messages, which go on at once: a box would cost more")]
pub enum FromGuest {
    /// A posted message.
    Message {
        /// Sending processor.
        vp: u32,
        /// Where it was posted to.
        connection_id: u32,
        /// 1 for a channel message.
        message_type: u32,
        /// The message.
        payload: MessageBytes,
    },
    /// A signal that came as a frame: from a base VMM, or for a connection that is no worker's.
    Signal {
        /// Where it goes.
        connection_id: u32,
        /// Number of the flag.
        flag: u32,
    },
    /// A synthetic register was written, for information.
    Msr {
        /// Whose register.
        vp: u32,
        /// Which.
        msr: u32,
        /// What.
        value: u64,
    },
    /// The guest was reset: its queues are empty, its channels closed.
    Reset,
    /// The guest crashed.
    Crash {
        /// On which processor.
        vp: u32,
        /// P0 to P4.
        parameters: [u64; 5],
        /// The control register.
        control: u64,
    },
    /// `memory()` gives something else now.
    MemoryChanged,
    /// The guest has taken note of all memory written before the ping with this number.
    Pong {
        /// What [`RootEnd::memory_written`] gave.
        arg: u32,
    },
    /// The partition gives away memory.
    Given {
        /// Its name for the gift; channels speak of it.
        id: u32,
        /// The memory, not yet mapped.
        gift: SealedGift,
    },
    /// The partition has gone; nothing comes after this.
    HungUp,
}

/// What a root tells a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "most are messages, which go on at once: a box would cost more")]
pub enum FromRoot {
    /// A message for one of the processors.
    Message {
        /// Which processor.
        vp: u32,
        /// Which interrupt source.
        sint: u8,
        /// 1 for a channel message.
        message_type: u32,
        /// The message.
        payload: MessageBytes,
    },
    /// Posts and signals to this connection have this HV_STATUS from now on; 0 is success.
    ConnectionStatus {
        /// The connection.
        connection_id: u32,
        /// Its status.
        status: u32,
    },
    /// The reason of a refusal that follows as a message.
    Refused(Refusal),
    /// The root wants the guest reset.
    SystemReset,
    /// The root wants the guest to end.
    SystemQuit,
    /// `memory()` gives something else now: the root has added or removed shared memory.
    MemoryChanged,
    /// The root gives away memory.
    Given {
        /// Its name for the gift; channels speak of it.
        id: u32,
        /// The memory, not yet mapped.
        gift: SealedGift,
    },
    /// The root has gone; nothing comes after this.
    HungUp,
}

/// Why something was refused, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was refused.
    pub what: RefusedWhat,
    /// A status code, as in the message that follows.
    pub code: u32,
    /// The reason, at most 1024 bytes.
    pub reason: String,
}

/// Something of a link that a sleeper waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// The attach socket.
    Socket,
    /// The process at the other end.
    Process,
    /// The bell of an event area of one's own.
    Bell(u32),
}

/// A descriptor of its own for who wants to keep one that it was lent.
fn duplicate(lent: Option<BorrowedFd<'_>>) -> io::Result<Option<Arc<OwnedFd>>> {
    lent.map(|descriptor| descriptor.try_clone_to_owned().map(Arc::new)).transpose()
}

/// The root's end of an attached partition.
pub trait RootEnd: Send + Sync {
    /// Who it is.
    fn info(&self) -> &PartitionInfo;

    /// Its memory as it is now.
    fn memory(&self) -> Arc<GpaSpace>;

    /// When it is readable, call [`RootEnd::receive`] until that gives `None`; when [`RootEnd::wants_write`] and it is
    /// writable, call [`RootEnd::flush`]. `None`: everything comes by the bell of worker 0.
    fn socket(&self) -> Option<BorrowedFd<'_>>;

    /// Readable once the process at the other end has ended, even if somebody else still holds its socket.
    fn peer_process(&self) -> Option<BorrowedFd<'_>>;

    /// A descriptor to wait on, for a reactor that keeps it; `None` if there is no such thing. Links that can share
    /// theirs do: descriptors are scarce.
    ///
    /// # Errors
    /// Out of descriptors.
    fn watch(&self, what: Watched) -> io::Result<Option<Arc<OwnedFd>>> {
        duplicate(match what {
            Watched::Socket => self.socket(),
            Watched::Process => self.peer_process(),
            Watched::Bell(worker) => self.worker_bell(worker),
        })
    }
    /// Ends the link: the other end finds it hung up, whoever still holds this one.
    fn hang_up(&self);

    /// The next thing the partition says, from socket and control area alike. Never waits.
    ///
    /// # Errors
    /// [`LinkError`]: the partition broke the protocol and must be detached.
    fn receive(&self) -> Result<Option<FromGuest>, LinkError>;

    /// Sends what is queued as far as that goes without waiting; `true` means that everything is out.
    ///
    /// # Errors
    /// [`LinkError`]: the partition must be detached.
    fn flush(&self) -> Result<bool, LinkError>;

    /// Whether something is queued that the socket did not take yet.
    fn wants_write(&self) -> bool;

    /// Sends a channel message, or queues it. Never waits.
    ///
    /// # Errors
    /// [`LinkError::Backlog`]: the guest does not take its messages; [`LinkError::TooLong`]: the caller's fault.
    fn deliver(&self, vp: u32, sint: u8, payload: &[u8]) -> Result<(), LinkError>;

    /// Messages, or frames, that wait because the partition does not take them.
    fn queued(&self) -> usize {
        0
    }

    /// Sets an event flag of one of the guest's processors. No system call while that processor is awake, unless the
    /// partition is a base VMM. Flags from 2048 on and processors that do not exist are ignored.
    fn signal(&self, vp: u32, flag: u16);

    /// The descriptor on which a worker sleeps; `None` for a base VMM, whose signals come by [`RootEnd::receive`], and
    /// for workers that do not exist.
    fn worker_bell(&self, worker: u32) -> Option<BorrowedFd<'_>>;

    /// Silences a worker's bell. Then take the flags.
    fn clear_bell(&self, worker: u32);

    /// Takes all flags that are set in a worker's area; flag 0 of worker 0 asks to call [`RootEnd::receive`].
    fn take_flags(&self, worker: u32, each: &mut dyn FnMut(u16));

    /// Says that a worker is about to sleep; `true` means that flags are set already: do not sleep.
    fn arm(&self, worker: u32) -> bool;

    /// Says that a worker is awake.
    fn disarm(&self, worker: u32);

    /// Tells a base VMM which guest-physical ranges (address, length) were written from outside. `Some(arg)`: what
    /// depends on it waits for [`FromGuest::Pong`] with this number; `None`: nothing to wait for.
    fn memory_written(&self, ranges: &[(u64, u64)]) -> Option<u32>;

    /// Posts and signals to a connection give this HV_STATUS from now on; 0 is success.
    ///
    /// # Errors
    /// [`LinkError::Backlog`].
    fn set_connection_status(&self, connection_id: u32, status: u32) -> Result<(), LinkError>;

    /// Lets the guest see memory of the root's own, whole pages, from guest-physical address `gpa` on, which is from
    /// [`ROOT_MEMORY`] on and where nothing else is. It is part of [`memory`](Self::memory) from now on, and the guest
    /// hears of it before any message that is delivered later.
    ///
    /// # Errors
    /// [`LinkError::NoGifts`]; [`LinkError::Gpa`] or [`LinkError::Memory`]: the caller's fault, or a limit;
    /// [`LinkError::Backlog`].
    fn add_memory(&self, gpa: u64, file: &Memfd) -> Result<(), LinkError>;

    /// Gives memory away under a name that nothing else given on this link has at present. Never waits.
    ///
    /// # Errors
    /// [`LinkError::NoGifts`]; [`LinkError::Backlog`].
    fn give(&self, id: u32, gift: SealedGift) -> Result<(), LinkError>;

    /// Says why, ahead of the message that refuses; does nothing towards a base VMM.
    ///
    /// # Errors
    /// [`LinkError::Backlog`].
    fn refuse(&self, refusal: &Refusal) -> Result<(), LinkError>;

    /// Asks the partition to reset itself.
    ///
    /// # Errors
    /// [`LinkError::Backlog`].
    fn system_reset(&self) -> Result<(), LinkError>;

    /// Asks the partition to end.
    ///
    /// # Errors
    /// [`LinkError::Backlog`].
    fn system_quit(&self) -> Result<(), LinkError>;
}

/// What a guest knows of itself once it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestInfo {
    /// The name it gave.
    pub name: String,
    /// The root's number for it.
    pub id: u32,
    /// Its processors: event areas on which it can sleep.
    pub vps: u32,
    /// Event areas of the root's workers that it may signal.
    pub workers: u32,
    /// Whether memory can be given to the root.
    pub takes_gifts: bool,
}

/// A guest's end of its attachment to a root.
pub trait GuestEnd: Send + Sync {
    /// Who we are.
    fn info(&self) -> &GuestInfo;

    /// The memory shared with the root, as it is now.
    fn memory(&self) -> Arc<GpaSpace>;

    /// Takes `len` bytes, rounded up to whole pages, of the memory of a sharing domain; 0 is the root's own. A domain
    /// gets memory of its own the first time.
    ///
    /// # Errors
    /// [`AllocError`]: out of memory that was set aside, or the root cannot be told.
    fn allocate(&self, domain: u32, len: usize) -> Result<SharedPages, AllocError>;

    /// When it is readable, call [`GuestEnd::receive`] until that gives `None`; when [`GuestEnd::wants_write`] and it
    /// is writable, call [`GuestEnd::flush`].
    fn socket(&self) -> Option<BorrowedFd<'_>>;

    /// Readable once the root's process has ended.
    fn peer_process(&self) -> Option<BorrowedFd<'_>>;

    /// As [`RootEnd::watch`].
    ///
    /// # Errors
    /// As there.
    fn watch(&self, what: Watched) -> io::Result<Option<Arc<OwnedFd>>> {
        duplicate(match what {
            Watched::Socket => self.socket(),
            Watched::Process => self.peer_process(),
            Watched::Bell(vp) => self.vp_bell(vp),
        })
    }
    /// Ends the link: the other end finds it hung up, whoever still holds this one.
    fn hang_up(&self);

    /// The next thing the root says. Never waits.
    ///
    /// # Errors
    /// [`LinkError`]: the root broke the protocol.
    fn receive(&self) -> Result<Option<FromRoot>, LinkError>;

    /// Sends what is queued as far as that goes without waiting; `true` means that everything is out.
    ///
    /// # Errors
    /// [`LinkError`]: the link is finished.
    fn flush(&self) -> Result<bool, LinkError>;

    /// Whether something is queued that the socket did not take yet.
    fn wants_write(&self) -> bool;

    /// Posts a channel message, or queues it. Never waits.
    ///
    /// # Errors
    /// [`LinkError::Backlog`]: the root does not take messages; [`LinkError::TooLong`]: the caller's fault.
    fn post(&self, connection_id: u32, payload: &[u8]) -> Result<(), LinkError>;

    /// Gives memory away under a name that nothing else given on this link has at present. Never waits.
    ///
    /// # Errors
    /// [`LinkError::NoGifts`]; [`LinkError::Backlog`].
    fn give(&self, id: u32, gift: SealedGift) -> Result<(), LinkError>;

    /// Signals a connection: a [`ChannelConnection`](vmbus_core::synic::ChannelConnection) sets its flag in its worker's
    /// area, without a system call while the worker is awake; others go as frames.
    fn signal(&self, connection_id: u32);

    /// The descriptor on which a processor sleeps.
    fn vp_bell(&self, vp: u32) -> Option<BorrowedFd<'_>>;

    /// Silences a processor's bell. Then take the flags.
    fn clear_bell(&self, vp: u32);

    /// Takes all flags that are set in a processor's area; flag 0 of processor 0 asks to call [`GuestEnd::receive`].
    fn take_flags(&self, vp: u32, each: &mut dyn FnMut(u16));

    /// Says that a processor is about to sleep; `true` means that flags are set already: do not sleep.
    fn arm(&self, vp: u32) -> bool;

    /// Says that a processor is awake.
    fn disarm(&self, vp: u32);
}
