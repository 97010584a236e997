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
