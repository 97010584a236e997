//! One channel of a NIC, without waits: what came goes in, and out comes what is to be sent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;
use vmbus_channels::{Arrivals, Buffer, ChannelError, Reply, Request, Tagged};
use vmbus_core::network::Version;
use vmbus_core::network::nvsp::{self, ChannelType, NO_SECTION, Sender};

use super::conversation::{Action, Conversation, Event, Input};
use super::error::NicError;
use super::known::Known;
use super::receive::{Malformed, Packet, ReceivedFrame};
use super::tags::Tag;
use super::transmit::{Load, Refused, Transmit, TransmitInfo, succeeded};

/// Memory for RNDIS messages about the device.
pub(super) const CONTROL_BYTES: usize = 4 * CONTROL_SLOT;
/// The longest of them, in bytes.
pub(super) const CONTROL_SLOT: usize = 4096;
/// Messages that wait for such memory before the conversation has to.
const CONTROLS_WAITING: usize = 64;
/// Frames that wait for who receives them; of more, the newest are dropped.
const FRAMES_WAITING: usize = 4096;
/// Packets that they may be in: a channel holds 1024 requests at most, and the answers to ours are among them.
const PACKETS_WAITING: usize = 768;

/// What has passed a NIC. All numbers count from its opening on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicStatistics {
    /// Frames handed to the provider.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Of those, frames that the provider has taken.
    pub completed: u64,
    /// Frames that it has not: it answered with an error.
    pub refused: u64,
    /// Frames received.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that came and that nobody took in time.
    pub overrun: u64,
    /// Messages of the provider that were none.
    pub malformed: u64,
}

impl NicStatistics {
    /// Frames that the provider has and has not answered yet.
    pub fn in_flight(&self) -> u64 {
        self.sent.saturating_sub(self.completed).saturating_sub(self.refused)
    }

    /// The sums of both.
    pub(super) fn plus(&self, other: &Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            completed: self.completed + other.completed,
            refused: self.refused + other.refused,
            received: self.received + other.received,
            received_bytes: self.received_bytes + other.received_bytes,
            overrun: self.overrun + other.overrun,
            malformed: self.malformed + other.malformed,
        }
    }
}

/// Memory for messages about the device.
#[derive(Debug)]
struct Control {
    buffer: Buffer,
    free: Vec<u32>,
    waiting: VecDeque<Vec<u8>>,
}

/// One channel.
#[derive(Debug)]
pub(super) struct Engine {
    known: Arc<Known>,
    version: Version,
    /// On the primary channel.
    conversation: Option<Conversation>,
    control: Control,
    transmit: Option<Transmit>,
    unsent: Vec<Tagged>,
    to_share: VecDeque<nvsp::Buffer>,
    /// Requests under way, frames excepted.
    asked: usize,
    packets: VecDeque<Packet>,
    inbox: VecDeque<ReceivedFrame>,
    /// Packets that those in it came with.
    unpacked: usize,
    statistics: NicStatistics,
    spare: Arrivals,
    /// Which arrivals are next, and those that came before it: two tasks may take at a time.
    next: u64,
    early: BTreeMap<u64, Arrivals>,
}

impl Engine {
    pub(super) fn new(known: &Arc<Known>, control: Buffer, conversation: Option<Conversation>) -> Self {
        let slots = u32::try_from(control.len() / CONTROL_SLOT).unwrap_or(0);
        let agreed = known.agreed().map(|(agreement, _)| agreement.version);
        let proposed = conversation.as_ref().map(Conversation::version);
        Self {
            known: Arc::clone(known),
            version: agreed.or(proposed).unwrap_or(Version::V1),
            conversation,
            control: Control { buffer: control, free: (0..slots).rev().collect(), waiting: VecDeque::new() },
            transmit: None,
            unsent: Vec::new(),
            to_share: VecDeque::new(),
            asked: 0,
            packets: VecDeque::new(),
            inbox: VecDeque::new(),
            unpacked: 0,
            statistics: NicStatistics::default(),
            spare: Arrivals::new(),
            next: 0,
            early: BTreeMap::new(),
        }
    }

    /// Frames may be sent from now on, from this channel's part of the sections.
    pub(super) fn transmit(&mut self, part: usize, parts: usize) {
        let Some((agreement, info)) = self.known.agreed() else { return };
        let (send, large) = (self.known.send.clone(), self.known.large.clone());
        let mut transmit = Transmit::new(send, large, agreement, info);
        transmit.keep_sections(part, parts);
        self.transmit = Some(transmit);
    }

    /// Leaves sections to other channels; `false`: some are in use.
    pub(super) fn share_sections(&mut self, part: usize, parts: usize) -> bool {
        match &mut self.transmit {
            Some(transmit) if transmit.is_idle() => {
                transmit.keep_sections(part, parts);
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    pub(super) fn conversation(&mut self) -> Option<&mut Conversation> {
        self.conversation.as_mut()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.conversation.as_ref().is_none_or(|conversation| conversation.ready().is_some())
    }

    /// What has passed this channel.
    pub(super) fn statistics(&self) -> NicStatistics {
        let of_conversation = self.conversation.as_ref().map_or(0, Conversation::malformed);
        NicStatistics { malformed: self.statistics.malformed + of_conversation, ..self.statistics }
    }

    /// Memory for what comes; [`absorb`](Self::absorb) wants it back.
    pub(super) fn spare(&mut self) -> Arrivals {
        std::mem::take(&mut self.spare)
    }

    /// Memory that is to be described to the root.
    pub(super) fn next_to_share(&mut self) -> Option<nvsp::Buffer> {
        self.to_share.pop_front()
    }

    /// The root knows this memory.
    pub(super) fn shared(&mut self, buffer: nvsp::Buffer, gpadl: u32) -> Result<(), NicError> {
        self.hear(Input::Shared(buffer, gpadl))
    }

    /// Asks for sub-channels; `false`: not now, or never.
    pub(super) fn ask_for_sub_channels(&mut self, count: u32) -> bool {
        let asked = self.conversation.as_mut().is_some_and(|it| it.ask_for_sub_channels(count));
        self.pump();
        asked
    }

    /// Sets again all that was set.
    pub(super) fn settle_all(&mut self) {
        self.set_again();
        self.pump();
    }

    fn set_again(&mut self) {
        let settings = self.known.settings();
        if let Some(conversation) = &mut self.conversation {
            for (oid, value) in settings {
                let ticket = conversation.set(oid, &value);
                conversation.forget(ticket);
            }
        }
    }

    /// Whether nothing of ours is unsent or unanswered, frames excepted.
    pub(super) fn is_settled(&self) -> bool {
        self.asked == 0 && self.unsent.is_empty() && self.control.waiting.is_empty()
    }

    /// Carries out what the conversation wants done.
    pub(super) fn pump(&mut self) {
        while self.control.waiting.len() < CONTROLS_WAITING {
            let Some(action) = self.conversation.as_mut().and_then(Conversation::poll_action) else { break };
            match action {
                Action::Ask(message) => self.nvsp(Tag::Asked, &message),
                Action::Tell(message) => self.nvsp(Tag::Told, &message),
                Action::Share(buffer) => self.to_share.push_back(buffer),
                Action::Control(message) => self.control.waiting.push_back(message),
                Action::Event(Event::AddressesForgotten) => {
                    self.set_again();
                }
                Action::Event(event) => self.known.happened(event),
            }
        }
        self.send_controls();
    }

    fn nvsp(&mut self, tag: Tag, message: &nvsp::Encoded) {
        self.asked += 1;
        let payload = SmallVec::from_slice(&message[..message.len().min(64)]);
        self.unsent.push(Tagged { tag: tag.to_word(), payload, range: None });
    }

    /// Puts messages about the device into memory that the provider may read, as far as there is some.
    fn send_controls(&mut self) {
        while let Some(&slot) = self.control.free.last() {
            let Some(message) = self.control.waiting.pop_front() else { return };
            let start = slot as usize * CONTROL_SLOT;
            // Longer ones are refused where they are asked for.
            if message.len() > CONTROL_SLOT || self.control.buffer.write(start, &message).is_err() {
                continue;
            }
            self.control.free.pop();
            let packet =
                nvsp::Message::Packet { channel: ChannelType::Control, section: NO_SECTION, section_size: 0 };
            let encoded = packet.encode(self.version);
            let payload = SmallVec::from_slice(&encoded[..16]);
            let range = Some(self.control.buffer.range(start..start + message.len()));
            self.asked += 1;
            self.unsent.push(Tagged { tag: Tag::Control(slot).to_word(), payload, range });
        }
    }

    /// The next packet to be sent, if one waits for room.
    pub(super) fn unsent(&self) -> Option<&Tagged> {
        self.unsent.first()
    }

    /// Sends what there is room for.
    pub(super) fn flush(
        &mut self,
        submit: impl Fn(&[Tagged]) -> Result<usize, ChannelError>,
    ) -> Result<(), ChannelError> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let sent = submit(&self.unsent)?;
        if sent == self.unsent.len() {
            self.unsent.clear();
        } else {
            self.unsent.drain(..sent);
        }
        Ok(())
    }

    /// Adds a frame to what is to be sent.
    pub(super) fn push(&mut self, frame: &[u8], info: &TransmitInfo) -> Result<(), Refused> {
        let Some(transmit) = &mut self.transmit else { return Err(Refused::Full) };
        transmit.push(frame, info, &mut self.unsent)?;
        self.statistics.sent += 1;
        self.statistics.sent_bytes += u64::try_from(frame.len()).unwrap_or(0);
        Ok(())
    }

    /// Whether a frame of the MTU would be taken now.
    pub(super) fn has_room(&self) -> bool {
        self.transmit.as_ref().is_some_and(Transmit::has_room_for_any)
    }

    /// Makes what was pushed ready to be sent.
    pub(super) fn seal(&mut self) {
        if let Some(transmit) = &mut self.transmit {
            transmit.seal(&mut self.unsent);
        }
    }

    /// Takes what came. Packets with frames wait for [`next_packet`](Self::next_packet).
    ///
    /// # Errors
    /// Until the NIC is ready, what keeps it from being used; none after that.
    pub(super) fn absorb(&mut self, mut arrivals: Arrivals) -> Result<(), NicError> {
        let Some(number) = arrivals.number.take() else { return self.absorb_next(arrivals) };
        if number != self.next {
            // Whoever has taken those before is about to bring them.
            self.early.insert(number, arrivals);
            return Ok(());
        }
        self.next += 1;
        self.absorb_next(arrivals)?;
        while let Some(arrivals) = self.early.remove(&self.next) {
            self.next += 1;
            self.absorb_next(arrivals)?;
        }
        Ok(())
    }

    fn absorb_next(&mut self, mut arrivals: Arrivals) -> Result<(), NicError> {
        for (tag, reply) in arrivals.replies.drain(..) {
            self.replied(tag, &reply)?;
        }
        for request in arrivals.requests.drain(..) {
            self.requested(request)?;
        }
        self.spare = arrivals;
        self.pump();
        Ok(())
    }

    fn replied(&mut self, tag: u64, reply: &Reply) -> Result<(), NicError> {
        let Some(tag) = Tag::of_word(tag) else { return Ok(()) };
        let load = match tag {
            Tag::Asked => {
                self.asked = self.asked.saturating_sub(1);
                return self.hear(Input::Answer(reply));
            }
            Tag::Told => {
                self.asked = self.asked.saturating_sub(1);
                return Ok(());
            }
            Tag::Control(slot) => {
                self.asked = self.asked.saturating_sub(1);
                self.control.free.push(slot);
                return Ok(());
            }
            Tag::Section(slot) => self.transmit.as_mut().map(|transmit| transmit.section_done(slot)),
            Tag::Large(slot) => self.transmit.as_mut().map(|transmit| transmit.large_done(slot)),
        };
        let Load { frames, .. } = load.unwrap_or_default();
        if succeeded(reply) {
            self.statistics.completed += u64::from(frames);
        } else {
            self.statistics.refused += u64::from(frames);
        }
        Ok(())
    }

    fn requested(&mut self, request: Request) -> Result<(), NicError> {
        if request.transfer_pages().is_none() {
            return self.hear(Input::Notice(request.payload()));
        }
        let Ok(nvsp::Message::Packet { channel, .. }) =
            nvsp::Message::parse(request.payload(), Sender::Host, None)
        else {
            self.statistics.malformed += 1;
            return Ok(());
        };
        let known = Arc::clone(&self.known);
        let agreement = match self.conversation.as_ref().and_then(Conversation::dividing) {
            Some(agreement) => Some(agreement),
            None => known.agreed().map(|(agreement, _)| agreement),
        };
        let packet = agreement.and_then(|it| Packet::new(request, &known.pieces, &it));
        let Some(packet) = packet else {
            // Of a root that is gone, from nowhere, or more than there can be.
            self.statistics.malformed += 1;
            return Ok(());
        };
        match channel {
            ChannelType::Data => self.packets.push_back(packet),
            ChannelType::Control => {
                let message = packet.control();
                drop(packet);
                match message {
                    Ok(message) => self.hear(Input::Control(&message))?,
                    Err(Malformed) => self.statistics.malformed += 1,
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, input: Input<'_>) -> Result<(), NicError> {
        let Some(conversation) = &mut self.conversation else {
            // Only the primary channel speaks of the device.
            self.statistics.malformed += 1;
            return Ok(());
        };
        let heard = conversation.handle(input);
        self.version = conversation.version();
        self.pump();
        heard
    }

    /// The next packet with frames.
    pub(super) fn next_packet(&mut self) -> Option<Packet> {
        self.packets.pop_front()
    }

    /// Gives all packets with frames back unread.
    pub(super) fn drop_packets(&mut self) {
        self.packets.clear();
    }

    /// Gives those back unread that are too many to wait for who receives them.
    pub(super) fn drop_late_packets(&mut self) {
        let late = self.packets.drain(PACKETS_WAITING.min(self.packets.len())..);
        self.statistics.overrun += late.map(|packet| u64::try_from(packet.len()).unwrap_or(0)).sum::<u64>();
    }

    /// Makes frames of the packets, for whoever receives them one by one.
    pub(super) fn unpack(&mut self) {
        if self.inbox.is_empty() {
            self.unpacked = 0;
        }
        while let Some(packet) = self.packets.pop_front() {
            if self.inbox.len() >= FRAMES_WAITING || self.unpacked >= PACKETS_WAITING {
                self.statistics.overrun += u64::try_from(packet.len()).unwrap_or(0);
                continue;
            }
            self.unpacked += 1;
            let packet = Arc::new(packet);
            let (inbox, statistics) = (&mut self.inbox, &mut self.statistics);
            let malformed = packet.visit(|place| {
                let frame = ReceivedFrame::new(&packet, place);
                count(statistics, frame.len());
                inbox.push_back(frame);
            });
            self.statistics.malformed += malformed;
        }
    }

    /// The frames that wait.
    pub(super) fn inbox(&mut self) -> &mut VecDeque<ReceivedFrame> {
        &mut self.inbox
    }

    /// Of the frames that were visited, so many were not taken.
    #[cfg(feature = "smoltcp")]
    pub(super) fn overrun(&mut self, frames: u64, bytes: u64) {
        self.statistics.overrun += frames;
        self.statistics.received = self.statistics.received.saturating_sub(frames);
        self.statistics.received_bytes = self.statistics.received_bytes.saturating_sub(bytes);
    }

    /// How many channels can have memory of their own to send from, of what this one has.
    pub(super) fn most_lanes(&self) -> usize {
        self.transmit.as_ref().map_or(1, Transmit::most_lanes)
    }

    /// What a visit to a packet has found.
    pub(super) fn visited(&mut self, frames: u64, bytes: u64, malformed: u64) {
        self.statistics.received += frames;
        self.statistics.received_bytes += bytes;
        self.statistics.malformed += malformed;
    }
}

fn count(statistics: &mut NicStatistics, len: usize) {
    statistics.received += 1;
    statistics.received_bytes += u64::try_from(len).unwrap_or(0);
}
