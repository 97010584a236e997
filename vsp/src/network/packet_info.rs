//! What goes beside a frame to the guest, in the form of RNDIS.

use vmbus_core::network::{InfoType, LargeSend, PacketInfo, ReceiveChecksum, RscFragment};

use super::switch::{Checksum, Frame, HeaderChecksum, IpVersion};

/// Bytes of one piece of information: all that are sent have four bytes of data.
const PIECE: usize = 16;
/// Pieces of one frame at most: tag, checksums, hash, segments, place in a frame.
const MOST_PIECES: usize = 5;

/// The packet info of one frame.
pub(super) struct Infos {
    bytes: [u8; MOST_PIECES * PIECE],
    len: usize,
    /// Without what is about one piece of a frame.
    common: usize,
}

impl Infos {
    pub(super) const MOST: usize = MOST_PIECES * PIECE;

    /// What the guest is told of a frame.
    #[inline]
    pub(super) fn of_received(frame: &Frame<'_>, hash: Option<u32>, in_pieces: bool) -> Self {
        let mut infos = Self { bytes: [0; Self::MOST], len: 0, common: 0 };
        let offload = &frame.offload;
        if let Some(vlan) = offload.vlan {
            infos.push(PacketInfo::Vlan(vlan));
        }
        let checksum = received_checksum(frame);
        if !checksum.is_empty() {
            infos.push(PacketInfo::ReceiveChecksum(checksum));
        }
        if let Some(hash) = hash {
            infos.push(PacketInfo::Hash(hash));
        }
        if let Some(segmentation) = offload.segmentation.filter(|_| in_pieces) {
            // For those who send it on: drivers that do not know this here pass over it.
            infos.push(PacketInfo::LargeSend(LargeSend {
                segment_size: segmentation.segment_size.into(),
                tcp_offset: segmentation.tcp_offset,
                version_2: true,
                ipv6: segmentation.ip == IpVersion::V6,
            }));
        }
        infos.common = infos.len;
        infos
    }

    /// Makes it that of one piece of the frame.
    pub(super) fn piece(&mut self, first: bool, last: bool, packet: u16) {
        self.len = self.common;
        self.push(PacketInfo::Rsc(RscFragment { sub_allocation: true, first, last, packet }));
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    #[inline]
    fn push(&mut self, info: PacketInfo<'_>) {
        if let Some((bytes, _)) = self.bytes[self.len..].split_first_chunk_mut::<PIECE>()
            && let Some(piece) = info.encode()
        {
            *bytes = piece;
            self.len += PIECE;
        }
    }
}

/// What is known about a frame's checksums, in words of the guest.
#[inline]
fn received_checksum(frame: &Frame<'_>) -> ReceiveChecksum {
    let mut known = ReceiveChecksum::empty();
    match frame.offload.header {
        HeaderChecksum::Valid => known |= ReceiveChecksum::IP_SUCCEEDED,
        HeaderChecksum::Unknown | HeaderChecksum::Missing => {}
    }
    match frame.offload.checksum {
        Checksum::Unknown => {}
        Checksum::Valid => known |= transport(frame.bytes),
        Checksum::Missing { field: UDP_FIELD, .. } => {
            known |= ReceiveChecksum::UDP_SUCCEEDED | ReceiveChecksum::LOOPBACK;
        }
        Checksum::Missing { .. } => {
            known |= ReceiveChecksum::TCP_SUCCEEDED
                | ReceiveChecksum::TCP_VALUE_INVALID
                | ReceiveChecksum::LOOPBACK;
        }
    }
    known
}

/// Where UDP has its checksum.
const UDP_FIELD: u16 = 6;

/// Which of the two a checksum is that is right.
fn transport(frame: &[u8]) -> ReceiveChecksum {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let protocol = match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23),
        Some([0x86, 0xdd]) => frame.get(20),
        Some(_) | None => None,
    };
    match protocol {
        Some(&TCP) => ReceiveChecksum::TCP_SUCCEEDED,
        Some(&UDP) => ReceiveChecksum::UDP_SUCCEEDED,
        Some(_) | None => ReceiveChecksum::empty(),
    }
}

const _: () = assert!(InfoType::TCP_IP_CHECKSUM.0 == 0);
