//! The ring to the peer: packets of our own, and completions from space set aside for them.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};
use vmbus_partition::RingMapping;
use vmbus_ringbuf::{
    GpaRange, Outgoing as Packet, OutgoingKind, Producer, PushError, RingFault, SavedProducer, packet_size,
};

use super::core::{Core, lock};
use super::flow::{Flow, Hold};
use super::in_flight::{InFlight, Replay};
use super::receiving::GRANTS_AT_ONCE;
use super::replies::Held;
use super::side::Side;
use super::swap::{self, State};
use super::{Tagged, gpa_range};
use crate::error::ChannelError;
use crate::policy::{Limits, WallTime};

/// The ring to the peer.
pub(super) struct Outgoing {
    pub(super) side: Arc<Side>,
    pub(super) producer: Producer<RingMapping>,
    /// Bytes that only completions may use.
    reserved: usize,
    /// What the peer was asked to signal.
    pub(super) smallest_wish: Option<usize>,
    /// Somebody waits for room that only our own completions can give back.
    waits_for_reserve: bool,
    /// Limits of policy; none for most.
    pub(super) flow: Option<Box<Flow>>,
    pub(super) state: State,
    /// How many roots there have been.
    pub(super) epoch: u32,
    /// Where the channel is to survive its root.
    pub(super) in_flight: Option<Box<InFlight>>,
}

/// The part of a ring, as a divisor, that completions of requests not yet taken may keep from other packets.
const GRANTED_PART: usize = 4;

impl Outgoing {
    pub(super) fn new(side: Arc<Side>, producer: Producer<RingMapping>) -> Self {
        Self {
            side,
            producer,
            reserved: 0,
            smallest_wish: None,
            waits_for_reserve: false,
            flow: None,
            state: State::Open,
            epoch: 0,
            in_flight: None,
        }
    }

    pub(super) fn saved(&self) -> SavedProducer {
        self.producer.save()
    }

    /// How far the ring is written, to see whether it goes on.
    pub(super) fn write_index(&self) -> u32 {
        self.producer.write_index()
    }

    /// Whether the peer has made room since somebody last asked, or something is wrong.
    pub(super) fn has_news(&mut self) -> bool {
        let known = self.producer.known_room();
        self.producer.room() != Ok(known)
    }

    /// Bytes that the ring holds at most.
    pub(super) fn capacity(&self) -> usize {
        self.producer.capacity()
    }

    /// Sets space aside for up to `wanted` completions of `size` bytes; gives how many fitted. Most of a small ring
    /// is left to other packets.
    pub(super) fn reserve(&mut self, wanted: usize, size: usize) -> Result<usize, RingFault> {
        let room = self.producer.room()?.saturating_sub(self.reserved);
        let fitting = wanted.min(grants_at_once(self.producer.capacity(), size)).min(room / size);
        self.reserved += fitting * size;
        Ok(fitting)
    }
}

impl Outgoing {
    /// Whether a packet of `size` bytes finds room beyond the reserve.
    #[inline]
    fn fits(&mut self, size: usize) -> Result<bool, RingFault> {
        let wanted = size + self.reserved;
        Ok(self.producer.known_room() >= wanted || self.producer.room()? >= wanted)
    }

    /// Writes a packet that fits, and signals.
    #[inline]
    fn push(&mut self, packet: &Packet<'_>, size: usize) -> Result<(), ChannelError> {
        let ring = self.producer.capacity();
        let mut batch = self.producer.batch();
        batch.push(*packet).map_err(|error| refused(error, size, ring))?;
        if batch.commit()?.is_ring() {
            self.side.ring();
        }
        Ok(())
    }
}

/// Completions of `size` bytes that space is set aside for at a time in a ring of `ring` bytes.
fn grants_at_once(ring: usize, size: usize) -> usize {
    GRANTS_AT_ONCE.min(ring / GRANTED_PART / size).max(1)
}

/// What became of a packet.
pub(super) enum Sent {
    Yes,
    /// The peer must read first.
    NoRoom,
    /// Policy lets it wait.
    Held(Hold),
}

/// Returns when it is worth another try.
pub(super) async fn due(hold: Hold) {
    match hold {
        Hold::Until(due) => Box::pin(sleep_until(due)).await,
        Hold::GiveWay => yield_now().await,
    }
}

/// The same for a thread.
pub(super) fn wait_for(hold: Hold) -> Duration {
    match hold {
        Hold::Until(due) => due.saturating_duration_since(Instant::now()),
        Hold::GiveWay => Duration::ZERO,
    }
}

impl Core {
    /// Sends a packet of our own, waiting for room as long as it takes.
    pub(crate) async fn send(
        self: &Arc<Self>,
        packet: &Packet<'_>,
        replay: Replay,
    ) -> Result<(), ChannelError> {
        let size = self.size_of(packet)?;
        loop {
            let seen = self.nudges();
            match self.judge(self.try_send(packet, size, replay))? {
                Sent::Yes => return Ok(()),
                Sent::NoRoom => self.park(seen, || self.has_room(size), pending()).await,
                Sent::Held(hold) => self.park(seen, || self.is_closed(), due(hold)).await,
            }
        }
    }

    /// [`send`](Self::send) for a thread.
    pub(crate) fn send_blocking(&self, packet: &Packet<'_>, replay: Replay) -> Result<(), ChannelError> {
        let size = self.size_of(packet)?;
        loop {
            let seen = self.nudges();
            match self.judge(self.try_send(packet, size, replay))? {
                Sent::Yes => return Ok(()),
                Sent::NoRoom => _ = self.park_blocking(seen, || self.has_room(size), pending(), None)?,
                Sent::Held(hold) => {
                    self.park_blocking(seen, || self.is_closed(), pending(), Some(wait_for(hold)))?;
                }
            }
        }
    }

    /// Limits what is sent from now on, completions excepted.
    pub(crate) fn limit_outgoing(&self, limits: &Limits, wall: WallTime) {
        lock(&self.outgoing).flow = Flow::new(limits, wall);
        self.nudge();
    }

    /// Sends as many of `requests` as there is room for with one signal, at least one; gives how many.
    pub(crate) fn submit_tagged(&self, requests: &[Tagged]) -> Result<usize, ChannelError> {
        loop {
            let seen = self.nudges();
            let sent = match self.judge(self.try_submit(requests))? {
                Ok(sent) => sent,
                Err(hold) => {
                    self.park_blocking(seen, || self.is_closed(), pending(), Some(wait_for(hold)))?;
                    continue;
                }
            };
            let Some(first) = requests.first().filter(|_| sent == 0) else { return Ok(sent) };
            let size = self.tagged_size(first)?;
            self.park_blocking(seen, || self.has_room(size), pending(), None)?;
        }
    }

    /// `Err` inside: policy lets all of them wait.
    pub(super) fn try_submit(&self, requests: &[Tagged]) -> Result<Result<usize, Hold>, ChannelError> {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.state != State::Open && !self.ready(&mut outgoing)? {
            return Ok(Ok(0));
        }
        let Outgoing { side, producer, reserved, flow, in_flight, .. } = &mut *outgoing;
        let mut replies = lock(&self.replies);
        let ring = self.longest_packet(producer.capacity());
        let mut room = producer.room()?.saturating_sub(*reserved);
        let mut batch = producer.batch();
        let mut sent = 0;
        for request in requests {
            let range = request.range.as_ref().map(gpa_range);
            let mut packet = packet(0, request, range.as_slice());
            let size = match packet_bytes(&packet, ring) {
                Ok(size) if size <= room => size,
                // What is wrong with this one is told when it is the first.
                Ok(_) => break,
                Err(_) if sent > 0 => break,
                Err(error) => return Err(error),
            };
            if let Some(hold) = flow.as_mut().and_then(|flow| flow.holds()) {
                if sent == 0 {
                    return Ok(Err(hold));
                }
                break;
            }
            room -= size;
            packet.transaction_id =
                replies.start_tagged(request.tag, request.range.iter().cloned().collect());
            batch.push(packet).map_err(|error| refused(error, size, ring))?;
            if let Some(flow) = flow {
                flow.passed(bytes_moved(&packet));
            }
            if let Some(in_flight) = in_flight {
                in_flight.note(&packet, Replay::Again);
            }
            sent += 1;
        }
        drop(replies);
        if batch.commit()?.is_ring() {
            side.ring();
        }
        Ok(Ok(sent))
    }

    /// Bytes that this request takes in the ring.
    pub(super) fn tagged_size(&self, request: &Tagged) -> Result<usize, ChannelError> {
        let range = request.range.as_ref().map(gpa_range);
        self.size_of(&packet(0, request, range.as_slice()))
    }

    /// Whether a packet of `size` bytes could be sent now. `Err` inside: policy lets it wait.
    pub(super) fn room_now(&self, size: usize) -> Result<Result<bool, Hold>, ChannelError> {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.state != State::Open && !self.ready(&mut outgoing)? {
            return Ok(Ok(false));
        }
        if !outgoing.fits(size)? {
            return Ok(Ok(false));
        }
        Ok(outgoing.flow.as_mut().and_then(|flow| flow.holds()).map_or(Ok(true), Err))
    }

    pub(super) fn try_send(
        &self,
        packet: &Packet<'_>,
        size: usize,
        replay: Replay,
    ) -> Result<Sent, ChannelError> {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.state != State::Open && !self.ready(&mut outgoing)? {
            return Ok(Sent::NoRoom);
        }
        if !outgoing.fits(size)? {
            return Ok(Sent::NoRoom);
        }
        if let Some(flow) = &mut outgoing.flow {
            if let Some(hold) = flow.holds() {
                return Ok(Sent::Held(hold));
            }
            flow.passed(bytes_moved(packet));
        }
        outgoing.push(packet, size)?;
        if let Some(in_flight) = &mut outgoing.in_flight {
            in_flight.note(packet, replay);
        }
        Ok(Sent::Yes)
    }

    /// Sends a packet if it can be sent now, whose reply goes to who collects tagged ones.
    pub(super) fn try_send_tagged(&self, tag: u64, packet: &Packet<'_>) -> Result<Sent, ChannelError> {
        let size = self.size_of(packet)?;
        let mut outgoing = lock(&self.outgoing);
        if outgoing.state != State::Open && !self.ready(&mut outgoing)? {
            return Ok(Sent::NoRoom);
        }
        if !outgoing.fits(size)? {
            return Ok(Sent::NoRoom);
        }
        if let Some(flow) = &mut outgoing.flow {
            if let Some(hold) = flow.holds() {
                return Ok(Sent::Held(hold));
            }
            flow.passed(bytes_moved(packet));
        }
        // Before it can be read: its reply may come at once.
        let transaction_id = lock(&self.replies).start_tagged(tag, Held::new());
        outgoing.push(&Packet { transaction_id, ..*packet }, size)?;
        if let Some(in_flight) = &mut outgoing.in_flight {
            in_flight.note(packet, Replay::Never);
        }
        Ok(Sent::Yes)
    }

    /// Whether a ring that is not simply open may be written now.
    #[cold]
    fn ready(&self, outgoing: &mut Outgoing) -> Result<bool, ChannelError> {
        swap::ready(outgoing, |outgoing| Ok(self.catch_up(outgoing)?.is_none()), || self.ended())
    }

    /// Sends again what is to be sent again, as far as there is room; gives the bytes that the next one needs.
    pub(super) fn catch_up(&self, outgoing: &mut Outgoing) -> Result<Option<usize>, ChannelError> {
        let Some(mut in_flight) = outgoing.in_flight.take() else { return Ok(None) };
        let result = loop {
            let wanted = in_flight.next_again(|packet| {
                let size = self.size_of(packet)?;
                if !outgoing.fits(size)? {
                    return Ok(Some(size));
                }
                // Policy let it pass once.
                outgoing.push(packet, size).map(|()| None)
            });
            match wanted {
                None => {
                    outgoing.state = State::Open;
                    break Ok(None);
                }
                Some(Ok(None)) => in_flight.sent_again(),
                Some(Ok(Some(size))) => break Ok(Some(size)),
                Some(Err(error)) => break Err(error),
            }
        };
        outgoing.in_flight = Some(in_flight);
        result
    }

    pub(super) fn size_of(&self, packet: &Packet<'_>) -> Result<usize, ChannelError> {
        packet_bytes(packet, self.longest_packet(self.capacity))
    }

    /// Bytes of a ring of `ring` bytes that a packet of our own gets if it waits long enough: not those that are set
    /// aside for requests that may never come.
    fn longest_packet(&self, ring: usize) -> usize {
        let size = self.limits.completion_size();
        ring.saturating_sub(grants_at_once(ring, size) * size)
    }

    /// Whether `bytes` beyond the reserve are free, now or after asking for a signal. `true` if asking is no use.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let mut outgoing = lock(&self.outgoing);
        let Outgoing { producer, reserved, smallest_wish, waits_for_reserve, state, .. } = &mut *outgoing;
        match state {
            State::Open | State::CatchingUp => {}
            // Whoever looks again learns more.
            State::Suspended | State::Shut => return true,
        }
        let wanted = bytes + *reserved;
        if wanted > producer.capacity() {
            // However much the peer reads, it is not enough: requests in flight have to be completed first.
            *waits_for_reserve = true;
            return false;
        }
        // There is one word for all who wait: it has to name the smallest wish, or that one sleeps too long.
        let wish = smallest_wish.map_or(wanted, |smaller| smaller.min(wanted));
        *smallest_wish = Some(wish);
        match producer.request_space(wish) {
            Ok(false) => false,
            Ok(true) => {
                *smallest_wish = None;
                if wish < wanted {
                    self.nudge();
                }
                true
            }
            Err(_) => true,
        }
    }

    /// Writes completions, each from the space set aside for it, and signals once.
    pub(crate) fn complete<'a>(
        &self,
        completions: impl IntoIterator<Item = ((u64, u32), &'a [u8])>,
    ) -> Result<(), ChannelError> {
        let mut outgoing = lock(&self.outgoing);
        let Outgoing { side, producer, reserved, waits_for_reserve, state, epoch, .. } = &mut *outgoing;
        match state {
            State::Open | State::CatchingUp => {}
            // Who asked is gone.
            State::Suspended => return Ok(()),
            State::Shut => return Err(self.ended()),
        }
        let ring = producer.capacity();
        let mut batch = producer.batch();
        let mut result = Ok(());
        for ((id, asked_in), payload) in completions {
            if asked_in != *epoch {
                continue;
            }
            *reserved = reserved.saturating_sub(self.limits.completion_size());
            // Room was set aside, so only a peer that moved its read index backwards is refused here.
            if let Err(error) = batch.push(Packet::completion(id, payload)) {
                result = Err(refused(error, payload.len(), ring));
            }
        }
        if batch.commit()?.is_ring() {
            side.ring();
        }
        if std::mem::take(waits_for_reserve) {
            self.nudge();
        }
        result
    }

    /// Whether the peer looks at its ring by itself.
    pub(super) fn peer_polls(&self) -> bool {
        lock(&self.outgoing).producer.consumer_polls()
    }

    pub(super) fn check_completion(&self, len: usize) -> Result<(), ChannelError> {
        let room = self.limits.completion_room;
        if len > room { Err(ChannelError::CompletionTooLarge { len, room }) } else { Ok(()) }
    }

    /// A request was dropped unanswered: answers in its place, or closes the channel if there is no answer to give.
    pub(super) fn answer_abandoned(&self, id: (u64, u32)) {
        match self.abandoned.get() {
            Some(payload) => _ = self.complete([(id, &payload[..])]),
            // Of a root that is gone: nobody waits for the answer.
            None if lock(&self.outgoing).epoch != id.1 || !self.is_open() => {}
            None => self.close(),
        }
    }
}

fn packet<'a>(id: u64, request: &'a Tagged, ranges: &'a [GpaRange<'a>]) -> Packet<'a> {
    match ranges {
        [] => Packet::request(id, &request.payload),
        ranges => Packet::gpa_direct(id, ranges, &request.payload),
    }
}

/// Bytes that a packet stands for: the payload, and the memory that it refers to.
fn bytes_moved(packet: &Packet<'_>) -> u64 {
    let memory: u64 = match packet.kind {
        // Ranges in the wire's form are for hosts of other protocols; nothing here sends them.
        OutgoingKind::InBand | OutgoingKind::Completion | OutgoingKind::GpaDirectEncoded { .. } => 0,
        OutgoingKind::GpaDirect(ranges) => ranges.iter().map(|range| u64::from(range.byte_count)).sum(),
        OutgoingKind::TransferPages { ranges, .. } => {
            ranges.iter().map(|range| u64::from(range.byte_count)).sum()
        }
    };
    memory.saturating_add(u64::try_from(packet.payload.len()).unwrap_or(u64::MAX))
}

fn packet_bytes(packet: &Packet<'_>, ring: usize) -> Result<usize, ChannelError> {
    let header = packet.kind.header_len().map_err(|error| refused(error, packet.payload.len(), ring))?;
    let len = header.saturating_add(packet.payload.len());
    match packet_size(header, packet.payload.len()) {
        Some(size) if size <= ring => Ok(size),
        Some(_) | None => Err(ChannelError::TooLarge { len, ring }),
    }
}

pub(super) fn refused(error: PushError, len: usize, ring: usize) -> ChannelError {
    match error {
        PushError::Fault(fault) => fault.into(),
        PushError::Full => ChannelError::Protocol("took back ring space that it had given".into()),
        PushError::TooLarge | PushError::Range => ChannelError::TooLarge { len, ring },
    }
}
