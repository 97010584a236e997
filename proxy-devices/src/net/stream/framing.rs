//! Frames in a byte stream, sans-IO: each has its length before it, as a big-endian `u32`.

use super::LONGEST_FRAME;

/// Bytes of the length.
const PREFIX: usize = 4;

/// Cuts a stream into frames.
#[derive(Debug)]
pub(super) struct Deframer {
    buffer: Box<[u8]>,
    /// What has come and was not taken yet: `start..end` of the buffer.
    start: usize,
    end: usize,
}

/// The stream says that a frame is longer than any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes is announced")]
pub(super) struct TooLong(pub(super) usize);

impl Deframer {
    /// One that holds `capacity` bytes, and the longest frame in any case.
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(PREFIX + LONGEST_FRAME);
        Self { buffer: vec![0; capacity].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Forgets all: another stream begins.
    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Where to read more of the stream to; never empty when [`Self::next`] has given `None`.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Says that `len` bytes were read to [`Self::space`].
    pub(super) fn filled(&mut self, len: usize) {
        self.end = self.buffer.len().min(self.end + len);
    }

    /// The next whole frame, if it has come.
    ///
    /// # Errors
    /// The peer's fault; nothing of the stream makes sense any more.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let there = &self.buffer[self.start..self.end];
        let Some((prefix, rest)) = there.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if len > LONGEST_FRAME {
            return Err(TooLong(len));
        }
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        self.start += PREFIX + len;
        Ok(Some(frame))
    }
}

/// Frames on their way into a stream that may take a part of them only.
#[derive(Debug, Default)]
pub(super) struct Framer {
    /// What the stream has not taken; at most one burst.
    bytes: Vec<u8>,
    written: usize,
}

/// Most bytes that wait for a slow stream.
const WAITING: usize = 256 << 10;

impl Framer {
    /// Forgets all: another stream begins.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.written = 0;
    }

    /// Adds a frame; `false` if too much waits already.
    pub(super) fn add(&mut self, frame: &[u8]) -> bool {
        let Ok(len) = u32::try_from(frame.len()) else { return false };
        let fits = |waiting: &[u8]| waiting.is_empty() || waiting.len() + PREFIX + frame.len() <= WAITING;
        if !fits(self.rest()) {
            return false;
        }
        if !fits(&self.bytes) {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(frame);
        true
    }

    /// What the stream is to take next; empty if it has taken all.
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// Says that the stream has taken `len` bytes of [`Self::rest`].
    pub(super) fn taken(&mut self, len: usize) {
        self.written = self.bytes.len().min(self.written + len);
        if self.written == self.bytes.len() {
            self.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(deframer: &mut Deframer) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| deframer.next().unwrap().map(<[u8]>::to_vec)).collect()
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut() {
        let sent = [vec![1; 60], vec![2; 1514], Vec::new(), vec![3; LONGEST_FRAME]];
        let mut framer = Framer::default();
        assert!(sent.iter().all(|frame| framer.add(frame)));
        for step in [1, 3, 1000, 1 << 20] {
            let (mut deframer, mut received) = (Deframer::new(0), Vec::new());
            for part in framer.rest().chunks(step) {
                let mut part = part;
                while !part.is_empty() {
                    let space = deframer.space();
                    let len = part.len().min(space.len());
                    space[..len].copy_from_slice(&part[..len]);
                    deframer.filled(len);
                    part = &part[len..];
                    received.extend(frames(&mut deframer));
                }
            }
            assert_eq!(received, sent, "by {step} bytes");
        }
    }

    #[test]
    fn a_stream_that_takes_little_keeps_the_order_and_bounds_what_waits() {
        let mut framer = Framer::default();
        let added = (0..10_000).take_while(|_| framer.add(&[7; 1000])).count();
        assert!((200..300).contains(&added), "{added} frames");
        let mut taken = Vec::new();
        while !framer.rest().is_empty() {
            let len = framer.rest().len().min(777);
            taken.extend_from_slice(&framer.rest()[..len]);
            framer.taken(len);
        }
        assert_eq!(taken.len(), added * 1004);
        assert!(framer.add(&[7; 1000]), "there is room again");
    }

    #[test]
    fn what_a_stream_has_taken_makes_room_before_it_has_taken_all() {
        let mut framer = Framer::default();
        let added = (0..10_000).take_while(|_| framer.add(&[7; 1000])).count();
        let (mut stream, part) = (framer.rest()[..150_000].to_vec(), 150_000);
        framer.taken(part);
        let more = (0..10_000).take_while(|_| framer.add(&[8; 1000])).count();
        assert!((148..=150).contains(&more), "{more}");
        stream.extend_from_slice(framer.rest());
        let wanted: Vec<u8> = [(7, added), (8, more)]
            .into_iter()
            .flat_map(|(byte, count)| [&[0, 0, 3, 0xe8][..], &[byte; 1000]].concat().repeat(count))
            .collect();
        assert!(stream == wanted, "in order");
    }

    #[test]
    fn a_length_that_no_frame_has_ends_the_stream() {
        let mut deframer = Deframer::new(0);
        let announced = u32::try_from(LONGEST_FRAME + 1).unwrap().to_be_bytes();
        deframer.space()[..4].copy_from_slice(&announced);
        deframer.filled(4);
        assert_eq!(deframer.next(), Err(TooLong(LONGEST_FRAME + 1)));
    }
}
