//! What a frame still needs, or what is known about it, without being in its bytes.

pub use vmbus_core::network::Vlan;

use super::ip;

/// What travels beside a frame. Without any of it the frame is whole, as it would be on a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The tag that is not in the bytes. With identifier 0 it is a priority only.
    pub vlan: Option<Vlan>,
    /// The IPv4 header's checksum.
    pub header: HeaderChecksum,
    /// The checksum of TCP or UDP.
    pub checksum: Checksum,
    /// The frame is longer than a wire carries, and is to be cut into segments.
    pub segmentation: Option<Segmentation>,
    /// Hash of its flow, as the sender computed it for its own queues.
    pub hash: Option<u32>,
}

impl Offload {
    /// Nothing: a frame as it would be on a wire.
    pub const NONE: Self = Self {
        vlan: None,
        header: HeaderChecksum::Unknown,
        checksum: Checksum::Unknown,
        segmentation: None,
        hash: None,
    };
}

impl Offload {
    /// So many bytes were put in before what the offsets point at, or with a negative number taken out.
    pub(super) fn shift(&mut self, bytes: i16) {
        if let Checksum::Missing { start, .. } = &mut self.checksum {
            *start = start.saturating_add_signed(bytes);
        }
        if let Some(segmentation) = &mut self.segmentation {
            segmentation.tcp_offset = segmentation.tcp_offset.saturating_add_signed(bytes);
        }
    }
}

/// What is known about an IPv4 header's checksum. Frames that come out of the switch have it in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderChecksum {
    /// Nobody has looked, or the frame is not IPv4.
    #[default]
    Unknown,
    /// It is right.
    Valid,
    /// It is to be filled in; the switch does so whoever the receivers are.
    Missing,
}

/// What is known about a TCP or UDP checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Nobody has looked.
    #[default]
    Unknown,
    /// It is right.
    Valid,
    /// It is to be filled in: the ones' complement sum of all bytes from `start` to the end of the packet, where the
    /// field itself holds the sum of the pseudo header. (This is virtio's form.)
    Missing {
        /// Where the TCP or UDP header begins in the frame.
        start: u16,
        /// Where the field is in that header: 16 in TCP's, 6 in UDP's.
        field: u16,
    },
}

impl Checksum {
    /// TCP's is to be filled in; its header begins at `start`.
    pub const fn tcp(start: u16) -> Self {
        Self::Missing { start, field: 16 }
    }

    /// UDP's is to be filled in; its header begins at `start`.
    pub const fn udp(start: u16) -> Self {
        Self::Missing { start, field: 6 }
    }

    /// Whether it is to be filled in.
    pub const fn is_missing(self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    /// Whether it is that of the frame's own TCP or UDP header, or not to be filled in. The frame has so many bytes of
    /// Ethernet header, tags included.
    #[inline]
    pub(in crate::network) fn is_where_it_belongs(self, frame: &[u8], ethernet: usize) -> bool {
        let Self::Missing { start, field } = self else { return true };
        let (start, field) = (usize::from(start), usize::from(field));
        let belongs = match ip::transport(frame, ethernet) {
            Some((ip::TCP, at)) => (at, 16) == (start, field),
            Some((ip::UDP, at)) => (at, 6) == (start, field),
            Some(_) | None => false,
        };
        belongs && start + field + 2 <= frame.len()
    }
}

/// How a frame is to be cut into TCP segments.
///
/// Senders give the frame with lengths, header checksum and pseudo header sum in any state; the switch puts them right
/// before anybody sees it. What comes out of the switch has the whole frame's lengths in its IP header, the IPv4 header
/// checksum in place, and in the TCP checksum's field the sum of the pseudo header with the whole length;
/// [`Offload::checksum`] says [`Checksum::Missing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Payload bytes of each segment but the last.
    pub segment_size: u16,
    /// Where the TCP header begins in the frame.
    pub tcp_offset: u16,
    /// What the frame is.
    pub ip: IpVersion,
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// 4.
    V4,
    /// 6.
    V6,
}

bitflags::bitflags! {
    /// What a port takes as it is. The switch does everything else in software before it delivers.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Capabilities: u8 {
        /// Frames whose TCP or UDP checksum is [missing](Checksum::Missing).
        const CHECKSUM = 0x01;
        /// IPv4 frames with [`Segmentation`]. It takes missing TCP checksums of these.
        const SEGMENTATION_V4 = 0x02;
        /// IPv6 frames with [`Segmentation`]. It takes missing TCP checksums of these.
        const SEGMENTATION_V6 = 0x04;
        /// Tags beside the frame, in [`Offload::vlan`]. Without it they are put into the frame. Only a port in trunk
        /// mode and a mirror's destination ever see one.
        const VLAN = 0x08;
    }
}

impl Capabilities {
    /// Whether a frame that is to be cut so is taken whole.
    pub(super) const fn takes(self, segmentation: Segmentation) -> bool {
        match segmentation.ip {
            IpVersion::V4 => self.contains(Self::SEGMENTATION_V4),
            IpVersion::V6 => self.contains(Self::SEGMENTATION_V6),
        }
    }
}
