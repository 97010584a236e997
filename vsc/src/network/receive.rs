//! Frames in the receive buffer: found by what the provider says, checked, and read in place
//! (`docs/src/protocol/network.md`, "NVSP").
//!
//! The provider may write to the buffer at any time. Each message's headers are copied once, and what is used of them is
//! the copy; a frame's bytes are copied when somebody wants them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use smallvec::SmallVec;
use vmbus_channels::{Buffer, Request};
use vmbus_core::memory::SharedMemory;
use vmbus_core::network::rndis::{HEADER_SIZE, PACKET_HEADER_SIZE, PacketHeader};
use vmbus_core::network::{LargeSend, PacketInfo, PacketInfoList, ReceiveChecksum, RscFragment, Vlan, Way};

use super::conversation::{Agreement, LONGEST_CONTROL};
use super::error::NicError;

/// Bytes of a message that are copied at first: its header and all usual packet information.
const HEAD: usize = 128;
/// Longest packet information that is looked at, in bytes.
const LONGEST_INFO: usize = 1024;
/// Bytes of an Ethernet header.
const SHORTEST_FRAME: usize = 14;
/// The longest IP packet with an Ethernet header and a VLAN tag: no frame is longer, coalesced or not.
const LONGEST_FRAME: usize = 65_535 + SHORTEST_FRAME + 4;

/// What the provider has found out about a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveInfo {
    /// Which checksums it has looked at.
    pub checksum: Option<ReceiveChecksum>,
    /// Priority and VLAN; the frame itself has no tag then.
    pub vlan: Option<Vlan>,
    /// Hash of the flow.
    pub hash: Option<u32>,
    /// How to cut a frame of coalesced segments, for those who send it on: where its TCP header is, and the segments'
    /// size. The TCP checksum is then the pseudo header's sum.
    pub large_send: Option<LargeSend>,
}

/// The receive buffer, as all frames in it need it.
#[derive(Debug)]
pub(super) struct Pieces {
    buffer: Buffer,
    /// Grows when another root gets the buffer, which knows nothing of the frames in it.
    reign: AtomicU32,
}

/// Our name for the receive buffer, the set id of transfer-page packets: another one for each root, so that a packet
/// says itself which of them it is from.
fn name(reign: u32) -> u16 {
    let [a, b, ..] = reign.to_le_bytes();
    0xcafe_u16.wrapping_add(u16::from_le_bytes([a, b]))
}

impl Pieces {
    pub(super) fn new(buffer: Buffer) -> Self {
        Self { buffer, reign: AtomicU32::new(0) }
    }

    pub(super) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// What is in it is not what it was: to be called before another root may write to it.
    pub(super) fn change_hands(&self) {
        // Whoever reads a byte of the new root's sees this: the provider writes after it was told of the buffer.
        self.reign.fetch_add(1, Ordering::SeqCst);
    }

    /// What the root at present calls the buffer.
    pub(super) fn name(&self) -> u16 {
        name(self.reign())
    }

    pub(super) fn reign(&self) -> u32 {
        self.reign.load(Ordering::SeqCst)
    }
}

/// What is known of the receive buffer, and what a packet may say of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Division {
    /// Bytes of the buffer, and of a piece of it.
    len: usize,
    piece_size: u32,
    /// Whether we asked for coalesced segments.
    coalesces: bool,
}

impl Division {
    pub(super) fn new(len: usize, agreement: &Agreement) -> Self {
        Self { len, piece_size: agreement.piece_size, coalesces: agreement.coalesces }
    }

    /// Whether one packet can have all of these ranges: they would not find room in the buffer beside each other if they
    /// are more than there are pieces, or longer in all than it is.
    fn admits(&self, ranges: &[(u32, u32)]) -> bool {
        let pieces = self.len / (self.piece_size.max(1) as usize);
        let sum: u64 = ranges.iter().map(|(_, len)| u64::from(*len)).sum();
        ranges.len() <= pieces && sum <= u64::try_from(self.len).unwrap_or(u64::MAX)
    }

    /// Whether a range is within one piece, as far as a client can know.
    fn check(&self, (offset, len): (u32, u32)) -> Result<(), Malformed> {
        let end = (offset as usize).checked_add(len as usize).ok_or(Malformed)?;
        if end <= self.len && len <= self.piece_size { Ok(()) } else { Err(Malformed) }
    }
}

/// Where a frame is: parts of the buffer, one but for coalesced ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub(super) parts: SmallVec<[(u32, u32); 1]>,
    pub(super) len: usize,
    info: ReceiveInfo,
}

/// A range that holds no message, or none that makes sense. The provider's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A packet with frames. Its pieces go back to the provider when it is dropped.
#[derive(Debug)]
pub(super) struct Packet {
    request: Request,
    pieces: Arc<Pieces>,
    division: Division,
    reign: u32,
}

impl Packet {
    /// `None`: it is not in the buffer that the present root knows, or says more than there is room for in it.
    pub(super) fn new(request: Request, pieces: &Arc<Pieces>, agreement: &Agreement) -> Option<Self> {
        let reign = pieces.reign();
        let (set_id, ranges) = request.transfer_pages()?;
        let (pieces, division) = (Arc::clone(pieces), Division::new(pieces.buffer.len(), agreement));
        let fits = set_id == name(reign) && division.admits(ranges);
        fits.then_some(Self { request, pieces, division, reign })
    }

    /// Messages in it.
    pub(super) fn len(&self) -> usize {
        self.ranges().len()
    }

    pub(super) fn into_request(self) -> Request {
        self.request
    }

    fn ranges(&self) -> &[(u32, u32)] {
        self.request.transfer_pages().map_or(&[], |(_, ranges)| ranges)
    }

    /// Visits the frames in it; gives how many messages were none.
    pub(super) fn visit(&self, each: impl FnMut(Place)) -> u64 {
        visit(self.pieces.buffer.mapping(), &self.division, self.ranges(), each)
    }

    /// Copies the message about the device out.
    pub(super) fn control(&self) -> Result<Vec<u8>, Malformed> {
        control(self.pieces.buffer.mapping(), &self.division, self.ranges())
    }
}

/// Visits the frames in these ranges of `memory`; gives how many messages were none.
pub(super) fn visit(
    memory: &impl SharedMemory,
    division: &Division,
    ranges: &[(u32, u32)],
    mut each: impl FnMut(Place),
) -> u64 {
    let mut malformed = 0;
    let mut coalescing = Coalescing::default();
    for &range in ranges {
        match find(memory, division, range) {
            Ok((place, None)) => each(place),
            Ok((_, Some(_))) if !division.coalesces => malformed += 1,
            Ok((place, Some(fragment))) => match coalescing.add(place, fragment) {
                Ok(Some(whole)) => each(whole),
                Ok(None) => {}
                Err(Malformed) => malformed += 1,
            },
            Err(Malformed) => malformed += 1,
        }
    }
    malformed + u64::from(coalescing.begun.is_some())
}

/// Copies the message about the device out: such a packet has one.
pub(super) fn control(
    memory: &impl SharedMemory,
    division: &Division,
    ranges: &[(u32, u32)],
) -> Result<Vec<u8>, Malformed> {
    let &[(offset, len)] = ranges else { return Err(Malformed) };
    division.check((offset, len))?;
    if len > LONGEST_CONTROL || (len as usize) < HEADER_SIZE {
        return Err(Malformed);
    }
    let mut message = vec![0; len as usize];
    memory.read(offset as usize, &mut message);
    Ok(message)
}

/// A frame of coalesced segments that has begun.
#[derive(Default)]
struct Coalescing {
    begun: Option<(u16, Place)>,
}

impl Coalescing {
    fn add(&mut self, place: Place, fragment: RscFragment) -> Result<Option<Place>, Malformed> {
        let whole = match (fragment.first, self.begun.take()) {
            (true, None) => place,
            (true, Some(_)) => {
                // The one before never ended.
                self.begun = Some((fragment.packet, place));
                return Err(Malformed);
            }
            (false, Some((packet, mut whole))) if packet == fragment.packet => {
                whole.parts.extend(place.parts);
                whole.len = whole.len.saturating_add(place.len);
                if whole.len > LONGEST_FRAME {
                    return Err(Malformed);
                }
                whole
            }
            (false, Some(_) | None) => return Err(Malformed),
        };
        match fragment.last {
            true => Ok(Some(whole)),
            false => {
                self.begun = Some((fragment.packet, whole));
                Ok(None)
            }
        }
    }
}

/// The frame of the message in this range.
#[inline]
fn find(
    memory: &impl SharedMemory,
    division: &Division,
    (offset, len): (u32, u32),
) -> Result<(Place, Option<RscFragment>), Malformed> {
    division.check((offset, len))?;
    let (at, len) = (offset as usize, len as usize);
    let mut head = [0; HEAD];
    let there = len.min(HEAD);
    memory.read(at, &mut head[..there]);
    let header = head[..there].first_chunk::<PACKET_HEADER_SIZE>().ok_or(Malformed)?;
    let header = PacketHeader::parse(header, len).map_err(|_| Malformed)?.ok_or(Malformed)?;
    if header.frame.is_empty() || header.frame.len() > LONGEST_FRAME {
        return Err(Malformed);
    }
    let (info, fragment) = match head[..there].get(header.info.clone()) {
        Some(info) => read_info(info)?,
        None if header.info.len() <= LONGEST_INFO => {
            let mut info = vec![0; header.info.len()];
            memory.read(at + header.info.start, &mut info);
            read_info(&info)?
        }
        None => return Err(Malformed),
    };
    let is_later_part = fragment.is_some_and(|fragment| !fragment.first);
    if header.frame.len() < SHORTEST_FRAME && !is_later_part {
        return Err(Malformed);
    }
    let start = u32::try_from(at + header.frame.start).map_err(|_| Malformed)?;
    let frame_len = u32::try_from(header.frame.len()).map_err(|_| Malformed)?;
    let place = Place { parts: SmallVec::from_buf([(start, frame_len)]), len: header.frame.len(), info };
    Ok((place, fragment))
}

#[inline]
fn read_info(bytes: &[u8]) -> Result<(ReceiveInfo, Option<RscFragment>), Malformed> {
    let (mut info, mut fragment) = (ReceiveInfo::default(), None);
    for piece in PacketInfoList::new(bytes, Way::Receive) {
        match piece.map_err(|_| Malformed)? {
            PacketInfo::ReceiveChecksum(checksum) => info.checksum = Some(checksum),
            PacketInfo::Vlan(vlan) => info.vlan = Some(vlan),
            PacketInfo::Hash(hash) => info.hash = Some(hash),
            PacketInfo::Rsc(part) => fragment = Some(part),
            PacketInfo::LargeSend(send) => info.large_send = Some(send),
            // Not for this way, or not looked into.
            PacketInfo::TransmitChecksum(_) | PacketInfo::Other(..) => {}
        }
    }
    Ok((info, fragment))
}

impl Place {
    fn read(&self, pieces: &Pieces, reign: u32, mut at: usize, mut into: &mut [u8]) -> Result<(), NicError> {
        let end = at.saturating_add(into.len());
        if end > self.len {
            let (len, most) = (end, self.len);
            return Err(NicError::FrameLength { len, most });
        }
        for &(start, len) in &self.parts {
            let len = len as usize;
            if at >= len {
                at -= len;
                continue;
            }
            let (now, rest) = into.split_at_mut(into.len().min(len - at));
            pieces.buffer.read(start as usize + at, now)?;
            (at, into) = (0, rest);
        }
        // Looked at after the bytes: if it is still the same, so were they.
        if pieces.reign() == reign { Ok(()) } else { Err(NicError::Stale) }
    }
}

/// An Ethernet frame that was received, without FCS, where the provider has put it. Its memory goes back to the provider
/// when the last frame that came with it is dropped: whoever keeps many for long receives no more.
#[derive(Clone, Debug)]
pub struct ReceivedFrame {
    packet: Arc<Packet>,
    place: Place,
}

impl ReceivedFrame {
    pub(super) fn new(packet: &Arc<Packet>, place: Place) -> Self {
        Self { packet: Arc::clone(packet), place }
    }

    /// The same, borrowed.
    pub fn view(&self) -> FrameView<'_> {
        FrameView { packet: &self.packet, place: &self.place }
    }

    /// Bytes of the frame.
    pub fn len(&self) -> usize {
        self.place.len
    }

    /// Never: there are no frames without bytes.
    pub fn is_empty(&self) -> bool {
        self.place.len == 0
    }

    /// What was found out about it.
    pub fn info(&self) -> ReceiveInfo {
        self.place.info
    }

    /// Copies bytes out, from byte `at` of the frame on. They are what stands there at this moment: read once, then look.
    ///
    /// # Errors
    /// [`NicError::FrameLength`]: the caller's fault; [`NicError::Stale`].
    pub fn read(&self, at: usize, into: &mut [u8]) -> Result<(), NicError> {
        self.view().read(at, into)
    }

    /// Copies the whole frame.
    ///
    /// # Errors
    /// [`NicError::Stale`].
    pub fn to_vec(&self) -> Result<Vec<u8>, NicError> {
        let mut bytes = vec![0; self.len()];
        self.read(0, &mut bytes)?;
        Ok(bytes)
    }
}

/// A frame that was received, while its packet is looked at.
#[derive(Clone, Copy, Debug)]
pub struct FrameView<'a> {
    packet: &'a Packet,
    place: &'a Place,
}

impl<'a> FrameView<'a> {
    pub(super) fn new(packet: &'a Packet, place: &'a Place) -> Self {
        Self { packet, place }
    }

    /// Bytes of the frame.
    pub fn len(&self) -> usize {
        self.place.len
    }

    /// Never: there are no frames without bytes.
    pub fn is_empty(&self) -> bool {
        self.place.len == 0
    }

    /// What was found out about it.
    pub fn info(&self) -> ReceiveInfo {
        self.place.info
    }

    /// Copies bytes out, from byte `at` of the frame on. They are what stands there at this moment: read once, then look.
    ///
    /// # Errors
    /// [`NicError::FrameLength`]: the caller's fault; [`NicError::Stale`].
    pub fn read(&self, at: usize, into: &mut [u8]) -> Result<(), NicError> {
        self.place.read(&self.packet.pieces, self.packet.reign, at, into)
    }
}
