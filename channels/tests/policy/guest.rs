//! A guest's own agent, and the stricter of both.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use vmbus_channels::policy::{Asked, Decision, End, Limits, Question, Rate};
use vmbus_channels::test_utils::join_with;
use vmbus_channels::{AllowAll, DenyAll, Device, Error, Guest, GuestBuilder, Root};
use vmbus_core::Version;
use vmbus_core::status::Status;

use crate::world::{By, CLASS, OTHER_CLASS, echo, forbidding, refusal, root};

fn careful(forbids: impl Fn(&Question) -> bool + Send + Sync + 'static) -> GuestBuilder {
    Guest::builder().policy(forbidding(forbids))
}

#[tokio::test]
async fn a_guest_that_forbids_itself_everything_does_not_join() {
    let error = join_with(&root(AllowAll), "guest", Guest::builder().policy(DenyAll)).await.unwrap_err();
    assert_eq!(refusal(error).reason, "everything is denied");
}

#[tokio::test]
async fn a_version_that_the_guest_forbids_itself_leaves_lower_ones() {
    let agent = careful(
        |question| matches!(question, Question::Version { version, .. } if *version > Version::Win10),
    );
    let guest = join_with(&root(AllowAll), "guest", agent).await.unwrap();
    assert_eq!(guest.version(), Version::Win10);
    let none = careful(|question| matches!(question, Question::Version { .. }));
    let error = join_with(&root(AllowAll), "guest", none).await.unwrap_err();
    assert_eq!(refusal(error).reason, "not today");
}

#[tokio::test]
async fn a_device_that_the_guest_does_not_want_is_given_back() {
    let root = root(AllowAll);
    root.offer(echo(OTHER_CLASS)).unwrap();
    let agent = careful(|question| matches!(question, Question::Offer { device } if device.class == CLASS));
    let guest = join_with(&root, "guest", agent).await.unwrap();
    let classes: Vec<_> = guest.all_offers().await.unwrap().iter().map(|device| device.class).collect();
    assert_eq!(classes, [OTHER_CLASS]);
}

#[tokio::test]
async fn opens_and_shares_that_the_guest_forbids_itself_fail_with_its_reason() {
    for forbidden in [
        |question: &Question| matches!(question, Question::Open { .. }),
        |question: &Question| matches!(question, Question::Share { .. }),
    ] {
        let guest = join_with(&root(AllowAll), "guest", careful(forbidden)).await.unwrap();
        let refused = refusal(guest.open(Device::class(CLASS)).await.unwrap_err());
        assert_eq!((refused.reason.as_str(), refused.status), ("not today", Status::ACCESS_DENIED));
    }
}

#[tokio::test]
async fn the_stricter_of_both_ends_wins() {
    let allowing = |bytes| {
        By(move |_: &Asked| Decision::change(Limits { ring_bytes: Some(bytes), ..Limits::default() }))
    };
    // Two rings of a control page and 16 data pages each.
    let needed = 2 * 17 * 4096;
    for (roots, guests, fits) in
        [(needed, needed, true), (needed - 1, needed, false), (needed, needed - 1, false)]
    {
        let builder = Guest::builder().policy(allowing(guests));
        let guest = join_with(&root(allowing(roots)), "guest", builder).await.unwrap();
        let opened = guest.open(Device::class(CLASS)).await;
        assert_eq!(opened.is_ok(), fits);
        if let Err(error) = opened {
            assert_eq!(refusal(error).status, Status::QUOTA_EXCEEDED);
        }
    }
}

#[tokio::test]
async fn a_guest_sends_no_faster_than_its_own_policy_allows() {
    let rate = Rate { requests: Some(200), burst_ms: Some(0), ..Rate::default() };
    let agent = By(move |asked: &Asked| match asked.question {
        Question::Open { .. } => Decision::change(Limits { rate: Some(rate), ..Limits::default() }),
        _ => Decision::Allow,
    });
    let guest = join_with(&root(AllowAll), "guest", Guest::builder().policy(agent)).await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    let began = Instant::now();
    for _ in 0..41 {
        channel.send(b"12345678", []).await.unwrap().reply().await.unwrap();
    }
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
}

#[tokio::test]
async fn each_decision_is_shown_with_its_inputs() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let builder = Guest::builder().policy(AllowAll).on_decision({
        let seen = Arc::clone(&seen);
        move |decided| seen.lock().unwrap().push(decided.clone())
    });
    let guest = join_with(&root(AllowAll), "guest", builder).await.unwrap();
    let _channel = guest.open(Device::class(CLASS)).await.unwrap();
    let seen = seen.lock().unwrap();
    let said: Vec<_> = seen.iter().map(|decided| decided.to_string()).collect();
    assert!(
        seen.iter().all(|decided| decided.asked.end == End::Guest && *decided.asked.who.name == *"guest")
    );
    assert_eq!(seen.iter().map(|decided| decided.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(said[0].contains("attaching: allowed") && said[1].contains("version 6.0"), "{said:?}");
}

#[tokio::test]
async fn a_guest_without_an_agent_asks_nobody() {
    let root = Root::builder().build();
    let silent = Guest::builder().on_decision(|_| panic!("nobody was asked"));
    let guest = join_with(&root, "guest", silent).await.unwrap();
    assert!(matches!(guest.open(Device::class(CLASS)).await, Err(Error::NotOffered(_))));
}
