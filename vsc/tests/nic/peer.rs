//! A provider of network devices that does what its script says: by the rules, echoing frames, unless a test wants
//! otherwise.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, mpsc};
use vmbus_channels::{
    Borrowed, Channel, ChannelError, Client, Guid, Offer, OpenRequest, Provider, Refusal, Request, Session,
    guid,
};
use vmbus_core::network::ndis::{ChecksumV4, ChecksumV6, Object, Offload, RssCapabilities, header_of};
use vmbus_core::network::nvsp::{self, Capabilities, ChannelType, NO_SECTION, ReceiveSection, Sender};
use vmbus_core::network::rndis::{self, InitializeComplete, PACKET_HEADER_SIZE, PacketHeader, Status};
use vmbus_core::network::{CLASS, Oid, PacketInfo, PacketInfoList, PacketInfoWriter, Version, Way};
use zerocopy::IntoBytes;

pub(crate) const INSTANCE: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a21");
pub(crate) const ADDRESS: [u8; 6] = [0x02, 0, 0, 0, 0, 7];

/// What the provider is, and what it has seen.
pub(crate) struct Script {
    pub(crate) newest: Option<Version>,
    pub(crate) address: [u8; 6],
    pub(crate) most_mtu: u32,
    pub(crate) piece_size: u32,
    pub(crate) piece_offset: u32,
    pub(crate) pieces: Option<u32>,
    pub(crate) section_size: u32,
    pub(crate) max_messages: u32,
    pub(crate) max_transfer: u32,
    pub(crate) alignment_exponent: u32,
    pub(crate) queues: u32,
    pub(crate) offloads: bool,
    pub(crate) echo: bool,
    /// Answers to frames, other than that all is well.
    pub(crate) frame_status: nvsp::Status,
    /// Nothing about frames is completed before a test says so.
    pub(crate) holds: bool,
    /// Ask for RESET's answer to forget addresses.
    pub(crate) forgets: bool,
    pub(crate) seen: Mutex<Seen>,
    pub(crate) noticed: Notify,
    pub(crate) orders: Mutex<Option<mpsc::UnboundedReceiver<Order>>>,
    pub(crate) give: mpsc::UnboundedSender<Order>,
    pub(crate) opens: AtomicUsize,
}

/// What the client did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) versions: Vec<u32>,
    pub(crate) ndis: Option<(u32, u32)>,
    pub(crate) mtu: Option<u32>,
    pub(crate) capabilities: Capabilities,
    pub(crate) set: Vec<(Oid, Vec<u8>)>,
    pub(crate) queried: Vec<Oid>,
    /// Frames with what is to be done with them, and how many came in each packet.
    pub(crate) frames: Vec<(Vec<u8>, Vec<String>)>,
    pub(crate) batches: Vec<usize>,
    pub(crate) halted: bool,
    pub(crate) revoked: usize,
    pub(crate) kept_alive: usize,
    /// Completions of packets with frames.
    pub(crate) completed: usize,
    pub(crate) sub_channels: usize,
}

/// What a test has it do.
pub(crate) enum Order {
    /// Delivers these messages in one packet, each in a piece of its own.
    Deliver(Vec<Vec<u8>>),
    /// Says something about the device.
    Control(Vec<u8>),
    /// Sends an NVSP message that answers nothing.
    Notice(Vec<u8>),
    /// Writes these bytes at the buffer's beginning, and sends a packet with these ranges (offset, length), set and payload.
    Raw { bytes: Vec<u8>, set_id: Option<u16>, ranges: Vec<(u32, u32)>, payload: Vec<u8> },
    /// Completes what was held.
    Release,
}

impl Default for Script {
    fn default() -> Self {
        let (give, orders) = mpsc::unbounded_channel();
        Self {
            newest: Some(Version::V6_1),
            address: ADDRESS,
            most_mtu: 9216,
            piece_size: 0,
            piece_offset: 0,
            pieces: None,
            section_size: 6144,
            max_messages: 8,
            max_transfer: 0xefff_ffff,
            alignment_exponent: 3,
            queues: 1,
            offloads: true,
            echo: true,
            frame_status: nvsp::Status::SUCCESS,
            holds: false,
            forgets: true,
            seen: Mutex::default(),
            noticed: Notify::new(),
            orders: Mutex::new(Some(orders)),
            give,
            opens: AtomicUsize::new(0),
        }
    }
}

impl Script {
    pub(crate) fn order(&self, order: Order) {
        let _ = self.give.send(order);
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    fn see<T>(&self, what: impl FnOnce(&mut Seen) -> T) -> T {
        let result = what(&mut self.seen.lock().unwrap());
        self.noticed.notify_waiters();
        result
    }

    /// Waits until the client has done that.
    pub(crate) async fn until(&self, mut what: impl FnMut(&Seen) -> bool) -> Seen {
        loop {
            let mut noticed = std::pin::pin!(self.noticed.notified());
            noticed.as_mut().enable();
            let seen = self.seen();
            if what(&seen) {
                return seen;
            }
            noticed.await;
        }
    }
}

/// A message with a frame, as a provider sends it.
pub(crate) fn message(frame: &[u8], info: &[PacketInfo<'_>]) -> Vec<u8> {
    let mut writer = PacketInfoWriter::default();
    info.iter().for_each(|info| writer.push(*info));
    let info = writer.bytes();
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
    let mut message = PacketHeader::encode(len(info), len(frame)).to_vec();
    message.extend_from_slice(info);
    message.extend_from_slice(frame);
    message
}

pub(crate) struct Peer(pub(crate) Arc<Script>);

impl Provider for Peer {
    type Session = Conversation;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "nic").instance(INSTANCE)
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Conversation, Refusal> {
        self.0.opens.fetch_add(1, Ordering::Relaxed);
        let orders = self.0.orders.lock().unwrap().take();
        let (back, returned) = mpsc::unbounded_channel();
        Ok(Conversation {
            script: Arc::clone(&self.0),
            orders,
            version: None,
            mtu: 1514,
            receive: None,
            send: None,
            free: Vec::new(),
            back,
            returned,
            backlog: VecDeque::new(),
            held: Vec::new(),
            shared: Arc::default(),
        })
    }
}

pub(crate) struct Conversation {
    script: Arc<Script>,
    orders: Option<mpsc::UnboundedReceiver<Order>>,
    version: Option<Version>,
    mtu: u32,
    receive: Option<(u16, Borrowed)>,
    send: Option<Arc<Borrowed>>,
    free: Vec<u32>,
    back: Back,
    returned: mpsc::UnboundedReceiver<Returned>,
    /// What waits for pieces.
    backlog: VecDeque<(Vec<Vec<u8>>, ChannelType)>,
    held: Vec<Request>,
    /// What sub-channels use, too.
    shared: Arc<Mutex<Option<Arc<Borrowed>>>>,
}

impl Session for Conversation {
    async fn serve(mut self, channel: Channel) -> Result<(), ChannelError> {
        let channel = Arc::new(channel);
        let back = self.back.clone();
        let mut orders = self.orders.take();
        let result = loop {
            let order = async {
                match &mut orders {
                    Some(orders) => orders.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = channel.recv() => match request {
                    Ok(Some(request)) => self.packet(&channel, request, &back).await?,
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                },
                Some(order) = order => self.carry_out(&channel, order, &back).await?,
                Some(returned) = self.returned.recv() => {
                    self.take_back(returned);
                    self.deliver_backlog(&channel, &back).await?;
                }
            }
        };
        // The next session takes orders, too.
        *self.script.orders.lock().unwrap() = orders;
        result
    }
}

/// Pieces of a packet that the client has completed.
type Returned = (Vec<u32>, ChannelType);
type Back = mpsc::UnboundedSender<Returned>;

impl Conversation {
    async fn packet(
        &mut self,
        channel: &Arc<Channel>,
        request: Request,
        back: &Back,
    ) -> Result<(), ChannelError> {
        let version = self.version.unwrap_or(Version::V6_1);
        let parsed = nvsp::Message::parse(request.payload(), Sender::Guest, self.version);
        let message = parsed.map_err(|error| ChannelError::Protocol(error.to_string()))?;
        let mut answer = None;
        match message {
            nvsp::Message::Init { version } => {
                self.script.see(|seen| seen.versions.push(version));
                let known = Version::from_word(version).filter(|it| Some(*it) <= self.script.newest);
                self.version = known;
                let status = if known.is_some() { nvsp::Status::SUCCESS } else { nvsp::Status::NONE };
                answer = Some(nvsp::Message::InitComplete { version, max_mdl_chain: 34, status });
            }
            nvsp::Message::NdisConfig { mtu, capabilities } => {
                self.mtu = mtu.min(self.script.most_mtu + 14);
                self.script.see(|seen| (seen.mtu, seen.capabilities) = (Some(mtu), capabilities));
            }
            nvsp::Message::NdisVersion { major, minor } => {
                self.script.see(|seen| seen.ndis = Some((major, minor)));
            }
            nvsp::Message::Buffer { buffer: nvsp::Buffer::Receive, gpadl, id } => {
                let memory = channel.borrow_list(gpadl)?;
                let piece_size = match self.script.piece_size {
                    0 => self.mtu + 256 + 36,
                    size => size,
                };
                let most = u32::try_from(memory.len()).unwrap() / piece_size;
                let pieces = self.script.pieces.unwrap_or(most);
                // The first is for tests.
                self.free = (1..pieces.min(most)).rev().map(|piece| piece * piece_size).collect();
                self.receive = Some((id, memory));
                answer = Some(nvsp::Message::ReceiveBufferComplete {
                    status: nvsp::Status::SUCCESS,
                    sections: 1,
                    first: ReceiveSection {
                        offset: self.script.piece_offset.into(),
                        piece_size: piece_size.into(),
                        pieces: pieces.into(),
                        end: piece_size.wrapping_mul(pieces).into(),
                    },
                });
            }
            nvsp::Message::Buffer { buffer: nvsp::Buffer::Send, gpadl, .. } => {
                let section_size = self.script.section_size;
                let status = if section_size == 0 { nvsp::Status::FAILURE } else { nvsp::Status::SUCCESS };
                let memory = Arc::new(channel.borrow_list(gpadl)?);
                *self.shared.lock().unwrap() = Some(Arc::clone(&memory));
                self.send = Some(memory);
                answer = Some(nvsp::Message::SendBufferComplete { status, section_size });
            }
            nvsp::Message::Revoke { buffer, .. } => {
                match buffer {
                    nvsp::Buffer::Receive => self.receive = None,
                    nvsp::Buffer::Send => (self.send, *self.shared.lock().unwrap()) = (None, None),
                }
                self.script.see(|seen| seen.revoked += 1);
            }
            nvsp::Message::SubchannelRequest { count, .. } => {
                let count = count.min(self.script.queues - 1);
                let (script, shared) = (Arc::clone(&self.script), Arc::clone(&self.shared));
                let admit = move |_: &OpenRequest| {
                    script.see(|seen| seen.sub_channels += 1);
                    let (back, returned) = mpsc::unbounded_channel();
                    Ok(Conversation {
                        script: Arc::clone(&script),
                        orders: None,
                        version: Some(version),
                        mtu: 1514,
                        receive: None,
                        send: shared.lock().unwrap().clone(),
                        free: Vec::new(),
                        back,
                        returned,
                        backlog: VecDeque::new(),
                        held: Vec::new(),
                        shared: Arc::clone(&shared),
                    })
                };
                let offered = channel.offer_subchannels(u16::try_from(count).unwrap(), admit).await;
                offered.map_err(ChannelError::Refused)?;
                let status = nvsp::Status::SUCCESS;
                answer = Some(nvsp::Message::SubchannelComplete { status, count });
            }
            nvsp::Message::Packet { channel: ChannelType::Control, .. } => {
                let bytes = contents(&request);
                request.complete(&done(nvsp::Status::SUCCESS)).await?;
                return self.control(channel, &bytes, back).await;
            }
            nvsp::Message::Packet { channel: ChannelType::Data, section, section_size } => {
                return self.frames(channel, request, section, section_size, back).await;
            }
            other => return Err(ChannelError::Protocol(format!("{other:?}"))),
        }
        match answer {
            Some(answer) => request.complete(&answer.encode(version)).await,
            None => request.complete(&[]).await,
        }
    }

    async fn frames(
        &mut self,
        channel: &Arc<Channel>,
        request: Request,
        section: u32,
        size: u32,
        back: &Back,
    ) -> Result<(), ChannelError> {
        let mut bytes = Vec::new();
        if section != NO_SECTION {
            let start = (section * self.script.section_size) as usize;
            bytes.resize(size as usize, 0);
            self.send.as_ref().expect("a send buffer").read(start, &mut bytes)?;
        }
        bytes.extend(contents(&request));
        let mut rest = &bytes[..];
        let mut echoes = Vec::new();
        while !rest.is_empty() {
            let head = rest.first_chunk::<PACKET_HEADER_SIZE>().expect("a header");
            let header = PacketHeader::parse(head, rest.len()).unwrap().expect("a frame");
            let info = PacketInfoList::new(&rest[header.info.clone()], Way::Transmit);
            let info: Vec<String> = info.map(|info| format!("{:?}", info.unwrap())).collect();
            let frame = rest[header.frame.clone()].to_vec();
            echoes.push(message(&frame, &[]));
            self.script.see(|seen| seen.frames.push((frame, info)));
            rest = &rest[header.message_len..];
        }
        self.script.see(|seen| seen.batches.push(echoes.len()));
        if self.script.echo && self.receive.is_some() {
            self.deliver(channel, &echoes, ChannelType::Data, back).await?;
        }
        if self.script.holds {
            self.held.push(request);
            return Ok(());
        }
        request.complete(&done(self.script.frame_status)).await
    }

    async fn control(
        &mut self,
        channel: &Arc<Channel>,
        bytes: &[u8],
        back: &Back,
    ) -> Result<(), ChannelError> {
        let parsed = rndis::Message::parse(bytes);
        let message = parsed.map_err(|error| ChannelError::Protocol(error.to_string()))?;
        let mut answer = Vec::new();
        let status = Status::SUCCESS;
        match message {
            rndis::Message::Initialize { request, .. } => {
                rndis::Message::InitializeComplete(InitializeComplete {
                    request,
                    status,
                    max_packets: self.script.max_messages,
                    max_transfer: self.script.max_transfer,
                    alignment_exponent: self.script.alignment_exponent,
                })
                .encode(&mut answer);
            }
            rndis::Message::Query { request, oid, .. } => {
                self.script.see(|seen| seen.queried.push(oid));
                let value = self.value(oid);
                let status = if value.is_some() { status } else { Status::INVALID_OID };
                let data = &value.unwrap_or_default()[..];
                rndis::Message::QueryComplete { request, status, data }.encode(&mut answer);
            }
            rndis::Message::Set { request, oid, data } => {
                self.script.see(|seen| seen.set.push((oid, data.to_vec())));
                let status = match oid {
                    Oid::GEN_MACHINE_NAME => Status::NOT_SUPPORTED,
                    _ => status,
                };
                rndis::Message::SetComplete { request, status }.encode(&mut answer);
            }
            rndis::Message::KeepAlive { request } => {
                rndis::Message::KeepAliveComplete { request, status }.encode(&mut answer);
            }
            rndis::Message::KeepAliveComplete { .. } => {
                self.script.see(|seen| seen.kept_alive += 1);
                return Ok(());
            }
            rndis::Message::Reset => {
                let addressing_reset = self.script.forgets;
                rndis::Message::ResetComplete { status, addressing_reset }.encode(&mut answer);
            }
            rndis::Message::Halt { .. } => {
                self.script.see(|seen| seen.halted = true);
                return Ok(());
            }
            other => return Err(ChannelError::Protocol(format!("{other:?}"))),
        }
        self.deliver(channel, &[answer], ChannelType::Control, back).await
    }

    fn value(&self, oid: Oid) -> Option<Vec<u8>> {
        let word = |word: u32| Some(word.to_le_bytes().to_vec());
        match oid {
            Oid::GEN_MAXIMUM_FRAME_SIZE => word(self.mtu - 14),
            Oid::ETHERNET_PERMANENT_ADDRESS | Oid::ETHERNET_CURRENT_ADDRESS => {
                Some(self.script.address.to_vec())
            }
            Oid::GEN_MEDIA_CONNECT_STATUS => word(0),
            Oid::GEN_LINK_SPEED => word(100_000_000),
            Oid::GEN_VENDOR_ID => word(0x155d),
            Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES if self.script.offloads => Some(offloads()),
            Oid::GEN_RECEIVE_SCALE_CAPABILITIES => {
                let mut capabilities =
                    RssCapabilities { header: header_of::<RssCapabilities>(), ..RssCapabilities::default() };
                (capabilities.queues, capabilities.table_entries) = (self.script.queues.into(), 128.into());
                Some(capabilities.as_bytes().to_vec())
            }
            _ => None,
        }
    }

    /// Delivers these, each in a piece of its own, as soon as there are pieces. Unlike a real provider this one drops
    /// nothing; meanwhile it reads on, for pieces come back behind requests.
    async fn deliver(
        &mut self,
        channel: &Arc<Channel>,
        messages: &[Vec<u8>],
        kind: ChannelType,
        back: &Back,
    ) -> Result<(), ChannelError> {
        self.backlog.push_back((messages.to_vec(), kind));
        self.deliver_backlog(channel, back).await
    }

    async fn deliver_backlog(&mut self, channel: &Arc<Channel>, back: &Back) -> Result<(), ChannelError> {
        while let Some((messages, kind)) = self.backlog.pop_front() {
            let Some((set_id, memory)) = &self.receive else { return Ok(()) };
            if messages.len() > self.free.len() {
                self.backlog.push_front((messages, kind));
                return Ok(());
            }
            let (mut ranges, mut pieces) = (Vec::new(), Vec::new());
            for message in &messages {
                let piece = self.free.pop().expect("as many as there are messages");
                memory.write(piece as usize, message)?;
                ranges.push(range(piece, u32::try_from(message.len()).unwrap()));
                pieces.push(piece);
            }
            let payload = nvsp::Message::Packet { channel: kind, section: NO_SECTION, section_size: 0 };
            let payload = payload.encode(self.version.unwrap_or(Version::V6_1));
            let sent = channel.send_transfer_pages(*set_id, &ranges, &payload).await?;
            let back = back.clone();
            tokio::spawn(async move {
                if sent.reply().await.is_ok() {
                    let _ = back.send((pieces, kind));
                }
            });
        }
        Ok(())
    }

    fn take_back(&mut self, (pieces, kind): Returned) {
        self.free.extend(pieces);
        if kind == ChannelType::Data {
            self.script.see(|seen| seen.completed += 1);
        }
    }

    async fn carry_out(
        &mut self,
        channel: &Arc<Channel>,
        order: Order,
        back: &Back,
    ) -> Result<(), ChannelError> {
        match order {
            Order::Deliver(messages) => self.deliver(channel, &messages, ChannelType::Data, back).await,
            Order::Control(message) => self.deliver(channel, &[message], ChannelType::Control, back).await,
            Order::Notice(bytes) => channel.notify(&bytes).await,
            Order::Raw { bytes, set_id, ranges, payload } => {
                let (own, memory) = self.receive.as_ref().expect("a receive buffer");
                memory.write(0, &bytes)?;
                let ranges: Vec<_> = ranges.into_iter().map(|(offset, len)| range(offset, len)).collect();
                let set_id = set_id.unwrap_or(*own);
                let sent = channel.send_transfer_pages(set_id, &ranges, &payload).await?;
                let back = back.clone();
                tokio::spawn(async move {
                    if sent.reply().await.is_ok() {
                        let _ = back.send((Vec::new(), ChannelType::Data));
                    }
                });
                Ok(())
            }
            Order::Release => {
                for request in self.held.drain(..) {
                    request.complete(&done(self.script.frame_status)).await?;
                }
                Ok(())
            }
        }
    }
}

fn range(byte_offset: u32, byte_count: u32) -> vmbus_ringbuf::TransferRange {
    vmbus_ringbuf::TransferRange { byte_count, byte_offset }
}

/// The payload of a completion of an RNDIS message.
pub(crate) fn done(status: nvsp::Status) -> Vec<u8> {
    nvsp::Message::PacketComplete { status }.encode(Version::V1)[..8].to_vec()
}

fn contents(request: &Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    for pages in request.ranges() {
        let start = bytes.len();
        bytes.resize(start + pages.len(), 0);
        pages.read(0, &mut bytes[start..]).unwrap();
    }
    bytes
}

fn offloads() -> Vec<u8> {
    let v4 = ChecksumV4::TCP | ChecksumV4::UDP | ChecksumV4::IP | ChecksumV4::TCP_OPTIONS;
    let v6 = ChecksumV6::TCP | ChecksumV6::UDP | ChecksumV6::TCP_OPTIONS;
    let mut offload = Offload { header: header_of::<Offload>(), ..Offload::default() };
    (offload.v4_transmit, offload.v4_receive) = (v4.bits().into(), v4.bits().into());
    (offload.v6_transmit, offload.v6_receive) = (v6.bits().into(), v6.bits().into());
    (offload.lso_v4_max_size, offload.lso_v6_max_size) = (62780.into(), 62780.into());
    debug_assert_eq!(Offload::HEADER.2, 156);
    offload.as_bytes().to_vec()
}
