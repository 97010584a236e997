//! Sub-channels on demand: offered, opened, shared with their primary, and gone with it.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vmbus_channels::test_utils::{MockGuest, MockRings, join, join_with};
use vmbus_channels::{
    Channel, ChannelError, Client, Device, DeviceHandle, Error, Guest, Guid, Offer, OpenRequest, Provider,
    Refusal, Root, Session, guid,
};
use vmbus_core::Version;
use vmbus_core::message::{
    CloseChannel, InitiateContact, Message, OpenChannel, RelidReleased, RequestOffers,
};
use vmbus_core::synic::ChannelConnection;
use vmbus_partition::GuestEnd;
use vmbus_ringbuf::Outgoing;

const INSTANCE: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a0b");
const DEVICE: Device = Device::instance(INSTANCE);
const PATIENCE: Duration = Duration::from_secs(20);
/// The sub-channel whose session takes its time to let go.
const SLOW: u16 = 30;

/// Counts the requests of one guest over all its channels. A request of two bytes on the primary asks for that many
/// sub-channels and is answered with the refusal, if any; others are answered with the channel's index and the count.
struct Counter;

struct Counting {
    index: u16,
    count: Arc<AtomicU64>,
}

impl Provider for Counter {
    type Session = Counting;

    fn offer(&self) -> Offer {
        Offer::new(INSTANCE, "counter").instance(INSTANCE)
    }

    fn open(&self, _client: &Client, open: &OpenRequest) -> Result<Counting, Refusal> {
        Ok(Counting { index: open.subchannel_index, count: Arc::default() })
    }
}

impl Session for Counting {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            let answer = match *request.payload() {
                [low, high, 0, 0, 0, 0, 0, 0] => {
                    let count = Arc::clone(&self.count);
                    let admit = move |open: &OpenRequest| match open.subchannel_index {
                        13 => Err(Refusal::new("13 brings bad luck")),
                        index => Ok(Counting { index, count: Arc::clone(&count) }),
                    };
                    let answer = channel.offer_subchannels(u16::from_le_bytes([low, high]), admit).await;
                    answer.map_or_else(|refusal| refusal.reason, |()| String::new()).into_bytes()
                }
                _ => {
                    let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
                    [u64::from(self.index), count].map(u64::to_le_bytes).concat()
                }
            };
            request.complete(&answer[..answer.len().min(128)]).await?;
        }
        if self.index == SLOW {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

fn root() -> (Root, DeviceHandle) {
    let root = Root::builder().build();
    let device = root.offer(Counter).unwrap();
    (root, device)
}

async fn ask(channel: &Channel, count: u16) -> String {
    let reply = channel.send(&u64::from(count).to_le_bytes(), []).await.unwrap().reply().await.unwrap();
    String::from_utf8(reply.iter().copied().take_while(|&byte| byte != 0).collect()).unwrap()
}

/// The index of the channel, and how many requests its device has counted.
async fn count(channel: &Channel) -> (u64, u64) {
    let reply = channel.send(&[0xff; 8], []).await.unwrap().reply().await.unwrap();
    let word = |at: usize| u64::from_le_bytes(reply[at..at + 8].try_into().unwrap());
    (word(0), word(8))
}

async fn open_subchannels(guest: &Guest, range: std::ops::RangeInclusive<u16>) -> Vec<Channel> {
    let mut channels = Vec::new();
    for index in range {
        guest.wait_for(DEVICE.subchannel(index)).await.unwrap();
        channels.push(guest.open(DEVICE.subchannel(index)).await.unwrap());
    }
    channels
}

async fn gone(guest: &Guest, index: u16) {
    while guest.offers().iter().any(|offered| offered.subchannel_index == index) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Returns when the first guest is shown so many channels and shares no pages for any.
async fn left(root: &Root, channels: usize) {
    loop {
        let guest = &root.status().await.partitions[0];
        if (guest.channels.len(), guest.gpadls, guest.pages) == (channels, 0, 0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn in_time<T>(story: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, story).await.expect("the story hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sub_channels_of_an_earlier_open_are_not_taken_for_those_of_the_next() {
    let (root, _device) = root();
    let guest = join(&root, "guest").await.unwrap();
    for _ in 0..3 {
        let primary = guest.open(DEVICE).await.unwrap();
        assert_eq!(ask(&primary, SLOW).await, "");
        let open = tokio::time::timeout(PATIENCE, open_subchannels(&guest, SLOW - 1..=SLOW));
        let subchannels = open.await.expect("those of this open come");
        for (subchannel, asked) in subchannels.iter().zip(1..) {
            assert_eq!(count(subchannel).await.1, asked, "they share a device");
        }
    }
}

#[tokio::test]
async fn sub_channels_appear_when_asked_for_and_share_the_state_of_their_primary() {
    in_time(async {
        let (root, _device) = root();
        let (guest, other) = (join(&root, "guest").await.unwrap(), join(&root, "other").await.unwrap());
        let primary = guest.open(DEVICE).await.unwrap();
        let strangers = other.open(DEVICE).await.unwrap();
        assert!(matches!(guest.open(DEVICE.subchannel(1)).await, Err(Error::NotOffered(_))));

        assert_eq!(ask(&primary, 2).await, "");
        assert_eq!(ask(&primary, 5).await, "");
        let channels = open_subchannels(&guest, 1..=5).await;
        assert!(matches!(guest.open(DEVICE.subchannel(6)).await, Err(Error::NotOffered(_))));
        assert_eq!(count(&primary).await, (0, 1));
        for (channel, index) in channels.iter().zip(1..) {
            assert_eq!(count(channel).await, (index, index + 1));
        }
        assert_eq!(count(&strangers).await, (0, 1), "another guest's session is another's");
        let status = root.status().await;
        let shown = status.partitions.iter().map(|partition| partition.channels.len());
        assert_eq!(shown.collect::<Vec<_>>(), [6, 1]);
    })
    .await;
}

#[tokio::test]
async fn a_sub_channel_is_refused_with_the_reason_of_its_session() {
    in_time(async {
        let (root, _device) = root();
        let guest = join(&root, "guest").await.unwrap();
        let primary = guest.open(DEVICE).await.unwrap();
        assert_eq!(ask(&primary, 13).await, "");
        guest.wait_for(DEVICE.subchannel(13)).await.unwrap();
        match guest.open(DEVICE.subchannel(13)).await {
            Err(Error::Refused(refusal)) => assert_eq!(refusal.reason, "13 brings bad luck"),
            other => panic!("{other:?}"),
        }
        assert_eq!(count(&primary).await, (0, 1));
    })
    .await;
}

#[tokio::test]
async fn a_guest_gets_no_more_sub_channels_than_the_root_can_hold_and_none_before_win8() {
    in_time(async {
        let (root, _device) = root();
        let guest = join(&root, "guest").await.unwrap();
        let primary = guest.open(DEVICE).await.unwrap();
        let refusal = ask(&primary, 5000).await;
        assert!(refusal.contains("may have"), "{refusal}");
        assert_eq!(guest.offers().len(), 1, "nothing was offered");
        assert_eq!(ask(&primary, 3).await, "");
        assert_eq!(open_subchannels(&guest, 1..=3).await.len(), 3);

        let old = Guest::builder().versions(Version::Win7..=Version::Win7);
        let old = join_with(&root, "old", old).await.unwrap();
        let primary = old.open(DEVICE).await.unwrap();
        let refusal = ask(&primary, 1).await;
        assert!(refusal.contains("know no sub-channels"), "{refusal}");
    })
    .await;
}

#[tokio::test]
async fn sub_channels_go_when_their_primary_closes_and_come_back_with_the_next_open() {
    in_time(async {
        let (root, _device) = root();
        let guest = join(&root, "guest").await.unwrap();
        for _ in 0..20 {
            let primary = guest.open(DEVICE).await.unwrap();
            assert_eq!(ask(&primary, 3).await, "");
            let channels = open_subchannels(&guest, 1..=2).await;
            assert_eq!(count(&channels[1]).await, (2, 1));
            drop(primary);
            for channel in &channels {
                channel.closed().await;
            }
            for index in 1..=3 {
                gone(&guest, index).await;
            }
        }
        left(&root, 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_device_that_is_withdrawn_takes_its_sub_channels_and_what_is_in_flight_ends_once() {
    in_time(async {
        for _ in 0..20 {
            let (root, device) = root();
            let guest = join(&root, "guest").await.unwrap();
            let mut channels = vec![guest.open(DEVICE).await.unwrap()];
            assert_eq!(ask(&channels[0], 4).await, "");
            channels.extend(open_subchannels(&guest, 1..=4).await);
            let load: Vec<_> = channels
                .into_iter()
                .map(|channel| {
                    tokio::spawn(async move {
                        let mut answered = 0;
                        while let Ok(pending) = channel.send(&[0xff; 8], []).await {
                            match pending.reply().await {
                                Ok(_) => answered += 1,
                                Err(_) => break,
                            }
                        }
                        channel.closed().await;
                        answered
                    })
                })
                .collect();
            tokio::task::yield_now().await;
            device.rescind();
            for task in load {
                task.await.unwrap();
            }
            left(&root, 0).await;
            assert_eq!(guest.offers(), []);
        }
    })
    .await;
}

/// A guest whose every message the test sees.
struct Watcher(MockGuest);

impl Watcher {
    async fn join(root: &Root) -> Self {
        let guest = MockGuest::attach(root, "watcher").unwrap();
        guest.say(InitiateContact {
            version: Version::Iron.word().into(),
            interrupt_page_or_target: 2.into(),
            ..InitiateContact::default()
        });
        guest.hear(|message| matches!(message, Message::VersionResponse(_)).then_some(())).await;
        guest.say(RequestOffers {});
        Self(guest)
    }

    async fn offered(&self, index: u16) -> u32 {
        self.0
            .hear(|message| match message {
                Message::OfferChannel(offer) if offer.subchannel_index.get() == index => {
                    assert_eq!(offer.interface_instance, INSTANCE);
                    Some(offer.relid.get())
                }
                _ => None,
            })
            .await
    }

    async fn open(&self, relid: u32, gpadl: u32) -> MockRings {
        let (rings, list) = self.0.rings(1);
        for message in list.messages(relid, gpadl) {
            self.0.say(message);
        }
        let created = |message: Message<'_>| matches!(message, Message::GpadlCreated(_)).then_some(());
        self.0.hear(created).await;
        self.0.say(OpenChannel {
            relid: relid.into(),
            ring_gpadl: gpadl.into(),
            downstream_page_offset: 2.into(),
            ..OpenChannel::default()
        });
        let status = |message: Message<'_>| match message {
            Message::OpenChannelResult(result) => Some(result.status.get()),
            _ => None,
        };
        assert_eq!(self.0.hear(status).await, 0);
        rings
    }

    async fn rescinded(&self) -> u32 {
        self.0
            .hear(|message| match message {
                Message::RescindChannelOffer(rescind) => Some(rescind.relid.get()),
                _ => None,
            })
            .await
    }
}

/// Asks for two sub-channels.
fn ask_by_ring(guest: &Watcher, rings: &mut MockRings, primary: u32) {
    let mut batch = rings.to_host.batch();
    batch.push(Outgoing::request(7, &2_u64.to_le_bytes())).unwrap();
    let _ = batch.commit().unwrap();
    // Whichever worker the channel is on.
    for worker in 0..5 {
        GuestEnd::signal(guest.0.end(), ChannelConnection { relid: primary, worker }.id());
    }
}

#[tokio::test]
async fn sub_channels_are_rescinded_before_their_primary_and_ids_are_used_again_once_released() {
    in_time(async {
        let (root, device) = root();
        let guest = Watcher::join(&root).await;
        let primary = guest.offered(0).await;
        let mut rings = guest.open(primary, 0x77).await;
        ask_by_ring(&guest, &mut rings, primary);
        let (first, second) = (guest.offered(1).await, guest.offered(2).await);
        let _opened = guest.open(first, 0x78).await;

        // Closing the primary takes both, the open one and the other.
        guest.0.say(CloseChannel { relid: primary.into() });
        let mut gone = [guest.rescinded().await, guest.rescinded().await];
        gone.sort_unstable();
        assert_eq!(gone, [first, second]);

        // The next open asks again while the guest still holds the ids: they come when it has let go of them.
        let mut rings = guest.open(primary, 0x79).await;
        ask_by_ring(&guest, &mut rings, primary);
        guest.0.say(RelidReleased { relid: first.into() });
        guest.0.say(RelidReleased { relid: second.into() });
        let (first, second) = (guest.offered(1).await, guest.offered(2).await);
        let _opened = guest.open(second, 0x7a).await;

        // The device goes: sub-channels first.
        device.rescind();
        let mut gone = [guest.rescinded().await, guest.rescinded().await];
        gone.sort_unstable();
        let mut expected = [first, second];
        expected.sort_unstable();
        assert_eq!(gone, expected);
        assert_eq!(guest.rescinded().await, primary);
    })
    .await;
}
