//! Channels whose signals move, and signals that the guest chooses: none is lost on the way.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::Duration;

use vmbus_channels::{
    Channel, ChannelError, Client, Device, DeviceHandle, Error, Guest, Guid, Offer, OpenOptions, OpenRequest,
    Provider, Refusal, Root, Session, Spin, guid,
};
use vmbus_core::Version;
use vmbus_partition::{GuestOptions, local};

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a0d");
const DEVICE: Device = Device::class(CLASS);
const PATIENCE: Duration = Duration::from_secs(20);

struct Echo;

impl Provider for Echo {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "echo")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self)
    }
}

impl Session for Echo {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        match channel.retarget(0).await {
            Err(Error::NotPossible(_)) => {}
            other => panic!("the root's end moved: {other:?}"),
        }
        while let Some(request) = channel.recv().await? {
            let payload = request.payload().to_vec();
            request.complete(&payload).await?;
        }
        Ok(())
    }
}

fn root() -> (Root, DeviceHandle) {
    let root = Root::builder().spin(Spin::never()).build();
    let device = root.offer(Echo).unwrap();
    (root, device)
}

/// A guest with five processors.
async fn guest(root: &Root, version: Version) -> Guest {
    let options = GuestOptions { vps: 5, workers: 5, ..GuestOptions::named("guest") };
    let (theirs, ours) = local::pair(&options, root.next_partition()).unwrap();
    root.attach(Arc::new(theirs));
    let builder = Guest::builder().versions(version..=version).spin(Spin::never());
    builder.attach(Arc::new(ours)).await.unwrap()
}

async fn echo(channel: &Channel, number: u64) -> Result<(), ChannelError> {
    let pending = channel.send(&number.to_le_bytes(), []).await?;
    let reply = tokio::time::timeout(PATIENCE, pending.reply()).await.expect("a signal was lost")?;
    assert_eq!(&reply[..], number.to_le_bytes());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_signal_is_lost_while_a_channel_moves_between_processors() {
    for version in [Version::Win10Rs3, Version::Win10Rs5, Version::Iron, Version::Copper] {
        let (root, _device) = root();
        let guest = guest(&root, version).await;
        let channel = Arc::new(guest.open(DEVICE).await.unwrap());
        let load: Vec<_> = (0..4)
            .map(|_| {
                let channel = Arc::clone(&channel);
                tokio::spawn(async move {
                    for number in 0..250 {
                        echo(&channel, number).await.unwrap();
                    }
                })
            })
            .collect();
        let mut moves = 0;
        for vp in (0..5).cycle() {
            if load.iter().all(|task| task.is_finished()) {
                break;
            }
            match channel.retarget(vp).await {
                Ok(()) => moves += 1,
                // What it has left is not free yet, before 5.3 not until the channel closes.
                Err(Error::NotPossible(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{version}: {error}"),
            }
        }
        assert!(moves >= 4, "{version}: moved {moves} times");
        for task in load {
            task.await.unwrap();
        }
        // Once it is closed all its areas are free for others.
        drop(Arc::into_inner(channel));
        for vp in 1..5 {
            let open = async {
                loop {
                    match guest.open_with(DEVICE, OpenOptions::new().target_vp(vp)).await {
                        Ok(channel) => return channel,
                        Err(Error::NotPossible(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
                        Err(error) => panic!("{error}"),
                    }
                }
            };
            echo(&tokio::time::timeout(PATIENCE, open).await.unwrap(), 1).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_channel_does_not_move_where_it_cannot() {
    let (root, _device) = root();
    root.offer(Echo).unwrap();
    let guest = guest(&root, Version::Iron).await;
    let offers = guest.all_offers().await.unwrap();
    let [first, second] = [0, 1].map(|at: usize| Device::instance(offers[at].instance));
    let channel = guest.open_with(first, OpenOptions::new().target_vp(2)).await.unwrap();
    let taken = guest.open_with(second, OpenOptions::new().target_vp(2)).await;
    assert!(matches!(taken, Err(Error::NotPossible(_))));
    let other = guest.open_with(second, OpenOptions::new().target_vp(3)).await.unwrap();
    for vp in [3, 5, u32::MAX] {
        assert!(matches!(channel.retarget(vp).await, Err(Error::NotPossible(_))), "{vp}");
    }
    channel.retarget(2).await.unwrap();
    channel.retarget(0).await.unwrap();
    other.retarget(0).await.unwrap();
    echo(&channel, 1).await.unwrap();
    echo(&other, 2).await.unwrap();

    let old = self::guest(&root, Version::Win10).await;
    let channel = old.open(first).await.unwrap();
    assert!(matches!(channel.retarget(0).await, Err(Error::NotPossible(_))), "before 4.1");
    echo(&channel, 3).await.unwrap();
}

#[tokio::test]
async fn a_thread_moves_its_channel() {
    let (root, _device) = root();
    let guest = guest(&root, Version::Copper).await;
    let channel = guest.open(DEVICE).await.unwrap().into_blocking();
    let thread = tokio::task::spawn_blocking(move || {
        for number in 0..50_u64 {
            let vp = u32::try_from(number % 5).unwrap();
            match channel.retarget(vp) {
                Ok(()) | Err(Error::NotPossible(_)) => {}
                Err(error) => panic!("{error}"),
            }
            let pending = channel.send(&number.to_le_bytes(), []).unwrap();
            assert_eq!(&pending.reply_blocking().unwrap()[..], number.to_le_bytes());
        }
    });
    tokio::time::timeout(PATIENCE, thread).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_goes_while_its_channel_moves_ends_the_move() {
    for _ in 0..30 {
        let (root, device) = root();
        let guest = guest(&root, Version::Copper).await;
        let channel = guest.open(DEVICE).await.unwrap();
        let moving = tokio::spawn(async move {
            for vp in (0..5).cycle() {
                match channel.retarget(vp).await {
                    Ok(()) | Err(Error::NotPossible(_)) => tokio::task::yield_now().await,
                    Err(Error::Rescinded) => return,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        tokio::task::yield_now().await;
        device.rescind();
        tokio::time::timeout(PATIENCE, moving).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_that_the_guest_chose_arrive_and_the_next_open_has_those_of_the_offer() {
    let (root, _device) = root();
    let guest = guest(&root, Version::Copper).await;
    // A connection of the bus's form with another flag, one of another form, and flags in areas of each kind.
    for (connection_id, flag) in [(0x2000 | 1500, 1999), (0x0012_3456, 7), (0x00ff_ffff, 1)] {
        for vp in [0, 3] {
            let options = OpenOptions::new().signals(connection_id, flag).target_vp(vp);
            let channel = guest.open_with(DEVICE, options).await.unwrap();
            for number in 0..20 {
                echo(&channel, number).await.unwrap();
            }
            drop(channel);
            let channel = loop {
                match guest.open_with(DEVICE, OpenOptions::new().target_vp(vp)).await {
                    Ok(channel) => break channel,
                    Err(Error::NotPossible(_)) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            };
            for number in 0..20 {
                echo(&channel, number).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn two_channels_may_choose_the_same_signals_and_nobody_chooses_another_channels_area() {
    let (root, _device) = root();
    root.offer(Echo).unwrap();
    let guest = guest(&root, Version::Copper).await;
    let mut channels = Vec::new();
    for offered in guest.all_offers().await.unwrap() {
        let options = OpenOptions::new().signals(0x2000 | 9, 9).target_vp(0);
        channels.push(guest.open_with(Device::instance(offered.instance), options).await.unwrap());
    }
    for number in 0..20 {
        for channel in &channels {
            echo(channel, number).await.unwrap();
        }
    }
    drop(channels.pop());
    echo(&channels[0], 1).await.unwrap();
    drop(channels);

    for worker in 1..5 {
        let options = OpenOptions::new().signals(0x2000 | 9 | worker << 16, 9);
        match guest.open_with(DEVICE, options).await {
            // Our area for this channel, by luck.
            Ok(channel) => echo(&channel, 1).await.unwrap(),
            Err(Error::Refused(refusal)) => assert!(refusal.reason.contains("other channels"), "{refusal}"),
            Err(error) => panic!("{error}"),
        }
    }
    let old = self::guest(&root, Version::Iron).await;
    let refused = old.open_with(DEVICE, OpenOptions::new().signals(9, 9)).await;
    assert!(matches!(refused, Err(Error::NotPossible(_))));
}
