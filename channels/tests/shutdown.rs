//! A root that ends, and guests that do not want to see it.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::time::Duration;

use vmbus_channels::Root;
use vmbus_channels::test_utils::join;

#[tokio::test]
async fn a_root_ends_although_its_guests_come_back_at_once() {
    let root = Root::builder().build();
    let again = root.clone();
    tokio::spawn(async move {
        loop {
            if let Ok(guest) = join(&again, "persistent").await {
                guest.closed().await;
            }
            tokio::task::yield_now().await;
        }
    });
    while root.status().await.partitions.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(10), root.run_until(async {}));
    ended.await.expect("the root ends");
}
