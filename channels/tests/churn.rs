//! Devices that come and go without end while guests are attached leave nothing behind.
//!
//! `VMBUS_LONG=1` makes it 300,000 pairs; see `docs/src/testing.md`.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::time::{Duration, Instant};

use vmbus_channels::test_utils::join;
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guest, Guid, Offer, OpenRequest, Provider, Refusal, Root, Session,
    guid,
};

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a12");
const PATIENCE: Duration = Duration::from_secs(60);
/// Pairs in a burst; then the guests get to say that they have heard.
const BURST: usize = 100;

struct Nothing;

impl Provider for Nothing {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "passing")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self)
    }
}

impl Session for Nothing {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            request.complete(b"").await?;
        }
        Ok(())
    }
}

/// What must be the same after as before.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    devices: usize,
    /// Of each partition: bounds and what is used of them.
    quotas: Vec<Vec<(String, u64)>>,
}

async fn held(root: &Root) -> Held {
    let status = root.status().await;
    let quotas = status.partitions.iter().map(|partition| {
        partition.quotas.iter().map(|used| (used.name.clone(), used.now)).collect::<Vec<_>>()
    });
    Held {
        descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        devices: status.devices.len(),
        quotas: quotas.collect(),
    }
}

/// Bytes of memory that this process has in use.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

async fn pairs(root: &Root, guests: &[(Guest, Channel)], count: usize) {
    for burst in 0..count / BURST {
        for nth in 0..BURST {
            let device = root.offer(Nothing).unwrap();
            if (burst + nth).is_multiple_of(5) {
                // Some are seen before they go, by all.
                let instance = device.instance().unwrap();
                for (guest, _) in guests {
                    guest.wait_for(Device::instance(instance)).await.unwrap();
                }
            }
            device.rescind();
        }
        for (_, channel) in guests {
            channel.send(b"", []).await.unwrap().reply().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_come_and_go_leave_nothing_behind() {
    let long = std::env::var_os("VMBUS_LONG").is_some();
    let count = if long { 300_000 } else { 5_000 };
    let root = Root::builder().build();
    root.offer(Nothing).unwrap();
    let mut guests = Vec::new();
    for name in ["one", "two", "three"] {
        let guest = join(&root, name).await.unwrap();
        let channel = guest.open(Device::class(CLASS)).await.unwrap();
        guests.push((guest, channel));
    }
    // What is made once is made now.
    pairs(&root, &guests, 2_000).await;
    settles(&root, &guests).await;
    let (before, memory) = (held(&root).await, resident());

    let start = Instant::now();
    pairs(&root, &guests, count).await;
    let took = start.elapsed();
    settles(&root, &guests).await;
    assert_eq!(held(&root).await, before);
    let grown = resident().saturating_sub(memory);
    assert!(grown < 8 << 20, "{grown} bytes more are in use");
    let a_minute = count as f64 / took.as_secs_f64() * 60.0;
    println!("{a_minute:.0} pairs a minute, {grown} bytes of memory more");
    if long {
        assert!(a_minute >= 100_000.0, "{a_minute:.0} pairs a minute");
    }
}

/// Returns when each guest sees the one device that stays, and the root has its channel ids back.
async fn settles(root: &Root, guests: &[(Guest, Channel)]) {
    let settled = tokio::time::timeout(PATIENCE, async {
        loop {
            let status = root.status().await;
            let one = |name: &str, quotas: &[vmbus_channels::Used]| {
                quotas.iter().any(|used| used.name == name && used.now == 1)
            };
            let released = status.partitions.iter().all(|partition| one("channels", &partition.quotas));
            if released && guests.iter().all(|(guest, _)| guest.offers().len() == 1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    settled.await.expect("everybody comes to rest");
}
