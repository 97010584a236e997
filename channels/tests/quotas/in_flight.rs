//! Requests in flight: a session that keeps them has a bounded number in hand, and the rest wait in the guest's memory.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use vmbus_channels::test_utils::join;
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guid, Offer, OpenRequest, Provider, Quotas, Refusal, Session, guid,
};

use crate::world::{Neighbour, PATIENCE, bus};

const HOARD: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a12");
const AT_MOST: usize = 8;

/// Takes all that it can get, tells how many that were, and keeps them until it may let go.
struct Hoarder {
    took: mpsc::UnboundedSender<usize>,
    may_look: Arc<Semaphore>,
}

impl Provider for Hoarder {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(HOARD, "hoarder").requests(AT_MOST)
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self { took: self.took.clone(), may_look: Arc::clone(&self.may_look) })
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
    let root = bus(Quotas::default(), 1);
    let (took, mut counts) = mpsc::unbounded_channel();
    let may_look = Arc::new(Semaphore::new(0));
    root.offer(Hoarder { took, may_look: Arc::clone(&may_look) }).unwrap();
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
