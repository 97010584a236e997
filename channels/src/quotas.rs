//! Bounds of everything that a peer can make the root hold or do, and how far they are used.
//!
//! The table with what happens beyond each is in `docs/src/quotas.md`. What a bound protects is told by its name; that
//! it holds, and that other partitions go on meanwhile, by a test.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmbus_core::server;

/// What one partition can make the root hold. The default is safe for partitions that nobody trusts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quotas {
    /// What the protocol's state machine holds: channel ids, page lists, shared pages, questions, connects.
    pub protocol: server::Quotas,
    /// Channels that are open at the same time, sub-channels included; an open beyond is refused.
    pub open_channels: usize,
    /// Sub-channels of all its devices, rescinded ones that it has not released included. When a session asks for more,
    /// none of those it asked for are offered.
    pub subchannels: usize,
    /// Bytes of the rings of all open channels, control pages included; an open beyond is refused.
    pub ring_bytes: u64,
    /// Requests that may be in flight over all its open channels. Each channel is given its part when it
    /// opens: as many as its device allows while there is plenty, then less; with none left the open is refused. What
    /// is beyond a channel's part stays in its ring.
    pub requests: usize,
    /// Kernel mappings that its rings may take; an open beyond is refused.
    pub ring_maps: usize,
    /// Bytes of memory with which it may attach; one with more is refused.
    pub memory: u64,
    /// Event areas of its own, each of which costs the root a descriptor; a partition with more is refused.
    pub event_areas: u16,
    /// Messages that wait for it beyond those in its ring; with more it is let go, as nothing may be lost. The offers
    /// of all channels must fit, which come at once.
    pub messages: usize,
    /// Messages of a base VMM that wait for the root before the VMM is told to slow down.
    pub posts: u32,
    /// Units of work that it may cause each second in the long run; beyond, it is read on later. A message is one, and
    /// so is each thing that it makes the root do; what breaks a rule is 50, a broken ring 500.
    pub work_per_second: u32,
    /// Units of work that it may cause at once, after a time of rest.
    pub work_at_once: u32,
    /// How long a session may go on after its channel has ended. Then it is stopped where it next waits; a partition
    /// that has left is forgotten after twice that time, whatever its sessions do.
    pub grace: Duration,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            protocol: server::Quotas::default(),
            open_channels: 2047,
            subchannels: 512,
            ring_bytes: 1 << 30,
            requests: 256 << 10,
            ring_maps: 16 << 10,
            memory: 1 << 40,
            event_areas: 16,
            messages: 4096,
            posts: 1024,
            work_per_second: 10_000,
            work_at_once: 40_000,
            grace: Duration::from_secs(30),
        }
    }
}

/// What a channel is sure of, if all that may be open can have as much.
const REQUESTS_FOR_EACH: usize = 32;
/// One channel has no more than one in so many of what is not kept for those that may still open.
const PART_OF_REQUESTS: usize = 64;

impl Quotas {
    /// How many requests may be in flight of a channel that opens while `open` others are and have been promised
    /// `promised` requests between them, and whose device can do with `wanted`. None: it must not open.
    ///
    /// As long as there is plenty a channel has what it wants; beyond, each next one has a little less, so that
    /// something is left for all that may be open. What is promised is never more than there is, and whoever has it
    /// waits for nobody else: a channel that keeps its requests takes none from others.
    pub(crate) fn requests_of(&self, wanted: usize, open: usize, promised: usize) -> Option<usize> {
        let left = self.requests.saturating_sub(promised);
        let for_each = (self.requests / self.open_channels.max(1)).clamp(1, REQUESTS_FOR_EACH);
        let to_come = self.open_channels.saturating_sub(open).max(1);
        let spare = left.saturating_sub(for_each.saturating_mul(to_come));
        let part = for_each.saturating_add(spare / PART_OF_REQUESTS).min(wanted).min(left);
        // Those that carry a stream want none.
        (part > 0 || wanted == 0).then_some(part)
    }
}

/// What all partitions that attach over sockets can make the root hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusQuotas {
    /// Partitions at a time; one more is refused.
    pub partitions: usize,
    /// Partitions of one user at a time; one more is refused.
    pub partitions_of_user: usize,
    /// How often one user may attach or ask in the long run; more often is refused.
    pub attach_per_second: u32,
    /// How often one user may attach or ask at once, after a time of rest.
    pub attach_at_once: u32,
}

impl Default for BusQuotas {
    fn default() -> Self {
        Self { partitions: 512, partitions_of_user: 256, attach_per_second: 200, attach_at_once: 1000 }
    }
}

impl From<server::Quotas> for Quotas {
    fn from(protocol: server::Quotas) -> Self {
        Self { protocol, ..Self::default() }
    }
}

/// How far one bound is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// What is bounded, for people; the same words in faults and in `docs/src/quotas.md`.
    pub name: String,
    /// At this moment.
    pub now: u64,
    /// The most there ever was.
    pub most: u64,
    /// The bound.
    pub limit: u64,
}

/// One bound's metric: what is used, and its high-water mark.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gauge {
    pub(crate) now: u64,
    most: u64,
}

impl Gauge {
    pub(crate) fn set(&mut self, now: u64) {
        self.now = now;
        self.most = self.most.max(now);
    }

    pub(crate) fn add(&mut self, more: u64) {
        self.set(self.now.saturating_add(more));
    }

    pub(crate) fn sub(&mut self, less: u64) {
        self.now = self.now.saturating_sub(less);
    }

    pub(crate) fn used(&self, name: impl ToString, limit: u64) -> Used {
        Used { name: name.to_string(), now: self.now, most: self.most, limit }
    }
}

/// A count as metrics have it.
pub(crate) fn count(of: usize) -> u64 {
    u64::try_from(of).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each channel has of those that open one after the other, until one is refused.
    fn parts(quotas: Quotas, wanted: usize) -> Vec<usize> {
        let (mut parts, mut promised) = (Vec::new(), 0);
        while let Some(part) = quotas.requests_of(wanted, parts.len(), promised) {
            promised += part;
            parts.push(part);
            if parts.len() == quotas.open_channels {
                break;
            }
        }
        assert!(promised <= quotas.requests, "{promised} promised");
        parts
    }

    #[test]
    fn the_first_channels_have_all_they_want_and_the_last_enough_to_work() {
        let parts = parts(Quotas::default(), 1024);
        assert_eq!(parts.len(), 2047);
        assert!(parts[..100].iter().all(|&part| part == 1024));
        assert!(parts.iter().all(|&part| part >= REQUESTS_FOR_EACH));
    }

    #[test]
    fn of_few_requests_each_channel_has_some_until_there_are_none() {
        let few = |requests, open_channels| Quotas { requests, open_channels, ..Quotas::default() };
        assert_eq!(parts(few(64, 8), 1024), [8; 8]);
        assert_eq!(parts(few(64, 8), 3), [3; 8]);
        assert_eq!(parts(few(3, 8), 1024), [1; 3]);
        assert!(parts(few(0, 8), 1024).is_empty());
        assert_eq!(parts(few(0, 8), 0), [0; 8], "streams");
        // Channels opened under wider bounds have more than there is now.
        assert_eq!(few(64, 8).requests_of(1024, 3, 500), None);
    }
}
