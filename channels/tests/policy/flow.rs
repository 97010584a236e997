//! How fast and when data flows.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use vmbus_channels::policy::{Asked, Decision, Deliver, Limits, Priority, Question, Rate, WallTime};
use vmbus_channels::test_utils::join;
use vmbus_channels::{Channel, Device, Guest, Pending, Root};

use crate::world::{By, CLASS, echo};

async fn limited(limits: Limits) -> (Root, Guest, Channel) {
    let agent = By(move |asked: &Asked| match asked.question {
        Question::Open { .. } => Decision::change(limits.clone()),
        _ => Decision::Allow,
    });
    let root = Root::builder().policy(agent).policy_clock(|| WallTime { micros: 1_000_000 }).build();
    root.offer(echo(CLASS)).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    (root, guest, channel)
}

/// Requests in flight: as many as fit into the rings with their completions.
const AT_ONCE: u64 = 256;

/// How long so many echoes take that are sent as fast as possible.
async fn echo_all(channel: &Channel, count: u64, bytes: usize) -> Duration {
    let began = Instant::now();
    let mut pending = VecDeque::new();
    for number in 0..count {
        let mut payload = vec![0; bytes];
        payload[..8].copy_from_slice(&number.to_le_bytes());
        pending.push_back((number, channel.send(&payload, []).await.unwrap()));
        if number + 1 >= AT_ONCE {
            answered(pending.pop_front()).await;
        }
    }
    while !pending.is_empty() {
        answered(pending.pop_front()).await;
    }
    began.elapsed()
}

async fn answered(pending: Option<(u64, Pending)>) {
    let (number, pending) = pending.unwrap();
    assert_eq!(pending.reply().await.unwrap()[..8], number.to_le_bytes());
}

#[tokio::test]
async fn requests_come_at_the_rate_that_is_allowed_and_none_is_lost() {
    let rate = Rate { requests: Some(1000), burst_ms: Some(0), ..Rate::default() };
    let (_root, _guest, channel) = limited(Limits { rate: Some(rate), ..Limits::default() }).await;
    let took = echo_all(&channel, 301, 8).await;
    // The lower bound is exact; how long a busy machine takes beyond is not this test's business.
    assert!(took >= Duration::from_millis(299), "{took:?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[tokio::test]
async fn bytes_come_at_the_rate_that_is_allowed_and_the_sender_feels_it() {
    // 16 times what the ring holds.
    let rate = Rate { bytes: Some(4 << 20), burst_ms: Some(0), ..Rate::default() };
    let (_root, _guest, channel) = limited(Limits { rate: Some(rate), ..Limits::default() }).await;
    let took = echo_all(&channel, 8192, 128).await;
    assert!(took >= Duration::from_millis(240), "{took:?} for 1 MiB");
}

#[tokio::test]
async fn a_burst_comes_at_once() {
    let rate = Rate { requests: Some(1), burst_ms: Some(500_000), ..Rate::default() };
    let (_root, _guest, channel) = limited(Limits { rate: Some(rate), ..Limits::default() }).await;
    let took = echo_all(&channel, 400, 8).await;
    assert!(took < Duration::from_secs(100), "{took:?}");
}

#[tokio::test]
async fn requests_are_collected_and_come_together() {
    let deliver = Deliver { after_us: Some(100_000), not_before: None };
    let (_root, _guest, channel) = limited(Limits { deliver: Some(deliver), ..Limits::default() }).await;
    let took = echo_all(&channel, 50, 8).await;
    assert!(took >= Duration::from_millis(99), "{took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}: one after the other would take 5 s");
}

#[tokio::test]
async fn nothing_comes_before_its_time() {
    let deliver = Deliver { after_us: None, not_before: Some(WallTime { micros: 1_200_000 }) };
    let (_root, _guest, channel) = limited(Limits { deliver: Some(deliver), ..Limits::default() }).await;
    let took = echo_all(&channel, 5, 8).await;
    assert!(took >= Duration::from_millis(150), "{took:?}");
}

#[tokio::test]
async fn a_channel_of_low_priority_is_served_all_the_same() {
    for priority in [Priority::Low, Priority::Normal, Priority::High] {
        let (_root, _guest, channel) =
            limited(Limits { priority: Some(priority), ..Limits::default() }).await;
        echo_all(&channel, 200, 8).await;
    }
}

#[tokio::test]
async fn a_channel_that_waits_for_its_turn_closes_at_once() {
    let deliver = Deliver { after_us: Some(3_600_000_000), not_before: None };
    let (root, _guest, channel) = limited(Limits { deliver: Some(deliver), ..Limits::default() }).await;
    let mut events = root.events();
    let pending = channel.send(b"12345678", []).await.unwrap();
    drop((channel, pending));
    let closed =
        async { while !matches!(events.recv().await.unwrap(), vmbus_channels::Event::Closed { .. }) {} };
    tokio::time::timeout(Duration::from_secs(30), closed).await.expect("the session ends");
}

#[tokio::test]
async fn a_stream_comes_at_the_rate_that_is_allowed_and_an_unwelcome_one_is_refused() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use vmbus_channels::hvsock;

    const SENT: usize = 1 << 20;
    let (welcome, unwelcome) = (hvsock::port(5000), hvsock::port(5001));
    let rules = format!(
        "[[rule]]\nservice = '{unwelcome}'\ndecide = 'deny'\nreason = 'no such visits'\n\
         [[rule]]\nservice = '{welcome}'\nlimits.rate = {{ bytes = '4M', burst = '0s' }}\n\
         [[rule]]\n"
    );
    let root = Root::builder().policy(rules.parse::<vmbus_channels::policy::Rules>().unwrap()).build();
    let guest = join(&root, "guest").await.unwrap();
    let _other = root.hvsock_listen(unwelcome).unwrap();
    let refused = guest.hvsock_connect(unwelcome).await.unwrap_err();
    assert!(refused.to_string().contains("refused"), "{refused}");

    let mut listener = root.hvsock_listen(welcome).unwrap();
    let (ours, theirs) = tokio::join!(guest.hvsock_connect(welcome), listener.accept());
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap().0);
    let began = Instant::now();
    let sending = tokio::spawn(async move {
        ours.write_all(&[7; SENT]).await.unwrap();
        ours.shutdown().await.unwrap();
        ours
    });
    let mut received = Vec::new();
    theirs.read_to_end(&mut received).await.unwrap();
    assert_eq!(received.len(), SENT);
    // What was read last is paid for by what never comes.
    assert!(began.elapsed() >= Duration::from_millis(180), "{:?}", began.elapsed());
    drop(sending.await.unwrap());
}
