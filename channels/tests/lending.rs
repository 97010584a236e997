//! Memory that a guest lends for longer than one request, and packets that a device sends on its own.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;
use vmbus_channels::test_utils::join;
use vmbus_channels::{
    Borrowed, Channel, ChannelError, Client, Device, Guest, Guid, Offer, OpenRequest, Provider, Refusal,
    Root, Session, guid,
};
use vmbus_ringbuf::TransferRange;

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a31");
const LONG: Duration = Duration::from_secs(20);
const SET: u16 = 0xcafe;

/// Borrows the list that a request names, and sends packets into it, each with a range that holds its number, as many
/// as the request says, as soon as there is room. Says when all have come back, and lets go of the list when it is
/// wanted back and `lets_go` says so.
#[derive(Clone, Default)]
struct Sender {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    back: AtomicUsize,
    lets_go: Notify,
    recalled: Notify,
    refused: Notify,
}

impl Provider for Sender {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "sender")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(self.clone())
    }
}

impl Session for Sender {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        let (mut requests, mut replies) = (Vec::new(), Vec::new());
        let (mut list, mut next, mut wanted): (Option<Borrowed>, u32, u32) = (None, 0, 0);
        loop {
            if !channel.recv_or_stirred(&mut requests).await? {
                return Ok(());
            }
            for request in requests.drain(..) {
                let [gpadl, count] = *request.payload().as_chunks::<4>().0 else {
                    return Err(ChannelError::Protocol("not two words".into()));
                };
                match channel.borrow_list(u32::from_le_bytes(gpadl)) {
                    Ok(borrowed) => list = Some(borrowed),
                    Err(_) => self.state.refused.notify_one(),
                }
                (next, wanted) = (0, u32::from_le_bytes(count));
                request.complete(&[]).await?;
            }
            channel.take_replies(&mut replies);
            for (tag, reply) in replies.drain(..) {
                assert_eq!(reply[..], tag.to_le_bytes(), "the reply to another packet");
                self.state.back.fetch_add(1, Ordering::SeqCst);
            }
            if list.as_ref().is_some_and(Borrowed::is_wanted_back) {
                self.state.recalled.notify_one();
                self.state.lets_go.notified().await;
                list = None;
            }
            let Some(list) = &list else { continue };
            while next < wanted {
                list.write(8 * next as usize, &u64::from(next).to_le_bytes())?;
                let range = TransferRange { byte_count: 8, byte_offset: 8 * next };
                if !channel.try_send_transfer_pages(next.into(), SET, &[range], b"here")? {
                    break;
                }
                next += 1;
            }
        }
    }
}

async fn open(sender: &Sender) -> (Root, Guest, Channel) {
    let root = Root::builder().build();
    root.offer(sender.clone()).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    (root, guest, channel)
}

async fn ask(channel: &Channel, gpadl: u32, packets: u32) {
    let words = [gpadl, packets].map(u32::to_le_bytes).concat();
    let pending = channel.send(&words, []).await.unwrap();
    timeout(LONG, pending.reply()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_device_sends_into_lent_memory_and_hears_of_each_packet_once() {
    const PACKETS: u32 = 10_000;
    let sender = Sender::default();
    let (_root, guest, channel) = open(&sender).await;
    let lent = channel.lend(&guest.share(8 * PACKETS as usize).unwrap()).await.unwrap();
    ask(&channel, lent.id(), PACKETS).await;
    for number in 0..u64::from(PACKETS) {
        let packet = timeout(LONG, channel.recv()).await.unwrap().unwrap().unwrap();
        let (set, [(offset, 8)]) = packet.transfer_pages().unwrap() else { panic!("other ranges") };
        let mut bytes = [0; 8];
        lent.buffer().read(*offset as usize, &mut bytes).unwrap();
        assert_eq!((set, u64::from_le_bytes(bytes)), (SET, number), "packets come in order");
        packet.complete(&number.to_le_bytes()).await.unwrap();
    }
    timeout(LONG, async {
        while sender.state.back.load(Ordering::SeqCst) < PACKETS as usize {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("all came back");
}

#[tokio::test]
async fn a_stir_before_the_wait_is_not_lost() {
    let (_root, _guest, channel) = open(&Sender::default()).await;
    channel.stir();
    let mut requests = Vec::new();
    let stirred = channel.recv_or_stirred(&mut requests);
    assert!(timeout(LONG, stirred).await.expect("it returns").unwrap());
    let again = timeout(Duration::from_millis(50), channel.recv_or_stirred(&mut requests)).await;
    assert!(again.is_err() || requests.is_empty(), "once");
}

#[tokio::test]
async fn memory_comes_back_when_the_device_has_let_go_of_it() {
    let sender = Sender::default();
    let (_root, guest, channel) = open(&sender).await;
    let lent = channel.lend(&guest.share(4096).unwrap()).await.unwrap();
    ask(&channel, lent.id(), 0).await;
    let mut back = tokio::spawn(lent.take_back());
    timeout(LONG, sender.state.recalled.notified()).await.unwrap();
    assert!(timeout(Duration::from_millis(50), &mut back).await.is_err(), "the device still has it");
    sender.state.lets_go.notify_one();
    timeout(LONG, back).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_nobody_borrowed_comes_back_at_once() {
    let (_root, guest, channel) = open(&Sender::default()).await;
    let lent = channel.lend(&guest.share(4096).unwrap()).await.unwrap();
    timeout(LONG, lent.take_back()).await.unwrap();
}

#[tokio::test]
async fn lent_memory_is_free_again_after_its_channel_has_closed() {
    let sender = Sender::default();
    let (_root, guest, channel) = open(&sender).await;
    let lent = channel.lend(&guest.share(32 << 20).unwrap()).await.unwrap();
    ask(&channel, lent.id(), 0).await;
    assert!(guest.share(48 << 20).is_err());
    sender.state.lets_go.notify_one();
    drop((channel, lent));
    timeout(LONG, async {
        while guest.share(48 << 20).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the memory is free");
}

#[tokio::test]
async fn a_list_that_is_not_there_cannot_be_borrowed_and_costs_nobody_the_channel() {
    let sender = Sender::default();
    let (_root, guest, channel) = open(&sender).await;
    ask(&channel, 4711, 0).await;
    timeout(LONG, sender.state.refused.notified()).await.unwrap();
    let lent = channel.lend(&guest.share(4096).unwrap()).await.unwrap();
    let id = lent.id();
    timeout(LONG, lent.take_back()).await.unwrap();
    ask(&channel, id, 0).await;
    timeout(LONG, sender.state.refused.notified()).await.unwrap();
    assert!(!channel.is_closed());
}
