//! The last step: a receiver gets its frames.

use std::sync::atomic::Ordering;

use super::batch::{Arena, Picked, Tags};
use super::forward::Work;
use super::port::Delivered;
use super::statistics::{Count, DropReason, Drops};
use super::switch::{Link, Ports};

impl Work {
    /// Delivers to one port what is for it. Gives the number of frames.
    pub(super) fn deliver_to(&mut self, ports: &Ports, slot: usize, arena: &mut Arena) -> u64 {
        let Some(member) = ports.get(slot).and_then(Option::as_ref) else { return 0 };
        let everything = self.floods.len() + self.queued(slot) == arena.heads.len();
        let picked = if everything {
            Picked::All
        } else {
            self.pick(slot);
            Picked::These(&self.picked)
        };
        let frames = arena.frames(picked, Tags::Keep);
        let asked = frames.len();
        // Acquire, with the disconnecting thread's release: who disconnected a port finds it left alone.
        if member.link.closed.load(Ordering::Acquire) {
            let mut drops = Drops::default();
            drops.add(DropReason::Disconnected, asked as u64);
            member.link.counters.add_received(Count::default(), &drops);
        } else {
            let delivered = member.link.port.deliver(frames);
            member.link.account(asked, delivered);
        }
        asked as u64
    }
}

impl Link {
    /// Counts what a port says that became of so many frames. What it does not mention was not taken.
    pub(super) fn account(&self, asked: usize, delivered: Delivered) {
        let Delivered { frames, bytes, filtered, too_long, link_down } = delivered;
        let mut left = asked;
        let mut at_most = |count: usize| {
            let count = count.min(left);
            left -= count;
            count as u64
        };
        let taken = Count { frames: at_most(frames), bytes: bytes as u64 };
        let mut drops = Drops::default();
        drops.add(DropReason::Filtered, at_most(filtered));
        drops.add(DropReason::TooLong, at_most(too_long));
        drops.add(DropReason::LinkDown, at_most(link_down));
        drops.add(DropReason::Full, left as u64);
        self.counters.add_received(taken, &drops);
    }
}
