//! A buffer that a guest shares with its NIC for as long as that is open.

use vmbus_channels::{Borrowed, GuestPages};
use vmbus_core::PAGE_SIZE;

/// Bytes of a part: one that lies in single pages is found by this, so that a copy looks at few of them.
const PART: usize = 16 * PAGE_SIZE;

/// Memory of the guest, wherever its pages lie. Bytes are copied in and out and never borrowed.
#[derive(Debug)]
pub(super) struct SharedBuffer {
    /// All of it in parts of [`PART`] bytes, or in one if it lies in a row.
    parts: Vec<GuestPages>,
    part_size: usize,
    list: Borrowed,
}

impl SharedBuffer {
    pub(super) fn new(list: Borrowed) -> Self {
        let in_a_row = list.runs().nth(1).is_none();
        let part_size = if in_a_row { list.len().max(1) } else { PART };
        let starts = (0..list.len()).step_by(part_size);
        // Within the list by the step.
        let parts = starts.filter_map(|at| list.slice(at, part_size.min(list.len() - at)).ok()).collect();
        Self { parts, part_size, list }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether the guest has asked for its memory back.
    #[inline]
    pub(super) fn is_wanted_back(&self) -> bool {
        self.list.is_wanted_back()
    }

    /// Copies bytes out. `false`: there are not so many.
    #[inline]
    pub(super) fn read(&self, at: usize, into: &mut [u8]) -> bool {
        let mut done = 0;
        self.each_part(at, into.len(), |part, at, len| {
            let read = part.read(at, &mut into[done..done + len]);
            done += len;
            read.is_ok()
        })
    }

    /// Copies bytes in. `false`: there are not so many.
    #[inline]
    pub(super) fn write(&self, at: usize, from: &[u8]) -> bool {
        let mut done = 0;
        self.each_part(at, from.len(), |part, at, len| {
            let written = part.write(at, &from[done..done + len]);
            done += len;
            written.is_ok()
        })
    }

    #[inline]
    fn each_part(
        &self,
        at: usize,
        len: usize,
        mut copy: impl FnMut(&GuestPages, usize, usize) -> bool,
    ) -> bool {
        let (mut index, mut at, mut left) = (at / self.part_size, at % self.part_size, len);
        loop {
            let Some(part) = self.parts.get(index) else { return left == 0 };
            let now = left.min(part.len().saturating_sub(at));
            if !copy(part, at, now) {
                return false;
            }
            left -= now;
            if left == 0 {
                return true;
            }
            (index, at) = (index + 1, 0);
        }
    }
}
