//! A device that a second partition opens.

use vmbus_channels::Device;
use vmbus_channels::policy::Question;
use vmbus_channels::test_utils::join;

use crate::world::{CLASS, forbidding, refusal, root};

#[tokio::test]
async fn a_device_that_may_not_be_shared_is_for_one_partition_at_a_time() {
    let root = root(forbidding(|question| match question {
        Question::Join { with, .. } => {
            assert_eq!(with.iter().map(|name| &**name).collect::<Vec<_>>(), ["alice"]);
            true
        }
        _ => false,
    }));
    let mut events = root.events();
    let (alice, bob) = (join(&root, "alice").await.unwrap(), join(&root, "bob").await.unwrap());
    let first = alice.open(Device::class(CLASS)).await.unwrap();
    let refused = refusal(bob.open(Device::class(CLASS)).await.unwrap_err());
    assert_eq!(refused.reason, "not today");
    drop(first);
    while !matches!(events.recv().await.unwrap(), vmbus_channels::Event::Closed { .. }) {}
    bob.open(Device::class(CLASS)).await.unwrap();
}

#[tokio::test]
async fn of_two_that_open_at_the_same_time_one_is_the_second() {
    let root = root(forbidding(|question| matches!(question, Question::Join { .. })));
    let (alice, bob) = (join(&root, "alice").await.unwrap(), join(&root, "bob").await.unwrap());
    let (one, two) = tokio::join!(alice.open(Device::class(CLASS)), bob.open(Device::class(CLASS)));
    assert!(one.is_err() || two.is_err(), "both have the device");
}
