//! What went through a port and what did not, so that it balances.
//!
//! For each port, `sent = forwarded + dropped_sent`; over all ports, those that were disconnected included, the sum of
//! `copies` is the sum of `delivered` and `dropped_received`. Both hold whenever no send is under way.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Frames and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Frames.
    pub frames: u64,
    /// Their bytes, as they were handed over: a tag or segment headers that are not in the bytes are not counted.
    pub bytes: u64,
}

/// What one port did, since it was connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStatistics {
    /// What the port gave to the switch.
    pub sent: Count,
    /// Of these, frames that went on to at least one port.
    pub forwarded: u64,
    /// Frames that went to other ports for them: one for each receiver, and one for each segment where the switch cut.
    pub copies: u64,
    /// Of what was sent, what went on to nobody.
    pub dropped_sent: Drops,
    /// What the port took.
    pub delivered: Count,
    /// What was for the port and did not reach it.
    pub dropped_received: Drops,
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Why a frame did not get where it was to go.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $($(#[doc = $doc])+ $name,)+ }

        impl DropReason {
            /// Each of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// A few words.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

drop_reasons! {
    /// Sent: no Ethernet header, or a sender that is a group or zero.
    Malformed = "malformed",
    /// Sent: what its sender says is to be done to the frame does not fit it.
    Offload = "impossible offload",
    /// Sent: a tag that the port may not send, or two of them.
    Vlan = "VLAN",
    /// Sent: the port may not send as that sender, or another port has it for itself.
    Spoofed = "spoofed sender",
    /// Sent: from a DHCP server, which the port may not be, or headers that cannot be seen through.
    DhcpGuard = "DHCP guard",
    /// Sent: from a router, which the port may not be, or headers that cannot be seen through.
    RouterGuard = "router guard",
    /// Sent: the receiver's port is one that the sender's may not talk to.
    Isolated = "isolated",
    /// Sent: it is for the other end of a wire, such as a spanning tree's messages.
    LinkLocal = "link local",
    /// Sent: by a mirror's destination.
    MirrorPort = "mirror destination",
    /// Sent: more for everybody than the port may send.
    FloodLimit = "flood limit",
    /// Sent or received: more bytes than the port may.
    RateLimit = "rate limit",
    /// Sent: the receiver is at the port that it came from.
    SamePort = "same port",
    /// Sent: nobody else is there to get it.
    NoReceiver = "no receiver",
    /// Sent: ports that send when they are delivered to do so in a circle.
    Loop = "loop",
    /// Sent or received: the port is disconnected.
    Disconnected = "disconnected",
    /// Received: the receiver has no room.
    Full = "no room",
    /// Received: the receiver does not want it.
    Filtered = "filtered",
    /// Received: it is above the receiver's MTU.
    TooLong = "too long",
    /// Received: the receiver's link is down.
    LinkDown = "link down",
}

impl fmt::Display for DropReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text())
    }
}

const REASONS: usize = DropReason::ALL.len();

/// Frames that were dropped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops([u64; REASONS]);

impl Drops {
    /// How many for this reason.
    pub const fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// How many in all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons for which there are any.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().copied().zip(self.0).filter(|&(_, count)| count > 0)
    }

    pub(super) const fn add(&mut self, reason: DropReason, frames: u64) {
        self.0[reason as usize] += frames;
    }
}

impl std::ops::AddAssign for PortStatistics {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.forwarded += other.forwarded;
        self.copies += other.copies;
        self.dropped_sent += other.dropped_sent;
        self.delivered += other.delivered;
        self.dropped_received += other.dropped_received;
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

impl std::ops::AddAssign for Drops {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }
}

/// A port's counters. Senders and those who deliver to it are different threads, so they write to different lines.
#[derive(Debug, Default)]
pub(super) struct Counters {
    sending: Sending,
    receiving: Receiving,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Sending {
    sent: AtomicCount,
    forwarded: AtomicU64,
    copies: AtomicU64,
    dropped: AtomicDrops,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Receiving {
    delivered: AtomicCount,
    dropped: AtomicDrops,
}

#[derive(Debug, Default)]
struct AtomicCount {
    frames: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct AtomicDrops([AtomicU64; REASONS]);

// Relaxed: the counts stand for nothing but themselves.
impl Counters {
    pub(super) fn add_sent(&self, sent: Count, forwarded: u64, copies: u64, dropped: &Drops) {
        self.sending.sent.add(sent);
        self.sending.forwarded.fetch_add(forwarded, Ordering::Relaxed);
        self.sending.copies.fetch_add(copies, Ordering::Relaxed);
        if forwarded < sent.frames {
            self.sending.dropped.add(dropped);
        }
    }

    pub(super) fn add_delivered(&self, delivered: Count) {
        self.receiving.delivered.add(delivered);
    }

    pub(super) fn add_received(&self, delivered: Count, dropped: &Drops) {
        self.receiving.delivered.add(delivered);
        self.receiving.dropped.add(dropped);
    }

    pub(super) fn add(&self, statistics: &PortStatistics) {
        let PortStatistics { sent, forwarded, copies, dropped_sent, delivered, dropped_received } =
            statistics;
        self.add_sent(*sent, *forwarded, *copies, dropped_sent);
        self.add_received(*delivered, dropped_received);
    }

    pub(super) fn read(&self) -> PortStatistics {
        PortStatistics {
            sent: self.sending.sent.read(),
            forwarded: self.sending.forwarded.load(Ordering::Relaxed),
            copies: self.sending.copies.load(Ordering::Relaxed),
            dropped_sent: self.sending.dropped.read(),
            delivered: self.receiving.delivered.read(),
            dropped_received: self.receiving.dropped.read(),
        }
    }
}

impl AtomicCount {
    fn add(&self, count: Count) {
        if count.frames > 0 {
            self.frames.fetch_add(count.frames, Ordering::Relaxed);
            self.bytes.fetch_add(count.bytes, Ordering::Relaxed);
        }
    }

    fn read(&self) -> Count {
        Count { frames: self.frames.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

impl AtomicDrops {
    fn add(&self, drops: &Drops) {
        for (sum, &more) in self.0.iter().zip(&drops.0) {
            if more > 0 {
                sum.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    fn read(&self) -> Drops {
        Drops(std::array::from_fn(|reason| self.0[reason].load(Ordering::Relaxed)))
    }
}
