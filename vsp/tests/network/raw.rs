//! A guest that fills its rings by hand, for what a channel's own end would not send.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use vmbus_channels::test_utils::{MockGuest, MockRings};
use vmbus_core::message::{InitiateContact, Message as Control, OpenChannel, RequestOffers};
use vmbus_core::network::nvsp::{Buffer, Capabilities, ChannelType, Message, NO_SECTION, Status};
use vmbus_core::network::{Oid, Version, rndis};
use vmbus_partition::{GuestEnd, SharedPages};
use vmbus_ringbuf::{GpaRange, Outgoing, PacketKind, Pfns};

use crate::client::{LONG, RECEIVE, World};

/// Names of page lists: one guest's are no other's, but a test reads more easily so.
static GPADL: AtomicU32 = AtomicU32::new(100);

pub(crate) struct Raw {
    guest: MockGuest,
    rings: MockRings,
    connection: u32,
    _receive: SharedPages,
    scratch: SharedPages,
    next: u64,
}

impl Raw {
    /// A guest that gets frames. The NIC must be nobody's.
    pub(crate) async fn running(world: &World) -> Self {
        let guest = MockGuest::attach(&world.root, "raw").unwrap();
        guest.say(InitiateContact {
            version: vmbus_core::Version::Iron.word().into(),
            interrupt_page_or_target: 2.into(),
            ..InitiateContact::default()
        });
        guest.hear(|message| matches!(message, Control::VersionResponse(_)).then_some(())).await;
        guest.say(RequestOffers {});
        let offered = |message: Control<'_>| match message {
            Control::OfferChannel(offer) => Some((offer.relid.get(), offer.connection_id.get())),
            _ => None,
        };
        let (relid, connection) = guest.hear(offered).await;
        let (rings, list) = guest.rings(16);
        let gpadl = create(&guest, relid, &list).await;
        guest.say(OpenChannel {
            relid: relid.into(),
            ring_gpadl: gpadl.into(),
            downstream_page_offset: 17.into(),
            ..OpenChannel::default()
        });
        guest.hear(|message| matches!(message, Control::OpenChannelResult(_)).then_some(())).await;
        let receive = guest.end().allocate(0, 1 << 20).unwrap();
        let scratch = guest.end().allocate(0, 4096).unwrap();
        let buffer = create(&guest, relid, &receive.ranges().unwrap()).await;
        let mut raw = Self { guest, rings, connection, _receive: receive, scratch, next: 1 };
        raw.ask(Message::Init { version: Version::V6_1.word() }).await;
        raw.ask(Message::NdisConfig { mtu: 1514, capabilities: Capabilities::empty() }).await;
        raw.ask(Message::NdisVersion { major: 6, minor: 30 }).await;
        raw.ask(Message::Buffer { buffer: Buffer::Receive, gpadl: buffer, id: RECEIVE }).await;
        raw.control(rndis::Message::Initialize { request: 1, major: 1, minor: 0, max_transfer: 0x4000 })
            .await;
        let filter = 0xd_u32.to_le_bytes();
        raw.control(rndis::Message::Set { request: 2, oid: Oid::GEN_CURRENT_PACKET_FILTER, data: &filter })
            .await;
        raw
    }

    /// Completes a packet of the host's, whether there is one or not.
    pub(crate) fn complete(&mut self, id: u64) {
        let done = Message::PacketComplete { status: Status::SUCCESS }.encode(Version::V1);
        self.push(Outgoing::completion(id, &done));
    }

    /// The same, with so many bytes that nobody has asked for.
    pub(crate) fn complete_with(&mut self, id: u64, len: usize) {
        self.push(Outgoing::completion(id, &vec![1; len]));
    }

    /// The id of the next packet of the host's own.
    pub(crate) async fn hear(&mut self) -> u64 {
        loop {
            if let (PacketKind::TransferPages, id) = self.packet().await {
                return id;
            }
        }
    }

    async fn ask(&mut self, message: Message) {
        let id = self.next_id();
        self.push(Outgoing::request(id, &message.encode(Version::V6_1)));
        while self.packet().await != (PacketKind::Completion, id) {}
    }

    async fn control(&mut self, message: rndis::Message<'_>) {
        use vmbus_core::memory::SharedMemory;
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.scratch.mapping().write(0, &bytes);
        let message = Message::Packet { channel: ChannelType::Control, section: NO_SECTION, section_size: 0 };
        let id = self.next_id();
        let byte_count = u32::try_from(bytes.len()).unwrap();
        let range = GpaRange { byte_count, byte_offset: 0, pfns: Pfns::From(self.scratch.first_pfn()) };
        self.push(Outgoing::gpa_direct(id, &[range], &message.encode(Version::V6_1)));
        let answer = self.hear().await;
        self.complete(answer);
    }

    fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn push(&mut self, packet: Outgoing<'_>) {
        let mut batch = self.rings.to_host.batch();
        batch.push(packet).unwrap();
        let _ = batch.commit().unwrap();
        self.guest.end().signal(self.connection);
    }

    async fn packet(&mut self) -> (PacketKind, u64) {
        timeout(LONG, async {
            loop {
                if let Some(packet) = self.rings.from_host.next().unwrap() {
                    return (packet.kind, packet.transaction_id);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("a packet of the host")
    }
}

async fn create(guest: &MockGuest, relid: u32, list: &vmbus_core::pages::PageRanges) -> u32 {
    let gpadl = GPADL.fetch_add(1, Ordering::Relaxed);
    for message in list.messages(relid, gpadl) {
        guest.say(message);
    }
    guest.hear(|message| matches!(message, Control::GpadlCreated(_)).then_some(())).await;
    gpadl
}
