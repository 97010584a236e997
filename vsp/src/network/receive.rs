//! Frames to the guest: the NIC as a port of its switch.
//!
//! Whichever thread delivers writes into the receive buffer, one section for each frame, and puts one packet for all of
//! them into the ring of each channel that they go to. One lock guards all of it and is held for one delivery. Nothing
//! waits here: what finds no section or no room in the ring is dropped, and counted by the switch.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmbus_channels::Channel;
use vmbus_core::network::ndis::PacketFilter;
use vmbus_core::network::nvsp::{ChannelType, Encoded};
use vmbus_core::network::rndis::{PACKET_HEADER_SIZE, PacketHeader};
use vmbus_ringbuf::TransferRange;

use super::device::{Coalescing, Device, Stage};
use super::memory::SharedBuffer;
use super::nvsp::{ETHERNET_HEADER, Nvsp};
use super::packet_info::Infos;
use super::rss::RssTable;
use super::sections::{Chain, KEPT_FOR_CONTROL, Sections};
use super::switch::{Capabilities, Delivered, Frame, Frames, IpVersion, Port};

/// Ranges of one packet, as Hyper-V has them at most.
const MOST_RANGES: usize = 375;
/// The same of a guest that knows frames in pieces.
const MOST_RANGES_WITH_PIECES: usize = 562;
/// Part of a ring that one packet may take, as a divisor.
const PART_OF_RING: usize = 8;
/// Bytes of a range in a packet.
const RANGE_SIZE: usize = 8;
/// Frames up to this are written with their header in one go.
const SHORT: usize = 128;
/// A tag in the frame, which the MTU does not count.
const TAG: usize = 4;

/// The receiving half of a NIC, for all its channels.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    receiving: Mutex<Receiving>,
    capabilities: AtomicU8,
    received: AtomicU64,
    no_buffer: AtomicU64,
}

/// What deliveries need.
#[derive(Debug, Default)]
struct Receiving {
    queues: Vec<Queue>,
    sections: Option<Sections>,
    /// How many receive buffers there were.
    generation: u32,
    set_id: u16,
    wants: Wants,
    rss: Option<RssTable>,
    coalescing: Coalescing,
    /// Number of the last frame that was sent in pieces.
    last_pieces: u16,
}

/// What the guest wants, as far as each frame is concerned.
#[derive(Debug, Default)]
struct Wants {
    filter: PacketFilter,
    addresses: [[u8; 6]; 2],
    groups: Vec<[u8; 6]>,
    /// Bytes of the longest frame, its header included.
    max_frame: usize,
    /// There is a link, and nobody is about to save or close the NIC.
    link: bool,
}

/// A channel of the guest, and what is about to go there.
#[derive(Debug)]
struct Queue {
    channel: Option<Arc<Channel>>,
    head: Option<Encoded>,
    chain: Chain,
    ranges: Vec<TransferRange>,
    most_ranges: usize,
    /// Frames and bytes in the chain.
    frames: usize,
    bytes: usize,
}

impl Receiver {
    fn lock(&self) -> MutexGuard<'_, Receiving> {
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames may go to this channel from now on. `outgoing_bytes` are its ring's.
    pub(super) fn attach(&self, index: u16, channel: &Arc<Channel>, nvsp: &Nvsp, outgoing_bytes: u32) {
        let mut receiving = self.lock();
        let index = usize::from(index);
        if receiving.queues.len() <= index {
            receiving.queues.resize_with(index + 1, Queue::nobody);
        }
        let of_ring = outgoing_bytes as usize / PART_OF_RING / RANGE_SIZE;
        receiving.queues[index] = Queue {
            channel: Some(Arc::clone(channel)),
            head: Some(nvsp.packet_to_guest(ChannelType::Data)),
            most_ranges: of_ring.clamp(1, MOST_RANGES),
            ..Queue::nobody()
        };
    }

    /// No frames go to this channel any more. What its guest has of it comes back never, unless it is saved.
    pub(super) fn detach(&self, index: u16) {
        if let Some(queue) = self.lock().queues.get_mut(usize::from(index)) {
            *queue = Queue::nobody();
        }
    }

    /// Makes the primary channel's session look around.
    pub(super) fn stir_primary(&self) {
        let primary = self.lock().queues.first().and_then(|queue| queue.channel.clone());
        if let Some(primary) = primary {
            primary.stir();
        }
    }

    /// Channels that frames can go to.
    pub(super) fn attached(&self) -> Vec<u32> {
        let receiving = self.lock();
        let there = receiving.queues.iter().zip(0..).filter(|(queue, _)| queue.channel.is_some());
        there.map(|(_, index)| index).collect()
    }

    /// The guest has a receive buffer.
    pub(super) fn use_buffer(&self, memory: SharedBuffer, nvsp: &Nvsp) -> bool {
        let section = u32::try_from(memory.len()).ok().and_then(|len| nvsp.receive_section(len));
        let (Some(section), Some(name)) = (section, nvsp.buffer(vmbus_core::network::nvsp::Buffer::Receive))
        else {
            return false;
        };
        let mut receiving = self.lock();
        receiving.generation = receiving.generation.wrapping_add(1);
        receiving.sections = Some(Sections::new(memory, &section, receiving.generation));
        receiving.set_id = name.id;
        true
    }

    /// The guest has none any more.
    pub(super) fn drop_buffer(&self) {
        let dropped = self.lock().sections.take();
        // Not under the lock: whoever lent it is told.
        drop(dropped);
    }

    /// Lets go of a buffer that the guest wants back without having said so in its protocol. `true`: there was one.
    pub(super) fn drop_recalled(&self) -> bool {
        let mut receiving = self.lock();
        let recalled = receiving.sections.take_if(|sections| sections.memory().is_wanted_back());
        drop(receiving);
        recalled.is_some()
    }

    /// What the guest wants from now on.
    pub(super) fn set(&self, device: &Device, nvsp: &Nvsp, link: bool) {
        let mut receiving = self.lock();
        receiving.wants = Wants {
            filter: match device.stage {
                Stage::Initialized => device.filter,
                Stage::Halted => PacketFilter::empty(),
            },
            addresses: [device.identity.address.0, device.address.0],
            groups: device.groups.clone(),
            max_frame: nvsp.max_frame() as usize,
            link,
        };
        receiving.rss.clone_from(&device.rss);
        receiving.coalescing = device.coalescing;
        let mut capabilities = Capabilities::VLAN;
        capabilities.set(Capabilities::SEGMENTATION_V4, device.coalescing.v4);
        capabilities.set(Capabilities::SEGMENTATION_V6, device.coalescing.v6);
        self.capabilities.store(capabilities.bits(), Ordering::Relaxed);
    }

    /// Nothing is delivered any more.
    pub(super) fn stop(&self) {
        self.lock().wants.link = false;
    }

    /// The guest has given back what these names stand for.
    pub(super) fn came_back(&self, names: impl Iterator<Item = u64>) {
        let mut receiving = self.lock();
        if let Some(sections) = &mut receiving.sections {
            names.for_each(|name| _ = sections.came_back(name));
        }
    }

    /// Writes a message about the device into a section: what to send on the primary channel, where there is one free.
    pub(super) fn place(&self, message: &[u8]) -> Option<(u64, u16, TransferRange)> {
        let mut receiving = self.lock();
        let set_id = receiving.set_id;
        let sections = receiving.sections.as_mut()?;
        let mut chain = Chain::EMPTY;
        let byte_offset = sections.take(&mut chain)?;
        let byte_count = u32::try_from(message.len()).ok()?;
        if message.len() > sections.section_size() || !sections.memory().write(byte_offset as usize, message)
        {
            sections.put_back(chain);
            return None;
        }
        let name = sections.sent(chain, 0);
        Some((name, set_id, TransferRange { byte_count, byte_offset }))
    }

    /// A message that was placed and not sent.
    pub(super) fn take_back(&self, name: u64) {
        self.came_back(std::iter::once(name));
    }

    /// Frames that the guest got, and frames for which it had no room.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.no_buffer.load(Ordering::Relaxed))
    }

    /// What the guest has of the receive buffer.
    pub(super) fn with_guest(&self) -> (u32, Vec<(u16, Vec<u32>)>) {
        let receiving = self.lock();
        let chains = receiving.sections.as_ref().map(Sections::with_guest);
        (receiving.sections.as_ref().map_or(0, Sections::generation), chains.unwrap_or_default())
    }

    /// As [`use_buffer`](Self::use_buffer), where another root has left it.
    pub(super) fn use_again(
        &self,
        memory: SharedBuffer,
        nvsp: &Nvsp,
        (generation, chains): (u32, &[(u16, Vec<u32>)]),
    ) -> bool {
        self.lock().generation = generation.wrapping_sub(1);
        self.use_buffer(memory, nvsp)
            && self.lock().sections.as_mut().is_some_and(|sections| sections.give_again(chains))
    }

    /// A channel was taken up again that still waits for these.
    pub(super) fn keep_only(&self, index: u16, names: &[u64]) {
        if let Some(sections) = &mut self.lock().sections {
            sections.keep_only(index, names);
        }
    }
}

impl Port for Receiver {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        let mut delivered = Delivered::default();
        let mut receiving = self.lock();
        if !receiving.wants.link {
            return Delivered::link_down(frames);
        }
        if receiving.wants.filter.is_empty() || receiving.sections.is_none() {
            return Delivered { filtered: frames.len(), ..delivered };
        }
        for frame in frames {
            if !receiving.wants.frame(frame.bytes) {
                delivered.filtered += 1;
                continue;
            }
            match receiving.add(&frame, &mut delivered) {
                Added::Yes => {}
                Added::TooLong => delivered.too_long += 1,
                // Counted as what is left over.
                Added::NoRoom => {}
            }
        }
        for index in 0..receiving.queues.len() {
            receiving.send(index, &mut delivered);
        }
        drop(receiving);
        let Delivered { frames: taken, filtered, too_long, .. } = delivered;
        if taken > 0 {
            self.received.fetch_add(taken as u64, Ordering::Relaxed);
        }
        let no_room = frames.len().saturating_sub(taken + filtered + too_long);
        if no_room > 0 {
            self.no_buffer.fetch_add(no_room as u64, Ordering::Relaxed);
        }
        delivered
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::from_bits_truncate(self.capabilities.load(Ordering::Relaxed))
    }
}

impl Wants {
    /// Whether the guest wants this frame.
    #[inline]
    fn frame(&self, frame: &[u8]) -> bool {
        let Some(to) = frame.first_chunk::<6>() else { return false };
        if self.filter.contains(PacketFilter::PROMISCUOUS) {
            return true;
        }
        if to[0] & 1 == 0 {
            return self.filter.contains(PacketFilter::DIRECTED) && self.addresses.contains(to);
        }
        if *to == [0xff; 6] {
            return self.filter.contains(PacketFilter::BROADCAST);
        }
        self.filter.contains(PacketFilter::ALL_MULTICAST)
            || (self.filter.contains(PacketFilter::MULTICAST) && self.groups.contains(to))
    }
}

/// What became of a frame.
enum Added {
    Yes,
    TooLong,
    NoRoom,
}

impl Receiving {
    /// Puts a frame where the guest will find it once its channel's packet is sent.
    #[inline]
    fn add(&mut self, frame: &Frame<'_>, delivered: &mut Delivered) -> Added {
        let whole = frame.bytes.len() <= self.wants.max_frame + TAG;
        let in_pieces = !whole && self.takes_in_pieces(frame);
        if !whole && !in_pieces {
            return Added::TooLong;
        }
        let (index, hash) = self.queue_of(frame);
        let Some(Sections { .. }) = &self.sections else { return Added::NoRoom };
        let pieces = if whole { 1 } else { self.pieces(frame.bytes.len()) };
        // There is none where no session has let frames come yet.
        let Some(queue) = self.queues.get(index) else { return Added::NoRoom };
        let most = queue.most_ranges(in_pieces);
        if pieces > most {
            return Added::TooLong;
        }
        if queue.chain.len() + pieces > most {
            self.send(index, delivered);
        }
        let (Some(sections), Some(queue)) = (&mut self.sections, self.queues.get_mut(index)) else {
            return Added::NoRoom;
        };
        if sections.free() < KEPT_FOR_CONTROL + pieces {
            return Added::NoRoom;
        }
        let mut infos = Infos::of_received(frame, hash, in_pieces);
        if whole {
            if !queue.put(sections, &infos, frame.bytes) {
                return Added::TooLong;
            }
        } else {
            self.last_pieces = self.last_pieces.wrapping_add(1);
            let room = room(sections);
            let last = pieces - 1;
            for (piece, bytes) in frame.bytes.chunks(room).enumerate() {
                infos.piece(piece == 0, piece == last, self.last_pieces);
                if !queue.put(sections, &infos, bytes) {
                    return Added::TooLong;
                }
            }
        }
        queue.frames += 1;
        queue.bytes += frame.bytes.len();
        Added::Yes
    }

    /// The channel that a frame goes to, and its flow's hash.
    #[inline]
    fn queue_of(&self, frame: &Frame<'_>) -> (usize, Option<u32>) {
        let Some(rss) = &self.rss else { return (0, None) };
        let Some((channel, hash)) = rss.channel(frame.bytes) else { return (0, None) };
        let index = usize::from(channel);
        let is_there = self.queues.get(index).is_some_and(|queue| queue.channel.is_some());
        (if is_there { index } else { 0 }, Some(hash))
    }

    /// Whether the guest takes this frame, which is longer than its MTU, in pieces.
    fn takes_in_pieces(&self, frame: &Frame<'_>) -> bool {
        match frame.offload.segmentation.map(|segmentation| segmentation.ip) {
            Some(IpVersion::V4) => self.coalescing.v4,
            Some(IpVersion::V6) => self.coalescing.v6,
            None => false,
        }
    }

    fn pieces(&self, len: usize) -> usize {
        self.sections.as_ref().map_or(usize::MAX, |sections| len.div_ceil(room(sections)))
    }

    /// Sends what was gathered for a channel.
    #[inline]
    fn send(&mut self, index: usize, delivered: &mut Delivered) {
        let Self { queues, sections, set_id, .. } = self;
        let (Some(queue), Some(sections)) = (queues.get_mut(index), sections) else { return };
        if queue.ranges.is_empty() {
            return;
        }
        let chain = std::mem::replace(&mut queue.chain, Chain::EMPTY);
        let (frames, bytes) = (std::mem::take(&mut queue.frames), std::mem::take(&mut queue.bytes));
        let sent = match (&queue.channel, &queue.head) {
            (Some(channel), Some(head)) => {
                let name = sections.sent(chain, u16::try_from(index).unwrap_or(0));
                // One that is closed has no room either.
                channel.try_send_transfer_pages(name, *set_id, &queue.ranges, head).unwrap_or(false)
            }
            (None, _) | (_, None) => false,
        };
        queue.ranges.clear();
        if sent {
            delivered.frames += frames;
            delivered.bytes += bytes;
        } else {
            sections.put_back(chain);
        }
    }
}

/// Bytes of a frame that a section has room for, beside its header and packet info.
fn room(sections: &Sections) -> usize {
    sections.section_size() - PACKET_HEADER_SIZE - Infos::MOST
}

impl Queue {
    fn nobody() -> Self {
        Self {
            channel: None,
            head: None,
            chain: Chain::EMPTY,
            ranges: Vec::new(),
            most_ranges: 1,
            frames: 0,
            bytes: 0,
        }
    }

    fn most_ranges(&self, in_pieces: bool) -> usize {
        if in_pieces && self.most_ranges == MOST_RANGES { MOST_RANGES_WITH_PIECES } else { self.most_ranges }
    }

    /// Writes one message into a section of its own.
    #[inline]
    fn put(&mut self, sections: &mut Sections, infos: &Infos, frame: &[u8]) -> bool {
        let infos = infos.bytes();
        let head = PACKET_HEADER_SIZE + infos.len();
        let len = head + frame.len();
        if len > sections.section_size() {
            return false;
        }
        let Some(at) = sections.take(&mut self.chain) else { return false };
        let (Ok(info_len), Ok(frame_len), Ok(byte_count)) =
            (u32::try_from(infos.len()), u32::try_from(frame.len()), u32::try_from(len))
        else {
            return false;
        };
        let mut bytes = [0; PACKET_HEADER_SIZE + Infos::MOST + SHORT];
        bytes[..PACKET_HEADER_SIZE].copy_from_slice(&PacketHeader::encode(info_len, frame_len));
        bytes[PACKET_HEADER_SIZE..head].copy_from_slice(infos);
        let memory = sections.memory();
        let place = at as usize;
        // The section lies within the buffer, so that neither copy fails.
        if frame.len() <= SHORT {
            bytes[head..len].copy_from_slice(frame);
            memory.write(place, &bytes[..len]);
        } else {
            memory.write(place, &bytes[..head]);
            memory.write(place + head, frame);
        }
        self.ranges.push(TransferRange { byte_count, byte_offset: at });
        true
    }
}

const _: () = assert!(ETHERNET_HEADER == 14);
