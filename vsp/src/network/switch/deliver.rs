//! The last step: each receiver gets its frames, as it takes them.

use std::sync::atomic::Ordering;

use super::batch::{Arena, Head, Picked, Tags};
use super::forward::Unknown;
use super::offload::{Capabilities, Checksum, HeaderChecksum, IpVersion};
use super::port::Delivered;
use super::segment::{Segments, Sums};
use super::settings::{Mirror, PortSettings, Senders};
use super::statistics::{Count, DropReason, Drops};
use super::tables::{Link, Member, Ports};
use super::work::{Flood, Needs, Work};
use super::{checksum, vlan};

impl Work {
    /// Hands each receiver its frames. Gives how many copies that made.
    pub(super) fn deliver(&mut self, ports: &Ports, link: &Link, arena: &mut Arena, now: u64) -> u64 {
        let mut copies = 0;
        if self.floods.is_empty() {
            // By index: the list stays in place, from which the next batch knows what to clear.
            for index in 0..self.receivers.len() {
                let member = ports.member(self.receivers[index]);
                copies += member.map_or(0, |member| self.deliver_own(member, arena, now));
            }
        } else if let Some(sender) = ports.member(link.slot) {
            for receiver in ports.members.iter().flatten().filter(|member| member.link.slot != link.slot) {
                copies += self.deliver_with_floods(sender, receiver, arena, now);
            }
            let unreached = self.floods.iter().filter(|flood| !flood.reached).count();
            self.drops.add(DropReason::NoReceiver, unreached as u64);
        }
        if !self.mirrored.is_empty() {
            copies += self.deliver_mirrored(ports, arena, now);
        }
        copies
    }

    fn deliver_own(&mut self, member: &Member, arena: &mut Arena, now: u64) -> u64 {
        let plain = member.settings.receive_limit.is_none() && !member.settings.mirror.shows_received();
        if plain && self.queued(member.link.slot) == arena.heads.len() {
            return hand_over(member, Picked::All, self.needs, arena, &mut self.scratch);
        }
        self.pick(member.link.slot, |_| false);
        self.deliver_picked(member, arena, now)
    }

    fn deliver_with_floods(&mut self, from: &Member, to: &Member, arena: &mut Arena, now: u64) -> u64 {
        let settings = (&*from.settings, &*to.settings);
        if self.uniform {
            let all = self.floods.first().is_some_and(|flood| may_have(settings, flood));
            self.pick(to.link.slot, |_| all);
        } else {
            self.pick(to.link.slot, |flood| may_have(settings, flood));
        }
        self.deliver_picked(to, arena, now)
    }

    fn deliver_mirrored(&mut self, ports: &Ports, arena: &mut Arena, now: u64) -> u64 {
        self.mirrored.sort_unstable();
        self.mirrored.dedup();
        let mut copies = 0;
        for &slot in &ports.mirrors {
            self.picked.clone_from(&self.mirrored);
            copies += ports.member(slot).map_or(0, |member| self.deliver_picked(member, arena, now));
        }
        copies
    }

    /// Delivers what is picked, within the receiver's limit.
    fn deliver_picked(&mut self, member: &Member, arena: &mut Arena, now: u64) -> u64 {
        if self.picked.is_empty() {
            return 0;
        }
        if member.settings.mirror.shows_received() {
            self.mirrored.extend_from_slice(&self.picked);
        }
        let limited = member.settings.receive_limit.map_or(0, |rate| {
            let before = self.picked.len();
            let mut bucket = member.link.receive_bucket();
            bucket.fill(rate, now);
            self.picked.retain(|&index| bucket.take(arena.heads[index as usize].len));
            (before - self.picked.len()) as u64
        });
        if limited > 0 {
            member.link.drop_received(DropReason::RateLimit, limited);
        }
        if self.picked.is_empty() {
            return limited;
        }
        limited + hand_over(member, Picked::These(&self.picked), self.needs, arena, &mut self.scratch)
    }
}

/// Whether a port may have a frame that another floods.
fn may_have((from, to): (&PortSettings, &PortSettings), flood: &Flood) -> bool {
    let wants = match (&to.mirror, flood.unknown, &to.senders) {
        (Mirror::Destination, _, _)
        | (Mirror::Off | Mirror::Source(_), Unknown::Station, Senders::Only(_)) => false,
        (Mirror::Off | Mirror::Source(_), Unknown::Group, _)
        | (Mirror::Off | Mirror::Source(_), Unknown::Station, Senders::Any) => true,
    };
    wants && to.vlan.carries(flood.vlan) && from.isolation.permits(to.isolation)
}

/// Gives frames to a port, finished as far as it does not do that itself. Gives how many these became.
fn hand_over(
    member: &Member,
    picked: Picked<'_>,
    needs: Needs,
    arena: &mut Arena,
    scratch: &mut Arena,
) -> u64 {
    let link = &member.link;
    // Acquire, with the disconnecting thread's release: who disconnected a port finds it left alone.
    if link.closed.load(Ordering::Acquire) {
        let frames = picked.len(arena) as u64;
        link.drop_received(DropReason::Disconnected, frames);
        return frames;
    }
    let tags = match member.settings.mirror {
        Mirror::Destination => Tags::Keep,
        Mirror::Off | Mirror::Source(_) => member.settings.vlan.untagged().map_or(Tags::Keep, Tags::Without),
    };
    if needs == Needs::default() {
        return link.deliver(arena, picked, tags);
    }
    let takes = link.port.capabilities();
    if needs.checksums && !takes.contains(Capabilities::CHECKSUM) {
        picked.for_each(arena.heads.len(), |index| complete_checksum(arena, index));
    }
    let mut cannot = false;
    if needs.segments || needs.tags {
        picked.for_each(arena.heads.len(), |index| cannot |= !arena.heads[index].is_taken(takes, tags));
    }
    if cannot {
        Finishing { link, takes, tags, scratch, delivered: 0 }.run(arena, picked)
    } else {
        link.deliver(arena, picked, tags)
    }
}

/// Fills in the checksum where the frame is: whoever comes later gets it too.
fn complete_checksum(arena: &mut Arena, index: usize) {
    let (bytes, offload) = arena.frame_mut(index);
    if let (Checksum::Missing { start, field }, None) = (offload.checksum, offload.segmentation) {
        // It fits: that was checked when the frame came in.
        if checksum::complete(bytes, start, field).is_some() {
            offload.checksum = Checksum::Valid;
        }
    }
}

impl Head {
    /// Whether a port that takes so much takes this as it is.
    fn is_taken(&self, takes: Capabilities, tags: Tags) -> bool {
        let tag = tags.shown(self.offload.vlan).is_none() || takes.contains(Capabilities::VLAN);
        tag && self.offload.segmentation.is_none_or(|segmentation| takes.takes(segmentation))
    }
}

/// Frames are made for a port that takes less than they are.
struct Finishing<'a> {
    link: &'a Link,
    takes: Capabilities,
    tags: Tags,
    scratch: &'a mut Arena,
    delivered: u64,
}

impl Finishing<'_> {
    fn run(mut self, arena: &Arena, picked: Picked<'_>) -> u64 {
        self.scratch.clear();
        picked.for_each(arena.heads.len(), |index| self.finish(arena, index));
        self.flush();
        self.delivered
    }

    fn finish(&mut self, arena: &Arena, index: usize) {
        let Head { offload, .. } = arena.heads[index];
        let bytes = arena.bytes_of(index);
        let mut to = Head { start: 0, len: 0, offload };
        to.offload.vlan = self.tags.shown(offload.vlan);
        match offload.segmentation {
            Some(segmentation) if !self.takes.takes(segmentation) => {
                let sums =
                    if self.takes.contains(Capabilities::CHECKSUM) { Sums::Pseudo } else { Sums::Whole };
                to.offload.segmentation = None;
                to.offload.header = match segmentation.ip {
                    IpVersion::V4 => HeaderChecksum::Valid,
                    IpVersion::V6 => HeaderChecksum::Unknown,
                };
                if sums == Sums::Whole {
                    to.offload.checksum = Checksum::Valid;
                }
                // It was looked at when it came in.
                let Some(mut segments) = Segments::new(bytes, segmentation) else { return };
                while let Some(len) = segments.next_len() {
                    self.put(len, to, |segment| segments.write(segment, sums));
                }
            }
            Some(_) | None => self.put(bytes.len(), to, |copy| copy.copy_from_slice(bytes)),
        }
    }

    /// Makes a frame of `len` bytes, which `write` writes, and the tag if it has to be in it.
    fn put(&mut self, len: usize, mut head: Head, write: impl FnOnce(&mut [u8])) {
        let tag = head.offload.vlan.filter(|_| !self.takes.contains(Capabilities::VLAN));
        let room = tag.map_or(0, |_| vlan::TAG_SIZE);
        if self.scratch.slot(len + room).is_err() {
            self.flush();
        }
        let Ok(mut slot) = self.scratch.slot(len + room) else {
            // Longer than any frame may be, with its tag.
            self.link.drop_received(DropReason::TooLong, 1);
            self.delivered += 1;
            return;
        };
        write(&mut slot.bytes_mut()[room..]);
        if let Some(tag) = tag {
            vlan::insert(slot.bytes_mut(), tag);
            head.offload.shift(4);
            head.offload.vlan = None;
        }
        slot.commit(len + room, head.offload);
    }

    fn flush(&mut self) {
        if !self.scratch.heads.is_empty() {
            self.delivered += self.link.deliver(self.scratch, Picked::All, Tags::Keep);
            self.scratch.clear();
        }
    }
}

impl Link {
    /// Calls the port and counts. Gives the number of frames.
    fn deliver(&self, arena: &Arena, picked: Picked<'_>, tags: Tags) -> u64 {
        let frames = arena.frames(picked, tags);
        let asked = frames.len();
        self.account(asked, self.port.deliver(frames));
        asked as u64
    }

    fn drop_received(&self, reason: DropReason, frames: u64) {
        let mut drops = Drops::default();
        drops.add(reason, frames);
        self.counters.add_received(Count::default(), &drops);
    }

    /// Counts what a port says that became of so many frames. What it does not mention was not taken.
    fn account(&self, asked: usize, delivered: Delivered) {
        let Delivered { frames, bytes, filtered, too_long, link_down } = delivered;
        if frames >= asked {
            self.counters.add_delivered(Count { frames: asked as u64, bytes: bytes as u64 });
            return;
        }
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
