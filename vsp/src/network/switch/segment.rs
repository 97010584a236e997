//! Large sends in software: one long TCP frame becomes many that a wire carries.

use super::checksum::{complete_header, fold, sum, sum_of};
use super::ip::{self, ETHERNET, IPV4, IPV6, TCP};
use super::offload::{IpVersion, Segmentation};

/// Payload bytes of a segment at least. A sender that asks for less makes others work for nothing.
pub(super) const SMALLEST_SEGMENT: u16 = 48;

/// Puts a frame right that is to be cut: lengths, header checksum, sum of the pseudo header. `None` if it is not what
/// its sender says.
pub(super) fn prepare(frame: &mut [u8], segmentation: Segmentation) -> Option<()> {
    let layout = Layout::of(frame, segmentation)?;
    let ip_len = u16::try_from(frame.len() - ETHERNET).ok()?;
    match segmentation.ip {
        IpVersion::V4 => {
            frame[16..18].copy_from_slice(&ip_len.to_be_bytes());
            complete_header(&mut frame[ETHERNET..layout.tcp]);
        }
        IpVersion::V6 => frame[18..20].copy_from_slice(&ip_len.checked_sub(40)?.to_be_bytes()),
    }
    let pseudo = fold(layout.pseudo_sum(frame, frame.len() - layout.tcp));
    frame[layout.tcp + 16..layout.tcp + 18].copy_from_slice(&pseudo.to_ne_bytes());
    Some(())
}

/// How many segments a frame becomes, and how many bytes all of them have.
pub(super) fn cut(frame: &[u8], segmentation: Segmentation) -> (usize, usize) {
    let Some(Layout { payload, .. }) = Layout::of(frame, segmentation) else { return (1, frame.len()) };
    let data = frame.len() - payload;
    let segments = data.div_ceil(usize::from(segmentation.segment_size)).max(1);
    (segments, segments * payload + data)
}

/// Where what is in a frame that is to be cut.
#[derive(Clone, Copy, Debug)]
struct Layout {
    ip: IpVersion,
    tcp: usize,
    payload: usize,
}

impl Layout {
    fn of(frame: &[u8], segmentation: Segmentation) -> Option<Self> {
        let Segmentation { segment_size, tcp_offset, ip } = segmentation;
        let tcp = usize::from(tcp_offset);
        let is_what_it_says = match (ip, ip::word(frame, 12)?) {
            (IpVersion::V4, IPV4) | (IpVersion::V6, IPV6) => ip::transport(frame, ETHERNET)? == (TCP, tcp),
            (IpVersion::V4 | IpVersion::V6, _) => false,
        };
        if !is_what_it_says {
            return None;
        }
        let header = usize::from(frame.get(tcp + 12)? >> 4) * 4;
        let payload = tcp + header;
        let whole = header >= 20 && payload <= frame.len();
        // Headers that are longer than what they carry make little into much.
        let pays = segment_size >= SMALLEST_SEGMENT && usize::from(segment_size) >= payload - ETHERNET;
        (whole && pays).then_some(Self { ip, tcp, payload })
    }

    /// The sum of the pseudo header for so many bytes of TCP.
    fn pseudo_sum(&self, frame: &[u8], tcp_len: usize) -> u64 {
        let addresses = match self.ip {
            IpVersion::V4 => &frame[26..34],
            IpVersion::V6 => &frame[22..54],
        };
        sum(addresses) + sum_of(u32::from(TCP)) + sum_of(u32::try_from(tcp_len).unwrap_or(u32::MAX))
    }
}

/// The segments of a frame that was [prepared](prepare), one after another.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    frame: &'a [u8],
    layout: Layout,
    segment_size: usize,
    /// Payload bytes that are in segments already.
    done: usize,
    index: u16,
}

/// What becomes of the segments' TCP checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sums {
    /// They are put in.
    Whole,
    /// The receiver does that: the field has the sum of the pseudo header.
    Pseudo,
}

impl<'a> Segments<'a> {
    pub(super) fn new(frame: &'a [u8], segmentation: Segmentation) -> Option<Self> {
        let layout = Layout::of(frame, segmentation)?;
        Some(Self { frame, layout, segment_size: usize::from(segmentation.segment_size), done: 0, index: 0 })
    }

    /// Bytes of the next segment's frame. `None` after the last.
    pub(super) fn next_len(&self) -> Option<usize> {
        let left = self.frame.len() - self.layout.payload - self.done;
        (left > 0 || self.index == 0).then(|| self.layout.payload + left.min(self.segment_size))
    }

    /// Writes the next segment, whose length [`next_len`](Self::next_len) says.
    pub(super) fn write(&mut self, segment: &mut [u8], sums: Sums) {
        let Layout { ip, tcp, payload } = self.layout;
        let from = payload + self.done;
        let taken = segment.len() - payload;
        let last = from + taken == self.frame.len();
        segment[..payload].copy_from_slice(&self.frame[..payload]);
        segment[payload..].copy_from_slice(&self.frame[from..from + taken]);
        // Below 64 KiB, as the whole frame was.
        let ip_len = u16::try_from(segment.len() - ETHERNET).unwrap_or(u16::MAX);
        match ip {
            IpVersion::V4 => {
                segment[16..18].copy_from_slice(&ip_len.to_be_bytes());
                let id = ip::word(segment, 18).unwrap_or(0).wrapping_add(self.index);
                segment[18..20].copy_from_slice(&id.to_be_bytes());
                complete_header(&mut segment[ETHERNET..tcp]);
            }
            IpVersion::V6 => segment[18..20].copy_from_slice(&(ip_len - 40).to_be_bytes()),
        }
        self.write_tcp(segment, last, sums);
        self.done += taken;
        self.index = self.index.wrapping_add(1);
    }

    fn write_tcp(&self, segment: &mut [u8], last: bool, sums: Sums) {
        let pseudo = self.layout.pseudo_sum(segment, segment.len() - self.layout.tcp);
        let tcp = &mut segment[self.layout.tcp..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let done = u32::try_from(self.done).unwrap_or(u32::MAX);
        tcp[4..8].copy_from_slice(&sequence.wrapping_add(done).to_be_bytes());
        if !last {
            tcp[13] &= !(FIN | PSH);
        }
        if self.index != 0 {
            tcp[13] &= !CWR;
        }
        tcp[16..18].copy_from_slice(&fold(pseudo).to_ne_bytes());
        match sums {
            Sums::Whole => {
                let sum = !fold(sum(tcp));
                tcp[16..18].copy_from_slice(&sum.to_ne_bytes());
            }
            Sums::Pseudo => {}
        }
    }
}

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
/// The sender has heard of congestion: said once.
const CWR: u8 = 0x80;
