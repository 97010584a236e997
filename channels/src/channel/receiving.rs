//! The ring from the peer, and its requests for whoever receives. Its completions are handed out in `routing`.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::task::yield_now;
use tokio::time::sleep_until;
use vmbus_core::pages::{GpaDirect, TransferPages};
use vmbus_partition::{GpaSpace, GuestPages, RingMapping};
use vmbus_ringbuf::{Consumer, Packet, PacketKind, SavedConsumer};

use super::core::{Core, lock};
use super::flow::{Flow, Hold, spin_for};
use super::queue::Queue;
use super::replies::Reply;
use super::request::{Attached, Request};
use super::side::Side;
use super::swap::{self, Untouchable};
use crate::error::ChannelError;
use crate::policy::{Limits, WallTime};
use crate::spin::{Spin, Spinner};

/// Completion space is set aside for this many requests at a time.
pub(super) const GRANTS_AT_ONCE: usize = 32;
/// Descriptor and trailer.
const SMALLEST_PACKET: usize = 24;
/// Looks in vain after which the space of packets already taken is given back.
const LOOKS_BEFORE_PUBLISHING: u32 = 64;

/// The ring from the peer. Whoever holds the lock reads for everybody.
pub(super) struct Incoming {
    pub(super) side: Arc<Side>,
    /// How many roots there have been.
    pub(super) epoch: u32,
    pub(super) consumer: Consumer<RingMapping>,
    masked: bool,
    /// Requests that may be taken before completion space must be set aside again.
    grants: usize,
    /// Those that wait because somebody looked for replies only.
    pub(super) queued: Queue,
    /// The peer's memory as it was when this look at the ring began: asking for it takes a lock.
    memory: Option<Arc<GpaSpace>>,
    /// Replies to tagged requests that were taken from the ring so far.
    pub(super) tagged: u64,
    pub(super) spinner: Spinner,
    /// Limits of policy; none for most.
    pub(super) flow: Option<Box<Flow>>,
}

impl Incoming {
    pub(super) fn new(side: Arc<Side>, consumer: Consumer<RingMapping>, grants: usize) -> Self {
        Self {
            side,
            epoch: 0,
            consumer,
            masked: false,
            grants,
            queued: Queue::default(),
            memory: None,
            tagged: 0,
            spinner: Spinner::new(Spin::default()),
            flow: None,
        }
    }

    /// `None`: requests wait in private memory, which nobody saves.
    pub(super) fn saved(&self) -> Option<SavedConsumer> {
        self.queued.is_empty().then(|| self.consumer.save())
    }

    /// How far the ring is read, to see whether it goes on.
    pub(super) fn read_index(&self) -> u32 {
        self.consumer.read_index()
    }

    /// Whether there is something to take, or something wrong.
    pub(super) fn has_news(&mut self) -> bool {
        self.consumer.has_unread() != Ok(false)
    }

    pub(super) fn take_queued(&mut self) -> VecDeque<Request> {
        self.queued.take()
    }

    pub(super) fn mask(&mut self) {
        if !self.masked {
            self.consumer.mask();
            self.masked = true;
        }
    }
}

/// What stood next in the ring.
#[expect(clippy::large_enum_variant, reason = "taken apart where it is made, never kept")]
pub(super) enum Next {
    Request(Request),
    /// A completion, handed to whoever asked.
    Routed,
    Empty,
}

/// Why the next request cannot be had at once.
pub(super) enum Nothing {
    /// There is none.
    Empty,
    /// There is no completion; requests that came instead are for somebody else.
    NoReply,
    /// There is no room for its completion: the peer has to read first.
    NoRoom,
    /// As many requests as the offer allows are in flight: some have to be completed first.
    AtLimit,
    /// There is one, and policy lets it wait.
    Held(Hold),
    /// There is no root at present.
    NoRoot,
}

impl Nothing {
    /// Returns when the time has come for what policy lets wait; never for others.
    pub(super) async fn due(&self) {
        match self {
            Self::Held(Hold::Until(due)) => Box::pin(sleep_until(*due)).await,
            Self::Held(Hold::GiveWay) => yield_now().await,
            Self::Empty | Self::NoReply | Self::NoRoom | Self::AtLimit | Self::NoRoot => pending().await,
        }
    }

    /// For how long policy lets it wait.
    pub(super) fn held_for(&self) -> Option<Duration> {
        match self {
            Self::Held(Hold::Until(due)) => Some(due.saturating_duration_since(tokio::time::Instant::now())),
            Self::Held(Hold::GiveWay) => Some(Duration::ZERO),
            Self::Empty | Self::NoReply | Self::NoRoom | Self::AtLimit | Self::NoRoot => None,
        }
    }
}

impl Core {
    pub(crate) fn set_spin(&self, spin: Spin) {
        lock(&self.incoming).spinner = Spinner::new(spin);
    }

    /// Limits what is taken from the ring from now on.
    pub(crate) fn limit_incoming(&self, limits: &Limits, wall: WallTime, spin: Spin) {
        let mut incoming = lock(&self.incoming);
        incoming.flow = Flow::new(limits, wall);
        incoming.spinner = Spinner::new(spin_for(limits.priority, spin));
        drop(incoming);
        // Whoever waits for what was held looks again.
        self.nudge();
    }

    /// The next request; `None` when the channel was closed.
    pub(crate) async fn recv(self: &Arc<Self>) -> Result<Option<Request>, ChannelError> {
        loop {
            let seen = self.nudges();
            let nothing = match self.judge(self.look_for_request())? {
                Ok(request) => return Ok(request),
                Err(nothing) => nothing,
            };
            let asleep = Instant::now();
            self.park(seen, || self.last_look(&nothing), nothing.due()).await;
            self.slept(asleep);
        }
    }

    /// [`recv`](Self::recv) for a thread. `Err(TimedOut)` inside when `timeout` has passed.
    pub(crate) fn recv_blocking(
        self: &Arc<Self>,
        timeout: Option<Duration>,
    ) -> Result<Option<Request>, ChannelError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let seen = self.nudges();
            let nothing = match self.judge(self.look_for_request())? {
                Ok(request) => return Ok(request),
                Err(nothing) => nothing,
            };
            let asleep = Instant::now();
            let left = deadline.map(|deadline| deadline.saturating_duration_since(asleep));
            let held = nothing.held_for();
            let at_most = held.into_iter().chain(left).min();
            let woken = self.park_blocking(seen, || self.last_look(&nothing), pending(), at_most)?;
            if !woken && (held.is_none() || left.is_some_and(|left| left.is_zero())) {
                return Err(ChannelError::TimedOut);
            }
            self.slept(asleep);
        }
    }

    /// Takes what is there, up to `at_most` requests, without waiting.
    pub(crate) fn try_recv(
        self: &Arc<Self>,
        at_most: usize,
        into: &mut impl Extend<Request>,
    ) -> Result<usize, ChannelError> {
        let mut incoming = match self.enter() {
            Ok(incoming) => incoming,
            Err(Untouchable::Closed) => return Err(self.ended()),
            Err(Untouchable::Suspended) => return Ok(0),
        };
        let mut taken = 0;
        while taken < at_most && !self.is_ending() {
            match self.next_request(&mut incoming)? {
                Ok(request) => into.extend([request]),
                Err(
                    Nothing::Empty
                    | Nothing::NoReply
                    | Nothing::NoRoom
                    | Nothing::AtLimit
                    | Nothing::Held(_)
                    | Nothing::NoRoot,
                ) => break,
            }
            taken += 1;
        }
        self.leave(incoming)?;
        Ok(taken)
    }

    /// Looks for a request as long as looking pays. `Ok(Ok(None))`: closed.
    fn look_for_request(self: &Arc<Self>) -> Result<Result<Option<Request>, Nothing>, ChannelError> {
        let mut incoming = match self.enter() {
            Ok(incoming) => incoming,
            Err(Untouchable::Closed) => return self.closed_request(),
            Err(Untouchable::Suspended) => return Ok(Err(Nothing::NoRoot)),
        };
        let mut spinner = incoming.spinner.clone();
        let mut looks = 0;
        let mut nothing = Nothing::Empty;
        let found = spinner.look(|| {
            if self.is_ending() {
                return Some(if self.is_suspended() {
                    Ok(Err(Nothing::NoRoot))
                } else {
                    self.closed_request()
                });
            }
            looks += 1;
            match self.next_request(&mut incoming) {
                Ok(Ok(request)) => Some(Ok(Ok(Some(request)))),
                Ok(Err(why)) => {
                    nothing = why;
                    self.publish_while_looking(&mut incoming, looks).err().map(Err)
                }
                Err(error) => Some(Err(error)),
            }
        });
        incoming.spinner = spinner;
        self.leave(incoming)?;
        found.unwrap_or(Ok(Err(nothing)))
    }

    /// What a receiver is told of a channel that is closed: nothing, unless somebody has to know why.
    pub(super) fn closed_request(&self) -> Result<Result<Option<Request>, Nothing>, ChannelError> {
        match self.ended() {
            ChannelError::Closed => Ok(Ok(None)),
            error => Err(error),
        }
    }

    pub(super) fn next_request(
        self: &Arc<Self>,
        incoming: &mut Incoming,
    ) -> Result<Result<Request, Nothing>, ChannelError> {
        loop {
            if incoming.queued.is_empty() && !incoming.consumer.has_unread()? {
                if let Some(flow) = &mut incoming.flow {
                    flow.emptied();
                }
                return Ok(Err(Nothing::Empty));
            }
            if let Some(nothing) = self.grant(incoming)? {
                // Completions may stand behind the request, and the peer may wait for the room they take.
                if lock(&self.replies).in_flight() > 0 {
                    self.route(incoming)?;
                }
                return Ok(Err(nothing));
            }
            let request = match incoming.queued.pop() {
                Some(request) => request,
                None => match self.next(incoming)? {
                    Next::Request(request) => request,
                    Next::Routed | Next::Empty => continue,
                },
            };
            if request.wants_completion() {
                incoming.grants -= 1;
            }
            if let Some(flow) = &mut incoming.flow {
                flow.passed(request.bytes_moved());
            }
            return Ok(Ok(request.begin()));
        }
    }

    /// Sees to it that one more request may be held and can be completed, or tells why it could not.
    fn grant(&self, incoming: &mut Incoming) -> Result<Option<Nothing>, ChannelError> {
        // Those that want no completion are held as well, and are taken without a grant.
        let free = self.limits.requests.saturating_sub(self.in_flight.load(Ordering::Relaxed));
        if free == 0 || self.holds_too_much() {
            return Ok(Some(Nothing::AtLimit));
        }
        if let Some(hold) = incoming.flow.as_mut().and_then(|flow| flow.holds()) {
            return Ok(Some(Nothing::Held(hold)));
        }
        if incoming.grants > 0 {
            return Ok(None);
        }
        incoming.grants = lock(&self.outgoing).reserve(free, self.limits.completion_size())?;
        Ok((incoming.grants == 0).then_some(Nothing::NoRoom))
    }

    /// Takes the next packet, whatever it is.
    pub(super) fn next(self: &Arc<Self>, incoming: &mut Incoming) -> Result<Next, ChannelError> {
        let Some(packet) = incoming.consumer.next()? else { return Ok(Next::Empty) };
        let next = match packet.kind {
            PacketKind::Completion => {
                let len = packet.payload_len();
                // Nobody waits for these, and a peer that is not trusted could pile up what nobody has asked for.
                if len > Reply::new().inline_size()
                    && incoming.side.is_root()
                    && lock(&self.replies).is_tagged(packet.transaction_id)
                {
                    return Err(ChannelError::Protocol(format!("completed a packet with {len} bytes")));
                }
                let mut reply = Reply::from_elem(0, len);
                packet.read_payload(0, &mut reply).map_err(short)?;
                let tagged = lock(&self.replies).complete(packet.transaction_id, reply).map_err(|_| {
                    ChannelError::Protocol("completed a request that is not in flight".into())
                })?;
                if tagged {
                    incoming.tagged = incoming.tagged.wrapping_add(1);
                    if self.parked.load(Ordering::Relaxed) > 0 {
                        self.nudge();
                    }
                }
                Next::Routed
            }
            PacketKind::InBand | PacketKind::GpaDirect | PacketKind::TransferPages => {
                let Incoming { side, epoch, memory, .. } = incoming;
                Next::Request(self.request(&packet, *epoch, side, memory)?)
            }
        };
        if incoming.consumer.publish_if_due()?.is_ring() {
            incoming.side.ring();
        }
        Ok(next)
    }

    fn request(
        self: &Arc<Self>,
        packet: &Packet<'_, RingMapping>,
        epoch: u32,
        side: &Side,
        memory: &mut Option<Arc<GpaSpace>>,
    ) -> Result<Request, ChannelError> {
        let mut payload = SmallVec::from_elem(0, packet.payload_len());
        packet.read_payload(0, &mut payload).map_err(short)?;
        let mut header: SmallVec<[u8; 128]> = SmallVec::from_elem(0, packet.header_len());
        packet.read_header(&mut header).map_err(short)?;
        let attached = match packet.kind {
            PacketKind::InBand | PacketKind::Completion => Attached::Nothing,
            PacketKind::GpaDirect => {
                let ranges =
                    GpaDirect::parse(&header).map_err(|error| ChannelError::Protocol(error.to_string()))?;
                let find =
                    |memory: &Arc<GpaSpace>| ranges.ranges().map(|range| memory.pages(range)).collect();
                let mut pages: Result<SmallVec<[GuestPages; 1]>, _> =
                    find(memory.get_or_insert_with(|| side.memory()));
                if pages.is_err() {
                    // Memory may have come since.
                    pages = find(memory.insert(side.memory()));
                }
                Attached::Pages(pages?)
            }
            PacketKind::TransferPages => {
                let pages = TransferPages::parse(&header)
                    .map_err(|error| ChannelError::Protocol(error.to_string()))?;
                let ranges = pages.ranges().iter();
                let ranges = ranges.map(|range| (range.byte_offset.get(), range.byte_count.get())).collect();
                Attached::Transfer { set_id: pages.set_id(), ranges }
            }
        };
        let (id, bytes) = ((packet.transaction_id, epoch), header.len() + payload.len());
        Ok(Request::new(self, id, packet.completion_requested, payload, attached, bytes))
    }

    /// Takes the ring, masked, unless the channel is closed or suspended. Nobody touches the memory of such a channel's
    /// rings after [`close`](Self::close) or [`suspend`](Self::suspend) and one more lock of `incoming`, so that it can
    /// be used for something else.
    pub(super) fn enter(&self) -> Result<MutexGuard<'_, Incoming>, Untouchable> {
        self.entered(lock(&self.incoming))
    }

    pub(super) fn entered<'a>(
        &self,
        incoming: MutexGuard<'a, Incoming>,
    ) -> Result<MutexGuard<'a, Incoming>, Untouchable> {
        let mut incoming = swap::entered(self, incoming)?;
        incoming.mask();
        Ok(incoming)
    }

    /// Gives ring space back while looking, but late: publishing moves a cache line that the peer is writing.
    pub(super) fn publish_while_looking(
        &self,
        incoming: &mut Incoming,
        looks: u32,
    ) -> Result<(), ChannelError> {
        if looks == LOOKS_BEFORE_PUBLISHING && incoming.consumer.publish()?.is_ring() {
            incoming.side.ring();
        }
        Ok(())
    }

    /// Lets go of the ring: unmasked if somebody sleeps on it, and then with nothing unread.
    pub(super) fn leave(
        self: &Arc<Self>,
        mut incoming: MutexGuard<'_, Incoming>,
    ) -> Result<(), ChannelError> {
        incoming.memory = None;
        while self.is_open()
            && incoming.masked
            && self.parked.load(Ordering::Relaxed) > 0
            && self.unmask(&mut incoming)?
        {
            // Whoever receives was told when the queue grew.
            if incoming.queued.is_full(self.limits.waiting) {
                break;
            }
            incoming.mask();
            self.route(&mut incoming)?;
        }
        Ok(())
    }

    /// Asks the peer for signals again. `true` if there is something to read after all.
    fn unmask(&self, incoming: &mut Incoming) -> Result<bool, ChannelError> {
        incoming.masked = false;
        let unmasked = incoming.consumer.unmask()?;
        if unmasked.signal.is_ring() {
            incoming.side.ring();
        }
        Ok(unmasked.unread)
    }

    /// The look after which a sleeper may sleep: `true` if there is something to do instead.
    pub(super) fn last_look(self: &Arc<Self>, nothing: &Nothing) -> bool {
        if !self.is_open() {
            return true;
        }
        match nothing {
            Nothing::Empty => {
                let mut incoming = lock(&self.incoming);
                !self.is_open() || !incoming.queued.is_empty() || self.unmask(&mut incoming).unwrap_or(true)
            }
            Nothing::NoReply => {
                let mut incoming = lock(&self.incoming);
                // With the queue full there is nothing that this sleeper could read: who receives goes on for it.
                !self.is_open()
                    || (!incoming.queued.is_full(self.limits.waiting)
                        && self.unmask(&mut incoming).unwrap_or(true))
            }
            Nothing::NoRoom => self.has_room(self.limits.completion_size()),
            // Nothing that the peer could signal makes a difference.
            Nothing::Held(_) => false,
            Nothing::AtLimit => {
                self.in_flight.load(Ordering::Relaxed) < self.limits.requests && !self.holds_too_much()
            }
            // There is one now.
            Nothing::NoRoot => true,
        }
    }

    /// Takes the completions that a root published before it went, and drops its requests, which nobody waits for any
    /// more. The channel must be suspended, and the root must not write any more.
    pub(super) fn drain(self: &Arc<Self>) -> Result<(), ChannelError> {
        let mut incoming = lock(&self.incoming);
        let mut left = self.capacity / SMALLEST_PACKET;
        while left > 0 && incoming.consumer.has_unread()? {
            match self.next(&mut incoming)? {
                Next::Request(_) | Next::Routed => left -= 1,
                Next::Empty => break,
            }
        }
        let queued = incoming.take_queued();
        drop(incoming);
        drop(queued);
        Ok(())
    }

    pub(super) fn slept(&self, since: Instant) {
        lock(&self.incoming).spinner.slept(since.elapsed());
    }
}

fn short(error: vmbus_ringbuf::OutOfPacket) -> ChannelError {
    ChannelError::Protocol(error.to_string())
}
