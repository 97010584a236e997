//! Frames on their way out: gathered in sections of the send buffer, several to a packet, or in memory of their own where
//! they are longer (`docs/src/protocol/network.md`, "NVSP").

use vmbus_channels::{Buffer, Tagged};
use vmbus_core::network::nvsp::{self, MessageType, NO_SECTION};
use vmbus_core::network::rndis::{PACKET_HEADER_SIZE, PacketHeader};
use vmbus_core::network::{LargeSend, PacketInfo, PacketInfoWriter, TransmitChecksum, Vlan};

use super::conversation::Agreement;
use super::error::NicError;
use super::options::NicInfo;
use super::tags::Tag;

/// Memory for a frame that is too long for a section: the longest IP packet, and headers.
pub(super) const LARGE_SLOT: usize = 68 << 10;
/// Sections where the provider takes no send buffer.
const OWN_SECTION: u32 = 4096;
/// Bytes of an Ethernet header.
const SHORTEST_FRAME: usize = 14;

/// What is to be done with a frame on its way out. The default: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitInfo {
    /// Checksums that the device fills in; the TCP or UDP field holds the pseudo header's sum.
    pub checksum: Option<TransmitChecksum>,
    /// The device cuts the frame into segments, and fills in their checksums.
    pub large_send: Option<LargeSend>,
    /// Priority and VLAN; the frame itself has no tag then.
    pub vlan: Option<Vlan>,
    /// Hash of the flow.
    pub hash: Option<u32>,
}

/// Why a frame was not taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// All memory for frames of this length is in use until others are sent.
    Full,
    /// Never.
    Error(NicError),
}

impl From<NicError> for Refused {
    fn from(error: NicError) -> Self {
        Self::Error(error)
    }
}

/// How many slots there are, and which of them are free.
#[derive(Debug)]
struct Slots {
    buffer: Buffer,
    size: usize,
    free: Vec<u32>,
    /// What is in those in use.
    loads: Vec<Load>,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub(super) frames: u32,
    pub(super) bytes: u64,
    in_use: bool,
}

impl Slots {
    fn new(buffer: Buffer, size: usize) -> Self {
        let count = u32::try_from(buffer.len() / size.max(1)).unwrap_or(u32::MAX);
        Self { buffer, size, free: (0..count).rev().collect(), loads: vec![Load::default(); count as usize] }
    }

    fn take(&mut self) -> Option<u32> {
        let slot = self.free.pop()?;
        self.loads[slot as usize] = Load { in_use: true, ..Load::default() };
        Some(slot)
    }

    fn give_back(&mut self, slot: u32) -> Load {
        match self.loads.get_mut(slot as usize) {
            Some(load) if load.in_use => {
                self.free.push(slot);
                std::mem::take(load)
            }
            Some(_) | None => Load::default(),
        }
    }

    fn start(&self, slot: u32) -> usize {
        slot as usize * self.size
    }
}

/// A section that is being filled.
#[derive(Clone, Copy, Debug)]
struct Open {
    slot: u32,
    used: usize,
}

/// The way out of one channel.
#[derive(Debug)]
pub(super) struct Transmit {
    small: Slots,
    /// Whether the provider knows the small ones as sections of the send buffer.
    sections: bool,
    large: Option<Slots>,
    open: Option<Open>,
    agreement: Agreement,
    /// Bytes that one packet may have in a section.
    most: usize,
    longest_frame: usize,
    info: NicInfo,
    writer: PacketInfoWriter,
}

impl Transmit {
    /// For a channel that has `small` of the send buffer to itself, from section `first` on. The provider divides it by
    /// what was agreed.
    pub(super) fn new(small: Buffer, large: Option<Buffer>, agreement: Agreement, info: NicInfo) -> Self {
        let sections = agreement.section_size > 0;
        let size = if sections { agreement.section_size } else { OWN_SECTION };
        let most = size.min(agreement.max_transfer) as usize;
        Self {
            small: Slots::new(small, size as usize),
            sections,
            large: large.map(|large| Slots::new(large, LARGE_SLOT)),
            open: None,
            agreement,
            most,
            longest_frame: info.longest_frame(),
            info,
            writer: PacketInfoWriter::default(),
        }
    }

    /// Only these of the sections, for one channel of several.
    pub(super) fn keep_sections(&mut self, part: usize, parts: usize) {
        self.small.free.retain(|slot| *slot as usize % parts == part);
        if let Some(large) = &mut self.large {
            large.free.retain(|slot| *slot as usize % parts == part);
        }
    }

    /// Whether nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        let rests = |slots: &Slots| slots.loads.iter().all(|load| !load.in_use);
        self.open.is_none() && rests(&self.small) && self.large.as_ref().is_none_or(rests)
    }

    /// How many channels can share the sections, and the memory for long frames, with some of each for all.
    pub(super) fn most_lanes(&self) -> usize {
        let large = self.large.as_ref().map_or(usize::MAX, |large| large.loads.len());
        self.small.loads.len().min(large)
    }

    /// Adds a frame to the section that is being filled; what is full goes to `unsent`.
    pub(super) fn push(
        &mut self,
        frame: &[u8],
        info: &TransmitInfo,
        unsent: &mut Vec<Tagged>,
    ) -> Result<(), Refused> {
        self.check(frame.len(), info)?;
        let has_info = info.checksum.is_some()
            || info.large_send.is_some()
            || info.vlan.is_some()
            || info.hash.is_some();
        if has_info {
            self.write_info(info);
        } else {
            self.writer.clear();
        }
        let needed = PACKET_HEADER_SIZE + self.writer.bytes().len() + frame.len();
        if needed > self.most {
            return self.push_large(frame, needed, unsent);
        }
        let Open { slot, used } = match self.open {
            Some(open) if open.used + needed <= self.most && self.has_room(open.slot) => open,
            Some(_) | None => {
                self.seal(unsent);
                Open { slot: self.small.take().ok_or(Refused::Full)?, used: 0 }
            }
        };
        // The next message begins where this one ends.
        let padded = needed.next_multiple_of(self.agreement.alignment as usize).min(self.most - used);
        let at = self.small.start(slot) + used;
        if let Err(error) = self.write(at, frame, padded, Where::Small) {
            self.open = Some(Open { slot, used });
            return Err(error.into());
        }
        let load = &mut self.small.loads[slot as usize];
        load.frames += 1;
        load.bytes += u64::try_from(frame.len()).unwrap_or(0);
        self.open = Some(Open { slot, used: used + padded });
        Ok(())
    }

    /// Whether a frame of the MTU finds room.
    pub(super) fn has_room_for_any(&self) -> bool {
        let large = self.large.as_ref().is_some_and(|large| !large.free.is_empty());
        let fits = PACKET_HEADER_SIZE + self.longest_frame <= self.most;
        !self.small.free.is_empty() && (fits || large)
    }

    fn has_room(&self, slot: u32) -> bool {
        self.small.loads[slot as usize].frames < self.agreement.max_messages
    }

    /// Ends the section that is being filled.
    pub(super) fn seal(&mut self, unsent: &mut Vec<Tagged>) {
        let Some(Open { slot, used }) = self.open.take() else { return };
        let frames = self.small.loads[slot as usize].frames;
        if frames == 0 {
            self.small.give_back(slot);
            return;
        }
        let start = self.small.start(slot);
        let (section, size, range) = match self.sections {
            true => (slot, u32::try_from(used).unwrap_or(0), None),
            false => (NO_SECTION, 0, Some(self.small.buffer.range(start..start + used))),
        };
        unsent.push(Tagged { tag: Tag::Section(slot).to_word(), payload: packet(section, size), range });
    }

    fn push_large(&mut self, frame: &[u8], needed: usize, unsent: &mut Vec<Tagged>) -> Result<(), Refused> {
        let too_long = NicError::FrameLength { len: frame.len(), most: self.longest_frame };
        let Some(large) = &mut self.large else { return Err(too_long.into()) };
        if needed > LARGE_SLOT.min(self.agreement.max_transfer as usize) {
            return Err(too_long.into());
        }
        let slot = large.take().ok_or(Refused::Full)?;
        let load = &mut large.loads[slot as usize];
        (load.frames, load.bytes) = (1, u64::try_from(frame.len()).unwrap_or(0));
        let start = large.start(slot);
        let range = large.buffer.range(start..start + needed);
        if let Err(error) = self.write(start, frame, needed, Where::Large) {
            self.large.as_mut().map(|large| large.give_back(slot));
            return Err(error.into());
        }
        // In order behind those before.
        self.seal(unsent);
        let (tag, payload) = (Tag::Large(slot).to_word(), packet(NO_SECTION, 0));
        unsent.push(Tagged { tag, payload, range: Some(range) });
        Ok(())
    }

    /// Writes one message, `padded` bytes of it.
    fn write(&mut self, at: usize, frame: &[u8], padded: usize, place: Where) -> Result<(), NicError> {
        let info = self.writer.bytes();
        let info_len = u32::try_from(info.len()).unwrap_or(u32::MAX);
        let frame_len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let mut header = PacketHeader::encode(info_len, frame_len);
        // What follows the frame up to the next message is part of this one.
        header[4..8].copy_from_slice(&u32::try_from(padded).unwrap_or(u32::MAX).to_le_bytes());
        let buffer = match (place, &self.large) {
            (Where::Large, Some(large)) => &large.buffer,
            (Where::Small, _) | (Where::Large, None) => &self.small.buffer,
        };
        let headers = PACKET_HEADER_SIZE + info.len();
        if headers + frame.len() <= SHORT {
            // One copy is cheaper than three.
            let mut whole = [0; SHORT];
            whole[..PACKET_HEADER_SIZE].copy_from_slice(&header);
            whole[PACKET_HEADER_SIZE..headers].copy_from_slice(info);
            whole[headers..headers + frame.len()].copy_from_slice(frame);
            buffer.write(at, &whole[..headers + frame.len()])?;
            return Ok(());
        }
        buffer.write(at, &header)?;
        if !info.is_empty() {
            buffer.write(at + PACKET_HEADER_SIZE, info)?;
        }
        buffer.write(at + headers, frame)?;
        Ok(())
    }

    fn write_info(&mut self, info: &TransmitInfo) {
        self.writer.clear();
        if let Some(hash) = info.hash {
            self.writer.push(PacketInfo::Hash(hash));
        }
        if let Some(vlan) = info.vlan {
            self.writer.push(PacketInfo::Vlan(vlan));
        }
        if let Some(large_send) = info.large_send {
            self.writer.push(PacketInfo::LargeSend(large_send));
        }
        if let Some(checksum) = info.checksum {
            self.writer.push(PacketInfo::TransmitChecksum(checksum));
        }
    }

    /// Whether the device takes such a frame.
    fn check(&self, len: usize, info: &TransmitInfo) -> Result<(), NicError> {
        let offloads = &self.info.offloads;
        let mut most = self.longest_frame;
        if let Some(large_send) = info.large_send {
            let (longest, what) = match large_send.ipv6 {
                true => (offloads.large_send_v6, "large sends of IPv6"),
                false => (offloads.large_send_v4, "large sends of IPv4"),
            };
            if longest == 0 || large_send.segment_size == 0 {
                return Err(NicError::NotOffered(what));
            }
            most = most.max(longest as usize + SHORTEST_FRAME);
        }
        if let Some(checksum) = info.checksum
            && !self.fills_in(&checksum)
        {
            return Err(NicError::NotOffered("these checksums"));
        }
        if (SHORTEST_FRAME..=most).contains(&len) { Ok(()) } else { Err(NicError::FrameLength { len, most }) }
    }

    fn fills_in(&self, checksum: &TransmitChecksum) -> bool {
        use vmbus_core::network::ndis::{ChecksumV4, ChecksumV6};
        let (v4, v6) = (self.info.offloads.transmit_v4, self.info.offloads.transmit_v6);
        let tcp = if checksum.ipv6 { v6.contains(ChecksumV6::TCP) } else { v4.contains(ChecksumV4::TCP) };
        let udp = if checksum.ipv6 { v6.contains(ChecksumV6::UDP) } else { v4.contains(ChecksumV4::UDP) };
        (!checksum.tcp || tcp)
            && (!checksum.udp || udp)
            && (!checksum.ip_header || v4.contains(ChecksumV4::IP))
    }

    /// The provider has completed the packet of this section; gives what was in it.
    pub(super) fn section_done(&mut self, slot: u32) -> Load {
        self.small.give_back(slot)
    }

    /// The same for one in memory of its own.
    pub(super) fn large_done(&mut self, slot: u32) -> Load {
        self.large.as_mut().map_or(Load::default(), |large| large.give_back(slot))
    }
}

/// Which memory a message is in.
#[derive(Clone, Copy)]
enum Where {
    Small,
    Large,
}

/// Messages up to this many bytes are put together before they are copied to shared memory.
const SHORT: usize = 256;

/// SEND_RNDIS_PACKET for frames, as much of it as is read.
fn packet(section: u32, size: u32) -> smallvec::SmallVec<[u8; 64]> {
    const DATA: u32 = 0;
    let mut bytes = [0; 16];
    for (place, word) in
        bytes.chunks_exact_mut(4).zip([MessageType::SEND_RNDIS_PACKET.0, DATA, section, size])
    {
        place.copy_from_slice(&word.to_le_bytes());
    }
    smallvec::SmallVec::from_slice(&bytes)
}

/// Whether a completion says that all is well.
pub(super) fn succeeded(reply: &[u8]) -> bool {
    let message = nvsp::Message::parse(reply, nvsp::Sender::Host, None);
    message == Ok(nvsp::Message::PacketComplete { status: nvsp::Status::SUCCESS })
}
