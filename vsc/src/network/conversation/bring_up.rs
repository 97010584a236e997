//! From INIT to a NIC that is ready, one step after the other.

use vmbus_core::network::ndis::{
    Object, ObjectHeader, Offload, OffloadParameters, RssCapabilities, header_of,
};
use vmbus_core::network::nvsp::{self, Buffer, Capabilities, ReceiveSection, Sender};
use vmbus_core::network::rndis::{self, InitializeComplete, Status};
use vmbus_core::network::{Oid, Version};
use zerocopy::IntoBytes;

use super::requests::{Ended, Ticket};
use super::{Action, Buffers, Conversation, Event, LONGEST_CONTROL, SEND_BUFFER};
use crate::network::error::NicError;
use crate::network::options::{ETHERNET_HEADER, NicInfo, NicOptions, Offloads, queues};

/// The largest alignment of messages in a packet that makes sense: 2 to this.
const LARGEST_ALIGNMENT: u32 = 12;
/// What a message needs beside its frame, with room to spare for packet information.
const HEADERS: u32 = 256;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Version(Version),
    /// Until the root knows the buffer's pages.
    Sharing(Buffer),
    /// Until the provider has taken the buffer.
    Offering(Buffer),
    Initializing,
    /// Asking one question after the other.
    Asking(usize),
    /// Saying what of the offloads is wanted.
    Choosing,
    Ready,
    Halted,
}

/// What is asked of the device, in this order. What a device does not know it does not have.
const QUESTIONS: [Oid; 7] = [
    Oid::GEN_MAXIMUM_FRAME_SIZE,
    Oid::ETHERNET_PERMANENT_ADDRESS,
    Oid::ETHERNET_CURRENT_ADDRESS,
    Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
    Oid::GEN_MEDIA_CONNECT_STATUS,
    Oid::GEN_LINK_SPEED,
    Oid::GEN_RECEIVE_SCALE_CAPABILITIES,
];

/// What both ends agreed on, that packets in flight depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Agreement {
    pub(in super::super) version: Version,
    /// Bytes of a piece of the receive buffer, and how many there are.
    pub(in super::super) piece_size: u32,
    pub(in super::super) pieces: u32,
    /// Bytes of a section of the send buffer; 0: the provider does not take it.
    pub(in super::super) section_size: u32,
    /// Messages that one packet may carry.
    pub(in super::super) max_messages: u32,
    /// Bytes that one packet may carry.
    pub(in super::super) max_transfer: u32,
    /// Messages in one packet begin at multiples of this.
    pub(in super::super) alignment: u32,
    /// Whether we take coalesced segments.
    pub(in super::super) coalesces: bool,
}

impl Agreement {
    /// Whether what was made for `before` is in order with this one, too.
    fn keeps(&self, before: &Self) -> bool {
        self.version == before.version
            && self.piece_size == before.piece_size
            && self.section_size == before.section_size
            && self.max_messages >= before.max_messages
            && self.max_transfer >= before.max_transfer
            && self.alignment <= before.alignment
    }
}

#[derive(Debug)]
pub(super) struct BringUp {
    step: Step,
    /// Still to be proposed, after the one that is.
    versions: Vec<Version>,
    proposed: (Version, Version),
    frame_size: u32,
    coalescing: bool,
    buffers: Buffers,
    agreement: Agreement,
    info: NicInfo,
    /// The request that the next step waits for.
    ticket: Option<Ticket>,
    again: Option<(Agreement, NicInfo)>,
}

impl BringUp {
    pub(super) fn new(options: &NicOptions, buffers: Buffers, again: Option<(Agreement, NicInfo)>) -> Self {
        let wanted = |version: &Version| match &again {
            // Packets in flight have the form of this version.
            Some((agreement, _)) => *version == agreement.version,
            None => options.versions.contains(version),
        };
        // Newest first.
        let mut versions: Vec<Version> = Version::ALL.into_iter().filter(wanted).collect();
        let first = versions.pop().unwrap_or(*options.versions.end());
        Self {
            step: Step::Version(first),
            versions,
            proposed: (*options.versions.start(), *options.versions.end()),
            frame_size: options.mtu + ETHERNET_HEADER,
            coalescing: options.coalescing,
            buffers,
            agreement: Agreement {
                version: first,
                piece_size: 0,
                pieces: 0,
                section_size: 0,
                max_messages: 1,
                max_transfer: 0,
                alignment: 1,
                coalesces: false,
            },
            info: NicInfo {
                version: first,
                address: [0; 6],
                mtu: options.mtu,
                offloads: Offloads::default(),
                queues: 1,
                rss_entries: 0,
                pieces: 0,
                section_size: 0,
            },
            ticket: None,
            again,
        }
    }

    pub(super) fn step(&self) -> Step {
        self.step
    }

    pub(super) fn version(&self) -> Version {
        self.agreement.version
    }

    pub(super) fn buffers(&self) -> Buffers {
        self.buffers
    }

    pub(super) fn halt(&mut self) {
        self.step = Step::Halted;
    }

    pub(super) fn dividing(&self) -> Option<Agreement> {
        (self.agreement.pieces > 0).then_some(self.agreement)
    }

    pub(super) fn result(&self) -> Option<(Agreement, NicInfo)> {
        match self.step {
            Step::Ready | Step::Halted => Some((self.agreement, self.info)),
            Step::Version(_)
            | Step::Sharing(_)
            | Step::Offering(_)
            | Step::Initializing
            | Step::Asking(_)
            | Step::Choosing => None,
        }
    }
}

impl Conversation {
    pub(super) fn begin_bring_up(&mut self) {
        if let Step::Version(version) = self.bring_up.step {
            self.propose(version);
        }
    }

    fn propose(&mut self, version: Version) {
        self.bring_up.step = Step::Version(version);
        self.bring_up.agreement.version = version;
        self.bring_up.info.version = version;
        self.ask(&nvsp::Message::Init { version: version.word() });
    }

    fn ask(&mut self, message: &nvsp::Message) {
        self.actions.push_back(Action::Ask(message.encode(self.version())));
    }

    fn tell(&mut self, message: &nvsp::Message) {
        self.actions.push_back(Action::Tell(message.encode(self.version())));
    }

    pub(super) fn shared(&mut self, buffer: Buffer, gpadl: u32) {
        if self.bring_up.step == Step::Sharing(buffer) {
            self.bring_up.step = Step::Offering(buffer);
            let id = match buffer {
                Buffer::Receive => self.bring_up.buffers.receive_name,
                Buffer::Send => SEND_BUFFER,
            };
            self.ask(&nvsp::Message::Buffer { buffer, gpadl, id });
        }
    }

    fn share(&mut self, buffer: Buffer) {
        self.bring_up.step = Step::Sharing(buffer);
        self.actions.push_back(Action::Share(buffer));
    }

    /// The answer to an NVSP message of the start.
    pub(super) fn bring_up_answered(&mut self, bytes: &[u8]) -> Result<(), NicError> {
        let version = self.version();
        match self.bring_up.step {
            Step::Version(version) => match nvsp::Message::parse(bytes, Sender::Host, None)? {
                nvsp::Message::InitComplete { status: nvsp::Status::SUCCESS, .. } => self.agreed(version),
                nvsp::Message::InitComplete { .. } => match self.bring_up.versions.pop() {
                    Some(older) => self.propose(older),
                    None if self.bring_up.again.is_some() => {
                        return Err(NicError::Changed(format!("it knows no version {version} any more")));
                    }
                    None => {
                        let (oldest, newest) = self.bring_up.proposed;
                        return Err(NicError::NoCommonVersion { oldest, newest });
                    }
                },
                _ => return Err(NicError::Answer("INIT")),
            },
            Step::Offering(Buffer::Receive) => {
                match nvsp::Message::parse(bytes, Sender::Host, Some(version))? {
                    nvsp::Message::ReceiveBufferComplete {
                        status: nvsp::Status::SUCCESS,
                        sections,
                        first,
                    } => self.divided(sections, first)?,
                    nvsp::Message::ReceiveBufferComplete { status, .. } => {
                        return Err(NicError::Refused { step: "the receive buffer", status });
                    }
                    _ => return Err(NicError::Answer("SEND_RECV_BUFFER")),
                }
            }
            Step::Offering(Buffer::Send) => {
                match nvsp::Message::parse(bytes, Sender::Host, Some(version))? {
                    nvsp::Message::SendBufferComplete { status: nvsp::Status::SUCCESS, section_size } => {
                        self.sectioned(section_size)?;
                    }
                    // It can be done without.
                    nvsp::Message::SendBufferComplete { .. } => {}
                    _ => return Err(NicError::Answer("SEND_SEND_BUFFER")),
                }
                self.initialize();
            }
            Step::Sharing(_)
            | Step::Initializing
            | Step::Asking(_)
            | Step::Choosing
            | Step::Ready
            | Step::Halted => return Err(NicError::Answer("nothing")),
        }
        Ok(())
    }

    fn agreed(&mut self, version: Version) {
        self.bring_up.agreement.coalesces = version >= Version::V6_1 && self.bring_up.coalescing;
        if version >= Version::V2 {
            let mut capabilities = Capabilities::IEEE_8021Q;
            if version >= Version::V5 {
                // Without it no link speed is told.
                capabilities |= Capabilities::TEAMING;
            }
            if self.bring_up.agreement.coalesces {
                capabilities |= Capabilities::RSC;
            }
            self.tell(&nvsp::Message::NdisConfig { mtu: self.bring_up.frame_size, capabilities });
        }
        let (major, minor) = version.ndis();
        self.tell(&nvsp::Message::NdisVersion { major, minor });
        self.share(Buffer::Receive);
    }

    /// The provider has divided the receive buffer.
    fn divided(&mut self, sections: u32, first: ReceiveSection) -> Result<(), NicError> {
        let (size, count) = (first.piece_size.get(), first.pieces.get());
        let len = self.bring_up.buffers.receive_len;
        let fits = u64::from(size) * u64::from(count) <= u64::try_from(len).unwrap_or(0);
        let whole = sections >= 1 && first.offset.get() == 0 && size >= SHORTEST_PIECE && count >= 1;
        if !(fits && whole) {
            return Err(NicError::Division { what: "the receive buffer", len, count, size });
        }
        (self.bring_up.agreement.piece_size, self.bring_up.agreement.pieces) = (size, count);
        self.bring_up.info.pieces = count;
        if self.bring_up.buffers.send_len == 0 {
            self.initialize()
        } else {
            self.share(Buffer::Send)
        }
        Ok(())
    }

    /// The provider has said how large the send buffer's sections are.
    fn sectioned(&mut self, size: u32) -> Result<(), NicError> {
        let len = self.bring_up.buffers.send_len;
        if u64::from(size) > u64::try_from(len).unwrap_or(0) {
            return Err(NicError::Division { what: "the send buffer", len, count: 1, size });
        }
        // Smaller ones are of no use.
        let size = if size >= SHORTEST_PIECE { size } else { 0 };
        (self.bring_up.agreement.section_size, self.bring_up.info.section_size) = (size, size);
        Ok(())
    }

    fn initialize(&mut self) {
        self.bring_up.step = Step::Initializing;
        let message = |request| rndis::Message::Initialize {
            request,
            major: 1,
            minor: 0,
            max_transfer: LONGEST_CONTROL,
        };
        self.bring_up.ticket = Some(self.begin_request(message));
    }

    pub(super) fn initialized(&mut self, complete: &InitializeComplete) -> Result<(), NicError> {
        let InitializeComplete { request, status, max_packets, max_transfer, alignment_exponent } = *complete;
        let ticket = self.requests.ended(request, rndis::MessageType::INITIALIZE, status, &[]);
        let Some(ticket) = ticket.filter(|_| self.bring_up.step == Step::Initializing) else {
            return Err(NicError::Answer("INITIALIZE"));
        };
        self.requests.forget(ticket);
        if status != Status::SUCCESS {
            return Err(NicError::Object { oid: Oid(0), status });
        }
        // Something for one frame at least.
        let needed = self.bring_up.frame_size + HEADERS;
        if max_transfer < needed || alignment_exponent > LARGEST_ALIGNMENT {
            return Err(NicError::Answer("INITIALIZE"));
        }
        let agreement = &mut self.bring_up.agreement;
        agreement.max_messages = max_packets.max(1);
        agreement.max_transfer = max_transfer;
        agreement.alignment = 1 << alignment_exponent;
        if let Some((before, _)) = &self.bring_up.again
            && !self.bring_up.agreement.keeps(before)
        {
            return Err(NicError::Changed("it takes no packets of the old form any more".into()));
        }
        self.ask_question(0);
        Ok(())
    }

    fn ask_question(&mut self, index: usize) {
        let Some(&oid) = QUESTIONS.get(index) else { return self.choose() };
        let since = match oid {
            Oid::GEN_LINK_SPEED | Oid::GEN_RECEIVE_SCALE_CAPABILITIES => Version::V5,
            _ => Version::V1,
        };
        if self.version() < since {
            return self.ask_question(index + 1);
        }
        self.bring_up.step = Step::Asking(index);
        let ticket = match oid {
            // Which form of the structure we understand.
            Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => {
                let asked = Offload { header: self.offload_header(), ..Offload::default() };
                let size = usize::from(asked.header.size.get());
                self.query(oid, &asked.as_bytes()[..size])
            }
            Oid::GEN_RECEIVE_SCALE_CAPABILITIES => {
                let asked =
                    RssCapabilities { header: header_of::<RssCapabilities>(), ..RssCapabilities::default() };
                self.query(oid, asked.as_bytes())
            }
            oid => self.query(oid, &[]),
        };
        self.bring_up.ticket = Some(ticket);
    }

    fn offload_header(&self) -> ObjectHeader {
        let newest = header_of::<Offload>();
        match self.version() {
            Version::V1 | Version::V2 | Version::V4 => {
                ObjectHeader { revision: 2, size: 144.into(), ..newest }
            }
            Version::V5 | Version::V6 | Version::V6_1 => newest,
        }
    }

    /// A request has ended; one of the start is followed by the next step.
    pub(super) fn bring_up_ended(&mut self, ticket: Ticket) -> Result<(), NicError> {
        if self.bring_up.ticket != Some(ticket) {
            return Ok(());
        }
        let Some(ended) = self.requests.take(ticket) else { return Ok(()) };
        match self.bring_up.step {
            Step::Asking(index) => {
                if let Some(&oid) = QUESTIONS.get(index) {
                    self.learn(oid, &ended)?;
                }
                self.ask_question(index + 1);
            }
            // What it does not let be chosen it does as it likes.
            Step::Choosing => self.finish()?,
            Step::Version(_)
            | Step::Sharing(_)
            | Step::Offering(_)
            | Step::Initializing
            | Step::Ready
            | Step::Halted => {}
        }
        Ok(())
    }

    fn learn(&mut self, oid: Oid, ended: &Ended) -> Result<(), NicError> {
        let known = ended.status == Status::SUCCESS;
        let data = &ended.data[..];
        let word = data.first_chunk::<4>().copied().map(u32::from_le_bytes).filter(|_| known);
        let info = &mut self.bring_up.info;
        match oid {
            Oid::GEN_MAXIMUM_FRAME_SIZE => {
                // Less than what was asked for, if it does not take that.
                let most = self.bring_up.frame_size - ETHERNET_HEADER;
                info.mtu = word.unwrap_or(most).min(most);
                if info.mtu < SMALLEST_MTU {
                    return Err(NicError::Answer("the longest frame"));
                }
            }
            Oid::ETHERNET_PERMANENT_ADDRESS => match data.first_chunk::<6>().filter(|_| known) {
                Some(&address) => info.address = address,
                None => return Err(NicError::Object { oid, status: ended.status }),
            },
            Oid::ETHERNET_CURRENT_ADDRESS => {
                if let Some(&address) = data.first_chunk::<6>().filter(|_| known) {
                    info.address = address;
                }
            }
            Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => {
                if let Ok(offload) = Offload::read(data)
                    && known
                {
                    info.offloads = Offloads::of(&offload);
                }
            }
            Oid::GEN_MEDIA_CONNECT_STATUS => {
                if let Some(disconnected) = word {
                    self.event(Event::Link(disconnected == 0));
                }
            }
            Oid::GEN_LINK_SPEED => {
                if let Some(speed) = word {
                    self.event(Event::LinkSpeed(100 * u64::from(speed)));
                }
            }
            Oid::GEN_RECEIVE_SCALE_CAPABILITIES => {
                if let Ok(capabilities) = RssCapabilities::read(data)
                    && known
                {
                    (info.queues, info.rss_entries) = queues(&capabilities);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Switches on what there is.
    fn choose(&mut self) {
        const BOTH: u8 = 4;
        const ON: u8 = 2;
        const OFF: u8 = 1;
        let offloads = self.bring_up.info.offloads;
        let on = |there: bool| if there { ON } else { OFF };
        let coalescing = on(self.bring_up.coalescing);
        let old = self.version() <= Version::V4;
        let udp = if old { 0 } else { BOTH };
        let mut parameters = OffloadParameters {
            header: header_of::<OffloadParameters>(),
            ip_v4_checksum: BOTH,
            tcp_v4_checksum: BOTH,
            udp_v4_checksum: udp,
            tcp_v6_checksum: BOTH,
            udp_v6_checksum: udp,
            lso_v1: OFF,
            lso_v2_v4: on(offloads.large_send_v4 > 0),
            lso_v2_v6: on(offloads.large_send_v6 > 0),
            rsc_v4: coalescing,
            rsc_v6: coalescing,
            ..OffloadParameters::default()
        };
        if old {
            (parameters.header.revision, parameters.header.size) = (2, 22.into());
        }
        let size = usize::from(parameters.header.size.get());
        self.bring_up.step = Step::Choosing;
        let ticket = self.set(Oid::TCP_OFFLOAD_PARAMETERS, &parameters.as_bytes()[..size]);
        self.bring_up.ticket = Some(ticket);
    }

    fn finish(&mut self) -> Result<(), NicError> {
        if let Some((_, before)) = &self.bring_up.again {
            let now = &self.bring_up.info;
            if now.address != before.address {
                return Err(NicError::Changed("its address is another one".into()));
            }
            if now.mtu < before.mtu {
                return Err(NicError::Changed(format!(
                    "it takes no packets of {} bytes any more",
                    before.mtu
                )));
            }
        }
        (self.bring_up.step, self.bring_up.ticket) = (Step::Ready, None);
        Ok(())
    }
}

/// What every link carries.
const SMALLEST_MTU: u32 = 68;
/// The smallest piece or section that is of use: a header, all packet information, a short frame.
const SHORTEST_PIECE: u32 = 192;
