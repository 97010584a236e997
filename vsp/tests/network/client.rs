//! A guest's driver, scripted: raw NVSP and RNDIS over a channel. It can do everything a driver may, and what none does.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::timeout;
use vmbus_channels::{
    Buffer, Channel, Device, Guest, Guid, Lent, Pending, Request, Root, SavedPartition, guid,
};
use vmbus_core::network::nvsp::{
    self, Capabilities, ChannelType, Message, NO_SECTION, ReceiveSection, Sender, Status,
};
use vmbus_core::network::rndis::{self, InitializeComplete, PACKET_HEADER_SIZE, PacketHeader};
use vmbus_core::network::{CLASS, Oid, PacketInfo, PacketInfoList, PacketInfoWriter, Version, Way};
use vmbus_partition::{ControlRoot, GuestOptions, local};
use vmbus_vsp::network::switch::{
    Batch, Capabilities as PortCapabilities, Connection, Delivered, Frames, MacAddress, Offload, Port,
    PortSettings, Switch,
};
use vmbus_vsp::network::{AdapterHandle, NetworkAdapter};

pub(crate) const LONG: Duration = Duration::from_secs(20);
pub(crate) const NIC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
pub(crate) const PEER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
pub(crate) const RECEIVE: u16 = 0xcafe;
pub(crate) const SEND: u16 = 0;
pub(crate) const SEND_SECTION: usize = 6144;

/// A switch with a NIC and somebody who sees what comes out, and a guest that has opened the NIC.
pub(crate) struct World {
    pub(crate) switch: Switch,
    pub(crate) adapter: AdapterHandle,
    pub(crate) peer: Peer,
    pub(crate) guest: Guest,
    pub(crate) root: Root,
    end: Arc<ControlRoot>,
    settings: Settings,
}

type Settings = Box<dyn Fn(NetworkAdapter) -> NetworkAdapter + Send + Sync>;

const INSTANCE: Guid = guid!("4e494300-0000-4000-8000-000000000001");

/// A root that offers the NIC at `switch`.
fn root(switch: &Switch, settings: &Settings) -> (Root, AdapterHandle) {
    let adapter = settings(NetworkAdapter::new("nic", switch, NIC).instance(INSTANCE));
    let handle = adapter.handle();
    let root = Root::builder().build();
    root.offer(adapter).unwrap();
    (root, handle)
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|adapter| adapter).await
    }

    pub(crate) async fn with(
        settings: impl Fn(NetworkAdapter) -> NetworkAdapter + Send + Sync + 'static,
    ) -> Self {
        let (switch, settings) = (Switch::new("switch"), Box::new(settings) as Settings);
        let (root, adapter) = root(&switch, &settings);
        let (end, guest) = local::pair(&GuestOptions::named("guest"), root.next_partition()).unwrap();
        let end = Arc::new(end);
        root.attach(Arc::clone(&end) as _);
        let guest = Guest::builder().attach(Arc::new(guest)).await.unwrap();
        Self { peer: Peer::at(&switch), switch, adapter, guest, root, end, settings }
    }

    /// The guest's root gives it to another one, as bytes, with a NIC of its own at the same switch.
    pub(crate) async fn moves(&mut self) {
        let bytes = self.save().await;
        let (next, adapter) = root(&self.switch, &self.settings);
        let saved = SavedPartition::decode(&bytes).unwrap();
        next.restore(saved, Arc::clone(&self.end) as _).unwrap();
        (self.root, self.adapter) = (next, adapter);
    }

    /// The guest's root leaves it, as bytes.
    pub(crate) async fn save(&self) -> Vec<u8> {
        let partition = self.root.status().await.partitions[0].id;
        timeout(LONG, self.root.save(partition)).await.expect("it saves").unwrap().encode()
    }

    /// Lets another root take up what may be forged, frames come, and lets it go. Whether it took it.
    pub(crate) async fn restore(&self, bytes: &[u8]) -> bool {
        let (next, _adapter) = root(&self.switch, &self.settings);
        let restored =
            SavedPartition::decode(bytes).and_then(|saved| next.restore(saved, Arc::clone(&self.end) as _));
        let Ok(partition) = restored else { return false };
        assert!(next.status().await.partitions.len() <= 1);
        self.peer.send([&frame(NIC, PEER, 1, 300)]);
        next.detach(partition);
        timeout(LONG, next.run_until(async {})).await.expect("it leaves");
        true
    }

    pub(crate) async fn open(&self) -> Driver {
        let channel = self.guest.open(Device::class(CLASS)).await.unwrap();
        Driver::new(&self.guest, channel)
    }

    /// A driver that has done all it takes to get frames.
    pub(crate) async fn running(&self) -> Driver {
        let mut driver = self.open().await;
        driver.set_up(Version::V6_1, 1500).await;
        driver.begin().await;
        driver
    }
}

/// Somebody else at the switch.
pub(crate) struct Peer {
    pub(crate) connection: Arc<Connection>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen(Mutex<Vec<(Vec<u8>, Offload)>>, PortCapabilities);

impl Port for Seen {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        let frames_seen = frames.iter().map(|frame| (frame.bytes.to_vec(), frame.offload));
        self.0.lock().unwrap().extend(frames_seen);
        Delivered::all(frames)
    }

    fn capabilities(&self) -> PortCapabilities {
        self.1
    }
}

impl Peer {
    fn at(switch: &Switch) -> Self {
        Self::with(switch, PortCapabilities::all())
    }

    pub(crate) fn with(switch: &Switch, capabilities: PortCapabilities) -> Self {
        let seen = Arc::new(Seen(Mutex::default(), capabilities));
        let connection = switch.connect(Arc::clone(&seen), PortSettings::new("peer")).unwrap();
        let connection = Arc::new(connection);
        Self { connection, seen }
    }

    /// What came since this was asked last.
    pub(crate) fn seen(&self) -> Vec<(Vec<u8>, Offload)> {
        std::mem::take(&mut self.seen.0.lock().unwrap())
    }

    /// Waits for so many frames.
    pub(crate) async fn sees(&self, count: usize) -> Vec<(Vec<u8>, Offload)> {
        let mut all = Vec::new();
        timeout(LONG, async {
            while all.len() < count {
                all.extend(self.seen());
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
        })
        .await
        .expect("the frames come");
        all
    }

    pub(crate) fn send<'a>(&self, frames: impl IntoIterator<Item = &'a Vec<u8>>) {
        self.send_with(frames.into_iter().map(|frame| (frame, Offload::NONE)));
    }

    pub(crate) fn send_with<'a>(&self, frames: impl IntoIterator<Item = (&'a Vec<u8>, Offload)>) {
        let mut batch = Batch::new();
        for (frame, offload) in frames {
            batch.push(frame, offload).unwrap();
        }
        self.connection.send(&mut batch);
    }
}

/// A frame between two stations with a number and a pattern in it.
pub(crate) fn frame(to: MacAddress, from: MacAddress, number: u32, len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len);
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&from.0);
    // Of no protocol that anybody looks into.
    frame.extend_from_slice(&[0x88, 0xb5]);
    frame.extend_from_slice(&number.to_le_bytes());
    frame.extend((frame.len()..len).map(|at| (at % 251).to_le_bytes()[0]));
    frame
}

/// The driver's end of one channel, and the buffers that it shares.
pub(crate) struct Driver {
    pub(crate) channel: Channel,
    pub(crate) guest: Guest,
    pub(crate) version: Version,
    pub(crate) receive: Option<Arc<Lent>>,
    pub(crate) send: Option<Lent>,
    pub(crate) section: ReceiveSection,
    scratch: Buffer,
    request: u32,
}

/// Frames that came in one packet, which the driver has not given back.
pub(crate) struct Arrived {
    pub(crate) frames: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) request: Request,
}

impl Arrived {
    pub(crate) async fn give_back(self) {
        let done = Message::PacketComplete { status: Status::SUCCESS }.encode(Version::V1);
        self.request.complete(&done).await.unwrap();
    }
}

impl Driver {
    pub(crate) fn new(guest: &Guest, channel: Channel) -> Self {
        Self {
            scratch: guest.share(64 << 10).unwrap(),
            channel,
            guest: guest.clone(),
            version: Version::V6_1,
            receive: None,
            send: None,
            section: ReceiveSection::default(),
            request: 0,
        }
    }

    /// The same driver on a sub-channel.
    pub(crate) fn sub_channel(&self, channel: Channel) -> Self {
        Self {
            receive: self.receive.clone(),
            version: self.version,
            section: self.section,
            ..Self::new(&self.guest, channel)
        }
    }

    /// Sends a message and waits for its completion.
    pub(crate) async fn ask(&self, message: Message) -> Vec<u8> {
        self.ask_bytes(&message.encode(self.version)).await
    }

    pub(crate) async fn ask_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let pending = self.channel.send(bytes, []).await.unwrap();
        timeout(LONG, pending.reply()).await.expect("an answer").unwrap().to_vec()
    }

    pub(crate) fn host(&self, bytes: &[u8]) -> Message {
        Message::parse(bytes, Sender::Host, Some(self.version)).unwrap()
    }

    pub(crate) async fn init(&mut self, version: Version) -> Status {
        self.version = version;
        let reply = self.ask(Message::Init { version: version.word() }).await;
        match Message::parse(&reply, Sender::Host, None).unwrap() {
            Message::InitComplete { status, .. } => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn share(&mut self, buffer: nvsp::Buffer, bytes: usize) -> Message {
        let lent = self.channel.lend(&self.guest.share(bytes).unwrap()).await.unwrap();
        let id = if buffer == nvsp::Buffer::Receive { RECEIVE } else { SEND };
        let reply = self.ask(Message::Buffer { buffer, gpadl: lent.id(), id }).await;
        match buffer {
            nvsp::Buffer::Receive => self.receive = Some(Arc::new(lent)),
            nvsp::Buffer::Send => self.send = Some(lent),
        }
        self.host(&reply)
    }

    /// Everything up to the buffers, as Linux does it.
    pub(crate) async fn set_up(&mut self, version: Version, mtu: u32) {
        self.set_up_with(version, mtu, 1 << 20).await;
    }

    pub(crate) async fn set_up_with(&mut self, version: Version, mtu: u32, receive: usize) {
        assert_eq!(self.init(version).await, Status::SUCCESS);
        if version >= Version::V2 {
            let capabilities = Capabilities::IEEE_8021Q | Capabilities::TEAMING | Capabilities::RSC;
            self.tell(Message::NdisConfig { mtu: mtu + 14, capabilities }).await;
        }
        let (major, minor) = version.ndis();
        self.tell(Message::NdisVersion { major, minor }).await;
        match self.share(nvsp::Buffer::Receive, receive).await {
            Message::ReceiveBufferComplete { status: Status::SUCCESS, sections: 1, first } => {
                let (size, count) = (first.piece_size.get(), first.pieces.get());
                assert_eq!((first.offset.get(), first.end.get()), (0, size * count));
                self.section = first;
            }
            other => panic!("{other:?}"),
        }
        match self.share(nvsp::Buffer::Send, 64 * SEND_SECTION).await {
            Message::SendBufferComplete { status: Status::SUCCESS, section_size } => {
                assert_eq!(section_size as usize, SEND_SECTION);
            }
            other => panic!("{other:?}"),
        }
    }

    /// RNDIS, up to frames.
    pub(crate) async fn begin(&mut self) -> InitializeComplete {
        let complete = self.initialize().await;
        self.set(Oid::GEN_CURRENT_PACKET_FILTER, &0xd_u32.to_le_bytes()).await;
        complete
    }

    pub(crate) async fn initialize(&mut self) -> InitializeComplete {
        let request = self.next_request();
        let answer = self
            .control(rndis::Message::Initialize { request, major: 1, minor: 0, max_transfer: 0x4000 })
            .await;
        match rndis::Message::parse(&answer).unwrap() {
            rndis::Message::InitializeComplete(complete) => {
                assert_eq!(complete.request, request);
                complete
            }
            other => panic!("{other:?}"),
        }
    }

    /// Sends a message that wants no completion.
    pub(crate) async fn tell(&self, message: Message) {
        self.channel.notify(&message.encode(self.version)).await.unwrap();
    }

    pub(crate) fn next_request(&mut self) -> u32 {
        self.request += 1;
        self.request
    }

    /// Sends bytes as a message about the device; the packet's status.
    pub(crate) async fn say(&self, bytes: &[u8]) -> Status {
        let message = Message::Packet { channel: ChannelType::Control, section: NO_SECTION, section_size: 0 };
        self.send_ranges(message, bytes).await
    }

    /// Sends a message with bytes in one range.
    pub(crate) async fn send_ranges(&self, message: Message, bytes: &[u8]) -> Status {
        self.scratch.write(0, bytes).unwrap();
        let ranges = (!bytes.is_empty()).then(|| self.scratch.range(..bytes.len()));
        let pending = self.channel.send(&message.encode(self.version), ranges).await.unwrap();
        self.status(pending).await
    }

    pub(crate) async fn status(&self, pending: Pending) -> Status {
        let reply = timeout(LONG, pending.reply()).await.expect("an answer").unwrap();
        match self.host(&reply) {
            Message::PacketComplete { status } => status,
            other => panic!("{other:?}"),
        }
    }

    /// Sends a message about the device and gives the bytes of the next one from it.
    pub(crate) async fn control(&self, message: rndis::Message<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        assert_eq!(self.say(&bytes).await, Status::SUCCESS);
        self.hear().await
    }

    /// The next message about the device.
    pub(crate) async fn hear(&self) -> Vec<u8> {
        loop {
            let request = timeout(LONG, self.channel.recv()).await.expect("a message").unwrap().unwrap();
            let Message::Packet { channel, .. } = self.host(request.payload()) else { continue };
            let mut messages = self.messages(&request);
            request
                .complete(&Message::PacketComplete { status: Status::SUCCESS }.encode(Version::V1))
                .await
                .unwrap();
            if channel == ChannelType::Control {
                assert_eq!(messages.len(), 1);
                return messages.remove(0);
            }
        }
    }

    /// The RNDIS messages of a packet, out of the receive buffer.
    pub(crate) fn messages(&self, request: &Request) -> Vec<Vec<u8>> {
        let (set, ranges) = request.transfer_pages().expect("transfer pages");
        assert_eq!(set, RECEIVE);
        let size = self.section.piece_size.get();
        let buffer = self.receive.as_ref().unwrap().buffer();
        ranges
            .iter()
            .map(|&(offset, len)| {
                assert_eq!(offset / size, (offset + len - 1) / size, "a message lies in one section");
                let mut bytes = vec![0; len as usize];
                buffer.read(offset as usize, &mut bytes).unwrap();
                bytes
            })
            .collect()
    }

    pub(crate) async fn query(&mut self, oid: Oid, data: &[u8]) -> (rndis::Status, Vec<u8>) {
        let request = self.next_request();
        let answer = self.control(rndis::Message::Query { request, oid, data }).await;
        match rndis::Message::parse(&answer).unwrap() {
            rndis::Message::QueryComplete { request: answered, status, data } if answered == request => {
                (status, data.to_vec())
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn set(&mut self, oid: Oid, data: &[u8]) -> rndis::Status {
        let request = self.next_request();
        let answer = self.control(rndis::Message::Set { request, oid, data }).await;
        match rndis::Message::parse(&answer).unwrap() {
            rndis::Message::SetComplete { request: answered, status } if answered == request => status,
            other => panic!("{other:?}"),
        }
    }

    /// The next packet of frames: for each, its packet info and its bytes.
    pub(crate) async fn arrive(&self) -> Arrived {
        let request = timeout(LONG, self.channel.recv()).await.expect("frames").unwrap().unwrap();
        self.arrived(request)
    }

    pub(crate) fn arrived(&self, request: Request) -> Arrived {
        let parts = |message: Vec<u8>| {
            let header = message.first_chunk::<PACKET_HEADER_SIZE>().unwrap();
            let header = PacketHeader::parse(header, message.len()).unwrap().unwrap();
            (message[header.info].to_vec(), message[header.frame].to_vec())
        };
        Arrived { frames: self.messages(&request).into_iter().map(parts).collect(), request }
    }

    /// The frames of so many, in order, all given back.
    pub(crate) async fn receive(&self, count: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while frames.len() < count {
            let arrived = self.arrive().await;
            frames.extend(arrived.frames.iter().map(|(_, frame)| frame.clone()));
            arrived.give_back().await;
        }
        frames
    }

    /// Sends one frame from a section of the send buffer.
    pub(crate) async fn transmit(&self, section: u32, frame: &[u8], info: &[PacketInfo<'_>]) -> Status {
        let bytes = message(frame, info);
        self.transmit_bytes(section, &bytes).await
    }

    pub(crate) async fn transmit_bytes(&self, section: u32, bytes: &[u8]) -> Status {
        self.send.as_ref().unwrap().buffer().write(section as usize * SEND_SECTION, bytes).unwrap();
        let section_size = u32::try_from(bytes.len()).unwrap();
        let message = Message::Packet { channel: ChannelType::Data, section, section_size };
        let pending = self.channel.send(&message.encode(self.version), []).await.unwrap();
        self.status(pending).await
    }
}

/// The RNDIS message of a frame.
pub(crate) fn message(frame: &[u8], info: &[PacketInfo<'_>]) -> Vec<u8> {
    let mut infos = PacketInfoWriter::default();
    info.iter().for_each(|info| infos.push(*info));
    let [info_len, frame_len] = [infos.bytes().len(), frame.len()].map(|len| u32::try_from(len).unwrap());
    let mut bytes = PacketHeader::encode(info_len, frame_len).to_vec();
    bytes.extend_from_slice(infos.bytes());
    bytes.extend_from_slice(frame);
    bytes
}

/// Packet info in private memory.
pub(crate) fn infos(bytes: &[u8]) -> Vec<PacketInfo<'_>> {
    PacketInfoList::new(bytes, Way::Receive).map(Result::unwrap).collect()
}
