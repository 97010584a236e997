//! Another agent takes over while everything runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use vmbus_channels::policy::{Asked, Decision, Limits, Question, QuotaLimits, Rate, Reason};
use vmbus_channels::test_utils::join;
use vmbus_channels::{AllowAll, Channel, Client, Device, Event, PolicyAgent, Root};

use crate::world::{By, CLASS, OTHER_CLASS, decision, echo, forbidding, refusal, root};

async fn echoes(channel: &Channel) -> bool {
    match channel.send(b"12345678", []).await {
        Ok(pending) => pending.reply().await.is_ok_and(|reply| &reply[..] == b"12345678"),
        Err(_) => false,
    }
}

#[tokio::test]
async fn only_what_is_denied_now_ends_and_the_guest_is_told_why() {
    let root = root(AllowAll);
    root.offer(echo(OTHER_CLASS)).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let denied = guest.open(Device::class(CLASS)).await.unwrap();
    let other = guest.open(Device::class(OTHER_CLASS)).await.unwrap();
    assert!(echoes(&denied).await && echoes(&other).await);
    let mut events = root.events();

    root.set_policy(forbidding(
        |question| matches!(question, Question::Offer { device } if device.class == CLASS),
    ));
    denied.closed().await;
    assert_eq!(denied.closed_because(), Some("not today"));
    decision(
        &mut events,
        |decided| matches!(&decided.asked.question, Question::Offer { device } if device.class == CLASS),
    )
    .await;
    assert!(echoes(&other).await, "what is not denied goes on");
    assert_eq!(guest.offers().iter().map(|device| device.class).collect::<Vec<_>>(), [OTHER_CLASS]);

    root.set_policy(AllowAll);
    guest.wait_for(Device::class(CLASS)).await.unwrap();
    assert!(echoes(&guest.open(Device::class(CLASS)).await.unwrap()).await);
    assert!(echoes(&other).await && !other.is_closed());
}

#[tokio::test]
async fn a_channel_that_may_not_be_open_any_more_closes_and_its_device_stays_visible() {
    let root = root(AllowAll);
    let guest = join(&root, "guest").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    root.set_policy(forbidding(|question| matches!(question, Question::Open { .. })));
    channel.closed().await;
    assert_eq!(channel.closed_because(), Some("not today"));
    drop(channel);
    guest.wait_for(Device::class(CLASS)).await.unwrap();
    let again = loop {
        // The offer may still be the one that is on its way back.
        match guest.open(Device::class(CLASS)).await {
            Err(vmbus_channels::Error::Rescinded) => tokio::task::yield_now().await,
            Err(vmbus_channels::Error::NotOffered(_)) => _ = guest.wait_for(Device::class(CLASS)).await,
            result => break result,
        }
    };
    assert_eq!(refusal(again.unwrap_err()).reason, "not today");
}

#[tokio::test]
async fn a_partition_that_may_not_be_attached_any_more_is_let_go_with_the_reason() {
    for forbidden in [
        |question: &Question| matches!(question, Question::Attach { .. }),
        |question: &Question| matches!(question, Question::Version { .. }),
    ] {
        let root = root(AllowAll);
        let guest = join(&root, "guest").await.unwrap();
        let channel = guest.open(Device::class(CLASS)).await.unwrap();
        root.set_policy(forbidding(forbidden));
        guest.closed().await;
        assert_eq!(guest.closed_because().unwrap().reason, "not today");
        assert_eq!(channel.closed_because(), Some("not today"));
    }
}

#[tokio::test]
async fn limits_change_in_place_and_back() {
    let root = root(AllowAll);
    let guest = join(&root, "guest").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    let mut events = root.events();
    let limiting = |requests| {
        let rate = Rate { requests: Some(requests), burst_ms: Some(0), ..Rate::default() };
        By(move |_: &Asked| Decision::change(Limits { rate: Some(rate), ..Limits::default() }))
    };
    root.set_policy(limiting(100));
    decision(&mut events, |decided| matches!(decided.asked.question, Question::Open { .. })).await;
    assert!(echoes(&channel).await);
    let began = Instant::now();
    for _ in 0..21 {
        assert!(echoes(&channel).await);
    }
    assert!(began.elapsed() >= Duration::from_millis(190), "{:?}", began.elapsed());

    // One in 100 s: whoever waits for that is woken when the limit goes.
    root.set_policy(By(|_: &Asked| {
        let deliver = vmbus_channels::policy::Deliver { after_us: Some(100_000_000), not_before: None };
        Decision::change(Limits { deliver: Some(deliver), ..Limits::default() })
    }));
    decision(&mut events, |decided| matches!(decided.asked.question, Question::Open { .. })).await;
    let waiting = channel.send(b"12345678", []).await.unwrap();
    tokio::task::yield_now().await;
    root.set_policy(AllowAll);
    tokio::time::timeout(Duration::from_secs(30), waiting.reply()).await.expect("the limit is gone").unwrap();
}

#[tokio::test]
async fn quotas_change_in_place_and_back() {
    let root = root(AllowAll);
    let guest = join(&root, "guest").await.unwrap();
    let mut events = root.events();
    for (channels, requests) in [(Some(0), None), (None, Some(0))] {
        let quotas = QuotaLimits { open_channels: channels, requests, ..QuotaLimits::default() };
        root.set_policy(By(move |asked: &Asked| match asked.question {
            Question::Attach { .. } => Decision::change(Limits { quotas: Some(quotas), ..Limits::default() }),
            _ => Decision::Allow,
        }));
        decision(&mut events, |decided| matches!(decided.asked.question, Question::Attach { .. })).await;
        refusal(guest.open(Device::class(CLASS)).await.unwrap_err());
    }
    root.set_policy(AllowAll);
    decision(&mut events, |decided| matches!(decided.asked.question, Question::Attach { .. })).await;
    guest.open(Device::class(CLASS)).await.unwrap();
}

/// Takes a while for each answer.
struct Slow(Arc<AtomicU64>);

#[async_trait::async_trait]
impl PolicyAgent for Slow {
    async fn decide(&self, asked: &Asked) -> Decision {
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.0.fetch_add(1, Ordering::Relaxed);
        match &asked.question {
            Question::Offer { device } if device.class == CLASS => Decision::deny("after some thought"),
            _ => Decision::Allow,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_takes_its_time_is_asked_one_question_after_the_other() {
    let root = root(AllowAll);
    root.offer(echo(OTHER_CLASS)).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let (denied, other) = (
        guest.open(Device::class(CLASS)).await.unwrap(),
        guest.open(Device::class(OTHER_CLASS)).await.unwrap(),
    );
    let asked = Arc::new(AtomicU64::new(0));
    root.set_policy(Slow(Arc::clone(&asked)));
    denied.closed().await;
    assert_eq!(denied.closed_because(), Some("after some thought"));
    assert!(echoes(&other).await);
    // Attached, version, two offers, and for each open channel the open and what it shares.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(asked.load(Ordering::Relaxed) >= 6);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_an_agent_that_was_replaced_meanwhile_counts_for_nothing() {
    struct AllowsLate;
    #[async_trait::async_trait]
    impl PolicyAgent for AllowsLate {
        async fn decide(&self, asked: &Asked) -> Decision {
            if let Question::Open { .. } = asked.question {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Decision::Allow
        }
    }
    let root = Root::builder().policy(AllowsLate).build();
    root.offer(echo(CLASS)).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let mut events = root.events();
    let opening = tokio::spawn({
        let guest = guest.clone();
        async move { guest.open(Device::class(CLASS)).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    root.set_policy(forbidding(|question| matches!(question, Question::Open { .. })));
    let late = decision(&mut events, |decided| matches!(decided.asked.question, Question::Open { .. })).await;
    assert_eq!((late.reason, &late.decision), (Reason::Agent, &Decision::Allow));
    assert_eq!(refusal(opening.await.unwrap().unwrap_err()).reason, "not today");
}

#[tokio::test]
async fn partitions_are_decided_about_one_by_one() {
    let root = root(AllowAll);
    let (alice, bob) = (join(&root, "alice").await.unwrap(), join(&root, "bob").await.unwrap());
    let channel = bob.open(Device::class(CLASS)).await.unwrap();
    let mut events = root.events();
    root.set_policy(By(|asked: &Asked| match &*asked.who.name {
        "alice" => Decision::deny("alice must leave"),
        _ => Decision::Allow,
    }));
    alice.closed().await;
    loop {
        if let Event::Detached { client: Client { name, .. }, .. } = events.recv().await.unwrap() {
            assert_eq!(&*name, "alice");
            break;
        }
    }
    assert!(echoes(&channel).await);
}
