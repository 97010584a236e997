//! The control area: what a partition and its root share besides the partition's memory, so that neither a message nor
//! a signal costs a system call while the other end is awake (`docs/src/protocol/attach.md`, "Control area").
//!
//! One file: a header, a ring of messages in each direction, and event areas, some owned by the root's workers and
//! some by the guest's virtual processors. Either end may write any of it at any time: own indices are kept privately,
//! the other's are checked each time they are read.

use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use vmbus_core::memory::SharedMemory;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::area::{self, AreaWords, RoomWords};
use crate::frame::MAX_MESSAGE;
use crate::memory::{Mapping, Memfd, MemoryError};

/// The most event areas in one direction.
pub(crate) const MAX_AREAS: u16 = 64;
/// Messages that a ring holds.
pub(crate) const SLOTS: u32 = 64;

const MAGIC: u32 = 0x4143_4d56;
const VERSION: u32 = 1;
const SLOT_SIZE: usize = 256;
const PAGE: usize = vmbus_core::PAGE_SIZE;
/// Header page; then each message ring has a page of indices and its slots; then the areas, the root's first.
const TO_ROOT: usize = PAGE;
const RING_SIZE: usize = PAGE + SLOTS as usize * SLOT_SIZE;
const TO_GUEST: usize = TO_ROOT + RING_SIZE;
const AREAS: usize = TO_GUEST + RING_SIZE;
/// One cache line with waiting word and summary, then 256 bytes of flags, padded to an even number of lines.
const AREA_SIZE: usize = 384;

/// What is wrong with a control area. Always the fault of whoever made it or wrote it: the peer.
#[derive(Debug, thiserror::Error)]
pub enum ControlAreaError {
    /// The header is that of something else.
    #[error("the control area has magic {magic:#x}, version {version}")]
    Foreign {
        /// First word.
        magic: u32,
        /// Second word.
        version: u32,
    },
    /// The numbers of areas are zero, too many, or too many for the file.
    #[error("a control area of {size:#x} bytes with {workers} areas for the root and {vps} for the guest")]
    Areas {
        /// Bytes of the file.
        size: u64,
        /// Areas of the root's workers.
        workers: u32,
        /// Areas of the guest's processors.
        vps: u32,
    },
    /// An index of a message ring makes no sense.
    #[error("a message ring holds {used} messages of {SLOTS}")]
    Index {
        /// Messages that the indices would mean.
        used: u32,
    },
    /// A message longer than 240 bytes.
    #[error("a message of {size} bytes")]
    MessageSize {
        /// Its stated size.
        size: u16,
    },
    /// The file cannot be used.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Which end of the control area this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Root,
    Guest,
}

/// The control area as one end has it.
#[derive(Clone, Debug)]
pub(crate) struct ControlArea {
    memory: Mapping,
    workers: u16,
    vps: u16,
}

/// One slot of a message ring.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Slot {
    /// Connection id towards the root, SINT towards the guest.
    pub(crate) target: U32,
    pub(crate) message_type: U32,
    pub(crate) size: U16,
    pub(crate) vp: U16,
    /// Frames that the sender had sent on the socket before this message: the receiver reads those first.
    pub(crate) frames: U32,
    pub(crate) data: [u8; MAX_MESSAGE],
}

impl ControlArea {
    /// A new one, made by the guest.
    pub(crate) fn create(workers: u16, vps: u16) -> Result<Self, ControlAreaError> {
        let (size, counts) = (area_bytes(workers, vps), (workers.into(), vps.into()));
        if workers == 0 || vps == 0 || workers > MAX_AREAS || vps > MAX_AREAS {
            return Err(ControlAreaError::Areas { size, workers: counts.0, vps: counts.1 });
        }
        let memory = Memfd::new("vmbus-control", size)?.map_all()?;
        for (index, word) in [MAGIC, VERSION, counts.0, counts.1, SLOTS].into_iter().enumerate() {
            memory.store_u32(index * 4, word, Relaxed);
        }
        Ok(Self { memory, workers, vps })
    }

    /// The one that the guest has made.
    pub(crate) fn from_peer(file: Memfd) -> Result<Self, ControlAreaError> {
        let size = file.size();
        if size < AREAS as u64 {
            return Err(ControlAreaError::Areas { size, workers: 0, vps: 0 });
        }
        // Mapping no more than the largest that can be asked for: the size is the peer's choice.
        let memory = file.map(0, (size / PAGE as u64 * PAGE as u64).min(area_bytes(MAX_AREAS, MAX_AREAS)))?;
        let word = |index: usize| memory.load_u32(index * 4, Relaxed);
        let (magic, version, workers, vps) = (word(0), word(1), word(2), word(3));
        if magic != MAGIC || version != VERSION {
            return Err(ControlAreaError::Foreign { magic, version });
        }
        let count = |count: u32| u16::try_from(count).ok().filter(|count| (1..=MAX_AREAS).contains(count));
        match (count(workers), count(vps)) {
            (Some(workers), Some(vps)) if area_bytes(workers, vps) <= memory.size() as u64 => {
                Ok(Self { memory, workers, vps })
            }
            _ => Err(ControlAreaError::Areas { size, workers, vps }),
        }
    }

    pub(crate) fn file(&self) -> &Memfd {
        self.memory.file()
    }

    pub(crate) fn workers(&self) -> u16 {
        self.workers
    }

    pub(crate) fn vps(&self) -> u16 {
        self.vps
    }

    /// The event area of a root's worker. Panics beyond [`ControlArea::workers`].
    #[inline]
    pub(crate) fn worker(&self, worker: u16) -> Area<'_> {
        assert!(worker < self.workers, "no event area for worker {worker}");
        Area { memory: &self.memory, at: AREAS + usize::from(worker) * AREA_SIZE }
    }

    /// The event area of a guest's processor. Panics beyond [`ControlArea::vps`].
    #[inline]
    pub(crate) fn vp(&self, vp: u16) -> Area<'_> {
        assert!(vp < self.vps, "no event area for processor {vp}");
        Area { memory: &self.memory, at: AREAS + usize::from(self.workers + vp) * AREA_SIZE }
    }

    pub(crate) fn sender(&self, end: End) -> MessageSender {
        let at = match end {
            End::Root => TO_GUEST,
            End::Guest => TO_ROOT,
        };
        MessageSender { ring: MessageRing { memory: self.memory.clone(), at }, produced: 0 }
    }

    pub(crate) fn receiver(&self, end: End) -> MessageReceiver {
        let at = match end {
            End::Root => TO_ROOT,
            End::Guest => TO_GUEST,
        };
        MessageReceiver { ring: MessageRing { memory: self.memory.clone(), at }, consumed: 0 }
    }
}

fn area_bytes(workers: u16, vps: u16) -> u64 {
    (AREAS + (usize::from(workers) + usize::from(vps)) * AREA_SIZE).next_multiple_of(PAGE) as u64
}

/// An event area in the shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area<'a> {
    memory: &'a Mapping,
    at: usize,
}

const WAITING: usize = 0;
const SUMMARY: usize = 4;
const FLAG_WORDS: usize = 64;

impl AreaWords for Area<'_> {
    #[inline]
    fn fetch_or_flags(&self, index: usize, bits: u64) -> u64 {
        self.memory.fetch_or_u64(self.at + FLAG_WORDS + index * 8, bits, SeqCst)
    }
    #[inline]
    fn take_flags(&self, index: usize) -> u64 {
        self.memory.swap_u64(self.at + FLAG_WORDS + index * 8, 0, SeqCst)
    }
    #[inline]
    fn fetch_or_summary(&self, bits: u32) {
        self.memory.fetch_or_u32(self.at + SUMMARY, bits, SeqCst);
    }
    #[inline]
    fn take_summary(&self) -> u32 {
        self.memory.swap_u32(self.at + SUMMARY, 0, SeqCst)
    }
    #[inline]
    fn summary(&self) -> u32 {
        self.memory.load_u32(self.at + SUMMARY, SeqCst)
    }
    #[inline]
    fn set_waiting(&self, value: u32) {
        self.memory.store_u32(self.at + WAITING, value, SeqCst);
    }
    #[inline]
    fn waiting(&self) -> u32 {
        self.memory.load_u32(self.at + WAITING, SeqCst)
    }
    #[inline]
    fn take_waiting(&self) -> u32 {
        self.memory.swap_u32(self.at + WAITING, 0, SeqCst)
    }
}

impl Area<'_> {
    #[inline]
    pub(crate) fn signal(&self, flag: u16) -> bool {
        area::signal(self, flag)
    }
}

// A message ring's page of indices: each on a cache line of its own.
const PRODUCED: usize = 0;
const CONSUMED: usize = 128;
/// Set by a sender that has more to send than there are slots; the receiver takes it back and signals.
const BLOCKED: usize = 256;

/// A message ring in the shared memory.
#[derive(Debug)]
struct MessageRing {
    memory: Mapping,
    at: usize,
}

impl RoomWords for MessageRing {
    fn set_consumed(&self, value: u32) {
        self.memory.store_u32(self.at + CONSUMED, value, SeqCst);
    }
    fn set_blocked(&self, value: u32) {
        self.memory.store_u32(self.at + BLOCKED, value, SeqCst);
    }
    fn blocked(&self) -> u32 {
        self.memory.load_u32(self.at + BLOCKED, SeqCst)
    }
    fn take_blocked(&self) -> u32 {
        self.memory.swap_u32(self.at + BLOCKED, 0, SeqCst)
    }
}

/// The sending end of a message ring.
#[derive(Debug)]
pub(crate) struct MessageSender {
    ring: MessageRing,
    produced: u32,
}

impl MessageSender {
    /// Puts a message into the ring; `false` means that it is full, and that the receiver will signal when it has
    /// taken one.
    pub(crate) fn send(&mut self, slot: &Slot) -> Result<bool, ControlAreaError> {
        if !self.has_room()? && !area::ask_for_room(&self.ring, || self.has_room())? {
            return Ok(false);
        }
        let MessageRing { memory, at } = &self.ring;
        memory.write(slot_at(*at, self.produced), slot.as_bytes());
        self.produced = self.produced.wrapping_add(1);
        memory.store_u32(at + PRODUCED, self.produced, SeqCst);
        Ok(true)
    }

    fn has_room(&self) -> Result<bool, ControlAreaError> {
        let consumed = self.ring.memory.load_u32(self.ring.at + CONSUMED, SeqCst);
        let used = self.produced.wrapping_sub(consumed);
        if used > SLOTS { Err(ControlAreaError::Index { used }) } else { Ok(used < SLOTS) }
    }
}

/// The receiving end of a message ring.
#[derive(Debug)]
pub(crate) struct MessageReceiver {
    ring: MessageRing,
    consumed: u32,
}

impl MessageReceiver {
    /// A private copy of the next message, if there is one, which stays in the ring until [`MessageReceiver::take`].
    pub(crate) fn peek(&self) -> Result<Option<Slot>, ControlAreaError> {
        let MessageRing { memory, at } = &self.ring;
        let used = memory.load_u32(at + PRODUCED, Acquire).wrapping_sub(self.consumed);
        if used > SLOTS {
            return Err(ControlAreaError::Index { used });
        }
        if used == 0 {
            return Ok(None);
        }
        let mut slot = Slot::new_zeroed();
        memory.read(slot_at(*at, self.consumed), slot.as_mut_bytes());
        let size = slot.size.get();
        if usize::from(size) > MAX_MESSAGE {
            Err(ControlAreaError::MessageSize { size })
        } else {
            Ok(Some(slot))
        }
    }

    /// Frees the slot of the message that was looked at; `true` means that the sender waits for room.
    pub(crate) fn take(&mut self) -> bool {
        self.consumed = self.consumed.wrapping_add(1);
        area::free_slot(&self.ring, self.consumed)
    }
}

fn slot_at(ring: usize, index: u32) -> usize {
    ring + PAGE + (index % SLOTS) as usize * SLOT_SIZE
}
