//! Permissions that are taken back while the agent allows everything.

use vmbus_channels::policy::{Reason, Revoke};
use vmbus_channels::test_utils::join;
use vmbus_channels::{AllowAll, Device, Guest, Root};

use crate::world::{CLASS, OTHER_CLASS, decision, echo, refusal, root};

async fn two_guests() -> (Root, Guest, Guest) {
    let root = root(AllowAll);
    root.offer(echo(OTHER_CLASS)).unwrap();
    let (alice, bob) = (join(&root, "alice").await.unwrap(), join(&root, "bob").await.unwrap());
    (root, alice, bob)
}

#[tokio::test]
async fn a_revoked_device_leaves_all_guests_until_it_is_reinstated() {
    let (root, alice, bob) = two_guests().await;
    let (of_alice, of_bob) =
        (alice.open(Device::class(CLASS)).await.unwrap(), bob.open(Device::class(CLASS)).await.unwrap());
    let other = bob.open(Device::class(OTHER_CLASS)).await.unwrap();
    let instance = alice.wait_for(Device::class(CLASS)).await.unwrap().instance;
    let mut events = root.events();
    let what = Revoke::Device { instance, partition: None };
    root.revoke(what.clone(), "under repair");
    for channel in [of_alice, of_bob] {
        channel.closed().await;
        assert_eq!(channel.closed_because(), Some("under repair"));
    }
    decision(&mut events, |decided| decided.reason == Reason::Revoked).await;
    assert!(!other.is_closed());
    assert!(
        !join(&root, "carol")
            .await
            .unwrap()
            .all_offers()
            .await
            .unwrap()
            .iter()
            .any(|device| device.class == CLASS)
    );
    assert!(root.reinstate(&what) && !root.reinstate(&what));
    alice.wait_for(Device::class(CLASS)).await.unwrap();
    let _open = bob.wait_for(Device::class(CLASS)).await.unwrap();
}

#[tokio::test]
async fn a_device_is_revoked_from_one_partition() {
    let (root, alice, bob) = two_guests().await;
    let (of_alice, of_bob) =
        (alice.open(Device::class(CLASS)).await.unwrap(), bob.open(Device::class(CLASS)).await.unwrap());
    let instance = alice.wait_for(Device::class(CLASS)).await.unwrap().instance;
    let partition = root.status().await.partitions[0].id;
    root.revoke(Revoke::Device { instance, partition: Some(partition) }, "misused");
    of_alice.closed().await;
    root.status().await;
    assert!(!of_bob.is_closed());
    assert_eq!(of_alice.closed_because(), Some("misused"));
}

#[tokio::test]
async fn a_revoked_channel_closes_and_may_be_opened_again() {
    let (root, alice, _bob) = two_guests().await;
    let channel = alice.open(Device::class(CLASS)).await.unwrap();
    let relid = alice.wait_for(Device::class(CLASS)).await.unwrap().relid;
    let partition = root.status().await.partitions[0].id;
    root.revoke(Revoke::Channel { partition, relid }, "start over");
    channel.closed().await;
    assert_eq!(channel.closed_because(), Some("start over"));
    drop(channel);
    loop {
        alice.wait_for(Device::class(CLASS)).await.unwrap();
        if alice.open(Device::class(CLASS)).await.is_ok() {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_revoked_partition_is_let_go_and_a_revoked_name_does_not_come_back() {
    let (root, alice, bob) = two_guests().await;
    let partition = root.status().await.partitions[0].id;
    root.revoke(Revoke::Partition(partition), "goodbye");
    alice.closed().await;
    assert_eq!(alice.closed_because().unwrap().reason, "goodbye");
    let alice = join(&root, "alice").await.unwrap();
    root.revoke(Revoke::Name("alice".into()), "and stay away");
    alice.closed().await;
    assert_eq!(refusal(join(&root, "alice").await.unwrap_err()).reason, "and stay away");
    assert!(bob.open(Device::class(CLASS)).await.is_ok());
}

#[tokio::test]
async fn a_revoked_service_takes_the_channels_of_its_class() {
    let (root, alice, _bob) = two_guests().await;
    let channel = alice.open(Device::class(CLASS)).await.unwrap();
    let other = alice.open(Device::class(OTHER_CLASS)).await.unwrap();
    root.revoke(Revoke::Service(CLASS), "no longer served");
    channel.closed().await;
    root.status().await;
    assert!(!other.is_closed());
}
