//! Bytes that are copied, shared or given, in both directions.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use vmbus_channels::policy::{Asked, Decision, Limits, Question};
use vmbus_channels::test_utils::{MockGuest, join, join_with};
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Event, Guest, Guid, Offer, OpenRequest, PolicyAgent, Provider,
    Refusal, Root, Session, TransferMode, guid,
};
use vmbus_partition::{Gift, GuestEnd};

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a02");
const MODES: [TransferMode; 3] = [TransferMode::Copy, TransferMode::Share, TransferMode::Give];

/// Answers each parcel with how it came, its length and the sum of its bytes; keeps what was given.
struct Sums;

impl Provider for Sums {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "sums")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self)
    }
}

impl Session for Sums {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        let mut kept = Vec::new();
        while let Some(request) = channel.recv().await? {
            let delivery = match request.delivery().await {
                Ok(delivery) => delivery,
                Err(ChannelError::Refused(refusal)) => {
                    request.complete(refusal.reason.as_bytes()).await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut bytes = vec![0; delivery.len()];
            delivery.read(0, &mut bytes)?;
            let sum: u64 = bytes.iter().map(|&byte| u64::from(byte)).sum();
            let mut reply = [0; 24];
            reply[0] = u8::try_from(delivery.mode() as usize).unwrap();
            reply[8..16].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            reply[16..].copy_from_slice(&sum.to_le_bytes());
            request.complete(&reply).await?;
            kept.push(delivery);
        }
        Ok(())
    }
}

async fn open() -> (Root, Guest, Channel) {
    let root = Root::builder().build();
    root.offer(Sums).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    (root, guest, channel)
}

async fn sent(
    channel: &Channel,
    mode: TransferMode,
    len: usize,
) -> Result<(TransferMode, u64, u64), ChannelError> {
    let mut parcel = channel.parcel(mode, len)?;
    assert_eq!((parcel.mode(), parcel.len()), (mode, len));
    let bytes: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
    parcel.write(0, &bytes)?;
    assert!(parcel.write(len, b"x").is_err(), "not beyond its end");
    let reply = channel.send_parcel(b"header", parcel).await?.reply().await?;
    let word = |at: usize| u64::from_le_bytes(reply[at..at + 8].try_into().unwrap());
    Ok((MODES[usize::from(reply[0])], word(8), word(16)))
}

fn sum(len: usize) -> u64 {
    (0..len as u64).map(|at| at % 251).sum()
}

#[tokio::test]
async fn bytes_arrive_whole_however_they_travel() {
    let (_root, _guest, channel) = open().await;
    for mode in MODES {
        for len in [1, 7, 4096, 20_001] {
            assert_eq!(
                sent(&channel, mode, len).await.unwrap(),
                (mode, len as u64, sum(len)),
                "{mode}, {len}"
            );
        }
    }
}

#[tokio::test]
async fn much_is_given_or_shared_and_not_copied_through_the_ring() {
    let (_root, _guest, channel) = open().await;
    let len = 8 << 20;
    for mode in [TransferMode::Share, TransferMode::Give] {
        assert_eq!(sent(&channel, mode, len).await.unwrap(), (mode, len as u64, sum(len)));
    }
    let mut parcel = channel.parcel(TransferMode::Copy, len).unwrap();
    parcel.write(0, b"too much").unwrap();
    assert!(matches!(channel.send_parcel(b"", parcel).await, Err(ChannelError::TooLarge { .. })));
    assert_eq!(sent(&channel, TransferMode::Copy, 8).await.unwrap().1, 8, "the channel is as good as before");
}

/// Small parcels are copied, large ones given, what lies between is shared; and nothing of 64 MiB.
struct BySize;

#[async_trait::async_trait]
impl PolicyAgent for BySize {
    async fn decide(&self, asked: &Asked) -> Decision {
        let Question::Share { device: None, bytes, .. } = asked.question else { return Decision::Allow };
        let mode = match bytes {
            0..=100 => TransferMode::Copy,
            101..=100_000 => TransferMode::Share,
            100_001..=1_000_000 => TransferMode::Give,
            _ => return Decision::deny("too much at once"),
        };
        Decision::change(Limits { mode: Some(mode), ..Limits::default() })
    }
}

#[tokio::test]
async fn policy_chooses_the_way_by_size_at_either_end() {
    let root = Root::builder().policy(BySize).build();
    root.offer(Sums).unwrap();
    let plain = join(&root, "plain").await.unwrap();
    let choosy = join_with(&root, "choosy", Guest::builder().policy(BySize)).await.unwrap();
    let by_choice = [(100, TransferMode::Copy), (5000, TransferMode::Share), (200_000, TransferMode::Give)];
    let by_size = [(100, TransferMode::Copy), (5000, TransferMode::Share), (200_000, TransferMode::Share)];
    for (guest, ways) in [(&choosy, by_choice), (&plain, by_size)] {
        let channel = guest.open(Device::class(CLASS)).await.unwrap();
        for (bytes, mode) in ways {
            let parcel = guest.parcel(&channel, bytes).await.unwrap();
            assert_eq!(parcel.mode(), mode, "{bytes} bytes");
            channel.send_parcel(b"", parcel).await.unwrap().reply().await.unwrap();
        }
        drop(channel);
    }
    let channel = choosy.open(Device::class(CLASS)).await.unwrap();
    let refused = choosy.parcel(&channel, 64 << 20).await.unwrap_err();
    assert!(refused.to_string().contains("too much at once"), "by the guest's own: {refused}");
    let gift = channel.parcel(TransferMode::Give, 2_000_000).unwrap();
    let reply = channel.send_parcel(b"", gift).await.unwrap().reply().await.unwrap();
    assert!(reply.starts_with(b"too much at once"), "by the root's: {reply:?}");
}

#[tokio::test]
async fn many_gifts_go_through_without_filling_any_quota() {
    let (_root, _guest, channel) = open().await;
    for _ in 0..500 {
        assert_eq!(sent(&channel, TransferMode::Give, 5000).await.unwrap().2, sum(5000));
    }
}

#[tokio::test]
async fn memory_that_was_shared_is_free_again_after_the_reply() {
    let root = Root::builder().build();
    root.offer(Sums).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    // More in sum than the guest has: 64 MiB.
    for _ in 0..20 {
        sent(&channel, TransferMode::Share, 8 << 20).await.unwrap();
    }
}

/// Sends the guest one parcel, and fails if the guest finds something else in it.
struct Giver(TransferMode);

impl Provider for Giver {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "giver")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self(self.0))
    }
}

impl Session for Giver {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        let mut parcel = channel.parcel(self.0, 10_000)?;
        parcel.write(9_990, b"of the roo")?;
        channel.send_parcel(b"", parcel).await?.reply().await?;
        channel.closed().await;
        Ok(())
    }
}

#[tokio::test]
async fn a_root_copies_and_gives_to_its_guest() {
    for mode in [TransferMode::Copy, TransferMode::Give] {
        let root = Root::builder().build();
        root.offer(Giver(mode)).unwrap();
        let guest = join(&root, "guest").await.unwrap();
        let channel = guest.open(Device::class(CLASS)).await.unwrap();
        let request = channel.recv().await.unwrap().unwrap();
        let delivery = request.delivery().await.unwrap();
        assert_eq!((delivery.mode(), delivery.len()), (mode, 10_000));
        request.complete(&[]).await.unwrap();
        let mut bytes = [0; 10];
        delivery.read(9_990, &mut bytes).unwrap();
        assert_eq!(&bytes, b"of the roo", "what was given outlives the request");
    }
}

#[tokio::test]
async fn a_root_has_nothing_to_share() {
    let root = Root::builder().build();
    let mut events = root.events();
    root.offer(Giver(TransferMode::Share)).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    channel.closed().await;
    loop {
        if let Event::Closed { error: Some(error), .. } = events.recv().await.unwrap() {
            assert!(error.contains("no memory that a guest sees"), "{error}");
            return;
        }
    }
}

#[tokio::test]
async fn gifts_that_nobody_fetches_are_bounded_and_harm_nobody_else() {
    let (root, _guest, channel) = open().await;
    let mut events = root.events();
    let hostile = MockGuest::attach(&root, "hostile").unwrap();
    for id in 0..100 {
        hostile.end().give(id, Gift::new(4096).unwrap().seal().unwrap()).unwrap();
    }
    hostile.end().give(100, Gift::new(1 << 30).unwrap().seal().unwrap()).unwrap();
    let mut refused = 0;
    while refused < 37 {
        if let Event::Refused { client, reason, .. } = events.recv().await.unwrap() {
            assert_eq!(&*client.name, "hostile");
            assert!(reason.contains("more than 64 gifts"), "{reason}");
            refused += 1;
        }
    }
    assert_eq!(sent(&channel, TransferMode::Give, 5000).await.unwrap().2, sum(5000));
}

#[tokio::test(start_paused = true)]
async fn a_gift_that_never_comes_ends_the_channel_that_spoke_of_it() {
    let (root, _guest, channel) = open().await;
    let mut events = root.events();
    let none = [vmbus_ringbuf::TransferRange { byte_count: 100, byte_offset: 7 }];
    let pending = channel.send_transfer_pages(0xfffe, &none, b"").await.unwrap();
    assert!(matches!(pending.reply().await, Err(ChannelError::Closed)));
    loop {
        if let Event::Closed { error: Some(error), .. } = events.recv().await.unwrap() {
            assert!(error.contains("gift 7, which never came"), "{error}");
            break;
        }
    }
}
