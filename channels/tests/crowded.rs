//! Rings that are small for what goes through them, and packets that nobody asked for: everybody still gets on.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::time::Duration;

use vmbus_channels::test_utils::join_with;
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guest, Guid, Offer, OpenRequest, Provider, Refusal, Root, Session, guid,
};

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a05");
/// What a hang is told by.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers each request in a task of its own, a moment later; says `notices` things first that no answer is due to.
#[derive(Clone, Copy)]
struct Later {
    notices: usize,
}

impl Provider for Later {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "later")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(*self)
    }
}

impl Session for Later {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        for _ in 0..self.notices {
            channel.notify(b"a notice").await?;
        }
        while let Some(request) = channel.recv().await? {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let _ = request.complete(b"answered").await;
            });
        }
        Ok(())
    }
}

async fn open(provider: Later, ring_pages: usize) -> (Root, Guest, Channel) {
    let root = Root::builder().build();
    root.offer(provider).unwrap();
    let guest = join_with(&root, "guest", Guest::builder().ring_pages(ring_pages)).await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    (root, guest, channel)
}

/// Runs a story in which both ends share one thread: whoever waits without letting the other go on hangs it.
fn on_one_thread(story: impl Future<Output = ()> + Send + 'static) {
    let (done, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(story);
        let _ = done.send(());
    });
    end.recv_timeout(PATIENCE).expect("the story ends well and in time");
}

#[test]
fn more_requests_in_flight_than_completions_fit_into_the_ring() {
    on_one_thread(async {
        let (_root, _guest, channel) = open(Later { notices: 0 }, 1).await;
        let mut pending = Vec::new();
        for _ in 0..100 {
            pending.push(channel.send(b"question", []).await.unwrap());
        }
        for pending in pending {
            assert_eq!(&pending.reply().await.unwrap()[..], b"answered");
        }
    });
}

#[test]
fn a_packet_of_half_a_small_ring_fits_and_one_of_all_of_it_is_refused() {
    on_one_thread(async {
        let (_root, _guest, channel) = open(Later { notices: 0 }, 1).await;
        for _ in 0..10 {
            channel.send(&[1; 2048], []).await.unwrap().reply().await.unwrap();
        }
        let all = channel.send(&[1; 4000], []).await;
        assert!(matches!(all, Err(ChannelError::TooLarge { .. })), "{all:?}");
    });
}

#[test]
fn a_reply_comes_while_notices_that_nobody_takes_lie_in_front_of_it() {
    on_one_thread(async {
        let (_root, _guest, channel) = open(Later { notices: 3 }, 16).await;
        assert_eq!(&channel.send(b"question", []).await.unwrap().reply().await.unwrap()[..], b"answered");
        assert_eq!(channel.recv().await.unwrap().unwrap().payload(), b"a notice");
    });
}

#[test]
fn notices_are_dropped_where_nobody_wants_them() {
    on_one_thread(async {
        let (_root, _guest, channel) = open(Later { notices: 1000 }, 16).await;
        channel.discard_notices();
        assert_eq!(&channel.send(b"question", []).await.unwrap().reply().await.unwrap()[..], b"answered");
    });
}
