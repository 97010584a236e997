//! Who is owed a wake-up: the arithmetic of the ring, free of any memory.
//!
//! All sizes are in bytes. Indices are multiples of 8 below the data size; they were checked before they come here.

/// Whether the caller owes the peer a signal.
#[must_use = "a peer that waits for this signal sleeps for ever without it"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The peer may be asleep: ring.
    Ring,
    /// The peer is awake or will look by itself.
    Quiet,
}

impl Signal {
    /// One signal serves several reasons.
    #[inline]
    pub const fn or(self, other: Signal) -> Signal {
        match self {
            Signal::Ring => Signal::Ring,
            Signal::Quiet => other,
        }
    }

    /// Whether to ring.
    #[inline]
    pub const fn is_ring(self) -> bool {
        match self {
            Signal::Ring => true,
            Signal::Quiet => false,
        }
    }
}

/// Whether `index` can be a ring index at all.
#[inline]
pub(crate) const fn is_index(index: u32, size: u32) -> bool {
    index < size && index.is_multiple_of(8)
}

/// `at` moved on by `bytes`, both at most one data area. The data area is at most 2 GiB, so nothing overflows.
#[inline]
pub(crate) const fn advance(at: u32, bytes: u32, size: u32) -> u32 {
    let next = at + bytes;
    if next >= size { next - size } else { next }
}

/// Bytes between the read and the write index.
#[inline]
pub(crate) const fn used(write: u32, read: u32, size: u32) -> u32 {
    if write >= read { write - read } else { write + size - read }
}

/// Bytes a producer may still write: a full ring would look empty, so 8 bytes always stay free.
#[inline]
pub(crate) const fn room(write: u32, read: u32, size: u32) -> u32 {
    size - used(write, read, size) - 8
}

/// After a batch, if the consumer did not mask: whether it had drained everything before.
#[inline]
pub(crate) const fn after_write(old_write: u32, read: u32) -> Signal {
    if read == old_write { Signal::Ring } else { Signal::Quiet }
}

/// After the read index moved from `old_read` to `read`: room crossed what the producer waits for. `pending` may be
/// any number; a value that is not a multiple of 8 counts as the next lower one, so data size − 1 means "when empty".
#[inline]
pub(crate) const fn after_read(write: u32, old_read: u32, read: u32, pending: u32, size: u32) -> Signal {
    if pending == 0 {
        return Signal::Quiet;
    }
    let wanted = pending & !7;
    if room(write, old_read, size) < wanted && room(write, read, size) >= wanted {
        Signal::Ring
    } else {
        Signal::Quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden table RB-11: data size, write, read, used, room.
    #[test]
    fn space() {
        for (size, write, read, taken, free) in [
            (4096, 0x0, 0x0, 0, 4088),
            (4096, 0x40, 0x18, 40, 4048),
            (4096, 0x18, 0x40, 4056, 32),
            (4096, 0xff8, 0x0, 4088, 0),
            (8192, 0x0, 0x8, 8184, 0),
        ] {
            assert_eq!(used(write, read, size), taken, "used: write {write:#x} read {read:#x} of {size}");
            assert_eq!(room(write, read, size), free, "room: write {write:#x} read {read:#x} of {size}");
        }
    }

    /// Golden table RB-12, by a ring that stands so.
    #[test]
    fn signal_after_write() {
        use crate::{ControlWord, Outgoing, PlainRing, Producer, RingMemory};
        use core::sync::atomic::Ordering::Relaxed;
        for (old_write, read, mask, signal) in [
            (0x0, 0x0, 0, Signal::Ring),
            (0x0, 0x0, 1, Signal::Quiet),
            (0x20, 0x0, 0, Signal::Quiet),
            (0x20, 0x20, 0, Signal::Ring),
            (0x40, 0x20, 0, Signal::Quiet),
        ] {
            let ring = PlainRing::new(4096);
            ring.store(ControlWord::WriteIndex, old_write, Relaxed);
            ring.store(ControlWord::ReadIndex, read, Relaxed);
            ring.store(ControlWord::InterruptMask, mask, Relaxed);
            let mut producer = Producer::new(ring).unwrap();
            let mut batch = producer.batch();
            batch.push(Outgoing::in_band(&[1; 64])).unwrap();
            assert_eq!(batch.commit().unwrap(), signal, "{old_write:#x} {read:#x} {mask}");
        }
    }

    /// Golden table RB-13, data size 4096, with the free bytes (last 8 included) it states.
    #[test]
    fn signal_after_read() {
        for (write, old_read, read, pending, before, after, signal) in [
            (0xff0, 0x0, 0x40, 0x0, 16, 80, Signal::Quiet),
            (0xff0, 0x0, 0x40, 0x40, 16, 80, Signal::Ring),
            (0xff0, 0x0, 0x40, 0x48, 16, 80, Signal::Ring),
            (0xff0, 0x0, 0x50, 0x58, 16, 96, Signal::Ring),
            (0xff0, 0x40, 0x80, 0x40, 80, 144, Signal::Quiet),
            (0xff0, 0x0, 0xff0, 0xfff, 16, 4096, Signal::Ring),
            (0xff0, 0xfe0, 0xff0, 0xff0, 4080, 4096, Signal::Ring),
        ] {
            assert_eq!(room(write, old_read, 4096) + 8, before);
            assert_eq!(room(write, read, 4096) + 8, after);
            assert_eq!(
                after_read(write, old_read, read, pending, 4096),
                signal,
                "{old_read:#x} {read:#x} {pending:#x}"
            );
        }
    }

    /// Any value a peer puts there is only a number.
    #[test]
    fn pending_sizes_out_of_any_range_never_signal() {
        for pending in [4097, 0x1_0000, u32::MAX] {
            assert_eq!(after_read(0xff0, 0, 0xff0, pending, 4096), Signal::Quiet);
        }
        assert_eq!(after_read(0xff0, 0, 0xff0, 7, 4096), Signal::Quiet, "rounds down to nothing wanted");
    }
}
