//! Requests and completions on one channel: order, depth, memory, ends.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::time::Duration;

use vmbus_channels::test_utils::join;
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Error, Guid, Offer, OpenRequest, Provider, Refusal, Root, Session,
    Spin, guid,
};

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a01");

/// Completes each request with its payload, in batches that are reversed.
#[derive(Clone, Copy)]
struct Echo {
    batch: usize,
}

impl Provider for Echo {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "echo")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(*self)
    }
}

impl Session for Echo {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        let mut taken = Vec::new();
        while let Some(request) = channel.recv().await? {
            taken.push(request);
            if taken.len() == self.batch {
                let mut completions = channel.completions();
                for request in taken.drain(..).rev() {
                    let payload = request.payload().to_vec();
                    completions.push(request, &payload)?;
                }
                completions.send().await?;
            }
        }
        Ok(())
    }
}

async fn open(provider: impl Provider) -> (Root, vmbus_channels::Guest, Channel) {
    let root = Root::builder().build();
    root.offer(provider).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    (root, guest, channel)
}

#[tokio::test]
async fn completions_find_their_requests_in_any_order() {
    let (_root, _guest, channel) = open(Echo { batch: 8 }).await;
    for _ in 0..100 {
        let mut pending = Vec::new();
        for number in 0..8_u64 {
            pending.push((number, channel.send(&number.to_le_bytes(), []).await.unwrap()));
        }
        for (number, pending) in pending {
            assert_eq!(&pending.reply().await.unwrap()[..], number.to_le_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_a_channel() {
    for spin in [Spin::adaptive(), Spin::never()] {
        let (_root, _guest, channel) = open(Echo { batch: 1 }).await;
        channel.set_spin(spin);
        let channel = std::sync::Arc::new(channel);
        let tasks: Vec<_> = (0..32_u64)
            .map(|task| {
                let channel = std::sync::Arc::clone(&channel);
                tokio::spawn(async move {
                    for round in 0..200_u64 {
                        let payload = (task << 32 | round).to_le_bytes();
                        let reply = channel.send(&payload, []).await.unwrap().reply().await.unwrap();
                        assert_eq!(&reply[..], payload);
                    }
                })
            })
            .collect();
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(60), task).await.expect("no wake was lost").unwrap();
        }
    }
}

#[tokio::test]
async fn more_requests_than_the_ring_holds_wait_for_room() {
    let (_root, _guest, channel) = open(Echo { batch: 1 }).await;
    let payload = [7; 4096];
    let echo_room = &payload[..128];
    let mut pending = Vec::new();
    for _ in 0..500 {
        pending.push(channel.send(echo_room, []).await.unwrap());
    }
    for pending in pending {
        assert_eq!(&pending.reply().await.unwrap()[..], echo_room);
    }
    assert!(matches!(channel.send(&[0; 1 << 20], []).await, Err(ChannelError::TooLarge { .. })));
}

/// Writes the request's transaction number all over the guest's memory.
struct Painter;

impl Provider for Painter {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "painter")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self)
    }
}

impl Session for Painter {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            let pages = request.writable_pages()?;
            pages.write(0, &vec![request.payload()[0]; pages.len()])?;
            request.complete(&[]).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_device_writes_just_the_bytes_that_it_was_given() {
    let (_root, guest, channel) = open(Painter).await;
    let buffer = guest.share(3 * 4096).unwrap();
    let reply = channel.send(&[0xee; 8], [buffer.range(100..9000)]).await.unwrap().reply().await.unwrap();
    assert!(reply.is_empty());
    let mut bytes = vec![0; buffer.len()];
    buffer.read(0, &mut bytes).unwrap();
    assert!(bytes[..100].iter().all(|&byte| byte == 0));
    assert!(bytes[100..9000].iter().all(|&byte| byte == 0xee));
    assert!(bytes[9000..].iter().all(|&byte| byte == 0));
}

/// Takes requests and never answers.
struct Silent;

impl Provider for Silent {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "silent")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self)
    }
}

impl Session for Silent {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        let mut taken = Vec::new();
        while let Some(request) = channel.recv().await? {
            taken.push(request);
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_rescind_ends_every_request_in_flight_once() {
    let root = Root::builder().build();
    let device = root.offer(Silent).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    let pending: Vec<_> = {
        let mut pending = Vec::new();
        for _ in 0..20 {
            pending.push(channel.send(&[1; 8], []).await.unwrap());
        }
        pending
    };
    device.rescind();
    for pending in pending {
        let reply = tokio::time::timeout(Duration::from_secs(10), pending.reply()).await.expect("ended");
        assert!(matches!(reply, Err(ChannelError::Closed)));
    }
    assert!(matches!(channel.send(&[1; 8], []).await, Err(ChannelError::Closed)));
    assert!(matches!(guest.open(Device::class(CLASS)).await, Err(Error::NotOffered(_))));
}

/// Drops every request.
struct Careless {
    answer: Option<&'static [u8]>,
}

impl Provider for Careless {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "careless")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self { answer: self.answer })
    }
}

impl Session for Careless {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        if let Some(answer) = self.answer {
            channel.answer_abandoned_with(answer);
        }
        while let Some(request) = channel.recv().await? {
            drop(request);
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_request_dropped_unanswered_gets_the_sessions_bytes_or_ends_the_channel() {
    let (_root, _guest, channel) = open(Careless { answer: Some(b"dropped!") }).await;
    for _ in 0..100 {
        assert_eq!(&channel.send(b"question", []).await.unwrap().reply().await.unwrap()[..], b"dropped!");
    }
    let (_root, _guest, channel) = open(Careless { answer: None }).await;
    let reply = tokio::time::timeout(Duration::from_secs(10), async {
        channel.send(b"question", []).await.unwrap().reply().await
    });
    assert!(matches!(reply.await.expect("the channel ends"), Err(ChannelError::Closed)));
}

#[tokio::test]
async fn a_channel_closes_with_its_last_handle_and_opens_again() {
    let (root, guest, mut channel) = open(Echo { batch: 1 }).await;
    for round in 0..200_u64 {
        let reply = channel.send(&round.to_le_bytes(), []).await.unwrap().reply().await.unwrap();
        assert_eq!(&reply[..], round.to_le_bytes());
        drop(channel);
        channel = loop {
            match guest.open(Device::class(CLASS)).await {
                Ok(channel) => break channel,
                // The close is under way.
                Err(Error::Refused(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
    }
    drop(channel);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let status = root.status().await;
    assert_eq!(status.partitions[0].gpadls, 0, "closed channels leave no page lists behind");
}

/// Refuses everybody.
struct Closed;

impl Provider for Closed {
    type Session = Silent;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "closed")
    }

    fn open(&self, client: &Client, _open: &OpenRequest) -> Result<Silent, Refusal> {
        Err(Refusal::new(format!("{} may not", client.name)))
    }
}

#[tokio::test]
async fn a_refusal_carries_its_reason_to_the_guest() {
    let root = Root::builder().build();
    root.offer(Closed).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    match guest.open(Device::class(CLASS)).await {
        Err(Error::Refused(refusal)) => assert_eq!(refusal.reason, "guest may not"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_thread_without_a_runtime_drives_a_channel() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for spin in [Spin::adaptive(), Spin::never()] {
        let (_root, _guest, channel) = runtime.block_on(open(Echo { batch: 1 }));
        let channel = channel.into_blocking();
        channel.set_spin(spin);
        for round in 0..500_u64 {
            let reply = channel.send(&round.to_le_bytes(), []).unwrap().reply_blocking().unwrap();
            assert_eq!(&reply[..], round.to_le_bytes());
        }
    }
}
