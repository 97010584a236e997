//! The root's end of a partition that speaks base frames only: a VMM, whose signals and messages are frames.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{Shutdown, shutdown};

use crate::control_link::lock;
use crate::frame::{GuestFrame, MAX_MESSAGE, RootFrame};
use crate::gift::SealedGift;
use crate::gpa::GpaSpace;
use crate::link::{FromGuest, LinkError, MessageBytes, PartitionInfo, Refusal, RootEnd, Watched};
use crate::memory::Memfd;
use crate::root_link::CHANNEL_MESSAGE;
use crate::stream::{FrameReader, FrameWriter, Read};

/// The interrupt source of the bus on every guest.
const SINT: u8 = 2;
/// Connections that may be throttled at a time: a guest posts to two.
const MAX_THROTTLED: usize = 16;
/// HV_STATUS_INSUFFICIENT_BUFFERS: the guest tries again a little later.
const INSUFFICIENT_BUFFERS: u32 = 0x13;

/// The root's end of a base VMM.
#[derive(Debug)]
pub struct BaseRoot {
    info: PartitionInfo,
    memory: Arc<GpaSpace>,
    socket: Arc<OwnedFd>,
    peer: Option<Arc<OwnedFd>>,
    incoming: Mutex<InState>,
    outgoing: Mutex<OutState>,
    /// Posts between two moments at which the socket was empty, before the guest is told to slow down.
    post_quota: u32,
}

#[derive(Debug)]
struct InState {
    reader: FrameReader,
    /// The frame that showed that this is a base VMM.
    early: Option<Vec<u8>>,
    posts: u32,
    throttled: VecDeque<u32>,
    hung_up: bool,
}

#[derive(Debug)]
struct OutState {
    writer: FrameWriter,
    /// Flags whose frames wait and with no message queued behind them: setting such a flag again changes nothing.
    unsent: HashSet<u64>,
    next_ping: u32,
    /// Something could not even be queued: the next receive says so.
    overflow: Option<usize>,
}

impl BaseRoot {
    pub(crate) fn new(
        info: PartitionInfo,
        memory: Arc<GpaSpace>,
        (reader, writer): (FrameReader, FrameWriter),
        peer: Option<Arc<OwnedFd>>,
        early: Vec<u8>,
        post_quota: u32,
    ) -> Self {
        let socket = Arc::clone(reader.socket());
        let incoming =
            InState { reader, early: Some(early), posts: 0, throttled: VecDeque::new(), hung_up: false };
        let outgoing = OutState { writer, unsent: HashSet::new(), next_ping: 1, overflow: None };
        Self {
            info,
            memory,
            socket,
            peer,
            incoming: Mutex::new(incoming),
            outgoing: Mutex::new(outgoing),
            post_quota,
        }
    }

    /// What a frame means; `None` for those that mean nothing here.
    fn heard(&self, state: &mut InState, frame: Heard) -> Result<Option<FromGuest>, LinkError> {
        match frame {
            Heard::Post { vp, connection_id, message_type, payload } => {
                state.posts = state.posts.saturating_add(1);
                let known = state.throttled.contains(&connection_id);
                if state.posts > self.post_quota && !known && state.throttled.len() < MAX_THROTTLED {
                    state.throttled.push_back(connection_id);
                    self.set_connection_status(connection_id, INSUFFICIENT_BUFFERS)?;
                }
                Ok(Some(FromGuest::Message { vp, connection_id, message_type, payload }))
            }
            Heard::Event(event) => Ok(Some(event)),
            Heard::Nothing => Ok(None),
        }
    }

    fn send(&self, frame: &RootFrame<'_>, kind: Kind) -> Result<(), LinkError> {
        let mut state = lock(&self.outgoing);
        let tag = match kind {
            Kind::Flag(tag) if !state.unsent.insert(tag) => return Ok(()),
            Kind::Flag(tag) => Some(tag),
            Kind::Other => {
                // A flag set from now on must not be taken for one that is sent before this.
                state.unsent.clear();
                None
            }
        };
        let mut bytes = Vec::new();
        frame.emit(&mut bytes);
        state.writer.push(bytes, Vec::new(), tag)?;
        flush(&mut state)?;
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Flag(u64),
    Other,
}

/// A frame, taken out of the buffer.
enum Heard {
    Post { vp: u32, connection_id: u32, message_type: u32, payload: MessageBytes },
    Event(FromGuest),
    Nothing,
}

fn hear(frame: &[u8]) -> Result<Heard, LinkError> {
    let event = match GuestFrame::parse(frame)? {
        GuestFrame::PostMessage { vp, connection_id, message_type, data } => {
            let payload =
                MessageBytes::new(data).ok_or(LinkError::Protocol("posted an oversized message"))?;
            return Ok(Heard::Post { vp, connection_id, message_type, payload });
        }
        GuestFrame::SignalEvent { vp: _, connection_id, flag } => FromGuest::Signal { connection_id, flag },
        GuestFrame::MsrWrite { vp, msr, value } => FromGuest::Msr { vp, msr, value },
        GuestFrame::Reset => FromGuest::Reset,
        GuestFrame::Crash { vp, parameters, control } => FromGuest::Crash { vp, parameters, control },
        GuestFrame::Pong { vp: _, arg } => FromGuest::Pong { arg },
        GuestFrame::Hello(_) => return Err(LinkError::Protocol("introduced itself twice")),
        GuestFrame::ExtOffer { .. } => return Err(LinkError::Protocol("offered extensions too late")),
        GuestFrame::MemoryAdd { .. }
        | GuestFrame::MemoryRemove { .. }
        | GuestFrame::Give(_)
        | GuestFrame::Ignored => {
            return Ok(Heard::Nothing);
        }
    };
    Ok(Heard::Event(event))
}

fn flush(state: &mut OutState) -> Result<bool, LinkError> {
    let OutState { writer, unsent, .. } = state;
    writer.flush(|tag| {
        unsent.remove(&tag);
    })
}

impl RootEnd for BaseRoot {
    fn info(&self) -> &PartitionInfo {
        &self.info
    }

    fn memory(&self) -> Arc<GpaSpace> {
        Arc::clone(&self.memory)
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn watch(&self, what: Watched) -> io::Result<Option<Arc<OwnedFd>>> {
        Ok(match what {
            Watched::Socket => Some(Arc::clone(&self.socket)),
            Watched::Process => self.peer.clone(),
            Watched::Bell(_) => None,
        })
    }

    fn peer_process(&self) -> Option<BorrowedFd<'_>> {
        self.peer.as_deref().map(AsFd::as_fd)
    }

    fn hang_up(&self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    fn receive(&self) -> Result<Option<FromGuest>, LinkError> {
        if let Some(queued) = lock(&self.outgoing).overflow.take() {
            return Err(LinkError::Backlog { queued });
        }
        let mut state = lock(&self.incoming);
        if state.hung_up {
            return Ok(None);
        }
        if let Some(frame) = state.early.take()
            && let Some(event) = self.heard(&mut state, hear(&frame)?)?
        {
            return Ok(Some(event));
        }
        loop {
            match state.reader.next(|frame, _claim| hear(frame))? {
                Read::Frame(frame) => {
                    let event = self.heard(&mut state, frame?)?;
                    state.reader.meant(event.is_some())?;
                    if event.is_some() {
                        return Ok(event);
                    }
                }
                Read::Nothing => {
                    // Everything the guest had to say is heard: it may go on.
                    state.posts = 0;
                    while let Some(connection_id) = state.throttled.pop_front() {
                        self.set_connection_status(connection_id, 0)?;
                    }
                    return Ok(None);
                }
                Read::Gone => {
                    state.hung_up = true;
                    return Ok(Some(FromGuest::HungUp));
                }
            }
        }
    }

    fn flush(&self) -> Result<bool, LinkError> {
        flush(&mut lock(&self.outgoing))
    }

    fn wants_write(&self) -> bool {
        !lock(&self.outgoing).writer.is_empty()
    }

    fn deliver(&self, vp: u32, sint: u8, payload: &[u8]) -> Result<(), LinkError> {
        if payload.len() > MAX_MESSAGE {
            return Err(LinkError::TooLong { len: payload.len() });
        }
        let frame = RootFrame::DeliverMessage { vp, sint, message_type: CHANNEL_MESSAGE, data: payload };
        self.send(&frame, Kind::Other)
    }

    fn queued(&self) -> usize {
        lock(&self.outgoing).writer.len()
    }

    fn signal(&self, vp: u32, flag: u16) {
        if vp >= self.info.vps || flag >= 2048 {
            return;
        }
        let tag = u64::from(vp) << 16 | u64::from(flag);
        if let Err(LinkError::Backlog { queued }) =
            self.send(&RootFrame::SetEventFlag { vp, sint: SINT, flag }, Kind::Flag(tag))
        {
            lock(&self.outgoing).overflow = Some(queued);
        }
    }

    fn worker_bell(&self, _worker: u32) -> Option<BorrowedFd<'_>> {
        None
    }

    fn clear_bell(&self, _worker: u32) {}

    fn take_flags(&self, _worker: u32, _each: &mut dyn FnMut(u16)) {}

    fn arm(&self, _worker: u32) -> bool {
        false
    }

    fn disarm(&self, _worker: u32) {}

    fn memory_written(&self, ranges: &[(u64, u64)]) -> Option<u32> {
        let arg = {
            let mut state = lock(&self.outgoing);
            let arg = state.next_ping;
            state.next_ping = state.next_ping.wrapping_add(1);
            arg
        };
        let sent = self
            .send(&RootFrame::MemDirty(ranges), Kind::Other)
            .and_then(|()| self.send(&RootFrame::Ping { vp: 0, arg }, Kind::Other));
        if let Err(LinkError::Backlog { queued }) = sent {
            lock(&self.outgoing).overflow = Some(queued);
        }
        Some(arg)
    }

    fn set_connection_status(&self, connection_id: u32, status: u32) -> Result<(), LinkError> {
        self.send(&RootFrame::SetConnStatus { connection_id, status }, Kind::Other)
    }

    fn add_memory(&self, _gpa: u64, _file: &Memfd) -> Result<(), LinkError> {
        Err(LinkError::NoGifts)
    }

    fn give(&self, _id: u32, _gift: SealedGift) -> Result<(), LinkError> {
        Err(LinkError::NoGifts)
    }

    fn refuse(&self, _refusal: &Refusal) -> Result<(), LinkError> {
        Ok(())
    }

    fn system_reset(&self) -> Result<(), LinkError> {
        self.send(&RootFrame::SystemReset, Kind::Other)
    }

    fn system_quit(&self) -> Result<(), LinkError> {
        self.send(&RootFrame::SystemQuit, Kind::Other)
    }
}
