//! What all handles of one open channel share: its two rings, its requests in both directions, its end.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use vmbus_partition::RingMapping;
use vmbus_ringbuf::{Consumer, Outgoing as OutgoingPacket, PacketKind, Producer, PushError, RingFault, Signal};

use super::replies::{Held, Replies, Reply};
use super::request::Request;
use super::side::Side;
use super::wait::Wait;
use crate::error::ChannelError;
use crate::spin::{Spin, Spinner};

/// Ring space that one completion takes beside its payload: descriptor and trailer.
const COMPLETION_OVERHEAD: usize = 24;
/// Completion space is set aside for this many requests at a time.
const GRANTS_AT_ONCE: u32 = 32;
/// Requests that wait in private memory because somebody looked for replies only. More stay in the ring.
const QUEUED_AT_MOST: usize = 64;

/// Bounds of one channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest completion payload that we send, in bytes.
    pub(crate) completion_room: usize,
    /// Requests of the peer in flight.
    pub(crate) requests: usize,
}

pub(crate) struct Core {
    side: Arc<Side>,
    wait: Wait,
    limits: Limits,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
    replies: Mutex<Replies>,
    /// Futures and threads that sleep on this channel: while there are any, the incoming ring stays unmasked.
    parked: AtomicUsize,
    closed: AtomicBool,
    closing: Notify,
    /// Requests taken and not yet completed or dropped.
    in_flight: AtomicUsize,
    landed: Notify,
    abandoned: OnceLock<Bytes>,
}

/// The ring from the peer. Whoever holds the lock reads for everybody.
pub(crate) struct Incoming {
    consumer: Consumer<RingMapping>,
    masked: bool,
    /// Requests that may still be taken before completion space must be set aside again.
    grants: u32,
    queued: VecDeque<Request>,
    spinner: Spinner,
}

/// The ring to the peer.
pub(crate) struct Outgoing {
    producer: Producer<RingMapping>,
    /// Bytes that only completions may use.
    reserved: usize,
    open: bool,
}

/// Why there is nothing to take.
enum Nothing {
    /// The ring is empty.
    Empty,
    /// The peer has to read completions first.
    NoRoom,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Core {
    pub(crate) fn new(
        side: Arc<Side>,
        wait: Wait,
        incoming: RingMapping,
        outgoing: RingMapping,
        limits: Limits,
    ) -> Result<Arc<Self>, RingFault> {
        Ok(Arc::new(Self {
            side,
            wait,
            limits,
            incoming: Mutex::new(Incoming {
                consumer: Consumer::new(incoming)?,
                masked: false,
                grants: 0,
                queued: VecDeque::new(),
                spinner: Spinner::new(Spin::default()),
            }),
            outgoing: Mutex::new(Outgoing { producer: Producer::new(outgoing)?, reserved: 0, open: true }),
            replies: Mutex::default(),
            parked: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
            in_flight: AtomicUsize::new(0),
            landed: Notify::new(),
            abandoned: OnceLock::new(),
        }))
    }

    pub(crate) fn side(&self) -> &Arc<Side> {
        &self.side
    }

    pub(crate) fn set_spin(&self, spin: Spin) {
        lock(&self.incoming).spinner = Spinner::new(spin);
    }

    pub(crate) fn set_abandoned(&self, payload: Bytes) {
        let _ = self.abandoned.set(payload);
    }

    // ---- the end ----

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Nothing is read or written from here on; everybody who waits is told.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        lock(&self.outgoing).open = false;
        self.closing.notify_waiters();
    }

    /// Returns when no request of the peer is in use any more: its memory may go.
    pub(crate) async fn landed(&self) {
        loop {
            lock(&self.incoming).queued.clear();
            let mut landed = pin!(self.landed.notified());
            landed.as_mut().enable();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                return;
            }
            landed.await;
        }
    }

    // ---- sending ----

    /// Writes packets by `write` if `bytes` of ring space are there. `Ok(false)` if not: park for room.
    fn try_send(&self, packet: &OutgoingPacket<'_>, bytes: usize) -> Result<bool, ChannelError> {
        let mut outgoing = lock(&self.outgoing);
        let outgoing = &mut *outgoing;
        if !outgoing.open {
            return Err(ChannelError::Closed);
        }
        if outgoing.producer.room()? < bytes + outgoing.reserved {
            return Ok(false);
        }
        let mut batch = outgoing.producer.batch();
        match batch.push(packet) {
            Ok(()) => {}
            Err(PushError::Full) => return Ok(false),
            Err(PushError::TooLarge) => return Err(self.too_large(bytes, outgoing)),
            Err(PushError::Fault(fault)) => return Err(fault.into()),
        }
        if batch.commit()? == Signal::Ring {
            self.side.ring();
        }
        Ok(true)
    }

    fn too_large(&self, len: usize, outgoing: &Outgoing) -> ChannelError {
        ChannelError::TooLarge { len, ring: outgoing.producer.data_size() as usize }
    }

    /// Sends a packet, waiting for room as long as it takes.
    pub(crate) async fn send(&self, packet: &OutgoingPacket<'_>) -> Result<(), ChannelError> {
        let bytes = packet.ring_size().ok_or(ChannelError::TooLarge { len: usize::MAX, ring: 0 })?;
        while !self.try_send(packet, bytes)? {
            self.park(|| self.wants_no_room(bytes), |_| Poll::Pending).await;
        }
        Ok(())
    }

    /// [`send`](Self::send) for a thread.
    pub(crate) fn send_blocking(&self, packet: &OutgoingPacket<'_>) -> Result<(), ChannelError> {
        let bytes = packet.ring_size().ok_or(ChannelError::TooLarge { len: usize::MAX, ring: 0 })?;
        while !self.try_send(packet, bytes)? {
            self.park_blocking(|| self.wants_no_room(bytes), |_| Poll::Pending, None)?;
        }
        Ok(())
    }

    /// Asks the peer for a signal when `bytes` beyond the reserve are free. `true` if they are, or never will be.
    fn wants_no_room(&self, bytes: usize) -> bool {
        let mut outgoing = lock(&self.outgoing);
        let wanted = bytes + outgoing.reserved;
        let Ok(wanted) = u32::try_from(wanted) else { return true };
        !outgoing.open || outgoing.producer.request_space(wanted).unwrap_or(true)
    }

    /// Sends a request and gives its id.
    pub(crate) fn start_request(&self, held: Held) -> u64 {
        lock(&self.replies).start(held)
    }

    pub(crate) fn cancel_request(&self, id: u64) {
        lock(&self.replies).cancel(id);
    }

    pub(crate) fn abandon_request(&self, id: u64) {
        lock(&self.replies).abandon(id);
    }

    /// Writes completions, each from the space set aside for it, and signals once.
    pub(crate) fn complete(
        &self,
        completions: impl IntoIterator<Item = (u64, impl AsRef<[u8]>)>,
    ) -> Result<(), ChannelError> {
        let mut outgoing = lock(&self.outgoing);
        let outgoing = &mut *outgoing;
        if !outgoing.open {
            return Err(ChannelError::Closed);
        }
        let mut batch = outgoing.producer.batch();
        let mut released = 0;
        let mut failure = None;
        for (id, payload) in completions {
            released += self.completion_size();
            let packet = OutgoingPacket::completion(id, payload.as_ref());
            match batch.push(&packet) {
                Ok(()) => {}
                // The space was set aside: only a peer that moves its read index backwards gets here.
                Err(PushError::Full | PushError::TooLarge) => failure = Some(ChannelError::Closed),
                Err(PushError::Fault(fault)) => failure = Some(fault.into()),
            }
        }
        let signal = batch.commit()?;
        outgoing.reserved = outgoing.reserved.saturating_sub(released);
        if signal == Signal::Ring {
            self.side.ring();
        }
        failure.map_or(Ok(()), Err)
    }

    fn completion_size(&self) -> usize {
        self.limits.completion_room.next_multiple_of(8) + COMPLETION_OVERHEAD
    }

    pub(crate) fn check_completion(&self, len: usize) -> Result<(), ChannelError> {
        let room = self.limits.completion_room;
        if len > room { Err(ChannelError::CompletionTooLarge { len, room }) } else { Ok(()) }
    }

    /// One request of the peer is over: completed, or dropped with the channel.
    pub(crate) fn request_ended(&self) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 && self.is_closed() {
            self.landed.notify_waiters();
        }
    }

    /// A request was dropped unanswered: answers in its place, or closes the channel if there is no answer to give.
    pub(crate) fn answer_abandoned(&self, id: u64) {
        match self.abandoned.get() {
            Some(payload) => drop(self.complete([(id, payload)])),
            None => self.close(),
        }
    }

    // ---- receiving ----

    /// The next request, or `None` when the channel was closed.
    pub(crate) async fn recv(self: &Arc<Self>) -> Result<Option<Request>, ChannelError> {
        loop {
            let nothing = match self.look_for_request()? {
                Ok(request) => return Ok(request),
                Err(nothing) => nothing,
            };
            let asleep = Instant::now();
            self.park(|| self.last_look(&nothing), |_| Poll::Pending).await;
            lock(&self.incoming).spinner.slept(asleep.elapsed());
        }
    }

    /// [`recv`](Self::recv) for a thread. `Ok(Err(TimedOut))` is folded into `timeout`'s caller by `None` in `Some`.
    pub(crate) fn recv_blocking(self: &Arc<Self>) -> Result<Option<Request>, ChannelError> {
        loop {
            let nothing = match self.look_for_request()? {
                Ok(request) => return Ok(request),
                Err(nothing) => nothing,
            };
            let asleep = Instant::now();
            self.park_blocking(|| self.last_look(&nothing), |_| Poll::Pending, None)?;
            lock(&self.incoming).spinner.slept(asleep.elapsed());
        }
    }

    /// A request that is there already.
    pub(crate) fn try_recv(self: &Arc<Self>) -> Result<Option<Request>, ChannelError> {
        if self.is_closed() {
            return Err(ChannelError::Closed);
        }
        let mut incoming = lock(&self.incoming);
        let taken = self.take(&mut incoming)?;
        self.leave(incoming);
        Ok(taken.ok())
    }

    /// Looks for a request as long as looking pays. `Ok(Ok(None))`: closed.
    fn look_for_request(self: &Arc<Self>) -> Result<Result<Option<Request>, Nothing>, ChannelError> {
        let mut incoming = lock(&self.incoming);
        let mut spinner = incoming.spinner.take();
        let mut last = Nothing::Empty;
        let found = spinner.look(|| {
            if self.is_closed() {
                return Some(Ok(None));
            }
            match self.take(&mut incoming) {
                Ok(Ok(request)) => Some(Ok(Some(request))),
                Ok(Err(nothing)) => {
                    last = nothing;
                    None
                }
                Err(error) => Some(Err(error)),
            }
        });
        incoming.spinner = spinner;
        self.leave(incoming);
        match found {
            Some(result) => result.map(Ok),
            None => Ok(Err(last)),
        }
    }

    /// Takes one request; completions on the way go to those who wait for them.
    fn take(self: &Arc<Self>, incoming: &mut Incoming) -> Result<Result<Request, Nothing>, ChannelError> {
        if let Some(request) = incoming.queued.pop_front() {
            return Ok(Ok(request));
        }
        self.read_one(incoming).map(|read| match read {
            Read::Request(request) => Ok(*request),
            Read::Nothing(nothing) => Err(nothing),
        })
    }
}
