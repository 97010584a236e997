//! A batch on its way: who gets which frame.

use std::cell::Cell;
use std::sync::Arc;

use super::addresses::{Known, Station};
use super::batch::{Arena, Batch};
use super::mac::MacAddress;
use super::statistics::{Count, DropReason, Drops};
use super::switch::{Link, Ports, Shared, Tables};

/// Ports that send when they are delivered to may do so through so many others.
const DEEPEST: u32 = 4;

/// Sends a batch from a port.
pub(super) fn send(shared: &Shared, link: &Arc<Link>, batch: &mut Batch) {
    let (arena, work) = batch.parts();
    if arena.heads.is_empty() {
        return;
    }
    work.begin(arena.heads.len());
    let sent = Count { frames: arena.heads.len() as u64, bytes: arena.bytes_of_all() as u64 };
    let copies = match Depth::enter() {
        Some(_depth) => {
            let now = shared.now();
            let tables = shared.read();
            work.sort(&tables, link, arena, now);
            let ports = Arc::clone(&tables.ports);
            drop(tables);
            work.learn(shared, link, now);
            work.deliver(&ports, link, arena)
        }
        None => {
            work.drops.add(DropReason::Loop, sent.frames);
            0
        }
    };
    link.counters.add_sent(sent, sent.frames - work.drops.total(), copies, &work.drops);
    arena.clear();
}

/// What the switch writes down about a batch. It keeps its memory for the next.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Frames for all ports.
    pub(super) floods: Vec<u32>,
    /// Frames for one port each, by its slot.
    queues: Vec<Queue>,
    /// Slots whose queues are not empty.
    pub(super) receivers: Vec<usize>,
    /// For each frame the one behind it in its queue.
    next: Vec<u32>,
    /// Senders that the switch does not know yet.
    learn: Vec<Station>,
    /// What goes on to nobody.
    pub(super) drops: Drops,
    /// Frames of one delivery.
    pub(super) picked: Vec<u32>,
}

/// Frames for one port, in order.
#[derive(Clone, Copy, Debug)]
struct Queue {
    first: u32,
    last: u32,
    frames: usize,
}

const NOTHING: u32 = u32::MAX;
const EMPTY: Queue = Queue { first: NOTHING, last: NOTHING, frames: 0 };

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Port(usize),
    Flood,
    Dropped(DropReason),
}

impl Work {
    fn begin(&mut self, frames: usize) {
        for slot in self.receivers.drain(..) {
            self.queues[slot] = EMPTY;
        }
        self.floods.clear();
        self.learn.clear();
        self.next.clear();
        self.next.resize(frames, NOTHING);
        self.drops = Drops::default();
    }

    /// Decides for each frame.
    fn sort(&mut self, tables: &Tables, link: &Arc<Link>, arena: &mut Arena, now: u64) {
        if tables.member_of(link).is_none() {
            self.drops.add(DropReason::Disconnected, arena.heads.len() as u64);
            return;
        }
        if self.queues.len() < tables.ports.len() {
            self.queues.resize(tables.ports.len(), EMPTY);
        }
        // Frames of one flow come in a row, and all of them go where the first one goes.
        let mut last: Option<([u8; 12], Fate)> = None;
        for (index, frame) in (0..).zip(0..arena.heads.len()) {
            let (bytes, _) = arena.frame_mut(frame);
            let Some((addresses, _)) = bytes.split_first_chunk::<12>().filter(|(_, rest)| rest.len() >= 2)
            else {
                self.drops.add(DropReason::Malformed, 1);
                continue;
            };
            let fate = match last {
                Some((same, fate)) if same == *addresses => fate,
                Some(_) | None => self.fate(tables, link, addresses, now),
            };
            last = Some((*addresses, fate));
            match fate {
                Fate::Port(slot) => self.enqueue(slot, index),
                Fate::Flood => self.floods.push(index),
                Fate::Dropped(reason) => self.drops.add(reason, 1),
            }
        }
    }

    fn fate(&mut self, tables: &Tables, link: &Link, addresses: &[u8; 12], now: u64) -> Fate {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *addresses;
        let (to, from) = (MacAddress([a, b, c, d, e, f]), MacAddress([g, h, i, j, k, l]));
        if !from.is_station() {
            return Fate::Dropped(DropReason::Malformed);
        }
        let sender = Station::new(0, from.to_u64());
        match tables.addresses.saw(sender, link.slot, now) {
            Known::Here => {}
            Known::No => self.learn.push(sender),
        }
        if to.is_group() {
            return Fate::Flood;
        }
        match tables.addresses.find(Station::new(0, to.to_u64()), now) {
            Some(slot) if slot == link.slot => Fate::Dropped(DropReason::SamePort),
            Some(slot) => Fate::Port(slot),
            None => Fate::Flood,
        }
    }

    fn enqueue(&mut self, slot: usize, index: u32) {
        let queue = &mut self.queues[slot];
        if queue.frames == 0 {
            queue.first = index;
            self.receivers.push(slot);
        } else {
            self.next[queue.last as usize] = index;
        }
        queue.last = index;
        queue.frames += 1;
    }

    /// Writes down who is behind the port.
    fn learn(&mut self, shared: &Shared, link: &Arc<Link>, now: u64) {
        if self.learn.is_empty() {
            return;
        }
        let mut tables = shared.write();
        // The port may have been disconnected since the batch was sorted, and its slot be another's.
        if tables.member_of(link).is_some() {
            for station in self.learn.drain(..) {
                tables.addresses.learn(station, link.slot, now);
            }
        }
    }

    /// Frames that are for this port alone, so far.
    pub(super) fn queued(&self, slot: usize) -> usize {
        self.queues.get(slot).map_or(0, |queue| queue.frames)
    }

    /// Picks the frames of one port, its own and the floods, in order.
    pub(super) fn pick(&mut self, slot: usize) {
        self.picked.clear();
        let mut own = self.queues.get(slot).map_or(NOTHING, |queue| queue.first);
        for &flood in &self.floods {
            while own < flood {
                self.picked.push(own);
                own = self.next[own as usize];
            }
            self.picked.push(flood);
        }
        while own != NOTHING {
            self.picked.push(own);
            own = self.next[own as usize];
        }
    }

    /// Hands each receiver its frames. Gives how many copies that made.
    fn deliver(&mut self, ports: &Ports, link: &Link, arena: &mut Arena) -> u64 {
        if self.floods.is_empty() {
            let receivers = std::mem::take(&mut self.receivers);
            let copies = receivers.iter().map(|&slot| self.deliver_to(ports, slot, arena)).sum();
            self.receivers = receivers;
            return copies;
        }
        let others = (0..ports.len()).filter(|&slot| slot != link.slot);
        let mut flooded_to = 0_u64;
        let mut copies = 0;
        for slot in others {
            if ports[slot].is_some() {
                flooded_to += 1;
                copies += self.deliver_to(ports, slot, arena);
            }
        }
        if flooded_to == 0 {
            self.drops.add(DropReason::NoReceiver, self.floods.len() as u64);
        }
        copies
    }
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// How deep this thread is in sends that come out of deliveries.
struct Depth;

impl Depth {
    fn enter() -> Option<Self> {
        let depth = DEPTH.get();
        (depth < DEEPEST).then(|| {
            DEPTH.set(depth + 1);
            Self
        })
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}
