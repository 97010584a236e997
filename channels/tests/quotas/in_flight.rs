//! Requests in flight: a session that keeps them has a bounded number in hand, and the rest wait in the guest's memory.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use vmbus_channels::test_utils::join;
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guid, Offer, OpenRequest, Provider, Quotas, Refusal, Session, guid,
};

use crate::world::{Neighbour, PATIENCE, bus, used};

const HOARD: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a12");
/// Takes all that it can get, tells how many that were, and keeps them until it may let go.
#[derive(Clone)]
struct Hoarder {
    at_most: usize,
    took: mpsc::UnboundedSender<usize>,
    may_look: Arc<Semaphore>,
}

impl Provider for Hoarder {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(HOARD, "hoarder").requests(self.at_most)
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(self.clone())
    }
}

impl Session for Hoarder {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        loop {
            self.may_look.acquire().await.unwrap().forget();
            let Some(first) = channel.recv().await? else { return Ok(()) };
            let mut hoard = vec![first];
            channel.try_recv(usize::MAX, &mut hoard)?;
            self.took.send(hoard.len()).unwrap();
            // What is kept goes when the next look is allowed.
            self.may_look.acquire().await.unwrap().forget();
            for request in hoard {
                request.complete(b"done").await?;
            }
        }
    }
}

#[tokio::test]
async fn requests_that_want_no_completion_are_bounded_in_number() {
    const SENT: usize = 100;
    const AT_MOST: usize = 8;
    let root = bus(Quotas::default(), 1);
    let (took, mut counts) = mpsc::unbounded_channel();
    let may_look = Arc::new(Semaphore::new(0));
    root.offer(Hoarder { at_most: AT_MOST, took, may_look: Arc::clone(&may_look) }).unwrap();
    let neighbour = Neighbour::of(&root).await;
    let guest = join(&root, "hoard").await.unwrap();
    let channel = guest.open(Device::class(HOARD)).await.unwrap();
    for number in 0..SENT {
        channel.notify(&number.to_le_bytes()).await.unwrap();
    }

    let mut all = 0;
    while all < SENT {
        may_look.add_permits(1);
        let took = tokio::time::timeout(PATIENCE, counts.recv()).await.expect("requests in time").unwrap();
        assert!(took <= AT_MOST, "{took} in hand");
        neighbour.is_served().await;
        may_look.add_permits(1);
        all += took;
    }
    assert_eq!(all, SENT);
}

#[tokio::test]
async fn of_all_channels_together_no_more_requests_are_in_flight_than_may_be() {
    const CHANNELS: usize = 8;
    const SENT: usize = 50;
    const BOUND: usize = 64;
    let mut quotas = Quotas::default();
    (quotas.requests, quotas.open_channels) = (BOUND, CHANNELS);
    let root = bus(quotas, 1);
    let neighbour = Neighbour::of(&root).await;
    let (took, mut counts) = mpsc::unbounded_channel();
    let mut may_look = Vec::new();
    for _ in 0..CHANNELS {
        may_look.push(Arc::new(Semaphore::new(0)));
        let may_look = Arc::clone(may_look.last().unwrap());
        root.offer(Hoarder { at_most: 1024, took: took.clone(), may_look }).unwrap();
    }
    let guest = join(&root, "hoard").await.unwrap();
    let (mut channels, mut replies) = (Vec::new(), Vec::new());
    for device in guest.all_offers().await.unwrap().into_iter().filter(|device| device.class == HOARD) {
        let channel = guest.open(Device::instance(device.instance)).await.unwrap();
        for number in 0..SENT {
            replies.push(channel.send(&number.to_le_bytes(), []).await.unwrap());
        }
        channels.push(channel);
    }
    let promised = used(&root, "hoard", "requests that may be in flight").await;
    assert_eq!((promised.now, promised.limit), (64, 64));

    let mut all = 0;
    while all < SENT * CHANNELS {
        let mut held = 0;
        may_look.iter().for_each(|session| session.add_permits(1));
        for _ in 0..CHANNELS {
            let took = tokio::time::timeout(PATIENCE, counts.recv()).await.expect("requests in time");
            held += took.unwrap();
        }
        assert!(held <= BOUND, "{held} in hand");
        neighbour.is_served().await;
        may_look.iter().for_each(|session| session.add_permits(1));
        all += held;
    }
    for reply in replies {
        assert_eq!(&reply.reply().await.unwrap()[..4], b"done");
    }

    // What a channel had is there for the next when it is closed.
    drop(channels);
    may_look.iter().for_each(|session| session.add_permits(1));
    let back = tokio::time::timeout(PATIENCE, async {
        while used(&root, "hoard", "requests that may be in flight").await.now > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    });
    back.await.expect("all given back");
}
