//! Both ends of an open channel: the guest sends requests, the root's device completes each once, in any order.
//!
//! Every packet says which one it is and its content follows from that, so a byte that is lost, doubled or from
//! elsewhere is noticed by whoever reads it. Both ends sleep and wake by the ring's own rules.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use vmbus_core::memory::PlainMemory;
use vmbus_ringbuf::{
    Consumer, Flat, Outgoing, Packet, PacketKind, Producer, PushError, RingFault, Signal, TakeUpError,
    packet_size,
};

pub(super) type Ring = Flat<Arc<PlainMemory>>;

/// Packets that a worker takes before it lets others run.
const BUDGET: usize = 4;
/// Bytes in front of a packet's filling.
const HEAD: usize = 24;

/// What a worker did.
#[derive(Debug, Default)]
pub(super) struct Worked {
    /// The other end is to be woken.
    pub(super) ring: bool,
    /// It has not finished: let it work again. Otherwise it sleeps.
    pub(super) again: bool,
    /// Requests that were taken, or completions that came.
    pub(super) taken: Vec<u64>,
}

impl std::fmt::Display for Worked {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "takes {:?}", self.taken)?;
        formatter.write_str(if self.ring { ", rings" } else { "" })?;
        formatter.write_str(if self.again { "" } else { ", sleeps" })
    }
}

/// A packet's content: `which` is the number of the packet on its way, `about` what it is about.
fn letter(buffer: &mut Vec<u8>, channel: u64, which: u64, about: u64, filling: usize) {
    buffer.clear();
    for word in [channel, which, about] {
        buffer.extend_from_slice(&word.to_le_bytes());
    }
    let mut word = which.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ channel;
    for _ in 0..filling.div_ceil(8) {
        word = word.rotate_left(9).wrapping_add(about);
        buffer.extend_from_slice(&word.to_le_bytes());
    }
}

/// Reads a packet that is `which` on its way and gives what it is about.
fn read(packet: &Packet<'_, Ring>, channel: u64, which: u64, buffer: &mut Vec<u8>) -> Result<u64, String> {
    let mut bytes = [0; 1024];
    let len = packet.payload_len();
    let bytes = bytes.get_mut(..len).ok_or_else(|| format!("a packet of {len} bytes that nobody sent"))?;
    packet.read_payload(0, bytes).map_err(|error| error.to_string())?;
    let about = packet.transaction_id;
    letter(buffer, channel, which, about, len.saturating_sub(HEAD));
    if bytes != buffer.as_slice() {
        return Err(format!("packet {which} of open {channel} is not what was sent: {bytes:02x?}"));
    }
    Ok(about)
}

fn fault(fault: RingFault) -> String {
    format!("a ring is at fault: {fault}")
}

/// What whoever works on a channel has of its rings, and whether it sleeps.
#[derive(Debug)]
pub(super) struct Ends {
    open_id: u64,
    outgoing: Producer<Ring>,
    incoming: Consumer<Ring>,
    sent: u64,
    received: u64,
    pub(super) awake: bool,
    /// The last look found nothing: sleep is next, others may run before.
    about_to_sleep: bool,
    buffer: Vec<u8>,
}

impl Ends {
    fn new(open_id: u32, outgoing: Ring, incoming: Ring) -> Result<Self, String> {
        Ok(Self {
            open_id: u64::from(open_id),
            outgoing: Producer::new(outgoing).map_err(fault)?,
            incoming: Consumer::new(incoming).map_err(fault)?,
            sent: 0,
            received: 0,
            awake: true,
            about_to_sleep: false,
            buffer: Vec::new(),
        })
    }

    /// Goes on with ends of the rings that stand where these stood.
    pub(super) fn take_over(&mut self) -> Result<(), String> {
        let (outgoing, incoming) = (self.outgoing.save(), self.incoming.save());
        self.outgoing = taken_over(Producer::take_up(self.outgoing.memory().clone(), outgoing))?;
        self.incoming = taken_over(Consumer::take_up(self.incoming.memory().clone(), incoming))?;
        Ok(())
    }
}

/// An end of a ring from where it stood: what a process says that takes over from another.
fn taken_over<P>(taken_up: Result<P, TakeUpError>) -> Result<P, String> {
    taken_up.map_err(|error| format!("an end of a ring is not taken up: {error}"))
}

/// One end of a channel at work.
pub(super) trait Worker {
    fn ends(&mut self) -> &mut Ends;

    /// Whether the peer may send such a packet.
    fn check(packet: &Packet<'_, Ring>) -> Result<(), String>;

    /// A packet about `id` was taken.
    fn took(&mut self, id: u64) -> Result<(), String>;

    /// Sends what waits, as far as there is room; whether to wake the peer.
    fn send(&mut self) -> Result<bool, String>;

    fn sleeps_without_look(&self) -> bool {
        false
    }

    /// Takes some packets and sends what waits.
    fn work(&mut self) -> Result<Worked, String> {
        if self.ends().about_to_sleep {
            return self.sleep();
        }
        let mut worked = Worked::default();
        self.ends().incoming.mask();
        for _ in 0..BUDGET {
            let ends = self.ends();
            let Some(packet) = ends.incoming.next().map_err(fault)? else { break };
            Self::check(&packet)?;
            let id = read(&packet, ends.open_id, ends.received, &mut ends.buffer)?;
            ends.received += 1;
            self.took(id)?;
            worked.taken.push(id);
            worked.ring |= self.ends().incoming.publish_if_due().map_err(fault)?.is_ring();
        }
        worked.ring |= self.send()?;
        worked.again = true;
        let ends = self.ends();
        ends.awake = true;
        ends.about_to_sleep = worked.taken.is_empty();
        Ok(worked)
    }

    fn sleep(&mut self) -> Result<Worked, String> {
        // A signal that came while this end was awake may have been for room.
        let ring = self.send()?;
        let looks = !self.sleeps_without_look();
        let ends = self.ends();
        let last = ends.incoming.unmask().map_err(fault)?;
        ends.about_to_sleep = false;
        ends.awake = last.unread && looks;
        Ok(Worked { ring: ring || last.signal.is_ring(), again: ends.awake, taken: Vec::new() })
    }
}

/// The guest's end.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) ends: Ends,
    /// Requests that wait for room, by the bytes of their filling.
    waiting: VecDeque<usize>,
    in_flight: BTreeSet<u64>,
}

impl Line {
    pub(super) fn new(open_id: u32, outgoing: Ring, incoming: Ring) -> Result<Self, String> {
        let ends = Ends::new(open_id, outgoing, incoming)?;
        Ok(Self { ends, waiting: VecDeque::new(), in_flight: BTreeSet::new() })
    }

    /// Requests that have not ended.
    pub(super) fn unfinished(&self) -> usize {
        self.waiting.len() + self.in_flight.len()
    }

    /// Sends requests, as far as there is room; whether to wake the root.
    pub(super) fn request(&mut self, count: u8, bytes: u16) -> Result<bool, String> {
        self.waiting.extend((0..count).map(|_| usize::from(bytes)));
        self.send()
    }
}

impl Worker for Line {
    fn ends(&mut self) -> &mut Ends {
        &mut self.ends
    }

    fn check(packet: &Packet<'_, Ring>) -> Result<(), String> {
        match packet.kind {
            PacketKind::Completion => Ok(()),
            kind => Err(format!("the root sent a {kind:?} where completions are due")),
        }
    }

    fn took(&mut self, id: u64) -> Result<(), String> {
        if self.in_flight.remove(&id) {
            return Ok(());
        }
        Err(format!("request {id} of open {} completed and is not in flight", self.ends.open_id))
    }

    fn send(&mut self) -> Result<bool, String> {
        let ends = &mut self.ends;
        let mut ring = false;
        while !self.waiting.is_empty() {
            let mut batch = ends.outgoing.batch();
            let mut full = None;
            while let Some(&bytes) = self.waiting.front() {
                let id = ends.sent + 1;
                letter(&mut ends.buffer, ends.open_id, ends.sent, id, bytes);
                match batch.push(Outgoing::request(id, &ends.buffer)) {
                    Ok(()) => {
                        self.waiting.pop_front();
                        self.in_flight.insert(id);
                        ends.sent += 1;
                    }
                    Err(PushError::Full) => {
                        full = packet_size(0, ends.buffer.len());
                        break;
                    }
                    Err(error) => return Err(format!("a request was not taken: {error}")),
                }
            }
            ring |= batch.commit().map_err(fault)?.is_ring();
            if let Some(needed) = full
                && !ends.outgoing.request_space(needed).map_err(fault)?
            {
                break;
            }
        }
        Ok(ring)
    }
}

/// What a device of the root does wrong, on purpose.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) completes_twice: bool,
    pub(super) flips_byte: bool,
    pub(super) sleeps_without_look: bool,
}

/// The root's end.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) ends: Ends,
    in_service: BTreeSet<u64>,
    /// Completions that wait for room.
    finished: VecDeque<u64>,
    faults: Faults,
}

impl Device {
    pub(super) fn new(open_id: u32, incoming: Ring, outgoing: Ring, faults: Faults) -> Result<Self, String> {
        let ends = Ends::new(open_id, outgoing, incoming)?;
        Ok(Self { ends, in_service: BTreeSet::new(), finished: VecDeque::new(), faults })
    }

    /// Requests that were taken and are not served.
    pub(super) fn in_service(&self) -> Vec<u64> {
        self.in_service.iter().copied().collect()
    }

    /// A request is served; whether to wake the guest.
    pub(super) fn finish(&mut self, id: u64) -> Result<bool, String> {
        // One that came before the channel was opened anew.
        if !self.in_service.remove(&id) {
            return Ok(false);
        }
        self.finished.push_back(id);
        if self.faults.completes_twice && id.is_multiple_of(5) {
            self.finished.push_back(id);
        }
        self.send()
    }
}

impl Worker for Device {
    fn ends(&mut self) -> &mut Ends {
        &mut self.ends
    }

    fn check(packet: &Packet<'_, Ring>) -> Result<(), String> {
        match packet.kind {
            PacketKind::InBand if packet.completion_requested => Ok(()),
            kind => Err(format!("the guest sent a {kind:?} where requests are due")),
        }
    }

    fn took(&mut self, id: u64) -> Result<(), String> {
        if self.in_service.insert(id) {
            return Ok(());
        }
        Err(format!("request {id} of open {} came twice", self.ends.open_id))
    }

    fn sleeps_without_look(&self) -> bool {
        self.faults.sleeps_without_look
    }

    fn send(&mut self) -> Result<bool, String> {
        let ends = &mut self.ends;
        let mut signal = Signal::Quiet;
        while let Some(&id) = self.finished.front() {
            // Some are long, so that the ring is full now and then and nothing but room is waited for.
            let filling = usize::try_from(id % 5).unwrap_or(0) * 40;
            letter(&mut ends.buffer, ends.open_id, ends.sent, id, filling);
            if self.faults.flips_byte && ends.sent % 7 == 6 {
                ends.buffer[HEAD - 9] ^= 1;
            }
            let mut batch = ends.outgoing.batch();
            match batch.push(Outgoing::completion(id, &ends.buffer)) {
                Ok(()) => {
                    self.finished.pop_front();
                    ends.sent += 1;
                    signal = signal.or(batch.commit().map_err(fault)?);
                }
                Err(PushError::Full) => {
                    let needed = packet_size(0, ends.buffer.len()).unwrap_or(usize::MAX);
                    if !ends.outgoing.request_space(needed).map_err(fault)? {
                        break;
                    }
                }
                Err(error) => return Err(format!("a completion was not taken: {error}")),
            }
        }
        Ok(signal.is_ring())
    }
}
