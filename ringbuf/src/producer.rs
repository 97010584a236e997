//! The writing end.

use core::sync::atomic::Ordering;

use crate::fault::{OutOfPacket, PushError, RingFault};
use crate::memory::{ControlWord, RingMemory};
use crate::outgoing::{Head, Outgoing};
use crate::packet::{
    Descriptor, FEATURE_PENDING_SEND_SIZE, checked_size, load_read_index, load_write_index, packet_size,
    within,
};
use crate::saved::{SavedProducer, TakeUpError, check_index};
use crate::signal::{self, Signal, advance, room, used};

/// How far ahead of the write index lines are fetched for writing: some ten small packets, about as long as it takes.
const PREFETCH_DISTANCE: u32 = 1024;
const CACHE_LINE: u32 = 64;

/// The writing end of a ring. There is one at a time.
///
/// The write index lives here and is only ever stored to shared memory. What the peer says about its read index is
/// remembered as room and asked again only when that runs short.
#[derive(Debug)]
pub struct Producer<R> {
    memory: R,
    size: u32,
    position: Position,
    space_requested: bool,
}

/// Where writing goes on.
#[derive(Debug, Clone, Copy)]
struct Position {
    write: u32,
    /// Bytes that may be written from there, by the peer's last known read index.
    room: u32,
}

impl<R: RingMemory> Producer<R> {
    /// Takes up a ring where its control page says it stands, and declares that this end sets the pending send size.
    /// Fails where the control page or the size of the data area is none: the fault of whoever set it up.
    pub fn new(memory: R) -> Result<Self, RingFault> {
        let size = checked_size(&memory)?;
        let write = load_write_index(&memory, size, Ordering::Acquire)?;
        let read = load_read_index(&memory, size, Ordering::Acquire)?;
        let features = memory.load(ControlWord::FeatureBits, Ordering::Relaxed);
        memory.store(ControlWord::FeatureBits, features | FEATURE_PENDING_SEND_SIZE, Ordering::Release);
        let position = Position { write, room: room(write, read, size) };
        Ok(Self { memory, size, position, space_requested: false })
    }

    /// Where this end stands, for one that [takes it up](Self::take_up) later. The ring is left as it is; what a batch
    /// holds that was not committed is no part of it.
    pub fn save(&self) -> SavedProducer {
        SavedProducer { write: self.position.write, space_requested: self.space_requested }
    }

    /// Goes on where another producer of this ring stood.
    pub fn take_up(memory: R, saved: SavedProducer) -> Result<Self, TakeUpError> {
        let size = checked_size(&memory)?;
        check_index(saved.write, load_write_index(&memory, size, Ordering::Acquire)?, size)?;
        let mut producer = Self::new(memory)?;
        producer.space_requested = saved.space_requested;
        Ok(producer)
    }

    /// Starts a batch: packets that become visible together, by one store, when it is committed.
    #[inline(always)]
    pub fn batch(&mut self) -> Batch<'_, R> {
        let Position { write, room } = self.position;
        Batch { memory: &self.memory, size: self.size, write, room, committed: &mut self.position }
    }

    /// How far this end has written: the offset in the data area of the next packet.
    pub fn write_index(&self) -> u32 {
        self.position.write
    }

    /// Bytes a packet may occupy now (see [`packet_size`]). Asks the peer's read index, whose badness is the peer's
    /// fault.
    #[inline]
    pub fn room(&mut self) -> Result<usize, RingFault> {
        self.batch().room()
    }

    /// Bytes a packet may occupy by what is known already: at most what [`room`](Self::room) would say.
    #[inline]
    pub fn known_room(&self) -> usize {
        self.position.room as usize
    }

    /// Bytes the largest packet may occupy in this ring when it is empty, whatever its length field could say.
    #[inline]
    pub fn capacity(&self) -> usize {
        (self.size - 8) as usize
    }

    /// Whether the consumer looks by itself at the moment, so that packets committed now would ring no bell. A hint: it
    /// may change at any time.
    #[inline]
    pub fn consumer_polls(&self) -> bool {
        self.memory.load(ControlWord::InterruptMask, Ordering::Relaxed) != 0
    }

    /// Asks the consumer for a signal once a packet of `needed` bytes fits, and looks again: `true` = it fits now and
    /// the request is withdrawn; `false` = wait for a signal, then try again (the request stands until
    /// [`clear_space_request`](Self::clear_space_request) or until a call gives `true`). More than the ring can ever
    /// hold counts as an empty ring. A consumer may leave its read index unpublished while it polls and room is
    /// not asked for, so a producer that spins for room asks here, too.
    pub fn request_space(&mut self, needed: usize) -> Result<bool, RingFault> {
        let wanted = u32::try_from(needed).unwrap_or(u32::MAX).clamp(8, self.size - 8).next_multiple_of(8);
        self.space_requested = true;
        // The consumer stores its read index before it loads this word, and we the other way round: one of us sees
        // the other's.
        self.memory.publish(ControlWord::PendingSendSize, wanted);
        let read = load_read_index(&self.memory, self.size, Ordering::SeqCst)?;
        self.position.room = room(self.position.write, read, self.size);
        if self.position.room < wanted {
            return Ok(false);
        }
        self.clear_space_request();
        Ok(true)
    }

    /// Withdraws a request for space, so that the consumer signals no more.
    #[inline]
    pub fn clear_space_request(&mut self) {
        if self.space_requested {
            self.space_requested = false;
            self.memory.store(ControlWord::PendingSendSize, 0, Ordering::Release);
        }
    }

    /// The ring's memory.
    #[inline]
    pub fn memory(&self) -> &R {
        &self.memory
    }

    /// Gives the memory back; the ring stays as it stands.
    pub fn into_memory(self) -> R {
        self.memory
    }
}

// Of the committed position and not of the batch, so that no call takes the batch's address: it stays in registers.
impl Position {
    /// Asks for the read index again; gives the room there is behind `write`, where an open batch stands.
    fn refresh<R: RingMemory>(&mut self, memory: &R, size: u32, write: u32) -> Result<u32, RingFault> {
        // Acquire: the consumer's copies out of the room we are about to overwrite are done.
        let read = load_read_index(memory, size, Ordering::Acquire)?;
        self.room = room(self.write, read, size);
        // Counted from the committed index: a peer may name a read index inside what is not committed yet.
        Ok(self.room.saturating_sub(used(write, self.write, size)))
    }

    #[cold]
    #[inline(never)]
    fn make_room<R: RingMemory>(
        &mut self,
        memory: &R,
        size: u32,
        write: u32,
        needed: u32,
    ) -> Result<u32, PushError> {
        if needed > size - 8 {
            return Err(PushError::TooLarge);
        }
        let room = self.refresh(memory, size, write)?;
        if needed > room { Err(PushError::Full) } else { Ok(room) }
    }

    /// After the store of the write index with no mask in sight: whether the consumer had drained what was before.
    #[inline(never)]
    fn signal<R: RingMemory>(&mut self, memory: &R, size: u32, old_write: u32) -> Result<Signal, RingFault> {
        let read = load_read_index(memory, size, Ordering::SeqCst)?;
        self.room = room(self.write, read, size);
        Ok(signal::after_write(old_write, read))
    }
}

/// Packets being written. Dropped without [`commit`](Self::commit), nothing happened.
#[derive(Debug)]
#[must_use = "a batch that is not committed has written nothing"]
pub struct Batch<'a, R> {
    memory: &'a R,
    size: u32,
    write: u32,
    room: u32,
    committed: &'a mut Position,
}

/// Ring offsets of a packet's parts.
struct Place {
    payload: u32,
    trailer: u32,
    next: u32,
}

impl<R: RingMemory> Batch<'_, R> {
    /// Adds a packet, or tells why not and leaves the batch as it was.
    #[inline(always)]
    pub fn push(&mut self, packet: Outgoing<'_>) -> Result<(), PushError> {
        let place = self.begin(&packet.head(), packet.payload.len())?;
        let (body, tail) = packet.payload.split_at(packet.payload.len() & !7);
        self.memory.write(place.payload, body);
        if !tail.is_empty() {
            let mut word = [0; 8];
            word[..tail.len()].copy_from_slice(tail);
            // The trailer follows the last word of payload.
            self.memory.write_u64(retreat(place.trailer, 8, self.size), u64::from_le_bytes(word));
        }
        self.finish(&place);
        Ok(())
    }

    /// Adds a packet whose payload of `payload_len` bytes is written in place by `fill`. Bytes that `fill` leaves out
    /// are what the ring held before; the padding to a multiple of 8 is zero.
    #[inline(always)]
    pub fn push_with(
        &mut self,
        head: Head<'_>,
        payload_len: usize,
        fill: impl FnOnce(&mut PayloadWriter<'_, R>),
    ) -> Result<(), PushError> {
        let place = self.begin(&head, payload_len)?;
        if !payload_len.is_multiple_of(8) {
            self.memory.write_u64(retreat(place.trailer, 8, self.size), 0);
        }
        // A packet's length was checked to fit its 16-bit field.
        let len = u32::try_from(payload_len).unwrap_or(0);
        fill(&mut PayloadWriter { memory: self.memory, size: self.size, at: place.payload, len });
        self.finish(&place);
        Ok(())
    }

    /// Bytes a further packet may occupy now. Asks the peer's read index, whose badness is the peer's fault.
    #[inline]
    pub fn room(&mut self) -> Result<usize, RingFault> {
        self.room = self.committed.refresh(self.memory, self.size, self.write)?;
        Ok(self.room as usize)
    }

    /// Bytes a further packet may occupy by what is known already.
    #[inline]
    pub fn known_room(&self) -> usize {
        self.room as usize
    }

    /// Whether nothing was added yet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.write == self.committed.write
    }

    /// Makes the packets visible and tells whether the consumer must be woken. The packets are out even where the
    /// peer's read index turns out to be at fault.
    #[inline(always)]
    pub fn commit(self) -> Result<Signal, RingFault> {
        let old_write = self.committed.write;
        self.committed.write = self.write;
        self.committed.room = self.room;
        if self.write == old_write {
            return Ok(Signal::Quiet);
        }
        // The consumer has the lines that come round again; one small packet covers two at most.
        self.memory.prefetch_write(self.write + PREFETCH_DISTANCE);
        self.memory.prefetch_write(self.write + PREFETCH_DISTANCE + CACHE_LINE);
        self.memory.publish(ControlWord::WriteIndex, self.write);
        // The mask first: a consumer that unmasks after its last look publishes its read index before.
        if self.memory.load(ControlWord::InterruptMask, Ordering::SeqCst) != 0 {
            return Ok(Signal::Quiet);
        }
        self.committed.signal(self.memory, self.size, old_write)
    }

    /// Checks that the packet fits, writes descriptor and headers.
    #[inline(always)]
    fn begin(&mut self, head: &Head<'_>, payload_len: usize) -> Result<Place, PushError> {
        let header_len = head.kind.header_len()?;
        let needed = packet_size(header_len, payload_len).ok_or(PushError::TooLarge)?;
        let (Ok(needed), Ok(header_len)) = (u32::try_from(needed), u32::try_from(header_len)) else {
            return Err(PushError::TooLarge);
        };
        if needed > self.room {
            self.room = self.committed.make_room(self.memory, self.size, self.write, needed)?;
        }

        let (start, payload_offset) = (self.write, 16 + header_len);
        let end = start + needed;
        // Most packets end before the data area does.
        let place = if end < self.size {
            Place { payload: start + payload_offset, trailer: end - 8, next: end }
        } else {
            Place {
                payload: advance(start, payload_offset, self.size),
                trailer: advance(start, needed - 8, self.size),
                next: advance(start, needed, self.size),
            }
        };
        let descriptor = Descriptor {
            kind: head.kind.packet_kind(),
            completion_requested: head.completion_requested,
            payload_offset,
            length: needed - 8,
        };
        self.memory.write(start, &descriptor.bytes(head.transaction_id));
        head.kind.write_header(self.memory, start, self.size);
        self.room -= needed;
        Ok(place)
    }

    /// Writes the trailer and moves on.
    #[inline(always)]
    fn finish(&mut self, place: &Place) {
        self.memory.write_u64(place.trailer, u64::from(self.write) << 32);
        self.write = place.next;
    }
}

/// `at` moved back by `bytes`.
#[inline]
const fn retreat(at: u32, bytes: u32, size: u32) -> u32 {
    if at >= bytes { at - bytes } else { at + size - bytes }
}

/// The payload of a packet that is being written in place.
#[derive(Debug)]
pub struct PayloadWriter<'a, R> {
    memory: &'a R,
    size: u32,
    at: u32,
    len: u32,
}

impl<R: RingMemory> PayloadWriter<'_, R> {
    /// Bytes of the payload.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "the writer chose the length")]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Writes bytes at payload offset `at`. Writing past the payload's end is refused.
    #[inline]
    pub fn write(&mut self, at: usize, from: &[u8]) -> Result<(), OutOfPacket> {
        let at = within(at, from.len(), self.len)?;
        if !from.is_empty() {
            self.memory.write(advance(self.at, at, self.size), from);
        }
        Ok(())
    }

    /// Ring offset at which the payload starts: with [`memory`](Self::memory) for copies straight into the ring. The
    /// payload may run past the end of the data area and goes on at 0.
    #[inline]
    pub fn ring_offset(&self) -> u32 {
        self.at
    }

    /// The ring's memory.
    #[inline]
    pub fn memory(&self) -> &R {
        self.memory
    }
}
