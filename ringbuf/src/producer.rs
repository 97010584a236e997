//! The writing end.

use core::sync::atomic::Ordering;

use crate::fault::{OutOfPacket, PushError, RingFault};
use crate::memory::{ControlWord, RingMemory};
use crate::outgoing::{Head, Outgoing};
use crate::packet::{
    Descriptor, FEATURE_PENDING_SEND_SIZE, checked_size, load_read_index, load_write_index, packet_size,
    within,
};
use crate::signal::{self, Signal, advance, room};

/// The writing end of a ring. There is one at a time.
///
/// The write index lives here and is only ever stored to shared memory. What the peer says about its read index is
/// remembered as room and asked again only when that runs short.
#[derive(Debug)]
pub struct Producer<R> {
    memory: R,
    size: u32,
    write: u32,
    /// Bytes that may be written, by the peer's last known read index.
    room: u32,
    space_requested: bool,
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
        Ok(Self { memory, size, write, room: room(write, read, size), space_requested: false })
    }

    /// Starts a batch: packets that become visible together, by one store, when it is committed.
    #[inline]
    pub fn batch(&mut self) -> Batch<'_, R> {
        Batch { write: self.write, room: self.room, producer: self }
    }

    /// Bytes a packet may occupy now (see [`packet_size`]). Asks the peer's read index, whose badness is the peer's
    /// fault.
    #[inline]
    pub fn room(&mut self) -> Result<usize, RingFault> {
        // Acquire: the consumer's copies out of the room we are about to overwrite are done.
        let read = load_read_index(&self.memory, self.size, Ordering::Acquire)?;
        self.room = room(self.write, read, self.size);
        Ok(self.room as usize)
    }

    /// Bytes a packet may occupy by what is known already: at most what [`room`](Self::room) would say.
    #[inline]
    pub fn known_room(&self) -> usize {
        self.room as usize
    }

    /// Bytes the largest packet may occupy in this ring when it is empty, whatever its length field could say.
    #[inline]
    pub fn capacity(&self) -> usize {
        (self.size - 8) as usize
    }

    /// Asks the consumer for a signal once a packet of `needed` bytes fits, and looks again: `true` = it fits now and
    /// the request is withdrawn; `false` = wait for a signal, then try again (the request stands until
    /// [`clear_space_request`](Self::clear_space_request) or until a call gives `true`). More than the ring can ever
    /// hold counts as an empty ring. A consumer may leave its read index unpublished while it polls and room is
    /// not asked for, so a producer that spins for room asks here, too.
    pub fn request_space(&mut self, needed: usize) -> Result<bool, RingFault> {
        let wanted = u32::try_from(needed).unwrap_or(u32::MAX).clamp(8, self.size - 8).next_multiple_of(8);
        // The consumer stores its read index before it loads this word, and we the other way round: one of us sees
        // the other's.
        self.memory.publish(ControlWord::PendingSendSize, wanted);
        self.space_requested = true;
        let read = load_read_index(&self.memory, self.size, Ordering::SeqCst)?;
        self.room = room(self.write, read, self.size);
        if self.room < wanted {
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

/// Packets being written. Dropped without [`commit`](Self::commit), nothing happened.
#[derive(Debug)]
#[must_use = "a batch that is not committed has written nothing"]
pub struct Batch<'a, R> {
    producer: &'a mut Producer<R>,
    write: u32,
    room: u32,
}

impl<R: RingMemory> Batch<'_, R> {
    /// Adds a packet, or tells why not and leaves the batch as it was.
    #[inline]
    pub fn push(&mut self, packet: Outgoing<'_>) -> Result<(), PushError> {
        let (payload_at, end) = self.begin(&packet.head(), packet.payload.len())?;
        let (memory, size) = (&self.producer.memory, self.producer.size);
        let whole = packet.payload.len() & !7;
        let (body, tail) = packet.payload.split_at(whole);
        memory.write(payload_at, body);
        if !tail.is_empty() {
            let mut word = [0; 8];
            word[..tail.len()].copy_from_slice(tail);
            // The trailer follows the last word of payload.
            memory.write_u64(retreat(end, 16, size), u64::from_le_bytes(word));
        }
        self.finish(end);
        Ok(())
    }

    /// Adds a packet whose payload of `payload_len` bytes is written in place by `fill`. Bytes that `fill` leaves out
    /// are what the ring held before; the padding to a multiple of 8 is zero.
    #[inline]
    pub fn push_with(
        &mut self,
        head: Head<'_>,
        payload_len: usize,
        fill: impl FnOnce(&mut PayloadWriter<'_, R>),
    ) -> Result<(), PushError> {
        let (payload_at, end) = self.begin(&head, payload_len)?;
        let (memory, size) = (&self.producer.memory, self.producer.size);
        if !payload_len.is_multiple_of(8) {
            memory.write_u64(retreat(end, 16, size), 0);
        }
        // A packet's length was checked to fit its 16-bit field.
        let len = u32::try_from(payload_len).unwrap_or(0);
        fill(&mut PayloadWriter { memory, size, at: payload_at, len });
        self.finish(end);
        Ok(())
    }

    /// Bytes a further packet may occupy now; asks the peer's read index as [`Producer::room`] does.
    #[inline]
    pub fn room(&mut self) -> Result<usize, RingFault> {
        self.refresh()?;
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
        self.write == self.producer.write
    }

    /// Makes the packets visible and tells whether the consumer must be woken. The packets are out even where the
    /// peer's read index turns out to be at fault.
    #[inline]
    pub fn commit(self) -> Result<Signal, RingFault> {
        let producer = self.producer;
        producer.room = self.room;
        let old_write = producer.write;
        if self.write == old_write {
            return Ok(Signal::Quiet);
        }
        producer.write = self.write;
        let memory = &producer.memory;
        memory.publish(ControlWord::WriteIndex, self.write);
        // The mask first: a consumer that unmasks after its last look publishes its read index before.
        if memory.load(ControlWord::InterruptMask, Ordering::SeqCst) != 0 {
            return Ok(Signal::Quiet);
        }
        let read = load_read_index(memory, producer.size, Ordering::SeqCst)?;
        producer.room = room(self.write, read, producer.size);
        Ok(signal::after_write(old_write, read, 0))
    }

    /// Checks that the packet fits, writes descriptor and headers; gives the ring offsets of payload and next packet.
    #[inline]
    fn begin(&mut self, head: &Head<'_>, payload_len: usize) -> Result<(u32, u32), PushError> {
        let header_len = head.kind.header_len()?;
        let needed = packet_size(header_len, payload_len).ok_or(PushError::TooLarge)?;
        let (needed, header_len) = match (u32::try_from(needed), u32::try_from(header_len)) {
            (Ok(needed), Ok(header_len)) => (needed, header_len),
            (Err(_), _) | (_, Err(_)) => return Err(PushError::TooLarge),
        };
        if needed > self.room {
            self.make_room(needed)?;
        }

        let (memory, size) = (&self.producer.memory, self.producer.size);
        let payload_offset = 16 + header_len;
        let descriptor = Descriptor {
            kind: head.kind.packet_kind(),
            completion_requested: head.completion_requested,
            payload_offset,
            length: needed - 8,
        };
        memory.write_u64(self.write, descriptor.word());
        memory.write_u64(advance(self.write, 8, size), head.transaction_id);
        head.kind.write_header(memory, advance(self.write, 16, size), size);
        self.room -= needed;
        Ok((advance(self.write, payload_offset, size), advance(self.write, needed, size)))
    }

    /// Writes the trailer of the packet that ends at `end`, and moves there.
    #[inline]
    fn finish(&mut self, end: u32) {
        let size = self.producer.size;
        self.producer.memory.write_u64(retreat(end, 8, size), u64::from(self.write) << 32);
        self.write = end;
    }

    #[cold]
    fn make_room(&mut self, needed: u32) -> Result<(), PushError> {
        if needed > self.producer.size - 8 {
            return Err(PushError::TooLarge);
        }
        self.refresh()?;
        if needed > self.room { Err(PushError::Full) } else { Ok(()) }
    }

    #[inline]
    fn refresh(&mut self) -> Result<(), RingFault> {
        let read = load_read_index(&self.producer.memory, self.producer.size, Ordering::Acquire)?;
        let before = self.producer.write;
        let pending = signal::used(self.write, before, self.producer.size);
        // By the committed index first: a peer may name a read index inside what is not committed yet.
        self.room = room(before, read, self.producer.size).saturating_sub(pending);
        Ok(())
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
