//! Frames between the kernel's words for what they still need and a NIC's.

use vmbus_core::network::{LargeSend, ReceiveChecksum, TransmitChecksum, Vlan};
use vmbus_vsc::{NicInfo, ReceivedFrame, TransmitInfo};
use vmbus_vsp::network::switch::{Batch, Checksum, Frame, IpVersion, Offload, Segmentation};

/// Two addresses.
const ADDRESSES: usize = 12;
const ETHERNET_HEADER: usize = 14;
const TAG_TYPE: [u8; 2] = [0x81, 0x00];
const IPV6_TYPE: [u8; 2] = [0x86, 0xdd];
/// Protocols of IP, and the headers of IPv6 that may come before one: for each hop, for routers, for the destination.
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_OPTIONS: [u8; 3] = [0, 43, 60];
/// Where TCP and UDP have their checksums.
const TCP_FIELD: u16 = 16;
const UDP_FIELD: u16 = 6;
/// Parts of a TCP header.
const SEQUENCE: usize = 4;
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Where IPv4 has its identification, from its header's start.
const IDENTIFICATION: usize = 4;

/// Frames on their way to a NIC.
#[derive(Debug)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    /// Where each frame ends, and what it needs.
    frames: Vec<(usize, TransmitInfo)>,
    /// The longest frames that the NIC cuts into segments, for IPv4 and for IPv6.
    longest: [usize; 2],
    /// The longest of all others.
    longest_plain: usize,
}

impl Outgoing {
    pub(super) fn new(info: &NicInfo) -> Self {
        let longest = [info.offloads.large_send_v4, info.offloads.large_send_v6]
            .map(|packet| usize::try_from(packet).unwrap_or(usize::MAX).saturating_add(ETHERNET_HEADER));
        Self { bytes: Vec::new(), frames: Vec::new(), longest, longest_plain: info.longest_frame() }
    }

    /// Takes these frames instead of those before, without what the NIC does not send: its MTU may be another than the
    /// interface's for a second.
    pub(super) fn translate(&mut self, batch: &Batch) {
        self.bytes.clear();
        self.frames.clear();
        for frame in batch.frames() {
            match frame.offload.segmentation {
                Some(segmentation) => self.add_large(frame.bytes, segmentation),
                None if frame.bytes.len() > self.longest_plain => {
                    tracing::debug!(len = frame.bytes.len(), "a frame that is too long for the NIC");
                }
                None => self.add(&[frame.bytes], checksum(&frame)),
            }
        }
    }

    /// The frames, with what the NIC is to do with each.
    pub(super) fn frames(&self) -> Vec<(&[u8], TransmitInfo)> {
        let mut start = 0;
        let frame = |&(end, info): &(usize, TransmitInfo)| {
            let frame = &self.bytes[start..end];
            start = end;
            (frame, info)
        };
        self.frames.iter().map(frame).collect()
    }

    fn add(&mut self, parts: &[&[u8]], info: TransmitInfo) {
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.frames.push((self.bytes.len(), info));
    }

    /// Adds a large send, as several smaller ones if it is larger than the NIC takes.
    fn add_large(&mut self, frame: &[u8], segmentation: Segmentation) {
        let longest = match segmentation.ip {
            IpVersion::V4 => self.longest[0],
            IpVersion::V6 => self.longest[1],
        };
        let info = TransmitInfo {
            large_send: Some(LargeSend {
                segment_size: segmentation.segment_size.into(),
                tcp_offset: segmentation.tcp_offset,
                version_2: true,
                ipv6: segmentation.ip == IpVersion::V6,
            }),
            ..TransmitInfo::default()
        };
        let tcp = usize::from(segmentation.tcp_offset);
        let words = frame.get(tcp + DATA_OFFSET).map_or(0, |byte| usize::from(byte >> 4));
        let headers = tcp + 4 * words;
        let segment = usize::from(segmentation.segment_size).max(1);
        let room = longest.saturating_sub(headers) / segment * segment;
        if frame.len() <= longest || room == 0 || words < 5 || frame.len() <= headers {
            return self.add(&[frame], info);
        }
        let (headers, payload) = frame.split_at(headers);
        let parts = payload.len().div_ceil(room);
        for (number, part) in payload.chunks(room).enumerate() {
            let start = self.bytes.len();
            self.add(&[headers, part], info);
            let header = &mut self.bytes[start..start + headers.len()];
            let offset = u32::try_from(number * room).unwrap_or(u32::MAX);
            add_u32(&mut header[tcp + SEQUENCE..], offset);
            if number > 0 {
                header[tcp + FLAGS] &= !CWR;
            }
            if number + 1 < parts {
                header[tcp + FLAGS] &= !(FIN | PSH);
            }
            if segmentation.ip == IpVersion::V4 {
                let ip = ip_header(header);
                let segments = u16::try_from(number * room / segment).unwrap_or(u16::MAX);
                add_u16(&mut header[ip + IDENTIFICATION..], segments);
            }
        }
        // Lengths and checksums are the NIC's to fill in, in each part.
    }
}

/// Where the IP header of a frame begins.
fn ip_header(frame: &[u8]) -> usize {
    if frame.get(ADDRESSES..ETHERNET_HEADER) == Some(&TAG_TYPE) {
        ETHERNET_HEADER + 4
    } else {
        ETHERNET_HEADER
    }
}

fn add_u32(bytes: &mut [u8], amount: u32) {
    if let Some(number) = bytes.first_chunk_mut() {
        *number = u32::from_be_bytes(*number).wrapping_add(amount).to_be_bytes();
    }
}

fn add_u16(bytes: &mut [u8], amount: u16) {
    if let Some(number) = bytes.first_chunk_mut() {
        *number = u16::from_be_bytes(*number).wrapping_add(amount).to_be_bytes();
    }
}

/// Which checksum the NIC is to fill in.
fn checksum(frame: &Frame<'_>) -> TransmitInfo {
    let Checksum::Missing { start, field } = frame.offload.checksum else { return TransmitInfo::default() };
    let ip = ip_header(frame.bytes);
    let ipv6 = frame.bytes.get(ip - 2..ip) == Some(&IPV6_TYPE);
    let checksum = TransmitChecksum {
        ipv4: !ipv6,
        ipv6,
        tcp: field == TCP_FIELD,
        udp: field == UDP_FIELD,
        ip_header: false,
        transport_offset: start,
    };
    TransmitInfo { checksum: Some(checksum), ..TransmitInfo::default() }
}

/// A frame of a NIC, copied to `buffer`, and what the kernel is told of it. `None`: it is there no more.
pub(super) fn incoming<'a>(frame: &ReceivedFrame, buffer: &'a mut [u8]) -> Option<(&'a [u8], Offload)> {
    let info = frame.info();
    let (whole, tag) = match info.vlan {
        None => (buffer.get_mut(..frame.len())?, 0),
        // The kernel wants the tag in its place.
        Some(vlan) => {
            let whole = buffer.get_mut(..frame.len() + 4)?;
            let (addresses, rest) = whole.split_at_mut(ADDRESSES);
            frame.read(0, addresses).ok()?;
            rest[..4].copy_from_slice(&tag_of(vlan));
            (whole, 4)
        }
    };
    match tag {
        0 => frame.read(0, whole).ok()?,
        _ => frame.read(ADDRESSES, &mut whole[ADDRESSES + tag..]).ok()?,
    }
    let tag_len = u16::try_from(tag).ok()?;
    let offload = match (info.large_send, info.checksum) {
        (Some(send), _) => {
            let tcp_offset = send.tcp_offset + tag_len;
            let segmentation = Segmentation {
                segment_size: u16::try_from(send.segment_size).ok()?,
                tcp_offset,
                ip: if send.ipv6 { IpVersion::V6 } else { IpVersion::V4 },
            };
            Offload { checksum: Checksum::tcp(tcp_offset), segmentation: Some(segmentation), ..Offload::NONE }
        }
        (None, Some(found)) => Offload { checksum: received_checksum(found, whole), ..Offload::NONE },
        (None, None) => Offload::NONE,
    };
    Some((whole, offload))
}

/// What the kernel is told of a received frame's checksum. What never left the machine is right and may have no checksum
/// yet, only the pseudo header's sum; if it is sent on from here, somebody has to fill it in.
fn received_checksum(found: ReceiveChecksum, frame: &[u8]) -> Checksum {
    let is_missing = found.intersects(ReceiveChecksum::LOOPBACK | ReceiveChecksum::TCP_VALUE_INVALID);
    let udp = found.contains(ReceiveChecksum::UDP_SUCCEEDED);
    match found.intersects(ReceiveChecksum::TCP_SUCCEEDED | ReceiveChecksum::UDP_SUCCEEDED) {
        false => Checksum::Unknown,
        true if !is_missing => Checksum::Valid,
        true => missing(frame, udp).unwrap_or(Checksum::Unknown),
    }
}

/// The checksum that a frame lacks; `None` if there is no such header where its protocols say.
fn missing(frame: &[u8], udp: bool) -> Option<Checksum> {
    let ip = ip_header(frame);
    let ipv6 = frame.get(ip - 2..ip)? == IPV6_TYPE;
    let mut at = ip + if ipv6 { 40 } else { 4 * usize::from(frame.get(ip)? & 0xf) };
    let mut protocol = *frame.get(ip + if ipv6 { 6 } else { 9 })?;
    // Each of these is 8 bytes or more, so that this ends with the frame.
    while ipv6 && IPV6_OPTIONS.contains(&protocol) {
        let extension: [u8; 2] = *frame.get(at..)?.first_chunk()?;
        protocol = extension[0];
        at += 8 * (usize::from(extension[1]) + 1);
    }
    let (expected, field) = if udp { (UDP, UDP_FIELD) } else { (TCP, TCP_FIELD) };
    let is_there = protocol == expected && frame.len() >= at + usize::from(field) + 2;
    let start = u16::try_from(at).ok().filter(|_| is_there)?;
    Some(Checksum::Missing { start, field })
}

fn tag_of(vlan: Vlan) -> [u8; 4] {
    let [high, low] =
        (u16::from(vlan.priority & 7) << 13 | u16::from(vlan.drop_eligible) << 12 | vlan.id & 0xfff)
            .to_be_bytes();
    [TAG_TYPE[0], TAG_TYPE[1], high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP frame over IPv4, as the kernel leaves it to be cut.
    fn large(payload: usize) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_HEADER + 20 + 32];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14 + IDENTIFICATION..][..2].copy_from_slice(&[0, 100]);
        frame[34 + SEQUENCE..][..4].copy_from_slice(&1000_u32.to_be_bytes());
        frame[34 + DATA_OFFSET] = 8 << 4;
        frame[34 + FLAGS] = FIN | PSH | CWR | 0x10;
        frame.extend((0..payload).map(|at| u8::try_from(at % 251).unwrap()));
        frame
    }

    fn outgoing(longest: usize) -> Outgoing {
        Outgoing { bytes: Vec::new(), frames: Vec::new(), longest: [longest; 2], longest_plain: 1514 }
    }

    fn one(bytes: &[u8], offload: Offload) -> Batch {
        let mut batch = Batch::new();
        batch.push(bytes, offload).unwrap();
        batch
    }

    #[test]
    fn a_large_send_beyond_what_the_nic_takes_becomes_several_that_are_the_same_stream() {
        let frame = large(60_000);
        let segmentation = Segmentation { segment_size: 1448, tcp_offset: 34, ip: IpVersion::V4 };
        let offload = Offload { segmentation: Some(segmentation), ..Offload::NONE };
        let mut outgoing = outgoing(30_000);
        outgoing.translate(&one(&frame, offload));
        let parts = outgoing.frames();
        assert_eq!(parts.len(), 3);
        let (mut payload, mut flags) = (Vec::new(), Vec::new());
        for (part, info) in &parts {
            assert!(part.len() <= 30_000);
            assert_eq!(info.large_send.unwrap().segment_size, 1448);
            let sequence = u32::from_be_bytes(part[38..42].try_into().unwrap());
            assert_eq!(sequence as usize, 1000 + payload.len());
            let identification = u16::from_be_bytes(part[18..20].try_into().unwrap());
            assert_eq!(usize::from(identification), 100 + payload.len() / 1448, "as if it were cut at once");
            flags.push(part[34 + FLAGS]);
            payload.extend_from_slice(&part[66..]);
        }
        assert!(payload == frame[66..]);
        assert_eq!(flags, [CWR | 0x10, 0x10, FIN | PSH | 0x10]);

        outgoing.translate(&one(&large(20_000), offload));
        assert_eq!(outgoing.frames().len(), 1, "one that is short enough stays whole");
    }

    #[test]
    fn the_nic_is_told_which_checksum_is_missing() {
        let mut frame = vec![0; 100];
        for (kind, ipv6) in [([8, 0], false), (IPV6_TYPE, true)] {
            frame[12..14].copy_from_slice(&kind);
            for (missing, tcp) in [(Checksum::tcp(54), true), (Checksum::udp(54), false)] {
                let mut outgoing = outgoing(0);
                outgoing.translate(&one(&frame, Offload { checksum: missing, ..Offload::NONE }));
                let wish = outgoing.frames()[0].1.checksum.unwrap();
                assert_eq!((wish.ipv4, wish.ipv6, wish.tcp, wish.udp), (!ipv6, ipv6, tcp, !tcp));
                assert_eq!(wish.transport_offset, 54);
            }
        }
    }

    #[test]
    fn a_frame_that_is_too_long_takes_no_others_with_it() {
        let mut batch = Batch::new();
        for len in [60, 9014, 1514] {
            batch.push(&vec![0; len], Offload::NONE).unwrap();
        }
        let mut outgoing = outgoing(0);
        outgoing.translate(&batch);
        let lengths: Vec<_> = outgoing.frames().iter().map(|(frame, _)| frame.len()).collect();
        assert_eq!(lengths, [60, 1514]);
    }

    /// A frame whose IP header says `protocol`, with these options of IPv6 before it.
    fn carrying(protocol: u8, ipv6: bool, tagged: bool, options: bool) -> Vec<u8> {
        let mut frame = vec![0; ADDRESSES];
        if tagged {
            frame.extend([0x81, 0, 0, 7]);
        }
        match (ipv6, options) {
            (false, _) => {
                frame.extend([8, 0, 0x46]);
                frame.extend([0; 8]);
                frame.extend([protocol; 1]);
                frame.extend([0; 14]);
            }
            (true, false) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, protocol]);
                frame.extend([0; 33]);
            }
            (true, true) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 0]);
                frame.extend([0; 33]);
                frame.extend([60, 1]);
                frame.extend([0; 14]);
                frame.extend([protocol, 0, 0, 0, 0, 0, 0, 0]);
            }
        }
        frame
    }

    #[test]
    fn a_checksum_that_was_never_filled_in_is_not_vouched_for() {
        use ReceiveChecksum as Found;
        let tcp = Found::TCP_SUCCEEDED | Found::TCP_VALUE_INVALID | Found::LOOPBACK;
        let udp = Found::UDP_SUCCEEDED | Found::LOOPBACK;
        for (ipv6, tagged, options) in [
            (false, false, false),
            (false, true, false),
            (true, false, false),
            (true, true, false),
            (true, false, true),
        ] {
            for (protocol, said, field) in [(TCP, tcp, TCP_FIELD), (UDP, udp, UDP_FIELD)] {
                let mut frame = carrying(protocol, ipv6, tagged, options);
                let start = u16::try_from(frame.len()).unwrap();
                assert_eq!(received_checksum(said, &frame), Checksum::Unknown, "cut off");
                frame.extend([0; 20]);
                assert_eq!(received_checksum(said, &frame), Checksum::Missing { start, field });
                let checked = said & (Found::TCP_SUCCEEDED | Found::UDP_SUCCEEDED);
                assert_eq!(received_checksum(checked, &frame), Checksum::Valid);
                assert_eq!(received_checksum(Found::LOOPBACK, &frame), Checksum::Unknown);
            }
        }
        let icmp = [carrying(1, false, false, false), vec![0; 40]].concat();
        assert_eq!(received_checksum(tcp, &icmp), Checksum::Unknown, "no TCP");
    }
}
