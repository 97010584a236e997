//! Guests of every version of the protocol, the oldest included, which have no event flags of their own.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::time::Duration;

use vmbus_channels::test_utils::{echo, join_with};
use vmbus_channels::{Device, Guest, Guid, Offer, Root, Spin, guid};
use vmbus_core::Version;

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a0a");
const PATIENCE: Duration = Duration::from_secs(20);

/// More channels than there are event areas, each with one request after the other, so that each end sleeps for each.
async fn converse(version: Version) {
    let root = Root::builder().spin(Spin::never()).build();
    for _ in 0..6 {
        root.offer(echo(Offer::new(CLASS, "echo"))).unwrap();
    }
    let builder = Guest::builder().versions(version..=version).spin(Spin::never());
    let guest = join_with(&root, "guest", builder).await.unwrap();
    assert_eq!(guest.version(), version);
    let mut channels = Vec::new();
    for offered in guest.all_offers().await.unwrap() {
        channels.push(guest.open(Device::instance(offered.instance)).await.unwrap());
    }
    assert_eq!(channels.len(), 6);
    for number in 0..50_u64 {
        for channel in &channels {
            let reply = channel.send(&number.to_le_bytes(), []).await.unwrap().reply().await.unwrap();
            assert_eq!(&reply[..], number.to_le_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_signal_is_lost_at_any_version() {
    for version in Version::ALL {
        let talk = tokio::time::timeout(PATIENCE, converse(version)).await;
        talk.unwrap_or_else(|_| panic!("a signal was lost at version {version}"));
    }
}
