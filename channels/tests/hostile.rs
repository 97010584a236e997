//! Guests that follow no rule: they lose their channel, and nobody else notices.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vmbus_channels::test_utils::{MockGuest, MockRings, join};
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guest, Guid, Offer, OpenRequest, Provider, Refusal, Root, Session,
    guid,
};
use vmbus_core::memory::SharedMemory;
use vmbus_core::message::{
    GpadlTeardown, InitiateContact, Message, OpenChannel, RelidReleased, RequestOffers,
};
use vmbus_core::synic::ChannelConnection;
use vmbus_core::{FeatureFlags, Version};
use vmbus_ringbuf::{Outgoing, OutgoingKind};

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a03");
const GPADL: u32 = 0x77;

struct Echo;

impl Provider for Echo {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "echo").requests(16)
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self)
    }
}

impl Session for Echo {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            let payload = request.payload()[..8].to_vec();
            request.complete(&payload).await?;
        }
        Ok(())
    }
}

/// Says hello as a guest of the newest version.
async fn contact(guest: &MockGuest) {
    guest.say(InitiateContact {
        version: Version::Iron.word().into(),
        interrupt_page_or_target: InitiateContact::target(2, 0, FeatureFlags::empty()),
        ..InitiateContact::default()
    });
    guest
        .hear(|message| {
            matches!(message, Message::VersionResponse(answer) if answer.supported == 1).then_some(())
        })
        .await;
}

/// A guest that has opened the device by the rules, and is about to break them.
struct Intruder {
    guest: MockGuest,
    rings: MockRings,
    relid: u32,
}

impl Intruder {
    async fn open(root: &Root) -> Self {
        let guest = MockGuest::attach(root, "intruder").unwrap();
        contact(&guest).await;
        let (guest, relid) = Self::offered(guest).await;
        Self::open_again(guest, relid).await
    }

    async fn offered(guest: MockGuest) -> (MockGuest, u32) {
        guest.say(RequestOffers {});
        let relid = guest
            .hear(|message| match message {
                Message::OfferChannel(offer) => Some(offer.relid.get()),
                _ => None,
            })
            .await;
        (guest, relid)
    }

    async fn open_again(guest: MockGuest, relid: u32) -> Self {
        let (rings, list) = guest.rings(4);
        for message in list.messages(relid, GPADL) {
            guest.say(message);
        }
        guest
            .hear(|message| {
                matches!(message, Message::GpadlCreated(answer) if answer.status.get() == 0).then_some(())
            })
            .await;
        guest.say(OpenChannel {
            relid: relid.into(),
            open_id: 1.into(),
            ring_gpadl: GPADL.into(),
            downstream_page_offset: 5.into(),
            ..OpenChannel::default()
        });
        guest
            .hear(|message| {
                matches!(message, Message::OpenChannelResult(answer) if answer.status.get() == 0)
                    .then_some(())
            })
            .await;
        Self { guest, rings, relid }
    }

    fn ring_bell(&self) {
        // Whichever worker the channel is on.
        for worker in 0..5 {
            let connection = ChannelConnection { relid: self.relid, worker };
            vmbus_partition::GuestEnd::signal(self.guest.end(), connection.id());
        }
    }

    /// The root takes the channel back, and gives it anew.
    async fn loses_the_channel(self) -> Self {
        let Self { guest, relid, rings } = self;
        guest.hear(|message| matches!(message, Message::RescindChannelOffer(_)).then_some(())).await;
        guest.say(GpadlTeardown { relid: relid.into(), gpadl: GPADL.into() });
        guest.hear(|message| matches!(message, Message::GpadlTorndown(_)).then_some(())).await;
        drop(rings);
        guest.say(RelidReleased { relid: relid.into() });
        let relid = guest
            .hear(|message| match message {
                Message::OfferChannel(offer) => Some(offer.relid.get()),
                _ => None,
            })
            .await;
        Self::open_again(guest, relid).await
    }
}

/// A guest that goes on working while others misbehave.
async fn neighbour(root: &Root) -> (Guest, Arc<Channel>) {
    let guest = join(root, "neighbour").await.unwrap();
    let channel = Arc::new(guest.open(Device::class(CLASS)).await.unwrap());
    (guest, channel)
}

async fn works(channel: &Channel) {
    let reply = tokio::time::timeout(Duration::from_secs(10), async {
        channel.send(b"question", []).await.unwrap().reply().await.unwrap()
    });
    assert_eq!(&reply.await.expect("an answer")[..], b"question");
}

#[tokio::test]
async fn a_broken_ring_costs_the_channel_and_nothing_else() {
    let root = Root::builder().build();
    root.offer(Echo).unwrap();
    let (_guest, channel) = neighbour(&root).await;
    let mut intruder = Intruder::open(&root).await;
    let write_index = 0;
    for garbage in [u32::MAX, 4, 0x7fff_fff8, 16] {
        intruder.rings.pages.mapping().store_u32(write_index, garbage, Ordering::SeqCst);
        intruder.ring_bell();
        intruder = intruder.loses_the_channel().await;
        works(&channel).await;
    }
}

#[tokio::test]
async fn memory_that_is_not_there_costs_the_channel_and_nothing_else() {
    let root = Root::builder().build();
    root.offer(Echo).unwrap();
    let (_guest, channel) = neighbour(&root).await;
    let mut intruder = Intruder::open(&root).await;
    let mut range = Vec::new();
    range.extend_from_slice(&4096_u32.to_le_bytes());
    range.extend_from_slice(&0_u32.to_le_bytes());
    range.extend_from_slice(&0xdead_beef_u64.to_le_bytes());
    let kind = OutgoingKind::GpaDirectEncoded { range_count: 1, ranges: &range };
    let mut batch = intruder.rings.to_host.batch();
    batch.push(Outgoing { kind, transaction_id: 1, completion_requested: true, payload: &[0; 8] }).unwrap();
    let _ = batch.commit().unwrap();
    intruder.ring_bell();
    let _ = intruder.loses_the_channel().await;
    works(&channel).await;
}

#[tokio::test]
async fn a_guest_that_never_reads_completions_is_not_served_beyond_its_ring() {
    let root = Root::builder().build();
    root.offer(Echo).unwrap();
    let (_guest, channel) = neighbour(&root).await;
    let mut intruder = Intruder::open(&root).await;
    // As many as fit, over and over, without ever reading an answer.
    for id in 1..2000_u64 {
        let mut batch = intruder.rings.to_host.batch();
        if batch.push(Outgoing::request(id, b"flooding")).is_err() {
            break;
        }
        let _ = batch.commit().unwrap();
        intruder.ring_bell();
    }
    works(&channel).await;
    // What was answered is intact: each completion once, in a ring that never overflowed.
    let mut answered = 0;
    while let Some(packet) = intruder.rings.from_host.next().unwrap() {
        let mut payload = [0; 8];
        packet.read_payload(0, &mut payload).unwrap();
        assert_eq!(&payload, b"flooding");
        answered += 1;
    }
    assert!(answered > 0);
}

#[tokio::test]
async fn a_guest_that_vanishes_leaves_nothing_behind() {
    let root = Root::builder().build();
    root.offer(Echo).unwrap();
    let (_guest, channel) = neighbour(&root).await;
    for _ in 0..20 {
        drop(Intruder::open(&root).await);
    }
    works(&channel).await;
    let emptied = tokio::time::timeout(Duration::from_secs(10), async {
        while root.status().await.partitions.len() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    emptied.await.expect("only the neighbour is left");
}

#[tokio::test]
async fn a_guest_that_is_slow_to_listen_hears_every_offer_and_one_that_never_listens_is_let_go() {
    const DEVICES: usize = 1500;
    let root = Root::builder().build();
    for _ in 0..DEVICES {
        root.offer(Echo).unwrap();
    }
    let slow = MockGuest::attach(&root, "slow").unwrap();
    contact(&slow).await;
    slow.say(RequestOffers {});
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..DEVICES {
        slow.hear(|message| matches!(message, Message::OfferChannel(_)).then_some(())).await;
    }
    slow.hear(|message| matches!(message, Message::AllOffersDelivered(_)).then_some(())).await;

    // Each contact and request for offers is answered, and nobody takes the answers.
    let gone = async {
        while root.status().await.partitions.len() == 1 {
            contact_without_listening(&slow);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the root lets it go");
}

fn contact_without_listening(guest: &MockGuest) {
    guest.say(InitiateContact {
        version: Version::Iron.word().into(),
        interrupt_page_or_target: InitiateContact::target(2, 0, FeatureFlags::empty()),
        ..InitiateContact::default()
    });
    guest.say(RequestOffers {});
}
