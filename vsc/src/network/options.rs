//! How a NIC is opened, and what it turns out to be.

use std::ops::RangeInclusive;

use vmbus_core::network::Version;
use vmbus_core::network::ndis::{ChecksumV4, ChecksumV6, Offload, PacketFilter, RssCapabilities};

/// Bytes of an Ethernet header.
pub(super) const ETHERNET_HEADER: u32 = 14;
/// Bytes of a VLAN tag, which a frame may have beyond its MTU.
const VLAN_TAG: u32 = 4;
/// What the smallest and the largest MTU are.
const MTUS: RangeInclusive<u32> = 68..=65521;

/// How a NIC is opened. The default takes frames of 1500 bytes to this address, to groups and to everybody.
#[derive(Clone, Debug)]
pub struct NicOptions {
    pub(super) versions: RangeInclusive<Version>,
    pub(super) mtu: u32,
    pub(super) filter: PacketFilter,
    pub(super) receive_bytes: usize,
    pub(super) send_bytes: usize,
    pub(super) large_frames: usize,
    pub(super) ring_pages: usize,
    pub(super) coalescing: bool,
}

impl Default for NicOptions {
    fn default() -> Self {
        Self {
            versions: Version::V1..=Version::V6_1,
            mtu: 1500,
            filter: PacketFilter::DIRECTED | PacketFilter::ALL_MULTICAST | PacketFilter::BROADCAST,
            receive_bytes: 2 << 20,
            send_bytes: 1 << 20,
            large_frames: 16,
            ring_pages: 32,
            coalescing: false,
        }
    }
}

impl NicOptions {
    /// The usual way.
    pub fn new() -> Self {
        Self::default()
    }

    /// Versions to propose, newest first; all without this.
    pub fn versions(mut self, versions: RangeInclusive<Version>) -> Self {
        self.versions = versions;
        self
    }

    /// Longest packet without its Ethernet header, 68 to 65521 bytes; 1500 without this. A provider that does not take
    /// it says what it takes instead: [`NicInfo::mtu`].
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = bytes.clamp(*MTUS.start(), *MTUS.end());
        self
    }

    /// Which frames are wanted; empty for none until [`Nic::set_filter`](super::Nic::set_filter).
    pub fn filter(mut self, filter: PacketFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Size of the buffer that frames are delivered to, in bytes; 2 MiB without this. Each frame that waits or is held
    /// keeps a piece of it, which has room for the MTU.
    pub fn receive_bytes(mut self, bytes: usize) -> Self {
        self.receive_bytes = bytes;
        self
    }

    /// Size of the buffer that frames are sent from, in bytes; 1 MiB without this.
    pub fn send_bytes(mut self, bytes: usize) -> Self {
        self.send_bytes = bytes;
        self
    }

    /// How many frames that are longer than a section of the send buffer may be under way: large sends, each of which
    /// has 68 KiB of the guest's memory; 16 without this, 0 for a guest that has none.
    pub fn large_frames(mut self, count: usize) -> Self {
        self.large_frames = count;
        self
    }

    /// Data pages of each ring; 32 (128 KiB) without this.
    pub fn ring_pages(mut self, pages: usize) -> Self {
        self.ring_pages = pages.max(1);
        self
    }

    /// Takes several segments of a flow as one long frame, where the provider coalesces (version 6.1).
    pub fn coalescing(mut self) -> Self {
        self.coalescing = true;
        self
    }
}

/// What a NIC is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicInfo {
    /// The network protocol version that was agreed.
    pub version: Version,
    /// Its Ethernet address.
    pub address: [u8; 6],
    /// Longest packet without its Ethernet header, in bytes.
    pub mtu: u32,
    /// What the provider does for its driver.
    pub offloads: Offloads,
    /// Queues that it can have ([`Nic::widen`](super::Nic::widen)), at least 1.
    pub queues: u32,
    /// Entries of the table that receive-side scaling takes.
    pub rss_entries: u16,
    /// Frames that may wait to be received, or be held, at a time.
    pub pieces: u32,
    /// Bytes of a section of the send buffer; 0 if the provider takes none.
    pub section_size: u32,
}

impl NicInfo {
    /// Longest frame that is sent or comes as it is: the MTU with an Ethernet header and a VLAN tag, in bytes.
    pub fn longest_frame(&self) -> usize {
        usize::try_from(self.mtu.saturating_add(ETHERNET_HEADER + VLAN_TAG)).unwrap_or(usize::MAX)
    }
}

/// What a provider does for its driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// IPv4 checksums that it fills in.
    pub transmit_v4: ChecksumV4,
    /// IPv6 checksums that it fills in.
    pub transmit_v6: ChecksumV6,
    /// IPv4 checksums that it looks at.
    pub receive_v4: ChecksumV4,
    /// IPv6 checksums that it looks at.
    pub receive_v6: ChecksumV6,
    /// The longest IPv4 packet that it cuts into segments, in bytes; 0: it cuts none.
    pub large_send_v4: u32,
    /// The same for IPv6.
    pub large_send_v6: u32,
}

impl Offloads {
    pub(super) fn of(offload: &Offload) -> Self {
        Self {
            transmit_v4: ChecksumV4::from_bits_retain(offload.v4_transmit.get()),
            transmit_v6: ChecksumV6::from_bits_retain(offload.v6_transmit.get()),
            receive_v4: ChecksumV4::from_bits_retain(offload.v4_receive.get()),
            receive_v6: ChecksumV6::from_bits_retain(offload.v6_receive.get()),
            large_send_v4: offload.lso_v4_max_size.get(),
            large_send_v6: offload.lso_v6_max_size.get(),
        }
    }
}

/// What a provider says of queues.
pub(super) fn queues(capabilities: &RssCapabilities) -> (u32, u16) {
    (capabilities.queues.get().max(1), capabilities.table_entries.get())
}
