//! Sessions that go on after their channel's end: they do not keep their partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmbus_channels::test_utils::join;
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Event, Offer, OpenRequest, Provider, Quotas, Refusal, Root,
    Session,
};

use crate::world::{CLASS, PATIENCE};

/// Ignores its channel: sleeps, or blocks a thread with a request in hand.
#[derive(Clone, Default)]
struct Stubborn {
    blocks: bool,
    may_end: Arc<AtomicBool>,
    wrote: Arc<AtomicBool>,
}

impl Provider for Stubborn {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "stubborn")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(self.clone())
    }
}

impl Session for Stubborn {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        let Some(request) = channel.recv().await? else { return Ok(()) };
        if !self.blocks {
            return std::future::pending().await;
        }
        let working = tokio::task::spawn_blocking(move || {
            let pages = request.writable_pages();
            while !self.may_end.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            // The guest is gone, and its memory still there for who holds it.
            let written = pages.is_ok_and(|pages| pages.write(0, b"late").is_ok());
            self.wrote.store(written, Ordering::SeqCst);
        });
        working.await.map_err(|error| ChannelError::Device(error.to_string()))
    }
}

fn impatient() -> Root {
    let mut quotas = Quotas::default();
    quotas.grace = Duration::from_millis(50);
    Root::builder().quotas(quotas).build()
}

/// Opens the device, gives it a request with memory, and leaves.
async fn comes_and_goes(root: &Root) {
    let guest = join(root, "passing").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    let buffer = guest.share(4096).unwrap();
    let pending = channel.send(b"work", [buffer.range(..)]).await.unwrap();
    // Until the session has it.
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop((pending, channel, guest));
}

async fn until(events: &mut tokio::sync::broadcast::Receiver<Event>, is: impl Fn(&Event) -> bool) {
    let seen = tokio::time::timeout(PATIENCE, async { while !is(&events.recv().await.unwrap()) {} });
    seen.await.expect("the event");
}

#[tokio::test]
async fn a_session_that_ignores_its_channels_end_is_stopped_and_keeps_no_partition() {
    let root = impatient();
    root.offer(Stubborn::default()).unwrap();
    let mut events = root.events();
    comes_and_goes(&root).await;
    until(&mut events, |event| matches!(event, Event::Overdue { device, .. } if device == "stubborn")).await;
    until(&mut events, |event| matches!(event, Event::Detached { .. })).await;
    assert!(root.status().await.partitions.is_empty());
}

#[tokio::test]
async fn a_session_that_blocks_a_thread_keeps_memory_and_no_partition() {
    let root = impatient();
    let stubborn = Stubborn { blocks: true, ..Stubborn::default() };
    root.offer(stubborn.clone()).unwrap();
    let mut events = root.events();
    comes_and_goes(&root).await;
    until(&mut events, |event| matches!(event, Event::Detached { .. })).await;
    assert!(root.status().await.partitions.is_empty());
    stubborn.may_end.store(true, Ordering::SeqCst);
    let wrote = tokio::time::timeout(PATIENCE, async {
        while !stubborn.wrote.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    wrote.await.expect("the memory was still there");
}

#[tokio::test]
async fn a_root_ends_in_order_although_a_session_does_not() {
    let root = impatient();
    root.offer(Stubborn::default()).unwrap();
    let guest = join(&root, "passing").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    let _pending = channel.send(b"work", []).await.unwrap();
    tokio::time::timeout(PATIENCE, root.run_until(async {})).await.expect("the root ends");
}
