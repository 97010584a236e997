//! Frames from the guest: RNDIS messages in a section of the send buffer, in the packet's ranges, or in both.
//!
//! A message is read into private memory piece by piece, and what was read is used: its beginning, which is all of a
//! short one; then packet info and frame, as far as they are not in that. A longer frame goes to its place in the
//! sender's batch at once.

use vmbus_channels::GuestPages;
use vmbus_core::network::rndis::{PACKET_HEADER_SIZE, PacketHeader};
use vmbus_core::network::{LargeSend, PacketInfo, PacketInfoList, TransmitChecksum, Way};

use super::device::LONGEST_LARGE_SEND;
use super::memory::SharedBuffer;
use super::nvsp::ETHERNET_HEADER;
use super::switch::{Batch, Checksum, Full, HeaderChecksum, IpVersion, MAX_FRAME, Offload, Segmentation, ip};

/// Bytes that are read of a message at first.
const BEGINNING: usize = 192;
/// Bytes of packet info that are read of one frame. Drivers send a fifth of this.
const LONGEST_INFO: usize = 512;
/// Bytes of a tag in the frame, which the MTU does not count.
const TAG: usize = 4;
/// The type that says that a tag follows.
const VLAN: [u8; 2] = [0x81, 0x00];
/// Where an IP header begins.
const IP: usize = ETHERNET_HEADER as usize;
/// The shortest TCP header.
const TCP: usize = 20;
/// Bytes of IP and TCP headers in front of what a large send has to send.
const HEADERS_AT_MOST: usize = 256;

/// Where the messages of one packet lie: first a part of the send buffer, then the packet's ranges.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    section: Option<(&'a SharedBuffer, usize, usize)>,
    ranges: &'a [GuestPages],
    len: usize,
}

/// Why a packet is not sent. The guest's fault; nothing of the packet from there on is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransmitError {
    /// A message is none, or not all there.
    #[error("a message that is none")]
    Message,
    /// There are more than a packet may have.
    #[error("more messages than a packet may have")]
    TooMany,
    /// A frame is too long or too short.
    #[error("a frame that is too long or too short")]
    Frame,
    /// Packet info makes no sense, or not with its frame.
    #[error("packet info that makes no sense")]
    Info,
}

/// What a packet of frames is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Bytes of the longest frame, its header included.
    pub max_frame: usize,
    /// Messages.
    pub max_packets: u32,
}

impl<'a> Source<'a> {
    /// The bytes of a packet that lie in its ranges alone.
    pub fn of_ranges(ranges: &'a [GuestPages]) -> Self {
        Self::new(None, ranges)
    }

    /// The bytes of a packet. `section` is a part of the send buffer, and lies within it.
    pub(super) fn new(section: Option<(&'a SharedBuffer, usize, usize)>, ranges: &'a [GuestPages]) -> Self {
        let in_ranges: usize = ranges.iter().map(GuestPages::len).sum();
        Self { section, ranges, len: section.map_or(0, |(_, _, len)| len) + in_ranges }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes out. `false`: there are not so many.
    #[inline]
    pub(super) fn read(&self, at: usize, into: &mut [u8]) -> bool {
        let (mut at, mut rest) = (at, into);
        if let Some((memory, start, len)) = self.section {
            let now = len.saturating_sub(at).min(rest.len());
            let (first, others) = rest.split_at_mut(now);
            if now > 0 && !memory.read(start + at, first) {
                return false;
            }
            (at, rest) = (at.saturating_sub(len), others);
        }
        for range in self.ranges {
            if rest.is_empty() {
                break;
            }
            let now = range.len().saturating_sub(at).min(rest.len());
            let (first, others) = rest.split_at_mut(now);
            if now > 0 && range.read(at, first).is_err() {
                return false;
            }
            (at, rest) = (at.saturating_sub(range.len()), others);
        }
        rest.is_empty()
    }
}

/// Appends the frames of a packet to `batch`, which `send` empties when it is full; gives how many messages were read
/// before the end, or before one that is wrong.
pub fn frames(
    source: &Source<'_>,
    allowed: Allowed,
    batch: &mut Batch,
    mut send: impl FnMut(&mut Batch),
) -> (u32, Result<(), TransmitError>) {
    let (mut at, mut count) = (0, 0);
    loop {
        if count >= allowed.max_packets {
            return (count, Err(TransmitError::TooMany));
        }
        match frame(source, at, allowed, batch, &mut send) {
            Ok(len) => at += len,
            Err(error) => return (count, Err(error)),
        }
        count += 1;
        if at >= source.len() {
            return (count, Ok(()));
        }
    }
}

/// Appends the frame of the message at `at`; gives the message's length, which is not zero.
#[inline]
fn frame(
    source: &Source<'_>,
    at: usize,
    allowed: Allowed,
    batch: &mut Batch,
    send: &mut impl FnMut(&mut Batch),
) -> Result<usize, TransmitError> {
    let mut beginning = [0; BEGINNING];
    let beginning = &mut beginning[..BEGINNING.min(source.len() - at)];
    if !source.read(at, beginning) {
        return Err(TransmitError::Message);
    }
    let head = beginning.first_chunk::<PACKET_HEADER_SIZE>().ok_or(TransmitError::Message)?;
    let header = PacketHeader::parse(head, source.len() - at);
    let header = header.ok().flatten().ok_or(TransmitError::Message)?;
    let mut wish = Wish::default();
    match beginning.get(header.info.clone()) {
        Some([]) => {}
        Some(info) => wish = Wish::read(info)?,
        None => {
            let mut info = [0; LONGEST_INFO];
            let info = info.get_mut(..header.info.len()).ok_or(TransmitError::Info)?;
            if !source.read(at + header.info.start, info) {
                return Err(TransmitError::Message);
            }
            wish = Wish::read(info)?;
        }
    }
    let len = header.frame.len();
    let longest = match wish.large_send {
        Some(_) => (LONGEST_LARGE_SEND as usize + HEADERS_AT_MOST).min(MAX_FRAME),
        None => allowed.max_frame + TAG,
    };
    if !(IP..=longest).contains(&len) {
        return Err(TransmitError::Frame);
    }
    let mut slot = match batch.slot(len) {
        Ok(slot) => slot,
        Err(Full::Frame(_)) => return Err(TransmitError::Frame),
        Err(Full::Frames | Full::Bytes(_)) => {
            send(batch);
            batch.slot(len).map_err(|_| TransmitError::Frame)?
        }
    };
    match beginning.get(header.frame.clone()) {
        Some(frame) => slot.bytes_mut().copy_from_slice(frame),
        None if source.read(at + header.frame.start, slot.bytes_mut()) => {}
        None => return Err(TransmitError::Message),
    }
    let offload = wish.offload(slot.bytes_mut())?;
    slot.commit(len, offload);
    Ok(header.message_len)
}

/// What the guest wants done with a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Wish {
    checksum: Option<TransmitChecksum>,
    large_send: Option<LargeSend>,
    offload: Offload,
}

impl Wish {
    fn read(info: &[u8]) -> Result<Self, TransmitError> {
        let mut wish = Self::default();
        for piece in PacketInfoList::new(info, Way::Transmit) {
            match piece.map_err(|_| TransmitError::Info)? {
                PacketInfo::TransmitChecksum(checksum) => wish.checksum = Some(checksum),
                // A segment size of 0 says that there is nothing to cut.
                PacketInfo::LargeSend(send) => wish.large_send = (send.segment_size > 0).then_some(send),
                PacketInfo::Vlan(vlan) => wish.offload.vlan = Some(vlan),
                PacketInfo::Hash(hash) => wish.offload.hash = Some(hash),
                PacketInfo::ReceiveChecksum(_) | PacketInfo::Rsc(_) | PacketInfo::Other(..) => {}
            }
        }
        Ok(wish)
    }

    /// The same for the switch, as far as it makes sense with the frame's bytes.
    #[inline]
    fn offload(self, frame: &[u8]) -> Result<Offload, TransmitError> {
        let mut offload = self.offload;
        if let Some(send) = self.large_send {
            let start = usize::from(send.tcp_offset);
            let ip = if send.ipv6 { IpVersion::V6 } else { IpVersion::V4 };
            let segment_size = u16::try_from(send.segment_size).map_err(|_| TransmitError::Info)?;
            if start <= IP || start + TCP > frame.len() {
                return Err(TransmitError::Info);
            }
            offload.segmentation = Some(Segmentation { segment_size, tcp_offset: send.tcp_offset, ip });
            offload.checksum = Checksum::tcp(send.tcp_offset);
            if ip == IpVersion::V4 {
                offload.header = HeaderChecksum::Missing;
            }
        } else if let Some(checksum) = self.checksum {
            if checksum.ip_header {
                offload.header = HeaderChecksum::Missing;
            }
            if checksum.tcp || checksum.udp {
                offload.checksum = missing(frame, checksum).ok_or(TransmitError::Info)?;
            }
        }
        Ok(offload)
    }
}

/// The checksum that a guest wants filled in, if it is that of the frame's own TCP or UDP header.
fn missing(frame: &[u8], wish: TransmitChecksum) -> Option<Checksum> {
    let is_tagged = |at: usize| frame.get(at..at + 2).is_some_and(|kind| kind == VLAN);
    let ethernet = if is_tagged(IP - 2) { IP + TAG } else { IP };
    let start = match wish.transport_offset {
        // Some drivers do not say it.
        0 => u16::try_from(ip::transport(frame, ethernet)?.1).ok()?,
        start => start,
    };
    let checksum = if wish.tcp { Checksum::tcp(start) } else { Checksum::udp(start) };
    checksum.is_where_it_belongs(frame, ethernet).then_some(checksum)
}
