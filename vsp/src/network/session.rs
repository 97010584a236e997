//! Serves one guest's open channel to a NIC.
//!
//! Packets are taken in batches; their frames are copied into one batch for the switch, which is sent before the packets
//! are completed. What a guest gives back of its receive buffer is free again at once. Frames to the guest do not come
//! through here: see [`Receiver`].
//!
//! A guest that asks for sub-channels gets a session for each, which carries frames alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prost::Message as _;
use tokio::sync::watch;
use tokio::task::coop::consume_budget;
use tokio::task::yield_now;
use vmbus_channels::{Channel, ChannelError, Completions, OpenRequest, Refusal, Reply, Request, Session};
use vmbus_core::network::nvsp::{
    Buffer, Capabilities, ChannelType, Encoded, INDIRECTION_ENTRIES, Message, NO_SECTION,
    Status as NvspStatus,
};
use vmbus_core::network::{Version, rndis};
use vmbus_ringbuf::TransferRange;

use super::device::{Device, Effect, LONGEST_CONTROL, Link, Stage};
use super::memory::SharedBuffer;
use super::nic::Nic;
use super::nvsp::{BufferName, LONGEST_ANSWER, Nvsp, SEND_SECTION, Step};
use super::objects;
use super::saved::{SavedDevice, SavedSession};
use super::switch::Batch;
use super::transmit::{self, Allowed, Source};

/// Packets taken at a time.
const TAKEN_AT_ONCE: usize = 32;
/// Copies of frames that are made before others have their turn: some milliseconds' work.
const COPIES_IN_A_ROW: u64 = 16 << 10;
/// Messages about the device that wait for room in the guest's ring or buffer; one who asks on and takes none is no
/// driver.
const WAITING_AT_MOST: usize = 32;

/// The conversation with one guest over one of its channels.
#[derive(Debug)]
pub struct NetworkSession {
    nic: Arc<Nic>,
    nvsp: Nvsp,
    role: Role,
    /// Ring to the guest, in bytes.
    outgoing_bytes: u32,
    attached: bool,
    batch: Batch,
    /// Made of its frames since it last let others on.
    copies: u64,
    /// Answer to a packet of frames that went well.
    done: Option<Encoded>,
    saved: Option<Box<SavedSession>>,
}

/// Which channel a session serves.
#[derive(Debug)]
enum Role {
    Primary(Box<Primary>),
    SubChannel(u16),
}

/// What the primary channel has beside frames.
#[derive(Debug)]
struct Primary {
    device: Device,
    link: watch::Receiver<Link>,
    link_changed: bool,
    /// What the guest was told of it.
    told: Link,
    waiting: VecDeque<Waiting>,
    /// Channels that there were when the guest was last told, or need not be.
    spread_over: usize,
    /// The guest was sent a table.
    has_table: bool,
}

/// What is to be sent when there is room.
#[derive(Debug)]
enum Waiting {
    /// An RNDIS message.
    Control(Vec<u8>),
    /// The table of channels for flows from the guest.
    Table,
}

impl Session for NetworkSession {
    async fn serve(mut self, channel: Channel) -> Result<(), ChannelError> {
        let channel = Arc::new(channel);
        let nic = Arc::clone(&self.nic);
        let _leaves = Leaves { nic: &nic, index: self.index(), channel: &channel };
        self.begin(&channel).await?;
        let result = self.run(&channel).await;
        if matches!(result, Ok(())) && channel.is_saving() {
            self.save(&channel);
        }
        result
    }
}

impl NetworkSession {
    /// A session that begins with a guest's open.
    pub(super) fn new(nic: Arc<Nic>, open: &OpenRequest) -> Self {
        let primary = Primary::new(&nic);
        let nvsp = Nvsp::new(nic.limits);
        Self::with(nic, nvsp, Role::Primary(Box::new(primary)), open)
    }

    fn sub_channel(nic: Arc<Nic>, nvsp: Nvsp, open: &OpenRequest) -> Self {
        Self::with(nic, nvsp, Role::SubChannel(open.subchannel_index), open)
    }

    /// Where another session of the same guest has left; `None` if it cannot have come to that.
    pub(super) fn restored(nic: Arc<Nic>, saved: SavedSession, open: &OpenRequest) -> Option<Self> {
        let nvsp = saved.nvsp.as_ref()?.restore(nic.limits)?;
        if open.subchannel_index > 0 {
            let mut session = Self::sub_channel(nic, nvsp, open);
            session.saved = Some(Box::new(saved));
            return Some(session);
        }
        let mut primary = Primary::new(&nic);
        saved.device.as_ref()?.restore(&mut primary.device, nic.limits.max_queues)?;
        // A device answers when the conversation has come so far, and not before.
        if primary.device.stage == Stage::Initialized && !nvsp.is_ready() {
            return None;
        }
        let waiting = saved.waiting.iter().filter(|message| message.len() <= LONGEST_ANSWER);
        primary.waiting = waiting.cloned().map(Waiting::Control).collect();
        primary.told.connected = saved.connected;
        primary.has_table = nvsp.sub_channels() > 0;
        saved.chains()?;
        let mut session = Self::with(nic, nvsp, Role::Primary(Box::new(primary)), open);
        session.saved = Some(Box::new(saved));
        Some(session)
    }

    fn with(nic: Arc<Nic>, nvsp: Nvsp, role: Role, open: &OpenRequest) -> Self {
        Self {
            nic,
            nvsp,
            role,
            outgoing_bytes: open.outgoing_bytes,
            attached: false,
            batch: Batch::new(),
            copies: 0,
            done: None,
            saved: None,
        }
    }

    /// How far the conversation has come.
    pub(super) fn nvsp(&self) -> &Nvsp {
        &self.nvsp
    }

    fn index(&self) -> u16 {
        match self.role {
            Role::Primary(_) => 0,
            Role::SubChannel(index) => index,
        }
    }

    /// Takes up what another session has left, and lets frames come where they may.
    async fn begin(&mut self, channel: &Arc<Channel>) -> Result<(), ChannelError> {
        let saved = self.saved.take();
        if self.index() == 0 {
            // Frames come as soon as the device is as it was, and must find their channel.
            self.attach_if_ready(channel);
        }
        match &mut self.role {
            Role::Primary(primary) => {
                if let Some(saved) = saved {
                    let lost = || ChannelError::Protocol("the guest's buffers are not what they were".into());
                    let name = self.nvsp.buffer(Buffer::Receive);
                    if let Some(name) = name {
                        let memory = SharedBuffer::new(channel.borrow_list(name.gpadl)?);
                        let chains = saved.chains().ok_or_else(lost)?;
                        let chains = (saved.generation, &chains[..]);
                        if !self.nic.receiver.use_again(memory, &self.nvsp, chains) {
                            return Err(lost());
                        }
                        self.nic.receiver.keep_only(0, &channel.awaited());
                    }
                    if let Some(name) = self.nvsp.buffer(Buffer::Send) {
                        self.nic.set_send_buffer(Some(SharedBuffer::new(channel.borrow_list(name.gpadl)?)));
                    }
                    let link = *primary.link.borrow_and_update();
                    self.nic.apply(&primary.device, &self.nvsp, link);
                }
                self.nic.set_up.send_replace(true);
            }
            Role::SubChannel(index) => {
                let mut set_up = self.nic.set_up.subscribe();
                tokio::select! {
                    _ = set_up.wait_for(|set_up| *set_up) => {}
                    () = channel.closed() => return Ok(()),
                }
                if saved.is_some() {
                    self.nic.receiver.keep_only(*index, &channel.awaited());
                }
            }
        }
        self.attach_if_ready(channel);
        if let Role::Primary(primary) = &mut self.role {
            let link = *primary.link.borrow();
            primary.tell_link(link, &self.nvsp)?;
        }
        Ok(())
    }

    async fn run(&mut self, channel: &Arc<Channel>) -> Result<(), ChannelError> {
        let mut completions = channel.completions();
        let mut requests = Vec::with_capacity(TAKEN_AT_ONCE);
        let mut replies = Vec::new();
        loop {
            let taken = channel.try_recv(TAKEN_AT_ONCE, &mut requests)?;
            self.take_back(channel, &mut replies);
            self.look_around(channel)?;
            if taken == 0 && !self.wait(channel, &mut requests).await? {
                self.take_back(channel, &mut replies);
                return Ok(());
            }
            self.handle_all(&mut requests, channel, &mut completions).await?;
            // A guest that never pauses must not keep its thread from the other guests.
            consume_budget().await;
        }
    }

    /// What the guest has given back of its receive buffer is free again.
    #[inline]
    fn take_back(&self, channel: &Channel, replies: &mut Vec<(u64, Reply)>) {
        if channel.take_replies(replies) > 0 {
            self.nic.receiver.came_back(replies.drain(..).map(|(name, _)| name));
        }
    }

    /// Waits for something to do. `false`: there will be nothing any more.
    async fn wait(&mut self, channel: &Channel, requests: &mut Vec<Request>) -> Result<bool, ChannelError> {
        let Role::Primary(primary) = &mut self.role else { return channel.recv_or_stirred(requests).await };
        let Primary { waiting, link, link_changed, .. } = &mut **primary;
        let sending = async {
            match waiting.front() {
                Some(next) => next.send(&self.nic, &self.nvsp, channel).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            more = channel.recv_or_stirred(requests) => more,
            sent = sending => {
                sent?;
                waiting.pop_front();
                Ok(true)
            }
            changed = link.changed() => {
                // An adapter that is gone changes nothing any more.
                if changed.is_err() {
                    return channel.recv_or_stirred(requests).await;
                }
                *link_changed = true;
                Ok(true)
            }
        }
    }

    /// What has changed beside the ring.
    #[inline]
    fn look_around(&mut self, channel: &Arc<Channel>) -> Result<(), ChannelError> {
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        if primary.link_changed || primary.link.has_changed().unwrap_or(false) {
            primary.link_changed = false;
            let link = *primary.link.borrow_and_update();
            self.nic.apply(&primary.device, &self.nvsp, link);
            primary.tell_link(link, &self.nvsp)?;
        }
        if self.nic.drop_recalled() {
            self.nvsp.buffer_gone(Buffer::Send);
        }
        if self.nic.receiver.drop_recalled() {
            self.nvsp.buffer_gone(Buffer::Receive);
        }
        let channels = self.nic.channels.load(Ordering::Acquire);
        if self.attached && channels != primary.spread_over {
            let all = usize::from(self.nvsp.sub_channels()) + 1;
            primary.spread_over = channels;
            if primary.has_table || (channels == all && all > 1) {
                primary.has_table = true;
                primary.wait_with(Waiting::Table)?;
            }
        }
        while let Some(next) = primary.waiting.front() {
            if !next.try_send(&self.nic, &self.nvsp, channel)? {
                break;
            }
            primary.waiting.pop_front();
        }
        Ok(())
    }

    #[inline]
    async fn handle_all(
        &mut self,
        requests: &mut Vec<Request>,
        channel: &Arc<Channel>,
        completions: &mut Completions,
    ) -> Result<(), ChannelError> {
        let send_buffer = self.nic.send_buffer();
        for request in requests.drain(..) {
            let step = match self.role {
                Role::Primary(_) => self.nvsp.handle(request.payload()),
                Role::SubChannel(_) => self.nvsp.handle_on_sub_channel(request.payload()),
            };
            let step = step.map_err(|fault| ChannelError::Protocol(fault.to_string()))?;
            match step {
                Step::Rndis { channel: ChannelType::Data, section, section_size } => {
                    let status = self.transmit(&request, send_buffer.as_deref(), section, section_size);
                    let reply = match status {
                        NvspStatus::SUCCESS => {
                            *self.done.get_or_insert_with(|| self.nvsp.packet_done(status))
                        }
                        _ => self.nvsp.packet_done(status),
                    };
                    completions.push(request, &reply)?;
                    self.rest_if_due().await;
                }
                Step::Rndis { channel: ChannelType::Control, section, section_size } => {
                    self.attach_if_ready(channel);
                    let status = self.control(&request, send_buffer.as_deref(), section, section_size)?;
                    completions.push(request, &self.nvsp.packet_done(status))?;
                }
                Step::Reply(reply) => completions.push(request, &reply)?,
                Step::Done => completions.push(request, &[])?,
                Step::Borrow(buffer, name) => {
                    let reply = self.borrow(channel, buffer, name);
                    completions.push(request, &reply)?;
                }
                Step::LetGo(buffer) => {
                    match buffer {
                        Buffer::Receive => self.nic.receiver.drop_buffer(),
                        Buffer::Send => self.nic.set_send_buffer(None),
                    }
                    completions.push(request, &[])?;
                }
                Step::OfferSubChannels(count) => {
                    let reply = self.offer_sub_channels(channel, count).await;
                    completions.push(request, &reply)?;
                }
            }
        }
        if !self.batch.is_empty() {
            self.copies += self.nic.connection.send_counting(&mut self.batch);
        }
        self.rest_if_due().await;
        if !completions.is_empty() {
            completions.send().await?;
        }
        Ok(())
    }

    /// Lets others on after much work: a few packets can ask for as much as many.
    #[inline]
    async fn rest_if_due(&mut self) {
        if self.copies >= COPIES_IN_A_ROW {
            self.copies = 0;
            yield_now().await;
        }
    }

    /// Takes the frames of a packet.
    #[inline]
    fn transmit(
        &mut self,
        request: &Request,
        send_buffer: Option<&SharedBuffer>,
        section: u32,
        section_size: u32,
    ) -> NvspStatus {
        let Some(source) = source(request, send_buffer, section, section_size) else {
            self.nic.send_errors.fetch_add(1, Ordering::Relaxed);
            return NvspStatus::INVALID_RNDIS_PACKET;
        };
        if !self.nic.sends.load(Ordering::Relaxed) {
            return NvspStatus::FAILURE;
        }
        let allowed =
            Allowed { max_frame: self.nvsp.max_frame() as usize, max_packets: self.nic.limits.max_packets };
        let (connection, copies) = (&self.nic.connection, &mut self.copies);
        let (_, result) = transmit::frames(&source, allowed, &mut self.batch, |batch| {
            *copies += connection.send_counting(batch);
        });
        match result {
            Ok(()) => NvspStatus::SUCCESS,
            Err(_) => {
                self.nic.send_errors.fetch_add(1, Ordering::Relaxed);
                NvspStatus::INVALID_RNDIS_PACKET
            }
        }
    }

    /// Answers a message about the device.
    #[cold]
    fn control(
        &mut self,
        request: &Request,
        send_buffer: Option<&SharedBuffer>,
        section: u32,
        section_size: u32,
    ) -> Result<NvspStatus, ChannelError> {
        let Role::Primary(primary) = &mut self.role else { return Ok(NvspStatus::FAILURE) };
        let source = source(request, send_buffer, section, section_size);
        let Some(source) = source.filter(|source| source.len() <= LONGEST_CONTROL) else {
            return Ok(NvspStatus::INVALID_RNDIS_PACKET);
        };
        let mut message = vec![0; source.len()];
        if !source.read(0, &mut message) {
            return Ok(NvspStatus::INVALID_RNDIS_PACKET);
        }
        let link = *primary.link.borrow();
        let world = self.nic.world(&self.nvsp, link);
        let mut answer = Vec::new();
        let effect = primary.device.handle(&message, &world, &mut answer);
        let Effect { receiving, tell_link, offload } =
            effect.map_err(|fault| ChannelError::Protocol(fault.to_string()))?;
        if !answer.is_empty() {
            primary.wait_with(Waiting::Control(answer))?;
        }
        if receiving {
            self.nic.apply(&primary.device, &self.nvsp, link);
        }
        if offload {
            let status = rndis::Status::TASK_OFFLOAD_CURRENT_CONFIG;
            let data = primary.device.current_offload();
            primary.indicate(status, &data)?;
        }
        if tell_link {
            primary.told = Link { connected: true, ..link };
            primary.tell_link(link, &self.nvsp)?;
        }
        Ok(NvspStatus::SUCCESS)
    }

    #[cold]
    fn borrow(&mut self, channel: &Channel, buffer: Buffer, name: BufferName) -> Encoded {
        let memory = channel.borrow_list(name.gpadl).ok().map(SharedBuffer::new);
        let reply = self.nvsp.buffer_borrowed(buffer, name, memory.as_ref().map(SharedBuffer::len));
        if let Some(memory) = memory.filter(|_| self.nvsp.buffer(buffer).is_some()) {
            match buffer {
                Buffer::Receive => _ = self.nic.receiver.use_buffer(memory, &self.nvsp),
                Buffer::Send => self.nic.set_send_buffer(Some(memory)),
            }
        }
        reply
    }

    #[cold]
    async fn offer_sub_channels(&mut self, channel: &Channel, count: u16) -> Encoded {
        // The offer may outlive the NIC.
        let (nic, nvsp) = (Arc::downgrade(&self.nic), self.nvsp.clone());
        let admit = move |open: &OpenRequest| {
            let nic = nic.upgrade().ok_or_else(|| Refusal::new("the primary channel is closed"))?;
            Ok(Self::sub_channel(nic, nvsp.clone(), open))
        };
        let offered = channel.offer_subchannels(count, admit).await;
        self.nvsp.sub_channels_offered(offered.is_ok().then_some(count))
    }

    /// Lets frames come to this channel once its guest has begun with RNDIS.
    fn attach_if_ready(&mut self, channel: &Arc<Channel>) {
        if !self.attached && self.nvsp.is_ready() {
            self.attached = true;
            self.nic.attach(self.index(), channel, &self.nvsp, self.outgoing_bytes);
        }
    }

    /// Remembers all that the next session needs.
    fn save(&mut self, channel: &Channel) {
        let mut saved = SavedSession::new(&self.nvsp);
        if let Role::Primary(primary) = &self.role {
            self.nic.receiver.stop();
            let (generation, chains) = self.nic.receiver.with_guest();
            saved.generation = generation;
            saved.set_chains(chains);
            saved.device = Some(SavedDevice::new(&primary.device));
            saved.connected = primary.told.connected;
            let controls = primary.waiting.iter().filter_map(|waiting| match waiting {
                Waiting::Control(message) => Some(message.clone()),
                Waiting::Table => None,
            });
            saved.waiting = controls.collect();
        }
        channel.save_state(saved.encode_to_vec());
    }
}

/// Where a packet's messages lie. `None`: in a section that is not there.
#[inline]
fn source<'a>(
    request: &'a Request,
    send_buffer: Option<&'a SharedBuffer>,
    section: u32,
    section_size: u32,
) -> Option<Source<'a>> {
    if section == NO_SECTION {
        return Some(Source::new(None, request.ranges()));
    }
    let memory = send_buffer?;
    let start = usize::try_from(u64::from(section) * u64::from(SEND_SECTION)).ok()?;
    let is_there = section_size <= SEND_SECTION && start.checked_add(SEND_SECTION as usize)? <= memory.len();
    is_there.then(|| Source::new(Some((memory, start, section_size as usize)), request.ranges()))
}

impl Primary {
    fn new(nic: &Nic) -> Self {
        let mut link = nic.link.clone();
        let told = *link.borrow_and_update();
        let device = Device::new(nic.identity.clone());
        Self {
            device,
            link,
            link_changed: false,
            told,
            waiting: VecDeque::new(),
            spread_over: 0,
            has_table: false,
        }
    }

    fn wait_with(&mut self, waiting: Waiting) -> Result<(), ChannelError> {
        if self.waiting.len() >= WAITING_AT_MOST {
            return Err(ChannelError::Protocol("the guest asks on and takes no answer".into()));
        }
        self.waiting.push_back(waiting);
        Ok(())
    }

    fn indicate(&mut self, status: rndis::Status, data: &[u8]) -> Result<(), ChannelError> {
        let mut message = Vec::new();
        rndis::Message::IndicateStatus { status, data }.encode(&mut message);
        self.wait_with(Waiting::Control(message))
    }

    /// Tells the guest how the link has changed since it was last told: of its speed only one who knows teams.
    fn tell_link(&mut self, link: Link, nvsp: &Nvsp) -> Result<(), ChannelError> {
        if self.device.stage == Stage::Halted {
            self.told = link;
            return Ok(());
        }
        let told = std::mem::replace(&mut self.told, link);
        if told.connected != link.connected {
            let status = match link.connected {
                true => rndis::Status::MEDIA_CONNECT,
                false => rndis::Status::MEDIA_DISCONNECT,
            };
            self.indicate(status, &[])?;
        }
        if told.speed != link.speed && nvsp.capabilities().contains(Capabilities::TEAMING) {
            let speed = objects::speed_word(link.speed).to_le_bytes();
            self.indicate(rndis::Status::LINK_SPEED_CHANGE, &speed)?;
        }
        Ok(())
    }
}

impl Waiting {
    /// `false`: there is no room at present.
    fn try_send(&self, nic: &Nic, nvsp: &Nvsp, channel: &Channel) -> Result<bool, ChannelError> {
        match self {
            Self::Control(message) => {
                let Some((name, set_id, range)) = nic.receiver.place(message) else { return Ok(false) };
                let head = nvsp.packet_to_guest(ChannelType::Control);
                let sent = channel.try_send_transfer_pages(name, set_id, &[range], &head);
                if !matches!(sent, Ok(true)) {
                    nic.receiver.take_back(name);
                }
                sent
            }
            Self::Table => channel.try_notify(&table(nic, nvsp)),
        }
    }

    /// Returns when it is sent. Given up before, nothing was sent.
    async fn send(&self, nic: &Nic, nvsp: &Nvsp, channel: &Channel) -> Result<(), ChannelError> {
        match self {
            Self::Control(message) => {
                let Some((name, set_id, range)) = nic.receiver.place(message) else {
                    // What the guest gives back makes who waits look again.
                    return std::future::pending().await;
                };
                let placed = Placed { nic, name: Some(name) };
                placed.send(set_id, range, nvsp, channel).await
            }
            Self::Table => channel.notify(&table(nic, nvsp)).await,
        }
    }
}

/// The table of channels for flows from the guest.
fn table(nic: &Nic, nvsp: &Nvsp) -> Encoded {
    let channels = nic.receiver.attached();
    // With none there is the primary channel, over which this goes.
    let table = std::array::from_fn::<u32, INDIRECTION_ENTRIES, _>(|entry| {
        channels.get(entry % channels.len().max(1)).copied().unwrap_or(0)
    });
    Message::IndirectionTable { table }.encode(nvsp.version().unwrap_or(Version::V5))
}

/// A message in a section, which is free again if it is not sent.
struct Placed<'a> {
    nic: &'a Nic,
    name: Option<u64>,
}

impl Placed<'_> {
    async fn send(
        mut self,
        set_id: u16,
        range: TransferRange,
        nvsp: &Nvsp,
        channel: &Channel,
    ) -> Result<(), ChannelError> {
        let Some(name) = self.name else { return Ok(()) };
        let head = nvsp.packet_to_guest(ChannelType::Control);
        channel.send_tagged_transfer_pages(name, set_id, &[range], &head).await?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.nic.receiver.take_back(name);
        }
    }
}

/// Takes a channel out of the NIC when its session ends, however it does.
struct Leaves<'a> {
    nic: &'a Arc<Nic>,
    index: u16,
    channel: &'a Arc<Channel>,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.nic.detach(self.index, self.channel);
    }
}
