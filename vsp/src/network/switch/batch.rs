//! Frames in private memory, many at a time, in memory that is used again.

use std::fmt;

use super::offload::{Offload, Vlan};
use super::work::Work;

/// The longest frame: an IP packet of 64 KiB, its Ethernet header and one tag.
pub const MAX_FRAME: usize = 65_535 + 14 + 4;

/// Frames of a batch at most.
pub const MAX_BATCH_FRAMES: usize = 1024;

/// Bytes of a batch at most.
pub const MAX_BATCH_BYTES: usize = 4 << 20;

/// Frames that are sent together.
///
/// A sender keeps one for as long as it likes, for it keeps its memory: fill it, [send](super::Connection::send) it,
/// which empties it, and fill it again.
#[derive(Default)]
pub struct Batch {
    arena: Arena,
    /// Where the switch writes down who gets what. It is here since it belongs to a sender's thread as a batch does.
    pub(super) work: Work,
}

/// An Ethernet frame without check sequence, in private memory.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// From the destination's address on.
    pub bytes: &'a [u8],
    /// What it still needs, or what is known about it.
    pub offload: Offload,
}

/// Frames that are delivered together, in the order in which they were sent.
#[derive(Clone, Copy)]
pub struct Frames<'a> {
    arena: &'a Arena,
    picked: Picked<'a>,
    tags: Tags,
}

/// What a batch has no room for; its owner sends it first. Nobody's fault, but that of a frame above [`MAX_FRAME`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// There are [`MAX_BATCH_FRAMES`] in it.
    #[error("the batch has {MAX_BATCH_FRAMES} frames")]
    Frames,
    /// There are so many bytes in it that this would be more than [`MAX_BATCH_BYTES`].
    #[error("the batch has no room for {0} more bytes")]
    Bytes(usize),
    /// No frame may be so long.
    #[error("a frame of {0} bytes where {MAX_FRAME} is the most")]
    Frame(usize),
}

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a frame.
    pub fn push(&mut self, bytes: &[u8], offload: Offload) -> Result<(), Full> {
        self.push_with(bytes.len(), offload, |room| room.copy_from_slice(bytes))
    }

    /// Appends a frame of `len` bytes that `fill` writes. It must write all, for there may be anything in them.
    pub fn push_with(
        &mut self,
        len: usize,
        offload: Offload,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Full> {
        let mut slot = self.slot(len)?;
        fill(slot.bytes_mut());
        slot.commit(len, offload);
        Ok(())
    }

    /// Room for a frame whose length or fate is not known yet.
    pub fn slot(&mut self, max_len: usize) -> Result<Slot<'_>, Full> {
        self.arena.slot(max_len)
    }

    /// The frames.
    pub fn frames(&self) -> Frames<'_> {
        self.arena.frames(Picked::All, Tags::Keep)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.arena.heads.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.arena.heads.is_empty()
    }

    /// Forgets the frames, and keeps the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
    }

    pub(super) fn parts(&mut self) -> (&mut Arena, &mut Work) {
        (&mut self.arena, &mut self.work)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Batch")
            .field("frames", &self.len())
            .field("bytes", &self.arena.used)
            .finish_non_exhaustive()
    }
}

/// Room for one frame. Dropped, nothing was added.
#[derive(Debug)]
pub struct Slot<'a> {
    arena: &'a mut Arena,
    start: usize,
    max_len: usize,
}

impl Slot<'_> {
    /// Where the frame goes. There may be anything in it, such as an earlier frame.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.arena.bytes[self.start..self.start + self.max_len]
    }

    /// Appends the first `len` bytes, or all if there are fewer, as a frame.
    pub fn commit(self, len: usize, offload: Offload) {
        let len = len.min(self.max_len);
        self.arena.heads.push(Head { start: self.start, len, offload });
        self.arena.used = self.start + len;
    }
}

/// Frames one after another, and where each is.
#[derive(Debug, Default)]
pub(super) struct Arena {
    /// Never shorter than `used`, and as long as it ever was: what lies behind is not zeroed again.
    bytes: Vec<u8>,
    used: usize,
    pub(super) heads: Vec<Head>,
}

/// Where a frame is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) offload: Offload,
}

impl Arena {
    pub(super) fn slot(&mut self, max_len: usize) -> Result<Slot<'_>, Full> {
        if max_len > MAX_FRAME {
            return Err(Full::Frame(max_len));
        }
        if self.heads.len() >= MAX_BATCH_FRAMES {
            return Err(Full::Frames);
        }
        let start = self.used.next_multiple_of(8);
        let end = start + max_len;
        if end > MAX_BATCH_BYTES {
            return Err(Full::Bytes(max_len));
        }
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        Ok(Slot { arena: self, start, max_len })
    }

    pub(super) fn clear(&mut self) {
        self.heads.clear();
        self.used = 0;
    }

    pub(super) fn bytes_of_all(&self) -> usize {
        self.heads.iter().map(|head| head.len).sum()
    }

    /// The bytes of a frame and what goes with them.
    pub(super) fn frame_mut(&mut self, index: usize) -> (&mut [u8], &mut Offload) {
        let head = &mut self.heads[index];
        (&mut self.bytes[head.start..head.start + head.len], &mut head.offload)
    }

    pub(super) fn bytes_of(&self, index: usize) -> &[u8] {
        let head = &self.heads[index];
        &self.bytes[head.start..head.start + head.len]
    }

    /// Lets a frame begin so many bytes later, of those that it has.
    pub(super) fn cut_front(&mut self, index: usize, bytes: usize) {
        let head = &mut self.heads[index];
        head.start += bytes;
        head.len -= bytes;
    }

    pub(super) fn frames<'a>(&'a self, picked: Picked<'a>, tags: Tags) -> Frames<'a> {
        Frames { arena: self, picked, tags }
    }
}

/// Which frames of an arena.
#[derive(Clone, Copy)]
pub(super) enum Picked<'a> {
    All,
    These(&'a [u32]),
}

impl Picked<'_> {
    /// How many these are of an arena.
    pub(super) fn len(&self, arena: &Arena) -> usize {
        match self {
            Self::All => arena.heads.len(),
            Self::These(indices) => indices.len(),
        }
    }

    /// Calls `visit` with each index, where `all` frames are in the arena.
    pub(super) fn for_each(&self, all: usize, visit: impl FnMut(usize)) {
        match self {
            Self::All => (0..all).for_each(visit),
            Self::These(indices) => indices.iter().map(|&index| index as usize).for_each(visit),
        }
    }
}

/// Which tags a receiver sees.
#[derive(Clone, Copy)]
pub(super) enum Tags {
    Keep,
    /// All but this one: its frames are untagged there.
    Without(u16),
}

impl Tags {
    /// What a receiver sees of this tag.
    #[inline]
    pub(super) fn shown(self, tag: Option<Vlan>) -> Option<Vlan> {
        match self {
            Self::Keep => tag,
            Self::Without(untagged) => tag.filter(|tag| tag.id != untagged),
        }
    }
}

impl<'a> Frames<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.picked.len(self.arena)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them.
    #[inline]
    pub fn get(&self, index: usize) -> Option<Frame<'a>> {
        let index = match self.picked {
            Picked::All => index,
            Picked::These(indices) => *indices.get(index)? as usize,
        };
        let &Head { start, len, mut offload } = self.arena.heads.get(index)?;
        offload.vlan = self.tags.shown(offload.vlan);
        Some(Frame { bytes: &self.arena.bytes[start..start + len], offload })
    }

    /// All of them, in order.
    pub fn iter(&self) -> Iter<'a> {
        Iter { frames: *self, next: 0 }
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> usize {
        let heads = &self.arena.heads;
        match self.picked {
            Picked::All => heads.iter().map(|head| head.len).sum(),
            Picked::These(indices) => indices.iter().map(|&index| heads[index as usize].len).sum(),
        }
    }
}

impl fmt::Debug for Frames<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for Frames<'a> {
    type Item = Frame<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// One frame after another.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    frames: Frames<'a>,
    next: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Frame<'a>;

    #[inline]
    fn next(&mut self) -> Option<Frame<'a>> {
        let frame = self.frames.get(self.next)?;
        self.next += 1;
        Some(frame)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.frames.len().saturating_sub(self.next);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_back_what_was_pushed() {
        let mut batch = Batch::new();
        let hash = Offload { hash: Some(7), ..Offload::NONE };
        batch.push(b"first", Offload::NONE).unwrap();
        batch.push_with(6, hash, |room| room.copy_from_slice(b"second")).unwrap();
        let mut slot = batch.slot(100).unwrap();
        slot.bytes_mut()[..5].copy_from_slice(b"third");
        slot.commit(5, Offload::NONE);
        batch.slot(100).unwrap().bytes_mut().fill(1);
        let frames: Vec<_> = batch.frames().iter().map(|frame| (frame.bytes, frame.offload)).collect();
        let expected: [(&[u8], Offload); 3] =
            [(b"first", Offload::NONE), (b"second", hash), (b"third", Offload::NONE)];
        assert_eq!(frames, expected);
        assert_eq!((batch.len(), batch.frames().bytes()), (3, 16));
        batch.clear();
        assert!(batch.is_empty());
    }

    #[test]
    fn a_batch_has_bounds() {
        let mut batch = Batch::new();
        assert_eq!(batch.push(&vec![0; MAX_FRAME + 1], Offload::NONE), Err(Full::Frame(MAX_FRAME + 1)));
        let longest = vec![0; MAX_FRAME];
        while batch.push(&longest, Offload::NONE).is_ok() {}
        assert_eq!(batch.push(&longest, Offload::NONE), Err(Full::Bytes(MAX_FRAME)));
        assert!(batch.len() * MAX_FRAME <= MAX_BATCH_BYTES && batch.len() >= 60);
        batch.clear();
        while batch.push(b"short", Offload::NONE).is_ok() {}
        assert_eq!((batch.push(b"short", Offload::NONE), batch.len()), (Err(Full::Frames), MAX_BATCH_FRAMES));
    }
}
