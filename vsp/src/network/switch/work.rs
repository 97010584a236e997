//! What the switch writes down about a batch while it is on its way.

use super::addresses::Station;
use super::batch::Arena;
use super::forward::Unknown;
use super::offload::Offload;
use super::statistics::Drops;

/// Lists that keep their memory from batch to batch.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Frames for all ports that may have them.
    pub(super) floods: Vec<Flood>,
    /// Whether all floods are of one VLAN and kind, so that a port may have all or none.
    pub(super) uniform: bool,
    /// Frames for one port each, by its slot.
    queues: Vec<Queue>,
    /// Slots whose queues are not empty.
    pub(super) receivers: Vec<usize>,
    /// For each frame the one behind it in its queue.
    next: Vec<u32>,
    /// Senders that the switch does not know yet.
    pub(super) learn: Vec<Station>,
    /// What goes on to nobody.
    pub(super) drops: Drops,
    /// What frames need that not every receiver takes.
    pub(super) needs: Needs,
    /// Frames that a mirror's destinations get, in any order and perhaps twice.
    pub(super) mirrored: Vec<u32>,
    /// Frames of one delivery.
    pub(super) picked: Vec<u32>,
    /// Frames that were made for one receiver.
    pub(super) scratch: Arena,
}

/// A frame for everybody.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flood {
    pub(super) index: u32,
    pub(super) vlan: u16,
    pub(super) unknown: Unknown,
    /// Somebody got it.
    pub(super) reached: bool,
}

/// Which frames there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) checksums: bool,
    pub(super) segments: bool,
    pub(super) tags: bool,
}

/// Frames for one port, in order.
#[derive(Clone, Copy, Debug)]
struct Queue {
    first: u32,
    last: u32,
    frames: usize,
}

/// The end of a queue: behind all frames.
const NOTHING: u32 = u32::MAX;

const EMPTY: Queue = Queue { first: NOTHING, last: NOTHING, frames: 0 };

impl Needs {
    pub(super) fn note(&mut self, offload: &Offload) {
        self.checksums |= offload.checksum.is_missing();
        self.segments |= offload.segmentation.is_some();
        self.tags |= offload.vlan.is_some();
    }
}

impl Work {
    /// For a batch of so many frames.
    pub(super) fn begin(&mut self, frames: usize) {
        for slot in self.receivers.drain(..) {
            self.queues[slot] = EMPTY;
        }
        self.floods.clear();
        self.uniform = true;
        self.learn.clear();
        self.mirrored.clear();
        self.next.clear();
        self.next.resize(frames, NOTHING);
        self.drops = Drops::default();
        self.needs = Needs::default();
    }

    /// For so many ports.
    pub(super) fn make_room(&mut self, slots: usize) {
        if self.queues.len() < slots {
            self.queues.resize(slots, EMPTY);
        }
    }

    pub(super) fn enqueue(&mut self, slot: usize, index: u32) {
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

    pub(super) fn flood(&mut self, flood: Flood) {
        if let Some(first) = self.floods.first() {
            self.uniform &= first.vlan == flood.vlan && first.unknown == flood.unknown;
        }
        self.floods.push(flood);
    }

    /// Frames that are for this port alone.
    pub(super) fn queued(&self, slot: usize) -> usize {
        self.queues.get(slot).map_or(0, |queue| queue.frames)
    }

    /// Picks the frames of one port: its own, and the floods that it may have, in order.
    pub(super) fn pick(&mut self, slot: usize, may_have: impl Fn(&Flood) -> bool) {
        self.picked.clear();
        let mut own = self.queues.get(slot).map_or(NOTHING, |queue| queue.first);
        for flood in self.floods.iter_mut().filter(|flood| may_have(flood)) {
            while own < flood.index {
                self.picked.push(own);
                own = self.next[own as usize];
            }
            self.picked.push(flood.index);
            flood.reached = true;
        }
        while own != NOTHING {
            self.picked.push(own);
            own = self.next[own as usize];
        }
    }
}
