//! The virtio header before each frame of a TAP interface, and what it means to a switch.
//!
//! The layout is the 10 bytes of `virtio_net_hdr` in the machine's own byte order, as `linux/if_tun.h` and
//! `linux/virtio_net.h` have it.

use vmbus_partition::tap::HEADER;
use vmbus_vsp::network::switch::{Checksum, IpVersion, Offload, Segmentation};

const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
/// Beside the two: the first segment says that congestion was seen, and only the first.
const GSO_ECN: u8 = 0x80;

/// Where the data offset and the flags are in a TCP header, and one of these.
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const CONGESTION_WINDOW_REDUCED: u8 = 0x80;

/// What a header says of its frame; `None` if it asks for what was never agreed on.
pub(super) fn parse(header: &[u8; HEADER]) -> Option<Offload> {
    let [flags, gso, _, _, size_a, size_b, start_a, start_b, field_a, field_b] = *header;
    let start = u16::from_ne_bytes([start_a, start_b]);
    let ip = match gso & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCP_V4 => Some(IpVersion::V4),
        GSO_TCP_V6 => Some(IpVersion::V6),
        _ => return None,
    };
    let checksum = if flags & NEEDS_CHECKSUM != 0 {
        Checksum::Missing { start, field: u16::from_ne_bytes([field_a, field_b]) }
    } else if flags & DATA_VALID != 0 {
        Checksum::Valid
    } else {
        Checksum::Unknown
    };
    if ip.is_some() && !checksum.is_missing() {
        return None;
    }
    let segment_size = u16::from_ne_bytes([size_a, size_b]);
    let segmentation = ip.map(|ip| Segmentation { segment_size, tcp_offset: start, ip });
    Some(Offload { checksum, segmentation, ..Offload::NONE })
}

/// The header for a frame.
pub(super) fn emit(frame: &[u8], offload: Offload) -> [u8; HEADER] {
    let (mut flags, mut gso, mut headers, mut size, mut start, mut field) = (0, GSO_NONE, 0, 0, 0, 0);
    match offload.checksum {
        Checksum::Unknown => {}
        Checksum::Valid => flags = DATA_VALID,
        Checksum::Missing { start: at, field: within } => {
            (flags, start, field) = (NEEDS_CHECKSUM, at, within)
        }
    }
    if let Some(segmentation) = offload.segmentation {
        let tcp = frame.get(usize::from(segmentation.tcp_offset)..).unwrap_or_default();
        let byte = |at: usize| tcp.get(at).copied().unwrap_or(0);
        gso = match segmentation.ip {
            IpVersion::V4 => GSO_TCP_V4,
            IpVersion::V6 => GSO_TCP_V6,
        };
        if byte(TCP_FLAGS) & CONGESTION_WINDOW_REDUCED != 0 {
            gso |= GSO_ECN;
        }
        headers = segmentation.tcp_offset.saturating_add(u16::from(byte(TCP_DATA_OFFSET) >> 4) * 4);
        size = segmentation.segment_size;
        (flags, start, field) = (NEEDS_CHECKSUM, segmentation.tcp_offset, 16);
    }
    let [headers, size, start, field] = [headers, size, start, field].map(u16::to_ne_bytes);
    [flags, gso, headers[0], headers[1], size[0], size[1], start[0], start[1], field[0], field[1]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_frame_needs_survives_the_way_through_the_kernels_header() {
        let mut frame = vec![0; 200];
        frame[34 + TCP_DATA_OFFSET] = 8 << 4;
        let large = |ip| Offload {
            checksum: Checksum::tcp(34),
            segmentation: Some(Segmentation { segment_size: 1448, tcp_offset: 34, ip }),
            ..Offload::NONE
        };
        let all = [
            Offload::NONE,
            Offload { checksum: Checksum::Valid, ..Offload::NONE },
            Offload { checksum: Checksum::udp(54), ..Offload::NONE },
            large(IpVersion::V4),
            large(IpVersion::V6),
        ];
        for offload in all {
            assert_eq!(parse(&emit(&frame, offload)), Some(offload));
        }
        let header = emit(&frame, large(IpVersion::V4));
        assert_eq!(u16::from_ne_bytes([header[2], header[3]]), 34 + 32, "length of all headers");
        frame[34 + TCP_FLAGS] = CONGESTION_WINDOW_REDUCED;
        assert_eq!(emit(&frame, large(IpVersion::V4))[1], GSO_TCP_V4 | GSO_ECN);
    }

    #[test]
    fn a_header_that_asks_for_what_was_not_agreed_on_is_refused() {
        for gso in [2, 3, 5, 0x7f] {
            assert_eq!(parse(&[NEEDS_CHECKSUM, gso, 0, 0, 0, 0, 0, 0, 0, 0]), None, "{gso}");
        }
        assert_eq!(parse(&[0, GSO_TCP_V4, 0, 0, 0, 0, 0, 0, 0, 0]), None, "segments want a checksum each");
    }
}
