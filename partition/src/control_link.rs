//! What both ends of a control area do, whether a socket or a queue in this process carries the rest.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{Shutdown, shutdown};
use zerocopy::little_endian::{U16, U32};

use crate::area::{self, FLAGS, MESSAGE_FLAG};
use crate::control_area::{Area, ControlArea, End, MessageReceiver, MessageSender, Slot};
use crate::doorbell::{Bell, BellReceiver};
use crate::frame::MAX_MESSAGE;
use crate::link::{LinkError, Watched};
use crate::stream::{Claim, FrameReader, FrameWriter, Read};

/// Messages that wait for a peer that does not take them, beyond those in the ring: more than the offers of all
/// channels that there can be, which come at once.
pub(crate) const DEFAULT_BACKLOG: usize = 4096;

/// What one end says besides messages and signals: rare things, which travel as frames.
pub(crate) trait Event: Sized {
    /// The frame, and what rides on it.
    fn emit(&self, out: &mut Vec<u8>) -> Result<Vec<OwnedFd>, LinkError>;
    /// The event in a frame; `None` for frames that mean nothing here.
    fn parse(frame: &[u8], claim: Claim<'_>) -> Result<Option<Self>, LinkError>;
}

/// The way in for events.
#[derive(Debug)]
pub(crate) enum WireIn<E> {
    Socket(FrameReader),
    Local(Arc<LocalWire<E>>),
}

/// The way out for events.
#[derive(Debug)]
pub(crate) enum WireOut<E> {
    Socket(FrameWriter),
    Local { wire: Arc<LocalWire<E>>, frames: u32 },
}

/// One direction between two ends in this process.
#[derive(Debug)]
pub(crate) struct LocalWire<E> {
    queue: Mutex<VecDeque<E>>,
    /// The sending end has gone.
    closed: AtomicBool,
}

impl<E> LocalWire<E> {
    pub(crate) fn new() -> Self {
        Self { queue: Mutex::new(VecDeque::new()), closed: AtomicBool::new(false) }
    }
}

/// Something that came in.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most are messages, which go on at once: a box would cost more")]
pub(crate) enum Incoming<E> {
    Message(Slot),
    Event(E),
    HungUp,
}

/// One end of a control area with the bells of both.
#[derive(Debug)]
pub(crate) struct ControlLink<I, O> {
    end: End,
    area: ControlArea,
    /// The peer's bells, one per area of the peer.
    bells: Vec<Bell>,
    /// Our bells, one per area of our own.
    own_bells: Vec<BellReceiver>,
    incoming: Mutex<InState<I>>,
    outgoing: Mutex<OutState<O>>,
    /// Something waits for the peer to make room.
    stalled: AtomicBool,
    socket: Option<Arc<OwnedFd>>,
    max_backlog: usize,
}

#[derive(Debug)]
struct InState<I> {
    wire: WireIn<I>,
    /// Events taken from a local wire.
    local_frames: u32,
    messages: MessageReceiver,
    hung_up: bool,
}

#[derive(Debug)]
struct OutState<O> {
    wire: WireOut<O>,
    messages: MessageSender,
    backlog: VecDeque<Slot>,
}

impl<I: Event, O: Event> ControlLink<I, O> {
    pub(crate) fn new(
        end: End,
        area: ControlArea,
        bells: Vec<Bell>,
        own_bells: Vec<BellReceiver>,
        wires: (WireIn<I>, WireOut<O>),
    ) -> Self {
        let socket = match &wires.0 {
            WireIn::Socket(reader) => Some(Arc::clone(reader.socket())),
            WireIn::Local(_) => None,
        };
        let messages = area.receiver(end);
        let incoming = InState { wire: wires.0, local_frames: 0, messages, hung_up: false };
        let outgoing = OutState { wire: wires.1, messages: area.sender(end), backlog: VecDeque::new() };
        Self {
            end,
            area,
            bells,
            own_bells,
            incoming: Mutex::new(incoming),
            outgoing: Mutex::new(outgoing),
            stalled: AtomicBool::new(false),
            socket,
            max_backlog: DEFAULT_BACKLOG,
        }
    }

    /// With another bound for what waits for a peer that does not take it.
    pub(crate) fn with_backlog(mut self, max_backlog: usize) -> Self {
        self.max_backlog = max_backlog;
        self
    }

    /// A descriptor to wait on, for a reactor that keeps it.
    pub(crate) fn shared(&self, what: Watched, process: Option<&Arc<OwnedFd>>) -> Option<Arc<OwnedFd>> {
        match what {
            Watched::Socket => self.socket.clone(),
            Watched::Process => process.cloned(),
            Watched::Bell(area) => self.own_bells.get(area as usize).map(|bell| Arc::clone(bell.shared())),
        }
    }

    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| socket.as_fd())
    }

    /// The next message or event.
    pub(crate) fn receive(&self) -> Result<Option<Incoming<I>>, LinkError> {
        if self.stalled.load(Ordering::Relaxed) {
            self.flush()?;
        }
        let mut state = lock(&self.incoming);
        if state.hung_up {
            return Ok(None);
        }
        loop {
            let message = state.messages.peek()?;
            let seen = state.frames();
            // Frames that were sent before the message are read before it.
            let behind = message.is_some_and(|slot| slot.frames.get().wrapping_sub(seen).cast_signed() > 0);
            if let Some(slot) = message.filter(|_| !behind) {
                if state.messages.take() {
                    self.signal(0, MESSAGE_FLAG);
                }
                return Ok(Some(Incoming::Message(slot)));
            }
            match state.next_event()? {
                Read::Frame(Some(event)) => return Ok(Some(Incoming::Event(event))),
                Read::Frame(None) => {}
                Read::Nothing if behind => {
                    return Err(LinkError::Protocol("posted a message that waits for frames it never sent"));
                }
                Read::Nothing => return Ok(None),
                Read::Gone => {
                    // What was posted before the end is still there: look once more, it may have come meanwhile.
                    if state.messages.peek()?.is_some() && !behind {
                        continue;
                    }
                    state.hung_up = true;
                    return Ok(Some(Incoming::HungUp));
                }
            }
        }
    }

    /// Sends a message, or queues it behind what waits already.
    pub(crate) fn send(
        &self,
        target: u32,
        vp: u32,
        message_type: u32,
        payload: &[u8],
    ) -> Result<(), LinkError> {
        let mut data = [0; MAX_MESSAGE];
        let too_long = LinkError::TooLong { len: payload.len() };
        let Some(room) = data.get_mut(..payload.len()) else { return Err(too_long) };
        room.copy_from_slice(payload);
        let mut state = lock(&self.outgoing);
        let slot = Slot {
            target: U32::new(target),
            message_type: U32::new(message_type),
            size: U16::new(u16::try_from(payload.len()).map_err(|_| too_long)?),
            vp: U16::new(u16::try_from(vp).unwrap_or(0)),
            frames: U32::new(state.frames()),
            data,
        };
        if state.backlog.len() >= self.max_backlog {
            return Err(LinkError::Backlog { queued: state.backlog.len() });
        }
        state.backlog.push_back(slot);
        self.push_out(&mut state)?;
        Ok(())
    }

    /// Sends an event.
    pub(crate) fn send_event(&self, event: O) -> Result<(), LinkError> {
        let mut state = lock(&self.outgoing);
        match &mut state.wire {
            WireOut::Socket(writer) => {
                let mut bytes = Vec::new();
                let descriptors = event.emit(&mut bytes)?;
                writer.push(bytes, descriptors, None)?;
            }
            WireOut::Local { wire, frames } => {
                let mut queue = lock(&wire.queue);
                if queue.len() >= self.max_backlog {
                    return Err(LinkError::Backlog { queued: queue.len() });
                }
                queue.push_back(event);
                *frames = frames.wrapping_add(1);
                drop(queue);
                self.signal(0, MESSAGE_FLAG);
            }
        }
        self.push_out(&mut state)?;
        Ok(())
    }

    /// Sends what waits; `true`: nothing does any more.
    pub(crate) fn flush(&self) -> Result<bool, LinkError> {
        self.push_out(&mut lock(&self.outgoing))
    }

    /// Messages that the peer has no room for.
    pub(crate) fn queued(&self) -> usize {
        lock(&self.outgoing).backlog.len()
    }

    /// Whether the socket is what the rest waits for.
    pub(crate) fn wants_write(&self) -> bool {
        match &lock(&self.outgoing).wire {
            WireOut::Socket(writer) => !writer.is_empty(),
            WireOut::Local { .. } => false,
        }
    }

    /// Sets a flag in one of the peer's areas.
    #[inline]
    pub(crate) fn signal(&self, area: u32, flag: u16) {
        if usize::from(flag) >= FLAGS {
            return;
        }
        let (Some(words), Some(bell)) = (self.area_of(peer(self.end), area), self.bells.get(area as usize))
        else {
            return;
        };
        if words.signal(flag) {
            bell.ring();
        }
    }

    pub(crate) fn bell(&self, area: u32) -> Option<BorrowedFd<'_>> {
        self.own_bells.get(area as usize).map(AsFd::as_fd)
    }

    pub(crate) fn clear_bell(&self, area: u32) {
        if let Some(bell) = self.own_bells.get(area as usize) {
            bell.clear();
        }
    }

    #[inline]
    pub(crate) fn take_flags(&self, area: u32, each: &mut dyn FnMut(u16)) {
        if let Some(words) = self.area_of(self.end, area) {
            area::take(&words, each);
        }
    }

    #[inline]
    pub(crate) fn arm(&self, area: u32) -> bool {
        self.area_of(self.end, area).is_some_and(|words| area::arm(&words))
    }

    #[inline]
    pub(crate) fn disarm(&self, area: u32) {
        if let Some(words) = self.area_of(self.end, area) {
            area::disarm(&words);
        }
    }

    #[inline]
    fn area_of(&self, owner: End, area: u32) -> Option<Area<'_>> {
        let area = u16::try_from(area).ok()?;
        match owner {
            End::Root => (area < self.area.workers()).then(|| self.area.worker(area)),
            End::Guest => (area < self.area.vps()).then(|| self.area.vp(area)),
        }
    }

    /// Frames first, then messages, since a message may speak of what a frame brought.
    fn push_out(&self, state: &mut OutState<O>) -> Result<bool, LinkError> {
        let mut all_out = match &mut state.wire {
            WireOut::Socket(writer) => writer.flush(|_| ())?,
            WireOut::Local { .. } => true,
        };
        let mut sent = false;
        while all_out && let Some(slot) = state.backlog.front() {
            all_out = state.messages.send(slot)?;
            if all_out {
                sent = true;
                state.backlog.pop_front();
            }
        }
        self.stalled.store(!all_out, Ordering::Relaxed);
        if sent {
            self.signal(0, MESSAGE_FLAG);
        }
        Ok(all_out)
    }
}

impl<I, O> ControlLink<I, O> {
    /// Ends the link for both ends.
    pub(crate) fn hang_up(&self) {
        if let Some(socket) = &self.socket {
            // One that is closed already needs no more.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
        self.close_wire();
    }

    fn close_wire(&self) {
        let state = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.wire {
            // The peer sees the socket close.
            WireOut::Socket(_) => {}
            WireOut::Local { wire, .. } => {
                wire.closed.store(true, Ordering::Release);
                // Whoever sleeps finds out, as with a socket that hangs up.
                for (index, bell) in (0..).zip(&self.bells) {
                    let words = match self.end {
                        End::Root => self.area.vp(index),
                        End::Guest => self.area.worker(index),
                    };
                    let _ = words.signal(MESSAGE_FLAG);
                    bell.ring();
                }
            }
        }
    }
}

impl<I, O> Drop for ControlLink<I, O> {
    fn drop(&mut self) {
        self.close_wire();
    }
}

impl<I: Event> InState<I> {
    fn frames(&self) -> u32 {
        match &self.wire {
            WireIn::Socket(reader) => reader.frames(),
            WireIn::Local(_) => self.local_frames,
        }
    }

    fn next_event(&mut self) -> Result<Read<Option<I>>, LinkError> {
        match &mut self.wire {
            WireIn::Socket(reader) => match reader.next(|frame, claim| I::parse(frame, claim))? {
                Read::Frame(event) => {
                    let event = event?;
                    reader.meant(event.is_some())?;
                    Ok(Read::Frame(event))
                }
                Read::Nothing => Ok(Read::Nothing),
                Read::Gone => Ok(Read::Gone),
            },
            WireIn::Local(wire) => {
                let closed = wire.closed.load(Ordering::Acquire);
                match lock(&wire.queue).pop_front() {
                    Some(event) => {
                        self.local_frames = self.local_frames.wrapping_add(1);
                        Ok(Read::Frame(Some(event)))
                    }
                    None if closed => Ok(Read::Gone),
                    None => Ok(Read::Nothing),
                }
            }
        }
    }
}

impl<O> OutState<O> {
    fn frames(&self) -> u32 {
        match &self.wire {
            WireOut::Socket(writer) => writer.frames(),
            WireOut::Local { frames, .. } => *frames,
        }
    }
}

fn peer(end: End) -> End {
    match end {
        End::Root => End::Guest,
        End::Guest => End::Root,
    }
}

/// A panic elsewhere leaves these states whole: each change is one assignment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const _: () = assert!(size_of::<Slot>() == 256);
