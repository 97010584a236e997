//! The root's agent.

use std::time::Duration;

use vmbus_channels::policy::{Asked, Decision, Limits, Question, QuotaLimits, Reason};
use vmbus_channels::test_utils::{MockGuest, join};
use vmbus_channels::{DenyAll, Device, PolicyAgent, Root};
use vmbus_core::message::{InitiateContact, Message};
use vmbus_core::server;
use vmbus_core::status::Status;
use vmbus_core::{FeatureFlags, Version};

use crate::world::{By, CLASS, OTHER_CLASS, decision, echo, forbidding, refusal, root};

#[tokio::test]
async fn a_partition_that_may_not_attach_is_told_why() {
    let error = join(&root(DenyAll), "mallory").await.unwrap_err();
    assert_eq!(refusal(error).reason, "everything is denied");
}

#[tokio::test]
async fn a_version_below_the_floor_is_refused_with_the_reason() {
    let agent = forbidding(|question| matches!(question, Question::Version { .. }));
    let error = join(&root(agent), "old").await.unwrap_err();
    assert_eq!(refusal(error).reason, "not today");
}

#[tokio::test]
async fn a_device_that_may_not_be_seen_is_not_offered_and_others_are() {
    let agent =
        forbidding(|question| matches!(question, Question::Offer { device } if device.class == CLASS));
    let root = root(agent);
    root.offer(echo(OTHER_CLASS)).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let classes: Vec<_> = guest.all_offers().await.unwrap().iter().map(|device| device.class).collect();
    assert_eq!(classes, [OTHER_CLASS]);
}

#[tokio::test]
async fn an_open_that_is_denied_fails_with_reason_and_status() {
    let guest =
        join(&root(forbidding(|question| matches!(question, Question::Open { .. }))), "guest").await.unwrap();
    let refused = refusal(guest.open(Device::class(CLASS)).await.unwrap_err());
    assert_eq!((refused.reason.as_str(), refused.status), ("not today", Status::ACCESS_DENIED));
}

#[tokio::test]
async fn pages_that_may_not_be_shared_make_no_channel() {
    let guest = join(&root(forbidding(|question| matches!(question, Question::Share { .. }))), "guest")
        .await
        .unwrap();
    let refused = refusal(guest.open(Device::class(CLASS)).await.unwrap_err());
    assert_eq!(refused.status, Status::ACCESS_DENIED);
}

#[tokio::test]
async fn rings_and_shared_bytes_stay_within_the_limits() {
    let limits = |ring_bytes, shared_bytes| Limits { ring_bytes, shared_bytes, ..Limits::default() };
    // Two rings of a control page and 16 data pages each.
    let bytes = 2 * 17 * 4096;
    for (limits, admitted) in [
        (limits(Some(bytes), Some(bytes)), true),
        (limits(Some(bytes - 1), None), false),
        (limits(None, Some(bytes - 1)), false),
    ] {
        let agent = By(move |_: &Asked| Decision::change(limits.clone()));
        let guest = join(&root(agent), "guest").await.unwrap();
        match guest.open(Device::class(CLASS)).await {
            Ok(_) => assert!(admitted),
            Err(error) => {
                assert!(!admitted);
                assert_eq!(refusal(error).status, Status::QUOTA_EXCEEDED);
            }
        }
    }
}

#[tokio::test]
async fn quotas_come_with_the_permission_to_attach() {
    let agent = By(|asked: &Asked| match asked.question {
        Question::Attach { .. } => Decision::change(Limits {
            quotas: Some(QuotaLimits { gpadls: Some(0), ..QuotaLimits::default() }),
            ..Limits::default()
        }),
        _ => Decision::Allow,
    });
    let guest = join(&root(agent), "guest").await.unwrap();
    refusal(guest.open(Device::class(CLASS)).await.unwrap_err());
}

/// Thinks for ever about opens.
struct Ponders;

#[async_trait::async_trait]
impl PolicyAgent for Ponders {
    async fn decide(&self, asked: &Asked) -> Decision {
        if matches!(&asked.question, Question::Open { device, .. } if device.class == CLASS) {
            std::future::pending::<()>().await;
        }
        Decision::Allow
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_denial_and_nothing_else_waits_for_it() {
    let root = Root::builder().policy(Ponders).policy_deadline(Duration::from_secs(3)).build();
    root.offer(echo(CLASS)).unwrap();
    root.offer(echo(OTHER_CLASS)).unwrap();
    let mut events = root.events();
    let guest = join(&root, "guest").await.unwrap();
    let asked = tokio::time::Instant::now();
    let slow = tokio::spawn({
        let guest = guest.clone();
        async move { guest.open(Device::class(CLASS)).await }
    });
    let other = guest.open(Device::class(OTHER_CLASS)).await.unwrap();
    assert_eq!(&other.send(b"whatever", []).await.unwrap().reply().await.unwrap()[..], b"whatever");
    assert!(asked.elapsed() < Duration::from_secs(3));
    let refused = refusal(slow.await.unwrap().unwrap_err());
    assert!(asked.elapsed() >= Duration::from_secs(3));
    assert_eq!(refused.reason, "the policy agent said nothing in time");
    let decided = decision(&mut events, |decided| decided.reason != Reason::Agent).await;
    assert_eq!(decided.reason, Reason::Silence);
}

#[tokio::test]
async fn an_agent_that_panics_has_denied_and_is_asked_again_the_next_time() {
    let root = root(By(|asked: &Asked| match asked.question {
        Question::Open { .. } => panic!("a bug in the agent"),
        _ => Decision::Allow,
    }));
    let mut events = root.events();
    let guest = join(&root, "guest").await.unwrap();
    for _ in 0..2 {
        let refused = refusal(guest.open(Device::class(CLASS)).await.unwrap_err());
        assert_eq!(refused.reason, "the policy agent panicked");
        decision(&mut events, |decided| decided.reason == Reason::Panic).await;
    }
    root.set_policy(vmbus_channels::AllowAll);
    guest.open(Device::class(CLASS)).await.unwrap();
}

/// Says nothing to whoever wants to speak a version.
struct Mute;

#[async_trait::async_trait]
impl PolicyAgent for Mute {
    async fn decide(&self, asked: &Asked) -> Decision {
        if let Question::Version { .. } = asked.question {
            std::future::pending::<()>().await;
        }
        Decision::Allow
    }
}

#[tokio::test]
async fn a_guest_that_asks_and_asks_makes_no_more_questions_wait_than_its_quota() {
    const WAITING: usize = 4;
    let protocol = server::Quotas { questions: WAITING, ..server::Quotas::default() };
    let root = Root::builder().policy(Mute).quotas(protocol.into()).build();
    let mut events = root.events();
    let guest = MockGuest::attach(&root, "impatient").unwrap();
    // Each contact takes the question of the one before back, but the agent does not know that.
    for _ in 0..WAITING + 1 {
        guest.say(InitiateContact {
            version: Version::Iron.word().into(),
            interrupt_page_or_target: InitiateContact::target(2, 0, FeatureFlags::empty()),
            ..InitiateContact::default()
        });
    }
    let decided = decision(&mut events, |decided| decided.reason == Reason::Crowd).await;
    assert!(matches!(decided.asked.question, Question::Version { .. }));
    let answer = guest.hear(|message| match message {
        Message::VersionResponse(answer) => Some(answer.supported),
        _ => None,
    });
    assert_eq!(answer.await, 0);
}
