//! The reading end.

use core::sync::atomic::Ordering;

use crate::fault::RingFault;
use crate::memory::{ControlWord, RingMemory};
use crate::packet::{
    Descriptor, FEATURE_PENDING_SEND_SIZE, Packet, checked_size, load_read_index, load_write_index,
};
use crate::saved::{SavedConsumer, TakeUpError, check_index};
use crate::signal::{self, Signal, advance, is_index, used};

/// The reading end of a ring. There is one at a time.
///
/// The read index lives here and is only ever stored to shared memory. Packets up to the last seen write index are
/// taken without a look at the control page. The room they leave goes back to the producer late, by
/// [`publish`](Self::publish) or [`unmask`](Self::unmask).
#[derive(Debug)]
pub struct Consumer<R> {
    memory: R,
    size: u32,
    read: u32,
    /// Bytes between `read` and the last seen write index.
    unread: u32,
    /// Whether the last look at the write index found nothing.
    drained: bool,
    /// The read index in the control page.
    published: u32,
}

impl<R: RingMemory> Consumer<R> {
    /// Takes up a ring where its control page says it stands. Fails where the control page or the size of the data
    /// area is none: the fault of whoever set it up.
    pub fn new(memory: R) -> Result<Self, RingFault> {
        let size = checked_size(&memory)?;
        let read = load_read_index(&memory, size, Ordering::Acquire)?;
        let write = load_write_index(&memory, size, Ordering::Acquire)?;
        Ok(Self { memory, size, read, unread: used(write, read, size), drained: false, published: read })
    }

    /// Where this end stands, for one that [takes it up](Self::take_up) later. The ring is left as it is.
    pub fn save(&self) -> SavedConsumer {
        SavedConsumer { read: self.read, published: self.published }
    }

    /// Goes on where another consumer of this ring stood, with no signal wanted or unwanted that was not before.
    pub fn take_up(memory: R, saved: SavedConsumer) -> Result<Self, TakeUpError> {
        let size = checked_size(&memory)?;
        let SavedConsumer { read, published } = saved;
        check_index(published, load_read_index(&memory, size, Ordering::Acquire)?, size)?;
        let write = load_write_index(&memory, size, Ordering::Acquire)?;
        if !is_index(read, size) || used(read, published, size) > used(write, published, size) {
            return Err(TakeUpError::Index(read));
        }
        Ok(Self { memory, size, read, unread: used(write, read, size), drained: false, published })
    }

    /// Takes the next unread packet; `None` when there is none. Its room is not given back before the next
    /// [`publish`](Self::publish). After a fault the read index stands where it stood.
    #[inline(always)]
    #[expect(
        clippy::should_implement_trait,
        reason = "packets borrow the consumer, which no iterator can say"
    )]
    pub fn next(&mut self) -> Result<Option<Packet<'_, R>>, RingFault> {
        if self.unread == 0 && !self.look(Ordering::Acquire)? {
            return Ok(None);
        }
        let start = self.read;
        // One read, so that one look at the bounds does; what is checked is this copy.
        let mut words = [0; 16];
        self.memory.read(start, &mut words);
        let [word, transaction_id] = words.as_chunks().0 else { return Ok(None) };
        let transaction_id = u64::from_le_bytes(*transaction_id);
        let descriptor = Descriptor::check(u64::from_le_bytes(*word), self.unread)?;
        let total = descriptor.length + 8;
        self.read = advance(start, total, self.size);
        self.unread -= total;
        Ok(Some(Packet {
            kind: descriptor.kind,
            transaction_id,
            completion_requested: descriptor.completion_requested,
            memory: &self.memory,
            size: self.size,
            start,
            header_len: descriptor.payload_offset - 16,
            payload_len: descriptor.length - descriptor.payload_offset,
        }))
    }

    /// Whether there is a packet to take: one load at most. Asks the write index, whose badness is the peer's fault.
    #[inline]
    pub fn has_unread(&mut self) -> Result<bool, RingFault> {
        if self.unread != 0 {
            return Ok(true);
        }
        self.look(Ordering::Acquire)
    }

    /// Gives the room of all taken packets back and tells whether the producer waits for it.
    #[inline]
    pub fn publish(&mut self) -> Result<Signal, RingFault> {
        if self.read == self.published {
            return Ok(Signal::Quiet);
        }
        let old_read = self.published;
        self.published = self.read;
        self.memory.publish(ControlWord::ReadIndex, self.read);
        self.wake_for_room(old_read)
    }

    /// Publishes when it is worth it: a quarter of the ring was taken, or the last look found nothing more to take and
    /// the producer waits for room (or might, not being one that says so). To be called after each packet, where it
    /// costs a compare, or at least after each look that found nothing.
    #[inline(always)]
    pub fn publish_if_due(&mut self) -> Result<Signal, RingFault> {
        let owed = used(self.read, self.published, self.size);
        if owed < self.size / 4 && (!self.drained || owed == 0) {
            return Ok(Signal::Quiet);
        }
        self.publish_if_wanted(owed)
    }

    /// Tells the producer that this end looks by itself, so that no signal is needed.
    #[inline]
    pub fn mask(&mut self) {
        self.memory.store(ControlWord::InterruptMask, 1, Ordering::Release);
    }

    /// Asks for signals again, gives back all room, and looks once more. Always before sleeping; the caller may sleep
    /// only if the answer says that nothing is unread.
    pub fn unmask(&mut self) -> Result<Unmasked, RingFault> {
        let old_read = self.published;
        self.published = self.read;
        // Release: who sees it sees our copies done. The full order comes with the mask, the later store.
        self.memory.store(ControlWord::ReadIndex, self.read, Ordering::Release);
        self.memory.publish(ControlWord::InterruptMask, 0);
        let signal = if old_read == self.read { Signal::Quiet } else { self.wake_for_room(old_read)? };
        let unread = self.look(Ordering::SeqCst)?;
        Ok(Unmasked { signal, unread })
    }

    /// How far this end has read, published or not: the offset in the data area of the next packet.
    pub fn read_index(&self) -> u32 {
        self.read
    }

    /// Bytes of the data area.
    #[inline]
    pub fn data_size(&self) -> u32 {
        self.size
    }

    /// The ring's memory.
    #[inline]
    pub fn memory(&self) -> &R {
        &self.memory
    }

    /// Gives the memory back; what was taken and not published is unread again for who takes it up.
    pub fn into_memory(self) -> R {
        self.memory
    }

    #[inline(never)]
    fn publish_if_wanted(&mut self, owed: u32) -> Result<Signal, RingFault> {
        if owed >= self.size / 4 || self.producer_waits() { self.publish() } else { Ok(Signal::Quiet) }
    }

    /// Loads the write index: whether anything is unread.
    #[inline(always)]
    fn look(&mut self, order: Ordering) -> Result<bool, RingFault> {
        let write = load_write_index(&self.memory, self.size, order)?;
        self.unread = used(write, self.read, self.size);
        self.drained = self.unread == 0;
        Ok(!self.drained)
    }

    /// After the read index went out: whether the producer waits for what that freed.
    #[inline]
    fn wake_for_room(&mut self, old_read: u32) -> Result<Signal, RingFault> {
        // The pending size before the write index, and anew each time: a producer may change it at any time.
        let pending = self.memory.load(ControlWord::PendingSendSize, Ordering::SeqCst);
        if pending == 0 || !self.producer_reports() {
            return Ok(Signal::Quiet);
        }
        let write = load_write_index(&self.memory, self.size, Ordering::SeqCst)?;
        Ok(signal::after_read(write, old_read, self.read, pending, self.size))
    }

    /// Whether the producer says when it waits for room; one that does not polls for it and must not be signalled.
    #[inline]
    fn producer_reports(&self) -> bool {
        self.memory.load(ControlWord::FeatureBits, Ordering::Relaxed) & FEATURE_PENDING_SEND_SIZE != 0
    }

    /// Whether the producer waits for room, or may. Only a hint: seen late, it is seen at the next look.
    #[inline]
    fn producer_waits(&self) -> bool {
        self.memory.load(ControlWord::PendingSendSize, Ordering::Relaxed) != 0 || !self.producer_reports()
    }
}

/// What [`Consumer::unmask`] found.
#[must_use = "to sleep on unread packets is to sleep for ever"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unmasked {
    /// Whether the producer must be signalled, because it waits for the room just given back.
    pub signal: Signal,
    /// Whether packets arrived meanwhile: do not sleep, no signal will come for them.
    pub unread: bool,
}
