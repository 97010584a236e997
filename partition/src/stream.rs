//! Frames over a Unix stream socket, with descriptors, in both directions, without ever waiting.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::frame::{HEADER_SIZE, MAX_PAYLOAD, frame_len};
use crate::link::LinkError;
use crate::raw;

/// Bytes of frames that wait for a peer that does not read, at most.
const MAX_QUEUED: usize = 4 << 20;
/// Frames sent by one system call, at most.
const GATHER: usize = 32;

/// Descriptors that may wait for the frame they belong to: more than the largest frame has.
const MAX_HELD: usize = 128;

/// Descriptors that came with the bytes from `start` to `end` of the stream.
#[derive(Debug)]
struct Batch {
    start: u64,
    end: u64,
    descriptors: Vec<OwnedFd>,
}

/// What a reader has to say.
#[derive(Debug)]
pub(crate) enum Read<R> {
    /// A frame, as its handler saw it.
    Frame(R),
    /// No whole frame is there now.
    Nothing,
    /// The peer has gone.
    Gone,
}

/// The receiving half of a socket.
#[derive(Debug)]
pub(crate) struct FrameReader {
    socket: Arc<OwnedFd>,
    buffer: Vec<u8>,
    filled: std::ops::Range<usize>,
    /// Position in the stream of the first byte in `filled`.
    position: u64,
    batches: VecDeque<Batch>,
    gone: bool,
    frames: u32,
    ignored: u32,
}

/// Frames that mean nothing, one after the other, before their sender is taken for one who only wants to keep us busy.
const MAX_IGNORED: u32 = 4096;

/// Gives the descriptors that ride on a frame's first byte, once.
pub(crate) type Claim<'a> = &'a mut dyn FnMut() -> Vec<OwnedFd>;

impl FrameReader {
    pub(crate) fn new(socket: Arc<OwnedFd>) -> Self {
        let buffer = vec![0; 16 * 1024];
        let batches = VecDeque::new();
        Self { socket, buffer, filled: 0..0, position: 0, batches, gone: false, frames: 0, ignored: 0 }
    }

    pub(crate) fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// Frames read since [`FrameReader::restart_count`].
    pub(crate) fn frames(&self) -> u32 {
        self.frames
    }

    pub(crate) fn restart_count(&mut self) {
        self.frames = 0;
    }

    /// Gives the next whole frame to `handle`. Descriptors that it does not claim are closed.
    pub(crate) fn next<R>(
        &mut self,
        handle: impl FnOnce(&[u8], Claim<'_>) -> R,
    ) -> Result<Read<R>, LinkError> {
        loop {
            let bytes = &self.buffer[self.filled.clone()];
            let wanted = frame_len(bytes)?.unwrap_or(HEADER_SIZE);
            if bytes.len() >= wanted {
                self.frames = self.frames.wrapping_add(1);
                let (batches, position) = (&mut self.batches, self.position);
                let mut claim = || claim(batches, position);
                let result = handle(&bytes[..wanted], &mut claim);
                self.consume(wanted);
                return Ok(Read::Frame(result));
            }
            if self.gone {
                return Ok(Read::Gone);
            }
            if !self.fill(wanted)? {
                return Ok(if self.gone { Read::Gone } else { Read::Nothing });
            }
        }
    }

    /// Counts a frame that meant something or nothing.
    ///
    /// # Errors
    /// [`LinkError::Protocol`] when nothing but frames without a meaning come.
    pub(crate) fn meant(&mut self, something: bool) -> Result<(), LinkError> {
        self.ignored = if something { 0 } else { self.ignored + 1 };
        if self.ignored > MAX_IGNORED {
            return Err(LinkError::Protocol("sends nothing but frames that are to be ignored"));
        }
        Ok(())
    }

    fn consume(&mut self, len: usize) {
        self.filled.start += len;
        self.position += len as u64;
        while self.batches.front().is_some_and(|batch| batch.end <= self.position) {
            self.batches.pop_front();
        }
    }

    /// Reads more, with room for a frame of `wanted` bytes; `false` means that nothing came.
    fn fill(&mut self, wanted: usize) -> Result<bool, LinkError> {
        self.buffer.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        if self.buffer.len() < wanted {
            // At most a header and the longest payload: frame_len has checked.
            self.buffer.resize(wanted.min(HEADER_SIZE + MAX_PAYLOAD), 0);
        }
        let start = self.position + self.filled.len() as u64;
        let received = match raw::receive(self.socket.as_fd(), &mut self.buffer[self.filled.end..]) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) if has_gone(&error) => {
                self.gone = true;
                return Ok(false);
            }
            Err(source) => return Err(LinkError::System { what: "receiving from a peer", source }),
        };
        if received.truncated {
            let source = io::Error::from_raw_os_error(nix::libc::EMFILE);
            return Err(LinkError::System { what: "receiving descriptors from a peer", source });
        }
        if received.len == 0 {
            self.gone = true;
            return Ok(false);
        }
        let held: usize = self.batches.iter().map(|batch| batch.descriptors.len()).sum();
        if held + received.descriptors.len() > MAX_HELD {
            return Err(LinkError::Protocol("passed descriptors that no frame asks for"));
        }
        if !received.descriptors.is_empty() {
            let end = start + received.len as u64;
            self.batches.push_back(Batch { start, end, descriptors: received.descriptors });
        }
        self.filled.end += received.len;
        Ok(true)
    }
}

/// The descriptors of the frame at `position`. One receive may bring the frames before it, too, so it is the first
/// batch that reaches it; it never brings bytes of a later sender's call than the one with the descriptors.
fn claim(batches: &mut VecDeque<Batch>, position: u64) -> Vec<OwnedFd> {
    match batches.front() {
        Some(batch) if batch.start <= position => {
            batches.pop_front().map(|batch| batch.descriptors).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

fn has_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected
    )
}

/// A frame on its way out.
#[derive(Debug)]
pub(crate) struct OutFrame {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// What the caller wants to hear when the frame has begun to leave.
    tag: Option<u64>,
}

/// The sending half of a socket.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    socket: Arc<OwnedFd>,
    queue: VecDeque<OutFrame>,
    queued_bytes: usize,
    /// Bytes of the first frame that are out.
    begun: usize,
    frames: u32,
}

impl FrameWriter {
    pub(crate) fn new(socket: Arc<OwnedFd>) -> Self {
        Self { socket, queue: VecDeque::new(), queued_bytes: 0, begun: 0, frames: 0 }
    }

    /// Frames queued since [`FrameWriter::restart_count`].
    pub(crate) fn frames(&self) -> u32 {
        self.frames
    }

    pub(crate) fn restart_count(&mut self) {
        self.frames = 0;
    }

    /// Frames that wait.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues frames; `bytes` are one or more whole ones. `descriptors` ride on the first byte.
    pub(crate) fn push(
        &mut self,
        bytes: Vec<u8>,
        descriptors: Vec<OwnedFd>,
        tag: Option<u64>,
    ) -> Result<(), LinkError> {
        if self.queued_bytes + bytes.len() > MAX_QUEUED {
            return Err(LinkError::Backlog { queued: self.queue.len() });
        }
        self.queued_bytes += bytes.len();
        self.frames = self.frames.wrapping_add(1);
        self.queue.push_back(OutFrame { bytes, descriptors, tag });
        Ok(())
    }

    /// Sends what the socket takes; `begun` hears the tags of frames that begin to leave. `true`: everything is out.
    pub(crate) fn flush(&mut self, mut begun: impl FnMut(u64)) -> Result<bool, LinkError> {
        while let Some(first) = self.queue.front() {
            let descriptors: Vec<RawFd> = match self.begun {
                0 => first.descriptors.iter().map(AsRawFd::as_raw_fd).collect(),
                _ => Vec::new(),
            };
            let alone = !first.descriptors.is_empty();
            let mut parts = vec![IoSlice::new(&first.bytes[self.begun..])];
            if !alone {
                let more = self.queue.iter().skip(1).take(GATHER - 1);
                let more = more.take_while(|frame| frame.descriptors.is_empty());
                parts.extend(more.map(|frame| IoSlice::new(&frame.bytes)));
            }
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let rights = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let sent = match sendmsg::<()>(self.socket.as_raw_fd(), &parts, rights, flags, None) {
                Ok(sent) => sent,
                Err(error) => match io::Error::from(error) {
                    error if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error if has_gone(&error) => {
                        // The reading half tells that the peer has gone; nobody waits for these frames any more.
                        self.queue.clear();
                        self.queued_bytes = 0;
                        self.begun = 0;
                        return Ok(true);
                    }
                    source => return Err(LinkError::System { what: "sending to a peer", source }),
                },
            };
            self.sent(sent, &mut begun);
        }
        Ok(true)
    }

    fn sent(&mut self, mut sent: usize, begun: &mut impl FnMut(u64)) {
        self.queued_bytes -= sent;
        while sent > 0 {
            let Some(first) = self.queue.front_mut() else { return };
            if let Some(tag) = first.tag.take() {
                begun(tag);
            }
            let left = first.bytes.len() - self.begun;
            if sent < left {
                self.begun += sent;
                return;
            }
            sent -= left;
            self.begun = 0;
            self.queue.pop_front();
        }
    }
}
