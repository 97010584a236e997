//! A root with bounds, a guest that reaches for more, and a neighbour that only wants its answers.

use std::time::Duration;

use vmbus_channels::test_utils::{MockGuest, MockRings, echo, join};
use vmbus_channels::{
    Channel, Device, Guest, Guid, Offer, PartitionStatus, Provider, Quotas, Root, Used, guid,
};
use vmbus_core::message::{InitiateContact, Message, OpenChannel, RequestOffers};
use vmbus_core::{FeatureFlags, Version};

pub(crate) const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a11");
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Gives every request's payload back.
pub(crate) fn device() -> impl Provider {
    echo(Offer::new(CLASS, "echo"))
}

/// A bus with so many echo devices, whose neighbours are to feel nothing of an intruder.
pub(crate) fn bus(quotas: Quotas, devices: usize) -> Root {
    let root = Root::builder().control_thread().unwrap().quotas(quotas).build();
    for _ in 0..devices {
        root.offer(device()).unwrap();
    }
    root
}

/// A guest that works while another misbehaves. It attaches before bounds get tight.
pub(crate) struct Neighbour {
    _guest: Guest,
    channel: Channel,
}

impl Neighbour {
    pub(crate) async fn of(root: &Root) -> Self {
        let guest = join(root, "neighbour").await.unwrap();
        let channel = guest.open(Device::class(CLASS)).await.unwrap();
        Self { _guest: guest, channel }
    }

    pub(crate) async fn is_served(&self) {
        let answers = tokio::time::timeout(PATIENCE, async {
            for _ in 0..10 {
                let reply = self.channel.send(b"question", []).await.unwrap().reply().await.unwrap();
                assert_eq!(&reply[..], b"question");
            }
        });
        answers.await.expect("answers in time");
    }
}

pub(crate) async fn partition(root: &Root, name: &str) -> PartitionStatus {
    root.status().await.partitions.into_iter().find(|partition| partition.name == name).unwrap()
}

/// How far the bound `what` of partition `name` is used.
pub(crate) async fn used(root: &Root, name: &str, what: &str) -> Used {
    let quotas = partition(root, name).await.quotas;
    quotas.iter().find(|used| used.name == what).unwrap_or_else(|| panic!("{what}: {quotas:?}")).clone()
}

/// A guest that follows no rule but those of its introduction.
pub(crate) async fn intruder(root: &Root) -> MockGuest {
    let guest = MockGuest::attach(root, "intruder").unwrap();
    contact(&guest);
    guest
        .hear(|message| {
            matches!(message, Message::VersionResponse(answer) if answer.supported == 1).then_some(())
        })
        .await;
    guest
}

pub(crate) fn contact(guest: &MockGuest) {
    guest.say(InitiateContact {
        version: Version::Iron.word().into(),
        interrupt_page_or_target: InitiateContact::target(2, 0, FeatureFlags::empty()),
        ..InitiateContact::default()
    });
}

/// Channel ids that the guest is offered: as many as there are devices.
pub(crate) async fn offers(guest: &MockGuest, devices: usize) -> Vec<u32> {
    guest.say(RequestOffers {});
    let mut relids = Vec::new();
    while relids.len() < devices {
        relids.push(offer(guest).await);
    }
    relids
}

pub(crate) async fn offer(guest: &MockGuest) -> u32 {
    guest
        .hear(|message| match message {
            Message::OfferChannel(offer) => Some(offer.relid.get()),
            _ => None,
        })
        .await
}

/// Opens a channel with rings of `pages` data pages; the status of GPADL_CREATED if that failed, else of the open.
pub(crate) async fn open(guest: &MockGuest, relid: u32, pages: usize) -> (u32, MockRings) {
    let (rings, list) = guest.rings(pages);
    for message in list.messages(relid, relid) {
        guest.say(message);
    }
    let created = guest
        .hear(|message| match message {
            Message::GpadlCreated(answer) => Some(answer.status.get()),
            _ => None,
        })
        .await;
    if created != 0 {
        return (created, rings);
    }
    guest.say(OpenChannel {
        relid: relid.into(),
        open_id: 1.into(),
        ring_gpadl: relid.into(),
        downstream_page_offset: u32::try_from(pages + 1).unwrap().into(),
        ..OpenChannel::default()
    });
    let opened = guest
        .hear(|message| match message {
            Message::OpenChannelResult(answer) => Some(answer.status.get()),
            _ => None,
        })
        .await;
    (opened, rings)
}
