//! Rings that are small for what goes through them, and packets that nobody asked for: everybody still gets on.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use vmbus_channels::test_utils::join_with;
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guest, Guid, Offer, OpenRequest, Provider, Refusal, Root, Session,
    guid,
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

/// Says things without end, counts them, and answers nothing.
#[derive(Clone, Default)]
struct Flood(Arc<AtomicUsize>);

impl Provider for Flood {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "flood")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(self.clone())
    }
}

impl Session for Flood {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        for number in 0..FLOOD {
            channel.notify(&number.to_le_bytes()).await?;
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        channel.closed().await;
        Ok(())
    }
}

const FLOOD: u64 = 40_000;

#[test]
fn a_guest_that_waits_for_a_reply_holds_so_many_requests_and_no_more() {
    on_one_thread(async {
        let root = Root::builder().build();
        let flood = Flood::default();
        root.offer(flood.clone()).unwrap();
        let guest = join_with(&root, "guest", Guest::builder().ring_pages(1)).await.unwrap();
        let channel = Arc::new(guest.open(Device::class(CLASS)).await.unwrap());
        let asks = tokio::spawn({
            let channel = Arc::clone(&channel);
            async move { channel.send(b"question", []).await?.reply().await }
        });
        let mut sent = usize::MAX;
        while sent != flood.0.load(Ordering::Relaxed) {
            sent = flood.0.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Those in private memory, and those in the ring.
        let ring = 4096 / 32;
        assert!((1 << 14..=(1 << 14) + ring).contains(&sent), "{sent}");
        for number in 0..FLOOD {
            let request = channel.recv().await.unwrap().unwrap();
            assert_eq!(request.payload(), number.to_le_bytes(), "all of them, in order");
        }
        asks.abort();
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

/// Counts the requests that it has in hand.
#[derive(Clone, Default)]
struct Counting {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Provider for Counting {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "counting")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(self.clone())
    }
}

impl Session for Counting {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            let this = self.clone();
            this.most.fetch_max(this.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                this.now.fetch_sub(1, Ordering::SeqCst);
                let _ = request.complete(b"answered").await;
            });
        }
        Ok(())
    }
}

#[test]
fn of_large_requests_fewer_are_taken_at_a_time() {
    on_one_thread(async {
        let root = Root::builder().build();
        let counting = Counting::default();
        root.offer(counting.clone()).unwrap();
        let guest = join_with(&root, "guest", Guest::builder().ring_pages(4096)).await.unwrap();
        let channel = guest.open(Device::class(CLASS)).await.unwrap();
        let large = vec![7; 64 << 10];
        let mut pending = Vec::new();
        for _ in 0..200 {
            pending.push(channel.send(&large, []).await.unwrap());
        }
        for pending in pending {
            assert_eq!(&pending.reply().await.unwrap()[..], b"answered");
        }
        let most = counting.most.load(Ordering::SeqCst);
        assert!((2..=65).contains(&most), "{most} requests of 64 KiB in hand");
    });
}
